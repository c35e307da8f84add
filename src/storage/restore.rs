//! Restoring a store from copies of its commits, in a folder that has none.
//!
//! ```text
//! compacted/db, conf, snap.*, journal.*   written, synced   nothing has changed: an unfinished copy is removed
//! compacted/volume, format                written, synced
//! compacted/complete                      written, synced   = the instant of change: the next open moves all of it
//! ```
//!
//! Rows come in the order of their commits, each with its whole value, so a row that comes again overwrites itself. Until
//! the instant of change the folder counts as empty, and a start restores it again.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::directory::{self, write_private};
use super::error::OpenError;
use super::image::Image;
use super::journal::{self, CheckpointPos, EPOCH};
use super::key::Key;
use super::sled_db::{Batch, UNSYNCED_ROWS, leak_db, open_sled};
use super::volume::Volume;
use super::{compaction, names, row};

/// About the memory of rows that wait. A row that comes again meanwhile is written once.
const HELD_MAX: usize = if cfg!(test) { 16 << 10 } else { 1 << 20 };
/// The memory of a row besides its value.
const ROW_BYTES: usize = 96;

/// Returns true if no store was ever used in the folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn is_unused(path: &Path) -> io::Result<bool> {
    if path.join(names::STAMP).exists() || compaction::is_restored(path) {
        return Ok(false);
    }
    Ok(!path.exists() || Image::read(path, |_, _| ())?.is_empty())
}

/// A restore under way; dropped unfinished, it leaves the folder empty.
pub struct Restore {
    path: PathBuf,
    db: sled::Db,
    /// The rows that wait; `None` is a removal. In the order of their keys few pages change in a batch.
    held: BTreeMap<Key, Option<Vec<u8>>>,
    bytes: usize,
    _lock: File,
}

impl Restore {
    /// Begins, in a folder without a store.
    ///
    /// # Errors
    /// If another process uses the folder, or a file cannot be written.
    pub fn begin(path: &Path) -> Result<Restore, OpenError> {
        directory::make(path)?;
        let lock = directory::lock(path)?;
        let folder = path.join(names::COMPACTED);
        let begun = compaction::remove(&folder).and_then(|()| {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            open_sled(&folder)
        });
        let (db, _) = begun.map_err(|cause| OpenError::failed(path, "begin a restore", cause))?;
        Ok(Restore { path: path.to_owned(), db, held: BTreeMap::new(), bytes: 0, _lock: lock })
    }

    /// Applies the rows of a commit, as [`Store::commit_and_copy`] gave them.
    ///
    /// [`Store::commit_and_copy`]: crate::storage::Store::commit_and_copy
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn apply(&mut self, rows: &[u8]) -> io::Result<()> {
        let Restore { held, bytes, .. } = self;
        let mut fits = true;
        journal::read_rows(rows, &mut |key: &[u8], value: Option<&[u8]>| match Key::of(key) {
            Some(key) if *key != *EPOCH => {
                *bytes += ROW_BYTES + value.map_or(0, <[u8]>::len);
                if let Some(before) = held.insert(key, value.map(<[u8]>::to_vec)) {
                    *bytes -= ROW_BYTES + before.map_or(0, |before| before.len());
                }
            }
            Some(_) => {}
            None => fits = false,
        });
        if !fits {
            return Err(io::Error::other("a row has a key that is too long"));
        }
        if self.bytes < HELD_MAX { Ok(()) } else { self.write() }
    }

    /// Writes the rows that wait.
    fn write(&mut self) -> io::Result<()> {
        let mut batch = Batch::default();
        while let Some((key, value)) = self.held.pop_first() {
            match value {
                Some(value) => batch.insert(&key, value),
                None => batch.remove(&key, 0),
            }
            if batch.is_full(UNSYNCED_ROWS) {
                self.apply_batch(&mut batch)?;
            }
        }
        self.bytes = 0;
        self.apply_batch(&mut batch)
    }

    fn apply_batch(&self, batch: &mut Batch) -> io::Result<()> {
        batch.apply_to(&self.db).inspect_err(|_| leak_db(&self.db)).map_err(io::Error::other)
    }

    /// Makes the rows the store of the folder, with the format stamp that the store had. If it continues that store as a
    /// `volume`, its commits have higher positions than those that it was restored from.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn finish(mut self, stamp: &str, volume: Option<&Volume>) -> io::Result<()> {
        let after = volume.and_then(|volume| volume.runs.last()).map(|run| run.after).unwrap_or_default();
        let first = after.next_journal();
        self.write()?;
        let mut batch = Batch::default();
        batch.insert(EPOCH, row::encode(EPOCH, &CheckpointPos::of_new(first)));
        self.apply_batch(&mut batch)?;
        let Restore { path, db, _lock, .. } = self;
        db.flush().inspect_err(|_| leak_db(&db)).map_err(io::Error::other)?;
        drop(db);
        let folder = path.join(names::COMPACTED);
        journal::create_from(&folder, first)?;
        if let Some(volume) = volume {
            volume.write(&folder)?;
        }
        write_private(&folder.join(names::STAMP), stamp.as_bytes())?;
        compaction::prepare(&folder)?;
        compaction::complete(&path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::testing::{open, row};
    use crate::storage::{CommitPos, Key, Opened, Run, names};

    /// A store with rows of several checkpoints, copied as rows in key order and then as a commit.
    fn copied() -> (tempfile::TempDir, Vec<Vec<u8>>, String, u32) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        for number in 0..200u8 {
            store.put(Key::new(b'a').with(&[number]), vec![number; 700]);
            store.put(Key::new(b'b'), vec![number]);
            store.commit().unwrap();
            store.advance_checkpoint().unwrap();
        }
        let (mut copies, mut after) = (Vec::new(), Key::FIRST);
        loop {
            let mut rows = Vec::new();
            let next = store.copy_rows(after, 4096, &mut rows).unwrap();
            assert!(rows.len() < 6000, "a copy is bounded: {}", rows.len());
            copies.push(rows);
            let Some(next) = next else { break };
            after = next;
        }
        assert!(copies.len() > 20);
        store.remove(Key::new(b'a').with(&[7]));
        store.put(Key::new(b'b'), vec![1, 2, 3]);
        store.commit_and_copy(|rows, _| copies.push(rows.to_vec())).unwrap();
        let stamp = store.stamp_text().unwrap().to_string();
        (folder, copies, stamp, store.nonce)
    }

    #[test]
    fn restored_store_has_the_rows_the_key_and_the_nonce_of_the_copied_one() {
        let (from, copies, stamp, nonce) = copied();
        let folder = tempfile::tempdir().unwrap();
        assert!(is_unused(folder.path()).unwrap());
        assert!(!is_unused(from.path()).unwrap());
        let mut restore = Restore::begin(folder.path()).unwrap();
        copies.iter().for_each(|rows| restore.apply(rows).unwrap());
        restore.finish(&stamp, None).unwrap();
        assert!(!is_unused(folder.path()).unwrap());
        let own_key = open(from.path()).key;
        for _ in 0..2 {
            let Opened { mut store, key, damaged, .. } = open(folder.path());
            assert_eq!((store.nonce, &key, damaged), (nonce, &own_key, None));
            assert_eq!(row(&store, "b"), Some(vec![1, 2, 3]));
            for number in 0..200u8 {
                let expected = (number != 7).then(|| vec![number; 700]);
                let found = store.read(&Key::new(b'a').with(&[number]), <[u8]>::to_vec).unwrap();
                assert_eq!(found, expected, "{number}");
            }
            store.put(Key::new(b'c'), vec![9]);
            store.commit().unwrap();
        }
    }

    #[test]
    fn store_that_continues_another_has_higher_positions_and_takes_the_place_of_the_one_there() {
        let (from, copies, stamp, nonce) = copied();
        let at = journal::last(from.path()).unwrap();
        let older = tempfile::tempdir().unwrap();
        let mut store = open(older.path()).store;
        store.put(Key::new(b'd'), vec![4]);
        store.commit().unwrap();
        store.checkpoint().unwrap();
        drop(store);
        let run = Run { instance: 1, after: CommitPos::default(), sequence: 1 };
        let volume = Volume::new(vec![run], at, 2).unwrap();
        let mut restore = Restore::begin(older.path()).unwrap();
        copies.iter().for_each(|rows| restore.apply(rows).unwrap());
        restore.finish(&stamp, Some(&volume)).unwrap();
        assert_eq!(Volume::read(older.path()).unwrap(), Some(volume.clone()), "it goes with the rows");
        for _ in 0..3 {
            let mut store = open(older.path()).store;
            assert_eq!((store.nonce, row(&store, "b"), row(&store, "d")), (nonce, Some(vec![1, 2, 3]), None));
            for _ in 0..100 {
                store.put(Key::new(b'c'), vec![9; 700]);
                let mut position = CommitPos::default();
                store.commit_and_copy(|_, at| position = at).unwrap();
                assert!(position > at && position == store.last_commit());
                store.advance_checkpoint().unwrap();
            }
            drop(store);
            assert!(journal::last(older.path()).unwrap() > at);
        }
        assert_eq!(Volume::read(older.path()).unwrap(), Some(volume));
    }

    #[test]
    fn interrupted_restore_leaves_an_empty_folder_until_it_is_complete() {
        let (_from, copies, stamp, nonce) = copied();
        let folder = tempfile::tempdir().unwrap();
        let mut restore = Restore::begin(folder.path()).unwrap();
        restore.apply(&copies[0]).unwrap();
        drop(restore);
        assert!(is_unused(folder.path()).unwrap());
        let mut restore = Restore::begin(folder.path()).unwrap();
        copies.iter().for_each(|rows| restore.apply(rows).unwrap());
        restore.finish(&stamp, None).unwrap();
        // A move that was cut off after any number of files is completed by the next open.
        let compacted = folder.path().join(names::COMPACTED);
        for name in [names::CONF, names::LOG, names::JOURNALS[0]] {
            fs::rename(compacted.join(name), folder.path().join(name)).unwrap();
        }
        let Opened { store, .. } = open(folder.path());
        assert_eq!((store.nonce, row(&store, "b")), (nonce, Some(vec![1, 2, 3])));
        assert!(!compacted.exists());
    }

    #[test]
    fn restore_that_was_given_up_leads_to_a_new_store() {
        let (_from, copies, ..) = copied();
        let folder = tempfile::tempdir().unwrap();
        let mut restore = Restore::begin(folder.path()).unwrap();
        restore.apply(&copies[0]).unwrap();
        drop(restore);
        let Opened { store, .. } = open(folder.path());
        assert_eq!(row(&store, "b"), None);
    }
}
