//! What other front ends encapsulated is unpacked here: there is no tunnel device. A packet that somebody else
//! encapsulated is dropped. (Who forges a member's address gains nothing: what is inside is treated as any packet from
//! outside.)

use aya_ebpf::programs::XdpContext;
use proxy_common::maps::{AddressKey, Control, Counter, PeerSlots};

use crate::{
    Handle,
    error::Error,
    flow::{bytes, key_v4},
    forward::{OUTER_V4, OUTER_V6},
    fragment,
    maps::{ControlRef, PEERS, count},
    packet::{
        ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4, IPV6, Ipv4, Ipv6, PROTOCOL_UDP, Tag, Udp, Vlan,
        adjust_head, read, write,
    },
};

/// What is in a frame.
#[derive(Clone, Copy)]
pub struct Content {
    pub ethertype: u16,
    /// The front end that encapsulated it.
    pub sender: PeerSlots,
}

impl Content {
    #[inline(always)]
    pub const fn plain(ethertype: u16) -> Self {
        Self { ethertype, sender: PeerSlots::NONE }
    }
}

/// The frame's content, after what another front end put around the packet was taken off.
#[inline(always)]
pub fn strip(ctx: &XdpContext, control: ControlRef, tag: Tag, ethertype: u16) -> Result<Content, Error> {
    let l3 = tag.l3();
    let constants = control.constants();
    match ethertype {
        ETHERTYPE_IPV4 => {
            let ip = read::<Ipv4>(ctx, l3)?;
            let part = fragment::part_v4(ip.fragment);
            // A later fragment has no ports: what stands in their place is data.
            let is_udp = ip.protocol == PROTOCOL_UDP && part != fragment::Part::Later;
            if !is_udp || ip.destination != u32::from_ne_bytes(constants.address_v4) {
                return Ok(Content::plain(ethertype));
            }
            let header = usize::from(ip.version_ihl & 0x0f) * 4;
            if !is_ours(ctx, constants, l3 + header)? {
                return Ok(Content::plain(ethertype));
            }
            if header != IPV4 || part != fragment::Part::Whole {
                return Err(Error::MalformedOuter);
            }
            unpack(ctx, tag, OUTER_V4, &key_v4(ip.source))
        }
        ETHERTYPE_IPV6 => {
            let ip = read::<Ipv6>(ctx, l3)?;
            let (source, destination) = (ip.source, ip.destination);
            if ip.next_header != PROTOCOL_UDP || bytes(destination) != constants.address_v6 {
                return Ok(Content::plain(ethertype));
            }
            if !is_ours(ctx, constants, l3 + IPV6)? {
                return Ok(Content::plain(ethertype));
            }
            unpack(ctx, tag, OUTER_V6, &bytes(source))
        }
        _ => Ok(Content::plain(ethertype)),
    }
}

#[inline(always)]
fn is_ours(ctx: &XdpContext, constants: &Control, udp: usize) -> Result<bool, Error> {
    Ok(read::<Udp>(ctx, udp)?.destination_port == u16::from_ne_bytes(constants.encapsulation_port))
}

#[inline(always)]
fn unpack(ctx: &XdpContext, tag: Tag, overhead: usize, source: &AddressKey) -> Result<Content, Error> {
    // SAFETY: the value is copied.
    let Some(sender) = unsafe { PEERS.get(source) }.copied() else { return Err(Error::Stranger) };
    // The first octet of the inner packet tells what it is; it also tells GUE's variants apart.
    let ethertype = match read::<u32>(ctx, tag.l3() + overhead)? as u8 >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => return Err(Error::MalformedOuter),
    };
    match take_off(Handle::of(ctx), tag, overhead as u32, ethertype) {
        true => Ok(Content { ethertype, sender }),
        false => Err(Error::NoRoom),
    }
}

/// Moves the frame's own headers up to the inner packet.
#[inline(never)]
fn take_off(handle: Handle, tag: Tag, overhead: u32, ethertype: u16) -> bool {
    let ctx = handle.open();
    let taken = if tag.is_some() {
        take_off_tagged(&ctx, overhead, ethertype)
    } else {
        take_off_plain(&ctx, overhead, ethertype)
    };
    if taken.is_ok() {
        count(Counter::Decapsulated as u32);
    }
    taken.is_ok()
}

#[inline(always)]
fn take_off_plain(ctx: &XdpContext, overhead: u32, ethertype: u16) -> Result<(), Error> {
    let ethernet = read::<Ethernet>(ctx, 0)?;
    adjust_head(ctx, overhead as i32)?;
    write(ctx, 0, Ethernet { ethertype, ..ethernet })
}

#[inline(always)]
fn take_off_tagged(ctx: &XdpContext, overhead: u32, ethertype: u16) -> Result<(), Error> {
    let (ethernet, vlan) = (read::<Ethernet>(ctx, 0)?, read::<Vlan>(ctx, ETHERNET)?);
    adjust_head(ctx, overhead as i32)?;
    write(ctx, 0, ethernet)?;
    write(ctx, ETHERNET, Vlan { ethertype, ..vlan })
}
