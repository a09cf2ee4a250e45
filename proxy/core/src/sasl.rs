//! The SASL mechanisms that carry a password: PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login),
//! in base64 lines as IMAP (RFC 9051 section 6.2.2) and POP3 (RFC 5034) carry them.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::prelogin::Credentials;

/// Decodes with or without padding (some clients leave it out); always pads what it writes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The mechanisms offered, in the words of a capability list.
pub const MECHANISMS: [&str; 2] = ["PLAIN", "LOGIN"];
/// `Username:` and `Password:`, which old clients of LOGIN compare literally.
const LOGIN_USER_PROMPT: &str = "VXNlcm5hbWU6";
const LOGIN_PASSWORD_PROMPT: &str = "UGFzc3dvcmQ6";

/// Why an exchange came to nothing. All are the client's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    #[error("the client gave up")]
    Cancelled,
    #[error("not base64")]
    BadBase64,
    #[error("not a message of this mechanism")]
    Malformed,
    #[error("the name or the password is not UTF-8, or has a NUL")]
    BadEncoding,
    #[error("the name is empty")]
    NoUser,
    #[error("one user may not act for another")]
    ActsForAnother,
}

/// A mechanism's name, recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    Login,
}

impl Mechanism {
    /// The mechanism of that name, in any case.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        if name.eq_ignore_ascii_case(b"PLAIN") {
            Some(Self::Plain)
        } else if name.eq_ignore_ascii_case(b"LOGIN") {
            Some(Self::Login)
        } else {
            None
        }
    }
}

/// What the server does after a message of the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send `+ ` and this text (base64, perhaps empty); the next line is the response.
    Challenge(&'static str),
    /// The client has said everything.
    Complete(Credentials),
}

/// The server's side of one exchange.
#[derive(Debug)]
pub struct Exchange {
    mechanism: Mechanism,
    /// LOGIN's name, once it is there.
    user: Option<Vec<u8>>,
}

impl Exchange {
    #[must_use]
    pub fn new(mechanism: Mechanism) -> Self {
        Self { mechanism, user: None }
    }

    /// Begins, with the initial response if the client sent one with its command (`=` means an empty one).
    ///
    /// # Errors
    /// What is wrong with the initial response; the exchange is over.
    pub fn start(&mut self, initial: Option<&[u8]>) -> Result<Step, SaslError> {
        match (initial, self.mechanism) {
            (Some(b"="), _) => self.handle_response(b""),
            (Some(response), _) => self.handle_response(response),
            (None, Mechanism::Plain) => Ok(Step::Challenge("")),
            (None, Mechanism::Login) => Ok(Step::Challenge(LOGIN_USER_PROMPT)),
        }
    }

    /// Takes one response line without its line end.
    ///
    /// # Errors
    /// What is wrong with it; the exchange is over.
    pub fn handle_response(&mut self, line: &[u8]) -> Result<Step, SaslError> {
        if line == b"*" {
            return Err(SaslError::Cancelled);
        }
        // The decoder's reason says where in a password it stopped: not for anybody's log.
        let message = BASE64.decode(line).ok().ok_or(SaslError::BadBase64)?;
        match (self.mechanism, self.user.take()) {
            (Mechanism::Plain, _) => decode_plain(&message).map(Step::Complete),
            (Mechanism::Login, None) => {
                self.user = Some(message);
                Ok(Step::Challenge(LOGIN_PASSWORD_PROMPT))
            }
            (Mechanism::Login, Some(user)) => credentials(&user, &message).map(Step::Complete),
        }
    }
}

/// Decodes PLAIN's message, `[authzid] NUL authcid NUL password`. An authorization identity other than
/// the name itself is refused: master logins are between the back end and its administrator.
///
/// # Errors
/// The rule that the message breaks.
pub fn decode_plain(message: &[u8]) -> Result<Credentials, SaslError> {
    let mut parts = message.split(|&b| b == 0);
    let (Some(authzid), Some(user), Some(password), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SaslError::Malformed);
    };
    if !authzid.is_empty() && authzid != user {
        return Err(SaslError::ActsForAnother);
    }
    credentials(user, password)
}

/// PLAIN's message in base64, without an authorization identity.
#[must_use]
pub fn encode_plain(credentials: &Credentials) -> String {
    BASE64.encode(format!("\0{}\0{}", credentials.user, credentials.password))
}

/// A name and a password out of a client's octets, whatever command they came by.
///
/// # Errors
/// No name, no UTF-8, or a NUL in it.
pub fn credentials(user: &[u8], password: &[u8]) -> Result<Credentials, SaslError> {
    if user.contains(&0) || password.contains(&0) {
        return Err(SaslError::BadEncoding);
    }
    let text = |octets: &[u8]| std::str::from_utf8(octets).map(str::to_owned).ok().ok_or(SaslError::BadEncoding);
    let (user, password) = (text(user)?, text(password)?);
    if user.is_empty() {
        return Err(SaslError::NoUser);
    }
    Ok(Credentials { user, password })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(user: &str, password: &str) -> Result<Step, SaslError> {
        Ok(Step::Complete(Credentials { user: user.into(), password: password.into() }))
    }

    #[test]
    fn plain_with_and_without_an_initial_response() {
        let mut exchange = Exchange::new(Mechanism::Plain);
        assert_eq!(exchange.start(Some(b"AHRpbQB0YW5zdGFhZnRhbnN0YWFm")), complete("tim", "tanstaaftanstaaf"));
        assert_eq!(exchange.start(None), Ok(Step::Challenge("")));
        assert_eq!(exchange.handle_response(b"dGltAHRpbQBw"), complete("tim", "p"), "acts for itself");
        assert_eq!(exchange.handle_response(b"AHUA"), complete("u", ""));
    }

    #[test]
    fn login_asks_twice() {
        let mut exchange = Exchange::new(Mechanism::Login);
        assert_eq!(exchange.start(None), Ok(Step::Challenge("VXNlcm5hbWU6")));
        assert_eq!(exchange.handle_response(b"dGlt"), Ok(Step::Challenge("UGFzc3dvcmQ6")));
        assert_eq!(exchange.handle_response(b"cA"), complete("tim", "p"), "padding left out");
        assert_eq!(exchange.start(Some(b"dGlt")), Ok(Step::Challenge("UGFzc3dvcmQ6")));
        assert_eq!(exchange.handle_response(b""), complete("tim", ""));
    }

    #[test]
    fn what_is_no_login() {
        for (response, error) in [
            (&b"*"[..], SaslError::Cancelled),
            (b"!", SaslError::BadBase64),
            (b"AHUA ", SaslError::BadBase64),
            (b"=", SaslError::BadBase64),
            (b"", SaslError::Malformed),
            (b"dQ==", SaslError::Malformed),
            (b"AHUAAA==", SaslError::Malformed), // \0u\0\0: one NUL too many
            (b"AAB4", SaslError::NoUser),
            (b"AP8A", SaslError::BadEncoding),
            (b"YQBiAGM=", SaslError::ActsForAnother),
        ] {
            assert_eq!(Exchange::new(Mechanism::Plain).handle_response(response), Err(error), "{response:?}");
        }
        assert_eq!(Exchange::new(Mechanism::Plain).start(Some(b"=")), Err(SaslError::Malformed));
    }

    #[test]
    fn plain_comes_back() {
        for (user, password) in [("jörg@b.test", "ä\r\n\"\\ "), ("u", ""), ("x y", "\u{7f}")] {
            let credentials = Credentials { user: user.into(), password: password.into() };
            let encoded = encode_plain(&credentials);
            assert_eq!(Exchange::new(Mechanism::Plain).handle_response(encoded.as_bytes()), complete(user, password));
        }
    }
}
