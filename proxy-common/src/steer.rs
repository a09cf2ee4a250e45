//! Whose packet is it? The decision that every front end takes for every packet to a virtual address: the XDP program
//! calls it with the kernel's sockets and clock, the simulation with its own.
//!
//! A packet's **hop limit** tells how often it was sent on. Each front end that sends it on lowers it, and none ever
//! raises it: so no packet goes round for ever, whatever the tables of the front ends say and however they differ. From
//! [`HOPS`] down it also tells why the packet was sent on:
//!
//! | hop limit | meaning |
//! |---|---|
//! | above 11 | from outside |
//! | 11 | steered to the bucket's owner |
//! | 10 | steered again, by somebody whose table is another |
//! | 9 to 2 | handed on along the bucket's chain: who has this connection? |
//! | 1 | nobody has it, or nobody may ask any more: take it |

use crate::maps::{Chain, Counter, MAX_CHAIN, NO_SLOT, Owner};

/// Hop limit of a packet that was sent on once. Times that a packet is sent on at the most.
pub const HOPS: u8 = 11;
/// Hop limit of a packet that was steered twice, because the tables differed.
const STEERED_AGAIN: u8 = 10;
/// Hop limit of a packet that a bucket's owner hands to the first member of the chain.
const HANDED_ON: u8 = 9;
/// The receiver must take it.
const LAST: u8 = 1;

// The owner hands on with 9, the last of the chain receives 9 - 6 = 3, and returns a SYN with less.
const _: () = assert!(HANDED_ON as usize - (MAX_CHAIN - 1) > LAST as usize);

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
    Forward { slot: u8, hop_limit: u8, counter: Counter },
    Drop(Counter),
}

/// Decides about one packet to a virtual address.
#[inline(always)]
pub fn decide<F: Facts>(facts: &F, here: Here, hop_limit: u8, kind: Kind) -> Decision {
    let owner = facts.owner();
    if owner.slot() == here.slot && here.slot != NO_SLOT {
        return own(facts, here, owner, hop_limit, kind);
    }
    if owner.slot() == NO_SLOT {
        return Decision::Take(Counter::NoOwner);
    }
    if hop_limit > STEERED_AGAIN {
        let counter = if matches!(kind, Kind::New) { Counter::SteeredNew } else { Counter::Steered };
        return forward(owner.slot(), lower(hop_limit, HOPS), counter);
    }
    not_own(facts, here, owner, hop_limit, kind)
}

/// The bucket is this machine's.
#[inline(always)]
fn own<F: Facts>(facts: &F, here: Here, owner: Owner, hop_limit: u8, kind: Kind) -> Decision {
    if !facts.alive() {
        return bequeath(facts, hop_limit, kind);
    }
    if matches!(kind, Kind::New) {
        if !owner.chained() || hop_limit <= HANDED_ON {
            return Decision::Take(if hop_limit == LAST { Counter::NewAgain } else { Counter::OwnNew });
        }
        let chain = facts.chain();
        // Only for a while after a change can another member have answered this SYN before.
        if !chain.lately() || matches!(facts.socket(), Socket::Connection) {
            return Decision::Take(Counter::OwnNew);
        }
        return hand_on(chain.member(0), hop_limit, Counter::HandedOnNew, Decision::Take(Counter::OwnNew));
    }
    if !owner.chained() && !here.settling || has(facts) {
        return Decision::Take(Counter::Own);
    }
    let next = if owner.chained() { facts.chain().member(0) } else { NO_SLOT };
    hand_on(next, hop_limit, Counter::HandedOn, orphan(here))
}

/// The bucket is another's, and somebody sent the packet here who knows that, or whose table differs.
#[inline(always)]
fn not_own<F: Facts>(facts: &F, here: Here, owner: Owner, hop_limit: u8, kind: Kind) -> Decision {
    if matches!(kind, Kind::New) {
        // A connection that has ended must not take a new one: that is the owner's.
        if matches!(facts.socket(), Socket::Connection) {
            return Decision::Take(Counter::Found);
        }
        if hop_limit == STEERED_AGAIN || hop_limit <= LAST {
            return Decision::Drop(Counter::DisagreedNew);
        }
        let end = forward(owner.slot(), LAST, Counter::HandedOnNew);
        return hand_on(next(facts, here, owner), hop_limit, Counter::HandedOnNew, end);
    }
    if has(facts) {
        return Decision::Take(Counter::Found);
    }
    let next = if hop_limit == STEERED_AGAIN { NO_SLOT } else { next(facts, here, owner) };
    hand_on(next, hop_limit, Counter::HandedOn, orphan(here))
}

#[inline(always)]
fn next<F: Facts>(facts: &F, here: Here, owner: Owner) -> u8 {
    if owner.chained() { facts.chain().after(here.slot) } else { NO_SLOT }
}

#[inline(always)]
fn has<F: Facts>(facts: &F) -> bool {
    !matches!(facts.socket(), Socket::None) || facts.answers_cookie()
}

/// This machine's daemon is gone, so its buckets are its successors'. The kernel may still have to end connections.
#[inline(always)]
fn bequeath<F: Facts>(facts: &F, hop_limit: u8, kind: Kind) -> Decision {
    if matches!(kind, Kind::Other) && !matches!(facts.socket(), Socket::None) {
        return Decision::Take(Counter::Own);
    }
    let successor = facts.successor();
    if successor == NO_SLOT {
        // Nobody else is there: the kernel tells the client at once.
        return Decision::Take(Counter::Orphan);
    }
    if hop_limit <= STEERED_AGAIN {
        // The successor's table still says that the bucket is ours.
        let counter = if matches!(kind, Kind::New) { Counter::DisagreedNew } else { Counter::OrphanSettling };
        return Decision::Drop(counter);
    }
    forward(successor, lower(hop_limit, HOPS), Counter::Succeeded)
}

#[inline(always)]
fn hand_on(next: u8, hop_limit: u8, counter: Counter, end: Decision) -> Decision {
    if next == NO_SLOT || hop_limit <= LAST { end } else { forward(next, lower(hop_limit, HANDED_ON), counter) }
}

/// Nobody is left to ask. While members may not have told what they have, a reset could break a connection that lives;
/// silence only makes the peer repeat itself.
#[inline(always)]
fn orphan(here: Here) -> Decision {
    if here.settling { Decision::Drop(Counter::OrphanSettling) } else { Decision::Take(Counter::Orphan) }
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
