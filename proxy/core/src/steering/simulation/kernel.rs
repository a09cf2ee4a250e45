//! The TCP sockets of one simulated member.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proxy_common::steer::Socket;

/// A connection of the clients', seen from both ends: a client's 4-tuple in a number.
pub(super) type Tuple = u64;
/// One handshake's outcome: the sequence numbers that tell one connection of a 4-tuple from the next.
pub(super) type Conversation = u64;

const HANDSHAKE_KEPT: Duration = Duration::from_secs(63);
const TIME_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Handshake,
    Established,
    TimeWait,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Tcp {
    pub(super) conversation: Conversation,
    pub(super) state: State,
    since: Instant,
}

/// What the kernel does about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    SynAck(Conversation),
    /// The segment is in order.
    Ack,
    /// The segment is not of this conversation: the peer is told what is.
    Challenge,
    Reset,
    /// The last acknowledgement of a connection that has ended.
    Ended,
}

#[derive(Debug, Default)]
pub(super) struct Kernel {
    sockets: BTreeMap<Tuple, Tcp>,
    /// SYN cookies that were sent.
    cookies: BTreeSet<(Tuple, Conversation)>,
}

impl Kernel {
    fn live(&self, now: Instant, tuple: Tuple) -> Option<Tcp> {
        let kept = |tcp: &Tcp| match tcp.state {
            State::Handshake => now < tcp.since + HANDSHAKE_KEPT,
            State::TimeWait => now < tcp.since + TIME_WAIT,
            State::Established => true,
        };
        self.sockets.get(&tuple).copied().filter(kept)
    }

    pub(super) fn socket(&self, now: Instant, tuple: Tuple) -> Socket {
        match self.live(now, tuple).map(|tcp| tcp.state) {
            None => Socket::None,
            Some(State::TimeWait) => Socket::TimeWait,
            Some(State::Handshake | State::Established) => Socket::Connection,
        }
    }

    pub(super) fn answers_cookie(&self, tuple: Tuple, conversation: Conversation) -> bool {
        self.cookies.contains(&(tuple, conversation))
    }

    /// Whether the conversation is under way here.
    pub(super) fn has(&self, now: Instant, tuple: Tuple, conversation: Conversation) -> bool {
        let socket = self.live(now, tuple).filter(|tcp| tcp.state != State::TimeWait);
        socket.is_some_and(|tcp| tcp.conversation == conversation) || self.answers_cookie(tuple, conversation)
    }

    pub(super) fn is_established(&self, tuple: Tuple) -> bool {
        self.sockets.get(&tuple).is_some_and(|tcp| tcp.state == State::Established)
    }

    /// All but those that have ended.
    pub(super) fn tuples(&self, now: Instant) -> impl Iterator<Item = Tuple> {
        let open = move |tuple: &Tuple| self.live(now, *tuple).is_some_and(|tcp| tcp.state != State::TimeWait);
        self.sockets.keys().copied().filter(open)
    }

    /// `fresh` is the conversation that begins, if one does; with a `cookie` nothing of it is kept.
    pub(super) fn handle_syn(&mut self, now: Instant, tuple: Tuple, fresh: Conversation, cookie: bool) -> Reply {
        match self.live(now, tuple) {
            Some(tcp) if tcp.state == State::Handshake => Reply::SynAck(tcp.conversation),
            Some(tcp) if tcp.state == State::Established => Reply::Challenge,
            _ if cookie => {
                self.sockets.remove(&tuple);
                self.cookies.insert((tuple, fresh));
                Reply::SynAck(fresh)
            }
            _ => {
                self.set(now, tuple, fresh, State::Handshake);
                Reply::SynAck(fresh)
            }
        }
    }

    pub(super) fn handle_segment(&mut self, now: Instant, tuple: Tuple, conversation: Conversation) -> Reply {
        match self.live(now, tuple) {
            Some(tcp) if tcp.state == State::TimeWait => Reply::Ended,
            Some(tcp) if tcp.conversation == conversation => {
                self.set(now, tuple, conversation, State::Established);
                Reply::Ack
            }
            Some(tcp) if tcp.state == State::Established => Reply::Challenge,
            // An acknowledgement that the handshake does not expect (RFC 9293 section 3.10.7.4).
            Some(_) => Reply::Reset,
            None if self.cookies.remove(&(tuple, conversation)) => {
                self.set(now, tuple, conversation, State::Established);
                Reply::Ack
            }
            None => Reply::Reset,
        }
    }

    /// This end closes first, and waits; or the client does, and nothing stays.
    pub(super) fn close(&mut self, now: Instant, tuple: Tuple, waits: bool) {
        let Some(tcp) = self.sockets.remove(&tuple) else { return };
        if waits {
            self.set(now, tuple, tcp.conversation, State::TimeWait);
        }
    }

    fn set(&mut self, now: Instant, tuple: Tuple, conversation: Conversation, state: State) {
        self.sockets.insert(tuple, Tcp { conversation, state, since: now });
    }
}
