//! `/messages` and `/redrive`: what is queued and what is dead, one by one and in bulk.
//!
//! A delivered message is not among them: its bot asks for it by its ClientToken, at its own door. Contents are shown only
//! to those who ask for them, of one message at a time; a text of upstream's may repeat them, so it comes with them. Tokens
//! are never shown. An operator's wish is read as narrowly as it is written: a parameter that is not known, or stands there
//! twice, is refused, so that a slip of the pen never deletes more than was meant.
//!
//! A list, and a bulk act with a `limit`, ends after so many messages, a list also after [`LIST_WITHIN`], with a `Next` to
//! go on after; without a limit a bulk act goes on to the end, in pages of the queue's own, between which others have
//! their turn. Hanging up ends it between two of them.

use std::time::Duration;

use hyper::StatusCode;
use hyper::http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::status::full;
use super::{Control, Refusal, Reply, invalid, json, wish};
use crate::delivery::Reason;
use crate::message::{Body, ConnectionToken, Content, ContentType};
use crate::queue::{Cursor, MessageId, Part, Redrive, Seen, SeenPlace, Selection, Sought, StoreFailed, Sweep, Unmoved};

/// Messages in a list, where nothing is said of it, and at the most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1000;
/// How long a list is looked for.
const LIST_WITHIN: Duration = Duration::from_secs(2);

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

/// What is asked of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of<'a> {
    /// `/messages/{id}`
    Itself(&'a str),
    /// `/messages/{id}/redrive`
    Redrive(&'a str),
}

/// The one message that a path names.
pub(super) fn of(path: &str) -> Option<Of<'_>> {
    let rest = path.strip_prefix("/messages/")?;
    let (id, of) = match rest.strip_suffix("/redrive") {
        Some(id) => (id, Of::Redrive(id)),
        None => (rest, Of::Itself(rest)),
    };
    (!id.is_empty() && !id.contains('/')).then_some(of)
}

/// The parameters of a request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    of: Selection,
    after: Option<Cursor>,
    limit: Option<usize>,
    contents: bool,
}

impl Query {
    /// Reads those that are known here, each once; what is meant is in this part, where nothing else is said.
    fn parse(parts: &Parts, known: &[&str], part: Option<Part>) -> Result<Query, Refusal> {
        let mut query = Query { of: Selection { state: part, ..Selection::default() }, ..Query::default() };
        let mut seen: Vec<&str> = Vec::new();
        for pair in parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(invalid(format!("no such parameter here: {name:?}; known: {known}")));
            }
            if seen.contains(&name) {
                return Err(invalid(format!("{name} is given twice")));
            }
            seen.push(name);
            let value = percent_decode_str(value).decode_utf8();
            let value = value.map_err(|_| invalid(format!("{name}: percent-encoded UTF-8 is needed")))?;
            query.take(name, &value)?;
        }
        if query.of.reason.is_some() && query.of.state == Some(Part::Queued) {
            return Err(invalid("reason: what is queued has none".into()));
        }
        if query.after.is_some_and(|after| !query.of.leads_to(after)) {
            return Err(invalid("after: it is the Next of another list".into()));
        }
        Ok(query)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        match name {
            "state" => {
                self.of.state = Some(match value {
                    "QUEUED" => Part::Queued,
                    "DEAD" => Part::Dead,
                    _ => return Err(invalid(format!("state: {value:?}, QUEUED or DEAD is needed"))),
                });
            }
            "conversation" if !value.is_empty() => self.of.conversation = Some(value.into()),
            "conversation" => return Err(invalid("conversation: it is empty".into())),
            "reason" => {
                let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == value);
                let known = || Reason::ALL.map(Reason::as_str).join(", ");
                self.of.reason =
                    Some(reason.ok_or_else(|| invalid(format!("reason: {value:?}, one of {} is needed", known())))?);
            }
            "after" => {
                let after = Cursor::parse(value);
                self.after = Some(after.ok_or_else(|| invalid("after: the Next of the page before is needed".into()))?);
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                self.limit =
                    Some(limit.ok_or_else(|| invalid(format!("limit: {value:?}, 1 to {LIMIT_MAX} is needed")))?);
            }
            _ => {
                self.contents = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(invalid(format!("contents: {value:?}, true or false is needed"))),
                }
            }
        }
        Ok(())
    }
}

impl Control {
    /// `GET /messages`
    pub(super) async fn list(&self, parts: &Parts) -> Result<Reply, Refusal> {
        let Query { of, after, limit, .. } =
            Query::parse(parts, &["state", "conversation", "reason", "after", "limit"], None)?;
        let (limit, began) = (limit.unwrap_or(LIMIT), self.clock.now());
        let mut listed = Messages::default();
        let mut next = Some(after.unwrap_or_else(|| of.start()));
        while let Some(after) = next
            && listed.messages.len() < limit
            && self.clock.now().since(began) < LIST_WITHIN
        {
            let page = self.of_queue(self.queue.list(of.clone(), after, limit - listed.messages.len())).await?;
            listed.messages.extend(page.messages.into_iter().map(Message::of));
            next = page.next;
        }
        listed.next = next.map(|next| next.to_string());
        Ok(json(StatusCode::OK, &listed))
    }

    /// `GET /messages/{id}`
    pub(super) async fn show(&self, parts: &Parts, name: &str) -> Result<Reply, Refusal> {
        let Query { contents, .. } = Query::parse(parts, &["contents"], None)?;
        let id = self.find(name, StatusCode::NOT_FOUND).await?;
        let seen = self.of_queue(self.queue.show(id, contents)).await?;
        Ok(json(StatusCode::OK, &Message::of(seen.ok_or_else(|| gone(name, StatusCode::NOT_FOUND))?)))
    }

    /// `POST /messages/{id}/redrive`
    pub(super) async fn redrive(&self, parts: &Parts, name: &str, body: &[u8]) -> Result<Reply, Refusal> {
        Query::parse(parts, &[], None)?;
        let RedriveWish { connection_token, content, content_type } = wish(body)?;
        let content = content.map(Content::new);
        let token = connection_token.map(|token| ConnectionToken::parse(token.as_bytes())).transpose();
        let token = token.map_err(|wrong| invalid(wrong.to_string()))?;
        let id = self.find(name, StatusCode::CONFLICT).await?;
        let body = match (content, content_type) {
            (None, None) => None,
            _ if !self.edit => {
                return Err(Refusal(StatusCode::FORBIDDEN, "control.edit is false: contents are not changed".into()));
            }
            (content, content_type) => Some(self.edited(id, name, content, content_type.as_deref()).await?),
        };
        let edited = body.is_some();
        let redriven = self.of_queue(self.queue.redrive(id, Redrive { token, body })).await?;
        let message = Message::of(redriven.map_err(|unmoved| refusal(name, unmoved))?);
        let Message { id, conversation, client_token, .. } = &message;
        info!(redriven = 1, id, conversation, client_token, edited, "a dead letter is queued again, by an operator");
        Ok(json(StatusCode::OK, &message))
    }

    /// What a message is to say from now on.
    async fn edited(
        &self,
        id: MessageId,
        name: &str,
        content: Option<Content>,
        content_type: Option<&str>,
    ) -> Result<Body, Refusal> {
        let seen = self.of_queue(self.queue.show(id, true)).await?.ok_or_else(|| gone(name, StatusCode::CONFLICT))?;
        let (its_type, its_content) = match seen.body {
            Some(Body::Message { content_type, content }) => (Some(content_type), Some(content)),
            Some(_) => return Err(invalid(format!("{name} is no message: it has no contents to change"))),
            None => (None, None),
        };
        let content_type = match content_type {
            Some(text) => Some(ContentType::parse(text).ok_or_else(|| {
                let known = ContentType::ALL.map(ContentType::as_str).join(", ");
                invalid(format!("ContentType is {text:?}, one of {known} is taken"))
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

    /// `POST /redrive`
    pub(super) async fn redrive_all(&self, parts: &Parts) -> Result<Reply, Refusal> {
        let query = Query::parse(parts, &["reason", "conversation", "after", "limit"], Some(Part::Dead))?;
        let redrive = |of, after, most| self.queue.redrive_all(of, after, most);
        let Sweep { done, full: no_room, next, .. } = self.sweep(&query, redrive).await?;
        if done > 0 {
            let Selection { conversation, reason, .. } = &query.of;
            let reason = reason.map(Reason::as_str);
            let conversation = conversation.as_deref();
            info!(redriven = done, reason, conversation, "dead letters are queued again, by an operator");
        }
        match no_room {
            Some(no_room) if done == 0 => Err(Refusal(StatusCode::TOO_MANY_REQUESTS, full(no_room))),
            no_room => {
                let next = next.map(|next| next.to_string());
                Ok(json(StatusCode::OK, &Redriven { redriven: done, full: no_room.map(full), next }))
            }
        }
    }

    /// `DELETE /messages/{id}`
    pub(super) async fn delete(&self, parts: &Parts, name: &str) -> Result<Reply, Refusal> {
        Query::parse(parts, &[], None)?;
        let id = self.find(name, StatusCode::NOT_FOUND).await?;
        let deleted = self.of_queue(self.queue.delete(id)).await?;
        Ok(json(StatusCode::OK, &Message::of(deleted.map_err(|unmoved| refusal(name, unmoved))?)))
    }

    /// `DELETE /messages`
    pub(super) async fn delete_all(&self, parts: &Parts) -> Result<Reply, Refusal> {
        let query = Query::parse(parts, &["conversation", "after", "limit"], Some(Part::Queued))?;
        if query.of.conversation.is_none() {
            return Err(invalid("conversation is needed: all of them are not deleted at once".into()));
        }
        let delete = |of, after, most| self.queue.delete_all(of, after, most);
        let Sweep { done, in_flight, next, .. } = self.sweep(&query, delete).await?;
        Ok(json(StatusCode::OK, &Deleted { deleted: done, in_flight, next: next.map(|next| next.to_string()) }))
    }

    /// Goes on until there is no more, no room, or enough.
    async fn sweep<F>(&self, query: &Query, act: impl Fn(Selection, Cursor, usize) -> F) -> Result<Sweep, Refusal>
    where
        F: Future<Output = Result<Sweep, StoreFailed>>,
    {
        let most = query.limit.map_or(u64::MAX, |limit| limit as u64);
        let next = Some(query.after.unwrap_or_else(|| query.of.start()));
        let mut all = Sweep { next, ..Sweep::default() };
        while let Some(after) = all.next
            && all.full.is_none()
            && all.done + all.in_flight < most
        {
            let left = usize::try_from(most - all.done - all.in_flight).unwrap_or(usize::MAX);
            let Sweep { done, in_flight, full, next } = self.of_queue(act(query.of.clone(), after, left)).await?;
            all = Sweep { done: all.done + done, in_flight: all.in_flight + in_flight, full, next };
        }
        Ok(all)
    }

    /// The message of that name; one that was delivered, or is kept no longer, is answered with this status.
    async fn find(&self, name: &str, if_gone: StatusCode) -> Result<MessageId, Refusal> {
        match self.of_queue(self.queue.seek(name)).await? {
            Sought::Here(id) => Ok(id),
            Sought::Gone => Err(gone(name, if_gone)),
            Sought::Never => Err(Refusal(StatusCode::NOT_FOUND, format!("no such message: {name}"))),
        }
    }
}

fn gone(name: &str, status: StatusCode) -> Refusal {
    Refusal(status, format!("{name} is neither queued nor dead: it was delivered, or is kept no longer"))
}

fn refusal(name: &str, unmoved: Unmoved) -> Refusal {
    let why = match unmoved {
        Unmoved::Queued => format!("{name} is queued already"),
        Unmoved::InFlight => format!("{name} is in flight: an attempt is under way"),
        Unmoved::Taken => format!("that token's conversation has another message with the ClientToken of {name}"),
        Unmoved::Gone => return gone(name, StatusCode::CONFLICT),
        Unmoved::Full(no_room) => return Refusal(StatusCode::TOO_MANY_REQUESTS, full(no_room)),
    };
    Refusal(StatusCode::CONFLICT, why)
}

impl Message {
    fn of(seen: Seen) -> Message {
        let Seen { id, client_token, conversation, content_type, trace_id, attempts, maybe_delivered, .. } = seen;
        // It is there where contents were asked for.
        let asked = seen.body.is_some();
        let content = seen.body.as_ref().and_then(Body::content).map(|content| content.expose().to_owned());
        let message = Message {
            id: id.to_string(),
            client_token: client_token.into(),
            conversation: conversation.into(),
            content_type: content_type.map(Into::into),
            accepted_time: seen.accepted.to_string(),
            expiry_time: seen.deadline.to_string(),
            attempts,
            maybe_delivered,
            trace_id: trace_id.map(Into::into),
            ..Message::default()
        };
        match seen.place {
            SeenPlace::Queued { in_flight, next_attempt } => Message {
                state: "QUEUED".into(),
                in_flight,
                next_attempt_time: next_attempt.map(|due| due.to_string()),
                content,
                ..message
            },
            SeenPlace::Dead { died, reason, error } => {
                let shown = asked || error.text.starts_with("connect-relay: ");
                Message {
                    state: "DEAD".into(),
                    dead_time: Some(died.to_string()),
                    reason: reason.map(|reason| reason.as_str().into()),
                    error: reason.map(|_| Said { code: error.code.into(), message: shown.then(|| error.text.into()) }),
                    content,
                    ..message
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn query(text: &str, known: &[&str], part: Option<Part>) -> Result<Query, String> {
        let parts = Request::get(format!("/messages?{text}")).body(()).unwrap().into_parts().0;
        Query::parse(&parts, known, part).map_err(|Refusal(status, why)| {
            assert_eq!(status, StatusCode::BAD_REQUEST);
            why
        })
    }

    #[test]
    fn path_names_one_message() {
        assert_eq!(of("/messages/9f86d081-42"), Some(Of::Itself("9f86d081-42")));
        assert_eq!(of("/messages/9f86d081-42/redrive"), Some(Of::Redrive("9f86d081-42")));
        for none in
            ["/messages", "/messages/", "/messages//redrive", "/messages/a/b", "/messages/a/b/redrive", "/redrive"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn parameters_are_read_as_narrowly_as_they_are_written() {
        let all = ["state", "conversation", "reason", "after", "limit", "contents"];
        let read =
            query("state=DEAD&conversation=a%2Bb+%2F&&reason=expired&after=d7&limit=1000&contents=true", &all, None);
        let of =
            Selection { state: Some(Part::Dead), conversation: Some("a+b+/".into()), reason: Some(Reason::Expired) };
        assert_eq!(read, Ok(Query { of, after: Some(Cursor::Dead(7)), limit: Some(1000), contents: true }));
        assert_eq!(query("", &[], None), Ok(Query::default()));
        for (wrong, why) in [
            ("conversaton=C", "no such parameter here: \"conversaton\"; known: state, "),
            ("limit=1&limit=1", "limit is given twice"),
            ("conversation=%FF", "conversation: percent-encoded UTF-8 is needed"),
            ("conversation", "conversation: it is empty"),
            ("state=dead", "state: \"dead\", QUEUED or DEAD is needed"),
            ("reason=bored", "reason: \"bored\", one of chat_over, "),
            ("limit=1001", "limit: \"1001\", 1 to 1000 is needed"),
            ("after=7", "after: the Next of the page before is needed"),
            ("contents=1", "contents: \"1\", true or false is needed"),
            ("state=QUEUED&reason=expired", "reason: what is queued has none"),
            ("state=QUEUED&after=d7", "after: it is the Next of another list"),
            ("reason=expired&after=q7.1", "after: it is the Next of another list"),
        ] {
            let said = query(wrong, &all, None).unwrap_err();
            assert!(said.starts_with(why), "{wrong}: {said}");
        }
        // What a bulk act means is known without its being said, and the cursor has to fit that.
        assert!(
            query("after=d7", &all, Some(Part::Queued)).is_err()
                && query("after=q7.1", &all, Some(Part::Dead)).is_err()
        );
        assert!(query("after=q7.1", &all, None).is_ok() && query("after=d7", &all, None).is_ok());
    }

    #[test]
    fn wish_is_not_shown() {
        let wish =
            RedriveWish { connection_token: Some("canary".into()), content: Some("canary".into()), content_type: None };
        assert!(!format!("{wish:?}").contains("canary"));
    }
}
