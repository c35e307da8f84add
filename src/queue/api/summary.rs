//! The summary of the stored messages for operators. A step counts some rows and records its position, so that other
//! requests run between two steps.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::queue::rows::{Hash, Key, Table};
use crate::time::Timestamp;

/// The upper bounds of the classes of age; older messages are one more class.
pub const AGES: [Duration; 7] = [
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(24 * 3600),
    Duration::from_secs(7 * 24 * 3600),
];

/// The counts of the stored messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Queued messages in each class of age, since acceptance.
    pub queued: [u64; AGES.len() + 1],
    /// Dead letters in each class of age, since acceptance.
    pub dead: [u64; AGES.len() + 1],
    /// Dead letters by reason; `unknown` if the outcome is damaged.
    pub reasons: BTreeMap<&'static str, u64>,
    /// The conversations with most queued messages, most first.
    pub most_queued: Vec<ConversationCount>,
    /// The conversations whose oldest message has waited longest, longest first.
    pub longest_waiting: Vec<ConversationCount>,
    /// The conversations of these two lists, with the number by which they are ranked.
    pub(in crate::queue) ranked: [Vec<(u64, Hash)>; 2],
    /// The table that is being counted, and the last row counted. `None` if the summary is complete.
    pub(in crate::queue) position: Option<(Table, Key)>,
}

/// The queued messages of one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationCount {
    /// Its label.
    pub conversation: Box<str>,
    /// Messages queued.
    pub queued: u64,
    /// The acceptance of the oldest of them.
    pub oldest: Timestamp,
}

impl Summary {
    /// Returns true if nothing is left to count.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.position.is_none()
    }
}

/// A summary in which nothing is counted yet.
impl Default for Summary {
    fn default() -> Summary {
        Summary {
            queued: Default::default(),
            dead: Default::default(),
            reasons: BTreeMap::new(),
            most_queued: Vec::new(),
            longest_waiting: Vec::new(),
            ranked: Default::default(),
            position: Some((Table::Conversation, Table::Conversation.key())),
        }
    }
}
