//! Whether this machine can run a lab at all.

use std::fs;

use anyhow::Context;
use nix::unistd::geteuid;

use super::command::run;
use super::layout::Layout;
use super::xdp_pass;

/// A name that no person gives to a lab.
const PROBE: &str = "probe";

/// Why no lab can run here, if none can: tried, not guessed, by the two things that a lab cannot do without.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !geteuid().is_root() {
        return Some("not root".to_owned());
    }
    let layout = Layout::new(&format!("{PROBE}{}", std::process::id()));
    let tried = try_all(&layout);
    drop(run("ip", &["netns", "delete", &namespace(&layout)]));
    drop(fs::remove_dir_all(layout.dir()));
    tried.err().map(|error| format!("{error:#}"))
}

fn namespace(layout: &Layout) -> String {
    layout.namespace(super::Host::NET)
}

fn try_all(layout: &Layout) -> anyhow::Result<()> {
    let (namespace, object) = (namespace(layout), layout.dir().join("xdp-pass.o"));
    fs::create_dir_all(layout.dir()).context("cannot write below /run")?;
    xdp_pass::write(&object)?;
    run("ip", &["netns", "add", &namespace]).context("cannot make network namespaces")?;
    let veth = ["-n", &namespace, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"];
    run("ip", &veth).context("cannot make virtual network interfaces")?;
    let object = object.display().to_string();
    let attach = ["-n", &namespace, "link", "set", "dev", "probe0", "xdpdrv", "obj", &object, "sec", "xdp"];
    run("ip", &attach).context("cannot load XDP programs")?;
    Ok(())
}
