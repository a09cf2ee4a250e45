//! Bounds-checked views of the packet. All reads and writes of packet memory go through [`at`].

use aya_ebpf::programs::XdpContext;

use proxy_common::maps::mac_word;

use crate::error::Error;

pub const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
pub const ETHERTYPE_ARP: u16 = 0x0806u16.to_be();
pub const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
/// IEEE 802.1Q and 802.1ad.
pub const ETHERTYPE_VLAN: u16 = 0x8100u16.to_be();
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8u16.to_be();

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;

pub const ETHERNET: usize = size_of::<Ethernet>();
pub const IPV4: usize = size_of::<Ipv4>();
pub const IPV6: usize = size_of::<Ipv6>();
pub const UDP: usize = size_of::<Udp>();
pub const TCP: usize = size_of::<Tcp>();

/// An Ethernet address in one word (`proxy_common::maps::mac_word`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub u64);

impl Mac {
    #[inline(always)]
    pub const fn new(m: [u8; 6]) -> Self {
        Self(mac_word(m))
    }
}

/// An Ethernet address as it stands in a frame. A value of its own is a [`Mac`]: the kernel lets a packet be read at any
/// address, but not the stack, where the compiler might put this.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct RawMac {
    first: u32,
    last: u16,
}

impl RawMac {
    #[inline(always)]
    pub const fn of(mac: Mac) -> Self {
        Self { first: mac.0 as u32, last: (mac.0 >> 32) as u16 }
    }

    #[inline(always)]
    pub const fn value(self) -> Mac {
        Mac(self.first as u64 | (self.last as u64) << 32)
    }
}

#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Ethernet {
    pub destination: RawMac,
    pub source: RawMac,
    /// In network order, as all multi-octet fields here.
    pub ethertype: u16,
}

/// What follows the Ethernet addresses of a tagged frame, after its own type (IEEE 802.1Q).
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Vlan {
    pub tag: u16,
    pub ethertype: u16,
}

/// Octets of the frame's VLAN tag: none or four. A number that is computed without a branch, and without one put to use,
/// so that the kernel's verifier follows one path for both.
#[derive(Clone, Copy)]
pub struct Tag(u64);

impl Tag {
    const OCTETS: u64 = size_of::<Vlan>() as u64;

    /// The tag of a frame with this type after its addresses.
    #[inline(always)]
    pub fn of(ethertype: u16) -> Self {
        let differs = |from: u16| u64::from(ethertype ^ from);
        // Zero only where one of them is; one less of that has the topmost bit.
        let product = differs(ETHERTYPE_VLAN) * differs(ETHERTYPE_SERVICE_VLAN);
        Self(product.wrapping_sub(1) >> 63 << 2)
    }

    /// Of [`Tag::bit`].
    #[inline(always)]
    pub const fn from_bit(word: u64) -> Self {
        Self((word & 1) << 2)
    }

    /// 1 if there is a tag.
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        (self.0 & Self::OCTETS) >> 2
    }

    /// Where the network header begins.
    #[inline(always)]
    pub const fn l3(self) -> usize {
        ETHERNET + (self.0 & Self::OCTETS) as usize
    }

    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 & Self::OCTETS != 0
    }
}

/// RFC 826, for IPv4 over Ethernet.
#[repr(C, packed)]
pub struct Arp {
    pub header: [u8; 6],
    pub operation: [u8; 2],
    pub sender_mac: RawMac,
    pub sender: [u8; 4],
    pub target_mac: RawMac,
    pub target: [u8; 4],
}

/// RFC 791 section 3.1, without options.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

/// RFC 8200 section 3. Addresses as words, as the steering hash wants them.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Ipv6 {
    pub version_class_flow: u32,
    pub payload_length: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u64; 2],
    pub destination: [u64; 2],
}

/// What all IPv6 extension headers that are walked have in common (RFC 8200 section 4), and the rest of a fragment
/// header (section 4.5).
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Extension {
    pub next_header: u8,
    pub length: u8,
    pub offset_more: u16,
    pub id: u32,
}

/// RFC 9293 section 3.1, without options.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Tcp {
    /// Source port, then destination port.
    pub ports: u32,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub data_offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

impl Tcp {
    /// The header's length in octets, as it says itself.
    #[inline(always)]
    pub fn length(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

/// RFC 768.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Udp {
    pub source_port: u16,
    pub destination_port: u16,
    pub length: u16,
    pub checksum: u16,
}

/// The head that all ICMP and ICMPv6 errors have (RFC 792, RFC 4443 section 2.1).
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    pub parameter: u32,
}

/// RFC 4861 sections 4.3 and 4.4, with one link-layer address option: solicitation and advertisement
/// have the same shape.
#[repr(C, packed)]
pub struct Neighbour {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    pub flags: u32,
    pub target: [u64; 2],
    pub option_kind: u8,
    pub option_length: u8,
    pub option_mac: RawMac,
}

/// Length of a solicitation without options.
pub const NEIGHBOUR_MIN: usize = 24;

/// A pointer to a `T` at `offset`, if the packet holds one whole.
///
/// The pointer is good until the packet's ends are moved.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Result<*mut T, Error> {
    let mut start = ctx.data() + offset;
    // The compiler must not know how the start came about, or it would compute start and end apart from each other: the
    // verifier has to see that what is compared with the packet's end is what is used.
    // SAFETY: it changes nothing. (Without an instruction the kernel finds two line numbers for the next one.)
    unsafe { core::arch::asm!("{0} += 0", inout(reg) start, options(pure, nomem, nostack, preserves_flags)) };
    if start + size_of::<T>() > ctx.data_end() {
        return Err(Error::Truncated);
    }
    Ok(start as *mut T)
}

/// A copy of the `T` at `offset`.
#[inline(always)]
pub fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Result<T, Error> {
    // SAFETY: `at` checked the bounds, and every bit pattern is a value of the header types.
    Ok(unsafe { at::<T>(ctx, offset)?.read_unaligned() })
}

/// Writes a `T` at `offset`.
#[inline(always)]
pub fn write<T>(ctx: &XdpContext, offset: usize, value: T) -> Result<(), Error> {
    // SAFETY: `at` checked the bounds.
    unsafe { at::<T>(ctx, offset)?.write_unaligned(value) };
    Ok(())
}

/// Octets in the frame's first buffer.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> usize {
    ctx.data_end() - ctx.data()
}

/// Octets of the frame, in however many buffers it is.
#[inline(always)]
pub fn whole_length(ctx: &XdpContext) -> usize {
    // SAFETY: the helper takes the context that the kernel gave us.
    unsafe { aya_ebpf::helpers::bpf_xdp_get_buff_len(ctx.ctx) as usize }
}

/// Whether the frame reaches as far as its IP header says. Of a frame in several buffers only the first is looked at
/// besides: the headers are in it, and the kernel that takes it checks the rest.
#[inline(always)]
pub fn holds(ctx: &XdpContext, end: usize) -> bool {
    end <= length(ctx) || end <= whole_length(ctx)
}

/// Moves the frame's start; a negative number makes room before it.
#[inline(always)]
pub fn adjust_head(ctx: &XdpContext, by: i32) -> Result<(), Error> {
    // SAFETY: the helper takes the context that the kernel gave us.
    if unsafe { aya_ebpf::helpers::bpf_xdp_adjust_head(ctx.ctx, by) } == 0 { Ok(()) } else { Err(Error::NoRoom) }
}

/// Moves the frame's end; a negative number cuts.
#[inline(always)]
pub fn adjust_tail(ctx: &XdpContext, by: i32) -> Result<(), Error> {
    // SAFETY: the helper takes the context that the kernel gave us.
    if by == 0 || unsafe { aya_ebpf::helpers::bpf_xdp_adjust_tail(ctx.ctx, by) } == 0 {
        Ok(())
    } else {
        Err(Error::NoRoom)
    }
}

/// Adds the carries of a one's-complement sum (RFC 1071) and complements it.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// One's-complement sum of `N` 16-bit words of the packet, in the packet's own order.
#[inline(always)]
pub fn sum<const N: usize>(ctx: &XdpContext, offset: usize) -> Result<u64, Error> {
    let words = at::<[u16; N]>(ctx, offset)?;
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        // SAFETY: `at` checked the bounds of all N words.
        sum += u64::from(unsafe { words.cast::<u16>().add(i).read_unaligned() });
        i += 1;
    }
    Ok(sum)
}
