//! Digests of the directory's sources, spread by gossip: opaque bytes under the source's name, of
//! which the newest version wins.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foca::{BroadcastHandler, Invalidates};
use serde::{Deserialize, Serialize};

use super::node::Node;
use super::wire::MAX_DATAGRAM;

/// Longest name of a source in octets.
pub const MAX_SOURCE_NAME: usize = 128;
/// Longest payload in octets.
pub const MAX_DIGEST_PAYLOAD: usize = 256;
/// Sources that are remembered; those after them are not.
pub const MAX_DIGESTS: usize = 1024;

/// Which of two digests of a source is newer: epoch first, then sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DigestVersion {
    /// Changes when the source's log begins anew.
    pub epoch: u64,
    /// Counts the changes within the epoch.
    pub sequence: u64,
}

/// What is known about a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The source's name.
    pub source: String,
    /// Its newest version.
    pub version: DigestVersion,
    /// For the directory; not looked into here.
    pub payload: Vec<u8>,
}

/// Why a digest was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestRefused {
    #[error("the source's name is empty or longer than {MAX_SOURCE_NAME} octets")]
    BadSource,
    #[error("the payload is longer than {MAX_DIGEST_PAYLOAD} octets")]
    TooLong,
    #[error("the digest cannot be read")]
    Unreadable,
    #[error("{MAX_DIGESTS} sources are known already")]
    TooMany,
}

/// The newest digests, and those that became known since the last look.
#[derive(Debug, Default)]
pub(super) struct Digests {
    newest: BTreeMap<String, Digest>,
    news: VecDeque<Digest>,
    /// Where the next repair datagram begins.
    cursor: String,
}

impl Digests {
    /// True if it is newer than what is known.
    pub(super) fn check(&self, digest: &Digest) -> Result<bool, DigestRefused> {
        if digest.source.is_empty() || digest.source.len() > MAX_SOURCE_NAME {
            return Err(DigestRefused::BadSource);
        }
        if digest.payload.len() > MAX_DIGEST_PAYLOAD {
            return Err(DigestRefused::TooLong);
        }
        match self.newest.get(&digest.source) {
            Some(known) => Ok(known.version < digest.version),
            None if self.newest.len() >= MAX_DIGESTS => Err(DigestRefused::TooMany),
            None => Ok(true),
        }
    }

    /// True if it was news.
    pub(super) fn learn(&mut self, digest: Digest) -> Result<bool, DigestRefused> {
        let new = self.check(&digest)?;
        if new {
            self.news.push_back(digest.clone());
            self.newest.insert(digest.source.clone(), digest);
        }
        Ok(new)
    }

    pub(super) fn poll_news(&mut self) -> Option<Digest> {
        self.news.pop_front()
    }

    pub(super) fn get(&self, source: &str) -> Option<&Digest> {
        self.newest.get(source)
    }

    /// The next digests in turn, as many as fit into one datagram.
    pub(super) fn next_chunk(&mut self) -> Vec<Digest> {
        let after = (Bound::Excluded(self.cursor.as_str()), Bound::Unbounded);
        let mut chunk = fill(&mut self.newest.range::<str, _>(after).peekable());
        if chunk.is_empty() {
            chunk = fill(&mut self.newest.iter().peekable());
        }
        self.cursor = chunk.last().map(|d| d.source.clone()).unwrap_or_default();
        chunk
    }

    /// All of them, cut into datagrams.
    pub(super) fn chunks(&self) -> Vec<Vec<Digest>> {
        let mut chunks = Vec::new();
        let mut rest = self.newest.iter().peekable();
        while rest.peek().is_some() {
            chunks.push(fill(&mut rest));
        }
        chunks
    }
}

/// Takes as many as fit, at least one (one always fits).
fn fill<'a>(digests: &mut Peekable<impl Iterator<Item = (&'a String, &'a Digest)>>) -> Vec<Digest> {
    // Kind, variant and count; a digest's own overhead is two versions and two lengths.
    const HEAD: usize = 8;
    const OVERHEAD: usize = 2 * 10 + 2 * 3;
    let mut room = MAX_DATAGRAM - HEAD;
    let mut taken = Vec::new();
    while let Some((_, digest)) = digests.peek() {
        let size = digest.source.len() + digest.payload.len() + OVERHEAD;
        if size > room {
            break;
        }
        room -= size;
        taken.push((*digest).clone());
        digests.next();
    }
    taken
}

/// foca owns its handler and does not show it, hence the shared ownership. There is no contention:
/// the machine is used by one thread at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedDigests(Arc<Mutex<Digests>>);

impl SharedDigests {
    pub(super) fn lock(&self) -> MutexGuard<'_, Digests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct DigestKey(String);

impl Invalidates for DigestKey {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl BroadcastHandler<Node> for SharedDigests {
    type Key = DigestKey;
    type Error = DigestRefused;

    fn receive_item(&mut self, data: &[u8], _sender: Option<&Node>) -> Result<Option<DigestKey>, DigestRefused> {
        let digest: Digest = postcard::from_bytes(data).map_err(|_unreadable| DigestRefused::Unreadable)?;
        let key = DigestKey(digest.source.clone());
        match self.lock().learn(digest) {
            Ok(new) => Ok(new.then_some(key)),
            // Our own shortage is no fault of the datagram.
            Err(DigestRefused::TooMany) => Ok(None),
            Err(refused) => Err(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(source: &str, epoch: u64, sequence: u64) -> Digest {
        Digest { source: source.to_owned(), version: DigestVersion { epoch, sequence }, payload: vec![7; 40] }
    }

    #[test]
    fn the_newest_version_wins() {
        let mut digests = Digests::default();
        assert_eq!(digests.learn(digest("be1", 1, 5)), Ok(true));
        assert_eq!(digests.learn(digest("be1", 1, 5)), Ok(false));
        assert_eq!(digests.learn(digest("be1", 1, 4)), Ok(false));
        assert_eq!(digests.learn(digest("be1", 2, 0)), Ok(true));
        assert_eq!(digests.get("be1").unwrap().version, DigestVersion { epoch: 2, sequence: 0 });
    }

    #[test]
    fn sizes_and_count_are_bounded() {
        let mut digests = Digests::default();
        let long = Digest { payload: vec![0; MAX_DIGEST_PAYLOAD + 1], ..digest("x", 1, 1) };
        assert_eq!(digests.learn(long), Err(DigestRefused::TooLong));
        assert_eq!(digests.learn(digest("", 1, 1)), Err(DigestRefused::BadSource));
        assert_eq!(digests.learn(digest(&"x".repeat(MAX_SOURCE_NAME + 1), 1, 1)), Err(DigestRefused::BadSource));
        for i in 0..MAX_DIGESTS {
            assert_eq!(digests.learn(digest(&format!("be{i}"), 1, 1)), Ok(true));
        }
        assert_eq!(digests.learn(digest("one-more", 1, 1)), Err(DigestRefused::TooMany));
        assert_eq!(digests.learn(digest("be1", 1, 2)), Ok(true));
    }

    #[test]
    fn chunks_cover_everything_and_fit() {
        let mut digests = Digests::default();
        let mut big = digest(&"y".repeat(MAX_SOURCE_NAME), u64::MAX, u64::MAX);
        big.payload = vec![1; MAX_DIGEST_PAYLOAD];
        assert_eq!(digests.learn(big), Ok(true));
        for i in 0..200 {
            assert_eq!(digests.learn(digest(&format!("be{i}"), u64::MAX, u64::MAX)), Ok(true));
        }
        let chunks = digests.chunks();
        assert_eq!(chunks.iter().map(Vec::len).sum::<usize>(), 201);
        for chunk in &chunks {
            assert!(super::super::wire::encode_control(&super::super::wire::Control::Digests(chunk.clone())).is_some());
        }
        let mut turned = Vec::new();
        for _ in 0..chunks.len() {
            turned.extend(digests.next_chunk());
        }
        assert_eq!(turned.len(), 201);
        assert!(!digests.next_chunk().is_empty(), "begins anew");
    }
}
