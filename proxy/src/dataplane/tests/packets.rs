//! Packets, built octet by octet so that the tests share nothing with the program.

use super::*;

pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;
/// Hop limit of packets from outside.
pub(super) const TTL: u8 = 57;

pub(super) fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&destination[..], &source, &ethertype.to_be_bytes()].concat()
}

pub(super) fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&source.to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    tcp
}

/// One's-complement sum (RFC 1071).
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let word = |w: &[u8]| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

pub(super) fn ipv4_of(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, TTL, protocol, 0, 0];
    ip.extend(source.octets());
    ip.extend(destination.octets());
    let length = u16::try_from(ip.len() + payload.len()).unwrap();
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(payload);
    ip
}

pub(super) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0, 0, 0, next, hop_limit];
    ip[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    ip.extend(source.octets());
    ip.extend(destination.octets());
    ip.extend(payload);
    ip
}

/// A TCP packet from the client to a service of `VIP4`.
pub(super) fn packet4(port: u16, service: u16, flags: u8) -> Vec<u8> {
    frame4(&ipv4_of(CLIENT4, VIP4, 6, &tcp(port, service, flags)))
}

pub(super) fn packet6(port: u16, service: u16, flags: u8) -> Vec<u8> {
    frame6(&ipv6(CLIENT6, VIP6, 6, TTL, &tcp(port, service, flags)))
}

pub(super) fn frame4(ip: &[u8]) -> Vec<u8> {
    [&ethernet(MAC, CLIENT_MAC, 0x0800)[..], ip].concat()
}

pub(super) fn frame6(ip: &[u8]) -> Vec<u8> {
    [&ethernet(MAC, CLIENT_MAC, 0x86dd)[..], ip].concat()
}

/// The frame with a VLAN tag.
pub(super) fn tagged(frame: &[u8], ethertype: u16, id: u16) -> Vec<u8> {
    [&frame[..12], &ethertype.to_be_bytes(), &id.to_be_bytes(), &frame[12..]].concat()
}

/// As sent by the member at `slot` on the same segment.
pub(super) fn from_member(frame: &[u8], slot: u8, hop_limit: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[6..12].copy_from_slice(&near_mac(slot));
    set_hop_limit(&mut frame, hop_limit);
    frame
}

/// Changes the hop limit, and an IPv4 header's checksum with it. The frame may be tagged.
pub(super) fn set_hop_limit(frame: &mut [u8], hop_limit: u8) {
    let l3 = l3(frame);
    if frame[l3] >> 4 == 6 {
        frame[l3 + 7] = hop_limit;
        return;
    }
    frame[l3 + 8] = hop_limit;
    frame[l3 + 10..l3 + 12].fill(0);
    let header = l3..l3 + usize::from(frame[l3] & 0xf) * 4;
    let sum = checksum(&frame[header]);
    frame[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
}

fn l3(frame: &[u8]) -> usize {
    if frame[12..14] == [0x81, 0] || frame[12..14] == [0x88, 0xa8] { 18 } else { 14 }
}

/// The checksum of TCP or ICMPv6 with the pseudo-header.
pub(super) fn transport_checksum(source: &[u8], destination: &[u8], protocol: u8, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    checksum(&[source, destination, &length, &[0, 0, 0, protocol], message].concat())
}
