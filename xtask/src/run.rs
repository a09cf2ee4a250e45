//! Running cargo, and the programs that it builds.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::setup;

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo that started this program, in the workspace's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command that must succeed.
pub(crate) fn must(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("failed to run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// `cargo xtask lab …`
pub(crate) fn lab(arguments: &[String]) -> anyhow::Result<ExitCode> {
    if arguments.first().is_some_and(|first| first == "up") {
        setup::ensure()?.require_lab()?;
        build_all()?;
    } else {
        // Taking a lab away must work while the daemon does not build.
        must(&mut cargo(&["build", "--quiet", "--package", "autocluster-tests", "--bin", "lab"]))?;
    }
    replace_by("lab", arguments)
}

/// `cargo xtask demo …`
pub(crate) fn demo(arguments: &[String]) -> anyhow::Result<ExitCode> {
    setup::ensure()?.require_lab()?;
    build_all()?;
    replace_by("demo", arguments)
}

/// `cargo xtask bench membership …`: a workspace of its own, so that the engines that were not chosen are no
/// dependencies of the daemon.
pub(crate) fn bench_membership(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let mut command = cargo(&["run", "--release", "--bin", "membership-bench", "--"]);
    let error = command.args(arguments).current_dir(root().join("tests/membership")).exec();
    Err(error).context("failed to run cargo")
}

/// What the table builder has in a release build; the rest is the tests' build, which takes minutes less.
const OPTIMIZED: [&str; 2] =
    ["--config=profile.dev.package.proxy-core.opt-level=3", "--config=profile.dev.package.proxy-common.opt-level=3"];

/// `cargo xtask bench steer …`
pub(crate) fn bench_steer(arguments: &[String]) -> anyhow::Result<ExitCode> {
    setup::ensure()?.require_daemon()?;
    let mut command =
        cargo(&["run", "--quiet", "--package", "autocluster", "--features", "bench", "--bin", "steer-bench"]);
    // Terminal, signals and exit code are the program's own from here on.
    let error = command.args(OPTIMIZED).arg("--").args(arguments).exec();
    Err(error).context("failed to run cargo")
}

/// Builds the daemon and the lab, by the profile that the tests use too: nothing is compiled twice.
pub(crate) fn build_all() -> anyhow::Result<()> {
    must(&mut cargo(&["build", "--package", "autocluster", "--package", "autocluster-tests"]))
}

fn replace_by(program: &str, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("debug").join(program);
    // Terminal, signals and exit code are the program's own from here on.
    let error = Command::new(&path).args(arguments).exec();
    Err(error).with_context(|| format!("failed to run {}", path.display()))
}
