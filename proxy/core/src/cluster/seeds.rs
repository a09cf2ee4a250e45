//! Seeds: addresses where a member may be found. Each is tried until a member has that address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// More seeds than this are ignored.
const MAX_SEEDS: usize = 64;

#[derive(Debug)]
struct Attempt {
    due: Instant,
    pause: Duration,
}

#[derive(Debug)]
pub(super) struct Seeds {
    attempts: BTreeMap<SocketAddr, Attempt>,
    first_pause: Duration,
    longest_pause: Duration,
}

impl Seeds {
    pub(super) fn new(first_pause: Duration, longest_pause: Duration) -> Self {
        Self { attempts: BTreeMap::new(), first_pause, longest_pause }
    }

    /// Tries `address` now, and again until it is a member's.
    pub(super) fn add(&mut self, now: Instant, address: SocketAddr) {
        if self.attempts.len() < MAX_SEEDS || self.attempts.contains_key(&address) {
            self.attempts.insert(address, Attempt { due: now, pause: self.first_pause });
        }
    }

    /// Something happened that makes a new try worthwhile.
    pub(super) fn hurry(&mut self, now: Instant) {
        for attempt in self.attempts.values_mut() {
            *attempt = Attempt { due: attempt.due.min(now + self.first_pause), pause: self.first_pause };
        }
    }

    pub(super) fn clear(&mut self) {
        self.attempts.clear();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.attempts.values().map(|a| a.due).min()
    }

    /// The addresses to try now. Those of members are only looked at again later.
    pub(super) fn due(&mut self, now: Instant, is_member: impl Fn(&SocketAddr) -> bool) -> Vec<SocketAddr> {
        let mut tries = Vec::new();
        for (address, attempt) in self.attempts.iter_mut().filter(|(_, a)| a.due <= now) {
            if is_member(address) {
                attempt.pause = self.first_pause;
            } else {
                tries.push(*address);
            }
            attempt.due = now + attempt.pause;
            attempt.pause = (attempt.pause * 2).min(self.longest_pause);
        }
        tries
    }
}
