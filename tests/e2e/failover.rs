//! A front end dies: sessions on the others do not notice, and new connections find the others.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::client::{HeldSessions, Mailbox, Message, Reader, Sending, Tls, reconnect};
use autocluster_tests::lab::{Account, Lab, VIP};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("failover::death_of_a_front_end_that_does_not_own_the_vip", death_of_another),
    ("failover::death_of_the_owner_of_the_vip", death_of_the_owner),
];

const SESSIONS: u32 = 60;
const RECOVERY_LIMIT: Duration = Duration::from_secs(2);
/// Connecting goes on for a while after that, to see that it stays well.
const WATCH: Duration = Duration::from_secs(5);

fn death_of_the_owner(lab: &Lab) -> anyhow::Result<()> {
    let owner = lab.vip_owner()?;
    death_of(lab, owner)
}

fn death_of_another(lab: &Lab) -> anyhow::Result<()> {
    let owner = lab.vip_owner()?;
    death_of(lab, 1 + owner % lab.spec().frontends)
}

fn death_of(lab: &Lab, victim: u8) -> anyhow::Result<()> {
    let reader = Reader { server: VIP.into(), protocol: Mailbox::Imap, tls: Tls::Implicit };
    let mut sessions = HeldSessions::open(lab, &reader, &Account::local(1, 1), SESSIONS)?;
    ensure!(sessions.broken()?.is_empty(), "sessions broke before anything was killed");
    let doomed: HashSet<u64> = lab.client_ports(victim, 993)?.into_iter().collect();
    let others = sessions.ports.iter().filter(|port| !doomed.contains(port)).count();
    ensure!(others > 0 && others < sessions.ports.len(), "{others} of {SESSIONS} sessions are on other front ends");
    lab.kill_front_end(victim)?;
    let outcome = survive(lab, &mut sessions, &doomed);
    // The next test needs all of them, whatever became of this one.
    lab.start_front_end(victim)?;
    lab.await_pool().context("after the restart")?;
    outcome?;
    let broken: Vec<u64> = sessions.broken()?.into_iter().filter(|port| !doomed.contains(port)).collect();
    ensure!(broken.is_empty(), "{} sessions on other front ends broke at the restart", broken.len());
    Ok(())
}

fn survive(lab: &Lab, sessions: &mut HeldSessions, doomed: &HashSet<u64>) -> anyhow::Result<()> {
    let found = reconnect(lab, VIP.into(), 25, WATCH)?;
    let wrongly = |broken: Vec<u64>| broken.into_iter().filter(|port| !doomed.contains(port)).count();
    let broken = wrongly(sessions.broken()?);
    ensure!(broken == 0, "{broken} sessions on other front ends broke");
    ensure!(found.recovered < RECOVERY_LIMIT, "new connections failed for {:?} ({found:?})", found.recovered);
    for backend in 1..=lab.spec().backends {
        let account = Account::local(backend, 13);
        let message = Message::plain("one less", "still delivered\r\n");
        Sending::to(VIP, &account.address).send(lab, &message)?.accepted()?;
        let reader = Reader { server: VIP.into(), protocol: Mailbox::Imap, tls: Tls::Implicit };
        reader.expect(lab, &account, &message)?;
    }
    Ok(())
}
