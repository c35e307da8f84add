//! What operators hand over and are told, as JSON.

use serde::{Deserialize, Serialize};

use crate::message::Body;
use crate::queue::{Seen, SeenPlace};
use crate::time::Clock;

/// A message, as operators see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Message {
    /// The relay's id of it.
    pub id: String,
    /// The token that Connect knows it by.
    pub client_token: String,
    /// `QUEUED` or `DEAD`.
    pub state: String,
    /// As the log calls it.
    pub conversation: String,
    /// None for a disconnect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// When it was accepted.
    pub accepted_time: String,
    /// When its lifetime ends, or ended.
    pub expiry_time: String,
    /// Attempts that counted.
    pub attempts: u32,
    /// Before this nothing of its conversation is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<String>,
    /// An attempt is under way.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_flight: bool,
    /// When it died.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_time: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What upstream, or the relay, said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Said>,
    /// It may have been delivered.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub maybe_delivered: bool,
    /// The trace it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// What it says; only where contents were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// An error that a message died of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Said {
    /// Its code.
    pub code: String,
    /// Its text; upstream's only where contents were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The reply to `GET /messages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Messages {
    /// What is queued, in the order of acceptance, and then what is dead.
    pub messages: Vec<Message>,
    /// The `after` of the next page; none at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The reply to `POST /redrive`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Redriven {
    /// Messages that are queued again.
    pub redriven: u64,
    /// Why it ended before the end: for what there is no room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// The `after` of the next page; none at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The reply to `DELETE /messages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Deleted {
    /// Messages that are dead now.
    pub deleted: u64,
    /// Messages that were left, because an attempt is under way.
    pub in_flight: u64,
    /// The `after` of the next page; none at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The body of `POST /messages/{id}/redrive`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct RedriveWish {
    /// It goes with this token, in that one's conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_token: Option<String>,
    /// It says this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// It is of this type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// A token and contents are not shown.
impl std::fmt::Debug for RedriveWish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedriveWish(…)")
    }
}

impl Message {
    /// `clock` shows the times.
    pub(super) fn of(seen: Seen, clock: &Clock) -> Message {
        let shown = |time| clock.shown(time).to_string();
        let Seen { id, client_token, conversation, content_type, trace_id, attempts, maybe_delivered, .. } = seen;
        // It is there where contents were asked for.
        let asked = seen.body.is_some();
        let content = seen.body.as_ref().and_then(Body::content).map(|content| content.expose().to_owned());
        let message = Message {
            id: id.to_string(),
            client_token: client_token.into(),
            conversation: conversation.into(),
            content_type: content_type.map(Into::into),
            accepted_time: shown(seen.accepted),
            expiry_time: shown(seen.deadline),
            attempts,
            maybe_delivered,
            trace_id: trace_id.map(Into::into),
            ..Message::default()
        };
        match seen.place {
            SeenPlace::Queued { in_flight, next_attempt } => Message {
                state: "QUEUED".into(),
                in_flight,
                next_attempt_time: next_attempt.map(shown),
                content,
                ..message
            },
            SeenPlace::Dead { died, reason, error } => {
                let text_shown = asked || error.text.starts_with("connect-relay: ");
                Message {
                    state: "DEAD".into(),
                    dead_time: Some(shown(died)),
                    reason: reason.map(|reason| reason.as_str().into()),
                    error: reason
                        .map(|_| Said { code: error.code.into(), message: text_shown.then(|| error.text.into()) }),
                    content,
                    ..message
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wish_is_not_shown() {
        let wish =
            RedriveWish { connection_token: Some("canary".into()), content: Some("canary".into()), content_type: None };
        assert!(!format!("{wish:?}").contains("canary"));
    }
}
