//! The table builder: weighted rendezvous hashing of buckets over members. The table is a pure function
//! of the members, so front ends that agree on the members agree on every bucket without exchanging it,
//! and a join or a death moves only the buckets that it must.

use crate::maps::{Bucket, NO_SLOT};

/// One candidate for buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// What the member is hashed by; stable over restarts, the same everywhere.
    pub id: u64,
    /// Share relative to the others; 0 takes no buckets.
    pub weight: u16,
    /// Takes new connections. A draining member is nobody's first, but may be a second.
    pub active: bool,
    /// What the bucket will name it by.
    pub slot: u16,
}

/// Owners of one bucket.
///
/// `first` is the best-ranked active candidate, `second` the best-ranked of all others: the member that
/// had the bucket before `first` came or began to drain is always the second.
#[must_use]
pub fn bucket(index: u32, candidates: &[Candidate]) -> Bucket {
    let mut first: Option<(u64, &Candidate)> = None;
    for candidate in candidates.iter().filter(|c| c.active && c.weight > 0) {
        rank(&mut first, index, candidate);
    }
    let first_slot = first.map_or(NO_SLOT, |(_, c)| c.slot);
    let mut second: Option<(u64, &Candidate)> = None;
    for candidate in candidates.iter().filter(|c| c.slot != first_slot && c.weight > 0) {
        rank(&mut second, index, candidate);
    }
    Bucket::new(first_slot, second.map_or(NO_SLOT, |(_, c)| c.slot))
}

fn rank<'a>(best: &mut Option<(u64, &'a Candidate)>, index: u32, candidate: &'a Candidate) {
    let score = cost(index, candidate);
    // Equal costs are decided by the identity, or two front ends with other slot orders would differ.
    if best.is_none_or(|(lowest, holder)| (score, candidate.id) < (lowest, holder.id)) {
        *best = Some((score, candidate));
    }
}

/// Weighted rendezvous: the lowest `-ln(u) / weight` wins, `u` uniform in (0, 1]. Log base 2 in fixed
/// point serves as well, and is the same on every machine, as a floating-point `ln` is not.
fn cost(index: u32, candidate: &Candidate) -> u64 {
    let uniform = mix(candidate.id ^ mix(u64::from(index).wrapping_add(0x9e37_79b9_7f4a_7c15)));
    (minus_log2(uniform) << 16) / u64::from(candidate.weight)
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit flips every output bit with
/// probability one half.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Fraction bits of [`minus_log2`].
const LOG_BITS: u32 = 32;
/// The interpolation table has `2^INDEX_BITS` intervals.
const INDEX_BITS: u32 = 8;

/// `-log2(x / 2^64)` with [`LOG_BITS`] fraction bits; at most 64.
fn minus_log2(x: u64) -> u64 {
    let x = x | 1;
    let zeros = x.leading_zeros();
    // 1.f with 63 fraction bits; log2(1 + f) by linear interpolation, error below 2e-6.
    let mantissa = x << zeros;
    let fraction = mantissa & (u64::MAX >> 1);
    let interval = (fraction >> (63 - INDEX_BITS)) as usize;
    let rest = (fraction >> (63 - INDEX_BITS - LOG_BITS)) & ((1 << LOG_BITS) - 1);
    let (low, high) = (LOG2[interval], LOG2[interval + 1]);
    let log = low + (((high - low) * rest) >> LOG_BITS);
    (u64::from(zeros + 1) << LOG_BITS) - log
}

/// `log2(1 + i / 256)` with [`LOG_BITS`] fraction bits.
static LOG2: [u64; (1 << INDEX_BITS) + 1] = log2_table();

const fn log2_table() -> [u64; (1 << INDEX_BITS) + 1] {
    let mut table = [0; (1 << INDEX_BITS) + 1];
    let mut i = 0;
    while i < table.len() {
        table[i] = log2_digits((1 << INDEX_BITS) + i as u64);
        i += 1;
    }
    table
}

/// Binary digits of `log2(x / 256)`, for 256 <= x <= 512, by repeated squaring.
const fn log2_digits(x: u64) -> u64 {
    // 1.31 fixed point, so that a square fits in 64 bits.
    let mut m = x << (31 - INDEX_BITS);
    if m >> 32 != 0 {
        return 1 << LOG_BITS;
    }
    let mut log = 0;
    let mut bit = 1 << (LOG_BITS - 1);
    while bit != 0 {
        m = (m * m) >> 31;
        if m >> 32 != 0 {
            m >>= 1;
            log |= bit;
        }
        bit >>= 1;
    }
    log
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::maps::BUCKETS;
    use std::{vec, vec::Vec};

    fn member(n: u16) -> Candidate {
        Candidate { id: mix(u64::from(n) + 1), weight: 100, active: true, slot: n }
    }

    fn table(candidates: &[Candidate]) -> Vec<Bucket> {
        (0..BUCKETS).map(|i| bucket(i, candidates)).collect()
    }

    fn shares(table: &[Bucket], members: usize) -> Vec<usize> {
        let mut shares = vec![0; members];
        for bucket in table {
            shares[usize::from(bucket.first())] += 1;
        }
        shares
    }

    #[test]
    fn the_logarithm_is_one() {
        for x in [1_u64, 3, 1 << 20, 0x1234_5678_9abc_def1, u64::MAX / 3, u64::MAX - 2, u64::MAX] {
            #[allow(clippy::cast_precision_loss, reason = "the test needs seven digits")]
            let (ours, ideal) = (minus_log2(x) as f64 / (1_u64 << LOG_BITS) as f64, 64.0 - ((x | 1) as f64).log2());
            assert!((ours - ideal).abs() < 4e-6, "{x}: {ours} for {ideal}");
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let mut members: Vec<_> = (0..3).map(member).collect();
        for share in shares(&table(&members), 3) {
            assert!(share.abs_diff(65_536 / 3) < 65_536 / 3 / 50, "{share} is over 2 % off");
        }
        members[0].weight = 200;
        let double = shares(&table(&members), 3)[0];
        assert!(double.abs_diff(32_768) < 32_768 / 50, "{double} for half of the buckets");
    }

    #[test]
    fn a_death_moves_only_the_dead_members_buckets_and_to_their_seconds() {
        let members: Vec<_> = (0..5).map(member).collect();
        let before = table(&members);
        let survivors: Vec<_> = members.iter().copied().filter(|c| c.slot != 2).collect();
        for (old, new) in before.iter().zip(table(&survivors)) {
            let expected = if old.first() == 2 { old.second() } else { old.first() };
            assert_eq!(new.first(), expected);
        }
    }

    #[test]
    fn a_draining_member_is_second_where_it_was_first() {
        let mut members: Vec<_> = (0..5).map(member).collect();
        let before = table(&members);
        members[2].active = false;
        for (old, new) in before.iter().zip(table(&members)) {
            assert_ne!(new.first(), 2);
            if old.first() == 2 {
                assert_eq!((new.first(), new.second()), (old.second(), 2));
            }
        }
    }

    #[test]
    fn slots_and_order_do_not_decide() {
        let members: Vec<_> = (0..4).map(member).collect();
        let renamed: Vec<_> = members.iter().rev().map(|c| Candidate { slot: 10 + c.slot, ..*c }).collect();
        for (a, b) in table(&members).iter().zip(table(&renamed)) {
            assert_eq!((a.first() + 10, a.second() + 10), (b.first(), b.second()));
        }
    }

    #[test]
    fn nobody_is_left() {
        assert_eq!(bucket(7, &[]), Bucket::new(NO_SLOT, NO_SLOT));
        let alone = [Candidate { active: false, ..member(0) }];
        assert_eq!(bucket(7, &alone), Bucket::new(NO_SLOT, 0));
    }
}
