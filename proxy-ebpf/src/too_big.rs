//! A packet that does not fit into the way to its owner once it is encapsulated: its sender is told the size that does
//! (RFC 1191, RFC 8201), in the virtual address's name. Connections begun through the pool do not come here, since the
//! front ends announce a segment size that leaves room; it is for those whose segments grew by other means.

use aya_ebpf::programs::XdpContext;
use proxy_common::maps::Counter;

use crate::{
    Handle, Verdict,
    error::Error,
    forward::{OUTER_V4, OUTER_V6, address},
    maps::{ControlRef, interface},
    packet::{
        Ethernet, IPV4, IPV6, Icmp, Ipv4, Ipv6, Mac, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Tag, adjust_head, adjust_tail, at,
        fold, read, sum, whole_length, write,
    },
};

const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;
/// Octets of the packet that are quoted: its IP header, with options, and the ports.
const QUOTED: usize = 64;
const ICMP: usize = size_of::<Icmp>();
const MESSAGE: usize = ICMP + QUOTED;
const HOP_LIMIT: u8 = 64;

/// What is known of such a packet.
#[derive(Clone, Copy)]
pub struct TooBig {
    pub tag: Tag,
    pub v6: bool,
    /// The way is by IPv4.
    pub by_v4: bool,
    /// It did not come from another front end.
    pub outside: bool,
}

impl TooBig {
    #[inline(always)]
    pub fn pack(self) -> u64 {
        self.tag.bit() | u64::from(self.v6) << 1 | u64::from(self.by_v4) << 2 | u64::from(self.outside) << 3
    }
}

/// Answers a packet of which [`TooBig::pack`] gave the word.
#[inline(never)]
pub fn tell(handle: Handle, word: u64) -> u64 {
    let ctx = handle.open();
    let tag = Tag::from_bit(word);
    let overhead = if word & 4 != 0 { OUTER_V4 } else { OUTER_V6 };
    Verdict::word(make(&ctx, tag, word & 2 != 0, overhead, word & 8 != 0))
}

#[inline(always)]
fn make(ctx: &XdpContext, tag: Tag, v6: bool, overhead: usize, outside: bool) -> Result<Verdict, Error> {
    let l3 = tag.l3();
    let Some(mac) = way_back(ctx, v6, outside)? else { return Ok(Verdict::drop(Counter::TooBig)) };
    let mtu = interface().mtu() - overhead;
    let octets = whole_length(ctx) as i32;
    if v6 {
        let ip = read::<Ipv6>(ctx, l3)?;
        adjust_tail(ctx, (l3 + QUOTED) as i32 - octets)?;
        make_room(ctx, tag, IPV6 + ICMP)?;
        quote_v6(ctx, l3, &ip, mtu as u32)?;
    } else {
        let ip = read::<Ipv4>(ctx, l3)?;
        adjust_tail(ctx, (l3 + QUOTED) as i32 - octets)?;
        make_room(ctx, tag, IPV4 + ICMP)?;
        quote_v4(ctx, l3, &ip, mtu as u32)?;
    }
    address(ctx, mac)?;
    Ok(Verdict::transmit(Counter::TooBig))
}

/// The MAC address to answer: who sent the frame, if that was not a front end.
#[inline(always)]
pub fn way_back(ctx: &XdpContext, v6: bool, outside: bool) -> Result<Option<Mac>, Error> {
    if outside {
        return Ok(Some(read::<Ethernet>(ctx, 0)?.source.value()));
    }
    let control = ControlRef::open().ok_or(Error::NoTable)?;
    let constants = control.constants();
    let gateway = if v6 { constants.gateway_v6 } else { constants.gateway_v4 };
    Ok(if gateway == 0 { None } else { Some(Mac(gateway)) })
}

/// Moves the headers before the network header forward by `octets`.
#[inline(always)]
fn make_room(ctx: &XdpContext, tag: Tag, octets: usize) -> Result<(), Error> {
    // Ethernet's header with a tag is 18 octets; a frame without one has 4 octets of IP in that place, rewritten later.
    let headers = read::<[u8; 18]>(ctx, 0)?;
    adjust_head(ctx, -(octets as i32))?;
    if tag.is_some() {
        return write(ctx, 0, headers);
    }
    let start = at::<[u8; 14]>(ctx, 0)?;
    // SAFETY: `at` checked the bounds.
    unsafe { start.write_unaligned(*headers.first_chunk::<14>().ok_or(Error::NoRoom)?) };
    Ok(())
}

#[inline(always)]
fn quote_v4(ctx: &XdpContext, l3: usize, about: &Ipv4, mtu: u32) -> Result<(), Error> {
    let ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: ((IPV4 + MESSAGE) as u16).to_be(),
        id: 0,
        fragment: 0,
        ttl: HOP_LIMIT,
        protocol: PROTOCOL_ICMP,
        checksum: 0,
        source: about.destination,
        destination: about.source,
    };
    write(ctx, l3, ip)?;
    let checksum = fold(sum::<{ IPV4 / 2 }>(ctx, l3)?);
    write(ctx, l3, Ipv4 { checksum, ..ip })?;
    let icmp = Icmp { kind: UNREACHABLE, code: FRAGMENTATION_NEEDED, checksum: 0, parameter: mtu.to_be() };
    write(ctx, l3 + IPV4, icmp)?;
    let checksum = fold(sum::<{ MESSAGE / 2 }>(ctx, l3 + IPV4)?);
    write(ctx, l3 + IPV4, Icmp { checksum, ..icmp })
}

#[inline(always)]
fn quote_v6(ctx: &XdpContext, l3: usize, about: &Ipv6, mtu: u32) -> Result<(), Error> {
    let ip = Ipv6 {
        version_class_flow: 0x6000_0000_u32.to_be(),
        payload_length: (MESSAGE as u16).to_be(),
        next_header: PROTOCOL_ICMPV6,
        hop_limit: HOP_LIMIT,
        source: about.destination,
        destination: about.source,
    };
    write(ctx, l3, ip)?;
    let icmp = Icmp { kind: PACKET_TOO_BIG, code: 0, checksum: 0, parameter: mtu.to_be() };
    write(ctx, l3 + IPV6, icmp)?;
    // Both addresses, the length and the next header are in the checksum (RFC 8200 section 8.1).
    let pseudo =
        sum::<16>(ctx, l3 + 8)? + u64::from((MESSAGE as u16).to_be()) + u64::from(u16::from(PROTOCOL_ICMPV6).to_be());
    let checksum = fold(pseudo + sum::<{ MESSAGE / 2 }>(ctx, l3 + IPV6)?);
    write(ctx, l3 + IPV6, Icmp { checksum, ..icmp })
}
