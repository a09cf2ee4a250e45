//! The cases that are known to be hard, by name, and thousands that nobody thought of.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::Change::{Drain, Kill, Leave, Start, Undrain, Weight};
use super::world::World;
use super::{Change, Schedule, ms};

/// Runs one schedule with many seeds: news, packets and clients come in other orders each time.
fn hard_case(size: usize, schedule: &[(u64, Change)]) {
    let schedule: Schedule = schedule.iter().map(|(after, change)| (ms(*after), *change)).collect();
    let span = schedule.last().map_or(Duration::ZERO, |(after, _)| *after);
    for seed in 0..40 {
        let mut world = World::new(seed, size);
        world.add_clients(25, ms(1));
        world.run_for(ms(1_000));
        world.set_lossy(seed % 2 == 0);
        world.plan(&schedule);
        world.add_clients(25, span + ms(500));
        world.run_for(span + ms(5_000));
        world.finish();
        assert_eq!(world.tally.lost, 0, "seed {seed}: connections were lost");
    }
}

#[test]
fn a_second_drain_begins_after_connections_came_to_the_firsts_successor() {
    hard_case(3, &[(0, Drain(0)), (3_000, Drain(1))]);
    hard_case(5, &[(0, Drain(0)), (3_000, Drain(1)), (6_000, Drain(2)), (20_000, Drain(3))]);
}

#[test]
fn a_lowered_weight_makes_the_old_owner_the_third() {
    hard_case(4, &[(0, Weight(0, 300)), (2_000, Weight(0, 10)), (4_000, Weight(1, 200)), (4_500, Weight(0, 1))]);
}

#[test]
fn an_undrain_comes_in_between() {
    hard_case(4, &[(0, Drain(0)), (1_500, Drain(1)), (2_500, Undrain(0)), (4_000, Undrain(1)), (4_100, Drain(0))]);
}

#[test]
fn two_join_at_once() {
    hard_case(3, &[(0, Start(3)), (0, Start(4))]);
    hard_case(2, &[(0, Start(2)), (10, Start(3)), (300, Drain(0))]);
}

#[test]
fn everything_within_one_second() {
    hard_case(
        5,
        &[(0, Drain(0)), (200, Drain(1)), (350, Weight(2, 20)), (500, Undrain(0)), (700, Start(5)), (900, Drain(3))],
    );
    hard_case(4, &[(0, Drain(0)), (5, Undrain(0)), (10, Drain(0)), (15, Undrain(0)), (20, Weight(1, 200))]);
}

#[test]
fn everybody_drains() {
    hard_case(3, &[(0, Drain(0)), (100, Drain(1)), (200, Drain(2)), (3_000, Undrain(1)), (3_010, Start(3))]);
}

#[test]
fn a_death_loses_only_the_dead_members_connections() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut world = World::new(seed, 4);
        world.add_clients(40, ms(1_000));
        world.run_for(ms(3_000));
        world.plan(&vec![(ms(0), Kill(0)), (ms(500), Drain(1)), (ms(4_000), Start(0))]);
        world.run_for(ms(10_000));
        world.finish();
        lost += world.tally.lost;
    }
    println!("{lost} of 4,000 connections were lost with the dead member");
    assert!((500..1_600).contains(&lost), "{lost} of 4,000 lost");
}

fn random_change(rng: &mut SmallRng) -> Change {
    let node = rng.random_range(0..6);
    match rng.random_range(0..12) {
        0..=2 => Start(node),
        3..=5 => Drain(node),
        6..=7 => Undrain(node),
        8..=9 => Weight(node, [1, 20, 100, 100, 300][rng.random_range(0..5)]),
        10 => Kill(node),
        _ => Leave(node),
    }
}

#[test]
fn whatever_happens() {
    let (mut longest, mut opened, mut lost, mut dropped, mut time_wait) = (0, 0, 0, 0, 0);
    for seed in 0..1_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut world = World::new(seed, rng.random_range(2..6));
        world.add_clients(20, ms(500));
        world.run_for(ms(800));
        world.set_lossy(rng.random());
        let span = [500, 1_000, 3_000, 20_000][rng.random_range(0..4)];
        let schedule = (0..rng.random_range(1..9)).map(|_| (ms(rng.random_range(0..span)), random_change(&mut rng)));
        world.plan(&schedule.collect());
        world.add_clients(10, ms(span));
        world.run_for(ms(span + 3_000));
        world.finish();
        longest = longest.max(world.tally.longest);
        opened += world.tally.opened;
        lost += world.tally.lost;
        dropped += world.tally.dropped;
        time_wait += world.tally.resets_in_time_wait;
    }
    println!("{opened} connections opened, {lost} lost with their members, {dropped} packets dropped");
    println!("at most {longest} members visited, {time_wait} resets after the end of a connection");
    assert!(opened > 30_000 && lost > 1_000 && dropped > 1_000, "the cases that matter do not happen");
}
