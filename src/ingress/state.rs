//! The state of a message, and the waiting messages.
//!
//! Both requests are safe at any time, also while the relay is stopping, and both can wait: for the outcome of the
//! message, or for an empty queue. A message is shown only to a caller that presents a token of its conversation.

use std::time::Duration;

use hyper::StatusCode;
use hyper::http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::error_reply::ErrorReply;
use super::reply::{self, ErrorPart, MessageMetadata, Outlook};
use super::request::{Identity, Preference};
use super::{Handled, Inner, ReplyMode, applied};
use crate::delivery::Receipt;
use crate::message::{self, Caller, ClientToken, ConnectionToken, ConversationKey};
use crate::queue::{Backlog, Found, MessageState, Status, StoreFailed};
use crate::serve::Reply;
use crate::time::Clock;

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Known<'a> {
    client_token: &'a str,
    state: &'static str,
    conversation: &'a str,
    accepted_time: String,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ahead: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    absolute_time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_metadata: Option<MessageMetadata<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorPart<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    maybe_delivered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Waiting {
    queued: u64,
    oldest_seconds: f64,
    rate: f64,
    draining: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Inner {
    /// `GET /participant/message/{ClientToken}`
    pub(super) async fn state(&self, parts: &Parts, caller: Caller) -> Handled {
        let client_token = client_token(parts.uri.path())?;
        let Identity { token, conversation } = Identity::of(&parts.headers)?;
        let label = message::label(conversation.as_ref(), &token);
        let state = self.find(token, conversation, caller, &client_token).await?;
        let wait = self.wait(Preference::of(&parts.headers), ReplyMode::Accepted);
        let state = self.outcome(state, None, &wait).await;
        let outlook = self.outlook(&state).map(|outlook| Outlook { note: wait.note(), ..outlook });
        let mut reply = describe(&state, &client_token, &label, outlook, &self.clock);
        reply::add_message_headers(&mut reply, &state, &client_token);
        Ok(applied(reply::add_durable(reply, self.queue.copy()), wait.applied))
    }

    async fn find(
        &self,
        token: ConnectionToken,
        conversation: Option<ConversationKey>,
        caller: Caller,
        client_token: &ClientToken,
    ) -> Result<MessageState, ErrorReply> {
        let asker = Identity { token, conversation }.asker(caller);
        match self.queue.find(asker, client_token.clone()).await? {
            Found::State(state) => Ok(state),
            Found::OtherConversation => Err(ErrorReply::other_conversation()),
            Found::Unknown => Err(ErrorReply::new(
                StatusCode::NOT_FOUND,
                "ResourceNotFoundException",
                "connect-relay: no message of this ClientToken is known in this conversation (queue.outcomes_kept_for)",
            )),
        }
    }

    /// `GET /participant/queue`
    pub(super) async fn backlog(&self, parts: &Parts, caller: Caller) -> Handled {
        let wait = self.wait(Preference::of(&parts.headers), ReplyMode::Accepted);
        let backlog = if wait.span.is_zero() {
            self.queue.backlog(Some(caller)).await?
        } else {
            self.wait_until_empty(caller, wait.span).await?
        };
        let waiting = Waiting {
            queued: backlog.queued,
            oldest_seconds: backlog.oldest.map_or(0.0, |oldest| self.clock.now().since(oldest).as_secs_f64()),
            rate: (self.budget.pacer().rate() * 1000.0).round() / 1000.0,
            draining: self.drain_state.is_draining(),
            note: wait.note().filter(|_| backlog.queued > 0),
        };
        Ok(applied(reply::of_json(StatusCode::OK, &waiting), wait.applied))
    }

    /// Waits at most `wait` until no message of the caller is queued.
    async fn wait_until_empty(&self, caller: Caller, wait: Duration) -> Result<Backlog, StoreFailed> {
        let empty = async {
            loop {
                let mut drained = std::pin::pin!(self.queue.drained());
                drained.as_mut().enable();
                let backlog = self.queue.backlog(Some(caller)).await?;
                if backlog.queued == 0 {
                    return Ok(backlog);
                }
                drained.await;
            }
        };
        tokio::select! {
            backlog = empty => return backlog,
            () = tokio::time::sleep(wait) => {}
            () = self.drain_state.waits_end() => {}
        }
        self.queue.backlog(Some(caller)).await
    }
}

fn describe(
    state: &MessageState,
    client_token: &ClientToken,
    label: &str,
    outlook: Option<Outlook>,
    clock: &Clock,
) -> Reply {
    let shown = |time| clock.shown(time).to_string();
    let known = Known {
        client_token: client_token.as_str(),
        state: reply::name(&state.status),
        conversation: label,
        accepted_time: shown(state.accepted),
        attempts: state.attempts,
        ..Known::default()
    };
    match &state.status {
        Status::Queued { next_attempt, ahead, .. } => reply::of_json(
            StatusCode::OK,
            &Known {
                next_attempt_time: next_attempt.map(shown),
                ahead: Some(*ahead),
                expected_time: outlook.as_ref().and_then(|outlook| outlook.expected).map(|time| time.to_string()),
                note: outlook.and_then(|outlook| outlook.note),
                ..known
            },
        ),
        Status::Delivered(receipt) => {
            let Receipt { id, absolute_time, .. } = receipt;
            reply::of_json(
                StatusCode::OK,
                &Known {
                    id: id.as_deref(),
                    absolute_time: absolute_time.as_deref(),
                    message_metadata: MessageMetadata::of(receipt),
                    ..known
                },
            )
        }
        Status::Dead { reason, maybe_delivered, error } => {
            let reply = ErrorReply::of_dead(*reason, *maybe_delivered, error);
            let error = ErrorPart { reason: Some(reason.as_str()), ..ErrorPart::of(&reply) };
            reply::of_json(StatusCode::OK, &Known { error: Some(error), maybe_delivered: *maybe_delivered, ..known })
        }
    }
}

fn client_token(path: &str) -> Result<ClientToken, ErrorReply> {
    let encoded = path.strip_prefix("/participant/message/").unwrap_or_default();
    let text = percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| ErrorReply::invalid("ClientToken in the path is not percent-encoded UTF-8"))?;
    ClientToken::parse(&text)?.ok_or_else(|| ErrorReply::invalid("ClientToken in the path is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_token_in_the_path_is_percent_encoded() {
        let token = |rest: &str| {
            client_token(&format!("/participant/message/{rest}")).map(|token| token.as_str().to_owned()).ok()
        };
        assert_eq!(token("c-1").as_deref(), Some("c-1"));
        assert_eq!(token("a%2Fb%20%C3%A9+").as_deref(), Some("a/b é+"));
        assert_eq!(token("100%25").as_deref(), Some("100%"));
        assert_eq!(token("%FF"), None);
        assert_eq!(token(&"x".repeat(501)), None);
    }
}
