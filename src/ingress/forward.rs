//! Requests that are forwarded to the Participant Service at once: typing, connections, and all operations that the
//! relay does not handle.
//!
//! None of them is stored, and their replies are returned unchanged, with the headers that every reply of this API has.
//! Two cases get special treatment. A typing event is useful only at once: it is forwarded only if no message of its
//! conversation is queued and the quota has slots to spare, and else dropped. And a new connection token is stored with
//! its participant before the bot gets it, so that a renewed token continues the conversation.
//!
//! `Participant` drops the headers that belong to a signature, to a connection or to the relay (`Relay-…`, which can
//! contain a token, and `Prefer`). Replies hold permits of their own budget until they have been read, as bodies do: a
//! transcript can be long, and slow readers many.

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use serde::Deserialize;

use super::accept::submission;
use super::body::{BudgetPermit, BufferedBody};
use super::error_reply::ErrorReply;
use super::parse::{Members, TYPING};
use super::reply;
use super::request::{BEARER, Identity};
use super::{Handled, Inner, caller};
use crate::message::{Caller, ConnectionToken};
use crate::participant::{Forwarded, Unreachable};
use crate::queue::Asker;
use crate::retry::RetryHint;
use crate::serve::{Peer, Reply};

/// The members of a reply to CreateParticipantConnection that the relay uses.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Connection {
    connection_credentials: Option<Credentials>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    connection_token: Option<String>,
}

impl Inner {
    /// SendEvent.
    pub(super) async fn event(&self, parts: Parts, body: BufferedBody, peer: Peer) -> Handled {
        let mut members = Members::parse(&body.bytes)?;
        let event = members.event(&self.options.limits);
        let event = event.map_err(|wrong| ErrorReply::from(wrong).about(members.subject()))?;
        let client_token = members.client_token()?;
        drop(members);
        if event.content_type() == Some(TYPING) {
            let asker = Identity::of(&parts.headers)?.asker(caller(peer));
            let typed = self.typing(parts, &body, asker, caller(peer)).await;
            return match typed.map_err(|error| error.about_token(&client_token))? {
                Some(reply) => Ok(reply),
                None => {
                    self.metrics.events_dropped.inc();
                    Ok(reply::dropped(&client_token))
                }
            };
        }
        let submission = submission(&parts.headers, event, client_token, peer)?;
        self.submit(submission, &parts.headers, body, peer).await
    }

    /// Forwards a typing event if it is useful; returns `None` if it is dropped.
    async fn typing(
        &self,
        parts: Parts,
        body: &BufferedBody,
        asker: Asker,
        caller: Caller,
    ) -> Result<Option<Reply>, ErrorReply> {
        let is_idle = self.queue.is_idle(asker).await?;
        let started = self.clock.now();
        if !is_idle || !self.budget.pacer().take_spare(started) {
            return Ok(None);
        }
        let Ok(forwarded) = self.send_upstream(parts, body.bytes.clone(), caller).await else {
            self.budget.pacer().spare_ended(started, false);
            return Ok(None);
        };
        if is_throttle(&forwarded) {
            let text = |name| forwarded.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            let now = self.clock.now();
            let hint = RetryHint::parse(text("x-amz-retry-after"), text("retry-after"), self.clock.wall());
            self.budget.pacer().throttled_without_slot(now, hint);
            return Ok(None);
        }
        self.budget.pacer().spare_ended(started, !forwarded.status.is_server_error());
        Ok(Some(self.forwarded_reply(forwarded)))
    }

    /// CreateParticipantConnection.
    pub(super) async fn connection(&self, parts: Parts, body: Bytes, caller: Caller) -> Handled {
        let participant = parts.headers.get(BEARER).and_then(|token| ConnectionToken::parse(token.as_bytes()).ok());
        let forwarded = self.send_upstream(parts, body, caller).await?;
        if let (true, Some(participant), Some(token)) =
            (forwarded.status.is_success(), participant, connection_token(&forwarded.body))
        {
            self.queue.remember(participant, token).await?;
        }
        Ok(self.forwarded_reply(forwarded))
    }

    /// Any other operation.
    pub(super) async fn forward(&self, parts: Parts, body: Bytes, caller: Caller) -> Handled {
        Ok(self.forwarded_reply(self.send_upstream(parts, body, caller).await?))
    }

    fn forwarded_reply(&self, forwarded: Forwarded) -> Reply {
        reply::of_forwarded(forwarded, self.clock.wall())
    }

    async fn send_upstream(&self, parts: Parts, body: Bytes, caller: Caller) -> Result<Forwarded, ErrorReply> {
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut permit = BudgetPermit::default();
        let reserve = async |bytes| permit = self.replies.acquire_for_reply(bytes, caller).await;
        let forwarded = self.participant.forward(parts.method, target, &parts.headers, body, reserve).await;
        let forwarded =
            forwarded.map_err(|Unreachable(why)| ErrorReply::unavailable(format!("connect-relay: {why}")))?;
        Ok(Forwarded { body: permit.attach_to(forwarded.body), ..forwarded })
    }
}

/// True for any 429, and for a ThrottlingException under another status.
fn is_throttle(forwarded: &Forwarded) -> bool {
    let code = forwarded.headers.get("x-amzn-errortype").and_then(|code| code.to_str().ok()).unwrap_or_default();
    forwarded.status.as_u16() == 429 || code.contains("ThrottlingException")
}

fn connection_token(body: &[u8]) -> Option<ConnectionToken> {
    let connection: Connection = serde_json::from_slice(body).ok()?;
    ConnectionToken::parse(connection.connection_credentials?.connection_token?.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderMap;

    use super::*;

    #[test]
    fn connection_token_is_found_where_there_is_one() {
        let of = |json: &str| connection_token(json.as_bytes()).map(|token| token.expose().to_vec());
        let full = r#"{"Websocket":{"Url":"wss://x"},"ConnectionCredentials":{"ConnectionToken":"t-1","Expiry":"z"}}"#;
        assert_eq!(of(full).as_deref(), Some(&b"t-1"[..]));
        for none in [
            "",
            "{}",
            "<html>",
            r#"{"ConnectionCredentials":null}"#,
            r#"{"ConnectionCredentials":{"ConnectionToken":""}}"#,
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn every_form_of_a_throttle_is_one() {
        let of = |status: u16, code: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            code.map(|code| headers.insert("x-amzn-errortype", HeaderValue::from_static(code)));
            is_throttle(&Forwarded { status: status.try_into().unwrap(), headers, body: Bytes::new() })
        };
        assert!(of(429, None));
        assert!(of(429, Some("TooManyRequestsException")));
        assert!(of(400, Some("ns#ThrottlingException:http://x")));
        assert!(!of(403, Some("AccessDeniedException")));
        assert!(!of(200, None));
    }
}
