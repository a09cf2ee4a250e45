//! Whether this front end takes new connections: it joins, serves, drains when told to, and drains when it is stopped.
//!
//! A drain outlives nothing: a front end that is started again serves. What it is not: the end of connections. At the
//! deadline the drain has failed, and says of how many; only stopping the daemon cuts them off.

use std::time::{Duration, Instant};

/// A drain is not over sooner: a SYN that was answered just before the others heard of the drain becomes a connection
/// only with the client's next packet, and that may have to be repeated once.
pub const SHORTEST: Duration = Duration::from_secs(2);

/// What the others are to take this front end for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// It does not know yet who is there and what they have.
    Joining,
    Active,
    Draining,
}

/// How a drain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many connections are left; none: not counted yet.
    Running { left: Option<usize> },
    /// Nothing is left: the front end may be stopped.
    Drained,
    /// The deadline has passed.
    Expired { left: usize },
}

/// A drain that an operator began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    begun: Instant,
    deadline: Option<Instant>,
    left: Option<usize>,
    progress: Progress,
}

impl Drain {
    /// When it gives up; none: never.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    #[must_use]
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    fn judge(&mut self, now: Instant) {
        let old_enough = now.saturating_duration_since(self.begun) >= SHORTEST;
        self.progress = match self.left {
            Some(0) if old_enough => Progress::Drained,
            left if self.deadline.is_some_and(|deadline| now >= deadline) => {
                Progress::Expired { left: left.unwrap_or_default() }
            }
            left => Progress::Running { left },
        };
    }
}

/// A front end's life from its start to its end.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    ready: bool,
    stopping: bool,
    drain: Option<Drain>,
}

impl Lifecycle {
    /// What to tell the others.
    #[must_use]
    pub const fn stance(&self) -> Stance {
        match (self.ready, self.stopping || self.drain.is_some()) {
            (false, _) => Stance::Joining,
            (true, true) => Stance::Draining,
            (true, false) => Stance::Active,
        }
    }

    /// The daemon is to end.
    #[must_use]
    pub const fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// The operator's drain, until it is taken back.
    #[must_use]
    pub const fn drain(&self) -> Option<&Drain> {
        self.drain.as_ref()
    }

    /// All members are known, and what they have.
    pub const fn handle_ready(&mut self) {
        self.ready = true;
    }

    /// The operator wants a drain that gives up after `limit`. One that runs is kept, with the new deadline.
    pub fn handle_drain(&mut self, now: Instant, limit: Option<Duration>) {
        let deadline = limit.and_then(|limit| now.checked_add(limit));
        let fresh = Drain { begun: now, deadline, left: None, progress: Progress::Running { left: None } };
        let drain = self.drain.get_or_insert(fresh);
        drain.deadline = deadline;
        drain.judge(now);
    }

    /// The operator wants new connections again. Returns false if there was no drain.
    pub fn handle_undrain(&mut self) -> bool {
        self.drain.take().is_some()
    }

    /// The daemon is to end: nothing takes that back.
    pub const fn handle_stop(&mut self) {
        self.stopping = true;
    }

    /// Connections were counted, those apart that have ended (TIME_WAIT).
    pub fn handle_connections(&mut self, now: Instant, left: usize) {
        if let Some(drain) = &mut self.drain {
            drain.left = Some(left);
            drain.judge(now);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let drain = self.drain.as_ref()?;
        if matches!(drain.progress, Progress::Running { .. }) { drain.deadline } else { None }
    }

    /// A deadline may have passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(drain) = &mut self.drain {
            drain.judge(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch() -> Instant {
        crate::sim::epoch()
    }

    fn active() -> Lifecycle {
        let mut life = Lifecycle::default();
        life.handle_ready();
        life
    }

    #[test]
    fn a_node_joins_before_it_serves_whatever_is_ordered() {
        let mut life = Lifecycle::default();
        assert_eq!(life.stance(), Stance::Joining);
        life.handle_drain(epoch(), None);
        assert_eq!(life.stance(), Stance::Joining);
        life.handle_ready();
        assert_eq!(life.stance(), Stance::Draining);
        assert!(life.handle_undrain());
        assert_eq!(life.stance(), Stance::Active);
        assert!(!life.handle_undrain());
    }

    #[test]
    fn a_drain_ends_with_the_last_connection_but_not_at_once() {
        let (mut life, start) = (active(), epoch());
        life.handle_drain(start, None);
        assert_eq!(life.poll_timeout(), None);
        let progress = |life: &Lifecycle| life.drain().unwrap().progress();
        assert_eq!(progress(&life), Progress::Running { left: None });
        life.handle_connections(start, 0);
        assert_eq!(progress(&life), Progress::Running { left: Some(0) }, "one may be in its handshake");
        life.handle_connections(start + SHORTEST, 3);
        assert_eq!(progress(&life), Progress::Running { left: Some(3) });
        life.handle_connections(start + 2 * SHORTEST, 0);
        assert_eq!(progress(&life), Progress::Drained);
        assert_eq!(life.stance(), Stance::Draining, "a drained node takes nothing until it is told to");
    }

    #[test]
    fn the_deadline_tells_what_is_left() {
        let (mut life, start) = (active(), epoch());
        let limit = Duration::from_secs(60);
        life.handle_drain(start, Some(limit));
        life.handle_connections(start, 5);
        assert_eq!(life.poll_timeout(), Some(start + limit));
        life.handle_timeout(start + limit / 2);
        assert_eq!(life.drain().unwrap().progress(), Progress::Running { left: Some(5) });
        life.handle_timeout(start + limit);
        assert_eq!(life.drain().unwrap().progress(), Progress::Expired { left: 5 });
        assert_eq!(life.poll_timeout(), None);
        life.handle_connections(start + limit, 0);
        assert_eq!(life.drain().unwrap().progress(), Progress::Drained, "late, but nothing is left");
    }

    #[test]
    fn a_second_order_moves_the_deadline_only() {
        let (mut life, start) = (active(), epoch());
        life.handle_drain(start, Some(Duration::from_secs(1)));
        life.handle_connections(start, 5);
        life.handle_drain(start + SHORTEST, None);
        assert_eq!(life.drain().unwrap().progress(), Progress::Running { left: Some(5) });
        assert_eq!(life.drain().unwrap().deadline(), None);
    }

    #[test]
    fn an_end_is_not_taken_back() {
        let mut life = active();
        life.handle_stop();
        life.handle_drain(epoch(), None);
        life.handle_undrain();
        assert_eq!(life.stance(), Stance::Draining);
    }
}
