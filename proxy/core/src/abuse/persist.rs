//! The deny list as a file. The shell writes it as a whole and replaces it atomically.

use siphasher::sip128::SipHasher13;

use super::record::Record;

/// First octets of the file; the last digit is the version.
const MAGIC: &[u8; 8] = b"ACDNYv1\n";
/// Octets of the checksum after the magic.
const CHECKSUM: usize = 16;

/// Why a file is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    #[error("no file of this kind or this version")]
    Magic,
    #[error("damaged or cut short")]
    Damaged,
}

/// The file, growing: a long list is not held still while it is written.
#[derive(Debug)]
pub struct Encoder(Vec<u8>);

impl Default for Encoder {
    fn default() -> Self {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&[0; CHECKSUM]);
        Self(file)
    }
}

impl Encoder {
    /// Adds a record. Their order does not matter, nor whether the list changes meanwhile.
    pub fn push(&mut self, record: &Record) {
        // Nothing in a record can fail to serialize.
        if let Ok(bytes) = postcard::to_stdvec(record) {
            self.0.extend_from_slice(&bytes);
        }
    }

    /// The whole file.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let Self(mut file) = self;
        let (head, content) = file.split_at_mut(MAGIC.len() + CHECKSUM);
        head[MAGIC.len()..].copy_from_slice(&checksum(content));
        file
    }
}

/// Reads the file.
///
/// # Errors
/// If it is anything but what [`Encoder`] made, whole.
pub fn decode(file: &[u8]) -> Result<Vec<Record>, StoredError> {
    let rest = file.strip_prefix(MAGIC).ok_or(StoredError::Magic)?;
    let (sum, mut content) = rest.split_first_chunk::<CHECKSUM>().ok_or(StoredError::Damaged)?;
    if *sum != checksum(content) {
        return Err(StoredError::Damaged);
    }
    let mut records = vec![];
    while !content.is_empty() {
        let (record, after) = postcard::take_from_bytes::<Record>(content).map_err(|_e| StoredError::Damaged)?;
        if !record.is_sane() {
            return Err(StoredError::Damaged);
        }
        records.push(record);
        content = after;
    }
    Ok(records)
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    SipHasher13::new().hash(content).as_u128().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::record::{Denial, Origin, Reason, Word};
    use super::*;

    fn records() -> Vec<Record> {
        let record = |prefix: &str, word| {
            let set_by = Origin::parse("fe1").unwrap();
            Record { prefix: prefix.parse().unwrap(), changed: 5, set_by, word }
        };
        let denial = Denial { until: Some(9), reason: Reason::parse("because").unwrap() };
        vec![record("192.0.2.0/24", Word::Denied(denial)), record("2001:db8::1", Word::Removed)]
    }

    fn encode(records: &[Record]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        records.iter().for_each(|record| encoder.push(record));
        encoder.finish()
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(decode(&encode(&records())), Ok(records()));
        assert_eq!(decode(&encode(&[])), Ok(vec![]));
    }

    #[test]
    fn no_damage_goes_unseen() {
        let whole = encode(&records());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            assert!(decode(&bad).is_err(), "flipped at {at}");
        }
    }
}
