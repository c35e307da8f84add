//! What an operator is told.

use super::Full;
use super::expiring::Expiring;
use crate::time::Timestamp;

/// What waits, all in all or of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Messages queued.
    pub queued: u64,
    /// Acceptance of the oldest of them.
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

/// What the queue shows an operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// Messages queued.
    pub queued: u64,
    /// Acceptance of the oldest of them.
    pub oldest: Option<Timestamp>,
    /// Since when the longest waiting conversation could have been sent; none when nothing is due.
    pub oldest_due: Option<Timestamp>,
    /// Conversations with something queued.
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
    /// Which limit refuses new messages now.
    pub full: Option<Full>,
    /// A damaged store lies set aside.
    pub set_aside: bool,
    /// Rows that failed their sums and were set aside since the start.
    pub corrupt: u64,
    /// The operator's pause, if sending is paused.
    pub paused: Option<Pause>,
    /// The time since which the destination refuses every token and has never delivered anything.
    pub all_refused: Option<Timestamp>,
    /// The loss to come.
    pub expiring: Expiring,
}
