//! The client's side: from the greeting to the login that names the user.

use std::fmt;

use super::command::{Cursor, Head, Literal, Name, literal_at_end, parse_head};
use crate::prelogin::{
    Action, Credentials, Limits, LoginOutcome, Outbox, Progress, Security, append_line, is_http_request, one_line,
    reset, trim_line_end,
};
use crate::sasl::{self, Exchange, SaslError, Step};

/// What every back end is expected to do after the login. The client asks again once it is logged in, or
/// is told by the back end's reply.
const CAPABILITIES: &str = "IMAP4rev1 SASL-IR LITERAL+ ENABLE IDLE ID";

/// One client that has not logged in.
///
/// A line may end with a bare LF: nothing is passed on from here that could be framed differently behind.
pub struct PreLogin {
    security: Security,
    limits: Limits,
    state: State,
    /// The command so far: lines with their ends, and literals.
    buffer: Vec<u8>,
    /// Where the last line of `buffer` begins; what is before it has been looked at.
    line_start: usize,
    outbox: Outbox,
    bad_commands: u32,
    failed_logins: u32,
}

enum State {
    Line,
    Literal { missing: usize },
    Authenticating { tag: String, exchange: Exchange },
    StartingTls,
    LoggingIn { tag: String },
    Finished,
}

impl PreLogin {
    /// Begins a session and queues the greeting.
    #[must_use]
    pub fn new(hostname: &str, security: Security, limits: Limits) -> Self {
        let mut outbox = Outbox::default();
        outbox.line(&format!("* OK [CAPABILITY {}] {} ready", capabilities(security), one_line(hostname)));
        Self {
            security,
            limits,
            state: State::Line,
            buffer: Vec::new(),
            line_start: 0,
            outbox,
            bad_commands: 0,
            failed_logins: 0,
        }
    }

    /// Reads commands; returns how many octets it has consumed. It stops behind a login, behind STARTTLS
    /// and while replies pile up; feed the rest again after the answer or after draining the actions.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut consumed = 0;
        while let Some(rest) = input.get(consumed..).filter(|rest| !rest.is_empty()) {
            if self.outbox.is_full() {
                break;
            }
            match self.state {
                State::Line | State::Authenticating { .. } => consumed += self.take_line(rest),
                State::Literal { missing } => consumed += self.take_literal(rest, missing),
                State::StartingTls | State::LoggingIn { .. } | State::Finished => break,
            }
        }
        consumed
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.outbox.pop()
    }

    /// The handshake asked for by `Action::StartTls` is done.
    pub fn handle_tls_started(&mut self) {
        if matches!(self.state, State::StartingTls) {
            self.security = Security::Tls;
            self.state = State::Line;
        }
    }

    /// How the login asked for by `Action::LogIn` ended.
    pub fn handle_login(&mut self, outcome: LoginOutcome) {
        let State::LoggingIn { tag } = &mut self.state else {
            return;
        };
        let tag = std::mem::take(tag);
        self.state = State::Line;
        match outcome {
            LoginOutcome::Accepted { text } => {
                let text = if text.is_empty() { "Logged in.".to_owned() } else { one_line(&text) };
                self.outbox.line(&format!("{tag} OK {text}"));
                self.state = State::Finished;
            }
            LoginOutcome::Refused => self.refuse(&tag),
            LoginOutcome::Unavailable => {
                self.outbox.line(&format!("{tag} NO [UNAVAILABLE] The mailbox cannot be reached. Try again later."));
            }
        }
    }

    /// The client was silent for too long.
    pub fn handle_timeout(&mut self) {
        self.bye("Disconnected for inactivity.");
    }

    /// The front end goes down.
    pub fn handle_shutdown(&mut self) {
        self.bye("[UNAVAILABLE] Going down. Connect again.");
    }

    fn take_line(&mut self, input: &[u8]) -> usize {
        let (taken, progress) = append_line(&mut self.buffer, input, self.limits.command_bytes);
        match progress {
            Progress::Partial => {}
            Progress::TooLong => {
                self.outbox.line("* BAD Command too long.");
                self.bye("[TOOBIG] Command too long.");
            }
            Progress::Line => self.handle_line(),
        }
        taken
    }

    fn take_literal(&mut self, input: &[u8], missing: usize) -> usize {
        let piece = input.get(..missing).unwrap_or(input);
        self.buffer.extend_from_slice(piece);
        self.await_literal(missing.saturating_sub(piece.len()));
        piece.len()
    }

    fn await_literal(&mut self, missing: usize) {
        self.state = if missing == 0 { State::Line } else { State::Literal { missing } };
        self.line_start = self.buffer.len();
    }

    fn handle_line(&mut self) {
        if let State::Authenticating { tag, mut exchange } = std::mem::replace(&mut self.state, State::Line) {
            let step = exchange.handle_response(trim_line_end(&self.buffer));
            self.clear();
            return self.handle_step(tag, exchange, step);
        }
        match self.buffer.get(self.line_start..).and_then(literal_at_end) {
            Some(literal) => self.begin_literal(literal),
            None => self.run(),
        }
    }

    /// Decides on a literal before a single octet of it is waited for.
    fn begin_literal(&mut self, literal: Literal) {
        let room = self.limits.command_bytes.saturating_sub(self.buffer.len());
        let Some(octets) = literal.octets.filter(|&octets| octets < room) else {
            if literal.synchronizing {
                let tag = parse_head(&self.buffer).map_or("*", |head| head.tag).to_owned();
                self.clear();
                return self.bad(&tag, "[TOOBIG] Literal too large.");
            }
            return self.bye("[TOOBIG] Literal too large.");
        };
        if literal.synchronizing {
            if !self.wants_literal() {
                // The client waits for leave to send it. The command's answer is the refusal.
                return self.run();
            }
            self.outbox.line("+ OK");
        }
        self.await_literal(octets);
    }

    fn wants_literal(&self) -> bool {
        parse_head(&self.buffer).is_ok_and(|head| match head.name {
            Name::Login => self.security.takes_passwords(),
            Name::Id => true,
            Name::Capability
            | Name::Noop
            | Name::Logout
            | Name::StartTls
            | Name::Authenticate
            | Name::AfterLogin
            | Name::Unknown => false,
        })
    }

    fn clear(&mut self) {
        reset(&mut self.buffer);
        self.line_start = 0;
    }

    /// Executes the command in the buffer.
    fn run(&mut self) {
        let command = std::mem::take(&mut self.buffer);
        self.line_start = 0;
        if is_http_request(&command) {
            return self.bye("This is no web server.");
        }
        match parse_head(&command) {
            Err(syntax) => self.bad("*", syntax),
            Ok(head) => self.run_command(&head),
        }
        // Small buffers are worth keeping, and nothing has been put into the new one.
        self.buffer = command;
        self.clear();
    }

    fn run_command(&mut self, head: &Head<'_>) {
        let (tag, arguments) = (head.tag, head.arguments);
        match head.name {
            Name::Login => return self.run_login(tag, arguments),
            Name::Authenticate => return self.run_authenticate(tag, arguments),
            Name::AfterLogin => return self.bad(tag, "Log in first."),
            Name::Unknown => return self.bad(tag, "Unknown command."),
            Name::Id => {
                if let Err(syntax) = arguments.id() {
                    return self.bad(tag, syntax);
                }
                self.outbox.line("* ID (\"name\" \"AutoCluster\")");
            }
            Name::Capability | Name::Noop | Name::Logout | Name::StartTls => {
                if let Err(syntax) = arguments.end() {
                    return self.bad(tag, syntax);
                }
            }
        }
        match head.name {
            Name::StartTls => return self.run_starttls(tag),
            Name::Capability => self.outbox.line(&format!("* CAPABILITY {}", capabilities(self.security))),
            Name::Logout => self.outbox.line("* BYE Logging out."),
            Name::Id | Name::Noop | Name::Login | Name::Authenticate | Name::AfterLogin | Name::Unknown => {}
        }
        self.outbox.line(&format!("{tag} OK Done."));
        if head.name == Name::Logout {
            self.close();
        }
    }

    fn run_starttls(&mut self, tag: &str) {
        match self.security {
            Security::StartTls => {
                self.outbox.line(&format!("{tag} OK Begin TLS negotiation now."));
                self.outbox.push(Action::StartTls);
                self.state = State::StartingTls;
            }
            Security::Tls => self.bad(tag, "TLS is active already."),
            Security::PlainAllowed => self.bad(tag, "TLS is not available."),
        }
    }

    fn run_login(&mut self, tag: &str, arguments: Cursor<'_>) {
        if !self.security.takes_passwords() {
            return self.demand_privacy(tag);
        }
        match arguments.login() {
            Err(syntax) => self.bad(tag, syntax),
            Ok((user, password)) => self.conclude(tag.to_owned(), sasl::credentials(&user, &password)),
        }
    }

    fn run_authenticate(&mut self, tag: &str, arguments: Cursor<'_>) {
        if !self.security.takes_passwords() {
            return self.demand_privacy(tag);
        }
        match arguments.authenticate() {
            Err(syntax) => self.bad(tag, syntax),
            Ok((None, _)) => {
                self.outbox.line(&format!("{tag} NO Unsupported authentication mechanism."));
                self.count_bad();
            }
            Ok((Some(mechanism), initial)) => {
                let mut exchange = Exchange::new(mechanism);
                let step = exchange.start(initial);
                self.handle_step(tag.to_owned(), exchange, step);
            }
        }
    }

    fn handle_step(&mut self, tag: String, exchange: Exchange, step: Result<Step, SaslError>) {
        match step {
            Ok(Step::Challenge(text)) => {
                self.outbox.line(&format!("+ {text}"));
                self.state = State::Authenticating { tag, exchange };
            }
            Ok(Step::Complete(credentials)) => self.conclude(tag, Ok(credentials)),
            Err(error) => self.conclude(tag, Err(error)),
        }
    }

    fn conclude(&mut self, tag: String, credentials: Result<Credentials, SaslError>) {
        match credentials {
            Ok(credentials) => {
                self.outbox.push(Action::LogIn(credentials));
                self.state = State::LoggingIn { tag };
            }
            Err(SaslError::NoUser | SaslError::ActsForAnother) => self.refuse(&tag),
            Err(SaslError::Cancelled) => self.bad(&tag, "Authentication cancelled."),
            Err(SaslError::BadBase64 | SaslError::Malformed) => self.bad(&tag, "A malformed response."),
            Err(SaslError::BadEncoding) => self.bad(&tag, "The name or the password is not UTF-8, or has a NUL."),
        }
    }

    /// One answer for every reason, so that nobody learns which names exist.
    fn refuse(&mut self, tag: &str) {
        self.outbox.line(&format!("{tag} NO [AUTHENTICATIONFAILED] Authentication failed."));
        self.failed_logins = self.failed_logins.saturating_add(1);
        if self.failed_logins >= self.limits.failed_logins {
            self.bye("Too many failed logins.");
        }
    }

    fn demand_privacy(&mut self, tag: &str) {
        self.outbox.line(&format!("{tag} NO [PRIVACYREQUIRED] Say STARTTLS first."));
        self.count_bad();
    }

    fn bad(&mut self, tag: &str, text: &str) {
        self.outbox.line(&format!("{tag} BAD {text}"));
        self.count_bad();
    }

    fn count_bad(&mut self) {
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands >= self.limits.bad_commands {
            self.bye("Too many bad commands.");
        }
    }

    fn bye(&mut self, text: &str) {
        if !matches!(self.state, State::Finished) {
            self.outbox.line(&format!("* BYE {text}"));
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

fn capabilities(security: Security) -> String {
    let methods = match security {
        Security::StartTls => "STARTTLS LOGINDISABLED".to_owned(),
        Security::PlainAllowed | Security::Tls => sasl::MECHANISMS.map(|name| format!("AUTH={name}")).join(" "),
    };
    format!("{CAPABILITIES} {methods}")
}
