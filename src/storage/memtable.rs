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

use std::collections::BTreeMap;
use std::ops::Bound;

use super::key::Key;

/// A row's bytes. `None` if it was removed.
pub type Value = Option<Vec<u8>>;
/// Rows by their keys.
pub type Rows = BTreeMap<Key, Value>;
type Range = (Bound<Key>, Bound<Key>);

/// The rows that are not in sled yet.
pub struct Memtable {
    /// First bytes of keys whose rows are written once.
    write_once: &'static [u8],
    uncommitted: Rows,
    uncommitted_bytes: usize,
    active: Rows,
    immutable: Rows,
    /// The first of the immutable rows that sled does not have. `None` if it has all.
    flushed_to: Option<Key>,
}

/// Leaves out the rows, which contain secrets.
impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Memtable { uncommitted, active, immutable, .. } = self;
        let mut shown = f.debug_struct("Memtable");
        shown.field("uncommitted", &uncommitted.len());
        shown.field("active", &active.len()).field("immutable", &immutable.len()).finish()
    }
}

impl Memtable {
    /// An empty memtable; `write_once` has the first bytes of keys whose rows are written once.
    pub fn new(write_once: &'static [u8]) -> Memtable {
        let (uncommitted, active, immutable) = (Rows::new(), Rows::new(), Rows::new());
        Memtable { write_once, uncommitted, uncommitted_bytes: 0, active, immutable, flushed_to: None }
    }

    /// The row under a key, or its tombstone as `Some(None)`. `None` if the key is in no layer.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.layers().find_map(|rows| rows.get(key)).map(Option::as_deref)
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

    /// Takes the uncommitted rows into the active layer, after the journal has them.
    pub fn commit(&mut self) {
        self.uncommitted_bytes = 0;
        for (key, value) in std::mem::take(&mut self.uncommitted) {
            self.commit_row(key, value);
        }
    }

    /// Takes a committed row into the active layer.
    pub fn commit_row(&mut self, key: Key, value: Value) {
        if value.is_none() && self.is_written_once(&key) && self.active.get(&key).is_some_and(Option::is_some) {
            self.active.remove(&key);
        } else {
            self.active.insert(key, value);
        }
    }

    /// Begins a checkpoint: the active layer becomes immutable. sled has all rows of the last one.
    pub fn freeze(&mut self) {
        debug_assert!(self.flushed_to.is_none(), "sled does not have all of the epoch before");
        self.immutable = std::mem::take(&mut self.active);
        // An epoch without rows is flushed too, so that sled records the number of the next one.
        self.flushed_to = Some(Key::FIRST);
    }

    /// Returns true until sled has all of the immutable layer.
    pub fn is_flushing(&self) -> bool {
        self.flushed_to.is_some()
    }

    /// The immutable rows that sled does not have, in order.
    pub fn to_flush(&self) -> impl Iterator<Item = (&Key, Option<&[u8]>)> {
        let rest = self.flushed_to.iter().flat_map(|next| self.immutable.range(*next..));
        rest.map(|(key, value)| (key, value.as_deref()))
    }

    /// Records that sled has the immutable rows before `next`, or all of them.
    pub fn flushed_to(&mut self, next: Option<Key>) {
        self.flushed_to = next;
        if self.flushed_to.is_none() {
            self.immutable.clear();
        }
    }

    /// The first key in the range that has a row.
    pub fn first(&self, range: &Range) -> Option<&Key> {
        self.layers().filter_map(|rows| rows.range(*range).map(|(key, _)| key).find(|key| self.has(key))).min()
    }

    /// The last key in the range that has a row.
    pub fn last(&self, range: &Range) -> Option<&Key> {
        self.layers().filter_map(|rows| rows.range(*range).rev().map(|(key, _)| key).find(|key| self.has(key))).max()
    }

    /// The layers; each hides those after it.
    fn layers(&self) -> impl Iterator<Item = &Rows> {
        [&self.uncommitted, &self.active, &self.immutable].into_iter()
    }

    fn has(&self, key: &[u8]) -> bool {
        self.get(key).flatten().is_some()
    }

    /// Returns true if a row under this key is never written again.
    fn is_written_once(&self, key: &[u8]) -> bool {
        key.first().is_some_and(|prefix| self.write_once.contains(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::of(text.as_bytes()).unwrap()
    }

    #[test]
    fn row_that_comes_and_goes_within_an_epoch_leaves_nothing() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit();
        memtable.write(key("m1"), None);
        memtable.commit();
        assert_eq!((memtable.get(b"m1"), memtable.active.len()), (None, 0));
    }

    #[test]
    fn epoch_without_rows_is_flushed_too() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit();
        memtable.write(key("m1"), None);
        memtable.commit();
        memtable.freeze();
        assert!(memtable.is_flushing());
        assert_eq!(memtable.to_flush().next(), None);
    }

    #[test]
    fn row_removed_after_its_layer_was_frozen_is_removed_from_sled() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit();
        memtable.freeze();
        memtable.write(key("m1"), None);
        memtable.commit();
        assert_eq!(memtable.get(b"m1"), Some(None));
        assert_eq!(memtable.to_flush().collect::<Vec<_>>(), [(&key("m1"), Some(&[1][..]))]);
        memtable.flushed_to(None);
        memtable.freeze();
        assert_eq!(memtable.to_flush().collect::<Vec<_>>(), [(&key("m1"), None)]);
    }

    #[test]
    fn rows_are_in_order_through_all_layers_and_upper_layers_hide_lower_ones() {
        let mut memtable = Memtable::new(b"m");
        for (text, layer) in [("a1", 0), ("a3", 0), ("a2", 1), ("a4", 1), ("a0", 2)] {
            memtable.write(key(text), Some(vec![layer]));
            match (text, layer) {
                ("a3", _) => memtable.commit(),
                ("a4", _) => {
                    memtable.freeze();
                    memtable.commit();
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
