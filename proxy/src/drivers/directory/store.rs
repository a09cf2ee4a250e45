//! The directory on disk: `directory/registry` names the sources, `directory/sources/NAME` has the copy of each.
//! A file is replaced as a whole: a crash leaves the old one or the new one.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use proxy_core::directory::persist::{self, StoredError};
use proxy_core::directory::{Directory, SourceName};

use super::SharedDirectory;
use crate::files;

/// Changes are gathered for so long before they are stored.
pub(super) const STORE_EVERY: Duration = Duration::from_secs(1);
/// The pause after storing is at least so many times as long as storing took.
pub(super) const STORE_SHARE: u32 = 9;
/// Longest file that is read, in octets.
const MAX_FILE_BYTES: u64 = 16 << 30;

/// What of the directory is on disk.
#[derive(Debug)]
pub(super) struct Store {
    registry: PathBuf,
    sources: PathBuf,
    /// Locked while files are written, so that an older state never replaces a newer one.
    saved: Mutex<Saved>,
}

#[derive(Debug, Default)]
struct Saved {
    registry: Vec<SourceName>,
    revisions: HashMap<SourceName, u64>,
}

impl Store {
    /// Makes the directories if they are not there.
    pub(super) fn open(state_dir: &Path) -> Result<Self> {
        let base = state_dir.join("directory");
        let sources = base.join("sources");
        fs::create_dir_all(&sources).with_context(|| format!("failed to create {}", sources.display()))?;
        Ok(Self { registry: base.join("registry"), sources, saved: Mutex::default() })
    }

    /// Fills the directory. What is damaged is logged and passed over; its source is registered all the same.
    pub(super) fn load(&self, directory: &mut Directory) -> Result<()> {
        let registry =
            read(&self.registry).and_then(|file| Ok(file.map(|f| persist::decode_registry(&f)).transpose()?));
        match registry {
            Ok(names) => register(directory, &names.unwrap_or_default()),
            Err(error) => tracing::warn!("{} is not taken: {error}", self.registry.display()),
        }
        let entries =
            fs::read_dir(&self.sources).with_context(|| format!("failed to list {}", self.sources.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("failed to list {}", self.sources.display()))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).map(SourceName::parse);
            let Some(Ok(name)) = name else { continue }; // a temporary file that a crash has left
            register(directory, std::slice::from_ref(&name));
            self.load_source(directory, &name, &path);
        }
        Ok(())
    }

    fn load_source(&self, directory: &mut Directory, name: &SourceName, path: &Path) {
        let stored = read(path).and_then(|file| Ok(file.map(|f| persist::decode_snapshot(&f)).transpose()?));
        match stored {
            Ok(Some((inside, stored))) if inside == *name => directory.restore(name, stored),
            Ok(None) => {}
            Ok(Some((inside, _))) => tracing::warn!("{} is not taken: it is of {inside}", path.display()),
            Err(error) => tracing::warn!("{} is not taken: {error}", path.display()),
        }
    }

    /// Writes what has changed since the last call.
    pub(super) fn save(&self, directory: &SharedDirectory) -> Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<SourceName> = Vec::new();
        let mut changed: Vec<SourceName> = Vec::new();
        for (source, revision) in directory.read().revisions() {
            names.push(source.clone());
            if saved.revisions.get(source).copied().unwrap_or(0) != revision {
                changed.push(source.clone());
            }
        }
        names.sort_unstable();
        if names != saved.registry {
            write(&self.registry, &persist::encode_registry(&names))?;
            saved.registry = names;
        }
        for source in changed {
            // The lock is held for the clone only, which is cheap.
            let stored = directory.read().stored(&source);
            let Some((revision, stored)) = stored else { continue };
            write(&self.sources.join(source.as_str()), &persist::encode_snapshot(&source, &stored))?;
            saved.revisions.insert(source, revision);
        }
        Ok(())
    }

    /// Removes the file of a source.
    pub(super) fn remove(&self, source: &SourceName) -> Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.revisions.remove(source);
        let path = self.sources.join(source.as_str());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn register(directory: &mut Directory, names: &[SourceName]) {
    for name in names {
        if !directory.register(name) {
            tracing::warn!(source = %name, "one source too many: not registered");
        }
    }
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Stored(#[from] StoredError),
    #[error("longer than {MAX_FILE_BYTES} octets")]
    TooLong,
}

/// None: there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => Err(LoadError::TooLong),
        Ok(_) => Ok(Some(fs::read(path)?)),
    }
}

/// The temporary name has a dot: it is no name of a source.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    files::replace(path, content).with_context(|| format!("failed to write {}", path.display()))
}
