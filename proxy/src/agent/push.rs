//! One stream to one front end: the core's feed on one side, the stream on the other.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Instant;

use proxy_core::directory::wire::FrontendMessage;
use proxy_core::directory::{BackendRecord, Feed, FeedError, SourceName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::reading::SharedLog;
use crate::drivers::directory::frames::{Frames, StreamError};

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum PushError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Feed(#[from] FeedError),
}

/// Feeds one front end until the stream ends. Lists of front ends go to `learned`; when that is full the list is
/// dropped, for another comes.
///
/// # Errors
/// Always: why it ended.
pub(super) async fn push<R, W>(
    log: &SharedLog,
    (source, record): (&SourceName, &BackendRecord),
    (reader, writer): (R, W),
    learned: &mpsc::Sender<Vec<SocketAddr>>,
) -> Result<Infallible, PushError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut changed = log.subscribe();
    let mut frames = Frames::<R, W, FrontendMessage>::new(reader, writer);
    let mut feed = Feed::new(source.clone(), record.clone(), Instant::now());
    loop {
        while let Some(message) = frames.poll_message()? {
            log.with(|log, _| feed.handle_message(&message, log, Instant::now()))?;
            if let FrontendMessage::Ack { seq, .. } = message {
                tracing::debug!(seq = seq.0, "the front end is up to date");
            }
            if let FrontendMessage::Frontends(addresses) = message
                && learned.try_send(addresses).is_err()
            {
                tracing::debug!("a list of front ends was dropped");
            }
        }
        while frames.is_idle() {
            changed.mark_unchanged();
            let message = log.with(|log, current| feed.poll_message(log, current, Instant::now()));
            let Some(message) = message else { break };
            frames.send(&message)?;
        }
        feed.handle_timeout(Instant::now())?;
        let timeout = tokio::time::Instant::from_std(feed.poll_timeout());
        let idle = frames.is_idle();
        tokio::select! {
            progress = frames.progress() => progress?,
            _ = changed.changed(), if idle => {}
            () = tokio::time::sleep_until(timeout), if idle => {}
        }
    }
}
