//! The rows of a store that no relay runs on, read without sled: those of its log, and what its journal adds.
//!
//! Nothing is written. Damage is a list of sentences beside the rows that verify, not an error.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::OpenError;
use super::identity::{self, Known};
use super::journal::{self, CheckpointPos};
use super::row;
use super::sealing::SealingKey;
use super::sled_log::{Log, Place};

/// The rows of a store as its files have them.
pub struct Image {
    log: Log,
    rows: BTreeMap<Vec<u8>, Row>,
    /// Damage that a crash cannot explain, in words.
    pub damage: Vec<String>,
}

/// The place of a row's bytes.
enum Row {
    Log(Place),
    Journal(Vec<u8>),
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("rows", &self.rows.len()).field("damage", &self.damage).finish_non_exhaustive()
    }
}

impl Image {
    /// Reads the log and the journal in a folder; a log that is gone is empty and damaged. `step` gets the progress:
    /// (segments read, all segments).
    pub fn read(folder: &Path, step: impl FnMut(u64, u64)) -> io::Result<Image> {
        let mut log = match Log::read(folder, step) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
                Log::empty("the log is missing".into())
            }
            log => log?,
        };
        let rows = std::mem::take(&mut log.rows).into_iter().map(|(key, place)| (key, Row::Log(place))).collect();
        let damage = std::mem::take(&mut log.damage);
        let mut image = Image { log, rows, damage };
        image.apply_journal(folder)?;
        Ok(image)
    }

    /// Applies the commits since the log's last checkpoint.
    fn apply_journal(&mut self, folder: &Path) -> io::Result<()> {
        let position = self.raw(journal::EPOCH)?.and_then(|row| row::decode(journal::EPOCH, &row));
        if self.is_foreign(folder, position)? {
            self.damage.push("the journal is another store's".into());
            return Ok(());
        }
        let apply = |image: &mut Image, key: &[u8], value: Option<&[u8]>, _| {
            match value {
                Some(value) => image.rows.insert(key.to_vec(), Row::Journal(value.to_vec())),
                None => image.rows.remove(key),
            };
        };
        let found = journal::read(folder, position, self, apply, |_| ())?;
        self.damage.extend(found.damage);
        Ok(())
    }

    /// Returns true if the journal begins with the stamp of another store than this log's.
    fn is_foreign(&self, folder: &Path, position: Option<CheckpointPos>) -> io::Result<bool> {
        let Some(own) = self.get::<String>(&identity::copy_key())? else { return Ok(false) };
        let mut foreign = false;
        let look = |foreign: &mut bool, key: &[u8], value: Option<&[u8]>, _| {
            let copy =
                value.filter(|_| *key == *identity::copy_key()).and_then(|value| row::decode::<String>(key, value));
            *foreign |= copy.is_some_and(|copy| !identity::is_of_one_store(&own, &copy));
        };
        journal::read(folder, position, &mut foreign, look, |_| ())?;
        Ok(foreign)
    }

    /// The identity of the store whose image this is, from the stamp in its folder or the log's copy of it, and what is
    /// wrong with the stamp.
    ///
    /// # Errors
    /// If the stamp is of another format or cannot be read.
    pub fn identity(&self, folder: &Path, keys: &[SealingKey]) -> Result<(Option<Known>, Option<String>), OpenError> {
        identity::known(folder, self.stamp_copy(), keys)
    }

    /// The log's copy of the format stamp.
    pub fn stamp_copy(&self) -> Option<String> {
        self.get(&identity::copy_key()).ok().flatten()
    }

    /// The keys that begin with this byte, in order.
    pub fn keys(&self, prefix: u8) -> impl Iterator<Item = &[u8]> {
        let range = (Bound::Included(vec![prefix]), Bound::Excluded(vec![prefix + 1]));
        self.rows.range(range).map(|(key, _)| key.as_slice())
    }

    /// Returns true if there is no row at all.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The first bytes of all keys, with the number of rows of each.
    pub fn counts(&self) -> BTreeMap<u8, u64> {
        let mut counts = BTreeMap::new();
        self.rows.keys().filter_map(|key| key.first()).for_each(|first| *counts.entry(*first).or_default() += 1);
        counts
    }

    /// The bytes under a key; their checksum is not verified.
    pub fn raw(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self.rows.get(key) {
            Some(Row::Log(place)) => self.log.bytes(*place).map(Some),
            Some(Row::Journal(value)) => Ok(Some(value.clone())),
            None => Ok(None),
        }
    }

    /// The row under a key. `None` if there is none or its checksum fails.
    pub fn get<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        Ok(self.raw(key)?.and_then(|value| row::decode(key, &value)))
    }
}

/// Returns true if a row of the store's own verifies. `None` if the key is not one of its own.
pub fn verify_own_row(key: &[u8], value: &[u8]) -> Option<bool> {
    if key == journal::EPOCH {
        Some(row::decode::<CheckpointPos>(key, value).is_some())
    } else if *key == *identity::copy_key() {
        Some(row::decode::<String>(key, value).is_some())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_rows_verify_as_what_they_are() {
        let position = row::encode(journal::EPOCH, &CheckpointPos::default());
        assert_eq!(verify_own_row(journal::EPOCH, &position), Some(true));
        assert_eq!(
            verify_own_row(journal::EPOCH, &row::encode(journal::EPOCH, &7u64)),
            Some(false),
            "a number is none"
        );
        assert_eq!(verify_own_row(b"f", &row::encode(b"f", &"a stamp")), Some(true));
        assert_eq!(verify_own_row(b"f", &position), Some(false));
        assert_eq!(verify_own_row(b"x", &position), None);
    }
}
