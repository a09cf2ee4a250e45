use std::collections::BTreeMap;

use proxy_common::hash::{SteeringKey, hash_v4};
use proxy_common::maps::MAX_MEMBERS;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::steering::Standing;

fn member(name: String, weight: u16) -> Member {
    Member { name, generation: 1, revision: 0, weight, standing: Standing::Active }
}

/// `size` members of a pool with names of its own.
fn pool(prefix: &str, size: usize) -> Vec<Member> {
    let mut members: Vec<_> = (0..size).map(|n| member(format!("{prefix}{n:03}"), 100)).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}

fn owners(members: &[Member]) -> Vec<u8> {
    Table::build(members, NO_SLOT, BUCKET_BITS).owners
}

/// The definition, bucket by bucket.
fn by_definition(members: &[Member]) -> Vec<u8> {
    let all = candidates(members, NO_SLOT, BUCKET_BITS);
    let lowest = |bucket| all.iter().min_by_key(|candidate| candidate.bid_for(bucket));
    (0..BUCKETS).map(|bucket| lowest(bucket).map_or(NO_SLOT, |candidate| candidate.slot)).collect()
}

fn without(members: &[Member], slot: usize) -> Vec<Member> {
    let mut rest = members.to_vec();
    rest.remove(slot);
    rest
}

/// Owners by name, so that tables with other slots can be compared.
fn named<'a>(members: &'a [Member], owners: &[u8]) -> Vec<&'a str> {
    owners.iter().map(|slot| members[usize::from(*slot)].name.as_str()).collect()
}

/// The largest deviation of a member's share of a million random connections from its weight, in percent.
fn worst_share(members: &[Member], seed: u64) -> f64 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let key = SteeringKey { k0: rng.random(), k1: rng.random() };
    let owners = owners(members);
    let mut counts = vec![0_u32; members.len()];
    let tuples = 1_000_000;
    for _ in 0..tuples {
        let hash = hash_v4(key, rng.random(), [192, 0, 2, 25], rng.random());
        let bucket = usize::try_from(hash >> (64 - BUCKET_BITS)).unwrap();
        counts[usize::from(owners[bucket])] += 1;
    }
    let weight: u32 = members.iter().map(|m| u32::from(m.weight)).sum();
    let expected = |m: &Member| f64::from(tuples) * f64::from(m.weight) / f64::from(weight);
    let deviation = |(m, count): (&Member, &u32)| (f64::from(*count) / expected(m) - 1.0).abs() * 100.0;
    members.iter().zip(&counts).map(deviation).fold(0.0, f64::max)
}

#[test]
fn the_logarithm_is_one() {
    for rank in [0, 1, 2, 1_000, BUCKETS / 2, BUCKETS - 1_000, BUCKETS - 10, BUCKETS - 2, BUCKETS - 1] {
        #[allow(clippy::cast_precision_loss, reason = "the test needs seven digits")]
        let ours = LOGARITHMS[rank as usize] as f64 / (1_u64 << LOG_BITS) as f64;
        let ideal = -(-(f64::from(rank) + 0.5) / f64::from(BUCKETS)).ln_1p();
        // In the last ranks, which cost all but infinitely much, the series is cut short.
        let tolerance = if rank < BUCKETS - 5_000 { 1e-6 } else { 0.02 };
        assert!((ours / ideal - 1.0).abs() < tolerance, "{rank}: {ours} for {ideal}");
    }
    assert!(LOGARITHMS.is_sorted() && LOGARITHMS.iter().all(|l| l >> (LOG_BITS + 4) == 0));
}

#[test]
fn rounded_costs_keep_their_order() {
    for weight in [1, 100, 101, 32_768, 65_535] {
        let costs: Vec<_> = LOGARITHMS.iter().map(|logarithm| cost(*logarithm, price(weight))).collect();
        assert!(costs.is_sorted_by(|a, b| a < b), "two ranks of weight {weight} cost as much");
        assert!(costs.iter().all(|cost| cost >> (u32::BITS - BIDDER_BITS) == 0));
    }
}

#[test]
fn the_walk_gives_what_the_definition_says() {
    let mut rng = SmallRng::seed_from_u64(7);
    for round in 0..12 {
        let size = [1, 2, 3, 5, 16, 64][round % 6];
        let mut members = pool(&format!("w{round}-"), size);
        for member in &mut members {
            member.weight = [1, 100, 100, 300, 65_535, 0][rng.random_range(0..6)];
            member.standing = [Standing::Active, Standing::Active, Standing::Draining][rng.random_range(0..3)];
        }
        let me = rng.random_range(0..size);
        let table = Table::build(&members, u8::try_from(me).unwrap(), BUCKET_BITS);
        assert!(table.owners == by_definition(&members), "round {round}");
        let rest = without(&members, me);
        let next = by_definition(&rest);
        for (bucket, &owner) in table.owners.iter().enumerate() {
            let expected = match next[bucket] {
                _ if usize::from(owner) != me => NO_SLOT,
                NO_SLOT => NO_SLOT,
                slot => slot + u8::from(usize::from(slot) >= me),
            };
            assert_eq!(table.successors[bucket], expected, "round {round}, bucket {bucket}");
        }
    }
}

#[test]
fn shares_are_within_3_percent_up_to_16_members_and_within_5_with_64() {
    for (size, limit) in [(2, 3.0), (3, 3.0), (5, 3.0), (8, 3.0), (16, 3.0), (64, 5.0)] {
        let deviations: Vec<_> = (0..8).map(|n| worst_share(&pool(&format!("p{n}-fe"), size), n)).collect();
        let worst = deviations.iter().copied().fold(0.0, f64::max);
        let mean = deviations.iter().sum::<f64>() / 8.0;
        println!("{size} members: worst share {worst:.2} % off in 8 pools, {mean:.2} % on average");
        assert!(worst < limit, "{size} members: {worst:.2} % off");
    }
}

#[test]
fn weighted_shares_are_as_even() {
    for (n, weights) in (0..).zip([[100, 200, 300, 400], [50, 100, 100, 100], [10, 1000, 1000, 1000], [255, 1, 1, 257]])
    {
        let mut members = pool(&format!("weighted{n}-"), 4);
        members.iter_mut().zip(weights).for_each(|(member, weight)| member.weight = weight);
        let total: u16 = weights.iter().sum();
        let owners = owners(&members);
        for (slot, weight) in weights.into_iter().enumerate() {
            let share = owners.iter().filter(|owner| usize::from(**owner) == slot).count();
            let ideal = BUCKETS as usize * usize::from(weight) / usize::from(total);
            println!("weight {weight} of {total}: {share} buckets for {ideal}");
            assert!(share.abs_diff(ideal) < ideal * 3 / 100 + 60, "weight {weight} of {total}: {share} for {ideal}");
        }
        if weights.iter().all(|weight| *weight >= 50) {
            let worst = worst_share(&members, n);
            assert!(worst < 3.0, "{weights:?}: {worst:.2} % off");
        }
    }
}

#[test]
fn a_join_or_a_death_moves_only_what_it_must() {
    for size in [2, 5, 16, 64] {
        let members = pool("move", size);
        let gone = size / 2;
        let (rest, after) = (without(&members, gone), owners(&without(&members, gone)));
        let (before, after) = (owners(&members), named(&rest, &after));
        let mut moved = 0;
        for (old, new) in named(&members, &before).into_iter().zip(after) {
            moved += usize::from(old != new);
            assert!(old == new || old == members[gone].name, "a bucket of {old} went to {new}");
        }
        println!("{size} members: {moved} buckets move, {} is the even share", BUCKETS as usize / size);
        assert_eq!(moved, before.iter().filter(|slot| usize::from(**slot) == gone).count());
    }
}

/// Members whose ranks hang together would inherit unevenly: whoever is second where a member is first.
#[test]
fn the_dead_members_buckets_are_shared_as_evenly() {
    for size in [5, 16] {
        let members = pool("heir", size);
        for me in 0..size {
            let table = Table::build(&members, u8::try_from(me).unwrap(), BUCKET_BITS);
            let mut heirs = BTreeMap::new();
            for slot in table.successors.iter().filter(|slot| **slot != NO_SLOT) {
                *heirs.entry(slot).or_insert(0_usize) += 1;
            }
            let even = heirs.values().sum::<usize>() / (size - 1);
            let worst = heirs.values().map(|share| share.abs_diff(even)).max().unwrap();
            assert_eq!(heirs.len(), size - 1);
            // Five sigma of independent draws.
            assert!(worst * worst < 25 * even, "{size} members: {worst} off {even} in the succession of {me}");
        }
    }
}

#[test]
fn members_are_independent_of_each_other() {
    let mut worst: f64 = 0.0;
    for pair in 0..200 {
        let permutations = [0, 1].map(|n| Permutation::new(identity(&format!("fe{}", 2 * pair + n)), BUCKET_BITS));
        // Buckets where both rank in the first 64th: as many as chance has.
        let low = |p: &Permutation, bucket| p.rank(bucket) < BUCKETS / 64;
        let both = (0..BUCKETS).filter(|&bucket| permutations.iter().all(|p| low(p, bucket))).count();
        let mean = f64::from(BUCKETS) / 64.0 / 64.0;
        #[allow(clippy::cast_precision_loss, reason = "a small number")]
        let sigmas = (both as f64 - mean).abs() / mean.sqrt();
        worst = worst.max(sigmas);
    }
    println!("common low ranks of 200 pairs: at most {worst:.1} sigma from chance");
    assert!(worst < 5.0);
}

#[test]
fn whoever_is_there_takes_mail() {
    let mut members = pool("alone", 3);
    let share = |members: &[Member], slot: u8| owners(members).iter().filter(|owner| **owner == slot).count();
    members[0].weight = 0;
    assert_eq!(share(&members, 0), 0, "weight 0 takes nothing");
    members[1].standing = Standing::Draining;
    members[2].standing = Standing::Joining;
    assert_eq!(share(&members, 1), BUCKETS as usize, "a pool that only drains takes mail");
    members[1].weight = 0;
    assert_eq!(share(&members, 2), BUCKETS as usize, "who joins has at least a weight");
    members[2].weight = 0;
    assert_eq!(share(&members, 0), BUCKETS as usize, "all weights are 0: the active one takes mail");
    assert!(owners(&[]).iter().all(|owner| *owner == NO_SLOT));
    let alone = Table::build(&members[..1], 0, BUCKET_BITS);
    assert!(alone.owners.iter().all(|owner| *owner == 0) && alone.successors.iter().all(|next| *next == NO_SLOT));
}

#[test]
fn the_largest_pool() {
    let members = pool("large", MAX_MEMBERS as usize);
    assert!(owners(&members) == by_definition(&members));
}
