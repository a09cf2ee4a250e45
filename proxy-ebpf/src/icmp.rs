//! ICMP and ICMPv6 errors about connections to virtual addresses: they quote a packet that a front end sent, so the
//! connection that they are about has the quoted addresses and ports the other way round. They must reach the front end
//! that has it, or path-MTU discovery breaks (RFC 1191, RFC 8201).

use aya_ebpf::programs::XdpContext;

use crate::{
    error::Error,
    flow::{Place, V4, V6},
    packet::{IPV4, IPV6, Icmp, Ipv4, Ipv6, PROTOCOL_TCP, read},
    steer,
};

/// Stands for the TCP flags of an error: only four of a packet's are looked at, and never these.
pub const ERROR: u8 = 0xff;

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6 types below this are errors (RFC 4443 section 2.1).
const FIRST_INFORMATIONAL: u8 = 128;
const ICMP: usize = size_of::<Icmp>();

/// The connection that the error is about, if it is an error about TCP of a virtual address.
#[inline(always)]
pub fn inner_v4(ctx: &XdpContext, place: Place, destination: u32) -> Result<Option<V4>, Error> {
    let icmp = read::<Icmp>(ctx, place.l4)?;
    if !matches!(icmp.kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM) || !steer::is_vip_v4(destination) {
        return Ok(None);
    }
    let inner = place.l4 + ICMP;
    let quoted = read::<Ipv4>(ctx, inner)?;
    let header = usize::from(quoted.version_ihl & 0x0f) * 4;
    if quoted.protocol != PROTOCOL_TCP || header < IPV4 || u16::from_be(quoted.fragment) & 0x1fff != 0 {
        return Ok(None);
    }
    let ports = read::<u32>(ctx, inner + header)?.rotate_left(16);
    Ok((quoted.source == destination).then_some(V4 { source: quoted.destination, destination, ports }))
}

#[inline(always)]
pub fn is_error_v6(ctx: &XdpContext, l4: usize) -> Result<bool, Error> {
    Ok(read::<Icmp>(ctx, l4)?.kind < FIRST_INFORMATIONAL)
}

/// As [`inner_v4`]. A quoted packet with extension headers is not looked into: front ends send none.
#[inline(always)]
pub fn inner_v6(ctx: &XdpContext, place: Place, destination: [u64; 2]) -> Result<Option<V6>, Error> {
    let inner = place.l4 + ICMP;
    let quoted = read::<Ipv6>(ctx, inner)?;
    let source = quoted.source;
    if quoted.next_header != PROTOCOL_TCP || source != destination {
        return Ok(None);
    }
    let ports = read::<u32>(ctx, inner + IPV6)?.rotate_left(16);
    Ok(Some(V6 { source: quoted.destination, destination: source, ports }))
}
