//! A front end behind a router takes its share: packets to it are encapsulated, its answers go to the client directly.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use autocluster_tests::client::{Mailbox, Message, Reader, Sending, Tls};
use autocluster_tests::lab::{Account, Host, Lab, VIP, VIP6, until};
use autocluster_tests::packet::capture::Capture;
use autocluster_tests::packet::frames::{encapsulate, too_big};
use autocluster_tests::packet::puppet::Puppet;
use autocluster_tests::packet::{ENCAPSULATION_PORT, Flags, Packet};

use crate::Test;
use crate::steering_handmade::{STAND_IN, STAND_IN6, Stage, watched};

pub(crate) const TESTS: &[Test] = &[
    ("steering_apart::megabytes_both_ways_beyond_the_router", megabytes_both_ways),
    ("steering_apart::icmp_errors_find_the_connection", icmp_errors),
    ("steering_apart::encapsulation_by_a_stranger_is_dropped", stranger),
];

const FAR: u8 = 3;
const SIZE: usize = 3_000_000;
/// Messages until one goes by the far front end: each does so with a chance of 1/3.
const ATTEMPTS: u32 = 30;
/// A transfer of megabytes takes a tenth of this; a packet that is lost for ever takes longer.
const TRANSFER_LIMIT: Duration = Duration::from_secs(10);
const MTU: usize = 1500;
const ETHERNET: usize = 14;
const SMALL_MTU: u16 = 1280;
/// A front end has none of half of these, which are of one family, with a chance of 1 to 10^10.
const MOST_CONNECTIONS: usize = 120;
const LIMIT: Duration = Duration::from_secs(3);
/// Between two errors of a router.
const SHORT: Duration = Duration::from_millis(500);

/// Sends or reads until the far front end was the one; how long that time took.
fn by_the_far_one(mut work: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<Duration> {
    for _ in 0..ATTEMPTS {
        let start = Instant::now();
        if work()? == format!("fe{FAR}") {
            return Ok(start.elapsed());
        }
    }
    anyhow::bail!("none of {ATTEMPTS} connections went to fe{FAR}")
}

fn megabytes_both_ways(lab: &Lab) -> anyhow::Result<()> {
    let account = Account::local(1, 5);
    let router = Capture::start(lab, "router", "eth0")?;
    watched(lab, |_| {
        for vip in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
            let mut message = Message::with_attachment("far", SIZE);
            let sent = by_the_far_one(|| {
                message = Message::with_attachment("far", SIZE);
                let reply = Sending::to(vip, &account.address).send(lab, &message)?;
                Ok(reply.accepted()?.front_end().to_owned())
            })?;
            let reader = Reader { server: vip, protocol: Mailbox::Imap, tls: Tls::Implicit };
            let read = by_the_far_one(|| reader.expect_by(lab, &account, &message))?;
            eprintln!("  {SIZE} octets by fe{FAR} at {vip}: sent in {sent:.1?}, read in {read:.1?}");
            ensure!(sent < TRANSFER_LIMIT && read < TRANSFER_LIMIT, "something was lost on the way");
        }
        Ok(())
    })?;
    let captured = router.stop()?;
    captured.check()?;
    let (mut encapsulated, mut longest) = (0, 0);
    for (seen, packet) in captured.packets() {
        longest = longest.max(seen.octets.len() - ETHERNET);
        encapsulated += usize::from(inner_to_a_vip(&packet));
    }
    eprintln!("  {encapsulated} packets came to the router encapsulated; the longest had {longest} octets");
    ensure!(encapsulated > SIZE / MTU, "{encapsulated} encapsulated packets cannot have carried it");
    ensure!(longest == MTU, "full packets were to be seen, the longest had {longest} octets");
    Ok(())
}

fn inner_to_a_vip(packet: &Packet) -> bool {
    let inner = packet.ip.as_ref().and_then(|ip| ip.inner());
    inner.is_some_and(|inner| inner.destination == IpAddr::from(VIP) || inner.destination == IpAddr::from(VIP6))
}

/// The path MTU that a host knows for an address, if it learned one.
fn path_mtu(lab: &Lab, host: &str, address: IpAddr) -> anyhow::Result<Option<u64>> {
    let output = lab.exec(host, &["ip", "-json", "route", "get", &address.to_string()])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let routes: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{host}: {text:?}"))?;
    Ok(routes[0]["metrics"][0]["mtu"].as_u64())
}

/// A router tells a server that its packets do not fit. The error names the VIP, so any front end may get it.
fn icmp_errors(lab: &Lab) -> anyhow::Result<()> {
    let router = lab.mac("router")?;
    watched(lab, |stage| {
        let mut learned = BTreeSet::new();
        for _ in 0..MOST_CONNECTIONS {
            let mut puppet = stage.puppet(25)?;
            let mac = puppet.connect(stage.entrance(0))?;
            let owner = if mac == router { FAR } else { stage.front_end(mac)? };
            let (address, host) = (puppet.own.ip(), format!("fe{owner}"));
            if !learned.insert((host.clone(), address)) {
                continue;
            }
            ensure!(path_mtu(lab, &host, address)?.is_none(), "{host} knew the path MTU to {address} before");
            let mut errors = 0;
            // A router complains of each packet that is too long, and the kernel may pass over some of its errors.
            until(&format!("{host} knows the path MTU to {address}"), LIMIT, || {
                errors += 1;
                complain(stage, &puppet, owner).is_ok()
                    && until("it is known", SHORT, || knows(lab, &host, address)).is_ok()
            })?;
            eprintln!("  {host} to {address}: the path MTU fell to {SMALL_MTU} after {errors} errors");
            if learned.len() == 6 {
                return Ok(());
            }
        }
        anyhow::bail!("every front end was to learn it in both families: {learned:?}")
    })
}

fn knows(lab: &Lab, host: &str, address: IpAddr) -> bool {
    path_mtu(lab, host, address).is_ok_and(|mtu| mtu == Some(SMALL_MTU.into()))
}

/// Sends what a router would send if the puppet's greeting had been too long for it; to a front end that does not have
/// the connection.
fn complain(stage: &Stage<'_>, puppet: &Puppet, owner: u8) -> anyhow::Result<()> {
    let mut quoted = puppet.segment(Flags { ack: true, ..Flags::default() }, &[b'x'; 400]);
    (quoted.source, quoted.destination) = (puppet.server, puppet.own);
    // Neither acknowledged yet nor beyond what was sent: the kernel believes nothing else.
    quoted.sequence = puppet.acknowledgment;
    quoted.acknowledgment = puppet.sequence;
    let router: IpAddr = if puppet.own.is_ipv4() { STAND_IN.into() } else { STAND_IN6.into() };
    let error = too_big(router, puppet.server.ip(), SMALL_MTU, &quoted.packet()?)?;
    puppet.send_packet(stage.entrance(owner), None, &error)
}

/// Whoever could encapsulate could feign any source, past every filter outside.
fn stranger(lab: &Lab) -> anyhow::Result<()> {
    watched(lab, |stage| {
        let mut puppet = stage.puppet(25)?;
        let syn = puppet.segment(Flags { syn: true, ..Flags::default() }, &[]).packet()?;
        let spec = lab.spec();
        for number in [1, FAR] {
            let before = lab.counter(number, "stranger")?;
            let host = Host::frontend(number);
            let ends: [(IpAddr, IpAddr); 2] =
                [(STAND_IN.into(), spec.v4(host).into()), (STAND_IN6.into(), spec.v6(host).into())];
            for (source, destination) in ends {
                let packet = encapsulate(source, destination, ENCAPSULATION_PORT, &syn)?;
                let next_hop = if spec.is_far(host) { lab.mac("router")? } else { stage.mac(number) };
                puppet.send_packet(next_hop, None, &packet)?;
            }
            // Only the address family that the pool itself talks by is encapsulation; the other is nobody's port.
            until(&format!("{host} counts a stranger"), LIMIT, || {
                lab.counter(number, "stranger").is_ok_and(|now| now > before)
            })?;
        }
        let answer = puppet.await_where(Duration::from_millis(300), |_| true)?;
        ensure!(answer.is_none(), "a stranger's packet was answered: {answer:?}");
        Ok(())
    })
}
