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
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut frame = postcard::to_extend(message, vec![0; LENGTH]).map_err(|_error| WireError::Unwritable)?;
    let length = frame.len() - LENGTH;
    match u32::try_from(length) {
        Ok(octets) if length <= MAX_FRAME => frame[..LENGTH].copy_from_slice(&octets.to_be_bytes()),
        _ => return Err(WireError::TooLong(length)),
    }
    Ok(frame)
}

/// A message that can come over the wire.
pub trait Message: Serialize + DeserializeOwned {
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
    fn read<M: Message>(input: &[u8]) -> usize {
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

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::record::{Endpoint, EndpointTls, Epoch, Services};
    use super::*;
    use crate::address::Address;

    fn agent_messages() -> Vec<AgentMessage> {
        let position = Position { epoch: Epoch(1_700_000_000_000), seq: Seq(3) };
        let entry = |text| Entry { address: Address::parse(text).unwrap() };
        let endpoint = Endpoint { address: "[fd77::21]:993".parse().unwrap(), tls: EndpointTls::Implicit };
        let lmtp = Endpoint { address: "10.77.0.21:24".parse().unwrap(), tls: EndpointTls::None };
        let services = Services { lmtp: Some(lmtp), smtp: None, imap: Some(endpoint), pop3: None };
        let record = BackendRecord { services, recipient_delimiter: Some('+') };
        let hash = RootHash::default();
        vec![
            AgentMessage::Hello { version: VERSION, source: SourceName::parse("be1").unwrap(), record, position },
            AgentMessage::SnapshotBegin { position, users: 2 },
            AgentMessage::SnapshotChunk(vec![entry("jörg@x.test"), entry("\"a \\\" b\"@y.test")]),
            AgentMessage::SnapshotEnd { hash },
            AgentMessage::Changes {
                first: Seq(4),
                changes: vec![Change::Put(entry("a@x.test")), Change::Remove(entry("b@x.test"))],
                hash,
            },
            AgentMessage::Heartbeat { seq: Seq(5), current: true },
        ]
    }

    fn frontend_messages() -> Vec<FrontendMessage> {
        let position = Position { epoch: Epoch(1), seq: Seq(3) };
        vec![
            FrontendMessage::Have(position),
            FrontendMessage::Nothing,
            FrontendMessage::Ack { seq: Seq(1), hash: RootHash::default() },
            FrontendMessage::Resync,
            FrontendMessage::Frontends(vec!["10.77.0.11:7400".parse().unwrap()]),
            FrontendMessage::Heartbeat,
            FrontendMessage::Refused(Refusal::OldEpoch),
        ]
    }

    fn read_in_two<M: Message>(stream: &[u8], split: usize) -> Vec<M> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for part in [&stream[..split], &stream[split..]] {
            decoder.handle_input(part);
            while let Some(message) = decoder.poll_message().unwrap() {
                messages.push(message);
            }
        }
        messages
    }

    #[test]
    fn a_stream_may_break_at_every_byte() {
        let stream: Vec<u8> = agent_messages().iter().flat_map(|m| encode(m).unwrap()).collect();
        for split in 0..=stream.len() {
            assert_eq!(read_in_two::<AgentMessage>(&stream, split), agent_messages(), "split at {split}");
        }
        let stream: Vec<u8> = frontend_messages().iter().flat_map(|m| encode(m).unwrap()).collect();
        for split in 0..=stream.len() {
            assert_eq!(read_in_two::<FrontendMessage>(&stream, split), frontend_messages(), "split at {split}");
        }
    }

    #[test]
    fn garbage_is_an_error_or_a_message_and_never_a_panic() {
        let mut rng = StdRng::seed_from_u64(1);
        let whole: Vec<u8> = agent_messages().iter().flat_map(|m| encode(m).unwrap()).collect();
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            fuzz(&bytes);
            let random: Vec<u8> = (0..rng.random_range(0..60)).map(|_| rng.random()).collect();
            fuzz(&[&[0, 0, 0, u8::try_from(random.len()).unwrap()], random.as_slice()].concat());
        }
        assert!(fuzz(&whole) >= agent_messages().len());
    }

    #[test]
    fn limits_and_versions_are_named() {
        let read = |bytes: &[u8]| {
            let mut decoder = Decoder::<AgentMessage>::default();
            decoder.handle_input(bytes);
            decoder.poll_message()
        };
        assert_eq!(read(&[0, 0x10, 0, 0]), Ok(None));
        assert_eq!(read(&[0, 0x10, 0, 1]), Err(WireError::TooLong(MAX_FRAME + 1)));
        assert_eq!(read(&[0, 0, 0, 2, 99, 99]), Err(WireError::Malformed));
        assert_eq!(read(&[0, 0, 0, 3, 0, 7, 200]), Err(WireError::Version(7)));
        let mut trailing = encode(&AgentMessage::Heartbeat { seq: Seq(1), current: false }).unwrap();
        trailing[3] += 1;
        trailing.push(0);
        assert_eq!(read(&trailing), Err(WireError::Malformed));
    }

    #[test]
    fn the_fullest_message_fits() {
        let domain = format!("{0}.{0}.{0}.{1}", "d".repeat(63), "d".repeat(63 - 2));
        let local = format!("{}\"\"", "\\\\".repeat(62)).replace('"', "\\\"");
        let entry = Entry { address: Address::parse(&format!("\"{local}\"@{domain}")).unwrap() };
        assert_eq!((entry.address.local().len(), entry.address.domain().len()), (64, 253));
        let changes = vec![Change::Remove(entry); MAX_BATCH];
        assert!(encode(&AgentMessage::Changes { first: Seq(1), changes, hash: RootHash::default() }).is_ok());
    }
}
