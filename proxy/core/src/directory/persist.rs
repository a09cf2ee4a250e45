//! What a front end stores of its directory: one file per source and one with the names of all. The shell
//! writes each as a whole and replaces it atomically.

use serde::{Deserialize, Serialize};
use siphasher::sip128::SipHasher13;

use super::record::{BackendRecord, Entry, Position, SourceName};
use super::users::{RootHash, Users};

/// First octets of every file; the last is the version.
const MAGIC: &[u8; 8] = b"ACDIRv1\n";
/// Octets of the checksum after the magic.
const CHECKSUM: usize = 16;

/// What is stored of a source.
#[derive(Debug, Clone)]
pub struct Stored {
    pub record: Option<BackendRecord>,
    pub position: Option<Position>,
    pub users: Users,
}

/// Why a file is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    #[error("no file of this kind or this version")]
    Magic,
    #[error("damaged or cut short")]
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Header {
    source: SourceName,
    record: Option<BackendRecord>,
    position: Option<Position>,
    users: u64,
    hash: RootHash,
}

/// The file of one source.
#[must_use]
pub fn encode_snapshot(source: &SourceName, stored: &Stored) -> Vec<u8> {
    let header = Header {
        source: source.clone(),
        record: stored.record.clone(),
        position: stored.position,
        users: u64::try_from(stored.users.len()).unwrap_or(u64::MAX),
        hash: stored.users.hash(),
    };
    let mut file = begin();
    write(&header, &mut file);
    for entry in stored.users.entries() {
        write(&entry, &mut file);
    }
    seal(file)
}

/// Reads the file of one source.
///
/// # Errors
/// If it is anything but what [`encode_snapshot`] wrote, whole.
pub fn decode_snapshot(file: &[u8]) -> Result<(SourceName, Stored), StoredError> {
    let (header, mut rest): (Header, _) = postcard::take_from_bytes(open(file)?).map_err(|_e| StoredError::Damaged)?;
    let mut users = Users::default();
    for _ in 0..header.users {
        let (entry, after): (Entry, _) = postcard::take_from_bytes(rest).map_err(|_e| StoredError::Damaged)?;
        users.insert(&entry.address);
        rest = after;
    }
    if !rest.is_empty() || users.hash() != header.hash {
        return Err(StoredError::Damaged);
    }
    Ok((header.source, Stored { record: header.record, position: header.position, users }))
}

/// The file with the names of all sources.
#[must_use]
pub fn encode_registry(sources: &[SourceName]) -> Vec<u8> {
    let mut file = begin();
    write(&sources, &mut file);
    seal(file)
}

/// Reads the file with the names of all sources.
///
/// # Errors
/// If it is anything but what [`encode_registry`] wrote, whole.
pub fn decode_registry(file: &[u8]) -> Result<Vec<SourceName>, StoredError> {
    postcard::from_bytes(open(file)?).map_err(|_e| StoredError::Damaged)
}

fn begin() -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&[0; CHECKSUM]);
    file
}

fn write<T: Serialize>(value: &T, file: &mut Vec<u8>) {
    // Nothing here can fail to serialize; a file that lacks something would be refused when read.
    if let Ok(bytes) = postcard::to_stdvec(value) {
        file.extend_from_slice(&bytes);
    }
}

fn seal(mut file: Vec<u8>) -> Vec<u8> {
    let (head, content) = file.split_at_mut(MAGIC.len() + CHECKSUM);
    head[MAGIC.len()..].copy_from_slice(&checksum(content));
    file
}

fn open(file: &[u8]) -> Result<&[u8], StoredError> {
    let rest = file.strip_prefix(MAGIC).ok_or(StoredError::Magic)?;
    let (sum, content) = rest.split_first_chunk::<CHECKSUM>().ok_or(StoredError::Damaged)?;
    if *sum == checksum(content) { Ok(content) } else { Err(StoredError::Damaged) }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    SipHasher13::new().hash(content).as_u128().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::record::{Epoch, Seq};
    use super::*;
    use crate::address::Address;

    fn stored() -> Stored {
        let names = ["a@x.test", "B@x.test", "\"c d\"@y.test"];
        Stored {
            record: Some(BackendRecord { recipient_delimiter: Some('+'), ..BackendRecord::default() }),
            position: Some(Position { epoch: Epoch(5), seq: Seq(9) }),
            users: names.iter().map(|n| Address::parse(n).unwrap()).collect(),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let name = SourceName::parse("be1").unwrap();
        let (source, read) = decode_snapshot(&encode_snapshot(&name, &stored())).unwrap();
        assert_eq!((source, read.record, read.position), (name.clone(), stored().record, stored().position));
        assert!(read.users == stored().users);
        assert_eq!(decode_registry(&encode_registry(std::slice::from_ref(&name))), Ok(vec![name]));
    }

    #[test]
    fn no_damage_goes_unseen() {
        let whole = encode_snapshot(&SourceName::parse("be1").unwrap(), &stored());
        for length in 0..whole.len() {
            assert!(decode_snapshot(&whole[..length]).is_err(), "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            assert!(decode_snapshot(&bad).is_err(), "flipped at {at}");
        }
        assert_eq!(decode_registry(b""), Err(StoredError::Magic));
    }
}
