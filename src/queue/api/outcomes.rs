//! The outcomes of one caller's messages, as a stream shows them.

use super::verdict::MessageState;
use crate::time::Timestamp;

/// A position in the outcomes of all callers, in the order of their commits: after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutcomeCursor {
    /// Distinguishes the cursors of this store from those of others.
    pub(in crate::queue) store: u32,
    /// The time of the commit.
    pub(in crate::queue) at: Timestamp,
    /// The number of a row of that commit.
    pub(in crate::queue) row: u64,
    /// The index in that row.
    pub(in crate::queue) nth: u8,
}

/// The outcome of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct OutcomeEvent {
    /// The position after it.
    pub cursor: OutcomeCursor,
    /// The message, delivered or dead.
    pub state: MessageState,
    /// Its ClientToken.
    pub client_token: Box<str>,
    /// Its conversation's label.
    pub conversation: Box<str>,
}

/// The next outcomes of one caller.
#[derive(Clone, Debug, PartialEq)]
pub struct OutcomePage {
    /// The outcomes, in order.
    pub events: Vec<OutcomeEvent>,
    /// The position to continue from.
    pub next: OutcomeCursor,
    /// True if there may be more now.
    pub more: bool,
}

/// `9f86d081-1764397267123-42-0`: what [`OutcomeCursor::parse`] reads.
impl std::fmt::Display for OutcomeCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OutcomeCursor { store, at, row, nth } = self;
        write!(f, "{store:08x}-{}-{row}-{nth}", at.0)
    }
}

impl OutcomeCursor {
    /// Parses the displayed form, and no other.
    #[must_use]
    pub fn parse(text: &str) -> Option<OutcomeCursor> {
        let mut parts = text.split('-');
        let store = u32::from_str_radix(parts.next()?, 16).ok()?;
        let at = Timestamp(parts.next()?.parse().ok()?);
        let cursor = OutcomeCursor { store, at, row: parts.next()?.parse().ok()?, nth: parts.next()?.parse().ok()? };
        (cursor.to_string() == text).then_some(cursor)
    }
}
