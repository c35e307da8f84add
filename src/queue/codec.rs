//! Every byte on disk: keys, rows, checksums.
//!
//! A key is a prefix letter and fixed-width big-endian parts, so that the order of keys is the order of sequence
//! numbers, turns and times. A value is a CRC-32 of key and payload, then the payload (postcard: the fields of the
//! structs below in their order, integers as varints). The key is part of the sum, so a row cannot pass for another's.
//!
//! | key | row | what it is |
//! | --- | --- | --- |
//! | `!` | [`Meta`] | the next numbers, the counts; written with every batch |
//! | `c` | [`Anchor`](crate::time::Anchor) | where the line of all times here is, by the machine's clocks; since format 4 |
//! | `j`, `f` | – | the store's own rows: its position in the journal, a copy of the format stamp |
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
//! the line. A row for the ClientToken alone is made only when the line is too long to show it, or the message has
//! left.
//!
//! No value exceeds [`ROW_MAX`](crate::storage::row::ROW_MAX). Contents up to [`INLINE_MAX`] bytes stand in the record,
//! longer ones in pieces of [`PIECE`]. Each record in a pack has a sum of its own, so damage takes one message.
//! Conversations, participants, ClientTokens and contents stand in keys and comparisons as 128 bits of HMAC-SHA-256
//! under the store's own key: the folder does not tell who spoke.

pub mod pack;
mod record;
mod rows;

#[cfg(test)]
mod tests;

use crate::message::{Body, Caller, ConnectionToken, Content};
pub use crate::storage::row::{decode, encode_onto};
pub use crate::storage::{Key, Secret, hash_at, number_at};
pub use pack::At;
pub use record::{Kind, Record};
use ring::hmac;
pub use rows::{
    Dead, Entry, ErrorRow, Failures, Fate, Hold, Line, Meta, OtherConversation, Outcome, Participant, PauseRow, Place,
    Sending, Slot, Token, Trial, reason_at, reason_index,
};

/// Prefixes of rows that are written once and never changed: packs, pieces of contents, turns.
pub const WRITE_ONCE: &[u8] = b"mpqr";
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

/// Bytes that the removal of a row counts in a checkpoint's batch beside its key. A piece of contents weighs as much as
/// it held, because sled reads and rewrites its leaf.
pub fn removal_weight(key: &[u8]) -> usize {
    if key.starts_with(b"p") { PIECE } else { 0 }
}

pub fn caller_number(caller: Caller) -> u64 {
    match caller {
        Caller::Uid(uid) => u64::from(uid),
        Caller::Tcp => u64::MAX,
    }
}
