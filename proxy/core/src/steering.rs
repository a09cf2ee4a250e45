//! From the membership view to what the XDP program steers by: who owns each bucket, and who else may still have
//! connections of it.
//!
//! The table of owners is a pure function of the members. What is not, is where older connections are: each member
//! remembers the owners of the last seconds, and is told by the others in which buckets of other owners they have
//! connections ([`Holdings`]). [`Machine`] makes a [`Plan`] of both.

mod chains;
pub mod drain;
mod holdings;
mod machine;
mod permutation;
pub mod services;
#[cfg(test)]
mod simulation;
mod table;
mod view;

use std::sync::Arc;

use proxy_common::maps::{Chain, MAX_MEMBERS, Owner};

pub use holdings::{Holdings, MAX_HOLDINGS, MalformedHoldings};
pub use machine::Machine;

/// A live front end, as steering sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// Stable over restarts: the buckets are hashed by it.
    pub name: String,
    /// When it was started: a member of a new generation has none of the old one's connections.
    pub generation: u64,
    /// Counts the changes of its own description since it was started: one that comes back to what it was before is
    /// told from one that never changed.
    pub revision: u32,
    /// Share relative to the others; 0 takes no new connections.
    pub weight: u16,
    pub standing: Standing,
}

/// Whether a member takes new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    Active,
    /// Finishes what it has. Takes new connections only if nobody is active: a pool never refuses mail because
    /// everybody drains.
    Draining,
    /// Does not know yet what the others have. Takes new connections only if nobody else is there.
    Joining,
}

/// One version of what the program steers by. Every vector but `members` has an element for each bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Names by slot, sorted.
    pub members: Vec<String>,
    /// This machine's slot; `NO_SLOT` if it is no member.
    pub own_slot: u8,
    pub owners: Vec<Owner>,
    /// In buckets of this machine: who owns them without it. `NO_SLOT` elsewhere.
    pub successors: Vec<u8>,
    /// In buckets of this machine: who else may have their connections. Empty elsewhere.
    pub chains: Vec<Chain>,
    /// Not every member has told yet what it has: what nobody recognises must not be reset.
    pub settling: bool,
}

/// What the daemon has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Put the plan in force.
    Apply(Arc<Plan>),
    /// List this machine's connections and call [`Machine::handle_sockets`]; it waits for that.
    Enumerate,
    /// Send this to every other member. Losing it is allowed: it will be repeated.
    Tell(Holdings),
}

/// More front ends than the program's tables hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} front ends, but the steering table holds {MAX_MEMBERS}")]
pub struct TooManyMembers(usize);
