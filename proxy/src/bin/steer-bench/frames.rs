//! The frames that the prologues make flows of, and where their flows come from.

use std::net::{Ipv4Addr, Ipv6Addr};

use proxy_common::bench::{ETHERNET, OUTER, WORDS, WORDS_ENCAPSULATED, Workload};

/// This machine's MAC address.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The virtual addresses and the one port that is served on them.
pub(crate) const VIP_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
pub(crate) const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
pub(crate) const SERVICE: u16 = 25;
/// Addresses of this machine that are no VIPs.
const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11);
/// This machine and a peer of it, as they encapsulate to each other.
pub(crate) const OUTER_OWN: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
pub(crate) const OUTER_PEER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
pub(crate) const ENCAPSULATION_PORT: u16 = 6_080;

/// Where the clients with sockets are: each has an address of its own, and the same port.
pub(crate) const SOCKETS_V4: u32 = u32::from_be_bytes([10, 200, 0, 0]);
pub(crate) const SOCKETS_V6: u64 = 0xfd00_0200_0000_0000;
pub(crate) const SOCKETS_PORT: u16 = 40_000;

/// The denied prefixes: 2^[`DENIED_BITS`] of them, evenly over the upper half of the IPv4 addresses.
pub(crate) const DENIED_BITS: u32 = 17;
const DENIED_V4: u32 = 1 << 31;
const DENIED_STRIDE: u32 = 31 - DENIED_BITS;
/// The same for IPv6, in the upper half of the address.
const CLIENTS_V6: u64 = 0x2a00_0000_0000_0000;
const DENIED_V6: u64 = 0x2b00_0000_0000_0000;
/// IPv6 hosts stand so high in the upper half: in the bits of a site's prefix, where real clients differ.
const SITE: u64 = 16;

/// 2^64 divided by the golden ratio: its multiples are spread evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    const fn header(self) -> usize {
        match self {
            Self::V4 => IPV4,
            Self::V6 => IPV6,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Established,
    Syn,
}

/// Where the flows' source addresses and ports come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sources {
    /// From all over the Internet, none of them denied, any port.
    Anywhere,
    /// Each in a denied prefix.
    Denied,
    /// Those that have sockets here.
    Connected,
    /// Beside those that have sockets here.
    Unconnected,
}

/// What a prologue is to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frames {
    pub(crate) family: Family,
    pub(crate) kind: Kind,
    pub(crate) sources: Sources,
    pub(crate) to_vip: bool,
    pub(crate) encapsulated: bool,
    /// What is measured moves the frame's end, not its beginning.
    pub(crate) moves_end: bool,
}

impl Frames {
    pub(crate) fn workload(self, flows: u64) -> Workload {
        let frame = self.frame();
        let inner = if self.encapsulated { OUTER } else { 0 } + ETHERNET;
        let v4 = self.family == Family::V4;
        let header_sum = if v4 { sum(&frame[inner..inner + IPV4]) } else { 0 };
        let mut workload = self.flows(flows);
        workload.header_sum = header_sum;
        workload.moves_end = u64::from(self.moves_end);
        for (word, octets) in workload.frame.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(octets.try_into().unwrap_or_default());
        }
        workload
    }

    fn flows(self, flows: u64) -> Workload {
        let v4 = self.family == Family::V4;
        let left = if v4 { 0 } else { SITE };
        let none = Workload {
            count: 0,
            flow_mask: flows - 1,
            multiplier: GOLDEN,
            host_shift: 0,
            host_mask: 0,
            host_left: left,
            port_shift: 16,
            port_mask: 0x7fff,
            address: 0,
            port: 1_024,
            header_sum: 0,
            moves_end: 0,
            frame: [0; WORDS_ENCAPSULATED],
        };
        match self.sources {
            Sources::Anywhere => {
                Workload { host_shift: 33, host_mask: 0x7fff_ffff, address: if v4 { 0 } else { CLIENTS_V6 }, ..none }
            }
            Sources::Denied => Workload {
                host_shift: u64::from(64 - DENIED_BITS),
                host_mask: (1 << DENIED_BITS) - 1,
                host_left: left + u64::from(DENIED_STRIDE),
                address: if v4 { u64::from(DENIED_V4) } else { DENIED_V6 },
                ..none
            },
            Sources::Connected | Sources::Unconnected => Workload {
                multiplier: 1,
                host_mask: 0xffff_ffff,
                host_left: 0,
                port_mask: 0,
                address: if v4 { u64::from(SOCKETS_V4) } else { SOCKETS_V6 },
                port: u64::from(SOCKETS_PORT) + u64::from(self.sources == Sources::Unconnected),
                ..none
            },
        }
    }

    fn frame(self) -> Vec<u8> {
        let mut frame = vec![0; 8 * if self.encapsulated { WORDS_ENCAPSULATED } else { WORDS }];
        let ip = if self.encapsulated { OUTER } else { 0 } + ETHERNET;
        frame[..6].copy_from_slice(&MAC);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0xcc]);
        if self.encapsulated {
            frame[12..14].copy_from_slice(&[0x08, 0]);
            outer(&mut frame[ETHERNET..]);
        } else {
            frame[12..14].copy_from_slice(if self.family == Family::V4 { &[0x08, 0] } else { &[0x86, 0xdd] });
        }
        self.ip(&mut frame[ip..]);
        tcp(&mut frame[ip + self.family.header()..], self.kind);
        frame
    }

    /// From an address that the prologue writes. A packet that came from a peer has a lowered hop limit.
    fn ip(self, packet: &mut [u8]) {
        let hop_limit = if self.encapsulated { proxy_common::steer::HOPS } else { 64 };
        let (total, payload) = (length(packet.len()), length(packet.len().saturating_sub(IPV6)));
        match self.family {
            Family::V4 => {
                packet[..2].copy_from_slice(&[0x45, 0]);
                packet[2..4].copy_from_slice(&total);
                packet[6] = 0x40;
                packet[8..10].copy_from_slice(&[hop_limit, TCP]);
                packet[16..20].copy_from_slice(&if self.to_vip { VIP_V4 } else { OWN_V4 }.octets());
            }
            Family::V6 => {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&payload);
                packet[6..8].copy_from_slice(&[TCP, hop_limit]);
                packet[23] = 1;
                packet[24..40].copy_from_slice(&if self.to_vip { VIP_V6 } else { OWN_V6 }.octets());
            }
        }
    }
}

/// The prefix number `k` of those that [`Sources::Denied`] lie in.
pub(crate) fn denied_v4(k: u32) -> Ipv4Addr {
    Ipv4Addr::from(DENIED_V4 | (k << DENIED_STRIDE))
}

/// As [`denied_v4`]; a /48.
pub(crate) fn denied_v6(k: u32) -> Ipv6Addr {
    let upper = DENIED_V6 | (u64::from(k) << (u64::from(DENIED_STRIDE) + SITE));
    Ipv6Addr::from(u128::from(upper) << 64)
}

/// A client that has a socket here.
pub(crate) fn connected_v4(k: u32) -> Ipv4Addr {
    Ipv4Addr::from(SOCKETS_V4 | k)
}

/// As [`connected_v4`].
pub(crate) fn connected_v6(k: u32) -> Ipv6Addr {
    Ipv6Addr::from((u128::from(SOCKETS_V6 | u64::from(k)) << 64) | 1)
}

fn tcp(segment: &mut [u8], kind: Kind) {
    segment[2..4].copy_from_slice(&SERVICE.to_be_bytes());
    segment[4..12].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    segment[12] = 5 << 4;
    segment[13] = match kind {
        Kind::Established => 0x10,
        Kind::Syn => 0x02,
    };
    segment[14..16].copy_from_slice(&[0xff, 0xff]);
}

/// IPv4 and UDP, from the peer to this machine.
fn outer(packet: &mut [u8]) {
    let (total, datagram) = (length(packet.len()), length(packet.len() - IPV4));
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&total);
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, UDP]);
    packet[12..16].copy_from_slice(&OUTER_PEER.octets());
    packet[16..20].copy_from_slice(&OUTER_OWN.octets());
    let checksum = !fold(sum(&packet[..IPV4]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet[20..22].copy_from_slice(&0xc000_u16.to_be_bytes());
    packet[22..24].copy_from_slice(&ENCAPSULATION_PORT.to_be_bytes());
    packet[24..26].copy_from_slice(&datagram);
}

fn length(octets: usize) -> [u8; 2] {
    u16::try_from(octets).unwrap_or(u16::MAX).to_be_bytes()
}

/// One's-complement sum (RFC 1071), not folded.
fn sum(octets: &[u8]) -> u64 {
    octets.chunks_exact(2).map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum()
}

fn fold(sum: u64) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn frames(family: Family, sources: Sources) -> Frames {
        Frames { family, kind: Kind::Established, sources, to_vip: true, encapsulated: false, moves_end: false }
    }

    /// The source addresses of the flows, as the prologues make them.
    fn addresses(family: Family, sources: Sources, flows: u64) -> impl Iterator<Item = u64> {
        let workload = frames(family, sources).workload(flows);
        (0..flows).map(move |number| workload.flow(number).0)
    }

    #[test]
    fn the_flows_of_denied_sources_are_denied_and_no_others_are() {
        let v4: BTreeSet<u32> = (0..1 << DENIED_BITS).map(|k| u32::from(denied_v4(k)) >> 8).collect();
        let v6: BTreeSet<u128> = (0..1 << DENIED_BITS).map(|k| u128::from(denied_v6(k)) >> 80).collect();
        let is_denied_v4 = |address: u64| v4.contains(&u32::try_from(address >> 8).unwrap());
        let is_denied_v6 = |address: u64| v6.contains(&u128::from(address >> 16));
        assert!(addresses(Family::V4, Sources::Denied, 1 << 20).all(is_denied_v4));
        assert!(addresses(Family::V6, Sources::Denied, 1 << 20).all(is_denied_v6));
        assert!(!addresses(Family::V4, Sources::Anywhere, 1 << 20).any(is_denied_v4));
        assert!(!addresses(Family::V6, Sources::Anywhere, 1 << 20).any(is_denied_v6));
        let used: BTreeSet<u64> = addresses(Family::V4, Sources::Denied, 1 << 20).collect();
        assert_eq!(used.len(), 1 << DENIED_BITS, "all prefixes are asked for");
    }

    #[test]
    fn a_million_flows_are_nearly_a_million_tuples() {
        for family in Family::ALL {
            let workload = frames(family, Sources::Anywhere).workload(1 << 20);
            let tuples: BTreeSet<_> = (0..1 << 20).map(|number| workload.flow(number)).collect();
            assert!(tuples.len() > (1 << 20) * 99 / 100, "{}", tuples.len());
        }
    }

    #[test]
    fn the_flows_of_connected_sources_are_the_clients() {
        for (k, address) in (0..1 << 16).zip(addresses(Family::V4, Sources::Connected, 1 << 16)) {
            assert_eq!(u64::from(u32::from(connected_v4(k))), address);
        }
        for (k, address) in (0..1 << 16).zip(addresses(Family::V6, Sources::Connected, 1 << 16)) {
            // The frame's address ends in 1, which the prologue leaves as it is.
            assert_eq!(u128::from(connected_v6(k)), u128::from(address) << 64 | 1);
        }
    }

    #[test]
    fn the_prologues_checksum_is_right() {
        let frames = frames(Family::V4, Sources::Anywhere);
        let (workload, mut frame) = (frames.workload(1 << 10), frames.frame());
        for number in 0..1_000 {
            let address = u32::try_from(workload.flow(number).0).unwrap();
            let checksum = !fold(workload.header_sum + u64::from(address >> 16) + u64::from(address & 0xffff));
            frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
            frame[ETHERNET + 12..ETHERNET + 16].copy_from_slice(&address.to_be_bytes());
            assert_eq!(fold(sum(&frame[ETHERNET..ETHERNET + IPV4])), 0xffff);
        }
    }
}
