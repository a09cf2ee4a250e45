//! The deny list on disk, so that a pool that was off denies what it denied.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proxy_core::abuse::persist::{self, Encoder, StoredError};
use proxy_core::abuse::{DenyList, Prefix, Record};

use super::list::{SharedDenyList, unix_now};
use crate::files;

/// Changes are gathered for so long before they are stored.
const STORE_EVERY: Duration = Duration::from_secs(1);
/// The pause after storing is at least so many times as long as storing took.
const STORE_SHARE: u32 = 9;
/// Longest file that is read, in octets: more than all that a list can hold.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Records written while the list is held.
const PAGE: usize = 2_000;

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

/// Where the list is stored.
#[derive(Debug, Clone)]
pub(super) struct Store {
    file: PathBuf,
}

impl Store {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join("deny") }
    }

    /// The list as it was stored. A damaged file is told, and the peers know the rest.
    pub(super) fn load(&self) -> DenyList {
        let mut list = DenyList::default();
        match read(&self.file) {
            Ok(records) => {
                let now = unix_now();
                for record in records {
                    list.merge(now, record);
                }
            }
            Err(error) => tracing::error!(
                "{} is not taken: {error}; this front end denies nothing until its peers tell it their list",
                self.file.display()
            ),
        }
        list
    }

    /// Stores what changes, at most once a second and so that storing takes at most a tenth of the time.
    pub(super) async fn keep(self, list: SharedDenyList) {
        let mut changed = list.subscribe();
        while changed.changed().await.is_ok() {
            let begun = Instant::now();
            if let Err(error) = self.save(&list).await {
                tracing::error!("failed to store the deny list: {error:#}");
            }
            tokio::time::sleep(STORE_EVERY.max(begun.elapsed() * STORE_SHARE)).await;
        }
    }

    /// Stores the list as it is now.
    pub(super) async fn save(&self, list: &SharedDenyList) -> Result<()> {
        let (file, list) = (self.file.clone(), list.clone());
        tokio::task::spawn_blocking(move || {
            files::replace(&file, &encode(&list)).with_context(|| format!("failed to write {}", file.display()))
        })
        .await?
    }
}

fn encode(list: &SharedDenyList) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut after: Option<Prefix> = None;
    loop {
        let list = list.lock();
        let mut count = 0;
        for record in list.records(after).take(PAGE) {
            encoder.push(record);
            after = Some(record.prefix);
            count += 1;
        }
        if count < PAGE {
            return encoder.finish();
        }
    }
}

fn read(path: &Path) -> Result<Vec<Record>, LoadError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error.into()),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => Err(LoadError::TooLong),
        Ok(_) => Ok(persist::decode(&fs::read(path)?)?),
    }
}
