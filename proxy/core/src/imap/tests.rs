//! Conversations, limits, garbage, and the round trip from one side's encoder to the other's parser.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{BackendLogin, PreLogin};
use crate::prelogin::transcript::{
    Event, Player, any_text, backend_parameters, client_parameters, garbage, outcome, play_all,
};
use crate::prelogin::{Action, BackendAction, Credentials, Limits, LoginOutcome, MAX_PENDING_REPLIES, Security};

impl Player for PreLogin {
    fn handle_input(&mut self, input: &[u8]) -> usize {
        Self::handle_input(self, input)
    }

    fn poll(&mut self) -> Option<Event> {
        self.poll_action().map(Event::from)
    }

    fn handle_event(&mut self, event: &str) {
        match event {
            "tls" => self.handle_tls_started(),
            "timeout" => self.handle_timeout(),
            "shutdown" => self.handle_shutdown(),
            other => self.handle_login(outcome(other)),
        }
    }
}

impl Player for BackendLogin {
    fn handle_input(&mut self, input: &[u8]) -> usize {
        Self::handle_input(self, input)
    }

    fn poll(&mut self) -> Option<Event> {
        self.poll_action().map(Event::from)
    }

    fn handle_event(&mut self, event: &str) {
        assert_eq!(event, "eof");
        self.handle_eof();
    }
}

#[test]
fn conversations_with_clients() {
    let played = play_all("src/imap/client", |parameters| {
        let (security, limits) = client_parameters(parameters);
        PreLogin::new("mx.pool.test", security, limits)
    });
    assert!(played >= 8, "{played}");
}

#[test]
fn conversations_with_back_ends() {
    let played = play_all("src/imap/backend", |parameters| BackendLogin::new(backend_parameters(parameters)));
    assert!(played >= 8, "{played}");
}

/// Feeds a client's octets and returns what the machine asked for other than to send.
fn feed(machine: &mut PreLogin, mut input: &[u8]) -> Vec<Action> {
    let mut asked = Vec::new();
    loop {
        let consumed = machine.handle_input(input);
        input = &input[consumed..];
        while let Some(action) = machine.poll_action() {
            if !matches!(action, Action::Send(_)) {
                asked.push(action);
            }
        }
        if consumed == 0 {
            return asked;
        }
    }
}

#[test]
fn an_endless_line_costs_no_memory() {
    let piece = vec![b'x'; 64 * 1024];
    for prefix in
        [&b""[..], b"a LOGIN ", b"a LOGIN {20+}\r\n", b"a AUTHENTICATE PLAIN\r\n", b"a LOGIN {1073741824+}\r\n"]
    {
        let limits = Limits::default();
        let mut machine = PreLogin::new("h", Security::Tls, limits);
        let mut asked = feed(&mut machine, prefix);
        for _ in 0..(1 << 30) / piece.len() {
            asked.extend(feed(&mut machine, &piece));
            assert!(machine.buffered() <= 2 * limits.command_bytes);
        }
        assert_eq!(asked, [Action::Close], "{prefix:?}");
    }
    let mut backend = BackendLogin::new(Credentials { user: "u".into(), password: "p".into() });
    assert!(backend.handle_input(&piece) < piece.len());
    assert_eq!(backend.poll_action(), Some(BackendAction::Done(LoginOutcome::Unavailable)));
    assert_eq!(backend.handle_input(&piece), 0);
}

#[test]
fn replies_that_nobody_takes_hold_the_commands_back() {
    let limits = Limits { bad_commands: u32::MAX, ..Limits::default() };
    let mut machine = PreLogin::new("h", Security::Tls, limits);
    let commands = b"a NOOP\r\n".repeat(20_000);
    let consumed = machine.handle_input(&commands);
    assert!(consumed > 0 && consumed < commands.len());
    assert_eq!(machine.handle_input(&commands[consumed..]), 0);
    let sent = std::iter::from_fn(|| machine.poll_action()).map(|action| match action {
        Action::Send(octets) => octets.len(),
        Action::StartTls | Action::LogIn(_) | Action::Close => panic!("{action:?}"),
    });
    assert!(sent.sum::<usize>() < MAX_PENDING_REPLIES + 200);
    assert!(machine.handle_input(&commands[consumed..]) > 0);
}

const CLIENT_WORDS: [&str; 28] = [
    "a ",
    "LOGIN ",
    "login ",
    "AUTHENTICATE PLAIN",
    "AUTHENTICATE LOGIN ",
    "AHUAcA==\r\n",
    "dQ==\r\n",
    "*\r\n",
    "{3}\r\n",
    "{3+}\r\n",
    "{0+}\r\n",
    "{4294967295}\r\n",
    "{4294967295+}\r\n",
    "abc",
    "\"a\\\"b\" ",
    "\"",
    "ID (",
    "NIL",
    ")",
    "STARTTLS\r\n",
    "NOOP\r\n",
    "CAPABILITY\r\n",
    "u p\r\n",
    "\r",
    "\n",
    "\0",
    "SELECT",
    "a LOGIN u p\r\n",
];
const BACKEND_WORDS: [&str; 16] = [
    "* OK ready\r\n",
    "* OK [CAPABILITY LOGINDISABLED] x\r\n",
    "* BYE\r\n",
    "* CAPABILITY IMAP4rev1\r\n",
    "p1 OK in\r\n",
    "p1 NO [INUSE] x\r\n",
    "p1 BAD\r\n",
    "+ OK\r\n",
    "+",
    "p1",
    "* ",
    "[",
    "{3}\r\n",
    "OK",
    "\r",
    "ä",
];

#[test]
fn garbage_from_clients_is_survived() {
    let mut rng = SmallRng::seed_from_u64(1);
    let limits = Limits { command_bytes: 200, bad_commands: 5, failed_logins: 3 };
    for round in 0..100_000 {
        let security = [Security::StartTls, Security::PlainAllowed, Security::Tls][round % 3];
        let mut machine = PreLogin::new("h", security, limits);
        for _ in 0..4 {
            for action in feed(&mut machine, &garbage(&mut rng, &CLIENT_WORDS)) {
                match action {
                    Action::StartTls => machine.handle_tls_started(),
                    Action::LogIn(Credentials { user, .. }) => {
                        assert!(security != Security::StartTls || machine.is_encrypted(), "a password in clear text");
                        assert!(!user.is_empty() && !user.contains('\0'));
                        machine.handle_login([LoginOutcome::Refused, LoginOutcome::Unavailable][round % 2].clone());
                    }
                    Action::Close | Action::Send(_) => {}
                }
            }
            assert!(machine.buffered() <= 1024);
        }
    }
}

#[test]
fn garbage_from_back_ends_is_survived() {
    let mut rng = SmallRng::seed_from_u64(2);
    for _ in 0..100_000 {
        let mut machine = BackendLogin::new(Credentials { user: any_text(&mut rng, 1), password: "p".into() });
        for _ in 0..4 {
            machine.handle_input(&garbage(&mut rng, &BACKEND_WORDS));
        }
        machine.handle_eof();
        let ends = std::iter::from_fn(|| machine.poll_action()).filter(|a| matches!(a, BackendAction::Done(_)));
        assert_eq!(ends.count(), 1);
    }
}

/// Plays the two machines against each other: what one encodes, the other reads.
#[test]
fn what_the_back_end_is_told_is_what_the_client_said() {
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..20_000 {
        let said = Credentials { user: any_text(&mut rng, 1), password: any_text(&mut rng, 0) };
        let mut login = BackendLogin::new(said.clone());
        let mut server = PreLogin::new("h", Security::Tls, Limits::default());
        let heard = loop {
            match server.poll_action().expect("the login got stuck") {
                Action::Send(reply) => assert_eq!(login.handle_input(&reply), reply.len()),
                Action::LogIn(heard) => break heard,
                other @ (Action::StartTls | Action::Close) => panic!("{other:?} for {said:?}"),
            }
            while let Some(action) = login.poll_action() {
                let BackendAction::Send(mut octets) = action else { panic!("{action:?} for {said:?}") };
                if rng.random() {
                    let rest = octets.split_off(octets.len() / 2);
                    server.handle_input(&octets);
                    octets = rest;
                }
                assert_eq!(server.handle_input(&octets), octets.len());
            }
        };
        assert_eq!((heard.user, heard.password), (said.user, said.password));
        server.handle_login(LoginOutcome::Accepted { text: "in".into() });
        let Some(Action::Send(reply)) = server.poll_action() else { panic!("no reply") };
        login.handle_input(&reply);
        assert_eq!(login.poll_action(), Some(BackendAction::Done(LoginOutcome::Accepted { text: "in".into() })));
    }
}
