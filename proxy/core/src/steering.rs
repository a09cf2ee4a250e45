//! From the membership view to what the XDP program needs: slots, MAC addresses and the bucket table.

pub mod drain;

use proxy_common::{
    maps::{BUCKETS, Bucket, MAX_MEMBERS},
    table::{self, Candidate},
};

/// A live front end, as steering sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Stable over restarts: the buckets are hashed by it.
    pub name: String,
    pub mac: [u8; 6],
    /// Share relative to the others.
    pub weight: u16,
    /// False while it drains.
    pub active: bool,
}

/// One version of what the program steers by. A pure function of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Members by slot.
    pub members: Vec<Slot>,
    /// Owners by bucket; `BUCKETS` of them.
    pub buckets: Vec<Bucket>,
}

/// What fills one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub mac: [u8; 6],
    pub is_self: bool,
}

/// More front ends than the program's tables hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} front ends, but the steering table holds {MAX_MEMBERS}")]
pub struct TooManyMembers(usize);

impl Plan {
    /// Builds the plan of the front end `me`.
    ///
    /// Where nobody is active, the draining members take new connections after all: refusing mail is
    /// worse than a drain that lasts.
    ///
    /// # Errors
    /// [`TooManyMembers`].
    pub fn build(members: &[Member], me: &str) -> Result<Self, TooManyMembers> {
        if members.len() > MAX_MEMBERS as usize {
            return Err(TooManyMembers(members.len()));
        }
        let mut sorted: Vec<&Member> = members.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let none_active = sorted.iter().all(|m| !m.active);
        let candidates: Vec<Candidate> = (0_u16..)
            .zip(&sorted)
            .map(|(slot, m)| Candidate {
                id: identity(&m.name),
                weight: m.weight,
                active: m.active || none_active,
                slot,
            })
            .collect();
        let slots = sorted.iter().map(|m| Slot { name: m.name.clone(), mac: m.mac, is_self: m.name == me });
        Ok(Self {
            members: slots.collect(),
            buckets: (0..BUCKETS).map(|index| table::bucket(index, &candidates)).collect(),
        })
    }

    /// Buckets of which each slot is the first owner.
    #[must_use]
    pub fn shares(&self) -> Vec<usize> {
        let mut shares = vec![0; self.members.len()];
        for bucket in &self.buckets {
            if let Some(share) = shares.get_mut(usize::from(bucket.first())) {
                *share += 1;
            }
        }
        shares
    }
}

/// A number for a name, the same on every front end and in every version (FNV-1a; the table builder
/// mixes it further).
fn identity(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(n: u8, active: bool) -> Member {
        Member { name: format!("fe{n}"), mac: [2, 0, 0, 0, 0, n], weight: 100, active }
    }

    #[test]
    fn every_front_end_builds_the_same_table() {
        let members = [member(1, true), member(2, true), member(3, true)];
        let mut shuffled = members.to_vec();
        shuffled.rotate_left(1);
        let (a, b) = (Plan::build(&members, "fe1").unwrap(), Plan::build(&shuffled, "fe3").unwrap());
        assert_eq!(a.buckets, b.buckets);
        let own: Vec<_> = b.members.iter().filter(|s| s.is_self).map(|s| s.name.as_str()).collect();
        assert_eq!(own, ["fe3"]);
        for share in a.shares() {
            assert!(share.abs_diff(65_536 / 3) < 65_536 / 3 / 50, "{share} is over 2 % off");
        }
    }

    #[test]
    fn a_pool_that_only_drains_still_takes_mail() {
        let plan = Plan::build(&[member(1, false), member(2, false)], "fe1").unwrap();
        assert_eq!(plan.shares().iter().sum::<usize>(), BUCKETS as usize);
    }

    #[test]
    fn more_members_than_slots() {
        let members: Vec<_> = (0..=MAX_MEMBERS).map(|n| Member { name: n.to_string(), ..member(0, true) }).collect();
        assert_eq!(Plan::build(&members, "0").unwrap_err(), TooManyMembers(257));
    }
}
