//! A keyed permutation of the buckets, for each member another one.

const ROUNDS: usize = 4;

/// Where a member ranks each bucket: a bijection of `0..1 << bits`, as good as random to the eye of another member's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permutation {
    mask: u32,
    shift: u32,
    rounds: [Round; ROUNDS],
}

#[derive(Debug, Clone, Copy)]
struct Round {
    factor: u32,
    inverse: u32,
    offset: u32,
}

impl Permutation {
    pub(super) fn new(key: u64, bits: u32) -> Self {
        let mut state = key;
        let rounds = std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            Round::new(mix(state))
        });
        // A shift by half of the bits or more undoes itself.
        Self { mask: (1 << bits) - 1, shift: bits.div_ceil(2), rounds }
    }

    /// The rank of a bucket.
    #[inline]
    pub(super) fn rank(&self, bucket: u32) -> u32 {
        self.rounds.iter().fold(bucket, |x, round| {
            let x = x.wrapping_add(round.offset).wrapping_mul(round.factor) & self.mask;
            x ^ (x >> self.shift)
        })
    }

    /// The bucket of a rank.
    #[inline]
    pub(super) fn bucket(&self, rank: u32) -> u32 {
        self.rounds.iter().rev().fold(rank, |x, round| {
            let x = x ^ (x >> self.shift);
            x.wrapping_mul(round.inverse).wrapping_sub(round.offset) & self.mask
        })
    }
}

impl Round {
    #[allow(clippy::cast_possible_truncation, reason = "some bits are what is wanted")]
    fn new(random: u64) -> Self {
        let factor = (random >> 32) as u32 | 1;
        Self { factor, inverse: inverse(factor), offset: random as u32 }
    }
}

/// The multiplicative inverse modulo 2^32 by Newton's method: each step doubles the right bits, of which an odd number
/// has three as its own inverse.
const fn inverse(odd: u32) -> u32 {
    let mut x = odd;
    let mut step = 0;
    while step < 4 {
        x = x.wrapping_mul(2_u32.wrapping_sub(odd.wrapping_mul(x)));
        step += 1;
    }
    x
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit flips every output bit with
/// probability one half.
pub(super) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proxy_common::maps::BUCKET_BITS;

    use super::*;

    #[test]
    fn every_bucket_has_its_rank_and_back() {
        for (key, bits) in [(0, BUCKET_BITS), (1, BUCKET_BITS), (u64::MAX, BUCKET_BITS), (0x1234_5678_9abc_def0, 7)] {
            let permutation = Permutation::new(key, bits);
            let mut seen = vec![false; 1 << bits];
            for bucket in 0..1 << bits {
                let rank = permutation.rank(bucket);
                assert!(!std::mem::replace(&mut seen[rank as usize], true), "{rank} is the rank of two buckets");
                assert_eq!(permutation.bucket(rank), bucket);
            }
        }
    }
}
