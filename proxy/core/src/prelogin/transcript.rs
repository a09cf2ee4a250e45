//! Conversations as data files, and the players that hold a machine to them.
//!
//! One line of a file is one line of the conversation, in the order in which things happen:
//!
//! ```text
//! # a comment
//! set PARAMETER VALUE   before anything else; what there is, is the player's affair
//! > TEXT                the peer says TEXT and CRLF
//! >> TEXT               the peer says TEXT as it is
//! < TEXT                the machine says TEXT and CRLF
//! << TEXT               the machine says TEXT as it is
//! ! WHAT                the machine asks for something other than sending
//! = WHAT                an answer or an event reaches the machine
//! left TEXT             these octets, and no others, have not been consumed
//! ```
//!
//! TEXT knows `\r \n \t \0 \s` (space), `\\` and `\xHH`. Consecutive lines of one peer are one stream. Every
//! conversation is played in one piece, octet by octet, and cut in two at every octet.

use std::fs;
use std::path::Path;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Action, BackendAction, Credentials, Limits, LoginOutcome, Security};

/// A machine under test, seen through the shell's loop.
pub(crate) trait Player {
    fn handle_input(&mut self, input: &[u8]) -> usize;
    fn poll(&mut self) -> Option<Event>;
    fn handle_event(&mut self, event: &str);
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Sent(Vec<u8>),
    /// In the words of a `!` line.
    Asked(String),
}

impl From<Action> for Event {
    fn from(action: Action) -> Self {
        match action {
            Action::Send(octets) => Self::Sent(octets),
            Action::StartTls => Self::Asked("tls".into()),
            Action::LogIn(Credentials { user, password }) => Self::Asked(format!("login {user:?} {password:?}")),
            Action::Close => Self::Asked("close".into()),
        }
    }
}

impl From<BackendAction> for Event {
    fn from(action: BackendAction) -> Self {
        match action {
            BackendAction::Send(octets) => Self::Sent(octets),
            BackendAction::Done(LoginOutcome::Accepted { text }) => Self::Asked(format!("accepted {text}")),
            BackendAction::Done(LoginOutcome::Refused) => Self::Asked("refused".into()),
            BackendAction::Done(LoginOutcome::Unavailable) => Self::Asked("unavailable".into()),
        }
    }
}

/// The outcome of a `=` line.
pub(crate) fn outcome(event: &str) -> LoginOutcome {
    match event.split_once(' ').unwrap_or((event, "")) {
        ("accepted", text) => LoginOutcome::Accepted { text: text.to_owned() },
        ("refused", _) => LoginOutcome::Refused,
        ("unavailable", _) => LoginOutcome::Unavailable,
        other => panic!("what is {other:?}?"),
    }
}

/// The `set` lines of a client's conversation: security (`tls` unless set), and limits.
pub(crate) fn client_parameters(parameters: &[(String, String)]) -> (Security, Limits) {
    let (mut security, mut limits) = (Security::Tls, Limits::default());
    for (name, value) in parameters {
        match (name.as_str(), value.as_str()) {
            ("security", "tls") => security = Security::Tls,
            ("security", "starttls") => security = Security::StartTls,
            ("security", "plain") => security = Security::PlainAllowed,
            ("command_bytes", value) => limits.command_bytes = value.parse().unwrap(),
            ("bad_commands", value) => limits.bad_commands = value.parse().unwrap(),
            ("failed_logins", value) => limits.failed_logins = value.parse().unwrap(),
            other => panic!("what is {other:?}?"),
        }
    }
    (security, limits)
}

/// The credentials of a back end's conversation: `user` and `password`, escaped like texts.
pub(crate) fn backend_parameters(parameters: &[(String, String)]) -> Credentials {
    let value = |name: &str| {
        let value = parameters.iter().find(|parameter| parameter.0 == name).map_or("", |parameter| &parameter.1);
        String::from_utf8(unescape(value)).unwrap()
    };
    Credentials { user: value("user"), password: value("password") }
}

/// Octets that look like a conversation more often than chance would have it.
pub(crate) fn garbage(rng: &mut SmallRng, words: &[&str]) -> Vec<u8> {
    let mut octets = Vec::new();
    for _ in 0..rng.random_range(1..12) {
        match rng.random_range(0..10) {
            0..7 => octets.extend_from_slice(words[rng.random_range(0..words.len())].as_bytes()),
            7 => octets.push(rng.random()),
            8 => octets.extend_from_slice(b"\r\n"),
            _ => octets.push(b' '),
        }
    }
    octets
}

/// A text of any characters but NUL, with a liking for those that protocols care about.
pub(crate) fn any_text(rng: &mut SmallRng, min: usize) -> String {
    let special =
        ['"', '\\', ' ', '\r', '\n', '{', '}', '+', '*', '%', '(', ')', '=', '<', '\t', '\u{7f}', 'ä', '\u{2028}'];
    let length = if rng.random_ratio(1, 20) { rng.random_range(200..700) } else { rng.random_range(min..12) };
    (0..length)
        .map(|_| match rng.random_range(0..4) {
            0 => special[rng.random_range(0..special.len())],
            1 => Some(rng.random::<char>()).filter(|&c| c != '\0').unwrap_or('x'),
            _ => char::from(rng.random_range(b' '..=b'~')),
        })
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Nowhere,
    Everywhere,
    At(usize),
}

/// Plays every `*.txt` of a directory and returns how many there were.
pub(crate) fn play_all<P: Player>(directory: &str, begin: impl Fn(&[(String, String)]) -> P) -> usize {
    let mut played = 0;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            play_file(&path, &begin);
            played += 1;
        }
    }
    played
}

fn play_file<P: Player>(path: &Path, begin: &impl Fn(&[(String, String)]) -> P) {
    let text = fs::read_to_string(path).unwrap();
    let steps = parse(&text);
    let said: usize = steps.iter().map(|step| if let Step::Say(octets) = &step.1 { octets.len() } else { 0 }).sum();
    let cuts = [Cut::Nowhere, Cut::Everywhere].into_iter().chain((0..said).map(Cut::At));
    for cut in cuts {
        let parameters: Vec<_> = steps
            .iter()
            .filter_map(
                |(_, step)| if let Step::Set(name, value) = step { Some((name.clone(), value.clone())) } else { None },
            )
            .collect();
        let mut stage = Stage { machine: begin(&parameters), waiting: Vec::new(), events: Vec::new(), offset: 0, cut };
        for (line, step) in &steps {
            let what = format!("{}:{line} cut {cut:?}", path.display());
            stage.play(step, &what);
        }
        stage.settle();
        assert!(stage.events.is_empty(), "{} cut {cut:?}: at the end {:?}", path.display(), stage.events);
    }
}

enum Step {
    Set(String, String),
    Say(Vec<u8>),
    Expect(Event),
    Tell(String),
    Left(Vec<u8>),
}

fn parse(text: &str) -> Vec<(usize, Step)> {
    let mut steps: Vec<(usize, Step)> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let step = match word {
            "set" => {
                let (name, value) = rest.split_once(' ').unwrap();
                Step::Set(name.to_owned(), value.to_owned())
            }
            ">" => Step::Say([unescape(rest).as_slice(), b"\r\n"].concat()),
            ">>" => Step::Say(unescape(rest)),
            "<" => Step::Expect(Event::Sent([unescape(rest).as_slice(), b"\r\n"].concat())),
            "<<" => Step::Expect(Event::Sent(unescape(rest))),
            "!" => Step::Expect(Event::Asked(rest.to_owned())),
            "=" => Step::Tell(rest.to_owned()),
            "left" => Step::Left(unescape(rest)),
            other => panic!("line {}: what is {other:?}?", index + 1),
        };
        match (steps.last_mut(), step) {
            (Some((_, Step::Say(before))), Step::Say(more)) => before.extend(more),
            (_, step) => steps.push((index + 1, step)),
        }
    }
    steps
}

fn unescape(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        octets.extend_from_slice(before.as_bytes());
        let (escape, after) = after.split_at(1);
        rest = after;
        octets.push(match escape {
            "r" => b'\r',
            "t" => b'\t',
            "n" => b'\n',
            "0" => 0,
            "s" => b' ',
            "\\" => b'\\',
            "x" => {
                let (hex, after) = rest.split_at(2);
                rest = after;
                u8::from_str_radix(hex, 16).unwrap()
            }
            other => panic!("escape {other:?} in {text:?}"),
        });
    }
    octets.extend_from_slice(rest.as_bytes());
    octets
}

/// A machine, the octets that wait for it, and what it has done that no line has asked for yet.
struct Stage<P> {
    machine: P,
    waiting: Vec<u8>,
    events: Vec<Event>,
    offset: usize,
    cut: Cut,
}

impl<P: Player> Stage<P> {
    fn play(&mut self, step: &Step, what: &str) {
        match step {
            Step::Set(..) => {}
            Step::Say(octets) => self.say(octets),
            Step::Expect(expected) => {
                self.settle();
                self.expect(expected, what);
            }
            Step::Tell(event) => {
                self.settle();
                assert!(self.events.is_empty(), "{what}: unexpected {:?}", self.events);
                if event == "tls" {
                    self.waiting.clear();
                }
                self.machine.handle_event(event);
                self.settle();
            }
            Step::Left(octets) => {
                self.settle();
                assert_eq!(self.waiting.escape_ascii().to_string(), octets.escape_ascii().to_string(), "{what}");
            }
        }
    }

    /// Brings octets in pieces, as a network might.
    fn say(&mut self, octets: &[u8]) {
        for (index, &octet) in octets.iter().enumerate() {
            if matches!(self.cut, Cut::Everywhere) || matches!(self.cut, Cut::At(at) if at == self.offset + index) {
                self.settle();
            }
            self.waiting.push(octet);
        }
        self.offset += octets.len();
    }

    /// The shell's loop: feed, drain, and again while anything moves.
    fn settle(&mut self) {
        loop {
            let consumed = if self.waiting.is_empty() { 0 } else { self.machine.handle_input(&self.waiting) };
            self.waiting.drain(..consumed);
            while let Some(event) = self.machine.poll() {
                match (self.events.last_mut(), event) {
                    (Some(Event::Sent(before)), Event::Sent(more)) => before.extend(more),
                    (_, event) => self.events.push(event),
                }
            }
            if consumed == 0 {
                return;
            }
        }
    }

    fn expect(&mut self, expected: &Event, what: &str) {
        assert!(!self.events.is_empty(), "{what}: nothing happened, expected {}", show(expected));
        match (&mut self.events[0], expected) {
            (Event::Sent(sent), Event::Sent(line)) if sent.starts_with(line) => {
                sent.drain(..line.len());
                if sent.is_empty() {
                    self.events.remove(0);
                }
            }
            (Event::Asked(asked), Event::Asked(expected)) if asked == expected => {
                self.events.remove(0);
            }
            (actual, expected) => panic!("{what}: expected {}, got {}", show(expected), show(actual)),
        }
    }
}

fn show(event: &Event) -> String {
    match event {
        Event::Sent(octets) => format!("to send {:?}", octets.escape_ascii().to_string()),
        Event::Asked(what) => format!("to ask for {what:?}"),
    }
}
