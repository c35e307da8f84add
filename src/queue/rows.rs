//! Every byte on disk: keys, rows, checksums.
//!
//! A key is the letter of its [`Table`] and parts of fixed width in big-endian order ([`keys`]), so that the order of keys
//! is the order of sequence numbers, turns and times. A value is a CRC-32 of key and payload, then the payload (postcard:
//! the fields of the structs in `values` and `record` in their order, integers as varints). The key is part of the
//! checksum, so a row that is stored under another key fails it.
//!
//! **A field has no name and no tag.** With a new field, even a last one, no older row can be decoded, and a row that
//! cannot be decoded is quarantined: its message is lost. To store something new, add a variant at the end of an enum,
//! or a table: no row that exists has it. Then raise [`FORMAT`](crate::storage::FORMAT), so that an older relay does not
//! open the store. `rows/tests.rs` compares the bytes of each struct with those of the oldest format that is read.
//!
//! **The number and place of rows decide the speed**: a row that is appended costs sled a third of a row between others.
//! So an accept writes one scattered row, that of its conversation, which also contains the ClientTokens of its queued
//! messages. The messages themselves go into packs, several to a row, and no attempt rewrites them: its result is in the
//! conversation's row. A redrive files a new copy. A ClientToken gets a row of its own only if the conversation is too
//! long for its row, or when the message has left.
//!
//! No value exceeds [`ROW_MAX`](crate::storage::row::ROW_MAX). Contents up to [`INLINE_MAX`] bytes are in the record,
//! longer ones in pieces of [`PIECE`]. Each record in a pack has a checksum of its own, so damage loses one message.
//! Conversations, participants, ClientTokens and contents are in keys and comparisons as 128 bits of HMAC-SHA-256 under
//! the store's own key: keys show no names. Records do: labels and ClientTokens are in plain text. An outcome has them sealed.

mod hasher;
pub mod keys;
pub mod pack;
mod record;
mod table;
mod values;

#[cfg(test)]
mod tests;

pub use crate::storage::row::{decode, encode_onto};
pub use crate::storage::{Key, Secret};
pub use hasher::Hasher;
pub use record::{Hash, INLINE_MAX, Kind, PIECE, Record, caller_number, caller_of};
pub use table::{Table, USED_CONVERSATION, USED_PARTICIPANT, USED_TOKEN, WRITE_ONCE, removal_weight};
pub use values::{
    Attempts, ClientTokenRow, Conversation, Dead, ErrorRow, Failures, FinalState, Hold, Meta, Origin,
    OtherConversation, Outcome, Participant, PauseRow, PauseState, QueuedRef, REFS_MAX, RecordPos, Schedule, Token,
    reason_at, reason_index,
};
