//! What a lab's hosts and daemons say about themselves. The shape of `autocluster status --json` is known here
//! and nowhere else in the tests.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::layout::Layout;
use super::spec::{Host, Spec};
use super::{namespace, pki, process};

/// One host of a running lab.
#[derive(Debug)]
pub struct HostStatus {
    pub host: Host,
    pub processes: Vec<ProcessStatus>,
    /// All processes on the host, children of the daemons too.
    pub process_count: usize,
}

/// One daemon that was started on a host.
#[derive(Debug)]
pub struct ProcessStatus {
    pub name: String,
    pub pid: i32,
    pub alive: bool,
}

/// Looks at every host.
pub(super) fn hosts(layout: &Layout, spec: &Spec) -> Vec<HostStatus> {
    spec.hosts().into_iter().map(|host| host_status(layout, host)).collect()
}

fn host_status(layout: &Layout, host: Host) -> HostStatus {
    let pids = namespace::pids(&layout.namespace(host));
    let processes = process::recorded(layout, host)
        .into_iter()
        .map(|(name, pid)| ProcessStatus { name, pid, alive: pids.contains(&pid) })
        .collect();
    HostStatus { host, processes, process_count: pids.len() }
}

/// `autocluster status --json` of a front end.
pub(super) fn daemon(layout: &Layout, host: Host) -> anyhow::Result<Value> {
    let output = Command::new(pki::program()?)
        .args(["status", "--json", "--socket"])
        .arg(layout.control_socket(host))
        .output()
        .context("failed to run autocluster status")?;
    ensure!(output.status.success(), "autocluster status: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("autocluster status --json printed no JSON")
}

/// How many front ends this one believes to be alive, itself included.
pub(super) fn live_members(status: &Value) -> usize {
    let Some(members) = status["members"].as_array() else { return 0 };
    members.iter().filter(|member| !matches!(member["state"].as_str(), Some("down" | "dead" | "left"))).count()
}

/// How many sources (back ends) have given their whole directory.
pub(super) fn complete_sources(status: &Value) -> usize {
    let Some(sources) = status["sources"].as_array() else { return 0 };
    sources.iter().filter(|source| source["complete"].as_bool() != Some(false)).count()
}

/// Whether an unknown address is known to be unknown: not in the first seconds after a start.
pub(super) fn is_settled(status: &Value) -> bool {
    status["directory"]["settled"].as_bool() == Some(true)
}

/// Connections that the XDP program gave to this front end itself.
pub(super) fn own_new_connections(status: &Value) -> anyhow::Result<u64> {
    // The second one counts those of a bucket whose owner changed lately: others were asked first. The third one those that
    // came so fast that they were answered by SYN cookies.
    let counters = ["own_new_connections", "new_again", "cookie_sent"];
    let count = |name: &str| {
        let value = status["steering"][name].as_u64();
        value.with_context(|| format!("status has no steering.{name}: {}", status["steering"]))
    };
    counters.iter().map(|name| count(name)).sum()
}
