//! Row keys. A key is at most 34 bytes and is stored inline, without a heap allocation.

use std::borrow::Borrow;
use std::ops::Deref;

use crate::time::Timestamp;

/// A key, also under construction. Keys are in the order of their bytes. Unused bytes are zero, so a key comes before
/// any longer key that begins with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    bytes: [u8; Key::LONGEST],
    length: u8,
}

impl Key {
    /// A one-byte prefix before a key of one byte and two 16-byte hashes.
    const LONGEST: usize = 34;
    /// The empty key, which comes before every other.
    pub const FIRST: Key = Key { bytes: [0; Key::LONGEST], length: 0 };

    /// A key of one byte.
    pub fn new(prefix: u8) -> Key {
        Key::FIRST.with(&[prefix])
    }

    /// The key of these bytes. `None` if they are too many for a key.
    pub fn of(bytes: &[u8]) -> Option<Key> {
        (bytes.len() <= Key::LONGEST).then(|| Key::FIRST.with(bytes))
    }

    /// The first key after all keys that begin with this one. `None` if there is none.
    pub fn end(&self) -> Option<Key> {
        let end = self.iter().rposition(|byte| *byte < u8::MAX)?;
        let mut key = Key::of(&self[..=end])?;
        key.bytes[end] += 1;
        Some(key)
    }

    /// Appends bytes.
    pub fn with(mut self, bytes: &[u8]) -> Key {
        let from = usize::from(self.length);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
        self
    }

    /// Appends a number of 8 bytes, in big-endian order.
    pub fn number(self, number: u64) -> Key {
        self.with(&number.to_be_bytes())
    }

    /// Appends a time of 8 bytes.
    pub fn time(self, time: Timestamp) -> Key {
        self.number(time.0)
    }

    /// Appends a hash of 16 bytes.
    pub fn hash(self, hash: &[u8; 16]) -> Key {
        self.with(hash)
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

/// The number at offset `at` in a key; 0 if the key is too short.
pub fn number_at(key: &[u8], at: usize) -> u64 {
    key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// The hash at offset `at` in a key; zeros if the key is too short.
pub fn hash_at(key: &[u8], at: usize) -> [u8; 16] {
    key.get(at..at + 16).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}
