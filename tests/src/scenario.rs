//! What the tests assert and the demo shows: one implementation, so that the demo shows what is tested.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::{HeldSessions, Mailbox, Message, Pastime, Reader, Reconnects, Tls, reconnect};
use crate::lab::{Account, Lab, VIP, until_some};
use crate::wire::{Wire, reset_on_close};

/// A slow answer is reported with its time, not as none.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long new connections are tried after a death: long enough to see that the recovery lasts.
const WATCH: Duration = Duration::from_secs(5);

/// Reads mail by IMAP over TLS through the VIP.
#[must_use]
pub fn imap() -> Reader {
    Reader { server: VIP.into(), protocol: Mailbox::Imap, tls: Tls::Implicit }
}

/// Waits for a message that a back end queued, and reads it by IMAP through the VIP; all of it as it is stored. Its
/// `Received` headers tell which way it came.
///
/// # Errors
/// If it does not come within ten seconds, or comes twice or with another body.
pub fn arrival(lab: &Lab, account: &Account, message: &Message) -> anyhow::Result<String> {
    let what = format!("{} has the message", account.address);
    let fetch = || Ok(imap().fetch(lab, account, &message.mark)?.1);
    let (content, _) = until_some(&what, PATIENCE, fetch)?;
    imap().expect(lab, account, message)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// Asks each front end itself until it answers RCPT by this code; how long the slowest took.
///
/// # Errors
/// If one still answers otherwise after ten seconds.
pub fn every_front_end_answers(lab: &Lab, address: &str, code: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    for number in 1..=lab.spec().frontends {
        let host = format!("fe{number}");
        until_some(&format!("{host} answers {address} by {code}"), PATIENCE, || {
            // From a front end itself, the VIP is that front end.
            let mut wire = Wire::smtp(lab, &host, VIP)?;
            wire.command("MAIL FROM:<sender@client.test>", 250)?;
            let reply = wire.ask(&format!("RCPT TO:<{address}>"))?;
            ensure!(reply.starts_with(code), "{reply}");
            Ok(Some(()))
        })?;
    }
    Ok(start.elapsed())
}

/// Opens this many connections to the pool, each from another port; how many each front end's XDP program kept.
///
/// # Errors
/// If one fails or the counters cannot be read.
pub fn spread_connections(lab: &Lab, count: u32) -> anyhow::Result<Vec<u64>> {
    let before = own_new_connections(lab)?;
    lab.in_host("client", || {
        for _ in 0..count {
            let address = SocketAddr::from((VIP, 25));
            let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT).context("failed to connect")?;
            reset_on_close(&stream)?;
        }
        Ok(())
    })?;
    Ok(own_new_connections(lab)?.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).collect())
}

/// Connections that each front end's XDP program has kept so far.
///
/// # Errors
/// If a daemon does not answer.
pub fn own_new_connections(lab: &Lab) -> anyhow::Result<Vec<u64>> {
    (1..=lab.spec().frontends).map(|number| lab.own_new_connections(number)).collect()
}

/// What a death did.
#[derive(Debug)]
pub struct Death {
    /// Sessions that were open on the other front ends.
    pub others: usize,
    /// Of these, how many broke.
    pub broken: usize,
    /// New connections after the death.
    pub new: Reconnects,
}

/// Kills a front end while `count` IMAP sessions are open on all of them, and watches. The front end stays dead.
///
/// # Errors
/// If the sessions could not be opened, or did not spread over the victim and others.
pub fn death_of(lab: &Lab, victim: u8, count: u32) -> anyhow::Result<(Death, Survivors)> {
    let mut sessions = HeldSessions::open(lab, &imap(), &Account::local(1, 1), count, Pastime::Silence)?;
    ensure!(sessions.broken()?.is_empty(), "sessions broke before anything was killed");
    let doomed: HashSet<u64> = lab.client_ports(victim, 993)?.into_iter().collect();
    let others = sessions.ports.iter().filter(|port| !doomed.contains(port)).count();
    ensure!(others > 0 && others < sessions.ports.len(), "{others} of {count} sessions are on other front ends");
    let mut survivors = Survivors { sessions, doomed };
    lab.kill_front_end(victim)?;
    let new = reconnect(lab, VIP.into(), 25, WATCH)?;
    let broken = survivors.broken()?;
    Ok((Death { others, broken, new }, survivors))
}

/// Sessions that a death must not touch.
#[derive(Debug)]
pub struct Survivors {
    sessions: HeldSessions,
    doomed: HashSet<u64>,
}

impl Survivors {
    /// How many of them broke since the last time.
    ///
    /// # Errors
    /// If the client itself ended.
    pub fn broken(&mut self) -> anyhow::Result<usize> {
        Ok(self.sessions.broken()?.into_iter().filter(|port| !self.doomed.contains(port)).count())
    }
}
