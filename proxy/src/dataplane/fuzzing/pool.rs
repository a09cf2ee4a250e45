//! The pool and the network of all scenes: constant, so that an input is small.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_common::maps::{MEMBER_BY_V4, MEMBER_BY_V6, MEMBER_PRESENT, Member};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xcc];
pub(super) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
pub(super) const MTU: u16 = 1_500;
pub(super) const OUTER_PORT: u16 = 6_080;

pub(super) const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
pub(super) const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
/// Those for which another front end answers.
pub(super) const OTHER_VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
pub(super) const OTHER_VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x101);
pub(super) const OWN4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub(super) const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11);
pub(super) const FAR4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 14);
pub(super) const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 0x15);
pub(super) const ON_LINK_V4: [[u8; 4]; 2] = [[10, 77, 0, 0], [255, 255, 255, 0]];
pub(super) const ON_LINK_V6: [[u8; 8]; 2] = [[0xfd, 0x77, 0, 0, 0, 0, 0, 0], [0xff; 8]];

/// Nothing listens on these ports, wherever this runs.
pub(super) const PORTS: [u16; 2] = [55_025, 55_143];
pub(super) const SERVICES: [(IpAddr, u16); 5] = [
    (IpAddr::V4(VIP4), PORTS[0]),
    (IpAddr::V4(VIP4), PORTS[1]),
    (IpAddr::V4(OTHER_VIP4), PORTS[0]),
    (IpAddr::V6(VIP6), PORTS[0]),
    (IpAddr::V6(OTHER_VIP6), PORTS[1]),
];

/// Prefixes that are denied where the scene denies anything.
pub(super) const DENIED: [&str; 4] = ["203.0.113.0/24", "198.51.100.7", "2001:db8:dead::/48", "2001:db8:beef::7"];

/// True if the text of [`DENIED`] names the address. Written out, so as not to trust what reads prefixes.
pub(super) fn is_denied(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [203, 0, 113] || v4 == Ipv4Addr::new(198, 51, 100, 7),
        IpAddr::V6(v6) => {
            v6.segments()[..3] == [0x2001, 0xdb8, 0xdead] || v6.segments() == [0x2001, 0xdb8, 0xbeef, 0, 0, 0, 0, 7]
        }
    }
}

/// A front end of the pool, this one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    This,
    Near(u8),
    FarV4,
    FarV6,
}

/// Those of a half, by slot. The halves differ in all slots.
pub(super) fn members(half: u8) -> Vec<Peer> {
    match half {
        0 => vec![Peer::This, Peer::Near(1), Peer::Near(2), Peer::FarV4, Peer::FarV6],
        _ => vec![Peer::FarV6, Peer::Near(2), Peer::This, Peer::FarV4],
    }
}

pub(super) fn own_slot(half: u8) -> u8 {
    if half == 0 { 0 } else { 2 }
}

pub(super) const fn near_mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

impl Peer {
    pub(super) fn mac(self) -> [u8; 6] {
        match self {
            Self::This => MAC,
            Self::Near(number) => near_mac(number),
            Self::FarV4 | Self::FarV6 => ROUTER_MAC,
        }
    }

    /// As the daemon writes it into the map.
    pub(super) fn member(self) -> Member {
        let near = Member { mac: self.mac(), flags: MEMBER_PRESENT, ..Member::default() };
        match self {
            Self::This | Self::Near(_) => near,
            Self::FarV4 => {
                let (source, destination) = (OWN4.octets(), FAR4.octets());
                let mut member = Member { flags: MEMBER_PRESENT | MEMBER_BY_V4, ..near };
                member.outer_source[..4].copy_from_slice(&source);
                member.outer_destination[..4].copy_from_slice(&destination);
                let words = [source, destination].concat();
                let addresses: u32 = words.chunks_exact(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
                // Version, flags, hop limit and protocol.
                member.outer_sum = 0x4500 + 0x4000 + 0x4011 + addresses;
                member
            }
            Self::FarV6 => Member {
                flags: MEMBER_PRESENT | MEMBER_BY_V6,
                outer_source: OWN6.octets(),
                outer_destination: FAR6.octets(),
                ..near
            },
        }
    }

    /// What its packets are known by: an outer address, or a MAC address behind ten octets that no address begins with.
    fn key(self) -> [u8; 16] {
        match self {
            Self::This | Self::Near(_) => key_of_mac(self.mac()),
            Self::FarV4 => FAR4.to_ipv6_mapped().octets(),
            Self::FarV6 => FAR6.octets(),
        }
    }
}

pub(super) fn key_of_mac(mac: [u8; 6]) -> [u8; 16] {
    let mut key = [0xff; 16];
    key[10..].copy_from_slice(&mac);
    key
}

/// True if a member of either half is known by the key.
pub(super) fn is_known(key: [u8; 16]) -> bool {
    (0..=1).any(|half| slot_of(half, key).is_some())
}

/// The slot of the other member that is known by the key.
pub(super) fn slot_of(half: u8, key: [u8; 16]) -> Option<u8> {
    let mut slots = (0..).zip(members(half));
    slots.find(|(_, peer)| *peer != Peer::This && peer.key() == key).map(|(slot, _)| slot)
}
