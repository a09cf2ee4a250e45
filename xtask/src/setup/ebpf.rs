//! The compiler and the linker of the XDP program.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::packages;
use crate::run::{cargo, must};

/// Debian's matched set: a compiler with its own sources, and the LLVM that it was built with.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_LLVM: [&str; 3] = ["llvm-22-dev", "zlib1g-dev", "libzstd-dev"];
const DEBIAN_LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const DEBIAN_LINKER: [&str; 7] =
    ["bpf-linker", "--version", "0.13.0", "--locked", "--no-default-features", "--features", "llvm-22"];
/// Seconds, for a download of some 100 MB.
const RUSTUP_TIMEOUT: &str = "600";

/// Which compiler builds the XDP program. The daemon's build script chooses by the same rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compiler {
    /// The distribution's, in /usr/bin.
    Debian,
    /// rustup's nightly with rust-src.
    Nightly,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nightly => "rustup's nightly",
            Self::Debian => "the distribution's compiler (/usr/bin/rustc)",
        })
    }
}

impl Compiler {
    /// The first one that has the sources of `core`. The distribution's comes first: where it is, it came with the
    /// LLVM that the linker was built with, and a newer linker reads what it writes too.
    pub(super) fn find() -> Option<Self> {
        if Path::new("/usr/bin/cargo").exists() && has_core_sources("/usr/bin/rustc") {
            return Some(Self::Debian);
        }
        let nightly = output("rustup", &["which", "--toolchain", "nightly", "rustc"]);
        nightly.is_some_and(|rustc| has_core_sources(&rustc)).then_some(Self::Nightly)
    }
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn has_core_sources(rustc: &str) -> bool {
    output(rustc, &["--print", "sysroot"])
        .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists())
}

/// Whether bpf-linker is here and starts (its LLVM may have been removed).
pub(super) fn linker_works() -> bool {
    output("bpf-linker", &["--version"]).is_some()
}

/// Debian's matched set where it is offered, otherwise rustup's nightly.
///
/// In this order, since a linker must read what the compiler writes: nightly's LLVM runs ahead of every LLVM that a
/// distribution has (23 against 22 when this was written), and bpf-linker's builders advise against building it for
/// that.
pub(super) fn install_compiler() -> anyhow::Result<()> {
    if packages::are_offered(&DEBIAN_COMPILER) && packages::are_offered(&DEBIAN_LLVM) {
        return packages::install(&DEBIAN_COMPILER);
    }
    println!("  this distribution has no matched compiler and LLVM; asking rustup for nightly with rust-src");
    let mut rustup = Command::new("timeout");
    rustup.args([RUSTUP_TIMEOUT, "rustup", "toolchain", "install", "nightly", "--profile", "minimal"]);
    must(rustup.args(["--component", "rust-src"]))
}

/// bpf-linker, with the LLVM of the compiler that was found.
pub(super) fn install_linker() -> anyhow::Result<()> {
    if Compiler::find() == Some(Compiler::Debian) {
        packages::install(&DEBIAN_LLVM)?;
        let mut install = cargo(&["install"]);
        return must(install.args(DEBIAN_LINKER).env("LLVM_PREFIX", DEBIAN_LLVM_PREFIX));
    }
    if output("cargo", &["binstall", "-V"]).is_some() {
        return must(&mut cargo(&["binstall", "--no-confirm", "bpf-linker"]));
    }
    must(&mut cargo(&["install", "bpf-linker"]))
        .context("install it as its own README says (cargo binstall bpf-linker), then try again")
}
