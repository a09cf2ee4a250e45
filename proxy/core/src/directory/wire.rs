//! What an agent and a front end say to each other over one stream: postcard messages, each after its
//! length as an unsigned 32-bit number in network byte order.

use std::marker::PhantomData;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::record::{BackendRecord, Change, Entry, Position, Seq, SourceName};
use super::users::RootHash;

/// Version of the messages. Both ends must speak the same.
pub const VERSION: u16 = 1;
/// Longest message in octets, without its length.
pub const MAX_FRAME: usize = 1 << 20;
/// Entries in one chunk of a snapshot, and changes in one message. An address has at most 386 octets on
/// the wire, so that a full message stays below [`MAX_FRAME`].
pub const MAX_BATCH: usize = 2_000;
/// Addresses of front ends in one message.
pub const MAX_FRONTENDS: usize = 256;

/// Octets of the length before a message.
const LENGTH: usize = 4;

/// From the source to the front end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// The first message of a stream. `version` stays its first field for ever.
    Hello {
        version: u16,
        source: SourceName,
        record: BackendRecord,
        position: Position,
    },
    /// All users follow, as of this position.
    SnapshotBegin {
        position: Position,
        users: u64,
    },
    SnapshotChunk(Vec<Entry>),
    /// The snapshot is complete and has this hash.
    SnapshotEnd {
        hash: RootHash,
    },
    /// Changes in order; `first` is the number of the first, `hash` the state after the last.
    Changes {
        first: Seq,
        changes: Vec<Change>,
        hash: RootHash,
    },
    /// The log is at `seq`; `current` is false while the agent cannot read its source and so knows of
    /// no change.
    Heartbeat {
        seq: Seq,
        current: bool,
    },
}

/// From the front end to the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontendMessage {
    /// Answers `Hello`: the copy here is at this position.
    Have(Position),
    /// Answers `Hello`: there is no copy here.
    Nothing,
    /// Everything up to `seq` is in the copy, whose hash is now this.
    Ack {
        seq: Seq,
        hash: RootHash,
    },
    /// The copy is in doubt: send a snapshot.
    Resync,
    /// The pool's front ends that live.
    Frontends(Vec<SocketAddr>),
    Heartbeat,
    /// The stream ends here.
    Refused(Refusal),
}

/// Why a front end will not hear a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("the front end speaks another version of the protocol")]
    Version,
    #[error("the name of the source is not the name in its certificate")]
    Name,
    #[error("a later life of the same source is connected")]
    OldEpoch,
    #[error("another connection of the same source has taken over")]
    Superseded,
    #[error("the front end knows too many sources")]
    TooManySources,
    #[error("the messages broke the protocol")]
    Protocol,
}

/// What is wrong with the bytes of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a message of {0} octets; {MAX_FRAME} are allowed")]
    TooLong(usize),
    #[error("a message that cannot be read")]
    Malformed,
    #[error("the peer speaks version {0} of the protocol; this is version {VERSION}")]
    Version(u16),
    #[error("a message that cannot be written")]
    Unwritable,
}

/// A message with its length before it.
///
/// # Errors
/// If the message is longer than [`MAX_FRAME`].
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut frame = postcard::to_extend(message, vec![0; LENGTH]).map_err(|_error| WireError::Unwritable)?;
    let length = frame.len() - LENGTH;
    match u32::try_from(length) {
        Ok(octets) if length <= MAX_FRAME => frame[..LENGTH].copy_from_slice(&octets.to_be_bytes()),
        _ => return Err(WireError::TooLong(length)),
    }
    Ok(frame)
}

/// A message that can come over the wire.
pub trait Message: DeserializeOwned {
    /// Reads one message without its length.
    ///
    /// # Errors
    /// If the octets are anything but one whole message.
    fn decode(frame: &[u8]) -> Result<Self, WireError> {
        match postcard::take_from_bytes(frame) {
            Ok((message, [])) => Ok(message),
            Ok(_) | Err(_) => Err(WireError::Malformed),
        }
    }
}

impl Message for FrontendMessage {}

impl Message for AgentMessage {
    fn decode(frame: &[u8]) -> Result<Self, WireError> {
        // Another version's Hello may have other fields: name the version rather than "malformed".
        if let Ok(((0, version), _)) = postcard::take_from_bytes::<(u32, u16)>(frame)
            && version != VERSION
        {
            return Err(WireError::Version(version));
        }
        match postcard::take_from_bytes(frame) {
            Ok((message, [])) => Ok(message),
            Ok(_) | Err(_) => Err(WireError::Malformed),
        }
    }
}

/// Makes messages out of bytes as they come. Holds at most one unfinished message beyond what was
/// pushed last. After an error the stream cannot be read on.
#[derive(Debug)]
pub struct Decoder<M> {
    buffer: Vec<u8>,
    at: usize,
    message: PhantomData<fn() -> M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Self { buffer: Vec::new(), at: 0, message: PhantomData }
    }
}

impl<M: Message> Decoder<M> {
    /// Takes bytes as they came. Call `poll_message` until it has none before pushing more.
    pub fn handle_input(&mut self, input: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(input);
    }

    /// The next whole message; None if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are no messages.
    pub fn poll_message(&mut self) -> Result<Option<M>, WireError> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(WireError::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(frame)?;
        self.at += LENGTH + length;
        Ok(Some(message))
    }
}

/// Reads any bytes as both directions of a stream and as a stored snapshot, and writes back what it
/// understood: the entry of the fuzzer. Returns the number of messages.
pub fn fuzz(input: &[u8]) -> usize {
    fn read<M: Message + Serialize>(input: &[u8]) -> usize {
        let mut decoder = Decoder::<M>::default();
        decoder.handle_input(input);
        let mut messages = 0;
        while let Ok(Some(message)) = decoder.poll_message() {
            messages += usize::from(encode(&message).is_ok());
        }
        messages
    }
    let stored = usize::from(super::persist::decode_snapshot(input).is_ok());
    read::<AgentMessage>(input) + read::<FrontendMessage>(input) + stored
}
