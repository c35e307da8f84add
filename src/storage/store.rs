//! sled, made durable, behind a journal: one folder, one tree, one owner.
//!
//! Acts read and write through [`Store`]; what they write gathers in an memtable that they read back, and reaches the
//! disk in [`Store::commit`], and sled in [`Store::checkpoint`], when the journal is full:
//!
//! ```text
//! put, remove ─▶ memtable ─▶ journal ─▶ fdatasync(journal) = the instant of commit
//!                   └─▶ one Batch ─▶ apply_batch ─▶ flush ─▶ fdatasync(db), between commits; the last names the next epoch
//! ```
//!
//! A commit to the journal is one write; one to sled is a page for each row. What comes and goes between two checkpoints
//! never reaches sled, and what does goes there in batches of some hundred rows.
//!
//! sled's own `flush` is not durable on Linux (it calls `sync_file_range`), hence the `fdatasync`; its segment headers
//! vouch for what was flushed, not for what was synced, hence one batch for each, and nothing before it in the same sync:
//! sled holds a batch's segments back until the batch is whole, but not what reads have left. (A segment opened by that,
//! and the next one by the batch: a power cut that kept only the second header lost everything.) After a failure of any
//! of the three nothing may be trusted that this process wrote: a mark is left, and the next start drops the files from
//! the page cache before it reads them.

mod open;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{error, warn};

use super::directory::{self, private, sync_directory};
use super::error::StoreFailed;
use super::journal::{EPOCH, Journal};
use super::key::Key;
use super::memtable::Memtable;
use super::sealing::SealingKey;
use super::sled_db::{never_drop, open_sled};
use super::space::BALLAST_BYTES;
use super::{compaction, identity, names, row, space};

/// What a checkpoint gives sled at a time: what a batch leaves to be freed stays in memory for a while (with 1 MiB ten
/// thousand commits took 47 MiB, with this 23).
const BATCH_BYTES: usize = 256 << 10;

/// One folder of rows.
pub struct Store {
    path: PathBuf,
    /// None only while it is replaced by its compacted copy.
    db: Option<sled::Db>,
    data: File,
    _lock: File,
    /// What makes ids of this store differ from another's.
    pub nonce: u32,
    memtable: Memtable,
    journal: Journal,
    /// The row that has a copy of the format stamp.
    stamp: Vec<u8>,
    compactable: bool,
    removal_weight: fn(&[u8]) -> usize,
    /// Bytes of the folder's other files, and whether a damaged store is quarantined there, at the last `scan_folder`.
    other_bytes: u64,
    quarantined: bool,
}

/// The space of a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Bytes that the folder takes on disk.
    pub bytes: u64,
    /// Bytes free on the volume. `None` if the volume does not report them.
    pub free: Option<u64>,
    /// True while a damaged store is quarantined in the folder.
    pub set_aside: bool,
}

/// The settings of a store, and what it must know of the rows in it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Accept a folder in memory (tmpfs, ramfs).
    pub volatile: bool,
    /// The keys that seal and open: the first one seals.
    pub keys: Vec<SealingKey>,
    /// First bytes of keys whose rows are written once and never changed.
    pub write_once: &'static [u8],
    /// Bytes that the removal of a row counts in a checkpoint's batch, beside its key.
    pub removal_weight: fn(&[u8]) -> usize,
}

/// Without the rows, in which contents and tokens stand.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).field("memtable", &self.memtable).finish_non_exhaustive()
    }
}

impl Store {
    /// Each epoch of the journal begins with it, and so tells whose it is.
    fn write_stamp_row(&mut self) {
        self.memtable.write(identity::copy_key(), Some(self.stamp.clone()));
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("sled is open but inside `compact`")
    }

    /// Replaces the log by a copy of what it holds, where it has grown far beyond that.
    ///
    /// sled frees a part of its log by moving the last pages out of it, one at a time as it rewrites others, and
    /// otherwise only in a thread that flushes on its own, which rule 2 forbids. In commits of a few rows that is far too
    /// seldom: the log grew by 2 KB with each of them, without end. The copy takes as long as what is live is large, so it waits
    /// until that is little.
    pub fn compact(&mut self, live: u64, spare: u64) -> Result<Option<u64>, StoreFailed> {
        let room = directory::free(&self.path).is_none_or(|free| free > 4 * live + 4 * BALLAST_BYTES);
        if !self.compactable || !room || self.log_bytes() < spare + 4 * live {
            return Ok(None);
        }
        self.checkpoint()?;
        if let Err(cause) = compaction::copy(self.db(), &self.path) {
            // Nothing has changed, and the log can be used as it is; the next start tries again.
            warn!(%cause, "the queue's log could not be compacted");
            self.compactable = false;
            return Ok(None);
        }
        compaction::complete(&self.path).map_err(|cause| self.broken("compact", &cause))?;
        // From here on the copy is the store, whatever happens.
        self.db = None;
        let opened = compaction::finish(&self.path).and_then(|()| open_sled(&self.path));
        let (db, data) = opened.map_err(|cause| self.broken("open the compacted log of", &cause))?;
        (self.db, self.data) = (Some(db), data);
        Ok(Some(self.log_bytes()))
    }

    /// What is to be told of the raw bytes under a key; they are not checked.
    pub fn read<T>(&self, key: &Key, tell: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, StoreFailed> {
        Ok(match self.memtable.get(key) {
            Some(value) => value.map(tell),
            None => self.db().get(key).map_err(|cause| self.unreadable(&cause))?.as_deref().map(tell),
        })
    }

    /// Adds to the end of a row that this commit began.
    pub fn extend(&mut self, key: Key, bytes: &[u8]) {
        self.memtable.extend(key, bytes);
    }

    /// Writes a row that has its sum already.
    pub fn put_raw(&mut self, key: Key, value: Vec<u8>) {
        self.memtable.write(key, Some(value));
    }

    /// Removes a row.
    pub fn remove(&mut self, key: Key) {
        self.memtable.write(key, None);
    }

    /// The first key that begins so.
    pub fn first_key(&self, prefix: Key) -> Result<Option<Key>, StoreFailed> {
        self.next_key(prefix, Bound::Included(prefix))
    }

    /// The first key at or after `from` that begins with `prefix`.
    pub fn next_key(&self, prefix: Key, from: Bound<Key>) -> Result<Option<Key>, StoreFailed> {
        let range = (from, prefix.end().map_or(Bound::Unbounded, Bound::Excluded));
        let own = self.memtable.first(&range);
        for row in self.db().range(range) {
            let (key, _) = row.map_err(|cause| self.unreadable(&cause))?;
            if own.is_some_and(|own| **own <= *key) {
                break;
            }
            let key = Key::of(&key).filter(|key| self.memtable.get(key).is_none());
            if key.is_some() {
                return Ok(key);
            }
        }
        Ok(own.copied())
    }

    /// The last key before or at `to` that begins with `prefix`.
    pub fn last_key(&self, prefix: Key, to: Bound<Key>) -> Result<Option<Key>, StoreFailed> {
        let range = (Bound::Included(prefix), to);
        let own = self.memtable.last(&range);
        for row in self.db().range(range).rev() {
            let (key, _) = row.map_err(|cause| self.unreadable(&cause))?;
            if own.is_some_and(|own| **own >= *key) {
                break;
            }
            let key = Key::of(&key).filter(|key| self.memtable.get(key).is_none());
            if key.is_some() {
                return Ok(key);
            }
        }
        Ok(own.copied())
    }

    /// Bytes that the log takes on disk.
    fn log_bytes(&self) -> u64 {
        self.data.metadata().map_or(0, |file| file.blocks() * 512)
    }

    /// Looks up what the folder contains beside the log, which changes seldom.
    pub fn scan_folder(&mut self) {
        self.other_bytes = space::other_bytes(&self.path);
        self.quarantined = space::has_set_aside(&self.path);
    }

    /// Measures the space. Gives the ballast up while the volume is almost full, and sets it aside again when `free_min`
    /// bytes and more are free.
    pub fn measure_space(&self, free_min: u64) -> Space {
        let free = directory::free(&self.path);
        match free {
            Some(free) if free < BALLAST_BYTES && space::release_ballast(&self.path) => {
                warn!(free, "the queue's volume is almost full; the space set aside for outcomes is given up");
            }
            Some(free) if free > free_min + 2 * BALLAST_BYTES => space::keep_ballast(&self.path),
            _ => {}
        }
        Space { bytes: self.other_bytes + self.log_bytes(), free, set_aside: self.quarantined }
    }

    /// Bytes that wait for the next commit.
    pub fn pending_bytes(&self) -> usize {
        self.memtable.pending_bytes()
    }

    /// Makes everything written so far durable, all of it or nothing.
    pub fn commit(&mut self) -> Result<(), StoreFailed> {
        if self.memtable.pending().is_empty() {
            return Ok(());
        }
        // Reads write to sled too: it splits a page when it next passes by. That is synced before anything follows it.
        if self.flush()? > 0 {
            self.sync()?;
        }
        let written = self.journal.append(self.memtable.pending()).and_then(|()| self.journal.sync());
        written.map_err(|cause| self.broken("write the journal of", &cause))?;
        self.memtable.commit();
        Ok(())
    }

    /// Whether sled is being given something.
    pub fn is_giving(&self) -> bool {
        self.memtable.is_giving()
    }

    /// Goes on with a checkpoint by one batch, and begins one when the journal is full: not before the last one is over.
    /// True where sled was given something.
    pub fn go_on(&mut self) -> Result<bool, StoreFailed> {
        let gives = self.is_giving();
        if gives {
            self.give()?;
        }
        if self.journal.is_full() {
            self.give_all()?;
            self.freeze();
        }
        Ok(gives)
    }

    /// Gives sled everything that was committed.
    pub fn checkpoint(&mut self) -> Result<(), StoreFailed> {
        self.give_all()?;
        if !self.journal.is_empty() {
            self.freeze();
        }
        self.give_all()
    }

    fn give_all(&mut self) -> Result<(), StoreFailed> {
        while self.is_giving() {
            self.give()?;
        }
        Ok(())
    }

    fn freeze(&mut self) {
        self.memtable.freeze();
        self.journal.begin_next();
        self.write_stamp_row();
    }

    /// Gives sled the next batch. A crash in between loses nothing: the journal has all of it until the last batch, which
    /// names the next epoch, is durable.
    fn give(&mut self) -> Result<(), StoreFailed> {
        if self.flush()? > 0 {
            self.sync()?;
        }
        let (mut batch, mut bytes) = (sled::Batch::default(), 0);
        let mut rows = self.memtable.to_give().peekable();
        while let Some((key, value)) = rows.next_if(|_| bytes < BATCH_BYTES) {
            bytes += key.len() + value.map_or_else(|| (self.removal_weight)(key), <[u8]>::len);
            match value {
                Some(value) => batch.insert(&**key, value),
                None => batch.remove(&**key),
            }
        }
        let next = rows.next().map(|(key, _)| *key);
        drop(rows);
        if next.is_none() {
            batch.insert(EPOCH, row::encode(EPOCH, &self.journal.mark()));
        }
        self.apply(batch)?;
        self.memtable.give(next);
        Ok(())
    }

    fn apply(&self, batch: sled::Batch) -> Result<(), StoreFailed> {
        // sled reads the leaves that it rewrites.
        let applied = self.db().apply_batch(batch).inspect_err(|cause| self.mark_damage(cause));
        applied.map_err(|cause| self.broken("apply a batch to", &cause))?;
        self.flush()?;
        self.sync()
    }

    fn flush(&self) -> Result<usize, StoreFailed> {
        self.db().flush().map_err(|cause| self.broken("flush", &cause))
    }

    fn sync(&self) -> Result<(), StoreFailed> {
        self.data.sync_data().map_err(|cause| self.broken("fdatasync", &cause))
    }

    fn unreadable(&self, cause: &sled::Error) -> StoreFailed {
        self.mark_damage(cause);
        self.failed("read", cause)
    }

    /// Where it was the log itself that could not be read, leaves the mark by which the next start knows.
    fn mark_damage(&self, cause: &sled::Error) {
        if matches!(cause, sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)) {
            let mark = private(
                OpenOptions::new().create(true).truncate(true).write(true),
                &self.path.join(names::FAILED_READ),
            );
            if let Err(cause) = mark.and_then(|mut mark| write!(mark, "{cause}")) {
                error!(%cause, "the damage could not be marked");
            }
        }
    }

    fn failed(&self, step: &str, cause: &dyn std::fmt::Display) -> StoreFailed {
        StoreFailed(Arc::from(format!("{step} {}: {cause}", self.path.display())))
    }

    /// As `failed`, and leaves the mark: Linux has marked the pages that it could not write as clean.
    fn broken(&self, step: &str, cause: &dyn std::fmt::Display) -> StoreFailed {
        self.db.iter().for_each(never_drop);
        space::release_ballast(&self.path);
        let mark =
            private(OpenOptions::new().create(true).truncate(true).write(true), &self.path.join(names::FAILED_SYNC))
                .and_then(|mark| mark.sync_all())
                .and_then(|()| sync_directory(&self.path));
        if let Err(cause) = mark {
            error!(%cause, "the failed write could not be marked");
        }
        self.failed(step, cause)
    }
}
