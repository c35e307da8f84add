//! The types of the queue's interface. They contain no logic of the queue.

pub mod lease;
pub mod messages;
pub mod outcomes;
pub mod summary;
pub mod verdict;

use std::path::PathBuf;
use std::time::Duration;

pub use self::lease::{Lease, LeaseRequest, Settled, Work};
pub use self::messages::{
    ActionError, BulkProgress, Cursor, Location, Lookup, MessageView, Page, Redrive, Selection, StateFilter,
};
pub use self::outcomes::{OutcomeCursor, OutcomeEvent, OutcomePage};
pub use self::summary::{AGES, ConversationCount, Summary};
pub use self::verdict::{Asker, Found, Full, MessageId, MessageState, Rejection, Status, Stopped, Verdict};
use crate::storage::SealingKey;
use crate::time::Timestamp;

/// The result of a step that reads or writes the store.
pub type Result<T, E = crate::storage::StoreFailed> = std::result::Result<T, E>;

/// The queue's settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The folder.
    pub path: PathBuf,
    /// The most messages queued at once.
    pub messages_max: u64,
    /// The most bytes on disk.
    pub bytes_max: u64,
    /// Bytes that must stay free on the volume.
    pub free_disk_min: u64,
    /// The time for which a delivered message's outcome answers repeats.
    pub outcomes_kept_for: Duration,
    /// The most outcomes that are kept; the oldest are pruned first.
    pub outcomes_max: u64,
    /// The time for which a dead letter is kept.
    pub dead_kept_for: Duration,
    /// The most dead letters that are kept; the oldest are pruned first.
    pub dead_max: u64,
    /// Accept a folder in memory (tmpfs, ramfs).
    pub volatile: bool,
    /// The treatment of a damaged store.
    pub damaged: Damaged,
    /// The keys for contents and ConnectionTokens: the first one seals, all of them open. Without keys nothing is sealed.
    pub keys: Vec<SealingKey>,
    /// The lifetime of a message whose bot names none.
    pub lifetime: Duration,
    /// The age up to which a message makes its conversation a fresh one.
    pub fresh: Duration,
    /// The time for which a conversation waits for a renewed token after a refusal.
    pub token_wait: Duration,
    /// The time for which submissions with a refused token are rejected.
    pub refused_for: Duration,
    /// The time between two messages while the destination refuses every token.
    pub probe_max: Duration,
    /// The longest delay that a due time read from disk may mean (clocks step).
    pub due_max: Duration,
    /// The name of the destination. A destination that has delivered before may refuse any number of tokens.
    pub destination: String,
}

/// The treatment of a damaged store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Damaged {
    /// It is set aside, and its valid rows are copied into a new one.
    #[default]
    SetAside,
    /// It is not changed, and not opened.
    Refuse,
}

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
    /// The commits that the fleet did not have when they were answered, and the time since which.
    pub behind: (u64, Option<Timestamp>),
}

/// The estimated loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiring {
    /// The approximate number of queued messages that will expire before they can be sent.
    pub messages: u64,
    /// The time at which the first of them expires.
    pub first: Option<Timestamp>,
}

impl Expiring {
    /// Limits an estimate to the messages that are queued now: many can have been sent since it was made.
    #[must_use]
    pub fn of_at_most(self, queued: u64) -> Expiring {
        if queued == 0 { Expiring::default() } else { Expiring { messages: self.messages.min(queued), ..self } }
    }
}
