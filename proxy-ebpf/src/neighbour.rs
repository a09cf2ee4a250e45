//! ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861) for the virtual addresses: the front end that
//! owns one answers, here; for the others the question must not reach the kernel, which holds the
//! address too and would answer as well.

use aya_ebpf::programs::XdpContext;
use proxy_common::maps::{AddressKey, Counter, VIP_OWNED, mapped_v4};

use crate::{
    Handle, Verdict,
    error::Error,
    flow::bytes,
    forward::address,
    maps::{ControlRef, VIPS, interface},
    packet::{
        Arp, Ethernet, IPV6, Ipv6, NEIGHBOUR_MIN, Neighbour, PROTOCOL_ICMPV6, RawMac, Tag, adjust_tail, at, fold, read,
        sum, whole_length, write,
    },
};

/// Hardware type Ethernet, protocol type IPv4, and their address lengths.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOLICITED_OVERRIDE: u32 = 0x6000_0000;
const OPTION_TARGET_MAC: u8 = 2;
/// Neighbour discovery is never routed (RFC 4861 section 7.1.1).
const HOP_LIMIT: u8 = 255;
const NEIGHBOUR: usize = size_of::<Neighbour>();

enum Question {
    NotAVip,
    Mine,
    SomebodyElses,
}

/// Whose daemon is dead owns nothing any more: another front end answers by now, and two must not.
#[inline(always)]
fn ask(address: &AddressKey, control: ControlRef) -> Question {
    // SAFETY: the value is copied.
    match unsafe { VIPS.get(address) } {
        None => Question::NotAVip,
        Some(flags) if flags & VIP_OWNED != 0 && control.alive() => Question::Mine,
        Some(_) => Question::SomebodyElses,
    }
}

#[inline(always)]
pub fn arp(ctx: &XdpContext, tag: Tag) -> Result<Verdict, Error> {
    Verdict::returned(arp_at(Handle::of(ctx), tag))
}

#[inline(never)]
fn arp_at(handle: Handle, tag: Tag) -> u64 {
    let ctx = handle.open();
    Verdict::word(answer(&ctx, tag.l3()))
}

#[inline(always)]
fn answer(ctx: &XdpContext, l3: usize) -> Result<Verdict, Error> {
    let control = ControlRef::open().ok_or(Error::NoTable)?;
    let arp = at::<Arp>(ctx, l3)?;
    // SAFETY: `at` checked the bounds.
    let arp = unsafe { &mut *arp };
    if arp.header != ARP_ETHERNET_IPV4 || arp.operation != ARP_REQUEST {
        return Ok(Verdict::pass(Counter::Passed));
    }
    match ask(&mapped_v4(arp.target), control) {
        Question::NotAVip => return Ok(Verdict::pass(Counter::Passed)),
        Question::SomebodyElses => return Ok(Verdict::drop(Counter::NeighbourIgnored)),
        Question::Mine => {}
    }
    // An announcement of another front end (sender and target the same) asks nothing.
    if arp.sender == arp.target {
        return Ok(Verdict::drop(Counter::NeighbourIgnored));
    }
    let (vip, asker, asker_mac) = (arp.target, arp.sender, arp.sender_mac.value());
    arp.operation = ARP_REPLY;
    arp.sender_mac = RawMac::of(interface().mac());
    arp.sender = vip;
    arp.target_mac = RawMac::of(asker_mac);
    arp.target = asker;
    address(ctx, asker_mac)?;
    Ok(Verdict::transmit(Counter::NeighbourAnswered))
}

#[inline(always)]
pub fn icmpv6(ctx: &XdpContext, tag: Tag) -> Result<Verdict, Error> {
    Verdict::returned(icmpv6_at(Handle::of(ctx), tag))
}

#[inline(never)]
fn icmpv6_at(handle: Handle, tag: Tag) -> u64 {
    let ctx = handle.open();
    Verdict::word(discover(&ctx, tag.l3()))
}

#[inline(always)]
fn discover(ctx: &XdpContext, l3: usize) -> Result<Verdict, Error> {
    let control = ControlRef::open().ok_or(Error::NoTable)?;
    let Ok(head) = at::<[u8; NEIGHBOUR_MIN]>(ctx, l3 + IPV6) else { return Ok(Verdict::pass(Counter::Passed)) };
    // SAFETY: `at` checked the bounds.
    let (kind, code) = unsafe { ((*head)[0], (*head)[1]) };
    let ip = read::<Ipv6>(ctx, l3)?;
    if kind != SOLICITATION || code != 0 || ip.hop_limit != HOP_LIMIT {
        return Ok(Verdict::pass(Counter::Passed));
    }
    let target = read::<[u64; 2]>(ctx, l3 + IPV6 + 8)?;
    match ask(&bytes(target), control) {
        Question::NotAVip => return Ok(Verdict::pass(Counter::Passed)),
        Question::SomebodyElses => return Ok(Verdict::drop(Counter::NeighbourIgnored)),
        Question::Mine => {}
    }
    let asker = ip.source;
    if asker == [0, 0] {
        // Somebody probes whether our address is free (RFC 4862 section 5.4.3). The answer would have to
        // go to all nodes; the daemon's announcements tell them.
        return Ok(Verdict::drop(Counter::NeighbourIgnored));
    }
    advertise(ctx, l3, &ip, target)
}

/// Turns the solicitation into the advertisement that answers it.
#[inline(always)]
fn advertise(ctx: &XdpContext, l3: usize, asked: &Ipv6, target: [u64; 2]) -> Result<Verdict, Error> {
    let asker_mac = read::<Ethernet>(ctx, 0)?.source.value();
    adjust_tail(ctx, (l3 + IPV6 + NEIGHBOUR) as i32 - whole_length(ctx) as i32)?;
    address(ctx, asker_mac)?;
    let ip = Ipv6 { payload_length: (NEIGHBOUR as u16).to_be(), source: target, destination: asked.source, ..*asked };
    write(ctx, l3, ip)?;
    let answer = Neighbour {
        kind: ADVERTISEMENT,
        code: 0,
        checksum: 0,
        flags: SOLICITED_OVERRIDE.to_be(),
        target,
        option_kind: OPTION_TARGET_MAC,
        option_length: 1,
        option_mac: RawMac::of(interface().mac()),
    };
    write(ctx, l3 + IPV6, answer)?;
    // Both addresses, the length and the next header are in the checksum (RFC 8200 section 8.1).
    let pseudo =
        sum::<16>(ctx, l3 + 8)? + u64::from((NEIGHBOUR as u16).to_be()) + u64::from(u16::from(PROTOCOL_ICMPV6).to_be());
    let checksum = fold(pseudo + sum::<{ NEIGHBOUR / 2 }>(ctx, l3 + IPV6)?);
    let answer = at::<Neighbour>(ctx, l3 + IPV6)?;
    // SAFETY: `at` checked the bounds.
    unsafe { (&raw mut (*answer).checksum).write_unaligned(checksum) };
    Ok(Verdict::transmit(Counter::NeighbourAnswered))
}
