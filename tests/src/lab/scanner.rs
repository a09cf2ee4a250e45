//! clamd on a front end, with a signature file of one entry.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::layout::Layout;
use super::process;
use super::spec::Host;

pub(super) const PROCESS: &str = "clamd";
/// Name of the only signature that the lab's clamd knows.
const SIGNATURE: &str = "Lab.Eicar-Test-Signature";
/// One signature is read in a few milliseconds.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The test file that every virus scanner reports. In two pieces, so that none reports this source.
pub(super) fn eicar() -> String {
    ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$", "EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"].concat()
}

/// Where clamd of a front end listens.
pub(super) fn socket(layout: &Layout, host: Host) -> PathBuf {
    layout.host_dir(host).join("clamd.sock")
}

/// The signature file, shared by all front ends: any file (`0`), any offset (`*`), these bytes.
pub(super) fn write_signatures(layout: &Layout) -> anyhow::Result<()> {
    let dir = layout.dir().join("signatures");
    fs::create_dir_all(&dir)?;
    let mut line = format!("{SIGNATURE}:0:*:");
    for byte in eicar().bytes() {
        write!(line, "{byte:02x}")?;
    }
    fs::write(dir.join("lab.ndb"), line + "\n").context("failed to write the signatures")
}

/// Starts clamd without waiting for it.
pub(super) fn start(layout: &Layout, host: Host) -> anyhow::Result<()> {
    let config = layout.host_dir(host).join("clamd.conf");
    let text = format!(
        "Foreground yes\nLocalSocket {}\nFixStaleSocket yes\nDatabaseDirectory {}\nLogTime yes\n\
         StreamMaxLength 64M\nMaxScanSize 64M\nMaxFileSize 64M\nTemporaryDirectory {}\n",
        socket(layout, host).display(),
        layout.dir().join("signatures").display(),
        layout.host_dir(host).display(),
    );
    fs::write(&config, text).with_context(|| format!("failed to write {}", config.display()))?;
    let argv = ["clamd".to_owned(), format!("--config-file={}", config.display())];
    process::start(layout, host, PROCESS, &argv)?;
    Ok(())
}

/// Waits until clamd answers.
pub(super) fn await_ready(layout: &Layout, host: Host) -> anyhow::Result<()> {
    process::await_ready(layout, host, PROCESS, START_LIMIT, || ping(layout, host))?;
    Ok(())
}

fn ping(layout: &Layout, host: Host) -> anyhow::Result<bool> {
    let mut stream = UnixStream::connect(socket(layout, host))?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    stream.write_all(b"zPING\0")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"PONG"))
}
