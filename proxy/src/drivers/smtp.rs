//! Runs the core's SMTP session over a connection: the first role of a front end.

mod message;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use proxy_core::{
    address::Address,
    directory::Answer,
    smtp::{Action, Envelope, Outcome, RecipientAnswer, ServerConfig, Session},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::message::Message;
use super::{
    directory::SharedDirectory,
    listen::{Accepted, SessionError},
};
use crate::{
    io::Stream,
    metrics::{Metrics, Outcome as OutcomeLabel, Protocol},
    relay::Relay,
    scanner::Scanner,
};

/// Commands are read into a buffer of this size, content into the larger one.
const COMMAND_BUFFER: usize = 4 * 1024;
const CONTENT_BUFFER: usize = 64 * 1024;
/// A client must have shaken hands by then.
const TLS_DEADLINE: Duration = Duration::from_secs(30);
/// A client that does not read our replies is cut off.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// What one too many is told.
pub const TOO_MANY_SESSIONS: &[u8] = b"421 4.3.2 Too many sessions, try again later\r\n";

/// What every SMTP session of this front end shares.
pub struct Smtp {
    pub config: Arc<ServerConfig>,
    pub acceptor: Option<TlsAcceptor>,
    pub directory: SharedDirectory,
    pub scanner: Scanner,
    pub relay: Relay,
    pub metrics: Arc<Metrics>,
    pub shutdown: CancellationToken,
    pub node: String,
    pub spill_directory: PathBuf,
    pub greet_pause: Duration,
    pub command_timeout: Duration,
}

struct Connection<'a> {
    service: &'a Smtp,
    /// `None` only while TLS is being started.
    stream: Option<Stream>,
    session: Session,
    peer: SocketAddr,
    input: BytesMut,
    output: Vec<u8>,
    message: Option<Message<'a>>,
}

/// What the session wants the loop to do.
enum Flow {
    GoOn,
    Close,
}

impl Smtp {
    /// Serves one connection until it ends.
    ///
    /// # Errors
    /// It ended otherwise than by the protocol.
    pub async fn serve(self: Arc<Self>, accepted: Accepted) -> Result<(), SessionError> {
        let mut connection = Connection {
            service: &self,
            stream: Some(accepted.stream),
            session: Session::new(Arc::clone(&self.config)),
            peer: accepted.peer,
            input: BytesMut::new(),
            output: Vec::new(),
            message: None,
        };
        let result = connection.run().await;
        if let Some(message) = connection.message.take() {
            message.abort();
        }
        result
    }

    fn resolve(&self, recipient: &Address) -> RecipientAnswer {
        let answer = match self.directory.lookup(recipient) {
            Answer::Known(route) => {
                let takes_mail = self
                    .directory
                    .backend(&route.backend)
                    .is_some_and(|record| record.services.lmtp.is_some() || record.services.smtp.is_some());
                if takes_mail { RecipientAnswer::Accept } else { RecipientAnswer::Unavailable }
            }
            Answer::UnknownUser => RecipientAnswer::UnknownUser,
            Answer::UnknownDomain => RecipientAnswer::RelayDenied,
            Answer::NotSure => RecipientAnswer::NotSure,
        };
        let outcome = match answer {
            RecipientAnswer::Accept => "accepted",
            RecipientAnswer::UnknownUser => "unknown_user",
            RecipientAnswer::RelayDenied => "relay_denied",
            RecipientAnswer::NotSure => "not_sure",
            RecipientAnswer::Unavailable => "unavailable",
        };
        self.metrics.recipients.get_or_create(&OutcomeLabel { outcome }).inc();
        debug!(%recipient, outcome, "recipient");
        answer
    }
}

impl<'a> Connection<'a> {
    async fn run(&mut self) -> Result<(), SessionError> {
        self.greet().await?;
        loop {
            if matches!(self.obey().await?, Flow::Close) {
                self.flush().await?;
                return Ok(self.stream()?.shutdown().await?);
            }
            if self.feed() {
                continue;
            }
            self.flush().await?;
            self.listen().await?;
        }
    }

    /// Holds the greeting back for a moment: who talks before it is no mail server.
    async fn greet(&mut self) -> Result<(), SessionError> {
        let pause = self.service.greet_pause;
        if !pause.is_zero() && self.stream()?.speaks_within(pause).await? {
            self.service.metrics.session_error(Protocol::smtp, "early_talker");
            self.session.handle_early_talker();
        }
        Ok(())
    }

    fn stream(&mut self) -> Result<&mut Stream, SessionError> {
        self.stream.as_mut().ok_or_else(|| std::io::Error::other("no stream").into())
    }

    /// Offers what was read to the session. False if it wants no more of it now.
    fn feed(&mut self) -> bool {
        let used = self.session.handle_input(&self.input);
        self.input.advance(used);
        used > 0
    }

    async fn flush(&mut self) -> Result<(), SessionError> {
        if self.output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(&mut self.output);
        let stream = self.stream()?;
        let write = async {
            stream.write_all(&output).await?;
            stream.flush().await
        };
        tokio::time::timeout(WRITE_DEADLINE, write).await.map_err(|_elapsed| SessionError::Timeout)??;
        Ok(())
    }

    /// Reads more, or tells the session that there is none.
    async fn listen(&mut self) -> Result<(), SessionError> {
        let size = if self.message.is_some() { CONTENT_BUFFER } else { COMMAND_BUFFER };
        self.input.reserve(size);
        let service = self.service;
        let Some(stream) = self.stream.as_mut() else { return Err(std::io::Error::other("no stream").into()) };
        tokio::select! {
            read = tokio::time::timeout(service.command_timeout, stream.read_buf(&mut self.input)) => match read {
                Ok(Ok(0)) => self.session.handle_eof(),
                Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => self.session.handle_eof(),
                Ok(read) => {
                    read?;
                }
                Err(_elapsed) => {
                    service.metrics.session_error(Protocol::smtp, "timeout");
                    self.session.handle_timeout();
                }
            },
            // A message on its way is finished first: its sender has done its part.
            () = service.shutdown.cancelled(), if self.message.is_none() => self.session.handle_shutdown(),
        }
        Ok(())
    }

    async fn obey(&mut self) -> Result<Flow, SessionError> {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Send(bytes) => self.output.extend_from_slice(&bytes),
                Action::StartTls => self.start_tls().await?,
                Action::Resolve(recipient) => {
                    let answer = self.service.resolve(&recipient);
                    self.session.handle_recipient(answer);
                }
                Action::BeginMessage(envelope) => self.begin(envelope),
                Action::Body(piece) => {
                    if let Some(message) = &mut self.message {
                        message.push(piece).await;
                    }
                }
                Action::EndMessage => {
                    let outcome = self.end().await;
                    self.session.handle_outcome(outcome);
                }
                Action::AbortMessage => {
                    if let Some(message) = self.message.take() {
                        message.abort();
                    }
                }
                Action::Close => return Ok(Flow::Close),
            }
        }
        Ok(Flow::GoOn)
    }

    /// RFC 3207: what came in the clear behind STARTTLS is thrown away, not read as commands.
    async fn start_tls(&mut self) -> Result<(), SessionError> {
        self.flush().await?;
        self.input.clear();
        let (Some(acceptor), Some(stream)) = (&self.service.acceptor, self.stream.take()) else {
            return Err(SessionError::Tls(std::io::Error::other("STARTTLS without a certificate")));
        };
        let handshake = tokio::time::timeout(TLS_DEADLINE, stream.accept_tls(acceptor)).await;
        self.stream = Some(handshake.map_err(|_elapsed| SessionError::Timeout)?.map_err(SessionError::Tls)?);
        self.session.handle_tls_started();
        Ok(())
    }

    fn begin(&mut self, envelope: Envelope) {
        self.message = Some(Message::begin(self.service, envelope, self.peer));
    }

    async fn end(&mut self) -> Outcome {
        let Some(message) = self.message.take() else {
            return Outcome::Deferred { text: "No message".to_owned() };
        };
        let (id, outcome) = message.finish().await;
        let label = label(&outcome);
        self.service.metrics.messages.get_or_create(&OutcomeLabel { outcome: label }).inc();
        match &outcome {
            Outcome::Accepted(_) => info!(message = %id, outcome = label, "message"),
            Outcome::Infected { signature } => info!(message = %id, outcome = label, signature, "message"),
            Outcome::Deferred { text } => warn!(message = %id, outcome = label, text, "message"),
            Outcome::Refused { reply } => info!(message = %id, outcome = label, %reply, "message"),
            Outcome::ScannerUnavailable => warn!(message = %id, outcome = label, "message"),
        }
        outcome
    }
}

fn label(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted(_) => "accepted",
        Outcome::Infected { .. } => "infected",
        Outcome::ScannerUnavailable => "scanner_unavailable",
        Outcome::Deferred { .. } => "deferred",
        Outcome::Refused { .. } => "refused",
    }
}
