//! How packets get to another member: as they are on the same segment, inside UDP beyond it.

use std::net::{IpAddr, Ipv4Addr};

use proxy_common::maps::{MEMBER_BY_V4, MEMBER_BY_V6, MEMBER_PRESENT, Member};

use crate::netdev::{InterfaceAddress, MacAddress};

/// First words of the outer IPv4 header that are the same in every packet (RFC 791): version and length of the header,
/// don't fragment, 64 hops and UDP. The identification is zero (RFC 6864 section 4.1).
const VERSION_AND_LENGTH: u32 = 0x4500;
const DONT_FRAGMENT: u32 = 0x4000;
const TTL_AND_PROTOCOL: u32 = 64 << 8 | 17;

/// Where this front end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Its address in the pool.
    pub address: IpAddr,
    /// Addresses of the interfaces that packets are steered on.
    pub networks: Vec<InterfaceAddress>,
}

impl Here {
    /// True if a member of this address gets its packets by its Ethernet address. Where this front end's own address in
    /// the pool is not one of the interfaces' (a network of its own for the pool), addresses tell nothing about the
    /// segment, and all members are taken to be on it.
    #[must_use]
    pub fn is_direct(&self, member: IpAddr) -> bool {
        !self.is_near(self.address) || self.is_near(member)
    }

    /// True if the address is in one of the interfaces' networks.
    #[must_use]
    pub fn is_near(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.covers(address))
    }

    /// What the program needs to send to the member. `mac` is the member's own if it is direct, the next hop's if not;
    /// without it, or without an outer address of the member's family, nothing can be sent to it.
    #[must_use]
    pub fn member(&self, address: IpAddr, mac: Option<MacAddress>) -> Member {
        let Some(mac) = mac else { return Member::default() };
        if self.is_direct(address) {
            return Member { mac, flags: MEMBER_PRESENT, ..Member::default() };
        }
        match (self.address, address) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Member {
                mac,
                flags: MEMBER_PRESENT | MEMBER_BY_V4,
                outer_source: in_front(source),
                outer_destination: in_front(destination),
                outer_sum: outer_sum(source, destination),
                reserved: 0,
            },
            (IpAddr::V6(source), IpAddr::V6(destination)) => Member {
                mac,
                flags: MEMBER_PRESENT | MEMBER_BY_V6,
                outer_source: source.octets(),
                outer_destination: destination.octets(),
                outer_sum: 0,
                reserved: 0,
            },
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Member::default(),
        }
    }
}

fn in_front(address: Ipv4Addr) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..4].copy_from_slice(&address.octets());
    octets
}

/// One's-complement sum of the outer IPv4 header but for its length and checksum.
fn outer_sum(source: Ipv4Addr, destination: Ipv4Addr) -> u32 {
    let halves = |address: Ipv4Addr| (u32::from(address) >> 16) + (u32::from(address) & 0xffff);
    let sum = VERSION_AND_LENGTH + DONT_FRAGMENT + TTL_AND_PROTOCOL + halves(source) + halves(destination);
    // Seven 16-bit words: after one fold there may be one carry more.
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn here(own: &str) -> Here {
        let network = |text, prefix_length| InterfaceAddress { address: address(text), prefix_length };
        Here { address: address(own), networks: vec![network("10.77.0.11", 24), network("fd77::11", 64)] }
    }

    const MAC: Option<MacAddress> = Some([2, 0, 0, 0, 0, 1]);

    #[test]
    fn who_shares_a_network_is_direct() {
        let here = here("10.77.0.11");
        for (member, direct) in
            [("10.77.0.12", true), ("10.77.1.12", false), ("fd77::12", true), ("fd78::12", false), ("10.77.0.11", true)]
        {
            assert_eq!(here.is_direct(address(member)), direct, "{member}");
        }
        let all = Here { networks: vec![InterfaceAddress { address: address("10.0.0.1"), prefix_length: 0 }], ..here };
        assert!(all.is_direct(address("192.0.2.1")));
    }

    #[test]
    fn a_pool_on_a_network_of_its_own_tells_nothing_of_segments() {
        assert!(here("192.168.9.11").is_direct(address("192.168.10.12")));
    }

    #[test]
    fn the_header_sum_is_that_of_the_header() {
        let (source, destination) = (Ipv4Addr::new(10, 77, 0, 11), Ipv4Addr::new(255, 254, 253, 252));
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        header.extend(source.octets());
        header.extend(destination.octets());
        let sum: u32 = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let expected = (sum & 0xffff) + (sum >> 16);
        assert_eq!(outer_sum(source, destination), (expected & 0xffff) + (expected >> 16));
        assert!(outer_sum([255; 4].into(), [255; 4].into()) <= 0xffff);
    }

    #[test]
    fn members_beyond_are_encapsulated_by_their_family() {
        let v4 = here("10.77.0.11").member(address("10.78.0.21"), MAC);
        assert_eq!((v4.flags, v4.outer_source[..4].to_vec()), (MEMBER_PRESENT | MEMBER_BY_V4, vec![10, 77, 0, 11]));
        assert_eq!(v4.outer_destination[..4], [10, 78, 0, 21]);
        assert_ne!(v4.outer_sum, 0);
        let v6 = here("fd77::11").member(address("fd78::21"), MAC);
        assert_eq!((v6.flags, v6.outer_sum), (MEMBER_PRESENT | MEMBER_BY_V6, 0));
        let direct = here("10.77.0.11").member(address("10.77.0.12"), MAC);
        assert_eq!((direct.flags, direct.mac), (MEMBER_PRESENT, [2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn what_cannot_be_reached_is_no_member() {
        assert_eq!(here("10.77.0.11").member(address("10.78.0.21"), None), Member::default());
        assert_eq!(here("10.77.0.11").member(address("fd78::21"), MAC), Member::default());
    }
}
