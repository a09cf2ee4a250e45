//! A front end dies: sessions on the others do not notice, and new connections find the others.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::client::{Message, Sending, reconnect};
use autocluster_tests::lab::{Account, Lab, VIP, until};
use autocluster_tests::scenario::{Death, death_of, imap};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("failover::death_of_a_front_end_that_does_not_own_the_vip", death_of_another),
    ("failover::death_of_the_owner_of_the_vip", death_of_the_owner),
    ("failover::the_owner_of_the_vip_leaves", the_owner_leaves),
];

const SESSIONS: u32 = 60;
/// The daemon's grace for its own sessions, and some.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const RECOVERY_LIMIT: Duration = Duration::from_secs(2);

fn death_of_the_owner(lab: &Lab) -> anyhow::Result<()> {
    let owner = lab.vip_owner()?;
    die_and_return(lab, owner)
}

fn death_of_another(lab: &Lab) -> anyhow::Result<()> {
    let owner = lab.vip_owner()?;
    die_and_return(lab, 1 + owner % lab.spec().frontends)
}

/// Stopped by its operator, it gives its VIP up at once; its program, still attached, does not answer for it.
fn the_owner_leaves(lab: &Lab) -> anyhow::Result<()> {
    let owner = lab.vip_owner()?;
    let host = format!("fe{owner}");
    let pid = lab.pid(&host, "autocluster")?;
    lab.exec(&host, &["kill", "-TERM", &pid.to_string()])?;
    // So that the client has to ask who has the VIP while the old owner is still going.
    lab.exec("client", &["ip", "neigh", "flush", "to", &VIP.to_string()])?;
    let new = reconnect(lab, VIP.into(), 25, RECOVERY_LIMIT)?;
    eprintln!("  {} of {} new connections failed; all work after {:?}", new.failures, new.attempts, new.recovered);
    until("the daemon ends", STOP_LIMIT, || !Path::new(&format!("/proc/{pid}")).exists())?;
    lab.exec("client", &["ip", "neigh", "flush", "to", &VIP.to_string()])?;
    let outcome = mail_goes_on(lab);
    lab.start_front_end(owner)?;
    lab.await_pool().context("after the restart")?;
    outcome?;
    ensure!(new.recovered < Duration::from_secs(1), "new connections failed for too long: {new:?}");
    Ok(())
}

fn die_and_return(lab: &Lab, victim: u8) -> anyhow::Result<()> {
    let outcome = death_of(lab, victim, SESSIONS).and_then(|(death, survivors)| {
        judge(&death)?;
        mail_goes_on(lab)?;
        Ok(survivors)
    });
    // The next test needs all of them, whatever became of this one.
    if lab.pid(&format!("fe{victim}"), "autocluster").is_err() {
        lab.start_front_end(victim)?;
    }
    let restarted = lab.await_pool().context("after the restart");
    let mut survivors = outcome?;
    restarted?;
    let broken = survivors.broken()?;
    ensure!(broken == 0, "{broken} sessions on other front ends broke at the restart");
    Ok(())
}

fn judge(death: &Death) -> anyhow::Result<()> {
    eprintln!(
        "  {} of {} sessions on the others broke; new connections after {:?}",
        death.broken, death.others, death.new.recovered
    );
    ensure!(death.broken == 0, "{} of {} sessions on other front ends broke", death.broken, death.others);
    ensure!(death.new.recovered < RECOVERY_LIMIT, "new connections failed for too long: {:?}", death.new);
    Ok(())
}

fn mail_goes_on(lab: &Lab) -> anyhow::Result<()> {
    for backend in 1..=lab.spec().backends {
        let account = Account::local(backend, 13);
        let message = Message::plain("one less", "still delivered\r\n");
        Sending::to(VIP, &account.address).send(lab, &message)?.accepted()?;
        imap().expect(lab, &account, &message)?;
    }
    Ok(())
}
