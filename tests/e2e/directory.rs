//! A user added or removed on a back end is known to every front end within a second.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use autocluster_tests::lab::{Lab, VIP, until_some};
use autocluster_tests::wire::Wire;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("directory::new_user_within_a_second_20_times", new_user_within_a_second_20_times),
    ("directory::removed_user_within_a_second", removed_user_within_a_second),
];

const LIMIT: Duration = Duration::from_secs(1);
/// A slow answer is reported with its time, not as none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks each front end itself until it answers RCPT by this code; the longest time.
pub(crate) fn every_front_end_answers(lab: &Lab, address: &str, code: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    for number in 1..=lab.spec().frontends {
        let host = format!("fe{number}");
        until_some(&format!("{host} answers {address} by {code}"), PATIENCE, || {
            let mut wire = Wire::smtp(lab, &host, VIP)?;
            wire.command("MAIL FROM:<sender@client.test>", 250)?;
            let reply = wire.ask(&format!("RCPT TO:<{address}>"))?;
            ensure!(reply.starts_with(code), "{reply}");
            Ok(Some(()))
        })?;
    }
    Ok(start.elapsed())
}

fn new_user_within_a_second_20_times(lab: &Lab) -> anyhow::Result<()> {
    for round in 1..=20 {
        let backend = 1 + round % lab.spec().backends;
        let address = format!("new{round}@be{backend}.test");
        every_front_end_answers(lab, &address, "550 5.1.1").context("before it is added")?;
        lab.add_user(backend, &address, "secret")?;
        let took = every_front_end_answers(lab, &address, "250")?;
        ensure!(took < LIMIT, "{address}: {took:?}");
    }
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
