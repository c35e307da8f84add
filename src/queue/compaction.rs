//! The log, copied without what is dead in it.
//!
//! ```text
//! compacted/db, conf   written, synced       nothing has changed: left over, it is removed
//! compacted/complete   written, synced       = the instant of change: from here on the copy is the store
//! snap.* removed, conf and db renamed over the old ones, the folder synced
//! compacted            removed
//! ```
//!
//! [`finish`] carries out what is left from any of these points, and can be cut short at any point itself: a snapshot
//! only spares sled a scan of the log, and a rename that was done is not done again.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::store::{open_sled, sync_directory};

/// Bytes copied at a time.
const BATCH_BYTES: usize = 512 << 10;

/// Copies every row into a folder beside. The store itself is not touched.
pub fn copy(from: &sled::Db, path: &Path) -> io::Result<()> {
    let folder = path.join("compacted");
    remove(&folder)?;
    {
        let (to, _) = open_sled(&folder)?;
        let (mut batch, mut bytes) = (sled::Batch::default(), 0);
        for row in from.iter() {
            let (key, value) = row?;
            bytes += key.len() + value.len();
            batch.insert(key, value);
            if bytes >= BATCH_BYTES {
                to.apply_batch(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        to.apply_batch(batch)?;
        to.flush()?;
    }
    for name in ["db", "conf"] {
        File::open(folder.join(name))?.sync_all()?;
    }
    sync_directory(&folder)?;
    sync_directory(path)
}

/// From here on the copy is the store; after an error nobody knows whether it is, and nothing may be written to either.
pub fn complete(path: &Path) -> io::Result<()> {
    let folder = path.join("compacted");
    File::create(folder.join("complete"))?.sync_all()?;
    sync_directory(&folder)
}

/// Puts a complete copy in the place of what it was copied from; removes one that is not complete.
pub fn finish(path: &Path) -> io::Result<()> {
    let folder = path.join("compacted");
    if folder.join("complete").exists() {
        for file in fs::read_dir(path)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("snap.") {
                fs::remove_file(file.path())?;
            }
        }
        for name in ["conf", "db"] {
            match fs::rename(folder.join(name), path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        sync_directory(path)?;
        // Last of all, and before anything else of it can go: until then this is carried out again.
        fs::remove_file(folder.join("complete"))?;
        sync_directory(&folder)?;
    }
    remove(&folder)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
