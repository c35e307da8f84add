//! sled, made durable, behind a journal.
//!
//! ```text
//! put, append, remove ─▶ memtable ─▶ journal ─▶ fdatasync(journal) = the instant of commit
//!                           └─▶ several batches, each: apply_batch ─▶ flush ─▶ fdatasync(db)
//!                                                                                        a checkpoint, between commits
//! ```
//!
//! A commit is one write to the journal. A checkpoint moves an epoch of commits into sled when the journal is full or the
//! queue rests, a batch at a time; its last batch names the next epoch. A commit to sled would be a page for each row; a
//! row that comes and goes between two checkpoints never reaches sled, and the others go there in batches of some hundred.
//!
//! **Rules 1 and 2 of the store**: sled's `flush` is not durable on Linux (it calls `sync_file_range`), so an
//! `fdatasync` follows it. sled's segment headers vouch for bytes that were flushed, not for bytes that were synced, so
//! each `fdatasync` covers one batch and nothing else. A read can split a page, and sled then writes that page by
//! itself. The store syncs it first (`sync_read_splits`), so that the next sync covers the batch alone. (With a segment
//! opened by a read and the next by the batch, a power cut that kept only the second header lost everything.) **Rule
//! 7**: after a failure of any of these steps the bytes that this process wrote are not trusted. It leaves a mark, and
//! the next start drops the files from the page cache before it reads them.
//!
//! # Why a power cut loses nothing
//!
//! Each step relies on the one before it:
//!
//! 1. The caller uses a commit only after [`Store::commit`] has returned (rule 5), and that is after the journal's
//!    `fdatasync` (`Journal::sync`). The record lies in blocks that the file already has.
//! 2. sled's row `j` names the oldest epoch that a start needs. `checkpoint_step` puts it into the last batch of an
//!    epoch, and a batch is atomic (rule 4): if sled has the row, it has all rows of the epochs before. Until then a
//!    start replays the whole epoch. To replay rows that sled has already does no harm.
//! 3. A commit overwrites an epoch only two epochs later, because the two files take turns. `advance_checkpoint` and
//!    `checkpoint` call `finish_checkpoint` before `begin_checkpoint`, which turns to the file of the epoch that sled
//!    has just got, row `j` and its `fdatasync` included.
//! 4. sled's log grows, and on an ext4 that is being shut down `fdatasync` of a file that grew can succeed although its
//!    data is lost (figures in `journal`). The store may rely on it: the journal still has the epoch, and the write
//!    that overwrites it comes later, to the file system that has been shut down by then.
//! 5. `commit` calls `sync_read_splits` too. Otherwise the pages that reads split would accumulate until the next
//!    checkpoint, and one sync would cover several segments, of which one confirms another (rule 2).
//! 6. A start must distinguish an epoch without commits from a lost file. An epoch that has not begun is right only if
//!    its file still has the head of the epoch two before (`may_begin` in `journal`). For that reason the two files of
//!    a new store contain the heads of epochs 0 and 1, and its first epoch is 2.
//!
//! Tests: `test_acknowledged_messages_are_delivered_after_any_power_cut` (all),
//! `test_no_sync_covers_two_segments_of_which_one_confirms_the_other` (5),
//! `test_ext4_shut_down_under_the_relay_keeps_acknowledged_messages` (1, 4),
//! `a_commit_is_written_into_blocks_that_the_file_already_has` (1),
//! `the_epoch_that_sled_names_and_the_next_are_replayed` (2), `a_file_of_another_time_is_damage` (3, 6).

mod open;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tracing::{error, warn};
use zeroize::Zeroizing;

use super::directory::{self, private, sync_directory, write_private};
use super::error::{OpenError, StoreFailed};
use super::journal::{CommitPos, EPOCH, Journal};
use super::key::Key;
use super::memtable::{Extent, Memtable, Row};
use super::sealing::{Sealer, SealingKey};
use super::sled_db::{Batch, SYNCED_ROWS, leak_db, open_sled};
use super::space::{BALLAST_BYTES, Folder};
use super::{compaction, identity, journal, names, preflight, row, space};

/// About the memory of an epoch's rows at which a checkpoint begins, although its file has room.
const MEMORY_MAX: usize = if cfg!(test) { 16 << 10 } else { 3 << 20 };

/// The rows that go through sled before it is worth opening anew.
const WORN_ROWS: usize = if cfg!(test) { 64 } else { 5_000 };
/// The longest log that is opened anew: commits wait for it, some 0.1 to 0.4 ms for each MiB.
const REOPEN_BYTES: u64 = 256 << 20;

/// A folder of rows, open for reading and writing.
pub struct Store {
    path: PathBuf,
    /// `None` only while it is closed and opened again.
    db: Option<sled::Db>,
    /// sled's log, the file `db`, for `fdatasync`.
    log: File,
    _lock: File,
    /// The number that distinguishes the ids of this store from those of others.
    pub nonce: u32,
    memtable: Memtable,
    journal: Journal,
    /// The row with the copy of the format stamp.
    stamp: Vec<u8>,
    compactable: bool,
    /// The rows that sled got since it was opened.
    moved: usize,
    /// The number of syncs of sled's log.
    syncs: u64,
    /// The check of the log before sled is opened anew, and the number of syncs when it began.
    check: Option<(JoinHandle<Result<(), OpenError>>, u64)>,
    removal_weight: fn(&[u8]) -> usize,
    /// Bytes that sled's log takes on disk.
    log_bytes: u64,
    /// The folder's other files at the last `scan_folder`.
    folder: Folder,
    /// The length of the journal's epochs.
    epoch_bytes: u64,
}

/// The settings of a store, and the facts about its rows that it needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Accept a folder in memory (tmpfs, ramfs).
    pub volatile: bool,
    /// The keys that open sealed values; the first one seals.
    pub keys: Vec<SealingKey>,
    /// First bytes of the keys whose rows are written once and never changed: if one is removed before a checkpoint,
    /// sled never gets it.
    pub write_once: &'static [u8],
    /// The bytes that the removal of a row counts in a checkpoint's batch, besides its key.
    pub removal_weight: fn(&[u8]) -> usize,
}

/// A store that was opened.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// The store's own key, for hashes of what must not be stored readable.
    pub key: Zeroizing<Vec<u8>>,
    /// Seals and opens values of this store.
    pub sealer: Sealer,
    /// The copy of the format stamp with its key, if it failed its checksum; the store writes a new one.
    pub damaged: Option<(Key, Vec<u8>)>,
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

impl Store {
    /// Reads the bytes under a key, including uncommitted changes, without verifying their checksum.
    pub fn read<T>(&self, key: &Key, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, StoreFailed> {
        Ok(match self.memtable.get(key) {
            Some(Row::Removed) => None,
            Some(Row::Bytes(value)) => Some(read(value)),
            Some(Row::Journal(extent)) => Some(read(&self.journal_value(extent)?)),
            None => self.db().get(key).map_err(|cause| self.unreadable(&cause))?.as_deref().map(read),
        })
    }

    /// Writes a row.
    pub fn put(&mut self, key: Key, value: Vec<u8>) {
        self.memtable.write(key, Some(value));
    }

    /// Appends to a row that this commit began.
    pub fn append(&mut self, key: Key, bytes: &[u8]) {
        self.memtable.append(key, bytes);
    }

    /// Removes a row.
    pub fn remove(&mut self, key: Key) {
        self.memtable.write(key, None);
    }

    /// The first key that begins with `prefix`.
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

    /// The last key at or before `to` that does not come before `prefix`.
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

    /// Appends rows in the order of their keys to `to`, as [`read_rows`] reads them, until it has `bytes` of them. It
    /// begins after the key `after`, and returns the last key; `None` if no row comes after it. The rows are the
    /// committed ones if it is called between two commits.
    ///
    /// [`read_rows`]: crate::storage::read_rows
    pub fn copy_rows(&self, after: Key, bytes: usize, to: &mut Vec<u8>) -> Result<Option<Key>, StoreFailed> {
        let end = to.len() + bytes;
        let mut last = after;
        while let Some(key) = self.next_key(Key::FIRST, Bound::Excluded(last))? {
            // The position in the journal is this folder's own.
            if *key != *EPOCH {
                self.read(&key, |value| journal::put_row(to, &key, Some(value)))?;
            }
            last = key;
            if to.len() >= end {
                return Ok(Some(last));
            }
        }
        Ok(None)
    }

    /// The text of the format stamp, with the store's own key as the folder has it: sealed if there is a key file.
    pub fn stamp_text(&self) -> Result<Zeroizing<String>, StoreFailed> {
        let text = identity::text(&self.path).map_err(|cause| self.failed("read the stamp of", &cause))?;
        text.ok_or_else(|| self.failed("read the stamp of", &"it is missing"))
    }

    /// The position of the last commit.
    pub fn last_commit(&self) -> CommitPos {
        self.journal.last()
    }

    /// About the bytes that the next commit writes.
    pub fn pending_bytes(&self) -> usize {
        self.memtable.uncommitted_bytes()
    }

    /// Makes all changes since the last commit durable. **The instant of commit** is the return of the journal's
    /// `fdatasync`. After a crash before it, or an error, the next start finds all of the changes or none.
    pub fn commit(&mut self) -> Result<(), StoreFailed> {
        self.commit_and_copy(|_, _| ())
    }

    /// The same. `copy` gets the rows of the commit as [`read_rows`] reads them, and its position, after they were written
    /// and before they are synced, so that the caller can copy them elsewhere while the disk works. They are not durable
    /// yet.
    ///
    /// [`read_rows`]: crate::storage::read_rows
    pub fn commit_and_copy(&mut self, copy: impl FnOnce(&[u8], CommitPos)) -> Result<(), StoreFailed> {
        if self.memtable.uncommitted().is_empty() {
            return Ok(());
        }
        self.sync_read_splits()?;
        let appended = self.journal.append(self.memtable.uncommitted());
        let written = appended.and_then(|()| {
            copy(self.journal.appended(), self.journal.last());
            self.journal.sync()
        });
        written.map_err(|cause| self.fail_permanently("write the journal of", &cause))?;
        let mut places = self.journal.places();
        self.memtable.commit(|key, value| places.next(key, value));
        Ok(())
    }

    /// Returns true while a checkpoint is under way.
    pub fn is_checkpointing(&self) -> bool {
        self.memtable.is_flushing()
    }

    /// Returns true while a checkpoint can wait: the current epoch has hardly begun.
    pub fn can_checkpoint_wait(&self) -> bool {
        self.complete_part() < 1.0 / 16.0
    }

    /// Advances the checkpoint by a batch, or by as many as it needs to be over when the current epoch is complete. Then
    /// begins the next one. Returns true if sled got a batch.
    pub fn advance_checkpoint(&mut self) -> Result<bool, StoreFailed> {
        let steps = self.is_checkpointing();
        let complete = self.complete_part();
        while self.is_checkpointing() {
            self.checkpoint_step()?;
            if self.memtable.flushed_part() >= complete {
                break;
            }
        }
        if self.is_epoch_complete()? {
            self.finish_checkpoint()?;
            self.begin_checkpoint();
        }
        Ok(steps)
    }

    /// Begins a checkpoint if there is enough to move, and space. Returns true if one is under way.
    pub fn begin_checkpoint_at_rest(&mut self) -> bool {
        if !self.is_checkpointing() && !self.can_checkpoint_wait() && self.has_space_beyond(0) {
            self.begin_checkpoint();
        }
        self.is_checkpointing()
    }

    /// Opens sled anew, if many rows went through it: it keeps cached pages, and there are gaps between them, so a relay at
    /// rest held 40 MiB with 864,000 deliveries behind it; 24 with this, and 16 after a start. On disk it is a clean stop
    /// and a start. So the log is checked first, as at a start, by a thread of its own; what it finds counts if the log has
    /// not changed meanwhile. Returns true while the check runs: call it again.
    pub fn reopen(&mut self) -> Result<bool, StoreFailed> {
        let Some((check, syncs)) = self.check.take_if(|(check, _)| check.is_finished()) else {
            let is_worn = self.moved >= WORN_ROWS && self.log_bytes <= REOPEN_BYTES && !self.is_checkpointing();
            if self.check.is_none() && is_worn && self.has_space_beyond(0) {
                self.sync_read_splits()?;
                let path = self.path.clone();
                let check = thread::Builder::new().name("check".into()).spawn(move || preflight::check(&path));
                self.check = check.ok().map(|check| (check, self.syncs));
            }
            return Ok(self.check.is_some());
        };
        self.sync_read_splits()?;
        if syncs != self.syncs {
            return Ok(false);
        }
        match check.join() {
            Ok(Ok(())) => {
                self.close_sled()?;
                self.open_again()?;
            }
            Ok(Err(cause @ OpenError::Damaged { .. })) => {
                warn!(%cause, "the next start will find the queue's files damaged");
                self.moved = 0;
            }
            // It says nothing of the files, and is tried again.
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(false)
    }

    /// Moves everything that was committed into sled.
    pub fn checkpoint(&mut self) -> Result<(), StoreFailed> {
        self.finish_checkpoint()?;
        if !self.journal.is_empty() {
            self.begin_checkpoint();
        }
        self.finish_checkpoint()
    }

    /// Replaces sled's log by a copy of its rows if it has grown far beyond them: beyond four times `live` bytes and
    /// `spare`. Returns the new log's size if it did.
    ///
    /// sled frees a segment of its log by moving the last pages out of it. It does so one page at a time as it rewrites
    /// others, or in a thread that flushes on its own, which rule 2 of the store forbids. With commits of a few rows
    /// that is far too seldom: the log grew by 2 KB with each of them, without end. The copy takes the longer the more
    /// rows are live, so it waits until they are few.
    pub fn compact(&mut self, live: u64, spare: u64) -> Result<Option<u64>, StoreFailed> {
        if !self.compactable || self.log_bytes < spare + 4 * live {
            return Ok(None);
        }
        if !self.has_space_beyond(4 * live) {
            return Ok(None);
        }
        self.checkpoint()?;
        if let Err(cause) = compaction::copy(self.db(), &self.path) {
            // Nothing has changed, and the log can be used as it is; the next start tries again.
            warn!(%cause, "the queue's log could not be compacted");
            self.compactable = false;
            return Ok(None);
        }
        compaction::complete(&self.path).map_err(|cause| self.fail_permanently("compact", &cause))?;
        // From here on the copy is the store, whatever happens.
        self.close_sled()?;
        compaction::finish(&self.path).map_err(|cause| self.fail_permanently("compact", &cause))?;
        self.open_again()?;
        Ok(Some(self.log_bytes))
    }

    /// Looks up the parts of [`Space`] that change seldom: the folder's other files.
    pub fn scan_folder(&mut self) {
        self.folder = space::scan(&self.path);
    }

    /// Measures the space. Gives the ballast up while the volume is almost full, and makes it again once clearly more
    /// than `free_min` bytes are free (rule 9 of the store). The journal gets longer only while the other files take
    /// little of `bytes_max` and the volume has space, and shorter again when that is over. Its two files take a quarter of
    /// `bytes_max` at most.
    pub fn measure_space(&mut self, free_min: u64, bytes_max: u64) -> Space {
        let free = directory::free(&self.path);
        match free {
            Some(free) if free < BALLAST_BYTES && space::release_ballast(&self.path) => {
                self.folder.ballast = false;
                warn!(free, "the queue's volume is almost full; the relay releases the space reserved for outcomes");
            }
            Some(free) if free > free_min + 2 * BALLAST_BYTES && !self.folder.ballast => {
                space::keep_ballast(&self.path);
                self.folder.ballast = true;
            }
            _ => {}
        }
        let bytes = self.folder.bytes + self.log_bytes;
        let has_space = free.is_some_and(|free| free >= free_min + 4 * BALLAST_BYTES);
        // When it is over, two epochs still have to move into sled, and may double there, before the files are short.
        let others = bytes.saturating_sub(self.journal.bytes());
        let is_roomy = has_space && others < if self.is_long() { bytes_max / 8 * 3 } else { bytes_max / 4 };
        self.epoch_bytes =
            if is_roomy { (bytes_max / 8).clamp(journal::BYTES, journal::BYTES_MAX) } else { journal::BYTES };
        Space { bytes, free, set_aside: self.folder.quarantined }
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("sled is open but inside `compact` and `reopen`")
    }

    /// Returns true if work that can wait may take so many bytes: the last space of a volume is for outcomes.
    fn has_space_beyond(&self, bytes: u64) -> bool {
        directory::free(&self.path).is_none_or(|free| free > bytes + 4 * BALLAST_BYTES)
    }

    /// Closes sled. It syncs its log once more, and panics if that fails: so this does it before.
    fn close_sled(&mut self) -> Result<(), StoreFailed> {
        self.log.sync_all().map_err(|cause| self.fail_permanently("fsync", &cause))?;
        self.db = None;
        Ok(())
    }

    /// Opens sled after [`Store::close_sled`].
    fn open_again(&mut self) -> Result<(), StoreFailed> {
        let opened = open_sled(&self.path).map_err(|cause| self.fail_permanently("open the log again of", &cause))?;
        (self.db, self.log, self.moved) = (Some(opened.0), opened.1, 0);
        self.syncs += 1;
        self.measure_log();
        Ok(())
    }

    fn finish_checkpoint(&mut self) -> Result<(), StoreFailed> {
        while self.is_checkpointing() {
            self.checkpoint_step()?;
        }
        Ok(())
    }

    /// Returns true while the journal's epochs may be longer than in a new store.
    fn is_long(&self) -> bool {
        self.epoch_bytes > journal::BYTES
    }

    /// The part of the current epoch that is over, from 0 to 1.
    fn complete_part(&self) -> f64 {
        self.journal.part(self.epoch_bytes).max(self.memtable.active_memory() as f64 / MEMORY_MAX as f64)
    }

    /// Returns true if a checkpoint of the current epoch is due. Lengthens the journal's file if it is full and there is
    /// space.
    fn is_epoch_complete(&mut self) -> Result<bool, StoreFailed> {
        if self.complete_part() >= 1.0 {
            return Ok(true);
        }
        if self.journal.is_full() {
            self.journal.grow().map_err(|cause| self.fail_permanently("lengthen the journal of", &cause))?;
            self.scan_folder();
        }
        Ok(false)
    }

    fn begin_checkpoint(&mut self) {
        self.memtable.freeze();
        self.journal.begin_next();
        self.write_stamp_row();
    }

    /// Writes the copy of the format stamp: each epoch of the journal begins with it, and so names its store.
    fn write_stamp_row(&mut self) {
        self.memtable.write(identity::copy_key(), Some(self.stamp.clone()));
    }

    /// Moves the next batch into sled. A crash loses nothing: the journal has the whole epoch until the last batch,
    /// which names the next epoch, is durable.
    fn checkpoint_step(&mut self) -> Result<(), StoreFailed> {
        self.sync_read_splits()?;
        let mut batch = Batch::default();
        let mut rows = self.memtable.to_flush().peekable();
        while let Some((key, row)) = rows.next_if(|_| !batch.is_full(SYNCED_ROWS)) {
            match row {
                Row::Removed => batch.remove(key, (self.removal_weight)(key)),
                Row::Bytes(value) => batch.insert(key, value),
                Row::Journal(extent) => batch.insert(key, self.journal_value(extent)?),
            }
        }
        let (moved, next) = (batch.rows(), rows.next().map(|(key, _)| *key));
        drop(rows);
        let shortens = next.is_none() && !self.is_long() && !self.journal.is_empty();
        if next.is_none() {
            let position = if shortens { self.journal.shorter_position() } else { self.journal.position() };
            batch.insert(EPOCH, row::encode(EPOCH, &position));
        }
        self.apply(batch)?;
        self.memtable.flushed_to(next, moved);
        self.moved += moved;
        if shortens {
            self.journal.shorten().map_err(|cause| self.fail_permanently("shorten the journal of", &cause))?;
        }
        Ok(())
    }

    fn journal_value(&self, extent: Extent) -> Result<Vec<u8>, StoreFailed> {
        self.journal.value(extent).map_err(|cause| self.fail_permanently("read the journal of", &cause))
    }

    fn apply(&mut self, mut batch: Batch) -> Result<(), StoreFailed> {
        // sled reads the leaves that it rewrites.
        let applied = batch.apply_to(self.db()).inspect_err(|cause| self.mark_damage(cause));
        applied.map_err(|cause| self.fail_permanently("apply a batch to", &cause))?;
        self.flush()?;
        self.sync_log()
    }

    /// Flushes and syncs what reads have left: sled splits a page when a read passes by. Rule 2 of the store keeps it
    /// apart from what follows.
    fn sync_read_splits(&mut self) -> Result<(), StoreFailed> {
        if self.flush()? > 0 { self.sync_log() } else { Ok(()) }
    }

    fn flush(&self) -> Result<usize, StoreFailed> {
        self.db().flush().map_err(|cause| self.fail_permanently("flush", &cause))
    }

    fn sync_log(&mut self) -> Result<(), StoreFailed> {
        self.log.sync_data().map_err(|cause| self.fail_permanently("fdatasync", &cause))?;
        self.syncs += 1;
        self.measure_log();
        Ok(())
    }

    fn measure_log(&mut self) {
        self.log_bytes = self.log.metadata().map_or(0, |file| file.blocks() * 512);
    }

    fn unreadable(&self, cause: &sled::Error) -> StoreFailed {
        self.mark_damage(cause);
        self.failed("read", cause)
    }

    /// Leaves a mark for the next start if the log itself is damaged.
    fn mark_damage(&self, cause: &sled::Error) {
        if matches!(cause, sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)) {
            let mark = self.path.join(names::FAILED_READ);
            let mark = private(OpenOptions::new().create(true).truncate(true).write(true), &mark);
            if let Err(cause) = mark.and_then(|mut mark| write!(mark, "{cause}")) {
                error!(%cause, "the damage could not be marked");
            }
        }
    }

    fn failed(&self, step: &str, cause: &dyn std::fmt::Display) -> StoreFailed {
        StoreFailed(Arc::from(format!("{step} {}: {cause}", self.path.display())))
    }

    /// Leaves the mark of a failed write (rule 7 of the store): Linux has marked the pages that it could not write as
    /// clean.
    fn fail_permanently(&self, step: &str, cause: &dyn std::fmt::Display) -> StoreFailed {
        self.db.iter().for_each(leak_db);
        space::release_ballast(&self.path);
        let mark = write_private(&self.path.join(names::FAILED_SYNC), b"");
        if let Err(cause) = mark.and_then(|()| sync_directory(&self.path)) {
            error!(%cause, "the failed write could not be marked");
        }
        self.failed(step, cause)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::testing::{self, key, open, row};

    #[test]
    fn committed_rows_are_there_after_a_crash_and_uncommitted_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        store.put(key("a1"), vec![1]);
        store.append(key("a1"), &[2]);
        store.put(key("a2"), vec![3]);
        store.commit().unwrap();
        store.remove(key("a2"));
        store.commit().unwrap();
        store.put(key("a3"), vec![4]);
        assert_eq!(row(&store, "a3"), Some(vec![4]), "the store returns its uncommitted rows");
        drop(store);
        let store = open(folder.path()).store;
        assert_eq!(["a1", "a2", "a3"].map(|text| row(&store, text)), [Some(vec![1, 2]), None, None]);
        assert_eq!(store.next_key(key("a"), Bound::Excluded(key("a1"))).unwrap(), None);
        assert_eq!(store.last_key(key("a"), Bound::Excluded(key("b"))).unwrap(), Some(key("a1")));
    }

    #[test]
    fn row_written_once_and_removed_before_a_checkpoint_never_reaches_sled() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        for prefix in ["o", "p"] {
            store.put(key(prefix), vec![1]);
            store.commit().unwrap();
            store.remove(key(prefix));
            store.commit().unwrap();
        }
        store.begin_checkpoint();
        let flushed: Vec<_> = store.memtable.to_flush().map(|(key, _)| key[0]).collect();
        assert_eq!(flushed, [b'f', b'p'], "of a row that may be written again sled gets the removal");
    }

    #[test]
    fn long_row_written_once_is_read_from_the_journal_until_sled_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        let all = ["o1", "o2", "o3"];
        for (number, text) in (1..).zip(all) {
            store.put(key(text), vec![number; 1000]);
            store.put(key("p"), vec![number; 1000]);
            store.commit().unwrap();
        }
        let value = |number| Some(vec![number; 1000]);
        let read = |store: &Store| all.map(|text| row(store, text));
        let in_journal = |store: &Store| matches!(store.memtable.get(b"o2"), Some(Row::Journal(_)));
        assert!(in_journal(&store) && matches!(store.memtable.get(b"p"), Some(Row::Bytes(_))));
        assert_eq!(read(&store), [1, 2, 3].map(value));
        store.remove(key("o1"));
        store.commit().unwrap();
        drop(store);
        let mut store = open(folder.path()).store;
        assert!(in_journal(&store), "a start leaves it there too");
        assert_eq!(read(&store), [None, value(2), value(3)]);
        store.checkpoint().unwrap();
        assert!(!in_journal(&store));
        assert_eq!(read(&store), [None, value(2), value(3)]);
    }

    #[test]
    fn row_that_sled_has_from_an_interrupted_checkpoint_can_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        let rows = SYNCED_ROWS as u64;
        (0..rows + 1).for_each(|number| store.put(key("o").number(number), vec![1; 200]));
        store.commit().unwrap();
        store.begin_checkpoint();
        store.checkpoint_step().unwrap();
        drop(store);
        let count = |letter| testing::count(folder.path(), letter);
        let (moved, positions) = (count(b'o') as u64, count(b'j'));
        assert!(0 < moved && moved < rows && positions == 0, "{moved}, {positions}");
        let mut store = open(folder.path()).store;
        store.remove(key("o").number(0));
        store.commit().unwrap();
        store.checkpoint().unwrap();
        assert_eq!(store.read(&key("o").number(0), <[u8]>::len).unwrap(), None);
        drop(store);
        assert_eq!(count(b'o') as u64, rows, "one row less");
    }

    #[test]
    fn checkpoint_of_an_epoch_is_over_when_the_next_epoch_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        let mut number = 0;
        let mut commit = |store: &mut Store, rows| {
            for _ in 0..rows {
                store.put(key("o").number(number), vec![1; 400]);
                number += 1;
            }
            store.commit().unwrap();
        };
        while !store.journal.is_full() || store.journal.grow().unwrap() {
            commit(&mut store, 1);
        }
        store.begin_checkpoint();
        // The next epoch is as long, and has a fourth of the commits.
        let mut most = 0.0f64;
        loop {
            commit(&mut store, 4);
            let (before, complete) = (store.memtable.flushed_part(), store.complete_part());
            store.advance_checkpoint().unwrap();
            if store.journal.is_empty() {
                break; // the epoch after it has begun
            }
            most = most.max(store.memtable.flushed_part() - before);
            assert!(store.memtable.flushed_part() >= complete.min(1.0));
        }
        assert!(most > 0.0 && most < 1.0, "no commit waits for the whole checkpoint: {most}");
    }

    #[test]
    fn journal_is_short_while_the_folder_takes_much_of_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).store;
        let epoch_of = |store: &mut Store, bytes_max| {
            let mut commits = 0;
            while !store.is_checkpointing() {
                store.measure_space(0, bytes_max);
                store.put(key("o").number(commits), vec![1; 6000]);
                store.commit().unwrap();
                store.advance_checkpoint().unwrap();
                commits += 1;
            }
            // A file is shortened once the other one has the last commit.
            store.put(key("p"), vec![1]);
            store.commit().unwrap();
            store.finish_checkpoint().unwrap();
            commits
        };
        let short = epoch_of(&mut store, 0);
        let long = epoch_of(&mut store, u64::MAX);
        assert!(long > 3 * short / 2, "{long} commits, {short} with a short journal");
        let bytes = |store: &mut Store| {
            store.scan_folder();
            store.folder.bytes
        };
        let grown = bytes(&mut store);
        for _ in 0..2 {
            epoch_of(&mut store, 0);
        }
        assert!(bytes(&mut store) < grown, "the files are shortened");
    }

    /// A store through whose sled enough rows went, with one more commit in its journal.
    fn worn(folder: &Path) -> Store {
        let mut store = open(folder).store;
        for number in 0..2 * WORN_ROWS as u64 {
            store.put(key("o").number(number), vec![1; 100]);
            store.commit().unwrap();
        }
        assert!(!reopen(&mut store), "sled has nothing yet");
        store.checkpoint().unwrap();
        store.put(key("p"), vec![2]);
        store.commit().unwrap();
        store
    }

    /// True if it was opened anew.
    fn reopen(store: &mut Store) -> bool {
        let syncs = store.syncs;
        while store.reopen().unwrap() {
            thread::yield_now();
        }
        store.syncs > syncs && store.moved == 0
    }

    #[test]
    fn store_is_opened_anew_once_many_rows_went_through_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = worn(folder.path());
        assert!(store.reopen().unwrap(), "the log is checked first");
        store.put(key("q"), vec![4]);
        store.commit().unwrap();
        store.checkpoint().unwrap();
        assert!(!reopen(&mut store), "it changed meanwhile");
        assert!(reopen(&mut store));
        assert!(!reopen(&mut store), "once");
        assert_eq!(
            store.last_key(key("o"), Bound::Excluded(key("p"))).unwrap(),
            Some(key("o").number(2 * WORN_ROWS as u64 - 1))
        );
        assert_eq!(row(&store, "p"), Some(vec![2]));
        store.put(key("p"), vec![3]);
        store.commit().unwrap();
        store.checkpoint().unwrap();
        drop(store);
        let store = open(folder.path()).store;
        assert_eq!(row(&store, "p"), Some(vec![3]));
        assert_eq!(store.first_key(key("o")).unwrap(), Some(key("o").number(0)));
    }

    #[test]
    fn damaged_log_is_not_opened_anew_and_remains_readable() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = worn(folder.path());
        let log = folder.path().join(names::LOG);
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&log, bytes).unwrap();
        assert!(!reopen(&mut store));
        assert_eq!(row(&store, "p"), Some(vec![2]));
        store.put(key("p"), vec![3]);
        store.commit().unwrap();
    }

    #[test]
    fn position_of_the_last_commit_is_in_the_files_after_a_clean_stop() {
        for epoch_bytes in [journal::BYTES, journal::BYTES_MAX] {
            let folder = tempfile::tempdir().unwrap();
            let mut store = open(folder.path()).store;
            while !store.journal.is_full() || store.journal.grow().unwrap() {
                store.put(key("o").number(store.journal.last().number), vec![1; 6000]);
                store.commit().unwrap();
            }
            let last = store.last_commit();
            store.epoch_bytes = epoch_bytes;
            store.checkpoint().unwrap();
            drop(store);
            assert_eq!(journal::last(folder.path()).unwrap(), last, "epochs of {epoch_bytes} bytes");
        }
    }

    #[test]
    fn damaged_copy_of_the_stamp_is_returned_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut opened = open(folder.path());
        opened.store.put(key("a"), vec![1]);
        opened.store.commit().unwrap();
        opened.store.checkpoint().unwrap();
        drop(opened);
        let (key, mut value) = testing::sled_rows(folder.path()).into_iter().find(|(key, _)| key == b"f").unwrap();
        *value.last_mut().unwrap() ^= 1;
        testing::write_sled_rows(folder.path(), &[(key, value.clone())]);
        let mut opened = open(folder.path());
        assert_eq!(opened.damaged, Some((identity::copy_key(), value)));
        opened.store.commit().unwrap();
        drop(opened);
        assert_eq!(open(folder.path()).damaged, None);
    }
}
