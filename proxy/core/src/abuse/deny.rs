//! The deny list: the latest word about every prefix, merged from all front ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hasher;
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Instant;

use siphasher::sip::SipHasher13;

use super::prefix::Prefix;
use super::record::{Denial, MAX_TIME_MS, Origin, Record, Word};

/// Prefixes denied at once, at the most.
pub const MAX_ENTRIES: usize = 1_000_000;
/// Prefixes denied at once by the word of one front end, at the most: one that runs wild does not take all places.
pub const MAX_PER_ORIGIN: usize = 500_000;
/// Words of the past that are kept. Beyond, those that would be forgotten first are forgotten at once.
pub const MAX_TOMBSTONES: usize = 250_000;
/// A word of the past is kept for so many milliseconds (seven days): a front end that was away for longer may bring back
/// what was removed meanwhile.
pub const TOMBSTONE_LIFETIME_MS: u64 = 7 * 24 * 3_600 * 1_000;
/// Parts of the list that front ends compare.
pub(super) const PARTS: usize = 256;
/// Own changes that are remembered for those who have not heard them yet; they find older ones by comparing.
const MAX_RECENT: usize = 65_536;

/// Why something cannot be denied, or allowed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DenyError {
    #[error("{MAX_ENTRIES} prefixes are denied already; remove some, or deny shorter prefixes")]
    Full,
    #[error("{MAX_PER_ORIGIN} prefixes are denied already by the word of this front end; remove some")]
    OriginFull,
    #[error("is not denied")]
    NotDenied,
    #[error("the end is in the past")]
    Over,
    #[error("the clock of a front end is far off: set it right (timedatectl)")]
    Clock,
}

/// What the packet filter is to learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Deny(Prefix),
    Allow(Prefix),
}

/// What became of a peer's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// It was news.
    Taken,
    /// A later word is known, or it is too old to matter.
    Known,
    /// There is no room for it.
    Refused(DenyError),
}

#[derive(Debug)]
struct Held {
    record: Record,
    /// It denies now. Falls once and never rises, however the clock is set.
    live: bool,
}

/// The part of the list, and the prefix. Parts come first, so that one can be sent without reading the others.
type Key = (u8, Prefix);

/// The deny list. Time is Unix time in milliseconds, for all front ends must mean the same by it.
#[derive(Debug)]
pub struct DenyList {
    held: BTreeMap<Key, Held>,
    /// When live entries end.
    ends: BTreeSet<(u64, Key)>,
    /// When words of the past are forgotten.
    past: BTreeSet<(u64, Key)>,
    /// By part: the sum of its records' hashes.
    sums: Vec<u64>,
    live: usize,
    origins: HashMap<Origin, usize>,
    changes: VecDeque<Change>,
    recent: VecDeque<Key>,
    /// Number of the first of `recent`.
    recent_first: u64,
    /// Until when a peer is sending what differs: one is enough.
    pub(super) comparing_until: Option<Instant>,
}

impl Default for DenyList {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            ends: BTreeSet::new(),
            past: BTreeSet::new(),
            sums: vec![0; PARTS],
            live: 0,
            origins: HashMap::new(),
            changes: VecDeque::new(),
            recent: VecDeque::new(),
            recent_first: 0,
            comparing_until: None,
        }
    }
}

impl DenyList {
    /// Denies a prefix by the word of `origin`, which is this front end.
    ///
    /// # Errors
    /// There is no room, or the end is in the past.
    pub fn deny(&mut self, now: u64, prefix: Prefix, denial: Denial, origin: &Origin) -> Result<(), DenyError> {
        if denial.until.is_some_and(|until| until <= now) {
            return Err(DenyError::Over);
        }
        self.say(now, prefix, Word::Denied(denial), origin)
    }

    /// Denies a prefix no longer, by the word of `origin`, which is this front end.
    ///
    /// # Errors
    /// It is not denied (a longer or a shorter prefix may be).
    pub fn allow(&mut self, now: u64, prefix: Prefix, origin: &Origin) -> Result<(), DenyError> {
        if self.entry(prefix).is_none() {
            return Err(DenyError::NotDenied);
        }
        self.say(now, prefix, Word::Removed, origin)
    }

    fn say(&mut self, now: u64, prefix: Prefix, word: Word, origin: &Origin) -> Result<(), DenyError> {
        let key = key(prefix);
        // A clock that is behind must not make this word older than the one that it is to replace.
        let after = self.held.get(&key).map_or(0, |held| held.record.changed + 1);
        let record = Record { prefix, changed: now.max(after), set_by: origin.clone(), word };
        if !record.is_sane() {
            return Err(DenyError::Clock);
        }
        if let Merged::Refused(error) = self.merge(now, record) {
            return Err(error);
        }
        self.recent.push_back(key);
        if self.recent.len() > MAX_RECENT {
            self.recent.pop_front();
            self.recent_first += 1;
        }
        Ok(())
    }

    /// Takes what another front end says. The order of merging changes nothing, but where there is no room.
    pub fn merge(&mut self, now: u64, record: Record) -> Merged {
        let key = key(record.prefix);
        let former = self.held.get(&key);
        if forgotten_at(&record).is_some_and(|at| at <= now)
            || former.is_some_and(|former| record.age(&former.record).is_le())
        {
            return Merged::Known;
        }
        let live = record.denied_until().is_some_and(|until| until > now);
        if live && let Err(error) = self.check_room(&record, former) {
            return Merged::Refused(error);
        }
        let was_live = self.forget(&key);
        match (was_live, live) {
            (false, true) => self.changes.push_back(Change::Deny(record.prefix)),
            (true, false) => self.changes.push_back(Change::Allow(record.prefix)),
            _ => {}
        }
        self.hold(key, Held { record, live });
        self.limit_past();
        Merged::Taken
    }

    fn check_room(&self, record: &Record, former: Option<&Held>) -> Result<(), DenyError> {
        let former = former.filter(|former| former.live);
        if former.is_none() && self.live >= MAX_ENTRIES {
            return Err(DenyError::Full);
        }
        let same_origin = former.is_some_and(|former| former.record.set_by == record.set_by);
        if !same_origin && self.by_origin(&record.set_by) >= MAX_PER_ORIGIN {
            return Err(DenyError::OriginFull);
        }
        Ok(())
    }

    fn by_origin(&self, origin: &Origin) -> usize {
        self.origins.get(origin).copied().unwrap_or(0)
    }

    fn hold(&mut self, key: Key, held: Held) {
        self.sums[usize::from(key.0)] = self.sums[usize::from(key.0)].wrapping_add(hash(&held.record));
        if held.live {
            self.live += 1;
            *self.origins.entry(held.record.set_by.clone()).or_default() += 1;
        }
        if let Some((at, timed)) = self.deadline(&held) {
            timed.insert((at, key));
        }
        self.held.insert(key, held);
    }

    /// Takes a record out; true if it was live.
    fn forget(&mut self, key: &Key) -> bool {
        let Some(held) = self.held.remove(key) else { return false };
        self.sums[usize::from(key.0)] = self.sums[usize::from(key.0)].wrapping_sub(hash(&held.record));
        if let Some((at, timed)) = self.deadline(&held) {
            timed.remove(&(at, *key));
        }
        if held.live {
            self.live -= 1;
            self.leave_origin(&held.record.set_by);
        }
        held.live
    }

    fn leave_origin(&mut self, origin: &Origin) {
        if let Some(count) = self.origins.get_mut(origin) {
            *count -= 1;
            if *count == 0 {
                self.origins.remove(origin);
            }
        }
    }

    /// When something happens to a record next, and the set that remembers it.
    fn deadline(&mut self, held: &Held) -> Option<(u64, &mut BTreeSet<(u64, Key)>)> {
        if held.live {
            let until = held.record.denied_until().filter(|until| *until != u64::MAX)?;
            Some((until, &mut self.ends))
        } else {
            Some((forgotten_at(&held.record)?, &mut self.past))
        }
    }

    fn limit_past(&mut self) {
        while self.past.len() > MAX_TOMBSTONES {
            let Some((_, key)) = self.past.first().copied() else { return };
            self.forget(&key);
        }
    }

    /// When [`DenyList::handle_timeout`] has something to do, in Unix milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let first = |timed: &BTreeSet<(u64, Key)>| timed.first().map(|(at, _)| *at);
        [first(&self.ends), first(&self.past)].into_iter().flatten().min()
    }

    /// Ends entries whose time is over, and forgets words of the past.
    pub fn handle_timeout(&mut self, now: u64) {
        while let Some((at, key)) = self.ends.first().copied()
            && at <= now
        {
            self.end(key);
        }
        self.limit_past();
        while let Some((at, key)) = self.past.first().copied()
            && at <= now
        {
            self.forget(&key);
        }
    }

    fn end(&mut self, key: Key) {
        let Some(record) = self.held.get(&key).map(|held| held.record.clone()) else { return };
        self.forget(&key);
        self.changes.push_back(Change::Allow(record.prefix));
        self.hold(key, Held { record, live: false });
    }

    /// The next change for the packet filter.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// How many prefixes are denied.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// True if nothing is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The entry of exactly this prefix, if it is denied.
    #[must_use]
    pub fn entry(&self, prefix: Prefix) -> Option<&Record> {
        self.held.get(&key(prefix)).filter(|held| held.live).map(|held| &held.record)
    }

    /// The longest denied prefix that an address lies in.
    #[must_use]
    pub fn covering(&self, address: IpAddr) -> Option<&Record> {
        Prefix::covering(address).find_map(|prefix| self.entry(prefix))
    }

    /// What is denied, in an order of its own; from behind `after`, so that it can be read in pages while it changes.
    pub fn entries(&self, after: Option<Prefix>) -> impl Iterator<Item = &Record> {
        self.after(after.map(key)).filter(|held| held.live).map(|held| &held.record)
    }

    /// Everything, words of the past too: what is stored. In the order of [`DenyList::entries`].
    pub fn records(&self, after: Option<Prefix>) -> impl Iterator<Item = &Record> {
        self.after(after.map(key)).map(|held| &held.record)
    }

    fn after(&self, after: Option<Key>) -> impl Iterator<Item = &Held> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.held.range((from, Bound::Unbounded)).map(|(_, held)| held)
    }

    /// The records of one part, from behind `after`.
    pub(super) fn part(&self, part: u8, after: Option<Prefix>) -> impl Iterator<Item = &Record> {
        let from = after.map_or(Bound::Included((part, Prefix::FIRST)), |prefix| Bound::Excluded((part, prefix)));
        self.held
            .range((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.0 == part)
            .map(|(_, held)| &held.record)
    }

    /// By part: what it takes to see whether two lists are the same.
    pub(super) fn sums(&self) -> &[u64] {
        &self.sums
    }

    /// One number for the whole list.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let mut hasher = SipHasher13::new();
        self.sums.iter().for_each(|sum| hasher.write_u64(*sum));
        hasher.finish()
    }

    /// Where [`DenyList::delta_since`] has nothing yet.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.recent_first + self.recent.len() as u64
    }

    /// What this front end itself has said since `cursor` (but only the last 65,536 words), each with the cursor after
    /// it. Of a prefix about which more was said, the latest word comes for each.
    pub fn delta_since(&self, cursor: u64) -> impl Iterator<Item = (u64, &Record)> {
        let skip = usize::try_from(cursor.saturating_sub(self.recent_first)).unwrap_or(usize::MAX);
        let first = self.recent_first.max(cursor) + 1;
        let known = (first..).zip(self.recent.iter().skip(skip));
        known.filter_map(|(after, key)| Some((after, &self.held.get(key)?.record)))
    }
}

fn key(prefix: Prefix) -> Key {
    let mut hasher = SipHasher13::new();
    write_prefix(&mut hasher, prefix);
    let [part, ..] = hasher.finish().to_le_bytes();
    (part, prefix)
}

fn write_prefix(hasher: &mut SipHasher13, prefix: Prefix) {
    match prefix.address() {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    hasher.write_u8(prefix.bits());
}

/// The same on every front end, whatever its machine.
fn hash(record: &Record) -> u64 {
    let mut hasher = SipHasher13::new();
    write_prefix(&mut hasher, record.prefix);
    hasher.write(&record.changed.to_le_bytes());
    hasher.write(record.set_by.as_str().as_bytes());
    if let Word::Denied(denial) = &record.word {
        hasher.write(&denial.until.unwrap_or(u64::MAX).to_le_bytes());
        hasher.write(denial.reason.as_str().as_bytes());
    } else {
        hasher.write_u8(0);
    }
    hasher.finish()
}

/// When a record is forgotten, unless it is replaced; None: never.
fn forgotten_at(record: &Record) -> Option<u64> {
    let last = match &record.word {
        Word::Removed => record.changed,
        Word::Denied(denial) => denial.until?.max(record.changed),
    };
    Some(last.min(MAX_TIME_MS) + TOMBSTONE_LIFETIME_MS)
}

#[cfg(test)]
mod tests;
