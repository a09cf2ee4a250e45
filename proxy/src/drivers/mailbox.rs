//! Runs the core's IMAP and POP3 machines: the second role of a front end. A client logs in here; from then
//! on it talks to its own back end, and the front end only carries bytes.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use proxy_core::{
    address::Address,
    directory::{Answer, BackendRecord, Endpoint, Route},
    imap, pop3,
    prelogin::{Action, BackendAction, Credentials, Limits, LoginOutcome, Security},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    directory::SharedDirectory,
    listen::{Accepted, SessionError},
};
use crate::{
    io::Stream,
    metrics::{ByOutcome, Metrics, Protocol},
    relay::Relay,
};

const BUFFER: usize = 4 * 1024;
const TLS_DEADLINE: Duration = Duration::from_secs(30);
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// A refused login is answered after this, whether the user exists or not: guessing gets slow, and tells nothing.
const REFUSAL_DELAY: Duration = Duration::from_secs(2);

/// What every session of one mailbox protocol shares.
pub struct Mailbox {
    pub protocol: Protocol,
    pub hostname: String,
    pub acceptor: Option<TlsAcceptor>,
    pub directory: SharedDirectory,
    /// How back ends are reached; the name is of its first use.
    pub relay: Relay,
    pub metrics: Arc<Metrics>,
    /// Who has not logged in is told to come back.
    pub shutdown: CancellationToken,
    /// All sessions end.
    pub ending: CancellationToken,
    pub login_timeout: Duration,
    pub idle_timeout: Duration,
}

/// The two protocols' machines have one shape; this picks one at run time.
enum PreLogin {
    Imap(imap::PreLogin),
    Pop3(pop3::PreLogin),
}

enum BackendLogin {
    Imap(imap::BackendLogin),
    Pop3(pop3::BackendLogin),
}

macro_rules! both {
    ($self:ident . $call:ident ( $($argument:expr),* )) => {
        match $self {
            Self::Imap(machine) => machine.$call($($argument),*),
            Self::Pop3(machine) => machine.$call($($argument),*),
        }
    };
}

impl PreLogin {
    fn handle_input(&mut self, input: &[u8]) -> usize {
        both!(self.handle_input(input))
    }

    fn poll_action(&mut self) -> Option<Action> {
        both!(self.poll_action())
    }

    fn handle_tls_started(&mut self) {
        both!(self.handle_tls_started());
    }

    fn handle_login(&mut self, outcome: LoginOutcome) {
        both!(self.handle_login(outcome));
    }

    fn handle_timeout(&mut self) {
        both!(self.handle_timeout());
    }

    fn handle_shutdown(&mut self) {
        both!(self.handle_shutdown());
    }
}

impl BackendLogin {
    fn handle_input(&mut self, input: &[u8]) -> usize {
        both!(self.handle_input(input))
    }

    fn handle_eof(&mut self) {
        both!(self.handle_eof());
    }

    fn poll_action(&mut self) -> Option<BackendAction> {
        both!(self.poll_action())
    }
}

/// A back end that has taken a login, and what it said beyond.
struct Joined {
    stream: Stream,
    leftover: BytesMut,
}

struct Connection<'a> {
    service: &'a Mailbox,
    /// `None` only while TLS is being started.
    stream: Option<Stream>,
    machine: PreLogin,
    input: BytesMut,
    output: Vec<u8>,
    backend: Option<Joined>,
}

enum Flow {
    GoOn,
    Join,
    Close,
}

impl Mailbox {
    /// Serves one connection until it ends. `tls_first` is for the ports where TLS begins at once.
    ///
    /// # Errors
    /// It ended otherwise than by the protocol.
    pub async fn serve(self: Arc<Self>, accepted: Accepted, tls_first: bool) -> Result<(), SessionError> {
        let mut stream = accepted.stream;
        if tls_first {
            let acceptor =
                self.acceptor.as_ref().ok_or_else(|| SessionError::Tls(io::Error::other("no certificate")))?;
            let handshake = tokio::time::timeout(TLS_DEADLINE, stream.accept_tls(acceptor)).await;
            stream = handshake.map_err(|_elapsed| SessionError::Timeout)?.map_err(SessionError::Tls)?;
        }
        let security = if tls_first { Security::Tls } else { Security::StartTls };
        let mut connection = Connection {
            service: &self,
            stream: Some(stream),
            machine: self.machine(security),
            input: BytesMut::new(),
            output: Vec::new(),
            backend: None,
        };
        match tokio::time::timeout(self.login_timeout, connection.log_in()).await {
            Ok(Ok(Flow::Join)) => connection.carry().await,
            Ok(result) => result.map(|_flow| ()),
            Err(_elapsed) => connection.time_out().await,
        }
    }

    fn machine(&self, security: Security) -> PreLogin {
        match self.protocol {
            Protocol::pop3 => PreLogin::Pop3(pop3::PreLogin::new(&self.hostname, security, Limits::default())),
            Protocol::imap | Protocol::smtp => {
                PreLogin::Imap(imap::PreLogin::new(&self.hostname, security, Limits::default()))
            }
        }
    }

    /// Finds the user's back end and logs in there.
    async fn authenticate(&self, credentials: Credentials) -> (LoginOutcome, Option<Joined>) {
        let user = credentials.user.clone();
        let (outcome, joined) = match self.route(&user) {
            Ok((route, endpoint)) => self.authenticate_at(credentials, &route, endpoint).await,
            Err(outcome) => (outcome, None),
        };
        let label = match &outcome {
            LoginOutcome::Accepted { .. } => "accepted",
            LoginOutcome::Refused => "refused",
            LoginOutcome::Unavailable => "unavailable",
        };
        self.metrics.logins.get_or_create(&ByOutcome { protocol: self.protocol, outcome: label }).inc();
        info!(user, outcome = label, "login");
        if outcome == LoginOutcome::Refused {
            tokio::time::sleep(REFUSAL_DELAY).await;
        }
        (outcome, joined)
    }

    fn route(&self, user: &str) -> Result<(Route, Endpoint), LoginOutcome> {
        let Ok(address) = Address::parse(user) else { return Err(LoginOutcome::Refused) };
        let route = match self.directory.lookup(&address) {
            Answer::Known(route) => route,
            Answer::UnknownUser | Answer::UnknownDomain => return Err(LoginOutcome::Refused),
            Answer::NotSure => return Err(LoginOutcome::Unavailable),
        };
        let endpoint = self.directory.backend(&route.backend).and_then(|record| self.endpoint(&record));
        endpoint.map(|endpoint| (route, endpoint)).ok_or(LoginOutcome::Unavailable)
    }

    fn endpoint(&self, record: &BackendRecord) -> Option<Endpoint> {
        match self.protocol {
            Protocol::pop3 => record.services.pop3,
            Protocol::imap | Protocol::smtp => record.services.imap,
        }
    }

    async fn authenticate_at(
        &self,
        credentials: Credentials,
        route: &Route,
        endpoint: Endpoint,
    ) -> (LoginOutcome, Option<Joined>) {
        let credentials = Credentials { user: route.mailbox.to_string(), ..credentials };
        let machine = match self.protocol {
            Protocol::pop3 => BackendLogin::Pop3(pop3::BackendLogin::new(credentials)),
            Protocol::imap | Protocol::smtp => BackendLogin::Imap(imap::BackendLogin::new(credentials)),
        };
        let attempt = async {
            let stream = self.relay.connect(&route.backend, endpoint).await?;
            log_in_at(stream, machine, self.relay.deadline).await
        };
        match attempt.await {
            Ok((outcome, joined)) => (outcome, joined),
            Err(error) => {
                warn!(backend = %route.backend, address = %endpoint.address, %error, "back end cannot be reached");
                (LoginOutcome::Unavailable, None)
            }
        }
    }
}

async fn log_in_at(
    mut stream: Stream,
    mut machine: BackendLogin,
    deadline: Duration,
) -> io::Result<(LoginOutcome, Option<Joined>)> {
    let mut input = BytesMut::with_capacity(BUFFER);
    loop {
        while let Some(action) = machine.poll_action() {
            match action {
                BackendAction::Send(bytes) => {
                    tokio::time::timeout(deadline, write(&mut stream, &bytes)).await??;
                }
                BackendAction::Done(outcome @ LoginOutcome::Accepted { .. }) => {
                    return Ok((outcome, Some(Joined { stream, leftover: input })));
                }
                BackendAction::Done(outcome) => return Ok((outcome, None)),
            }
        }
        let used = machine.handle_input(&input);
        input.advance(used);
        if used > 0 {
            continue;
        }
        input.reserve(BUFFER);
        if tokio::time::timeout(deadline, stream.read_buf(&mut input)).await?? == 0 {
            machine.handle_eof();
        }
    }
}

async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

impl Connection<'_> {
    async fn log_in(&mut self) -> Result<Flow, SessionError> {
        loop {
            match self.obey().await? {
                Flow::GoOn => {}
                flow @ (Flow::Join | Flow::Close) => {
                    self.flush().await?;
                    if matches!(flow, Flow::Close) {
                        self.stream()?.shutdown().await?;
                    }
                    return Ok(flow);
                }
            }
            let used = self.machine.handle_input(&self.input);
            self.input.advance(used);
            if used > 0 {
                continue;
            }
            self.flush().await?;
            if !self.listen().await? {
                return Ok(Flow::Close);
            }
        }
    }

    fn stream(&mut self) -> Result<&mut Stream, SessionError> {
        self.stream.as_mut().ok_or_else(|| io::Error::other("no stream").into())
    }

    async fn flush(&mut self) -> Result<(), SessionError> {
        if self.output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(&mut self.output);
        let stream = self.stream()?;
        tokio::time::timeout(WRITE_DEADLINE, write(stream, &output))
            .await
            .map_err(|_elapsed| SessionError::Timeout)??;
        Ok(())
    }

    /// Reads more; false if the client has gone.
    async fn listen(&mut self) -> Result<bool, SessionError> {
        self.input.reserve(BUFFER);
        let service = self.service;
        let Some(stream) = self.stream.as_mut() else { return Err(io::Error::other("no stream").into()) };
        tokio::select! {
            read = stream.read_buf(&mut self.input) => match read {
                Ok(octets) => Ok(octets > 0),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
                Err(e) => Err(e.into()),
            },
            () = service.shutdown.cancelled() => {
                self.machine.handle_shutdown();
                Ok(true)
            }
        }
    }

    async fn obey(&mut self) -> Result<Flow, SessionError> {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Send(bytes) => self.output.extend_from_slice(&bytes),
                Action::StartTls => self.start_tls().await?,
                Action::LogIn(credentials) => {
                    self.flush().await?;
                    let (outcome, joined) = self.service.authenticate(credentials).await;
                    self.machine.handle_login(outcome);
                    self.backend = joined;
                }
                Action::Close => return Ok(Flow::Close),
            }
        }
        // The machine's last word to the client stands before the back end's first.
        Ok(if self.backend.is_some() { Flow::Join } else { Flow::GoOn })
    }

    /// What came in the clear behind STARTTLS is thrown away, not read as commands.
    async fn start_tls(&mut self) -> Result<(), SessionError> {
        self.flush().await?;
        self.input.clear();
        let (Some(acceptor), Some(stream)) = (&self.service.acceptor, self.stream.take()) else {
            return Err(SessionError::Tls(io::Error::other("STARTTLS without a certificate")));
        };
        // The login deadline stands above this.
        self.stream = Some(stream.accept_tls(acceptor).await.map_err(SessionError::Tls)?);
        self.machine.handle_tls_started();
        Ok(())
    }

    async fn time_out(&mut self) -> Result<(), SessionError> {
        self.machine.handle_timeout();
        while let Some(action) = self.machine.poll_action() {
            if let Action::Send(bytes) = action {
                self.output.extend_from_slice(&bytes);
            }
        }
        self.flush().await?;
        Err(SessionError::Timeout)
    }

    /// The session is the back end's now.
    async fn carry(&mut self) -> Result<(), SessionError> {
        let service = self.service;
        let Some(Joined { mut stream, leftover }) = self.backend.take() else { return Ok(()) };
        let pipelined = self.input.split();
        let client = self.stream()?;
        write(client, &leftover).await?;
        write(&mut stream, &pipelined).await?;
        drop((leftover, pipelined));
        let joined = tokio::select! {
            joined = crate::io::join(client, &mut stream, service.idle_timeout) => joined,
            () = service.ending.cancelled() => {
                // The client comes back to another front end.
                debug!("session ended by shutdown");
                return Ok(());
            }
        };
        match joined {
            Ok((to_client, to_backend)) => {
                let bytes = |outcome| ByOutcome { protocol: service.protocol, outcome };
                service.metrics.proxied_bytes.get_or_create(&bytes("to_client")).inc_by(to_client);
                service.metrics.proxied_bytes.get_or_create(&bytes("to_backend")).inc_by(to_backend);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(SessionError::Timeout),
            Err(e) => Err(e.into()),
        }
    }
}
