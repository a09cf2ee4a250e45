//! The pool that is measured: this machine and 63 others, as the XDP program sees them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use autocluster::dataplane::Dataplane;
use proxy_common::maps::{BUCKETS, Chain, MEMBER_BY_V4, MEMBER_PRESENT, Member as Slot, NO_SLOT, Owner};
use proxy_core::steering::{Action, Machine, Member, Plan, Standing};

use crate::{cases::Owners, frames};

/// Front ends besides this one.
const OTHERS: usize = 63;
/// Sorts before all others.
const ME: &str = "a";

/// A pool's plans, made once.
pub(crate) struct Pool {
    /// This machine finishes what it has; the others own everything.
    others: Plan,
    own: Plan,
    chained: Plan,
    neighbours: Vec<Slot>,
    distant: Vec<Slot>,
}

impl Pool {
    /// # Errors
    /// The machine gave no plan.
    pub(crate) fn new() -> Result<Self> {
        let others = (0..OTHERS).map(|n| member(format!("fe{n}"), Standing::Active));
        let members: Vec<Member> = [member(ME.to_owned(), Standing::Draining)].into_iter().chain(others).collect();
        let mut others = plan(ME, &members)?;
        others.settling = false;
        let buckets = BUCKETS as usize;
        let own = Plan {
            owners: vec![Owner::new(others.own_slot, false); buckets],
            successors: vec![NO_SLOT; buckets],
            chains: vec![Chain::EMPTY; buckets],
            ..others.clone()
        };
        let next = others.own_slot + 1;
        let chained = Plan {
            owners: vec![Owner::new(others.own_slot, true); buckets],
            chains: vec![Chain::new([next], false); buckets],
            ..own.clone()
        };
        let slots = || 0..=u8::try_from(OTHERS).unwrap_or(NO_SLOT);
        Ok(Self {
            others,
            own,
            chained,
            neighbours: slots().map(neighbour).collect(),
            distant: slots().map(distant).collect(),
        })
    }

    /// Puts the table in force that a case wants.
    ///
    /// # Errors
    /// The kernel refused it.
    pub(crate) fn apply(&self, owners: Owners, dataplane: &mut Dataplane) -> Result<()> {
        match owners {
            Owners::Neighbours => dataplane.apply_unattached(&self.others, &self.neighbours),
            Owners::Distant => dataplane.apply_unattached(&self.others, &self.distant),
            Owners::Own => dataplane.apply_unattached(&self.own, &self.distant),
            Owners::OwnChained => dataplane.apply_unattached(&self.chained, &self.neighbours),
        }
    }
}

/// A member like any other.
pub(crate) fn member(name: String, standing: Standing) -> Member {
    Member { name, generation: 1, revision: 0, weight: 100, standing }
}

/// The plan of `me` as soon as it hears of the members.
///
/// # Errors
/// There is none.
pub(crate) fn plan(me: &str, members: &[Member]) -> Result<Plan> {
    let mut machine = Machine::new(me);
    machine.handle_members(std::time::Instant::now(), members)?;
    let plans = std::iter::from_fn(|| machine.poll_action());
    let plan = plans.filter_map(|action| if let Action::Apply(plan) = action { Some(plan) } else { None }).next();
    Ok((*plan.context("the machine made no plan of its first members")?).clone())
}

fn neighbour(slot: u8) -> Slot {
    Slot { mac: [2, 0, 0, 0, 1, slot], flags: MEMBER_PRESENT, ..Slot::default() }
}

/// The first of the others is who encapsulates to us.
fn distant(slot: u8) -> Slot {
    let peer = Ipv4Addr::from(u32::from(frames::OUTER_PEER) + u32::from(slot).saturating_sub(1));
    let mut member = Slot { flags: MEMBER_PRESENT | MEMBER_BY_V4, ..neighbour(slot) };
    member.outer_source[..4].copy_from_slice(&frames::OUTER_OWN.octets());
    member.outer_destination[..4].copy_from_slice(&peer.octets());
    let words = [0x4500, 0x4000, 0x4011].into_iter().chain(words(frames::OUTER_OWN)).chain(words(peer));
    member.outer_sum = words.sum();
    member
}

fn words(address: Ipv4Addr) -> [u32; 2] {
    let bits = u32::from(address);
    [bits >> 16, bits & 0xffff]
}
