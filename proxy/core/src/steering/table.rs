//! The table builder: weighted rendezvous hashing of buckets over members, with stratified scores. The table is a pure
//! function of the members, so front ends that agree on the members agree on every bucket without exchanging it,
//! and a join or a death moves only the buckets that it must.
//!
//! Each member ranks the buckets by its own permutation; rank `r` costs it `-ln(1 - (r + 0.5) / BUCKETS) / weight`, and the
//! cheapest member owns the bucket. That is rendezvous hashing, but for each member the scores are not drawn one by one:
//! all `BUCKETS` quantiles occur exactly once, which makes the shares more even.
//!
//! It is built the other way round: each member walks its buckets from the cheapest up to a limit beyond which hardly
//! any bucket is without an owner. That is about [`COVER`] visits for each bucket, however many members there are.

use std::sync::LazyLock;

use proxy_common::maps::{BUCKET_BITS, BUCKETS, NO_SLOT};

use super::Member;
use super::permutation::{Permutation, mix};

/// Visits of each bucket, on average; `exp(-COVER)` of the buckets are left over and are decided one by one.
const COVER: u64 = 5;
/// Fraction bits of [`LOGARITHMS`].
const LOG_BITS: u32 = 48;
/// Fraction bits of a member's price.
const PRICE_BITS: u32 = 40;
/// Bits of a cost before it is rounded.
const COST_BITS: u32 = 57;
/// Shift from a logarithm times a price to a cost: logarithms have 4 bits before the point.
const COST_SHIFT: u32 = LOG_BITS + 4 + PRICE_BITS - COST_BITS;
/// A rounded cost has these bits behind its leading one: enough to tell any two ranks of a member, which are 1 in
/// `BUCKETS` apart at the least.
const MANTISSA_BITS: u32 = BUCKET_BITS + 1;

/// `-ln(1 - (r + 0.5) / BUCKETS)` for each rank `r`, with [`LOG_BITS`] fraction bits; in integers, so that all front
/// ends agree to the last bit.
static LOGARITHMS: LazyLock<Vec<u64>> = LazyLock::new(|| {
    // The step before rank r is ln((k + 1/2) / (k - 1/2)) for k = BUCKETS - r, which is 1/k + 1/(12 k³) + …; to the first
    // rank it is half a bucket.
    let step = |rank: u32| {
        let k = u64::from(BUCKETS - rank);
        let cubic = u128::from(k).pow(3) * 12;
        (1 << LOG_BITS) / k + u64::try_from((1_u128 << LOG_BITS) / cubic).unwrap_or(0)
    };
    let first = (1 << LOG_BITS) / (2 * u64::from(BUCKETS));
    let rest = (1..BUCKETS).scan(first, |sum, rank| {
        *sum += step(rank);
        Some(*sum)
    });
    std::iter::once(first).chain(rest).collect()
});

/// The logarithms for a table of `1 << bits` buckets: a smaller table takes the middle of each of its ranks.
fn logarithms(bits: u32) -> impl Iterator<Item = u64> {
    let step = 1_usize << (BUCKET_BITS - bits);
    LOGARITHMS.iter().copied().skip(step / 2).step_by(step)
}

/// Bits of a bid that name the bidder.
const BIDDER_BITS: u32 = 7;
const NO_BID: u32 = u32::MAX;

// The largest bid fits in one word: so the bids of a whole table stay in the processor's cache.
const _: () = assert!(((COST_BITS - MANTISSA_BITS + 1) as u64) << (MANTISSA_BITS + BIDDER_BITS) < NO_BID as u64);

/// One candidate for buckets.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    slot: u8,
    weight: u16,
    /// The inverse of the weight.
    price: u64,
    permutation: Permutation,
    bits: u32,
}

impl Candidate {
    fn new(slot: u8, member: &Member, bits: u32) -> Self {
        let weight = member.weight.max(1);
        let permutation = Permutation::new(identity(&member.name), bits);
        Self { slot, weight, price: price(weight.into()), permutation, bits }
    }

    #[inline]
    fn bid(&self, cost: u32) -> u32 {
        cost << BIDDER_BITS | u32::from(self.slot)
    }

    fn bid_for(&self, bucket: u32) -> u32 {
        let logarithm = logarithms(self.bits).nth(self.permutation.rank(bucket) as usize);
        logarithm.map_or(NO_BID, |logarithm| self.bid(cost(logarithm, self.price)))
    }
}

const fn price(weight: u64) -> u64 {
    (1 << PRICE_BITS) / weight
}

/// The product, rounded to an exponent and a mantissa with its leading one, added: what is more costs more, or as much.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "52 and 41 bits less the shift are 57, rounded they are 25")]
fn cost(logarithm: u64, price: u64) -> u32 {
    let cost = ((u128::from(logarithm) * u128::from(price)) >> COST_SHIFT) as u64;
    let shift = (cost >> MANTISSA_BITS).max(1).ilog2();
    (shift << MANTISSA_BITS) + (cost >> shift) as u32
}

/// Who owns each bucket, by slot: `NO_SLOT` if there are no members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) owners: Vec<u8>,
    /// In buckets of the member that the table was built for: who owns them without it. `NO_SLOT` elsewhere.
    pub(super) successors: Vec<u8>,
}

impl Table {
    /// `members` by slot, in the order of their names, `MAX_MEMBERS` at the most; `own_slot` is whose table it is. It
    /// has `1 << bits` buckets, which are [`BUCKETS`] but in simulations.
    pub(super) fn build(members: &[Member], own_slot: u8, bits: u32) -> Self {
        let all = candidates(members, NO_SLOT, bits);
        let others = candidates(members, own_slot, bits);
        let mut bids = Bids::collect(&others, bits);
        let without = bids.slots();
        let owners = match all.iter().find(|candidate| candidate.slot == own_slot) {
            None => without.clone(),
            Some(me) if all.len() == others.len() + 1 => {
                bids.outbid(me);
                bids.slots()
            }
            // Who owns buckets without this machine is no candidate while it is there.
            Some(_) => Bids::collect(&all, bits).slots(),
        };
        let heir = |(&owner, next)| if owner == own_slot { next } else { NO_SLOT };
        let successors = owners.iter().zip(without).map(heir).collect();
        Self { owners, successors }
    }
}

/// Those members but `except` who take new connections.
fn candidates(members: &[Member], except: u8, bits: u32) -> Vec<Candidate> {
    let there = || (0_u8..).zip(members).filter(move |(slot, _)| *slot != except);
    let first = there().filter(|(_, member)| member.weight > 0).map(|(_, member)| member.standing).min();
    // A pool in which every weight is 0 takes mail all the same.
    let last = there().map(|(_, member)| member.standing).min();
    there()
        .filter(|(_, m)| first.map_or(Some(m.standing) == last, |first| m.standing == first && m.weight > 0))
        .map(|(slot, member)| Candidate::new(slot, member, bits))
        .collect()
}

/// What each rank costs: the same for members of the same weight, as most are.
#[derive(Default)]
struct Prices {
    price: u64,
    costs: Vec<u32>,
}

impl Prices {
    /// The costs of `candidate` that are no more than `limit`, which must be the same in every call.
    fn up_to(&mut self, limit: u32, candidate: &Candidate) -> &[u32] {
        if self.price != candidate.price {
            let costs = logarithms(candidate.bits).map(|logarithm| cost(logarithm, candidate.price));
            self.costs = costs.take_while(|cost| *cost <= limit).collect();
            self.price = candidate.price;
        }
        &self.costs
    }
}

/// The lowest bid for each bucket: the cost, and below it the bidder's slot, which decides ties: slots are in the order of
/// names everywhere.
struct Bids(Vec<u32>);

impl Bids {
    fn collect(candidates: &[Candidate], bits: u32) -> Self {
        let mut bids = Self(vec![NO_BID; 1 << bits]);
        let weight: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
        let limit = if weight == 0 { 0 } else { cost(COVER << LOG_BITS, price(weight)) };
        let mut prices = Prices::default();
        for candidate in candidates {
            bids.walk(candidate, prices.up_to(limit, candidate));
        }
        bids.fill(candidates);
        bids
    }

    /// Bids for as many buckets as there are costs.
    fn walk(&mut self, candidate: &Candidate, costs: &[u32]) {
        for (rank, cost) in (0..).zip(costs) {
            let best = &mut self.0[candidate.permutation.bucket(rank) as usize];
            *best = (*best).min(candidate.bid(*cost));
        }
    }

    /// Decides what nobody has bid for.
    fn fill(&mut self, candidates: &[Candidate]) {
        for (bucket, best) in (0..).zip(&mut self.0).filter(|(_, best)| **best == NO_BID) {
            *best = candidates.iter().map(|candidate| candidate.bid_for(bucket)).min().unwrap_or(NO_BID);
        }
    }

    /// One more candidate, whom nobody's bid must be missing for: it bids up to the highest bid that stands.
    fn outbid(&mut self, candidate: &Candidate) {
        let highest = self.0.iter().max().map_or(NO_BID, |bid| bid >> BIDDER_BITS);
        self.walk(candidate, Prices::default().up_to(highest, candidate));
    }

    #[allow(clippy::cast_possible_truncation, reason = "the last bits are a slot")]
    fn slots(&self) -> Vec<u8> {
        let slot = |bid: &u32| (*bid & u32::from(NO_SLOT)) as u8;
        self.0.iter().map(slot).collect()
    }
}

/// A number for a name, the same on every front end and in every version: FNV-1a, finished so that names that differ in
/// their last letter differ everywhere.
fn identity(name: &str) -> u64 {
    let fold = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, fold))
}

#[cfg(test)]
mod tests;
