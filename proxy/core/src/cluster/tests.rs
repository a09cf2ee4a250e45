//! The machines in simulation. Every scenario runs with many seeds.

mod codec;
mod measure;

use std::time::Duration;

use super::*;
use crate::sim::{Happening, Link, Pool};

const SEEDS: u64 = if cfg!(debug_assertions) { 4 } else { 200 };

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn downs(log: &[Happening]) -> usize {
    log.iter().filter(|h| matches!(h.event, Event::MemberDown(_))).count()
}

#[test]
fn a_pool_forms_from_two_seeds() {
    for seed in 0..SEEDS {
        let mut pool = Pool::new(16, Timing::default(), seed);
        assert!(pool.run_until(secs(2), Pool::is_whole).is_some(), "seed {seed}");
    }
}

#[test]
fn a_node_alone_keeps_trying_its_seeds() {
    let mut pool = Pool::new(0, Timing::default(), 1);
    pool.boot(3);
    pool.run(secs(30));
    pool.boot(0);
    assert!(pool.run_until(secs(5), Pool::is_whole).is_some());
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut pool = Pool::new(5, Timing::default(), seed);
        pool.net.set_everywhere(Link::AWFUL);
        pool.run(secs(5));
        pool.crash(2);
        pool.run(secs(5));
        (pool.net.sent(), pool.log)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_restarted_node_replaces_its_former_self() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(5, Timing::default(), seed);
        pool.crash(4);
        pool.boot(4);
        assert!(pool.run_until(Duration::from_millis(500), Pool::is_whole).is_some(), "seed {seed}");
        assert_eq!(downs(&pool.log), 0, "seed {seed}: {:?}", pool.log);
    }
}

#[test]
fn a_node_whose_clock_went_back_replaces_its_former_self() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(4, Timing::default(), seed);
        pool.crash(3);
        pool.boot_as(3, Pool::name(3), 1);
        assert!(pool.run_until(secs(3), Pool::is_whole).is_some(), "seed {seed}");
    }
}

#[test]
fn a_second_node_with_the_same_name_is_reported_and_stays_outside() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(4, Timing::default(), seed);
        pool.boot_as(5, Pool::name(3), 1);
        pool.run(secs(5));
        let conflict = |h: &Happening| h.node == 5 && matches!(h.event, Event::NameConflict(_));
        assert!(pool.log.iter().any(conflict), "seed {seed}: {:?}", pool.log);
        let seen = pool.with(0, |machine, _| machine.members().map(|n| n.address).collect::<Vec<_>>());
        assert!(seen.contains(&Pool::address(3)) && !seen.contains(&Pool::address(5)), "seed {seed}: {seen:?}");
    }
}

#[test]
fn the_later_of_two_nodes_with_one_name_wins_and_the_other_learns_it() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(4, Timing::default(), seed);
        let before = pool.net.sent();
        pool.boot_as(5, Pool::name(3), 1000);
        pool.run(secs(5));
        let conflict = |h: &Happening| h.node == 3 && matches!(h.event, Event::NameConflict(_));
        assert!(pool.log.iter().any(conflict), "seed {seed}: {:?}", pool.log);
        let seen = pool.with(0, |machine, _| machine.members().map(|n| n.address).collect::<Vec<_>>());
        assert!(seen.contains(&Pool::address(5)) && !seen.contains(&Pool::address(3)), "seed {seed}: {seen:?}");
        assert!(pool.net.sent() - before < 5 * 5 * 200, "seed {seed}: no storm: {}", pool.net.sent() - before);
    }
}

#[test]
fn a_change_of_state_or_weight_is_known_within_a_gossip_round() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(5, Timing::default(), seed);
        pool.with(2, |machine, now| machine.set_state(now, NodeState::Draining));
        assert!(pool.run_until(Timing::default().gossip_period, Pool::is_whole).is_some(), "seed {seed}");
        pool.with(2, |machine, now| machine.set_weight(now, 7));
        assert!(pool.run_until(Timing::default().gossip_period, Pool::is_whole).is_some(), "seed {seed}");
        pool.run(secs(3));
        assert_eq!(downs(&pool.log), 0, "seed {seed}: {:?}", pool.log);
    }
}

#[test]
fn a_change_survives_an_awful_network() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(5, Timing::default(), seed);
        pool.net.set_everywhere(Link::AWFUL);
        pool.run(secs(5));
        pool.with(2, |machine, now| machine.set_state(now, NodeState::Draining));
        assert!(pool.run_until(secs(10), Pool::is_whole).is_some(), "seed {seed}");
    }
}

#[test]
fn a_leaving_node_is_gone_at_once() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(5, Timing::default(), seed);
        pool.with(1, |machine, now| machine.leave(now));
        pool.run(Duration::from_millis(100));
        assert_eq!(downs(&pool.log), 4, "seed {seed}");
        pool.crash(1);
        pool.run(secs(5));
        assert!(pool.is_whole() && downs(&pool.log) == 4, "seed {seed}: {:?}", pool.log);
    }
}

#[test]
fn a_cut_pool_heals_by_itself() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(6, Timing::default(), seed);
        let half = |range: std::ops::Range<usize>| range.map(Pool::address).collect::<Vec<_>>();
        pool.net.cut(&half(0..3), &half(3..6));
        pool.run(secs(5));
        let sizes: Vec<usize> = pool.machines().map(|(_, m)| m.members().count()).collect();
        assert_eq!(sizes, [3; 6], "seed {seed}");
        pool.net.mend();
        assert!(pool.run_until(secs(10), Pool::is_whole).is_some(), "seed {seed}");
        pool.run(secs(3));
        assert!(pool.is_whole(), "seed {seed}: stays whole");
    }
}

#[test]
fn two_deaths_at_once_are_as_fast_as_one() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(6, Timing::default(), seed);
        pool.crash(0);
        pool.crash(1);
        assert!(pool.run_until(Duration::from_millis(1500), Pool::is_whole).is_some(), "seed {seed}");
    }
}

#[test]
fn crash_and_restart_over_and_over() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(5, Timing::default(), seed);
        for round in 0..4 {
            let victim = usize::try_from((seed + round) % 5).unwrap();
            pool.crash(victim);
            pool.run(Duration::from_millis(300 * (round + 1)));
            pool.boot(victim);
            assert!(pool.run_until(secs(5), Pool::is_whole).is_some(), "seed {seed} round {round}");
        }
    }
}

fn digest(source: &str, sequence: u64) -> Digest {
    Digest { source: source.to_owned(), version: DigestVersion { epoch: 1, sequence }, payload: vec![1, 2, 3] }
}

#[test]
fn digests_reach_everybody_and_newcomers() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(5, Timing::default(), seed);
        for i in 0..40 {
            pool.with(0, |machine, now| machine.set_digest(now, digest(&format!("be{i}"), 1))).unwrap();
        }
        pool.with(3, |machine, now| machine.set_digest(now, digest("be7", 2))).unwrap();
        let everybody_knows = |pool: &Pool| {
            pool.machines().all(|(_, m)| {
                (0..40).all(|i| m.digest(&format!("be{i}")).is_some_and(|d| i != 7 || d.version.sequence == 2))
            })
        };
        assert!(pool.run_until(secs(1), everybody_knows).is_some(), "seed {seed}");
        pool.boot(5);
        assert!(pool.run_until(secs(2), everybody_knows).is_some(), "seed {seed}: newcomer");
        let told = |h: &Happening| h.node == 5 && matches!(&h.event, Event::Digest(d) if d.source == "be7");
        assert_eq!(pool.log.iter().filter(|h| told(h)).count(), 1, "seed {seed}: told once");
    }
}

#[test]
fn lost_digests_are_repaired() {
    for seed in 0..SEEDS {
        let mut pool = Pool::settled(5, Timing::default(), seed);
        pool.net.cut(&[Pool::address(4)], &(0..4).map(Pool::address).collect::<Vec<_>>());
        pool.with(0, |machine, now| machine.set_digest(now, digest("be1", 1))).unwrap();
        pool.run(secs(20));
        pool.net.mend();
        let known = |pool: &Pool| pool.machines().all(|(_, m)| m.digest("be1").is_some());
        assert!(pool.run_until(secs(20), known).is_some(), "seed {seed}");
    }
}
