//! The back end's side: a login said anew, in this side's own encoding, and the answer understood.

use std::collections::VecDeque;
use std::fmt;

use crate::prelogin::{BackendAction, Credentials, LoginOutcome, Progress, append_line, trim_line_end};

/// The tag of the only command.
const TAG: &str = "p1";
/// Longest line from a back end; capability lists are its longest, a few hundred octets.
const MAX_LINE: usize = 8 * 1024;
/// Lines that a back end may send before it answers.
const MAX_LINES: u32 = 64;
/// Longest quoted string; what is longer goes as a literal.
const MAX_QUOTED: usize = 512;

/// One login at one back end.
pub struct BackendLogin {
    state: State,
    /// What is still to be said. Each but the first waits for the back end's `+`.
    pieces: VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
    lines: u32,
    /// The list of the last untagged CAPABILITY.
    capabilities: Option<String>,
    actions: VecDeque<BackendAction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    LoggingIn,
    Done,
}

/// Response codes (RFC 5530) of a NO that is not the user's fault.
const NOT_THE_USERS_FAULT: [&str; 8] =
    ["UNAVAILABLE", "INUSE", "LIMIT", "SERVERBUG", "CONTACTADMIN", "PRIVACYREQUIRED", "CANNOT", "OVERQUOTA"];

impl BackendLogin {
    /// Waits for the greeting, then says LOGIN with these credentials.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "the password should not outlive its use in the caller")]
    pub fn new(credentials: Credentials) -> Self {
        Self {
            state: State::Greeting,
            pieces: encode_login(&credentials),
            buffer: Vec::new(),
            lines: 0,
            capabilities: None,
            actions: VecDeque::new(),
        }
    }

    /// Reads the back end's lines up to the answer; returns how many octets it has consumed.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut consumed = 0;
        while let Some(rest) = input.get(consumed..).filter(|rest| !rest.is_empty()) {
            if self.state == State::Done {
                break;
            }
            let (taken, progress) = append_line(&mut self.buffer, rest, MAX_LINE);
            consumed += taken;
            match progress {
                Progress::Partial => {}
                Progress::TooLong => self.finish(LoginOutcome::Unavailable),
                Progress::Line => {
                    let line = std::mem::take(&mut self.buffer);
                    self.handle_line(&String::from_utf8_lossy(trim_line_end(&line)));
                }
            }
        }
        consumed
    }

    /// The back end has closed the connection.
    pub fn handle_eof(&mut self) {
        self.finish(LoginOutcome::Unavailable);
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<BackendAction> {
        self.actions.pop_front()
    }

    fn handle_line(&mut self, line: &str) {
        self.lines += 1;
        if self.lines > MAX_LINES {
            return self.finish(LoginOutcome::Unavailable);
        }
        match self.state {
            State::Greeting => self.handle_greeting(line),
            State::LoggingIn => self.handle_reply(line),
            State::Done => {}
        }
    }

    /// PREAUTH is somebody's session, but not this user's: as useless as BYE.
    fn handle_greeting(&mut self, line: &str) {
        let Some(text) = after_word(line, "*").and_then(|rest| after_word(rest, "OK")) else {
            return self.finish(LoginOutcome::Unavailable);
        };
        if has_capability(text, "LOGINDISABLED") {
            return self.finish(LoginOutcome::Unavailable);
        }
        self.state = State::LoggingIn;
        self.say_next_piece();
    }

    fn handle_reply(&mut self, line: &str) {
        if let Some(rest) = after_word(line, TAG) {
            let outcome = self.outcome(rest);
            self.finish(outcome);
        } else if let Some(rest) = after_word(line, "*") {
            self.handle_untagged(rest);
        } else if line.starts_with('+') && !self.pieces.is_empty() {
            self.say_next_piece();
        } else {
            self.finish(LoginOutcome::Unavailable);
        }
    }

    fn handle_untagged(&mut self, rest: &str) {
        if let Some(list) = after_word(rest, "CAPABILITY") {
            self.capabilities = Some(list.trim().to_owned());
        } else if after_word(rest, "BYE").is_some() || super::command::literal_at_end(rest.as_bytes()).is_some() {
            // Nothing with a literal comes before a login; its octets would be taken for replies.
            self.finish(LoginOutcome::Unavailable);
        }
    }

    fn outcome(&self, reply: &str) -> LoginOutcome {
        if let Some(text) = after_word(reply, "OK") {
            if !self.pieces.is_empty() {
                return LoginOutcome::Unavailable;
            }
            return LoginOutcome::Accepted { text: self.with_capabilities(text) };
        }
        match after_word(reply, "NO") {
            Some(text) if !code_is_one_of(text, &NOT_THE_USERS_FAULT) => LoginOutcome::Refused,
            _ => LoginOutcome::Unavailable,
        }
    }

    /// Tells the client in one line what the back end told us in two: its capabilities have changed.
    fn with_capabilities(&self, text: &str) -> String {
        match &self.capabilities {
            Some(list) if !text.starts_with('[') => format!("[CAPABILITY {list}] {text}"),
            _ => text.to_owned(),
        }
    }

    fn say_next_piece(&mut self) {
        match self.pieces.pop_front() {
            Some(piece) => self.actions.push_back(BackendAction::Send(piece)),
            None => self.finish(LoginOutcome::Unavailable),
        }
    }

    fn finish(&mut self, outcome: LoginOutcome) {
        if self.state != State::Done {
            self.state = State::Done;
            self.pieces.clear();
            self.buffer = Vec::new();
            self.actions.push_back(BackendAction::Done(outcome));
        }
    }
}

impl fmt::Debug for BackendLogin {
    /// Without the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendLogin").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What follows `word` (in any case) and a space, or the empty rest.
fn after_word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = line.split_at_checked(word.len())?;
    if !head.eq_ignore_ascii_case(word) {
        return None;
    }
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(' ') }
}

/// Whether a text begins with a response code out of a list.
fn code_is_one_of(text: &str, codes: &[&str]) -> bool {
    let code = text.strip_prefix('[').and_then(|rest| rest.split([']', ' ']).next()).unwrap_or("");
    codes.iter().any(|known| known.eq_ignore_ascii_case(code))
}

/// Whether a text's CAPABILITY code lists a capability.
fn has_capability(text: &str, name: &str) -> bool {
    let code = text.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or("");
    code.split(' ').any(|word| word.eq_ignore_ascii_case(name))
}

/// The LOGIN command, cut where the back end has to ask for a literal.
fn encode_login(credentials: &Credentials) -> VecDeque<Vec<u8>> {
    let mut pieces = VecDeque::new();
    let mut piece = format!("{TAG} LOGIN").into_bytes();
    for value in [&credentials.user, &credentials.password] {
        piece.push(b' ');
        if is_quotable(value) {
            encode_quoted(value, &mut piece);
        } else {
            piece.extend_from_slice(format!("{{{}}}\r\n", value.len()).as_bytes());
            pieces.push_back(std::mem::replace(&mut piece, value.as_bytes().to_vec()));
        }
    }
    piece.extend_from_slice(b"\r\n");
    pieces.push_back(piece);
    pieces
}

/// Only what every server since RFC 1730 takes in a quoted string: printable ASCII.
fn is_quotable(value: &str) -> bool {
    value.len() <= MAX_QUOTED && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

fn encode_quoted(value: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for b in value.bytes() {
        if matches!(b, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(b);
    }
    out.push(b'"');
}
