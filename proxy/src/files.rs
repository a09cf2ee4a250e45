//! Files that must be whole whatever happens.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file so that it is the old one or the new one, even after a crash. What it may leave behind is a file of
/// the same name with the extension `new`.
///
/// # Errors
/// As `open(2)`, `write(2)`, `fsync(2)`, `rename(2)`.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(), // or the rename itself may be lost
        None => Ok(()),
    }
}
