//! Every byte on disk: keys, rows, checksums.
//!
//! A key is a prefix letter and fixed-width big-endian parts, so that the order of keys is the order of sequence
//! numbers, turns and times. A value is a CRC-32 of key and payload, then the payload (postcard: the fields of the
//! structs below in their order, integers as varints). The key is part of the sum, so a row cannot pass for another's.
//!
//! | key | row | what it is |
//! | --- | --- | --- |
//! | `!` | [`Meta`] | the next numbers, the counts; written with every batch |
//! | `c` | [`Anchor`](crate::time::Anchor) | where the line of all times here is, by the machine's clocks |
//! | `j` | [`Mark`](super::journal::Mark) | the oldest epoch of the journal whose records are not all here; its files' lengths |
//! | `f` | String | a copy of the format stamp |
//! | `m` pack | [`pack`] of [`Record`]s | queued messages that were accepted together: the truth |
//! | `l` pack | u64 | which of them have left, a bit each |
//! | `p` seq n | [`Secret`] | a piece of contents too long for their record: [`Record::piece_numbers`] |
//! | `v` conv | [`Line`] | a conversation: its messages in order, its place, its hold |
//! | `s` conv seq | `Vec<Slot>` | messages that the line has no room for |
//! | `i` conv entry | [`Entry`] | a ClientToken that the line does not show: queued in an `s` row, or an outcome |
//! | `r`, `q` turn conv | time | its turn among those that can be sent, among the fresh and the late, and since when |
//! | `d` time conv | – | it can be sent from then on |
//! | `e` time seq | [`At`] | a message that dies then, where the order of acceptance does not tell |
//! | `t` hash | [`Token`] | a ConnectionToken: whose it is, what became of it |
//! | `g` hash | [`Participant`] | a participant's newest ConnectionToken |
//! | `h` | [`Sending`] | an operator's pause, refusals forgotten, and whether the destination has ever delivered |
//! | `u` caller | u64 | messages queued by one caller |
//! | `x` seq | [`Dead`] | a dead letter |
//! | `o` time n | `Vec<(Hash, Hash)>` | outcomes recorded then (conversation, entry), to be pruned |
//! | `y` time n | `Vec<(u8, Hash)>` | tokens, participants, lines last used then, to be pruned |
//! | `z` time seq | – | a dead letter buried then, to be pruned |
//! | `k` key | bytes | a row that failed its sum, set aside |
//!
//! **Rows decide the speed**: one that is appended costs sled a third of one that lies somewhere among others. So an
//! accept writes one scattered row, its conversation's line, which also tells the ClientTokens of what is queued; the
//! messages themselves go into packs, several to a row, and are never written again: what attempts came to stands in
//! the line. A row for the ClientToken alone is made only when the line is too long to show it, or the message has left.
//!
//! No value exceeds [`ROW_MAX`]. Contents up to [`INLINE_MAX`] bytes stand in the record, longer ones in pieces of
//! [`PIECE`]. Each record in a pack has a sum of its own, so damage takes one message. Conversations, participants,
//! ClientTokens and contents stand in keys and comparisons as 128 bits of HMAC-SHA-256 under the store's own key: the
//! folder does not tell who spoke.

mod key;
pub mod pack;
mod record;
mod rows;

#[cfg(test)]
mod tests;

use ring::hmac;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{Body, Caller, ConnectionToken, Content};
pub use key::{Key, hash_at, number_at};
pub use pack::At;
pub use record::{Kind, Record, Secret};
pub use rows::{
    Dead, Entry, ErrorRow, Failures, Fate, Hold, Line, Meta, OtherConversation, Outcome, Participant, PauseRow, Place,
    Sending, Slot, Token, Trial, reason_at, reason_index,
};

/// The layout's number, in the format stamp. Since 4 all times are on the store's own line, which the row `c` ties to the
/// machine's clocks: a relay that takes them for the wall clock's must not open the store.
pub const FORMAT: u32 = 4;
/// The oldest layout that is read: its rows are the same, without the row `c`. An open makes it one of today's.
pub const OLDEST_FORMAT: u32 = 3;
/// No row is longer: sled writes 16 of them as one item, and an item over 128 KiB would become a file that it never
/// syncs.
pub const ROW_MAX: usize = 7 * 1024;
/// Contents up to here stand in their record.
pub const INLINE_MAX: usize = 3584;
/// Longer contents are cut into pieces of this.
pub const PIECE: usize = 4096;

/// 128 bits of a keyed hash.
pub type Hash = [u8; 16];

/// Makes the keyed hashes.
#[derive(Clone)]
pub struct Hasher(hmac::Key);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher(…)")
    }
}

impl Hasher {
    pub fn new(key: &[u8]) -> Hasher {
        Hasher(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The hash of the parts under a domain; lengths are hashed with them, so parts cannot run into one another.
    pub fn hash(&self, domain: u8, parts: &[&[u8]]) -> Hash {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[domain]);
        for part in parts {
            context.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            context.update(part);
        }
        let mut hash = Hash::default();
        hash.copy_from_slice(&context.sign().as_ref()[..16]);
        hash
    }

    pub fn token(&self, token: &ConnectionToken) -> Hash {
        self.hash(b't', &[token.expose()])
    }

    /// What two submissions must share to be the same one.
    pub fn contents(&self, body: &Body) -> Hash {
        let kind = [match body {
            Body::Message { .. } => b'm',
            Body::Event { .. } => b'e',
            Body::Disconnect => b'd',
        }];
        let content = body.content().map_or("", Content::expose);
        self.hash(b'c', &[&kind, body.content_type().unwrap_or("").as_bytes(), content.as_bytes()])
    }

    pub fn entry(&self, conversation: &Hash, client_token: &str) -> Hash {
        self.hash(b'i', &[conversation, client_token.as_bytes()])
    }
}

pub fn caller_number(caller: Caller) -> u64 {
    match caller {
        Caller::Uid(uid) => u64::from(uid),
        Caller::Tcp => u64::MAX,
    }
}

/// A payload with the sum of it and its key.
pub fn encode<T: Serialize>(key: &[u8], row: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_onto(&mut bytes, key, row);
    bytes
}

/// The same, behind what there is.
pub fn encode_onto<T: Serialize>(bytes: &mut Vec<u8>, key: &[u8], row: &T) {
    let begins = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    *bytes = postcard::to_extend(row, std::mem::take(bytes)).expect("a row of plain data serialises into memory");
    put_sum(key, &mut bytes[begins..]);
}

fn put_sum(key: &[u8], row: &mut [u8]) {
    let sum = sum(key, &row[4..]);
    row[..4].copy_from_slice(&sum);
    debug_assert!(row.len() <= ROW_MAX, "a row of {} bytes under {:?}", row.len(), key[0] as char);
}

/// The row, if the sum holds and it is well-formed.
pub fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Option<T> {
    let (found, payload) = value.split_at_checked(4)?;
    if found != sum(key, payload) {
        return None;
    }
    postcard::from_bytes(payload).ok()
}

fn sum(key: &[u8], payload: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize().to_le_bytes()
}
