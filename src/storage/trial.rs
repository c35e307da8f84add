//! Checks a folder without an open: finds the reasons for which a start would refuse it, or set the store aside.

use std::path::Path;

use super::directory::{lock_if_there, memory_filesystem};
use super::error::OpenError;
use super::identity::{read_stamp, text};
use super::image::Image;
use super::preflight::check;
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

/// Returns true if an open would find the store in a folder damaged. It reads the whole log.
///
/// # Errors
/// If a file cannot be read.
pub fn is_damaged(path: &Path) -> Result<bool, OpenError> {
    let failed = |cause| OpenError::failed(path, "read its log", cause);
    match text(path).and_then(|stamp| stamp.map_or(Ok(()), |_| check(path))) {
        Err(OpenError::Damaged { .. }) => return Ok(true),
        checked => checked?,
    }
    let image = Image::read(path, |_, _| ()).map_err(failed)?;
    Ok(!image.damage.is_empty() || text(path)?.is_none())
}
