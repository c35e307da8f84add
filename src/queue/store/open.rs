//! Opening: what stands in the folder is looked at first, then sled has its log, then the journal is read back.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use tracing::warn;
use zeroize::Zeroizing;

use super::{Options, Store};
use crate::queue::codec::Key;
use crate::queue::folder::{
    self, close_to_others, drop_cached, lock, look_through, make_room, memory_filesystem, remove_half_snapshots,
    set_aside_unstamped, sync_directory, was_used,
};
use crate::queue::journal::{self, EPOCH, Journal, Mark};
use crate::queue::overlay::Overlay;
use crate::queue::sealing::Sealer;
use crate::queue::stamp::{self, Stamp, first_stamp, read_stamp, write_stamp};
use crate::queue::{OpenError, compaction, opening, row};
use crate::time::Timestamp;

/// sled's page cache. Entries, lines and tokens lie scattered: with 1 MiB, four fragments of pages a message were read
/// back from the file, and a third fewer messages a second were accepted; 16 MiB took no more than 8 or 6.
const CACHE_BYTES: u64 = 6 << 20;
/// How often sled's lock is tried for, 10 ms apart.
const LOCK_TRIES: u32 = 300;

impl Store {
    /// Opens the folder, or makes it; with what hashes and seals by the keys of this store.
    pub fn open(
        path: &Path,
        options: Options,
        now: Timestamp,
    ) -> Result<(Store, Zeroizing<Vec<u8>>, Sealer), OpenError> {
        let failed =
            |step| move |cause: io::Error| OpenError::Failed { path: path.to_owned(), step, cause: cause.to_string() };
        folder::make(path)?;
        if let Some(filesystem) = memory_filesystem(path).filter(|_| !options.volatile) {
            return Err(OpenError::Volatile { path: path.to_owned(), filesystem });
        }
        let lock = lock(path)?;
        make_room(path);
        let stamp = read_stamp(path, &options.keys)?;
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
        opening::within(path, patience, move || Store::open_rows(&folder, lock, stamp, options))
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
        let mut overlay = Overlay::new(write_once);
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
            stamp: Vec::new(),
            compactable: true,
            removal_weight,
        };
        store.keep_ballast();
        store.keep_stamp().inspect_err(|_| store.db.iter().for_each(never_drop))?;
        // The last run may have been cut short in one: from now on the overlay alone tells what sled does not have.
        store.checkpoint().map_err(|cause| failed("finish a checkpoint")(io::Error::other(cause)))?;
        Ok((store, stamp.key, sealer))
    }

    /// Has the log keep a copy of the stamp; it goes with the first commit. One of another store says that files of two
    /// stores lie here: their rows do not belong together.
    fn keep_stamp(&mut self) -> Result<(), OpenError> {
        let Some(text) = stamp::text(&self.path)? else { return Ok(()) };
        let copy: Option<String> = self
            .read(&stamp::copy_key(), |row| row::decode(&stamp::copy_key(), row))
            .map_err(|cause| OpenError::Failed {
                path: self.path.clone(),
                step: "read the copy of its format stamp",
                cause: cause.to_string(),
            })?
            .flatten();
        if copy.is_some_and(|copy| !stamp::is_of_one_store(&copy, &text)) {
            let damage = "its format stamp, its log and its journal are not of one store".into();
            return Err(OpenError::Damaged { path: self.path.clone(), damage });
        }
        self.stamp = row::encode(&stamp::copy_key(), &*text);
        self.write_stamp_row();
        Ok(())
    }

    /// sled has opened the log, and the first rows were read and written.
    pub fn note_opened(&self) {
        opening::came_back(&self.path);
    }
}

/// Opens sled as the rules have it.
pub fn open_sled(path: &Path) -> io::Result<(sled::Db, File)> {
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
pub fn never_drop(db: &sled::Db) {
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
        Some(row) => row::decode(EPOCH, &row).ok_or_else(|| damaged("its journal's epoch cannot be read".into()))?,
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
