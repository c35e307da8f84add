//! sled, made durable, behind a journal: one folder, one tree, one owner.
//!
//! Acts read and write through [`Store`]; what they write gathers in an overlay that they read back, and reaches the
//! disk in [`Store::commit`], and sled in [`Store::checkpoint`], when the journal is full:
//!
//! ```text
//! put, remove ─▶ overlay ─▶ journal ─▶ fdatasync(journal) = the instant of commit
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

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FallocateFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{error, warn};

use super::carry::ASIDE;
use super::codec::{self, Hasher, Key};
use super::folder::{
    BALLAST, MARK, close_to_others, drop_cached, lock, look_through, make_room, memory_filesystem, private,
    remove_half_snapshots, set_aside_unstamped, sync_directory, was_used,
};
use super::journal::{self, EPOCH, Journal, Mark};
use super::overlay::Overlay;
use super::sealing::{Sealer, SealingKey};
use super::stamp::{Stamp, first_stamp, read_stamp, write_stamp};
use super::{OpenError, StoreFailed, compaction, folder, opening, stamp};
use crate::time::Timestamp;

/// sled's page cache. Entries, lines and tokens lie scattered: with 1 MiB, four fragments of pages a message were read
/// back from the file, and a third fewer messages a second were accepted; 16 MiB took no more than 8 or 6.
const CACHE_BYTES: u64 = 6 << 20;
/// How often sled's lock is tried for, 10 ms apart.
const LOCK_TRIES: u32 = 300;
/// What a checkpoint gives sled at a time: what a batch leaves to be freed stays in memory for a while (with 1 MiB ten
/// thousand messages took 47 MiB, with this 23).
const BATCH_BYTES: usize = 256 << 10;
/// Space set aside for recording outcomes on a full disk.
pub const BALLAST_BYTES: u64 = 8 << 20;

/// One folder of rows.
pub struct Store {
    path: PathBuf,
    /// None only while it is replaced by its compacted copy.
    db: Option<sled::Db>,
    data: File,
    _lock: File,
    /// What makes ids of this store differ from another's.
    pub nonce: u32,
    overlay: Overlay,
    journal: Journal,
    /// The row being made; kept for its room.
    row: Vec<u8>,
    /// The row that has a copy of the format stamp.
    stamp: Vec<u8>,
    corrupt: u64,
    compactable: bool,
}

/// Without the rows, in which contents and tokens stand.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).field("overlay", &self.overlay).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the folder, or makes it; with what hashes and seals by the keys of this store.
    pub fn open(
        path: &Path,
        volatile: bool,
        keys: Vec<SealingKey>,
        now: Timestamp,
    ) -> Result<(Store, Hasher, Sealer), OpenError> {
        let failed =
            |step| move |cause: io::Error| OpenError::Failed { path: path.to_owned(), step, cause: cause.to_string() };
        folder::make(path)?;
        if let Some(filesystem) = memory_filesystem(path).filter(|_| !volatile) {
            return Err(OpenError::Volatile { path: path.to_owned(), filesystem });
        }
        let lock = lock(path)?;
        make_room(path);
        let stamp = read_stamp(path, &keys)?;
        if stamp.is_none() {
            if was_used(path).map_err(failed("read its log"))? {
                return Err(OpenError::Damaged { path: path.to_owned(), damage: "its format stamp is gone".into() });
            }
            set_aside_unstamped(path, now).map_err(failed("set aside what a first start left unfinished"))?;
        }
        compaction::finish(path).map_err(failed("finish a compaction"))?;
        if path.join("failed-sync").exists() {
            warn!(queue = %path.display(), "a write failed when the relay last ran; reading the disk itself, not the cache");
            drop_cached(path).map_err(failed("drop cached pages"))?;
        }
        remove_half_snapshots(path).map_err(failed("remove a half-written snapshot"))?;
        if stamp.is_some() {
            look_through(path)?;
        }
        opening::note(path);
        let (patience, folder) = (opening::patience(path), path.to_owned());
        opening::within(path, patience, move || Store::open_rows(&folder, lock, stamp, keys))
    }

    /// From here on sled has the log.
    fn open_rows(
        path: &Path,
        lock: File,
        stamp: Option<Stamp>,
        keys: Vec<SealingKey>,
    ) -> Result<(Store, Hasher, Sealer), OpenError> {
        let failed =
            |step| move |cause: io::Error| OpenError::Failed { path: path.to_owned(), step, cause: cause.to_string() };
        let (db, data) = open_sled(path).map_err(|cause| match cause.kind() {
            // sled's words for damage, and for a log that ends too early.
            ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                OpenError::Damaged { path: path.to_owned(), damage: cause.to_string() }
            }
            _ => failed("open sled")(cause),
        })?;
        if fs::read_dir(path.join("blobs")).is_ok_and(|mut blobs| blobs.next().is_some()) {
            warn!(queue = %path.display(), "there is a file in blobs/: it was not written by this relay and is not durable");
        }
        let stamp = match stamp {
            Some(stamp) => stamp,
            None => first_stamp(path, &db, &data)
                .and_then(|stamp| journal::create(path).map(|()| stamp))
                .inspect_err(|_| never_drop(&db))
                .map_err(failed("write its format stamp"))?,
        };
        let sealer = Sealer::new(keys, stamp.nonce);
        let mut overlay = Overlay::default();
        let journal = open_journal(path, &db, &mut overlay).inspect_err(|_| never_drop(&db))?;
        if !stamp.kept.as_ref().is_some_and(|kept| sealer.is_newest(kept)) {
            write_stamp(path, &stamp, &sealer)
                .inspect_err(|_| never_drop(&db))
                .map_err(failed("write its format stamp"))?;
        }
        match fs::remove_file(path.join("failed-sync")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove the mark")(error)),
            _ => {}
        }
        let mut store = Store {
            path: path.to_owned(),
            db: Some(db),
            data,
            _lock: lock,
            nonce: stamp.nonce,
            overlay,
            journal,
            row: Vec::new(),
            stamp: Vec::new(),
            corrupt: 0,
            compactable: true,
        };
        store.keep_ballast();
        store.keep_stamp().inspect_err(|_| store.db.iter().for_each(never_drop))?;
        // The last run may have been cut short in one: from now on the overlay alone tells what sled does not have.
        store.checkpoint().map_err(|cause| failed("finish a checkpoint")(io::Error::other(cause)))?;
        Ok((store, Hasher::new(&stamp.key), sealer))
    }

    /// Has the log keep a copy of the stamp; it goes with the first commit. One of another store says that files of two
    /// stores lie here: their rows do not belong together.
    fn keep_stamp(&mut self) -> Result<(), OpenError> {
        let Some(text) = stamp::text(&self.path)? else { return Ok(()) };
        let copy: Option<String> = self.get(&stamp::copy_key()).map_err(|cause| OpenError::Failed {
            path: self.path.clone(),
            step: "read the copy of its format stamp",
            cause: cause.to_string(),
        })?;
        if copy.is_some_and(|copy| !stamp::is_of_one_store(&copy, &text)) {
            let damage = "its format stamp, its log and its journal are not of one store".into();
            return Err(OpenError::Damaged { path: self.path.clone(), damage });
        }
        self.stamp = codec::encode(&stamp::copy_key(), &*text);
        self.write_stamp_row();
        Ok(())
    }

    /// Each epoch of the journal begins with it, and so tells whose it is.
    fn write_stamp_row(&mut self) {
        self.overlay.write(stamp::copy_key(), Some(self.stamp.clone()));
    }

    /// sled has opened the log, and the first rows were read and written.
    pub fn note_opened(&self) {
        opening::came_back(&self.path);
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("sled is open but inside `compact`")
    }

    /// Replaces the log by a copy of what it holds, where it has grown far beyond that.
    ///
    /// sled frees a part of its log by moving the last pages out of it, one at a time as it rewrites others, and
    /// otherwise only in a thread that flushes on its own, which rule 2 forbids. In commits of one message that is far
    /// too seldom: the log grew by 2 KB a message for ever. The copy takes as long as what is live is large, so it waits
    /// until that is little.
    pub fn compact(&mut self, live: u64, spare: u64) -> Result<bool, StoreFailed> {
        let room = self.bytes_free().is_none_or(|free| free > 4 * live + 4 * BALLAST_BYTES);
        if !self.compactable || !room || self.log_bytes() < spare + 4 * live {
            return Ok(false);
        }
        self.checkpoint()?;
        if let Err(cause) = compaction::copy(self.db(), &self.path) {
            // Nothing has changed, and the log can be used as it is; the next start tries again.
            warn!(%cause, "the queue's log could not be compacted");
            self.compactable = false;
            return Ok(false);
        }
        compaction::complete(&self.path).map_err(|cause| self.broken("compact", &cause))?;
        // From here on the copy is the store, whatever happens.
        self.db = None;
        let opened = compaction::finish(&self.path).and_then(|()| open_sled(&self.path));
        let (db, data) = opened.map_err(|cause| self.broken("open the compacted log of", &cause))?;
        (self.db, self.data) = (Some(db), data);
        Ok(true)
    }

    /// The row under a key, as the acts so far have left it. A row that fails its sum is set aside, counted, and not
    /// there.
    pub fn get<T: DeserializeOwned>(&mut self, key: &Key) -> Result<Option<T>, StoreFailed> {
        let found = self.read(key, |value| codec::decode(key, value))?;
        if let Some(None) = found {
            self.set_copy_aside(key)?;
            self.overlay.write(*key, None);
        }
        Ok(found.flatten())
    }

    /// What is to be told of the raw bytes under a key; they are not checked.
    pub fn read<T>(&self, key: &Key, tell: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, StoreFailed> {
        Ok(match self.overlay.get(key) {
            Some(value) => value.map(tell),
            None => self.db().get(key).map_err(|cause| self.unreadable(&cause))?.as_deref().map(tell),
        })
    }

    /// Adds to the end of a row that this commit began.
    pub fn extend(&mut self, key: Key, bytes: &[u8]) {
        self.overlay.extend(key, bytes);
    }

    /// Writes a row.
    pub fn put<T: Serialize>(&mut self, key: Key, row: &T) {
        self.row.clear();
        codec::encode_onto(&mut self.row, &key, row);
        self.overlay.write(key, Some(self.row.clone()));
    }

    /// Writes a row that has its sum already.
    pub fn put_raw(&mut self, key: Key, value: Vec<u8>) {
        self.overlay.write(key, Some(value));
    }

    /// Removes a row.
    pub fn remove(&mut self, key: Key) {
        self.overlay.write(key, None);
    }

    /// The first key that begins so.
    pub fn first_key(&self, prefix: Key) -> Result<Option<Key>, StoreFailed> {
        self.next_key(&prefix, Bound::Included(prefix))
    }

    /// The first key at or after `from` that begins with `prefix`.
    pub fn next_key(&self, prefix: &[u8], from: Bound<Key>) -> Result<Option<Key>, StoreFailed> {
        let range = (from, Key::after(prefix).map_or(Bound::Unbounded, Bound::Excluded));
        let own = self.overlay.first(&range);
        for row in self.db().range(range) {
            let (key, _) = row.map_err(|cause| self.unreadable(&cause))?;
            if own.is_some_and(|own| **own <= *key) {
                break;
            }
            let key = Key::of(&key).filter(|key| self.overlay.get(key).is_none());
            if key.is_some() {
                return Ok(key);
            }
        }
        Ok(own.copied())
    }

    /// The last key before or at `to` that begins with `prefix`.
    pub fn last_key(&self, prefix: &[u8], to: Bound<Key>) -> Result<Option<Key>, StoreFailed> {
        let range = (Key::of(prefix).map_or(Bound::Unbounded, Bound::Included), to);
        let own = self.overlay.last(&range);
        for row in self.db().range(range).rev() {
            let (key, _) = row.map_err(|cause| self.unreadable(&cause))?;
            if own.is_some_and(|own| **own >= *key) {
                break;
            }
            let key = Key::of(&key).filter(|key| self.overlay.get(key).is_none());
            if key.is_some() {
                return Ok(key);
            }
        }
        Ok(own.copied())
    }

    /// Bytes that wait for the next commit.
    pub fn pending_bytes(&self) -> usize {
        self.overlay.pending_bytes()
    }

    /// Makes everything written so far durable, all of it or nothing.
    pub fn commit(&mut self) -> Result<(), StoreFailed> {
        if self.overlay.pending().is_empty() {
            return Ok(());
        }
        // Reads write to sled too: it splits a page when it next passes by. That is synced before anything follows it.
        if self.flush()? > 0 {
            self.sync()?;
        }
        let written = self.journal.append(self.overlay.pending()).and_then(|()| self.journal.sync());
        written.map_err(|cause| self.broken("write the journal of", &cause))?;
        self.overlay.commit();
        Ok(())
    }

    /// Whether sled is being given something.
    pub fn is_giving(&self) -> bool {
        self.overlay.is_giving()
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
        self.overlay.freeze();
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
        let mut rows = self.overlay.to_give().peekable();
        while let Some((key, value)) = rows.next_if(|_| bytes < BATCH_BYTES) {
            // A piece of contents that goes weighs what it held: sled reads and rewrites the leaf in which it stood.
            let gone = if key.starts_with(b"p") { codec::PIECE } else { 0 };
            bytes += key.len() + value.map_or(gone, <[u8]>::len);
            match value {
                Some(value) => batch.insert(&**key, value),
                None => batch.remove(&**key),
            }
        }
        let next = rows.next().map(|(key, _)| *key);
        drop(rows);
        if next.is_none() {
            batch.insert(EPOCH, codec::encode(EPOCH, &self.journal.mark()));
        }
        self.apply(batch)?;
        self.overlay.give(next);
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

    /// Rows set aside that were not taken yet.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// Rows set aside since the last call.
    pub fn take_corrupt(&mut self) -> u64 {
        std::mem::take(&mut self.corrupt)
    }

    /// Bytes that the folder takes on disk beside the log itself.
    pub fn other_bytes(&self) -> u64 {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let files = files.filter(|file| file.file_name() != "db").filter_map(|file| file.metadata().ok());
        files.filter(fs::Metadata::is_file).map(|file| file.blocks() * 512).sum()
    }

    /// Whether a damaged store lies set aside.
    pub fn has_set_aside(&self) -> bool {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with(ASIDE))
    }

    /// Bytes that the log takes on disk.
    pub fn log_bytes(&self) -> u64 {
        self.data.metadata().map_or(0, |file| file.blocks() * 512)
    }

    /// Bytes free on its volume; none where the volume does not say.
    pub fn bytes_free(&self) -> Option<u64> {
        folder::free(&self.path)
    }

    /// Sets the ballast aside, if the volume has the space.
    pub fn keep_ballast(&self) {
        let path = self.path.join(BALLAST);
        if path.exists() || self.bytes_free().is_none_or(|free| free < 4 * BALLAST_BYTES) {
            return;
        }
        let made = private(OpenOptions::new().create(true).truncate(false).write(true), &path)
            .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES)?));
        if made.is_err() {
            // A file system without fallocate: there is nothing to set aside, and nothing is lost by it.
            let _ = fs::remove_file(&path);
        }
    }

    /// Gives the ballast up.
    pub fn release_ballast(&self) -> bool {
        fs::remove_file(self.path.join(BALLAST)).is_ok()
    }

    /// Keeps a copy of a damaged row where nothing reads it, and counts it.
    pub fn set_copy_aside(&mut self, key: &Key) -> Result<(), StoreFailed> {
        self.corrupt += 1;
        let raw = self.read(key, <[u8]>::to_vec)?;
        let row = char::from(key[0]);
        error!(%row, "a row of the queue fails its checksum; it is set aside and the rest goes on");
        self.overlay.write(Key::new(b'k').with(key), raw);
        Ok(())
    }

    fn unreadable(&self, cause: &sled::Error) -> StoreFailed {
        self.mark_damage(cause);
        self.failed("read", cause)
    }

    /// Where it was the log itself that could not be read, leaves the mark by which the next start knows.
    fn mark_damage(&self, cause: &sled::Error) {
        if matches!(cause, sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)) {
            let mark = private(OpenOptions::new().create(true).truncate(true).write(true), &self.path.join(MARK));
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
        self.release_ballast();
        let mark = private(OpenOptions::new().create(true).truncate(true).write(true), &self.path.join("failed-sync"))
            .and_then(|mark| mark.sync_all())
            .and_then(|()| sync_directory(&self.path));
        if let Err(cause) = mark {
            error!(%cause, "the failed write could not be marked");
        }
        self.failed(step, cause)
    }
}

/// Opens sled as the rules have it.
pub(super) fn open_sled(path: &Path) -> io::Result<(sled::Db, File)> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    // sled lets go of its lock in a thread of its own, a moment after it was dropped. Nobody else can hold it: the
    // relay's own lock is taken.
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
    let data = File::open(path.join("db")).and_then(|data| {
        close_to_others(path)?;
        // sled renames its snapshot when it opens: the new name must be on disk before anything relies on it.
        sync_directory(path)?;
        Ok(data)
    });
    let data = data.inspect_err(|_| never_drop(&db))?;
    Ok((db, data))
}

/// sled syncs when it is dropped, and panics where that fails. After a failure it is left as it is: the process leaves.
pub(super) fn never_drop(db: &sled::Db) {
    std::mem::forget(db.clone());
}

/// Reads back what was committed and sled may not have. Without one commit those after it do not add up: that is a store
/// to be set aside.
fn open_journal(path: &Path, db: &sled::Db, overlay: &mut Overlay) -> Result<Journal, OpenError> {
    let failed = |cause: io::Error| OpenError::Failed {
        path: path.to_owned(),
        step: "open its journal",
        cause: cause.to_string(),
    };
    let damaged = |damage: String| OpenError::Damaged { path: path.to_owned(), damage };
    let mark = match db.get(EPOCH).map_err(|cause| failed(cause.into()))? {
        Some(row) => codec::decode(EPOCH, &row).ok_or_else(|| damaged("its journal's epoch cannot be read".into()))?,
        None => Mark::default(),
    };
    // Every row there was written under a key.
    let tell = |overlay: &mut Overlay, key: &[u8], value| {
        if let Some(key) = Key::of(key) {
            overlay.commit_row(key, value);
        }
    };
    let found = journal::read(path, Some(mark), overlay, tell, Overlay::freeze).map_err(failed)?;
    match found.damage.first() {
        Some(damage) => Err(damaged(damage.clone())),
        None => Journal::resume(path, mark, &found).map_err(failed),
    }
}
