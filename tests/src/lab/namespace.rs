//! Network namespaces: listing them, their processes, and running code inside one.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its namespaces.
const NETNS_DIR: &str = "/run/netns";

fn path_of(namespace: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(namespace)
}

/// The names of all named network namespaces.
#[must_use]
pub fn list() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The processes in a namespace. A dead process that its parent has not reaped is not counted.
#[must_use]
pub fn pids(namespace: &str) -> Vec<i32> {
    let Ok(wanted) = fs::metadata(path_of(namespace)) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|ns| ns.ino() == wanted.ino() && ns.dev() == wanted.dev())
        })
        .collect()
}

/// Runs `work` on a thread of its own inside the namespace: sockets it makes belong to that host, wherever they
/// are used later.
///
/// # Errors
/// If there is no such namespace or this process may not enter it; otherwise what `work` returns.
pub fn enter<T: Send>(namespace: &str, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let file = File::open(path_of(namespace)).with_context(|| format!("failed to open namespace {namespace}"))?;
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("failed to enter namespace {namespace}"))?;
            work()
        });
        worker.join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            anyhow!("panic in namespace {namespace}: {}", text.unwrap_or_default())
        })?
    })
}
