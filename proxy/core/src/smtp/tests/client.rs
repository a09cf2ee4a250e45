//! The delivery: every answer at every step, and what it says to servers with few extensions.

use super::{address, converse, transaction};
use crate::smtp::{Delivery, DeliveryAction, DeliveryResult, Protocol, RecipientResult, Transaction};

const STEPS: [&str; 8] = ["greeting", "hello", "mail", "rcpt1", "rcpt2", "data", "final1", "final2"];
const ANSWERS: [&str; 8] = ["250 ok", "450 4.2.0 later", "550 5.1.1 no", "421 bye", "503 order", "354 go", "%", "eof"];

/// Recipients' results (Accepted, Deferred, Refused) by step (rows, as STEPS) and answer (columns, as ANSWERS).
const LMTP: [&str; 8] = [
    "DD DD DD DD DD DD DD DD",
    "AA DD DD DD DD DD DD DD",
    "AA DD RR DD DD DD DD DD",
    "AA DA DA DD DA DA DD DD",
    "AA AD AD DD AD AD DD DD",
    "DD DD RR DD DD AA DD DD",
    "AA DA RA DD DA DA DD DD",
    "AA AD AR AD AD AD AD AD",
];

/// The same for SMTP; there is one final reply, and HELO after a refused EHLO.
const SMTP: [&str; 7] = [
    "DD DD DD DD DD DD DD DD",
    "AA DD AA DD AA DD DD DD",
    "AA DD RR DD DD DD DD DD",
    "AA DA DA DD DA DA DD DD",
    "AA AD AD DD AD AD DD DD",
    "DD DD RR DD DD AA DD DD",
    "AA DD RR DD DD DD DD DD",
];

/// A server that does all right but for one step.
struct Server {
    protocol: Protocol,
    pipelining: bool,
    odd_step: &'static str,
    odd_answer: &'static str,
    recipients: usize,
}

impl Server {
    fn reply(&mut self, step: &str) -> Option<String> {
        if step == self.odd_step {
            return (self.odd_answer != "eof").then(|| format!("{}\r\n", self.odd_answer));
        }
        let good = match step {
            "greeting" => "220 hi",
            "hello" if self.pipelining => "250-be1\r\n250 PIPELINING",
            "data" => "354 go",
            _ => "250 2.0.0 ok",
        };
        Some(format!("{good}\r\n"))
    }

    /// Replies to a command line; None: it hangs up.
    fn command(&mut self, line: &str) -> Option<String> {
        match line.get(..4) {
            Some("LHLO" | "EHLO") => self.reply("hello"),
            Some("MAIL") => self.reply("mail"),
            Some("RCPT") => {
                self.recipients += 1;
                self.reply(&format!("rcpt{}", self.recipients))
            }
            Some("DATA") => self.reply("data"),
            _ => self.reply("other"),
        }
    }

    fn finals(&self, taken: usize) -> Vec<&'static str> {
        match self.protocol {
            Protocol::Lmtp => STEPS[6..6 + taken].to_vec(),
            Protocol::Smtp => vec!["final1"],
        }
    }

    fn run(mut self, split: bool) -> DeliveryResult {
        let mut delivery = Delivery::new(self.protocol, "fe1", transaction(&["a@b.test", "c@b.test"]));
        let refused_one = self.odd_step.starts_with("rcpt") && self.odd_answer != "250 ok";
        let mut pending = vec![self.reply("greeting")];
        loop {
            feed(&mut delivery, &pending, split);
            pending.clear();
            match delivery.poll_action() {
                Some(DeliveryAction::Send(bytes)) => {
                    pending.extend(String::from_utf8(bytes).unwrap().lines().map(|line| self.command(line)));
                }
                Some(DeliveryAction::SendBody) => {
                    delivery.body_sent();
                    pending.extend(self.finals(2 - usize::from(refused_one)).into_iter().map(|step| self.reply(step)));
                }
                Some(DeliveryAction::Done(result)) => return result,
                None => panic!("no action"),
            }
        }
    }
}

fn feed(delivery: &mut Delivery, replies: &[Option<String>], split: bool) {
    for reply in replies {
        match reply {
            None => return delivery.handle_eof(),
            Some(text) if split => text.as_bytes().chunks(1).for_each(|byte| {
                delivery.handle_input(byte);
            }),
            Some(text) => {
                delivery.handle_input(text.as_bytes());
            }
        }
    }
}

fn letters(result: &DeliveryResult) -> String {
    let letter = |(_, result): &(_, RecipientResult)| match result {
        RecipientResult::Accepted(_) => 'A',
        RecipientResult::Deferred(_) => 'D',
        RecipientResult::Refused(_) => 'R',
    };
    result.recipients().iter().map(letter).collect()
}

#[test]
fn every_answer_at_every_step() {
    for (protocol, table) in [(Protocol::Lmtp, LMTP.as_slice()), (Protocol::Smtp, SMTP.as_slice())] {
        for (odd_step, row) in STEPS.into_iter().zip(table) {
            for (odd_answer, want) in ANSWERS.into_iter().zip(row.split(' ')) {
                for (pipelining, split) in [(false, false), (false, true), (true, false), (true, true)] {
                    let server = Server { protocol, pipelining, odd_step, odd_answer, recipients: 0 };
                    let got = letters(&server.run(split));
                    assert_eq!(got, want, "{protocol:?} pipelining={pipelining} {odd_step}: {odd_answer}");
                }
            }
        }
    }
}

fn with_extensions(extensions: &'static str) -> impl FnMut(&str) -> String {
    move |line| match line.get(..4) {
        Some("gree") => "220 be1\r\n".to_owned(),
        Some("LHLO" | "EHLO") => format!("250-be1{extensions}\r\n250 X\r\n"),
        Some("DATA") => "354 go\r\n".to_owned(),
        _ => "250 2.0.0 ok\r\n".to_owned(),
    }
}

fn utf8(sender: &str, recipients: &[&str]) -> Transaction {
    Transaction { sender: Some(address(sender)), smtputf8: true, body_8bit: true, size: 9, ..transaction(recipients) }
}

#[test]
fn extensions_are_used_as_offered() {
    let all = "\r\n250-PIPELINING\r\n250-SIZE 100\r\n250-8bitmime\r\n250-SMTPUTF8";
    for (extensions, want) in [
        (all, "MAIL FROM:<ö@r.test> SIZE=9 BODY=8BITMIME SMTPUTF8"),
        ("\r\n250-SMTPUTF8", "MAIL FROM:<ö@r.test> SMTPUTF8"),
    ] {
        let delivery = Delivery::new(Protocol::Lmtp, "fe1", utf8("ö@r.test", &["a@b.test", "ü@b.test"]));
        let (said, result) = converse(delivery, |line| {
            let reply = with_extensions(extensions)(line);
            if line == "body" { reply.repeat(2) } else { reply }
        });
        assert_eq!(said, ["LHLO fe1", want, "RCPT TO:<a@b.test>", "RCPT TO:<ü@b.test>", "DATA"]);
        assert_eq!(letters(&result), "AA");
    }
}

#[test]
fn without_smtputf8_only_what_is_safe_goes_out() {
    let results = |protocol, sender, recipients: &[&str]| {
        let delivery = Delivery::new(protocol, "fe1", utf8(sender, recipients));
        let (said, result) = converse(delivery, with_extensions("\r\n250-PIPELINING"));
        (said.len(), letters(&result))
    };
    let (lmtp, smtp) = (Protocol::Lmtp, Protocol::Smtp);
    assert_eq!(results(lmtp, "s@r.test", &["a@b.test", "ö@b.test"]), (4, "AR".to_owned()));
    assert_eq!(results(lmtp, "ö@r.test", &["a@b.test"]), (1, "R".to_owned()));
    assert_eq!(results(lmtp, "s@r.test", &["ö@b.test"]), (1, "R".to_owned()));
    assert_eq!(results(smtp, "s@r.test", &["a@b.test"]), (1, "R".to_owned()));
}

#[test]
fn too_large_for_the_offer_is_not_sent() {
    for (limit, want) in
        [("\r\n250-SIZE 8", "R"), ("\r\n250-SIZE 9", "A"), ("\r\n250-SIZE 0", "A"), ("\r\n250-SIZE", "A")]
    {
        let transaction = Transaction { size: 9, ..transaction(&["a@b.test"]) };
        let (_, result) = converse(Delivery::new(Protocol::Lmtp, "fe1", transaction), with_extensions(limit));
        assert_eq!(letters(&result), want, "{limit}");
    }
}

/// A delivery that has sent all but the content.
fn before_body() -> Delivery {
    let mut delivery = Delivery::new(Protocol::Lmtp, "fe1", transaction(&["a@b.test"]));
    for reply in ["220 a\r\n", "250 a\r\n", "250 a\r\n", "250 a\r\n", "354 a\r\n"] {
        delivery.handle_input(reply.as_bytes());
    }
    while delivery.poll_action().is_some_and(|action| action != DeliveryAction::SendBody) {}
    delivery
}

fn result_of(mut delivery: Delivery) -> String {
    let Some(DeliveryAction::Done(result)) = delivery.poll_action() else { panic!("not done") };
    letters(&result)
}

/// A yes to what was not sent yet is no proof; a no is believed.
#[test]
fn answers_before_the_question() {
    for (early, want) in [("250 ok\r\n", "D"), ("354 go\r\n", "D"), ("552 5.3.4 big\r\n", "R"), ("452 full\r\n", "D")] {
        let mut delivery = before_body();
        delivery.handle_input(early.as_bytes());
        delivery.body_sent();
        assert_eq!(result_of(delivery), want, "{early}");
    }
    let mut delivery = before_body();
    delivery.handle_input(b"250 o");
    delivery.body_sent();
    delivery.handle_input(b"k\r\n");
    assert_eq!(result_of(delivery), "D", "begun too early");

    let mut delivery = Delivery::new(Protocol::Lmtp, "fe1", transaction(&["a@b.test"]));
    delivery.handle_input(b"220 a\r\n250 a\r\n250 a\r\n250 a\r\n354 a\r\n250 a\r\n");
    delivery.poll_action();
    assert_eq!(result_of(delivery), "D", "all at once");
}

#[test]
fn quit_follows_the_result() {
    let mut delivery = before_body();
    delivery.body_sent();
    delivery.handle_input(b"250 2.0.0 <a@b.test> id Saved\r\n");
    let Some(DeliveryAction::Done(result)) = delivery.poll_action() else { panic!("not done") };
    assert_eq!(result.recipients()[0].1, RecipientResult::Accepted("<a@b.test> id Saved".to_owned()));
    assert_eq!(delivery.poll_action(), Some(DeliveryAction::Send(b"QUIT\r\n".to_vec())));
    assert_eq!(delivery.poll_action(), None);
    delivery.handle_eof();
    assert_eq!(delivery.poll_action(), None);
}

/// A back end that complains about how we speak refuses no mail; one that judges the message does.
#[test]
fn complaints_about_us_refuse_no_mail() {
    for (code, want) in
        [(500, "D"), (501, "R"), (502, "D"), (503, "D"), (504, "D"), (530, "D"), (521, "R"), (552, "R"), (555, "R")]
    {
        let delivery = Delivery::new(Protocol::Lmtp, "fe1", transaction(&["a@b.test"]));
        let (_, result) = converse(delivery, |line| match line.get(..4) {
            Some("gree") => "220 a\r\n".to_owned(),
            Some("MAIL") => format!("{code} x\r\n"),
            _ => "250 a\r\n".to_owned(),
        });
        assert_eq!(letters(&result), want, "{code}");
    }
}

/// The directory may hear of a user before the mail server does: that is no refusal, and it may be tried again only
/// if nobody has the message.
#[test]
fn a_server_that_does_not_know_its_user_is_not_believed() {
    for (odd_step, everywhere) in [("rcpt1", false), ("rcpt2", false)] {
        let server =
            Server { protocol: Protocol::Lmtp, pipelining: true, odd_step, odd_answer: "550 5.1.1 no", recipients: 0 };
        assert_eq!(server.run(false).unknown_everywhere(), everywhere);
    }
    let mut delivery = Delivery::new(Protocol::Lmtp, "fe1", transaction(&["a@b.test"]));
    for reply in ["220 hi\r\n", "250 be1\r\n", "250 2.1.0 ok\r\n", "550 5.1.1 no\r\n"] {
        while let Some(DeliveryAction::Send(_)) = delivery.poll_action() {}
        delivery.handle_input(reply.as_bytes());
    }
    let Some(DeliveryAction::Done(result)) = delivery.poll_action() else { panic!("not done") };
    assert!(result.unknown_everywhere());
    assert_eq!(letters(&result), "D");
}
