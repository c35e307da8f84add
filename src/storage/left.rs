//! Stores beside the store, in folders `left-*`: another relay has continued them, or they were restored too late to become
//! the store itself. The caller takes from them what it needs; nothing is ever deleted.
//!
//! | file | meaning |
//! | --- | --- |
//! | `from` | a number of the caller: it takes nothing that comes before it |
//! | `leaving` | the files of a store are moved into the folder |
//! | `format` | the last file that is moved in: the folder is complete |
//! | `taken` | the caller has taken what it needs |

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::directory::{lock, sync_directory, write_private};
use super::error::OpenError;
use super::quarantine::name_of;
use super::{compaction, names};
use crate::time::WallTime;

const FROM: &str = "from";
const TAKEN: &str = "taken";
const LEAVING: &str = "leaving";

/// A store beside the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its folder.
    pub path: PathBuf,
    /// The number of the caller.
    pub from: u64,
}

/// Moves the files of a store into a folder beside them. An interrupted move is continued by the next call: the folder
/// counts as used until its stamp has moved, which is the last file.
///
/// # Errors
/// If another process uses the folder, or a file cannot be moved.
pub fn leave(path: &Path, from: u64, now: WallTime) -> Result<Left, OpenError> {
    let _lock = lock(path)?;
    let moved = move_aside(path, from, now);
    moved.map_err(|cause| OpenError::failed(path, "set aside a store that another relay has continued", cause))
}

fn move_aside(path: &Path, from: u64, now: WallTime) -> io::Result<Left> {
    // A copy that waits for its place belongs to the store.
    compaction::finish(path)?;
    let begun = folders(path)?.into_iter().find(|folder| {
        // Not the folder of a store that came from the fleet, or was to come.
        !folder.join(names::STAMP).exists() && folder.join(LEAVING).exists()
    });
    let aside = match begun {
        Some(aside) => aside,
        None => {
            let aside = make(path, from, now)?.path;
            File::create(aside.join(LEAVING))?.sync_all()?;
            sync_directory(&aside)?;
            aside
        }
    };
    let mut files = Vec::new();
    for file in fs::read_dir(path)? {
        let text = file?.file_name().to_string_lossy().into_owned();
        files.extend((text == names::VOLUME || names::has_rows(&text)).then_some(text));
    }
    for name in files {
        // An interrupted start may have made a new one.
        if name == names::VOLUME && aside.join(&name).exists() {
            fs::remove_file(path.join(&name))?;
        } else {
            fs::rename(path.join(&name), aside.join(&name))?;
        }
    }
    sync_directory(&aside)?;
    fs::rename(path.join(names::STAMP), aside.join(names::STAMP))?;
    sync_directory(&aside)?;
    sync_directory(path)?;
    let from = from_of(&aside)?;
    Ok(Left { path: aside, from })
}

/// Makes an empty folder for a store beside the store.
///
/// # Errors
/// If it cannot be made.
pub fn make(path: &Path, from: u64, now: WallTime) -> io::Result<Left> {
    let aside = path.join(format!("{}{}", names::LEFT_PREFIX, name_of(now)));
    DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
    write_private(&aside.join(FROM), from.to_string().as_bytes())?;
    sync_directory(&aside)?;
    sync_directory(path)?;
    Ok(Left { path: aside, from })
}

/// The complete stores beside the store from which nothing was taken yet, the oldest first.
///
/// # Errors
/// If a folder cannot be read.
pub fn left(path: &Path) -> io::Result<Vec<Left>> {
    let mut found = Vec::new();
    for folder in folders(path)? {
        // A store that came from the fleet.
        finish_restore(&folder)?;
        if folder.join(names::STAMP).exists() && !folder.join(TAKEN).exists() {
            found.push(Left { from: from_of(&folder)?, path: folder });
        }
    }
    Ok(found)
}

/// Moves a restored store to its place, as its open would.
///
/// # Errors
/// If a file cannot be moved.
pub fn finish_restore(path: &Path) -> io::Result<()> {
    if compaction::is_restored(path) { compaction::finish(path) } else { Ok(()) }
}

impl Left {
    /// Records that the caller has taken what it needs.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn mark_taken(&self) -> io::Result<()> {
        write_private(&self.path.join(TAKEN), b"")?;
        sync_directory(&self.path)
    }
}

/// A folder beside a store, as it is found without a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// The folder, and the number of the caller.
    pub left: Left,
    /// True if all files are in it.
    pub complete: bool,
    /// True if the caller has taken what it needs.
    pub taken: bool,
}

/// The folders beside a store, the oldest first. Changes nothing.
///
/// # Errors
/// If they cannot be read.
pub fn asides(path: &Path) -> io::Result<Vec<Aside>> {
    let each = folders(path)?.into_iter().map(|folder| {
        let (complete, taken) = (folder.join(names::STAMP).exists(), folder.join(TAKEN).exists());
        Ok(Aside { left: Left { from: from_of(&folder)?, path: folder }, complete, taken })
    });
    each.collect()
}

fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in fs::read_dir(path)? {
        let file = file?;
        if file.file_name().to_string_lossy().starts_with(names::LEFT_PREFIX) && file.file_type()?.is_dir() {
            found.push(file.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The number in a folder; 0 if there is none.
fn from_of(folder: &Path) -> io::Result<u64> {
    match File::open(folder.join(FROM)).and_then(io::read_to_string) {
        Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::{open, row};
    use crate::storage::{Key, is_unused};

    fn used() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        store.put(Key::new(b'a'), vec![1]);
        store.commit().unwrap();
        folder
    }

    #[test]
    fn store_is_moved_aside_with_its_rows_and_the_folder_is_unused() {
        let folder = used();
        let moved = leave(folder.path(), 7, WallTime(1)).unwrap();
        assert!(is_unused(folder.path()).unwrap());
        assert_eq!(left(folder.path()).unwrap(), std::slice::from_ref(&moved));
        let aside = |taken| Aside { left: moved.clone(), complete: true, taken };
        assert_eq!(asides(folder.path()).unwrap(), [aside(false)]);
        assert_eq!(moved.from, 7);
        assert_eq!(row(&open(&moved.path).store, "a"), Some(vec![1]));
        moved.mark_taken().unwrap();
        assert_eq!(left(folder.path()).unwrap(), []);
        assert_eq!(asides(folder.path()).unwrap(), [aside(true)]);
    }

    #[test]
    fn interrupted_move_is_continued_into_the_same_folder() {
        let folder = used();
        let unfinished = make(folder.path(), 5, WallTime(0)).unwrap();
        let begun = make(folder.path(), 7, WallTime(1)).unwrap();
        File::create(begun.path.join(LEAVING)).unwrap();
        fs::rename(folder.path().join(names::LOG), begun.path.join(names::LOG)).unwrap();
        assert_eq!(left(folder.path()).unwrap(), [], "an incomplete folder does not count");
        assert!(!asides(folder.path()).unwrap()[0].complete);
        let moved = leave(folder.path(), 9, WallTime(2)).unwrap();
        assert_eq!(moved, begun);
        assert!(!unfinished.path.join(names::STAMP).exists(), "a restore that was not finished takes no part");
        assert_eq!(row(&open(&moved.path).store, "a"), Some(vec![1]));
    }
}
