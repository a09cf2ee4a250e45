//! The steering hash: SipHash-1-3 over a connection's 4-tuple, keyed by the pool.
//!
//! It is keyed so that nobody outside can choose source ports that all land on one front end, and it is
//! SipHash because that promise has been attacked for years and held. The words are fixed in number for
//! each address family, so there is no length to encode and no tail to assemble.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::maps::BUCKET_BITS;

/// The pool's secret, the same on every front end: two members with different keys steer to different
/// owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SteeringKey {
    pub k0: u64,
    pub k1: u64,
}

/// One round of SipHash (Aumasson and Bernstein, 2012, figure 2.1).
#[inline(always)]
const fn sip_round(mut v: [u64; 4]) -> [u64; 4] {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
    v
}

#[inline(always)]
const fn absorb(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = sip_round(v);
    v[0] ^= word;
    v
}

/// SipHash-1-3 of `N` little-endian words; equal to the reference over the same `8 * N` bytes.
#[inline(always)]
pub fn sip13<const N: usize>(key: SteeringKey, words: [u64; N]) -> u64 {
    let mut v = [
        key.k0 ^ 0x736f_6d65_7073_6575,
        key.k1 ^ 0x646f_7261_6e64_6f6d,
        key.k0 ^ 0x6c79_6765_6e65_7261,
        key.k1 ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        v = absorb(v, word);
    }
    v = absorb(v, ((N as u64 * 8) & 0xff) << 56);
    v[2] ^= 0xff;
    v = sip_round(sip_round(sip_round(v)));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

/// Hash of an IPv4 connection. Addresses and ports are the packet's own bytes (network order).
#[inline(always)]
pub fn hash_v4(key: SteeringKey, source: [u8; 4], destination: [u8; 4], ports: [u8; 4]) -> u64 {
    let addresses = u64::from(u32::from_le_bytes(source)) | (u64::from(u32::from_le_bytes(destination)) << 32);
    sip13(key, [addresses, u64::from(u32::from_le_bytes(ports))])
}

/// Hash of an IPv6 connection; each address is the two halves of the packet's own bytes, read as
/// little-endian words.
#[inline(always)]
pub fn hash_v6(key: SteeringKey, source: [u64; 2], destination: [u64; 2], ports: [u8; 4]) -> u64 {
    sip13(key, [source[0], source[1], destination[0], destination[1], u64::from(u32::from_le_bytes(ports))])
}

/// The two words that [`hash_v6`] takes for an address.
#[inline(always)]
pub fn v6_words(address: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}

/// The bucket of a hash.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the shift leaves BUCKET_BITS bits")]
pub const fn bucket(hash: u64) -> u32 {
    (hash >> (64 - BUCKET_BITS)) as u32
}

/// The bucket of a connection from `client` to `service`, an address and port of ours: that of its packets, where the
/// addresses are of one family. A v4-mapped IPv6 address is its IPv4 one, for so its packets are.
#[must_use]
pub fn connection_bucket(key: SteeringKey, client: SocketAddr, service: SocketAddr) -> u32 {
    let ([a, b], [c, d]) = (client.port().to_be_bytes(), service.port().to_be_bytes());
    let ports = [a, b, c, d];
    let hash = match (client.ip().to_canonical(), service.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => hash_v4(key, source.octets(), destination.octets(), ports),
        (source, destination) => {
            let words = |address| match address {
                IpAddr::V4(v4) => v6_words(Ipv4Addr::to_ipv6_mapped(&v4).octets()),
                IpAddr::V6(v6) => v6_words(v6.octets()),
            };
            hash_v6(key, words(source), words(destination), ports)
        }
    };
    bucket(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher;
    use siphasher::sip::SipHasher13;

    const KEY: SteeringKey = SteeringKey { k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908 };

    fn reference(bytes: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(KEY.k0, KEY.k1);
        hasher.write(bytes);
        hasher.finish()
    }

    #[test]
    fn equals_the_reference_implementation() {
        let (source, destination, ports) = ([192, 0, 2, 1], [198, 51, 100, 25], [0x1f, 0x90, 0, 25]);
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&source);
        bytes[4..8].copy_from_slice(&destination);
        bytes[8..12].copy_from_slice(&ports);
        assert_eq!(hash_v4(KEY, source, destination, ports), reference(&bytes));

        let (source, destination) = ([7; 16], [9; 16]);
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&source);
        bytes[16..32].copy_from_slice(&destination);
        bytes[32..36].copy_from_slice(&ports);
        assert_eq!(hash_v6(KEY, v6_words(source), v6_words(destination), ports), reference(&bytes));
    }

    #[test]
    fn a_connections_bucket_is_that_of_its_packets() {
        let (client, service): (SocketAddr, SocketAddr) =
            ("192.0.2.1:8080".parse().unwrap(), "198.51.100.25:25".parse().unwrap());
        let hash = hash_v4(KEY, [192, 0, 2, 1], [198, 51, 100, 25], [0x1f, 0x90, 0, 25]);
        assert_eq!(u64::from(connection_bucket(KEY, client, service)), hash >> 46);
        let mapped = |text: &str| text.parse::<SocketAddr>().unwrap();
        let same = connection_bucket(KEY, mapped("[::ffff:192.0.2.1]:8080"), mapped("[::ffff:198.51.100.25]:25"));
        assert_eq!(same, connection_bucket(KEY, client, service));
        let hash = hash_v6(KEY, v6_words([7; 16]), v6_words([9; 16]), [0x1f, 0x90, 0, 25]);
        let (client, service) = (SocketAddr::from(([7; 16], 8080)), SocketAddr::from(([9; 16], 25)));
        assert_eq!(u64::from(connection_bucket(KEY, client, service)), hash >> 46);
    }

    #[test]
    fn the_key_decides() {
        let other = SteeringKey { k0: KEY.k0 + 1, ..KEY };
        assert_ne!(hash_v4(KEY, [1; 4], [2; 4], [3; 4]), hash_v4(other, [1; 4], [2; 4], [3; 4]));
    }
}
