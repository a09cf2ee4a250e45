//! The life of a packet.

use aya_ebpf::programs::XdpContext;
use proxy_common::{
    maps::{
        BUCKET_BITS, BUCKETS, COOKIES_OUT, Chain, Counter, NO_SLOT, Owner, PeerSlots, SERVICE_SLOTS, SYN_COOKIES,
        Service, TableState, mac_key,
    },
    steer::{self, Decision, Facts, Here, Kind, Socket},
};

use crate::{
    Handle, Verdict, abuse, cookie,
    error::Error,
    flow::{Flow, Place, V4, V6, bytes, key_v4},
    forward::{self, Forward},
    fragment::{self, Later},
    icmp,
    maps::{CHAINS, ControlRef, OWNERS, PEERS, SCRATCH, SERVICES, SUCCESSORS, VIPS, interface},
    neighbour,
    outer::{self, Content},
    packet::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4, IPV6, Ipv4, Ipv6, Mac, PROTOCOL_ICMP,
        PROTOCOL_ICMPV6, PROTOCOL_TCP, RawMac, TCP, Tag, Tcp, holds, read,
    },
};

const ACK: u8 = 0x10;
const FIN_SYN_RST_ACK: u8 = 0x17;
const SYN: u8 = 0x02;

/// Decides about one frame.
#[inline(always)]
pub fn frame(ctx: &XdpContext, control: ControlRef) -> Result<Verdict, Error> {
    let ethernet = read::<Ethernet>(ctx, 0)?;
    let tag = Tag::of(ethernet.ethertype);
    let ethertype = read::<u16>(ctx, tag.l3() - size_of::<u16>())?;
    let to_us = ethernet.destination.value() == interface().mac();
    let content = if to_us { outer::strip(ctx, control, tag, ethertype)? } else { Content::plain(ethertype) };
    match content.ethertype {
        ETHERTYPE_IPV4 if to_us => Verdict::returned(ipv4_at(Handle::of(ctx), tag, content.sender)),
        ETHERTYPE_IPV6 => Verdict::returned(ipv6_at(Handle::of(ctx), tag, content.sender, to_us)),
        ETHERTYPE_ARP => neighbour::arp(ctx, tag),
        _ => Ok(Verdict::pass(Counter::Passed)),
    }
}

// Functions of their own, for the sake of the stack.
#[inline(never)]
fn ipv4_at(handle: Handle, tag: Tag, sender: PeerSlots) -> u64 {
    let ctx = handle.open();
    Verdict::word(ControlRef::open().ok_or(Error::NoTable).and_then(|control| ipv4(&ctx, control, tag, sender)))
}

#[inline(never)]
fn ipv6_at(handle: Handle, tag: Tag, sender: PeerSlots, to_us: bool) -> u64 {
    let ctx = handle.open();
    Verdict::word(ControlRef::open().ok_or(Error::NoTable).and_then(|control| ipv6(&ctx, control, tag, sender, to_us)))
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, control: ControlRef, tag: Tag, sender: PeerSlots) -> Result<Verdict, Error> {
    let l3 = tag.l3();
    let ip = read::<Ipv4>(ctx, l3)?;
    let header = usize::from(ip.version_ihl & 0x0f) * 4;
    let place = Place { tag, l4: l3 + header, sender };
    let mut parts = fragment::Part::Whole;
    let (flow, flags) = match ip.protocol {
        PROTOCOL_TCP => {
            parts = fragment::part_v4(ip.fragment);
            if matches!(parts, fragment::Part::Later) {
                if !is_vip(&key_v4(ip.destination)) {
                    return Ok(Verdict::pass(Counter::Passed));
                }
                let id = u32::from(ip.id);
                let later = Later { tag, v6: false, id, came_with: ip.ttl };
                return Ok(Verdict::follow(later));
            }
            let tcp = read::<Tcp>(ctx, place.l4)?;
            let flow = V4 { source: ip.source, destination: ip.destination, ports: tcp.ports };
            if !is_service(&flow, control) {
                return Ok(Verdict::pass(Counter::Passed));
            }
            let total = usize::from(u16::from_be(ip.total_length));
            if ip.version_ihl >> 4 != 4 || header < IPV4 || !holds(ctx, l3 + total) {
                return Err(Error::MalformedIp);
            }
            check_tcp(&tcp, total, header)?;
            (flow, tcp.flags & FIN_SYN_RST_ACK)
        }
        // No error is so long that it comes in pieces, and a later piece of anything else has no header of ICMP.
        PROTOCOL_ICMP if fragment::part_v4(ip.fragment) == fragment::Part::Whole => {
            match icmp::inner_v4(ctx, place, ip.destination)? {
                Some(flow) if is_service(&flow, control) => (flow, icmp::ERROR),
                _ => return Ok(Verdict::pass(Counter::Passed)),
            }
        }
        _ => return Ok(Verdict::pass(Counter::Passed)),
    };
    let (decision, context) = connection(ctx, control, &flow, place, ip.ttl, flags)?;
    if matches!(parts, fragment::Part::First) {
        fragment::remember(ctx, place, false, u32::from(ip.id), decision);
    }
    act(ctx, control, &flow, place, decision, context)
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, control: ControlRef, tag: Tag, sender: PeerSlots, to_us: bool) -> Result<Verdict, Error> {
    let l3 = tag.l3();
    let ip = read::<Ipv6>(ctx, l3)?;
    let mut place = Place { tag, l4: l3 + IPV6, sender };
    let mut next = ip.next_header;
    let mut walk = fragment::Walk::default();
    if to_us && fragment::is_extension(next) {
        if !is_vip(&bytes(ip.destination)) {
            return Ok(Verdict::pass(Counter::Passed));
        }
        walk = fragment::walk(ctx, tag, next)?;
        place.l4 += walk.length();
        next = walk.next_header();
        if matches!(walk.part(), fragment::Part::Later) {
            // Only what TCP may be in was remembered.
            if next != PROTOCOL_TCP && !fragment::is_extension(next) {
                return Ok(Verdict::pass(Counter::Passed));
            }
            let later = Later { tag, v6: true, id: walk.id(), came_with: ip.hop_limit };
            return Ok(Verdict::follow(later));
        }
    }
    let (flow, flags) = match next {
        PROTOCOL_TCP if to_us => {
            let tcp = read::<Tcp>(ctx, place.l4)?;
            let flow = V6 { source: ip.source, destination: ip.destination, ports: tcp.ports };
            if !is_service(&flow, control) {
                return Ok(Verdict::pass(Counter::Passed));
            }
            let payload = usize::from(u16::from_be(ip.payload_length));
            if ip.version_class_flow as u8 >> 4 != 6 || !holds(ctx, l3 + IPV6 + payload) {
                return Err(Error::MalformedIp);
            }
            check_tcp(&tcp, payload, place.l4 - l3 - IPV6)?;
            (flow, tcp.flags & FIN_SYN_RST_ACK)
        }
        PROTOCOL_ICMPV6 if matches!(walk.part(), fragment::Part::Whole) => {
            if icmp::is_error_v6(ctx, place.l4)? {
                match icmp::inner_v6(ctx, place, ip.destination)? {
                    Some(flow) if to_us && is_service(&flow, control) => (flow, icmp::ERROR),
                    _ => return Ok(Verdict::pass(Counter::Passed)),
                }
            } else {
                // Solicitations come by multicast.
                return neighbour::icmpv6(ctx, tag);
            }
        }
        _ => return Ok(Verdict::pass(Counter::Passed)),
    };
    let (decision, context) = connection(ctx, control, &flow, place, ip.hop_limit, flags)?;
    if matches!(walk.part(), fragment::Part::First) {
        fragment::remember(ctx, place, true, walk.id(), decision);
    }
    act(ctx, control, &flow, place, decision, context)
}

#[inline(always)]
pub fn is_vip(address: &[u8; 16]) -> bool {
    // SAFETY: the value is not kept.
    unsafe { VIPS.get(address) }.is_some()
}

#[inline(always)]
fn is_service<F: Flow>(flow: &F, control: ControlRef) -> bool {
    let (vip, ports) = (flow.vip(), flow.ports().to_ne_bytes());
    let port = [ports[2], ports[3]];
    serves(control, vip, port)
}

/// Whether the port (in network order) of the virtual address is steered.
#[inline(always)]
pub fn serves(control: ControlRef, vip: [u64; 2], port: [u8; 2]) -> bool {
    let base = control.services_half() * SERVICE_SLOTS;
    let wanted = Service::words(vip, port);
    let stands = |slot: u32| {
        let Some(service) = SERVICES.get_ptr(base + slot) else { return false };
        // Word by word: comparing arrays would be a call of memcmp, octet by octet.
        // SAFETY: a slot is three words long.
        let [a, b, c] = unsafe { *service.cast::<[u64; 3]>() };
        (a ^ wanted[0]) | (b ^ wanted[1]) | (c ^ wanted[2]) == 0
    };
    let [one, other] = Service::slots(vip, port);
    stands(one) || stands(other)
}

/// `octets`: of the IP packet, or of its payload; `before`: how many of them are before the TCP header.
#[inline(always)]
fn check_tcp(tcp: &Tcp, octets: usize, before: usize) -> Result<(), Error> {
    if tcp.length() < TCP || octets < before + tcp.length() { Err(Error::MalformedTcp) } else { Ok(()) }
}

/// What was found out on the way to a decision, for those who act on it.
#[derive(Clone, Copy)]
pub struct Context {
    pub table: TableState,
    pub hash: u64,
    pub hop_limit: u8,
    pub icmp: bool,
}

/// Decides about a packet of a connection to a service.
#[inline(always)]
fn connection<F: Flow>(
    ctx: &XdpContext,
    control: ControlRef,
    flow: &F,
    place: Place,
    hop_limit: u8,
    flags: u8,
) -> Result<(Decision, Context), Error> {
    let kind = if flags == SYN { Kind::New } else { Kind::Other };
    let table = control.table()?;
    let icmp = flags == icmp::ERROR;
    let hash = flow.hash(control.key());
    let context = Context { table, hash, hop_limit, icmp };
    if abuse::denied(flow, control) {
        return Ok((Decision::Drop(Counter::Denied), context));
    }
    if matches!(kind, Kind::New) && abuse::over_limit(flow, control) {
        return Ok((Decision::Drop(Counter::Limited), context));
    }
    let bucket = (hash >> (64 - BUCKET_BITS)) as u32;
    let facts =
        Kernel { ctx, control, flow, place, half: table.half(), bucket, may_answer_cookie: !icmp && flags & ACK != 0 };
    let here = Here { slot: table.own_slot(), settling: table.settling() };
    Ok((unknown(steer::decide(&facts, here, hop_limit, kind)), context))
}

/// The decision, of which the verifier knows nothing: it would follow the rest of the way for each one that it has seen.
#[inline(always)]
fn unknown(decision: Decision) -> Decision {
    const TAKE: u64 = 0;
    const FORWARD: u64 = 1;
    const DROP: u64 = 2;
    let word = match decision {
        Decision::Take(counter) => TAKE << 32 | counter as u64,
        Decision::Drop(counter) => DROP << 32 | counter as u64,
        Decision::Forward { slot, hop_limit, counter } => {
            u64::from(slot) << 48 | u64::from(hop_limit) << 40 | FORWARD << 32 | counter as u64
        }
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return decision };
    // SAFETY: the slot is this CPU's own.
    let word = unsafe {
        core::ptr::write_volatile(scratch, word);
        core::ptr::read_volatile(scratch)
    };
    // SAFETY: what was written above is a counter's number.
    let counter = unsafe { core::mem::transmute::<u32, Counter>(word as u32) };
    match word >> 32 & 3 {
        TAKE => Decision::Take(counter),
        FORWARD => Decision::Forward { slot: (word >> 48) as u8 & NO_SLOT, hop_limit: (word >> 40) as u8, counter },
        _ => Decision::Drop(counter),
    }
}

#[inline(always)]
fn act<F: Flow>(
    ctx: &XdpContext,
    control: ControlRef,
    flow: &F,
    place: Place,
    decision: Decision,
    context: Context,
) -> Result<Verdict, Error> {
    match decision {
        Decision::Take(counter) => {
            let new = matches!(counter, Counter::OwnNew | Counter::NewAgain);
            if new && control.has(SYN_COOKIES) {
                return cookie::answer::<F>(ctx, place, flow.on_link(control), context.hop_limit);
            }
            Ok(Verdict::pass(if context.icmp { Counter::IcmpError } else { counter }))
        }
        Decision::Forward { slot, hop_limit, counter } => {
            let counter = if context.icmp { Counter::IcmpError } else { counter };
            let forward = Forward { half: context.table.half(), slot, hop_limit, entropy: context.hash as u16 };
            forward::send(ctx, place, F::V6, forward, counter, context.hop_limit)
        }
        Decision::Drop(counter) => Ok(Verdict::drop(counter)),
    }
}

/// The facts as the kernel has them.
struct Kernel<'a, F> {
    ctx: &'a XdpContext,
    control: ControlRef,
    flow: &'a F,
    place: Place,
    half: u32,
    bucket: u32,
    may_answer_cookie: bool,
}

impl<F: Flow> Facts for Kernel<'_, F> {
    #[inline(always)]
    fn owner(&self) -> Owner {
        let nobody = Owner::new(NO_SLOT, false);
        // SAFETY: the bucket is less than BUCKETS: it is the top bits of the hash.
        OWNERS.get_ptr(self.half).map_or(nobody, |owners| unsafe { *owners.cast::<Owner>().add(self.bucket as usize) })
    }

    #[inline(always)]
    fn chain(&self) -> Chain {
        CHAINS.get(self.half * BUCKETS + self.bucket).copied().unwrap_or(Chain::EMPTY)
    }

    #[inline(always)]
    fn successor(&self) -> u8 {
        let nobody = NO_SLOT;
        // SAFETY: as in `owner`.
        SUCCESSORS.get_ptr(self.half).map_or(nobody, |slots| unsafe { *slots.cast::<u8>().add(self.bucket as usize) })
    }

    #[inline(always)]
    fn socket(&self) -> Socket {
        self.flow.socket(self.ctx)
    }

    #[inline(always)]
    fn answers_cookie(&self) -> bool {
        self.may_answer_cookie && self.control.has(COOKIES_OUT) && F::answers_cookie(self.ctx, self.place)
    }

    #[inline(always)]
    fn alive(&self) -> bool {
        self.control.alive()
    }

    #[inline(always)]
    fn sender(&self) -> u8 {
        let slots = if self.place.sender == PeerSlots::NONE { frame_sender(self.ctx) } else { self.place.sender };
        slots.in_half(self.half)
    }
}

/// The member whose MAC address the frame comes from.
#[inline(always)]
fn frame_sender(ctx: &XdpContext) -> PeerSlots {
    read::<RawMac>(ctx, size_of::<RawMac>()).map_or(PeerSlots::NONE, |source| peer_slots(source.value()))
}

#[inline(never)]
fn peer_slots(mac: Mac) -> PeerSlots {
    let [a, b, c, d, e, f, _, _] = mac.0.to_le_bytes();
    // SAFETY: the value is copied.
    unsafe { PEERS.get(mac_key([a, b, c, d, e, f])) }.copied().unwrap_or(PeerSlots::NONE)
}

/// The key of the VIP map for an IPv4 address.
#[inline(always)]
pub fn is_vip_v4(address: u32) -> bool {
    is_vip(&key_v4(address))
}
