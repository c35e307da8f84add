//! Opening: what stands in the folder is looked at first, then sled has its log, then the journal is read back.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use tracing::warn;
use zeroize::Zeroizing;

use super::{Options, Store};
use crate::storage::directory::{self, drop_cached, lock, memory_filesystem, remove_half_snapshots};
use crate::storage::error::OpenError;
use crate::storage::identity::{self, Stamp, new_stamp, read_stamp, write_stamp};
use crate::storage::journal::{self, EPOCH, Journal, Mark};
use crate::storage::key::Key;
use crate::storage::memtable::Memtable;
use crate::storage::preflight::{look_through, set_aside_unstamped, was_used};
use crate::storage::sealing::Sealer;
use crate::storage::sled_db::{never_drop, open_sled};
use crate::storage::{compaction, names, open_guard, row, space};
use crate::time::Timestamp;

impl Store {
    /// Opens the folder, or makes it; with what hashes and seals by the keys of this store.
    pub fn open(
        path: &Path,
        options: Options,
        now: Timestamp,
    ) -> Result<(Store, Zeroizing<Vec<u8>>, Sealer), OpenError> {
        let failed =
            |step| move |cause: io::Error| OpenError::Failed { path: path.to_owned(), step, cause: cause.to_string() };
        directory::make(path)?;
        if let Some(filesystem) = memory_filesystem(path).filter(|_| !options.volatile) {
            return Err(OpenError::Volatile { path: path.to_owned(), filesystem });
        }
        let lock = lock(path)?;
        space::make_room(path);
        let stamp = read_stamp(path, &options.keys)?;
        if stamp.is_none() {
            if was_used(path).map_err(failed("read its log"))? {
                return Err(OpenError::Damaged { path: path.to_owned(), damage: "its format stamp is gone".into() });
            }
            set_aside_unstamped(path, now).map_err(failed("set aside what a first start left unfinished"))?;
        }
        compaction::finish(path).map_err(failed("finish a compaction"))?;
        if path.join(names::FAILED_SYNC).exists() {
            warn!(queue = %path.display(), "a write failed when the relay last ran; reading the disk itself, not the cache");
            drop_cached(path).map_err(failed("drop cached pages"))?;
        }
        remove_half_snapshots(path).map_err(failed("remove a half-written snapshot"))?;
        if stamp.is_some() {
            look_through(path)?;
        }
        open_guard::note(path);
        let folder = path.to_owned();
        open_guard::guarded(path, move || Store::open_rows(&folder, lock, stamp, options))
    }

    /// From here on sled has the log.
    fn open_rows(
        path: &Path,
        lock: File,
        stamp: Option<Stamp>,
        options: Options,
    ) -> Result<(Store, Zeroizing<Vec<u8>>, Sealer), OpenError> {
        let Options { keys, write_once, removal_weight, .. } = options;
        let failed =
            |step| move |cause: io::Error| OpenError::Failed { path: path.to_owned(), step, cause: cause.to_string() };
        let (db, data) = open_sled(path).map_err(|cause| match cause.kind() {
            // sled's words for damage, and for a log that ends too early.
            ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                OpenError::Damaged { path: path.to_owned(), damage: cause.to_string() }
            }
            _ => failed("open sled")(cause),
        })?;
        if fs::read_dir(path.join(names::BLOBS)).is_ok_and(|mut blobs| blobs.next().is_some()) {
            warn!(queue = %path.display(), "there is a file in blobs/: it was not written by this relay and is not durable");
        }
        let stamp = match stamp {
            Some(stamp) => stamp,
            None => sync_new_log(path, &db, &data)
                .and_then(|()| new_stamp())
                .and_then(|stamp| journal::create(path).map(|()| stamp))
                .inspect_err(|_| never_drop(&db))
                .map_err(failed("write its format stamp"))?,
        };
        let sealer = Sealer::new(keys, stamp.nonce);
        let mut memtable = Memtable::new(write_once);
        let journal = open_journal(path, &db, &mut memtable).inspect_err(|_| never_drop(&db))?;
        if !stamp.kept.as_ref().is_some_and(|kept| sealer.is_newest(kept)) {
            write_stamp(path, &stamp, &sealer)
                .inspect_err(|_| never_drop(&db))
                .map_err(failed("write its format stamp"))?;
        }
        match fs::remove_file(path.join(names::FAILED_SYNC)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove the mark")(error)),
            _ => {}
        }
        let mut store = Store {
            path: path.to_owned(),
            db: Some(db),
            data,
            _lock: lock,
            nonce: stamp.nonce,
            memtable,
            journal,
            stamp: Vec::new(),
            compactable: true,
            other_bytes: 0,
            quarantined: false,
            removal_weight,
        };
        space::keep_ballast(path);
        store.keep_stamp().inspect_err(|_| store.db.iter().for_each(never_drop))?;
        // The last run may have been cut short in one: from now on the memtable alone tells what sled does not have.
        store.checkpoint().map_err(|cause| failed("finish a checkpoint")(io::Error::other(cause)))?;
        Ok((store, stamp.key, sealer))
    }

    /// Has the log keep a copy of the stamp; it goes with the first commit. One of another store says that files of two
    /// stores lie here: their rows do not belong together.
    fn keep_stamp(&mut self) -> Result<(), OpenError> {
        let Some(text) = identity::text(&self.path)? else { return Ok(()) };
        let copy: Option<String> = self
            .read(&identity::copy_key(), |row| row::decode(&identity::copy_key(), row))
            .map_err(|cause| OpenError::Failed {
                path: self.path.clone(),
                step: "read the copy of its format stamp",
                cause: cause.to_string(),
            })?
            .flatten();
        if copy.is_some_and(|copy| !identity::is_of_one_store(&copy, &text)) {
            let damage = "its format stamp, its log and its journal are not of one store".into();
            return Err(OpenError::Damaged { path: self.path.clone(), damage });
        }
        self.stamp = row::encode(&identity::copy_key(), &*text);
        self.write_stamp_row();
        Ok(())
    }

    /// sled has opened the log, and the first rows were read and written.
    pub fn finish_open(&self) {
        open_guard::came_back(&self.path);
    }
}

/// Syncs sled's own files: the stamp of a first start is written after them.
fn sync_new_log(path: &Path, db: &sled::Db, data: &File) -> io::Result<()> {
    db.flush().map_err(io::Error::other)?;
    data.sync_all()?;
    for name in [names::CONF, names::LOG] {
        File::open(path.join(name))?.sync_all()?;
    }
    Ok(())
}

/// Reads back what was committed and sled may not have. Without one commit those after it do not add up: that is a store
/// to be set aside.
fn open_journal(path: &Path, db: &sled::Db, memtable: &mut Memtable) -> Result<Journal, OpenError> {
    let failed = |cause: io::Error| OpenError::Failed {
        path: path.to_owned(),
        step: "open its journal",
        cause: cause.to_string(),
    };
    let damaged = |damage: String| OpenError::Damaged { path: path.to_owned(), damage };
    let mark = match db.get(EPOCH).map_err(|cause| failed(cause.into()))? {
        Some(row) => row::decode(EPOCH, &row).ok_or_else(|| damaged("its journal's epoch cannot be read".into()))?,
        None => Mark::default(),
    };
    // Every row there was written under a key.
    let tell = |memtable: &mut Memtable, key: &[u8], value| {
        if let Some(key) = Key::of(key) {
            memtable.commit_row(key, value);
        }
    };
    let found = journal::read(path, Some(mark), memtable, tell, Memtable::freeze).map_err(failed)?;
    match found.damage.first() {
        Some(damage) => Err(damaged(damage.clone())),
        None => Journal::resume(path, mark, &found).map_err(failed),
    }
}
