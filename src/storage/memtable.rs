//! The memtable: rows that sled does not have yet, over those that it has, in three layers.
//!
//! | layer | rows | becomes |
//! | --- | --- | --- |
//! | uncommitted | the changes since the last commit | active, in [`Memtable::commit`] |
//! | active | the commits of the journal's current epoch | immutable, in [`Memtable::freeze`] |
//! | immutable | the epoch before, which a checkpoint moves into sled a batch at a time | sled's, in [`Memtable::flushed_to`] |
//!
//! A removed row stays here as a tombstone, so that it hides sled's row. Rows that are written once are an exception:
//! if one is in a layer, no layer below has it, so its removal from there leaves nothing. A row that comes and goes
//! within an epoch therefore never reaches sled.
//!
//! The journal has each committed row. A long one that is written once stays there only, and the memtable has its
//! place: such rows are read once or twice, and are most of the bytes.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::key::Key;

/// An uncommitted row's bytes. `None` if it was removed.
pub type Value = Option<Vec<u8>>;
/// Uncommitted rows by their keys.
pub type Rows = BTreeMap<Key, Value>;
type Range = (Bound<Key>, Bound<Key>);
type Layer = BTreeMap<Key, Committed>;

/// The bytes from which on a row that is written once stays in the journal.
const LONG: usize = 128;
/// About the bytes of memory that a row takes besides its value.
const ROW_BYTES: usize = 80;

/// The place of a value in the journal. It is valid until sled has all of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The file of its epoch.
    pub file: u8,
    /// Its offset in the file.
    pub at: u32,
    /// Its length in bytes.
    pub length: u32,
}

/// A row that sled does not have yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'a> {
    /// It was removed.
    Removed,
    /// Its bytes.
    Bytes(&'a [u8]),
    /// The place of its bytes.
    Journal(Extent),
}

/// A committed row, as a layer has it.
enum Committed {
    Removed,
    Bytes(Vec<u8>),
    Journal(Extent),
}

impl Committed {
    fn row(&self) -> Row<'_> {
        match self {
            Committed::Removed => Row::Removed,
            Committed::Bytes(bytes) => Row::Bytes(bytes),
            Committed::Journal(extent) => Row::Journal(*extent),
        }
    }

    /// About the bytes of memory that it takes.
    fn memory(&self) -> usize {
        ROW_BYTES + if let Committed::Bytes(bytes) = self { bytes.len() } else { 0 }
    }
}

/// The rows that are not in sled yet.
pub struct Memtable {
    /// First bytes of keys whose rows are written once.
    write_once: &'static [u8],
    uncommitted: Rows,
    uncommitted_bytes: usize,
    active: Layer,
    active_memory: usize,
    immutable: Layer,
    /// The first of the immutable rows that sled does not have. `None` if it has all.
    flushed_to: Option<Key>,
    /// The number of immutable rows before it.
    flushed: usize,
}

impl Memtable {
    /// An empty memtable; `write_once` has the first bytes of keys whose rows are written once.
    pub fn new(write_once: &'static [u8]) -> Memtable {
        Memtable {
            write_once,
            uncommitted: Rows::new(),
            uncommitted_bytes: 0,
            active: Layer::new(),
            active_memory: 0,
            immutable: Layer::new(),
            flushed_to: None,
            flushed: 0,
        }
    }

    /// The row under a key. `None` if the key is in no layer.
    pub fn get(&self, key: &[u8]) -> Option<Row<'_>> {
        match self.uncommitted.get(key) {
            Some(value) => Some(value.as_deref().map_or(Row::Removed, Row::Bytes)),
            None => self.layers().find_map(|rows| rows.get(key)).map(Committed::row),
        }
    }

    /// Writes a row, or a tombstone.
    pub fn write(&mut self, key: Key, value: Value) {
        self.uncommitted_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        if value.is_none() && self.is_written_once(&key) && self.uncommitted.get(&key).is_some_and(Option::is_some) {
            self.uncommitted.remove(&key);
        } else {
            self.uncommitted.insert(key, value);
        }
    }

    /// Appends to a row that this commit began.
    pub fn append(&mut self, key: Key, bytes: &[u8]) {
        self.uncommitted_bytes += bytes.len();
        self.uncommitted.entry(key).or_default().get_or_insert_default().extend_from_slice(bytes);
    }

    /// The rows that the next commit writes.
    pub fn uncommitted(&self) -> &Rows {
        &self.uncommitted
    }

    /// About the bytes of the uncommitted rows; a row that was overwritten counts again.
    pub fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// Takes the uncommitted rows into the active layer, after the journal has them. `place` returns the place of each, in
    /// their order.
    pub fn commit(&mut self, mut place: impl FnMut(&[u8], Option<&[u8]>) -> Extent) {
        self.uncommitted_bytes = 0;
        for (key, value) in std::mem::take(&mut self.uncommitted) {
            let extent = place(&key, value.as_deref());
            let committed = match value {
                None => Committed::Removed,
                Some(value) => self.long(&key, &value, extent).unwrap_or(Committed::Bytes(value)),
            };
            self.commit_row(key, committed);
        }
    }

    /// Takes a committed row, which the journal has at this place, into the active layer.
    pub fn replay(&mut self, key: Key, value: Option<&[u8]>, extent: Extent) {
        let committed = match value {
            None => Committed::Removed,
            Some(value) => self.long(&key, value, extent).unwrap_or_else(|| Committed::Bytes(value.to_vec())),
        };
        self.commit_row(key, committed);
    }

    fn long(&self, key: &[u8], value: &[u8], extent: Extent) -> Option<Committed> {
        (value.len() >= LONG && self.is_written_once(key)).then_some(Committed::Journal(extent))
    }

    fn commit_row(&mut self, key: Key, row: Committed) {
        let is_live = |row: &Committed| !matches!(row, Committed::Removed);
        let memory = row.memory();
        let replaced = if !is_live(&row) && self.is_written_once(&key) && self.active.get(&key).is_some_and(is_live) {
            self.active.remove(&key)
        } else {
            self.active_memory += memory;
            self.active.insert(key, row)
        };
        self.active_memory -= replaced.as_ref().map_or(0, Committed::memory);
    }

    /// About the bytes of memory that the active layer takes.
    pub fn active_memory(&self) -> usize {
        self.active_memory
    }

    /// Begins a checkpoint: the active layer becomes immutable. sled has all rows of the last one.
    pub fn freeze(&mut self) {
        debug_assert!(self.flushed_to.is_none(), "sled does not have all of the epoch before");
        self.immutable = std::mem::take(&mut self.active);
        self.active_memory = 0;
        // An epoch without rows is flushed too, so that sled records the number of the next one.
        self.flushed_to = Some(Key::FIRST);
    }

    /// Returns true until sled has all of the immutable layer.
    pub fn is_flushing(&self) -> bool {
        self.flushed_to.is_some()
    }

    /// The immutable rows that sled does not have, in order.
    pub fn to_flush(&self) -> impl Iterator<Item = (&Key, Row<'_>)> {
        let rest = self.flushed_to.iter().flat_map(|next| self.immutable.range(*next..));
        rest.map(|(key, row)| (key, row.row()))
    }

    /// Records that sled has `rows` more of the immutable rows: those before `next`, or all of them.
    pub fn flushed_to(&mut self, next: Option<Key>, rows: usize) {
        self.flushed_to = next;
        self.flushed += rows;
        if self.flushed_to.is_none() {
            self.immutable.clear();
            self.flushed = 0;
        }
    }

    /// The part of the immutable rows that sled has, from 0 to 1.
    pub fn flushed_part(&self) -> f64 {
        if self.is_flushing() { self.flushed as f64 / self.immutable.len().max(1) as f64 } else { 1.0 }
    }

    /// The first key in the range that has a row.
    pub fn first(&self, range: &Range) -> Option<&Key> {
        let uncommitted = self.uncommitted.range(*range).map(|(key, _)| key).find(|key| self.has(key));
        let committed =
            self.layers().filter_map(|rows| rows.range(*range).map(|(key, _)| key).find(|key| self.has(key)));
        committed.chain(uncommitted).min()
    }

    /// The last key in the range that has a row.
    pub fn last(&self, range: &Range) -> Option<&Key> {
        let uncommitted = self.uncommitted.range(*range).rev().map(|(key, _)| key).find(|key| self.has(key));
        let committed =
            self.layers().filter_map(|rows| rows.range(*range).rev().map(|(key, _)| key).find(|key| self.has(key)));
        committed.chain(uncommitted).max()
    }

    /// The layers of committed rows; each hides those after it.
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        [&self.active, &self.immutable].into_iter()
    }

    fn has(&self, key: &[u8]) -> bool {
        self.get(key).is_some_and(|row| row != Row::Removed)
    }

    /// Returns true if a row under this key is never written again.
    fn is_written_once(&self, key: &[u8]) -> bool {
        key.first().is_some_and(|prefix| self.write_once.contains(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Extent = Extent { file: 0, at: 0, length: 0 };

    fn key(text: &str) -> Key {
        Key::of(text.as_bytes()).unwrap()
    }

    #[test]
    fn row_that_comes_and_goes_within_an_epoch_leaves_nothing() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit(|_, _| NOWHERE);
        memtable.write(key("m1"), None);
        memtable.commit(|_, _| NOWHERE);
        assert_eq!((memtable.get(b"m1"), memtable.active.len()), (None, 0));
    }

    #[test]
    fn epoch_without_rows_is_flushed_too() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit(|_, _| NOWHERE);
        memtable.write(key("m1"), None);
        memtable.commit(|_, _| NOWHERE);
        memtable.freeze();
        assert!(memtable.is_flushing());
        assert_eq!(memtable.to_flush().next(), None);
    }

    #[test]
    fn row_removed_after_its_layer_was_frozen_is_removed_from_sled() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit(|_, _| NOWHERE);
        memtable.freeze();
        memtable.write(key("m1"), None);
        memtable.commit(|_, _| NOWHERE);
        assert_eq!(memtable.get(b"m1"), Some(Row::Removed));
        assert_eq!(memtable.to_flush().collect::<Vec<_>>(), [(&key("m1"), Row::Bytes(&[1]))]);
        memtable.flushed_to(None, 1);
        memtable.freeze();
        assert_eq!(memtable.to_flush().collect::<Vec<_>>(), [(&key("m1"), Row::Removed)]);
    }

    #[test]
    fn rows_are_in_order_through_all_layers_and_upper_layers_hide_lower_ones() {
        let mut memtable = Memtable::new(b"m");
        for (text, layer) in [("a1", 0), ("a3", 0), ("a2", 1), ("a4", 1), ("a0", 2)] {
            memtable.write(key(text), Some(vec![layer]));
            match (text, layer) {
                ("a3", _) => memtable.commit(|_, _| NOWHERE),
                ("a4", _) => {
                    memtable.freeze();
                    memtable.commit(|_, _| NOWHERE);
                }
                _ => {}
            }
        }
        memtable.write(key("a1"), None);
        let all = (Bound::Included(key("a")), Bound::Excluded(key("b")));
        assert_eq!((memtable.first(&all), memtable.last(&all)), (Some(&key("a0")), Some(&key("a4"))));
        let after = (Bound::Excluded(key("a0")), Bound::Excluded(key("b")));
        assert_eq!(memtable.first(&after), Some(&key("a2")), "a1 was removed");
    }
}
