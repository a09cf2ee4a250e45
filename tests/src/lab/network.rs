//! Namespaces, the switch and the cables between them.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;

use super::command::{run, run_with_input};
use super::layout::Layout;
use super::spec::{Host, Spec};
use super::{namespace, xdp_pass};

const BRIDGE: &str = "br0";
/// What every host calls its only interface.
pub(super) const INTERFACE: &str = "eth0";

/// Makes the hosts and connects them. Nothing is left in the root namespace but the namespaces' names.
pub(super) fn build(layout: &Layout, spec: &Spec) -> anyhow::Result<()> {
    let hosts = spec.hosts();
    let mut names = format!("netns add {}\n", layout.namespace(Host::NET));
    for host in &hosts {
        writeln!(names, "netns add {}", layout.namespace(*host))?;
    }
    ip_batch(&[], &names)?;
    for host in std::iter::once(Host::NET).chain(hosts.iter().copied()) {
        skip_duplicate_address_detection(layout, host)?;
    }
    build_switch(layout, &hosts)?;
    for host in hosts {
        address_host(layout, host)?;
    }
    Ok(())
}

/// Name of the switch's end of a host's cable.
fn port(host: Host) -> String {
    format!("p-{host}")
}

fn ip_batch(args: &[&str], lines: &str) -> anyhow::Result<()> {
    let mut all = args.to_vec();
    all.extend(["-batch", "-"]);
    run_with_input("ip", &all, lines)
}

/// The lab's addresses are unique by construction; waiting a second for the proof would only slow `up`.
fn skip_duplicate_address_detection(layout: &Layout, host: Host) -> anyhow::Result<()> {
    namespace::enter(&layout.namespace(host), || {
        for scope in ["all", "default"] {
            let key = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
            fs::write(&key, "0").with_context(|| format!("failed to write {key}"))?;
        }
        Ok(())
    })
}

fn build_switch(layout: &Layout, hosts: &[Host]) -> anyhow::Result<()> {
    let net = layout.namespace(Host::NET);
    let object = layout.dir().join("xdp-pass.o");
    xdp_pass::write(&object)?;
    // No spanning tree and no multicast snooping: the switch floods what it does not know, at once.
    let mut lines = format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n");
    for host in hosts {
        let (port, peer) = (port(*host), layout.namespace(*host));
        writeln!(lines, "link add {port} type veth peer name {INTERFACE} netns {peer}")?;
        writeln!(lines, "link set {port} master {BRIDGE} up")?;
        writeln!(lines, "link set dev {port} xdpdrv obj {} sec xdp", object.display())?;
    }
    writeln!(lines, "link set {BRIDGE} up")?;
    ip_batch(&["-n", &net], &lines).context("failed to build the switch")?;
    for host in hosts {
        disable_checksum_offload(&net, &port(*host))?;
    }
    Ok(())
}

/// Two veth ends in one kernel leave checksums to a NIC that is not there; XDP would rewrite such packets and
/// send them on with a wrong one.
fn disable_checksum_offload(namespace: &str, interface: &str) -> anyhow::Result<()> {
    run("ip", &["netns", "exec", namespace, "ethtool", "-K", interface, "tx", "off"])?;
    Ok(())
}

fn address_host(layout: &Layout, host: Host) -> anyhow::Result<()> {
    let namespace = layout.namespace(host);
    disable_checksum_offload(&namespace, INTERFACE)?;
    let lines = format!(
        "link set lo up\naddr add {}/24 dev {INTERFACE}\naddr add {}/64 dev {INTERFACE} nodad\nlink set {INTERFACE} up\n",
        host.v4(),
        host.v6()
    );
    ip_batch(&["-n", &namespace], &lines).with_context(|| format!("failed to address {host}"))
}
