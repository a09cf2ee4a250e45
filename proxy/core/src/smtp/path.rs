//! Reverse-path and forward-path (RFC 5321 section 4.1.2), in angle brackets.

use crate::address::Address;

/// What stands between the angle brackets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// `<>`, the sender of bounces.
    Null,
    /// `<postmaster>` without a domain, which RCPT must take (section 4.5.1).
    Postmaster,
    Mailbox(Address),
}

/// The text is no path, or its address breaks a rule of RFC 5321/6531.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a path")]
pub(crate) struct BadPath;

/// Reads a path at the start of `text`; returns it with what follows the closing bracket.
///
/// A source route (`<@a,@b:user@c>`) is read and ignored, as section 4.1.1.3 and appendix C demand.
pub(crate) fn parse(text: &str) -> Result<(Path, &str), BadPath> {
    let inner_on = text.strip_prefix('<').ok_or(BadPath)?;
    let end = closing_bracket(inner_on).ok_or(BadPath)?;
    let (inner, after) = (inner_on.get(..end).ok_or(BadPath)?, inner_on.get(end + 1..).ok_or(BadPath)?);
    if inner.is_empty() {
        return Ok((Path::Null, after));
    }
    if inner.eq_ignore_ascii_case("postmaster") {
        return Ok((Path::Postmaster, after));
    }
    match Address::parse(without_route(inner)?) {
        Ok(address) => Ok((Path::Mailbox(address), after)),
        Err(_) => Err(BadPath),
    }
}

/// The offset of the `>` that is not inside a quoted local part.
fn closing_bracket(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'"') {
        return memchr::memchr(b'>', bytes);
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn without_route(inner: &str) -> Result<&str, BadPath> {
    if !inner.starts_with('@') {
        return Ok(inner);
    }
    let (route, mailbox) = inner.split_once(':').ok_or(BadPath)?;
    let is_route = route.split(',').all(|hop| hop.strip_prefix('@').is_some_and(|domain| !domain.is_empty()));
    if is_route { Ok(mailbox) } else { Err(BadPath) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(text: &str) -> Path {
        Path::Mailbox(Address::parse(text).unwrap())
    }

    #[test]
    fn reads_what_section_4_1_2_allows() {
        assert_eq!(parse("<>"), Ok((Path::Null, "")));
        assert_eq!(parse("<PostMaster> X=1"), Ok((Path::Postmaster, " X=1")));
        assert_eq!(parse("<a@b.test> SIZE=1"), Ok((mailbox("a@b.test"), " SIZE=1")));
        assert_eq!(parse("<@x.test,@y.test:a@b.test>"), Ok((mailbox("a@b.test"), "")));
        assert_eq!(parse("<\"a>b\"@b.test>"), Ok((mailbox("\"a>b\"@b.test"), "")));
        assert_eq!(parse("<\"a\\\">b\"@b.test>"), Ok((mailbox("\"a\\\">b\"@b.test"), "")));
        assert_eq!(parse("<a@[192.0.2.1]>"), Ok((mailbox("a@[192.0.2.1]"), "")));
        assert_eq!(parse("<jörg@b.test>"), Ok((mailbox("jörg@b.test"), "")));
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "a@b.test",
            "<a@b.test",
            "<a>",
            "< a@b.test>",
            "<a@b.test >",
            "<@x.test a@b.test>",
            "<@:a@b.test>",
            "<@x.test,y.test:a@b.test>",
            "<\"a@b.test>",
            "<<a@b.test>>",
            "<a@b.test\\>",
        ] {
            assert_eq!(parse(text).map(|(path, _)| path), Err(BadPath), "{text:?}");
        }
    }
}
