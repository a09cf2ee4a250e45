//! A daemon that cannot start says why, all of it at once, and changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, ensure};
use autocluster_tests::lab::{Host, Lab, program, until, until_some};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("bad_config::faults_are_all_told_with_key_and_line", faults_are_all_told_with_key_and_line),
    ("bad_config::missing_interface", missing_interface),
    ("bad_config::missing_file", missing_file),
    ("bad_config::port_in_use", port_in_use),
    ("bad_config::metrics_port_in_use", metrics_port_in_use),
    ("bad_config::interface_without_driver_xdp", interface_without_driver_xdp),
    ("bad_config::generic_where_the_driver_has_no_xdp", generic_where_the_driver_has_no_xdp),
];

const CONFIG_ERROR: i32 = 2;
/// A front end that is alone waits two seconds for others.
const START_LIMIT: Duration = Duration::from_secs(15);
const END_LIMIT: Duration = Duration::from_secs(15);

/// The configuration of fe1 with some texts replaced, in a file of its own.
fn variant(lab: &Lab, name: &str, replace: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    let dir = lab.layout().host_dir(Host::frontend(1));
    let mut text = fs::read_to_string(dir.join("autocluster.toml"))?;
    for (old, new) in replace {
        ensure!(text.contains(old), "the configuration has no {old:?}");
        text = text.replace(old, new);
    }
    let path = dir.join(format!("{name}.toml"));
    fs::write(&path, text)?;
    Ok(path)
}

fn run(lab: &Lab, host: &str, config: &Path) -> anyhow::Result<(Output, String)> {
    let program = program()?.display().to_string();
    let config = config.display().to_string();
    // A BPF file system of its own, gone with the process: fe1's pinned program must not be taken over.
    let script = "mount -t bpf bpf /sys/fs/bpf && exec timeout 20 \"$0\" run --config \"$1\"";
    let output = lab.exec(host, &["sh", "-c", script, &program, &config])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    Ok((output, said))
}

fn line_of(config: &Path, text: &str) -> anyhow::Result<usize> {
    let content = fs::read_to_string(config)?;
    Ok(content.lines().position(|line| line.contains(text)).context("no such line")? + 1)
}

fn faults_are_all_told_with_key_and_line(lab: &Lab) -> anyhow::Result<()> {
    let replace = [("listen = \"10.77.0.11:7400\"", "listen = \"10.77.0.11\""), ("port = 143", "port = 143\nprot = 1")];
    let config = variant(lab, "two-faults", &replace)?;
    let (output, said) = run(lab, "fe1", &config)?;
    ensure!(output.status.code() == Some(CONFIG_ERROR), "exit {:?}: {said}", output.status.code());
    for (key, text) in [("pool.listen", "listen = \"10.77.0.11\""), ("imap.prot", "prot = 1")] {
        let place = format!(":{}: {key}", line_of(&config, text)?);
        ensure!(said.contains(&place), "nothing about {place:?} in: {said}");
    }
    Ok(())
}

fn missing_interface(lab: &Lab) -> anyhow::Result<()> {
    let config = variant(lab, "no-interface", &[("interface = \"eth0\"", "interface = \"eth7\"")])?;
    let (output, said) = run(lab, "fe1", &config)?;
    ensure!(output.status.code() == Some(CONFIG_ERROR), "exit {:?}: {said}", output.status.code());
    ensure!(said.contains("steering.interface") && said.contains("eth7"), "{said}");
    Ok(())
}

fn missing_file(lab: &Lab) -> anyhow::Result<()> {
    let config = variant(lab, "no-file", &[("pki/ca.pem", "pki/none.pem"), ("pki/mail.key", "pki/none.key")])?;
    let (output, said) = run(lab, "fe1", &config)?;
    ensure!(output.status.code() == Some(CONFIG_ERROR), "exit {:?}: {said}", output.status.code());
    ensure!(said.contains("identity.ca") && said.contains("tls.key"), "{said}");
    Ok(())
}

/// Everything that a second daemon on another host would take from the first is given its own place.
fn elsewhere<'a>(lab: &Lab, host: &str, more: &[(&'a str, &'a str)]) -> anyhow::Result<Vec<(String, String)>> {
    let own = lab.layout().host_dir(Host::frontend(1)).display().to_string();
    let other = lab.layout().host_dir(host.parse()?).display().to_string();
    let host: Host = host.parse()?;
    let mut replace = vec![
        (format!("{own}/state"), format!("{other}/state")),
        (format!("{own}/control.sock"), format!("{other}/control.sock")),
        (format!("{own}/bpf"), "/sys/fs/bpf".to_owned()),
        ("listen = \"10.77.0.11:7400\"".to_owned(), format!("listen = \"{}:7400\"", lab.spec().v4(host))),
    ];
    replace.extend(more.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())));
    Ok(replace)
}

fn run_elsewhere(lab: &Lab, host: &str, name: &str, more: &[(&str, &str)]) -> anyhow::Result<(Output, String)> {
    let replace = elsewhere(lab, host, more)?;
    let replace: Vec<(&str, &str)> = replace.iter().map(|(old, new)| (old.as_str(), new.as_str())).collect();
    run(lab, host, &variant(lab, name, &replace)?)
}

fn port_in_use(lab: &Lab) -> anyhow::Result<()> {
    // Dovecot has port 143 of every address of a back end.
    let (output, said) = run_elsewhere(lab, "be1", "port-in-use", &[])?;
    ensure!(output.status.code().is_some_and(|code| code != 0 && code != 124), "{:?}: {said}", output.status);
    ensure!(said.contains("143") && said.contains("in use"), "{said}");
    let link = lab.exec("be1", &["ip", "link", "show", "dev", "eth0"])?;
    let link = String::from_utf8_lossy(&link.stdout).into_owned();
    ensure!(!link.contains("xdp"), "a daemon that did not start left its program behind: {link}");
    Ok(())
}

/// Every port is taken before anything is attached: the last one as well as the first.
fn metrics_port_in_use(lab: &Lab) -> anyhow::Result<()> {
    let dovecot = format!("metrics_listen = \"{}:110\"", lab.spec().v4("be1".parse()?));
    let free = [
        ("port = 25", "port = 2525"),
        ("port = 143", "port = 2143"),
        ("tls_port = 993", "tls_port = 2993"),
        ("port = 110", "port = 2110"),
        ("tls_port = 995", "tls_port = 2995"),
        ("metrics_listen = \"127.0.0.1:9104\"", dovecot.as_str()),
    ];
    let (output, said) = run_elsewhere(lab, "be1", "metrics-in-use", &free)?;
    ensure!(output.status.code() == Some(1), "{:?}: {said}", output.status);
    ensure!(said.contains("node.metrics_listen") && said.contains("in use"), "{said}");
    let addresses = lab.exec("be1", &["ip", "address"])?;
    let addresses = String::from_utf8_lossy(&addresses.stdout).into_owned();
    ensure!(!addresses.contains("10.77.0.100") && !addresses.contains("xdp"), "left behind: {addresses}");
    Ok(())
}

fn interface_without_driver_xdp(lab: &Lab) -> anyhow::Result<()> {
    // A bridge has no driver that could run a program.
    let made = lab.exec("client", &["ip", "link", "add", "br7", "type", "bridge"])?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    lab.exec("client", &["ip", "link", "set", "br7", "up"])?;
    let outcome = run_elsewhere(
        lab,
        "client",
        "no-driver-xdp",
        // The mode `auto` would take the generic one instead.
        &[("interface = \"eth0\"", "interface = \"br7\"\nmode = \"driver\"")],
    );
    lab.exec("client", &["ip", "link", "delete", "br7"])?;
    let (output, said) = outcome?;
    ensure!(output.status.code().is_some_and(|code| code != 0 && code != 124), "{:?}: {said}", output.status);
    ensure!(said.contains("br7") && said.contains("driver"), "{said}");
    Ok(())
}

/// By default the same interface will do, slowly, and the front end says so. It has a network of its own: one that is
/// up on the client host would have the VIPs there.
fn generic_where_the_driver_has_no_xdp(lab: &Lab) -> anyhow::Result<()> {
    const HOST: &str = "client";
    let replace = elsewhere(lab, HOST, &[("interface = \"eth0\"", "interface = \"br7\"")])?;
    let replace: Vec<(&str, &str)> = replace.iter().map(|(old, new)| (old.as_str(), new.as_str())).collect();
    let config = variant(lab, "generic", &replace)?.display().to_string();
    let host: Host = HOST.parse()?;
    let script = format!(
        "ip link set lo up && ip link add br7 type bridge && ip address add {}/24 dev br7 && ip link set br7 up \
         && mount -t bpf bpf /sys/fs/bpf && exec \"$0\" run --config \"$1\"",
        lab.spec().v4(host)
    );
    let program = program()?.display().to_string();
    let mut daemon = lab.spawn(HOST, &["unshare", "--net", "sh", "-c", &script, &program, &config])?;
    let socket = lab.layout().host_dir(host).join("control.sock").display().to_string();
    let shown = until_some("the front end steers", START_LIMIT, || {
        let output = lab.exec(HOST, &[&program, "steer", "show", "--socket", &socket])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(output.status.success().then_some(said))
    });
    let pid = Pid::from_raw(i32::try_from(daemon.id())?);
    kill(pid, Signal::SIGTERM)?;
    let ended = until("it ends", END_LIMIT, || matches!(daemon.try_wait(), Ok(Some(_))));
    if ended.is_err() {
        daemon.kill()?;
    }
    let said = daemon.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let (shown, _) = shown.with_context(|| said)?;
    ended?;
    ensure!(shown.lines().any(|line| line.contains("br7") && line.contains("generic")), "{shown}");
    Ok(())
}
