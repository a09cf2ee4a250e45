//! To another front end: by its MAC address on the same segment, in UDP beyond.
//!
//! The encapsulation is GUE's variant 1 (draft-ietf-intarea-gue): the IP packet follows the UDP header directly. UDP, and
//! not IP in IP, so that the receiver's NIC spreads the packets over its queues by the source port.

use aya_ebpf::programs::XdpContext;
use proxy_common::{
    maps::{Counter, MEMBER_BY_V4, MEMBER_BY_V6, MEMBER_PRESENT, Member, NO_SLOT, SLOTS},
    steer::HOPS,
};

use crate::{
    Handle, Verdict,
    error::Error,
    flow::Place,
    maps::{ControlRef, MEMBERS, interface},
    packet::{
        ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4, IPV6, Ipv4, Ipv6, Mac, PROTOCOL_UDP, RawMac, Tag,
        UDP, Udp, Vlan, adjust_head, at, fold, holds, read, write,
    },
    too_big::TooBig,
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
    let member = forward.member()?;
    if member.flags & (MEMBER_BY_V4 | MEMBER_BY_V6) != 0 {
        let what = What { tag: place.tag, v6, outside: came_with > HOPS, counter };
        return Verdict::returned(send_encapsulated(Handle::of(ctx), forward.pack(), what.pack()));
    }
    set_hop_limit(ctx, place.l3(), v6, forward.hop_limit)?;
    address(ctx, Mac::new(member.mac))?;
    Ok(Verdict::transmit(counter))
}

impl Forward {
    #[inline(always)]
    fn member(self) -> Result<&'static Member, Error> {
        let member = MEMBERS.get(self.half * SLOTS + u32::from(self.slot)).ok_or(Error::EmptySlot)?;
        if member.flags & MEMBER_PRESENT == 0 { Err(Error::EmptySlot) } else { Ok(member) }
    }

    #[inline(always)]
    fn pack(self) -> u64 {
        u64::from(self.half) << 32
            | u64::from(self.slot) << 24
            | u64::from(self.hop_limit) << 16
            | u64::from(self.entropy)
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            half: (word >> 32) as u32 & 1,
            slot: (word >> 24) as u8 & NO_SLOT,
            hop_limit: (word >> 16) as u8,
            entropy: word as u16,
        }
    }
}

/// What is sent on, and how it is counted.
#[derive(Clone, Copy)]
struct What {
    tag: Tag,
    v6: bool,
    /// It did not come from another front end.
    outside: bool,
    counter: Counter,
}

impl What {
    #[inline(always)]
    fn pack(self) -> u64 {
        let flags = self.tag.bit() << 32 | u64::from(self.v6) << 33 | u64::from(self.outside) << 34;
        flags | u64::from(self.counter as u32)
    }
}

#[inline(never)]
fn send_encapsulated(handle: Handle, forward: u64, what: u64) -> u64 {
    let ctx = handle.open();
    Verdict::word(encapsulate(&ctx, Forward::unpack(forward), what))
}

#[inline(always)]
fn encapsulate(ctx: &XdpContext, forward: Forward, what: u64) -> Result<Verdict, Error> {
    let (tag, v6, outside) = (Tag::from_bit(what >> 32), what >> 33 & 1 != 0, what >> 34 & 1 != 0);
    let l3 = tag.l3();
    let member = forward.member()?;
    let overhead = if member.flags & MEMBER_BY_V4 != 0 { OUTER_V4 } else { OUTER_V6 };
    let octets = octets(ctx, l3, v6)?;
    // Of TCP this was looked at before; who takes an error or a later fragment off the wire would believe its outer length.
    if octets < IPV4 || !holds(ctx, l3 + octets) {
        return Err(Error::MalformedIp);
    }
    if octets + overhead > interface().mtu() {
        // Nobody is told about an error or a later fragment (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
        if what as u32 == Counter::IcmpError as u32 || what as u32 == Counter::Fragment as u32 {
            return Ok(Verdict::drop(Counter::TooBig));
        }
        return Ok(Verdict::too_big(TooBig { tag, v6, by_v4: overhead == OUTER_V4, outside }));
    }
    set_hop_limit(ctx, l3, v6, forward.hop_limit)?;
    wrap(ctx, tag, member, octets, forward.entropy)?;
    Ok(Verdict::transmit_counted(what as u32))
}

/// The frame goes from this machine to `to`.
#[inline(always)]
pub fn address(ctx: &XdpContext, to: Mac) -> Result<(), Error> {
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (&raw mut (*ethernet).destination).write_unaligned(RawMac::of(to));
        (&raw mut (*ethernet).source).write_unaligned(RawMac::of(interface().mac()));
    }
    Ok(())
}

/// Octets of the IP packet, as it says itself.
#[inline(always)]
fn octets(ctx: &XdpContext, l3: usize, v6: bool) -> Result<usize, Error> {
    if v6 {
        Ok(IPV6 + usize::from(u16::from_be(read::<Ipv6>(ctx, l3)?.payload_length)))
    } else {
        Ok(usize::from(u16::from_be(read::<Ipv4>(ctx, l3)?.total_length)))
    }
}

/// IPv4's checksum follows the change (RFC 1624).
#[inline(always)]
fn set_hop_limit(ctx: &XdpContext, l3: usize, v6: bool, hop_limit: u8) -> Result<(), Error> {
    if v6 {
        let ip = at::<Ipv6>(ctx, l3)?;
        // SAFETY: `at` checked the bounds.
        unsafe { (*ip).hop_limit = hop_limit };
        return Ok(());
    }
    let ip = at::<Ipv4>(ctx, l3)?;
    // SAFETY: `at` checked the bounds. The hop limit is the first octet of its 16-bit word.
    unsafe {
        let checksum = (&raw const (*ip).checksum).read_unaligned();
        let sum = u64::from(!checksum) + u64::from(!u16::from((*ip).ttl)) + u64::from(hop_limit);
        (*ip).ttl = hop_limit;
        (&raw mut (*ip).checksum).write_unaligned(fold(sum));
    }
    Ok(())
}

/// Puts the packet into UDP to the member.
#[inline(always)]
fn wrap(ctx: &XdpContext, tag: Tag, member: &Member, octets: usize, entropy: u16) -> Result<(), Error> {
    let ethernet = read::<Ethernet>(ctx, 0)?;
    let (l3, vlan) = (tag.l3(), if tag.is_some() { Some(read::<Vlan>(ctx, ETHERNET)?) } else { None });
    let by_v4 = member.flags & MEMBER_BY_V4 != 0;
    let ethertype = if by_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    adjust_head(ctx, -((if by_v4 { OUTER_V4 } else { OUTER_V6 }) as i32))?;
    let addresses = Ethernet {
        destination: RawMac::of(Mac::new(member.mac)),
        source: RawMac::of(interface().mac()),
        ethertype: if vlan.is_some() { ethernet.ethertype } else { ethertype },
    };
    write(ctx, 0, addresses)?;
    if let Some(vlan) = vlan {
        write(ctx, ETHERNET, Vlan { ethertype, ..vlan })?;
    }
    let port = ControlRef::open().ok_or(Error::NoTable)?.constants().encapsulation_port;
    let udp = udp(port, octets, entropy);
    if by_v4 {
        write(ctx, l3, outer_v4(member, octets + OUTER_V4))?;
        write(ctx, l3 + IPV4, udp)
    } else {
        write(ctx, l3, outer_v6(member, octets + UDP))?;
        write(ctx, l3 + IPV6, udp)
    }
}

/// Puts the packet of a frame without a tag into UDP over IPv4. `macs`: to whom and from whom the frame goes, as words.
#[inline(always)]
pub fn encapsulate_plain(
    ctx: &XdpContext,
    member: &Member,
    macs: [u64; 2],
    octets: usize,
    entropy: u16,
) -> Result<(), Error> {
    adjust_head(ctx, -(OUTER_V4 as i32))?;
    let port = ControlRef::open().ok_or(Error::NoTable)?.constants().encapsulation_port;
    let head = PlainOuter {
        ethernet: Ethernet {
            destination: RawMac::of(Mac(macs[0])),
            source: RawMac::of(Mac(macs[1])),
            ethertype: ETHERTYPE_IPV4,
        },
        ip: outer_v4(member, octets + OUTER_V4),
        udp: udp(port, octets, entropy),
    };
    write(ctx, 0, head)
}

/// What such a frame begins with.
#[repr(C, packed)]
struct PlainOuter {
    ethernet: Ethernet,
    ip: Ipv4,
    udp: Udp,
}

#[inline(always)]
fn udp(port: [u8; 2], octets: usize, entropy: u16) -> Udp {
    Udp {
        source_port: (FIRST_EPHEMERAL | (entropy & 0x3fff)).to_be(),
        destination_port: u16::from_ne_bytes(port),
        length: ((octets + UDP) as u16).to_be(),
        // None: the inner packet has its own (RFC 6935 for IPv6).
        checksum: 0,
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
