//! The server's session (RFC 5321 with PIPELINING, SIZE, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, STARTTLS).
//!
//! Order is the contract: actions come out in the order in which their causes came in, and the session reads
//! no further while it waits for an answer (`Resolve`, `EndMessage`, `StartTls`), so a reply never overtakes
//! another. Replies that nothing stands between share one `Send`.

mod queue;
mod types;

use std::mem;
use std::sync::Arc;

use self::queue::Queue;
pub use self::types::{Action, Envelope, Limits, Outcome, RecipientAnswer, ServerConfig};
use super::client::BackendAccepted;
use super::command::{self, Body, Command, Mail, Recipient};
use super::data::{ContentFault, Decoder, Progress};
use super::reply::{Answer, Reply, Then};
use crate::address::Address;

/// Most input that one step of content decoding takes, in octets; it bounds the size of a `Body` piece.
const CONTENT_STEP: usize = 64 * 1024;

/// One SMTP connection from the world.
#[derive(Debug)]
pub struct Session {
    config: Arc<ServerConfig>,
    state: State,
    /// The start of a command line whose end has not come yet; at most `Limits::command_line` octets.
    partial: Vec<u8>,
    queue: Queue,
    hello: Option<Hello>,
    tls: bool,
    transaction: Option<Envelope>,
    /// What to do once the outcome that we owe the client is known.
    leave: Option<Leave>,
    bad_commands: u32,
    refused_recipients: u32,
    idle_commands: u32,
}

#[derive(Debug)]
struct Hello {
    name: String,
    esmtp: bool,
}

/// What the session waits for.
#[derive(Debug)]
enum State {
    Command,
    /// `handle_recipient` for this address.
    Recipient(Address),
    /// `handle_tls_started`.
    Tls,
    Content {
        decoder: Decoder,
        recipients: usize,
    },
    /// `handle_outcome`.
    Outcome {
        recipients: usize,
    },
    Closed,
}

#[derive(Debug, Clone, Copy)]
enum Leave {
    Shutdown,
    Eof,
}

impl Session {
    /// A session with its 220 greeting queued.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        let mut queue = Queue::default();
        queue.send(&[b"220 ", config.hostname.as_bytes(), b" ESMTP AutoCluster\r\n"]);
        Self {
            config,
            state: State::Command,
            partial: Vec::new(),
            queue,
            hello: None,
            tls: false,
            transaction: None,
            leave: None,
            bad_commands: 0,
            refused_recipients: 0,
            idle_commands: 0,
        }
    }

    /// Takes bytes from the client; returns how many were consumed.
    ///
    /// Fewer than `input.len()` are consumed while an answer is owed to the session or while actions wait:
    /// take all actions, answer, then offer the rest again. Behind STARTTLS nothing is consumed before
    /// `handle_tls_started`, and the unread rest must be thrown away (RFC 3207 section 4.2). After `Close` everything
    /// is swallowed.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut used = 0;
        while let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty() && self.queue.has_room()) {
            used += match self.state {
                State::Command => self.take_line(rest),
                State::Content { .. } => self.take_content(rest),
                State::Recipient(_) | State::Tls | State::Outcome { .. } => break,
                State::Closed => return input.len(),
            };
        }
        used
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.queue.pop()
    }

    /// Answers `Action::Resolve`. Without an open question it does nothing.
    pub fn handle_recipient(&mut self, answer: RecipientAnswer) {
        if !matches!(self.state, State::Recipient(_)) {
            return;
        }
        let State::Recipient(address) = mem::replace(&mut self.state, State::Command) else { return };
        match answer {
            RecipientAnswer::Accept => {
                if let Some(envelope) = &mut self.transaction {
                    envelope.recipients.push(address);
                }
                self.answer(Answer::RecipientTaken);
            }
            RecipientAnswer::UnknownUser => self.refuse_recipient(Answer::UnknownUser),
            RecipientAnswer::RelayDenied => self.refuse_recipient(Answer::RelayDenied),
            RecipientAnswer::NotSure => self.answer(Answer::RecipientNotSure),
            RecipientAnswer::Unavailable => self.answer(Answer::RecipientUnavailable),
        }
    }

    /// Answers `Action::EndMessage`: the final reply to the message. Without a message that waits for its
    /// outcome it does nothing.
    pub fn handle_outcome(&mut self, outcome: Outcome) {
        let State::Outcome { recipients } = self.state else { return };
        self.state = State::Command;
        match outcome {
            Outcome::Accepted(accepted) => self.promise(&accepted, recipients),
            Outcome::Infected { signature } => {
                self.reply(&Reply::own(554, (5, 7, 1), &format!("Virus found: {signature}")));
            }
            Outcome::ScannerUnavailable => self.answer(Answer::ScannerUnavailable),
            Outcome::Deferred { text } => self.reply(&Reply::own(451, (4, 3, 0), &text)),
            Outcome::Refused { reply } => self.reply(&as_refusal(&reply)),
        }
        match self.leave.take() {
            Some(Leave::Shutdown) => self.answer(Answer::Shutdown),
            Some(Leave::Eof) => self.close(),
            None => {}
        }
    }

    /// The TLS handshake that `Action::StartTls` asked for is done. All the client said in the clear is
    /// forgotten (RFC 3207 section 4.2).
    pub fn handle_tls_started(&mut self) {
        if matches!(self.state, State::Tls) {
            self.state = State::Command;
            self.tls = true;
            self.hello = None;
            self.transaction = None;
            self.partial.clear();
        }
    }

    /// The client spoke before it was greeted: 554 in place of the greeting.
    pub fn handle_early_talker(&mut self) {
        self.queue.clear();
        self.leave_with(Answer::EarlyTalker);
    }

    /// The client was silent for too long: 421. While the session itself owes the client the outcome of a
    /// message, silence is no offence and this does nothing.
    pub fn handle_timeout(&mut self) {
        if !matches!(self.state, State::Outcome { .. }) {
            self.leave_with(Answer::Timeout);
        }
    }

    /// The daemon stops: 421 now, or right after the outcome that the client waits for.
    pub fn handle_shutdown(&mut self) {
        if matches!(self.state, State::Outcome { .. }) {
            self.leave = Some(Leave::Shutdown);
        } else {
            self.leave_with(Answer::Shutdown);
        }
    }

    /// The client closed its side, and all it sent before was consumed. A message without its end is
    /// abandoned; one whose end was read still gets its outcome.
    pub fn handle_eof(&mut self) {
        match self.state {
            State::Outcome { .. } => self.leave = Some(Leave::Eof),
            State::Closed => {}
            State::Command | State::Recipient(_) | State::Tls | State::Content { .. } => {
                self.abandon_message();
                self.close();
            }
        }
    }

    /// Octets that the buffer for command lines takes up.
    #[cfg(test)]
    pub(super) fn waiting_input(&self) -> usize {
        self.partial.capacity()
    }

    // Command lines.

    fn take_line(&mut self, input: &[u8]) -> usize {
        let room = self.config.limits.command_line.saturating_sub(self.partial.len());
        let window = input.get(..room).unwrap_or(input);
        let Some(at) = memchr::memchr(b'\n', window) else {
            if window.len() == room {
                self.answer(Answer::LineTooLong);
            } else {
                self.partial.extend_from_slice(window);
            }
            return window.len();
        };
        let head = window.get(..at).unwrap_or_default();
        if self.partial.is_empty() {
            self.execute(head);
        } else {
            let mut line = mem::take(&mut self.partial);
            line.extend_from_slice(head);
            self.execute(&line);
            line.clear();
            self.partial = line;
        }
        at + 1
    }

    fn execute(&mut self, line: &[u8]) {
        let done = command::text_of_line(line).and_then(command::parse).and_then(|command| self.obey(command));
        if let Err(answer) = done {
            self.answer(answer);
        }
    }

    fn obey(&mut self, command: Command<'_>) -> Result<(), Answer> {
        match command {
            Command::Hello { name, esmtp } => self.greet(name, esmtp),
            Command::Mail(mail) => self.open_transaction(mail)?,
            Command::Recipient(recipient) => self.ask_recipient(recipient)?,
            Command::Data => self.begin_content()?,
            Command::Reset => {
                self.transaction = None;
                self.answer(Answer::Reset);
            }
            Command::Nothing => self.answer(Answer::Nothing),
            Command::Verify => self.answer(Answer::CannotVerify),
            Command::Help => self.answer(Answer::Help),
            Command::Quit => self.answer(Answer::Goodbye),
            Command::StartTls => self.start_tls()?,
        }
        Ok(())
    }

    fn greet(&mut self, name: &str, esmtp: bool) {
        self.transaction = None;
        self.hello = Some(Hello { name: name.to_owned(), esmtp });
        let hostname = self.config.hostname.as_bytes();
        if !esmtp {
            self.queue.send(&[b"250 ", hostname, b"\r\n"]);
            return self.count_idle();
        }
        let size = self.config.limits.message_bytes.to_string();
        self.queue.send(&[b"250-", hostname, b"\r\n250-PIPELINING\r\n250-SIZE ", size.as_bytes(), b"\r\n"]);
        if self.config.starttls && !self.tls {
            self.queue.send(&[b"250-STARTTLS\r\n"]);
        }
        self.queue.send(&[b"250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"]);
        self.count_idle();
    }

    fn start_tls(&mut self) -> Result<(), Answer> {
        if self.tls {
            return Err(Answer::TlsActive);
        }
        if !self.config.starttls {
            return Err(Answer::TlsNotOffered);
        }
        if self.transaction.is_some() {
            return Err(Answer::TlsInTransaction);
        }
        self.answer(Answer::StartTls);
        self.queue.push(Action::StartTls);
        self.state = State::Tls;
        Ok(())
    }

    fn open_transaction(&mut self, mail: Mail) -> Result<(), Answer> {
        let hello = self.hello.as_ref().ok_or(Answer::HelloFirst)?;
        if self.transaction.is_some() {
            return Err(Answer::NestedMail);
        }
        if mail.has_parameters() && !hello.esmtp {
            return Err(Answer::UnknownParameter);
        }
        if mail.size.is_some_and(|size| size > self.config.limits.message_bytes) {
            return Err(Answer::DeclaredTooLarge);
        }
        self.transaction = Some(Envelope {
            helo: hello.name.clone(),
            esmtp: hello.esmtp,
            tls: self.tls,
            smtputf8: mail.smtputf8,
            body_8bit: mail.body == Some(Body::EightBit),
            declared_size: mail.size,
            sender: mail.sender,
            recipients: Vec::new(),
        });
        self.answer(Answer::SenderTaken);
        Ok(())
    }

    fn ask_recipient(&mut self, recipient: Recipient) -> Result<(), Answer> {
        let envelope = self.transaction.as_ref().ok_or(Answer::MailFirst)?;
        let address = match recipient {
            Recipient::Mailbox(address) => address,
            Recipient::Postmaster => self.postmaster()?,
        };
        if !envelope.smtputf8 && !address.is_ascii() {
            return Err(Answer::NeedsSmtputf8);
        }
        if envelope.recipients.contains(&address) {
            // Said twice, delivered once.
            self.answer(Answer::RecipientTaken);
            return Ok(());
        }
        if envelope.recipients.len() >= self.config.limits.recipients {
            return Err(Answer::TooManyRecipients);
        }
        self.queue.push(Action::Resolve(address.clone()));
        self.state = State::Recipient(address);
        Ok(())
    }

    fn postmaster(&self) -> Result<Address, Answer> {
        Address::parse(&format!("postmaster@{}", self.config.hostname)).map_err(|_bad_hostname| Answer::BadRecipient)
    }

    fn refuse_recipient(&mut self, answer: Answer) {
        self.answer(answer);
        self.refused_recipients = self.refused_recipients.saturating_add(1);
        if self.refused_recipients >= self.config.limits.refused_recipients {
            self.answer(Answer::TooManyRefused);
        }
    }

    // Content.

    fn begin_content(&mut self) -> Result<(), Answer> {
        let recipients = self.transaction.as_ref().ok_or(Answer::MailFirst)?.recipients.len();
        if recipients == 0 {
            return Err(Answer::NoRecipients);
        }
        if let Some(envelope) = self.transaction.take() {
            self.queue.push(Action::BeginMessage(envelope));
        }
        self.state = State::Content { decoder: Decoder::new(self.config.limits.message_bytes), recipients };
        self.answer(Answer::StartContent);
        Ok(())
    }

    fn take_content(&mut self, input: &[u8]) -> usize {
        let State::Content { decoder, recipients } = &mut self.state else { return 0 };
        let input = input.get(..CONTENT_STEP).unwrap_or(input);
        let was_sound = decoder.fault().is_none();
        let mut content = self.queue.take_body(input.len());
        let (used, progress) = decoder.push(input, &mut content);
        let (fault, recipients) = (decoder.fault(), *recipients);
        self.queue.put_body(content);
        if was_sound && fault.is_some() {
            self.queue.push(Action::AbortMessage);
        }
        match progress {
            Progress::More => {}
            Progress::Flood => self.answer(Answer::Flood),
            Progress::End => self.end_content(fault, recipients),
        }
        used
    }

    fn end_content(&mut self, fault: Option<ContentFault>, recipients: usize) {
        let Some(fault) = fault else {
            self.state = State::Outcome { recipients };
            return self.queue.push(Action::EndMessage);
        };
        self.state = State::Command;
        self.answer(match fault {
            ContentFault::BareCr => Answer::BareCrInContent,
            ContentFault::BareLf => Answer::BareLfInContent,
            ContentFault::Nul => Answer::NulInContent,
            ContentFault::TooLarge => Answer::TooLarge,
        });
    }

    /// The only place that says 250 to content, and it wants to see the back ends' word for it.
    fn promise(&mut self, accepted: &BackendAccepted, recipients: usize) {
        if accepted.recipients() < recipients {
            return self.answer(Answer::PromiseIncomplete);
        }
        self.idle_commands = 0;
        self.reply(&Reply::own(250, (2, 0, 0), accepted.text()));
    }

    fn abandon_message(&mut self) {
        if let State::Content { decoder, .. } = &self.state
            && decoder.fault().is_none()
        {
            self.queue.push(Action::AbortMessage);
        }
    }

    // Replies.

    fn answer(&mut self, answer: Answer) {
        let (line, then) = answer.reply();
        self.queue.send(&[line.as_bytes(), b"\r\n"]);
        match then {
            Then::GoOn => {}
            Then::Close => self.close(),
            Then::CountIdle => self.count_idle(),
            Then::CountBad => {
                self.bad_commands = self.bad_commands.saturating_add(1);
                if self.bad_commands >= self.config.limits.bad_commands {
                    self.answer(Answer::TooManyErrors);
                }
            }
        }
    }

    fn reply(&mut self, reply: &Reply) {
        self.queue.send(&[reply.to_string().as_bytes(), b"\r\n"]);
    }

    fn count_idle(&mut self) {
        self.idle_commands = self.idle_commands.saturating_add(1);
        if self.idle_commands >= self.config.limits.idle_commands {
            self.answer(Answer::TooManyIdleCommands);
        }
    }

    fn leave_with(&mut self, answer: Answer) {
        match self.state {
            State::Closed => {}
            // The client is in the middle of its handshake: a reply in the clear would be noise.
            State::Tls => self.close(),
            State::Command | State::Recipient(_) | State::Content { .. } | State::Outcome { .. } => {
                self.abandon_message();
                self.answer(answer);
            }
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.transaction = None;
        self.partial = Vec::new();
        self.queue.push(Action::Close);
    }
}

/// A refusal is a 5xx whatever the back end's reply was made of.
fn as_refusal(reply: &Reply) -> Reply {
    let code = if (500..600).contains(&reply.code()) { reply.code() } else { 554 };
    let (subject, detail) = reply.enhanced().map_or((0, 0), |enhanced| (enhanced.subject, enhanced.detail));
    Reply::own(code, (5, subject, detail), reply.text())
}
