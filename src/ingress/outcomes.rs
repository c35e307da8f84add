//! The stream of the outcomes of a caller's messages, as server-sent events.
//!
//! A stream is the body of one reply. Its future reads a page of outcomes from the queue after hyper has taken the page
//! before, so a reader that is slow costs one page of memory and what hyper buffers (32 KiB), and one that does not read at
//! all is cut off by `serve`. It keeps a cursor and nothing else: a reader continues after the last id that it has seen. It
//! ends when waits end.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::time::{Sleep, sleep};

use super::drain_state::DrainState;
use super::error_reply::ErrorReply;
use super::reply::{self, ErrorPart};
use super::request;
use crate::delivery::Receipt;
use crate::message::Caller;
use crate::queue::{OutcomeCursor, OutcomeEvent, Queue, Status};
use crate::time::Clock;

/// The body of a reply: all of it, or a stream.
pub type ReplyBody = Either<Full<Bytes>, OutcomeStream>;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The interval of the comment line that shows that the stream is alive.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome<'a> {
    client_token: &'a str,
    conversation: &'a str,
    message: String,
    accepted_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    absolute_time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorPart<'a>>,
}

/// A stream of outcomes.
pub struct OutcomeStream(Step);

/// The next bytes, and the reader that continues after them; `None` at the end.
type Step = Pin<Box<dyn Future<Output = Option<(Bytes, Reader)>> + Send>>;

/// A reader of one caller's outcomes.
struct Reader {
    queue: Queue,
    drain_state: DrainState,
    clock: Clock,
    caller: Caller,
    after: OutcomeCursor,
    comment_due: Pin<Box<Sleep>>,
}

/// `GET /participant/outcomes`
pub(super) async fn open(
    parts: &Parts,
    caller: Caller,
    queue: Queue,
    drain_state: DrainState,
    clock: Clock,
) -> Result<Response<ReplyBody>, ErrorReply> {
    let Some(after) = queue.outcomes_from(cursor(parts)?).await? else {
        return Err(ErrorReply::new(
            StatusCode::GONE,
            "GoneException",
            "connect-relay: outcomes after this cursor are not kept any more (queue.outcomes_kept_for, \
             queue.outcomes_max); without a cursor the stream begins now",
        ));
    };
    let comment_due = Box::pin(sleep(COMMENT_EVERY));
    let reader = Reader { queue, drain_state, clock, caller, after, comment_due };
    let mut reply = Response::new(Either::Right(OutcomeStream(Box::pin(reader.next()))));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(reply)
}

impl Reader {
    /// Waits for outcomes, or for the time of a comment.
    async fn next(mut self) -> Option<(Bytes, Reader)> {
        let queue = self.queue.clone();
        loop {
            let mut settled = pin!(queue.settled(self.caller));
            settled.as_mut().enable();
            // Checked before the read: the last outcomes go out before the end.
            let ends = self.drain_state.is_ending();
            // `None`: it is so far behind that outcomes were pruned before it read them. With its cursor it gets 410.
            let page = queue.outcomes(self.caller, self.after).await.ok()??;
            self.after = page.next;
            if !page.events.is_empty() {
                let mut text = Vec::new();
                page.events.iter().for_each(|event| push_event(&mut text, event, &self.clock));
                return Some((text.into(), self));
            }
            if page.more {
                continue;
            }
            if ends {
                return None;
            }
            tokio::select! {
                () = settled => {}
                () = self.drain_state.waits_end() => {}
                () = &mut self.comment_due => {
                    self.comment_due = Box::pin(sleep(COMMENT_EVERY));
                    return Some((Bytes::from_static(b":\n\n"), self));
                }
            }
        }
    }
}

impl Body for OutcomeStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let step = ready!(self.0.as_mut().poll(cx));
        Poll::Ready(step.map(|(bytes, reader)| {
            self.0 = Box::pin(reader.next());
            Ok(Frame::data(bytes))
        }))
    }
}

/// The cursor of a request: the header, which a reader sets when it connects again, goes before the parameter.
fn cursor(parts: &Parts) -> Result<Option<OutcomeCursor>, ErrorReply> {
    let invalid = |name| ErrorReply::invalid(format_args!("{name} is not the id of an event of this stream"));
    let header = request::single(&parts.headers, &LAST_EVENT_ID, "Last-Event-ID")?;
    if let Some(header) = header.filter(|value| !value.is_empty()) {
        let cursor = header.to_str().ok().and_then(OutcomeCursor::parse);
        return cursor.map(Some).ok_or_else(|| invalid("Last-Event-ID"));
    }
    let pairs = parts.uri.query().unwrap_or_default().split('&');
    let mut given = pairs.filter_map(|pair| pair.strip_prefix("after=")).filter(|value| !value.is_empty());
    let Some(value) = given.next() else { return Ok(None) };
    let text = percent_decode_str(value).decode_utf8().unwrap_or_default();
    let cursor = OutcomeCursor::parse(&text).filter(|_| given.next().is_none());
    cursor.map(Some).ok_or_else(|| invalid("after"))
}

fn push_event(into: &mut Vec<u8>, event: &OutcomeEvent, clock: &Clock) {
    let OutcomeEvent { cursor, state, client_token, conversation } = event;
    let settled = Outcome {
        client_token,
        conversation,
        message: state.id.to_string(),
        accepted_time: clock.shown(state.accepted).to_string(),
        id: None,
        absolute_time: None,
        error: None,
    };
    let mut push = |name: &str, outcome: &Outcome| {
        into.extend_from_slice(format!("id: {cursor}\nevent: {name}\ndata: ").as_bytes());
        reply::push_json(into, outcome);
        into.extend_from_slice(b"\n\n");
    };
    match &state.status {
        Status::Queued { .. } => {}
        Status::Delivered(Receipt { id, absolute_time, .. }) => {
            push("delivered", &Outcome { id: id.as_deref(), absolute_time: absolute_time.as_deref(), ..settled });
        }
        Status::Dead { reason, maybe_delivered, error } => {
            let error = ErrorReply::of_dead(*reason, *maybe_delivered, error);
            let error = ErrorPart { reason: Some(reason.as_str()), ..ErrorPart::of(&error) };
            push("dead", &Outcome { error: Some(error), ..settled });
        }
    }
}
