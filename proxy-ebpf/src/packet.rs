//! Bounds-checked views of the packet. All reads and writes of packet memory are here.

use aya_ebpf::programs::XdpContext;

use crate::error::Error;

pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_ICMPV6: u8 = 58;

#[repr(C, packed)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ethertype: [u8; 2],
}

/// RFC 826, for IPv4 over Ethernet.
#[repr(C, packed)]
pub struct Arp {
    pub header: [u8; 6],
    pub operation: [u8; 2],
    pub sender_mac: [u8; 6],
    pub sender: [u8; 4],
    pub target_mac: [u8; 6],
    pub target: [u8; 4],
}

/// RFC 791 section 3.1, without options.
#[repr(C, packed)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: [u8; 2],
    pub id: [u8; 2],
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

/// RFC 8200 section 3. Addresses as words, as the steering hash wants them.
#[repr(C, packed)]
pub struct Ipv6 {
    pub version_class_flow: [u8; 4],
    pub payload_length: [u8; 2],
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u64; 2],
    pub destination: [u64; 2],
}

/// RFC 9293 section 3.1, as far as steering reads it.
#[repr(C, packed)]
pub struct Tcp {
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    pub sequence: [u8; 4],
    pub acknowledgment: [u8; 4],
    pub data_offset: u8,
    pub flags: u8,
    pub window: [u8; 2],
    pub checksum: [u8; 2],
    pub urgent: [u8; 2],
}

/// RFC 4861 sections 4.3 and 4.4, with one link-layer address option: solicitation and advertisement
/// have the same shape.
#[repr(C, packed)]
pub struct Neighbour {
    pub kind: u8,
    pub code: u8,
    pub checksum: [u8; 2],
    pub flags: [u8; 4],
    pub target: [u64; 2],
    pub option_kind: u8,
    pub option_length: u8,
    pub option_mac: [u8; 6],
}

/// Length of a solicitation without options.
pub const NEIGHBOUR_MIN: usize = 24;

/// A pointer to a `T` at `offset`, if the packet holds one whole.
///
/// The pointer is good until the packet's ends are moved.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Result<*mut T, Error> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return Err(Error::Truncated);
    }
    Ok(start as *mut T)
}

/// Octets in the frame.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> usize {
    ctx.data_end() - ctx.data()
}
