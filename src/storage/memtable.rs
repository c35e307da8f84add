//! Rows that sled does not have yet, over those that it has, in three layers:
//!
//! | layer | what | ends as |
//! | --- | --- | --- |
//! | pending | what the acts since the last commit have written | committed, in [`Memtable::commit`] |
//! | committed | what the journal's epoch has | frozen, in [`Memtable::freeze`] |
//! | frozen | what the epoch before has: sled is given it, a batch at a time | sled's, in [`Memtable::give`] |
//!
//! A removed row stays here as such, so that it hides sled's. Some rows are written once in their life, by the
//! first byte of their key: where one of them is committed, no layer below has it, and its removal leaves nothing. So a row
//! that comes and goes within an epoch never reaches sled at all.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::key::Key;

/// A row's bytes; none where it was removed.
pub type Value = Option<Vec<u8>>;
/// Rows by their keys.
pub type Rows = BTreeMap<Key, Value>;
type Range = (Bound<Key>, Bound<Key>);

/// What is not in sled yet.
pub struct Memtable {
    /// First bytes of keys whose rows are written once.
    write_once: &'static [u8],
    pending: Rows,
    pending_bytes: usize,
    committed: Rows,
    frozen: Rows,
    /// The first of the frozen rows that sled does not have; none where it has all.
    given: Option<Key>,
}

/// Without contents and tokens, which stand in rows.
impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Memtable { pending, committed, frozen, .. } = self;
        let mut shown = f.debug_struct("Memtable");
        shown.field("pending", &pending.len()).field("committed", &committed.len()).field("frozen", &frozen.len());
        shown.finish()
    }
}

impl Memtable {
    pub fn new(write_once: &'static [u8]) -> Memtable {
        let (pending, committed, frozen) = (Rows::new(), Rows::new(), Rows::new());
        Memtable { write_once, pending, pending_bytes: 0, committed, frozen, given: None }
    }

    /// The row under a key, if anything is said of it here.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.layers().find_map(|rows| rows.get(key)).map(Option::as_deref)
    }

    /// Writes a row, or removes it.
    pub fn write(&mut self, key: Key, value: Value) {
        self.pending_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        if value.is_none() && self.is_written_once(&key) && self.pending.get(&key).is_some_and(Option::is_some) {
            self.pending.remove(&key);
        } else {
            self.pending.insert(key, value);
        }
    }

    /// Adds to the end of a row that this commit began.
    pub fn extend(&mut self, key: Key, bytes: &[u8]) {
        self.pending_bytes += bytes.len();
        self.pending.entry(key).or_default().get_or_insert_default().extend_from_slice(bytes);
    }

    /// What the next commit writes.
    pub fn pending(&self) -> &Rows {
        &self.pending
    }

    /// About how many bytes that is, counting what was overwritten.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// What is pending has been committed.
    pub fn commit(&mut self) {
        self.pending_bytes = 0;
        for (key, value) in std::mem::take(&mut self.pending) {
            self.commit_row(key, value);
        }
    }

    /// A row was committed.
    pub fn commit_row(&mut self, key: Key, value: Value) {
        if value.is_none() && self.is_written_once(&key) && self.committed.get(&key).is_some_and(Option::is_some) {
            self.committed.remove(&key);
        } else {
            self.committed.insert(key, value);
        }
    }

    /// What was committed is to be given to sled from now on; it has what was frozen before.
    pub fn freeze(&mut self) {
        debug_assert!(self.given.is_none(), "sled does not have all of the epoch before");
        self.frozen = std::mem::take(&mut self.committed);
        // Of an epoch of which nothing is left sled has to be told all the same.
        self.given = Some(Key::FIRST);
    }

    /// Whether there is something that sled is to be given.
    pub fn is_giving(&self) -> bool {
        self.given.is_some()
    }

    /// What sled is to be given, in order.
    pub fn to_give(&self) -> impl Iterator<Item = (&Key, Option<&[u8]>)> {
        let rest = self.given.iter().flat_map(|next| self.frozen.range(*next..));
        rest.map(|(key, value)| (key, value.as_deref()))
    }

    /// Sled has what comes before this key; without one, all.
    pub fn give(&mut self, next: Option<Key>) {
        self.given = next;
        if self.given.is_none() {
            self.frozen.clear();
        }
    }

    /// The first key in the range that has a row here.
    pub fn first(&self, range: &Range) -> Option<&Key> {
        self.layers().filter_map(|rows| rows.range(*range).map(|(key, _)| key).find(|key| self.has(key))).min()
    }

    /// The last key in the range that has a row here.
    pub fn last(&self, range: &Range) -> Option<&Key> {
        self.layers().filter_map(|rows| rows.range(*range).rev().map(|(key, _)| key).find(|key| self.has(key))).max()
    }

    /// What hides what.
    fn layers(&self) -> impl Iterator<Item = &Rows> {
        [&self.pending, &self.committed, &self.frozen].into_iter()
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
    fn what_comes_and_goes_within_an_epoch_leaves_nothing() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit();
        memtable.write(key("m1"), None);
        memtable.commit();
        assert_eq!((memtable.get(b"m1"), memtable.committed.len()), (None, 0));
    }

    #[test]
    fn epoch_of_which_nothing_is_left_is_given_all_the_same() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit();
        memtable.write(key("m1"), None);
        memtable.commit();
        memtable.freeze();
        assert!(memtable.is_giving());
        assert_eq!(memtable.to_give().next(), None);
    }

    #[test]
    fn what_goes_after_it_was_frozen_is_removed_from_sled_too() {
        let mut memtable = Memtable::new(b"m");
        memtable.write(key("m1"), Some(vec![1]));
        memtable.commit();
        memtable.freeze();
        memtable.write(key("m1"), None);
        memtable.commit();
        assert_eq!(memtable.get(b"m1"), Some(None));
        assert_eq!(memtable.to_give().collect::<Vec<_>>(), [(&key("m1"), Some(&[1][..]))]);
        memtable.give(None);
        memtable.freeze();
        assert_eq!(memtable.to_give().collect::<Vec<_>>(), [(&key("m1"), None)]);
    }

    #[test]
    fn rows_are_in_order_through_all_layers_and_the_upper_hides_the_lower() {
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
