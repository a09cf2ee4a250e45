//! The extensions that a server offers in its reply to EHLO or LHLO.

use super::parser::RawReply;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) pipelining: bool,
    pub(crate) eight_bit: bool,
    pub(crate) smtputf8: bool,
    pub(crate) size: bool,
    /// The largest message in octets, if the server names a limit.
    pub(crate) max_size: Option<u64>,
}

impl Offer {
    /// The first line is the server's name, the others hold one extension each.
    pub(crate) fn read(reply: &RawReply) -> Self {
        let mut offer = Self::default();
        for line in reply.lines().skip(1) {
            offer.add(line);
        }
        offer
    }

    fn add(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let Some(keyword) = words.next() else { return };
        if keyword.eq_ignore_ascii_case("PIPELINING") {
            self.pipelining = true;
        } else if keyword.eq_ignore_ascii_case("8BITMIME") {
            self.eight_bit = true;
        } else if keyword.eq_ignore_ascii_case("SMTPUTF8") {
            self.smtputf8 = true;
        } else if keyword.eq_ignore_ascii_case("SIZE") {
            self.size = true;
            // 0 means "no fixed limit" (RFC 1870 section 4).
            self.max_size = words.next().and_then(|digits| digits.parse().ok()).filter(|limit| *limit > 0);
        }
    }
}
