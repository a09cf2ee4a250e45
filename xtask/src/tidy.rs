//! Formatting and lints: warnings on a developer's machine, errors here and in CI.

use crate::run::{cargo, must};

/// Fails on the first finding.
pub(crate) fn check() -> anyhow::Result<()> {
    must(&mut cargo(&["fmt", "--all", "--check"]))?;
    must(&mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // Not among "all targets", so that `cargo test` leaves it alone.
    must(&mut cargo(&["clippy", "--quiet", "-p", "autocluster-tests", "--test", "e2e", "--", "-D", "warnings"]))
}
