//! Namespaces, the switch and the cables between them.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;

use super::command::{run, run_with_input};
use super::layout::Layout;
use super::spec::{Host, Spec};
use super::{namespace, xdp_pass};

const BRIDGE: &str = "br0";
/// The second segment's.
const FAR_BRIDGE: &str = "br1";
/// What every host calls its only interface.
pub(super) const INTERFACE: &str = "eth0";
/// The router's interface on the second segment.
const FAR_INTERFACE: &str = "eth1";
/// Longest IP packet, everywhere. Encapsulation makes a packet longer, so it matters.
const MTU: u16 = 1500;

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
    build_switch(layout, spec)?;
    for host in hosts {
        address_host(layout, spec, host)?;
    }
    if spec.far > 0 {
        build_router(layout)?;
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

/// One cable: the switch's port, the host's interface and the segment that the port belongs to.
struct Cable {
    port: String,
    host: Host,
    interface: &'static str,
    bridge: &'static str,
}

fn cables(spec: &Spec) -> Vec<Cable> {
    let mut cables: Vec<Cable> = spec
        .hosts()
        .into_iter()
        .map(|host| {
            let bridge = if spec.is_far(host) { FAR_BRIDGE } else { BRIDGE };
            Cable { port: port(host), host, interface: INTERFACE, bridge }
        })
        .collect();
    if spec.far > 0 {
        let port = format!("{}-far", port(Host::ROUTER));
        cables.push(Cable { port, host: Host::ROUTER, interface: FAR_INTERFACE, bridge: FAR_BRIDGE });
    }
    cables
}

fn build_switch(layout: &Layout, spec: &Spec) -> anyhow::Result<()> {
    let net = layout.namespace(Host::NET);
    let object = layout.dir().join("xdp-pass.o");
    xdp_pass::write(&object)?;
    let cables = cables(spec);
    let mut lines = String::new();
    for bridge in std::iter::once(BRIDGE).chain((spec.far > 0).then_some(FAR_BRIDGE)) {
        // No spanning tree and no multicast snooping: the switch floods what it does not know, at once.
        writeln!(lines, "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        writeln!(lines, "link set {bridge} up")?;
    }
    for Cable { port, host, interface, bridge } in &cables {
        let peer = layout.namespace(*host);
        writeln!(lines, "link add {port} mtu {MTU} type veth peer name {interface} mtu {MTU} netns {peer}")?;
        writeln!(lines, "link set {port} master {bridge} up")?;
        writeln!(lines, "link set dev {port} xdpdrv obj {} sec xdp", object.display())?;
    }
    ip_batch(&["-n", &net], &lines).context("failed to build the switch")?;
    for cable in &cables {
        disable_offload(&net, &cable.port)?;
        disable_offload(&layout.namespace(cable.host), cable.interface)?;
    }
    Ok(())
}

/// Two veth ends in one kernel leave checksums to a NIC that is not there; XDP would rewrite such packets and
/// send them on with a wrong one, and would not see a VLAN tag that stands beside the frame. Nor are received packets
/// joined: a capture shows what was on the wire.
fn disable_offload(namespace: &str, interface: &str) -> anyhow::Result<()> {
    let off = ["tx", "off", "gro", "off", "txvlan", "off"];
    run("ip", &[&["netns", "exec", namespace, "ethtool", "-K", interface][..], &off].concat())?;
    Ok(())
}

fn address_host(layout: &Layout, spec: &Spec, host: Host) -> anyhow::Result<()> {
    let (v4, v6) = (spec.v4(host), spec.v6(host));
    let mut lines = String::from("link set lo up\n");
    writeln!(lines, "addr add {v4}/24 dev {INTERFACE}\naddr add {v6}/64 dev {INTERFACE} nodad")?;
    writeln!(lines, "link set {INTERFACE} up")?;
    if spec.is_far(host) {
        writeln!(lines, "route add default via {}", Host::ROUTER.far_v4())?;
        writeln!(lines, "route add default via {}", Host::ROUTER.far_v6())?;
    } else if spec.far > 0 && host != Host::ROUTER {
        writeln!(lines, "route add 10.78.0.0/24 via {}", Host::ROUTER.v4())?;
        writeln!(lines, "route add fd78::/64 via {}", Host::ROUTER.v6())?;
    }
    ip_batch(&["-n", &layout.namespace(host)], &lines).with_context(|| format!("failed to address {host}"))
}

/// A far front end answers the client itself, from an address of the first segment: the router must not mind where a
/// packet comes from.
fn build_router(layout: &Layout) -> anyhow::Result<()> {
    let (v4, v6) = (Host::ROUTER.far_v4(), Host::ROUTER.far_v6());
    let lines = format!(
        "addr add {v4}/24 dev {FAR_INTERFACE}\naddr add {v6}/64 dev {FAR_INTERFACE} nodad\n\
         link set {FAR_INTERFACE} up\n"
    );
    let namespace = layout.namespace(Host::ROUTER);
    ip_batch(&["-n", &namespace], &lines).context("failed to address the router")?;
    let settings = [
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/eth0/rp_filter", "0"),
        ("ipv4/conf/eth1/rp_filter", "0"),
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
    ];
    namespace::enter(&namespace, || {
        for (key, value) in settings {
            let path = format!("/proc/sys/net/{key}");
            fs::write(&path, value).with_context(|| format!("failed to write {path}"))?;
        }
        Ok(())
    })
}
