//! Access to a store's files for the tests of the modules above.

use std::collections::BTreeMap;
use std::path::Path;

pub use super::compaction::finish as finish_compaction;
pub use super::names::{FAILED_READ, OPENING};
use super::sled_db::open_sled;
pub use super::sled_log::find_damage;

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
