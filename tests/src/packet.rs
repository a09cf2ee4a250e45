//! Packets as they are on the wire: read, checked, made by hand, captured and sent.
//!
//! Nothing here uses the code under test: the octets are read by `etherparse`, and checksums are summed anew.

pub mod capture;
pub mod checksum;
pub mod frames;
pub mod link;
pub mod puppet;

use std::net::IpAddr;

use anyhow::Context;
use etherparse::{
    IpNumber, Ipv6ExtensionSlice, LaxIpPayloadSlice, LaxIpSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice, TcpSlice,
    UdpSlice, VlanSlice,
};

use checksum::Fault;

/// Port that front ends of different segments put each other's packets behind; what comes there is an IP packet.
pub const ENCAPSULATION_PORT: u16 = 7401;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub mac_source: [u8; 6],
    pub mac_destination: [u8; 6],
    /// VLAN identifiers, the outermost first.
    pub vlans: Vec<u16>,
    /// None: neither IPv4 nor IPv6.
    pub ip: Option<Ip>,
    /// Checksums that are wrong, in inner packets too.
    pub faults: Vec<Fault>,
}

/// An IP packet, in a frame, in an ICMP error or in another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// In octets, with the header.
    pub length: usize,
    pub fragment: Option<Fragment>,
    pub body: Body,
}

/// What makes a packet a part of a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    /// In octets.
    pub offset: u32,
    pub more: bool,
}

/// What a packet carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Tcp(Tcp),
    Udp {
        source: u16,
        destination: u16,
        inner: Option<Box<Ip>>,
    },
    Icmp {
        kind: u8,
        code: u8,
        mtu: u32,
        inner: Option<Box<Ip>>,
    },
    /// Not the first fragment, another protocol, or cut short.
    Other,
}

/// The fields of a TCP segment that tests look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: Flags,
    /// Octets of data.
    pub length: usize,
}

/// Flags of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools, reason = "they are what a TCP header has")]
pub struct Flags {
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
}

impl Ip {
    /// The TCP segment that it carries itself.
    #[must_use]
    pub fn tcp(&self) -> Option<Tcp> {
        if let Body::Tcp(tcp) = self.body { Some(tcp) } else { None }
    }

    /// The packet in it: encapsulated, or quoted by an ICMP error.
    #[must_use]
    pub fn inner(&self) -> Option<&Self> {
        match &self.body {
            Body::Udp { inner, .. } | Body::Icmp { inner, .. } => inner.as_deref(),
            Body::Tcp(_) | Body::Other => None,
        }
    }
}

impl Packet {
    /// Reads a frame.
    ///
    /// # Errors
    /// If it is shorter than an Ethernet header.
    pub fn parse(frame: &[u8]) -> anyhow::Result<Self> {
        let sliced = LaxSlicedPacket::from_ethernet(frame).context("no Ethernet frame")?;
        let (mac_source, mac_destination) = match &sliced.link {
            Some(LinkSlice::Ethernet2(ethernet)) => (ethernet.source(), ethernet.destination()),
            _ => ([0; 6], [0; 6]),
        };
        let vlans = match sliced.vlan() {
            None => Vec::new(),
            Some(VlanSlice::SingleVlan(tag)) => vec![tag.vlan_identifier().value()],
            Some(VlanSlice::DoubleVlan(tags)) => {
                vec![tags.outer.vlan_identifier().value(), tags.inner.vlan_identifier().value()]
            }
        };
        let mut faults = Vec::new();
        let ip = match &sliced.net {
            Some(LaxNetSlice::Ipv4(ip)) => Some(read_ip(&LaxIpSlice::Ipv4(ip.clone()), &mut faults)),
            Some(LaxNetSlice::Ipv6(ip)) => Some(read_ip(&LaxIpSlice::Ipv6(ip.clone()), &mut faults)),
            Some(LaxNetSlice::Arp(_)) | None => None,
        };
        Ok(Self { mac_source, mac_destination, vlans, ip, faults })
    }

    /// The TCP segment that it carries itself.
    #[must_use]
    pub fn tcp(&self) -> Option<Tcp> {
        self.ip.as_ref()?.tcp()
    }
}

fn read_ip(ip: &LaxIpSlice<'_>, faults: &mut Vec<Fault>) -> Ip {
    let (hop_limit, length, fragment) = match ip {
        LaxIpSlice::Ipv4(v4) => {
            let header = v4.header();
            if !checksum::is_right(header.slice(), 0) {
                faults.push(Fault::new("IPv4 header", ip));
            }
            let fragment = header.is_fragmenting_payload().then(|| Fragment {
                id: header.identification().into(),
                offset: u32::from(header.fragments_offset().value()) * 8,
                more: header.more_fragments(),
            });
            (header.ttl(), usize::from(header.total_len()), fragment)
        }
        LaxIpSlice::Ipv6(v6) => {
            let header = v6.header();
            let length = header.slice().len() + usize::from(header.payload_length());
            (header.hop_limit(), length, v6_fragment(v6))
        }
    };
    let is_later_fragment = fragment.is_some_and(|fragment| fragment.offset > 0);
    let body = if is_later_fragment { Body::Other } else { read_body(ip, fragment.is_none(), faults) };
    Ip { source: ip.source_addr(), destination: ip.destination_addr(), hop_limit, length, fragment, body }
}

fn v6_fragment(ip: &etherparse::LaxIpv6Slice<'_>) -> Option<Fragment> {
    ip.extensions().clone().into_iter().find_map(|extension| {
        let Ipv6ExtensionSlice::Fragment(fragment) = extension else { return None };
        Some(Fragment {
            id: fragment.identification(),
            offset: u32::from(fragment.fragment_offset().value()) * 8,
            more: fragment.more_fragments(),
        })
    })
}

fn read_body(ip: &LaxIpSlice<'_>, whole: bool, faults: &mut Vec<Fault>) -> Body {
    let payload = ip.payload();
    let (number, octets) = (payload.ip_number, payload.payload);
    if whole && !payload.incomplete && !has_right_checksum(ip, payload) {
        faults.push(Fault::new(number.keyword_str().unwrap_or("transport"), ip));
    }
    match number {
        IpNumber::TCP => read_tcp(octets).map_or(Body::Other, Body::Tcp),
        IpNumber::UDP => read_udp(octets, faults),
        IpNumber::ICMP | IpNumber::IPV6_ICMP => read_icmp(octets, number == IpNumber::ICMP, faults),
        _ => Body::Other,
    }
}

fn has_right_checksum(ip: &LaxIpSlice<'_>, payload: &LaxIpPayloadSlice<'_>) -> bool {
    match payload.ip_number {
        // A UDP checksum of 0 is none (RFC 768; RFC 6935 for tunnels over IPv6).
        IpNumber::UDP if payload.payload.get(6..8) == Some(&[0, 0]) => true,
        IpNumber::TCP | IpNumber::UDP | IpNumber::IPV6_ICMP => {
            let pseudo = checksum::pseudo_header(
                ip.source_addr(),
                ip.destination_addr(),
                payload.ip_number.0,
                payload.payload.len(),
            );
            checksum::is_right(payload.payload, pseudo)
        }
        IpNumber::ICMP => checksum::is_right(payload.payload, 0),
        _ => true,
    }
}

/// An ICMP error may quote the first eight octets only.
fn read_tcp(octets: &[u8]) -> Option<Tcp> {
    if let Ok(tcp) = TcpSlice::from_slice(octets) {
        return Some(Tcp {
            source: tcp.source_port(),
            destination: tcp.destination_port(),
            sequence: tcp.sequence_number(),
            acknowledgment: tcp.acknowledgment_number(),
            flags: Flags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() },
            length: tcp.payload().len(),
        });
    }
    let [a, b, c, d, e, f, g, h] = *octets.first_chunk::<8>()?;
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(Tcp { source: ports.0, destination: ports.1, sequence: u32::from_be_bytes([e, f, g, h]), ..Tcp::default() })
}

fn read_udp(octets: &[u8], faults: &mut Vec<Fault>) -> Body {
    let Ok(udp) = UdpSlice::from_slice_lax(octets) else { return Body::Other };
    let encapsulated = udp.destination_port() == ENCAPSULATION_PORT;
    let inner = if encapsulated { read_inner(udp.payload(), faults) } else { None };
    Body::Udp { source: udp.source_port(), destination: udp.destination_port(), inner }
}

fn read_icmp(octets: &[u8], v4: bool, faults: &mut Vec<Fault>) -> Body {
    let Some((&[kind, code, _, _, a, b, c, d], quoted)) = octets.split_first_chunk::<8>() else { return Body::Other };
    // Destination unreachable, time exceeded, parameter problem; and packet too big.
    let is_error = if v4 { matches!(kind, 3 | 11 | 12) } else { kind < 128 };
    // ICMP has the next hop's MTU in the lower half only.
    let mtu = if v4 { u32::from_be_bytes([0, 0, c, d]) } else { u32::from_be_bytes([a, b, c, d]) };
    Body::Icmp { kind, code, mtu, inner: if is_error { read_inner(quoted, faults) } else { None } }
}

fn read_inner(octets: &[u8], faults: &mut Vec<Fault>) -> Option<Box<Ip>> {
    let (ip, _) = LaxIpSlice::from_slice(octets).ok()?;
    Some(Box::new(read_ip(&ip, faults)))
}

#[cfg(test)]
mod tests;
