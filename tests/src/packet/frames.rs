//! Frames made by hand: what no client's kernel would send, or not at that moment.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail, ensure};
use etherparse::{
    EtherType, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, TcpHeader, UdpHeader,
};

use super::{Flags, checksum};

/// Hop limit of a packet that comes from outside.
pub const HOP_LIMIT: u8 = 64;
const WINDOW: u16 = 64_240;
/// As most clients send them: segment size 1460, SACK permitted, window scale 7; padded.
const SYN_OPTIONS: [u8; 12] = [2, 4, 5, 180, 1, 1, 4, 2, 1, 3, 3, 7];

/// What stands before the IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    pub source: [u8; 6],
    pub destination: [u8; 6],
    pub vlan: Option<u16>,
}

/// A TCP segment to be.
#[derive(Debug, Clone)]
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: Flags,
    pub data: Vec<u8>,
    pub hop_limit: u8,
    /// IPv6 only: hop-by-hop and destination options in front of it.
    pub extensions: bool,
}

impl Segment {
    /// A SYN.
    #[must_use]
    pub fn syn(source: SocketAddr, destination: SocketAddr, sequence: u32) -> Self {
        Self {
            source,
            destination,
            sequence,
            acknowledgment: 0,
            flags: Flags { syn: true, ..Flags::default() },
            data: Vec::new(),
            hop_limit: HOP_LIMIT,
            extensions: false,
        }
    }

    fn header(&self) -> anyhow::Result<TcpHeader> {
        let (source, destination) = (self.source.port(), self.destination.port());
        let mut header = TcpHeader::new(source, destination, self.sequence, WINDOW);
        header.acknowledgment_number = self.acknowledgment;
        header.syn = self.flags.syn;
        header.ack = self.flags.ack;
        header.fin = self.flags.fin;
        header.rst = self.flags.rst;
        header.psh = !self.data.is_empty();
        if self.flags.syn {
            header.set_options_raw(&SYN_OPTIONS)?;
        }
        Ok(header)
    }

    /// The IP packet that carries it.
    ///
    /// # Errors
    /// If its ends are of different address families, or it is too long.
    pub fn packet(&self) -> anyhow::Result<Vec<u8>> {
        let mut headers = ip_headers(self.source.ip(), self.destination.ip(), self.hop_limit, IpNumber::TCP)?;
        if self.extensions {
            let IpHeaders::Ipv6(_, extensions) = &mut headers else { bail!("IPv4 has no extension headers") };
            // Six octets of PadN options each: nothing that anybody must act on.
            let padding = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]).context("options")?;
            extensions.hop_by_hop_options = Some(padding.clone());
            extensions.destination_options = Some(padding);
        }
        let mut packet = Vec::new();
        PacketBuilder::ip(headers).tcp_header(self.header()?).write(&mut packet, &self.data)?;
        Ok(packet)
    }
}

fn ip_headers(source: IpAddr, destination: IpAddr, hop_limit: u8, number: IpNumber) -> anyhow::Result<IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header::new(0, hop_limit, number, source.octets(), destination.octets())?;
            Ok(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: number,
                hop_limit,
                source: source.octets(),
                destination: destination.octets(),
            };
            Ok(IpHeaders::Ipv6(header, Ipv6Extensions::default()))
        }
        _ => bail!("{source} and {destination} are of different families"),
    }
}

/// An IP packet of any protocol; the payload is as it is given.
fn ip_packet(source: IpAddr, destination: IpAddr, number: IpNumber, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut headers = ip_headers(source, destination, HOP_LIMIT, number)?;
    headers.set_payload_len(payload.len())?;
    if let IpHeaders::Ipv4(header, _) = &mut headers {
        header.header_checksum = header.calc_header_checksum();
    }
    let mut packet = Vec::new();
    headers.write(&mut packet)?;
    packet.extend_from_slice(payload);
    Ok(packet)
}

/// Puts an IP packet into a frame.
#[must_use]
pub fn frame(envelope: Envelope, packet: &[u8]) -> Vec<u8> {
    let ether_type =
        if packet.first().is_some_and(|first| first >> 4 == 6) { EtherType::IPV6 } else { EtherType::IPV4 };
    let mut frame = Vec::with_capacity(packet.len() + 18);
    frame.extend(envelope.destination);
    frame.extend(envelope.source);
    if let Some(vlan) = envelope.vlan {
        frame.extend(EtherType::VLAN_TAGGED_FRAME.0.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(ether_type.0.to_be_bytes());
    frame.extend_from_slice(packet);
    frame
}

/// Cuts an IP packet into fragments of at most `size` octets of payload, a multiple of 8.
///
/// # Errors
/// If it is no IP packet.
pub fn fragments(packet: &[u8], size: usize, id: u32) -> anyhow::Result<Vec<Vec<u8>>> {
    ensure!(size > 0 && size.is_multiple_of(8), "fragments of {size} octets");
    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let cut = if v4 { fragment_v4 } else { fragment_v6 };
    let header = if v4 { Ipv4Header::MIN_LEN } else { Ipv6Header::LEN };
    let payload = packet.get(header..).context("cut short")?;
    let count = payload.len().div_ceil(size);
    let pieces = payload.chunks(size).enumerate();
    pieces.map(|(at, piece)| cut(packet, id, at * size, at + 1 < count, piece)).collect()
}

fn fragment_v4(packet: &[u8], id: u32, offset: usize, more: bool, piece: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut header, _) = Ipv4Header::from_slice(packet)?;
    header.identification = u16::try_from(id)?;
    header.dont_fragment = false;
    header.more_fragments = more;
    header.fragment_offset = IpFragOffset::try_new(u16::try_from(offset / 8)?)?;
    header.set_payload_len(piece.len())?;
    header.header_checksum = header.calc_header_checksum();
    Ok([header.to_bytes().as_slice(), piece].concat())
}

fn fragment_v6(packet: &[u8], id: u32, offset: usize, more: bool, piece: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut header, _) = Ipv6Header::from_slice(packet)?;
    let offset = IpFragOffset::try_new(u16::try_from(offset / 8)?)?;
    let fragment = Ipv6FragmentHeader::new(header.next_header, offset, more, id);
    header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
    header.set_payload_length(Ipv6FragmentHeader::LEN + piece.len())?;
    Ok([header.to_bytes().as_slice(), fragment.to_bytes().as_slice(), piece].concat())
}

/// A router's word that a packet does not fit: fragmentation needed, or packet too big.
///
/// # Errors
/// If router and receiver are of different address families.
pub fn too_big(router: IpAddr, receiver: IpAddr, mtu: u16, quoted: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (number, kind, code) = match router {
        IpAddr::V4(_) => (IpNumber::ICMP, 3, 4),
        IpAddr::V6(_) => (IpNumber::IPV6_ICMP, 2, 0),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend_from_slice(quoted);
    let covered = match router {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo_header(router, receiver, number.0, message.len()),
    };
    let sum = checksum::of(&message, covered);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip_packet(router, receiver, number, &message)
}

/// A packet in UDP, as one front end sends it to another.
///
/// # Errors
/// If the ends are of different address families, or it is too long.
pub fn encapsulate(source: IpAddr, destination: IpAddr, port: u16, inner: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut udp = UdpHeader { source_port: port, destination_port: port, length: 0, checksum: 0 };
    udp.length = u16::try_from(UdpHeader::LEN + inner.len())?;
    ip_packet(source, destination, IpNumber::UDP, &[udp.to_bytes().as_slice(), inner].concat())
}
