//! Hands the streams that peers open to whoever serves their kind.

use tokio::sync::mpsc;
use tracing::warn;

use crate::transport::{IncomingStream, STREAM_QUEUE, StreamKind};

/// The streams of each kind.
#[derive(Debug)]
pub struct ByKind {
    pub directory: mpsc::Receiver<IncomingStream>,
    pub steering: mpsc::Receiver<IncomingStream>,
    pub deny: mpsc::Receiver<IncomingStream>,
}

/// Divides the streams by their kind, in a task of its own, for as long as they come.
pub fn divide(mut streams: mpsc::Receiver<IncomingStream>) -> ByKind {
    let (to_directory, directory) = mpsc::channel(STREAM_QUEUE);
    let (to_steering, steering) = mpsc::channel(STREAM_QUEUE);
    let (to_deny, deny) = mpsc::channel(STREAM_QUEUE);
    drop(tokio::spawn(async move {
        while let Some(stream) = streams.recv().await {
            let kind = stream.kind;
            let server = match kind {
                StreamKind::Directory => &to_directory,
                StreamKind::Steering => &to_steering,
                StreamKind::Deny => &to_deny,
            };
            // A stream that is dropped is reset, and its peer opens another: none may hold up those of other kinds.
            if server.try_send(stream).is_err() {
                warn!(?kind, "a stream was dropped: too many wait");
            }
        }
    }));
    ByKind { directory, steering, deny }
}
