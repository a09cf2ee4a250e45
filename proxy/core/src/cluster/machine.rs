//! The membership machine: foca inside, seeds, suspicions and digests around it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foca::{Foca, Timer};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use self::outbox::Outbox;
use super::digest::{Digest, DigestRefused, SharedDigests};
use super::node::{Node, NodeName, NodeState};
use super::seeds::Seeds;
use super::timing::Timing;
use super::wire::{self, BoundedCodec, Control, MalformedDatagram, Message};

mod outbox;
mod reactions;

/// News does not wait for the next round of gossip, but rounds are at least this far apart.
const GOSSIP_PAUSE: Duration = Duration::from_millis(10);
/// Gossip rounds of a leaving node: each reaches `gossip_fanout` members at once.
const FAREWELLS: usize = 3;

/// A datagram to send. Losing it is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The QUIC endpoint of the receiver.
    pub to: SocketAddr,
    /// At most [`super::MAX_DATAGRAM`] octets.
    pub payload: Vec<u8>,
}

/// What happened in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// At least one other member knows us.
    Joined,
    /// No other member is left.
    Alone,
    /// A member came.
    MemberUp(Node),
    /// A live member changed; with a higher generation than before it was restarted.
    MemberChanged(Node),
    /// A member died or left.
    MemberDown(Node),
    /// Others had declared us dead; we are back as the node given.
    Rejoined(Node),
    /// Another live node has our name: an operator's mistake that only an operator can mend. The
    /// node that was started later is the pool's; if that is not us, nobody listens to us.
    NameConflict(Node),
    /// A source's digest that is newer than what was known.
    Digest(Digest),
}

type Engine = Foca<Node, BoundedCodec, SmallRng, SharedDigests>;

/// One member's view of the pool. See the module's description.
pub struct Machine {
    foca: Engine,
    outbox: Outbox,
    view: BTreeMap<NodeName, Node>,
    events: VecDeque<Event>,
    seeds: Seeds,
    digests: SharedDigests,
    rng: SmallRng,
    timing: Timing,
    joined: bool,
    left: bool,
    /// Rounds of gossip that do not wait for their period.
    news: u8,
    /// We changed: every member must hear of it from us.
    introduce: bool,
    last_gossip: Option<Instant>,
    next_digests: Option<Instant>,
    last_conflict: Option<Instant>,
    last_rejoin: Option<Instant>,
    anomalies: u64,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("me", self.me()).field("view", &self.view).finish_non_exhaustive()
    }
}

impl Machine {
    /// A pool of one. `seed` feeds the choice of whom to probe: same seed, same run.
    #[must_use]
    pub fn new(me: Node, timing: Timing, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let foca_rng = SmallRng::seed_from_u64(rng.random());
        let digests = SharedDigests::default();
        let codec = BoundedCodec::default();
        Self {
            foca: Foca::with_custom_broadcast(me, timing.foca(), foca_rng, codec, digests.clone()),
            outbox: Outbox::new(timing.clone()),
            view: BTreeMap::new(),
            events: VecDeque::new(),
            seeds: Seeds::new(timing.seed_retry, timing.seed_retry_max),
            digests,
            rng,
            timing,
            joined: false,
            left: false,
            news: 0,
            introduce: false,
            last_gossip: None,
            next_digests: None,
            last_conflict: None,
            last_rejoin: None,
            anomalies: 0,
        }
    }

    /// Ourselves, as the others see us.
    #[must_use]
    pub fn me(&self) -> &Node {
        self.foca.identity()
    }

    /// The membership view: the live others and ourselves, sorted by name.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        let me = self.me();
        let before = self.view.range(..&me.name).map(|(_, node)| node);
        let after = self.view.range(&me.name..).map(|(_, node)| node);
        before.chain(std::iter::once(me)).chain(after)
    }

    /// The digest known for a source.
    #[must_use]
    pub fn digest(&self, source: &str) -> Option<Digest> {
        self.digests.lock().get(source).cloned()
    }

    /// Faults inside the engine (not the peers'): 0 unless there is a bug.
    #[must_use]
    pub fn anomalies(&self) -> u64 {
        self.anomalies
    }

    /// Who claims to have sent `datagram`, if it says so. The daemon compares it with the name that
    /// the peer's certificate proves and drops what does not match.
    ///
    /// # Errors
    /// [`MalformedDatagram`] like [`Machine::handle_datagram`].
    pub fn sender(datagram: &[u8]) -> Result<Option<NodeName>, MalformedDatagram> {
        match wire::decode(datagram)? {
            Message::Foca(bytes) => Ok(Some(wire::foca_header(bytes)?.src.name)),
            Message::Control(Control::Hello { node } | Control::Here { node, .. }) => Ok(Some(node.name)),
            Message::Control(Control::Digests(_)) => Ok(None),
        }
    }

    /// Contacts a seed, now and again until a member has its address. Our own address does no harm.
    pub fn handle_announce(&mut self, now: Instant, seed: SocketAddr) {
        self.seeds.add(now, seed);
        self.handle_timeout(now);
    }

    /// Takes in a datagram that came from `from`.
    ///
    /// # Errors
    /// [`MalformedDatagram`] if the peer sent nonsense; log it, nothing else is to be done.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Result<(), MalformedDatagram> {
        if self.left {
            return Ok(());
        }
        let result = match wire::decode(bytes)? {
            Message::Foca(bytes) => self.handle_swim(now, bytes),
            Message::Control(Control::Hello { node }) => {
                self.handle_hello(now, from, &node);
                Ok(())
            }
            Message::Control(Control::Here { node, on_file }) => {
                self.handle_here(now, node, on_file);
                Ok(())
            }
            Message::Control(Control::Digests(digests)) => self.handle_digests(digests),
        };
        self.finish(now);
        result
    }

    /// Does what is due. Hand over the datagrams that wait before: an answer that lies in the socket
    /// should not count as missing. Call it at [`Machine::poll_timeout`]; a call too early does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.left {
            return;
        }
        while let Some((due, timer)) = self.outbox.next_timer(now) {
            if let Timer::SendIndirectProbe { probed_id, .. } = &timer
                && let Some(asked_at) = due.checked_sub(self.timing.probe_rtt)
            {
                self.outbox.suspicions.probe_overdue(asked_at, &probed_id.name);
            }
            self.run(now, |foca, outbox| foca.handle_timer(timer, outbox));
        }
        let due = self.outbox.suspicions.handle_timeout(now);
        for suspect in due.asks {
            self.hello(suspect.address);
        }
        for verdict in due.verdicts {
            self.run(now, |foca, outbox| foca.handle_timer(verdict, outbox));
        }
        let (view, me) = (&self.view, self.foca.identity());
        let is_member = |address: &SocketAddr| me.address == *address || view.values().any(|n| n.address == *address);
        for seed in self.seeds.due(now, is_member) {
            self.hello(seed);
        }
        self.repair_digests(now);
        self.finish(now);
    }

    /// When [`Machine::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.left {
            return None;
        }
        let gossip = self.last_gossip.filter(|_| self.news > 0).map(|last| last + GOSSIP_PAUSE);
        let deadlines = [
            self.outbox.poll_timeout(),
            self.outbox.suspicions.poll_timeout(),
            self.seeds.poll_timeout(),
            self.next_digests,
            gossip,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbox.transmits.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Begins or ends draining; every member is told at once.
    pub fn set_state(&mut self, now: Instant, state: NodeState) {
        if self.me().state != state {
            self.change(now, Node { state, ..self.me().revised() });
        }
    }

    /// Changes our share of the connections; every member is told at once.
    pub fn set_weight(&mut self, now: Instant, weight: u16) {
        if self.me().weight != weight {
            self.change(now, Node { weight, ..self.me().revised() });
        }
    }

    /// Tells the pool a source's digest. An older version than the known one is ignored.
    ///
    /// # Errors
    /// [`DigestRefused`] if a limit is exceeded.
    pub fn set_digest(&mut self, now: Instant, digest: Digest) -> Result<(), DigestRefused> {
        if self.digests.lock().check(&digest)? {
            self.broadcast(now, &digest);
            // It is no news to the caller.
            while self.digests.lock().poll_news().is_some() {}
            self.finish(now);
        }
        Ok(())
    }

    /// Says farewell. The machine does nothing more; send what [`Machine::poll_transmit`] still has.
    pub fn leave(&mut self, now: Instant) {
        if self.left {
            return;
        }
        self.run(now, |foca, outbox| foca.leave_cluster(outbox));
        for _ in 1..FAREWELLS {
            self.run(now, |foca, outbox| foca.gossip(outbox));
        }
        self.left = true;
        self.seeds.clear();
        self.outbox.suspicions.clear();
        self.outbox.timers.clear();
    }
}
