//! Content of the DATA phase on the way in: undoes dot-stuffing and finds the end (RFC 5321 section 4.5.2).
//!
//! Only `CRLF . CRLF` ends a message. A CR or LF that stands alone, or a NUL, condemns the message: nothing
//! more of it is passed on, and the decoder reads on to the true end so that what follows a false end is
//! never taken for commands.

/// Why content is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContentFault {
    #[error("a CR without LF")]
    BareCr,
    #[error("an LF without CR")]
    BareLf,
    #[error("a NUL")]
    Nul,
    #[error("larger than the size limit")]
    TooLarge,
}

/// How far the decoder got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All input was taken, the end is not there yet.
    More,
    /// The final dot was read; input behind it is untouched.
    End,
    /// More than twice the limit was sent: the client is not going to stop.
    Flood,
}

/// Where the last byte left us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    LineStart,
    Text,
    /// Behind a CR that may end a line; it is held back until the next byte is known.
    Cr,
    /// Behind a dot at a line's start, itself dropped.
    Dot,
    /// Behind a dot and a CR.
    DotCr,
}

/// Streaming decoder with a state of constant size; lines may be of any length.
#[derive(Debug)]
pub(crate) struct Decoder {
    at: At,
    fault: Option<ContentFault>,
    /// Content octets so far, those of a condemned message included.
    size: u64,
    limit: u64,
}

impl Decoder {
    /// `limit`: the most octets of content that are passed on.
    pub(crate) fn new(limit: u64) -> Self {
        Self { at: At::LineStart, fault: None, size: 0, limit }
    }

    /// The first fault found; set as soon as it is found, long before the message's end.
    pub(crate) fn fault(&self) -> Option<ContentFault> {
        self.fault
    }

    /// Decodes `input`, appends content to `out`; returns how much input was taken.
    /// Once a fault is found, nothing is appended any more.
    pub(crate) fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Progress) {
        let mut used = 0;
        while let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty()) {
            if self.at == At::Text {
                let run = memchr::memchr3(b'\r', b'\n', 0, rest).unwrap_or(rest.len());
                self.emit(rest.get(..run).unwrap_or_default(), out);
                used += run;
            }
            if self.is_flood() {
                return (used, Progress::Flood);
            }
            let Some(&byte) = input.get(used) else { break };
            used += 1;
            if self.step(byte, out) {
                return (used, Progress::End);
            }
        }
        (used, Progress::More)
    }

    fn is_flood(&self) -> bool {
        self.size > self.limit.saturating_mul(2)
    }

    /// Takes one byte that needs thought; true if it is the last of the message.
    fn step(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        match (self.at, byte) {
            (At::DotCr, b'\n') => return true,
            (At::Cr, b'\n') => {
                self.emit(b"\r\n", out);
                self.at = At::LineStart;
                return false;
            }
            (At::Cr | At::DotCr, _) => self.condemn(ContentFault::BareCr),
            (At::LineStart | At::Text | At::Dot, _) => {}
        }
        let line_start = self.at == At::LineStart;
        self.at = match byte {
            b'\r' if self.at == At::Dot => At::DotCr,
            b'\r' => At::Cr,
            b'.' if line_start => At::Dot,
            b'\n' => self.condemned(ContentFault::BareLf),
            0 => self.condemned(ContentFault::Nul),
            other => {
                self.emit(&[other], out);
                At::Text
            }
        };
        false
    }

    fn condemned(&mut self, fault: ContentFault) -> At {
        self.condemn(fault);
        At::Text
    }

    fn condemn(&mut self, fault: ContentFault) {
        self.size = self.size.saturating_add(1);
        self.fault.get_or_insert(fault);
    }

    fn emit(&mut self, content: &[u8], out: &mut Vec<u8>) {
        self.size = self.size.saturating_add(u64::try_from(content.len()).unwrap_or(u64::MAX));
        if self.size > self.limit {
            self.fault.get_or_insert(ContentFault::TooLarge);
        }
        if self.fault.is_none() {
            out.extend_from_slice(content);
        }
    }
}
