//! Opening a store: checks the folder, opens sled, replays the journal.
//!
//! A first start ends with the format stamp (rule 8 of the store): sled's files and the journal are made and synced
//! before it. A folder without a stamp was never used, unless its log contains rows: then it is damaged.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;

use tracing::warn;

use super::{Opened, Options, Store};
use crate::storage::directory::{
    self, drop_cached, lock, memory_filesystem, remove_unfinished_snapshots, sync_ancestors,
};
use crate::storage::error::OpenError;
use crate::storage::identity::{self, FORMAT, Stamp, new_stamp, read_stamp, write_stamp};
use crate::storage::journal::{self, CheckpointPos, EPOCH, Journal};
use crate::storage::key::Key;
use crate::storage::memtable::{Memtable, Row};
use crate::storage::preflight::{check, has_rows, quarantine_unfinished};
use crate::storage::sealing::Sealer;
use crate::storage::sled_db::{leak_db, open_sled};
use crate::storage::space::Folder;
use crate::storage::{compaction, names, open_guard, row, space};
use crate::time::WallTime;

impl Store {
    /// Opens the store in a folder, or makes it. The caller then reads and writes its first rows under [`guarded`] and
    /// calls [`Store::finish_open`].
    ///
    /// [`guarded`]: crate::storage::guarded
    ///
    /// # Errors
    /// If another process has it, it is in memory, of another format, sealed or damaged, or a file cannot be read or
    /// written.
    pub fn open(path: &Path, options: Options, now: WallTime) -> Result<Opened, OpenError> {
        let failed = |step| move |cause| OpenError::failed(path, step, cause);
        directory::make(path)?;
        if let Some(filesystem) = memory_filesystem(path).filter(|_| !options.volatile) {
            return Err(OpenError::Volatile { path: path.to_owned(), filesystem });
        }
        let lock = lock(path)?;
        space::free_open_bytes(path);
        if compaction::is_restored(path) {
            compaction::finish(path).map_err(failed("finish a restore"))?;
        }
        let stamp = read_stamp(path, &options.keys)?;
        if stamp.is_none() {
            if has_rows(path).map_err(failed("read its log"))? {
                return Err(OpenError::damaged(path, "its format stamp is missing"));
            }
            quarantine_unfinished(path, now).map_err(failed("set aside the files of an unfinished first start"))?;
        }
        compaction::finish(path).map_err(failed("finish a compaction"))?;
        if path.join(names::FAILED_SYNC).exists() {
            warn!(queue = %path.display(), "a write failed when the relay last ran; reading the disk itself, not the cache");
            drop_cached(path).map_err(failed("drop cached pages"))?;
        }
        remove_unfinished_snapshots(path).map_err(failed("remove a half-written snapshot"))?;
        if stamp.is_some() {
            check(path)?;
        }
        open_guard::mark_started(path);
        let folder = path.to_owned();
        open_guard::guarded(path, move || Store::open_rows(&folder, lock, stamp, options))
    }

    /// Opens sled on a folder that was checked.
    fn open_rows(path: &Path, lock: File, stamp: Option<Stamp>, options: Options) -> Result<Opened, OpenError> {
        let Options { keys, write_once, removal_weight, .. } = options;
        let failed = |step| move |cause| OpenError::failed(path, step, cause);
        // A first start makes the journal beside sled: both wait for the disk most of the time.
        let is_first = stamp.is_none();
        let ((db, log), journal) = thread::scope(|scope| {
            let make = || journal::create(path).and_then(|()| sync_ancestors(path));
            let made = is_first.then(|| thread::Builder::new().name("journal".into()).spawn_scoped(scope, make));
            let opened = open_sled(path).map_err(|cause| OpenError::of_sled(path, "open sled", cause));
            let made = made.map_or(Ok(()), |made| made?.join().map_err(|_| io::Error::other("it panicked"))?);
            opened.map(|opened| (opened, made))
        })?;
        if fs::read_dir(path.join(names::BLOBS)).is_ok_and(|mut blobs| blobs.next().is_some()) {
            warn!(queue = %path.display(), "there is a file in blobs/: it was not written by this relay and is not durable");
        }
        let stamp = match stamp {
            Some(stamp) => stamp,
            None => journal
                .and_then(|()| sync_new_log(path, &db, &log))
                .and_then(|()| new_stamp())
                .inspect_err(|_| leak_db(&db))
                .map_err(failed("write its format stamp"))?,
        };
        let sealer = Sealer::new(keys, stamp.nonce);
        let mut memtable = Memtable::new(write_once);
        let journal = open_journal(path, &db, &mut memtable).inspect_err(|_| leak_db(&db))?;
        if stamp.format != FORMAT || !stamp.stored_key.as_ref().is_some_and(|key| sealer.is_newest(key)) {
            let synced = if is_first { Ok(()) } else { sync_ancestors(path) };
            synced
                .and_then(|()| write_stamp(path, &stamp, &sealer))
                .inspect_err(|_| leak_db(&db))
                .map_err(failed("write its format stamp"))?;
        }
        match fs::remove_file(path.join(names::FAILED_SYNC)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove the mark")(error)),
            _ => {}
        }
        let mut store = Store {
            path: path.to_owned(),
            db: Some(db),
            log,
            _lock: lock,
            nonce: stamp.nonce,
            memtable,
            journal,
            stamp: Vec::new(),
            compactable: true,
            moved: 0,
            syncs: 0,
            check: None,
            log_bytes: 0,
            folder: Folder::default(),
            epoch_bytes: journal::BYTES_MAX,
            removal_weight,
        };
        store.measure_log();
        space::keep_ballast(path);
        let damaged = store.keep_stamp_copy().inspect_err(|_| store.db.iter().for_each(leak_db))?;
        // A checkpoint of the last run may have been cut short. The active layer drops a write-once row that is removed
        // within its epoch, which is right only if sled does not have the row yet: so begin the checkpoint again.
        if !store.is_checkpointing() && !store.journal.is_empty() {
            store.begin_checkpoint();
        }
        Ok(Opened { store, key: stamp.key, sealer, damaged })
    }

    /// Writes a copy of the stamp with the first commit: into the journal, and by a checkpoint into the log. Returns the
    /// copy that is there if it fails its checksum. The copy of another store shows that the folder has files of two stores: their rows do not belong
    /// together.
    fn keep_stamp_copy(&mut self) -> Result<Option<(Key, Vec<u8>)>, OpenError> {
        let (path, key) = (&self.path, identity::copy_key());
        let Some(text) = identity::text(path)? else { return Ok(None) };
        let of_sled = |cause: sled::Error| OpenError::of_sled(path, "read the copy of its format stamp", cause.into());
        let copy = match self.memtable.get(&key) {
            Some(Row::Bytes(copy)) => Some(copy.to_vec()),
            Some(_) => None,
            None => self.db().get(key).map_err(of_sled)?.map(|copy| copy.to_vec()),
        };
        let decoded = copy.as_ref().map(|copy| row::decode::<String>(&key, copy));
        if decoded
            .as_ref()
            .is_some_and(|copy| copy.as_ref().is_some_and(|copy| !identity::is_of_one_store(copy, &text)))
        {
            return Err(OpenError::damaged(path, "its format stamp, its log and its journal are not of one store"));
        }
        self.stamp = row::encode(&key, &*text);
        self.write_stamp_row();
        Ok(copy.filter(|_| decoded.is_some_and(|copy| copy.is_none())).map(|raw| (key, raw)))
    }

    /// Reports that sled has opened the log, and the first rows were read and written.
    pub fn finish_open(&self) {
        open_guard::mark_finished(&self.path);
    }
}

/// Syncs sled's own files, before the stamp of a first start is written.
fn sync_new_log(path: &Path, db: &sled::Db, log: &File) -> io::Result<()> {
    db.flush().map_err(io::Error::other)?;
    log.sync_all()?;
    File::open(path.join(names::CONF))?.sync_all()
}

/// Replays the commits that sled may not have. If one of them is lost, the rows of those after it do not agree with the
/// others: the store is damaged.
fn open_journal(path: &Path, db: &sled::Db, memtable: &mut Memtable) -> Result<Journal, OpenError> {
    let failed = |cause| OpenError::failed(path, "open its journal", cause);
    let damaged = |damage: String| OpenError::damaged(path, damage);
    let of_sled = |cause: sled::Error| OpenError::of_sled(path, "open its journal", cause.into());
    let position = match db.get(EPOCH).map_err(of_sled)? {
        Some(row) => row::decode(EPOCH, &row).ok_or_else(|| damaged("its journal's epoch cannot be read".into()))?,
        None => CheckpointPos::default(),
    };
    let visit = |memtable: &mut Memtable, key: &[u8], value: Option<&[u8]>, extent| {
        // Every row there was written under a key.
        if let Some(key) = Key::of(key) {
            memtable.replay(key, value, extent);
        }
    };
    let replay = journal::read(path, Some(position), memtable, visit, Memtable::freeze).map_err(failed)?;
    match replay.damage.first() {
        Some(damage) => Err(damaged(damage.clone())),
        None => Journal::resume(path, position, &replay).map_err(failed),
    }
}
