//! What the other members told of their holdings.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proxy_common::maps::MAX_MEMBERS;
use roaring::RoaringBitmap;

use super::super::view::View;
use super::super::{Holdings, Member};

/// Holdings often arrive before the view that has their sender; they are kept so long.
const STRANGERS_KEPT: Duration = Duration::from_secs(10);
/// Senders of whom holdings are kept, at the most.
const MAX_TOLD: usize = 2 * MAX_MEMBERS as usize;

/// The newest holdings of each sender, by name and generation.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<(String, u64), Entry>);

#[derive(Debug)]
struct Entry {
    received: Instant,
    holdings: Holdings,
}

impl Told {
    /// Buckets of which what is known has changed. None if the message is older than what is known, or too much.
    pub(super) fn insert(&mut self, now: Instant, from: &str, holdings: Holdings) -> Option<RoaringBitmap> {
        let key = (from.to_owned(), holdings.generation);
        let known = self.0.get(&key).map(|entry| &entry.holdings);
        if known.is_some_and(|known| known.sequence >= holdings.sequence) || known.is_none() && self.0.len() >= MAX_TOLD
        {
            return None;
        }
        let changed = known.map_or_else(|| holdings.buckets.clone(), |known| &known.buckets ^ &holdings.buckets);
        self.0.insert(key, Entry { received: now, holdings });
        Some(changed)
    }

    /// Drops what was told by those of `older` who are gone, and by strangers who did not come.
    pub(super) fn prune(&mut self, now: Instant, older: Option<&View>, view: &View) {
        let within = |view: &View, key: &(String, u64)| {
            view.members.iter().any(|member| member.name == key.0 && member.generation == key.1)
        };
        self.0.retain(|key, entry| {
            within(view, key) || now < entry.received + STRANGERS_KEPT && !older.is_some_and(|older| within(older, key))
        });
    }

    fn entry(&self, member: &Member) -> Option<&Entry> {
        self.0.get(&(member.name.clone(), member.generation))
    }

    /// Whether `member` has told its holdings under `view`, not before `since`.
    pub(super) fn confirms(&self, member: &Member, view: &View, since: Option<Instant>) -> bool {
        let fresh = |entry: &Entry| since.is_none_or(|since| entry.received >= since);
        self.entry(member).is_some_and(|entry| entry.holdings.view == view.hash && fresh(entry))
    }

    pub(super) fn buckets(&self, member: &Member) -> Option<&RoaringBitmap> {
        self.entry(member).map(|entry| &entry.holdings.buckets).filter(|buckets| !buckets.is_empty())
    }
}
