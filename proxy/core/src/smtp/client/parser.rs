//! Replies of a back end (RFC 5321 section 4.2), multi-line ones included, within limits.

use crate::smtp::reply::{EnhancedCode, Reply};

/// Longest reply line in octets, CRLF included. The standard allows 512; servers that quote addresses and
/// queue files say more.
pub(crate) const MAX_REPLY_LINE: usize = 2048;
/// Most lines of one reply.
pub(crate) const MAX_REPLY_LINES: usize = 128;
/// Most octets of one reply, all lines together.
pub(crate) const MAX_REPLY_BYTES: usize = 16 * 1024;

/// The peer does not speak SMTP, or too much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error("reply too long")]
    TooLong,
    #[error("malformed reply")]
    Malformed,
}

/// A reply, all of its lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RawReply {
    pub(crate) code: u16,
    /// What stood behind the codes, lines separated by LF.
    text: String,
}

impl RawReply {
    /// The texts of the lines.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }

    /// The first digit of the code.
    pub(crate) fn class(&self) -> u16 {
        self.code / 100
    }

    /// One line of it all: the enhanced code of the first line, the texts joined.
    pub(crate) fn to_reply(&self) -> Reply {
        let mut enhanced = None;
        let mut text = String::new();
        for line in self.lines() {
            let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
            let line_code = EnhancedCode::parse(head);
            enhanced = enhanced.or(line_code);
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(if line_code.is_some() { rest } else { line });
        }
        Reply::new(self.code, enhanced, &text)
    }
}

/// Cuts replies out of the stream.
#[derive(Debug, Default)]
pub(crate) struct ReplyParser {
    /// The line so far, without an end.
    line: Vec<u8>,
    /// The reply so far: code, lines, text.
    open: Option<(u16, usize, String)>,
}

impl ReplyParser {
    /// Takes input up to the end of the next reply; returns how much, and the reply if it is complete.
    pub(crate) fn push(&mut self, input: &[u8]) -> Result<(usize, Option<RawReply>), ReplyError> {
        let mut used = 0;
        while let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty()) {
            let end = memchr::memchr(b'\n', rest).map(|at| at + 1);
            let piece = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            if self.line.len() + piece.len() > MAX_REPLY_LINE {
                return Err(ReplyError::TooLong);
            }
            self.line.extend_from_slice(piece);
            used += piece.len();
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                if let Some(reply) = self.take_line(&line)? {
                    return Ok((used, Some(reply)));
                }
            }
        }
        Ok((used, None))
    }

    /// True between two replies.
    pub(crate) fn is_idle(&self) -> bool {
        self.line.is_empty() && self.open.is_none()
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<RawReply>, ReplyError> {
        let (code, more, text) = split_line(line).ok_or(ReplyError::Malformed)?;
        let (first_code, lines, mut all) = self.open.take().unwrap_or((code, 0, String::new()));
        if code != first_code {
            return Err(ReplyError::Malformed);
        }
        if lines >= MAX_REPLY_LINES || all.len() + text.len() > MAX_REPLY_BYTES {
            return Err(ReplyError::TooLong);
        }
        if lines > 0 {
            all.push('\n');
        }
        all.push_str(&String::from_utf8_lossy(text));
        if more {
            self.open = Some((code, lines + 1, all));
            return Ok(None);
        }
        Ok(Some(RawReply { code, text: all }))
    }
}

/// `250-text CRLF` -> (250, more follows, text).
fn split_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let line = line.strip_suffix(b"\r\n")?;
    if memchr::memchr2(b'\r', 0, line).is_some() {
        return None;
    }
    let (digits, rest) = line.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !(b'2'..=b'5').contains(digits.first()?) {
        return None;
    }
    let code = digits.iter().fold(0_u16, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest.split_first() {
        None => Some((code, false, rest)),
        Some((b' ', text)) => Some((code, false, text)),
        Some((b'-', text)) => Some((code, true, text)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One push per piece, until a reply or an error comes.
    fn read(pieces: &[&[u8]]) -> Result<Option<RawReply>, ReplyError> {
        let mut parser = ReplyParser::default();
        for piece in pieces {
            if let (_, Some(reply)) = parser.push(piece)? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    #[test]
    fn reads_replies_cut_anywhere() {
        let cases: [(&str, &str); 5] = [
            ("250 2.1.0 Ok\r\n", "250 2.1.0 Ok"),
            ("250\r\n", "250 "),
            ("550-5.1.1 No such\r\n550 5.1.1 user\r\n", "550 5.1.1 No such user"),
            ("250-a\r\n250-\r\n250 b\r\n", "250 a  b"),
            ("554 \u{fc}\r\n", "554 ?"),
        ];
        for (wire, want) in cases {
            for cut in 0..=wire.len() {
                let (head, tail) = wire.as_bytes().split_at(cut);
                let reply = read(&[head, tail]).unwrap().unwrap();
                assert_eq!(reply.to_reply().to_string(), want, "cut at {cut}");
            }
        }
    }

    #[test]
    fn takes_one_reply_and_no_more() {
        let mut parser = ReplyParser::default();
        let (used, reply) = parser.push(b"250 a\r\n250 b\r\n").unwrap();
        assert_eq!((used, reply.unwrap().code), (7, 250));
    }

    #[test]
    fn refuses_garbage() {
        for wire in [
            "\r\n",
            "25\r\n",
            "250 a\n",
            "250 a\r250 b\r\n",
            "250 a\0\r\n",
            "150 a\r\n",
            "650 a\r\n",
            "250_a\r\n",
            "2x0 a\r\n",
            "SSH-2.0-x\r\n",
            "250-a\r\n251 b\r\n",
        ] {
            assert_eq!(read(&[wire.as_bytes()]), Err(ReplyError::Malformed), "{wire:?}");
        }
    }

    #[test]
    fn limits_hold() {
        let endless_line = [b'2'; MAX_REPLY_LINE + 1];
        assert_eq!(read(&[&endless_line]), Err(ReplyError::TooLong));
        let pieces: Vec<&[u8]> = endless_line.chunks(100).collect();
        assert_eq!(read(&pieces), Err(ReplyError::TooLong));
        let many_lines = "250-a\r\n".repeat(MAX_REPLY_LINES + 1);
        assert_eq!(read(&[many_lines.as_bytes()]), Err(ReplyError::TooLong));
        let long_lines = format!("250-{}\r\n", "x".repeat(2000)).repeat(9);
        assert_eq!(read(&[long_lines.as_bytes()]), Err(ReplyError::TooLong));
    }
}
