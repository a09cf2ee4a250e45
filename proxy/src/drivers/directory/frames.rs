//! A stream of directory messages over any pair of halves, read and written at the same time: neither end
//! can wait for the other while the other waits for it.

use std::io;

use proxy_core::directory::wire::{self, Decoder, Message, WireError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Octets read at once.
const READ_BYTES: usize = 64 * 1024;
/// Octets that may wait to be written; a peer that sends and does not read is given up.
pub(crate) const MAX_OUTGOING: usize = 4 << 20;

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the peer closed the stream")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the peer sends and does not read")]
    NotReading,
}

/// One end of a stream whose peer sends messages of type `M`.
pub(crate) struct Frames<R, W, M> {
    reader: R,
    writer: W,
    decoder: Decoder<M>,
    input: Box<[u8]>,
    outgoing: Vec<u8>,
    written: usize,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin, M: Message> Frames<R, W, M> {
    /// The end of a stream just opened.
    pub(crate) fn new(reader: R, writer: W) -> Self {
        let input = vec![0; READ_BYTES].into_boxed_slice();
        Self { reader, writer, decoder: Decoder::default(), input, outgoing: Vec::new(), written: 0 }
    }

    /// Puts a message into the queue of what is to be written.
    ///
    /// # Errors
    /// If the peer has not read for too long, or the message is too large.
    pub(crate) fn send<T: Message>(&mut self, message: &T) -> Result<(), StreamError> {
        self.outgoing.drain(..self.written);
        self.written = 0;
        let frame = wire::encode(message)?;
        if self.outgoing.len() + frame.len() > MAX_OUTGOING {
            return Err(StreamError::NotReading);
        }
        self.outgoing.extend_from_slice(&frame);
        Ok(())
    }

    /// True if everything was handed to the transport.
    pub(crate) fn is_idle(&self) -> bool {
        self.written == self.outgoing.len()
    }

    /// The next message that has arrived.
    ///
    /// # Errors
    /// If the peer sent something else.
    pub(crate) fn poll_message(&mut self) -> Result<Option<M>, StreamError> {
        Ok(self.decoder.poll_message()?)
    }

    /// Reads or writes some bytes. May be dropped at any time without loss.
    ///
    /// # Errors
    /// If the stream is at its end or broken.
    pub(crate) async fn progress(&mut self) -> Result<(), StreamError> {
        let pending = self.outgoing.get(self.written..).unwrap_or_default();
        tokio::select! {
            read = self.reader.read(&mut self.input) => match read? {
                0 => Err(StreamError::Closed),
                octets => {
                    self.decoder.handle_input(self.input.get(..octets).unwrap_or_default());
                    Ok(())
                }
            },
            written = self.writer.write(pending), if !pending.is_empty() => match written? {
                0 => Err(StreamError::Closed),
                octets => {
                    self.written += octets;
                    Ok(())
                }
            },
        }
    }

    /// Writes what is in the queue and ends the stream. What comes meanwhile is thrown away.
    ///
    /// # Errors
    /// If the stream is broken.
    pub(crate) async fn finish(mut self) -> Result<(), StreamError> {
        self.writer.write_all(self.outgoing.get(self.written..).unwrap_or_default()).await?;
        Ok(self.writer.shutdown().await?)
    }
}
