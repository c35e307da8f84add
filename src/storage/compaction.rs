//! Compaction: replaces sled's log by a copy of its live rows.
//!
//! ```text
//! compacted/db, conf, snap.*  written, synced   nothing has changed: an unfinished copy is removed
//! compacted/complete          written, synced   = the instant of change: from here on the copy is the store
//! other snap.* removed, conf, db and snap.* renamed over the old ones, the folder synced
//! compacted                   removed
//! ```
//!
//! [`finish`] completes a compaction from any of these points, and can itself be interrupted at any point: `complete`
//! names the copy's snapshots, and a rename that was done is not repeated.
//!
//! The copy is opened once before it becomes the store. When sled opens a log without a snapshot, it writes one and
//! then zeroes the unused parts of the log, but does not sync the snapshot's name in between: a power cut then leaves a
//! log with unexplained holes, and the rows after the first of them are lost.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::directory::sync_directory;
use super::names;
use super::sled_db::{Batch, UNSYNCED_ROWS, leak_db, open_sled};

/// Copies every row into the `compacted` folder. The store itself does not change.
pub fn copy(from: &sled::Db, path: &Path) -> io::Result<()> {
    let folder = path.join(names::COMPACTED);
    remove(&folder)?;
    let (to, _) = open_sled(&folder)?;
    copy_rows(from, &to).inspect_err(|_| leak_db(&to))?;
    drop(to);
    prepare(&folder)?;
    sync_directory(path)
}

/// Makes a new log ready to become the store: opens it once, and syncs it.
pub fn prepare(folder: &Path) -> io::Result<()> {
    drop(open_sled(folder)?);
    for name in [names::LOG, names::CONF].map(str::to_owned).into_iter().chain(snapshots(folder)?) {
        File::open(folder.join(name))?.sync_all()?;
    }
    sync_directory(folder)
}

fn copy_rows(from: &sled::Db, to: &sled::Db) -> sled::Result<()> {
    let mut batch = Batch::default();
    for row in from.iter() {
        let (key, value) = row?;
        batch.insert(&key, value);
        if batch.is_full(UNSYNCED_ROWS) {
            batch.apply_to(to)?;
        }
    }
    batch.apply_to(to)?;
    to.flush()?;
    Ok(())
}

/// Makes the copy the store. After an error it is unknown which of the two is the store: nothing may be written to
/// either.
pub fn complete(path: &Path) -> io::Result<()> {
    let folder = path.join(names::COMPACTED);
    let unnamed = folder.join("complete.new");
    let mut file = File::create(&unnamed)?;
    file.write_all(snapshots(&folder)?.join("\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&unnamed, folder.join("complete"))?;
    sync_directory(&folder)
}

/// Moves a complete copy to the place of the old log; removes one that is not complete.
pub fn finish(path: &Path) -> io::Result<()> {
    let folder = path.join(names::COMPACTED);
    if folder.join("complete").exists() {
        let own = fs::read_to_string(folder.join("complete"))?;
        for name in snapshots(path)?.iter().filter(|name| !own.lines().any(|own| own == *name)) {
            fs::remove_file(path.join(name))?;
        }
        // The replacement of a damaged store has a journal of its own. A restored store has its identity and its stamp
        // too; the stamp is the last one, because without it the folder counts as empty.
        let names = [names::CONF, names::LOG].into_iter().chain(names::JOURNALS).chain(own.lines());
        for name in names.chain([names::VOLUME, names::STAMP]) {
            match fs::rename(folder.join(name), path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        sync_directory(path)?;
        // Removed before the rest of the copy: until then an interrupted `finish` is repeated.
        fs::remove_file(folder.join("complete"))?;
        sync_directory(&folder)?;
    }
    remove(&folder)
}

/// Returns true if a complete copy waits for its place that has the stamp of its store with it.
pub fn is_restored(path: &Path) -> bool {
    let folder = path.join(names::COMPACTED);
    folder.join("complete").exists() && folder.join(names::STAMP).exists()
}

/// The names of sled's snapshots in a folder.
fn snapshots(folder: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(folder)?.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
    names.filter(|name: &io::Result<String>| name.as_ref().map_or(true, |name| names::is_snapshot(name))).collect()
}

/// Removes a copy.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(folder),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
