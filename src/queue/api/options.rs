//! The queue's settings.

use std::path::PathBuf;
use std::time::Duration;

use crate::storage::SealingKey;

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
