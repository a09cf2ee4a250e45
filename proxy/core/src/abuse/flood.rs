//! When SYN cookies are sent, and how long they may come back.

use std::time::{Duration, Instant};

/// So many rates above the threshold, one after the other, turn cookies on: a single burst is no flood.
const RATES_ABOVE: u32 = 2;
/// The rate must stay below half of the threshold for so long before cookies are turned off.
const CALM_FOR: Duration = Duration::from_secs(10);
/// A cookie is good for two minutes at the most: the kernel's counter for them moves on every minute, and it takes the
/// last two.
const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// A rate is taken over at least so much time; shorter ones are mostly chance.
const SHORTEST_TICK: Duration = Duration::from_millis(50);

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Cookies while there is a flood.
    #[default]
    Auto,
    On,
    Off,
}

/// What was counted up to now, since any beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// SYNs for this front end, answered in whatever way.
    pub syns: u64,
    /// SYN cookies that the kernel itself sent.
    pub kernel_cookies: u64,
}

/// What the XDP program is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cookies {
    /// Answer new connections by cookies.
    pub send: bool,
    /// Cookies may come back.
    pub out: bool,
}

/// Decides about SYN cookies from the rate of SYNs.
#[derive(Debug)]
pub struct FloodSwitch {
    /// SYNs per second above which there is a flood; 0: never.
    above: u32,
    mode: Mode,
    last: Option<(Instant, Sample)>,
    rate: f64,
    rates_above: u32,
    flooded: bool,
    calm_since: Option<Instant>,
    out_until: Instant,
    /// The state that [`FloodSwitch::poll_turned`] has told.
    told: bool,
}

impl FloodSwitch {
    /// `above`: SYNs per second above which there is a flood; 0 for never.
    ///
    /// An earlier life of the daemon may have sent cookies, so they may be out at the start.
    #[must_use]
    pub fn new(above: u32, now: Instant) -> Self {
        Self {
            above,
            mode: Mode::default(),
            last: None,
            rate: 0.0,
            rates_above: 0,
            flooded: false,
            calm_since: None,
            out_until: now + COOKIE_LIFETIME,
            told: false,
        }
    }

    /// Takes what was counted. To be called every 100 to 200 ms.
    pub fn handle_sample(&mut self, now: Instant, sample: Sample) {
        let Some((then, last)) = self.last else {
            self.last = Some((now, sample));
            return;
        };
        let elapsed = now.saturating_duration_since(then);
        if elapsed < SHORTEST_TICK {
            return;
        }
        self.last = Some((now, sample));
        if sample.kernel_cookies > last.kernel_cookies {
            self.out_until = now + COOKIE_LIFETIME;
        }
        // Counters that fell have begun anew.
        self.handle_rate(now, per_second(sample.syns.saturating_sub(last.syns), elapsed));
        self.handle_time(now);
    }

    fn handle_rate(&mut self, now: Instant, rate: f64) {
        self.rate = rate;
        let above = f64::from(self.above);
        self.rates_above = if self.above > 0 && rate > above { self.rates_above.saturating_add(1) } else { 0 };
        self.calm_since = if rate < above / 2.0 { self.calm_since.or(Some(now)) } else { None };
        if self.rates_above >= RATES_ABOVE {
            self.flooded = true;
        }
        if self.calm_since.is_some_and(|since| now.saturating_duration_since(since) >= CALM_FOR) {
            self.flooded = false;
        }
    }

    fn handle_time(&mut self, now: Instant) {
        if self.sends() {
            self.out_until = now + COOKIE_LIFETIME;
        }
    }

    /// Does what the operator wants, until told otherwise.
    pub fn set_mode(&mut self, now: Instant, mode: Mode) {
        // What was sent until now is out.
        self.handle_time(now);
        self.mode = mode;
        self.handle_time(now);
    }

    /// What the operator wants.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the program is to do now.
    #[must_use]
    pub fn cookies(&self, now: Instant) -> Cookies {
        Cookies { send: self.sends(), out: self.sends() || now < self.out_until }
    }

    fn sends(&self) -> bool {
        match self.mode {
            Mode::Auto => self.flooded,
            Mode::On => true,
            Mode::Off => false,
        }
    }

    /// SYNs per second, lately.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// SYNs per second above which there is a flood; 0: never.
    #[must_use]
    pub fn above(&self) -> u32 {
        self.above
    }

    /// The beginning (`true`) or end of a flood, once.
    pub fn poll_turned(&mut self) -> Option<bool> {
        let news = self.flooded != self.told;
        self.told = self.flooded;
        news.then_some(self.flooded)
    }
}

#[allow(clippy::cast_precision_loss, reason = "no rate that matters has 53 bits")]
fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// Feeds constant rates, tick by tick.
    struct Feed {
        switch: FloodSwitch,
        now: Instant,
        sample: Sample,
    }

    impl Feed {
        fn new(above: u32) -> Self {
            let now = crate::sim::epoch();
            let mut switch = FloodSwitch::new(above, now);
            switch.handle_sample(now, Sample::default());
            Self { switch, now, sample: Sample::default() }
        }

        /// One tick at so many SYNs per second.
        fn tick(&mut self, rate: u64) -> bool {
            self.now += TICK;
            self.sample.syns += rate / 10;
            self.switch.handle_sample(self.now, self.sample);
            self.switch.cookies(self.now).send
        }

        /// Ticks at this rate until cookies are as wanted; None: not within a minute.
        fn until(&mut self, rate: u64, wanted: bool) -> Option<u32> {
            (1..=600).find(|_| self.tick(rate) == wanted)
        }

        fn out(&self) -> bool {
            self.switch.cookies(self.now).out
        }
    }

    #[test]
    fn a_flood_turns_cookies_on_and_calm_turns_them_off() {
        let mut feed = Feed::new(5_000);
        assert_eq!(feed.until(5_000, true), None, "at the threshold is not above it");
        assert!(!feed.tick(6_000), "one burst");
        assert!(!feed.tick(1_000));
        assert!(!feed.tick(6_000));
        assert_eq!(feed.switch.poll_turned(), None);
        assert!(feed.tick(6_000), "two in a row");
        assert_eq!((feed.switch.poll_turned(), feed.switch.poll_turned()), (Some(true), None));
        assert_eq!(feed.until(3_000, false), None, "not calm enough");
        assert_eq!(feed.until(2_000, false), Some(101), "ten seconds after the first calm tick");
        assert_eq!(feed.switch.poll_turned(), Some(false));
    }

    #[test]
    fn calm_must_not_be_interrupted() {
        let mut feed = Feed::new(5_000);
        feed.until(9_000, true).unwrap();
        for _ in 0..5 {
            (0..90).for_each(|_| assert!(feed.tick(0)));
            assert!(feed.tick(2_600));
        }
        assert_eq!(feed.until(0, false), Some(101));
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let mut feed = Feed::new(5_000);
        feed.switch.set_mode(feed.now, Mode::On);
        assert!(feed.tick(0));
        feed.switch.set_mode(feed.now, Mode::Off);
        assert_eq!(feed.until(50_000, true), None);
        feed.switch.set_mode(feed.now, Mode::Auto);
        assert!(feed.tick(50_000), "the flood was seen meanwhile");
        let mut never = Feed::new(0);
        assert_eq!(never.until(1_000_000, true), None);
    }

    #[test]
    fn cookies_are_out_for_two_minutes() {
        let mut feed = Feed::new(5_000);
        assert!(feed.out(), "an earlier life may have sent some");
        feed.now += COOKIE_LIFETIME;
        assert!(!feed.out());
        feed.switch.set_mode(feed.now, Mode::On);
        assert!(feed.out());
        feed.now += COOKIE_LIFETIME * 3;
        assert!(feed.out(), "they are still sent");
        feed.switch.set_mode(feed.now, Mode::Auto);
        assert!(feed.out());
        feed.now += COOKIE_LIFETIME;
        assert!(!feed.out());
        feed.tick(0);
        assert!(!feed.out());
        feed.sample.kernel_cookies += 1;
        feed.tick(0);
        assert!(feed.out(), "the kernel sends cookies on its own");
    }

    #[test]
    fn counters_may_begin_anew_and_ticks_may_crowd() {
        let mut feed = Feed::new(5_000);
        feed.tick(4_000);
        feed.sample.syns = 0;
        feed.tick(0);
        assert!(feed.switch.rate().abs() < f64::EPSILON);
        feed.now += Duration::from_millis(1);
        feed.sample.syns += 1_000;
        feed.switch.handle_sample(feed.now, feed.sample);
        feed.now += TICK;
        feed.switch.handle_sample(feed.now, feed.sample);
        assert!((9_800.0..10_000.0).contains(&feed.switch.rate()), "over the whole time: {}", feed.switch.rate());
    }
}
