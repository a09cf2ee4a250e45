//! A set of users with a hash over the whole set that costs the same per change however large the set.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::record::{Change, Entry};
use crate::address::Address;

/// Key of the root hash. It is public: the hash guards against loss and bugs between two ends that
/// trust each other, not against forgery (that is what the certificates are for).
const ROOT_HASH_KEY: (u64, u64) = (0x6175_746f_636c_7573, 0x7465_722d_726f_6f74);

/// Sum modulo 2^128 of a keyed hash of every entry: equal sets have equal hashes whatever the order in
/// which they came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootHash(u128);

impl RootHash {
    fn of(local: &str, domain: &str) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(ROOT_HASH_KEY.0, ROOT_HASH_KEY.1);
        hasher.write(local.as_bytes());
        hasher.write_u8(0); // no local part has a NUL
        hasher.write(domain.as_bytes());
        hasher.finish128().as_u128()
    }

    fn add(&mut self, local: &str, domain: &str) {
        self.0 = self.0.wrapping_add(Self::of(local, domain));
    }

    fn subtract(&mut self, local: &str, domain: &str) {
        self.0 = self.0.wrapping_sub(Self::of(local, domain));
    }
}

/// Users of one domain that share a map. It bounds what one change copies while a clone of the set lives: a front
/// end's lookups wait for that.
const SHARD_USERS: usize = 4_096;

/// Local part in lower case -> the back end's own spelling where it differs.
type Shard = HashMap<Box<str>, Option<Box<str>>>;

/// The users of one domain.
#[derive(Debug, Clone)]
struct DomainUsers {
    /// A power of two of them.
    shards: Vec<Arc<Shard>>,
    count: usize,
}

impl Default for DomainUsers {
    fn default() -> Self {
        Self { shards: vec![Arc::default()], count: 0 }
    }
}

impl DomainUsers {
    fn shard_of(key: &str, shards: usize) -> usize {
        let hash = SipHasher13::new_with_keys(ROOT_HASH_KEY.0, ROOT_HASH_KEY.1).hash(key.as_bytes()).h1;
        usize::try_from(hash & (shards as u64 - 1)).unwrap_or(0)
    }

    fn get(&self, key: &str) -> Option<(&str, &str)> {
        let shard = self.shards.get(Self::shard_of(key, self.shards.len()))?;
        let (key, spelling) = shard.get_key_value(key)?;
        Some((key, spelling.as_deref().unwrap_or(key)))
    }

    /// The user must not be there yet.
    fn insert(&mut self, key: Box<str>, spelling: Option<Box<str>>) {
        if self.count >= self.shards.len() * SHARD_USERS {
            self.grow();
        }
        let at = Self::shard_of(&key, self.shards.len());
        if let Some(shard) = self.shards.get_mut(at) {
            Arc::make_mut(shard).insert(key, spelling);
            self.count += 1;
        }
    }

    /// The user must be there.
    fn remove(&mut self, key: &str) {
        let at = Self::shard_of(key, self.shards.len());
        if let Some(shard) = self.shards.get_mut(at) {
            Arc::make_mut(shard).remove(key);
            self.count -= 1;
        }
    }

    /// Twice as many shards. They never become fewer: a domain that has shrunk may grow again.
    fn grow(&mut self) {
        let mut shards = vec![Shard::default(); self.shards.len() * 2];
        for shard in self.shards.drain(..) {
            for (key, spelling) in Arc::unwrap_or_clone(shard) {
                let at = Self::shard_of(&key, shards.len());
                if let Some(shard) = shards.get_mut(at) {
                    shard.insert(key, spelling);
                }
            }
        }
        self.shards = shards.into_iter().map(Arc::new).collect();
    }

    /// Each user's local part in lower case and in the back end's spelling.
    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let shards = self.shards.iter().flat_map(|shard| shard.iter());
        shards.map(|(key, spelling)| (key.as_ref(), spelling.as_deref().unwrap_or(key)))
    }
}

/// The users of one source. A clone costs one reference count per domain; what changes while a clone lives is copied,
/// at most a few thousand users at a time. So a snapshot can be sent or written while the set goes on changing.
#[derive(Debug, Clone, Default)]
pub struct Users {
    domains: HashMap<Box<str>, Arc<DomainUsers>>,
    count: usize,
    hash: RootHash,
}

impl Users {
    /// Adds the user, or takes over the new spelling. False if nothing changed.
    pub fn insert(&mut self, address: &Address) -> bool {
        if self.contains(address) {
            return false;
        }
        self.remove(address);
        let key = address.local().to_lowercase();
        let (local, domain) = (address.local(), address.domain());
        let spelling = (key != local).then(|| local.into());
        let users = match self.domains.get_mut(domain) {
            Some(users) => users,
            None => self.domains.entry(domain.into()).or_default(),
        };
        Arc::make_mut(users).insert(key.into(), spelling);
        self.hash.add(local, domain);
        self.count += 1;
        true
    }

    /// Removes the user, whatever the spelling. False if there was none.
    pub fn remove(&mut self, address: &Address) -> bool {
        let key = address.local().to_lowercase();
        let domain = address.domain();
        let Some(old) = self.find(&key, domain).map(str::to_owned) else { return false };
        self.hash.subtract(&old, domain);
        self.count -= 1;
        if let Some(users) = self.domains.get_mut(domain) {
            let users = Arc::make_mut(users);
            users.remove(&key);
            if users.count == 0 {
                self.domains.remove(domain);
            }
        }
        true
    }

    /// Does what the change says. False if it changed nothing.
    pub fn apply(&mut self, change: &Change) -> bool {
        match change {
            Change::Put(entry) => self.insert(&entry.address),
            Change::Remove(entry) => self.remove(&entry.address),
        }
    }

    /// What turns this set into `fresh`, in a reproducible order: additions before removals, so that no user is
    /// missing in between.
    #[must_use]
    pub fn changes_to(&self, fresh: &Self) -> Vec<Change> {
        let mut puts: Vec<Entry> = fresh.entries().filter(|e| !self.contains(&e.address)).collect();
        let gone = |e: &Entry| fresh.find(&e.address.local().to_lowercase(), e.address.domain()).is_none();
        let mut removals: Vec<Entry> = self.entries().filter(gone).collect();
        puts.sort_unstable();
        removals.sort_unstable();
        puts.into_iter().map(Change::Put).chain(removals.into_iter().map(Change::Remove)).collect()
    }

    /// The back end's spelling of the local part whose lower-case form is `key`, if there is such a user.
    #[must_use]
    pub fn find<'a>(&'a self, key: &str, domain: &str) -> Option<&'a str> {
        self.domains.get(domain)?.get(key).map(|(_, spelling)| spelling)
    }

    /// True if this very user is there, in this very spelling.
    #[must_use]
    pub fn contains(&self, address: &Address) -> bool {
        self.find(&address.local().to_lowercase(), address.domain()) == Some(address.local())
    }

    /// How many users the set has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there is no user.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The hash over the whole set.
    #[must_use]
    pub fn hash(&self) -> RootHash {
        self.hash
    }

    /// True if the set has a user in the domain.
    #[must_use]
    pub fn has_domain(&self, domain: &str) -> bool {
        self.domains.contains_key(domain)
    }

    /// The domains in which the set has users.
    pub fn domains(&self) -> impl ExactSizeIterator<Item = &str> {
        self.domains.keys().map(AsRef::as_ref)
    }

    /// How many users the set has in the domain.
    #[must_use]
    pub fn count_in(&self, domain: &str) -> usize {
        self.domains.get(domain).map_or(0, |users| users.count)
    }

    /// The local parts in lower case of the users of one domain.
    pub fn keys_in<'a>(&'a self, domain: &str) -> impl Iterator<Item = &'a str> {
        self.domains.get(domain).into_iter().flat_map(|users| users.iter()).map(|(key, _)| key)
    }

    /// The users of one domain, in no order.
    pub fn entries_in<'a>(&'a self, domain: &'a str) -> impl Iterator<Item = Entry> + 'a {
        let users = self.domains.get(domain).into_iter().flat_map(|users| users.iter());
        users.filter_map(move |(_, spelling)| Some(Entry { address: address_of(spelling, domain)? }))
    }

    /// All users, in no order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.domains().flat_map(|domain| self.entries_in(domain))
    }
}

/// Equal sets: same users, same spelling.
impl PartialEq for Users {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.hash == other.hash && self.entries().all(|e| other.contains(&e.address))
    }
}

impl FromIterator<Address> for Users {
    fn from_iter<I: IntoIterator<Item = Address>>(addresses: I) -> Self {
        let mut users = Self::default();
        for address in addresses {
            users.insert(&address);
        }
        users
    }
}

/// The address whose local part, unquoted, is `local`. None for what `Address` would refuse: nothing
/// that came out of an `Address`.
pub(super) fn address_of(local: &str, domain: &str) -> Option<Address> {
    let mut text = String::with_capacity(local.len() + domain.len() + 3);
    text.push('"'); // quoted, so that every local part can be written
    for c in local.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push_str("\"@");
    text.push_str(domain);
    Address::parse(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn the_hash_forgets_the_order_and_what_was_undone() {
        let names = ["a@x.test", "b@x.test", "\"a b\\\"c\"@x.test", "İ@y.test"];
        let forward: Users = names.iter().map(|n| address(n)).collect();
        let mut backward: Users = names.iter().rev().map(|n| address(n)).collect();
        backward.insert(&address("z@z.test"));
        assert_ne!(forward.hash(), backward.hash());
        assert!(backward.remove(&address("Z@z.test")));
        assert_eq!(forward.hash(), backward.hash());
        assert!(forward == backward);
        assert_eq!(backward.len(), 4);
        assert_eq!(forward.entries().collect::<Vec<_>>().len(), 4);
        assert!(!backward.has_domain("z.test"));
    }

    #[test]
    fn a_new_spelling_replaces_the_old() {
        let mut users = Users::default();
        assert!(users.insert(&address("bob@x.test")));
        assert!(users.insert(&address("Bob@x.test")));
        assert!(!users.insert(&address("Bob@x.test")));
        assert_eq!((users.len(), users.find("bob", "x.test")), (1, Some("Bob")));
        assert_eq!(users.hash(), [address("Bob@x.test")].into_iter().collect::<Users>().hash());
    }

    #[test]
    fn a_clone_does_not_follow() {
        let mut users: Users = [address("a@x.test")].into_iter().collect();
        let before = users.clone();
        users.insert(&address("b@x.test"));
        assert_eq!((before.len(), before.count_in("x.test"), users.count_in("x.test")), (1, 1, 2));
    }

    #[test]
    fn a_large_domain_is_copied_in_small_pieces() {
        let many = 3 * SHARD_USERS;
        let mut users: Users = (0..many).map(|n| address(&format!("U{n}@x.test"))).collect();
        let before = users.clone();
        users.insert(&address("one@x.test"));
        users.remove(&address("u7@x.test"));
        let shards = |users: &Users| users.domains.get("x.test").unwrap().shards.clone();
        let (old, new) = (shards(&before), shards(&users));
        let copied = old.iter().zip(&new).filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
        assert!(new.len() == 4 && (1..=2).contains(&copied), "{copied} of {}", new.len());
        assert_eq!((before.len(), users.len(), users.count_in("x.test")), (many, many, many));
        assert!(before.find("u7", "x.test").is_some() && users.find("u7", "x.test").is_none());
        assert!((0..many).all(|n| before.find(&format!("u{n}"), "x.test") == Some(format!("U{n}").as_str())));
        assert_eq!(users.keys_in("x.test").count(), many);
    }
}
