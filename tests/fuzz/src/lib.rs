//! What the targets demand of a machine besides not to panic: the same deeds however the network cuts its
//! input, whole reply lines, no password in clear text, and one end to each login.

pub mod smtp;

use proxy_core::prelogin::{Action, BackendAction, Credentials, Limits, LoginOutcome, Security};
use proxy_core::{imap, pop3};

/// The client's machines have the same shape.
pub trait Client {
    fn begin(security: Security, limits: Limits) -> Self;
    fn handle_input(&mut self, input: &[u8]) -> usize;
    fn poll_action(&mut self) -> Option<Action>;
    fn handle_tls_started(&mut self);
    fn handle_login(&mut self, outcome: LoginOutcome);
}

/// So have those of the back end.
pub trait Backend {
    fn begin(credentials: Credentials) -> Self;
    fn handle_input(&mut self, input: &[u8]) -> usize;
    fn handle_eof(&mut self);
    fn poll_action(&mut self) -> Option<BackendAction>;
}

macro_rules! same_shape {
    ($protocol:ident) => {
        impl Client for $protocol::PreLogin {
            fn begin(security: Security, limits: Limits) -> Self {
                Self::new("mx.pool.test", security, limits)
            }
            fn handle_input(&mut self, input: &[u8]) -> usize {
                Self::handle_input(self, input)
            }
            fn poll_action(&mut self) -> Option<Action> {
                Self::poll_action(self)
            }
            fn handle_tls_started(&mut self) {
                Self::handle_tls_started(self);
            }
            fn handle_login(&mut self, outcome: LoginOutcome) {
                Self::handle_login(self, outcome);
            }
        }

        impl Backend for $protocol::BackendLogin {
            fn begin(credentials: Credentials) -> Self {
                Self::new(credentials)
            }
            fn handle_input(&mut self, input: &[u8]) -> usize {
                Self::handle_input(self, input)
            }
            fn handle_eof(&mut self) {
                Self::handle_eof(self);
            }
            fn poll_action(&mut self) -> Option<BackendAction> {
                Self::poll_action(self)
            }
        }
    };
}

same_shape!(imap);
same_shape!(pop3);

/// What a client's machine did: octets to send, joined, and everything else.
#[derive(Debug, PartialEq, Eq, Default)]
struct Deeds {
    sent: Vec<u8>,
    asked: Vec<Action>,
    consumed: usize,
}

/// Plays a client that says `data` but for its first octet, which sets the scene.
pub fn client<M: Client>(data: &[u8]) {
    let Some((&scene, input)) = data.split_first().filter(|(_, input)| !input.is_empty()) else { return };
    let whole = play_client::<M>(scene, input, input.len().max(1));
    assert_eq!(whole, play_client::<M>(scene, input, 1), "cut at every octet");
    assert_eq!(whole, play_client::<M>(scene, input, 7), "cut at every seventh octet");
    assert!(whole.sent.ends_with(b"\r\n") && !whole.sent.contains(&0));
    let lone_cr = whole.sent.windows(2).any(|pair| pair[0] == b'\r' && pair[1] != b'\n');
    let lone_lf = whole.sent.windows(2).any(|pair| pair[0] != b'\r' && pair[1] == b'\n');
    assert!(!lone_cr && !lone_lf);
}

fn play_client<M: Client>(scene: u8, input: &[u8], piece: usize) -> Deeds {
    let security = [Security::StartTls, Security::PlainAllowed, Security::Tls][usize::from(scene % 3)];
    let limits = Limits { command_bytes: 256, bad_commands: 20, failed_logins: 5 };
    let outcome = match scene / 3 % 3 {
        0 => LoginOutcome::Accepted { text: "in".into() },
        1 => LoginOutcome::Refused,
        _ => LoginOutcome::Unavailable,
    };
    let mut machine = M::begin(security, limits);
    let mut private = security != Security::StartTls;
    let mut deeds = Deeds::default();
    let mut waiting = Vec::new();
    for octets in input.chunks(piece) {
        waiting.extend_from_slice(octets);
        loop {
            let consumed = machine.handle_input(&waiting);
            waiting.drain(..consumed);
            deeds.consumed += consumed;
            while let Some(action) = machine.poll_action() {
                match action {
                    Action::Send(octets) => deeds.sent.extend(octets),
                    Action::StartTls => {
                        machine.handle_tls_started();
                        private = true;
                    }
                    Action::LogIn(credentials) => {
                        assert!(private, "a password in clear text");
                        assert!(!credentials.user.is_empty() && !credentials.user.contains('\0'));
                        assert!(!credentials.password.contains('\0'));
                        machine.handle_login(outcome.clone());
                        deeds.asked.push(Action::LogIn(credentials));
                    }
                    Action::Close => deeds.asked.push(Action::Close),
                }
            }
            if consumed == 0 {
                break;
            }
        }
    }
    deeds
}

/// Plays a back end. The first octet says how long user and password are that follow it.
pub fn backend<M: Backend>(data: &[u8]) {
    let Some((&lengths, rest)) = data.split_first() else { return };
    let (user, rest) = rest.split_at(rest.len().min(usize::from(lengths & 15)));
    let (password, input) = rest.split_at(rest.len().min(usize::from(lengths >> 4)));
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).replace('\0', "");
    let credentials = Credentials { user: text(user), password: text(password) };
    let whole = play_backend::<M>(&credentials, input, input.len().max(1));
    assert_eq!(whole, play_backend::<M>(&credentials, input, 1), "cut at every octet");
    let ends = whole.0.iter().filter(|action| matches!(action, BackendAction::Done(_))).count();
    assert_eq!(ends, 1);
    assert!(matches!(whole.0.last(), Some(BackendAction::Done(_))));
}

fn play_backend<M: Backend>(credentials: &Credentials, input: &[u8], piece: usize) -> (Vec<BackendAction>, usize) {
    let mut machine = M::begin(credentials.clone());
    let mut actions = Vec::new();
    let mut total = 0;
    for mut octets in input.chunks(piece) {
        loop {
            let consumed = machine.handle_input(octets);
            octets = &octets[consumed..];
            total += consumed;
            actions.extend(std::iter::from_fn(|| machine.poll_action()));
            if consumed == 0 {
                break;
            }
        }
    }
    machine.handle_eof();
    actions.extend(std::iter::from_fn(|| machine.poll_action()));
    (actions, total)
}
