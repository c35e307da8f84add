//! Rows with a checksum: CRC-32 of key and payload (4 bytes, little-endian), then the payload in postcard.
//!
//! The key is part of the sum, so a row that is stored under another key fails its checksum.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest row (rule 3 of the store): sled writes 16 rows as one item, and stores an item over 128 KiB in a file of
/// its own, which it never syncs.
pub const ROW_MAX: usize = 7 * 1024;

/// Encodes a row.
pub fn encode<T: Serialize>(key: &[u8], row: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_onto(&mut bytes, key, row);
    bytes
}

/// Appends an encoded row to `bytes`.
pub fn encode_onto<T: Serialize>(bytes: &mut Vec<u8>, key: &[u8], row: &T) {
    let begins = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    *bytes = postcard::to_extend(row, std::mem::take(bytes)).expect("a row of plain data serialises into memory");
    put_checksum(key, &mut bytes[begins..]);
}

/// Overwrites the first four bytes of a row with the checksum of its key and the bytes that follow.
pub fn put_checksum(key: &[u8], row: &mut [u8]) {
    let sum = checksum(key, &row[4..]);
    row[..4].copy_from_slice(&sum);
    debug_assert!(row.len() <= ROW_MAX, "a row of {} bytes under {:?}", row.len(), key[0] as char);
}

/// Decodes a row. `None` if its checksum fails or the payload is malformed.
pub fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Option<T> {
    let (found, payload) = value.split_at_checked(4)?;
    if found != checksum(key, payload) {
        return None;
    }
    postcard::from_bytes(payload).ok()
}

fn checksum(key: &[u8], payload: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize().to_le_bytes()
}
