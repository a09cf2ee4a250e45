//! What the SMTP targets demand: the same deeds however the input is cut, content without bare CR, bare LF or NUL,
//! and a promise only for what a back end accepted.

use std::sync::Arc;

use proxy_core::address::Address;
use proxy_core::smtp::{
    Action, Delivery, DeliveryAction, Limits, Outcome, Protocol, RecipientAnswer, RecipientResult, ServerConfig,
    Session, Transaction,
};

/// The whole of a session's deeds, in order, with neighbouring pieces joined.
#[derive(Debug, Default, PartialEq, Eq)]
struct Deeds {
    said: Vec<u8>,
    content: Vec<u8>,
    marks: Vec<(usize, usize, &'static str)>,
}

impl Deeds {
    fn mark(&mut self, what: &'static str) {
        self.marks.push((self.said.len(), self.content.len(), what));
    }
}

/// The first byte chooses how the second run is cut.
pub fn session(data: &[u8]) {
    let Some((cut, input)) = data.split_first() else { return };
    let whole = run_session(input, usize::MAX);
    assert!(whole.content.windows(2).all(|w| (w[0] == b'\r') == (w[1] == b'\n')), "bare CR or LF in content");
    assert!(!whole.content.contains(&0), "NUL in content");
    assert!(!whole.said.windows(6).any(|w| w == b"250 OK"), "a promise nobody made");
    assert_eq!(run_session(input, usize::from(*cut) % 7 + 1), whole);
}

fn run_session(input: &[u8], piece: usize) -> Deeds {
    let limits = Limits { message_bytes: 512, recipients: 3, command_line: 128, ..Limits::default() };
    let config = ServerConfig { hostname: "mx.pool.test".into(), starttls: true, limits };
    let mut session = Session::new(Arc::new(config));
    let mut deeds = Deeds::default();
    let mut chunks = input.chunks(piece.min(input.len().max(1)));
    let mut pending: Vec<u8> = Vec::new();
    loop {
        while let Some(action) = session.poll_action() {
            match action {
                Action::Send(bytes) => deeds.said.extend(bytes),
                Action::StartTls => {
                    // The shell throws away what it has read; here that is all there is, or cuts would differ.
                    deeds.mark("tls");
                    return deeds;
                }
                Action::Resolve(address) => session.handle_recipient(answer(&address)),
                Action::BeginMessage(envelope) => {
                    assert!(!envelope.recipients.is_empty());
                    deeds.mark("begin");
                }
                Action::Body(bytes) => deeds.content.extend(bytes),
                Action::EndMessage => {
                    deeds.mark("end");
                    session.handle_outcome(Outcome::ScannerUnavailable);
                }
                // Where content turns bad within a piece, how much of it was handed over before is not promised.
                Action::AbortMessage => {
                    let begun = deeds.marks.iter().rfind(|m| m.2 == "begin").map_or(0, |m| m.1);
                    deeds.content.truncate(begun);
                    deeds.mark("abort");
                }
                Action::Close => {
                    deeds.mark("close");
                    return deeds;
                }
            }
        }
        let used = session.handle_input(&pending);
        pending.drain(..used);
        if used == 0 {
            let Some(chunk) = chunks.next() else { return deeds };
            pending.extend(chunk);
        }
    }
}

fn answer(address: &Address) -> RecipientAnswer {
    match address.local().len() % 4 {
        0 => RecipientAnswer::UnknownUser,
        1 => RecipientAnswer::NotSure,
        _ => RecipientAnswer::Accept,
    }
}

/// A back end that says anything at all: every recipient is settled, and nobody is accepted without a 2xx.
pub fn delivery(data: &[u8]) {
    let Some((how, input)) = data.split_first() else { return };
    let protocol = if how & 1 == 0 { Protocol::Lmtp } else { Protocol::Smtp };
    let address = |text: &str| Address::parse(text).expect("a constant");
    let transaction = Transaction {
        sender: (how & 2 == 0).then(|| address("sender@example.test")),
        recipients: vec![address("a@be1.test"), address("b@be1.test")],
        smtputf8: how & 4 != 0,
        body_8bit: how & 8 != 0,
        size: 1_000,
    };
    let mut delivery = Delivery::new(protocol, "fe1.test", transaction);
    let mut lines = input.split_inclusive(|b| *b == b'\n');
    loop {
        match delivery.poll_action() {
            Some(DeliveryAction::Send(bytes)) => assert!(bytes.ends_with(b"\r\n")),
            Some(DeliveryAction::SendBody) => delivery.body_sent(),
            Some(DeliveryAction::Done(result)) => {
                assert_eq!(result.recipients().len(), 2);
                let accepted = result.recipients().iter().any(|(_, r)| matches!(r, RecipientResult::Accepted(_)));
                assert!(!accepted || input.contains(&b'2'), "accepted without a 2xx");
                return;
            }
            None => match lines.next() {
                Some(line) => {
                    delivery.handle_input(line);
                }
                None => delivery.handle_eof(),
            },
        }
    }
}
