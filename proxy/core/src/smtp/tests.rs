//! Tests of the machines as wholes; the parts are tested beside their code.

mod client;
mod content;
mod fuzz;
mod limits;
mod transcript;

use super::{BackendAccepted, Delivery, DeliveryAction, DeliveryResult, Outcome, Protocol, Transaction, conclude};
use crate::address::Address;

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn transaction(recipients: &[&str]) -> Transaction {
    Transaction {
        sender: Some(address("s@remote.test")),
        recipients: recipients.iter().map(|recipient| address(recipient)).collect(),
        smtputf8: false,
        body_8bit: false,
        size: 0,
    }
}

/// Lets a delivery talk to `server`, which maps a command line (or "greeting", "body") to reply lines.
/// Returns what was said, and the result.
fn converse(mut delivery: Delivery, mut server: impl FnMut(&str) -> String) -> (Vec<String>, DeliveryResult) {
    let mut said = Vec::new();
    delivery.handle_input(server("greeting").as_bytes());
    loop {
        match delivery.poll_action() {
            Some(DeliveryAction::Send(bytes)) => {
                let text = String::from_utf8(bytes).unwrap();
                let replies: String = text.lines().map(&mut server).collect();
                said.extend(text.lines().map(str::to_owned));
                delivery.handle_input(replies.as_bytes());
            }
            Some(DeliveryAction::SendBody) => {
                delivery.body_sent();
                delivery.handle_input(server("body").as_bytes());
            }
            Some(DeliveryAction::Done(result)) => return (said, result),
            None => delivery.handle_eof(),
        }
    }
}

/// The word of a back end that took the message for `recipients` recipients.
fn accepted(recipients: usize) -> BackendAccepted {
    let names: Vec<String> = (0..recipients).map(|n| format!("r{n}@pool.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let delivery = Delivery::new(Protocol::Smtp, "fe1", transaction(&names));
    let (_, result) = converse(delivery, |line| match line {
        "greeting" => "220 x\r\n".to_owned(),
        "DATA" => "354 x\r\n".to_owned(),
        "body" => "250 2.0.0 id7 Saved\r\n".to_owned(),
        _ => "250 x\r\n".to_owned(),
    });
    let outcome = conclude(vec![result]);
    let Outcome::Accepted(accepted) = outcome else { panic!("{outcome:?}") };
    accepted
}

/// xorshift64*: the same seed gives the same run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap() % sides
    }
}

/// Content as the session must pass it on: CR and LF in pairs, no NUL.
fn is_clean(content: &[u8]) -> bool {
    let mut before = 0;
    for &byte in content {
        if byte == 0 || (before == b'\r') != (byte == b'\n') {
            return false;
        }
        before = byte;
    }
    before != b'\r'
}
