//! `GET /summary`: the stored messages by age and reason, and the conversations that fill the queue. No contents, no tokens.

pub(super) mod schema;

use hyper::StatusCode;

use self::schema::{Age, ConversationCount, Summary};
use super::Control;
use super::reply::{ErrorReply, json};
use crate::queue::{self, AGES};
use crate::serve::Reply;

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
