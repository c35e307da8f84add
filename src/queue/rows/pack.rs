//! Packs: records that were accepted together, in one row.
//!
//! ```text
//! [length u16][sum u32][record]  [length u16][sum u32][record]  …
//! ```
//!
//! A record is found by the number of its pack and its index there. Its checksum covers both, so that a record at another
//! position fails it. A pack is written once, and removed when the last of its messages has left.

use super::keys;
use super::record::Record;
use super::values::RecordPos;
use crate::storage::{Key, row};

/// The most records in a pack: each has a bit that is set when it has left.
pub const RECORDS_MAX: u8 = 64;
/// The most bytes of a pack of several records.
pub const BYTES_MAX: usize = 4 * 1024;

impl RecordPos {
    /// The key that the record's checksum covers, besides the record.
    fn own_key(self) -> Key {
        keys::pack(self.pack).with(&[self.nth])
    }

    /// The bit that is set when the record has left.
    pub fn bit(self) -> u64 {
        1 << (self.nth % RECORDS_MAX)
    }
}

/// Appends a record to an encoded pack.
pub fn encode_onto(bytes: &mut Vec<u8>, at: RecordPos, record: &Record) {
    let begins = bytes.len();
    bytes.extend_from_slice(&[0; 2]);
    row::encode_onto(bytes, &at.own_key(), record);
    let length = u16::try_from(bytes.len() - begins - 2).expect("a record is shorter than a row");
    bytes[begins..begins + 2].copy_from_slice(&length.to_le_bytes());
}

/// The record at a position; `None` if it fails its checksum or is not well-formed.
pub fn decode(at: RecordPos, pack: &[u8]) -> Option<Record> {
    row::decode(&at.own_key(), split(pack).nth(usize::from(at.nth))?)
}

/// The number of records in a pack.
pub fn count(pack: &[u8]) -> u8 {
    u8::try_from(split(pack).count()).unwrap_or(RECORDS_MAX).min(RECORDS_MAX)
}

/// The bits of all its records.
pub fn all(count: u8) -> u64 {
    if count >= RECORDS_MAX { u64::MAX } else { (1 << count) - 1 }
}

/// The encoded records, as far as their lengths can be followed.
fn split(mut pack: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = pack.split_first_chunk::<2>()?;
        let (encoded, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        pack = rest;
        Some(encoded)
    })
}
