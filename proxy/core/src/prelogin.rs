//! What the IMAP and POP3 machines share: the actions a shell obeys before a session is joined to its
//! back end, the credentials that decide which one, and the framing of lines under a limit.
//!
//! The machines are driven alike: feed a `handle_*` function, drain `poll_action`, and feed again what
//! `handle_input` has not consumed as long as it consumes anything. It stops at a login and at STARTTLS
//! (what follows belongs to somebody else), and when replies pile up that nobody has taken yet.

use std::collections::VecDeque;
use std::fmt;

#[cfg(test)]
pub(crate) mod transcript;

/// Replies that may wait for the shell, in octets, before `handle_input` stops consuming commands.
pub const MAX_PENDING_REPLIES: usize = 16 * 1024;
/// What an idle session keeps allocated for its next command, in octets.
const IDLE_BUFFER: usize = 512;

/// What the shell does next for a client that has not logged in.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes to the client.
    Send(Vec<u8>),
    /// Send what is pending, throw away every byte received but not yet consumed, shake hands by TLS,
    /// then call `handle_tls_started`.
    StartTls,
    /// Find the user's back end and log in there; answer with `handle_login`. If `Close` comes first, the
    /// login is of no more use.
    LogIn(Credentials),
    /// Send what is pending and close.
    Close,
}

/// What the shell does next with a back end that a user is being logged in to.
#[derive(PartialEq, Eq)]
pub enum BackendAction {
    /// Write these bytes to the back end. They may hold a password: never log them.
    Send(Vec<u8>),
    /// The login has ended. After `Accepted`, whatever the back end sent beyond the consumed bytes
    /// belongs to the client; otherwise the connection is of no more use.
    Done(LoginOutcome),
}

impl fmt::Debug for BackendAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(octets) => write!(f, "Send({} octets)", octets.len()),
            Self::Done(outcome) => f.debug_tuple("Done").field(outcome).finish(),
        }
    }
}

/// A name and a password as the client gave them, decoded. The password never shows in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How a login ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginOutcome {
    /// The back end took it; `text` is what follows the status word of its reply
    /// (`[CAPABILITY ...] Logged in`). The session is the back end's from here on.
    Accepted { text: String },
    /// Unknown user or wrong password: one and the same answer.
    Refused,
    /// The back end is down, or the directory is not sure yet.
    Unavailable,
}

/// The TLS state that a listener begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Plain text; STARTTLS/STLS is offered, and no password is taken before it.
    StartTls,
    /// Plain text, no certificate: passwords are taken in the clear. For named networks only.
    PlainAllowed,
    /// The connection is encrypted already (port 993, 995).
    Tls,
}

impl Security {
    /// Whether a password may cross the connection as it is now.
    #[must_use]
    pub fn takes_passwords(self) -> bool {
        match self {
            Self::StartTls => false,
            Self::PlainAllowed | Self::Tls => true,
        }
    }
}

/// Limits of a session before login.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest command line, literals included, in octets.
    pub command_bytes: usize,
    /// Protocol errors after which the connection is closed.
    pub bad_commands: u32,
    /// Failed logins after which the connection is closed.
    pub failed_logins: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { command_bytes: 16 * 1024, bad_commands: 10, failed_logins: 5 }
    }
}

/// Actions on their way to the shell. Replies that follow each other become one write.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Action>,
    pending: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, action: Action) {
        self.queue.push_back(action);
    }

    /// Queues one reply line; the line end is added here and nowhere else.
    pub(crate) fn line(&mut self, line: &str) {
        self.pending += line.len() + 2;
        if !matches!(self.queue.back(), Some(Action::Send(_))) {
            self.queue.push_back(Action::Send(Vec::with_capacity(line.len() + 2)));
        }
        if let Some(Action::Send(bytes)) = self.queue.back_mut() {
            bytes.extend_from_slice(line.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Action> {
        let action = self.queue.pop_front();
        if let Some(Action::Send(bytes)) = &action {
            self.pending = self.pending.saturating_sub(bytes.len());
        }
        action
    }

    /// Whether the shell has to take replies before more commands are read.
    pub(crate) fn is_full(&self) -> bool {
        self.pending >= MAX_PENDING_REPLIES
    }
}

/// How far the buffer of a command has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Partial,
    /// The buffer ends with a line feed.
    Line,
    TooLong,
}

/// Moves bytes from `input` to `buffer` until a line feed has been moved or `buffer` has `limit` octets.
/// Returns how many were taken.
pub(crate) fn append_line(buffer: &mut Vec<u8>, input: &[u8], limit: usize) -> (usize, Progress) {
    let room = limit.saturating_sub(buffer.len());
    let window = input.get(..room).unwrap_or(input);
    if let Some(at) = window.iter().position(|&b| b == b'\n') {
        buffer.extend_from_slice(&window[..=at]);
        return (at + 1, Progress::Line);
    }
    buffer.extend_from_slice(window);
    let progress = if input.len() > room { Progress::TooLong } else { Progress::Partial };
    (window.len(), progress)
}

/// The line without its end, which may be CRLF or a bare LF.
pub(crate) fn trim_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Empties a buffer; what a long command has allocated is given back.
pub(crate) fn reset(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(IDLE_BUFFER);
}

/// The methods that a browser sends without asking the server first (and OPTIONS, by which it asks).
const HTTP_METHODS: [&[u8]; 5] = [b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT"];

/// Whether a line is the first of an HTTP request. A page can make its reader's browser send one anywhere,
/// with a body of the page's choice, so no line after it may count as a command.
pub(crate) fn is_http_request(line: &[u8]) -> bool {
    let mut words = line.split(|&b| b == b' ');
    words.next().is_some_and(|word| HTTP_METHODS.contains(&word))
        && words.nth(1).is_some_and(|word| word.starts_with(b"HTTP/"))
}

/// A text that can stand in a reply line: control characters become spaces.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_the_limit() {
        let mut buffer = Vec::new();
        assert_eq!(append_line(&mut buffer, b"ab", 4), (2, Progress::Partial));
        assert_eq!(append_line(&mut buffer, b"c\nd", 4), (2, Progress::Line));
        assert_eq!(trim_line_end(&buffer), b"abc");
        buffer.clear();
        assert_eq!(append_line(&mut buffer, b"abcd", 4), (4, Progress::Partial));
        assert_eq!(append_line(&mut buffer, b"\n", 4), (0, Progress::TooLong));
    }

    #[test]
    fn replies_are_joined_and_counted() {
        let mut outbox = Outbox::default();
        outbox.line("a");
        outbox.line("b");
        outbox.push(Action::Close);
        assert_eq!(outbox.pending, 6);
        assert_eq!(outbox.pop(), Some(Action::Send(b"a\r\nb\r\n".to_vec())));
        assert_eq!(outbox.pending, 0);
        assert_eq!(outbox.pop(), Some(Action::Close));
        assert_eq!(outbox.pop(), None);
    }

    #[test]
    fn browsers_are_told_from_mail_clients() {
        assert!(is_http_request(b"POST / HTTP/1.1\r\n") && is_http_request(b"GET /a HTTP/1.0"));
        assert!(!is_http_request(b"PASS a HTTP/1.1") && !is_http_request(b"GET NOOP") && !is_http_request(b""));
    }

    #[test]
    fn passwords_stay_out_of_debug_output() {
        let credentials = Credentials { user: "u".into(), password: "secret".into() };
        assert!(!format!("{:?}", Action::LogIn(credentials)).contains("secret"));
        assert_eq!(format!("{:?}", BackendAction::Send(b"secret".to_vec())), "Send(6 octets)");
    }
}
