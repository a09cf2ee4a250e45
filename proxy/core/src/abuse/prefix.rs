//! IP prefixes: what can be denied.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Shorter IPv4 prefixes are refused: they are far more of the Internet than anybody means to deny.
pub const MIN_V4_BITS: u8 = 8;
/// Shorter IPv6 prefixes are refused, as [`MIN_V4_BITS`] says.
pub const MIN_V6_BITS: u8 = 16;
/// Bits before the IPv4 address in an IPv6 address that stands for one (RFC 4291 section 2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// An IPv4 or IPv6 prefix without host bits. An IPv4 prefix that is written as an IPv6 one (`::ffff:192.0.2.0/120`) is
/// the IPv4 prefix: no packet has such a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(IpAddr, u8)", into = "(IpAddr, u8)")]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

/// Why a text or a pair is no prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("is no IP address or prefix (192.0.2.7, 192.0.2.0/24, 2001:db8::/32)")]
    Malformed,
    #[error("a prefix of {bits} bits, but such an address has {most}")]
    TooLong { bits: u8, most: u8 },
    #[error("denies too much: the shortest prefix is /{least}")]
    TooShort { least: u8 },
    #[error("has bits after its prefix; did you mean {canonical}?")]
    HostBits { canonical: Prefix },
}

impl Prefix {
    /// Before all others.
    pub(super) const FIRST: Self = Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), bits: 0 };

    /// A prefix of `bits` bits.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(address: IpAddr, bits: u8) -> Result<Self, PrefixError> {
        let most = width(address);
        if bits > most {
            return Err(PrefixError::TooLong { bits, most });
        }
        let (address, bits) = unmapped(address, bits);
        let least = if address.is_ipv4() { MIN_V4_BITS } else { MIN_V6_BITS };
        if bits < least {
            return Err(PrefixError::TooShort { least });
        }
        let canonical = Self { address: masked(address, bits), bits };
        if canonical.address == address { Ok(canonical) } else { Err(PrefixError::HostBits { canonical }) }
    }

    /// The prefix that is this address alone.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, bits: width(address) }
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its length in bits.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether an address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.bits) == self.address
    }

    /// All prefixes that an address lies in, the longest first.
    pub fn covering(address: IpAddr) -> impl Iterator<Item = Self> {
        let address = address.to_canonical();
        let least = if address.is_ipv4() { MIN_V4_BITS } else { MIN_V6_BITS };
        (least..=width(address)).rev().map(move |bits| Self { address: masked(address, bits), bits })
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn unmapped(address: IpAddr, bits: u8) -> (IpAddr, u8) {
    match address.to_canonical() {
        IpAddr::V4(v4) if address.is_ipv6() && bits >= MAPPED_BITS => (v4.into(), bits - MAPPED_BITS),
        IpAddr::V4(_) | IpAddr::V6(_) => (address, bits),
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    let bits = u32::from(bits);
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into(),
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(parse_bits(bits)?)),
            None => (text, None),
        };
        let address = IpAddr::from_str(address).map_err(|_e| PrefixError::Malformed)?;
        Self::new(address, bits.unwrap_or(width(address)))
    }
}

/// `parse` would take a sign too.
fn parse_bits(text: &str) -> Result<u8, PrefixError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(PrefixError::Malformed)
}

impl TryFrom<(IpAddr, u8)> for Prefix {
    type Error = PrefixError;

    fn try_from((address, bits): (IpAddr, u8)) -> Result<Self, PrefixError> {
        Self::new(address, bits)
    }
}

impl From<Prefix> for (IpAddr, u8) {
    fn from(prefix: Prefix) -> Self {
        (prefix.address, prefix.bits)
    }
}

/// A single address is written without its length.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.bits == width(self.address) {
            self.address.to_string()
        } else {
            format!("{}/{}", self.address, self.bits)
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        Prefix::from_str(text).map(|p| p.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn prefixes_are_read_and_written() {
        for (text, canonical) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("2001:DB8::1", "2001:db8::1"),
            ("2001:db8:0:0::/32", "2001:db8::/32"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn faults_are_told() {
        for text in ["", "x", "192.0.2", "192.0.2.0/", "192.0.2.0/+8", "192.0.2.0/8/8", "192.0.2.0/-1", "/8", "::1%lo"]
        {
            assert!(parse(text).unwrap_err().contains("no IP address"), "{text}");
        }
        assert_eq!(parse("192.0.2.7/24").unwrap_err(), "has bits after its prefix; did you mean 192.0.2.0/24?");
        assert_eq!(parse("2001:db8::7/64").unwrap_err(), "has bits after its prefix; did you mean 2001:db8::/64?");
        assert_eq!(parse("1.2.3.4/33").unwrap_err(), "a prefix of 33 bits, but such an address has 32");
        assert_eq!(parse("::/129").unwrap_err(), "a prefix of 129 bits, but such an address has 128");
        assert_eq!(parse("0.0.0.0/0").unwrap_err(), "denies too much: the shortest prefix is /8");
        assert_eq!(parse("::ffff:0:0/96").unwrap_err(), "denies too much: the shortest prefix is /8");
        assert_eq!(parse("2000::/3").unwrap_err(), "denies too much: the shortest prefix is /16");
    }

    #[test]
    fn an_address_lies_in_all_that_cover_it_and_no_other() {
        let address = IpAddr::from([192, 0, 2, 7]);
        let covering: Vec<Prefix> = Prefix::covering(address).collect();
        assert_eq!(covering.len(), 25);
        assert_eq!(covering.first().copied(), Some(Prefix::host(address)));
        assert!(covering.iter().all(|p| p.contains(address)));
        assert!(!Prefix::from_str("192.0.3.0/24").unwrap().contains(address));
        assert!(!Prefix::from_str("::/16").unwrap().contains(address), "another family");
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert!(Prefix::from_str("192.0.2.0/24").unwrap().contains(mapped));
    }
}
