//! What front ends say to each other about the deny list: postcard messages, each after its length as an unsigned
//! 32-bit number in network byte order. Whoever opens a stream sends [`Message`]s, the other end [`Reply`]s.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::deny::PARTS;
use super::record::{Record, Word};

/// Version of the messages. Both ends must speak the same.
pub const VERSION: u16 = 1;
/// Longest message in octets, without its length.
pub const MAX_FRAME: usize = 64 * 1024;
/// Octets of a record at the most, without its texts: prefix 19, time 10, lengths of texts 3, word 1, end 11.
const RECORD_OCTETS: usize = 48;
/// Octets of a message around its records.
const MESSAGE_OCTETS: usize = 8;
/// Octets of the length before a message.
const LENGTH: usize = 4;

/// From the front end that opened the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first message. `version` stays its first field for ever.
    Hello { version: u16 },
    /// Words about prefixes, to be merged.
    Records(Vec<Record>),
    /// What [`Reply::Compare`] asked for has been sent.
    Done,
    /// The sum of the sender's list: the receiver compares if its own is another.
    Summary(u64),
}

/// From the front end to which the stream was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The sums of the receiver's list by part: send the parts that differ.
    Compare(Vec<u64>),
}

/// What is wrong with the bytes of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a message of {0} octets; {MAX_FRAME} are allowed")]
    TooLong(usize),
    #[error("a message that cannot be read")]
    Malformed,
    #[error("a record whose times are impossible")]
    BadTime,
    #[error("the peer speaks version {0} of the protocol; this is version {VERSION}")]
    Version(u16),
    #[error("a message that cannot be written")]
    Unwritable,
}

/// A message that can come over the wire.
pub trait Wire: Serialize + DeserializeOwned {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self) -> Result<(), WireError>;
}

impl Wire for Message {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Hello { version } if *version != VERSION => Err(WireError::Version(*version)),
            Self::Records(records) if !records.iter().all(Record::is_sane) => Err(WireError::BadTime),
            Self::Hello { .. } | Self::Records(_) | Self::Done | Self::Summary(_) => Ok(()),
        }
    }
}

impl Wire for Reply {
    fn check(&self) -> Result<(), WireError> {
        let Self::Compare(sums) = self;
        if sums.len() == PARTS { Ok(()) } else { Err(WireError::Malformed) }
    }
}

/// A message with its length before it.
///
/// # Errors
/// If the message is longer than [`MAX_FRAME`].
pub fn encode<M: Wire>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut frame = postcard::to_extend(message, vec![0; LENGTH]).map_err(|_error| WireError::Unwritable)?;
    let length = frame.len() - LENGTH;
    match u32::try_from(length) {
        Ok(octets) if length <= MAX_FRAME => frame[..LENGTH].copy_from_slice(&octets.to_be_bytes()),
        _ => return Err(WireError::TooLong(length)),
    }
    Ok(frame)
}

/// Gathers records into one message, until it is full.
#[derive(Debug, Default)]
pub(super) struct Batch {
    records: Vec<Record>,
    octets: usize,
}

impl Batch {
    /// True if it was taken; false: the message is full.
    pub(super) fn push(&mut self, record: &Record) -> bool {
        let texts = match &record.word {
            Word::Denied(denial) => denial.reason.as_str().len(),
            Word::Removed => 0,
        };
        let octets = RECORD_OCTETS + record.set_by.as_str().len() + texts;
        if self.octets + octets > MAX_FRAME - MESSAGE_OCTETS {
            return false;
        }
        self.octets += octets;
        self.records.push(record.clone());
        true
    }

    /// The message, unless it is empty.
    pub(super) fn message(self) -> Option<Message> {
        if self.records.is_empty() { None } else { Some(Message::Records(self.records)) }
    }
}

/// Makes messages out of bytes as they come. Holds at most one unfinished message beyond what was pushed last. After
/// an error the stream cannot be read on.
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

impl<M: Wire> Decoder<M> {
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
        let message = decode(frame)?;
        self.at += LENGTH + length;
        Ok(Some(message))
    }
}

fn decode<M: Wire>(frame: &[u8]) -> Result<M, WireError> {
    let Ok((message, [])) = postcard::take_from_bytes::<M>(frame) else { return Err(WireError::Malformed) };
    message.check()?;
    Ok(message)
}

/// Reads any bytes as both directions of a stream and as a stored list, and writes back what it understood: the entry
/// of the fuzzer. Returns the number of messages.
pub fn fuzz(input: &[u8]) -> usize {
    fn read<M: Wire>(input: &[u8]) -> usize {
        let mut decoder = Decoder::<M>::default();
        decoder.handle_input(input);
        let mut messages = 0;
        while let Ok(Some(message)) = decoder.poll_message() {
            messages += usize::from(encode(&message).is_ok());
        }
        messages
    }
    read::<Message>(input) + read::<Reply>(input) + usize::from(super::persist::decode(input).is_ok())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::record::{Denial, MAX_REASON, MAX_TIME_MS, Origin, Reason};
    use super::*;

    fn record(prefix: &str, reason: &str) -> Record {
        let denial = Denial { until: Some(1_800_000_000_000), reason: Reason::parse(reason).unwrap() };
        let set_by = Origin::parse("fe1").unwrap();
        Record { prefix: prefix.parse().unwrap(), changed: 1_700_000_000_000, set_by, word: Word::Denied(denial) }
    }

    fn messages() -> Vec<Message> {
        let removed = Record { word: Word::Removed, ..record("2001:db8::/32", "") };
        vec![
            Message::Hello { version: VERSION },
            Message::Summary(7),
            Message::Records(vec![record("192.0.2.0/24", "spam"), removed]),
            Message::Done,
        ]
    }

    fn read(bytes: &[u8]) -> Result<Option<Message>, WireError> {
        let mut decoder = Decoder::default();
        decoder.handle_input(bytes);
        decoder.poll_message()
    }

    #[test]
    fn a_stream_may_break_at_every_byte() {
        let stream: Vec<u8> = messages().iter().flat_map(|m| encode(m).unwrap()).collect();
        for split in 0..=stream.len() {
            let mut decoder = Decoder::<Message>::default();
            let mut read = vec![];
            for part in [&stream[..split], &stream[split..]] {
                decoder.handle_input(part);
                while let Some(message) = decoder.poll_message().unwrap() {
                    read.push(message);
                }
            }
            assert_eq!(read, messages(), "split at {split}");
        }
    }

    #[test]
    fn garbage_is_an_error_or_a_message_and_never_a_panic() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut whole: Vec<u8> = messages().iter().flat_map(|m| encode(m).unwrap()).collect();
        whole.extend(encode(&Reply::Compare(vec![u64::MAX; PARTS])).unwrap());
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
        assert!(fuzz(&whole) >= messages().len());
    }

    #[test]
    fn limits_and_versions_are_named() {
        assert_eq!(read(&[0, 1, 0, 0]), Ok(None));
        assert_eq!(read(&[0, 1, 0, 1]), Err(WireError::TooLong(MAX_FRAME + 1)));
        assert_eq!(read(&[0, 0, 0, 2, 99, 99]), Err(WireError::Malformed));
        assert_eq!(read(&encode(&Message::Hello { version: 7 }).unwrap()), Err(WireError::Version(7)));
        let far = Record { changed: MAX_TIME_MS + 1, ..record("192.0.2.1", "") };
        assert_eq!(read(&encode(&Message::Records(vec![far])).unwrap()), Err(WireError::BadTime));
        let mut decoder = Decoder::<Reply>::default();
        decoder.handle_input(&encode(&Reply::Compare(vec![0; PARTS - 1])).unwrap());
        assert_eq!(decoder.poll_message(), Err(WireError::Malformed));
    }

    #[test]
    fn a_prefix_with_host_bits_is_malformed_on_the_wire() {
        let good = encode(&Message::Records(vec![record("192.0.2.0/24", "x")])).unwrap();
        let at = good.windows(4).position(|w| w == [192, 0, 2, 0]).unwrap();
        let mut bad = good.clone();
        bad[at + 3] = 1;
        assert!(read(&good).is_ok());
        assert_eq!(read(&bad), Err(WireError::Malformed));
    }

    #[test]
    fn the_fullest_message_fits() {
        let longest = Record {
            changed: MAX_TIME_MS,
            set_by: Origin::parse(&"f".repeat(63)).unwrap(),
            ..record("2001:db8::1", &"r".repeat(MAX_REASON))
        };
        let mut batch = Batch::default();
        while batch.push(&longest) {}
        let frame = encode(&batch.message().unwrap()).unwrap();
        assert!(frame.len() > MAX_FRAME * 3 / 4, "{}", frame.len());
    }
}
