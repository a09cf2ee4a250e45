//! Packets that no client's kernel would send at that moment, while the table changes: each must find the one front end
//! that knows the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::lab::{Lab, VIP, VIP6, until};
use autocluster_tests::packet::Flags;
use autocluster_tests::packet::capture::Watch;
use autocluster_tests::packet::frames::fragments;
use autocluster_tests::packet::puppet::Puppet;

use crate::Test;
use crate::steering_crowd::await_agreement;
use crate::steering_flood::Routes;

pub(crate) const TESTS: &[Test] = &[
    ("steering_handmade::ack_of_a_handshake_after_a_change", ack_of_a_handshake),
    ("steering_handmade::repeated_syn_after_a_change", repeated_syn),
    ("steering_handmade::time_wait_after_a_change", time_wait),
    ("steering_handmade::tagged_frames_keep_their_tag", tagged_frames),
    ("steering_handmade::fragments_stay_together", fragments_stay_together),
    ("steering_handmade::extension_headers", extension_headers),
];

/// In a lab that has been up for long.
pub(crate) const COOKIE_TESTS: &[Test] = &[
    ("steering_handmade::ack_of_a_kernels_cookie_after_a_change", ack_of_a_kernels_cookie),
    ("steering_handmade::ack_of_a_programs_cookie_after_a_change", ack_of_a_programs_cookie),
];

/// An address that no kernel has.
pub(crate) const STAND_IN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 150);
pub(crate) const STAND_IN6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x150);
/// Addresses beyond every router of the lab.
const ABROAD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const ABROAD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
/// Connections of one test, over both address families: enough that every front end has some.
const PUPPETS: u16 = 30;
/// Within this time a second answer would have come.
const SILENCE: Duration = Duration::from_millis(300);
/// Of a client's FIN: five seconds, in which the members have told each other what they hold, and some.
const FIN_REPETITIONS: u32 = 30;
const REPEAT_EVERY: Duration = Duration::from_millis(200);
const TICK_LIMIT: Duration = Duration::from_secs(3);
const LATELY_LIMIT: Duration = Duration::from_secs(25);
/// A front end that has started believes for two minutes that cookies of its earlier life may be out.
const FORGET_LIMIT: Duration = Duration::from_secs(130);
const TAG: u16 = 42;
const PIECE: usize = 32;

/// No port is used twice: an earlier test's connection may still be known somewhere.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// The lab's front ends, by their hardware addresses.
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    /// Addresses of its puppets.
    clients: [IpAddr; 2],
    macs: BTreeMap<u8, [u8; 6]>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(lab: &'a Lab) -> anyhow::Result<Self> {
        lab.stand_in(STAND_IN.into())?;
        lab.stand_in(STAND_IN6.into())?;
        let macs = lab.started().into_iter().map(|number| Ok((number, lab.mac(&format!("fe{number}"))?)));
        let clients = [STAND_IN.into(), STAND_IN6.into()];
        Ok(Self { lab, clients, macs: macs.collect::<anyhow::Result<_>>()? })
    }

    /// A connection to be, to the VIP of the family whose turn it is.
    pub(crate) fn puppet(&self, port: u16) -> anyhow::Result<Puppet> {
        let number = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let turn = usize::from(number % 2);
        let (own, vip) = (self.clients[turn], [IpAddr::from(VIP), VIP6.into()][turn]);
        Puppet::new(self.lab, SocketAddr::new(own, number), SocketAddr::new(vip, port))
    }

    pub(crate) fn front_end(&self, mac: [u8; 6]) -> anyhow::Result<u8> {
        let found = self.macs.iter().find(|(_, known)| **known == mac);
        found.map(|(number, _)| *number).with_context(|| format!("{mac:02x?} is no front end"))
    }

    pub(crate) fn mac(&self, front_end: u8) -> [u8; 6] {
        self.macs.get(&front_end).copied().unwrap_or_default()
    }

    /// A front end that packets may come in by, and that is not this one: it has to send them on.
    pub(crate) fn entrance(&self, not: u8) -> [u8; 6] {
        self.macs.iter().find(|(number, _)| **number != not).map(|(_, mac)| *mac).unwrap_or_default()
    }

    /// Puppets brought to some state, by the front end that they are with.
    fn brought(
        &self,
        entrance: [u8; 6],
        bring: impl Fn(&mut Puppet, [u8; 6]) -> anyhow::Result<[u8; 6]>,
    ) -> anyhow::Result<Brought> {
        let mut all = Brought::new();
        for _ in 0..PUPPETS {
            let mut puppet = self.puppet(25)?;
            let owner = bring(&mut puppet, entrance)?;
            all.entry(self.front_end(owner)?).or_default().push(puppet);
        }
        ensure!(all.len() > 1, "all with one front end");
        Ok(all)
    }

    /// The front end with the most puppets drains; work goes on with these while the others learn of it, and when they
    /// have.
    fn drained(&self, mut all: Brought, meanwhile: &Work<'_>, afterwards: &Work<'_>) -> anyhow::Result<()> {
        let victim = all.iter().max_by_key(|(_, puppets)| puppets.len()).map(|(number, _)| *number);
        let victim = victim.context("no puppets")?;
        let mut puppets = all.remove(&victim).unwrap_or_default();
        let count = puppets.len();
        self.lab.cli(victim, &["drain"])?;
        let mut every = |work: &Work<'_>| puppets.iter_mut().try_for_each(|puppet| work(self, victim, puppet));
        let outcome = every(meanwhile).and_then(|()| await_agreement(self.lab)).and_then(|()| every(afterwards));
        self.lab.cli(victim, &["undrain"])?;
        await_agreement(self.lab)?;
        eprintln!("  {count} connections of fe{victim}, which drained");
        outcome.with_context(|| format!("while fe{victim} drained"))
    }

    /// Sends a command and expects its answer from this front end.
    fn speaks(&self, puppet: &mut Puppet, with: u8) -> anyhow::Result<()> {
        puppet.ack(self.entrance(with), b"NOOP\r\n")?;
        let speaker = self.front_end(puppet.await_data()?)?;
        ensure!(speaker == with, "{}: fe{speaker} answered, not fe{with}", puppet.own);
        puppet.again(self.entrance(with), &[])
    }
}

type Brought = BTreeMap<u8, Vec<Puppet>>;

/// What is done with a puppet, whose front end drains.
type Work<'a> = dyn Fn(&Stage<'_>, u8, &mut Puppet) -> anyhow::Result<()> + 'a;

fn half_open(puppet: &mut Puppet, entrance: [u8; 6]) -> anyhow::Result<[u8; 6]> {
    puppet.syn(entrance)?;
    puppet.await_syn_ack()
}

fn completes(stage: &Stage<'_>, victim: u8, puppet: &mut Puppet) -> anyhow::Result<()> {
    let entrance = stage.entrance(victim);
    puppet.ack(entrance, &[])?;
    let greeter = stage.front_end(puppet.await_data()?)?;
    ensure!(greeter == victim, "{}: fe{victim} answered the SYN, fe{greeter} greeted", puppet.own);
    puppet.again(entrance, &[])?;
    stage.speaks(puppet, victim)
}

fn goes_on(stage: &Stage<'_>, victim: u8, puppet: &mut Puppet) -> anyhow::Result<()> {
    stage.speaks(puppet, victim)
}

/// SYN, SYN-ACK, the table changes, ACK.
fn ack_of_a_handshake(lab: &Lab) -> anyhow::Result<()> {
    watched(lab, |stage| stage.drained(stage.brought(stage.entrance(0), half_open)?, &completes, &goes_on))
}

/// SYN, SYN-ACK that is lost, the table changes, the same SYN again: a second front end must not answer it too.
fn repeated_syn(lab: &Lab) -> anyhow::Result<()> {
    watched(lab, |stage| {
        let repeats = |stage: &Stage<'_>, victim: u8, puppet: &mut Puppet| {
            let (sequence, acknowledgment) = (puppet.sequence, puppet.acknowledgment);
            puppet.sequence = sequence.wrapping_sub(1);
            puppet.syn(stage.entrance(victim))?;
            let answerer = stage.front_end(puppet.await_syn_ack()?)?;
            ensure!(answerer == victim, "{}: fe{answerer} answered the repeated SYN", puppet.own);
            ensure!(puppet.acknowledgment == acknowledgment, "{}: a second connection began", puppet.own);
            let other = puppet.await_where(SILENCE, |tcp| tcp.flags.syn || tcp.flags.rst)?;
            if let Some(other) = other.filter(|other| other.mac != stage.mac(victim)) {
                anyhow::bail!("{}: a second answer: {other:?}", puppet.own);
            }
            puppet.sequence = sequence;
            completes(stage, victim, puppet)
        };
        stage.drained(stage.brought(stage.entrance(0), half_open)?, &repeats, &goes_on)
    })
}

/// Brings a connection to its end, which the server began.
fn ended(puppet: &mut Puppet, entrance: [u8; 6]) -> anyhow::Result<[u8; 6]> {
    let owner = puppet.connect(entrance)?;
    puppet.ack(entrance, b"QUIT\r\n")?;
    let fin = puppet.await_where(TICK_LIMIT, |tcp| tcp.flags.fin)?.context("the server did not end")?;
    puppet.acknowledgment = fin.tcp.sequence.wrapping_add(u32::try_from(fin.tcp.length)?).wrapping_add(1);
    puppet.fin(entrance)?;
    let next = puppet.sequence.wrapping_add(1);
    let last = puppet.await_where(TICK_LIMIT, |tcp| tcp.acknowledgment == next)?;
    ensure!(last.is_some_and(|last| !last.tcp.flags.rst), "{}: no last ACK: {last:?}", puppet.own);
    Ok(owner)
}

/// Repeats the FIN, as TCP does, until there is an answer. The front end that had the connection acknowledges it; but a
/// member that has a connection in TIME_WAIT is given a packet only if nobody else may have a younger one of the same
/// ports, so the bucket's owner may answer by a reset: the connection has ended on both sides, and nothing is lost. While
/// the members tell each other what they hold, a packet that nobody has a use for is dropped. Silence that lasts would
/// keep the client's socket for minutes.
fn repeats_fin(stage: &Stage<'_>, victim: u8, puppet: &mut Puppet) -> anyhow::Result<()> {
    let next = puppet.sequence.wrapping_add(1);
    for _ in 0..FIN_REPETITIONS {
        puppet.fin(stage.entrance(victim))?;
        let Some(got) = puppet.await_where(REPEAT_EVERY, |tcp| tcp.flags.rst || tcp.acknowledgment == next)? else {
            continue;
        };
        let by = stage.front_end(got.mac)?;
        ensure!(got.tcp.flags.rst != (by == victim), "{}: fe{by} answered: {:?}", puppet.own, got.tcp);
        return Ok(());
    }
    anyhow::bail!("{}: the repeated FIN was never answered", puppet.own)
}

/// The last ACK was lost: the client repeats its FIN. Later it uses the same port again.
fn time_wait(lab: &Lab) -> anyhow::Result<()> {
    watched(lab, |stage| {
        let begins_anew = |stage: &Stage<'_>, victim: u8, puppet: &mut Puppet| {
            let entrance = stage.entrance(victim);
            puppet.sequence = puppet.sequence.wrapping_add(1 << 20);
            puppet.syn(entrance)?;
            let taker = stage.front_end(puppet.await_syn_ack()?)?;
            ensure!(taker != victim, "{}: fe{taker} drains, and took a new connection", puppet.own);
            puppet.ack(entrance, &[])?;
            ensure!(stage.front_end(puppet.await_data()?)? == taker, "{}: greeted by another", puppet.own);
            Ok(())
        };
        stage.drained(stage.brought(stage.entrance(0), ended)?, &repeats_fin, &begins_anew)
    })
}

/// One front end answers by cookies only; its handshakes leave no trace there.
fn cookies(
    lab: &Lab,
    on: impl Fn(u8) -> anyhow::Result<()>,
    off: impl Fn(u8) -> anyhow::Result<()>,
    sent: impl Fn(u8) -> anyhow::Result<u64>,
) -> anyhow::Result<()> {
    const BAKER: u8 = 3;
    // All front ends of a lab have one kernel, and so one secret for cookies: one that looks at all would take another
    // one's for its own.
    until("no other front end awaits cookies", FORGET_LIMIT, || {
        let others = lab.started().into_iter().filter(|number| *number != BAKER);
        others.into_iter().all(|other| is_out(lab, other) == Some(false))
    })?;
    let _routes = Routes::add(lab)?;
    watched(lab, |stage| {
        // From abroad: of a client on the segment whose SYN came by another front end, the program does not know the MAC
        // address, and leaves the answer to the kernel.
        let stage = &Stage { clients: [ABROAD.into(), ABROAD6.into()], macs: stage.macs.clone(), ..*stage };
        on(BAKER)?;
        // Seconds after a change a SYN goes round first, and comes to its owner from another front end: see above.
        until("a SYN is answered by a cookie", LATELY_LIMIT, || {
            let before = sent(BAKER);
            let probe = stage.puppet(25).and_then(|mut probe| half_open(&mut probe, stage.mac(BAKER)));
            probe.is_ok() && before.is_ok_and(|before| sent(BAKER).is_ok_and(|now| now > before))
        })?;
        let before = sent(BAKER)?;
        let outcome = stage.brought(stage.mac(BAKER), half_open).and_then(|mut all| {
            let baked = all.remove(&BAKER).context("fe3 got none")?;
            let count = u64::try_from(baked.len())?;
            // A cookie is counted before it is sent.
            ensure!(sent(BAKER)? >= before + count, "fe3 sent {} cookies for {count} SYNs", sent(BAKER)? - before);
            // The daemon sees by its next look that cookies are out.
            until("cookies are known to be out", TICK_LIMIT, || is_out(lab, BAKER) == Some(true))?;
            stage.drained(Brought::from([(BAKER, baked)]), &completes, &goes_on)
        });
        off(BAKER)?;
        outcome
    })
}

/// Whether a front end believes that its cookies may come back.
fn is_out(lab: &Lab, number: u8) -> Option<bool> {
    lab.cli_json(number, &["cookies", "show"]).ok()?["out"].as_bool()
}

const KERNEL_COOKIES: &str = "net.ipv4.tcp_syncookies";

/// When a front end's kernel makes cookies: "1", when a listener's queue of handshakes is full; "2", always.
fn set_kernel_cookies(lab: &Lab, number: u8, when: &str) -> anyhow::Result<()> {
    let output = lab.exec(&format!("fe{number}"), &["sysctl", "-qw", &format!("{KERNEL_COOKIES}={when}")])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn check_kernel_cookies(lab: &Lab, number: u8, expected: &str) -> anyhow::Result<()> {
    let output = lab.exec(&format!("fe{number}"), &["sysctl", "-n", KERNEL_COOKIES])?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(found == expected, "fe{number}: {KERNEL_COOKIES} is {found:?}, not {expected}");
    Ok(())
}

fn ack_of_a_kernels_cookie(lab: &Lab) -> anyhow::Result<()> {
    let sent = |number: u8| {
        let output = lab.exec(&format!("fe{number}"), &["cat", "/proc/net/netstat"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        crate::steering::snmp(&text, "TcpExt", "SyncookiesSent").context("no counter of cookies")
    };
    cookies(lab, |number| set_kernel_cookies(lab, number, "2"), |number| set_kernel_cookies(lab, number, "1"), sent)
}

/// No queue is full here: the daemon has to tell the kernel to make cookies for the program.
fn ack_of_a_programs_cookie(lab: &Lab) -> anyhow::Result<()> {
    let tell = |number: u8, mode: &str, kernel: &str| {
        lab.cli(number, &["cookies", mode])?;
        check_kernel_cookies(lab, number, kernel)
    };
    cookies(
        lab,
        |number| tell(number, "on", "2"),
        |number| tell(number, "auto", "1"),
        |number| lab.counter(number, "cookie_sent"),
    )
}

/// The lab's kernel knows no VLANs, so nobody answers; the frames are looked at on the switch.
fn tagged_frames(lab: &Lab) -> anyhow::Result<()> {
    let stage = Stage::new(lab)?;
    let watch = Watch::start(lab)?;
    let entrance = stage.entrance(0);
    let mut ports = Vec::new();
    for _ in 0..PUPPETS {
        let puppet = stage.puppet(25)?;
        let syn = puppet.segment(Flags { syn: true, ..Flags::default() }, &[]).packet()?;
        puppet.send_packet(entrance, Some(TAG), &syn)?;
        ports.push(puppet.own.port());
    }
    let captures = watch.finish(lab)?;
    let name = format!("fe{}", stage.front_end(entrance)?);
    // A packet may be sent on twice: to the owner, and back to it when it has asked here.
    let mut steered = BTreeSet::new();
    for (_, packet) in captures[&name].packets().filter(|(seen, _)| !seen.outgoing) {
        let Some(tcp) = packet.tcp().filter(|tcp| ports.contains(&tcp.source)) else { continue };
        ensure!(packet.vlans == [TAG], "port {} lost its tag: {packet:?}", tcp.source);
        let owner = stage.front_end(packet.mac_destination)?;
        ensure!(format!("fe{owner}") != name && packet.mac_source == entrance, "sent to itself: {packet:?}");
        steered.insert(tcp.source);
    }
    let steered = steered.len();
    eprintln!("  {steered} of {} tagged frames were steered, with their tag", ports.len());
    // Four of five belong to others.
    ensure!(steered >= usize::from(PUPPETS / 2), "{name} sent {steered} of {} on", ports.len());
    Ok(())
}

/// The second and third fragment name no ports.
fn fragments_stay_together(lab: &Lab) -> anyhow::Result<()> {
    watched(lab, |stage| {
        for turn in 0..PUPPETS {
            let mut puppet = stage.puppet(25)?;
            let owner = puppet.connect(stage.entrance(0))?;
            let entrance = stage.entrance(stage.front_end(owner)?);
            // TCP's header is in the first piece only; the command takes three.
            let command = format!("NOOP {}\r\n", "x".repeat(2 * PIECE));
            let ack = Flags { ack: true, ..Flags::default() };
            let whole = puppet.segment(ack, command.as_bytes()).packet()?;
            for piece in fragments(&whole, PIECE, u32::from(puppet.own.port()))? {
                puppet.send_packet(entrance, None, &piece)?;
            }
            puppet.sequence = puppet.sequence.wrapping_add(u32::try_from(command.len())?);
            let answer = puppet.await_data().with_context(|| format!("connection {turn}"))?;
            ensure!(answer == owner, "the fragments went to another");
        }
        eprintln!("  {PUPPETS} commands in three fragments each were answered");
        Ok(())
    })
}

/// IPv6 hop-by-hop and destination options stand before TCP's header.
fn extension_headers(lab: &Lab) -> anyhow::Result<()> {
    watched(lab, |stage| {
        let mut owners = BTreeMap::new();
        for _ in 0..PUPPETS {
            let mut puppet = stage.puppet(25)?;
            let mut syn = puppet.segment(Flags { syn: true, ..Flags::default() }, &[]);
            syn.extensions = puppet.own.is_ipv6();
            puppet.send_packet(stage.entrance(0), None, &syn.packet()?)?;
            let owner = puppet.await_syn_ack()?;
            // Without the options it is the same connection.
            puppet.ack(stage.entrance(0), &[])?;
            ensure!(puppet.await_data()? == owner, "{}: greeted by another", puppet.own);
            *owners.entry(stage.front_end(owner)?).or_insert(0) += 1;
        }
        eprintln!("  {PUPPETS} connections, by front end: {owners:?}");
        ensure!(owners.len() > 1, "all went to one front end: {owners:?}");
        Ok(())
    })
}

/// Does something while every frame is looked at.
pub(crate) fn watched(lab: &Lab, work: impl FnOnce(&Stage<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let stage = Stage::new(lab)?;
    let watch = Watch::start(lab)?;
    let outcome = work(&stage);
    let captures = watch.finish(lab)?;
    // Whoever keeps the lab wants to look at it.
    if outcome.is_err() || std::env::var_os("AUTOCLUSTER_LAB_KEEP").is_some() {
        for (name, captured) in &captures {
            captured.write(&lab.layout().dir().join(format!("{name}.pcap")))?;
        }
    }
    let frames: usize = captures.values().map(|captured| captured.frames.len()).sum();
    eprintln!("  {frames} frames seen on {} interfaces, no bad checksum", captures.len());
    outcome
}
