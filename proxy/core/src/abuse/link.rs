//! One stream between two front ends, seen from each end: [`Outbound`] sends this front end's list to a peer,
//! [`Inbound`] takes a peer's. Every pair of front ends has a stream in each direction.
//!
//! What an operator says is sent to all at once by the front end that heard it, and nobody sends it on. Everything else
//! (a front end that was away, one that died before it told all) is found by comparing: each sends the sum of its list
//! every two seconds, and who has another one asks for the parts that differ, from one peer at a time.

use std::time::{Duration, Instant};

use super::deny::{DenyError, DenyList, Merged, PARTS};
use super::prefix::Prefix;
use super::record::Record;
use super::wire::{Batch, Message, Reply, VERSION};

/// How often the sum of the list is sent.
pub const SUMMARY_EVERY: Duration = Duration::from_secs(2);
/// A peer whose sum is another's for so long after comparing gets another chance to compare only after a pause, which
/// doubles up to this: two lists may differ for good where one is full.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// What was asked for is given up after this, and another peer may be asked.
const COMPARE_DEADLINE: Duration = Duration::from_secs(30);

/// Why a stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("the stream does not begin with a greeting")]
    NoHello,
    #[error("a second greeting")]
    SecondHello,
    #[error("a comparison was asked for before the last one was answered")]
    Impatient,
}

/// This front end's list, on its way to a peer.
#[derive(Debug)]
pub struct Outbound {
    greeted: bool,
    /// Up to where own words have been sent.
    cursor: u64,
    summary_at: Instant,
    answer: Option<Answer>,
}

/// The parts that a peer asked for, and how far they have been sent.
#[derive(Debug)]
struct Answer {
    parts: Vec<u8>,
    after: Option<Prefix>,
}

impl Outbound {
    /// A stream just opened. What was said before now is found by comparing.
    #[must_use]
    pub fn new(list: &DenyList, now: Instant) -> Self {
        Self { greeted: false, cursor: list.cursor(), summary_at: now, answer: None }
    }

    /// The next message to send, if there is one now. To be asked again after every change of the list.
    pub fn poll_message(&mut self, list: &DenyList, now: Instant) -> Option<Message> {
        if !self.greeted {
            self.greeted = true;
            return Some(Message::Hello { version: VERSION });
        }
        if let Some(news) = self.poll_news(list) {
            return Some(news);
        }
        if let Some(answer) = &mut self.answer {
            let message = answer.poll_message(list);
            if message.is_none() {
                self.answer = None;
            }
            return Some(message.unwrap_or(Message::Done));
        }
        if now < self.summary_at {
            return None;
        }
        self.summary_at = now + SUMMARY_EVERY;
        Some(Message::Summary(list.sum()))
    }

    /// When [`Outbound::poll_message`] has something even if nothing changes.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.summary_at
    }

    fn poll_news(&mut self, list: &DenyList) -> Option<Message> {
        let mut batch = Batch::default();
        for (cursor, record) in list.delta_since(self.cursor) {
            if !batch.push(record) {
                return batch.message();
            }
            self.cursor = cursor;
        }
        self.cursor = list.cursor();
        batch.message()
    }

    /// Takes what the peer asks for.
    ///
    /// # Errors
    /// The peer breaks the protocol.
    pub fn handle_reply(&mut self, reply: Reply, list: &DenyList) -> Result<(), LinkError> {
        let Reply::Compare(theirs) = reply;
        if self.answer.is_some() {
            return Err(LinkError::Impatient);
        }
        let differing = (0_u8..=u8::MAX).zip(theirs.iter().zip(list.sums())).filter(|(_, (a, b))| a != b);
        // The last comes first off the list.
        let parts = differing.map(|(part, _)| part).rev().collect();
        self.answer = Some(Answer { parts, after: None });
        Ok(())
    }
}

impl Answer {
    fn poll_message(&mut self, list: &DenyList) -> Option<Message> {
        let mut batch = Batch::default();
        while let Some(part) = self.parts.last().copied() {
            for record in list.part(part, self.after) {
                if !batch.push(record) {
                    return batch.message();
                }
                self.after = Some(record.prefix);
            }
            self.parts.pop();
            self.after = None;
        }
        batch.message()
    }
}

const _: () = assert!(PARTS == 1 << u8::BITS);

/// A peer's list, on its way here.
#[derive(Debug)]
pub struct Inbound {
    greeted: bool,
    /// A comparison that was asked for on this stream: when, and whether it brought anything.
    comparing: Option<Comparing>,
    pause: Duration,
    not_before: Option<Instant>,
    refused: Option<DenyError>,
}

#[derive(Debug)]
struct Comparing {
    fruitful: bool,
}

impl Default for Inbound {
    fn default() -> Self {
        Self { greeted: false, comparing: None, pause: SUMMARY_EVERY, not_before: None, refused: None }
    }
}

impl Inbound {
    /// Takes a message and merges what is in it; returns what to answer. `unix` is the time in Unix milliseconds.
    ///
    /// # Errors
    /// The peer breaks the protocol.
    pub fn handle_message(
        &mut self,
        message: Message,
        list: &mut DenyList,
        now: Instant,
        unix: u64,
    ) -> Result<Option<Reply>, LinkError> {
        let greeting = matches!(message, Message::Hello { .. });
        match (std::mem::replace(&mut self.greeted, true), greeting) {
            (false, false) => return Err(LinkError::NoHello),
            (true, true) => return Err(LinkError::SecondHello),
            _ => {}
        }
        match message {
            Message::Hello { .. } => {}
            Message::Records(records) => records.into_iter().for_each(|record| self.merge(record, list, unix)),
            Message::Done => self.handle_done(list, now),
            Message::Summary(theirs) => return Ok(self.handle_summary(theirs, list, now)),
        }
        Ok(None)
    }

    fn merge(&mut self, record: Record, list: &mut DenyList, unix: u64) {
        match list.merge(unix, record) {
            Merged::Taken => self.comparing.iter_mut().for_each(|comparing| comparing.fruitful = true),
            Merged::Known => {}
            Merged::Refused(error) => self.refused = Some(error),
        }
    }

    fn handle_summary(&mut self, theirs: u64, list: &mut DenyList, now: Instant) -> Option<Reply> {
        if theirs == list.sum() {
            self.pause = SUMMARY_EVERY;
            self.not_before = None;
            return None;
        }
        let busy = self.comparing.is_some() || list.comparing_until.is_some_and(|until| now < until);
        if busy || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        list.comparing_until = Some(now + COMPARE_DEADLINE);
        self.comparing = Some(Comparing { fruitful: false });
        Some(Reply::Compare(list.sums().to_vec()))
    }

    fn handle_done(&mut self, list: &mut DenyList, now: Instant) {
        let Some(Comparing { fruitful }) = self.comparing.take() else { return };
        list.comparing_until = None;
        if fruitful {
            self.pause = SUMMARY_EVERY;
            return;
        }
        // It is the peer that lacks something, and will ask for it.
        self.not_before = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// The stream has ended: another peer may be asked for what this one did not finish.
    pub fn handle_end(&mut self, list: &mut DenyList) {
        if self.comparing.take().is_some() {
            list.comparing_until = None;
        }
    }

    /// Why something that the peer said was not taken, once for any number of records.
    pub fn poll_refused(&mut self) -> Option<DenyError> {
        self.refused.take()
    }
}

#[cfg(test)]
mod tests;
