//! The control socket: a Unix stream socket on which the CLI asks the daemon. One line of JSON each way.

mod abuse;

use std::{
    fmt, fs,
    future::Future,
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixStream as BlockingStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tracing::warn;

pub use abuse::{CookiesRequest, DenyRequest, LimitRequest, MAX_PREFIXES, PAGE};

use crate::{
    io::ACCEPT_PAUSE,
    status::{
        Status,
        abuse::{CookiesStatus, DenyResponse, LimitStatus},
        drain::{DrainStatus, WeightStatus},
        steering::{SteerShow, SteerStats, Trace},
    },
};

/// Longest request in octets.
const MAX_REQUEST: u64 = 64 * 1024;
/// Requests answered at once.
const MAX_CLIENTS: usize = 16;
/// A client that has not asked by then is cut off; a daemon that has not answered by then is stuck.
const DEADLINE: Duration = Duration::from_secs(10);
/// Owner and group may ask; everything else of the daemon is its own.
const MODE: u32 = 0o660;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status,
    /// Takes no new connections until it is told to; gives up after so many seconds.
    Drain {
        limit_s: Option<u64>,
    },
    /// How the drain stands.
    DrainStatus,
    Undrain,
    Weight(WeightRequest),
    Steer(SteerRequest),
    Deny(DenyRequest),
    Limit(LimitRequest),
    Cookies(CookiesRequest),
}

/// What can be asked of this front end's share.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightRequest {
    Show,
    /// From now on, over restarts.
    Set(u16),
    /// The configuration's again.
    Default,
}

/// What can be asked of the XDP program.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SteerRequest {
    Show,
    Stats,
    /// What becomes of a connection from `source` to `destination`.
    Trace {
        source: SocketAddr,
        destination: SocketAddr,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Drain(DrainStatus),
    Weight(WeightStatus),
    Steer(Box<SteerShow>),
    SteerStats(SteerStats),
    Trace(Box<Trace>),
    Deny(DenyResponse),
    Limit(LimitStatus),
    Cookies(CookiesStatus),
    Error(String),
}

impl Response {
    /// What is answered, without its kind.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        let text = match self {
            Self::Status(answer) => serde_json::to_string_pretty(answer),
            Self::Drain(answer) => serde_json::to_string_pretty(answer),
            Self::Weight(answer) => serde_json::to_string_pretty(answer),
            Self::Steer(answer) => serde_json::to_string_pretty(answer),
            Self::SteerStats(answer) => serde_json::to_string_pretty(answer),
            Self::Trace(answer) => serde_json::to_string_pretty(answer),
            Self::Deny(answer) => serde_json::to_string_pretty(answer),
            Self::Limit(answer) => serde_json::to_string_pretty(answer),
            Self::Cookies(answer) => serde_json::to_string_pretty(answer),
            Self::Error(error) => serde_json::to_string_pretty(error),
        };
        text.context("failed to print the answer")
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(answer) => answer.fmt(f),
            Self::Drain(answer) => answer.fmt(f),
            Self::Weight(answer) => answer.fmt(f),
            Self::Steer(answer) => answer.fmt(f),
            Self::SteerStats(answer) => answer.fmt(f),
            Self::Trace(answer) => answer.fmt(f),
            Self::Deny(answer) => answer.fmt(f),
            Self::Limit(answer) => answer.fmt(f),
            Self::Cookies(answer) => answer.fmt(f),
            Self::Error(error) => error.fmt(f),
        }
    }
}

/// The socket, bound.
pub struct Control {
    listener: UnixListener,
}

impl Control {
    /// Binds the socket, replacing one that a dead daemon left behind.
    ///
    /// # Errors
    /// A daemon is running on it, or the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("node.control_socket: failed to create {}", directory.display()))?;
        }
        if BlockingStream::connect(path).is_ok() {
            bail!("node.control_socket: another daemon is running on {}", path.display());
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("node.control_socket: failed to replace {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path)
            .with_context(|| format!("node.control_socket: failed to listen on {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))
            .with_context(|| format!("failed to set the mode of {}", path.display()))?;
        Ok(Self { listener })
    }

    /// Answers requests until the task is dropped.
    pub async fn run<F>(self, answer: impl Fn(Request) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let answer = Arc::new(answer);
        let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                match tokio::time::timeout(DEADLINE, serve(stream, &*answer)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(%error, "control request failed"),
                    Err(_elapsed) => warn!("control client cut off"),
                }
                drop(permit);
            });
        }
    }
}

async fn serve<F: Future<Output = Response>>(stream: UnixStream, answer: &impl Fn(Request) -> F) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    if tokio::io::BufReader::new(read.take(MAX_REQUEST)).read_line(&mut line).await? == 0 {
        // Somebody looked whether we are alive.
        return Ok(());
    }
    let response = match serde_json::from_str(&line) {
        Ok(request) => answer(request).await,
        Err(e) => Response::Error(format!("the request is not understood: {e}")),
    };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Asks the daemon; for the CLI.
///
/// # Errors
/// No daemon answers, or it refuses.
pub fn ask(path: &Path, request: &Request) -> Result<Response> {
    let mut stream = BlockingStream::connect(path).map_err(|e| explain_connect(path, &e))?;
    stream.set_read_timeout(Some(DEADLINE)).context("failed to set a deadline")?;
    let mut text = serde_json::to_vec(request).context("failed to write the request")?;
    text.push(b'\n');
    stream.write_all(&text).context("failed to send the request")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the daemon did not answer in time")?;
    let response =
        serde_json::from_str(&line).context("the daemon's answer is not understood: is it of another version?")?;
    if let Response::Error(error) = response {
        bail!(error);
    }
    Ok(response)
}

fn explain_connect(path: &Path, error: &io::Error) -> anyhow::Error {
    let path = path.display();
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        anyhow!("no daemon is running on {path}; start it by `autocluster run`, or name its socket by --socket")
    } else if kind == io::ErrorKind::PermissionDenied {
        anyhow!("{path} may not be opened: run as root")
    } else {
        anyhow!("failed to open {path}: {error}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn nonsense_gets_an_error_and_the_next_one_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/control.sock");
        let control = Control::bind(&path).unwrap();
        tokio::spawn(control.run(|_request| async { Response::Error("not today".into()) }));
        assert!(Control::bind(&path).is_err(), "it is in use");
        let mut stream = BlockingStream::connect(&path).unwrap();
        stream.write_all(b"{\"reboot\":1}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.contains("not understood"), "{line}");
        let asked = tokio::task::spawn_blocking(move || ask(&path, &Request::Status)).await.unwrap();
        assert_eq!(asked.unwrap_err().to_string(), "not today");
    }

    #[test]
    fn without_a_daemon_the_error_says_what_to_do() {
        let error = ask(Path::new("/nonexistent/control.sock"), &Request::Status).unwrap_err().to_string();
        assert!(error.contains("autocluster run"), "{error}");
    }
}
