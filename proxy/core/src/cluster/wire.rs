//! What is in a datagram: one octet says whether foca's message or one of ours follows.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, PostcardCodec};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::node::{Node, NodeName};

/// Longest datagram in octets: fits QUIC's first 1,200 octet packets before path MTU discovery.
pub const MAX_DATAGRAM: usize = 1150;
/// What foca may use of it.
pub(super) const MAX_FOCA_DATAGRAM: NonZeroUsize = NonZeroUsize::MIN.saturating_add(MAX_DATAGRAM - 2);
/// Names that a process accepts in its lifetime; more would be an attack on its memory.
pub const MAX_KNOWN_NODES: usize = 1024;

const KIND_FOCA: u8 = 0;
const KIND_CONTROL: u8 = 1;

/// The peer sent something that is no membership datagram. Nothing of it was used, or only the sound
/// part before the damage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedDatagram {
    #[error("empty")]
    Empty,
    #[error("longer than {MAX_DATAGRAM} octets")]
    TooLong,
    #[error("unknown kind {0}")]
    UnknownKind(u8),
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// Our own messages, for what foca has no words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Control {
    /// "I am `node`; who are you?" To a seed of which only the address is known, and to a suspect.
    Hello { node: Node },
    /// The answer.
    Here { node: Node, on_file: Option<OnFile> },
    /// Repair of lost digests.
    Digests(Vec<Digest>),
}

/// A newer description of the asker than the asker's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OnFile {
    pub(super) node: Node,
    pub(super) alive: bool,
}

pub(super) enum Message<'a> {
    Foca(&'a [u8]),
    Control(Control),
}

pub(super) fn decode(bytes: &[u8]) -> Result<Message<'_>, MalformedDatagram> {
    if bytes.len() > MAX_DATAGRAM {
        return Err(MalformedDatagram::TooLong);
    }
    let (&kind, rest) = bytes.split_first().ok_or(MalformedDatagram::Empty)?;
    match kind {
        KIND_FOCA => Ok(Message::Foca(rest)),
        KIND_CONTROL => postcard::from_bytes(rest).map(Message::Control).map_err(unreadable),
        other => Err(MalformedDatagram::UnknownKind(other)),
    }
}

/// The head of foca's message.
pub(super) fn foca_header(bytes: &[u8]) -> Result<Header<Node>, MalformedDatagram> {
    postcard::take_from_bytes(bytes).map(|(header, _)| header).map_err(unreadable)
}

pub(super) fn encode_foca(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 1);
    out.push(KIND_FOCA);
    out.extend_from_slice(message);
    out
}

/// `None` if it is longer than a datagram may be; the callers keep within the limit.
pub(super) fn encode_control(message: &Control) -> Option<Vec<u8>> {
    let out = postcard::to_extend(message, vec![KIND_CONTROL]).ok()?;
    (out.len() <= MAX_DATAGRAM).then_some(out)
}

pub(super) fn unreadable(error: impl ToString) -> MalformedDatagram {
    MalformedDatagram::Unreadable(error.to_string())
}

/// Postcard, and a limit to the number of names that peers can make us remember.
#[derive(Debug, Default)]
pub(super) struct BoundedCodec {
    names: BTreeSet<NodeName>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    #[error(transparent)]
    Postcard(#[from] postcard::Error),
    #[error("more than {MAX_KNOWN_NODES} node names")]
    TooManyNames,
}

impl BoundedCodec {
    fn check(&mut self, name: &NodeName) -> Result<(), CodecError> {
        if self.names.contains(name) {
            return Ok(());
        }
        if self.names.len() >= MAX_KNOWN_NODES {
            return Err(CodecError::TooManyNames);
        }
        self.names.insert(name.clone());
        Ok(())
    }
}

impl Codec<Node> for BoundedCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Node>, buf: impl BufMut) -> Result<(), CodecError> {
        Ok(PostcardCodec.encode_header(header, buf)?)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Node>, CodecError> {
        let header: Header<Node> = PostcardCodec.decode_header(buf)?;
        self.check(&header.src.name)?;
        Ok(header)
    }

    fn encode_member(&mut self, member: &Member<Node>, buf: impl BufMut) -> Result<(), CodecError> {
        Ok(PostcardCodec.encode_member(member, buf)?)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Node>, CodecError> {
        let member: Member<Node> = PostcardCodec.decode_member(buf)?;
        self.check(&member.id().name)?;
        Ok(member)
    }
}
