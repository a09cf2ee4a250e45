//! What the program must know of the network around this front end, and how large a packet of a connection may be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Here;
use crate::{
    dataplane::Network,
    netdev::{InterfaceAddress, MacAddress},
};

/// Outer headers: IP and UDP (RFC 791, RFC 8200, RFC 768).
const OUTER_V4: u32 = 20 + 8;
const OUTER_V6: u32 = 40 + 8;
/// Headers of IP and TCP without options.
const HEADERS_V4: u32 = 20 + 20;
const HEADERS_V6: u32 = 40 + 20;
/// Bits of an IPv6 address that are a network's at the most (RFC 4291 section 2.5.4).
const NETWORK_V6: u8 = 64;
/// Somebody outside, to find the way there: addresses that nobody has (RFC 5737, RFC 3849).
pub(super) const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The interfaces that packets are steered on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Those that routes and neighbours are looked for at.
    pub indexes: Vec<u32>,
    /// Largest IP packet in octets that all of them take.
    pub mtu: u32,
    /// UDP port of packets between front ends of different segments.
    pub encapsulation_port: u16,
}

/// Describes the network. `gateways`: the next hops to [`OUTSIDE`].
pub(super) fn network(
    here: &Here,
    link: &Link,
    members: impl IntoIterator<Item = IpAddr>,
    gateways: [Option<MacAddress>; 2],
) -> Network {
    let (address_v4, address_v6) = match here.address {
        IpAddr::V4(v4) => (Some(v4.octets()), None),
        IpAddr::V6(v6) => (None, Some(v6.octets())),
    };
    let [gateway_v4, gateway_v6] = gateways.map(Option::unwrap_or_default);
    Network {
        address_v4,
        address_v6,
        encapsulation_port: link.encapsulation_port,
        path_mtu: path_mtu(here, link.mtu, members),
        gateway_v4,
        gateway_v6,
        on_link_v4: here.networks.iter().find_map(on_link_v4).unwrap_or_default(),
        on_link_v6: here.networks.iter().find_map(on_link_v6).unwrap_or_default(),
    }
}

/// The largest packet that reaches every member as it is, inside another where it must be.
fn path_mtu(here: &Here, mtu: u32, members: impl IntoIterator<Item = IpAddr>) -> u32 {
    let beyond = members.into_iter().any(|member| !here.is_direct(member));
    let outer = if here.address.is_ipv4() { OUTER_V4 } else { OUTER_V6 };
    if beyond { mtu.saturating_sub(outer) } else { mtu }
}

/// The segment size to announce to clients of a virtual address, so that their packets reach every member; none: no less
/// than the interface allows.
pub(super) fn segment_size(vip: IpAddr, path_mtu: u32, mtu: u32) -> Option<u32> {
    let headers = if vip.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
    (path_mtu < mtu).then(|| path_mtu.saturating_sub(headers))
}

fn on_link_v4(network: &InterfaceAddress) -> Option<[[u8; 4]; 2]> {
    let IpAddr::V4(address) = network.address else { return None };
    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix_length.min(32))).unwrap_or(0);
    Some([(u32::from(address) & mask).to_be_bytes(), mask.to_be_bytes()])
}

/// Link-local addresses are everywhere.
fn on_link_v6(network: &InterfaceAddress) -> Option<[[u8; 8]; 2]> {
    let IpAddr::V6(address) = network.address else { return None };
    if address.is_unicast_link_local() {
        return None;
    }
    let mask = u64::MAX.checked_shl(u32::from(NETWORK_V6 - network.prefix_length.min(NETWORK_V6))).unwrap_or(0);
    let first = u64::try_from(u128::from(address) >> 64).unwrap_or_default();
    Some([(first & mask).to_be_bytes(), mask.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Here {
        let network = |text: &str, prefix_length| InterfaceAddress { address: text.parse().unwrap(), prefix_length };
        let networks = vec![network("fe80::1", 64), network("10.77.3.11", 22), network("fd77:0:0:fff::11", 56)];
        Here { address: "10.77.3.11".parse().unwrap(), networks }
    }

    const LINK: Link = Link { indexes: vec![], mtu: 1500, encapsulation_port: 7401 };

    fn described(members: &[&str]) -> Network {
        network(&here(), &LINK, members.iter().map(|m| m.parse().unwrap()), [Some([2; 6]), None])
    }

    #[test]
    fn networks_are_those_of_the_interface() {
        let network = described(&[]);
        assert_eq!(network.on_link_v4, [[10, 77, 0, 0], [255, 255, 252, 0]]);
        assert_eq!(network.on_link_v6, [[0xfd, 0x77, 0, 0, 0, 0, 0x0f, 0], [255, 255, 255, 255, 255, 255, 255, 0]]);
        assert_eq!((network.gateway_v4, network.gateway_v6), ([2; 6], [0; 6]));
        assert_eq!((network.address_v4, network.address_v6), (Some([10, 77, 3, 11]), None));
    }

    #[test]
    fn packets_leave_room_for_what_goes_around_them() {
        assert_eq!(described(&["10.77.0.1"]).path_mtu, 1500);
        assert_eq!(described(&["10.77.0.1", "10.78.0.1"]).path_mtu, 1472);
        let vip = |text: &str| text.parse().unwrap();
        assert_eq!(segment_size(vip("10.77.0.100"), 1472, 1500), Some(1432));
        assert_eq!(segment_size(vip("fd77::100"), 1472, 1500), Some(1412));
        assert_eq!(segment_size(vip("fd77::100"), 1500, 1500), None);
    }
}
