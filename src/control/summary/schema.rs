//! The JSON of the summary.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The reply to `GET /summary`. Messages that leave or arrive while the relay counts may be in one count and not in another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Summary {
    /// Messages queued.
    pub queued: u64,
    /// Conversations with queued messages.
    pub conversations: u64,
    /// The estimated number of queued messages that will expire before they can be sent.
    pub expiring: u64,
    /// The time at which the first of them expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_expiry: Option<String>,
    /// Dead letters.
    pub dead: u64,
    /// Dead letters by reason.
    pub reasons: BTreeMap<String, u64>,
    /// The messages by the time since their acceptance, youngest first.
    pub ages: Vec<Age>,
    /// The conversations with most queued messages.
    pub most_queued: Vec<ConversationCount>,
    /// The conversations whose oldest message has waited longest.
    pub longest_waiting: Vec<ConversationCount>,
}

/// The messages of one class of age.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Age {
    /// The upper bound; `None` for all that are older.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_to_seconds: Option<u64>,
    /// Messages queued.
    pub queued: u64,
    /// Dead letters.
    pub dead: u64,
}

/// The queued messages of one conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ConversationCount {
    /// The conversation's label, as in the log.
    pub conversation: String,
    /// Messages queued.
    pub queued: u64,
    /// The acceptance of the oldest of them.
    pub oldest_accepted_time: String,
    /// The time since then, in seconds.
    pub oldest_seconds: f64,
}
