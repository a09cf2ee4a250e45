//! A running lab in the hands of a test.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;

use super::layout::Layout;
use super::progress::Progress;
use super::spec::{Host, Spec, VIP, VIP6};
use super::status::HostStatus;
use super::wait::until;
use super::{backend, frontend, namespace, network, pki, postfix, process, scanner, status, teardown, users};

const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A lab that is up. Dropping it takes it away if [`Lab::up`] made it and [`Lab::keep`] was not called.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    spec: Spec,
    down_on_drop: bool,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.down_on_drop {
            drop(teardown::down(self.layout.name()));
        }
    }
}

impl Lab {
    /// Makes a lab and waits until all of it works. What a former one of the same name left is taken away first.
    ///
    /// # Errors
    /// Where a part cannot be made or does not become ready; with the end of its log. Nothing is left then, except
    /// with `AUTOCLUSTER_LAB_KEEP` set.
    pub fn up(spec: Spec, progress: &Progress) -> anyhow::Result<Self> {
        spec.validate()?;
        ensure!(geteuid().is_root(), "a lab needs root: it makes network namespaces and loads XDP programs");
        teardown::down(&spec.name)?;
        let lab = Self { layout: Layout::new(&spec.name), spec, down_on_drop: true };
        match lab.build(progress) {
            Ok(()) => Ok(lab),
            Err(error) => {
                if env::var_os("AUTOCLUSTER_LAB_KEEP").is_some() {
                    lab.keep();
                }
                Err(error)
            }
        }
    }

    /// The lab of this name that another process made.
    ///
    /// # Errors
    /// If there is none.
    pub fn attach(name: &str) -> anyhow::Result<Self> {
        let layout = Layout::new(name);
        let spec = layout.load_spec()?;
        Ok(Self { layout, spec, down_on_drop: false })
    }

    /// Leaves the lab up when this handle goes.
    pub fn keep(mut self) {
        self.down_on_drop = false;
    }

    fn build(&self, progress: &Progress) -> anyhow::Result<()> {
        let (layout, spec) = (&self.layout, &self.spec);
        for host in spec.hosts() {
            fs::create_dir_all(layout.host_dir(host))
                .with_context(|| format!("failed to create {}", layout.host_dir(host).display()))?;
        }
        layout.save_spec(spec)?;
        network::build(layout, spec)?;
        progress.step(&format!("network: {} hosts on one switch", spec.hosts().len()));
        if !spec.bare {
            pki::make(layout, spec)?;
            progress.step("certificates");
        }
        scanner::write_signatures(layout)?;
        for host in spec.backend_hosts() {
            users::write_all(layout, spec, host.number)?;
            backend::start_dovecot(layout, spec, host)?;
            postfix::start(layout, host)?;
        }
        for host in spec.frontend_hosts() {
            scanner::start(layout, host)?;
        }
        self.start_own_daemons(progress)?;
        for host in spec.backend_hosts() {
            backend::await_dovecot(layout, host)?;
            postfix::await_ready(layout, host)?;
        }
        progress.step(&format!("{} × Dovecot (LMTP, IMAP, POP3) and Postfix (SMTP) answer", spec.backends));
        for host in spec.frontend_hosts() {
            scanner::await_ready(layout, host)?;
        }
        progress.step(&format!("{} × clamd answers", spec.frontends));
        self.await_own_daemons(progress)
    }

    fn start_own_daemons(&self, progress: &Progress) -> anyhow::Result<()> {
        if self.spec.bare {
            return Ok(());
        }
        for host in self.spec.frontend_hosts() {
            frontend::mount_bpffs(&self.layout, host)?;
            frontend::write_config(&self.layout, &self.spec, host)?;
        }
        for host in self.spec.early_hosts() {
            frontend::start(&self.layout, host)?;
        }
        for host in self.spec.backend_hosts() {
            backend::start_agent(&self.layout, &self.spec, host)?;
        }
        let early = self.spec.early_hosts().count();
        progress.step(&format!("started {early} front ends and {} agents", self.spec.backends));
        Ok(())
    }

    fn await_own_daemons(&self, progress: &Progress) -> anyhow::Result<()> {
        if self.spec.bare {
            return Ok(());
        }
        let started = self.started();
        for number in &started {
            let host = Host::frontend(*number);
            frontend::await_ready(&self.layout, host, started.len(), usize::from(self.spec.backends))?;
        }
        progress.step("every front end knows every other and every back end's users");
        frontend::await_vips(&self.layout, &self.spec)?;
        progress.step(&format!("the client is greeted on {VIP} and {VIP6}"));
        Ok(())
    }

    /// What the lab is made of.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Where its files are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn host(&self, name: &str) -> anyhow::Result<Host> {
        let host: Host = name.parse()?;
        let exists = host == Host::NET || self.spec.hosts().contains(&host);
        ensure!(exists, "lab {:?} has no host {name}", self.spec.name);
        Ok(host)
    }

    fn command(&self, host: &str, argv: &[&str]) -> anyhow::Result<Command> {
        let host = self.host(host)?;
        ensure!(!argv.is_empty(), "no command to run on {host}");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.layout.namespace(host)]).args(argv);
        command.env("LAB_DIR", self.layout.dir()).env("VIP", VIP.to_string()).env("VIP6", VIP6.to_string());
        // The daemon under test is `autocluster` for whoever types a command.
        if let Some(directory) = pki::program().ok().as_deref().and_then(Path::parent) {
            let path = env::var_os("PATH").unwrap_or_default();
            let all = std::iter::once(directory.to_owned()).chain(env::split_paths(&path));
            command.env("PATH", env::join_paths(all).unwrap_or(path));
        }
        Ok(command)
    }

    /// Runs a command on a host to its end.
    ///
    /// # Errors
    /// If it cannot be started; its own failure is in the output.
    pub fn exec(&self, host: &str, argv: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(host, argv)?;
        command.stdin(Stdio::null()).output().with_context(|| format!("failed to run {argv:?} on {host}"))
    }

    /// Starts a command on a host with pipes to all three of its streams.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, host: &str, argv: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.command(host, argv)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("failed to start {argv:?} on {host}"))
    }

    /// Becomes a command on a host: terminal, standard streams and exit code are its own.
    ///
    /// # Errors
    /// Returns only if that failed.
    pub fn exec_replace(&self, host: &str, argv: &[&str]) -> anyhow::Error {
        match self.command(host, argv) {
            Ok(mut command) => anyhow::Error::new(command.exec()).context("failed to run ip netns exec"),
            Err(error) => error,
        }
    }

    /// Runs code of this process on a host: sockets that it opens are that host's.
    ///
    /// # Errors
    /// What `work` returns, or that there is no such host.
    pub fn in_host<T: Send>(&self, host: &str, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        namespace::enter(&self.layout.namespace(self.host(host)?), work)
    }

    /// The numbers of the front ends that were ever started, whatever became of them.
    #[must_use]
    pub fn started(&self) -> Vec<u8> {
        let is_recorded = |host: &Host| process::recorded_pid(&self.layout, *host, frontend::PROCESS).is_some();
        self.spec.frontend_hosts().filter(is_recorded).map(|host| host.number).collect()
    }

    /// Every host and its daemons.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostStatus> {
        status::hosts(&self.layout, &self.spec)
    }

    /// `autocluster status --json` of front end `number`.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn status(&self, number: u8) -> anyhow::Result<Value> {
        status::daemon(&self.layout, Host::frontend(number))
    }

    /// Connections that the XDP program of front end `number` kept for itself since it was loaded.
    ///
    /// # Errors
    /// If the daemon does not answer or counts no such thing.
    pub fn own_new_connections(&self, number: u8) -> anyhow::Result<u64> {
        status::own_new_connections(&self.status(number)?)
    }

    /// Adds an account on a back end, as its administrator would: by the file that Dovecot reads.
    ///
    /// # Errors
    /// If that file cannot be written.
    pub fn add_user(&self, backend: u8, address: &str, password: &str) -> anyhow::Result<()> {
        users::add(&users::file(&self.layout, backend), address, password)
    }

    /// Removes an account; its mail stays.
    ///
    /// # Errors
    /// If the file cannot be replaced.
    pub fn remove_user(&self, backend: u8, address: &str) -> anyhow::Result<()> {
        users::remove(&users::file(&self.layout, backend), address)
    }

    /// The process id of a daemon of a host: `autocluster`, `clamd`, `dovecot`, `postfix`, `agent`.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pid(&self, host: &str, daemon: &str) -> anyhow::Result<i32> {
        let host = self.host(host)?;
        let pid = process::recorded_pid(&self.layout, host, daemon);
        pid.filter(|pid| process::is_alive(&self.layout, host, *pid))
            .with_context(|| format!("{daemon} does not run on {host}"))
    }

    /// Sends SIGKILL to a front end's daemon; returns when it is gone.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_front_end(&self, number: u8) -> anyhow::Result<()> {
        let host = Host::frontend(number);
        let pid = self.pid(&host.to_string(), frontend::PROCESS)?;
        process::signal(pid, Signal::SIGKILL)?;
        self.await_end(host, pid)
    }

    /// Starts a front end's daemon again; returns at once ([`Lab::await_pool`] waits).
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start_front_end(&self, number: u8) -> anyhow::Result<()> {
        frontend::start(&self.layout, Host::frontend(number))?;
        Ok(())
    }

    /// Waits until every front end that was ever started sees all others and all sources.
    ///
    /// # Errors
    /// If one does not in time.
    pub fn await_pool(&self) -> anyhow::Result<()> {
        self.await_own_daemons(&Progress::quiet())
    }

    /// Sends SIGTERM to a front end's daemon; returns at once, while it may still finish what it has.
    ///
    /// # Errors
    /// If it does not run.
    pub fn terminate_front_end(&self, number: u8) -> anyhow::Result<()> {
        let pid = self.pid(&Host::frontend(number).to_string(), frontend::PROCESS)?;
        process::signal(pid, Signal::SIGTERM)
    }

    /// Runs `autocluster ARGUMENTS --socket ...` against the daemon of a front end; what it printed.
    ///
    /// # Errors
    /// If it fails, with its words.
    pub fn cli(&self, number: u8, arguments: &[&str]) -> anyhow::Result<String> {
        let host = Host::frontend(number);
        let socket = self.layout.control_socket(host).display().to_string();
        let argv = [&["autocluster"], arguments, &["--socket", &socket]].concat();
        let output = self.exec(&host.to_string(), &argv)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} on {host}: {}: {}", output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same with `--json`.
    ///
    /// # Errors
    /// If it fails, or prints no JSON.
    pub fn cli_json(&self, number: u8, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.cli(number, &[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed no JSON: {text}"))
    }

    /// Makes an address of the client's segment that no kernel has: all others find it at the client, whose kernel
    /// passes over what comes for it. So a test can be the other end of a connection itself.
    ///
    /// # Errors
    /// If ip(8) fails.
    pub fn stand_in(&self, address: IpAddr) -> anyhow::Result<()> {
        let mac = self.mac("client")?.map(|octet| format!("{octet:02x}")).join(":");
        let address = address.to_string();
        let neighbours = self.spec.frontend_hosts().filter(|host| !self.spec.is_far(*host));
        for host in neighbours.chain((self.spec.far > 0).then_some(Host::ROUTER)) {
            let entry = ["ip", "neigh", "replace", &address, "lladdr", &mac, "dev", "eth0", "nud", "permanent"];
            let output = self.exec(&host.to_string(), &entry)?;
            ensure!(output.status.success(), "{entry:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Stops clamd of a front end.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop_scanner(&self, number: u8) -> anyhow::Result<()> {
        self.stop(Host::frontend(number), scanner::PROCESS)
    }

    /// Starts clamd of a front end and waits for it.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_scanner(&self, number: u8) -> anyhow::Result<()> {
        scanner::start(&self.layout, Host::frontend(number))?;
        scanner::await_ready(&self.layout, Host::frontend(number))
    }

    /// Stops Dovecot of a back end; the agent runs on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop_dovecot(&self, number: u8) -> anyhow::Result<()> {
        self.stop(Host::backend(number), backend::DOVECOT)
    }

    /// Starts Dovecot of a back end and waits for it.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_dovecot(&self, number: u8) -> anyhow::Result<()> {
        backend::start_dovecot(&self.layout, &self.spec, Host::backend(number))?;
        backend::await_dovecot(&self.layout, Host::backend(number))
    }

    fn stop(&self, host: Host, daemon: &str) -> anyhow::Result<()> {
        let pid = self.pid(&host.to_string(), daemon)?;
        process::signal(pid, Signal::SIGTERM)?;
        self.await_end(host, pid)
    }

    fn await_end(&self, host: Host, pid: i32) -> anyhow::Result<()> {
        until(&format!("process {pid} on {host} ends"), STOP_LIMIT, || !process::is_alive(&self.layout, host, pid))?;
        Ok(())
    }

    /// The file that clients verify the pool's certificates by.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.layout.pki_dir().join("ca.pem")
    }

    /// The log of a host's daemon.
    #[must_use]
    pub fn log(&self, host: Host, daemon: &str) -> PathBuf {
        self.layout.log(host, daemon)
    }

    /// The test virus that the lab's clamd knows.
    #[must_use]
    pub fn eicar() -> String {
        scanner::eicar()
    }
}
