//! sled, made durable, behind a journal: one folder, one tree, one owner.
//!
//! Acts read and write through [`Store`]; what they write gathers in an overlay that they read back, and reaches the
//! disk in [`Store::commit`], and sled in [`Store::checkpoint`], when the journal is full:
//!
//! ```text
//! put, remove ─▶ overlay ─▶ journal ─▶ fdatasync(journal) = the instant of commit
//!                   └─▶ one Batch ─▶ apply_batch ─▶ flush ─▶ fdatasync(db), and again; with the last, the next epoch
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
//!
//! The folder:
//!
//! | file | what it is |
//! | --- | --- |
//! | `db`, `conf`, `snap.*`, `blobs` | sled's; `blobs` stays empty, because no row is long enough to go there |
//! | `format` | the format stamp and the key of the hashes, sealed where there is a key file; written last at the first start: without it nothing was ever acknowledged |
//! | `journal` | what was committed and is not in sled yet |
//! | `compacted` | a copy that is to take the place of `db` |
//! | `lock` | held by the relay that runs on the folder |
//! | `ballast` | space set aside; given up on a full disk, so that outcomes can still be recorded |
//! | `failed-sync` | the mark of a write that failed |
//! | `opening` | a byte for each start in a row that ended while sled opened the log |
//! | `failed-read` | the mark of a read that met damage: the next start sets the store aside |
//! | `damaged-*` | damaged stores that were set aside, for `doctor` and for people; removed by them |

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{error, warn};
use zeroize::Zeroizing;

use super::carry::{self, ASIDE};
use super::codec::{self, Hasher, Key, Secret};
use super::journal::{self, EPOCH, Journal};
use super::overlay::Overlay;
use super::sealing::{Binding, Sealer, SealingKey};
use super::{OpenError, StoreFailed};
use super::{compaction, log};
use crate::time::Timestamp;

/// sled's page cache. Entries, lines and tokens lie scattered: with 1 MiB, four fragments of pages a message were read
/// back from the file, and a third fewer messages a second were accepted; 16 MiB took no more than 8 or 6.
const CACHE_BYTES: u64 = 6 << 20;
/// Bytes of the key of the hashes.
const KEY_BYTES: usize = 32;
/// What stands in sled's own file of parameters, from the first line on.
const SLED_CONF: &[u8] = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\n";
/// The mark of starts that have not come back from sled, a byte for each.
pub const OPENING: &str = "opening";
/// So many of them are not chance: kills seldom meet those milliseconds.
const OPENINGS_MAX: u64 = 4;
/// The mark of a log that could not be read.
pub const MARK: &str = "failed-read";
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
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("close the folder to others"))?;
        if let Some(filesystem) = memory_filesystem(path).filter(|_| !volatile) {
            return Err(OpenError::Volatile { path: path.to_owned(), filesystem });
        }
        let lock = lock(path)?;
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
        note_opening(path);
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
                .inspect_err(|_| never_drop(&db))
                .map_err(failed("write its format stamp"))?,
        };
        let sealer = Sealer::new(keys, stamp.nonce);
        let mut overlay = Overlay::default();
        let journal = open_journal(path, &db, &mut overlay).inspect_err(|_| never_drop(&db))?;
        if stamp.format < codec::FORMAT || !stamp.kept.as_ref().is_some_and(|kept| sealer.is_newest(kept)) {
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
            corrupt: 0,
            compactable: true,
        };
        store.keep_ballast();
        // The last run may have been cut short in one: from now on the overlay alone tells what sled does not have.
        store.checkpoint().map_err(|cause| failed("finish a checkpoint")(io::Error::other(cause)))?;
        Ok((store, Hasher::new(&stamp.key), sealer))
    }

    /// sled has opened the log, and the first rows were read and written.
    pub fn note_opened(&self) {
        let _ = fs::remove_file(self.path.join(OPENING));
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
        let found = self.read(key, |value| codec::decode(&key.0, value))?;
        if let Some(None) = found {
            self.set_copy_aside(key)?;
            self.overlay.write(key.0.clone(), None);
        }
        Ok(found.flatten())
    }

    /// What is to be told of the raw bytes under a key; they are not checked.
    pub fn read<T>(&self, key: &Key, tell: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, StoreFailed> {
        Ok(match self.overlay.get(&key.0) {
            Some(value) => value.map(tell),
            None => self.db().get(&key.0).map_err(|cause| self.unreadable(&cause))?.as_deref().map(tell),
        })
    }

    /// Adds to the end of a row that this commit began.
    pub fn extend(&mut self, key: Key, bytes: &[u8]) {
        self.overlay.extend(key.0, bytes);
    }

    /// Writes a row.
    pub fn put<T: Serialize>(&mut self, key: Key, row: &T) {
        let value = codec::encode(&key.0, row);
        self.overlay.write(key.0, Some(value));
    }

    /// Writes a row that has its sum already.
    pub fn put_raw(&mut self, key: Key, value: Vec<u8>) {
        self.overlay.write(key.0, Some(value));
    }

    /// Removes a row.
    pub fn remove(&mut self, key: Key) {
        self.overlay.write(key.0, None);
    }

    /// The first key at or after `from` that begins with `prefix`.
    pub fn next_key(&self, prefix: &[u8], from: Bound<&[u8]>) -> Result<Option<Vec<u8>>, StoreFailed> {
        let range = (from.map(<[u8]>::to_vec), Bound::Excluded(prefix_end(prefix)));
        let own = self.overlay.first(&range);
        for row in self.db().range(range.clone()) {
            let (key, _) = row.map_err(|cause| self.unreadable(&cause))?;
            if own.is_some_and(|own| own.as_slice() <= &*key) {
                break;
            }
            if self.overlay.get(&key).is_none() {
                return Ok(Some(key.to_vec()));
            }
        }
        Ok(own.cloned())
    }

    /// The last key before or at `to` that begins with `prefix`.
    pub fn last_key(&self, prefix: &[u8], to: Bound<&[u8]>) -> Result<Option<Vec<u8>>, StoreFailed> {
        let range = (Bound::Included(prefix.to_vec()), to.map(<[u8]>::to_vec));
        let own = self.overlay.last(&range);
        for row in self.db().range(range.clone()).rev() {
            let (key, _) = row.map_err(|cause| self.unreadable(&cause))?;
            if own.is_some_and(|own| own.as_slice() >= &*key) {
                break;
            }
            if self.overlay.get(&key).is_none() {
                return Ok(Some(key.to_vec()));
            }
        }
        Ok(own.cloned())
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

    /// Whether so much was committed that sled should have it.
    pub fn checkpoint_is_due(&self) -> bool {
        self.journal.is_full()
    }

    /// Gives sled what was committed. A crash in between loses nothing: the journal has all of it until the last batch,
    /// which names the next epoch, is durable.
    pub fn checkpoint(&mut self) -> Result<(), StoreFailed> {
        if self.journal.is_empty() {
            return Ok(());
        }
        if self.flush()? > 0 {
            self.sync()?;
        }
        let (mut batch, mut bytes) = (sled::Batch::default(), 0);
        for (key, value) in self.overlay.take_committed() {
            // A piece of contents that goes weighs what it held: sled reads and rewrites the leaf in which it stood.
            let gone = if key.starts_with(b"p") { codec::PIECE } else { 0 };
            let more = key.len() + value.as_ref().map_or(gone, Vec::len);
            if bytes + more > BATCH_BYTES {
                self.apply(std::mem::take(&mut batch))?;
                bytes = 0;
            }
            bytes += more;
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(EPOCH, codec::encode(EPOCH, &self.journal.next_epoch()));
        self.apply(batch)?;
        self.journal.begin_anew();
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
        let volume = rustix::fs::statvfs(&self.path).ok()?;
        Some(volume.f_bavail.saturating_mul(volume.f_frsize))
    }

    /// Sets the ballast aside, if the volume has the space.
    pub fn keep_ballast(&self) {
        let path = self.path.join("ballast");
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
        fs::remove_file(self.path.join("ballast")).is_ok()
    }

    /// Keeps a copy of a damaged row where nothing reads it, and counts it.
    pub fn set_copy_aside(&mut self, key: &Key) -> Result<(), StoreFailed> {
        self.corrupt += 1;
        let raw = self.read(key, <[u8]>::to_vec)?;
        let row = char::from(key.0[0]);
        error!(%row, "a row of the queue fails its checksum; it is set aside and the rest goes on");
        self.overlay.write([b"k", key.0.as_slice()].concat(), raw);
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

/// Reads back what was committed since the last checkpoint. Without one commit those after it do not add up: that is a
/// store to be set aside.
fn open_journal(path: &Path, db: &sled::Db, overlay: &mut Overlay) -> Result<Journal, OpenError> {
    let failed = |cause: io::Error| OpenError::Failed {
        path: path.to_owned(),
        step: "open its journal",
        cause: cause.to_string(),
    };
    let damaged = |damage: String| OpenError::Damaged { path: path.to_owned(), damage };
    let epoch = match db.get(EPOCH).map_err(|cause| failed(cause.into()))? {
        Some(row) => codec::decode(EPOCH, &row).ok_or_else(|| damaged("its journal's epoch cannot be read".into()))?,
        None => 0,
    };
    if journal::is_gone(path, epoch).map_err(failed)? {
        return Err(damaged("its journal is gone".into()));
    }
    match Journal::open(path, epoch, |key, value| overlay.commit_row(key, value)).map_err(failed)? {
        (journal, 0) => sync_directory(path).map_err(failed).map(|()| journal),
        (_, lost) => Err(damaged(format!("commits in its journal cannot be read: {lost}"))),
    }
}

struct Stamp {
    format: u32,
    nonce: u32,
    /// The key of the hashes.
    key: Zeroizing<Vec<u8>>,
    /// As the file has it; none where there is no file yet.
    kept: Option<Secret>,
}

/// `connect-relay queue, format 2`, the nonce, the key and the sum of these, a line each.
fn read_stamp(path: &Path, keys: &[SealingKey]) -> Result<Option<Stamp>, OpenError> {
    let damaged = || OpenError::Damaged { path: path.to_owned(), damage: "its format stamp cannot be read".into() };
    let mut text = Zeroizing::new(String::new());
    match File::open(path.join("format")).and_then(|mut file| file.read_to_string(&mut text)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged()),
        result => result.map_err(|error| OpenError::Failed {
            path: path.to_owned(),
            step: "read its format stamp",
            cause: error.to_string(),
        })?,
    };
    let mut lines = text.lines();
    let found: Option<u32> =
        lines.next().and_then(|line| line.strip_prefix("connect-relay queue, format ")?.parse().ok());
    if let Some(found) = found.filter(|found| *found > codec::FORMAT) {
        return Err(OpenError::NewerFormat { path: path.to_owned(), found, known: codec::FORMAT });
    }
    let nonce = lines.next().and_then(nonce);
    let kept = lines.next().and_then(|line| from_hex(line.strip_prefix("key ")?)).map(Secret::new);
    let (Some(format), Some(nonce), Some(kept)) = (found, nonce, kept) else { return Err(damaged()) };
    if text.rsplit_once("sum ").is_some_and(|(text, sum)| sum.trim_end() != stamp_sum(text)) {
        return Err(damaged());
    }
    let key = Sealer::new(keys.to_vec(), nonce).open(Binding::StoreKey, &kept);
    match key {
        Some(key) if key.len() == KEY_BYTES => Ok(Some(Stamp { format, nonce, key, kept: Some(kept) })),
        Some(_) => Err(damaged()),
        None => Err(OpenError::Sealed { path: path.to_owned(), keys: keys.len() }),
    }
}

/// The nonce of a store and what opens its secrets; no sealer where none of the keys does.
pub(super) fn stamp_of(path: &Path, keys: &[SealingKey]) -> Result<Option<(u32, Option<Sealer>)>, OpenError> {
    match read_stamp(path, keys) {
        Ok(stamp) => Ok(stamp.map(|stamp| (stamp.nonce, Some(Sealer::new(keys.to_vec(), stamp.nonce))))),
        Err(OpenError::Sealed { .. }) => {
            let text = fs::read_to_string(path.join("format")).unwrap_or_default();
            Ok(text.lines().nth(1).and_then(nonce).map(|nonce| (nonce, None)))
        }
        Err(error) => Err(error),
    }
}

fn nonce(line: &str) -> Option<u32> {
    u32::from_str_radix(line.strip_prefix("store ")?, 16).ok()
}

/// What in a store's folder is not as a relay leaves it, beside the log.
pub(super) fn odd_files(path: &Path) -> Vec<String> {
    let blobs = fs::read_dir(path.join("blobs")).map_or(0, Iterator::count);
    let blobs = (blobs > 0).then(|| format!("{blobs} files in blobs/, which no relay writes"));
    blobs.into_iter().chain(odd_conf(path)).collect()
}

/// What is wrong with sled's file of parameters: it opens with others, or panics.
fn odd_conf(path: &Path) -> Option<String> {
    match fs::read(path.join("conf")) {
        Ok(conf) if conf.starts_with(SLED_CONF) => None,
        Ok(_) => Some("conf is not as sled writes it".into()),
        Err(cause) => Some(format!("conf cannot be read: {cause}")),
    }
}

fn stamp_sum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

/// Takes a stamp along into another folder; one that is damaged or gone is made anew there.
pub(super) fn copy_stamp(from: &Path, to: &Path) -> io::Result<()> {
    let readable = !matches!(read_stamp(from, &[]), Ok(None) | Err(OpenError::Damaged { .. }));
    if readable {
        fs::copy(from.join("format"), to.join("format"))?;
        File::open(to.join("format"))?.sync_all()?;
    }
    Ok(())
}

/// Takes the folder's lock; it is let go with the file.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let lock =
        private(OpenOptions::new().create(true).truncate(false).write(true), &path.join("lock")).map_err(|cause| {
            OpenError::Failed { path: path.to_owned(), step: "open its lock", cause: cause.to_string() }
        })?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| OpenError::Locked { path: path.to_owned() })?;
    Ok(lock)
}

/// Whether a relay has written rows to the log of a folder that has no stamp (any more).
fn was_used(path: &Path) -> io::Result<bool> {
    Ok(!carry::open_log(path, |_, _| ())?.is_empty())
}

/// Marks that sled is about to open the log: a panic of sled's ends the process, and a start that hangs is killed.
fn note_opening(path: &Path) {
    let mark = private(OpenOptions::new().create(true).append(true), &path.join(OPENING));
    // Where nothing can be written, sled will say so.
    let _ = mark.and_then(|mut mark| mark.write_all(b"."));
}

/// Looks for damage, before sled sees it: sled would cut the log there, and zero what comes after.
fn look_through(path: &Path) -> Result<(), OpenError> {
    let damaged = |damage| Err(OpenError::Damaged { path: path.to_owned(), damage });
    if let Ok(cause) = fs::read_to_string(path.join(MARK)) {
        return damaged(format!("when the relay last ran, it could not be read: {cause}"));
    }
    if fs::metadata(path.join(OPENING)).is_ok_and(|mark| mark.len() >= OPENINGS_MAX) {
        return damaged(format!("{OPENINGS_MAX} starts in a row ended while it was being opened"));
    }
    if let Some(odd) = odd_conf(path) {
        return damaged(odd);
    }
    match log::sweep(path) {
        Ok(damage) => damage.into_iter().next().map_or(Ok(()), damaged),
        Err(error) if error.kind() == ErrorKind::NotFound => damaged("its log is gone".into()),
        Err(error) => Err(OpenError::Failed { path: path.to_owned(), step: "read its log", cause: error.to_string() }),
    }
}

/// The first start: sled's own files first, for until the stamp is durable under its name, nothing was acknowledged.
fn first_stamp(path: &Path, db: &sled::Db, data: &File) -> io::Result<Stamp> {
    let mut random = [0; 4 + KEY_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    let nonce = u32::from_be_bytes([random[0], random[1], random[2], random[3]]);
    db.flush().map_err(io::Error::other)?;
    data.sync_all()?;
    for name in ["conf", "db"] {
        File::open(path.join(name))?.sync_all()?;
    }
    Ok(Stamp { format: codec::FORMAT, nonce, key: Zeroizing::new(random[4..].to_vec()), kept: None })
}

/// Writes the stamp, sealed by the first key.
fn write_stamp(path: &Path, stamp: &Stamp, sealer: &Sealer) -> io::Result<()> {
    let (format, nonce) = (codec::FORMAT, stamp.nonce);
    let key = to_hex(sealer.seal(Binding::StoreKey, &stamp.key).bytes());
    let text = format!("connect-relay queue, format {format}\nstore {nonce:08x}\nkey {key}\n");
    let text = format!("{text}sum {}\n", stamp_sum(&text));
    let unnamed = path.join("format.new");
    let mut file = private(OpenOptions::new().create(true).truncate(true).write(true), &unnamed)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    sync_ancestors(path)?;
    fs::rename(&unnamed, path.join("format"))?;
    sync_directory(path)
}

/// Without a stamp nothing was acknowledged, but nothing is deleted either.
fn set_aside_unstamped(path: &Path, now: Timestamp) -> io::Result<()> {
    let aside = path.join(format!("unfinished-{}", now.0));
    for file in fs::read_dir(path)? {
        let name = file?.file_name();
        let text = name.to_string_lossy();
        if !(matches!(&*text, "db" | "conf" | "blobs" | journal::NAME | "format.new") || text.starts_with("snap.")) {
            continue;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        fs::rename(path.join(&name), aside.join(&name))?;
    }
    sync_directory(path)
}

fn remove_half_snapshots(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?.path();
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

fn drop_cached(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?;
        if file.file_type()?.is_file() {
            rustix::fs::fadvise(File::open(file.path())?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

fn close_to_others(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?;
        let mode = if file.file_type()?.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.mode(0o600).open(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Any of the folders above may be as new as the queue's: a power cut must not take their names away. Those that cannot
/// be read or are another volume's were not made for it.
fn sync_ancestors(path: &Path) -> io::Result<()> {
    let device = fs::metadata(path)?.dev();
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let Ok(folder) = File::open(above) else { break };
        if folder.metadata()?.dev() != device {
            break;
        }
        folder.sync_all()?;
    }
    Ok(())
}

/// The name of a file system that lives in memory.
fn memory_filesystem(path: &Path) -> Option<&'static str> {
    match rustix::fs::statfs(path).ok()?.f_type {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    }
}

fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
