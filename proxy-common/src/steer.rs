//! Whose packet is it? The decision that every front end takes for every packet to a virtual address: the XDP program
//! calls it with the kernel's sockets and clock, the simulation with its own.
//!
//! A packet's **hop limit** tells how often it was sent on. Each front end that sends it on lowers it, and none ever
//! raises it: so no packet goes round for ever, whatever the tables of the front ends say and however they differ. From
//! [`HOPS`] down it also tells why the packet was sent on:
//!
//! | hop limit | meaning |
//! |---|---|
//! | above 16 | from outside |
//! | 16 | steered to the bucket's owner |
//! | 15 | steered again, by somebody whose table is another |
//! | 14, 12 … 4 | the owner asks a member of its chain: have you got this connection? |
//! | 2 | the owner asks the last of its chain |
//! | 13, 11 … 1 | back to who asked: no |
//! | 0 | nobody may send it on |
//!
//! **Only the owner asks, by its own chain**, and the answer comes back to who asked: so the others' chains need not
//! agree with its own, and only the owner ever resets a connection or takes a new one. It takes a new one only after
//! everybody who may have answered the SYN before has said no. A member that was asked and takes itself for the owner
//! (its table is older, or newer) asks its own chain first; so of two that take themselves for the owner at the same time, the
//! second one always finds what the first one took.

use crate::maps::{Chain, Counter, MAX_CHAIN, NO_SLOT, Owner};

/// Hop limit of a packet that was sent on once. Times that a packet is sent on at the most.
pub const HOPS: u8 = 16;
/// Hop limit of a packet that was steered twice, because the tables differed.
const STEERED_AGAIN: u8 = 15;
/// Hop limit of a packet that a bucket's owner hands to the first member of the chain.
const ASKED: u8 = 14;
/// Hop limit of a packet that a bucket's owner hands to the last member of the chain.
const ASKED_LAST: u8 = 2;

// Every member of the chain can be asked, and answer.
const _: () = assert!(ASKED as usize == 2 * MAX_CHAIN);

/// What a packet is to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SYN, and neither ACK, RST nor FIN.
    New,
    /// Anything else, ICMP errors included.
    Other,
}

/// What this machine's sockets say of a packet's 4-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// Nothing, or a listener only.
    None,
    /// A connection that has ended; its last packets may still be repeated.
    TimeWait,
    /// A connection, established or in its handshake.
    Connection,
}

/// What can be known about one packet. Everything is asked for only where it is needed: sockets are expensive.
pub trait Facts {
    /// The owner of the packet's bucket.
    fn owner(&self) -> Owner;
    /// The chain of the packet's bucket.
    fn chain(&self) -> Chain;
    /// Who owns the packet's bucket if this machine does not.
    fn successor(&self) -> u8;
    /// The packet's own 4-tuple among this machine's sockets.
    fn socket(&self) -> Socket;
    /// Whether the packet answers a SYN cookie of this machine.
    fn answers_cookie(&self) -> bool;
    /// Whether this machine's daemon lives.
    fn alive(&self) -> bool;
    /// The member that sent the packet here: by the frame's source address, or the outer one. [`NO_SLOT`]: none, or
    /// unknown.
    fn sender(&self) -> u8;
}

/// What this machine is in the table that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    pub slot: u8,
    /// Not every member has told yet which connections it still has in other owners' buckets.
    pub settling: bool,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// To this machine's own stack.
    Take(Counter),
    /// To another front end, with a new hop limit.
    Forward {
        slot: u8,
        hop_limit: u8,
        counter: Counter,
    },
    Drop(Counter),
}

/// Why a packet is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From outside, or steered here.
    Steered,
    /// Steered here by somebody who is not the owner either, in the eyes of who steered it first.
    SteeredAgain,
    /// Somebody who takes itself for the owner asks whether we have the connection.
    Asked,
    /// We asked, and the sender has not got it.
    Returned,
}

impl Way {
    #[inline(always)]
    const fn of(hop_limit: u8) -> Self {
        match hop_limit {
            STEERED_AGAIN => Self::SteeredAgain,
            limit if limit > STEERED_AGAIN => Self::Steered,
            limit if limit % 2 == 0 => Self::Asked,
            _ => Self::Returned,
        }
    }
}

/// Decides about one packet to a virtual address.
#[inline(always)]
pub fn decide<F: Facts>(facts: &F, here: Here, hop_limit: u8, kind: Kind) -> Decision {
    let owner = facts.owner();
    if owner.slot() == NO_SLOT {
        return Decision::Take(Counter::NoOwner);
    }
    let way = Way::of(hop_limit);
    if owner.slot() != here.slot {
        return not_own(facts, owner, hop_limit, way, kind);
    }
    if !facts.alive() {
        return bequeath(facts, hop_limit, way, kind);
    }
    match kind {
        Kind::New => own_new(facts, owner, hop_limit, way),
        Kind::Other => own_other(facts, here, owner, hop_limit, way),
    }
}

/// A SYN of a bucket that is this machine's.
#[inline(always)]
fn own_new<F: Facts>(facts: &F, owner: Owner, hop_limit: u8, way: Way) -> Decision {
    if !owner.chained() {
        return Decision::Take(Counter::OwnNew);
    }
    let chain = facts.chain();
    // Only for a while after a change can another member have answered this SYN before.
    if !chain.lately() || matches!(facts.socket(), Socket::Connection) {
        return Decision::Take(Counter::OwnNew);
    }
    match next(facts, chain, way) {
        Next::Ask(slot) => ask(slot, hop_limit, Counter::HandedOnNew),
        Next::AskLast(slot) => ask_last(slot, hop_limit, Counter::HandedOnNew),
        Next::Nobody => Decision::Take(Counter::NewAgain),
        Next::Unknown => Decision::Drop(Counter::DisagreedNew),
    }
}

/// Any other packet of a bucket that is this machine's.
#[inline(always)]
fn own_other<F: Facts>(facts: &F, here: Here, owner: Owner, hop_limit: u8, way: Way) -> Decision {
    if !owner.chained() && !here.settling && matches!(way, Way::Steered | Way::SteeredAgain) {
        return Decision::Take(Counter::Own);
    }
    let socket = facts.socket();
    if matches!(socket, Socket::Connection) || facts.answers_cookie() {
        return Decision::Take(Counter::Own);
    }
    let next = if owner.chained() { next(facts, facts.chain(), way) } else { Next::Nobody };
    match next {
        // A connection that has ended here may have a younger one of the same 4-tuple elsewhere.
        Next::Ask(slot) => ask(slot, hop_limit, Counter::HandedOn),
        Next::AskLast(slot) => ask_last(slot, hop_limit, Counter::HandedOn),
        _ if matches!(socket, Socket::TimeWait) => Decision::Take(Counter::Own),
        Next::Nobody if !here.settling && !matches!(way, Way::Asked) => Decision::Take(Counter::Orphan),
        // A reset could break a connection that lives; silence only makes the peer repeat itself.
        Next::Nobody | Next::Unknown => Decision::Drop(Counter::OrphanSettling),
    }
}

/// The bucket is another's. Whoever is not the owner neither takes a new connection nor resets one.
#[inline(always)]
fn not_own<F: Facts>(facts: &F, owner: Owner, hop_limit: u8, way: Way, kind: Kind) -> Decision {
    if hop_limit > HOPS {
        let counter = if matches!(kind, Kind::New) { Counter::SteeredNew } else { Counter::Steered };
        return forward(owner.slot(), lower(hop_limit, HOPS), counter);
    }
    if has(facts, hop_limit, kind) {
        return Decision::Take(Counter::Found);
    }
    let is_new = matches!(kind, Kind::New);
    match way {
        Way::Steered => {
            let counter = if is_new { Counter::SteeredNew } else { Counter::Steered };
            forward(owner.slot(), STEERED_AGAIN, counter)
        }
        Way::Asked => answer(facts, hop_limit, kind),
        Way::SteeredAgain | Way::Returned => disagreed(kind),
    }
}

/// Whether a packet that somebody sent on must be for this machine's socket. A connection that has ended must not take a
/// new one, which is the owner's; and the 4-tuple may have a younger connection elsewhere, unless everybody else was asked.
#[inline(always)]
fn has<F: Facts>(facts: &F, hop_limit: u8, kind: Kind) -> bool {
    let is_other = matches!(kind, Kind::Other);
    match facts.socket() {
        Socket::Connection => true,
        Socket::TimeWait => is_other && (hop_limit == ASKED_LAST || facts.answers_cookie()),
        Socket::None => is_other && facts.answers_cookie(),
    }
}

/// This machine's daemon is gone, so its buckets are its successors'. The kernel may still have to end connections.
#[inline(always)]
fn bequeath<F: Facts>(facts: &F, hop_limit: u8, way: Way, kind: Kind) -> Decision {
    if matches!(kind, Kind::Other) && !matches!(facts.socket(), Socket::None) {
        return Decision::Take(Counter::Own);
    }
    let successor = facts.successor();
    if successor == NO_SLOT {
        // Nobody else is there: the kernel tells the client at once.
        return Decision::Take(Counter::Orphan);
    }
    match way {
        Way::Steered => forward(successor, lower(hop_limit, HOPS), Counter::Succeeded),
        Way::Asked => answer(facts, hop_limit, kind),
        // The successor's table still says that the bucket is ours.
        Way::SteeredAgain | Way::Returned => disagreed(kind),
    }
}

/// Whom the owner asks next.
enum Next {
    Ask(u8),
    AskLast(u8),
    /// Everybody in the chain was asked.
    Nobody,
    /// The packet was asked about by a chain that is no longer ours, or by somebody else's.
    Unknown,
}

#[inline(always)]
fn next<F: Facts>(facts: &F, chain: Chain, way: Way) -> Next {
    let position = match way {
        Way::Returned => match chain.position(facts.sender()) {
            Some(position) => position + 1,
            None => return Next::Unknown,
        },
        // Who asks has not got it: if it is the first in our chain, it need not be asked.
        Way::Asked if chain.member(0) == facts.sender() => 1,
        Way::Asked | Way::Steered | Way::SteeredAgain => 0,
    };
    match (chain.member(position), chain.member(position + 1)) {
        (NO_SLOT, _) => Next::Nobody,
        (slot, NO_SLOT) => Next::AskLast(slot),
        (slot, _) => Next::Ask(slot),
    }
}

/// To a member of the chain, with the next lower even hop limit.
#[inline(always)]
fn ask(slot: u8, hop_limit: u8, counter: Counter) -> Decision {
    let below = lower(hop_limit, ASKED);
    forward(slot, below - below % 2, counter)
}

#[inline(always)]
fn ask_last(slot: u8, hop_limit: u8, counter: Counter) -> Decision {
    forward(slot, if hop_limit > ASKED_LAST { ASKED_LAST } else { 0 }, counter)
}

/// Back to who asked.
#[inline(always)]
fn answer<F: Facts>(facts: &F, hop_limit: u8, kind: Kind) -> Decision {
    let counter = if matches!(kind, Kind::New) { Counter::HandedOnNew } else { Counter::HandedOn };
    match facts.sender() {
        NO_SLOT => disagreed(kind),
        sender => forward(sender, lower(hop_limit, ASKED), counter),
    }
}

/// The members' tables differ: silence makes the peer repeat itself, and by then they agree.
#[inline(always)]
fn disagreed(kind: Kind) -> Decision {
    match kind {
        Kind::New => Decision::Drop(Counter::DisagreedNew),
        Kind::Other => Decision::Drop(Counter::OrphanSettling),
    }
}

#[inline(always)]
fn forward(slot: u8, hop_limit: u8, counter: Counter) -> Decision {
    if hop_limit == 0 { Decision::Drop(Counter::HopLimit) } else { Decision::Forward { slot, hop_limit, counter } }
}

/// One less, and no more than `most`.
#[inline(always)]
const fn lower(hop_limit: u8, most: u8) -> u8 {
    let less = hop_limit.saturating_sub(1);
    if less < most { less } else { most }
}
