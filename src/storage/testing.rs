//! Access to a store's files for the tests of the modules above.

use std::collections::BTreeMap;
use std::path::Path;

pub use super::compaction::finish as finish_compaction;
use super::key::Key;
pub use super::names::{FAILED_READ, OPENING};
use super::sled_db::open_sled;
pub use super::sled_log::find_damage;
use super::store::{Opened, Options, Store};
use crate::time::WallTime;

/// Opens a store; rows whose keys begin with `o` are written once.
pub fn open(path: &Path) -> Opened {
    let options = Options { volatile: true, keys: Vec::new(), write_once: b"o", removal_weight: |_| 0 };
    let opened = Store::open(path, options, WallTime(0)).unwrap();
    opened.store.finish_open();
    opened
}

/// A key of these characters.
pub fn key(text: &str) -> Key {
    Key::of(text.as_bytes()).unwrap()
}

/// The row under a key.
pub fn row(store: &Store, text: &str) -> Option<Vec<u8>> {
    store.read(&key(text), <[u8]>::to_vec).unwrap()
}

/// The rows that sled has.
pub fn sled_rows(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (db, _) = open_sled(path).unwrap();
    db.iter().map(Result::unwrap).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// The number of rows that sled has under a prefix.
pub fn count(path: &Path, prefix: u8) -> usize {
    sled_rows(path).keys().filter(|key| key.starts_with(&[prefix])).count()
}

/// Writes rows into sled, past the journal.
pub fn write_sled_rows(path: &Path, rows: &[(Vec<u8>, Vec<u8>)]) {
    let (db, _) = open_sled(path).unwrap();
    for (key, value) in rows {
        db.insert(key, value.as_slice()).unwrap();
    }
    db.flush().unwrap();
}

/// Makes sled's files, as a first start does.
pub fn create_log(path: &Path) {
    drop(open_sled(path).unwrap());
}

/// Makes the copy of a compaction, up to the instant of change.
pub fn complete_compaction(path: &Path) {
    let (db, _) = open_sled(path).unwrap();
    super::compaction::copy(&db, path).unwrap();
    super::compaction::complete(path).unwrap();
}
