//! Opening sled.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::directory::{close_to_others, sync_directory};
use super::names;

/// sled's page cache. The rows of one commit are scattered: with 1 MiB, sled read four page fragments per
/// commit back from the file, and the relay accepted a third fewer per second; with 16 MiB no more than with 8 or 6.
const CACHE_BYTES: u64 = 6 << 20;
/// How often sled's lock is tried for, 10 ms apart.
const LOCK_TRIES: u32 = 300;

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
    let data = File::open(path.join(names::LOG)).and_then(|data| {
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
