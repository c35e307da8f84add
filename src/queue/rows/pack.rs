//! Packs: records that were accepted together, in one row.
//!
//! ```text
//! [length u16][sum u32][record]  [length u16][sum u32][record]  …
//! ```
//!
//! A record is found by the number of its pack and its place there, and its sum is over both, so that it cannot pass
//! for another's. A pack is written once and removed whole, when the last of its messages has left.

use super::keys;
use super::record::Record;
use super::values::RecordPos;
use crate::storage::{Key, row};

/// Records in a pack: a bit each tells which have left.
pub const RECORDS_MAX: u8 = 64;
/// A pack of several records is no longer than this.
pub const BYTES_MAX: usize = 4 * 1024;

impl RecordPos {
    /// What the record's sum is over, beside the record.
    fn own_key(self) -> Key {
        keys::pack(self.pack).with(&[self.nth])
    }

    /// The bit that tells whether it has left.
    pub fn bit(self) -> u64 {
        1 << (self.nth % RECORDS_MAX)
    }
}

/// Puts a record, as it stands in a pack, behind what there is.
pub fn encode_onto(bytes: &mut Vec<u8>, at: RecordPos, record: &Record) {
    let begins = bytes.len();
    bytes.extend_from_slice(&[0; 2]);
    row::encode_onto(bytes, &at.own_key(), record);
    let length = u16::try_from(bytes.len() - begins - 2).expect("a record is shorter than a row");
    bytes[begins..begins + 2].copy_from_slice(&length.to_le_bytes());
}

/// The record that stands there, if its sum holds and it is well-formed.
pub fn decode(at: RecordPos, pack: &[u8]) -> Option<Record> {
    row::decode(&at.own_key(), split(pack).nth(usize::from(at.nth))?)
}

/// How many records a pack holds.
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
