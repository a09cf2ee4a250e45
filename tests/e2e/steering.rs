//! Connections are shared over the front ends by the XDP program, and no packet is damaged.

use anyhow::{Context, ensure};
use autocluster_tests::lab::{Host, Lab};
use autocluster_tests::scenario::spread_connections;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("steering::ten_thousand_connections", ten_thousand_connections)];
pub(crate) const CLOSING_TESTS: &[Test] = &[("steering::no_bad_checksum_anywhere", no_bad_checksum_anywhere)];
/// The same for the other labs.
pub(crate) const CLOSING_TESTS_OF_LARGE: &[Test] =
    &[("steering_crowd::no_bad_checksum_anywhere", no_bad_checksum_anywhere)];
pub(crate) const CLOSING_TESTS_OF_APART: &[Test] =
    &[("steering_apart::no_bad_checksum_anywhere", no_bad_checksum_anywhere)];

const CONNECTIONS: u32 = 10_000;
/// SYNs that may be repeated.
const MAX_REPEATED: u64 = 20;
/// Of a front end's equal share.
const TOLERANCE: f64 = 0.05;

fn ten_thousand_connections(lab: &Lab) -> anyhow::Result<()> {
    let taken = spread_connections(lab, CONNECTIONS)?;
    // A SYN that a busy machine lost, or whose answer it lost, is repeated, and counted again.
    let counted = taken.iter().sum::<u64>();
    let repeated = counted.checked_sub(u64::from(CONNECTIONS)).with_context(|| format!("only {taken:?}"))?;
    ensure!(repeated <= MAX_REPEATED, "{taken:?} of {CONNECTIONS}: {repeated} SYNs were repeated");
    let share = f64::from(CONNECTIONS) / f64::from(lab.spec().frontends);
    eprintln!("  {CONNECTIONS} connections, by front end: {taken:?}");
    for count in &taken {
        let deviation = (f64::from(u32::try_from(*count)?) - share).abs() / share;
        ensure!(deviation <= TOLERANCE, "{taken:?}: more than {TOLERANCE} off the share of {share:.0}");
    }
    Ok(())
}

/// The value of one counter of /proc/net/snmp or /proc/net/netstat.
pub(crate) fn snmp(text: &str, protocol: &str, counter: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
    let column = lines.next()?.split(' ').position(|name| name == counter)?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

fn no_bad_checksum_anywhere(lab: &Lab) -> anyhow::Result<()> {
    // The router receives nothing itself.
    for status in lab.hosts().into_iter().filter(|status| status.host != Host::ROUTER) {
        let host = status.host.to_string();
        let text = String::from_utf8(lab.exec(&host, &["cat", "/proc/net/snmp"])?.stdout)?;
        for protocol in ["Tcp", "Udp"] {
            let bad = snmp(&text, protocol, "InCsumErrors").context("no counter of bad checksums")?;
            ensure!(bad == 0, "{host} received {bad} {protocol} packets with a bad checksum");
        }
        let received = snmp(&text, "Tcp", "InSegs").unwrap_or_default();
        ensure!(received > 0, "{host} received nothing, so its counters prove nothing");
    }
    Ok(())
}
