//! Whose packet is it? The life of a TCP packet to a virtual address.

use aya_ebpf::programs::XdpContext;
use proxy_common::{
    hash::{hash_v4, hash_v6},
    maps::{BUCKETS, Control, Counter, MAX_MEMBERS, MEMBER_PRESENT, MEMBER_SELF, NO_SLOT, NO_TABLE, Member, ServiceKey, mapped_v4},
};

use crate::{
    Verdict,
    error::Error,
    maps::{MEMBERS, PEERS, SERVICES, TABLE, VIPS},
    neighbour,
    packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6, PROTOCOL_ICMPV6, PROTOCOL_TCP, Tcp, at},
};

const TCP_FIN_SYN_RST_ACK: u8 = 0x17;
const TCP_SYN: u8 = 0x02;
/// More fragments, or a fragment offset (RFC 791).
const IPV4_FRAGMENT: u16 = 0x3fff;

/// Decides about one frame.
#[inline(always)]
pub fn frame(ctx: &XdpContext, control: &Control) -> Result<Verdict, Error> {
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: `at` checked the bounds; nothing has moved the packet since.
    let (destination, ethertype) = unsafe { ((*ethernet).destination, (*ethernet).ethertype) };
    if ethertype == ETHERTYPE_ARP {
        return neighbour::arp(ctx, control);
    }
    let to_us = destination == control.mac;
    match ethertype {
        ETHERTYPE_IPV4 if to_us => ipv4(ctx, control),
        ETHERTYPE_IPV6 => ipv6(ctx, control, to_us),
        _ => Ok(Verdict::Pass(Counter::Passed)),
    }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, control: &Control) -> Result<Verdict, Error> {
    const AT: usize = size_of::<Ethernet>();
    let ip = at::<Ipv4>(ctx, AT)?;
    // SAFETY: `at` checked the bounds.
    let ip = unsafe { &*ip };
    if ip.protocol != PROTOCOL_TCP {
        return Ok(Verdict::Pass(Counter::Passed));
    }
    let address = mapped_v4(ip.destination);
    if u16::from_be_bytes(ip.fragment) & IPV4_FRAGMENT != 0 {
        // SAFETY: the value is not kept.
        let vip = unsafe { VIPS.get(&address) }.is_some();
        return Ok(Verdict::Pass(if vip { Counter::Fragment } else { Counter::Passed }));
    }
    let header = usize::from(ip.version_ihl & 0x0f) * 4;
    let tcp = at::<Tcp>(ctx, AT + header)?;
    // SAFETY: `at` checked the bounds.
    let tcp = unsafe { &*tcp };
    if !is_service(address, tcp.destination_port) {
        return Ok(Verdict::Pass(Counter::Passed));
    }
    let total = usize::from(u16::from_be_bytes(ip.total_length));
    if ip.version_ihl >> 4 != 4 || header < size_of::<Ipv4>() || tcp_header(tcp) < size_of::<Tcp>() || total < header + tcp_header(tcp) {
        return Err(Error::Malformed);
    }
    let hash = hash_v4(control.key, ip.source, ip.destination, ports(tcp));
    connection(ctx, control, hash, tcp.flags)
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, control: &Control, to_us: bool) -> Result<Verdict, Error> {
    const AT: usize = size_of::<Ethernet>();
    let ip = at::<Ipv6>(ctx, AT)?;
    // SAFETY: `at` checked the bounds.
    let ip = unsafe { &*ip };
    if ip.next_header == PROTOCOL_ICMPV6 {
        // Solicitations come by multicast.
        return neighbour::icmpv6(ctx, control);
    }
    if ip.next_header != PROTOCOL_TCP || !to_us {
        return Ok(Verdict::Pass(Counter::Passed));
    }
    let tcp = at::<Tcp>(ctx, AT + size_of::<Ipv6>())?;
    // SAFETY: `at` checked the bounds.
    let tcp = unsafe { &*tcp };
    let (source, destination) = (ip.source, ip.destination);
    if !is_service(bytes(destination), tcp.destination_port) {
        return Ok(Verdict::Pass(Counter::Passed));
    }
    let payload = usize::from(u16::from_be_bytes(ip.payload_length));
    if ip.version_class_flow[0] >> 4 != 6 || tcp_header(tcp) < size_of::<Tcp>() || payload < tcp_header(tcp) {
        return Err(Error::Malformed);
    }
    let hash = hash_v6(control.key, source, destination, ports(tcp));
    connection(ctx, control, hash, tcp.flags)
}

#[inline(always)]
fn is_service(address: [u8; 16], port: [u8; 2]) -> bool {
    let key = ServiceKey { address, port, reserved: [0; 2] };
    // SAFETY: the value is not kept.
    unsafe { SERVICES.get(&key) }.is_some()
}

/// The TCP header's length in octets, as it says itself.
#[inline(always)]
fn tcp_header(tcp: &Tcp) -> usize {
    usize::from(tcp.data_offset >> 4) * 4
}

#[inline(always)]
fn ports(tcp: &Tcp) -> [u8; 4] {
    [tcp.source_port[0], tcp.source_port[1], tcp.destination_port[0], tcp.destination_port[1]]
}

/// The address's own bytes, out of the words that it was read as.
#[inline(always)]
pub fn bytes(words: [u64; 2]) -> [u8; 16] {
    let (a, b) = (words[0].to_le_bytes(), words[1].to_le_bytes());
    [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
}

/// The bucket's owner takes the packet.
#[inline(always)]
fn connection(ctx: &XdpContext, control: &Control, hash: u64, flags: u8) -> Result<Verdict, Error> {
    let new = flags & TCP_FIN_SYN_RST_ACK == TCP_SYN;
    let owner = owner(control, hash)?;
    if owner.flags & MEMBER_SELF != 0 {
        return Ok(Verdict::Pass(if new { Counter::OwnNew } else { Counter::Own }));
    }
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: `at` checked the bounds.
    let ethernet = unsafe { &mut *ethernet };
    // A peer that sent us this holds another table than we do. Sending it on could make a loop; so its
    // connections are decided by our sockets, and a new one waits until the tables agree.
    // SAFETY: the value is not kept.
    if unsafe { PEERS.get(&ethernet.source) }.is_some() {
        return Ok(if new { Verdict::Drop(Counter::PeerDisagreedNew) } else { Verdict::Pass(Counter::PeerDisagreed) });
    }
    ethernet.source = control.mac;
    ethernet.destination = owner.mac;
    Ok(Verdict::Transmit(if new { Counter::SteeredNew } else { Counter::Steered }))
}

#[inline(always)]
fn owner(control: &Control, hash: u64) -> Result<Member, Error> {
    // SAFETY: the daemon switches halves while we run, by an aligned store: either value is right.
    let half = unsafe { core::ptr::read_volatile(&raw const control.active_half) };
    if half == NO_TABLE {
        return Err(Error::NoTable);
    }
    let half = half & 1;
    let index = half * BUCKETS + (hash >> 48) as u32;
    let slot = TABLE.get(index).ok_or(Error::NoTable)?.first();
    if slot == NO_SLOT {
        return Err(Error::NoOwner);
    }
    let member = *MEMBERS.get(half * MAX_MEMBERS + u32::from(slot)).ok_or(Error::EmptySlot)?;
    if member.flags & MEMBER_PRESENT == 0 { Err(Error::EmptySlot) } else { Ok(member) }
}
