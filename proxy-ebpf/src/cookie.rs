//! SYN cookies (RFC 4987 section 3.6): in a flood a SYN is answered here, without the kernel and without a socket. The
//! cookie is the kernel's own, so that it takes the ACK that answers it. No window scaling and no timestamps: the kernel
//! would want its own keyed offset in them.

use aya_ebpf::{
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie},
    programs::XdpContext,
};
use proxy_common::{
    maps::{Counter, PeerSlots},
    steer::HOPS,
};

use crate::{
    Handle, Verdict,
    error::Error,
    flow::{Flow, Place, V4, V6},
    forward::address,
    maps::ControlRef,
    packet::{IPV4, IPV6, Ipv4, Ipv6, PROTOCOL_TCP, TCP, Tag, Tcp, adjust_tail, at, fold, length, read, sum, write},
    sockets::{TUPLE_V4, TUPLE_V6, TupleV4, TupleV6},
    too_big::way_back,
};

const LONGEST_TCP: usize = 60;
const LISTEN: u32 = 10;
const SYN_ACK: u8 = 0x12;
const HOP_LIMIT: u8 = 64;
const WINDOW: u16 = 65_535;
/// RFC 9293 section 3.2: kind 2, length 4, the size.
const OPTION_MSS: u32 = 0x0204_0000;
const ANSWER: usize = TCP + 4;

/// Answers a SYN by a cookie; where that cannot be, the kernel has it, which makes cookies too. `on_link`: the client is on
/// this machine's segment.
#[inline(always)]
pub fn answer<F: Flow>(ctx: &XdpContext, place: Place, on_link: bool, came_with: u8) -> Result<Verdict, Error> {
    let ip = if F::V6 { IPV6 } else { IPV4 };
    // Options, extension headers and data are left to the kernel. So is a client on the segment whose SYN came by
    // another front end: only the kernel knows its MAC address.
    let plain = place.l4 == place.l3() + ip && length(ctx) <= place.l4 + LONGEST_TCP;
    if !plain || on_link && came_with <= HOPS {
        return Ok(Verdict::pass(Counter::OwnNew));
    }
    let (handle, tag, outside) = (Handle::of(ctx), place.tag, came_with > HOPS);
    Verdict::returned(if F::V6 { answer_v6(handle, tag, outside) } else { answer_v4(handle, tag, outside) })
}

#[inline(never)]
fn answer_v4(handle: Handle, tag: Tag, outside: bool) -> u64 {
    let ctx = handle.open();
    Verdict::word(make_answer::<V4>(&ctx, tag, outside))
}

#[inline(never)]
fn answer_v6(handle: Handle, tag: Tag, outside: bool) -> u64 {
    let ctx = handle.open();
    Verdict::word(make_answer::<V6>(&ctx, tag, outside))
}

#[inline(always)]
fn make_answer<F: Flow>(ctx: &XdpContext, tag: Tag, outside: bool) -> Result<Verdict, Error> {
    let to_kernel = Ok(Verdict::pass(Counter::OwnNew));
    let ip = if F::V6 { IPV6 } else { IPV4 };
    let place = Place { tag, l4: tag.l3() + ip, sender: PeerSlots::NONE };
    let control = ControlRef::open().ok_or(Error::NoTable)?;
    let Some(mac) = way_back(ctx, F::V6, outside)? else { return to_kernel };
    let tcp = read::<Tcp>(ctx, place.l4)?;
    let grow = (place.l4 + LONGEST_TCP) as i32 - length(ctx) as i32;
    // Some drivers leave little room behind a short frame; nothing was changed yet.
    if adjust_tail(ctx, grow).is_err() {
        return to_kernel;
    }
    let made = if F::V6 { make_v6(ctx, place) } else { make_v4(ctx, place) };
    if made <= 0 {
        return to_kernel;
    }
    adjust_tail(ctx, ANSWER as i32 - LONGEST_TCP as i32)?;
    let path = control.constants().path_mtu;
    let answer = Tcp {
        ports: tcp.ports.rotate_left(16),
        sequence: (made as u32).to_be(),
        acknowledgment: u32::from_be(tcp.sequence).wrapping_add(1).to_be(),
        data_offset: (ANSWER as u8 / 4) << 4,
        flags: SYN_ACK,
        window: WINDOW.to_be(),
        checksum: 0,
        urgent: 0,
    };
    write(ctx, place.l4, answer)?;
    write(ctx, place.l4 + TCP, (OPTION_MSS | (path - (ip + TCP) as u32) & 0xffff).to_be())?;
    if F::V6 {
        return_v6(ctx, place)?
    } else {
        return_v4(ctx, place)?
    }
    address(ctx, mac)?;
    Ok(Verdict::transmit(Counter::CookieSent))
}

#[inline(always)]
fn make_v4(ctx: &XdpContext, place: Place) -> i64 {
    let Ok(ip) = read::<Ipv4>(ctx, place.l3()) else { return 0 };
    let Ok(tcp) = read::<Tcp>(ctx, place.l4) else { return 0 };
    let tuple = TupleV4 { source: ip.source, destination: ip.destination, ports: tcp.ports };
    make::<IPV4>(ctx, place, (&raw const tuple).cast(), TUPLE_V4)
}

#[inline(always)]
fn make_v6(ctx: &XdpContext, place: Place) -> i64 {
    let Ok(ip) = read::<Ipv6>(ctx, place.l3()) else { return 0 };
    let Ok(tcp) = read::<Tcp>(ctx, place.l4) else { return 0 };
    let tuple = TupleV6 { source: ip.source, destination: ip.destination, ports: tcp.ports };
    make::<IPV6>(ctx, place, (&raw const tuple).cast(), TUPLE_V6)
}

/// The kernel's cookie for the SYN: the sequence number in the low half, the segment size above. Not positive: there is
/// none.
#[inline(always)]
fn make<const IP: usize>(ctx: &XdpContext, place: Place, tuple: *const u8, size: u32) -> i64 {
    const OWN_NETNS: u64 = u64::MAX;
    let Ok(ip) = at::<[u8; IP]>(ctx, place.l3()) else { return 0 };
    let Ok(head) = at::<[u8; LONGEST_TCP]>(ctx, place.l4) else { return 0 };
    // SAFETY: `at` checked the bounds of both headers, the longest TCP header there may be; the kernel gives a socket that
    // is released below, or null.
    unsafe {
        // Volatile, so that the bounds are checked of the very number that the helper gets: the verifier wants it.
        let octets = core::ptr::read_volatile(&(u32::from((*head)[12] >> 4) * 4));
        if octets < TCP as u32 || octets > LONGEST_TCP as u32 {
            return 0;
        }
        let socket = bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple.cast_mut().cast(), size, OWN_NETNS, 0);
        if socket.is_null() {
            return 0;
        }
        let made = if (*socket).state == LISTEN {
            bpf_tcp_gen_syncookie(socket.cast(), ip.cast(), IP as u32, head.cast(), octets)
        } else {
            0
        };
        bpf_sk_release(socket.cast());
        made
    }
}

#[inline(always)]
fn return_v4(ctx: &XdpContext, place: Place) -> Result<(), Error> {
    let asked = read::<Ipv4>(ctx, place.l3())?;
    let ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: ((IPV4 + ANSWER) as u16).to_be(),
        id: 0,
        fragment: 0x4000_u16.to_be(),
        ttl: HOP_LIMIT,
        protocol: PROTOCOL_TCP,
        checksum: 0,
        source: asked.destination,
        destination: asked.source,
    };
    write(ctx, place.l3(), ip)?;
    let checksum = fold(sum::<{ IPV4 / 2 }>(ctx, place.l3())?);
    write(ctx, place.l3(), Ipv4 { checksum, ..ip })?;
    finish(ctx, place, sum::<4>(ctx, place.l3() + 12)?)
}

#[inline(always)]
fn return_v6(ctx: &XdpContext, place: Place) -> Result<(), Error> {
    let asked = read::<Ipv6>(ctx, place.l3())?;
    let ip = Ipv6 {
        version_class_flow: 0x6000_0000_u32.to_be(),
        payload_length: (ANSWER as u16).to_be(),
        next_header: PROTOCOL_TCP,
        hop_limit: HOP_LIMIT,
        source: asked.destination,
        destination: asked.source,
    };
    write(ctx, place.l3(), ip)?;
    finish(ctx, place, sum::<16>(ctx, place.l3() + 8)?)
}

/// The TCP checksum: over the segment and the pseudo-header, of which `addresses` is the sum.
#[inline(always)]
fn finish(ctx: &XdpContext, place: Place, addresses: u64) -> Result<(), Error> {
    let pseudo = addresses + u64::from((ANSWER as u16).to_be()) + u64::from(u16::from(PROTOCOL_TCP).to_be());
    let checksum = fold(pseudo + sum::<{ ANSWER / 2 }>(ctx, place.l4)?);
    let tcp = at::<Tcp>(ctx, place.l4)?;
    // SAFETY: `at` checked the bounds.
    unsafe { (&raw mut (*tcp).checksum).write_unaligned(checksum) };
    Ok(())
}
