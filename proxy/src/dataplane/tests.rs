//! The packet table: packet in, verdict and packet out, asked of the kernel by `BPF_PROG_TEST_RUN`.

use super::*;
use proxy_common::{
    hash::{hash_v4, hash_v6, v6_words},
    maps::{NO_SLOT, mapped_v4},
};
use proxy_core::steering::Member as PoolMember;
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use std::net::{Ipv4Addr, Ipv6Addr};

const XDP_ABORTED: u32 = 0;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

const KEY: SteeringKey = SteeringKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xcc];
const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const OTHER_VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A BPF file system of the test's own, unmounted when it ends.
struct BpfFs(tempfile::TempDir);

impl BpfFs {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        nix::mount::mount(Some("bpf"), dir.path(), Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        Self(dir)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _unmounted = nix::mount::umount(self.0.path());
    }
}

struct Fixture {
    dataplane: Dataplane,
    plan: Plan,
    bpffs: BpfFs,
}

fn members() -> Vec<PoolMember> {
    let member = |n: u8| PoolMember { name: format!("fe{n}"), mac: [2, 0, 0, 0, 0, n], weight: 100, active: true };
    (1..=3).map(member).collect()
}

/// None, said aloud, where the kernel lets us load nothing.
fn fixture() -> Option<Fixture> {
    if let Err(reason) = probe() {
        println!("skipped: {reason}");
        return None;
    }
    let bpffs = BpfFs::mount();
    let settings = Settings { interface: "test0".into(), mac: MAC, bpffs: bpffs.0.path().into(), key: KEY };
    let mut dataplane = Dataplane::load(bpffs.0.path(), &settings).unwrap();
    let plan = Plan::build(&members(), "fe1").unwrap();
    dataplane.set_vips([(VIP4.into(), true), (OTHER_VIP4.into(), false), (VIP6.into(), true)]).unwrap();
    dataplane.set_services([(VIP4.into(), 25), (OTHER_VIP4.into(), 25), (VIP6.into(), 25)]).unwrap();
    dataplane.apply(&plan).unwrap();
    dataplane.keep_answering(Duration::from_secs(60));
    Some(Fixture { dataplane, plan, bpffs })
}

impl Fixture {
    fn run(&mut self, packet: &[u8]) -> TestVerdict {
        self.dataplane.test_run(packet).unwrap()
    }

    /// Runs a packet and says which one counter rose by one.
    fn counted(&mut self, packet: &[u8]) -> (u32, Counter) {
        let before = self.dataplane.counters().unwrap();
        let action = self.run(packet).action;
        let after = self.dataplane.counters().unwrap();
        let risen: Vec<_> = before.iter().zip(&after).filter(|(b, a)| a.1 > b.1).map(|(_, a)| a.0).collect();
        assert_eq!(risen.len(), 1, "each packet is counted once: {risen:?}");
        (action, risen[0])
    }

    fn owner(&self, hash: u64) -> usize {
        usize::from(self.plan.buckets[(hash >> 48) as usize].first())
    }

    /// A client port whose connection to `VIP4:25` is `slot`'s.
    fn port_of(&self, slot: usize) -> u16 {
        (1024..u16::MAX).find(|port| self.owner(hash4(*port)) == slot).unwrap()
    }
}

fn hash4(port: u16) -> u64 {
    let [a, b] = port.to_be_bytes();
    hash_v4(KEY, CLIENT4.octets(), VIP4.octets(), [a, b, 0, 25])
}

fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&destination[..], &source, &ethertype.to_be_bytes()].concat()
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&source.to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    tcp
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
    ip.extend(source.octets());
    ip.extend(destination.octets());
    ip.extend(payload);
    let length = u16::try_from(ip.len()).unwrap();
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0, 0, 0, next, 255];
    ip[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    ip.extend(source.octets());
    ip.extend(destination.octets());
    ip.extend(payload);
    ip
}

fn packet4(port: u16, service: u16, flags: u8) -> Vec<u8> {
    [ethernet(MAC, CLIENT_MAC, 0x0800), ipv4(CLIENT4, VIP4, &tcp(port, service, flags))].concat()
}

fn packet6(port: u16, service: u16, flags: u8) -> Vec<u8> {
    [ethernet(MAC, CLIENT_MAC, 0x86dd), ipv6(CLIENT6, VIP6, 6, &tcp(port, service, flags))].concat()
}

/// What a packet that is steered to `slot` must come out as.
fn steered(mut packet: Vec<u8>, slot: usize) -> TestVerdict {
    packet[..6].copy_from_slice(&members()[slot].mac);
    packet[6..12].copy_from_slice(&MAC);
    TestVerdict { action: XDP_TX, packet }
}

#[test]
fn kernel_and_daemon_compute_the_same_owner() {
    let Some(mut fixture) = fixture() else { return };
    let mut rng = SmallRng::seed_from_u64(7);
    let mut per_owner = [0; 3];
    for round in 0..4_000 {
        let (port, random) = (rng.random::<u16>(), rng.next_u64().to_be_bytes());
        let ports = [port.to_be_bytes()[0], port.to_be_bytes()[1], 0, 25];
        let (packet, hash) = if round % 2 == 0 {
            let source = Ipv4Addr::new(random[0], random[1], random[2], random[3]);
            let packet = [ethernet(MAC, CLIENT_MAC, 0x0800), ipv4(source, VIP4, &tcp(port, 25, SYN))].concat();
            (packet, hash_v4(KEY, source.octets(), VIP4.octets(), ports))
        } else {
            let mut source = [0x20; 16];
            source[8..].copy_from_slice(&random);
            let packet =
                [ethernet(MAC, CLIENT_MAC, 0x86dd), ipv6(source.into(), VIP6, 6, &tcp(port, 25, SYN))].concat();
            (packet, hash_v6(KEY, v6_words(source), v6_words(VIP6.octets()), ports))
        };
        let owner = fixture.owner(hash);
        per_owner[owner] += 1;
        let expected = if owner == 0 {
            TestVerdict { action: XDP_PASS, packet: packet.clone() }
        } else {
            steered(packet.clone(), owner)
        };
        assert_eq!(fixture.run(&packet), expected);
    }
    assert!(per_owner.iter().all(|n| *n > 1_000), "{per_owner:?}");
}

#[test]
fn own_packets_pass_and_are_counted_by_kind() {
    let Some(mut fixture) = fixture() else { return };
    let own = fixture.port_of(0);
    assert_eq!(fixture.counted(&packet4(own, 25, SYN)), (XDP_PASS, Counter::OwnNew));
    assert_eq!(fixture.counted(&packet4(own, 25, ACK)), (XDP_PASS, Counter::Own));
    assert_eq!(fixture.counted(&packet4(own, 25, SYN | ACK)), (XDP_PASS, Counter::Own));
    let other = fixture.port_of(1);
    assert_eq!(fixture.counted(&packet4(other, 25, SYN)), (XDP_TX, Counter::SteeredNew));
    assert_eq!(fixture.counted(&packet4(other, 25, ACK)), (XDP_TX, Counter::Steered));
}

#[test]
fn the_appliances_own_traffic_passes() {
    let Some(mut fixture) = fixture() else { return };
    let other = fixture.port_of(1);
    let ssh = packet4(other, 22, SYN);
    let mut udp = packet4(other, 25, SYN);
    udp[23] = 17;
    let mut flooded = packet4(other, 25, SYN);
    flooded[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let own_address =
        [ethernet(MAC, CLIENT_MAC, 0x0800), ipv4(CLIENT4, Ipv4Addr::new(10, 77, 0, 11), &tcp(other, 25, SYN))].concat();
    let tiny = [0_u8; 14];
    for packet in [&ssh, &udp, &flooded, &own_address, &packet6(1, 22, SYN), &tiny.to_vec()] {
        let verdict = fixture.run(packet);
        assert_eq!(verdict, TestVerdict { action: XDP_PASS, packet: packet.clone() });
        assert_eq!(fixture.counted(packet).1, Counter::Passed);
    }
}

#[test]
fn a_peers_packet_is_not_sent_on() {
    let Some(mut fixture) = fixture() else { return };
    let other = fixture.port_of(1);
    for (flags, expected) in [(SYN, (XDP_DROP, Counter::PeerDisagreedNew)), (ACK, (XDP_PASS, Counter::PeerDisagreed))] {
        let mut packet = packet4(other, 25, flags);
        packet[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 3]);
        assert_eq!(fixture.counted(&packet), expected);
    }
}

#[test]
fn ip_options_move_the_ports() {
    let Some(mut fixture) = fixture() else { return };
    let other = fixture.port_of(2);
    let mut packet = packet4(other, 25, SYN);
    packet.splice(34..34, [1, 1, 1, 1]);
    packet[14] = 0x46;
    packet[17] += 4;
    assert_eq!(fixture.run(&packet), steered(packet.clone(), 2));
}

#[test]
fn cut_and_lying_packets() {
    let Some(mut fixture) = fixture() else { return };
    let whole4 = packet4(fixture.port_of(1), 25, SYN);
    let whole6 = packet6(4_711, 25, SYN);
    for whole in [&whole4, &whole6] {
        // The kernel's test run wants an Ethernet header at least.
        for length in 15..whole.len() {
            assert_eq!(fixture.counted(&whole[..length]), (XDP_PASS, Counter::Truncated), "{length} octets");
        }
    }
    let with = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    for malformed in [
        with(&whole4, 14, 0x65),   // IP version 6 in an IPv4 frame
        with(&whole4, 46, 4 << 4), // TCP header of 16 octets
        with(&whole4, 17, 30),     // total length inside the TCP header
        with(&whole6, 14, 0x40),
        with(&whole6, 19, 10),
        with(&whole6, 66, 0),
    ] {
        assert_eq!(fixture.counted(&malformed), (XDP_DROP, Counter::Malformed));
    }
    for fragment in [with(&whole4, 20, 0x20), with(&whole4, 21, 1)] {
        assert_eq!(fixture.counted(&fragment), (XDP_PASS, Counter::Fragment));
    }
}

#[test]
fn before_the_first_table_and_without_members_everything_passes() {
    let Some(mut fixture) = fixture() else { return };
    fixture
        .dataplane
        .apply(&Plan { members: vec![], buckets: vec![Bucket::new(NO_SLOT, NO_SLOT); BUCKETS as usize] })
        .unwrap();
    assert_eq!(fixture.counted(&packet4(1, 25, SYN)), (XDP_PASS, Counter::NoOwner));
    fixture.dataplane.apply(&Plan { members: vec![], buckets: vec![Bucket::new(7, 8); BUCKETS as usize] }).unwrap();
    assert_eq!(fixture.counted(&packet4(1, 25, SYN)), (XDP_ABORTED, Counter::NoOwner));
    fixture.dataplane.control.switch(NO_TABLE);
    assert_eq!(fixture.counted(&packet4(1, 25, SYN)), (XDP_PASS, Counter::NoOwner));
}

#[test]
fn a_second_load_takes_the_table_over() {
    let Some(mut fixture) = fixture() else { return };
    let packet = packet4(fixture.port_of(1), 25, SYN);
    let settings = Settings { interface: "test0".into(), mac: MAC, bpffs: fixture.bpffs.0.path().into(), key: KEY };
    fixture.dataplane = Dataplane::load(fixture.bpffs.0.path(), &settings).unwrap();
    assert_eq!(fixture.run(&packet), steered(packet.clone(), 1));
}

fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut arp = ethernet([0xff; 6], CLIENT_MAC, 0x0806);
    arp.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(CLIENT_MAC);
    arp.extend(sender.octets());
    arp.extend([0; 6]);
    arp.extend(target.octets());
    arp
}

#[test]
fn the_owner_answers_arp() {
    let Some(mut fixture) = fixture() else { return };
    let verdict = fixture.run(&arp_request(CLIENT4, VIP4));
    let mut reply = ethernet(CLIENT_MAC, MAC, 0x0806);
    reply.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend(MAC);
    reply.extend(VIP4.octets());
    reply.extend(CLIENT_MAC);
    reply.extend(CLIENT4.octets());
    assert_eq!(verdict, TestVerdict { action: XDP_TX, packet: reply });
    for (target, expected) in [
        (OTHER_VIP4, (XDP_DROP, Counter::NeighbourIgnored)),
        (Ipv4Addr::new(10, 77, 0, 11), (XDP_PASS, Counter::Passed)),
    ] {
        assert_eq!(fixture.counted(&arp_request(CLIENT4, target)), expected);
    }
    assert_eq!(fixture.counted(&arp_request(VIP4, VIP4)), (XDP_DROP, Counter::NeighbourIgnored), "an announcement");
}

#[test]
fn a_dead_daemon_answers_for_nothing() {
    let Some(mut fixture) = fixture() else { return };
    let (arp, own) = (arp_request(CLIENT4, VIP4), fixture.port_of(0));
    let solicitation = solicitation(VIP6, &[]);
    assert_eq!(fixture.counted(&arp), (XDP_TX, Counter::NeighbourAnswered));
    fixture.dataplane.keep_answering(Duration::ZERO);
    for question in [&arp, &solicitation] {
        assert_eq!(fixture.counted(question), (XDP_DROP, Counter::NeighbourIgnored));
    }
    assert_eq!(fixture.counted(&packet4(own, 25, ACK)), (XDP_PASS, Counter::Own), "steering goes on");
}

fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = [
        &source.octets()[..],
        &destination.octets(),
        &u32::try_from(message.len()).unwrap().to_be_bytes(),
        &[0, 0, 0, 58],
    ]
    .concat();
    bytes.extend(message);
    let sum: u32 = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

fn solicitation(target: Ipv6Addr, option: &[u8]) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend(option);
    let multicast: Ipv6Addr = "ff02::1:ff00:100".parse().unwrap();
    let sum = icmpv6_checksum(CLIENT6, multicast, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    [ethernet([0x33, 0x33, 0xff, 0, 1, 0], CLIENT_MAC, 0x86dd), ipv6(CLIENT6, multicast, 58, &message)].concat()
}

#[test]
fn the_owner_answers_neighbour_solicitations() {
    let Some(mut fixture) = fixture() else { return };
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(VIP6.octets());
    message.extend([2, 1]);
    message.extend(MAC);
    let sum = icmpv6_checksum(VIP6, CLIENT6, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let expected = [ethernet(CLIENT_MAC, MAC, 0x86dd), ipv6(VIP6, CLIENT6, 58, &message)].concat();
    let source_mac = [&[1, 1][..], &CLIENT_MAC].concat();
    for option in [&source_mac[..], &[], &[&source_mac[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat()] {
        let verdict = fixture.run(&solicitation(VIP6, option));
        assert_eq!(verdict, TestVerdict { action: XDP_TX, packet: expected.clone() });
    }
    let other = solicitation("fd77::1".parse().unwrap(), &source_mac);
    assert_eq!(fixture.counted(&other), (XDP_PASS, Counter::Passed));
    fixture.dataplane.set_vips([(VIP6.into(), false)]).unwrap();
    assert_eq!(fixture.counted(&solicitation(VIP6, &source_mac)), (XDP_DROP, Counter::NeighbourIgnored));
}

#[test]
fn maps_hold_what_was_declared_last() {
    let Some(mut fixture) = fixture() else { return };
    let own = fixture.port_of(0);
    fixture.dataplane.set_services([(VIP4.into(), 143)]).unwrap();
    assert_eq!(fixture.counted(&packet4(own, 25, SYN)), (XDP_PASS, Counter::Passed));
    assert_eq!(mapped_v4(VIP4.octets()), vip_key(VIP4.into()));
}
