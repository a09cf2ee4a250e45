//! Runs the transcripts in `smtp/transcripts`: as written (checked line by line), in one piece, byte by byte, and
//! cut in two at every byte.
//!
//! A transcript's lines are:
//! - `@ key=value`: a limit, or `starttls=no`, before anything else;
//! - `C: text`: a line from the client, CRLF added; `C> text` without CRLF; `\r \n \0 \\ \xNN` are escapes, and
//!   `\*NNN*text*` repeats text;
//! - `S: text`: a reply line; `A: action`: any other action, in this order;
//! - `E: event`: what the shell answers to the action above it, or what happens to the connection.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::{Outcome, accepted, is_clean};
use crate::smtp::{Action, Envelope, Limits, RecipientAnswer, Reply, ServerConfig, Session};

#[derive(Debug, Clone)]
enum Line {
    Input(Vec<u8>),
    Expect(String),
    /// Happens to the connection, between two pieces of input.
    Event(String),
}

struct Script {
    config: ServerConfig,
    lines: Vec<Line>,
    answers: VecDeque<String>,
}

fn parse(text: &str) -> Script {
    let limits = Limits { message_bytes: 1000, ..Limits::default() };
    let mut script = Script {
        config: ServerConfig { hostname: "mx.pool.test".to_owned(), starttls: true, limits },
        lines: Vec::new(),
        answers: VecDeque::new(),
    };
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (kind, rest) = (line.get(..2).unwrap(), line.get(3..).unwrap_or(""));
        match kind {
            "@ " => configure(&mut script.config, &line[2..]),
            "C:" => script.lines.push(Line::Input([unescape(rest), b"\r\n".to_vec()].concat())),
            "C>" => script.lines.push(Line::Input(unescape(rest))),
            "S:" | "A:" => script.lines.push(Line::Expect(line.to_owned())),
            "E:" if ["tls", "timeout", "eof", "shutdown", "early"].contains(&rest) => {
                script.lines.push(Line::Event(rest.to_owned()));
            }
            "E:" => script.answers.push_back(rest.to_owned()),
            _ => panic!("no such line: {line}"),
        }
    }
    script
}

fn configure(config: &mut ServerConfig, setting: &str) {
    let (key, value) = setting.split_once('=').unwrap();
    let number: u32 = value.parse().unwrap_or(0);
    match key {
        "starttls" => config.starttls = value == "yes",
        "message_bytes" => config.limits.message_bytes = number.into(),
        "recipients" => config.limits.recipients = number as usize,
        "command_line" => config.limits.command_line = number as usize,
        "bad_commands" => config.limits.bad_commands = number,
        "refused_recipients" => config.limits.refused_recipients = number,
        "idle_commands" => config.limits.idle_commands = number,
        _ => panic!("no such setting: {key}"),
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        out.extend_from_slice(plain.as_bytes());
        rest = &escaped[1..];
        match &escaped[..1] {
            "r" => out.push(b'\r'),
            "n" => out.push(b'\n'),
            "0" => out.push(0),
            "\\" => out.push(b'\\'),
            "x" => {
                out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                rest = &rest[2..];
            }
            "*" => {
                let parts: Vec<&str> = rest.splitn(3, '*').collect();
                out.extend(parts[1].repeat(parts[0].parse().unwrap()).bytes());
                rest = parts[2];
            }
            other => panic!("no such escape: {other}"),
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// The shell's loop, with answers from the script.
struct Shell {
    session: Session,
    answers: VecDeque<String>,
    /// What came out, as `S:` and `A:` lines.
    seen: Vec<String>,
    body: Vec<u8>,
    expected_recipients: usize,
    wants_tls: bool,
}

impl Shell {
    fn new(script: &Script) -> Self {
        Self {
            session: Session::new(Arc::new(script.config.clone())),
            answers: script.answers.clone(),
            seen: Vec::new(),
            body: Vec::new(),
            expected_recipients: 0,
            wants_tls: false,
        }
    }

    fn feed(&mut self, input: &[u8]) {
        let mut rest = input;
        loop {
            let used = self.session.handle_input(rest);
            rest = &rest[used..];
            let acted = self.drain();
            // What is unread at STARTTLS is thrown away.
            if self.wants_tls || rest.is_empty() && !acted {
                return;
            }
            assert!(used > 0 || acted, "stuck at {:?}", rest.escape_ascii().to_string());
        }
    }

    fn drain(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.session.poll_action() {
            acted = true;
            self.act(action);
        }
        acted
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(bytes) => {
                let text = String::from_utf8(bytes).unwrap();
                assert!(text.ends_with("\r\n") && !text.is_empty());
                self.seen.extend(text.split_terminator("\r\n").map(|line| format!("S: {line}")));
            }
            Action::StartTls => {
                self.note("starttls".to_owned());
                self.wants_tls = true;
            }
            Action::Resolve(address) => {
                self.note(format!("resolve {address}"));
                let answer = self.answers.pop_front().unwrap();
                self.session.handle_recipient(recipient_answer(&answer));
            }
            Action::BeginMessage(envelope) => {
                self.expected_recipients = envelope.recipients.len();
                self.note(show(&envelope));
            }
            Action::Body(content) => {
                assert!(is_clean(&content), "a piece is whole lines or parts of them");
                self.body.extend_from_slice(&content);
            }
            Action::EndMessage => {
                let content = std::mem::take(&mut self.body).escape_ascii().to_string();
                self.note(format!("body {content}"));
                self.note("end".to_owned());
                let answer = self.answers.pop_front().unwrap();
                self.session.handle_outcome(outcome(&answer, self.expected_recipients));
            }
            Action::AbortMessage => {
                self.body.clear();
                self.note("abort".to_owned());
            }
            Action::Close => self.note("close".to_owned()),
        }
    }

    fn note(&mut self, action: String) {
        self.seen.push(format!("A: {action}").trim_end().to_owned());
    }

    fn happen(&mut self, event: &str) {
        match event {
            "tls" => {
                self.session.handle_tls_started();
                self.wants_tls = false;
            }
            "timeout" => self.session.handle_timeout(),
            "eof" => self.session.handle_eof(),
            "shutdown" => self.session.handle_shutdown(),
            "early" => self.session.handle_early_talker(),
            other => panic!("no such event: {other}"),
        }
    }
}

fn show(envelope: &Envelope) -> String {
    let sender = envelope.sender.as_ref().map(ToString::to_string).unwrap_or_default();
    let recipients: Vec<String> = envelope.recipients.iter().map(ToString::to_string).collect();
    let mut text = format!("begin {} <{sender}> -> {}", envelope.helo, recipients.join(" "));
    let size = envelope.declared_size.map(|size| format!(" size={size}")).unwrap_or_default();
    for (set, name) in [
        (envelope.esmtp, " esmtp"),
        (envelope.tls, " tls"),
        (envelope.smtputf8, " smtputf8"),
        (envelope.body_8bit, " 8bit"),
        (true, size.as_str()),
    ] {
        text.push_str(if set { name } else { "" });
    }
    text
}

fn recipient_answer(text: &str) -> RecipientAnswer {
    match text {
        "accept" => RecipientAnswer::Accept,
        "unknown" => RecipientAnswer::UnknownUser,
        "relay" => RecipientAnswer::RelayDenied,
        "not-sure" => RecipientAnswer::NotSure,
        "unavailable" => RecipientAnswer::Unavailable,
        other => panic!("no such answer: {other}"),
    }
}

fn outcome(text: &str, recipients: usize) -> Outcome {
    match text {
        "accepted" => Outcome::Accepted(accepted(recipients)),
        "accepted-one-short" => Outcome::Accepted(accepted(recipients - 1)),
        "infected" => Outcome::Infected { signature: "Eicar\r\n250 ok".to_owned() },
        "scanner" => Outcome::ScannerUnavailable,
        "deferred" => Outcome::Deferred { text: "Back end be1 is down".to_owned() },
        "refused" => Outcome::Refused { reply: Reply::own(552, (5, 2, 2), "Mailbox full") },
        "refused-2xx" => Outcome::Refused { reply: Reply::own(250, (2, 0, 0), "odd") },
        other => panic!("no such outcome: {other}"),
    }
}

/// As written: what the session says is compared before the next input.
fn run_as_written(script: &Script, name: &str) {
    let mut shell = Shell::new(script);
    let mut expected = Vec::new();
    if !matches!(script.lines.first(), Some(Line::Event(event)) if event == "early") {
        shell.drain();
    }
    for line in &script.lines {
        match line {
            Line::Expect(text) => expected.push(text.clone()),
            Line::Input(_) | Line::Event(_) => assert_eq!(shell.seen, expected, "{name}, before {line:?}"),
        }
        match line {
            Line::Input(bytes) => shell.feed(bytes),
            Line::Event(event) => shell.happen(event),
            Line::Expect(_) => {}
        }
        shell.drain();
    }
    assert_eq!(shell.seen, expected, "{name}, at the end");
    assert!(shell.answers.is_empty(), "{name}: answers left over");
}

/// The same input, cut by `cut` within each stretch between two events.
fn run_cut(script: &Script, name: &str, cut: &dyn Fn(&[u8]) -> Vec<Vec<u8>>) {
    let mut shell = Shell::new(script);
    if !matches!(script.lines.first(), Some(Line::Event(event)) if event == "early") {
        shell.drain();
    }
    let mut stretch = Vec::new();
    let mut lines = script.lines.clone();
    lines.push(Line::Event(String::new()));
    for line in &lines {
        match line {
            Line::Input(bytes) => stretch.extend_from_slice(bytes),
            Line::Expect(_) => {}
            Line::Event(event) => {
                for piece in cut(&stretch).into_iter().filter(|piece| !piece.is_empty()) {
                    shell.feed(&piece);
                }
                stretch.clear();
                if !event.is_empty() {
                    shell.happen(event);
                }
                shell.drain();
            }
        }
    }
    let expected: Vec<String> = lines
        .into_iter()
        .filter_map(|line| match line {
            Line::Expect(text) => Some(text),
            Line::Input(_) | Line::Event(_) => None,
        })
        .collect();
    assert_eq!(shell.seen, expected, "{name}");
}

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/smtp/transcripts");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let script = parse(&std::fs::read_to_string(&path).unwrap());
        count += 1;
        run_as_written(&script, &name);
        run_cut(&script, &format!("{name} in one piece"), &|input| vec![input.to_vec()]);
        run_cut(&script, &format!("{name} byte by byte"), &|input| input.iter().map(|byte| vec![*byte]).collect());
        let length = script.lines.iter().map(|line| if let Line::Input(bytes) = line { bytes.len() } else { 0 }).sum();
        for at in 1..length {
            run_cut(&script, &format!("{name} cut at {at}"), &|input| {
                let (head, tail) = input.split_at(at.min(input.len()));
                vec![head.to_vec(), tail.to_vec()]
            });
        }
    }
    assert!(count >= 10, "the transcripts were found");
}
