//! Rows that are not in sled yet, over those that are: first those of the commit being gathered, then those that were
//! committed to the journal since the last checkpoint.
//!
//! A removed row stays here as such, so that it hides sled's. Rows under `m`, `p`, `q` and `r` are written once in their
//! life: where one of them is here, sled does not have it, and its removal leaves nothing. So a message that comes and
//! goes between two checkpoints never reaches sled at all.

use std::collections::BTreeMap;
use std::ops::Bound;

/// A row's bytes; none where it was removed.
pub type Value = Option<Vec<u8>>;
/// Rows by their keys.
pub type Rows = BTreeMap<Vec<u8>, Value>;
type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// What is not in sled yet.
#[derive(Default)]
pub struct Overlay {
    pending: Rows,
    pending_bytes: usize,
    committed: Rows,
}

/// Without contents and tokens, which stand in rows.
impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Overlay { pending, committed, .. } = self;
        f.debug_struct("Overlay").field("pending", &pending.len()).field("committed", &committed.len()).finish()
    }
}

impl Overlay {
    /// The row under a key, if anything is said of it here.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.pending.get(key).or_else(|| self.committed.get(key)).map(Option::as_deref)
    }

    /// Writes a row, or removes it.
    pub fn write(&mut self, key: Vec<u8>, value: Value) {
        self.pending_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        if value.is_none() && once(&key) && self.pending.get(&key).is_some_and(Option::is_some) {
            self.pending.remove(&key);
        } else {
            self.pending.insert(key, value);
        }
    }

    /// Adds to the end of a row that this commit began.
    pub fn extend(&mut self, key: Vec<u8>, bytes: &[u8]) {
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
    pub fn commit_row(&mut self, key: Vec<u8>, value: Value) {
        if value.is_none() && once(&key) && self.committed.get(&key).is_some_and(Option::is_some) {
            self.committed.remove(&key);
        } else {
            self.committed.insert(key, value);
        }
    }

    /// Takes what was committed, for sled.
    pub fn take_committed(&mut self) -> Rows {
        std::mem::take(&mut self.committed)
    }

    /// The first key in the range that has a row here.
    pub fn first(&self, range: &Range) -> Option<&Vec<u8>> {
        self.layers().filter_map(|rows| rows.range(range.clone()).map(|(key, _)| key).find(|key| self.has(key))).min()
    }

    /// The last key in the range that has a row here.
    pub fn last(&self, range: &Range) -> Option<&Vec<u8>> {
        self.layers()
            .filter_map(|rows| rows.range(range.clone()).rev().map(|(key, _)| key).find(|key| self.has(key)))
            .max()
    }

    fn layers(&self) -> impl Iterator<Item = &Rows> {
        [&self.pending, &self.committed].into_iter()
    }

    fn has(&self, key: &[u8]) -> bool {
        self.get(key).flatten().is_some()
    }
}

/// Whether such rows are never written again.
fn once(key: &[u8]) -> bool {
    matches!(key.first(), Some(b'm' | b'p' | b'q' | b'r'))
}
