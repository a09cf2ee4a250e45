//! A user added or removed on a back end is known to every front end within a second.

use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::lab::Lab;
use autocluster_tests::scenario::every_front_end_answers;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("directory::new_user_within_a_second_20_times", new_user_within_a_second_20_times),
    ("directory::removed_user_within_a_second", removed_user_within_a_second),
];

const LIMIT: Duration = Duration::from_secs(1);
fn new_user_within_a_second_20_times(lab: &Lab) -> anyhow::Result<()> {
    let mut slowest = Duration::ZERO;
    for round in 1..=20 {
        let backend = 1 + round % lab.spec().backends;
        let address = format!("new{round}@be{backend}.test");
        every_front_end_answers(lab, &address, "550 5.1.1").context("before it is added")?;
        lab.add_user(backend, &address, "secret")?;
        let took = every_front_end_answers(lab, &address, "250")?;
        ensure!(took < LIMIT, "{address}: {took:?}");
        slowest = slowest.max(took);
    }
    eprintln!("  20 new users, known to every front end: the slowest after {slowest:?}");
    Ok(())
}

fn removed_user_within_a_second(lab: &Lab) -> anyhow::Result<()> {
    for round in 1..=5 {
        let address = format!("new{round}@be{}.test", 1 + round % lab.spec().backends);
        lab.remove_user(1 + round % lab.spec().backends, &address)?;
        let took = every_front_end_answers(lab, &address, "550 5.1.1")?;
        ensure!(took < LIMIT, "{address}: {took:?}");
    }
    Ok(())
}
