//! The steering machine of one front end: views, connections and what others tell go in, plans come out.
//!
//! After every call of a `handle_*`, drain [`Machine::poll_action`] and read [`Machine::poll_timeout`] again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_common::maps::BUCKET_BITS;
use roaring::RoaringBitmap;

use self::own::Own;
use self::told::Told;
use super::chains::Evidence;
use super::view::View;
use super::{Action, Holdings, Member, Plan, TooManyMembers};

mod own;
#[cfg(test)]
mod tests;
mod told;

/// So long a bucket's former owner is asked even if it has not told that it holds anything, and SYNs are passed round:
/// most handshakes that were begun before the change have ended by then.
const REMEMBERED: Duration = Duration::from_secs(15);
/// Former owners are remembered longer if not every member has told its holdings, but no longer than this.
const REMEMBERED_AT_MOST: Duration = Duration::from_secs(60);
/// Former views that are remembered at the most. Who was an owner under one that is forgotten tells so itself.
const MAX_PASTS: usize = 16;
/// After so long a view counts as settled whoever has not told its holdings.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// A view that was in force.
#[derive(Debug)]
struct Past {
    view: View,
    left: Instant,
}

/// See the module's description.
#[derive(Debug)]
pub struct Machine {
    me: String,
    /// log2 of the buckets.
    bits: u32,
    view: Option<View>,
    /// Newest first.
    pasts: VecDeque<Past>,
    /// When the view was put in force.
    entered: Option<Instant>,
    /// The view was in force before: what was told under it counts only from then on.
    confirmed_since: Option<Instant>,
    told: Told,
    own: Own,
    plan: Arc<Plan>,
    apply: bool,
    count: bool,
    tell: Option<Holdings>,
}

impl Machine {
    /// The machine of the front end `me`, which knows nobody yet.
    #[must_use]
    pub fn new(me: &str) -> Self {
        Self::with_buckets(me, BUCKET_BITS)
    }

    /// A machine with `1 << bits` buckets, for simulations; [`BUCKET_BITS`] at the most.
    pub(super) fn with_buckets(me: &str, bits: u32) -> Self {
        Self {
            me: me.to_owned(),
            bits,
            view: None,
            pasts: VecDeque::new(),
            entered: None,
            confirmed_since: None,
            told: Told::default(),
            own: Own::new(),
            plan: Arc::new(Plan::none()),
            apply: false,
            count: false,
            tell: None,
        }
    }

    /// Takes in the members, this machine among them, each name once. The same ones again change nothing.
    ///
    /// # Errors
    /// [`TooManyMembers`]; the view before stays in force.
    pub fn handle_members(&mut self, now: Instant, members: &[Member]) -> Result<(), TooManyMembers> {
        let mut sorted = members.to_vec();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        if self.view.as_ref().is_some_and(|view| view.members == sorted) {
            return Ok(());
        }
        let view = View::new(&self.me, sorted, self.bits)?;
        self.told.prune(now, self.view.as_ref(), &view);
        if let Some(old) = self.view.replace(view) {
            self.pasts.push_front(Past { view: old, left: now });
            self.pasts.truncate(MAX_PASTS);
        }
        self.entered = Some(now);
        self.confirmed_since = self.is_repeated().then_some(now);
        self.forget(now);
        if let Some(view) = &self.view {
            self.own.handle_view(now, view, lately(view, &self.pasts));
        }
        let settling = !self.confirmed();
        self.replan(settling);
        self.poll_own(now);
        Ok(())
    }

    /// Takes in what the member `from` told.
    pub fn handle_holdings(&mut self, now: Instant, from: &str, holdings: Holdings) {
        let Some(changed) = self.told.insert(now, from, holdings) else { return };
        let Some(view) = &self.view else { return };
        self.told.prune(now, None, view);
        if self.plan.settling && self.confirmed() {
            self.replan(false);
        } else {
            self.revise(&changed);
        }
    }

    /// Takes in the bucket of each of this machine's connections, those in their handshake included, those in TIME_WAIT
    /// not: the answer to [`Action::Enumerate`], which must be listed after that was asked for.
    pub fn handle_sockets(&mut self, now: Instant, buckets: impl IntoIterator<Item = u32>) {
        let Some(view) = &self.view else { return };
        let buckets = buckets.into_iter().filter(|bucket| view.buckets().contains(bucket)).collect();
        self.own.handle_connections(now, view, buckets);
        self.poll_own(now);
    }

    /// Does what is due. Call it at [`Machine::poll_timeout`]; a call too early does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        let overdue = self.settles_by().is_some_and(|due| due <= now);
        let forgotten = self.forget(now);
        if forgotten && let Some(view) = &self.view {
            self.own.handle_lately(now, view, lately(view, &self.pasts));
        }
        if overdue || forgotten {
            self.replan(self.plan.settling && !overdue);
        }
        self.poll_own(now);
    }

    /// When [`Machine::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let forget = self.pasts.back().map(|past| past.left + self.memory());
        [self.own.poll_timeout(), self.settles_by(), forget].into_iter().flatten().min()
    }

    /// What is to be done next. Only the newest of each kind is kept.
    pub fn poll_action(&mut self) -> Option<Action> {
        if std::mem::take(&mut self.apply) {
            return Some(Action::Apply(self.plan.clone()));
        }
        if std::mem::take(&mut self.count) {
            return Some(Action::Enumerate);
        }
        self.tell.take().map(Action::Tell)
    }

    /// Every member has told what it holds under the view in force, or was waited for long enough.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.plan.settling
    }

    /// The plan in force; without buckets before the first view.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// This machine's connections, as last counted.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.own.connections()
    }

    /// Those of them whose buckets are others'.
    #[must_use]
    pub fn strays(&self) -> usize {
        self.own.strays()
    }

    /// Members with the number of buckets that each owns.
    pub fn shares(&self) -> impl Iterator<Item = (&str, usize)> {
        self.plan.members.iter().map(String::as_str).zip(self.plan.shares())
    }

    /// Members with the number of buckets of other owners of which each has told that it may have connections.
    pub fn holdings(&self) -> impl Iterator<Item = (&str, u64)> {
        let others = self.view.iter().flat_map(View::others);
        others.map(|(_, member)| (member.name.as_str(), self.told.buckets(member).map_or(0, RoaringBitmap::len)))
    }

    fn settles_by(&self) -> Option<Instant> {
        self.entered.filter(|_| self.plan.settling).map(|entered| entered + SETTLED_AFTER)
    }

    /// Whether a former view that is still remembered was the same as this one.
    fn is_repeated(&self) -> bool {
        let hash = self.view.as_ref().map(|view| view.hash);
        self.pasts.iter().any(|past| Some(past.view.hash) == hash)
    }

    fn confirmed(&self) -> bool {
        self.view.as_ref().is_some_and(|view| self.unconfirmed(view).next().is_none())
    }

    fn unconfirmed<'a>(&'a self, view: &'a View) -> impl Iterator<Item = u8> + 'a {
        let missing = |member: &Member| !self.told.confirms(member, view, self.confirmed_since);
        view.others().filter(move |(_, member)| missing(member)).map(|(slot, _)| slot)
    }

    /// How long former views are remembered.
    fn memory(&self) -> Duration {
        if self.confirmed() { REMEMBERED } else { REMEMBERED_AT_MOST }
    }

    /// Forgets former views that are too old; whether there were any.
    fn forget(&mut self, now: Instant) -> bool {
        let (before, memory) = (self.pasts.len(), self.memory());
        self.pasts.retain(|past| now < past.left + memory);
        self.pasts.len() < before
    }

    fn evidence<'a>(&'a self, view: &'a View, settling: bool) -> Evidence<'a> {
        let pasts = self.pasts.iter().map(|past| (view.translation(&past.view), &past.view));
        let holders = view.others().filter_map(|(slot, member)| Some((slot, self.told.buckets(member)?)));
        let unconfirmed = if settling { self.unconfirmed(view).collect() } else { Vec::new() };
        Evidence { view, pasts: pasts.collect(), holders: holders.collect(), unconfirmed }
    }

    fn replan(&mut self, settling: bool) {
        let Some(view) = &self.view else { return };
        let plan = self.evidence(view, settling).plan(settling);
        self.plan = Arc::new(plan);
        self.apply = true;
    }

    /// Makes the chains of some buckets anew.
    fn revise(&mut self, buckets: &RoaringBitmap) {
        let Some(view) = &self.view else { return };
        let mut plan = std::mem::replace(&mut self.plan, Arc::new(Plan::none()));
        let changed = self.evidence(view, plan.settling).revise(&mut plan, buckets);
        self.plan = plan;
        self.apply |= changed;
    }

    fn poll_own(&mut self, now: Instant) {
        let Some(view) = &self.view else { return };
        self.count |= self.own.poll_count(now);
        let generation = view.members.get(usize::from(view.own_slot)).map_or(0, |member| member.generation);
        if let Some(holdings) = self.own.poll_tell(now, view.hash, generation) {
            self.tell = Some(holdings);
        }
    }
}

/// Buckets of others that were this machine's under a former view.
fn lately(view: &View, pasts: &VecDeque<Past>) -> RoaringBitmap {
    let was = |bucket: &u32| !view.owns(*bucket) && pasts.iter().any(|past| past.view.owns(*bucket));
    view.buckets().filter(was).collect()
}
