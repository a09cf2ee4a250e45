//! Seeded garbage for both machines: no panic, no dead end, nothing unclean comes out.

use std::sync::Arc;

use super::{Dice, accepted, is_clean, transaction};
use crate::smtp::{
    Action, Delivery, DeliveryAction, Limits, Outcome, Protocol, RecipientAnswer, Reply, ServerConfig, Session,
};

const INPUTS: usize = 100_000;

const CLIENT_WORDS: [&[u8]; 32] = [
    b"EHLO a\r\n",
    b"HELO b\r\n",
    b"MAIL FROM:<>\r\n",
    b"MAIL FROM:<a@b.test> SIZE=10 BODY=8BITMIME SMTPUTF8\r\n",
    b"RCPT TO:<c@d.test>\r\n",
    b"RCPT TO:<postmaster>\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"STARTTLS\r\n",
    b"QUIT\r\n",
    b"VRFY x\r\n",
    b".\r\n",
    b"\r\n.\r\n",
    b"\n.\r\n",
    b"..",
    b"\r",
    b"\n",
    b"\0",
    b"\xff",
    b"\xc3\xb6",
    b"RCPT TO:<\xc3\xb6@d.test>\r\n",
    b"<",
    b">",
    b"\"",
    b"\\",
    b"@",
    b":",
    b" ",
    b"MAIL FROM:<@a,@b:c@d.test>\r\n",
    b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    b"BODY=",
];

const SERVER_WORDS: [&[u8]; 16] = [
    b"220 x\r\n",
    b"250 2.0.0 x\r\n",
    b"250-x\r\n",
    b"250-PIPELINING\r\n250 SMTPUTF8\r\n",
    b"354 x\r\n",
    b"450 x\r\n",
    b"550 5.1.1 x\r\n",
    b"421 x\r\n",
    b"250-SIZE 99999999999999999999999\r\n",
    b"\r\n",
    b"\n",
    b"\0",
    b"\xff",
    b"2",
    b"250 x\r",
    b"554-",
];

fn garbage(dice: &mut Dice, words: &[&[u8]]) -> Vec<u8> {
    let mut input = Vec::new();
    for _ in 0..dice.roll(24) {
        if dice.roll(8) == 0 {
            input.push(u8::try_from(dice.roll(256)).unwrap());
        } else {
            input.extend_from_slice(words[dice.roll(words.len())]);
        }
    }
    input
}

fn obey(session: &mut Session, action: Action, dice: &mut Dice) {
    match action {
        Action::Send(bytes) => assert!(is_clean(&bytes) && bytes.ends_with(b"\r\n") && bytes.is_ascii()),
        Action::Body(content) => assert!(is_clean(&content)),
        Action::StartTls => session.handle_tls_started(),
        Action::Resolve(_) => session.handle_recipient(match dice.roll(5) {
            0 => RecipientAnswer::UnknownUser,
            1 => RecipientAnswer::NotSure,
            _ => RecipientAnswer::Accept,
        }),
        Action::EndMessage => session.handle_outcome(match dice.roll(3) {
            0 => Outcome::Deferred { text: "x\r\ny".to_owned() },
            1 => Outcome::Refused { reply: Reply::new(550, None, "x") },
            _ => Outcome::Accepted(accepted(2)),
        }),
        Action::BeginMessage(envelope) => assert!(!envelope.recipients.is_empty()),
        Action::AbortMessage | Action::Close => {}
    }
}

#[test]
fn server_survives_garbage() {
    let mut dice = Dice(1);
    let limits = Limits { command_line: 100, message_bytes: 60, bad_commands: 6, ..Limits::default() };
    let config = Arc::new(ServerConfig { hostname: "mx.pool.test".to_owned(), starttls: true, limits });
    let mut messages = 0;
    for _ in 0..INPUTS {
        let mut session = Session::new(Arc::clone(&config));
        let mut input = b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\n".to_vec();
        input.extend_from_slice(if dice.roll(2) == 0 { b"DATA\r\n" } else { b"" });
        input.extend(garbage(&mut dice, &CLIENT_WORDS));
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            let piece = &rest[..(1 + dice.roll(60)).min(rest.len())];
            let used = session.handle_input(piece);
            rest = &rest[used..];
            let mut acted = false;
            while let Some(action) = session.poll_action() {
                acted = true;
                messages += usize::from(action == Action::EndMessage);
                obey(&mut session, action, &mut dice);
            }
            assert!(used > 0 || acted, "stuck");
        }
        session.handle_eof();
        let mut last = None;
        while let Some(action) = session.poll_action() {
            last = Some(action);
        }
        assert!(last.is_none_or(|action| action == Action::Close));
    }
    assert!(messages > INPUTS / 50, "the garbage reaches the end of a message: {messages}");
}

#[test]
fn client_survives_garbage() {
    let mut dice = Dice(2);
    for round in 0..INPUTS {
        let protocol = if round % 2 == 0 { Protocol::Lmtp } else { Protocol::Smtp };
        let mut delivery = Delivery::new(protocol, "fe1", transaction(&["a@b.test", "ö@b.test"]));
        let mut results = 0;
        for _ in 0..8 {
            let input = garbage(&mut dice, &SERVER_WORDS);
            assert_eq!(delivery.handle_input(&input), input.len());
            while let Some(action) = delivery.poll_action() {
                match action {
                    DeliveryAction::Send(bytes) => assert!(bytes.ends_with(b"\r\n")),
                    DeliveryAction::SendBody => delivery.body_sent(),
                    DeliveryAction::Done(_) => results += 1,
                }
            }
        }
        delivery.handle_eof();
        while let Some(action) = delivery.poll_action() {
            results += usize::from(matches!(action, DeliveryAction::Done(_)));
        }
        assert_eq!(results, 1);
    }
}
