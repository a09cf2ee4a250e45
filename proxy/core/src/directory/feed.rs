//! The source's end of one stream: what to send next. It keeps no queue: what a front end lacks is read
//! from the log at the pace at which the stream takes it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::log::Log;
use super::record::{BackendRecord, Entry, Position, Seq, SourceName};
use super::users::{RootHash, Users};
use super::wire::{AgentMessage, FrontendMessage, MAX_BATCH, Refusal, VERSION};

/// How often each end shows that it lives.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// A stream on which nothing came for so long is given up.
pub const SILENT_FOR: Duration = Duration::from_secs(10);

/// Why the agent closes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("the front end answered out of turn")]
    Protocol,
    #[error("nothing heard for {} s", SILENT_FOR.as_secs())]
    Silent,
}

#[derive(Debug)]
enum State {
    Greeting,
    AwaitingHave,
    /// Everything up to here was sent.
    Following(Seq),
    Sending(Box<Outgoing>),
}

/// A snapshot on its way: a cheap clone of the users, turned into entries a domain at a time.
#[derive(Debug)]
struct Outgoing {
    users: Users,
    position: Position,
    begun: bool,
    domains: Vec<Box<str>>,
    ready: VecDeque<Entry>,
}

/// Decides what to send to one front end.
#[derive(Debug)]
pub struct Feed {
    source: SourceName,
    record: BackendRecord,
    state: State,
    heard: Instant,
    heartbeat_due: Instant,
    acknowledged: Option<(Seq, RootHash)>,
}

impl Feed {
    /// The feed of a stream just opened.
    #[must_use]
    pub fn new(source: SourceName, record: BackendRecord, now: Instant) -> Self {
        // The first heartbeat is due as soon as the front end is up to date: only then may it say "unknown".
        Self { source, record, state: State::Greeting, heard: now, heartbeat_due: now, acknowledged: None }
    }

    /// Takes a message of the front end. `Frontends` is the caller's to act upon.
    ///
    /// # Errors
    /// If the stream is to be closed.
    pub fn handle_message(&mut self, message: &FrontendMessage, log: &Log, now: Instant) -> Result<(), FeedError> {
        self.heard = now;
        match message {
            FrontendMessage::Have(theirs) => {
                let ours = log.position();
                let known = theirs.epoch == ours.epoch && log.changes_after(theirs.seq, 0).is_some();
                self.begin(known.then_some(theirs.seq), log)
            }
            FrontendMessage::Nothing => self.begin(None, log),
            FrontendMessage::Resync => match self.state {
                State::Following(_) => {
                    self.state = State::Sending(Box::new(Outgoing::new(log)));
                    Ok(())
                }
                State::Sending(_) => Ok(()), // what it asks for is under way
                State::Greeting | State::AwaitingHave => Err(FeedError::Protocol),
            },
            FrontendMessage::Ack { seq, hash } => {
                self.acknowledged = Some((*seq, *hash));
                Ok(())
            }
            FrontendMessage::Frontends(_) | FrontendMessage::Heartbeat => Ok(()),
            FrontendMessage::Refused(refusal) => Err(FeedError::Refused(*refusal)),
        }
    }

    /// The next message to send; None until something changes or `poll_timeout` passes. `current` is
    /// false while the source cannot be read.
    pub fn poll_message(&mut self, log: &Log, current: bool, now: Instant) -> Option<AgentMessage> {
        match &mut self.state {
            State::Greeting => {
                self.state = State::AwaitingHave;
                let (source, record, position) = (self.source.clone(), self.record.clone(), log.position());
                Some(AgentMessage::Hello { version: VERSION, source, record, position })
            }
            State::AwaitingHave => None,
            State::Sending(outgoing) => {
                let message = outgoing.poll_message();
                if matches!(message, AgentMessage::SnapshotEnd { .. }) {
                    self.state = State::Following(outgoing.position.seq);
                    self.heartbeat_due = now; // which confirms the new copy
                }
                Some(message)
            }
            State::Following(sent) => {
                let sent = *sent;
                self.follow(sent, log).or_else(|| self.heartbeat(log, current, now))
            }
        }
    }

    /// When to call `poll_message` and `handle_timeout` again even if nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let silent = self.heard + SILENT_FOR;
        if matches!(self.state, State::Following(_)) { silent.min(self.heartbeat_due) } else { silent }
    }

    /// Gives up a stream on which nothing was heard.
    ///
    /// # Errors
    /// If the front end was silent for [`SILENT_FOR`].
    pub fn handle_timeout(&self, now: Instant) -> Result<(), FeedError> {
        if now.saturating_duration_since(self.heard) >= SILENT_FOR { Err(FeedError::Silent) } else { Ok(()) }
    }

    /// What the front end last said it has.
    #[must_use]
    pub fn acknowledged(&self) -> Option<(Seq, RootHash)> {
        self.acknowledged
    }

    fn begin(&mut self, from: Option<Seq>, log: &Log) -> Result<(), FeedError> {
        if !matches!(self.state, State::AwaitingHave) {
            return Err(FeedError::Protocol);
        }
        self.state = match from {
            Some(seq) => State::Following(seq),
            None => State::Sending(Box::new(Outgoing::new(log))),
        };
        Ok(())
    }

    fn follow(&mut self, sent: Seq, log: &Log) -> Option<AgentMessage> {
        let Some(batch) = log.changes_after(sent, MAX_BATCH) else {
            // The stream took so long that the log has forgotten what comes next.
            let mut outgoing = Box::new(Outgoing::new(log));
            let message = outgoing.poll_message();
            self.state = State::Sending(outgoing);
            return Some(message);
        };
        if batch.changes.is_empty() {
            return None;
        }
        self.state = State::Following(sent.after(batch.changes.len()));
        Some(AgentMessage::Changes { first: sent.next(), changes: batch.changes, hash: batch.hash })
    }

    fn heartbeat(&mut self, log: &Log, current: bool, now: Instant) -> Option<AgentMessage> {
        if now < self.heartbeat_due {
            return None;
        }
        self.heartbeat_due = now + HEARTBEAT_EVERY;
        Some(AgentMessage::Heartbeat { seq: log.position().seq, current })
    }
}

impl Outgoing {
    fn new(log: &Log) -> Self {
        let users = log.users().clone();
        let domains = users.domains().map(Into::into).collect();
        Self { users, position: log.position(), begun: false, domains, ready: VecDeque::new() }
    }

    fn poll_message(&mut self) -> AgentMessage {
        if !self.begun {
            self.begun = true;
            let users = u64::try_from(self.users.len()).unwrap_or(u64::MAX);
            return AgentMessage::SnapshotBegin { position: self.position, users };
        }
        while self.ready.len() < MAX_BATCH {
            let Some(domain) = self.domains.pop() else { break };
            self.ready.extend(self.users.entries_in(&domain));
        }
        if self.ready.is_empty() {
            return AgentMessage::SnapshotEnd { hash: self.users.hash() };
        }
        let chunk = self.ready.drain(..self.ready.len().min(MAX_BATCH)).collect();
        AgentMessage::SnapshotChunk(chunk)
    }
}
