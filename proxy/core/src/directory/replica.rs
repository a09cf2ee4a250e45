//! The copy of one source on a front end, and how sure we are of it.

use std::time::{Duration, Instant};

use super::lookup::ConnectionId;
use super::record::{BackendRecord, Change, Epoch, Position, Seq};
use super::users::{RootHash, Users};

/// A source that confirmed so long ago that the copy is all there is may still be taken at its word.
/// It does so every second while it is connected; a user whom it gained and could not tell of is refused
/// within this time at the most, so it is short: a restart of the agent fits into it, an outage does not.
pub const FRESH_FOR: Duration = Duration::from_secs(3);

/// The copy of one source. A replica that is registered but was never filled has no position: nobody
/// knows which domains and users it has.
#[derive(Debug, Default)]
pub(super) struct Replica {
    pub(super) record: Option<BackendRecord>,
    pub(super) users: Users,
    /// Where the copy is; None: never complete, or in doubt.
    pub(super) position: Option<Position>,
    /// When the source last confirmed that the copy is all there is.
    pub(super) confirmed: Option<Instant>,
    /// The stream that may write here, and the epoch it began with.
    pub(super) writer: Option<(ConnectionId, Epoch)>,
    /// A snapshot is on its way; changes that come before it are of no use.
    pub(super) resyncing: bool,
    /// Grows with every change that is worth storing.
    pub(super) revision: u64,
}

/// Whether changes fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Next,
    /// Something between the copy and these is missing, or there is no copy.
    Gap,
    /// A snapshot will supersede them.
    Superfluous,
}

impl Replica {
    /// True if an address that is not here does not exist.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        let recent = |at| now.saturating_duration_since(at) <= FRESH_FOR;
        self.position.is_some() && self.confirmed.is_some_and(recent)
    }

    /// A writer has said where its log is. Returns where the copy is, if the log leads on from there.
    pub(super) fn greet(&mut self, record: BackendRecord, theirs: Position) -> Option<Position> {
        if self.record.as_ref() != Some(&record) {
            self.record = Some(record);
            self.revision += 1;
        }
        if self.position != Some(theirs) {
            self.confirmed = None;
        }
        let ours = self.position.filter(|ours| ours.epoch == theirs.epoch && ours.seq <= theirs.seq);
        self.resyncing = ours.is_none();
        ours
    }

    /// Whether changes that begin with number `first` fit.
    pub(super) fn fit(&self, epoch: Epoch, first: Seq) -> Fit {
        if self.resyncing {
            return Fit::Superfluous;
        }
        match self.position {
            Some(at) if at.epoch == epoch && at.seq.next() == first => Fit::Next,
            Some(_) | None => Fit::Gap,
        }
    }

    /// Applies one change that fits.
    pub(super) fn apply(&mut self, change: &Change) {
        self.users.apply(change);
        if let Some(position) = &mut self.position {
            position.seq = position.seq.next();
        }
    }

    /// After changes: true if the copy is what the source says it is. Otherwise it is in doubt.
    pub(super) fn verify(&mut self, hash: RootHash) -> bool {
        self.revision += 1;
        let same = self.users.hash() == hash;
        if !same {
            self.position = None;
        }
        same
    }

    /// The source confirms that its log ends at `seq`. False if the copy ends elsewhere.
    pub(super) fn confirm(&mut self, epoch: Epoch, seq: Seq, current: bool, now: Instant) -> bool {
        if self.resyncing {
            return true;
        }
        let same = self.position == Some(Position { epoch, seq });
        if same && current {
            self.confirmed = Some(now);
        }
        same
    }

    /// A snapshot is needed.
    pub(super) fn doubt(&mut self) {
        self.resyncing = true;
        self.confirmed = None;
    }
}
