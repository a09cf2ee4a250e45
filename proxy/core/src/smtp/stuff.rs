//! Dot-stuffing on the way out (RFC 5321 section 4.5.2).

/// Writes content as the DATA phase needs it: a dot at the start of a line is doubled, and the end is
/// `CRLF . CRLF`. The content may come in pieces of any size, cut anywhere.
///
/// The content must be made of CRLF lines, as [`super::Session`] gives it. A dot behind a bare LF would be
/// doubled too, so that even content from elsewhere cannot end the message early.
#[derive(Debug, Clone)]
pub struct DotStuffer {
    at_line_start: bool,
}

impl Default for DotStuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl DotStuffer {
    #[must_use]
    pub fn new() -> Self {
        Self { at_line_start: true }
    }

    /// Appends the stuffed form of `content` to `out`.
    pub fn push(&mut self, content: &[u8], out: &mut Vec<u8>) {
        let Some(last) = content.last() else { return };
        out.reserve(content.len());
        if self.at_line_start && content.first() == Some(&b'.') {
            out.push(b'.');
        }
        let mut rest = content;
        while let Some(at) = memchr::memmem::find(rest, b"\n.") {
            let (line, from_dot) = rest.split_at(at + 1);
            out.extend_from_slice(line);
            out.push(b'.');
            rest = from_dot;
        }
        out.extend_from_slice(rest);
        self.at_line_start = *last == b'\n';
    }

    /// Appends the end of the message: `CRLF` if the last line lacks it, then the final dot.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.at_line_start {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
        self.at_line_start = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuffed(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut stuffer, mut out) = (DotStuffer::new(), Vec::new());
        for piece in pieces {
            stuffer.push(piece, &mut out);
        }
        stuffer.finish(&mut out);
        out
    }

    #[test]
    fn doubles_dots_wherever_the_content_is_cut() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"", b".\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b"a", b"a\r\n.\r\n"),
            (b".a\r\n..\r\n", b"..a\r\n...\r\n.\r\n"),
            (b"a.\r\n.\r\nb\r\n", b"a.\r\n..\r\nb\r\n.\r\n"),
            (b"a\n.\r\n", b"a\n..\r\n.\r\n"),
        ];
        for (content, want) in cases {
            for cut in 0..=content.len() {
                assert_eq!(stuffed(&[&content[..cut], &content[cut..]]), want, "{content:?} cut at {cut}");
            }
            let single: Vec<&[u8]> = content.chunks(1).collect();
            assert_eq!(stuffed(&single), want, "{content:?} byte by byte");
        }
    }
}
