//! `/messages` and `/redrive`: queued messages and dead letters, one by one and in bulk.
//!
//! A delivered message is not among them: its bot can ask for it by its ClientToken, at the bots' API. Contents are
//! returned only if they are requested, for one message at a time. Upstream's error text may repeat them, so it is
//! returned only with them. Tokens are never returned. A parameter that is unknown or comes twice is refused, so that a
//! typing error never deletes more messages than intended.
//!
//! A list, and a bulk act with a `limit`, ends after that number of messages, a list also after [`LIST_WITHIN`], with a
//! `Next` to continue from. Without a limit a bulk act runs to the end, in pages, between which the queue serves other
//! requests. A disconnect of the client ends it between two pages.

mod bulk;
pub(super) mod query;
pub(super) mod schema;

use std::time::Duration;

use hyper::StatusCode;
use hyper::http::request::Parts;
use tracing::info;

use self::query::{LIST, Query};
use self::schema::{Message, Messages, RedriveRequest};
use super::Control;
use super::reply::{ErrorReply, invalid, json, parse_body};
use crate::message::{Body, ConnectionToken, Content, ContentType};
use crate::queue::{ActionError, Lookup, MessageId, Redrive};
use crate::serve::Reply;
use crate::status::describe_full;

/// The default number of messages in a list.
const LIMIT: usize = 100;
/// The longest search for a list.
const LIST_WITHIN: Duration = Duration::from_secs(2);

impl Control {
    /// `GET /messages`
    pub(super) async fn list(&self, parts: &Parts) -> Result<Reply, ErrorReply> {
        let Query { of, after, limit, .. } = Query::parse(parts, LIST, &self.clock)?;
        let (limit, began) = (limit.unwrap_or(LIMIT), self.clock.now());
        let mut listed = Messages::default();
        let mut next = Some(after.unwrap_or_else(|| of.start()));
        while let Some(after) = next
            && listed.messages.len() < limit
            && self.clock.now().since(began) < LIST_WITHIN
        {
            let page = self.ask_queue(self.queue.list(of.clone(), after, limit - listed.messages.len())).await?;
            listed.messages.extend(page.messages.into_iter().map(|seen| Message::of(seen, &self.clock)));
            next = page.next;
        }
        listed.next = next.map(|next| next.to_string());
        Ok(json(StatusCode::OK, &listed))
    }

    /// `GET /messages/{id}`
    pub(super) async fn show(&self, parts: &Parts, name: &str) -> Result<Reply, ErrorReply> {
        let Query { contents, .. } = Query::parse(parts, &["contents"], &self.clock)?;
        let id = self.find(name, StatusCode::NOT_FOUND).await?;
        let seen = self.ask_queue(self.queue.show(id, contents)).await?;
        Ok(json(StatusCode::OK, &Message::of(seen.ok_or_else(|| gone(name, StatusCode::NOT_FOUND))?, &self.clock)))
    }

    /// `POST /messages/{id}/redrive`
    pub(super) async fn redrive(
        &self,
        parts: &Parts,
        name: &str,
        body: &[u8],
        uid: Option<u32>,
    ) -> Result<Reply, ErrorReply> {
        Query::parse(parts, &[], &self.clock)?;
        let RedriveRequest { connection_token, content, content_type } = parse_body(body)?;
        let content = content.map(Content::new);
        let token = connection_token.map(|token| ConnectionToken::parse(token.as_bytes())).transpose();
        let token = token.map_err(|wrong| invalid(wrong.to_string()))?;
        let id = self.find(name, StatusCode::CONFLICT).await?;
        let body = match (content, content_type) {
            (None, None) => None,
            _ if !self.edit => {
                let text = "control.edit is false: contents are not changed";
                return Err(ErrorReply(StatusCode::FORBIDDEN, text.into()));
            }
            (content, content_type) => Some(self.edited(id, name, content, content_type.as_deref()).await?),
        };
        let edited = body.is_some();
        let redriven = self.ask_queue(self.queue.redrive(id, Redrive { token, body })).await?;
        let message = Message::of(redriven.map_err(|refused| action_error(name, refused))?, &self.clock);
        let Message { id, conversation, .. } = &message;
        info!(
            act = "redrive",
            uid,
            message_id = id,
            conversation,
            edited,
            redriven = 1,
            "an operator queued a dead letter again"
        );
        Ok(json(StatusCode::OK, &message))
    }

    /// Builds the new body of a message from the given contents and type, or its own.
    async fn edited(
        &self,
        id: MessageId,
        name: &str,
        content: Option<Content>,
        content_type: Option<&str>,
    ) -> Result<Body, ErrorReply> {
        let seen = self.ask_queue(self.queue.show(id, true)).await?.ok_or_else(|| gone(name, StatusCode::CONFLICT))?;
        let (its_type, its_content) = match seen.body {
            Some(Body::Message { content_type, content }) => (Some(content_type), Some(content)),
            Some(_) => return Err(invalid(format!("{name} is no message: it has no contents to change"))),
            None => (None, None),
        };
        let content_type = match content_type {
            Some(text) => Some(ContentType::parse(text).ok_or_else(|| {
                let known = ContentType::ALL.map(ContentType::as_str).join(", ");
                invalid(format!("ContentType is {text:?}, one of {known} is allowed"))
            })?),
            None => its_type,
        };
        let (Some(content_type), Some(content)) = (content_type, content.or(its_content)) else {
            return Err(invalid(format!("{name} cannot be read back: both Content and ContentType are needed")));
        };
        let limits = *self.limits.borrow();
        let content = limits.content(content_type, content.expose().to_owned());
        Ok(Body::Message { content_type, content: content.map_err(|wrong| invalid(wrong.to_string()))? })
    }

    /// `DELETE /messages/{id}`
    pub(super) async fn delete(&self, parts: &Parts, name: &str, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        Query::parse(parts, &[], &self.clock)?;
        let id = self.find(name, StatusCode::NOT_FOUND).await?;
        let deleted = self.ask_queue(self.queue.delete(id)).await?;
        let message = Message::of(deleted.map_err(|refused| action_error(name, refused))?, &self.clock);
        let Message { id, conversation, .. } = &message;
        info!(act = "delete", uid, message_id = id, conversation, deleted = 1, "an operator deleted a message");
        Ok(json(StatusCode::OK, &message))
    }

    /// Finds the message with this name; one that was delivered, or is no longer stored, is answered with this status.
    async fn find(&self, name: &str, if_gone: StatusCode) -> Result<MessageId, ErrorReply> {
        match self.ask_queue(self.queue.seek(name)).await? {
            Lookup::Here(id) => Ok(id),
            Lookup::Gone => Err(gone(name, if_gone)),
            Lookup::Never => Err(ErrorReply(StatusCode::NOT_FOUND, format!("no such message: {name}"))),
        }
    }
}

fn gone(name: &str, status: StatusCode) -> ErrorReply {
    ErrorReply(status, format!("{name} is neither queued nor dead: it was delivered, or is no longer stored"))
}

fn action_error(name: &str, refused: ActionError) -> ErrorReply {
    let why = match refused {
        ActionError::Queued => format!("{name} is queued already"),
        ActionError::InFlight => format!("{name} is in flight: an attempt is in progress"),
        ActionError::Taken => format!("that token's conversation has another message with the ClientToken of {name}"),
        ActionError::Gone => return gone(name, StatusCode::CONFLICT),
        ActionError::Full(full) => return ErrorReply(StatusCode::TOO_MANY_REQUESTS, describe_full(full)),
    };
    ErrorReply(StatusCode::CONFLICT, why)
}
