//! The log at its source: the one place where a source's users change.

use std::collections::VecDeque;

use super::record::{Change, Epoch, Position, Seq};
use super::users::{RootHash, Users};

/// Changes a log remembers. A front end that is further behind gets a snapshot instead.
pub const RETAINED_CHANGES: usize = 100_000;

/// A single-writer log: the users now, and the latest changes that led to them.
#[derive(Debug)]
pub struct Log {
    epoch: Epoch,
    seq: Seq,
    users: Users,
    tail: VecDeque<(Change, RootHash)>,
}

/// Changes that follow one another, and the hash after the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub changes: Vec<Change>,
    pub hash: RootHash,
}

impl Log {
    /// An empty log that starts a new epoch.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, seq: Seq(0), users: Users::default(), tail: VecDeque::new() }
    }

    /// What turns the users now into `fresh`.
    #[must_use]
    pub fn diff(&self, fresh: &Users) -> Vec<Change> {
        self.users.changes_to(fresh)
    }

    /// Appends changes; those that change nothing are left out.
    pub fn append(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            if !self.users.apply(&change) {
                continue;
            }
            self.seq = self.seq.next();
            self.tail.push_back((change, self.users.hash()));
            if self.tail.len() > RETAINED_CHANGES {
                self.tail.pop_front();
            }
        }
    }

    /// Up to `limit` changes that follow `from`, in order. None if the log does not remember that far back
    /// (or has never been there).
    #[must_use]
    pub fn changes_after(&self, from: Seq, limit: usize) -> Option<Batch> {
        let behind = usize::try_from(self.seq.0.checked_sub(from.0)?).ok()?;
        let skip = self.tail.len().checked_sub(behind)?;
        let mut batch = Batch { changes: Vec::new(), hash: self.users.hash() };
        for (change, hash) in self.tail.iter().skip(skip).take(limit) {
            batch.changes.push(change.clone());
            batch.hash = *hash;
        }
        Some(batch)
    }

    /// Where the log is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.seq }
    }

    /// The hash over the users now.
    #[must_use]
    pub fn hash(&self) -> RootHash {
        self.users.hash()
    }

    /// The users now.
    #[must_use]
    pub fn users(&self) -> &Users {
        &self.users
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Entry;
    use super::*;
    use crate::address::Address;

    fn users(names: &[&str]) -> Users {
        names.iter().map(|n| Address::parse(n).unwrap()).collect()
    }

    #[test]
    fn diff_and_append_reach_what_was_read() {
        let mut log = Log::new(Epoch(7));
        for fresh in [users(&["a@x.test", "b@x.test"]), users(&["B@x.test", "c@y.test"]), users(&[])] {
            let changes = log.diff(&fresh);
            log.append(changes);
            assert!(*log.users() == fresh);
            assert_eq!(log.hash(), fresh.hash());
            assert!(log.diff(&fresh).is_empty());
        }
        // +a +b | +B +c -a | -B -c
        assert_eq!(log.position(), Position { epoch: Epoch(7), seq: Seq(7) });
    }

    #[test]
    fn remembers_so_far_and_no_further() {
        let mut log = Log::new(Epoch(1));
        let entry = Entry { address: Address::parse("a@x.test").unwrap() };
        for _ in 0..RETAINED_CHANGES {
            log.append([Change::Put(entry.clone()), Change::Remove(entry.clone())]);
        }
        let last = log.position().seq;
        let after = |from, limit| log.changes_after(from, limit).map(|batch| batch.changes);
        assert_eq!(after(last, 9), Some(vec![]));
        assert_eq!(after(Seq(last.0 - 1), 9), Some(vec![Change::Remove(entry.clone())]));
        let oldest = Seq(last.0 - RETAINED_CHANGES as u64);
        assert_eq!(after(oldest, 1), Some(vec![Change::Put(entry)]));
        assert_eq!(log.changes_after(Seq(oldest.0 - 1), 1), None);
        assert_eq!(log.changes_after(last.next(), 1), None);
    }
}
