//! The program at its interfaces: attached, pinned, and taken over from an earlier daemon.
//!
//! Layout of the pins: `BPFFS/autocluster/NODE/vABI/MAP` and `BPFFS/autocluster/NODE/link-MODE-INTERFACE`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use proxy_common::maps::ABI_VERSION;

use super::Settings;

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
    /// The name in the configuration and in `autocluster status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Driver => "driver",
            Self::Generic => "generic",
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
    root(settings).join(format!("link-{}-{interface}", mode.name()))
}

/// The modes to try, best first.
fn modes(wanted: Mode) -> &'static [Mode] {
    match wanted {
        Mode::Auto => &[Mode::Driver, Mode::Generic],
        Mode::Driver => &[Mode::Driver],
        Mode::Generic => &[Mode::Generic],
    }
}

/// True if an earlier daemon's program is still attached to the interface.
pub(super) fn is_attached(settings: &Settings, interface: &str) -> bool {
    modes(settings.mode).iter().any(|mode| PinnedLink::from_pin(link_pin(settings, *mode, interface)).is_ok())
}

/// Attaches the program to the interface, in the place of an earlier daemon's if that is still attached. Returns how it
/// runs there.
pub(super) fn attach(program: &mut Xdp, settings: &Settings, interface: &str) -> Result<Mode> {
    let modes = modes(settings.mode);
    if let Some(mode) = modes.iter().find(|mode| take_over(program, &link_pin(settings, **mode, interface))) {
        return Ok(*mode);
    }
    let mut refused = None;
    for mode in modes {
        let flags = if *mode == Mode::Generic { XdpMode::Skb } else { XdpMode::Driver };
        match program.attach(interface, flags) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into().map_err(|_e| {
                    anyhow!("the kernel gave no BPF link for {interface}: Linux 5.9 or newer is needed")
                })?;
                let pin = link_pin(settings, *mode, interface);
                link.pin(&pin).with_context(|| format!("failed to pin the XDP link at {}", pin.display()))?;
                return Ok(*mode);
            }
            Err(error) if lacks_native(&error) && refused.is_none() => refused = Some(error),
            Err(error) => return Err(explain(interface, error)),
        }
    }
    refused.map_or_else(|| bail!("no way to attach to {interface}"), |error| Err(explain(interface, error)))
}

/// Puts the program into the link of an earlier daemon. A pin whose interface is gone is removed: its link is dead.
fn take_over(program: &mut Xdp, pin: &Path) -> bool {
    let Ok(pinned) = PinnedLink::from_pin(pin) else { return false };
    let link: FdLink = pinned.into();
    // The pin holds the link; dropping our handle of it detaches nothing.
    let taken = XdpLink::try_from(link).is_ok_and(|link| program.attach_to_link(link).is_ok());
    if !taken && let Err(error) = fs::remove_file(pin) {
        tracing::warn!(%error, pin = %pin.display(), "a dead XDP link's pin cannot be removed");
    }
    taken
}

/// Removes the maps of other versions of the program, once none of them is attached any more.
pub(super) fn remove_other_versions(settings: &Settings) -> Result<()> {
    let own = maps(settings);
    for entry in fs::read_dir(root(settings)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path != own {
            fs::remove_dir_all(&path).with_context(|| format!("failed to remove {}", path.display()))?;
        }
    }
    Ok(())
}

pub(super) fn check_bpffs(path: &Path) -> Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let mounted = nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 == BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    bail!("steering.bpffs: {path} is no BPF file system; mount one: mount -t bpf bpf {path}", path = path.display())
}

fn errno(error: &ProgramError) -> Option<i32> {
    if let ProgramError::SyscallError(e) = error { e.io_error.raw_os_error() } else { None }
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
            "steering.interface: another XDP program is attached to {interface}; remove it: ip link set dev {interface} xdp off"
        ),
        _ => anyhow!(error).context(format!("failed to attach the XDP program to {interface}")),
    }
}
