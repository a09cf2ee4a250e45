//! The grammar of the commands that come before a login (RFC 9051 section 9), and of literals in any.

use crate::sasl::Mechanism;

/// Pairs in an ID command (RFC 2971 section 3.1 allows no more).
const MAX_ID_PAIRS: usize = 30;
/// Longest tag that is echoed, in octets.
const MAX_TAG: usize = 64;

/// A text for the `BAD` reply.
pub(super) type Syntax = &'static str;

/// The commands that this side answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Capability,
    Noop,
    Logout,
    Id,
    StartTls,
    Login,
    Authenticate,
    /// A command that exists, but only after a login.
    AfterLogin,
    Unknown,
}

/// A command's tag and name, and its arguments, unread, with the line end.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) tag: &'a str,
    pub(super) name: Name,
    pub(super) arguments: Cursor<'a>,
}

/// Commands of RFC 9051 and its common extensions that need a login.
const AFTER_LOGIN: [&str; 38] = [
    "APPEND",
    "CHECK",
    "CLOSE",
    "COMPRESS",
    "COPY",
    "CREATE",
    "DELETE",
    "DELETEACL",
    "ENABLE",
    "EXAMINE",
    "EXPUNGE",
    "FETCH",
    "GETACL",
    "GETMETADATA",
    "GETQUOTA",
    "GETQUOTAROOT",
    "IDLE",
    "LIST",
    "LISTRIGHTS",
    "LSUB",
    "MOVE",
    "MYRIGHTS",
    "NAMESPACE",
    "NOTIFY",
    "RENAME",
    "SEARCH",
    "SELECT",
    "SETACL",
    "SETMETADATA",
    "SETQUOTA",
    "SORT",
    "STATUS",
    "STORE",
    "SUBSCRIBE",
    "THREAD",
    "UID",
    "UNSELECT",
    "UNSUBSCRIBE",
];

/// Reads tag and name. The error is for an untagged `BAD`.
pub(super) fn parse_head(command: &[u8]) -> Result<Head<'_>, Syntax> {
    let mut cursor = Cursor { rest: command };
    let tag = cursor.word();
    if tag.is_empty() || tag.len() > MAX_TAG || !tag.iter().all(|&b| is_tag_char(b)) {
        return Err("No tag, or a malformed one.");
    }
    let tag = std::str::from_utf8(tag).ok().ok_or("No tag, or a malformed one.")?;
    let name = if cursor.space().is_ok() { parse_name(cursor.word()) } else { Name::Unknown };
    Ok(Head { tag, name, arguments: cursor })
}

fn parse_name(word: &[u8]) -> Name {
    let upper = word.to_ascii_uppercase();
    match upper.as_slice() {
        b"CAPABILITY" => Name::Capability,
        b"NOOP" => Name::Noop,
        b"LOGOUT" => Name::Logout,
        b"ID" => Name::Id,
        b"STARTTLS" => Name::StartTls,
        b"LOGIN" => Name::Login,
        b"AUTHENTICATE" => Name::Authenticate,
        other if AFTER_LOGIN.iter().any(|name| name.as_bytes() == other) => Name::AfterLogin,
        _ => Name::Unknown,
    }
}

/// A literal announced at the end of a line: `{5}`, or `{5+}` (RFC 7888).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Literal {
    /// None: more than a number can hold.
    pub(super) octets: Option<usize>,
    /// The client waits to be asked for it.
    pub(super) synchronizing: bool,
}

/// The literal that a line ends with. No quoted string can end in a line end, so this needs no parser,
/// and finds the literals of commands that nobody understands: their octets must not be read as commands.
pub(super) fn literal_at_end(line: &[u8]) -> Option<Literal> {
    let line = crate::prelogin::trim_line_end(line);
    let open = line.iter().rposition(|&b| b == b'{')?;
    let (literal, rest) = parse_literal(line.get(open..)?)?;
    rest.is_empty().then_some(literal)
}

/// Reads `{number}` or `{number+}`; returns what follows too.
fn parse_literal(text: &[u8]) -> Option<(Literal, &[u8])> {
    let text = text.strip_prefix(b"{")?;
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits)?;
    if number.is_empty() {
        return None;
    }
    let octets = number
        .iter()
        .try_fold(0_usize, |sum, digit| sum.checked_mul(10)?.checked_add(usize::from(digit.wrapping_sub(b'0'))));
    let (synchronizing, rest) = rest.strip_prefix(b"+").map_or((true, rest), |rest| (false, rest));
    Some((Literal { octets, synchronizing }, rest.strip_prefix(b"}")?))
}

/// A place in a command's arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at_checked(count).unwrap_or((self.rest, &[]));
        self.rest = rest;
        taken
    }

    /// Takes up to a space or control character.
    fn word(&mut self) -> &'a [u8] {
        self.take(self.rest.iter().take_while(|&&b| b > b' ' && b != 0x7f).count())
    }

    fn skip(&mut self, prefix: &[u8]) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn space(&mut self) -> Result<(), Syntax> {
        if self.skip(b" ") { Ok(()) } else { Err("An argument is missing.") }
    }

    /// Nothing but the line end may follow. Spaces before it are forgiven.
    pub(super) fn end(mut self) -> Result<(), Syntax> {
        while self.skip(b" ") {}
        if matches!(self.rest, b"\r\n" | b"\n") { Ok(()) } else { Err("Unexpected characters after the command.") }
    }

    /// The two arguments of LOGIN.
    pub(super) fn login(mut self) -> Result<(Vec<u8>, Vec<u8>), Syntax> {
        self.space()?;
        let user = self.astring()?;
        self.space()?;
        let password = self.astring()?;
        self.end()?;
        Ok((user, password))
    }

    /// The arguments of AUTHENTICATE: the mechanism, None for one we don't have, and an initial response.
    pub(super) fn authenticate(mut self) -> Result<(Option<Mechanism>, Option<&'a [u8]>), Syntax> {
        self.space()?;
        let mechanism = Mechanism::parse(self.word());
        let initial = if self.end().is_ok() {
            None
        } else {
            self.space()?;
            Some(self.word())
        };
        self.end()?;
        Ok((mechanism, initial))
    }

    /// The argument of ID (RFC 2971): NIL, or a list of names and values. What they say is not kept.
    pub(super) fn id(mut self) -> Result<(), Syntax> {
        self.space()?;
        if self.skip_nil() {
            return self.end();
        }
        if !self.skip(b"(") {
            return Err("ID takes NIL or a list.");
        }
        let mut strings = 0;
        while !self.skip(b")") {
            if strings > 0 {
                self.space()?;
            }
            strings += 1;
            if strings > 2 * MAX_ID_PAIRS {
                return Err("Too many pairs.");
            }
            if !self.skip_nil() {
                self.string()?;
            }
        }
        if strings % 2 == 1 {
            return Err("A name without a value.");
        }
        self.end()
    }

    fn skip_nil(&mut self) -> bool {
        let is_nil = self.rest.get(..3).is_some_and(|word| word.eq_ignore_ascii_case(b"NIL"));
        if is_nil {
            self.take(3);
        }
        is_nil
    }

    /// `astring`. Atoms may have `%`, `*` and octets over 127 here, which clients of good will send.
    fn astring(&mut self) -> Result<Vec<u8>, Syntax> {
        if matches!(self.rest.first(), Some(b'"' | b'{')) {
            return self.string();
        }
        let atom = self.word();
        if atom.is_empty() || atom.iter().any(|b| b"(){\"\\".contains(b)) {
            return Err("A malformed argument.");
        }
        Ok(atom.to_vec())
    }

    /// `string`: quoted or literal.
    fn string(&mut self) -> Result<Vec<u8>, Syntax> {
        if self.skip(b"\"") { self.quoted() } else { self.literal() }
    }

    /// What follows an opening quote.
    fn quoted(&mut self) -> Result<Vec<u8>, Syntax> {
        let mut value = Vec::new();
        loop {
            match *self.take(1) {
                [b'"'] => return Ok(value),
                [b'\\'] => match *self.take(1) {
                    [escaped @ (b'"' | b'\\')] => value.push(escaped),
                    _ => return Err("A malformed escape in a quoted string."),
                },
                [b'\r' | b'\n' | 0] | [] => return Err("A quoted string without its end."),
                [octet] => value.push(octet),
                _ => return Err("A malformed argument."),
            }
        }
    }

    fn literal(&mut self) -> Result<Vec<u8>, Syntax> {
        let (literal, rest) = parse_literal(self.rest).ok_or("A malformed argument.")?;
        self.rest = rest;
        if !self.skip(b"\r\n") && !self.skip(b"\n") {
            return Err("A malformed literal.");
        }
        let octets = literal.octets.filter(|&n| n <= self.rest.len()).ok_or("A literal is missing.")?;
        let value = self.take(octets);
        if value.contains(&0) {
            return Err("A literal has a NUL.");
        }
        Ok(value.to_vec())
    }
}

/// `tag` of RFC 9051: ASTRING-CHAR except `+`.
fn is_tag_char(b: u8) -> bool {
    b.is_ascii_graphic() && !b"(){%*\"\\+".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(arguments: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        Cursor { rest: arguments }.login().ok()
    }

    #[test]
    fn literals_at_the_end_of_a_line() {
        let literal = |octets, synchronizing| Some(Literal { octets, synchronizing });
        assert_eq!(literal_at_end(b"a LOGIN {5}\r\n"), literal(Some(5), true));
        assert_eq!(literal_at_end(b"a LOGIN {5+}\n"), literal(Some(5), false));
        assert_eq!(literal_at_end(b"a X ~{0+}\r\n"), literal(Some(0), false));
        assert_eq!(literal_at_end(b"a {007}\r\n"), literal(Some(7), true));
        assert_eq!(literal_at_end(b"{99999999999999999999999}\r\n"), literal(None, true));
        for line in
            [&b"a {5} \r\n"[..], b"a {}\r\n", b"a {+}\r\n", b"a {-1}\r\n", b"a {5-}\r\n", b"5}\r\n", b"{5}\r\r\n"]
        {
            assert_eq!(literal_at_end(line), None, "{line:?}");
        }
    }

    #[test]
    fn login_arguments() {
        let some = |user: &[u8], password: &[u8]| Some((user.to_vec(), password.to_vec()));
        assert_eq!(login(b" a b\r\n"), some(b"a", b"b"));
        assert_eq!(login(b" a@b.c \"\" \n"), some(b"a@b.c", b""));
        assert_eq!(login(b" \"a\\\"b\" \"\\\\\"\r\n"), some(b"a\"b", b"\\"));
        assert_eq!(login(b" {3}\r\na\rb {0}\r\n\r\n"), some(b"a\rb", b""));
        assert_eq!(login(b" {3+}\na\nb {1}\n\r\n"), some(b"a\nb", b"\r"));
        assert_eq!(login(b" {5}\r\n{1}\r\n x%*]\r\n"), some(b"{1}\r\n", b"x%*]"));
        for bad in [
            &b" a\r\n"[..],
            b"\r\n",
            b" a b c\r\n",
            b" a b\r\r\n",
            b" \"a b\r\n",
            b" \"a\\b\" c\r\n",
            b" \"a\"\"b\" c\r\n",
            b" {1}\r\n\0 c\r\n",
            b" {9}\r\nab c\r\n",
            b" a (b)\r\n",
            b" a\\ b\r\n",
            b"  a b\r\n",
            b" a\0 b\r\n",
        ] {
            assert_eq!(login(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn id_arguments() {
        let id = |arguments: &[u8]| Cursor { rest: arguments }.id().is_ok();
        assert!(id(b" NIL\r\n") && id(b" ()\r\n") && id(b" (\"name\" \"x\" \"version\" nil)\r\n"));
        assert!(id(b" ({4}\r\nname {0+}\r\n)\r\n"));
        assert!(!id(b"\r\n") && !id(b" (\"name\")\r\n") && !id(b" (\"a\" \"b\"\r\n") && !id(b" x\r\n"));
        assert!(!id(format!(" ({})\r\n", ["\"a\" \"b\""; 31].join(" ")).as_bytes()));
    }

    #[test]
    fn names_are_sorted_out() {
        assert_eq!(parse_head(b"a.1 login x\r\n").map(|head| (head.tag, head.name)), Ok(("a.1", Name::Login)));
        assert_eq!(parse_head(b"a uid x\r\n").map(|head| head.name), Ok(Name::AfterLogin));
        assert_eq!(parse_head(b"a\r\n").map(|head| head.name), Ok(Name::Unknown));
        for bad in [&b"\r\n"[..], b" a NOOP\r\n", b"+ NOOP\r\n", b"\xff NOOP\r\n", b"a\0 NOOP\r\n", b"* NOOP\r\n"] {
            let head = parse_head(bad);
            assert!(!head.is_ok_and(|head| head.name != Name::Unknown), "{bad:?}");
        }
    }
}
