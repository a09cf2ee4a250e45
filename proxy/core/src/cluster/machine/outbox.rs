//! What foca asks for, kept until the machine has handed it on.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use foca::{Notification, OwnedNotification, Runtime, Timer};

use super::Transmit;
use crate::cluster::node::Node;
use crate::cluster::suspicion::Suspicions;
use crate::cluster::timing::Timing;
use crate::cluster::wire;

/// A timer of no length would never let [`super::Machine::handle_timeout`] return.
const SHORTEST_TIMER: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Outbox {
    now: Option<Instant>,
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) notes: VecDeque<OwnedNotification<Node>>,
    pub(super) timers: BTreeMap<(Instant, u64), Timer<Node>>,
    /// Orders timers that are due at the same instant.
    count: u64,
    pub(super) suspicions: Suspicions,
}

impl Outbox {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            now: None,
            transmits: VecDeque::new(),
            notes: VecDeque::new(),
            timers: BTreeMap::new(),
            count: 0,
            suspicions: Suspicions::new(timing),
        }
    }

    /// Sets the time of what foca asks for next.
    pub(super) fn at(&mut self, now: Instant) -> &mut Self {
        self.now = Some(now);
        self
    }

    pub(super) fn next_timer(&mut self, now: Instant) -> Option<(Instant, Timer<Node>)> {
        let first = self.timers.first_entry().filter(|first| first.key().0 <= now)?;
        let ((due, _), timer) = first.remove_entry();
        Some((due, timer))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((due, _), _)| *due)
    }
}

impl Runtime<Node> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Node>) {
        self.notes.push_back(notification.to_owned());
    }

    fn send_to(&mut self, to: Node, data: &[u8]) {
        self.transmits.push_back(Transmit { to: to.address, payload: wire::encode_foca(data) });
    }

    fn submit_after(&mut self, event: Timer<Node>, after: Duration) {
        let Some(now) = self.now else { return };
        if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &event
            && self.suspicions.are_enabled()
        {
            let (suspect, incarnation) = (member_id.clone(), *incarnation);
            self.suspicions.suspect(now, suspect, incarnation, event);
            return;
        }
        self.count += 1;
        self.timers.insert((now + after.max(SHORTEST_TIMER), self.count), event);
    }
}
