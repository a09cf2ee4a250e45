//! The members at one time, and the table that they make.

use std::hash::Hasher as _;
use std::ops::Range;

use proxy_common::maps::{MAX_MEMBERS, NO_SLOT};
use siphasher::sip::SipHasher13;

use super::table::Table;
use super::{Member, Standing, TooManyMembers};

/// One view of the members.
#[derive(Debug)]
pub(super) struct View {
    /// By slot, sorted by name.
    pub(super) members: Vec<Member>,
    /// Equal for two front ends if they know the same of the same members.
    pub(super) hash: u64,
    pub(super) own_slot: u8,
    pub(super) table: Table,
}

/// The slots of an older view, in a newer one.
#[derive(Debug, Clone)]
pub(super) struct Translation([u8; NO_SLOT as usize + 1]);

impl Translation {
    /// `NO_SLOT` if the member is gone, or was started again.
    pub(super) fn slot(&self, older: u8) -> u8 {
        self.0.get(usize::from(older)).copied().unwrap_or(NO_SLOT)
    }
}

impl View {
    /// # Errors
    /// [`TooManyMembers`].
    pub(super) fn new(me: &str, mut members: Vec<Member>, bits: u32) -> Result<Self, TooManyMembers> {
        if members.len() > MAX_MEMBERS as usize {
            return Err(TooManyMembers(members.len()));
        }
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let own_slot = slots(&members).find(|(_, member)| member.name == me).map_or(NO_SLOT, |(slot, _)| slot);
        let table = Table::build(&members, own_slot, bits);
        Ok(Self { hash: hash(&members), members, own_slot, table })
    }

    /// Slots and members without this machine.
    pub(super) fn others(&self) -> impl Iterator<Item = (u8, &Member)> {
        slots(&self.members).filter(|(slot, _)| *slot != self.own_slot)
    }

    #[allow(clippy::cast_possible_truncation, reason = "a table has no more than BUCKETS")]
    pub(super) fn buckets(&self) -> Range<u32> {
        0..self.table.owners.len() as u32
    }

    pub(super) fn owns(&self, bucket: u32) -> bool {
        self.own_slot != NO_SLOT && self.owner(bucket) == self.own_slot
    }

    /// By slot; `NO_SLOT` for a bucket that does not exist.
    pub(super) fn owner(&self, bucket: u32) -> u8 {
        self.table.owners.get(bucket as usize).copied().unwrap_or(NO_SLOT)
    }

    /// How `older`'s slots are to be read in this view.
    pub(super) fn translation(&self, older: &Self) -> Translation {
        let mut translation = [NO_SLOT; NO_SLOT as usize + 1];
        for ((_, member), target) in slots(&older.members).zip(&mut translation) {
            let same = |(_, m): &(u8, &Member)| m.name == member.name && m.generation == member.generation;
            *target = slots(&self.members).find(same).map_or(NO_SLOT, |(slot, _)| slot);
        }
        Translation(translation)
    }
}

fn slots(members: &[Member]) -> impl Iterator<Item = (u8, &Member)> {
    (0..NO_SLOT).zip(members)
}

/// The same on every front end and in every version.
fn hash(members: &[Member]) -> u64 {
    let mut hasher = SipHasher13::new();
    for member in members {
        hasher.write_u64(member.name.len() as u64);
        hasher.write(member.name.as_bytes());
        hasher.write_u64(member.generation);
        hasher.write_u32(member.revision);
        hasher.write_u16(member.weight);
        hasher.write_u8(match member.standing {
            Standing::Active => 0,
            Standing::Draining => 1,
            Standing::Joining => 2,
        });
    }
    hasher.finish()
}
