//! What this machine has, and when it counts and tells it.

use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::super::Holdings;
use super::super::view::View;
use super::REMEMBERED;

/// Counts after a change of the view: handshakes that the kernel had just begun must be seen.
const FIRST_COUNTS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(200)];
/// Between counts while connections may be elsewhere than their buckets.
const COUNT_OFTEN: Duration = Duration::from_secs(1);
/// Between counts otherwise: cheap insurance.
const COUNT_SELDOM: Duration = Duration::from_secs(5);
/// A count that was not answered by then is asked for again.
const COUNT_LOST: Duration = Duration::from_secs(5);
/// What was told is repeated, first soon, then ever later up to the last, for messages may be lost.
const REPEAT_FIRST: Duration = Duration::from_millis(200);
const REPEAT_LAST: Duration = Duration::from_secs(2);

/// This machine's connections and holdings.
#[derive(Debug)]
pub(super) struct Own {
    /// The bucket of each connection, as last counted.
    connections: Vec<u32>,
    strays: usize,
    /// Buckets of others that were this machine's in the last seconds.
    lately: RoaringBitmap,
    holdings: RoaringBitmap,
    /// When the view, or the holdings, changed.
    changed: Option<Instant>,
    /// Counts that were begun and answered since the view changed.
    counts: usize,
    next_count: Option<Instant>,
    /// A count that is not answered yet: when it was asked for, and whether the view has changed since.
    asked: Option<(Instant, bool)>,
    next_tell: Option<Instant>,
    pause: Duration,
    sequence: u64,
}

impl Own {
    pub(super) fn new() -> Self {
        Self {
            connections: Vec::new(),
            strays: 0,
            lately: RoaringBitmap::new(),
            holdings: RoaringBitmap::new(),
            changed: None,
            counts: 0,
            next_count: None,
            asked: None,
            next_tell: None,
            pause: REPEAT_FIRST,
            sequence: 0,
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn strays(&self) -> usize {
        self.strays
    }

    /// Nothing is told under a new view before the connections were counted under it.
    pub(super) fn handle_view(&mut self, now: Instant, view: &View, lately: RoaringBitmap) {
        self.changed = Some(now);
        self.counts = 0;
        self.next_count = Some(now + FIRST_COUNTS[0]);
        self.next_tell = None;
        self.asked = self.asked.map(|(asked, _)| (asked, true));
        self.lately = lately;
        self.gather(view);
    }

    /// Some of the former views are forgotten.
    pub(super) fn handle_lately(&mut self, now: Instant, view: &View, lately: RoaringBitmap) {
        self.lately = lately;
        if self.gather(view) && self.counts > 0 {
            self.news(now);
        }
    }

    pub(super) fn handle_connections(&mut self, now: Instant, view: &View, connections: Vec<u32>) {
        self.connections = connections;
        let changed = self.gather(view);
        // A list that was begun under an older view may lack what that view's last packets made.
        let Some((_, false)) = self.asked.take() else { return };
        self.counts += 1;
        self.next_count = Some(self.count_after(now));
        if changed || self.counts == 1 {
            self.news(now);
        }
    }

    /// Makes the holdings anew; whether they are others than before.
    fn gather(&mut self, view: &View) -> bool {
        let strays = self.connections.iter().copied().filter(|bucket| !view.owns(*bucket));
        self.strays = strays.clone().count();
        let mut holdings: RoaringBitmap = strays.collect();
        holdings |= &self.lately;
        let changed = holdings != self.holdings;
        self.holdings = holdings;
        changed
    }

    fn news(&mut self, now: Instant) {
        self.changed = Some(now);
        self.next_tell = Some(now);
        self.pause = REPEAT_FIRST;
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.changed.is_some_and(|changed| now < changed + REMEMBERED)
    }

    fn count_after(&self, now: Instant) -> Instant {
        let first = FIRST_COUNTS.get(self.counts).zip(self.changed).map(|(after, changed)| changed + *after);
        let pause = if self.strays > 0 || self.is_recent(now) { COUNT_OFTEN } else { COUNT_SELDOM };
        first.unwrap_or(now + pause)
    }

    /// Whether the connections have to be counted now.
    pub(super) fn poll_count(&mut self, now: Instant) -> bool {
        let due = self.count_due().is_some_and(|due| due <= now);
        if due {
            self.asked = Some((now, false));
        }
        due
    }

    fn count_due(&self) -> Option<Instant> {
        match self.asked {
            Some((asked, _)) => Some(asked + COUNT_LOST),
            None => self.next_count,
        }
    }

    /// What has to be told now.
    pub(super) fn poll_tell(&mut self, now: Instant, view: u64, generation: u64) -> Option<Holdings> {
        self.next_tell.filter(|due| *due <= now)?;
        let again = !self.holdings.is_empty() || self.is_recent(now);
        self.next_tell = again.then_some(now + self.pause);
        self.pause = REPEAT_LAST.min(self.pause * 2);
        self.sequence += 1;
        Some(Holdings { view, generation, sequence: self.sequence, buckets: self.holdings.clone() })
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.count_due().into_iter().chain(self.next_tell).min()
    }
}
