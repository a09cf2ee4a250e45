//! What other front ends encapsulated is unpacked here: there is no tunnel device. A packet that somebody else
//! encapsulated is dropped. (Who forges a member's address gains nothing: what is inside is treated as any packet from
//! outside.)

use aya_ebpf::programs::XdpContext;
use proxy_common::maps::{AddressKey, Control, Counter};

use crate::{
    error::Error,
    flow::{bytes, key_v4},
    forward::{OUTER_V4, OUTER_V6},
    maps::{ControlRef, PEERS, count},
    packet::{
        ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4, IPV6, Ipv4, Ipv6, PROTOCOL_UDP, Udp, Vlan, adjust_head, read,
        write,
    },
};

/// The frame's network protocol, after what another front end put around the packet was taken off.
#[inline(always)]
pub fn strip(ctx: &XdpContext, control: ControlRef, l3: usize, ethertype: u16) -> Result<u16, Error> {
    let constants = control.constants();
    match ethertype {
        ETHERTYPE_IPV4 => {
            let ip = read::<Ipv4>(ctx, l3)?;
            if ip.protocol != PROTOCOL_UDP || ip.destination != u32::from_ne_bytes(constants.address_v4) {
                return Ok(ethertype);
            }
            let header = usize::from(ip.version_ihl & 0x0f) * 4;
            if !is_ours(ctx, constants, l3 + header)? {
                return Ok(ethertype);
            }
            let fragmented = u16::from_be(ip.fragment) & 0x3fff != 0;
            if header != IPV4 || fragmented {
                return Err(Error::MalformedOuter);
            }
            unpack(ctx, l3, OUTER_V4, &key_v4(ip.source))
        }
        ETHERTYPE_IPV6 => {
            let ip = read::<Ipv6>(ctx, l3)?;
            let (source, destination) = (ip.source, ip.destination);
            if ip.next_header != PROTOCOL_UDP || bytes(destination) != constants.address_v6 {
                return Ok(ethertype);
            }
            if !is_ours(ctx, constants, l3 + IPV6)? {
                return Ok(ethertype);
            }
            unpack(ctx, l3, OUTER_V6, &bytes(source))
        }
        _ => Ok(ethertype),
    }
}

#[inline(always)]
fn is_ours(ctx: &XdpContext, constants: &Control, udp: usize) -> Result<bool, Error> {
    Ok(read::<Udp>(ctx, udp)?.destination_port == u16::from_ne_bytes(constants.encapsulation_port))
}

#[inline(always)]
fn unpack(ctx: &XdpContext, l3: usize, overhead: usize, source: &AddressKey) -> Result<u16, Error> {
    // SAFETY: the value is not kept.
    if unsafe { PEERS.get(source) }.is_none() {
        return Err(Error::Stranger);
    }
    // The first octet of the inner packet tells what it is; it also tells GUE's variants apart.
    let ethertype = match read::<u8>(ctx, l3 + overhead)? >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => return Err(Error::MalformedOuter),
    };
    let ethernet = read::<Ethernet>(ctx, 0)?;
    let tag = if l3 == ETHERNET { None } else { Some(read::<Vlan>(ctx, ETHERNET)?) };
    adjust_head(ctx, overhead as i32)?;
    match tag {
        None => write(ctx, 0, Ethernet { ethertype, ..ethernet })?,
        Some(tag) => {
            write(ctx, 0, ethernet)?;
            write(ctx, ETHERNET, Vlan { ethertype, ..tag })?;
        }
    }
    count(Counter::Decapsulated);
    Ok(ethertype)
}
