//! Building the candidates, and what that costs.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::engine::Engine;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// USER_HZ: ticks of /proc/PID/stat, the same on every Linux that Rust's std supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// A clean release build with two jobs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Build {
    pub(crate) wall_s: f64,
    /// Of all compilers together: comparable even if the machine has other work.
    pub(crate) cpu_s: f64,
}

fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(WORKSPACE).args(args);
    cargo
}

pub(crate) fn build(engine: &Engine) -> anyhow::Result<()> {
    let status = cargo(&["build", "--release", "--quiet", "-j2", "-p", engine.package]).status()?;
    ensure!(status.success(), "failed to build {}", engine.package);
    Ok(())
}

pub(crate) fn clean(engine: &Engine) -> anyhow::Result<Build> {
    let target = std::env::temp_dir().join(format!("membership-build-{}", std::process::id()));
    let (began, cpu) = (Instant::now(), children_cpu()?);
    let status = cargo(&["build", "--release", "--quiet", "-j2", "-p", engine.package])
        .env("CARGO_TARGET_DIR", &target)
        .status()?;
    let build = Build { wall_s: began.elapsed().as_secs_f64(), cpu_s: children_cpu()? - cpu };
    std::fs::remove_dir_all(&target).context("failed to remove the clean build")?;
    ensure!(status.success(), "failed to build {}", engine.package);
    Ok(build)
}

/// User and system time of the children that have ended.
fn children_cpu() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("no name in /proc/self/stat")?.1;
    // cutime and cstime, fields 16 and 17; the first after the name is field 3.
    let ticks = after_name.split_whitespace().skip(16 - 3).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// Packages that the node is built of, itself not counted.
pub(crate) fn packages(engine: &Engine) -> anyhow::Result<usize> {
    let tree =
        cargo(&["tree", "--package", engine.package, "--edges", "normal,build", "--prefix", "none", "--no-dedupe"]);
    let output = { tree }.output()?;
    ensure!(output.status.success(), "cargo tree failed");
    let text = String::from_utf8(output.stdout)?;
    let mut packages: Vec<&str> = text.lines().map(|line| line.trim_end_matches(" (proc-macro)")).collect();
    packages.sort_unstable();
    packages.dedup();
    Ok(packages.len().saturating_sub(1))
}
