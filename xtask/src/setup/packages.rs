//! Debian packages, installed without starting the services that come with them.

use std::process::Command;

use anyhow::Context;

use crate::run::must;

/// Installs "$@" while a policy forbids every service to start: the lab starts its own. A policy that the
/// administrator made stays; ours goes however the installation ends.
///
/// Postfix asks what it is to be on this machine: nothing, every lab brings its own configuration. It cannot stand
/// beside another mail server's package, hence `--no-remove`: the administrator decides about that one.
const INSTALL_SCRIPT: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ] || grep -qs 'made by cargo xtask setup' "$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\n# made by cargo xtask setup: no service starts during an installation\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
case " $* " in
*" postfix "*) echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections ;;
esac
apt-get install --yes --quiet --no-remove -o Dpkg::Use-Pty=0 --no-install-recommends "$@"
"#;

/// Those that are not installed.
pub(super) fn missing(wanted: &[&'static str]) -> Vec<&'static str> {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${Package} ${db:Status-Status}\n"]).args(wanted).output();
    let Ok(output) = query else { return wanted.to_vec() };
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed = |name: &str| listed.lines().any(|line| line.strip_prefix(name) == Some(" installed"));
    wanted.iter().copied().filter(|name| !installed(name)).collect()
}

/// Whether the package lists have all of them.
pub(super) fn are_offered(wanted: &[&str]) -> bool {
    let query = Command::new("apt-cache").args(["show", "--no-all-versions"]).args(wanted).output();
    let Ok(output) = query else { return false };
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    wanted.iter().all(|name| listed.lines().any(|line| line.strip_prefix("Package: ") == Some(name)))
}

/// Fetches the package lists.
pub(super) fn update() -> anyhow::Result<()> {
    must(Command::new("apt-get").args(["update", "--quiet"]))
        .context("failed to fetch package lists (this set-up knows Debian 12 and what is like it)")
}

/// Installs packages.
pub(super) fn install(names: &[&str]) -> anyhow::Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", INSTALL_SCRIPT, "sh"]).args(names).env("DEBIAN_FRONTEND", "noninteractive");
    must(&mut shell).with_context(|| format!("failed to install {}", names.join(" ")))
}
