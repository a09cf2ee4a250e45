//! The kernel's own switch for SYN cookies. The XDP program's cookies are the kernel's, and it gives none unless it would
//! make some itself: always, or only while a listener's queue of handshakes is full. Where the program answers, no queue
//! ever is.
//!
//! The setting is the machine's (its network namespace's), not ours: what it was is kept on disk while it is changed, so
//! that it comes back even if this daemon is killed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proxy_core::abuse::Cookies;

use crate::files;

/// Of the network namespace of the thread that opens it.
const SETTING: &str = "/proc/sys/net/ipv4/tcp_syncookies";
/// What the setting was, in the daemon's directory.
const FORMER: &str = "tcp_syncookies";
/// No cookie is made, and none is taken.
const NEVER: u8 = 0;
/// Cookies while a queue is full.
const WHEN_FULL: u8 = 1;
const ALWAYS: u8 = 2;

/// Has the kernel give the program cookies.
#[derive(Debug)]
pub(super) struct KernelCookies {
    former_file: PathBuf,
    /// What the setting was before it was changed, and what it was changed to.
    changed: Option<Change>,
    /// What was asked for last: nothing is done twice.
    asked: Option<Cookies>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    former: u8,
    set: u8,
}

impl KernelCookies {
    /// Takes over what an earlier daemon changed and did not change back.
    pub(super) fn open(state_dir: &Path) -> Self {
        let former_file = state_dir.join(FORMER);
        let changed = left_behind(&former_file).unwrap_or_else(|error| {
            // Most machines have it so.
            let change = Change { former: WHEN_FULL, set: ALWAYS };
            tracing::warn!(error = format!("{error:#}"), "tcp_syncookies was changed, and what it was is not known: 1");
            Some(change)
        });
        Self { former_file, changed, asked: None }
    }

    /// Does what the program's cookies need. While they may come back, the kernel must take them; it must not make its
    /// own all that time, or there would always be some that may come back.
    ///
    /// # Errors
    /// The setting cannot be read or written. It is not tried again before something else is asked for.
    pub(super) fn obey(&mut self, cookies: Cookies) -> Result<()> {
        if self.asked.replace(cookies) == Some(cookies) {
            return Ok(());
        }
        match (cookies.send, self.changed) {
            (true, _) => self.change(ALWAYS),
            (false, Some(Change { former: NEVER, .. })) if cookies.out => self.change(WHEN_FULL),
            (false, _) => self.restore(),
        }
    }

    /// Changes the setting back, unless somebody else has changed it since.
    ///
    /// # Errors
    /// The setting cannot be read or written.
    pub(super) fn restore(&mut self) -> Result<()> {
        let Some(Change { former, set }) = self.changed else { return Ok(()) };
        if read()? == set {
            write(former)?;
        }
        self.changed = None;
        match fs::remove_file(&self.former_file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove {}", self.former_file.display()))
            }
            _ => Ok(()),
        }
    }

    fn change(&mut self, to: u8) -> Result<()> {
        let now = read()?;
        let former = match self.changed {
            Some(Change { former, set }) if set == now => former,
            _ => now,
        };
        if now == to {
            return Ok(());
        }
        // First, so that a daemon that is killed in between leaves too much behind, not too little.
        files::replace(&self.former_file, former.to_string().as_bytes())
            .with_context(|| format!("failed to write {}", self.former_file.display()))?;
        write(to)?;
        self.changed = Some(Change { former, set: to });
        Ok(())
    }
}

/// What an earlier daemon changed.
fn left_behind(former_file: &Path) -> Result<Option<Change>> {
    let former = match fs::read_to_string(former_file) {
        Ok(text) => parse(&text).with_context(|| format!("{} holds no such setting", former_file.display()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", former_file.display())),
    };
    Ok(Some(Change { former, set: read()? }))
}

fn parse(text: &str) -> Option<u8> {
    text.trim().parse().ok().filter(|value| (NEVER..=ALWAYS).contains(value))
}

fn read() -> Result<u8> {
    let text = fs::read_to_string(SETTING).with_context(|| format!("failed to read {SETTING}"))?;
    parse(&text).with_context(|| format!("{SETTING} holds {text:?}"))
}

fn write(value: u8) -> Result<()> {
    fs::write(SETTING, value.to_string()).with_context(|| format!("failed to write {SETTING}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_network_namespace;

    const SENDING: Cookies = Cookies { send: true, out: true };
    const OUT: Cookies = Cookies { send: false, out: true };
    const OVER: Cookies = Cookies { send: false, out: false };

    /// What the setting becomes, one after the other, from `before` on; and whether anything is kept on disk at the end.
    fn settings(before: u8, asked: &[Cookies]) -> (Vec<u8>, bool) {
        let state = tempfile::tempdir().unwrap();
        write(before).unwrap();
        let mut kernel = KernelCookies::open(state.path());
        let settings = asked.iter().map(|cookies| {
            kernel.obey(*cookies).unwrap();
            read().unwrap()
        });
        (settings.collect(), state.path().join(FORMER).exists())
    }

    #[test]
    fn the_kernel_makes_cookies_only_while_they_are_sent() {
        in_network_namespace("the_kernel_makes_cookies_only_while_they_are_sent", async || {
            let all = [OUT, OVER, SENDING, SENDING, OUT, SENDING, OUT, OVER];
            assert_eq!(settings(1, &all), (vec![1, 1, 2, 2, 1, 2, 1, 1], false));
            assert_eq!(settings(2, &all), (vec![2; 8], false), "an operator's choice");
            assert_eq!(settings(0, &all), (vec![0, 0, 2, 2, 1, 2, 1, 0], false), "what is out must be taken");
            assert_eq!(settings(1, &[SENDING]), (vec![2], true));
        });
    }

    #[test]
    fn the_next_daemon_changes_back_what_a_killed_one_left() {
        in_network_namespace("the_next_daemon_changes_back_what_a_killed_one_left", async || {
            let state = tempfile::tempdir().unwrap();
            let open = || KernelCookies::open(state.path());
            write(0).unwrap();
            open().obey(SENDING).unwrap();
            let mut next = open();
            next.obey(OUT).unwrap();
            assert_eq!(read().unwrap(), 1);
            drop(next);
            open().obey(OVER).unwrap();
            assert_eq!(read().unwrap(), 0);
            // The same at an orderly end, and by a flood that goes on.
            open().obey(SENDING).unwrap();
            let mut next = open();
            next.obey(SENDING).unwrap();
            next.restore().unwrap();
            assert_eq!((read().unwrap(), state.path().join(FORMER).exists()), (0, false));
            // What was it?
            open().obey(SENDING).unwrap();
            fs::write(state.path().join(FORMER), "x").unwrap();
            open().obey(OVER).unwrap();
            assert_eq!(read().unwrap(), 1);
        });
    }

    #[test]
    fn what_somebody_else_has_set_since_stays() {
        in_network_namespace("what_somebody_else_has_set_since_stays", async || {
            let state = tempfile::tempdir().unwrap();
            let mut kernel = KernelCookies::open(state.path());
            write(1).unwrap();
            kernel.obey(SENDING).unwrap();
            write(0).unwrap();
            kernel.obey(OVER).unwrap();
            assert_eq!(read().unwrap(), 0);
            kernel.obey(SENDING).unwrap();
            kernel.obey(OVER).unwrap();
            assert_eq!((read().unwrap(), state.path().join(FORMER).exists()), (0, false));
        });
    }
}
