//! What a session is given and what it asks for.

use crate::address::Address;
use crate::smtp::client::BackendAccepted;
use crate::smtp::reply::Reply;

/// What a listener's sessions have in common.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The name in the greeting and in EHLO's reply; `<postmaster>` lives there.
    pub hostname: String,
    /// STARTTLS is offered.
    pub starttls: bool,
    pub limits: Limits,
}

/// Limits of a session.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest content of a message in octets, announced by SIZE. A client that sends more than twice as
    /// much is cut off before its message ends.
    pub message_bytes: u64,
    /// Most recipients of one transaction; more are told 452, and their sender sends a second copy.
    pub recipients: usize,
    /// Longest command line in octets, CRLF included (RFC 5321 section 4.5.3.1.4 wants 512 and more).
    pub command_line: usize,
    /// Erroneous commands in a session, at which it is closed.
    pub bad_commands: u32,
    /// Recipients refused with 5xx in a session, at which it is closed.
    pub refused_recipients: u32,
    /// Commands that move no message (EHLO, MAIL, RSET, NOOP, VRFY, HELP) since the last accepted message,
    /// at which the session is closed.
    pub idle_commands: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 50 * 1024 * 1024,
            recipients: 100,
            command_line: 2048,
            bad_commands: 10,
            refused_recipients: 200,
            idle_commands: 200,
        }
    }
}

/// What the shell does next, in this order and no other.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes to the client.
    Send(Vec<u8>),
    /// Send what is pending, throw away every byte received but not yet consumed, shake hands by TLS, then
    /// call `handle_tls_started`.
    StartTls,
    /// Look this recipient up; answer with `handle_recipient`.
    Resolve(Address),
    /// A message begins; its recipients were all accepted.
    BeginMessage(Envelope),
    /// Content of the message: CRLF lines, not dot-stuffed, without bare CR, bare LF or NUL. A piece may end
    /// anywhere but between CR and LF.
    Body(Vec<u8>),
    /// The content is complete; answer with `handle_outcome`.
    EndMessage,
    /// The message will not be completed. Break off every back-end connection that is receiving it without
    /// sending the final dot.
    AbortMessage,
    /// Send what is pending and close.
    Close,
}

/// A transaction as the client described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The argument of HELO or EHLO: printable ASCII that no Received header is broken by.
    pub helo: String,
    /// EHLO was said.
    pub esmtp: bool,
    /// The message came over TLS.
    pub tls: bool,
    /// MAIL had the parameter SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// MAIL had the parameter BODY=8BITMIME (RFC 6152).
    pub body_8bit: bool,
    /// The parameter SIZE of MAIL in octets (RFC 1870): the client's estimate.
    pub declared_size: Option<u64>,
    /// None: `<>`.
    pub sender: Option<Address>,
    /// Each accepted recipient once, in the order of the RCPT commands.
    pub recipients: Vec<Address>,
}

/// What the directory knows about a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientAnswer {
    Accept,
    /// 550 5.1.1: the domain is ours and complete, and the user is not in it.
    UnknownUser,
    /// 550 5.7.1: the domain is not ours.
    RelayDenied,
    /// 451 4.4.3: the directory cannot tell yet.
    NotSure,
    /// 451 4.4.1: the back end cannot be reached.
    Unavailable,
}

/// How a complete message ended.
#[derive(Debug)]
pub enum Outcome {
    /// 250 2.0.0.
    Accepted(BackendAccepted),
    /// 554 5.7.1.
    Infected { signature: String },
    /// 451 4.7.1.
    ScannerUnavailable,
    /// 451 4.3.0 with this text.
    Deferred { text: String },
    /// The back end's 5xx, passed on.
    Refused { reply: Reply },
}
