//! What building and testing need beyond stable Rust, found and installed.
//!
//! Finding out what is missing takes a fraction of a second, so every other command does it first.

mod ebpf;
mod packages;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;

use ebpf::Compiler;

/// Debian packages that the lab runs: real servers, and clients to try them.
const LAB_PACKAGES: [&str; 13] = [
    "dovecot-imapd",
    "dovecot-pop3d",
    "dovecot-lmtpd",
    "postfix",
    "clamav-daemon",
    "swaks",
    "ethtool",
    "tcpdump",
    "curl",
    "iproute2",
    "python3",
    // swaks: TLS, IPv6.
    "libnet-ssleay-perl",
    "libio-socket-inet6-perl",
];
/// Capabilities that a lab needs, by their bit in `CapEff` (capabilities(7)).
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];

/// What this machine can do after the set-up; each `None` is a yes, each text a reason.
pub(crate) struct Ready {
    daemon: Option<String>,
    lab: Option<String>,
}

impl Ready {
    /// Fails if the daemon (with its XDP program) cannot be built here.
    pub(crate) fn require_daemon(&self) -> anyhow::Result<()> {
        match &self.daemon {
            Some(reason) => bail!("the daemon cannot be built here: {reason}; `cargo test -p proxy-core` works"),
            None => Ok(()),
        }
    }

    /// Fails if no lab can run here.
    pub(crate) fn require_lab(&self) -> anyhow::Result<()> {
        self.require_daemon()?;
        match &self.lab {
            Some(reason) => bail!("no lab can run here: {reason}; `cargo xtask test` works and skips what needs one"),
            None => Ok(()),
        }
    }
}

/// What is missing.
struct Missing {
    packages: Vec<&'static str>,
    compiler: Option<Compiler>,
    linker: bool,
}

impl Missing {
    fn find() -> Self {
        let compiler = Compiler::find();
        Self { packages: packages::missing(&LAB_PACKAGES), compiler, linker: !ebpf::linker_works() }
    }

    fn is_nothing(&self) -> bool {
        self.packages.is_empty() && !self.lacks_ebpf()
    }

    fn lacks_ebpf(&self) -> bool {
        self.compiler.is_none() || self.linker
    }

    /// One line per part.
    fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.packages.is_empty() {
            lines.push(format!("for the lab: packages {}", self.packages.join(" ")));
        }
        if self.compiler.is_none() {
            lines.push("for the XDP program: a compiler with its own core sources".into());
        }
        if self.linker {
            lines.push("for the XDP program: bpf-linker".into());
        }
        lines
    }
}

/// `cargo xtask setup`
pub(crate) fn command(check: bool) -> anyhow::Result<ExitCode> {
    if check {
        return Ok(report());
    }
    let ready = ensure()?;
    match (&ready.daemon, &ready.lab) {
        (None, None) => println!("setup: everything is here"),
        (None, Some(reason)) => println!("setup: no lab can run here: {reason}; everything else works"),
        (Some(reason), _) => println!("setup: the daemon cannot be built here: {reason}"),
    }
    Ok(if ready.daemon.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report() -> ExitCode {
    let missing = Missing::find();
    for line in missing.describe() {
        println!("missing {line}");
    }
    if let Some(compiler) = &missing.compiler {
        println!("the XDP program is built by {compiler}");
    }
    if let Some(reason) = privilege_obstacle() {
        println!("no lab can run here: {reason}");
    }
    if missing.is_nothing() {
        println!("setup: nothing is missing");
        return ExitCode::SUCCESS;
    }
    println!("setup: `cargo xtask setup` installs it");
    ExitCode::FAILURE
}

/// Installs what is missing; does and prints nothing if nothing is.
pub(crate) fn ensure() -> anyhow::Result<Ready> {
    let missing = Missing::find();
    if !missing.is_nothing() {
        if is_root() {
            install(&missing)?;
        } else {
            for line in missing.describe() {
                eprintln!("setup: missing {line}; only root can install it");
            }
        }
    }
    Ok(judge())
}

fn judge() -> Ready {
    let missing = Missing::find();
    let daemon = missing.lacks_ebpf().then(|| missing.describe().join("; ").replace("for the XDP program: ", "no "));
    let lab = if missing.packages.is_empty() {
        privilege_obstacle()
    } else {
        Some(format!("packages {} are missing", missing.packages.join(" ")))
    };
    Ready { daemon, lab }
}

/// Why network namespaces and XDP programs are out of reach, if they are.
fn privilege_obstacle() -> Option<String> {
    if !is_root() {
        return Some("this is not root".to_owned());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let absent = CAPABILITIES.iter().find(|(_, bit)| effective & (1 << bit) == 0);
    absent.map(|(name, _)| format!("this root lacks {name} (a container?)"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

type Action = Box<dyn Fn() -> anyhow::Result<()>>;

fn install(missing: &Missing) -> anyhow::Result<()> {
    let steps = plan(missing);
    let start = Instant::now();
    for (index, (title, action)) in steps.iter().enumerate() {
        println!("setup {}/{}, {:.0} s: {title}", index + 1, steps.len(), start.elapsed().as_secs_f64());
        action()?;
    }
    println!("setup: done in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn plan(missing: &Missing) -> Vec<(String, Action)> {
    let mut steps: Vec<(String, Action)> = Vec::new();
    if !missing.packages.is_empty() || missing.lacks_ebpf() {
        steps.push(("package lists".to_owned(), Box::new(packages::update)));
    }
    if !missing.packages.is_empty() {
        let wanted = missing.packages.clone();
        let title = format!("packages for the lab: {}", wanted.join(" "));
        steps.push((title, Box::new(move || packages::install(&wanted))));
    }
    // A compiler that was found may have no linker that goes with it.
    if missing.lacks_ebpf() {
        steps.push(("a compiler for the XDP program".to_owned(), Box::new(ebpf::install_compiler)));
    }
    if missing.linker {
        steps.push(("bpf-linker, built from source (a minute or two)".to_owned(), Box::new(ebpf::install_linker)));
    }
    steps
}
