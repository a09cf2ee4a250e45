//! ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861) for the virtual addresses: the front end that
//! owns one answers, here; for the others the question must not reach the kernel, which holds the
//! address too and would answer as well.

use aya_ebpf::programs::XdpContext;
use proxy_common::maps::{Control, Counter, VIP_OWNED, VipKey, mapped_v4};

use crate::{
    Verdict,
    error::Error,
    maps::VIPS,
    packet::{Arp, Ethernet, Ipv6, NEIGHBOUR_MIN, Neighbour, at, length},
    steer::bytes,
};

/// Hardware type Ethernet, protocol type IPv4, and their address lengths.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;
const OPTION_TARGET_MAC: u8 = 2;
/// Neighbour discovery is never routed (RFC 4861 section 7.1.1).
const HOP_LIMIT: u8 = 255;
const ANSWER_LENGTH: usize = size_of::<Ethernet>() + size_of::<Ipv6>() + size_of::<Neighbour>();

enum Question {
    NotAVip,
    Mine,
    SomebodyElses,
}

#[inline(always)]
fn ask(address: &VipKey, control: &Control) -> Question {
    // SAFETY: the value is copied.
    match unsafe { VIPS.get(address) } {
        None => Question::NotAVip,
        Some(flags) if flags & VIP_OWNED != 0 && daemon_lives(control) => Question::Mine,
        Some(_) => Question::SomebodyElses,
    }
}

/// Whose daemon is dead owns nothing any more: another front end answers by now, and two must not.
#[inline(always)]
fn daemon_lives(control: &Control) -> bool {
    // SAFETY: the daemon moves it on while we run, by an aligned store: either value will do.
    let until = unsafe { core::ptr::read_volatile(&raw const control.answer_until_ns) };
    // SAFETY: the helper only reads a clock.
    let now = unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() };
    now < until
}

#[inline(always)]
pub fn arp(ctx: &XdpContext, control: &Control) -> Result<Verdict, Error> {
    let arp = at::<Arp>(ctx, size_of::<Ethernet>())?;
    // SAFETY: `at` checked the bounds.
    let arp = unsafe { &mut *arp };
    if arp.header != ARP_ETHERNET_IPV4 || arp.operation != ARP_REQUEST {
        return Ok(Verdict::Pass(Counter::Passed));
    }
    match ask(&mapped_v4(arp.target), control) {
        Question::NotAVip => return Ok(Verdict::Pass(Counter::Passed)),
        Question::SomebodyElses => return Ok(Verdict::Drop(Counter::NeighbourIgnored)),
        Question::Mine => {}
    }
    // An announcement of another front end (sender and target the same) asks nothing.
    if arp.sender == arp.target {
        return Ok(Verdict::Drop(Counter::NeighbourIgnored));
    }
    let (vip, asker, asker_mac) = (arp.target, arp.sender, arp.sender_mac);
    arp.operation = ARP_REPLY;
    arp.sender_mac = control.mac;
    arp.sender = vip;
    arp.target_mac = asker_mac;
    arp.target = asker;
    address_frame(ctx, control, asker_mac)?;
    Ok(Verdict::Transmit(Counter::NeighbourAnswered))
}

#[inline(always)]
fn address_frame(ctx: &XdpContext, control: &Control, to: [u8; 6]) -> Result<(), Error> {
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: `at` checked the bounds.
    let ethernet = unsafe { &mut *ethernet };
    ethernet.destination = to;
    ethernet.source = control.mac;
    Ok(())
}

#[inline(always)]
pub fn icmpv6(ctx: &XdpContext, control: &Control) -> Result<Verdict, Error> {
    const AT: usize = size_of::<Ethernet>() + size_of::<Ipv6>();
    let head = at::<[u8; NEIGHBOUR_MIN]>(ctx, AT);
    let Ok(head) = head else { return Ok(Verdict::Pass(Counter::Passed)) };
    // SAFETY: `at` checked the bounds.
    let head = unsafe { &*head };
    let ip = at::<Ipv6>(ctx, size_of::<Ethernet>())?;
    // SAFETY: `at` checked the bounds.
    let ip = unsafe { &*ip };
    if head[0] != SOLICITATION || head[1] != 0 || ip.hop_limit != HOP_LIMIT {
        return Ok(Verdict::Pass(Counter::Passed));
    }
    let mut target = [0_u8; 16];
    target.copy_from_slice(&head[8..24]);
    match ask(&target, control) {
        Question::NotAVip => return Ok(Verdict::Pass(Counter::Passed)),
        Question::SomebodyElses => return Ok(Verdict::Drop(Counter::NeighbourIgnored)),
        Question::Mine => {}
    }
    let asker = ip.source;
    if asker == [0, 0] {
        // Somebody probes whether our address is free (RFC 4862 section 5.4.3). The answer would have to
        // go to all nodes; the daemon's announcements tell them.
        return Ok(Verdict::Drop(Counter::NeighbourIgnored));
    }
    advertise(ctx, control, asker, target)
}

/// Turns the solicitation into the advertisement that answers it.
#[inline(always)]
fn advertise(ctx: &XdpContext, control: &Control, asker: [u64; 2], target: [u8; 16]) -> Result<Verdict, Error> {
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: `at` checked the bounds.
    let asker_mac = unsafe { (*ethernet).source };
    let grow = ANSWER_LENGTH as i32 - length(ctx) as i32;
    // SAFETY: the helper takes the context that the kernel gave us.
    if grow != 0 && unsafe { aya_ebpf::helpers::bpf_xdp_adjust_tail(ctx.ctx, grow) } != 0 {
        return Err(Error::NoRoom);
    }
    address_frame(ctx, control, asker_mac)?;
    let words = proxy_common::hash::v6_words(target);
    let ip = at::<Ipv6>(ctx, size_of::<Ethernet>())?;
    // SAFETY: `at` checked the bounds, after the tail was moved.
    unsafe {
        (*ip).payload_length = (size_of::<Neighbour>() as u16).to_be_bytes();
        (*ip).source = words;
        (*ip).destination = asker;
    }
    let answer = at::<Neighbour>(ctx, size_of::<Ethernet>() + size_of::<Ipv6>())?;
    // SAFETY: `at` checked the bounds, after the tail was moved.
    unsafe {
        *answer = Neighbour {
            kind: ADVERTISEMENT,
            code: 0,
            checksum: [0; 2],
            flags: [FLAG_SOLICITED | FLAG_OVERRIDE, 0, 0, 0],
            target: words,
            option_kind: OPTION_TARGET_MAC,
            option_length: 1,
            option_mac: control.mac,
        };
        (*answer).checksum = checksum(&*answer, target, bytes(asker));
    }
    Ok(Verdict::Transmit(Counter::NeighbourAnswered))
}

/// The ICMPv6 checksum over the advertisement and its pseudo-header (RFC 8200 section 8.1).
#[inline(always)]
fn checksum(answer: &Neighbour, source: [u8; 16], destination: [u8; 16]) -> [u8; 2] {
    let mac = answer.option_mac;
    let mut sum = size_of::<Neighbour>() as u32 + u32::from(crate::packet::PROTOCOL_ICMPV6);
    sum += word(answer.kind, answer.code) + word(answer.flags[0], 0);
    sum += word(answer.option_kind, answer.option_length);
    sum += word(mac[0], mac[1]) + word(mac[2], mac[3]) + word(mac[4], mac[5]);
    let mut i = 0;
    while i < 16 {
        // The source is the target as well, and so counts twice.
        sum += 2 * word(source[i], source[i + 1]) + word(destination[i], destination[i + 1]);
        i += 2;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}

#[inline(always)]
fn word(high: u8, low: u8) -> u32 {
    u32::from(high) << 8 | u32::from(low)
}
