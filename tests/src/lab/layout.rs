//! Where a lab's namespaces and files are.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::spec::{Host, Spec};

/// Every lab has one directory here. Not under /tmp: `ip netns exec` and the daemons need a place that all
/// mount namespaces show.
pub const RUN_DIR: &str = "/run/autocluster-lab";

/// Names of one lab's things; makes none of them.
#[derive(Debug, Clone)]
pub struct Layout {
    name: String,
}

impl Layout {
    #[must_use]
    pub fn new(lab: &str) -> Self {
        Self { name: lab.to_owned() }
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace of a host.
    #[must_use]
    pub fn namespace(&self, host: Host) -> String {
        format!("ac-{}-{host}", self.name)
    }

    /// The host whose namespace has this name, if it is one of this lab's.
    #[must_use]
    pub fn host_of(&self, namespace: &str) -> Option<Host> {
        namespace.strip_prefix("ac-")?.strip_prefix(&self.name)?.strip_prefix('-')?.parse().ok()
    }

    /// The lab's directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        PathBuf::from(RUN_DIR).join(&self.name)
    }

    /// A host's directory: configuration, sockets, logs and process ids.
    #[must_use]
    pub fn host_dir(&self, host: Host) -> PathBuf {
        self.dir().join(host.to_string())
    }

    /// The certificate authority of the pool.
    #[must_use]
    pub fn pki_dir(&self) -> PathBuf {
        self.dir().join("pki")
    }

    /// A daemon's standard output and error.
    #[must_use]
    pub fn log(&self, host: Host, process: &str) -> PathBuf {
        self.host_dir(host).join(format!("{process}.log"))
    }

    /// A daemon's process id.
    #[must_use]
    pub fn pid_file(&self, host: Host, process: &str) -> PathBuf {
        self.host_dir(host).join(format!("{process}.pid"))
    }

    /// A front end's control socket.
    #[must_use]
    pub fn control_socket(&self, host: Host) -> PathBuf {
        self.host_dir(host).join("control.sock")
    }

    /// A front end's BPF file system. It is mounted here and not on /sys/fs/bpf because `ip netns exec` lays a
    /// new /sys over the old one: what is pinned below it would vanish with the process.
    #[must_use]
    pub fn bpffs(&self, host: Host) -> PathBuf {
        self.host_dir(host).join("bpf")
    }

    fn spec_file(&self) -> PathBuf {
        self.dir().join("lab.json")
    }

    /// Remembers what the lab was made of.
    pub(super) fn save_spec(&self, spec: &Spec) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(spec)?;
        fs::write(self.spec_file(), text).with_context(|| format!("failed to write {}", self.spec_file().display()))
    }

    /// Reads what the lab was made of.
    ///
    /// # Errors
    /// Where there is no lab of this name.
    pub fn load_spec(&self) -> anyhow::Result<Spec> {
        let Ok(text) = fs::read_to_string(self.spec_file()) else {
            bail!("no lab named {:?} is up (cargo xtask lab up --name {})", self.name, self.name);
        };
        serde_json::from_str(&text).with_context(|| format!("failed to read {}", self.spec_file().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_another_lab_are_not_ours() {
        let layout = Layout::new("a");
        assert_eq!(layout.host_of("ac-a-fe1"), Some(Host::frontend(1)));
        assert_eq!(layout.host_of("ac-a-net"), Some(Host::NET));
        for other in ["ac-ab-fe1", "ac-b-fe1", "ac-a-", "ac-a-x", "fe1", "ac-a-b-fe1"] {
            assert_eq!(layout.host_of(other), None, "{other}");
        }
    }
}
