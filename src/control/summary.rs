//! `GET /summary`: the stored messages by age and reason, and the conversations that fill the queue. No contents, no tokens.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::Control;
use super::reply::{ErrorReply, json};
use crate::queue::{self, AGES};
use crate::serve::Reply;

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

impl Control {
    /// `GET /summary`
    pub(super) async fn summary(&self) -> Result<Reply, ErrorReply> {
        let mut counted = queue::Summary::default();
        while !counted.is_complete() {
            counted = self.ask_queue(self.queue.summarize(counted)).await?;
        }
        let overview = self.ask_queue(self.queue.overview()).await?;
        let (now, shown) = (self.clock.now(), |time| self.clock.shown(time).to_string());
        let conversations = |counts: Vec<queue::ConversationCount>| {
            let of = |count: queue::ConversationCount| ConversationCount {
                conversation: count.conversation.into(),
                queued: count.queued,
                oldest_accepted_time: shown(count.oldest),
                oldest_seconds: now.since(count.oldest).as_secs_f64(),
            };
            counts.into_iter().map(of).collect()
        };
        let bounds = AGES.iter().map(|age| Some(age.as_secs())).chain([None]);
        let ages = bounds.zip(counted.queued).zip(counted.dead);
        let summary = Summary {
            queued: overview.queued,
            conversations: overview.conversations,
            expiring: overview.expiring.messages,
            first_expiry: overview.expiring.first.map(shown),
            dead: overview.dead,
            reasons: counted.reasons.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
            ages: ages.map(|((up_to_seconds, queued), dead)| Age { up_to_seconds, queued, dead }).collect(),
            most_queued: conversations(counted.most_queued),
            longest_waiting: conversations(counted.longest_waiting),
        };
        Ok(json(StatusCode::OK, &summary))
    }
}
