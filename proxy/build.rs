//! Builds the XDP program for the kernel's target and hands it to the daemon, which embeds it.
//!
//! aya-build is not used: it wants the program to be a member of this workspace, which would tie the
//! daemon's lock file to a second compiler, and it reports every compiled crate as a warning.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const PROGRAM: &str = "autocluster-xdp";
/// What the feature `bench` measures it by.
const BENCH: &str = "autocluster-bench";

/// Prefixes of the variables that cargo gives a build script about its own build.
const SET_BY_CARGO: [&str; 11] = [
    "CARGO_BUILD_",
    "CARGO_CFG_",
    "CARGO_ENCODED_",
    "CARGO_FEATURE_",
    "CARGO_MAKEFLAGS",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_TARGET_",
    "RUSTC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler that can build `core` for the kernel's target.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

fn main() {
    for watched in ["../proxy-ebpf/src", "../proxy-ebpf/Cargo.toml", "../proxy-ebpf/Cargo.lock", "../proxy-common/src"]
    {
        println!("cargo:rerun-if-changed={watched}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    let Some(toolchain) = find_toolchain() else {
        panic!(
            "no compiler for the XDP program: it needs Debian's rustc-web, cargo-web and rust-web-src, or nightly \
             Rust with rust-src. `cargo xtask setup` installs what is missing."
        );
    };
    if let Err(reason) = build(&toolchain) {
        panic!("failed to build the XDP program with {}: {reason}", toolchain.rustc.display());
    }
}

/// The rule that `cargo xtask setup` follows too: the distribution's compiler if its `core` sources are here, since
/// the linker's LLVM came with it then; else rustup's nightly.
fn find_toolchain() -> Option<Toolchain> {
    let which = |tool: &str| {
        let output = Command::new("rustup").args(["which", "--toolchain", "nightly", tool]).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| PathBuf::from(path.trim()))
    };
    let nightly = || Some(Toolchain { cargo: which("cargo")?, rustc: which("rustc")? });
    let system = Toolchain { cargo: "/usr/bin/cargo".into(), rustc: "/usr/bin/rustc".into() };
    [system].into_iter().chain(nightly()).find(has_core_sources)
}

fn has_core_sources(toolchain: &Toolchain) -> bool {
    let Ok(output) = Command::new(&toolchain.rustc).args(["--print", "sysroot"]).output() else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
}

fn build(toolchain: &Toolchain) -> Result<(), String> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").map_err(|e| e.to_string())?;
    let target_dir = out_dir.join("ebpf");
    let (features, programs): (&[&str], &[&str]) = match env::var_os("CARGO_FEATURE_BENCH") {
        Some(_) => (&["--features", "bench"], &[PROGRAM, BENCH]),
        None => (&[], &[PROGRAM]),
    };
    let mut cargo = Command::new(&toolchain.cargo);
    // What cargo set for this build must not reach the other compiler; a user's settings (proxies, registries) must.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if SET_BY_CARGO.iter().any(|prefix| name.starts_with(prefix)) || name == "CARGO" {
            cargo.env_remove(&key);
        }
    }
    let target = format!("--cfg=bpf_target_arch=\"{architecture}\"");
    let flags = [
        target.as_str(),
        // 32-bit arithmetic and jumps: Linux 5.1.
        "-Ctarget-cpu=v3",
        "-Clink-arg=--btf",
        // Headers do not stand where their fields would be aligned; the kernel lets packets be read anyhow.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    ];
    let output = cargo
        .env("RUSTC", &toolchain.rustc)
        // Debian's compiler is a stable one; building `core` for a new target is still unstable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        .args(["--manifest-path", "../proxy-ebpf/Cargo.toml", "--target-dir"])
        .arg(&target_dir)
        .args(features)
        .output()
        .map_err(|e| format!("failed to start {}: {e}", toolchain.cargo.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    for program in programs {
        let built = target_dir.join("bpfel-unknown-none/release").join(program);
        std::fs::copy(&built, out_dir.join(program)).map_err(|e| format!("{}: {e}", built.display()))?;
    }
    Ok(())
}
