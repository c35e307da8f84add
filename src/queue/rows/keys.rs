//! The keys of all tables, and the parts of a key. No other file makes a key or reads one by position.

use super::record::Hash;
use super::table::Table;
use super::values::RecordPos;
use crate::fairness::Class;
use crate::storage::{Key, hash_at, number_at};
use crate::time::Timestamp;

impl RecordPos {
    /// The key of its pack.
    pub fn key(self) -> Key {
        pack(self.pack)
    }
}

pub fn pack(pack: u64) -> Key {
    Table::Pack.key().number(pack)
}

pub fn gone(pack: u64) -> Key {
    Table::Gone.key().number(pack)
}

pub fn piece(sequence: u64, number: u16) -> Key {
    Table::Piece.key().number(sequence).with(&number.to_be_bytes())
}

/// The place that the names of a settled message are sealed for. No row has this key.
pub fn names_place(sequence: u64) -> Key {
    Table::ClientToken.key().number(sequence)
}

/// The place that contents in a record are sealed for: their message. No row has this key.
pub fn inline_place(sequence: u64) -> Key {
    Table::Pack.key().number(sequence)
}

pub fn conversation(conversation: &Hash) -> Key {
    Table::Conversation.key().hash(conversation)
}

/// The beginning of the keys of a conversation's chunks.
pub fn chunks(conversation: &Hash) -> Key {
    Table::Chunk.key().hash(conversation)
}

pub fn chunk(conversation: &Hash, first: u64) -> Key {
    chunks(conversation).number(first)
}

pub fn entry(conversation: &Hash, entry: &Hash) -> Key {
    Table::ClientToken.key().hash(conversation).hash(entry)
}

pub fn turn(kind: Class, turn: u64, conversation: &Hash) -> Key {
    Table::turns(kind).key().number(turn).hash(conversation)
}

pub fn due(time: Timestamp, conversation: &Hash) -> Key {
    Table::Due.key().time(time).hash(conversation)
}

pub fn expiry(deadline: Timestamp, sequence: u64) -> Key {
    Table::Expiry.key().time(deadline).number(sequence)
}

pub fn token(token: &Hash) -> Key {
    Table::Token.key().hash(token)
}

pub fn participant(participant: &Hash) -> Key {
    Table::Participant.key().hash(participant)
}

pub fn caller(caller: u64) -> Key {
    Table::Caller.key().number(caller)
}

pub fn dead(sequence: u64) -> Key {
    Table::Dead.key().number(sequence)
}

pub fn prune_outcomes(recorded: Timestamp, row: u64) -> Key {
    Table::PruneOutcomes.key().time(recorded).number(row)
}

pub fn prune_used(used: Timestamp, row: u64) -> Key {
    Table::PruneUsed.key().time(used).number(row)
}

pub fn prune_dead(died: Timestamp, sequence: u64) -> Key {
    Table::PruneDead.key().time(died).number(sequence)
}

pub fn quarantine(key: &Key) -> Key {
    Table::Quarantine.key().with(key)
}

/// The number at the beginning of a key: of a pack, a message, a turn; in milliseconds, a time.
pub fn number_in(key: &[u8]) -> u64 {
    number_at(key, 1)
}

/// The number after the time in a key of `PruneOutcomes` or `PruneDead`.
pub fn row_in(key: &[u8]) -> u64 {
    number_at(key, 9)
}

/// The time at the beginning of a key.
pub fn time_in(key: &[u8]) -> Timestamp {
    Timestamp(number_at(key, 1))
}

/// The hash at the beginning of a key: of a conversation, a token, a participant.
pub fn hash_in(key: &[u8]) -> Hash {
    hash_at(key, 1)
}

/// The conversation after the turn or the time in a key of `FreshTurn`, `LateTurn` or `Due`.
pub fn conversation_in(key: &[u8]) -> Hash {
    hash_at(key, 9)
}

/// The sequence number of the first message in a key of `Chunk`.
pub fn first_in(key: &[u8]) -> u64 {
    number_at(key, 17)
}

/// The entry in a key of `ClientTokenRow`.
pub fn entry_in(key: &[u8]) -> Hash {
    hash_at(key, 17)
}
