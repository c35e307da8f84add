//! A queued message, and the facts known of a ClientToken.

use crate::queue::rows::{Hash, Outcome, QueuedRef, Record};
use crate::time::Timestamp;

/// A queued message.
pub struct Queued {
    pub reference: QueuedRef,
    pub record: Record,
}

/// The message or the outcome that a ClientToken names.
pub enum Known {
    Queued(Queued),
    Done(Outcome),
}

impl Known {
    pub fn contents(&self) -> &Hash {
        match self {
            Known::Queued(queued) => &queued.record.contents,
            Known::Done(outcome) => &outcome.contents,
        }
    }

    pub fn accepted(&self) -> Timestamp {
        match self {
            Known::Queued(queued) => queued.record.accepted,
            Known::Done(outcome) => outcome.accepted,
        }
    }
}
