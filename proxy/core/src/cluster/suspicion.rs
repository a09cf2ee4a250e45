//! A second opinion before a suspect is declared dead.
//!
//! SWIM's time from suspicion to death is one constant: short enough for a dead node to be out in a
//! second, it kills living nodes on a lossy network. So: while a suspicion is open the suspect is asked
//! directly and often, any sign of life closes it, and the time allowed is short only while the network
//! has been sound. A sign that it is not: an answer that came late, but came. One such answer makes
//! us patient with that node, answers late from two nodes with everybody. Dead nodes answer nothing, so
//! a death never slows down the discovery of the next one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use foca::{Incarnation, Timer};

use super::node::{Node, NodeName};
use super::timing::Timing;

/// Late answers from this many nodes mean that the network is unsound, not a node.
const UNSOUND_NODES: usize = 2;

#[derive(Debug)]
struct Suspicion {
    suspect: Node,
    incarnation: Incarnation,
    verdict: Timer<Node>,
    since: Instant,
    due: Instant,
    next_ask: Instant,
}

#[derive(Debug, Default)]
struct Record {
    heard: Option<Instant>,
    /// A probe is unanswered past its time.
    late: bool,
    /// When the last late answer came.
    answered_late: Option<Instant>,
}

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Ask these for a sign of life.
    pub(super) asks: Vec<Node>,
    /// Give these back to foca: the suspects are dead.
    pub(super) verdicts: Vec<Timer<Node>>,
}

#[derive(Debug)]
pub(super) struct Suspicions {
    timing: Timing,
    open: BTreeMap<NodeName, Suspicion>,
    records: BTreeMap<NodeName, Record>,
}

impl Suspicions {
    pub(super) fn new(timing: Timing) -> Self {
        Self { timing, open: BTreeMap::new(), records: BTreeMap::new() }
    }

    /// False: foca decides alone.
    pub(super) fn are_enabled(&self) -> bool {
        !self.timing.ask_interval.is_zero()
    }

    /// A live member gave a sign of life.
    pub(super) fn heard(&mut self, now: Instant, name: &NodeName) {
        let record = match self.records.get_mut(name) {
            Some(record) => record,
            None => self.records.entry(name.clone()).or_default(),
        };
        record.heard = Some(now);
        if std::mem::take(&mut record.late) {
            record.answered_late = Some(now);
        }
        self.open.remove(name);
    }

    /// The member is gone, or begun anew: nothing that was known of it counts.
    pub(super) fn forget(&mut self, name: &NodeName) {
        self.open.remove(name);
        self.records.remove(name);
    }

    /// A probe sent at `asked_at` should have been answered by now.
    pub(super) fn probe_overdue(&mut self, asked_at: Instant, name: &NodeName) {
        if let Some(record) = self.records.get_mut(name)
            && record.heard.is_some_and(|heard| heard < asked_at)
        {
            record.late = true;
        }
    }

    /// foca's probe of `suspect` failed; `verdict` will declare it dead.
    pub(super) fn suspect(&mut self, now: Instant, suspect: Node, incarnation: Incarnation, verdict: Timer<Node>) {
        let known = self.open.get(&suspect.name);
        if known.is_some_and(|open| open.suspect == suspect && open.incarnation == incarnation) {
            return;
        }
        let due = now + self.timing.suspect_to_down_after;
        let name = suspect.name.clone();
        self.open.insert(name, Suspicion { suspect, incarnation, verdict, since: now, due, next_ask: now });
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.records.clear();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.open.values().map(|s| s.due.min(s.next_ask)).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        let late_ones = self.lately_late(now);
        for (name, open) in &mut self.open {
            if open.due <= now {
                let unsound = late_ones.contains(name) || late_ones.len() >= UNSOUND_NODES;
                let allowed = if unsound { self.timing.patience } else { self.timing.suspect_to_down_after };
                open.due = open.since + allowed;
            }
            if open.due <= now {
                due.verdicts.push(open.verdict.clone());
            } else if open.next_ask <= now {
                due.asks.push(open.suspect.clone());
                open.next_ask = now + ask_pause(&self.timing, now.saturating_duration_since(open.since));
            }
        }
        self.open.retain(|_, open| open.due > now);
        due
    }

    fn lately_late(&self, now: Instant) -> Vec<NodeName> {
        let memory = self.timing.patience_memory;
        let recent =
            |record: &Record| record.answered_late.is_some_and(|late| now.saturating_duration_since(late) < memory);
        self.records.iter().filter(|(_, record)| recent(record)).map(|(name, _)| name.clone()).collect()
    }
}

/// Often while the decision is near, half as often once patience is called for.
fn ask_pause(timing: &Timing, open_for: Duration) -> Duration {
    if open_for < timing.suspect_to_down_after { timing.ask_interval } else { timing.ask_interval * 2 }
}
