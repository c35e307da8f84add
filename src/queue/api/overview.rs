//! The queue's state for operators.

use super::verdict::Full;
use crate::time::Timestamp;

/// The queued messages of one caller, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Messages queued.
    pub queued: u64,
    /// The acceptance of the oldest of them.
    pub oldest: Option<Timestamp>,
}

/// An operator's pause of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// The time at which it began.
    pub since: Timestamp,
    /// The operator's reason; empty if none was given.
    pub why: String,
}

/// The state of the queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// Messages queued.
    pub queued: u64,
    /// The acceptance of the oldest of them.
    pub oldest: Option<Timestamp>,
    /// The time since which the longest waiting conversation could have been sent; `None` if nothing is due.
    pub oldest_due: Option<Timestamp>,
    /// Conversations with queued messages.
    pub conversations: u64,
    /// Of them, held after a refused token.
    pub held: u64,
    /// Of them, with a head that may have been delivered.
    pub answer_lost: u64,
    /// Dead letters kept.
    pub dead: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes free on the volume.
    pub disk_free: u64,
    /// The limit that refuses new messages now, if there is one.
    pub full: Option<Full>,
    /// True while a damaged store is set aside.
    pub set_aside: bool,
    /// Rows that failed their checksums and were set aside since the start.
    pub corrupt: u64,
    /// The operator's pause, if sending is paused.
    pub paused: Option<Pause>,
    /// The time since which the destination refuses every token and has never delivered anything.
    pub all_refused: Option<Timestamp>,
    /// The estimated loss.
    pub expiring: Expiring,
}

/// The estimated loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiring {
    /// The approximate number of queued messages that will expire before they can be sent.
    pub messages: u64,
    /// The time at which the first of them expires.
    pub first: Option<Timestamp>,
}
