//! What a member tells the others: in which buckets of other owners it may have connections.

use proxy_common::maps::BUCKETS;
use roaring::RoaringBitmap;

/// Longest encoding in octets: a bitmap of all buckets, not compressed at all, has 32 KiB.
pub const MAX_HOLDINGS: usize = 40 * 1024;
/// The first octet of an encoding.
const VERSION: u8 = 1;
const HEADER: usize = 1 + 3 * 8;

/// One member's holdings.
#[derive(Debug, Clone, PartialEq)]
pub struct Holdings {
    /// Which view the sender has in force: a hash of all that is known of the members.
    pub view: u64,
    /// The sender's own.
    pub generation: u64,
    /// Counts what the sender told: messages overtake each other, and only the newest counts.
    pub sequence: u64,
    /// Buckets of other owners of which the sender has connections, or was the owner in the last seconds.
    pub buckets: RoaringBitmap,
}

/// The octets are no [`Holdings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedHoldings {
    #[error("holdings of {0} octets: over the limit of {MAX_HOLDINGS}")]
    TooLong(usize),
    #[error("holdings end after {0} octets")]
    TooShort(usize),
    #[error("holdings of version {0}, not {VERSION}")]
    Version(u8),
    #[error("holdings without a valid bitmap")]
    Bitmap,
    #[error("holdings name bucket {0} of {BUCKETS}")]
    Bucket(u32),
}

impl Holdings {
    /// For the wire: the version; view, generation and sequence (little-endian); the bitmap in roaring's own portable format.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.buckets.serialized_size());
        bytes.push(VERSION);
        bytes.extend(self.view.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        // Writing to memory does not fail.
        let written = self.buckets.serialize_into(&mut bytes);
        debug_assert!(written.is_ok());
        bytes
    }

    /// # Errors
    /// [`MalformedHoldings`] if a peer sent nonsense.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedHoldings> {
        if bytes.len() > MAX_HOLDINGS {
            return Err(MalformedHoldings::TooLong(bytes.len()));
        }
        let short = MalformedHoldings::TooShort(bytes.len());
        let (&version, rest) = bytes.split_first().ok_or(short)?;
        if version != VERSION {
            return Err(MalformedHoldings::Version(version));
        }
        let (&view, rest) = rest.split_first_chunk().ok_or(short)?;
        let (&generation, rest) = rest.split_first_chunk().ok_or(short)?;
        let (&sequence, mut rest) = rest.split_first_chunk().ok_or(short)?;
        let Ok(buckets) = RoaringBitmap::deserialize_from(&mut rest) else { return Err(MalformedHoldings::Bitmap) };
        if !rest.is_empty() {
            return Err(MalformedHoldings::Bitmap);
        }
        if let Some(bucket) = buckets.max().filter(|bucket| *bucket >= BUCKETS) {
            return Err(MalformedHoldings::Bucket(bucket));
        }
        let [view, generation, sequence] = [view, generation, sequence].map(u64::from_le_bytes);
        Ok(Self { view, generation, sequence, buckets })
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn holdings(buckets: impl IntoIterator<Item = u32>) -> Holdings {
        let buckets = buckets.into_iter().collect();
        Holdings { view: 0x1122_3344_5566_7788, generation: 1_700_000_000_000, sequence: 3, buckets }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let every_other = (0..BUCKETS).step_by(2);
        for holdings in [holdings([]), holdings([0, 7, BUCKETS - 1]), holdings(0..BUCKETS), holdings(every_other)] {
            let bytes = holdings.encode();
            assert!(bytes.len() <= MAX_HOLDINGS, "{} octets", bytes.len());
            assert_eq!(Holdings::decode(&bytes), Ok(holdings));
        }
    }

    #[test]
    fn a_peers_nonsense_is_an_error() {
        let bytes = holdings([1, 2, 70_000]).encode();
        for cut in 0..bytes.len() {
            assert!(Holdings::decode(&bytes[..cut]).is_err(), "cut after {cut} octets");
        }
        assert!(Holdings::decode(&[&bytes[..], &[0]].concat()).is_err(), "one octet too many");
        assert_eq!(Holdings::decode(&[2, 0, 0]), Err(MalformedHoldings::Version(2)));
        assert_eq!(Holdings::decode(&holdings([BUCKETS]).encode()), Err(MalformedHoldings::Bucket(BUCKETS)));
        let long = vec![1; MAX_HOLDINGS + 1];
        assert_eq!(Holdings::decode(&long), Err(MalformedHoldings::TooLong(MAX_HOLDINGS + 1)));
    }

    #[test]
    fn no_octets_make_it_panic() {
        let mut rng = SmallRng::seed_from_u64(1);
        let whole = holdings((0..5_000).chain(100_000..100_100)).encode();
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..6) {
                // Mostly in the header of the bitmap, where the lengths are.
                let end = if rng.random_bool(0.8) { 40 } else { bytes.len() };
                bytes[rng.random_range(0..end)] = rng.random();
            }
            if let Ok(holdings) = Holdings::decode(&bytes) {
                assert!(holdings.buckets.max().is_none_or(|bucket| bucket < BUCKETS));
            }
        }
    }
}
