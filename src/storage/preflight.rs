//! Checks before sled opens a log.
//!
//! sled does not handle a damaged log: it cuts it off where the damage begins, zeroes what comes after, panics, or
//! hangs in threads of its own. So a start first reads the folder without sled: the marks of earlier runs, sled's
//! parameters, and the whole log. Damage is a value, [`OpenError::Damaged`], and is found before anything is written.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::directory::sync_directory;
use super::error::OpenError;
use super::image::Image;
use super::{names, open_guard, sled_log};
use crate::time::WallTime;

/// The beginning of sled's file of parameters.
const SLED_CONF: &[u8] = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\n";

/// Fails if the store is damaged.
pub fn check(path: &Path) -> Result<(), OpenError> {
    let damaged = |damage: String| Err(OpenError::damaged(path, damage));
    if let Ok(cause) = fs::read_to_string(path.join(names::FAILED_READ)) {
        return damaged(format!("the relay could not read it in its last run: {cause}"));
    }
    if let Some(odd) = open_guard::damage(path).or_else(|| odd_conf(path)).or_else(|| odd_blobs(path)) {
        return damaged(odd);
    }
    match sled_log::find_damage(path) {
        Ok(damage) => damage.into_iter().next().map_or(Ok(()), damaged),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
            damaged("its log is missing".into())
        }
        Err(error) => Err(OpenError::failed(path, "read its log", error)),
    }
}

/// Returns true if the log has rows: then the folder once had a stamp.
pub fn has_rows(path: &Path) -> io::Result<bool> {
    Ok(!Image::read(path, |_, _| ())?.is_empty())
}

/// Moves the files of an unfinished first start into a folder beside them. Without a stamp nothing was acknowledged,
/// but nothing is deleted either.
pub fn quarantine_unfinished(path: &Path, now: WallTime) -> io::Result<()> {
    let aside = path.join(format!("{}{}", names::UNFINISHED_PREFIX, now.0));
    let mut moved = false;
    for file in fs::read_dir(path)? {
        let name = file?.file_name();
        let text = name.to_string_lossy();
        if !(names::has_rows(&text) || text == names::NEW_STAMP) {
            continue;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        fs::rename(path.join(&name), aside.join(&name))?;
        moved = true;
    }
    if moved { sync_directory(path) } else { Ok(()) }
}

/// The files of a store, besides its log, that are not as a relay leaves them, in words.
pub fn odd_files(path: &Path) -> Vec<String> {
    let blobs = fs::read_dir(path.join(names::BLOBS)).map_or(0, Iterator::count);
    let blobs = (blobs > 0).then(|| format!("{blobs} files in blobs/, which no relay writes"));
    blobs.into_iter().chain(odd_conf(path)).chain(odd_blobs(path)).collect()
}

/// The damage to sled's folder for long items.
fn odd_blobs(path: &Path) -> Option<String> {
    fs::metadata(path.join(names::BLOBS)).is_ok_and(|blobs| !blobs.is_dir()).then(|| "blobs is no folder".into())
}

/// The damage to sled's file of parameters: with other parameters sled opens the log wrongly, or panics.
fn odd_conf(path: &Path) -> Option<String> {
    match fs::read(path.join(names::CONF)) {
        Ok(conf) if conf.starts_with(SLED_CONF) => None,
        Ok(_) => Some("conf is not as sled writes it".into()),
        Err(cause) => Some(format!("conf cannot be read: {cause}")),
    }
}
