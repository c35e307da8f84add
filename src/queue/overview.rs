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

/// Nothing is sent for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Since then.
    pub since: Timestamp,
    /// Why.
    pub reason: PauseReason,
}

/// Why nothing is sent for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// An operator said so, in these words.
    Operator(String),
    /// The destination refused three tokens, and never delivered anything.
    AllRefused,
}

impl PauseReason {
    /// The reason as it is shown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            PauseReason::Operator(why) => why,
            PauseReason::AllRefused => "all_refused",
        }
    }
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
    pub unknown: u64,
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
    /// Whether sending is paused.
    pub paused: Option<Pause>,
    /// The loss to come.
    pub expiring: Expiring,
}
