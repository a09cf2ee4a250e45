//! Machines on a simulated network.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::network::Network;
use crate::cluster::{Event, Machine, Node, NodeName, Timing};

/// An event at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happening {
    /// Since the beginning of the run.
    pub(crate) at: Duration,
    /// To whom it happened.
    pub(crate) node: usize,
    pub(crate) event: Event,
}

/// A pool of nodes 0, 1, 2…; node `i` is called `fe<i>` and has the first two as seeds.
pub(crate) struct Pool {
    pub(crate) net: Network,
    pub(crate) log: Vec<Happening>,
    nodes: BTreeMap<usize, Machine>,
    timing: Timing,
    seed: u64,
    generation: u64,
    start: Instant,
    now: Instant,
}

impl Pool {
    /// `size` nodes that start at once.
    pub(crate) fn new(size: usize, timing: Timing, seed: u64) -> Self {
        let start = super::epoch();
        let (net, nodes, log) = (Network::new(seed), BTreeMap::new(), Vec::new());
        let mut pool = Self { net, log, nodes, timing, seed, generation: 1, start, now: start };
        for i in 0..size {
            pool.boot(i);
        }
        pool
    }

    /// A pool whose members all know each other.
    pub(crate) fn settled(size: usize, timing: Timing, seed: u64) -> Self {
        let mut pool = Self::new(size, timing, seed);
        pool.run(Duration::from_secs(3));
        assert!(pool.is_whole(), "seed {seed}: a pool of {size} did not form in 3 s");
        pool.log.clear();
        pool
    }

    pub(crate) fn address(i: usize) -> SocketAddr {
        let last = u8::try_from(i + 1).unwrap();
        (Ipv4Addr::new(10, 0, 0, last), 7400).into()
    }

    pub(crate) fn name(i: usize) -> NodeName {
        NodeName::parse(&format!("fe{i}")).unwrap()
    }

    /// Starts node `i` with a younger generation than all before.
    pub(crate) fn boot(&mut self, i: usize) {
        self.generation += 1;
        self.boot_as(i, Self::name(i), self.generation);
    }

    pub(crate) fn boot_as(&mut self, i: usize, name: NodeName, generation: u64) {
        let node = Node::new(name, generation, Self::address(i), [0, 0, 0, 0, 0, 1], 100);
        let seed = self.seed.wrapping_mul(1_000_003) + self.generation * 97 + i as u64;
        let mut machine = Machine::new(node, self.timing.clone(), seed);
        for seed in 0..2 {
            machine.handle_announce(self.now, Self::address(seed));
        }
        self.nodes.insert(i, machine);
        self.drain(i);
    }

    /// Node `i` is gone without a word.
    pub(crate) fn crash(&mut self, i: usize) {
        self.nodes.remove(&i);
    }

    /// Lets node `i` do something.
    pub(crate) fn with<T>(&mut self, i: usize, work: impl FnOnce(&mut Machine, Instant) -> T) -> T {
        let result = work(self.nodes.get_mut(&i).unwrap(), self.now);
        self.drain(i);
        result
    }

    pub(crate) fn machines(&self) -> impl Iterator<Item = (usize, &Machine)> {
        self.nodes.iter().map(|(i, machine)| (*i, machine))
    }

    /// Time since the beginning.
    pub(crate) fn time(&self) -> Duration {
        self.now - self.start
    }

    /// Every living node sees exactly the living nodes, in their newest description.
    pub(crate) fn is_whole(&self) -> bool {
        let mut everybody: Vec<&Node> = self.nodes.values().map(Machine::me).collect();
        everybody.sort_by(|a, b| a.name.cmp(&b.name));
        self.nodes.values().all(|machine| machine.members().eq(everybody.iter().copied()))
    }

    pub(crate) fn run(&mut self, span: Duration) {
        self.run_until(span, |_| false);
    }

    /// Runs until `done` or for `limit`; how long it took, if it was done.
    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let began = self.now;
        let end = began + limit;
        while !done(self) {
            let next = self.nodes.values().filter_map(Machine::poll_timeout).chain(self.net.next_arrival()).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.step(next),
                None => {
                    self.now = end;
                    return done(self).then_some(limit);
                }
            }
        }
        Some(self.now - began)
    }

    fn step(&mut self, next: Instant) {
        self.now = self.now.max(next);
        while let Some(arrival) = self.net.poll(self.now) {
            let receiver = self.nodes.iter_mut().find(|(i, _)| Self::address(**i) == arrival.to);
            if let Some((&i, machine)) = receiver {
                machine.handle_datagram(self.now, arrival.from, &arrival.payload).unwrap();
                self.drain(i);
            }
        }
        let due = |m: &Machine| m.poll_timeout().is_some_and(|due| due <= self.now);
        let due: Vec<usize> = self.nodes.iter().filter(|(_, m)| due(m)).map(|(i, _)| *i).collect();
        for i in due {
            self.with(i, |machine, now| machine.handle_timeout(now));
        }
    }

    fn drain(&mut self, i: usize) {
        let at = self.time();
        let Some(machine) = self.nodes.get_mut(&i) else { return };
        while let Some(transmit) = machine.poll_transmit() {
            assert!(transmit.payload.len() <= crate::cluster::MAX_DATAGRAM);
            self.net.send(self.now, Self::address(i), transmit.to, transmit.payload);
        }
        while let Some(event) = machine.poll_event() {
            self.log.push(Happening { at, node: i, event });
        }
        assert_eq!(machine.anomalies(), 0, "node {i}");
    }
}
