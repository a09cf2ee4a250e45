//! The virus scanner: clamd by its INSTREAM command, fed while the message arrives.
//!
//! Only `stream: OK` is clean. Whatever else happens to a scan, an answer that is not understood included,
//! the message counts as not scanned.

use std::{io, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clamav_client::tokio::{Socket, Tcp};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

use crate::config::ClamdAddress;

/// Pieces of a message that may wait for the scanner before its sender is slowed down.
const QUEUE: usize = 16;
/// From the first octet to the verdict.
const SCAN_DEADLINE: Duration = Duration::from_secs(120);
/// Connecting, and answers to commands about the scanner itself.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);
/// What is sent to clamd in one chunk.
const CHUNK: usize = 64 * 1024;

/// A virus scanner.
#[derive(Debug, Clone)]
pub struct Scanner {
    address: ClamdAddress,
}

/// What the scanner says of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Clean,
    Infected { signature: String },
}

/// A scan that is going on.
#[derive(Debug)]
pub struct Scan {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    task: JoinHandle<Result<Verdict>>,
}

impl Scanner {
    #[must_use]
    pub fn new(address: ClamdAddress) -> Self {
        Self { address }
    }

    /// Starts a scan; it has no verdict before [`Scan::finish`].
    #[must_use]
    pub fn start(&self) -> Scan {
        let (pieces, queue) = mpsc::channel(QUEUE);
        let scanner = self.clone();
        let task = tokio::spawn(async move { scanner.run(ReceiverStream::new(queue)).await });
        Scan { pieces, task }
    }

    async fn run(&self, pieces: ReceiverStream<io::Result<Bytes>>) -> Result<Verdict> {
        let scan = async {
            match &self.address {
                ClamdAddress::Unix(path) => {
                    clamav_client::tokio::scan_stream(pieces, Socket { socket_path: path }, Some(CHUNK)).await
                }
                ClamdAddress::Tcp(address) => {
                    clamav_client::tokio::scan_stream(pieces, Tcp { host_address: address }, Some(CHUNK)).await
                }
            }
        };
        let answer = tokio::time::timeout(SCAN_DEADLINE, scan)
            .await
            .map_err(|_elapsed| anyhow!("clamd gave no verdict within {} s", SCAN_DEADLINE.as_secs()))?
            .with_context(|| format!("failed to scan with clamd at {}", self.address()))?;
        parse(&answer)
    }

    /// The scanner's version and signature date, if it answers.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn version(&self) -> Result<String> {
        let ask = async {
            match &self.address {
                ClamdAddress::Unix(path) => clamav_client::tokio::get_version(Socket { socket_path: path }).await,
                ClamdAddress::Tcp(address) => clamav_client::tokio::get_version(Tcp { host_address: address }).await,
            }
        };
        let answer = tokio::time::timeout(COMMAND_DEADLINE, ask)
            .await
            .map_err(|_elapsed| anyhow!("clamd does not answer"))?
            .with_context(|| format!("failed to reach clamd at {}", self.address()))?;
        Ok(String::from_utf8_lossy(&answer).trim_end_matches(['\0', '\n']).to_owned())
    }

    /// Where it is, as in the configuration.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.address {
            ClamdAddress::Unix(path) => format!("unix:{}", path.display()),
            ClamdAddress::Tcp(address) => format!("tcp:{address}"),
        }
    }
}

impl Scan {
    /// Hands on a piece of the message, waiting if the scanner is behind. A scanner that has given up takes
    /// no more, and says so at the end.
    pub async fn push(&self, piece: Bytes) {
        let _gave_up = self.pieces.send(Ok(piece)).await;
    }

    /// The verdict on all that was pushed.
    ///
    /// # Errors
    /// There is none: the message was not scanned.
    pub async fn finish(self) -> Result<Verdict> {
        drop(self.pieces);
        self.task.await.context("the scan was cut off")?
    }

    /// The message was abandoned: no verdict is wanted.
    pub fn abort(self) {
        self.task.abort();
    }
}

/// `stream: OK`, `stream: NAME FOUND`; anything else is an error.
fn parse(answer: &[u8]) -> Result<Verdict> {
    let text = String::from_utf8_lossy(answer);
    let text = text.trim_end_matches(['\0', '\n', '\r']);
    match text.strip_prefix("stream: ") {
        Some("OK") => Ok(Verdict::Clean),
        Some(found) if found.ends_with(" FOUND") => {
            Ok(Verdict::Infected { signature: found.trim_end_matches(" FOUND").to_owned() })
        }
        _ => bail!("clamd answered {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ok_is_clean() {
        assert_eq!(parse(b"stream: OK\0").unwrap(), Verdict::Clean);
        let found = parse(b"stream: Eicar-Test-Signature FOUND\0").unwrap();
        assert_eq!(found, Verdict::Infected { signature: "Eicar-Test-Signature".into() });
        for other in
            [&b""[..], b"stream: OKAY\0", b"OK", b"INSTREAM size limit exceeded. ERROR\0", b"stream: ", b"\xff"]
        {
            assert!(parse(other).is_err(), "{other:?}");
        }
    }

    #[tokio::test]
    async fn no_scanner_is_no_verdict() {
        let scanner = Scanner::new(ClamdAddress::Unix("/nonexistent/clamd".into()));
        let scan = scanner.start();
        scan.push(Bytes::from_static(b"hello")).await;
        assert!(scan.finish().await.is_err());
        assert!(scanner.version().await.is_err());
    }
}
