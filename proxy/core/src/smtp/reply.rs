//! What the server says: one map from every answer it can give to code, enhanced code (RFC 3463) and text;
//! and the type of a reply that a back end gave.

use std::fmt;

/// Longest text of a reply that is made from foreign text, in octets; a reply line may have 512 (RFC 5321
/// section 4.5.3.1.5).
pub(crate) const MAX_REPLY_TEXT: usize = 400;

/// An enhanced status code (RFC 3463): `5.1.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedCode {
    pub class: u8,
    pub subject: u16,
    pub detail: u16,
}

impl EnhancedCode {
    /// Reads `5.1.1` if `text` is just that.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let class = parts.next().filter(|class| matches!(*class, "2" | "4" | "5"))?.parse().ok()?;
        let mut number = || {
            let digits = parts.next()?;
            let fits = (1..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            if fits { digits.parse().ok() } else { None }
        };
        Some(Self { class, subject: number()?, detail: number()? })
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// A reply with a text of its own: what a back end said, or what we say in its place.
///
/// The text is one line of printable ASCII, whatever it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<EnhancedCode>,
    text: String,
}

impl Reply {
    /// `code` is the three-digit code; `text` is cleaned and cut to 400 octets.
    #[must_use]
    pub fn new(code: u16, enhanced: Option<EnhancedCode>, text: &str) -> Self {
        Self { code, enhanced, text: clean(text) }
    }

    /// Shorthand for replies of our own; `x.y.z` is given as three numbers.
    pub(crate) fn own(code: u16, enhanced: (u8, u16, u16), text: &str) -> Self {
        let (class, subject, detail) = enhanced;
        Self::new(code, Some(EnhancedCode { class, subject, detail }), text)
    }

    #[must_use]
    pub fn code(&self) -> u16 {
        self.code
    }

    #[must_use]
    pub fn enhanced(&self) -> Option<EnhancedCode> {
        self.enhanced
    }

    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.enhanced {
            Some(enhanced) => write!(f, "{} {enhanced} {}", self.code, self.text),
            None => write!(f, "{} {}", self.code, self.text),
        }
    }
}

/// One line of printable ASCII, so that foreign text can end no line and start no reply.
fn clean(text: &str) -> String {
    let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.trim().chars().take(MAX_REPLY_TEXT).map(printable).collect()
}

/// Every fixed answer of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    // What was asked is done.
    SenderTaken,
    RecipientTaken,
    StartContent,
    Reset,
    Nothing,
    Goodbye,
    Help,
    CannotVerify,
    StartTls,
    // The recipient.
    UnknownUser,
    RelayDenied,
    RecipientNotSure,
    RecipientUnavailable,
    TooManyRecipients,
    TooManyRefused,
    // The command line.
    LineTooLong,
    BareLf,
    BadByte,
    NotText,
    UnknownCommand,
    WrongProtocol,
    LmtpHere,
    NotImplemented,
    ChunkingNotOffered,
    BadHelo,
    NoArgument,
    ArgumentMissing,
    BadSender,
    BadRecipient,
    BadParameter,
    UnknownParameter,
    NeedsSmtputf8,
    // The order of commands.
    HelloFirst,
    NestedMail,
    MailFirst,
    NoRecipients,
    TlsNotOffered,
    TlsActive,
    TlsInTransaction,
    // The content.
    DeclaredTooLarge,
    TooLarge,
    Flood,
    BareCrInContent,
    BareLfInContent,
    NulInContent,
    // After the content.
    ScannerUnavailable,
    PromiseIncomplete,
    // The session.
    TooManyErrors,
    TooManyIdleCommands,
    EarlyTalker,
    Timeout,
    Shutdown,
}

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    GoOn,
    /// Counts against `Limits::idle_commands`.
    CountIdle,
    /// Counts against `Limits::bad_commands`.
    CountBad,
    Close,
}

impl Answer {
    /// The reply line (without CRLF) and what follows it.
    pub(crate) fn reply(self) -> (&'static str, Then) {
        use Then::{Close, CountBad, CountIdle, GoOn};
        match self {
            Self::SenderTaken => ("250 2.1.0 Sender ok", CountIdle),
            Self::RecipientTaken => ("250 2.1.5 Recipient ok", GoOn),
            Self::StartContent => ("354 End data with <CR><LF>.<CR><LF>", GoOn),
            Self::Reset => ("250 2.0.0 Reset", CountIdle),
            Self::Nothing => ("250 2.0.0 Ok", CountIdle),
            Self::Goodbye => ("221 2.0.0 Bye", Close),
            Self::Help => ("214 2.0.0 See RFC 5321", CountIdle),
            Self::CannotVerify => ("252 2.0.0 Send some mail, it is tried", CountIdle),
            Self::StartTls => ("220 2.0.0 Ready to start TLS", GoOn),

            Self::UnknownUser => ("550 5.1.1 No such user here", GoOn),
            Self::RelayDenied => ("550 5.7.1 Relaying denied", GoOn),
            Self::RecipientNotSure => ("451 4.4.3 Recipient cannot be verified now, try again later", GoOn),
            Self::RecipientUnavailable => ("451 4.4.1 Mailbox server unavailable, try again later", GoOn),
            Self::TooManyRecipients => ("452 4.5.3 Too many recipients in one transaction", GoOn),
            Self::TooManyRefused => ("421 4.7.0 Too many refused recipients", Close),

            Self::LineTooLong => ("500 5.5.2 Line too long", Close),
            Self::BareLf => ("500 5.5.2 Lines end with CR LF", Close),
            Self::BadByte => ("500 5.5.2 CR or NUL within a line", CountBad),
            Self::NotText => ("500 5.5.2 Neither ASCII nor UTF-8", CountBad),
            Self::UnknownCommand => ("500 5.5.1 Unknown command", CountBad),
            Self::WrongProtocol => ("500 5.5.1 This is SMTP", Close),
            Self::LmtpHere => ("500 5.5.1 This is SMTP, not LMTP", CountBad),
            Self::NotImplemented => ("502 5.5.1 Not implemented", CountBad),
            // What follows BDAT is content, not commands: nothing behind it may be read as such.
            Self::ChunkingNotOffered => ("502 5.5.1 CHUNKING is not offered", Close),
            Self::BadHelo => ("501 5.5.4 Not a host name", CountBad),
            Self::NoArgument => ("501 5.5.4 This command takes no argument", CountBad),
            Self::ArgumentMissing => ("501 5.5.4 Argument missing", CountBad),
            Self::BadSender => ("501 5.1.7 Bad sender address syntax", CountBad),
            Self::BadRecipient => ("501 5.1.3 Bad recipient address syntax", CountBad),
            Self::BadParameter => ("501 5.5.4 Bad parameter value", CountBad),
            Self::UnknownParameter => ("555 5.5.4 Unknown parameter", CountBad),
            Self::NeedsSmtputf8 => ("553 5.6.7 Address needs SMTPUTF8", CountIdle),

            Self::HelloFirst => ("503 5.5.1 Send EHLO first", CountBad),
            Self::NestedMail => ("503 5.5.1 A transaction is open", CountBad),
            // One refused MAIL in a pipelined group makes all its RCPTs out of order: no offence.
            Self::MailFirst => ("503 5.5.1 Send MAIL first", CountIdle),
            Self::NoRecipients => ("554 5.5.1 No valid recipients", CountIdle),
            Self::TlsNotOffered => ("502 5.5.1 STARTTLS is not offered", CountBad),
            Self::TlsActive => ("503 5.5.1 TLS is active", CountBad),
            Self::TlsInTransaction => ("503 5.5.1 STARTTLS within a transaction", CountBad),

            Self::DeclaredTooLarge => ("552 5.3.4 Message size exceeds the limit", CountIdle),
            Self::TooLarge => ("552 5.3.4 Message is larger than the limit", GoOn),
            Self::Flood => ("552 5.3.4 Message is far larger than the limit", Close),
            Self::BareCrInContent => ("550 5.6.0 Message has a CR without LF (RFC 5321 section 2.3.8)", GoOn),
            Self::BareLfInContent => ("550 5.6.0 Message has an LF without CR (RFC 5321 section 2.3.8)", GoOn),
            Self::NulInContent => ("550 5.6.0 Message has a NUL (RFC 5322 section 4.1)", GoOn),

            Self::ScannerUnavailable => ("451 4.7.1 Virus scanner unavailable, try again later", GoOn),
            Self::PromiseIncomplete => ("451 4.3.0 Not all recipients were served, try again later", GoOn),

            Self::TooManyErrors => ("421 4.7.0 Too many errors", Close),
            Self::TooManyIdleCommands => ("421 4.7.0 Too many commands without a message", Close),
            Self::EarlyTalker => ("554 5.5.1 Client spoke before the greeting", Close),
            Self::Timeout => ("421 4.4.2 Timeout", Close),
            Self::Shutdown => ("421 4.3.2 Service shutting down, try again later", Close),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enhanced_codes_are_read_strictly() {
        let code = EnhancedCode::parse("5.1.10").unwrap();
        assert_eq!((code.class, code.subject, code.detail), (5, 1, 10));
        assert_eq!(code.to_string(), "5.1.10");
        for text in ["", "5", "5.1", "3.1.1", "5.1.1.1", "5..1", "5.1.1000", "5.+1.1", "55.1.1", "5.1.x"] {
            assert_eq!(EnhancedCode::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn foreign_text_stays_on_its_line() {
        let reply = Reply::own(550, (5, 1, 1), "no\r\n250 yes\u{0}ü");
        assert_eq!(reply.to_string(), "550 5.1.1 no??250 yes??");
        let long = Reply::new(550, None, &"x".repeat(10_000));
        assert!(long.to_string().len() < 512);
    }

    /// Class of the enhanced code and of the code agree in every answer, and 421 always closes.
    #[test]
    fn answers_are_consistent() {
        let source = include_str!("reply.rs");
        let mut seen = 0;
        for line in source.lines().filter(|line| line.trim_start().starts_with("Self::") && line.contains("=> (\"")) {
            let text = line.split('"').nth(1).unwrap();
            seen += 1;
            assert!(text.is_ascii() && text.len() < 100, "{text}");
            let code: u16 = text[..3].parse().unwrap();
            assert!(code != 421 || line.contains("Close"), "{text}");
            if code != 354 {
                let enhanced = EnhancedCode::parse(text.split(' ').nth(1).unwrap()).unwrap();
                assert_eq!(u16::from(enhanced.class), code / 100, "{text}");
            }
        }
        assert!(seen > 45, "the table was found");
    }
}
