//! To another front end: by its MAC address on the same segment, in UDP beyond.
//!
//! The encapsulation is GUE's variant 1 (draft-ietf-intarea-gue): the IP packet follows the UDP header directly. UDP, and
//! not IP in IP, so that the receiver's NIC spreads the packets over its queues by the source port.

use aya_ebpf::programs::XdpContext;
use proxy_common::maps::{Counter, MEMBER_BY_V4, MEMBER_BY_V6, MEMBER_PRESENT, Member, SLOTS};

use crate::{
    Verdict,
    error::Error,
    flow::Place,
    maps::{ControlRef, MEMBERS, interface},
    packet::{
        ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4, IPV6, Ipv4, Ipv6, Mac, PROTOCOL_UDP, UDP, Udp, Vlan, adjust_head,
        at, fold, read, write,
    },
    too_big,
};

/// Octets of the outer headers.
pub const OUTER_V4: usize = IPV4 + UDP;
pub const OUTER_V6: usize = IPV6 + UDP;
const OUTER_HOP_LIMIT: u8 = 64;
/// Ephemeral ports (RFC 6335 section 6): the source port is a connection's own, so that its packets stay in order.
const FIRST_EPHEMERAL: u16 = 0xc000;

/// To whom, and how often it may be sent on after that.
#[derive(Clone, Copy)]
pub struct Forward {
    pub half: u32,
    pub slot: u8,
    pub hop_limit: u8,
    /// Chooses the outer source port.
    pub entropy: u16,
}

/// `came_with`: the hop limit that the packet came with.
#[inline(always)]
pub fn send(
    ctx: &XdpContext,
    place: Place,
    v6: bool,
    forward: Forward,
    counter: Counter,
    came_with: u8,
) -> Result<Verdict, Error> {
    let index = forward.half * SLOTS + u32::from(forward.slot);
    let member = MEMBERS.get(index).ok_or(Error::EmptySlot)?;
    if member.flags & MEMBER_PRESENT == 0 {
        return Err(Error::EmptySlot);
    }
    if member.flags & (MEMBER_BY_V4 | MEMBER_BY_V6) != 0 {
        let overhead = if member.flags & MEMBER_BY_V4 != 0 { OUTER_V4 } else { OUTER_V6 };
        let octets = octets(ctx, place, v6)?;
        if octets + overhead > usize::from(interface().mtu) {
            return too_big::tell(ctx, place, v6, overhead, came_with);
        }
        set_hop_limit(ctx, place, v6, forward.hop_limit)?;
        encapsulate(ctx, place, v6, member, octets, forward.entropy)?;
        return Ok(Verdict::Transmit(counter));
    }
    set_hop_limit(ctx, place, v6, forward.hop_limit)?;
    address(ctx, Mac::new(member.mac))?;
    Ok(Verdict::Transmit(counter))
}

/// The frame goes from this machine to `to`.
#[inline(always)]
pub fn address(ctx: &XdpContext, to: Mac) -> Result<(), Error> {
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (&raw mut (*ethernet).destination).write_unaligned(to);
        (&raw mut (*ethernet).source).write_unaligned(Mac::new(interface().mac));
    }
    Ok(())
}

/// Octets of the IP packet, as it says itself.
#[inline(always)]
fn octets(ctx: &XdpContext, place: Place, v6: bool) -> Result<usize, Error> {
    if v6 {
        Ok(IPV6 + usize::from(u16::from_be(read::<Ipv6>(ctx, place.l3)?.payload_length)))
    } else {
        Ok(usize::from(u16::from_be(read::<Ipv4>(ctx, place.l3)?.total_length)))
    }
}

/// IPv4's checksum follows the change (RFC 1624).
#[inline(always)]
fn set_hop_limit(ctx: &XdpContext, place: Place, v6: bool, hop_limit: u8) -> Result<(), Error> {
    if v6 {
        let ip = at::<Ipv6>(ctx, place.l3)?;
        // SAFETY: `at` checked the bounds.
        unsafe { (*ip).hop_limit = hop_limit };
        return Ok(());
    }
    let ip = at::<Ipv4>(ctx, place.l3)?;
    // SAFETY: `at` checked the bounds. The hop limit is the first octet of its 16-bit word.
    unsafe {
        let checksum = (&raw const (*ip).checksum).read_unaligned();
        let sum = u64::from(!checksum) + u64::from(!u16::from((*ip).ttl)) + u64::from(hop_limit);
        (*ip).ttl = hop_limit;
        (&raw mut (*ip).checksum).write_unaligned(fold(sum));
    }
    Ok(())
}

#[inline(always)]
fn encapsulate(
    ctx: &XdpContext,
    place: Place,
    v6: bool,
    member: &Member,
    octets: usize,
    entropy: u16,
) -> Result<(), Error> {
    let ethernet = read::<Ethernet>(ctx, 0)?;
    let tag = if place.l3 == ETHERNET { None } else { Some(read::<Vlan>(ctx, ETHERNET)?) };
    let by_v4 = member.flags & MEMBER_BY_V4 != 0;
    let ethertype = if by_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    adjust_head(ctx, -((if by_v4 { OUTER_V4 } else { OUTER_V6 }) as i32))?;
    let _ = v6;
    let addresses = Ethernet {
        destination: Mac::new(member.mac),
        source: Mac::new(interface().mac),
        ethertype: if tag.is_some() { ethernet.ethertype } else { ethertype },
    };
    write(ctx, 0, addresses)?;
    if let Some(tag) = tag {
        write(ctx, ETHERNET, Vlan { tag: tag.tag, ethertype })?;
    }
    let port = ControlRef::open().ok_or(Error::NoTable)?.constants().encapsulation_port;
    let udp = Udp {
        source_port: (FIRST_EPHEMERAL | (entropy & 0x3fff)).to_be(),
        destination_port: u16::from_ne_bytes(port),
        length: ((octets + UDP) as u16).to_be(),
        // None: the inner packet has its own (RFC 6935 for IPv6).
        checksum: 0,
    };
    if by_v4 {
        write(ctx, place.l3, outer_v4(member, octets + OUTER_V4))?;
        write(ctx, place.l3 + IPV4, udp)
    } else {
        write(ctx, place.l3, outer_v6(member, octets + UDP))?;
        write(ctx, place.l3 + IPV6, udp)
    }
}

#[inline(always)]
fn outer_v4(member: &Member, total: usize) -> Ipv4 {
    let [s, d] = [&member.outer_source, &member.outer_destination];
    Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: (total as u16).to_be(),
        id: 0,
        fragment: 0x4000_u16.to_be(),
        ttl: OUTER_HOP_LIMIT,
        protocol: PROTOCOL_UDP,
        checksum: fold(u64::from(member.outer_sum) + total as u64).to_be(),
        source: u32::from_ne_bytes([s[0], s[1], s[2], s[3]]),
        destination: u32::from_ne_bytes([d[0], d[1], d[2], d[3]]),
    }
}

#[inline(always)]
fn outer_v6(member: &Member, payload: usize) -> Ipv6 {
    Ipv6 {
        version_class_flow: 0x6000_0000_u32.to_be(),
        payload_length: (payload as u16).to_be(),
        next_header: PROTOCOL_UDP,
        hop_limit: OUTER_HOP_LIMIT,
        source: proxy_common::hash::v6_words(member.outer_source),
        destination: proxy_common::hash::v6_words(member.outer_destination),
    }
}
