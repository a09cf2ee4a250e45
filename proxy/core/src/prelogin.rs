//! What the IMAP and POP3 machines share: the actions a shell obeys before a session is joined to its
//! back end, and the credentials that decide which one.

use std::fmt;

/// What the shell does next for a client that has not logged in.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes to the client.
    Send(Vec<u8>),
    /// Send what is pending, throw away every byte received but not yet consumed, shake hands by TLS,
    /// then call `handle_tls_started`.
    StartTls,
    /// Find the user's back end and log in there; answer with `handle_login`.
    LogIn(Credentials),
    /// Send what is pending and close.
    Close,
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
