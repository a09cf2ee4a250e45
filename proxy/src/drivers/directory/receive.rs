//! One agent's stream: messages to the core, the core's answers back.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proxy_core::directory::wire::{AgentMessage, FrontendMessage, MAX_FRONTENDS, Refusal, WireError};
use proxy_core::directory::{ConnectionId, HEARTBEAT_EVERY, ProtocolError, Receiver, SILENT_FOR, SourceName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::DirectoryDriver;
use super::frames::{Frames, StreamError};

/// How long a refusal may take to reach the agent.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(1);

/// Why an agent's stream has ended.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("refused: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("nothing heard for {} s", SILENT_FOR.as_secs())]
    Silent,
}

impl ReceiveError {
    /// What to tell the agent before the stream is closed.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Stream(StreamError::Wire(WireError::Version(_))) => Some(Refusal::Version),
            Self::Stream(StreamError::Wire(_)) => Some(Refusal::Protocol),
            Self::Stream(_) | Self::Silent => None,
            Self::Protocol(error) => Some(error.refusal()),
            Self::Refused(refusal) => Some(*refusal),
        }
    }
}

type AgentFrames<R, W> = Frames<R, W, AgentMessage>;

impl DirectoryDriver {
    /// Serves the stream of an agent whose certificate names `source`, until it ends.
    ///
    /// # Errors
    /// Always: why it ended.
    pub async fn serve<R, W>(&self, source: SourceName, reader: R, writer: W) -> Result<Infallible, ReceiveError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let connection = self.next_connection();
        let connected = Connected { driver: self, source: &source, connection };
        let mut frames = AgentFrames::new(reader, writer);
        let Err(error) = self.follow(&source, connection, &mut frames).await;
        drop(connected);
        if let Some(refusal) = error.refusal()
            && frames.send(&FrontendMessage::Refused(refusal)).is_ok()
            && tokio::time::timeout(REFUSAL_DEADLINE, frames.finish()).await.is_err()
        {
            tracing::debug!(%source, "the agent did not take its refusal");
        }
        Err(error)
    }

    async fn follow<R, W>(
        &self,
        source: &SourceName,
        connection: ConnectionId,
        frames: &mut AgentFrames<R, W>,
    ) -> Result<Infallible, ReceiveError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut receiver = Receiver::new(source.clone());
        let mut frontends = self.frontends.clone();
        frontends.mark_changed();
        let mut heartbeat = tokio::time::interval(HEARTBEAT_EVERY);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut greeted = false;
        loop {
            while let Some(message) = frames.poll_message()? {
                heard = Instant::now();
                self.handle(&mut receiver, source, connection, message, frames)?;
                greeted = true;
            }
            tokio::select! {
                progress = frames.progress() => progress?,
                _ = heartbeat.tick() => {
                    if heard.elapsed() >= SILENT_FOR {
                        return Err(ReceiveError::Silent);
                    }
                    if greeted {
                        frames.send(&FrontendMessage::Heartbeat)?;
                    }
                }
                Ok(()) = frontends.changed(), if greeted => frames.send(&known_frontends(&mut frontends))?,
            }
        }
    }

    fn handle<R, W>(
        &self,
        receiver: &mut Receiver,
        source: &SourceName,
        connection: ConnectionId,
        message: AgentMessage,
        frames: &mut AgentFrames<R, W>,
    ) -> Result<(), ReceiveError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let Some(update) = receiver.handle_message(message)? else { return Ok(()) };
        let (reply, discarded) = {
            let mut directory = self.directory.write();
            let reply = directory.handle_update(source, connection, update, Instant::now());
            (reply, directory.take_discarded())
        };
        drop(discarded);
        if let Some(reply) = reply? {
            if reply == FrontendMessage::Resync {
                tracing::warn!(%source, "the copy of a source is in doubt: asking for a snapshot");
            }
            frames.send(&reply)?;
        }
        Ok(())
    }
}

fn known_frontends(frontends: &mut watch::Receiver<Vec<SocketAddr>>) -> FrontendMessage {
    let addresses = frontends.borrow_and_update().iter().copied().take(MAX_FRONTENDS).collect();
    FrontendMessage::Frontends(addresses)
}

/// Says goodbye for the stream however it ends, a dropped task included.
struct Connected<'a> {
    driver: &'a DirectoryDriver,
    source: &'a SourceName,
    connection: ConnectionId,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.driver.directory.write().handle_disconnect(self.source, self.connection);
    }
}
