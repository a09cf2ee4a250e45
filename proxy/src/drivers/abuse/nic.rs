//! The XDP program's part: the deny list into its maps, floods out of its counters.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proxy_common::maps::Counter;
use proxy_core::abuse::{Change, DenyList, Prefix, Sample};
use tokio::time::MissedTickBehavior;

use super::Abuse;
use super::list::{SharedDenyList, unix_now};
use crate::dataplane::{DenyMaps, deny};
use crate::drivers::steering::SharedDataplane;

/// Changes put in force at once.
const BATCH: usize = 1_000;
/// How often the rate of SYNs is looked at.
const TICK: Duration = Duration::from_millis(100);
/// The kernel's own counter of cookies is read every so many ticks: reading it is work for the kernel.
const TICKS_PER_KERNEL_COUNT: u32 = 10;
/// Without a deadline of the list, it is looked at so often all the same: the clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// After which an error that persists is told again.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// SYNs that this front end answered, or would have.
const NEW: [Counter; 3] = [Counter::OwnNew, Counter::NewAgain, Counter::CookieSent];
const NETSTAT: &str = "/proc/net/netstat";

/// What differs between the program's maps, where an earlier daemon left `present`, and the list.
pub(super) fn difference(present: Vec<Prefix>, list: &DenyList) -> Vec<Change> {
    let present: HashSet<Prefix> = present.into_iter().collect();
    let more = list.entries(None).map(|record| record.prefix).filter(|prefix| !present.contains(prefix));
    let less = present.iter().filter(|prefix| list.entry(**prefix).is_none());
    more.map(Change::Deny).chain(less.map(|prefix| Change::Allow(*prefix))).collect()
}

/// Puts the list in force, first of all `difference`, and ends entries whose time is over. It ends only by a panic elsewhere.
pub(super) async fn keep_denying(
    list: SharedDenyList,
    dataplane: SharedDataplane,
    mut maps: DenyMaps,
    difference: Vec<Change>,
) -> Result<()> {
    let mut changed = list.subscribe();
    for changes in difference.chunks(BATCH) {
        maps = apply(maps, changes.to_vec(), &dataplane).await?;
    }
    loop {
        changed.mark_unchanged();
        let changes: Vec<Change> = {
            let mut list = list.lock();
            list.handle_timeout(unix_now());
            std::iter::from_fn(|| list.poll_change()).take(BATCH).collect()
        };
        if changes.is_empty() {
            let sleep = sleep_time(list.lock().poll_timeout());
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        } else {
            maps = apply(maps, changes, &dataplane).await?;
        }
    }
}

fn sleep_time(timeout: Option<u64>) -> Duration {
    timeout.map_or(LONGEST_SLEEP, |at| Duration::from_millis(at.saturating_sub(unix_now())).min(LONGEST_SLEEP))
}

/// Short prefixes touch many words: not for a thread that serves sessions.
async fn apply(mut maps: DenyMaps, changes: Vec<Change>, dataplane: &SharedDataplane) -> Result<DenyMaps> {
    let task = tokio::task::spawn_blocking(move || {
        let result = maps.apply(&changes);
        (maps, result)
    });
    let (maps, result) = task.await.context("the deny list was given up")?;
    if let Err(error) = result {
        tracing::error!(error = format!("{error:#}"), "the NIC does not deny all that is listed");
    }
    dataplane.lock().set_flags(deny::FLAGS, maps.flags());
    Ok(maps)
}

/// Looks at the rate of SYNs, and has the program answer by cookies while there is a flood.
pub(super) async fn keep_watching(abuse: Abuse) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kernel_cookies = 0;
    let mut told: Option<Instant> = None;
    for count in (0..TICKS_PER_KERNEL_COUNT).cycle() {
        ticks.tick().await;
        let sampled = sample(&abuse.dataplane, count == 0, &mut kernel_cookies);
        match sampled {
            Ok(sample) => watch(&abuse, sample),
            Err(error) if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) => {
                told = Some(Instant::now());
                tracing::error!(error = format!("{error:#}"), "a flood would not be noticed");
            }
            Err(_told) => {}
        }
    }
}

fn sample(dataplane: &SharedDataplane, read_kernel: bool, kernel_cookies: &mut u64) -> Result<Sample> {
    if read_kernel {
        *kernel_cookies = cookies_sent(&fs::read_to_string(NETSTAT).context("failed to read /proc/net/netstat")?)
            .context("/proc/net/netstat does not tell SyncookiesSent")?;
    }
    Ok(Sample { syns: dataplane.lock().count_of(&NEW)?, kernel_cookies: *kernel_cookies })
}

fn watch(abuse: &Abuse, sample: Sample) {
    let now = Instant::now();
    let mut flood = super::lock(&abuse.flood);
    flood.handle_sample(now, sample);
    let (rate, above) = (flood.rate().round(), flood.above());
    match flood.poll_turned() {
        Some(true) => tracing::warn!(syns_per_second = rate, above, mode = ?flood.mode(), "a flood of new connections"),
        Some(false) => tracing::info!("the flood of new connections is over"),
        None => {}
    }
    abuse.obey(flood.cookies(now));
}

/// `SyncookiesSent` of `TcpExt`: names in one line, numbers in the next.
fn cookies_sent(netstat: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let (_, number) =
        names.split_whitespace().zip(numbers.split_whitespace()).find(|(name, _)| *name == "SyncookiesSent")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use proxy_core::abuse::{Denial, Origin, Reason};

    use super::*;

    #[test]
    fn the_kernels_counter_is_found_by_its_name() {
        let text = "TcpExt: TW SyncookiesSent X\nTcpExt: 5 17 9\nIpExt: SyncookiesSent\nIpExt: 3\n";
        assert_eq!(cookies_sent(text), Some(17));
        assert_eq!(cookies_sent("TcpExt: TW\nTcpExt: 5\n"), None);
        assert_eq!(cookies_sent("TcpExt: SyncookiesSent\nTcpExt: x\n"), None);
        assert_eq!(cookies_sent(""), None);
        assert!(cookies_sent(&fs::read_to_string(NETSTAT).unwrap()).is_some());
    }

    #[test]
    fn only_what_differs_from_an_earlier_life_is_changed() {
        let mut list = DenyList::default();
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        for text in ["192.0.2.0/24", "2001:db8::/32"] {
            let denial = Denial { until: None, reason: Reason::default() };
            list.deny(1, prefix(text), denial, &Origin::parse("fe1").unwrap()).unwrap();
        }
        let present = vec![prefix("192.0.2.0/24"), prefix("9.9.9.9")];
        let expected = [Change::Deny(prefix("2001:db8::/32")), Change::Allow(prefix("9.9.9.9"))];
        assert_eq!(difference(present, &list), expected);
    }
}
