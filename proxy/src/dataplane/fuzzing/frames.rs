//! Frames: sound ones of every kind that the program knows, then damaged as the input says; and some that are anything.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    answers::checksum,
    input::Input,
    pool::{self, CLIENT_MAC, FAR4, FAR6, MAC, OTHER_VIP4, OTHER_VIP6, OWN4, OWN6, PORTS, VIP4, VIP6},
};

const CLIENTS4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(10, 77, 0, 2),
    Ipv4Addr::new(192, 0, 2, 33),
    Ipv4Addr::new(203, 0, 113, 9),
    Ipv4Addr::new(198, 51, 100, 7),
    // In the same /24 as one that is denied.
    Ipv4Addr::new(198, 51, 100, 8),
    FAR4,
];
const CLIENTS6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 33),
    Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 1, 0, 0, 0, 9),
    Ipv6Addr::new(0x2001, 0xdb8, 0xbeef, 0, 0, 0, 0, 7),
    Ipv6Addr::new(0x2001, 0xdb8, 0xbeef, 0, 0, 0, 0, 8),
    FAR6,
];
/// Longest frame; the kernel gives the program only the first 3,520 octets of a longer one at once.
const LONGEST: usize = 9_018;
/// The kernel wants a whole Ethernet header.
const SHORTEST: usize = 14;

/// The next frame of an input.
pub(super) fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let mut frame = match input.octet() % 16 {
        0..4 => ethernet_v4(&tcp_v4(input)),
        4..7 => ethernet_v6(&tcp_v6(input)),
        7 => ethernet_v4(&error_v4(input)),
        8 => ethernet_v6(&error_v6(input)),
        9 => arp(input),
        10 => solicitation(input),
        11 => ethernet_v4(&fragment_v4(input)),
        12 => ethernet_v6(&fragment_v6(input)),
        13 => ethernet_v6(&extended_v6(input)),
        14 => ethernet_v4(&others_udp(input)),
        _ => {
            let length = input.below(200);
            input.take(length).to_vec()
        }
    };
    dress(input, &mut frame);
    damage(input, &mut frame);
    frame.resize(frame.len().clamp(SHORTEST, LONGEST), 0);
    frame
}

fn ethernet(ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&MAC[..], &CLIENT_MAC, &ethertype, packet].concat()
}

fn ethernet_v4(packet: &[u8]) -> Vec<u8> {
    ethernet([0x08, 0x00], packet)
}

fn ethernet_v6(packet: &[u8]) -> Vec<u8> {
    ethernet([0x86, 0xdd], packet)
}

/// From outside as often as from another front end.
fn hop_limit(input: &mut Input<'_>) -> u8 {
    match input.octet() {
        octet @ ..128 => octet % 19,
        octet => octet,
    }
}

fn segment(input: &mut Input<'_>) -> Vec<u8> {
    let service = input.choose([PORTS[0], PORTS[0], PORTS[0], PORTS[1], 22]);
    let flags = input.choose([0x02, 0x10, 0x12, 0x18, 0x11, 0x04, 0x42, 0xff]);
    let words = input.choose([5, 5, 5, 6, 15]);
    let mut tcp = [&input.word().to_be_bytes()[..], &service.to_be_bytes(), &[0; 8], &[words << 4, flags]].concat();
    tcp.resize(usize::from(words) * 4, 1);
    let data = match input.octet() {
        octet @ ..200 => usize::from(octet % 64),
        octet => 1_380 + 2 * usize::from(octet - 200),
    };
    tcp.resize(tcp.len() + data, 7);
    tcp
}

fn ipv4(input: &mut Input<'_>, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let options = usize::from(input.choose([0_u8, 0, 0, 0, 1, 10])) * 4;
    let [a, b] = u16::try_from(20 + options + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let words = 0x45 + u8::try_from(options / 4).unwrap_or(0);
    let mut header = vec![words, 0, a, b, 0, input.octet() % 4, 0, 0, hop_limit(input), protocol, 0, 0];
    header.extend([source.octets(), destination.octets()].concat());
    header.resize(20 + options, 1);
    sum_v4(&mut header);
    header.extend(payload);
    header
}

/// Writes the checksum of an IPv4 header at the start of `packet`.
fn sum_v4(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..header]]).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
}

fn ipv6(input: &mut Input<'_>, source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b] = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let header = [0x60, input.octet() & 15, 0, 0, a, b, next, hop_limit(input)];
    [&header[..], &source.octets(), &destination.octets(), payload].concat()
}

fn client_v4(input: &mut Input<'_>) -> (Ipv4Addr, Ipv4Addr) {
    (input.choose(CLIENTS4), input.choose([VIP4, VIP4, VIP4, OTHER_VIP4, OWN4]))
}

fn client_v6(input: &mut Input<'_>) -> (Ipv6Addr, Ipv6Addr) {
    (input.choose(CLIENTS6), input.choose([VIP6, VIP6, VIP6, OTHER_VIP6, OWN6]))
}

fn tcp_v4(input: &mut Input<'_>) -> Vec<u8> {
    let ((client, vip), segment) = (client_v4(input), segment(input));
    ipv4(input, client, vip, 6, &segment)
}

fn tcp_v6(input: &mut Input<'_>) -> Vec<u8> {
    let ((client, vip), segment) = (client_v6(input), segment(input));
    ipv6(input, client, vip, 6, &segment)
}

/// The head of a segment that a service sent.
fn quoted_segment(input: &mut Input<'_>) -> Vec<u8> {
    let service = input.choose([PORTS[0], PORTS[0], PORTS[1], 22]);
    [&service.to_be_bytes()[..], &input.word().to_be_bytes(), &[0; 4]].concat()
}

fn error_v4(input: &mut Input<'_>) -> Vec<u8> {
    let ((client, vip), segment) = (client_v4(input), quoted_segment(input));
    let quoted = ipv4(input, vip, client, 6, &segment);
    let kind = input.choose([3, 11, 12, 8, 5]);
    let message = [&[kind, 4, 0, 0, 0, 0, 5, 0xdc][..], &quoted].concat();
    ipv4(input, Ipv4Addr::new(192, 0, 2, 1), vip, 1, &message)
}

fn error_v6(input: &mut Input<'_>) -> Vec<u8> {
    let ((client, vip), mut segment) = (client_v6(input), quoted_segment(input));
    // As much as fits into 1,280 octets is quoted.
    segment.resize(segment.len() + 4 * usize::from(input.octet()), 7);
    let quoted = ipv6(input, vip, client, 6, &segment);
    let kind = input.choose([1, 2, 3, 4, 127, 128]);
    let message = [&[kind, 0, 0, 0, 0, 0, 5, 0][..], &quoted].concat();
    ipv6(input, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), vip, 58, &message)
}

fn arp(input: &mut Input<'_>) -> Vec<u8> {
    let (sender, target) =
        (input.choose([CLIENTS4[0], VIP4, OTHER_VIP4]), input.choose([VIP4, VIP4, OTHER_VIP4, OWN4]));
    let operation = input.choose([1, 1, 1, 2]);
    let question = [&[0, 1, 8, 0, 6, 4, 0, operation][..], &CLIENT_MAC, &sender.octets(), &[0; 6], &target.octets()];
    [&[0xff; 6][..], &CLIENT_MAC, &[0x08, 0x06], &question.concat()].concat()
}

fn solicitation(input: &mut Input<'_>) -> Vec<u8> {
    let (source, target) = (input.choose([CLIENTS6[0], Ipv6Addr::UNSPECIFIED]), client_v6(input).1);
    let option: &[u8] = input.choose([&[][..], &[1, 1, 2, 0, 0, 0, 0, 0xcc]]);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend(option);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x100);
    let mut packet = ipv6(input, source, group, 58, &message);
    packet[7] = input.choose([255, 255, 255, 64]);
    let to = [0x33, 0x33, 0xff, 0, 1, 0];
    [&input.choose([to, MAC])[..], &CLIENT_MAC, &[0x86, 0xdd], &packet].concat()
}

fn fragment_v4(input: &mut Input<'_>) -> Vec<u8> {
    let mut packet = tcp_v4(input);
    packet[9] = input.choose([6, 6, 6, 6, 1, 17]);
    let [a, b] = input.choose([0x2000_u16, 0x2004, 0x0004, 0x2000, 0x4000, 0x0001]).to_be_bytes();
    packet[6..8].copy_from_slice(&[a, b]);
    sum_v4(&mut packet);
    packet
}

/// A fragment header with one of few identifications, so that fragments find their first one.
fn fragment_header(input: &mut Input<'_>, next: u8) -> Vec<u8> {
    let [a, b] = input.choose([0x0001_u16, 0x0001, 0x0021, 0x0020, 0x0000, 0x0006]).to_be_bytes();
    vec![next, 0, a, b, 0, 0, 0, input.octet() % 4]
}

fn fragment_v6(input: &mut Input<'_>) -> Vec<u8> {
    let ((client, vip), segment) = (client_v6(input), segment(input));
    let next = input.choose([6, 6, 6, 6, 58, 17]);
    let payload = [fragment_header(input, next), segment].concat();
    ipv6(input, client, vip, 44, &payload)
}

fn extended_v6(input: &mut Input<'_>) -> Vec<u8> {
    let ((client, vip), mut payload) = (client_v6(input), segment(input));
    let mut next = input.choose([6, 6, 6, 58]);
    for _header in 0..input.octet() % 9 {
        let kind = input.choose([0, 60, 43, 60, 44]);
        let header = if kind == 44 {
            fragment_header(input, next)
        } else {
            let eights = input.choose([0_u8, 0, 0, 1, 3, 255]);
            [&[next, eights][..], &vec![0; 8 * usize::from(eights) + 6]].concat()
        };
        payload = [header, payload].concat();
        next = kind;
    }
    ipv6(input, client, vip, next, &payload)
}

/// To this machine, and to the port of encapsulated packets.
fn others_udp(input: &mut Input<'_>) -> Vec<u8> {
    let length = input.below(80);
    let content = vec![input.octet(); length];
    let payload = udp(input, &content);
    let source = input.choose(CLIENTS4);
    ipv4(input, source, OWN4, 17, &payload)
}

fn udp(input: &mut Input<'_>, payload: &[u8]) -> Vec<u8> {
    let port = input.choose([pool::OUTER_PORT, pool::OUTER_PORT, pool::OUTER_PORT, 53]).to_be_bytes();
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[0xc1, 0x23][..], &port, &length, &[0, 0], payload].concat()
}

/// By whom the frame comes: from outside, from a member, encapsulated, in a VLAN.
fn dress(input: &mut Input<'_>, frame: &mut Vec<u8>) {
    if frame.len() < SHORTEST {
        return;
    }
    let source = match input.octet() % 16 {
        octet @ 0..3 => pool::near_mac(octet),
        3 => pool::ROUTER_MAC,
        4 => MAC,
        5 => *b"\xff\xff\xff\xff\xff\xff",
        _ => CLIENT_MAC,
    };
    frame[6..12].copy_from_slice(&source);
    if input.one_in(4) {
        let inner = udp(input, &frame[14..]);
        let (outer, ethertype) = if input.one_in(2) {
            let source = input.choose([FAR4, FAR4, FAR4, CLIENTS4[0]]);
            (ipv4(input, source, OWN4, 17, &inner), [0x08, 0x00])
        } else {
            let source = input.choose([FAR6, FAR6, CLIENTS6[0], FAR4.to_ipv6_mapped()]);
            (ipv6(input, source, OWN6, 17, &inner), [0x86, 0xdd])
        };
        *frame = [&MAC[..], &frame[6..12], &ethertype, &outer].concat();
    }
    if input.one_in(6) {
        let tag = [input.choose([[0x81, 0], [0x88, 0xa8], [0x91, 0]]), input.word().to_be_bytes()].concat();
        frame.splice(12..12, tag);
    }
}

/// Single octets, the length, and what stands after the end.
fn damage(input: &mut Input<'_>, frame: &mut Vec<u8>) {
    let edits = if input.one_in(2) { input.octet() % 4 } else { 0 };
    for _edit in 0..edits {
        // Mostly in the headers.
        let within = if input.one_in(4) { frame.len() } else { frame.len().min(120) };
        if within > 0 {
            let (at, octet) = (input.below(within), input.octet());
            frame[at] = if input.one_in(2) { octet } else { frame[at] ^ 1 << (octet % 8) };
        }
    }
    match input.octet() {
        0..200 => {}
        200..225 => frame.truncate(input.below(frame.len() + 1)),
        225..254 => frame.resize(frame.len() + usize::from(input.octet() % 70), 0xee),
        _ => frame.resize(frame.len() + input.below(LONGEST), 0xee),
    }
}
