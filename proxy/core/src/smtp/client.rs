//! The client: one transaction to one back end by LMTP (RFC 2033) or SMTP (RFC 5321).
//!
//! # Back ends without SMTPUTF8
//! Measured on Dovecot 2.3.19's LMTP server, which does not offer SMTPUTF8: the parameter is answered by 555
//! 5.5.4; a UTF-8 recipient, quoted or not, by 501 5.5.4; a UTF-8 sender is answered by 250 and silently
//! replaced by `<>`; UTF-8 in the message's header is stored as it is. Hence, if the extension is missing:
//! - a recipient that needs it is refused by 553 5.6.7 without asking, the others go on;
//! - a sender that needs it is refused by 550 5.6.7 for all recipients: a return path that is lost in silence
//!   would lose every later notice to the sender;
//! - a message whose envelope is ASCII goes to LMTP without the parameter (final delivery: the store takes any
//!   octets), but not to SMTP, where the next hop may hand it on (RFC 6531 section 3.2).
//!
//! # A back end that does not know its own user
//! The directory says that the mailbox is there; the server answers RCPT by 5.1.1. The directory is the newer of the
//! two then (measured: Dovecot reads its passwd-file again only once a second), so the recipient is deferred, never
//! refused, and [`DeliveryResult::unknown_everywhere`] tells the shell that another try in a moment may do.
//!
//! # Other extensions
//! SIZE, BODY and PIPELINING are used if offered. 8-bit content goes out as it is even if 8BITMIME is missing:
//! recoding would break signatures, and no server in use strips the eighth bit.

mod offer;
mod parser;
mod result;

use std::collections::VecDeque;

use self::offer::Offer;
use self::parser::{RawReply, ReplyParser};
pub use self::result::{BackendAccepted, DeliveryResult, RecipientResult, conclude};
use super::reply::{EnhancedCode, Reply};
use crate::address::Address;

/// "Bad destination mailbox address" (RFC 3463 section 3.2).
const UNKNOWN_MAILBOX: EnhancedCode = EnhancedCode { class: 5, subject: 1, detail: 1 };

/// What the back end speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Lmtp,
    Smtp,
}

/// What is to be delivered.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// None: `<>`.
    pub sender: Option<Address>,
    /// What to say in RCPT, one entry for each recipient of the client's envelope, even if two of them lead
    /// to the same mailbox: acceptances are counted against the envelope before a promise is made.
    pub recipients: Vec<Address>,
    /// The client said SMTPUTF8.
    pub smtputf8: bool,
    /// The client said BODY=8BITMIME.
    pub body_8bit: bool,
    /// Size of the content in octets if known, or else 0.
    pub size: u64,
}

/// What the shell does next for a back end.
#[derive(Debug, PartialEq, Eq)]
pub enum DeliveryAction {
    /// Write these bytes to the back end.
    Send(Vec<u8>),
    /// Write the content through a [`super::DotStuffer`], its `finish` included, and call `body_sent` right
    /// after the last piece was handed over, before more input is fed.
    SendBody,
    /// The result. A `Send` of QUIT may follow; whoever closes without it is merely impolite.
    Done(DeliveryResult),
}

/// One transaction, from the greeting to the last reply.
#[derive(Debug)]
pub struct Delivery {
    protocol: Protocol,
    hostname: String,
    transaction: Transaction,
    step: Step,
    parser: ReplyParser,
    offer: Offer,
    recipients: Vec<Status>,
    /// Recipients that the server says it does not know.
    unknown: usize,
    /// Indices of the recipients that are put to the server, in order.
    asked: Vec<usize>,
    /// Replies to MAIL and RCPT so far.
    answered: usize,
    /// Replies that the server owes us. What it says beyond them is not an answer to us.
    owed: usize,
    actions: VecDeque<DeliveryAction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Greeting,
    Hello,
    /// HELO after a refused EHLO.
    OldHello,
    Envelope,
    Data,
    Body,
    Final,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    /// No word about it yet.
    Open,
    /// RCPT was answered by 2xx.
    Taken,
    Settled(RecipientResult),
}

impl Delivery {
    /// `hostname` is what we call ourselves in LHLO, EHLO. The server speaks first.
    #[must_use]
    pub fn new(protocol: Protocol, hostname: &str, transaction: Transaction) -> Self {
        let recipients = vec![Status::Open; transaction.recipients.len()];
        Self {
            protocol,
            hostname: hostname.to_owned(),
            transaction,
            step: Step::Greeting,
            parser: ReplyParser::default(),
            offer: Offer::default(),
            recipients,
            unknown: 0,
            asked: Vec::new(),
            answered: 0,
            owed: 1,
            actions: VecDeque::new(),
        }
    }

    /// Takes bytes from the back end, all of them: returns `input.len()`.
    ///
    /// Feed it only what was read after the actions so far were carried out: a reply that comes before its
    /// command was sent is no answer, and ends the transaction as deferred.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        let mut owed_at_entry = self.owed;
        while !rest.is_empty() && self.step != Step::Done {
            match self.parser.push(rest) {
                Ok((used, reply)) => {
                    rest = rest.get(used..).unwrap_or_default();
                    if let Some(reply) = reply {
                        self.take_reply(&reply, &mut owed_at_entry);
                    }
                }
                Err(error) => self.fail(&format!("Back end: {error}")),
            }
        }
        input.len()
    }

    /// The connection is gone, or could not be made: who is not settled yet is deferred.
    pub fn handle_eof(&mut self) {
        self.settle_rest(&RecipientResult::Deferred(Reply::own(451, (4, 4, 2), "Connection to the back end lost")));
        self.finish(false);
    }

    /// Answers `SendBody`: content and final dot are written.
    pub fn body_sent(&mut self) {
        if self.step != Step::Body {
            return;
        }
        if !self.parser.is_idle() {
            // A reply that began before the final dot was sent cannot be about the whole message.
            return self.fail("Back end answered what was not asked");
        }
        self.step = Step::Final;
        self.owed = match self.protocol {
            Protocol::Lmtp => self.recipients.iter().filter(|status| **status == Status::Taken).count(),
            Protocol::Smtp => 1,
        };
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<DeliveryAction> {
        self.actions.pop_front()
    }

    fn take_reply(&mut self, reply: &RawReply, owed_at_entry: &mut usize) {
        if *owed_at_entry == 0 {
            return self.take_unasked(reply);
        }
        *owed_at_entry -= 1;
        self.owed = self.owed.saturating_sub(1);
        if reply.code == 421 {
            return self.give_up(reply);
        }
        match self.step {
            Step::Greeting => self.on_greeting(reply),
            Step::Hello | Step::OldHello => self.on_hello(reply),
            Step::Envelope if self.answered == 0 => self.on_mail(reply),
            Step::Envelope => self.on_recipient(reply),
            Step::Data => self.on_data(reply),
            Step::Final => self.on_final(reply),
            Step::Body | Step::Done => {}
        }
    }

    /// A refusal while the content is on its way is believed; anything else that was not asked for means that
    /// the two sides no longer agree on where they are.
    fn take_unasked(&mut self, reply: &RawReply) {
        if self.step == Step::Body && reply.class() > 3 {
            self.give_up(reply);
        } else {
            self.fail("Back end answered what was not asked");
        }
    }

    fn on_greeting(&mut self, reply: &RawReply) {
        if reply.code != 220 {
            return self.give_up_deferred(reply);
        }
        self.step = Step::Hello;
        let verb = match self.protocol {
            Protocol::Lmtp => "LHLO",
            Protocol::Smtp => "EHLO",
        };
        self.say(format!("{verb} {}\r\n", self.hostname).into_bytes(), 1);
    }

    fn on_hello(&mut self, reply: &RawReply) {
        if reply.class() == 2 {
            if self.step == Step::Hello {
                self.offer = Offer::read(reply);
            }
            return self.begin_envelope();
        }
        if self.step == Step::Hello && self.protocol == Protocol::Smtp && reply.class() == 5 {
            self.step = Step::OldHello;
            return self.say(format!("HELO {}\r\n", self.hostname).into_bytes(), 1);
        }
        self.give_up_deferred(reply);
    }

    fn begin_envelope(&mut self) {
        if let Some(refusal) = self.refusal_of_ours() {
            self.settle_rest(&RecipientResult::Refused(refusal));
            return self.finish(true);
        }
        for (index, address) in self.transaction.recipients.iter().enumerate() {
            if self.offer.smtputf8 || address.is_ascii() {
                self.asked.push(index);
            } else if let Some(status) = self.recipients.get_mut(index) {
                let refusal = Reply::own(553, (5, 6, 7), "Mailbox server lacks SMTPUTF8");
                *status = Status::Settled(RecipientResult::Refused(refusal));
            }
        }
        if self.asked.is_empty() {
            return self.finish(true);
        }
        self.step = Step::Envelope;
        let mut commands = self.mail_command().into_bytes();
        if !self.offer.pipelining {
            return self.say(commands, 1);
        }
        for at in 0..self.asked.len() {
            commands.extend_from_slice(self.rcpt_command(at).as_bytes());
        }
        self.say(commands, 1 + self.asked.len());
    }

    /// What no recipient can get through this server, known before it is asked.
    fn refusal_of_ours(&self) -> Option<Reply> {
        let transaction = &self.transaction;
        if self.offer.max_size.is_some_and(|max| transaction.size > max) {
            return Some(Reply::own(552, (5, 3, 4), "Message is larger than the mailbox server takes"));
        }
        let sender_needs_utf8 = transaction.sender.as_ref().is_some_and(|sender| !sender.is_ascii());
        let next_hop_may_relay = transaction.smtputf8 && self.protocol == Protocol::Smtp;
        if !self.offer.smtputf8 && (sender_needs_utf8 || next_hop_may_relay) {
            return Some(Reply::own(550, (5, 6, 7), "Mailbox server lacks SMTPUTF8"));
        }
        None
    }

    fn mail_command(&self) -> String {
        let transaction = &self.transaction;
        let mut command = match &transaction.sender {
            Some(sender) => format!("MAIL FROM:<{sender}>"),
            None => "MAIL FROM:<>".to_owned(),
        };
        if self.offer.size && transaction.size > 0 {
            command.push_str(&format!(" SIZE={}", transaction.size));
        }
        if self.offer.eight_bit && transaction.body_8bit {
            command.push_str(" BODY=8BITMIME");
        }
        if self.offer.smtputf8 && self.needs_smtputf8() {
            command.push_str(" SMTPUTF8");
        }
        command.push_str("\r\n");
        command
    }

    fn needs_smtputf8(&self) -> bool {
        let transaction = &self.transaction;
        let addresses = transaction.sender.iter().chain(&transaction.recipients);
        transaction.smtputf8 || addresses.into_iter().any(|address| !address.is_ascii())
    }

    fn rcpt_command(&self, at: usize) -> String {
        let address = self.asked.get(at).and_then(|index| self.transaction.recipients.get(*index));
        address.map(|address| format!("RCPT TO:<{address}>\r\n")).unwrap_or_default()
    }

    fn on_mail(&mut self, reply: &RawReply) {
        if reply.class() != 2 {
            return self.give_up(reply);
        }
        self.answered = 1;
        if !self.offer.pipelining {
            self.say(self.rcpt_command(0).into_bytes(), 1);
        }
    }

    fn on_recipient(&mut self, reply: &RawReply) {
        let status = if reply.class() == 2 { Status::Taken } else { Status::Settled(self.rcpt_failure(reply)) };
        let index = self.asked.get(self.answered.saturating_sub(1));
        if let Some(slot) = index.and_then(|index| self.recipients.get_mut(*index)) {
            *slot = status;
        }
        self.answered += 1;
        if self.answered <= self.asked.len() {
            if !self.offer.pipelining {
                self.say(self.rcpt_command(self.answered - 1).into_bytes(), 1);
            }
        } else if self.recipients.contains(&Status::Taken) {
            self.step = Step::Data;
            self.say(b"DATA\r\n".to_vec(), 1);
        } else {
            self.finish(true);
        }
    }

    fn rcpt_failure(&mut self, reply: &RawReply) -> RecipientResult {
        if reply.to_reply().enhanced() != Some(UNKNOWN_MAILBOX) {
            return failure(reply);
        }
        self.unknown += 1;
        RecipientResult::Deferred(Reply::own(451, (4, 1, 1), "The mailbox server does not know its user yet"))
    }

    fn on_data(&mut self, reply: &RawReply) {
        if reply.code != 354 {
            return self.give_up(reply);
        }
        self.step = Step::Body;
        self.actions.push_back(DeliveryAction::SendBody);
    }

    fn on_final(&mut self, reply: &RawReply) {
        let result = match reply.class() {
            2 => RecipientResult::Accepted(reply.to_reply().text().to_owned()),
            _ => failure(reply),
        };
        match self.protocol {
            Protocol::Smtp => self.settle_rest(&result),
            Protocol::Lmtp => {
                if let Some(slot) = self.recipients.iter_mut().find(|status| **status == Status::Taken) {
                    *slot = Status::Settled(result);
                }
            }
        }
        if self.owed == 0 {
            self.finish(true);
        }
    }

    fn say(&mut self, commands: Vec<u8>, replies: usize) {
        self.owed += replies;
        self.actions.push_back(DeliveryAction::Send(commands));
    }

    /// The server's reply decides for everyone who is not settled.
    fn give_up(&mut self, reply: &RawReply) {
        self.settle_rest(&failure(reply));
        self.finish(self.step != Step::Body);
    }

    /// The server does not want us at all, which says nothing about the message.
    fn give_up_deferred(&mut self, reply: &RawReply) {
        self.settle_rest(&RecipientResult::Deferred(reply.to_reply()));
        self.finish(true);
    }

    fn fail(&mut self, text: &str) {
        self.settle_rest(&RecipientResult::Deferred(Reply::own(451, (4, 5, 0), text)));
        self.finish(false);
    }

    fn settle_rest(&mut self, result: &RecipientResult) {
        for status in &mut self.recipients {
            if matches!(status, Status::Open | Status::Taken) {
                *status = Status::Settled(result.clone());
            }
        }
    }

    /// `quit`: the connection stands between two commands.
    fn finish(&mut self, quit: bool) {
        if self.step == Step::Done {
            return;
        }
        self.step = Step::Done;
        let unsettled = || RecipientResult::Deferred(Reply::own(451, (4, 3, 0), "Not settled"));
        let results = self.recipients.drain(..).map(|status| match status {
            Status::Settled(result) => result,
            Status::Open | Status::Taken => unsettled(),
        });
        let recipients: Vec<_> = std::mem::take(&mut self.transaction.recipients).into_iter().zip(results).collect();
        self.actions.push_back(DeliveryAction::Done(DeliveryResult::new(recipients, self.unknown)));
        if quit {
            self.actions.push_back(DeliveryAction::Send(b"QUIT\r\n".to_vec()));
        }
    }
}

/// What a reply that is no success means for the recipients it is about.
///
/// Some 5xx codes complain about how we speak (500, 502, 503, 504) or demand a login or TLS (530): that is for
/// the two operators to mend, and until then no mail is refused for it.
fn failure(reply: &RawReply) -> RecipientResult {
    let about_us = matches!(reply.code, 500 | 502 | 503 | 504 | 530);
    if reply.class() == 5 && !about_us {
        RecipientResult::Refused(reply.to_reply())
    } else {
        RecipientResult::Deferred(reply.to_reply())
    }
}
