//! Mail accounts of a back end, in Dovecot's passwd-file: `address:{PLAIN}password::::::`.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::layout::Layout;
use super::spec::{Host, Spec};

/// The domain whose users are spread over all back ends.
pub(super) const SHARED_DOMAIN: &str = "shared.test";
/// A mailbox name outside ASCII, one in each back end's own domain.
pub(super) const UTF8_USER: &str = "jörg";

/// One account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub address: String,
    pub password: String,
    /// The back end that has the mailbox, from 1.
    pub backend: u8,
}

/// The password that the lab gives to an address: `secret-` and the local part, without umlauts (many client
/// libraries send passwords in ASCII only).
#[must_use]
pub fn password_of(address: &str) -> String {
    let local = address.split('@').next().unwrap_or(address);
    format!("secret-{}", local.replace('ö', "oe"))
}

impl Account {
    fn new(address: String, backend: u8) -> Self {
        Self { password: password_of(&address), address, backend }
    }

    /// `user{number}@be{backend}.test`
    #[must_use]
    pub fn local(backend: u8, number: u32) -> Self {
        Self::new(format!("user{number}@be{backend}.test"), backend)
    }

    /// `jörg@be{backend}.test`
    #[must_use]
    pub fn utf8(backend: u8) -> Self {
        Self::new(format!("{UTF8_USER}@be{backend}.test"), backend)
    }

    /// `user{number}@shared.test`, on the back end whose turn it is.
    #[must_use]
    pub fn shared(spec: &Spec, number: u32) -> Self {
        let turn = number.wrapping_sub(1) % u32::from(spec.backends);
        let backend = u8::try_from(turn).unwrap_or_default() + 1;
        Self::new(format!("user{number}@{SHARED_DOMAIN}"), backend)
    }
}

/// How many mailboxes one back end holds when the lab is new.
#[must_use]
pub fn mailbox_count(spec: &Spec, backend: u8) -> usize {
    accounts_of(spec, backend).count()
}

fn accounts_of(spec: &Spec, backend: u8) -> impl Iterator<Item = Account> {
    let own = (1..=spec.users).map(move |number| Account::local(backend, number));
    let shared = (1..=spec.users).map(|number| Account::shared(spec, number));
    own.chain([Account::utf8(backend)]).chain(shared.filter(move |account| account.backend == backend))
}

/// The passwd-file of a back end.
pub(super) fn file(layout: &Layout, backend: u8) -> PathBuf {
    layout.host_dir(Host::backend(backend)).join("users")
}

fn line(address: &str, password: &str) -> String {
    format!("{address}:{{PLAIN}}{password}::::::\n")
}

/// Writes the accounts that a new lab has.
pub(super) fn write_all(layout: &Layout, spec: &Spec, backend: u8) -> anyhow::Result<()> {
    let mut text = String::new();
    for account in accounts_of(spec, backend) {
        write!(text, "{}", line(&account.address, &account.password))?;
    }
    let path = file(layout, backend);
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// Adds an account as an administrator's `echo >>` does: one write at the end of the file.
pub(super) fn add(path: &Path, address: &str, password: &str) -> anyhow::Result<()> {
    let mut file =
        OpenOptions::new().append(true).open(path).with_context(|| format!("failed to open {}", path.display()))?;
    file.write_all(line(address, password).as_bytes()).with_context(|| format!("failed to write {}", path.display()))
}

/// Removes an account as an editor does: a new file takes the old one's name.
pub(super) fn remove(path: &Path, address: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let prefix = format!("{address}:");
    let kept: String = text.split_inclusive('\n').filter(|line| !line.starts_with(&prefix)).collect();
    let temporary = path.with_extension("new");
    fs::write(&temporary, kept).with_context(|| format!("failed to write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("failed to replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_users_take_turns() {
        let spec = Spec { users: 5, ..Spec::default() };
        let turns: Vec<u8> = (1..=5).map(|n| Account::shared(&spec, n).backend).collect();
        assert_eq!(turns, [1, 2, 1, 2, 1]);
        assert_eq!((mailbox_count(&spec, 1), mailbox_count(&spec, 2)), (5 + 1 + 3, 5 + 1 + 2));
    }

    #[test]
    fn a_removed_account_takes_no_other_with_it() {
        let path = std::env::temp_dir().join(format!("autocluster-users-{}", std::process::id()));
        fs::write(&path, line("user1@be1.test", "a") + &line("user11@be1.test", "b")).unwrap();
        add(&path, "new@be1.test", "c").unwrap();
        remove(&path, "user1@be1.test").unwrap();
        let left = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(left, line("user11@be1.test", "b") + &line("new@be1.test", "c"));
    }
}
