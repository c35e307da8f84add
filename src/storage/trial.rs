//! Checks a folder without an open: finds the reasons for which a start would refuse it.

use std::path::Path;

use super::directory::{lock_if_there, memory_filesystem};
use super::error::OpenError;
use super::identity::read_stamp;
use super::sealing::SealingKey;

/// Checks a folder as an open does before it opens sled, and changes nothing in it: its file system, its lock, its format
/// and the key that it is sealed with. A folder that does not exist is fine if its file system is.
///
/// # Errors
/// With the reason for which an open would fail.
pub fn check_folder(path: &Path, keys: &[SealingKey], volatile: bool) -> Result<(), OpenError> {
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    if let Some(filesystem) = memory_filesystem(there).filter(|_| !volatile) {
        return Err(OpenError::Volatile { path: path.to_owned(), filesystem });
    }
    let _lock = lock_if_there(path)?;
    read_stamp(path, keys).map(drop)
}
