//! Opening sled, and batches of bounded size.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::directory::{close_to_others, sync_directory};
use super::names;

/// sled's page cache. The rows of one commit are scattered: with 1 MiB, sled read four page fragments per
/// commit back from the file, and the relay accepted a third fewer per second; with 16 MiB no more than with 8 or 6.
const CACHE_BYTES: u64 = 6 << 20;
/// The attempts to take sled's lock, 10 ms apart.
const LOCK_TRIES: u32 = 300;

/// The rows of a batch that is synced. Each row makes sled copy its leaf, and sled keeps all copies until the batch is over:
/// with more than this, memory grows with the rows, whatever their bytes, and the commits behind the batch wait longer for
/// it. With 32 KiB a batch instead, an accept at 64 connections took 1.3 times as long, for twice as many syncs.
pub const SYNCED_ROWS: usize = if cfg!(test) { 64 } else { 200 };
/// The rows of a batch of a copy that is synced once, at its end: a short one costs no time.
pub const UNSYNCED_ROWS: usize = 32;
/// The bytes of a batch, about.
const BATCH_BYTES: usize = 256 << 10;

/// Rows for `apply_batch`.
#[derive(Default)]
pub struct Batch {
    batch: sled::Batch,
    rows: usize,
    bytes: usize,
}

impl Batch {
    /// Returns true if it has so many rows, or enough bytes.
    pub fn is_full(&self, rows_max: usize) -> bool {
        self.rows >= rows_max || self.bytes >= BATCH_BYTES
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes a row.
    pub fn insert(&mut self, key: &[u8], value: impl Into<sled::IVec>) {
        let value = value.into();
        self.count(key.len() + value.len());
        self.batch.insert(key, value);
    }

    /// Removes a row; this counts as `weight` bytes.
    pub fn remove(&mut self, key: &[u8], weight: usize) {
        self.count(key.len() + weight);
        self.batch.remove(key);
    }

    fn count(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes;
    }

    /// Applies the rows, and begins the next batch.
    pub fn apply_to(&mut self, db: &sled::Db) -> sled::Result<()> {
        db.apply_batch(std::mem::take(self).batch)
    }
}

/// Opens sled without its flusher thread (rule 2 of the store), and its log once more for `fdatasync` (rule 1 of the
/// store).
pub fn open_sled(path: &Path) -> io::Result<(sled::Db, File)> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    // After a drop sled releases its lock a moment later, in a thread of its own. No other process can hold it, because
    // this one holds the folder's lock.
    let mut tries = 0;
    let db = loop {
        match config.open() {
            Err(sled::Error::Io(error)) if tries < LOCK_TRIES && error.to_string().contains("acquire lock") => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            result => break result?,
        }
    };
    let log = File::open(path.join(names::LOG)).and_then(|log| {
        close_to_others(path)?;
        // sled renames its snapshot when it opens: the new name must be on disk before anything relies on it (rule 8 of
        // the store).
        sync_directory(path)?;
        Ok(log)
    });
    let log = log.inspect_err(|_| leak_db(&db))?;
    Ok((db, log))
}

/// Keeps sled from being dropped. A drop syncs, and panics if that fails; after a failed write the process ends anyway.
pub fn leak_db(db: &sled::Db) {
    std::mem::forget(db.clone());
}
