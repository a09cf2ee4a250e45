//! The back end's side: a login said anew, by USER and PASS where they can say it and by AUTH PLAIN where
//! they can't, and the answer understood.

use std::collections::VecDeque;
use std::fmt;

use crate::prelogin::{BackendAction, Credentials, LoginOutcome, Progress, append_line, trim_line_end};
use crate::sasl;

/// Longest reply line (RFC 2449 section 4 says 512), with room for the talkative.
const MAX_LINE: usize = 2 * 1024;
/// Longest argument of USER or PASS: a command line has 255 octets with its end (RFC 2449 section 4).
const MAX_ARGUMENT: usize = 255 - "USER ".len() - "\r\n".len();

/// One login at one back end.
pub struct BackendLogin {
    credentials: Credentials,
    state: State,
    buffer: Vec<u8>,
    actions: VecDeque<BackendAction>,
}

/// What the next line answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    User,
    AuthPlain,
    /// PASS, or AUTH's message.
    Password,
    Done,
}

impl BackendLogin {
    /// Waits for the greeting, then logs in with these credentials.
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, state: State::Greeting, buffer: Vec::new(), actions: VecDeque::new() }
    }

    /// Reads the back end's lines up to the answer; returns how many octets it has consumed.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut consumed = 0;
        while let Some(rest) = input.get(consumed..).filter(|rest| !rest.is_empty()) {
            if self.state == State::Done {
                break;
            }
            let (taken, progress) = append_line(&mut self.buffer, rest, MAX_LINE);
            consumed += taken;
            match progress {
                Progress::Partial => {}
                Progress::TooLong => self.finish(LoginOutcome::Unavailable),
                Progress::Line => {
                    let line = std::mem::take(&mut self.buffer);
                    self.handle_line(&String::from_utf8_lossy(trim_line_end(&line)));
                }
            }
        }
        consumed
    }

    /// The back end has closed the connection.
    pub fn handle_eof(&mut self) {
        self.finish(LoginOutcome::Unavailable);
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<BackendAction> {
        self.actions.pop_front()
    }

    fn handle_line(&mut self, line: &str) {
        match (self.state, Reply::parse(line)) {
            (State::Greeting, Reply::Ok(_)) => self.begin(),
            (State::User, Reply::Ok(_)) => {
                let password = format!("PASS {}\r\n", self.credentials.password);
                self.say(State::Password, password);
            }
            (State::AuthPlain, Reply::Continue) => {
                let message = format!("{}\r\n", sasl::encode_plain(&self.credentials));
                self.say(State::Password, message);
            }
            (State::Password, Reply::Ok(text)) => self.finish(LoginOutcome::Accepted { text: text.to_owned() }),
            (State::User | State::Password, Reply::Err { users_fault: true }) => self.finish(LoginOutcome::Refused),
            // A greeting of -ERR, no AUTH PLAIN over there, or a reply that makes no sense.
            (_, Reply::Ok(_) | Reply::Err { .. } | Reply::Continue | Reply::Garbage) => {
                self.finish(LoginOutcome::Unavailable);
            }
        }
    }

    fn begin(&mut self) {
        let Credentials { user, password } = &self.credentials;
        if is_sayable(user) && !user.contains(' ') && is_sayable(password) {
            let command = format!("USER {user}\r\n");
            self.say(State::User, command);
        } else {
            self.say(State::AuthPlain, "AUTH PLAIN\r\n".to_owned());
        }
    }

    fn say(&mut self, next: State, command: String) {
        self.actions.push_back(BackendAction::Send(command.into_bytes()));
        self.state = next;
    }

    fn finish(&mut self, outcome: LoginOutcome) {
        if self.state != State::Done {
            self.state = State::Done;
            self.buffer = Vec::new();
            self.actions.push_back(BackendAction::Done(outcome));
        }
    }
}

impl fmt::Debug for BackendLogin {
    /// Without the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendLogin").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Whether USER or PASS can carry it anywhere: printable ASCII, and short enough. (UTF-8 would need
/// RFC 6856's UTF8 command first.)
fn is_sayable(argument: &str) -> bool {
    (1..=MAX_ARGUMENT).contains(&argument.len()) && argument.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

enum Reply<'a> {
    Ok(&'a str),
    Err { users_fault: bool },
    Continue,
    Garbage,
}

impl<'a> Reply<'a> {
    fn parse(line: &'a str) -> Self {
        let (word, text) = line.split_once(' ').unwrap_or((line, ""));
        if word.eq_ignore_ascii_case("+OK") {
            Self::Ok(text)
        } else if word.eq_ignore_ascii_case("-ERR") {
            Self::Err { users_fault: is_users_fault(text) }
        } else if word == "+" {
            Self::Continue
        } else {
            Self::Garbage
        }
    }
}

/// Some response codes speak of the server or of the moment: SYS/TEMP, SYS/PERM (RFC 3206), IN-USE,
/// LOGIN-DELAY (RFC 2449). AUTH, an unknown one or none refuses the credentials.
fn is_users_fault(text: &str) -> bool {
    let Some(code) = text.strip_prefix('[').and_then(|rest| rest.split(']').next()) else {
        return true;
    };
    let code = code.to_ascii_uppercase();
    !(code == "IN-USE" || code == "LOGIN-DELAY" || code == "SYS" || code.starts_with("SYS/"))
}
