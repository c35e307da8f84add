//! The log, copied without what is dead in it.
//!
//! ```text
//! compacted/db, conf, snap.*  written, synced   nothing has changed: left over, it is removed
//! compacted/complete          written, synced   = the instant of change: from here on the copy is the store
//! other snap.* removed, conf, db and snap.* renamed over the old ones, the folder synced
//! compacted                   removed
//! ```
//!
//! [`finish`] carries out what is left from any of these points, and can be cut short at any point itself: `complete`
//! names the copy's snapshot, and a rename that was done is not done again.
//!
//! The copy is opened once before it counts. When sled opens a log without a snapshot it makes one and zeroes what the
//! log wastes, in that order, but without syncing the snapshot's name in between: a power cut then leaves a log with
//! holes that nothing explains, and what comes after the first of them is lost.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::directory::sync_directory;
use super::names;
use super::sled_db::{never_drop, open_sled};

/// Bytes copied at a time.
const BATCH_BYTES: usize = 512 << 10;

/// Copies every row into a folder beside. The store itself is not touched.
pub fn copy(from: &sled::Db, path: &Path) -> io::Result<()> {
    let folder = path.join(names::COMPACTED);
    remove(&folder)?;
    let (to, _) = open_sled(&folder)?;
    copy_rows(from, &to).inspect_err(|_| never_drop(&to))?;
    drop(to);
    settle(&folder)?;
    sync_directory(path)
}

/// Makes a new log ready to be the store: opened once, and synced.
pub fn settle(folder: &Path) -> io::Result<()> {
    drop(open_sled(folder)?);
    for name in [names::LOG, names::CONF].map(str::to_owned).into_iter().chain(snapshots(folder)?) {
        File::open(folder.join(name))?.sync_all()?;
    }
    sync_directory(folder)
}

fn copy_rows(from: &sled::Db, to: &sled::Db) -> sled::Result<()> {
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
    Ok(())
}

/// From here on the copy is the store; after an error nobody knows whether it is, and nothing may be written to either.
pub fn complete(path: &Path) -> io::Result<()> {
    let folder = path.join(names::COMPACTED);
    let unnamed = folder.join("complete.new");
    let mut file = File::create(&unnamed)?;
    file.write_all(snapshots(&folder)?.join("\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&unnamed, folder.join("complete"))?;
    sync_directory(&folder)
}

/// Puts a complete copy in the place of what it was copied from; removes one that is not complete.
pub fn finish(path: &Path) -> io::Result<()> {
    let folder = path.join(names::COMPACTED);
    if folder.join("complete").exists() {
        let own = fs::read_to_string(folder.join("complete"))?;
        for name in snapshots(path)?.iter().filter(|name| !own.lines().any(|own| own == *name)) {
            fs::remove_file(path.join(name))?;
        }
        // A copy that was not made from this store's journal has one of its own.
        for name in [names::CONF, names::LOG].into_iter().chain(names::JOURNALS).chain(own.lines()) {
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

/// The names of sled's snapshots in a folder.
fn snapshots(folder: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(folder)?.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
    names.filter(|name: &io::Result<String>| name.as_ref().map_or(true, |name| names::is_snapshot(name))).collect()
}

/// Removes what is left of a copy.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(folder),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
