//! The table by itself: how evenly it shares, what a join or a death moves, and how long a new one takes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use autocluster::dataplane::{Dataplane, bench::thread_time};
use proxy_common::{
    hash::{SteeringKey, hash_v4},
    maps::{BUCKET_BITS, BUCKETS, Member as Slot, Owner},
};
use proxy_core::steering::{Action, Machine, Member, Plan, Standing};

use crate::pool;

/// Tuples that are shared out.
const TUPLES: u64 = 1_000_000;
/// Pools of each size: one lucky set of names proves nothing.
const POOLS: u64 = 6;
const SMALL: [usize; 6] = [2, 3, 5, 8, 12, 16];
const LARGE: usize = 64;
/// Tables that are built and put in force.
const BUILDS: usize = 21;

/// How evenly, and how stably.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quality {
    /// Largest difference of a member's share from an equal one, relative to it, in pools of up to 16 members.
    pub(crate) share_small: f64,
    /// The same with 64 members.
    pub(crate) share_large: f64,
    /// Largest ratio of the buckets that a join moved to those that it had to.
    pub(crate) join: f64,
    /// The same for a death.
    pub(crate) death: f64,
}

/// CPU time from new members to the table being in force.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rebuild {
    pub(crate) samples: Vec<Duration>,
}

impl Rebuild {
    pub(crate) fn median(&self) -> Duration {
        self.samples.get(self.samples.len() / 2).copied().unwrap_or_default()
    }

    pub(crate) fn longest(&self) -> Duration {
        self.samples.last().copied().unwrap_or_default()
    }
}

/// Shares and moves, over several pools of each size.
///
/// # Errors
/// The machine gave no plan.
pub(crate) fn quality() -> Result<Quality> {
    let mut quality = Quality { share_small: 0.0, share_large: 0.0, join: 0.0, death: 0.0 };
    for pool in 0..POOLS {
        for size in SMALL {
            quality.share_small = quality.share_small.max(unevenness(pool, size)?);
        }
        quality.share_large = quality.share_large.max(unevenness(pool, LARGE)?);
        for size in SMALL.into_iter().chain([LARGE]) {
            let (join, death) = moves(pool, size)?;
            quality.join = quality.join.max(join);
            quality.death = quality.death.max(death);
        }
    }
    Ok(quality)
}

fn unevenness(pool: u64, size: usize) -> Result<f64> {
    let owners = owners(&named(pool, size))?;
    let key = SteeringKey { k0: mix(pool), k1: mix(pool + 1_000) };
    let mut counts = vec![0_u64; size];
    for tuple in 0..TUPLES {
        let random = mix(tuple.wrapping_mul(POOLS) + pool).to_ne_bytes();
        let [a, b, c, d, e, f, ..] = random;
        let hash = hash_v4(key, [a, b, c, d], [10, 77, 0, 100], [e, f, 0, 25]);
        let owner = owners[usize::try_from(hash >> (64 - BUCKET_BITS))?];
        *counts.get_mut(usize::from(owner.slot())).context("a bucket has no owner")? += 1;
    }
    let equal = ratio(TUPLES, size as u64);
    Ok(counts.into_iter().map(|count| (ratio(count, 1) / equal - 1.0).abs()).fold(0.0, f64::max))
}

/// Buckets moved by one join, and by one death, over those that had to be: the newcomer's fair share, and those of the
/// dead.
fn moves(pool: u64, size: usize) -> Result<(f64, f64)> {
    let mut members = named(pool, size);
    let before = by_name(&members)?;
    members.push(pool::member(format!("newcomer-{pool}"), Standing::Active));
    let joined = by_name(&members)?;
    let fair = ratio(BUCKETS.into(), size as u64 + 1);
    let join = ratio(differences(&before, &joined), 1) / fair;
    let dead = members.remove(usize::try_from(pool)? % size).name;
    let after = by_name(&members)?;
    let owned = joined.iter().filter(|owner| **owner == dead).count() as u64;
    Ok((join, ratio(differences(&joined, &after), owned)))
}

fn differences(before: &[String], after: &[String]) -> u64 {
    before.iter().zip(after).filter(|(before, after)| before != after).count() as u64
}

fn by_name(members: &[Member]) -> Result<Vec<String>> {
    let plan = pool::plan(&members[0].name, members)?;
    let name = |owner: &Owner| plan.members.get(usize::from(owner.slot())).cloned().unwrap_or_default();
    Ok(plan.owners.iter().map(name).collect())
}

fn owners(members: &[Member]) -> Result<Vec<Owner>> {
    Ok(pool::plan(&members[0].name, members)?.owners)
}

fn named(pool: u64, size: usize) -> Vec<Member> {
    let name = |n| match pool % 3 {
        0 => format!("fe{n}"),
        1 => format!("mx-{n:02}.site{pool}.example.net"),
        _ => format!("{:x}", mix(pool << 32 | n)),
    };
    (0..size as u64).map(|n| pool::member(name(n), Standing::Active)).collect()
}

/// From the news that one of 64 members has come or gone to the new table being in force.
///
/// # Errors
/// The kernel refused the table.
pub(crate) fn rebuild(dataplane: &mut Dataplane) -> Result<Rebuild> {
    let all = named(0, LARGE);
    let slots =
        vec![Slot { mac: [2, 0, 0, 0, 1, 1], flags: proxy_common::maps::MEMBER_PRESENT, ..Slot::default() }; LARGE];
    let mut machine = Machine::new(&all[0].name);
    let mut samples = vec![];
    for build in 0..2 * BUILDS {
        // One joins, one dies, in turns. Only full tables count.
        let members = &all[..LARGE - 1 + build % 2];
        let (now, begin) = (Instant::now(), thread_time()?);
        let plan = next_plan(&mut machine, members, now)?;
        dataplane.apply_unattached(&plan, &slots[..members.len()])?;
        let took = thread_time()?.saturating_sub(begin);
        if members.len() == LARGE {
            samples.push(took);
        }
    }
    samples.sort();
    Ok(Rebuild { samples })
}

fn next_plan(machine: &mut Machine, members: &[Member], now: Instant) -> Result<Arc<Plan>> {
    machine.handle_members(now, members)?;
    let mut newest = None;
    while let Some(action) = machine.poll_action() {
        if let Action::Apply(plan) = action {
            newest = Some(plan);
        }
    }
    newest.context("the machine made no plan of new members")
}

/// A number that looks random, the same in every run (splitmix64).
fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn ratio(of: u64, to: u64) -> f64 {
    of as f64 / to as f64
}
