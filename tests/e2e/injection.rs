//! What was sent in the clear behind STARTTLS is thrown away: a man in the middle cannot put commands into the
//! encrypted session (CVE-2011-0411 and its kin).

use anyhow::ensure;
use autocluster_tests::client::tls_injection;
use autocluster_tests::lab::{Lab, VIP};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("injection::smtp", smtp), ("injection::imap", imap), ("injection::pop3", pop3)];

/// `before` are commands that STARTTLS needs; `upgrade` and the injected command go out in one write; after the
/// handshake nothing may come before the answer to `after`.
fn injected(lab: &Lab, port: u16, before: &str, upgrade: &str, after: &str, expected: &str) -> anyhow::Result<()> {
    let (unasked, answer) = tls_injection(lab, VIP.into(), port, [before, upgrade, after])?;
    ensure!(unasked.is_empty(), "the injected command was answered: {unasked:?}");
    ensure!(answer.starts_with(expected), "expected {expected:?}, got {answer:?}");
    Ok(())
}

fn smtp(lab: &Lab) -> anyhow::Result<()> {
    injected(lab, 25, "EHLO client.test\r\n", "STARTTLS\r\nEHLO injected.test\r\n", "NOOP\r\n", "250 ")?;
    // The session begins anew: what was said before the handshake is forgotten (RFC 3207 section 4.2).
    let mail = "MAIL FROM:<a@client.test>\r\n";
    injected(lab, 25, "EHLO client.test\r\n", &format!("STARTTLS\r\n{mail}"), mail, "503 ")
}

fn imap(lab: &Lab) -> anyhow::Result<()> {
    injected(lab, 143, "", "a STARTTLS\r\nb NOOP\r\n", "c NOOP\r\n", "c OK")
}

fn pop3(lab: &Lab) -> anyhow::Result<()> {
    injected(lab, 110, "", "STLS\r\nCAPA\r\n", "NOOP\r\n", "+OK")
}
