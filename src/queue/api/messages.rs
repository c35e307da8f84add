//! Messages as operators select, see and change them.

use super::verdict::{Full, MessageId};
use crate::delivery::{Reason, ServiceError};
use crate::message::{Body, ConnectionToken};
use crate::queue::rows::Record;
use crate::time::Timestamp;

/// A selection of messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Queued messages or dead letters; `None` for both.
    pub state: Option<StateFilter>,
    /// Messages of conversations with this label.
    pub conversation: Option<Box<str>>,
    /// Dead letters with this reason.
    pub reason: Option<Reason>,
    /// Messages that were accepted after this time.
    pub accepted_after: Option<Timestamp>,
    /// Messages that were accepted before this time.
    pub accepted_before: Option<Timestamp>,
}

/// A part of the stored messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFilter {
    /// The queued messages.
    Queued,
    /// The dead letters.
    Dead,
}

/// A position in a list: after this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// Among the queued messages.
    Queued {
        /// The number of its pack.
        pack: u64,
        /// Its index there.
        nth: u8,
    },
    /// Among the dead letters, by sequence number.
    Dead(u64),
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The messages.
    pub messages: Vec<MessageView>,
    /// The position to continue from; `None` at the end.
    pub next: Option<Cursor>,
}

/// The result of one step of a bulk action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkProgress {
    /// Messages redriven, or deleted; those that would be, if nothing is to be changed.
    pub done: u64,
    /// Messages that were not changed, because an attempt is under way.
    pub in_flight: u64,
    /// The limit that ended the action, if one did.
    pub full: Option<Full>,
    /// The position to continue from; `None` at the end.
    pub next: Option<Cursor>,
}

/// A message as an operator sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageView {
    /// The relay's id of the message.
    pub id: MessageId,
    /// The ClientToken that Connect knows it by.
    pub client_token: Box<str>,
    /// Its conversation's label.
    pub conversation: Box<str>,
    /// Its ContentType; `None` for a disconnect.
    pub content_type: Option<Box<str>>,
    /// Its trace id.
    pub trace_id: Option<Box<str>>,
    /// The time of its acceptance.
    pub accepted: Timestamp,
    /// The end of its lifetime.
    pub deadline: Timestamp,
    /// Attempts that counted.
    pub attempts: u32,
    /// True if it may have been delivered.
    pub maybe_delivered: bool,
    /// Its place: queued or dead.
    pub place: Location,
    /// Its contents, if they were requested and can be read.
    pub body: Option<Body>,
}

/// The place of a message, as an operator sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum Location {
    /// It is queued.
    Queued {
        /// True while an attempt is under way.
        in_flight: bool,
        /// The time before which no message of its conversation is sent.
        next_attempt: Option<Timestamp>,
    },
    /// It is a dead letter.
    Dead {
        /// The time at which it was dead-lettered.
        died: Timestamp,
        /// The reason; `None` if its row was damaged.
        reason: Option<Reason>,
        /// The error of Connect, or of the relay.
        error: ServiceError,
    },
}

/// The result of a search for a message by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is queued or dead.
    Here(MessageId),
    /// It was accepted once, and was delivered or pruned since.
    Gone,
    /// No message had this id.
    Never,
}

/// The changes of a redrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redrive {
    /// The token to send it with; it moves to that token's conversation.
    pub token: Option<ConnectionToken>,
    /// Its new contents, with a new ClientToken.
    pub body: Option<Body>,
}

/// The reason why an operator's action did not change a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionError {
    /// It is queued already.
    Queued,
    /// An attempt is under way; its answer decides.
    InFlight,
    /// It was delivered or pruned.
    Gone,
    /// That token's conversation has a message of this ClientToken.
    Taken,
    /// The queue is full.
    Full(Full),
}

impl Selection {
    /// The position before the first message.
    #[must_use]
    pub fn start(&self) -> Cursor {
        match (self.state, self.reason) {
            (Some(StateFilter::Dead), _) | (None, Some(_)) => Cursor::Dead(0),
            _ => Cursor::Queued { pack: 0, nth: u8::MAX },
        }
    }

    /// Returns true if it selects all messages of its state.
    #[must_use]
    pub fn has_no_filter(&self) -> bool {
        *self == Selection { state: self.state, ..Selection::default() }
    }

    /// Returns true if a list of this selection can return this position.
    #[must_use]
    pub fn leads_to(&self, cursor: Cursor) -> bool {
        match cursor {
            Cursor::Queued { .. } => matches!(self.start(), Cursor::Queued { .. }),
            Cursor::Dead(_) => self.state != Some(StateFilter::Queued),
        }
    }

    pub(in crate::queue) fn has(&self, record: &Record) -> bool {
        self.conversation.as_ref().is_none_or(|label| **label == *record.label)
            && self.accepted_after.is_none_or(|time| record.accepted > time)
            && self.accepted_before.is_none_or(|time| record.accepted < time)
    }
}

/// `q12.3`, `d42`: what [`Cursor::parse`] reads.
impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cursor::Queued { pack, nth } => write!(f, "q{pack}.{nth}"),
            Cursor::Dead(sequence) => write!(f, "d{sequence}"),
        }
    }
}

impl Cursor {
    /// Parses the displayed form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Cursor> {
        if let Some(sequence) = text.strip_prefix('d') {
            return sequence.parse().ok().map(Cursor::Dead);
        }
        let (pack, nth) = text.strip_prefix('q')?.split_once('.')?;
        Some(Cursor::Queued { pack: pack.parse().ok()?, nth: nth.parse().ok()? })
    }
}

impl MessageId {
    /// The store's nonce and the sequence number in the displayed form of an id.
    pub(in crate::queue) fn parts(name: &str) -> Option<(u32, u64)> {
        let (store, sequence) = name.split_once('-')?;
        let parts = (u32::from_str_radix(store, 16).ok()?, sequence.parse().ok()?);
        // No other form is accepted.
        (format!("{:08x}-{}", parts.0, parts.1) == name).then_some(parts)
    }
}
