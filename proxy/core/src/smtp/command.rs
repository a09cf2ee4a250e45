//! Command lines: cutting them out of the stream, and what they mean.

use super::path::{self, Path};
use super::reply::Answer;
use crate::address::{Address, MAX_DOMAIN};

/// A command that is right in itself; whether it comes at the right time is the session's business.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    Hello { name: &'a str, esmtp: bool },
    Mail(Mail),
    Recipient(Recipient),
    Data,
    Reset,
    Nothing,
    Quit,
    Verify,
    Help,
    StartTls,
}

/// MAIL FROM with its parameters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mail {
    /// None: `<>`.
    pub(crate) sender: Option<Address>,
    pub(crate) size: Option<u64>,
    pub(crate) body: Option<Body>,
    pub(crate) smtputf8: bool,
}

impl Mail {
    /// Parameters are for those who said EHLO.
    pub(crate) fn has_parameters(&self) -> bool {
        self.size.is_some() || self.body.is_some() || self.smtputf8
    }
}

/// BODY of RFC 6152.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    SevenBit,
    EightBit,
}

/// RCPT TO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recipient {
    Postmaster,
    Mailbox(Address),
}

/// Checks a line that was cut at its LF, which is not part of `line`.
pub(crate) fn text_of_line(line: &[u8]) -> Result<&str, Answer> {
    let line = line.strip_suffix(b"\r").ok_or(Answer::BareLf)?;
    if memchr::memchr2(b'\r', 0, line).is_some() {
        return Err(Answer::BadByte);
    }
    std::str::from_utf8(line).map_err(|_not_utf8| Answer::NotText)
}

/// Reads a command line without its CRLF.
pub(crate) fn parse(line: &str) -> Result<Command<'_>, Answer> {
    let (verb, rest) = split_verb(line);
    let argument = rest.trim_matches([' ', '\t']);
    let is = |name: &str| verb.eq_ignore_ascii_case(name);
    // By frequency: RCPT is what a dictionary attack is made of.
    if is("RCPT") {
        return recipient(argument);
    }
    if is("MAIL") {
        return mail(argument);
    }
    if is("EHLO") {
        return hello(argument, true);
    }
    if is("HELO") {
        return hello(argument, false);
    }
    parse_rare(verb, rest, argument)
}

fn parse_rare<'a>(verb: &str, rest: &str, argument: &str) -> Result<Command<'a>, Answer> {
    let bare = |command| if argument.is_empty() { Ok(command) } else { Err(Answer::NoArgument) };
    match verb.to_ascii_uppercase().as_str() {
        "DATA" => bare(Command::Data),
        "RSET" => bare(Command::Reset),
        "QUIT" => bare(Command::Quit),
        "STARTTLS" => bare(Command::StartTls),
        "NOOP" => Ok(Command::Nothing),
        "HELP" => Ok(Command::Help),
        "VRFY" if argument.is_empty() => Err(Answer::ArgumentMissing),
        "VRFY" => Ok(Command::Verify),
        "LHLO" => Err(Answer::LmtpHere),
        "BDAT" => Err(Answer::ChunkingNotOffered),
        "EXPN" | "AUTH" | "ETRN" | "TURN" | "SEND" | "SOML" | "SAML" => Err(Answer::NotImplemented),
        "GET" | "POST" | "PUT" | "HEAD" | "DELETE" | "PATCH" | "TRACE" | "CONNECT" | "OPTIONS" => {
            Err(Answer::WrongProtocol)
        }
        // `Host: x`: a header, of HTTP or of a message whose DATA was refused. Its lines are no commands.
        _ if rest.starts_with(':') => Err(Answer::WrongProtocol),
        _ => Err(Answer::UnknownCommand),
    }
}

/// The verb is what comes before the first space, tab or colon.
fn split_verb(line: &str) -> (&str, &str) {
    let end = line.bytes().position(|b| matches!(b, b' ' | b'\t' | b':')).unwrap_or(line.len());
    line.split_at_checked(end).unwrap_or((line, ""))
}

/// The name goes into a Received header, and from there into other programs: no quotes, no comments.
fn hello(name: &str, esmtp: bool) -> Result<Command<'_>, Answer> {
    let safe = |b: u8| b.is_ascii_graphic() && !b"()<>\",;\\".contains(&b);
    if name.is_empty() || name.len() > MAX_DOMAIN || !name.bytes().all(safe) {
        return Err(Answer::BadHelo);
    }
    Ok(Command::Hello { name, esmtp })
}

/// Takes `keyword:` off the front; spaces behind the colon are common enough to be ignored.
fn strip_keyword<'a>(argument: &'a str, keyword: &str) -> Option<&'a str> {
    let (head, rest) = argument.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_start_matches(' '))
}

fn recipient<'a>(argument: &str) -> Result<Command<'a>, Answer> {
    let text = strip_keyword(argument, "TO:").ok_or(Answer::BadRecipient)?;
    let (path, rest) = path::parse(text).map_err(|path::BadPath| Answer::BadRecipient)?;
    if !rest.is_empty() {
        let separated = rest.starts_with(' ');
        return Err(if separated { Answer::UnknownParameter } else { Answer::BadRecipient });
    }
    match path {
        Path::Null => Err(Answer::BadRecipient),
        Path::Postmaster => Ok(Command::Recipient(Recipient::Postmaster)),
        Path::Mailbox(address) => Ok(Command::Recipient(Recipient::Mailbox(address))),
    }
}

fn mail<'a>(argument: &str) -> Result<Command<'a>, Answer> {
    let text = strip_keyword(argument, "FROM:").ok_or(Answer::BadSender)?;
    let (path, rest) = path::parse(text).map_err(|path::BadPath| Answer::BadSender)?;
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Err(Answer::BadSender);
    }
    let sender = match path {
        Path::Null => None,
        Path::Mailbox(address) => Some(address),
        Path::Postmaster => return Err(Answer::BadSender),
    };
    let mut mail = Mail { sender, ..Mail::default() };
    for parameter in rest.split(' ').filter(|parameter| !parameter.is_empty()) {
        mail_parameter(&mut mail, parameter)?;
    }
    if !mail.smtputf8 && mail.sender.as_ref().is_some_and(|sender| !sender.is_ascii()) {
        return Err(Answer::NeedsSmtputf8);
    }
    Ok(Command::Mail(mail))
}

fn mail_parameter(mail: &mut Mail, parameter: &str) -> Result<(), Answer> {
    let (key, value) = match parameter.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (parameter, None),
    };
    if key.eq_ignore_ascii_case("SIZE") {
        return set_once(&mut mail.size, size(value.unwrap_or_default())?);
    }
    if key.eq_ignore_ascii_case("BODY") {
        return set_once(&mut mail.body, body(value.unwrap_or_default())?);
    }
    if key.eq_ignore_ascii_case("SMTPUTF8") {
        if value.is_some() || mail.smtputf8 {
            return Err(Answer::BadParameter);
        }
        mail.smtputf8 = true;
        return Ok(());
    }
    Err(Answer::UnknownParameter)
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<(), Answer> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Answer::BadParameter),
    }
}

/// Up to 20 digits (RFC 1870); what exceeds 64 bits exceeds every limit.
fn size(digits: &str) -> Result<u64, Answer> {
    if !(1..=20).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Answer::BadParameter);
    }
    Ok(digits.parse().unwrap_or(u64::MAX))
}

fn body(value: &str) -> Result<Body, Answer> {
    if value.eq_ignore_ascii_case("8BITMIME") {
        return Ok(Body::EightBit);
    }
    if value.eq_ignore_ascii_case("7BIT") { Ok(Body::SevenBit) } else { Err(Answer::BadParameter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed_mail(line: &str) -> Result<Mail, Answer> {
        let command = parse(line)?;
        let Command::Mail(mail) = command else { panic!("{command:?}") };
        Ok(mail)
    }

    #[test]
    fn reads_mail_with_parameters() {
        let mail = parsed_mail("mail from: <a@b.test>  size=10 BODY=8bitmime SMTPUTF8").unwrap();
        assert_eq!(mail.sender, Some(Address::parse("a@b.test").unwrap()));
        assert_eq!((mail.size, mail.body, mail.smtputf8), (Some(10), Some(Body::EightBit), true));
        assert!(!parsed_mail("MAIL FROM:<>").unwrap().has_parameters());
        assert_eq!(parsed_mail("MAIL FROM:<> SIZE=99999999999999999999").unwrap().size, Some(u64::MAX));
    }

    #[test]
    fn refuses_what_is_wrong_with_the_right_code() {
        for (line, want) in [
            ("MAIL FROM:<> SIZE=x", Answer::BadParameter),
            ("MAIL FROM:<> SIZE", Answer::BadParameter),
            ("MAIL FROM:<> SIZE=+1", Answer::BadParameter),
            ("MAIL FROM:<> SIZE=1 SIZE=1", Answer::BadParameter),
            ("MAIL FROM:<> BODY=BINARYMIME", Answer::BadParameter),
            ("MAIL FROM:<> SMTPUTF8=1", Answer::BadParameter),
            ("MAIL FROM:<> RET=FULL", Answer::UnknownParameter),
            ("MAIL FROM:<>SIZE=1", Answer::BadSender),
            ("MAIL FROM:a@b.test", Answer::BadSender),
            ("MAIL FROM <a@b.test>", Answer::BadSender),
            ("MAIL", Answer::BadSender),
            ("MAIL FROM:<jörg@b.test>", Answer::NeedsSmtputf8),
            ("RCPT TO:<>", Answer::BadRecipient),
            ("RCPT TO:<a@b.test> NOTIFY=NEVER", Answer::UnknownParameter),
            ("RCPT TO:<a@b.test>x", Answer::BadRecipient),
            ("RCPT TÖ:<a@b.test>", Answer::BadRecipient),
            ("EHLO", Answer::BadHelo),
            ("EHLO a b", Answer::BadHelo),
            ("EHLO (a)", Answer::BadHelo),
            ("DATA x", Answer::NoArgument),
            ("GET / HTTP/1.1", Answer::WrongProtocol),
            ("Host: x", Answer::WrongProtocol),
            ("BDAT 10 LAST", Answer::ChunkingNotOffered),
            ("EXPN list", Answer::NotImplemented),
            ("", Answer::UnknownCommand),
            (" QUIT", Answer::UnknownCommand),
        ] {
            assert_eq!(parse(line), Err(want), "{line}");
        }
    }

    #[test]
    fn lines_must_be_whole_and_clean() {
        assert_eq!(text_of_line(b"NOOP\r"), Ok("NOOP"));
        assert_eq!(text_of_line(b"NOOP"), Err(Answer::BareLf));
        assert_eq!(text_of_line(b"NO\rOP\r"), Err(Answer::BadByte));
        assert_eq!(text_of_line(b"NO\0OP\r"), Err(Answer::BadByte));
        assert_eq!(text_of_line(b"NO\xffOP\r"), Err(Answer::NotText));
    }
}
