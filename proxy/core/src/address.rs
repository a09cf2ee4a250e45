//! Mail addresses (RFC 5321 section 4.1.2, RFC 6531 section 3.3): one type for envelope and directory.

use std::fmt;

/// Longest local part in octets (RFC 5321 section 4.5.3.1.1).
pub const MAX_LOCAL_PART: usize = 64;
/// Longest domain in octets (RFC 5321 section 4.5.3.1.2).
pub const MAX_DOMAIN: usize = 255;

/// A mailbox address. The local part is kept unquoted and in the sender's own case; the domain is in
/// lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    local: Box<str>,
    domain: Box<str>,
}

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("no '@' between local part and domain")]
    NoDomain,
    #[error("the local part is empty")]
    EmptyLocalPart,
    #[error("the local part is longer than {MAX_LOCAL_PART} octets")]
    LocalPartTooLong,
    #[error("the domain is longer than {MAX_DOMAIN} octets")]
    DomainTooLong,
    #[error("a character that the local part cannot have")]
    BadLocalPart,
    #[error("the domain is malformed")]
    BadDomain,
}

impl Address {
    /// Reads `local@domain` or `"quoted local"@domain`, without angle brackets.
    ///
    /// # Errors
    /// The first rule of RFC 5321/6531 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = if let Some(rest) = text.strip_prefix('"') {
            split_quoted(rest)?
        } else {
            let (local, domain) = text.rsplit_once('@').ok_or(AddressError::NoDomain)?;
            check_dot_string(local)?;
            (local.to_owned(), domain)
        };
        if local.is_empty() {
            return Err(AddressError::EmptyLocalPart);
        }
        if local.len() > MAX_LOCAL_PART {
            return Err(AddressError::LocalPartTooLong);
        }
        // Lower case first: it can be longer than what it was made from.
        let domain = domain.to_lowercase();
        check_domain(&domain)?;
        Ok(Self { local: local.into(), domain: domain.into() })
    }

    /// The local part, unquoted.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The domain in lower case; an address literal keeps its brackets.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// False if the address needs SMTPUTF8.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii() && self.domain.is_ascii()
    }

    /// The form under which a directory files this address: mailbox names differ in case nowhere
    /// that we deliver to.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}@{}", self.local.to_lowercase(), self.domain)
    }

    /// The address without its sub-address (`user+tag@d` -> `user@d`), if it has one.
    #[must_use]
    pub fn without_tag(&self, delimiter: char) -> Option<Self> {
        let (user, _tag) = self.local.split_once(delimiter)?;
        (!user.is_empty()).then(|| Self { local: user.into(), domain: self.domain.clone() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if check_dot_string(&self.local).is_ok() {
            return write!(f, "{}@{}", self.local, self.domain);
        }
        f.write_str("\"")?;
        for c in self.local.chars() {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        write!(f, "\"@{}", self.domain)
    }
}

/// `rest` is what follows the opening quote.
fn split_quoted(rest: &str) -> Result<(String, &str), AddressError> {
    let mut local = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                let domain = rest[at + 1..].strip_prefix('@').ok_or(AddressError::NoDomain)?;
                return Ok((local, domain));
            }
            '\\' => match chars.next() {
                Some((_, q)) if q == ' ' || q.is_ascii_graphic() => local.push(q),
                _ => return Err(AddressError::BadLocalPart),
            },
            c if c.is_control() => return Err(AddressError::BadLocalPart),
            c => local.push(c),
        }
    }
    Err(AddressError::BadLocalPart)
}

/// Dot-string of RFC 5321 with RFC 6531's UTF-8 atoms.
fn check_dot_string(local: &str) -> Result<(), AddressError> {
    if local.is_empty() {
        return Err(AddressError::EmptyLocalPart);
    }
    if local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext)) {
        Ok(())
    } else {
        Err(AddressError::BadLocalPart)
    }
}

fn is_atext(c: char) -> bool {
    match c {
        '!' | '#' | '$' | '%' | '&' | '\'' | '*' | '+' | '-' | '/' | '=' | '?' | '^' | '_' | '`' | '{' | '|' | '}'
        | '~' => true,
        c if c.is_ascii() => c.is_ascii_alphanumeric(),
        c => !c.is_control() && !c.is_whitespace(),
    }
}

fn check_domain(domain: &str) -> Result<(), AddressError> {
    if domain.len() > MAX_DOMAIN {
        return Err(AddressError::DomainTooLong);
    }
    if let Some(literal) = domain.strip_prefix('[') {
        let ok = literal.strip_suffix(']').is_some_and(|inner| {
            !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-".contains(&b))
        });
        return if ok { Ok(()) } else { Err(AddressError::BadDomain) };
    }
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| {
                if c.is_ascii() {
                    c.is_ascii_alphanumeric() || c == '-' || c == '_'
                } else {
                    !c.is_control() && !c.is_whitespace()
                }
            })
    };
    if domain.split('.').all(label_ok) { Ok(()) } else { Err(AddressError::BadDomain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_what_the_rfcs_allow() {
        for text in ["a@b.test", "a.b+c@b.test", "jörg@b.test", "\"a b\"@b.test", "\"a\\\"b\"@b.test", "x@[192.0.2.1]"]
        {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Address::parse("\"plain\"@B.Test").unwrap().to_string(), "plain@b.test");
    }

    #[test]
    fn refuses_what_they_forbid() {
        let long = format!("{}@b.test", "x".repeat(65));
        for text in [
            "",
            "a",
            "@b",
            "a@",
            "a..b@c.test",
            ".a@c.test",
            "a@b..c",
            "a b@c.test",
            "a@-b.test",
            "\"a@c.test",
            "\"a\r\n\"@c.test",
            "a\u{0}@c.test",
            "a@c\u{0}.test",
            "a@[]",
            long.as_str(),
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sub_address_falls_back_to_the_user() {
        let tagged = Address::parse("User+Lists@b.test").unwrap();
        assert_eq!(tagged.without_tag('+').unwrap().key(), "user@b.test");
        assert_eq!(Address::parse("+x@b.test").unwrap().without_tag('+'), None);
    }
}
