//! A front end with two interfaces on one segment: what comes in by either is steered by it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::lab::{Host, Lab, VIP, until};
use autocluster_tests::scenario::spread_connections;

use crate::Test;
use crate::steering_crowd::await_agreement;

pub(crate) const TESTS: &[Test] = &[("steering_interfaces::two_on_one_segment", two_on_one_segment)];

const NUMBER: u8 = 3;
const HOST: &str = "fe3";
const PORT: &str = "p-fe3-second";
const SECOND: &str = "eth1";
const CONNECTIONS: u32 = 300;
const END_LIMIT: Duration = Duration::from_secs(20);

fn two_on_one_segment(lab: &Lab) -> anyhow::Result<()> {
    let file = lab.layout().host_dir(Host::frontend(NUMBER)).join("autocluster.toml");
    let former = fs::read_to_string(&file)?;
    let outcome = with_second(lab, &file, &former);
    // The next test needs the usual lab, whatever became of this one.
    for command in [
        &["client", "ip", "neigh", "flush", "to", &VIP.to_string()][..],
        &["client", "ip", "neigh", "del", &VIP.to_string(), "dev", "eth0"],
        &["net", "ip", "link", "del", PORT],
    ] {
        lab.exec(command[0], &command[1..])?;
    }
    let restarted = restart(lab, &file, &former);
    outcome.and(restarted)?;
    ensure!(interfaces(lab)? == ["eth0 driver"], "the second interface was not let go");
    Ok(())
}

fn with_second(lab: &Lab, file: &Path, former: &str) -> anyhow::Result<()> {
    plug_in(lab)?;
    let named = former.replace("interface = \"eth0\"", "interface = [\"eth0\", \"eth1\"]");
    ensure!(named != *former, "the configuration names no eth0");
    restart(lab, file, &named)?;
    ensure!(interfaces(lab)? == ["eth0 driver", "eth1 driver"], "{:?}", interfaces(lab)?);
    let mac = lab.exec(HOST, &["cat", "/sys/class/net/eth1/address"])?;
    let mac = String::from_utf8(mac.stdout)?.trim().to_owned();
    // The client sends all that is for the VIP to the second interface.
    run(
        lab,
        "client",
        &["ip", "neigh", "replace", &VIP.to_string(), "lladdr", &mac, "dev", "eth0", "nud", "permanent"],
    )?;
    let before = lab.counter(NUMBER, "steered_new_connections")?;
    let taken = spread_connections(lab, CONNECTIONS)?;
    let steered = lab.counter(NUMBER, "steered_new_connections")? - before;
    eprintln!("  {CONNECTIONS} connections by eth1 of {HOST}, by front end: {taken:?}; {steered} steered there");
    ensure!(taken.iter().sum::<u64>() == u64::from(CONNECTIONS), "{taken:?} of {CONNECTIONS}");
    ensure!(taken.iter().all(|taken| *taken > 0), "{taken:?}: not shared");
    ensure!(steered + taken[usize::from(NUMBER) - 1] == u64::from(CONNECTIONS), "they did not come by {HOST}");
    Ok(())
}

/// A second cable from the front end to the switch.
fn plug_in(lab: &Lab) -> anyhow::Result<()> {
    let namespace = lab.layout().namespace(Host::frontend(NUMBER));
    let object = lab.layout().dir().join("xdp-pass.o").display().to_string();
    run(lab, "net", &["ip", "link", "add", PORT, "type", "veth", "peer", "name", SECOND, "netns", &namespace])?;
    run(lab, "net", &["ip", "link", "set", PORT, "master", "br0", "up"])?;
    run(lab, "net", &["ip", "link", "set", "dev", PORT, "xdpdrv", "obj", &object, "sec", "xdp"])?;
    for (host, end) in [("net", PORT), (HOST, SECOND)] {
        run(lab, host, &["ethtool", "-K", end, "tx", "off", "gro", "off", "txvlan", "off"])?;
    }
    run(lab, HOST, &["ip", "link", "set", SECOND, "up"])
}

fn run(lab: &Lab, host: &str, argv: &[&str]) -> anyhow::Result<()> {
    let output = lab.exec(host, argv)?;
    ensure!(output.status.success(), "{argv:?} on {host}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn restart(lab: &Lab, file: &Path, config: &str) -> anyhow::Result<()> {
    if lab.pid(HOST, "autocluster").is_ok() {
        lab.terminate_front_end(NUMBER)?;
        until("the daemon ends", END_LIMIT, || lab.pid(HOST, "autocluster").is_err())?;
    }
    fs::write(file, config).with_context(|| format!("failed to write {}", file.display()))?;
    lab.start_front_end(NUMBER)?;
    lab.await_pool()?;
    await_agreement(lab)
}

/// Interfaces with their modes, as the daemon tells them.
fn interfaces(lab: &Lab) -> anyhow::Result<Vec<String>> {
    let status = lab.status(NUMBER)?;
    let told = status["steering"]["interfaces"].as_array().context("no interfaces in the status")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(told.iter().map(|i| format!("{} {}", text(&i["name"]), text(&i["mode"]))).collect())
}
