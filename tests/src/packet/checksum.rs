//! The Internet checksum (RFC 1071), summed anew over what is on the wire.

use std::fmt;
use std::net::IpAddr;

use etherparse::LaxIpSlice;

/// A checksum that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which header's.
    pub what: String,
    pub source: IpAddr,
    pub destination: IpAddr,
}

impl Fault {
    pub(super) fn new(what: &str, ip: &LaxIpSlice<'_>) -> Self {
        Self { what: what.to_owned(), source: ip.source_addr(), destination: ip.destination_addr() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad {} checksum in a packet from {} to {}", self.what, self.source, self.destination)
    }
}

/// One's-complement sum, not yet folded.
#[must_use]
pub fn sum(octets: &[u8]) -> u64 {
    let (words, rest) = octets.as_chunks::<2>();
    let whole: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    whole + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

#[allow(clippy::cast_possible_truncation, reason = "the loop leaves 16 bits")]
const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum that a transport's checksum covers besides its own octets (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    of(source) + of(destination) + u64::from(protocol) + length as u64
}

/// Whether octets with their checksum in them, and what else it covers, sum up as they must.
#[must_use]
pub fn is_right(octets: &[u8], more: u64) -> bool {
    fold(sum(octets) + more) == 0xffff
}

/// The checksum of octets in which its field is 0.
#[must_use]
pub fn of(octets: &[u8], more: u64) -> u16 {
    !fold(sum(octets) + more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&octets)), 0xddf2);
        assert_eq!(of(&octets, 0), !0xddf2);
    }

    #[test]
    fn an_odd_octet_is_the_upper_half() {
        assert_eq!(sum(&[0x12]), 0x1200);
        assert!(is_right(&[0xed, 0xff, 0x12], 0));
        assert!(!is_right(&[0xed, 0xff, 0x13], 0));
    }
}
