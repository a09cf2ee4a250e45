//! The fuzzer's checks, on inputs of a seed.

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use super::*;
use crate::dataplane::fuzzing::Fuzzer;

/// So many take a second or two.
const FRAMES: usize = 20_000;

#[test]
fn any_frame_against_any_table_is_treated_as_the_reference_says() {
    if let Err(reason) = probe() {
        println!("skipped: {reason}");
        return;
    }
    let mut fuzzer = Fuzzer::load().unwrap();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut frames = 0;
    while frames < FRAMES {
        let mut input = vec![0; rng.random_range(16..160)];
        rng.fill_bytes(&mut input);
        frames += fuzzer.run(&input).unwrap_or_else(|error| panic!("after {frames} frames: {error:#}"));
    }
    // Those that need sockets, a limit, or a driver that refuses.
    let elsewhere = [Counter::Found, Counter::CookieSent, Counter::Limited, Counter::NoRoom];
    let seen: Vec<Counter> = fuzzer.seen().chain(elsewhere).collect();
    let unseen: Vec<_> = Counter::ALL.iter().filter(|counter| !seen.contains(counter)).collect();
    assert!(unseen.is_empty(), "never came about: {unseen:?}");
}
