//! A queued message, as it was accepted.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::message::Caller;
use crate::message_log::Subject;
use crate::storage::Secret;
use crate::time::Timestamp;

/// The most bytes of contents that are in their record.
pub const INLINE_MAX: usize = 3584;
/// The bytes of a piece of longer contents.
pub const PIECE: usize = 4096;
/// The bits of a record's `pieces` that count them; the bits above count its changes.
const PIECES_MAX: u16 = 0xff;

/// 128 bits of a keyed hash.
pub type Hash = [u8; 16];

/// A queued message. No attempt rewrites it: the results are in its conversation's row. A redrive files a new copy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub sequence: u64,
    pub conversation: Hash,
    pub entry: Hash,
    /// The hash that a repeat is compared with.
    pub contents: Hash,
    pub label: String,
    pub client_token: String,
    /// The token that it came with.
    pub token: Hash,
    pub caller: u64,
    pub trace_id: Option<String>,
    pub accepted: Timestamp,
    pub lifetime_ms: u64,
    pub deadline: Timestamp,
    /// True if it has the default lifetime; otherwise it has a row in `Table::Expiry`.
    pub default_lifetime: bool,
    pub kind: Kind,
    /// The number of pieces, and above it the number of changes by operators: [`Record::piece_numbers`].
    /// If there are pieces, `inline` is empty.
    pub pieces: u16,
    pub inline: Secret,
}

/// The kind of body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Message(u8),
    Event {
        content_type: String,
        content: bool,
    },
    #[default]
    Disconnect,
}

impl Record {
    /// The message of a log line.
    pub fn subject<'a>(&'a self, id: &'a dyn std::fmt::Display) -> Subject<'a> {
        let Record { label, client_token, trace_id, .. } = self;
        Subject { message: id, conversation: label, client_token, trace_id: trace_id.as_deref() }
    }

    /// The numbers of its pieces. Changed contents have new numbers: no row of a piece is written twice.
    pub fn piece_numbers(&self) -> Range<u16> {
        let first = self.pieces & !PIECES_MAX;
        first..first + (self.pieces & PIECES_MAX)
    }

    /// Begins new contents, which have no pieces yet.
    pub fn change_pieces(&mut self) {
        self.pieces = (self.pieces & !PIECES_MAX).wrapping_add(PIECES_MAX + 1);
    }

    /// The approximate number of bytes of its rows besides its pack.
    pub fn weight(&self) -> u64 {
        (self.piece_numbers().len() * PIECE + 150) as u64
    }

    /// The approximate number of bytes of its dead letter.
    pub fn dead_weight(&self) -> u64 {
        (self.inline.bytes().len() + 200) as u64
    }
}

/// The caller with this number.
pub fn caller_of(number: u64) -> Caller {
    u32::try_from(number).map_or(Caller::Tcp, Caller::Uid)
}

/// The number of a caller in keys, records and hashes.
pub fn caller_number(caller: Caller) -> u64 {
    match caller {
        Caller::Uid(uid) => u64::from(uid),
        Caller::Tcp => u64::MAX,
    }
}
