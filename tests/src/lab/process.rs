//! Daemons of a lab: started in their own session with their output in a file, so that they outlive the command
//! that started them; found again by their process id and namespace.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::Layout;
use super::namespace;
use super::spec::Host;
use super::wait::until_some;

/// How much of a log is shown when its process fails.
const LOG_TAIL_BYTES: u64 = 4000;

/// Starts a program on a host under a name; its process id.
pub(super) fn start(layout: &Layout, host: Host, name: &str, argv: &[String]) -> anyhow::Result<i32> {
    let log_path = layout.log(host, name);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("failed to open {}", log_path.display()))?;
    // setsid and `ip netns exec` both replace themselves, so the process id is the daemon's own.
    let mut child = Command::new("setsid")
        .args(["ip", "netns", "exec", &layout.namespace(host)])
        .args(argv)
        .current_dir(layout.host_dir(host))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("failed to start {name} on {host}"))?;
    let pid = i32::try_from(child.id()).context("process id out of range")?;
    fs::write(layout.pid_file(host, name), pid.to_string())?;
    // Whoever started the lab may stay for long (a test run): the dead must not linger as zombies.
    thread::spawn(move || child.wait());
    Ok(pid)
}

/// The process id that a daemon was last started with.
pub(super) fn recorded_pid(layout: &Layout, host: Host, name: &str) -> Option<i32> {
    fs::read_to_string(layout.pid_file(host, name)).ok()?.trim().parse().ok()
}

/// The names of all daemons that were started on a host, with their process ids.
pub(super) fn recorded(layout: &Layout, host: Host) -> Vec<(String, i32)> {
    let Ok(entries) = fs::read_dir(layout.host_dir(host)) else { return Vec::new() };
    let mut found: Vec<(String, i32)> = entries
        .filter_map(|entry| {
            let file = entry.ok()?.file_name().into_string().ok()?;
            let name = file.strip_suffix(".pid")?.to_owned();
            let pid = recorded_pid(layout, host, &name)?;
            Some((name, pid))
        })
        .collect();
    found.sort();
    found
}

/// Whether the process lives, and on this host (a process id is used again some day).
pub(super) fn is_alive(layout: &Layout, host: Host, pid: i32) -> bool {
    namespace::pids(&layout.namespace(host)).contains(&pid)
}

/// Waits for a daemon to be ready; a daemon that ends instead is an error that shows its last words.
pub(super) fn await_ready(
    layout: &Layout,
    host: Host,
    name: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let what = format!("{name} on {host} is ready");
    let pid = recorded_pid(layout, host, name).with_context(|| format!("{name} on {host} was never started"))?;
    let outcome = until_some(&what, limit, || match probe() {
        Ok(true) => Ok(Some(true)),
        _ if !Path::new(&format!("/proc/{pid}")).exists() => Ok(Some(false)),
        not_yet => not_yet.map(|_| None),
    });
    match outcome {
        Ok((true, took)) => Ok(took),
        Ok((false, _)) => bail!("{name} on {host} ended\n{}", tail(&layout.log(host, name))),
        Err(error) => bail!("{error:#}\n{}", tail(&layout.log(host, name))),
    }
}

/// The end of a log, for an error message.
pub(super) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.is_empty() => format!("({} is empty)", log.display()),
        Ok(text) => format!("--- end of {}\n{text}---", log.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => format!("({} was never written)", log.display()),
        Err(error) => format!("(failed to read {}: {error})", log.display()),
    }
}

/// Sends a signal; a process that is gone already is fine.
pub(super) fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to send {signal} to process {pid}")),
    }
}
