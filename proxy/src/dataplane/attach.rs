//! The program at its interfaces: attached, pinned, and taken over from an earlier daemon.
//!
//! Layout of the pins: `BPFFS/autocluster/NODE/vABI/MAP` and `BPFFS/autocluster/NODE/link-MODE-INTERFACE`. The first
//! version's was `BPFFS/autocluster/INTERFACE/v1/MAP` and `BPFFS/autocluster/INTERFACE/link`.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use anyhow::{Chain, Context, Result, anyhow, bail};
use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use proxy_common::maps::ABI_VERSION;

use super::Settings;

const LINK: &str = "link-";
const FORMER_MAPS: &str = "v1";
const FORMER_LINK: &str = "link";

/// How a program runs at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// In the driver if it can, else generic.
    #[default]
    Auto,
    /// In the driver, before the kernel makes a packet of the frame.
    Driver,
    /// In the kernel's own stack: every driver, but slow.
    Generic,
}

impl Mode {
    /// What a program can be attached in.
    const REAL: [Self; 2] = [Self::Driver, Self::Generic];

    /// The name in the configuration and in `autocluster status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Driver => "driver",
            Self::Generic => "generic",
        }
    }

    /// The modes to try, best first.
    const fn candidates(self) -> &'static [Self] {
        match self {
            Self::Auto => &Self::REAL,
            Self::Driver => &[Self::Driver],
            Self::Generic => &[Self::Generic],
        }
    }
}

/// Where everything of this node is pinned.
pub(super) fn root(settings: &Settings) -> PathBuf {
    settings.bpffs.join("autocluster").join(&settings.node)
}

/// Where its maps are.
pub(super) fn maps(settings: &Settings) -> PathBuf {
    root(settings).join(format!("v{ABI_VERSION}"))
}

fn link_pin(settings: &Settings, mode: Mode, interface: &str) -> PathBuf {
    root(settings).join(format!("{LINK}{}-{interface}", mode.name()))
}

/// Where the first version pinned what it had at the interface.
fn former_root(settings: &Settings, interface: &str) -> PathBuf {
    settings.bpffs.join("autocluster").join(interface)
}

/// Everywhere that a link to the interface may be pinned, and how its program runs then.
fn pins(settings: &Settings, interface: &str) -> [(Mode, PathBuf); 3] {
    let [driver, generic] = Mode::REAL;
    [
        (driver, link_pin(settings, driver, interface)),
        (generic, link_pin(settings, generic, interface)),
        (driver, former_root(settings, interface).join(FORMER_LINK)),
    ]
}

/// True if an earlier daemon's program is still attached to the interface, and may stay until this one takes its place.
pub(super) fn is_attached(settings: &Settings, interface: &str) -> bool {
    let candidates = settings.mode.candidates();
    pins(settings, interface).iter().any(|(mode, pin)| candidates.contains(mode) && PinnedLink::from_pin(pin).is_ok())
}

/// Attaches the program to the interface, in the place of an earlier daemon's if that is still attached. Returns how it
/// runs there.
pub(super) fn attach(program: &mut Xdp, settings: &Settings, interface: &str) -> Result<Mode> {
    let candidates = settings.mode.candidates();
    for (mode, pin) in pins(settings, interface) {
        if candidates.contains(&mode) && take_over(program, &pin, &link_pin(settings, mode, interface))? {
            return Ok(mode);
        }
        // Its interface is gone, so its link is dead; or its mode is no longer wanted, and it would be in the way.
        remove_link(&pin)?;
    }
    let mut refused = None;
    for mode in candidates {
        match attach_anew(program, *mode, &link_pin(settings, *mode, interface), interface) {
            Ok(()) => {
                tell_fallback(interface, refused.as_ref());
                return Ok(*mode);
            }
            Err(Refusal::Program(error)) if refused.is_none() && lacks_native(&error) => refused = Some(error),
            Err(Refusal::Program(error)) => return Err(explain(interface, error)),
            Err(Refusal::Other(error)) => return Err(error),
        }
    }
    refused.map_or_else(|| bail!("no way to attach to {interface}"), |error| Err(explain(interface, error)))
}

enum Refusal {
    /// The kernel does not attach the program so.
    Program(ProgramError),
    Other(anyhow::Error),
}

fn attach_anew(program: &mut Xdp, mode: Mode, pin: &Path, interface: &str) -> Result<(), Refusal> {
    let flags = if mode == Mode::Generic { XdpMode::Skb } else { XdpMode::Driver };
    let attached = program.attach(interface, flags).and_then(|id| program.take_link(id));
    let link: Result<FdLink, _> = attached.map_err(Refusal::Program)?.try_into();
    let link = link.map_err(|error| {
        let error = anyhow!(error).context(format!("the kernel gave no BPF link for {interface}"));
        Refusal::Other(error)
    })?;
    pin_link(link, pin).map_err(Refusal::Other)
}

fn pin_link(link: FdLink, pin: &Path) -> Result<()> {
    link.pin(pin).with_context(|| format!("failed to pin the XDP link at {}", pin.display()))?;
    Ok(())
}

/// Nobody should find out by the load that packets take the slow way.
fn tell_fallback(interface: &str, refused: Option<&ProgramError>) {
    if let Some(error) = refused {
        let cause = Chain::new(error).last().map(ToString::to_string);
        tracing::warn!(
            interface,
            error = cause,
            "the interface's driver has no native XDP: the program runs in the kernel's stack, which is slow"
        );
    }
}

/// Puts the program into the link of an earlier daemon, and pins that link at `place`. False: there is none that lives.
fn take_over(program: &mut Xdp, pin: &Path, place: &Path) -> Result<bool> {
    let Ok(pinned) = PinnedLink::from_pin(pin) else { return Ok(false) };
    let link: FdLink = pinned.into();
    let Ok(link) = XdpLink::try_from(link) else { return Ok(false) };
    let taken = program.attach_to_link(link).and_then(|id| program.take_link(id));
    let Ok(link) = taken else { return Ok(false) };
    // It is the pin that holds the link, not this process: who removes the pin detaches the program.
    if pin != place {
        pin_link(link.try_into()?, place)?;
        remove_file(pin)?;
    }
    Ok(true)
}

/// Removes what earlier daemons pinned and this one has no use for: the maps of other versions of the program, once none
/// of them is attached any more, and the links to interfaces that are no longer steered on.
pub(super) fn remove_leftovers(settings: &Settings) -> Result<()> {
    let own_maps = maps(settings);
    let wanted: Vec<PathBuf> =
        settings.interfaces.iter().flat_map(|i| Mode::REAL.map(|mode| link_pin(settings, mode, &i.name))).collect();
    for path in entries(&root(settings)) {
        if path.is_dir() && path != own_maps {
            remove_directory(&path)?;
        } else if is_link(&path) && !wanted.contains(&path) {
            remove_link(&path)?;
        }
    }
    settings.interfaces.iter().try_for_each(|interface| remove_former(settings, &interface.name))
}

/// Removes everything of this node, and what the first version pinned for the interfaces. Returns the interfaces that a
/// program was attached to.
pub(super) fn remove_all(settings: &Settings, interfaces: &[&str]) -> Result<Vec<String>> {
    let mut detached: Vec<String> = entries(&root(settings)).iter().filter_map(|path| interface_of(path)).collect();
    let former = interfaces.iter().filter(|i| former_root(settings, i).join(FORMER_LINK).exists());
    detached.extend(former.map(ToString::to_string));
    // The links first: a program must not run on without its maps being known.
    for path in entries(&root(settings)).iter().filter(|path| is_link(path)) {
        remove_link(path)?;
    }
    for interface in interfaces {
        remove_link(&former_root(settings, interface).join(FORMER_LINK))?;
        remove_former(settings, interface)?;
    }
    if root(settings).exists() {
        remove_directory(&root(settings))?;
    }
    detached.sort();
    detached.dedup();
    Ok(detached)
}

/// Removes the first version's maps. Its directory stays if something else is in it: a node may be called as an
/// interface is.
fn remove_former(settings: &Settings, interface: &str) -> Result<()> {
    let former = former_root(settings, interface);
    if former.join(FORMER_MAPS).is_dir() {
        remove_directory(&former.join(FORMER_MAPS))?;
    }
    match fs::remove_dir(&former) {
        Err(error) if ![ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty].contains(&error.kind()) => {
            Err(error).with_context(|| format!("failed to remove {}", former.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn is_link(pin: &Path) -> bool {
    interface_of(pin).is_some()
}

/// The interface that a pinned link is attached to.
fn interface_of(pin: &Path) -> Option<String> {
    let rest = pin.file_name()?.to_str()?.strip_prefix(LINK)?;
    Mode::REAL.iter().find_map(|mode| Some(rest.strip_prefix(mode.name())?.strip_prefix('-')?.to_owned()))
}

fn remove_directory(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("failed to remove the pins in {}", path.display()))
}

/// Detaches the program of a pinned link.
fn remove_link(pin: &Path) -> Result<()> {
    // The last pin's removal lets the kernel detach it some time later, the last handle's does it at once.
    let handle = PinnedLink::from_pin(pin);
    remove_file(pin)?;
    drop(handle);
    Ok(())
}

/// What is not there is no error.
fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove the pin {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn check_bpffs(path: &Path) -> Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let mounted = nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 == BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    bail!("steering.bpffs: {path} is no BPF file system; mount one: mount -t bpf bpf {path}", path = path.display())
}

/// The system's error number, however deep it is.
fn errno(error: &ProgramError) -> Option<i32> {
    Chain::new(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).find_map(io::Error::raw_os_error)
}

fn lacks_native(error: &ProgramError) -> bool {
    matches!(errno(error), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

fn explain(interface: &str, error: ProgramError) -> anyhow::Error {
    if matches!(error, ProgramError::UnknownInterface { .. }) {
        return anyhow!("steering.interface: there is no interface {interface}");
    }
    match errno(&error) {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => anyhow!(
            "steering.interface: the driver of {interface} has no native XDP; name an interface whose driver has \
             (ethtool -i {interface} tells the driver), or set steering.mode = \"generic\""
        ),
        Some(libc::EBUSY | libc::EEXIST) => anyhow!(
            "steering.interface: another XDP program is attached to {interface}, or to the bond that it is part of; \
             remove it: ip link set dev {interface} xdp off (bpftool link shows it if a link holds it)"
        ),
        Some(libc::EPERM) => {
            anyhow!("attaching to {interface} is not permitted: run as root, or with CAP_BPF and CAP_NET_ADMIN")
        }
        _ => anyhow!(error).context(format!("failed to attach the XDP program to {interface}")),
    }
}
