//! What of a freshly read source is believed at once, and what only when it stays so.
//!
//! A file is seen half-written, a disk full, a mount gone: each looks like users removed, and a user
//! removed is mail refused. Additions are believed at once. A reading that would remove more than
//! [`HOLD_PERCENT`] of a domain's users is believed for that domain only after [`CONFIRMATIONS`] more
//! readings of the very same content, and one that would remove every user of the source never: an agent
//! that is restarted begins with what it finds.

use siphasher::sip128::SipHasher13;

use super::record::Change;
use super::users::Users;

/// Share of a domain's users, in percent, that one reading may remove without being held.
pub const HOLD_PERCENT: usize = 10;
/// Further readings with the same content after which held removals are believed.
pub const CONFIRMATIONS: u32 = 2;

/// Tells the content of one reading from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// The fingerprint of the bytes of a file.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(SipHasher13::new().hash(content).as_u128())
    }
}

/// Removals that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub domain: String,
    pub users: usize,
    pub removals: usize,
}

/// What became of a reading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// For the log.
    pub changes: Vec<Change>,
    /// If not empty, read again soon.
    pub held: Vec<Held>,
    /// The reading has no user at all, and before there were some.
    pub emptied: bool,
}

/// Remembers what was held.
#[derive(Debug, Default)]
pub struct Intake {
    waiting: Option<(Fingerprint, u32)>,
}

impl Intake {
    /// Judges a reading of a source whose users are believed to be `users`.
    pub fn handle_reading(&mut self, users: &Users, fresh: &Users, content: Fingerprint) -> Reading {
        let changes = users.changes_to(fresh);
        let mut held = suspicious(users, &changes);
        held.sort_unstable_by(|a, b| a.domain.cmp(&b.domain));
        if held.is_empty() {
            self.waiting = None;
            return Reading { changes, ..Reading::default() };
        }
        let emptied = fresh.is_empty();
        let seen = match self.waiting {
            Some((waiting, seen)) if waiting == content => seen.saturating_add(1),
            Some(_) | None => 0,
        };
        self.waiting = Some((content, seen));
        if seen >= CONFIRMATIONS && !emptied {
            self.waiting = None;
            return Reading { changes, ..Reading::default() };
        }
        let waits = |change: &Change| match change {
            Change::Put(_) => false,
            Change::Remove(entry) => held.binary_search_by(|h| h.domain.as_str().cmp(entry.address.domain())).is_ok(),
        };
        let changes = changes.into_iter().filter(|change| !waits(change)).collect();
        Reading { changes, held, emptied }
    }
}

fn suspicious(users: &Users, changes: &[Change]) -> Vec<Held> {
    let mut removals = std::collections::HashMap::<&str, usize>::new();
    for change in changes {
        if let Change::Remove(entry) = change {
            *removals.entry(entry.address.domain()).or_default() += 1;
        }
    }
    let held =
        |(domain, removals): (&str, usize)| Held { domain: domain.to_owned(), users: users.count_in(domain), removals };
    let many = |held: &Held| held.removals * 100 > held.users * HOLD_PERCENT;
    removals.into_iter().map(held).filter(many).collect()
}

#[cfg(test)]
mod tests {
    use super::super::log::Log;
    use super::super::record::Epoch;
    use super::*;
    use crate::address::Address;

    fn users(range: std::ops::Range<u32>, domain: &str) -> impl Iterator<Item = Address> {
        range.map(move |n| Address::parse(&format!("u{n}@{domain}")).unwrap())
    }

    fn log() -> Log {
        let mut log = Log::new(Epoch(1));
        let changes = log.diff(&users(0..100, "x.test").chain(users(0..100, "y.test")).collect());
        log.append(changes);
        log
    }

    fn read(intake: &mut Intake, log: &mut Log, fresh: &Users, content: &[u8]) -> Reading {
        let reading = intake.handle_reading(log.users(), fresh, Fingerprint::of(content));
        log.append(reading.changes.clone());
        reading
    }

    #[test]
    fn few_removals_pass_and_many_wait_for_two_confirmations() {
        let (mut intake, mut log) = (Intake::default(), log());
        let few: Users = users(10..100, "x.test").chain(users(0..100, "y.test")).collect();
        assert!(read(&mut intake, &mut log, &few, b"few").held.is_empty());
        assert!(*log.users() == few);

        // Half of x is gone, one of y is gone, one of y is new.
        let many: Users = users(60..100, "x.test").chain(users(1..101, "y.test")).collect();
        let held = vec![Held { domain: "x.test".into(), users: 90, removals: 50 }];
        assert_eq!(read(&mut intake, &mut log, &many, b"many").held, held);
        assert_eq!((log.users().count_in("x.test"), log.users().count_in("y.test")), (90, 100));
        assert!(log.users().find("u100", "y.test").is_some());
        assert_eq!(read(&mut intake, &mut log, &many, b"many").held, held);
        assert_eq!(read(&mut intake, &mut log, &many, b"other").held, held);
        assert_eq!(read(&mut intake, &mut log, &many, b"other").held, held);
        assert!(read(&mut intake, &mut log, &many, b"other").held.is_empty());
        assert!(*log.users() == many);
    }

    #[test]
    fn an_emptied_source_is_never_believed() {
        let (mut intake, mut log) = (Intake::default(), log());
        for _ in 0..10 {
            let reading = read(&mut intake, &mut log, &Users::default(), b"");
            assert!(reading.emptied && reading.changes.is_empty() && reading.held.len() == 2);
        }
        assert_eq!(log.users().len(), 200);
    }
}
