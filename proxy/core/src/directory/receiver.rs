//! The front end's end of one stream: what the agent's messages mean, and whether they come in order.

use super::record::{BackendRecord, Change, Position, Seq, SourceName};
use super::users::{RootHash, Users};
use super::wire::{AgentMessage, MAX_BATCH, Refusal, VERSION};

/// Users one source may have. Bounds what a back end can make a front end hold.
pub const MAX_USERS_PER_SOURCE: u64 = 50_000_000;

/// All users of a source as of one position, checked against the source's own hash.
#[derive(Debug)]
pub struct Snapshot {
    pub position: Position,
    pub users: Users,
}

/// What a message means to the directory; hand it to [`super::Directory::handle_update`].
#[derive(Debug)]
pub enum Update {
    Hello {
        record: BackendRecord,
        position: Position,
    },
    Snapshot(Box<Snapshot>),
    /// A snapshot came damaged: ask for another.
    Damaged,
    Changes {
        first: Seq,
        changes: Vec<Change>,
        hash: RootHash,
    },
    Heartbeat {
        seq: Seq,
        current: bool,
    },
}

/// How an agent broke the protocol. The stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the first message was no hello, or a later one was")]
    Hello,
    #[error("protocol version {0}; this is version {VERSION}")]
    Version(u16),
    #[error("the name of the source is not the name in its certificate")]
    Name,
    #[error("a piece of a snapshot outside a snapshot, or changes inside one")]
    Order,
    #[error("more entries than one message or one source may have")]
    TooMany,
}

impl ProtocolError {
    /// What to tell the agent.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Version(_) => Refusal::Version,
            Self::Name => Refusal::Name,
            Self::Hello | Self::Order | Self::TooMany => Refusal::Protocol,
        }
    }
}

#[derive(Debug)]
enum State {
    Greeting,
    Following,
    Filling { snapshot: Box<Snapshot>, announced: u64, received: u64 },
}

/// Assembles snapshots and checks the order of messages.
#[derive(Debug)]
pub struct Receiver {
    source: SourceName,
    state: State,
}

impl Receiver {
    /// A receiver for a stream whose peer's certificate names `source`.
    #[must_use]
    pub fn new(source: SourceName) -> Self {
        Self { source, state: State::Greeting }
    }

    /// Takes one message. None: nothing for the directory yet.
    ///
    /// # Errors
    /// If the agent broke the protocol; send [`ProtocolError::refusal`] and close.
    pub fn handle_message(&mut self, message: AgentMessage) -> Result<Option<Update>, ProtocolError> {
        let greeting = matches!(self.state, State::Greeting);
        if greeting != matches!(message, AgentMessage::Hello { .. }) {
            return Err(ProtocolError::Hello);
        }
        match message {
            AgentMessage::Hello { version, source, record, position } => {
                if version != VERSION {
                    return Err(ProtocolError::Version(version));
                }
                if source != self.source {
                    return Err(ProtocolError::Name);
                }
                self.state = State::Following;
                Ok(Some(Update::Hello { record, position }))
            }
            AgentMessage::SnapshotBegin { position, users } => self.begin(position, users),
            AgentMessage::SnapshotChunk(entries) => {
                let State::Filling { snapshot, announced, received } = &mut self.state else {
                    return Err(ProtocolError::Order);
                };
                *received += u64::try_from(entries.len()).unwrap_or(u64::MAX);
                if entries.len() > MAX_BATCH || *received > *announced {
                    return Err(ProtocolError::TooMany);
                }
                for entry in &entries {
                    snapshot.users.insert(&entry.address);
                }
                Ok(None)
            }
            AgentMessage::SnapshotEnd { hash } => self.end(hash),
            AgentMessage::Changes { first, changes, hash } => {
                if changes.len() > MAX_BATCH {
                    return Err(ProtocolError::TooMany);
                }
                self.following()?;
                Ok(Some(Update::Changes { first, changes, hash }))
            }
            AgentMessage::Heartbeat { seq, current } => {
                // Inside a snapshot it only shows that the agent lives, which the shell sees by itself.
                Ok(self.following().ok().map(|()| Update::Heartbeat { seq, current }))
            }
        }
    }

    fn following(&self) -> Result<(), ProtocolError> {
        if matches!(self.state, State::Following) { Ok(()) } else { Err(ProtocolError::Order) }
    }

    fn begin(&mut self, position: Position, announced: u64) -> Result<Option<Update>, ProtocolError> {
        self.following()?;
        if announced > MAX_USERS_PER_SOURCE {
            return Err(ProtocolError::TooMany);
        }
        let snapshot = Box::new(Snapshot { position, users: Users::default() });
        self.state = State::Filling { snapshot, announced, received: 0 };
        Ok(None)
    }

    fn end(&mut self, hash: RootHash) -> Result<Option<Update>, ProtocolError> {
        match std::mem::replace(&mut self.state, State::Following) {
            State::Filling { snapshot, announced, .. } => {
                let whole = u64::try_from(snapshot.users.len()) == Ok(announced) && snapshot.users.hash() == hash;
                Ok(Some(if whole { Update::Snapshot(snapshot) } else { Update::Damaged }))
            }
            State::Greeting | State::Following => Err(ProtocolError::Order),
        }
    }
}
