//! The store with typed rows: encodes and decodes them, and quarantines the damaged ones.

use std::ops::{Deref, DerefMut};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::queue::api::Result;
use crate::queue::rows::{self, Key, keys};
use crate::storage::Store;

/// A [`Store`] whose rows are encoded as `rows` describes them.
pub struct TypedStore {
    store: Store,
    /// The row being encoded; kept for its capacity.
    row: Vec<u8>,
    /// The first bytes of the keys of damaged rows that were quarantined and not yet reported.
    quarantined: Vec<u8>,
    /// Damaged rows that were quarantined since the start.
    corrupt: u64,
}

impl TypedStore {
    /// `damaged` is the row of the store's own that failed its checksum when it was opened.
    pub fn new(store: Store, damaged: Option<(Key, Vec<u8>)>) -> TypedStore {
        let mut typed = TypedStore { store, row: Vec::new(), quarantined: Vec::new(), corrupt: 0 };
        if let Some((key, raw)) = damaged {
            typed.quarantine(&key, raw);
        }
        typed
    }

    /// Reads a row, including uncommitted changes. A row that fails its checksum is quarantined and counted, and reads
    /// as `None`.
    pub fn get<T: DeserializeOwned>(&mut self, key: &Key) -> Result<Option<T>> {
        let found = self.read(key, |value| rows::decode(key, value))?;
        if let Some(None) = found {
            self.quarantine_row(key)?;
            self.remove(*key);
        }
        Ok(found.flatten())
    }

    /// Writes a row.
    pub fn put<T: Serialize>(&mut self, key: Key, row: &T) {
        self.row.clear();
        rows::encode_onto(&mut self.row, &key, row);
        let value = self.row.clone();
        self.put_raw(key, value);
    }

    /// Writes a row that is encoded already.
    pub fn put_raw(&mut self, key: Key, value: Vec<u8>) {
        self.store.put(key, value);
    }

    /// Keeps a copy of the damaged row under a key, and counts it.
    pub fn quarantine_row(&mut self, key: &Key) -> Result<()> {
        if let Some(raw) = self.read(key, <[u8]>::to_vec)? {
            self.quarantine(key, raw);
        }
        Ok(())
    }

    /// Keeps the bytes of a damaged row under `k`, which nothing reads, and counts it.
    pub fn quarantine(&mut self, key: &Key, raw: Vec<u8>) {
        self.corrupt += 1;
        self.quarantined.push(key[0]);
        self.put_raw(keys::quarantine(key), raw);
    }

    /// The number of damaged rows that were quarantined since the start.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// Returns the tables of the damaged rows quarantined since the last call, by their letters.
    pub fn take_quarantined(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.quarantined)
    }
}

impl Deref for TypedStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl DerefMut for TypedStore {
    fn deref_mut(&mut self) -> &mut Store {
        &mut self.store
    }
}
