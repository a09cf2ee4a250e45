//! The client's side: from the greeting to the login that names the user.

use std::fmt;

use crate::prelogin::{
    Action, Credentials, Limits, LoginOutcome, Outbox, Progress, Security, append_line, is_http_request, one_line,
    reset, trim_line_end,
};
use crate::sasl::{self, Exchange, Mechanism, SaslError, Step};

/// What every back end is expected to do, whatever the state of the session.
const CAPABILITIES: [&str; 6] =
    ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "IMPLEMENTATION AutoCluster"];
const NOT_BEFORE_STLS: &str = "-ERR No password in clear text: say STLS first.";

/// One client that has not logged in.
///
/// A line may end with a bare LF: nothing is passed on from here that could be framed differently behind.
pub struct PreLogin {
    security: Security,
    limits: Limits,
    state: State,
    /// The argument of USER, until PASS comes.
    user: Option<Vec<u8>>,
    buffer: Vec<u8>,
    outbox: Outbox,
    bad_commands: u32,
    failed_logins: u32,
}

enum State {
    Line,
    Authenticating(Exchange),
    StartingTls,
    LoggingIn,
    Finished,
}

impl PreLogin {
    /// Begins a session and queues the greeting, which has no timestamp: APOP would need the passwords.
    #[must_use]
    pub fn new(hostname: &str, security: Security, limits: Limits) -> Self {
        let mut outbox = Outbox::default();
        outbox.line(&format!("+OK {} ready", one_line(hostname).replace(['<', '>'], " ")));
        Self {
            security,
            limits,
            state: State::Line,
            user: None,
            buffer: Vec::new(),
            outbox,
            bad_commands: 0,
            failed_logins: 0,
        }
    }

    /// Reads commands; returns how many octets it has consumed. It stops behind a login, behind STLS and
    /// while replies pile up; feed the rest again after the answer or after draining the actions.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut consumed = 0;
        while let Some(rest) = input.get(consumed..).filter(|rest| !rest.is_empty()) {
            if self.outbox.is_full() {
                break;
            }
            match self.state {
                State::Line | State::Authenticating(_) => consumed += self.take_line(rest),
                State::StartingTls | State::LoggingIn | State::Finished => break,
            }
        }
        consumed
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.outbox.pop()
    }

    /// The handshake asked for by `Action::StartTls` is done. What was said before it is forgotten.
    pub fn handle_tls_started(&mut self) {
        if matches!(self.state, State::StartingTls) {
            self.security = Security::Tls;
            self.user = None;
            self.state = State::Line;
        }
    }

    /// How the login asked for by `Action::LogIn` ended.
    pub fn handle_login(&mut self, outcome: LoginOutcome) {
        if !matches!(self.state, State::LoggingIn) {
            return;
        }
        self.state = State::Line;
        match outcome {
            LoginOutcome::Accepted { text } => {
                let text = if text.is_empty() { "Logged in.".to_owned() } else { one_line(&text) };
                self.outbox.line(&format!("+OK {text}"));
                self.state = State::Finished;
            }
            LoginOutcome::Refused => self.refuse(),
            LoginOutcome::Unavailable => {
                self.outbox.line("-ERR [SYS/TEMP] The mailbox cannot be reached. Try again later.");
            }
        }
    }

    /// The client was silent for too long.
    pub fn handle_timeout(&mut self) {
        self.part("-ERR Disconnected for inactivity.");
    }

    /// The front end goes down.
    pub fn handle_shutdown(&mut self) {
        self.part("-ERR [SYS/TEMP] Going down. Connect again.");
    }

    fn take_line(&mut self, input: &[u8]) -> usize {
        let (taken, progress) = append_line(&mut self.buffer, input, self.limits.command_bytes);
        match progress {
            Progress::Partial => {}
            Progress::TooLong => self.part("-ERR Line too long."),
            Progress::Line => {
                let line = std::mem::take(&mut self.buffer);
                self.handle_line(trim_line_end(&line));
                if !matches!(self.state, State::Finished) {
                    self.buffer = line;
                    reset(&mut self.buffer);
                }
            }
        }
        taken
    }

    fn handle_line(&mut self, line: &[u8]) {
        if let State::Authenticating(mut exchange) = std::mem::replace(&mut self.state, State::Line) {
            let step = exchange.handle_response(line);
            return self.handle_step(exchange, step);
        }
        if is_http_request(line) {
            return self.part("-ERR This is no web server.");
        }
        if line.contains(&b'\r') || line.contains(&0) {
            return self.bad("-ERR A control character in the line.");
        }
        let (word, argument) = match line.iter().position(|&b| b == b' ') {
            Some(at) => (line.get(..at).unwrap_or(line), line.get(at + 1..)),
            None => (line, None),
        };
        self.run(&word.to_ascii_uppercase(), argument);
    }

    fn run(&mut self, word: &[u8], argument: Option<&[u8]>) {
        match (word, argument) {
            (b"USER", Some(name)) => self.run_user(name),
            (b"PASS", Some(password)) => self.run_pass(password),
            (b"AUTH", argument) => self.run_auth(argument.unwrap_or(b"").trim_ascii()),
            (b"USER" | b"PASS", None) => self.bad("-ERR An argument is missing."),
            (b"APOP", _) => self.bad("-ERR APOP is not available: log in with USER or AUTH."),
            (b"CAPA", None) => self.run_capa(),
            (b"NOOP", None) => self.outbox.line("+OK"),
            (b"STLS", None) => self.run_stls(),
            (b"QUIT", None) => self.part("+OK Bye."),
            (b"STAT" | b"LIST" | b"RETR" | b"DELE" | b"RSET" | b"TOP" | b"UIDL", _) => self.bad("-ERR Log in first."),
            _ => self.bad("-ERR Unknown command."),
        }
    }

    fn run_capa(&mut self) {
        self.outbox.line("+OK");
        for capability in CAPABILITIES {
            self.outbox.line(capability);
        }
        if self.security.takes_passwords() {
            self.outbox.line("USER");
            self.outbox.line(&format!("SASL {}", sasl::MECHANISMS.join(" ")));
        }
        if self.security == Security::StartTls {
            self.outbox.line("STLS");
        }
        self.outbox.line(".");
    }

    fn run_stls(&mut self) {
        match self.security {
            Security::StartTls => {
                self.outbox.line("+OK Begin TLS negotiation now.");
                self.outbox.push(Action::StartTls);
                self.state = State::StartingTls;
            }
            Security::Tls => self.bad("-ERR TLS is active already."),
            Security::PlainAllowed => self.bad("-ERR TLS is not available."),
        }
    }

    fn run_user(&mut self, name: &[u8]) {
        if !self.security.takes_passwords() {
            return self.bad(NOT_BEFORE_STLS);
        }
        if name.is_empty() || name.iter().any(u8::is_ascii_control) || std::str::from_utf8(name).is_err() {
            return self.bad("-ERR That is no name.");
        }
        self.user = Some(name.to_vec());
        self.outbox.line("+OK");
    }

    /// The password is the rest of the line, spaces and all.
    fn run_pass(&mut self, password: &[u8]) {
        if !self.security.takes_passwords() {
            return self.bad(NOT_BEFORE_STLS);
        }
        match self.user.take() {
            None => self.bad("-ERR Say USER first."),
            Some(user) => self.conclude(sasl::credentials(&user, password)),
        }
    }

    fn run_auth(&mut self, argument: &[u8]) {
        if argument.is_empty() {
            return self.list_mechanisms();
        }
        if !self.security.takes_passwords() {
            return self.bad(NOT_BEFORE_STLS);
        }
        let mut words = argument.splitn(2, |&b| b == b' ');
        let Some(mechanism) = words.next().and_then(Mechanism::parse) else {
            return self.bad("-ERR Unsupported authentication mechanism.");
        };
        let mut exchange = Exchange::new(mechanism);
        let step = exchange.start(words.next());
        self.handle_step(exchange, step);
    }

    /// AUTH alone lists what there is: never standardised, and Outlook asks for it.
    fn list_mechanisms(&mut self) {
        self.outbox.line("+OK");
        if self.security.takes_passwords() {
            for mechanism in sasl::MECHANISMS {
                self.outbox.line(mechanism);
            }
        }
        self.outbox.line(".");
    }

    fn handle_step(&mut self, exchange: Exchange, step: Result<Step, SaslError>) {
        match step {
            Ok(Step::Challenge(text)) => {
                self.outbox.line(&format!("+ {text}"));
                self.state = State::Authenticating(exchange);
            }
            Ok(Step::Complete(credentials)) => self.conclude(Ok(credentials)),
            Err(error) => self.conclude(Err(error)),
        }
    }

    fn conclude(&mut self, credentials: Result<Credentials, SaslError>) {
        self.user = None;
        match credentials {
            Ok(credentials) => {
                self.outbox.push(Action::LogIn(credentials));
                self.state = State::LoggingIn;
            }
            Err(SaslError::NoUser | SaslError::ActsForAnother) => self.refuse(),
            Err(SaslError::Cancelled) => self.bad("-ERR Authentication cancelled."),
            Err(SaslError::BadBase64 | SaslError::Malformed) => self.bad("-ERR A malformed response."),
            Err(SaslError::BadEncoding) => self.bad("-ERR The name or the password is not UTF-8, or has a NUL."),
        }
    }

    /// One answer for every reason, so that nobody learns which names exist.
    fn refuse(&mut self) {
        self.failed_logins = self.failed_logins.saturating_add(1);
        self.outbox.line("-ERR [AUTH] Authentication failed.");
        if self.failed_logins >= self.limits.failed_logins {
            self.close();
        }
    }

    fn bad(&mut self, reply: &str) {
        self.outbox.line(reply);
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands >= self.limits.bad_commands {
            self.close();
        }
    }

    fn part(&mut self, reply: &str) {
        if !matches!(self.state, State::Finished) {
            self.outbox.line(reply);
            self.close();
        }
    }

    fn close(&mut self) {
        self.outbox.push(Action::Close);
        self.state = State::Finished;
        self.buffer = Vec::new();
    }

    #[cfg(test)]
    pub(super) fn is_encrypted(&self) -> bool {
        self.security == Security::Tls
    }

    /// What the session holds in memory for a command, in octets.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffer.capacity()
    }
}

impl fmt::Debug for PreLogin {
    /// Without what the client has typed, which may be its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreLogin").field("security", &self.security).finish_non_exhaustive()
    }
}
