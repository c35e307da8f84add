//! The JSON of requests and replies for operators.

use serde::{Deserialize, Serialize};

use crate::message::Body;
use crate::queue::{Location, MessageView};
use crate::time::Clock;

/// A message, as operators see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Message {
    /// The relay's id of the message.
    pub id: String,
    /// The token by which Connect knows the message.
    pub client_token: String,
    /// `QUEUED` or `DEAD`.
    pub state: String,
    /// The conversation's label, as in the log.
    pub conversation: String,
    /// The content type; `None` for a disconnect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The time of its acceptance.
    pub accepted_time: String,
    /// The end of its lifetime.
    pub expiry_time: String,
    /// The counted attempts.
    pub attempts: u32,
    /// The time before which nothing of its conversation is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<String>,
    /// True while an attempt is in flight.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_flight: bool,
    /// The time at which it became a dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_time: Option<String>,
    /// The reason for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The error of upstream, or of the relay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<MessageError>,
    /// True if it may have been delivered.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub maybe_delivered: bool,
    /// The trace of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The contents; only if they were requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// The error that made a message a dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MessageError {
    /// The error code.
    pub code: String,
    /// The error text; upstream's only if contents were requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The reply to `GET /messages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Messages {
    /// The queued messages, in the order of acceptance, and then the dead letters.
    pub messages: Vec<Message>,
    /// The `after` of the next page; `None` at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The reply to `POST /redrive`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Redriven {
    /// Messages that are queued again; with `dry_run`, those that would be.
    pub redriven: u64,
    /// True if it only counted them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The limit that stopped it early: there is no room for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// The `after` of the next page; `None` at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The reply to `DELETE /messages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Deleted {
    /// Messages that are deleted now; with `dry_run`, those that would be.
    pub deleted: u64,
    /// Messages that were not deleted, because an attempt is in flight.
    pub in_flight: u64,
    /// True if it only counted them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The `after` of the next page; `None` at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The body of `POST /messages/{id}/redrive`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct RedriveRequest {
    /// A token to send it with, in that token's conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_token: Option<String>,
    /// The new contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The new content type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// Hides the token and the contents.
impl std::fmt::Debug for RedriveRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedriveRequest(…)")
    }
}

impl Message {
    /// Converts a message; `clock` converts the times.
    pub(super) fn of(seen: MessageView, clock: &Clock) -> Message {
        let shown = |time| clock.shown(time).to_string();
        let MessageView { id, client_token, conversation, content_type, trace_id, attempts, maybe_delivered, .. } =
            seen;
        // The body is present if contents were requested.
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
            Location::Queued { in_flight, next_attempt } => Message {
                state: "QUEUED".into(),
                in_flight,
                next_attempt_time: next_attempt.map(shown),
                content,
                ..message
            },
            Location::Dead { died, reason, error } => {
                let text_shown = asked || error.text.starts_with("connect-relay: ");
                Message {
                    state: "DEAD".into(),
                    dead_time: Some(shown(died)),
                    reason: reason.map(|reason| reason.as_str().into()),
                    error: reason.map(|_| {
                        let message = text_shown.then(|| error.text.into());
                        MessageError { code: error.code.into(), message }
                    }),
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
    fn debug_of_a_redrive_request_shows_no_secrets() {
        let request = RedriveRequest {
            connection_token: Some("canary".into()),
            content: Some("canary".into()),
            content_type: None,
        };
        assert!(!format!("{request:?}").contains("canary"));
    }
}
