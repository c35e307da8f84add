//! The tables of the queue, which share one tree of the store.

use serde::de::DeserializeOwned;

use super::record::{Hash, PIECE};
use super::values::{ClientTokenRow, Conversation, Dead, Meta, Participant, PauseState, QueuedRef, RecordPos, Token};
use crate::fairness::Class;
use crate::storage::row::decode;
use crate::storage::{Key, Secret};
use crate::time::{Anchor, Timestamp};

/// A table. Its discriminant is the first byte of all its keys.
///
/// Each variant's text is: the parts of the key after that byte, the type of the value, the meaning. The letters `j` and `f`
/// are the storage's own (its position in the journal, a copy of the format stamp), and `s` alone is the place that its key
/// is sealed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    /// No parts, [`Meta`]: the next numbers and the counts. Written with every batch.
    Meta = b'!',
    /// No parts, [`Anchor`]: the position of all times in the store on the machine's clocks. Since format 4.
    Anchor = b'c',
    /// Pack, [records](super::pack): queued messages that were accepted together. These rows are the truth.
    Pack = b'm',
    /// Pack, `u64`: the records of the pack that have left, a bit each.
    Gone = b'l',
    /// Sequence number and piece number, [`Secret`]: a piece of contents that are too long for their record.
    Piece = b'p',
    /// Conversation, [`Conversation`]: its messages in order, its schedule, its hold.
    Conversation = b'v',
    /// Conversation and the sequence number of the first, `Vec<QueuedRef>`: messages that do not fit in its row.
    Chunk = b's',
    /// Conversation and entry, [`ClientTokenRow`]: a message in a chunk, or an outcome.
    ClientToken = b'i',
    /// Turn and conversation, [`Timestamp`]: the turn of a conversation with a fresh head, and the time it was given.
    FreshTurn = b'r',
    /// The same for a conversation whose head is late.
    LateTurn = b'q',
    /// Time and conversation, `()`: the conversation can be sent from then on.
    Due = b'd',
    /// Time and sequence number, [`RecordPos`]: the expiry of a message that has not the default lifetime.
    Expiry = b'e',
    /// Hash of a ConnectionToken, [`Token`]: its conversation and its state.
    Token = b't',
    /// Hash of a participant, [`Participant`]: the newest ConnectionToken.
    Participant = b'g',
    /// No parts, [`PauseState`]: the pause, the last reset of refusals, the last destination that delivered.
    PauseState = b'h',
    /// Caller, `u64`: the number of messages queued by one caller.
    Caller = b'u',
    /// Sequence number, [`Dead`]: a dead letter.
    Dead = b'x',
    /// Time and a number, `Vec<(Hash, Hash)>`: outcomes recorded then (conversation, entry), in their order: the index of
    /// the stream of outcomes, and what is to be pruned. Before format 5 without those of dead letters.
    PruneOutcomes = b'o',
    /// Time and a number, `Vec<(u8, Hash)>`: tokens, participants and conversations last used then, to be pruned.
    PruneUsed = b'y',
    /// Time and sequence number, `()`: a dead letter of then, to be pruned.
    PruneDead = b'z',
    /// The whole key of another row, bytes: a row that failed its checksum. Nothing decodes it.
    Quarantine = b'k',
}

/// The tables of the rows that a hash in a `PruneUsed` row can name.
pub const USED_TOKEN: u8 = Table::Token.letter();
pub const USED_PARTICIPANT: u8 = Table::Participant.letter();
pub const USED_CONVERSATION: u8 = Table::Conversation.letter();

/// Tables of rows that are written once and never changed.
pub const WRITE_ONCE: &[u8] =
    &[Table::Pack.letter(), Table::Piece.letter(), Table::LateTurn.letter(), Table::FreshTurn.letter()];

impl Table {
    pub const ALL: [Table; 21] = [
        Table::Meta,
        Table::Anchor,
        Table::Pack,
        Table::Gone,
        Table::Piece,
        Table::Conversation,
        Table::Chunk,
        Table::ClientToken,
        Table::FreshTurn,
        Table::LateTurn,
        Table::Due,
        Table::Expiry,
        Table::Token,
        Table::Participant,
        Table::PauseState,
        Table::Caller,
        Table::Dead,
        Table::PruneOutcomes,
        Table::PruneUsed,
        Table::PruneDead,
        Table::Quarantine,
    ];

    /// Returns the table of a key. `None` if it is not a key of the queue.
    pub fn of(key: &[u8]) -> Option<Table> {
        let letter = *key.first()?;
        Table::ALL.into_iter().find(|table| table.letter() == letter)
    }

    /// Returns the table of the turns of conversations with such a head.
    pub const fn turns(kind: Class) -> Table {
        match kind {
            Class::Fresh => Table::FreshTurn,
            Class::Late => Table::LateTurn,
        }
    }

    pub const fn letter(self) -> u8 {
        self as u8
    }

    /// Returns the beginning of all keys of the table. It is the whole key if the table has one row.
    pub fn key(self) -> Key {
        Key::new(self.letter())
    }

    /// Returns true if a row of the table verifies. A pack has a checksum in each record instead, and a quarantined row
    /// is damaged.
    pub fn verify(self, key: &[u8], value: &[u8]) -> bool {
        fn is<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> bool {
            decode::<T>(key, value).is_some()
        }
        match self {
            Table::Pack | Table::Quarantine => true,
            Table::Meta => is::<Meta>(key, value),
            Table::Anchor => is::<Anchor>(key, value),
            Table::Gone | Table::Caller => is::<u64>(key, value),
            Table::Piece => is::<Secret>(key, value),
            Table::Conversation => is::<Conversation>(key, value),
            Table::Chunk => is::<Vec<QueuedRef>>(key, value),
            Table::ClientToken => is::<ClientTokenRow>(key, value),
            Table::FreshTurn | Table::LateTurn => is::<Timestamp>(key, value),
            Table::Due | Table::PruneDead => is::<()>(key, value),
            Table::Expiry => is::<RecordPos>(key, value),
            Table::Token => is::<Token>(key, value),
            Table::Participant => is::<Participant>(key, value),
            Table::PauseState => is::<PauseState>(key, value),
            Table::Dead => is::<Dead>(key, value),
            Table::PruneOutcomes => is::<Vec<(Hash, Hash)>>(key, value),
            Table::PruneUsed => is::<Vec<(u8, Hash)>>(key, value),
        }
    }
}

/// Returns the bytes that the removal of a row counts in a checkpoint's batch beside its key. A piece of contents counts
/// with the longest value it can have, because sled reads and rewrites its leaf.
pub fn removal_weight(key: &[u8]) -> usize {
    if key.first() == Some(&Table::Piece.letter()) { PIECE } else { 0 }
}
