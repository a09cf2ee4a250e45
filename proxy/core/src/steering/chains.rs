//! Who besides a bucket's owner may have connections of it.
//!
//! A chain is made for the buckets of this machine only, since only the owner asks. If there are too many, these come
//! first: the former owners that it remembers, the newest first; then the members that say that they hold the bucket; and, in a bucket that has just moved, whoever
//! has not confirmed the view yet. Such a one may have seen other changes than this machine has, by which it was the
//! bucket's owner in between, unknown to anybody who saw these changes in another order.

use std::sync::Arc;

use proxy_common::maps::{Chain, MAX_CHAIN, NO_SLOT, Owner};
use roaring::RoaringBitmap;

use super::Plan;
use super::view::{Translation, View};

/// Everything that chains are made of.
pub(super) struct Evidence<'a> {
    pub(super) view: &'a View,
    /// Older views, newest first.
    pub(super) pasts: Vec<(Translation, &'a View)>,
    /// What the others hold, by slot.
    pub(super) holders: Vec<(u8, &'a RoaringBitmap)>,
    /// Who has not confirmed the view; nobody once it is settled.
    pub(super) unconfirmed: Vec<u8>,
}

/// The members of one chain, as it grows.
struct Links {
    slots: [u8; MAX_CHAIN],
    length: usize,
    own_slot: u8,
}

impl Links {
    fn add(&mut self, slot: u8) {
        let known = self.slots[..self.length].contains(&slot);
        if slot != NO_SLOT && slot != self.own_slot && !known && self.length < MAX_CHAIN {
            self.slots[self.length] = slot;
            self.length += 1;
        }
    }

    /// In the order of slots: a packet may be on its way to one of them while the chain is made anew, and its owner goes
    /// on behind that one. Members may leave the chain, but must not change places.
    fn chain(mut self, lately: bool) -> Chain {
        let members = &mut self.slots[..self.length];
        members.sort_unstable();
        if members.is_empty() { Chain::EMPTY } else { Chain::new(members.iter().copied(), lately) }
    }
}

impl Evidence<'_> {
    /// The chain of one of this machine's buckets.
    fn chain(&self, bucket: u32) -> Chain {
        let own_slot = self.view.own_slot;
        let mut links = Links { slots: [NO_SLOT; MAX_CHAIN], length: 0, own_slot };
        let mut moved = false;
        for (translation, past) in &self.pasts {
            let former = translation.slot(past.owner(bucket));
            moved |= former != own_slot;
            links.add(former);
        }
        self.holders.iter().filter(|(_, buckets)| buckets.contains(bucket)).for_each(|(slot, _)| links.add(*slot));
        if moved && !self.unconfirmed.is_empty() {
            // Not always the same ones, where there are more than a chain can name.
            let start = bucket as usize % self.unconfirmed.len();
            let (before, from) = self.unconfirmed.split_at(start);
            from.iter().chain(before).for_each(|slot| links.add(*slot));
        }
        links.chain(!self.pasts.is_empty())
    }

    /// The whole plan.
    pub(super) fn plan(&self, settling: bool) -> Plan {
        let owners = self.view.table.owners.iter().map(|slot| Owner::new(*slot, false)).collect();
        let mut plan = Plan {
            members: self.view.members.iter().map(|member| member.name.clone()).collect(),
            own_slot: self.view.own_slot,
            owners,
            successors: self.view.table.successors.clone(),
            chains: vec![Chain::EMPTY; self.view.table.owners.len()],
            settling,
        };
        for bucket in self.view.buckets().filter(|bucket| self.view.owns(*bucket)) {
            plan.link(bucket, self.chain(bucket));
        }
        plan
    }

    /// Makes the chains of some buckets anew; whether any is another than before.
    pub(super) fn revise(&self, plan: &mut Arc<Plan>, buckets: impl IntoIterator<Item = u32>) -> bool {
        let own = buckets.into_iter().filter(|bucket| self.view.owns(*bucket));
        let changes = own.map(|bucket| (bucket, self.chain(bucket)));
        let changes: Vec<_> = changes.filter(|(bucket, chain)| plan.chains[*bucket as usize] != *chain).collect();
        if changes.is_empty() {
            return false;
        }
        // The daemon may still read the old one.
        let plan = Arc::make_mut(plan);
        changes.into_iter().for_each(|(bucket, chain)| plan.link(bucket, chain));
        true
    }
}

impl Plan {
    fn link(&mut self, bucket: u32, chain: Chain) {
        self.chains[bucket as usize] = chain;
        self.owners[bucket as usize] = Owner::new(self.own_slot, chain != Chain::EMPTY);
    }

    /// The plan before the first view: it has no buckets.
    pub(super) fn none() -> Self {
        Self {
            members: Vec::new(),
            own_slot: NO_SLOT,
            owners: Vec::new(),
            successors: Vec::new(),
            chains: Vec::new(),
            settling: true,
        }
    }

    /// Buckets that each member owns, by slot.
    #[must_use]
    pub fn shares(&self) -> Vec<usize> {
        let mut shares = vec![0; self.members.len()];
        for owner in &self.owners {
            if let Some(share) = shares.get_mut(usize::from(owner.slot())) {
                *share += 1;
            }
        }
        shares
    }
}
