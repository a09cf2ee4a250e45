//! What `cargo xtask bench steer` and the programs that it runs agree on. No part of the kernel ABI: nothing of it is
//! pinned, and the daemon has none of it.

/// Words of a frame that the bench makes: the longest headers, and little more, since a SYN cookie answers short frames.
pub const WORDS: usize = 10;
/// Words of an encapsulated one.
pub const WORDS_ENCAPSULATED: usize = 14;
/// Octets of the outer headers of an encapsulated frame: IPv4 and UDP.
pub const OUTER: usize = 28;
/// Octets of an Ethernet header.
pub const ETHERNET: usize = 14;

/// The array with the one [`Workload`].
pub const WORKLOAD: &str = "WORKLOAD";
/// The program array whose one element the prologues go on to.
pub const NEXT: &str = "NEXT";

/// Which packets a prologue makes: one frame, and how the flows differ from it.
///
/// The flow of packet number `n` is `n & flow_mask`, times `multiplier`: a spread number. Bits of it become a host and a
/// port. Nothing is looked up, so that a million flows cost the prologue what one costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Workload {
    /// Packets made so far.
    pub count: u64,
    /// Number of flows less one; the number is a power of two.
    pub flow_mask: u64,
    /// Spreads the flows over addresses and ports.
    pub multiplier: u64,
    pub host_shift: u64,
    pub host_mask: u64,
    /// The host is moved up by so many bits before it becomes part of the address.
    pub host_left: u64,
    pub port_shift: u64,
    pub port_mask: u64,
    /// What the host is put into, in host order: an IPv4 address, or the upper half of an IPv6 address.
    pub address: u64,
    /// What the port bits are put into, in host order.
    pub port: u64,
    /// One's-complement sum of the frame's IPv4 header with neither checksum nor source address, in host order.
    pub header_sum: u64,
    /// 1 if what is measured moves the frame's end, 0 if it moves its beginning.
    pub moves_end: u64,
    /// The frame; a plain one is shorter.
    pub frame: [u64; WORDS_ENCAPSULATED],
}

impl Workload {
    /// Source address bits and source port of a flow, in host order.
    #[inline(always)]
    #[must_use]
    pub const fn flow(&self, number: u64) -> (u64, u64) {
        let spread = (number & self.flow_mask).wrapping_mul(self.multiplier);
        let host = ((spread >> (self.host_shift & 63)) & self.host_mask) << (self.host_left & 63);
        (self.address | host, self.port | ((spread >> (self.port_shift & 63)) & self.port_mask))
    }
}
