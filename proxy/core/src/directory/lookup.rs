//! All replicas of a front end together, and the answers they give.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::persist::Stored;
use super::receiver::{Snapshot, Update};
use super::record::{BackendRecord, Change, Epoch, Position, Seq, SourceName};
use super::replica::{Fit, Replica};
use super::users::{RootHash, Users, address_of};
use super::wire::{FrontendMessage, Refusal};
use crate::address::Address;

/// Sources one front end keeps.
pub const MAX_SOURCES: usize = 4_096;

/// What the directory knows of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Known(Route),
    /// The domain is ours, the user is not: 550 5.1.1.
    UnknownUser,
    /// The domain is not ours: 550 5.7.1.
    UnknownDomain,
    /// Somebody who is silent may know: 451 4.4.3.
    NotSure,
}

/// Where a mailbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub backend: SourceName,
    /// What to say in RCPT TO and as login name there: the back end's own spelling, and the
    /// sub-address if one was given.
    pub mailbox: Address,
}

/// Tells one stream of a source from another; the shell never gives one out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What is said of a replica in gossip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub source: SourceName,
    /// None: registered, but never complete here.
    pub position: Option<Position>,
    pub hash: RootHash,
}

/// What is said of a replica in the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    pub source: SourceName,
    pub users: usize,
    pub domains: usize,
    /// None: never complete.
    pub position: Option<Position>,
    pub connected: bool,
    pub fresh: bool,
    /// Since the source last confirmed the copy; None: not in this life of the front end.
    pub age: Option<Duration>,
}

/// One address that several sources claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// [`Address::key`] of the address.
    pub key: String,
    pub winner: SourceName,
    pub losers: Vec<SourceName>,
}

/// The recipient directory of a front end.
#[derive(Debug, Default)]
pub struct Directory {
    replicas: HashMap<SourceName, Replica>,
    /// Domain -> the sources that have users in it, in order of their names.
    claims: HashMap<Box<str>, Vec<SourceName>>,
    /// Domain and local part in lower case of addresses that several sources have.
    conflicts: HashSet<(Box<str>, Box<str>)>,
    /// Users that were replaced; see `take_discarded`.
    discarded: Vec<Users>,
    /// Until then there may be sources that nobody has told us of.
    settled_at: Option<Instant>,
}

impl Directory {
    /// Answers [`Answer::NotSure`] instead of "unknown" until then: a front end that has just started
    /// learns of sources that came while it was away.
    pub fn hold_unknown_until(&mut self, at: Instant) {
        self.settled_at = Some(at);
    }

    /// False for as long as [`Directory::hold_unknown_until`] makes every unknown address "not sure".
    #[must_use]
    pub fn is_settled(&self, now: Instant) -> bool {
        self.settled_at.is_none_or(|at| now >= at)
    }

    /// Makes a source known: from now on its silence counts. False if it is one too many.
    pub fn register(&mut self, source: &SourceName) -> bool {
        if self.replicas.contains_key(source) {
            return true;
        }
        if self.replicas.len() >= MAX_SOURCES {
            return false;
        }
        self.replicas.insert(source.clone(), Replica::default());
        true
    }

    /// Forgets a source that will never come back, and its users with it. The caller is an operator.
    pub fn forget(&mut self, source: &SourceName) {
        if let Some(replica) = self.replicas.remove(source) {
            self.unindex(source, &replica.users);
        }
    }

    /// Takes a peer's digest: the source is registered, and if the peer's copy is of a later position
    /// than ours while the source does not talk to us, ours is no longer taken for all there is.
    /// False if it is one source too many.
    pub fn observe(&mut self, digest: &Digest) -> bool {
        if !self.register(&digest.source) {
            return false;
        }
        let Some(replica) = self.replicas.get_mut(&digest.source) else { return false };
        let order = |p: Position| (p.epoch, p.seq);
        if replica.writer.is_none() && digest.position.map(order) > replica.position.map(order) {
            replica.confirmed = None;
        }
        true
    }

    /// Takes back what was stored. Nothing of it is confirmed: such a copy answers `Known` and
    /// `NotSure`.
    pub fn restore(&mut self, source: &SourceName, stored: Stored) {
        if !self.register(source) {
            return;
        }
        self.install_users(source, stored.users);
        if let Some(replica) = self.replicas.get_mut(source) {
            replica.record = stored.record;
            replica.position = stored.position;
        }
    }

    /// What to store of a source, and the revision that it is; cheap, see [`Users`].
    #[must_use]
    pub fn stored(&self, source: &SourceName) -> Option<(u64, Stored)> {
        let replica = self.replicas.get(source)?;
        let (record, position, users) = (replica.record.clone(), replica.position, replica.users.clone());
        Some((replica.revision, Stored { record, position, users }))
    }

    /// The sources and the revision of each: it grows with every change that is worth storing.
    pub fn revisions(&self) -> impl Iterator<Item = (&SourceName, u64)> {
        self.replicas.iter().map(|(source, replica)| (source, replica.revision))
    }

    /// Does what a source's message means and says what to answer.
    ///
    /// Of two streams of one source the one with the later epoch writes, and of two with the same epoch
    /// the one that came later. An earlier epoch is refused while a later one is connected; when the
    /// later one is gone it is taken, with a new snapshot: a clock may have been set back.
    ///
    /// # Errors
    /// Why the stream must be closed.
    pub fn handle_update(
        &mut self,
        source: &SourceName,
        connection: ConnectionId,
        update: Update,
        now: Instant,
    ) -> Result<Option<FrontendMessage>, Refusal> {
        if let Update::Hello { record, position } = update {
            return self.greet(source, connection, record, position).map(Some);
        }
        let replica = self.replicas.get_mut(source).ok_or(Refusal::Superseded)?;
        let epoch = match replica.writer {
            Some((writer, epoch)) if writer == connection => epoch,
            Some(_) | None => return Err(Refusal::Superseded),
        };
        match update {
            Update::Hello { .. } => Err(Refusal::Protocol),
            Update::Damaged => {
                replica.doubt();
                Ok(Some(FrontendMessage::Resync))
            }
            Update::Heartbeat { seq, current } => {
                if replica.confirm(epoch, seq, current, now) {
                    return Ok(None);
                }
                replica.doubt();
                Ok(Some(FrontendMessage::Resync))
            }
            Update::Snapshot(snapshot) if snapshot.position.epoch != epoch => Err(Refusal::Protocol),
            Update::Snapshot(snapshot) => Ok(Some(self.install(source, *snapshot))),
            Update::Changes { first, changes, hash } => Ok(self.follow(source, epoch, first, &changes, hash)),
        }
    }

    /// Users that a snapshot has replaced: to free a million of them takes a while, so the shell drops them
    /// when it has let go of the directory's lock.
    pub fn take_discarded(&mut self) -> Vec<Users> {
        std::mem::take(&mut self.discarded)
    }

    /// The stream is gone.
    pub fn handle_disconnect(&mut self, source: &SourceName, connection: ConnectionId) {
        if let Some(replica) = self.replicas.get_mut(source)
            && replica.writer.is_some_and(|(writer, _)| writer == connection)
        {
            replica.writer = None;
            replica.resyncing = false;
        }
    }

    /// What is known of the address at `now`: the exact address first, then without the sub-address that
    /// the claiming source's delimiter marks. Of several claimants the first by name wins.
    #[must_use]
    pub fn lookup(&self, address: &Address, now: Instant) -> Answer {
        let Some(claimants) = self.claims.get(address.domain()) else {
            let sure = !self.replicas.is_empty() && self.replicas.values().all(|replica| replica.is_fresh(now));
            return if sure && self.is_settled(now) { Answer::UnknownDomain } else { Answer::NotSure };
        };
        let claimants = || claimants.iter().filter_map(|source| Some((source, self.replicas.get(source)?)));
        let key = address.local().to_lowercase();
        for (source, replica) in claimants() {
            if let Some(local) = replica.users.find(&key, address.domain()) {
                return known(source, address, local);
            }
        }
        for (source, replica) in claimants() {
            if let Some(local) = replica.find_tagged(address) {
                return known(source, address, &local);
            }
        }
        // A source that was never complete may claim any domain.
        let sure = claimants().all(|(_, replica)| replica.is_fresh(now))
            && self.replicas.values().all(|replica| replica.position.is_some());
        if sure && self.is_settled(now) { Answer::UnknownUser } else { Answer::NotSure }
    }

    /// Where the services of a back end are; None: it never said.
    #[must_use]
    pub fn backend(&self, source: &SourceName) -> Option<&BackendRecord> {
        self.replicas.get(source)?.record.as_ref()
    }

    /// All sources, for gossip, in order of their names.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        let digest = |(source, replica): (&SourceName, &Replica)| Digest {
            source: source.clone(),
            position: replica.position,
            hash: replica.users.hash(),
        };
        let mut digests: Vec<Digest> = self.replicas.iter().map(digest).collect();
        digests.sort_unstable_by(|a, b| a.source.cmp(&b.source));
        digests
    }

    /// All sources, for the status, in order of their names.
    #[must_use]
    pub fn counts(&self, now: Instant) -> Vec<Counts> {
        let count = |(source, replica): (&SourceName, &Replica)| Counts {
            source: source.clone(),
            users: replica.users.len(),
            domains: replica.users.domains().len(),
            position: replica.position,
            connected: replica.writer.is_some(),
            fresh: replica.is_fresh(now),
            age: replica.confirmed.map(|at| now.saturating_duration_since(at)),
        };
        let mut counts: Vec<Counts> = self.replicas.iter().map(count).collect();
        counts.sort_unstable_by(|a, b| a.source.cmp(&b.source));
        counts
    }

    /// How many addresses several sources claim.
    #[must_use]
    pub fn conflict_count(&self) -> usize {
        self.conflicts.len()
    }

    /// Up to `limit` addresses that several sources claim, and who has won.
    #[must_use]
    pub fn conflicts(&self, limit: usize) -> Vec<Conflict> {
        let conflict = |(domain, local): &(Box<str>, Box<str>)| {
            let mut holders = self.holders(domain, local).cloned();
            Some(Conflict { key: format!("{local}@{domain}"), winner: holders.next()?, losers: holders.collect() })
        };
        self.conflicts.iter().filter_map(conflict).take(limit).collect()
    }

    fn greet(
        &mut self,
        source: &SourceName,
        connection: ConnectionId,
        record: BackendRecord,
        position: Position,
    ) -> Result<FrontendMessage, Refusal> {
        if !self.register(source) {
            return Err(Refusal::TooManySources);
        }
        let replica = self.replicas.get_mut(source).ok_or(Refusal::TooManySources)?;
        if let Some((writer, epoch)) = replica.writer {
            if position.epoch < epoch {
                return Err(Refusal::OldEpoch);
            }
            if position.epoch == epoch && connection < writer {
                return Err(Refusal::Superseded);
            }
        }
        replica.writer = Some((connection, position.epoch));
        Ok(replica.greet(record, position).map_or(FrontendMessage::Nothing, FrontendMessage::Have))
    }

    fn install(&mut self, source: &SourceName, snapshot: Snapshot) -> FrontendMessage {
        let (seq, hash) = (snapshot.position.seq, snapshot.users.hash());
        self.install_users(source, snapshot.users);
        if let Some(replica) = self.replicas.get_mut(source) {
            replica.position = Some(snapshot.position);
            replica.resyncing = false;
            replica.confirmed = None; // until the source says that this is all there is
            replica.revision += 1;
        }
        FrontendMessage::Ack { seq, hash }
    }

    fn follow(
        &mut self,
        source: &SourceName,
        epoch: Epoch,
        first: Seq,
        changes: &[Change],
        hash: RootHash,
    ) -> Option<FrontendMessage> {
        let replica = self.replicas.get_mut(source)?;
        match replica.fit(epoch, first) {
            Fit::Superfluous => return None,
            Fit::Gap => {
                replica.doubt();
                return Some(FrontendMessage::Resync);
            }
            Fit::Next => {}
        }
        for change in changes {
            self.apply(source, change);
        }
        let replica = self.replicas.get_mut(source)?;
        if !replica.verify(hash) {
            replica.doubt();
            return Some(FrontendMessage::Resync);
        }
        let seq = replica.position?.seq;
        Some(FrontendMessage::Ack { seq, hash })
    }

    fn apply(&mut self, source: &SourceName, change: &Change) {
        let Some(replica) = self.replicas.get_mut(source) else { return };
        replica.apply(change);
        let (Change::Put(entry) | Change::Remove(entry)) = change;
        let domain = entry.address.domain();
        let claims = replica.users.has_domain(domain);
        self.set_claim(source, domain, claims);
        self.recount(domain, &entry.address.local().to_lowercase());
    }

    fn install_users(&mut self, source: &SourceName, users: Users) {
        let Some(replica) = self.replicas.get_mut(source) else { return };
        let old = std::mem::replace(&mut replica.users, users.clone());
        self.unindex(source, &old);
        self.discarded.push(old);
        for domain in users.domains() {
            self.set_claim(source, domain, true);
            if self.claims.get(domain).is_some_and(|claimants| claimants.len() > 1) {
                for local in users.keys_in(domain) {
                    self.recount(domain, local);
                }
            }
        }
    }

    /// Takes `users`, which the source has no longer, out of the claims and the conflicts.
    fn unindex(&mut self, source: &SourceName, users: &Users) {
        for domain in users.domains() {
            self.set_claim(source, domain, false);
        }
        if self.conflicts.is_empty() {
            return;
        }
        let suspects: Vec<_> = self.conflicts.iter().filter(|(d, l)| users.find(l, d).is_some()).cloned().collect();
        for (domain, local) in suspects {
            self.recount(&domain, &local);
        }
    }

    fn set_claim(&mut self, source: &SourceName, domain: &str, claims: bool) {
        let Some(claimants) = self.claims.get_mut(domain) else {
            if claims {
                self.claims.insert(domain.into(), vec![source.clone()]);
            }
            return;
        };
        match (claimants.binary_search(source), claims) {
            (Err(at), true) => claimants.insert(at, source.clone()),
            (Ok(at), false) => {
                claimants.remove(at);
            }
            (Ok(_), true) | (Err(_), false) => {}
        }
        if claimants.is_empty() {
            self.claims.remove(domain);
        }
    }

    /// The claimants of a domain that have this user, in order of their names.
    fn holders<'a>(&'a self, domain: &'a str, local: &'a str) -> impl Iterator<Item = &'a SourceName> {
        let has = move |source: &SourceName| {
            self.replicas.get(source).is_some_and(|replica| replica.users.find(local, domain).is_some())
        };
        self.claims.get(domain).into_iter().flatten().filter(move |source| has(source))
    }

    fn recount(&mut self, domain: &str, local: &str) {
        if self.conflicts.is_empty() && self.claims.get(domain).is_none_or(|claimants| claimants.len() < 2) {
            return; // the usual case
        }
        let several = self.holders(domain, local).nth(1).is_some();
        let conflict = (domain.into(), local.into());
        if several {
            self.conflicts.insert(conflict);
        } else {
            self.conflicts.remove(&conflict);
        }
    }
}

impl Replica {
    /// The user that the address means once its sub-address is taken off, with the sub-address.
    fn find_tagged(&self, address: &Address) -> Option<String> {
        let delimiter = self.record.as_ref()?.recipient_delimiter?;
        let user = address.without_tag(delimiter)?;
        let local = self.users.find(&user.local().to_lowercase(), address.domain())?;
        let tag = address.local().get(user.local().len()..)?;
        Some(format!("{local}{tag}"))
    }
}

fn known(source: &SourceName, address: &Address, local: &str) -> Answer {
    // The fallback is out of reach but for a spelling that grows beyond the limit by its sub-address.
    let mailbox = address_of(local, address.domain()).unwrap_or_else(|| address.clone());
    Answer::Known(Route { backend: source.clone(), mailbox })
}
