//! Datagrams in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// What happens to a datagram on its way, one way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// Share of the datagrams that are lost, 0 to 1.
    pub(crate) loss: f64,
    /// The delay is uniform between these: datagrams overtake each other.
    pub(crate) delay: (Duration, Duration),
}

impl Link {
    pub(crate) const LAN: Self = Self { loss: 0.0, delay: (Duration::from_micros(50), Duration::from_millis(1)) };
    pub(crate) const AWFUL: Self = Self { loss: 0.3, delay: (Duration::ZERO, Duration::from_millis(200)) };
}

/// A datagram that arrives.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Network {
    rng: SmallRng,
    everywhere: Link,
    at: BTreeMap<SocketAddr, Link>,
    cut: BTreeSet<(SocketAddr, SocketAddr)>,
    in_flight: BTreeMap<(Instant, u64), Arrival>,
    sent: u64,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        let (at, cut, in_flight) = Default::default();
        Self { rng, everywhere: Link::LAN, at, cut, in_flight, sent: 0 }
    }

    /// Datagrams sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) fn set_everywhere(&mut self, link: Link) {
        self.everywhere = link;
    }

    /// What goes to and from `node` takes `link`.
    pub(crate) fn set_at(&mut self, node: SocketAddr, link: Link) {
        self.at.insert(node, link);
    }

    /// Nothing passes between the two groups any more, in both directions.
    pub(crate) fn cut(&mut self, one: &[SocketAddr], other: &[SocketAddr]) {
        for &a in one {
            self.cut.extend(other.iter().flat_map(|&b| [(a, b), (b, a)]));
        }
    }

    pub(crate) fn mend(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn send(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, payload: Vec<u8>) {
        self.sent += 1;
        let link = self.at.get(&from).or_else(|| self.at.get(&to)).copied().unwrap_or(self.everywhere);
        let (least, most) = link.delay;
        let delay = self.rng.random_range(least..=most);
        let lost = self.rng.random_bool(link.loss);
        if !lost && !self.cut.contains(&(from, to)) {
            self.in_flight.insert((now + delay, self.sent), Arrival { from, to, payload });
        }
    }

    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.first_key_value().map(|((due, _), _)| *due)
    }

    pub(crate) fn poll(&mut self, now: Instant) -> Option<Arrival> {
        let first = self.in_flight.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }
}
