//! Taking a lab away, however much of it there is.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::command::run;
use super::layout::{Layout, RUN_DIR};
use super::wait::until;
use super::{namespace, process};

/// A killed process is gone as soon as the kernel has closed its files.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Ends every process in the lab's namespaces, deletes these, unmounts its BPF file systems and removes its
/// directory. A lab that is half there, or not at all, is no error.
///
/// # Errors
/// If a process survives SIGKILL or a file cannot be removed.
pub fn down(name: &str) -> anyhow::Result<()> {
    let layout = Layout::new(name);
    let namespaces: Vec<String> = namespace::list().into_iter().filter(|ns| layout.host_of(ns).is_some()).collect();
    until("the lab's processes end", KILL_LIMIT, || {
        let pids: Vec<i32> = namespaces.iter().flat_map(|ns| namespace::pids(ns)).collect();
        // Dovecot's master starts new children until it is gone itself, hence the repetition.
        let failed = pids.iter().any(|pid| process::signal(*pid, Signal::SIGKILL).is_err());
        pids.is_empty() && !failed
    })?;
    for namespace in namespaces {
        run("ip", &["netns", "delete", &namespace])?;
    }
    for mount in mounts_below(&layout) {
        umount2(&mount, MntFlags::MNT_DETACH).with_context(|| format!("failed to unmount {}", mount.display()))?;
    }
    remove(&layout.dir())?;
    // Only if no other lab is there; a full directory refuses.
    drop(fs::remove_dir(RUN_DIR));
    Ok(())
}

fn remove(dir: &PathBuf) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Mount points inside the lab's directory, the innermost first.
fn mounts_below(layout: &Layout) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(PathBuf::from))
        .filter(|path| path.starts_with(layout.dir()))
        .collect();
    mounts.reverse();
    mounts
}
