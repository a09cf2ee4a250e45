//! The table of peers: which connection towards an address is used, what waits for one, what was told of it.
//! It is plain state (the clock is an argument, the connection a type parameter), so it is tested without a network.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;

use super::{MAX_REMEMBERED_PEERS, PENDING_DATAGRAMS, PeerIdentity};

/// Who dialled a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Dialled,
    Accepted,
}

/// How a connection ended, as far as the table cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The peer's process is another one now.
    Reset,
    /// The peer refused us after the handshake seemed done (TLS 1.3 lets the client finish first).
    Refused,
    Other,
}

/// An established connection.
#[derive(Debug, Clone)]
pub(super) struct Live<C> {
    pub(super) connection: C,
    pub(super) peer: PeerIdentity,
    /// Later connections have greater serials.
    pub(super) serial: u64,
}

/// Result of a dial: pending, done, or why not.
#[derive(Debug, Clone)]
pub(super) enum DialState {
    Pending,
    Done,
    Failed(Arc<str>),
}

#[derive(Debug)]
struct Peer<C> {
    dialled: Option<Live<C>>,
    accepted: Option<Live<C>>,
    pending: VecDeque<Bytes>,
    dial: Option<watch::Receiver<DialState>>,
    not_before: Option<Instant>,
    /// We have dialled it: a front end, not an agent that came to us from a port of the moment.
    ours: bool,
    /// The last state that was told; None while nothing was.
    told_reachable: Option<bool>,
}

impl<C> Default for Peer<C> {
    fn default() -> Self {
        Self {
            dialled: None,
            accepted: None,
            pending: VecDeque::new(),
            dial: None,
            not_before: None,
            ours: false,
            told_reachable: None,
        }
    }
}

impl<C> Peer<C> {
    fn newest(&self) -> Option<&Live<C>> {
        let serial = |live: &Option<Live<C>>| live.as_ref().map(|live| live.serial);
        if serial(&self.dialled) > serial(&self.accepted) { self.dialled.as_ref() } else { self.accepted.as_ref() }
    }

    fn slot(&mut self, direction: Direction) -> &mut Option<Live<C>> {
        match direction {
            Direction::Dialled => &mut self.dialled,
            Direction::Accepted => &mut self.accepted,
        }
    }

    /// Takes out every connection that `unwanted` picks.
    fn take_if(&mut self, unwanted: impl Fn(&Live<C>) -> bool) -> Vec<C> {
        let slots = [&mut self.dialled, &mut self.accepted];
        slots.into_iter().filter_map(|slot| slot.take_if(|live| unwanted(live))).map(|live| live.connection).collect()
    }

    fn is_idle(&self) -> bool {
        self.dialled.is_none() && self.accepted.is_none() && self.dial.is_none()
    }
}

/// What to do after a connection was added.
#[derive(Debug)]
pub(super) struct Added<C> {
    pub(super) serial: u64,
    /// Datagrams that waited for a connection.
    pub(super) flush: VecDeque<Bytes>,
    /// Connections to close: the peer will not use them again.
    pub(super) superseded: Vec<C>,
    /// The address was told to be unreachable, or nothing was told of it yet.
    pub(super) newly_reachable: bool,
}

/// What to do after a connection ended.
#[derive(Debug)]
pub(super) struct Removed<C> {
    /// Connections that ended with it, because they are older and the peer's process is new.
    pub(super) stale: Vec<C>,
    /// Nothing is connected any more, and that is news.
    pub(super) newly_unreachable: bool,
}

/// What to do with a datagram.
#[derive(Debug)]
pub(super) enum Placement<C> {
    Send(C),
    /// It was queued and the caller must dial, telling the outcome to the sender of this channel.
    Dial(watch::Sender<DialState>),
    Queued,
    QueueFull,
    /// The address failed a moment ago.
    Paused,
}

/// What a stream may use.
#[derive(Debug)]
pub(super) enum Route<C> {
    Live(Live<C>),
    /// A dial is under way.
    Wait(watch::Receiver<DialState>),
    /// The caller must dial.
    Dial(watch::Sender<DialState>, watch::Receiver<DialState>),
}

/// All peers by canonical address.
#[derive(Debug)]
pub(super) struct Peers<C = quinn::Connection> {
    by_address: HashMap<SocketAddr, Peer<C>>,
    next_serial: u64,
}

impl<C> Default for Peers<C> {
    fn default() -> Self {
        Self { by_address: HashMap::new(), next_serial: 1 }
    }
}

impl<C: Clone> Peers<C> {
    /// The connection that carries what is sent to an address.
    pub(super) fn newest(&self, address: SocketAddr) -> Option<&Live<C>> {
        self.by_address.get(&address)?.newest()
    }

    /// Enters a new connection. It replaces an older one of the same direction: only the dialler dials anew, and only
    /// when its former connection is of no use to it. One of the other direction stays unless another node owns it.
    pub(super) fn add(
        &mut self,
        address: SocketAddr,
        direction: Direction,
        peer: PeerIdentity,
        connection: C,
    ) -> Added<C> {
        let serial = self.next_serial;
        self.next_serial += 1;
        let entry = self.by_address.entry(address).or_default();
        let mut superseded = entry.take_if(|live| live.peer != peer);
        let replaced = entry.slot(direction).replace(Live { connection, peer, serial });
        superseded.extend(replaced.map(|live| live.connection));
        entry.not_before = None;
        let newly_reachable = entry.told_reachable.replace(true) != Some(true);
        Added { serial, flush: std::mem::take(&mut entry.pending), superseded, newly_reachable }
    }

    /// Takes out a connection that ended. After a reset, older connections to the address go with it.
    pub(super) fn remove(
        &mut self,
        address: SocketAddr,
        serial: u64,
        ending: Ending,
        pause_until: Instant,
    ) -> Removed<C> {
        let Some(entry) = self.by_address.get_mut(&address) else {
            return Removed { stale: Vec::new(), newly_unreachable: false };
        };
        let was_there = !entry.take_if(|live| live.serial == serial).is_empty();
        let stale = match ending {
            Ending::Reset => entry.take_if(|live| live.serial < serial),
            Ending::Refused | Ending::Other => Vec::new(),
        };
        if ending == Ending::Refused {
            entry.not_before = Some(pause_until);
        }
        // A reset is told when the next dial fails: mostly the peer is back already.
        let gone = was_there && entry.newest().is_none() && ending != Ending::Reset;
        let newly_unreachable = gone && entry.told_reachable.replace(false) != Some(false);
        self.forget_idle(address);
        Removed { stale, newly_unreachable }
    }

    /// Decides where a datagram goes.
    pub(super) fn place(&mut self, address: SocketAddr, payload: &Bytes, now: Instant) -> Placement<C> {
        let entry = self.by_address.entry(address).or_default();
        if let Some(live) = entry.newest() {
            return Placement::Send(live.connection.clone());
        }
        if entry.dial.is_some() {
            if entry.pending.len() >= PENDING_DATAGRAMS {
                return Placement::QueueFull;
            }
            entry.pending.push_back(payload.clone());
            return Placement::Queued;
        }
        if entry.not_before.is_some_and(|instant| now < instant) {
            return Placement::Paused;
        }
        entry.pending.push_back(payload.clone());
        let (sender, receiver) = watch::channel(DialState::Pending);
        entry.dial = Some(receiver);
        entry.ours = true;
        Placement::Dial(sender)
    }

    /// Decides how a stream gets to its peer. Unlike a datagram it ignores the pause: someone waits for the answer.
    pub(super) fn route(&mut self, address: SocketAddr) -> Route<C> {
        let entry = self.by_address.entry(address).or_default();
        if let Some(live) = entry.newest() {
            return Route::Live(live.clone());
        }
        if let Some(receiver) = &entry.dial {
            return Route::Wait(receiver.clone());
        }
        let (sender, receiver) = watch::channel(DialState::Pending);
        entry.dial = Some(receiver.clone());
        entry.ours = true;
        Route::Dial(sender, receiver)
    }

    /// Ends a successful dial. What came in between was flushed when the connection was added.
    pub(super) fn dial_done(&mut self, address: SocketAddr) {
        if let Some(entry) = self.by_address.get_mut(&address) {
            entry.dial = None;
        }
    }

    /// Ends a failed dial: returns how many datagrams were dropped and whether the failure is news.
    pub(super) fn dial_failed(&mut self, address: SocketAddr, pause_until: Instant) -> (usize, bool) {
        let Some(entry) = self.by_address.get_mut(&address) else { return (0, false) };
        entry.dial = None;
        let dropped = std::mem::take(&mut entry.pending).len();
        // The peer may have dialled us meanwhile; then all is well.
        if entry.newest().is_some() {
            return (dropped, false);
        }
        entry.not_before = Some(pause_until);
        let news = entry.told_reachable.replace(false) != Some(false);
        (dropped, news)
    }

    /// Forgets what an address was told to be once nothing is connected: at once for peers that came to us (agents
    /// have another port each time), and for the rest when there are too many.
    fn forget_idle(&mut self, address: SocketAddr) {
        if self.by_address.get(&address).is_some_and(|peer| peer.is_idle() && !peer.ours) {
            self.by_address.remove(&address);
        }
        if self.by_address.len() > MAX_REMEMBERED_PEERS {
            self.by_address.retain(|_, peer| !peer.is_idle());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pki::Role;

    fn address() -> SocketAddr {
        "10.0.0.1:7400".parse().unwrap()
    }

    fn peer(name: &str) -> PeerIdentity {
        PeerIdentity { name: name.to_owned(), role: Role::Frontend }
    }

    fn add(peers: &mut Peers<u32>, direction: Direction, connection: u32) -> Added<u32> {
        peers.add(address(), direction, peer("fe1"), connection)
    }

    fn newest(peers: &Peers<u32>) -> Option<u32> {
        peers.newest(address()).map(|live| live.connection)
    }

    #[test]
    fn the_newest_connection_carries_what_is_sent() {
        let mut peers = Peers::default();
        add(&mut peers, Direction::Dialled, 1);
        let added = add(&mut peers, Direction::Accepted, 2);
        assert!(added.superseded.is_empty(), "the peer may send on the other one");
        assert_eq!(newest(&peers), Some(2));
        let added = add(&mut peers, Direction::Accepted, 3);
        assert_eq!(added.superseded, [2], "the dialler of both has the newer one");
        peers.remove(address(), added.serial, Ending::Other, Instant::now());
        assert_eq!(newest(&peers), Some(1), "what is left is used");
    }

    #[test]
    fn another_node_at_the_address_replaces_everything() {
        let mut peers = Peers::default();
        add(&mut peers, Direction::Dialled, 1);
        add(&mut peers, Direction::Accepted, 2);
        let added = peers.add(address(), Direction::Accepted, peer("fe2"), 3);
        assert_eq!(added.superseded, [1, 2]);
    }

    #[test]
    fn a_reset_ends_older_connections_but_no_newer_one() {
        let mut peers = Peers::default();
        add(&mut peers, Direction::Accepted, 1);
        let reset = add(&mut peers, Direction::Dialled, 2);
        let removed = peers.remove(address(), reset.serial, Ending::Reset, Instant::now());
        assert_eq!(removed.stale, [1]);
        assert_eq!(newest(&peers), None);

        let reset = add(&mut peers, Direction::Dialled, 3);
        add(&mut peers, Direction::Accepted, 4);
        let removed = peers.remove(address(), reset.serial, Ending::Reset, Instant::now());
        assert!(removed.stale.is_empty());
        assert_eq!(newest(&peers), Some(4), "the new process had dialled before the reset came");
    }

    #[test]
    fn a_late_end_of_a_replaced_connection_changes_nothing() {
        let mut peers = Peers::default();
        let old = add(&mut peers, Direction::Dialled, 1);
        add(&mut peers, Direction::Dialled, 2);
        let removed = peers.remove(address(), old.serial, Ending::Other, Instant::now());
        assert!(!removed.newly_unreachable);
        assert_eq!(newest(&peers), Some(2));
    }

    #[test]
    fn datagrams_wait_for_one_dial_in_a_bounded_queue() {
        let mut peers = Peers::<u32>::default();
        let (now, payload) = (Instant::now(), Bytes::from_static(b"x"));
        assert!(matches!(peers.place(address(), &payload, now), Placement::Dial(_)));
        for _ in 1..PENDING_DATAGRAMS {
            assert!(matches!(peers.place(address(), &payload, now), Placement::Queued));
        }
        assert!(matches!(peers.place(address(), &payload, now), Placement::QueueFull));
        let added = add(&mut peers, Direction::Accepted, 7);
        assert_eq!(added.flush.len(), PENDING_DATAGRAMS, "whoever dialled, the queue goes out");
        assert!(matches!(peers.place(address(), &payload, now), Placement::Send(7)));
    }

    #[test]
    fn a_failed_dial_is_news_once_and_pauses() {
        let mut peers = Peers::<u32>::default();
        let (now, payload) = (Instant::now(), Bytes::from_static(b"x"));
        let later = now + Duration::from_secs(1);
        assert!(matches!(peers.place(address(), &payload, now), Placement::Dial(_)));
        assert_eq!(peers.dial_failed(address(), later), (1, true));
        assert!(matches!(peers.place(address(), &payload, now), Placement::Paused));
        assert!(matches!(peers.place(address(), &payload, later), Placement::Dial(_)));
        assert_eq!(peers.dial_failed(address(), later), (1, false), "told already");
        assert!(add(&mut peers, Direction::Accepted, 1).newly_reachable);
    }

    #[test]
    fn agents_that_went_away_are_forgotten() {
        let mut peers = Peers::<u32>::default();
        let added = add(&mut peers, Direction::Accepted, 1);
        assert!(peers.remove(address(), added.serial, Ending::Other, Instant::now()).newly_unreachable);
        assert!(peers.by_address.is_empty());
    }
}
