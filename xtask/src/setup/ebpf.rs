//! The compiler and the linker of the XDP program.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::packages;
use crate::run::{cargo, must};

/// Debian's matched set: a compiler with its own sources, and the LLVM that it was built with.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_LLVM: [&str; 3] = ["llvm-22-dev", "zlib1g-dev", "libzstd-dev"];
const DEBIAN_LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const DEBIAN_LINKER: [&str; 7] =
    ["bpf-linker", "--version", "0.13.0", "--locked", "--no-default-features", "--features", "llvm-22"];
/// A download of some 100 MB; where nothing can be fetched, rustup says so much sooner.
const RUSTUP_TIMEOUT: &str = "600";

/// Which compiler builds the XDP program. The daemon's build script chooses by the same rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compiler {
    /// rustup's nightly with rust-src.
    Nightly,
    /// The distribution's, in /usr/bin.
    Debian,
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
    /// The first one that has the sources of `core`.
    pub(super) fn find() -> Option<Self> {
        let nightly = output("rustup", &["which", "--toolchain", "nightly", "rustc"]);
        if nightly.is_some_and(|rustc| has_core_sources(&rustc)) {
            return Some(Self::Nightly);
        }
        (Path::new("/usr/bin/cargo").exists() && has_core_sources("/usr/bin/rustc")).then_some(Self::Debian)
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

/// rustup's nightly where it can be had, otherwise Debian's compiler.
pub(super) fn install_compiler() -> anyhow::Result<()> {
    let mut rustup = Command::new("timeout");
    rustup.args([RUSTUP_TIMEOUT, "rustup", "toolchain", "install", "nightly", "--profile", "minimal"]);
    rustup.args(["--component", "rust-src"]).stdout(Stdio::null()).stderr(Stdio::null());
    let fetched = rustup.status().is_ok_and(|status| status.success());
    if fetched && Compiler::find() == Some(Compiler::Nightly) {
        return Ok(());
    }
    println!("  rustup cannot provide nightly Rust with rust-src here; taking Debian's compiler");
    packages::install(&DEBIAN_COMPILER)
}

/// bpf-linker must read what the compiler writes, so its LLVM is that compiler's.
pub(super) fn install_linker() -> anyhow::Result<()> {
    if Compiler::find() == Some(Compiler::Nightly) {
        return must(&mut cargo(&["install", "bpf-linker"]));
    }
    packages::install(&DEBIAN_LLVM)?;
    let mut install = cargo(&["install"]);
    must(install.args(DEBIAN_LINKER).env("LLVM_PREFIX", DEBIAN_LLVM_PREFIX))
}
