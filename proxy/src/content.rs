//! A message on its way through: in memory while it is small, in an unlinked file beyond.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

/// Larger messages go to a file.
pub const MAX_IN_MEMORY: usize = 256 * 1024;
/// What is read back at a time.
const READ_STEP: usize = 64 * 1024;

/// A message that is being received.
#[derive(Debug)]
pub struct ContentWriter<'a> {
    directory: &'a Path,
    memory: Vec<u8>,
    file: Option<tokio::fs::File>,
    length: u64,
}

/// A message received whole; clones share it.
#[derive(Debug, Clone)]
pub struct Content {
    store: Store,
    length: u64,
}

#[derive(Debug, Clone)]
enum Store {
    Memory(Bytes),
    File(Arc<File>),
}

impl<'a> ContentWriter<'a> {
    /// `directory` is where the file goes if there must be one; it never has a name there.
    #[must_use]
    pub fn new(directory: &'a Path) -> Self {
        Self { directory, memory: Vec::new(), file: None, length: 0 }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// The file cannot be made or written: a full disk, for one.
    pub async fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        self.length += piece.len() as u64;
        if self.file.is_none() && self.memory.len() + piece.len() > MAX_IN_MEMORY {
            let mut file = tokio::fs::File::from_std(tempfile::tempfile_in(self.directory)?);
            file.write_all(&std::mem::take(&mut self.memory)).await?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(piece).await,
            None => {
                self.memory.extend_from_slice(piece);
                Ok(())
            }
        }
    }

    /// Octets so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The whole message.
    ///
    /// # Errors
    /// The last writes failed.
    pub async fn finish(self) -> io::Result<Content> {
        let store = match self.file {
            None => Store::Memory(self.memory.into()),
            Some(mut file) => {
                // Not fsync: this file has no name and promises nothing; the back end's reply does.
                file.flush().await?;
                Store::File(Arc::new(file.into_std().await))
            }
        };
        Ok(Content { store, length: self.length })
    }
}

impl Content {
    /// Octets in all.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// A piece beginning at `offset`; empty at the end.
    ///
    /// # Errors
    /// The file cannot be read, or has become shorter.
    pub async fn read_at(&self, offset: u64) -> io::Result<Bytes> {
        let rest = self.length.saturating_sub(offset);
        let size = usize::try_from(rest).map_or(READ_STEP, |rest| rest.min(READ_STEP));
        match &self.store {
            Store::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(start..start + size))
            }
            Store::File(file) => {
                let file = Arc::clone(file);
                let read = move || {
                    let mut buffer = vec![0; size];
                    file.read_exact_at(&mut buffer, offset)?;
                    Ok(Bytes::from(buffer))
                };
                tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_and_large_read_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, READ_STEP, MAX_IN_MEMORY, MAX_IN_MEMORY + 1, 3 * MAX_IN_MEMORY + 17] {
            let original: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut writer = ContentWriter::new(dir.path());
            for piece in original.chunks(10_000) {
                writer.push(piece).await.unwrap();
            }
            assert_eq!(writer.file.is_some(), size > MAX_IN_MEMORY);
            let content = writer.finish().await.unwrap();
            let mut back = Vec::new();
            loop {
                let piece = content.read_at(back.len() as u64).await.unwrap();
                if piece.is_empty() {
                    break;
                }
                back.extend_from_slice(&piece);
            }
            assert_eq!((content.length(), back), (size as u64, original));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_an_error() {
        let mut writer = ContentWriter::new(Path::new("/nonexistent"));
        assert!(writer.push(&vec![0; MAX_IN_MEMORY + 1]).await.is_err());
    }
}
