//! This front end's weight: the configuration's, or the one that an operator has set since, which is kept on disk.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::status::drain::WeightStatus;

const FILE: &str = "weight";

/// Where the weight is kept.
#[derive(Debug, Clone)]
pub struct WeightStore {
    path: PathBuf,
    configured: u16,
}

impl WeightStore {
    #[must_use]
    pub fn new(state_dir: &Path, configured: u16) -> Self {
        Self { path: state_dir.join(FILE), configured }
    }

    /// The weight in force. A file that cannot be read is no reason not to start: the configuration's then.
    #[must_use]
    pub fn load(&self) -> WeightStatus {
        let weight = self.read().unwrap_or_else(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "the weight that was set is not known: taking the configuration's"
            );
            None
        });
        self.status(weight.unwrap_or(self.configured))
    }

    fn read(&self) -> Result<Option<u16>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => {
                let weight = text.trim().parse::<u16>().ok().filter(|weight| *weight > 0);
                let weight = weight.with_context(|| format!("{} holds no weight", self.path.display()))?;
                Ok(Some(weight))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", self.path.display())),
        }
    }

    /// Keeps a weight over restarts.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, weight: u16) -> Result<WeightStatus> {
        self.write(weight).with_context(|| format!("failed to write {}", self.path.display()))?;
        Ok(self.status(weight))
    }

    fn write(&self, weight: u16) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(directory)?;
        writeln!(file, "{weight}")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        fs::File::open(directory)?.sync_all()
    }

    /// Takes the configuration's weight from now on.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn reset(&self) -> Result<WeightStatus> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove {}", self.path.display()))
            }
            _ => Ok(self.status(self.configured)),
        }
    }

    const fn status(&self, weight: u16) -> WeightStatus {
        WeightStatus { weight, configured_weight: self.configured }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_kept_until_it_is_reset() {
        let dir = tempfile::tempdir().unwrap();
        let store = WeightStore::new(dir.path(), 100);
        assert_eq!(store.load().weight, 100);
        assert_eq!(store.set(7).unwrap().weight, 7);
        assert_eq!(WeightStore::new(dir.path(), 50).load(), WeightStatus { weight: 7, configured_weight: 50 });
        assert_eq!(store.reset().unwrap().weight, 100);
        assert_eq!((store.reset().unwrap().weight, store.load().weight), (100, 100));
    }

    #[test]
    fn a_damaged_file_is_no_weight() {
        let dir = tempfile::tempdir().unwrap();
        let store = WeightStore::new(dir.path(), 100);
        for text in ["", "0", "-1", "70000", "7 8"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(store.load().weight, 100, "{text:?}");
        }
    }
}
