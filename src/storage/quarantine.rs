//! Putting a new store in the place of a damaged one, whose files are kept.
//!
//! ```text
//! damaged-20261122T140307Z/   links to the damaged files, synced     nothing has changed; nothing is ever deleted
//! compacted/                  the new store, written, synced         nothing has changed: an unfinished one is removed
//! compacted/complete          written, synced                        = the instant of change, as in `compaction`
//! ```

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::directory::sync_directory;
use super::image::Image;
use super::sled_db::open_sled;
use super::{compaction, identity, journal, names};
use crate::time::WallTime;

/// Links the damaged files of a locked folder into a folder beside them, unless an earlier attempt has done so, and
/// returns that folder.
pub fn quarantine(path: &Path, now: WallTime) -> io::Result<PathBuf> {
    match linked_before(path)? {
        Some(aside) => Ok(aside),
        None => link_aside(path, now),
    }
}

/// Returns the folder in which the replacement of a store is built; it does not exist yet.
pub fn replacement_folder(path: &Path) -> io::Result<PathBuf> {
    let folder = path.join(names::COMPACTED);
    compaction::remove(&folder)?;
    Ok(folder)
}

/// Makes an empty store in `to` with the identity of the store in `from`, whose image is given.
pub fn create_empty(to: &Path, from: &Path, image: &Image) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    // The stamp is written last: it says that the log and the journal beside it are complete.
    drop(open_sled(to)?);
    journal::create(to)?;
    identity::copy_stamp(from, image.stamp_copy(), to)
}

/// Puts the finished replacement in the place of the damaged store, whose marks go to the `aside` folder.
pub fn replace_quarantined(path: &Path, aside: &Path) -> io::Result<()> {
    let fresh = path.join(names::COMPACTED);
    fs::rename(fresh.join(names::STAMP), path.join(names::STAMP))?;
    compaction::prepare(&fresh)?;
    compaction::complete(path)?;
    compaction::finish(path)?;
    // The new store has another journal, and perhaps not all rows: it is another copy.
    for mark in [names::FAILED_READ, names::OPENING, names::VOLUME] {
        match fs::rename(path.join(mark), aside.join(mark)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The folder into which an interrupted attempt has linked this store.
fn linked_before(path: &Path) -> io::Result<Option<PathBuf>> {
    let Ok(db) = fs::metadata(path.join(names::LOG)) else { return Ok(None) };
    for file in fs::read_dir(path)? {
        let file = file?;
        let same = fs::metadata(file.path().join(names::LOG)).is_ok_and(|other| other.ino() == db.ino());
        if same && file.file_name().to_string_lossy().starts_with(names::DAMAGED_PREFIX) {
            return Ok(Some(file.path()));
        }
    }
    Ok(None)
}

fn link_aside(path: &Path, now: WallTime) -> io::Result<PathBuf> {
    let aside = path.join(format!("{}{}", names::DAMAGED_PREFIX, name_of(now)));
    DirBuilder::new().mode(0o700).create(&aside)?;
    for file in fs::read_dir(path)? {
        let (name, file) = file.map(|file| (file.file_name(), file.path()))?;
        let text = name.to_string_lossy();
        if text != names::STAMP && !names::has_rows(&text) {
            continue;
        }
        // A folder cannot be linked, not even one in the place of a file.
        if fs::symlink_metadata(&file)?.is_dir() || text == names::BLOBS {
            fs::rename(&file, aside.join(&name))?;
        } else {
            fs::hard_link(&file, aside.join(&name))?;
        }
    }
    sync_directory(&aside)?;
    sync_directory(path)?;
    Ok(aside)
}

/// `20261122T140307123Z`: with the milliseconds, so that two in one second have different names.
pub fn name_of(now: WallTime) -> String {
    now.to_string().chars().filter(|c| c.is_ascii_alphanumeric()).collect()
}
