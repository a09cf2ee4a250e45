//! The short way, which nearly every packet goes: an untagged frame, IP without options or extension headers, TCP, whole,
//! from outside, of a bucket of which nobody needs to be asked. Whatever is not so, or is wrong, goes the long way
//! (`steer`), which decides alike.
//!
//! Everything stands at a known place here, so bounds are checked once; fields are read as wide as they are.

use aya_ebpf::programs::XdpContext;
use proxy_common::{
    hash::{SteeringKey, sip13},
    maps::{
        BUCKET_BITS, Counter, DENY_ANY, MEMBER_BY_V4, MEMBER_PRESENT, Member, NO_SLOT, Owner, SLOTS, SYN_COOKIES,
        TableState, mapped_v4_words,
    },
    steer::HOPS,
};

use crate::{
    Verdict, abuse,
    flow::{Flow, V4, V6},
    forward::{OUTER_V4, encapsulate_plain},
    maps::{ControlRef, MEMBERS, OWNERS, interface},
    packet::{ETHERNET, IPV4, IPV6, TCP, at, length},
    steer::serves,
};

const FIN_SYN_RST_ACK: u16 = 0x1700;
const SYN: u16 = 0x0200;
const PROTOCOL_TCP: u8 = 6;
/// Offsets of fields in a frame without a tag.
const KIND: usize = 12;

/// A value that stands anywhere in memory; read as a whole.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Raw<T>(T);

#[inline(always)]
unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
    // SAFETY: the caller checked the bounds. Volatile, or the compiler would read only the octets that are used, one by
    // one.
    unsafe { base.add(offset).cast::<Raw<T>>().read_volatile() }.0
}

/// The verdict, if it is one of the usual ones.
#[inline(always)]
pub fn decide(ctx: &XdpContext, control: ControlRef) -> Option<Verdict> {
    let base = at::<[u8; ETHERNET + IPV4 + TCP]>(ctx, 0).ok()?.cast::<u8>();
    // SAFETY: `at` checked the bounds.
    let (addresses, kind) = unsafe { (load::<u64>(base, 0), load::<u32>(base, KIND)) };
    if (addresses ^ interface().word()) << 16 != 0 {
        return None;
    }
    // Type of the frame, version, header length: 08 00 45 or 86 dd 6x.
    if kind & 0x00ff_ffff == 0x0045_0008 {
        v4(ctx, control, base)
    } else if kind & 0x00f0_ffff == 0x0060_dd86 {
        v6(ctx, control)
    } else {
        None
    }
}

#[inline(always)]
fn v4(ctx: &XdpContext, control: ControlRef, base: *mut u8) -> Option<Verdict> {
    // SAFETY: the caller checked the bounds.
    let (ip, addresses, ports, flags) =
        unsafe { (load::<u64>(base, 16), load::<u64>(base, 26), load::<u32>(base, 34), load::<u16>(base, 46)) };
    // Length, identification, fragment, hop limit, protocol.
    let (total, hop_limit) = (usize::from(u16::from_be(ip as u16)), (ip >> 48) as u8);
    let fragment = (ip >> 32) as u16 & 0x3fff_u16.to_be();
    if (ip >> 56) as u8 != PROTOCOL_TCP || fragment != 0 || hop_limit <= HOPS {
        return None;
    }
    let flow = V4 { source: addresses as u32, destination: (addresses >> 32) as u32, ports };
    if !is_whole(ctx, flags, IPV4, total, ETHERNET + total) {
        return None;
    }
    let vip = mapped_v4_words(flow.destination.to_ne_bytes());
    let verdict = judge(control, &flow, vip, ports, flags, |key| sip13(key, [addresses, u64::from(ports)]))?;
    let (member, counter) = match verdict {
        Judgement::Done(verdict) => return Some(verdict),
        Judgement::Send { member, counter } => (member, counter),
    };
    if member.by_v4 && total + OUTER_V4 > interface().mtu() {
        return None;
    }
    // SAFETY: the caller checked the bounds. Hop limit, protocol, checksum; RFC 1624 for the change of the first.
    unsafe {
        let word = load::<u32>(base, 22);
        let sum = (!word >> 16) + (0xffff - (word & 0xff)) + u32::from(HOPS);
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !(sum + (sum >> 16)) & 0xffff;
        let changed = checksum << 16 | word & 0xff00 | u32::from(HOPS);
        base.add(22).cast::<Raw<u32>>().write(Raw(changed));
    }
    send(ctx, base, member, total, counter)
}

#[inline(always)]
fn v6(ctx: &XdpContext, control: ControlRef) -> Option<Verdict> {
    let base = at::<[u8; ETHERNET + IPV6 + TCP]>(ctx, 0).ok()?.cast::<u8>();
    // SAFETY: `at` checked the bounds.
    let (ip, source, destination, ports, flags) = unsafe {
        (
            load::<u32>(base, 18),
            [load::<u64>(base, 22), load::<u64>(base, 30)],
            [load::<u64>(base, 38), load::<u64>(base, 46)],
            load::<u32>(base, 54),
            load::<u16>(base, 66),
        )
    };
    // Length, next header, hop limit.
    let (payload, hop_limit) = (usize::from(u16::from_be(ip as u16)), (ip >> 24) as u8);
    if (ip >> 16) as u8 != PROTOCOL_TCP || hop_limit <= HOPS {
        return None;
    }
    let flow = V6 { source, destination, ports };
    if !is_whole(ctx, flags, 0, payload, ETHERNET + IPV6 + payload) {
        return None;
    }
    let words = [source[0], source[1], destination[0], destination[1], u64::from(ports)];
    let verdict = judge(control, &flow, destination, ports, flags, |key| sip13(key, words))?;
    let (member, counter) = match verdict {
        Judgement::Done(verdict) => return Some(verdict),
        Judgement::Send { member, counter } => (member, counter),
    };
    if member.by_v4 && IPV6 + payload + OUTER_V4 > interface().mtu() {
        return None;
    }
    // SAFETY: `at` checked the bounds.
    unsafe { *base.add(21) = HOPS };
    send(ctx, base, member, IPV6 + payload, counter)
}

/// Whether the TCP header is as long as it must be, and ends within the packet's `octets`, of which `before` are before it;
/// and whether the frame reaches as far as the packet's `end`.
#[inline(always)]
fn is_whole(ctx: &XdpContext, flags: u16, before: usize, octets: usize, end: usize) -> bool {
    let header = usize::from(flags & 0xf0) >> 2;
    header >= TCP && octets >= before + header && end <= length(ctx)
}

/// To whom a packet goes.
#[derive(Clone, Copy)]
struct Receiver {
    member: &'static Member,
    /// By UDP over IPv4, else by its MAC address.
    by_v4: bool,
    /// Chooses the outer source port.
    entropy: u16,
}

enum Judgement {
    Done(Verdict),
    Send { member: Receiver, counter: Counter },
}

#[inline(always)]
fn judge<F: Flow>(
    control: ControlRef,
    flow: &F,
    vip: [u64; 2],
    ports: u32,
    flags: u16,
    hash: impl FnOnce(SteeringKey) -> u64,
) -> Option<Judgement> {
    let table = control.table().ok()?;
    let [_, _, high, low] = ports.to_ne_bytes();
    if !serves(control, vip, [high, low]) {
        return Some(Judgement::Done(Verdict::pass(Counter::Passed)));
    }
    if control.has(DENY_ANY) && flow.is_suspected(control) {
        return None;
    }
    let hash = hash(control.key());
    let owner = owner(table, hash)?;
    let new = flags & FIN_SYN_RST_ACK == SYN;
    if owner.slot() == table.own_slot() {
        let asks = owner.chained() || table.settling() || !control.alive() || new && control.has(SYN_COOKIES);
        if asks || owner.slot() == NO_SLOT {
            return None;
        }
        if new && abuse::over_limit(flow, control) {
            return Some(Judgement::Done(Verdict::drop(Counter::Limited)));
        }
        return Some(Judgement::Done(Verdict::pass(if new { Counter::OwnNew } else { Counter::Own })));
    }
    let member = MEMBERS.get(table.half() * SLOTS + u32::from(owner.slot()))?;
    // One that is not there goes the long way too, as one beyond IPv6 does.
    let by_v4 = match member.flags {
        MEMBER_PRESENT => false,
        flags if flags == MEMBER_PRESENT | MEMBER_BY_V4 => true,
        _ => return None,
    };
    if new && abuse::over_limit(flow, control) {
        return Some(Judgement::Done(Verdict::drop(Counter::Limited)));
    }
    let counter = if new { Counter::SteeredNew } else { Counter::Steered };
    Some(Judgement::Send { member: Receiver { member, by_v4, entropy: hash as u16 }, counter })
}

#[inline(always)]
fn owner(table: TableState, hash: u64) -> Option<Owner> {
    let owners = OWNERS.get_ptr(table.half())?;
    // SAFETY: the bucket is less than BUCKETS: it is the top bits of the hash.
    Some(unsafe { *owners.cast::<Owner>().add((hash >> (64 - BUCKET_BITS)) as usize) })
}

#[inline(always)]
fn send(ctx: &XdpContext, base: *mut u8, to: Receiver, octets: usize, counter: Counter) -> Option<Verdict> {
    let (own, mac) = (interface().word() & 0xffff_ffff_ffff, mac(to.member));
    if to.by_v4 {
        // Nothing else was changed yet but the hop limit, so the packet may be dropped where there is no room.
        let sent = encapsulate_plain(ctx, to.member, [mac, own], octets, to.entropy);
        return Some(if sent.is_ok() { Verdict::transmit(counter) } else { Verdict::drop(Counter::NoRoom) });
    }
    // SAFETY: the caller checked the bounds. Both addresses are twelve octets.
    unsafe {
        base.cast::<Raw<u64>>().write(Raw(mac | own << 48));
        base.add(8).cast::<Raw<u32>>().write(Raw((own >> 16) as u32));
    }
    Some(Verdict::transmit(counter))
}

/// The member's MAC address in one word.
#[inline(always)]
fn mac(member: &Member) -> u64 {
    // SAFETY: a member begins with its address and its flags, eight octets, aligned.
    unsafe { (&raw const *member).cast::<u64>().read() & 0xffff_ffff_ffff }
}
