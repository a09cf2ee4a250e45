//! A front end: our daemon and its clamd.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MsFlags, mount};

use super::layout::Layout;
use super::network::INTERFACE;
use super::spec::{Host, POOL_DOMAIN, Spec, VIP, VIP6};
use super::{backend, pki, process, scanner, status};

pub(super) const PROCESS: &str = "autocluster";
/// UDP port that front ends and agents talk on.
const POOL_PORT: u16 = 7400;
const START_LIMIT: Duration = Duration::from_secs(15);

/// Mounts the BPF file system that the daemon pins its maps in.
pub(super) fn mount_bpffs(layout: &Layout, host: Host) -> anyhow::Result<()> {
    let dir = layout.bpffs(host);
    fs::create_dir_all(&dir)?;
    mount(Some("bpf"), &dir, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("failed to mount a BPF file system on {}", dir.display()))
}

/// Writes the daemon's configuration; its path.
pub(super) fn write_config(layout: &Layout, spec: &Spec, host: Host) -> anyhow::Result<()> {
    let path = layout.host_dir(host).join("autocluster.toml");
    fs::write(&path, config(layout, spec, host)).with_context(|| format!("failed to write {}", path.display()))
}

/// Starts the daemon with the configuration that was written for it.
pub(super) fn start(layout: &Layout, host: Host) -> anyhow::Result<i32> {
    let argv = autocluster_argv("run", &layout.host_dir(host).join("autocluster.toml"))?;
    process::start(layout, host, PROCESS, &argv)
}

/// Waits until the daemon knows every living front end and every source.
pub(super) fn await_ready(layout: &Layout, host: Host, members: usize, sources: usize) -> anyhow::Result<()> {
    process::await_ready(layout, host, PROCESS, START_LIMIT, || {
        let seen = status::daemon(layout, host)?;
        let (live, complete) = (status::live_members(&seen), status::complete_sources(&seen));
        anyhow::ensure!(
            live == members && complete == sources,
            "{host} sees {live} of {members} front ends and {complete} of {sources} sources"
        );
        anyhow::ensure!(status::is_settled(&seen), "{host} has just started and is not sure yet who is unknown");
        Ok(true)
    })?;
    Ok(())
}

/// Waits until the client is greeted on the VIPs.
pub(super) fn await_vips(layout: &Layout, spec: &Spec) -> anyhow::Result<()> {
    for vip in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
        let host = spec.frontend_hosts().next().context("no front end")?;
        process::await_ready(layout, host, PROCESS, START_LIMIT, || {
            let line = backend::greeting(layout, Host::CLIENT, SocketAddr::from((vip, 25)))?;
            anyhow::ensure!(line.starts_with("220"), "{vip} said {line:?}");
            Ok(true)
        })?;
    }
    Ok(())
}

/// `autocluster COMMAND --config FILE`
pub(super) fn autocluster_argv(command: &str, config: &Path) -> anyhow::Result<Vec<String>> {
    let program = pki::program()?.display().to_string();
    Ok(vec![program, command.to_owned(), "--config".to_owned(), config.display().to_string()])
}

/// The front ends that everybody asks first, as a TOML list's content.
pub(super) fn seeds(spec: &Spec) -> String {
    let seeds: Vec<String> = spec.frontend_hosts().map(|host| format!("\"{}:{POOL_PORT}\"", spec.v4(host))).collect();
    seeds.join(", ")
}

/// The `[identity]` table.
pub(super) fn identity(layout: &Layout, host: Host) -> String {
    let (certificate, key) = pki::node_files(layout, host);
    format!(
        "[identity]\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        layout.pki_dir().join("ca.pem").display(),
        certificate.display(),
        key.display()
    )
}

/// Keys of `[smtp]` and `[imap]` for tens of thousands of sessions that are silent most of the time.
const fn patience(spec: &Spec) -> (&'static str, &'static str) {
    if spec.crowd {
        ("max_sessions = 16000\ncommand_timeout = 3600\n", "max_sessions = 16000\nlogin_timeout = 3600\n")
    } else {
        ("", "")
    }
}

fn config(layout: &Layout, spec: &Spec, host: Host) -> String {
    let (dir, pki) = (layout.host_dir(host), layout.pki_dir());
    let (smtp, imap) = patience(spec);
    // One machine does the flood's work and the whole pool's: a flood is smaller here than one by many.
    let abuse = if spec.crowd { "syn_cookies_above = 2500\n" } else { "" };
    format!(
        "[node]\nname = \"{host}\"\nstate_dir = \"{dir}/state\"\ncontrol_socket = \"{control}\"\n\
         metrics_listen = \"127.0.0.1:9104\"\n\n{identity}\n\
         [pool]\nlisten = \"{v4}:{POOL_PORT}\"\nseeds = [{seeds}]\nvips = [\"{VIP}\", \"{VIP6}\"]\n\
         key_file = \"{pki}/pool.key\"\n\n\
         [steering]\ninterface = \"{INTERFACE}\"\nbpffs = \"{bpffs}\"\n\n\
         [tls]\ncertificate = \"{pki}/mail.pem\"\nkey = \"{pki}/mail.key\"\n\n\
         # Its own name in greeting and trace header: a test can tell who took a message.\n\
         [smtp]\nhostname = \"{host}.{POOL_DOMAIN}\"\nport = 25\n{smtp}\n\
         [imap]\nport = 143\ntls_port = 993\n{imap}\n[pop3]\nport = 110\ntls_port = 995\n\n\
         # All clients of the lab have the same few addresses.\n\
         [abuse]\nnew_connections_per_second = 0\n{abuse}\n\
         [scanner]\nclamd = \"unix:{clamd}\"\n",
        dir = dir.display(),
        pki = pki.display(),
        control = layout.control_socket(host).display(),
        identity = identity(layout, host),
        v4 = spec.v4(host),
        seeds = seeds(spec),
        bpffs = layout.bpffs(host).display(),
        clamd = scanner::socket(layout, host).display(),
    )
}
