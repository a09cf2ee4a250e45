//! Peers that send without end or without sense cost bounded memory and disturb nobody.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::lab::{Lab, VIP};
use autocluster_tests::wire::Wire;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("abuse::endless_line", endless_line),
    ("abuse::endless_message", endless_message),
    ("abuse::literal_of_4_gigabytes", literal_of_4_gigabytes),
    ("abuse::garbage_on_every_port", garbage_on_every_port),
];

const GIGABYTE: usize = 1 << 30;
const PIECE: usize = 1 << 16;
/// What one abusive connection may cost a front end, in kB.
const MEMORY_LIMIT_KB: u64 = 32 * 1024;
const PORTS: [u16; 5] = [25, 143, 993, 110, 995];

fn resident_kb(lab: &Lab) -> anyhow::Result<Vec<u64>> {
    let of = |number: u8| {
        let pid = lab.pid(&format!("fe{number}"), "autocluster")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    (1..=lab.spec().frontends).map(of).collect()
}

/// Runs an attack while honest sessions are open on every front end.
fn withstand(lab: &Lab, attack: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut honest = (1..=lab.spec().frontends)
        .map(|number| Wire::smtp(lab, &format!("fe{number}"), VIP))
        .collect::<anyhow::Result<Vec<Wire>>>()?;
    let before = resident_kb(lab)?;
    attack()?;
    let after = resident_kb(lab)?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(after.saturating_sub(*before) < MEMORY_LIMIT_KB, "resident memory grew from {before} to {after} kB");
    }
    for wire in &mut honest {
        wire.command("NOOP", 250).context("an honest session was disturbed")?;
    }
    Ok(())
}

/// Sends until the other side closes; how much it took.
fn flood(wire: &mut Wire, piece: &[u8], total: usize) -> usize {
    let mut sent = 0;
    while sent < total && wire.send(piece).is_ok() {
        sent += piece.len();
    }
    sent
}

fn endless_line(lab: &Lab) -> anyhow::Result<()> {
    for port in [25, 143, 110] {
        withstand(lab, || {
            let mut wire = Wire::open(lab, "client", VIP, port)?;
            let sent = flood(&mut wire, &[b'x'; PIECE], GIGABYTE);
            ensure!(sent < GIGABYTE, "port {port} took a line of {sent} octets");
            Ok(())
        })?;
    }
    Ok(())
}

fn endless_message(lab: &Lab) -> anyhow::Result<()> {
    withstand(lab, || {
        let mut wire = Wire::smtp(lab, "client", VIP)?;
        wire.command("MAIL FROM:<sender@client.test>", 250)?;
        wire.command("RCPT TO:<user12@be1.test>", 250)?;
        wire.command("DATA", 354)?;
        let line = "x".repeat(998) + "\r\n";
        let piece = line.repeat(64);
        let sent = flood(&mut wire, piece.as_bytes(), GIGABYTE);
        ensure!(sent < GIGABYTE, "a message of {sent} octets was taken");
        Ok(())
    })
}

fn literal_of_4_gigabytes(lab: &Lab) -> anyhow::Result<()> {
    withstand(lab, || {
        for literal in ["a LOGIN {4294967296}\r\n", "a LOGIN {4294967295+}\r\n", "a LOGIN {99999999999999999999}\r\n"] {
            let mut wire = Wire::open(lab, "client", VIP, 143)?;
            wire.send(literal.as_bytes())?;
            let sent = flood(&mut wire, &[b'x'; PIECE], GIGABYTE);
            ensure!(sent < GIGABYTE, "{literal:?}: {sent} octets were taken");
        }
        Ok(())
    })
}

fn garbage_on_every_port(lab: &Lab) -> anyhow::Result<()> {
    // A fixed sequence: the same garbage in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let garbage: Vec<u8> = (0..PIECE)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    withstand(lab, || {
        for port in PORTS {
            for start in 0..20 {
                let mut wire = Wire::connect(lab, "client", VIP, port)?;
                flood(&mut wire, &garbage[start * 100..], PIECE);
                // Whatever it says, it must not hang: closed, or still there and silent.
                wire.unasked(Duration::from_millis(50))?;
            }
        }
        Ok(())
    })
}
