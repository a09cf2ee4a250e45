//! The programs that `cargo xtask bench steer` runs before and beside the XDP program.
//!
//! A **prologue** makes the packet of the next flow out of whatever the run before left behind, and tail-calls what is
//! measured. **Floors** are the least that stateless steering must do: parse, hash, table, rewrite; they know no virtual
//! address, no counter, no limit, and lower no hop limit. They read the same maps as the XDP program.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_PASS, XDP_TX},
    helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};
use proxy_common::{
    bench::{ETHERNET, OUTER, WORDS, WORDS_ENCAPSULATED, Workload},
    hash::{hash_v4, hash_v6},
    maps::{BUCKET_BITS, BUCKETS, Control, HALVES, MMAPABLE, Member, Owner, SLOTS, TableState},
};

#[map]
static WORKLOAD: Array<Workload> = Array::with_max_entries(1, MMAPABLE);

#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[map]
static CONTROL: Array<Control> = Array::pinned(1, MMAPABLE);

#[map]
static OWNERS: Array<[Owner; BUCKETS as usize]> = Array::pinned(HALVES, MMAPABLE);

#[map]
static MEMBERS: Array<Member> = Array::pinned(HALVES * SLOTS, MMAPABLE);

const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV4: usize = 20;
const IPV6: usize = 40;

#[xdp(frags)]
pub fn prologue_v4(ctx: XdpContext) -> u32 {
    prologue::<false, 0, WORDS>(&ctx)
}

#[xdp(frags)]
pub fn prologue_v6(ctx: XdpContext) -> u32 {
    prologue::<true, 0, WORDS>(&ctx)
}

#[xdp(frags)]
pub fn prologue_v4_encapsulated(ctx: XdpContext) -> u32 {
    prologue::<false, OUTER, WORDS_ENCAPSULATED>(&ctx)
}

#[xdp(frags)]
pub fn prologue_v6_encapsulated(ctx: XdpContext) -> u32 {
    prologue::<true, OUTER, WORDS_ENCAPSULATED>(&ctx)
}

/// Nothing: what every other figure is net of.
#[xdp(frags)]
pub fn empty(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[xdp(frags)]
pub fn floor_mac_v4(ctx: XdpContext) -> u32 {
    floor::<false, false>(&ctx).unwrap_or(XDP_ABORTED)
}

#[xdp(frags)]
pub fn floor_mac_v6(ctx: XdpContext) -> u32 {
    floor::<true, false>(&ctx).unwrap_or(XDP_ABORTED)
}

#[xdp(frags)]
pub fn floor_encapsulate_v4(ctx: XdpContext) -> u32 {
    floor::<false, true>(&ctx).unwrap_or(XDP_ABORTED)
}

#[xdp(frags)]
pub fn floor_encapsulate_v6(ctx: XdpContext) -> u32 {
    floor::<true, true>(&ctx).unwrap_or(XDP_ABORTED)
}

/// Makes the next flow's packet and goes on to what is measured; whoever gets here again failed to.
#[inline(always)]
fn prologue<const V6: bool, const INNER: usize, const LENGTH: usize>(ctx: &XdpContext) -> u32 {
    if make::<V6, INNER, LENGTH>(ctx).is_some() {
        // SAFETY: the helper reads a clock. It waits for the stores above to be done, as they are long done in a packet
        // that a NIC wrote: otherwise what is measured would pay for reading in other widths than we wrote in.
        unsafe { bpf_ktime_get_ns() };
        // SAFETY: nothing is to be dropped here.
        unsafe { NEXT.tail_call(ctx, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn make<const V6: bool, const INNER: usize, const LENGTH: usize>(ctx: &XdpContext) -> Option<()> {
    let workload = WORKLOAD.get_ptr_mut(0)?;
    // SAFETY: the map's element; nobody else writes it while the bench runs.
    let workload = unsafe { &mut *workload };
    undo_moves::<LENGTH>(ctx, workload.moves_end != 0)?;
    let (address, port) = workload.flow(workload.count);
    workload.count += 1;
    let frame = at::<[u64; LENGTH]>(ctx, 0)?;
    // SAFETY: `at` checked the bounds, here and below; the workload's frame is as long as the longest.
    unsafe { frame.write_unaligned((&raw const workload.frame).cast::<[u64; LENGTH]>().read()) };
    let ip = INNER + ETHERNET;
    if V6 {
        let source = at::<u64>(ctx, ip + 8)?;
        unsafe { source.write_unaligned(address.to_be()) };
    } else {
        let source = at::<u32>(ctx, ip + 12)?;
        unsafe { source.write_unaligned((address as u32).to_be()) };
        let checksum = at::<u16>(ctx, ip + 10)?;
        let sum = workload.header_sum as u32 + (address as u32 >> 16) + (address as u32 & 0xffff);
        unsafe { checksum.write_unaligned((!fold(sum)).to_be()) };
    }
    let source_port = at::<u16>(ctx, ip + if V6 { IPV6 } else { IPV4 })?;
    unsafe { source_port.write_unaligned((port as u16).to_be()) };
    Some(())
}

/// The run before may have moved the frame's beginning or its end. One helper call in any case, so that every variant
/// pays for one.
#[inline(always)]
fn undo_moves<const LENGTH: usize>(ctx: &XdpContext, moves_end: bool) -> Option<()> {
    let grown = (ctx.data_end() - ctx.data()) as i32 - 8 * LENGTH as i32;
    // SAFETY: the helpers take the context that the kernel gave us.
    let failed =
        unsafe { if moves_end { bpf_xdp_adjust_tail(ctx.ctx, -grown) } else { bpf_xdp_adjust_head(ctx.ctx, grown) } };
    (failed == 0).then_some(())
}

#[inline(always)]
fn floor<const V6: bool, const ENCAPSULATE: bool>(ctx: &XdpContext) -> Option<u32> {
    let control = CONTROL.get(0)?;
    let hash = if V6 { parse_v6(ctx, control)? } else { parse_v4(ctx, control)? };
    // SAFETY: the map's element; an aligned load.
    let half = unsafe { TableState((&raw const control.table).read_volatile()) }.half();
    let bucket = (hash >> (64 - BUCKET_BITS)) as usize;
    let owner = OWNERS.get(half)?[bucket];
    let member = MEMBERS.get(half * SLOTS + u32::from(owner.slot()))?;
    if ENCAPSULATE { encapsulate(ctx, member) } else { rewrite(ctx, member) }
}

#[inline(always)]
fn parse_v4(ctx: &XdpContext, control: &Control) -> Option<u64> {
    // SAFETY: `at` checks the bounds.
    let header = unsafe { &*at::<[u8; ETHERNET + IPV4 + 4]>(ctx, 0)? };
    if u16::from_ne_bytes([header[12], header[13]]) != ETHERTYPE_IPV4 || header[14] != 0x45 || header[23] != TCP {
        return None;
    }
    // SAFETY: all within the header that was checked.
    let (source, destination, ports) = unsafe {
        let ip = header.as_ptr();
        (ip.add(26).cast::<[u8; 4]>().read(), ip.add(30).cast::<[u8; 4]>().read(), ip.add(34).cast::<[u8; 4]>().read())
    };
    Some(hash_v4(control.key, source, destination, ports))
}

#[inline(always)]
fn parse_v6(ctx: &XdpContext, control: &Control) -> Option<u64> {
    // SAFETY: `at` checks the bounds.
    let header = unsafe { &*at::<[u8; ETHERNET + IPV6 + 4]>(ctx, 0)? };
    if u16::from_ne_bytes([header[12], header[13]]) != ETHERTYPE_IPV6 || header[20] != TCP {
        return None;
    }
    // SAFETY: all within the header that was checked.
    let (source, destination, ports) = unsafe {
        let ip = header.as_ptr();
        let word = |offset| ip.add(offset).cast::<u64>().read_unaligned();
        ([word(22), word(30)], [word(38), word(46)], ip.add(54).cast::<[u8; 4]>().read())
    };
    Some(hash_v6(control.key, source, destination, ports))
}

#[inline(always)]
fn rewrite(ctx: &XdpContext, member: &Member) -> Option<u32> {
    let macs = at::<[[u8; 6]; 2]>(ctx, 0)?;
    // SAFETY: `at` checked the bounds.
    unsafe { *macs = [member.mac, (*macs)[0]] };
    Some(XDP_TX)
}

/// As the XDP program puts a packet into UDP over IPv4, without asking how long it may be.
#[inline(always)]
fn encapsulate(ctx: &XdpContext, member: &Member) -> Option<u32> {
    // SAFETY: `at` checks the bounds.
    let own = unsafe { (*at::<[[u8; 6]; 2]>(ctx, 0)?)[0] };
    // SAFETY: the helper takes the context that the kernel gave us.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(OUTER as i32)) } != 0 {
        return None;
    }
    let length = (ctx.data_end() - ctx.data() - ETHERNET) as u16;
    let outer = at::<Outer>(ctx, 0)?;
    let sum = member.outer_sum + u32::from(length);
    // SAFETY: `at` checked the bounds, after the beginning was moved.
    unsafe {
        (*outer).macs = [member.mac, own];
        (*outer).ethertype = ETHERTYPE_IPV4;
        (*outer).version_tos = [0x45, 0];
        (*outer).length = length.to_be();
        (*outer).id_fragment = 0x4000_u32.to_be();
        (*outer).ttl_protocol = [64, UDP];
        (*outer).checksum = (!fold(sum)).to_be();
        (*outer).source = first4(&member.outer_source);
        (*outer).destination = first4(&member.outer_destination);
        (*outer).ports = [port(0xc000), port(6_080)];
        (*outer).udp_length = (length - IPV4 as u16).to_be();
        (*outer).udp_checksum = 0;
    }
    Some(XDP_TX)
}

/// What an encapsulated frame begins with.
#[repr(C, packed)]
struct Outer {
    macs: [[u8; 6]; 2],
    ethertype: u16,
    version_tos: [u8; 2],
    length: u16,
    id_fragment: u32,
    ttl_protocol: [u8; 2],
    checksum: u16,
    source: [u8; 4],
    destination: [u8; 4],
    ports: [u16; 2],
    udp_length: u16,
    udp_checksum: u16,
}

const _: () = assert!(size_of::<Outer>() == ETHERNET + OUTER);

#[inline(always)]
const fn port(number: u16) -> u16 {
    number.to_be()
}

#[inline(always)]
const fn first4(address: &[u8; 16]) -> [u8; 4] {
    [address[0], address[1], address[2], address[3]]
}

/// Folds a one's-complement sum (RFC 1071).
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A pointer to a `T` at `offset`, if the packet holds one whole.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() { None } else { Some(start as *mut T) }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
