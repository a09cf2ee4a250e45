//! Certificates of a lab, made by the program under test.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::command::run;
use super::layout::Layout;
use super::spec::{Host, Spec, VIP, VIP6};

/// The name that mail clients know the pool by.
pub const MAIL_NAME: &str = "mx.pool.test";

/// The program under test: `AUTOCLUSTER_BIN`, or the one that was built beside this one.
///
/// # Errors
/// If there is none.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os("AUTOCLUSTER_BIN") {
        return Ok(PathBuf::from(path));
    }
    tool("autocluster").context("cargo build -p autocluster, or set AUTOCLUSTER_BIN")
}

/// A program that was built beside this one.
///
/// # Errors
/// If there is none of this name.
pub fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("failed to find this program's own path")?;
    // Test programs are one directory deeper than the others.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside {}", own.display()))
}

/// The certificate authority, one certificate per node, and the one that mail clients see.
pub(super) fn make(layout: &Layout, spec: &Spec) -> anyhow::Result<()> {
    let program = program()?;
    let dir = layout.pki_dir();
    autocluster(&program, &["pki", "init", "--dir", path_text(&dir)?])?;
    for host in spec.frontend_hosts() {
        issue(&program, &dir, "frontend", &host.to_string(), &[spec.v4(host).to_string(), spec.v6(host).to_string()])?;
    }
    for host in spec.backend_hosts() {
        issue(&program, &dir, "backend", &host.to_string(), &[host.v4().to_string(), host.v6().to_string()])?;
    }
    issue(&program, &dir, "frontend", "mail", &[MAIL_NAME.to_owned(), VIP.to_string(), VIP6.to_string()])
}

fn issue(program: &Path, dir: &Path, role: &str, name: &str, sans: &[String]) -> anyhow::Result<()> {
    let mut args = vec!["pki", "issue", "--dir", path_text(dir)?, "--role", role, "--name", name];
    for san in sans {
        args.extend(["--san", san]);
    }
    autocluster(program, &args)?;
    for kind in ["pem", "key"] {
        let path = dir.join(format!("{name}.{kind}"));
        ensure!(path.is_file(), "{} pki issue made no {}", program.display(), path.display());
    }
    Ok(())
}

fn autocluster(program: &Path, args: &[&str]) -> anyhow::Result<()> {
    run(path_text(program)?, args)?;
    Ok(())
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{}: not UTF-8", path.display()))
}

/// Certificate and key of a node.
pub(super) fn node_files(layout: &Layout, host: Host) -> (PathBuf, PathBuf) {
    let dir = layout.pki_dir();
    (dir.join(format!("{host}.pem")), dir.join(format!("{host}.key")))
}
