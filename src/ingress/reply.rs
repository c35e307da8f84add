//! What goes back to a bot: the shapes and headers of every reply.
//!
//! A reply is a JSON object, unencoded (but for a disconnect that is done: AWS answers that with nothing). An error
//! carries its code in `x-amzn-ErrorType` and its text in `Message`, because each SDK looks in another place; 429, 500
//! and 503 say when to come again, in AWS's header and in HTTP's. Everything said of a message stands in headers too,
//! because SDKs drop members that they do not know.
//!
//! [`Refusal`] is an error on its way out. The texts of those made here start with `connect-relay: `; upstream's are
//! passed on as they came. None ever holds a token, contents or another header's value.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::delivery::{Reason, Receipt, ServiceError};
use crate::message::{ClientToken, Invalid};
use crate::queue::{Full as QueueFull, Rejection, State, Status, StoreFailed};
use crate::time::millis;

/// A whole reply.
pub(super) type Answer = Response<Full<Bytes>>;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const AMZ_RETRY_AFTER: HeaderName = HeaderName::from_static("x-amz-retry-after");
const RELAY_STATE: HeaderName = HeaderName::from_static("relay-state");
const RELAY_MESSAGE: HeaderName = HeaderName::from_static("relay-message");
const RELAY_CLIENT_TOKEN: HeaderName = HeaderName::from_static("relay-client-token");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// What a ClientToken's header does not carry as it is.
const NOT_IN_HEADERS: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// The longest that a full queue asks a bot to stay away.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a submission was not kept: the `reason` label of `messages_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Invalid,
    Conflict,
    Denied,
    Forbidden,
    TooLarge,
    QueueFull,
    DiskFull,
    TooLate,
    Draining,
    Store,
}

impl Rejected {
    /// All of them, in the order of their declaration.
    pub(super) const ALL: [Rejected; 10] = [
        Rejected::Invalid,
        Rejected::Conflict,
        Rejected::Denied,
        Rejected::Forbidden,
        Rejected::TooLarge,
        Rejected::QueueFull,
        Rejected::DiskFull,
        Rejected::TooLate,
        Rejected::Draining,
        Rejected::Store,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Rejected::Invalid => "invalid",
            Rejected::Conflict => "conflict",
            Rejected::Denied => "denied",
            Rejected::Forbidden => "forbidden",
            Rejected::TooLarge => "too_large",
            Rejected::QueueFull => "queue_full",
            Rejected::DiskFull => "disk_full",
            Rejected::TooLate => "too_late",
            Rejected::Draining => "draining",
            Rejected::Store => "store",
        }
    }
}

/// An error on its way to a bot.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: Cow<'static, str>,
    pub(super) text: Cow<'static, str>,
    /// When to come again, where more is known than the usual.
    pub(super) retry: Option<Duration>,
    /// Upstream's, where the error is.
    pub(super) request_id: Option<Box<str>>,
    /// Which rejection it is, if it is one.
    pub(super) counted: Option<Rejected>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, text: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { status, code: code.into(), text: text.into(), retry: None, request_id: None, counted: None }
    }

    pub(super) fn counted(self, reason: Rejected) -> Refusal {
        Refusal { counted: Some(reason), ..self }
    }

    /// 400; the text says what is wrong with which member.
    pub(super) fn invalid(what: impl std::fmt::Display) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "ValidationException", format!("connect-relay: {what}"))
            .counted(Rejected::Invalid)
    }

    pub(super) fn unavailable(text: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableException", text)
    }

    pub(super) fn forbidden(text: &'static str) -> Refusal {
        Refusal::new(StatusCode::FORBIDDEN, "RelayForbiddenException", text).counted(Rejected::Forbidden)
    }

    fn conflict(text: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::new(StatusCode::CONFLICT, "ConflictException", text).counted(Rejected::Conflict)
    }

    fn later(code: &'static str, text: String) -> Refusal {
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, code, text)
    }

    /// A token that belongs to another conversation.
    pub(super) fn other_conversation() -> Refusal {
        Refusal::conflict(
            "connect-relay: this ConnectionToken belongs to another conversation: it came under another \
             Relay-Conversation, or with one and without",
        )
    }

    /// What the service said, as it said it.
    pub(super) fn upstream(error: &ServiceError) -> Refusal {
        let status = StatusCode::from_u16(error.status)
            .ok()
            .filter(|status| status.is_client_error() || status.is_server_error())
            .unwrap_or(StatusCode::BAD_REQUEST);
        let code = match status {
            _ if !error.code.is_empty() => Cow::Owned(error.code.to_string()),
            StatusCode::FORBIDDEN => "AccessDeniedException".into(),
            StatusCode::CONFLICT => "ConflictException".into(),
            _ if status.is_server_error() => "InternalServerException".into(),
            _ => "ValidationException".into(),
        };
        let text = if error.text.is_empty() {
            format!("connect-relay: the Participant Service answered {} without a text", status.as_u16()).into()
        } else {
            error.text.to_string().into()
        };
        Refusal { status, code, text, retry: None, request_id: error.request_id.clone(), counted: None }
    }

    /// What a dead message answers to those who wait for it and to repeats.
    pub(super) fn of_dead(reason: Reason, maybe_delivered: bool, error: &ServiceError) -> Refusal {
        let gone = match reason {
            Reason::Expired => "connect-relay: the message is dead: its lifetime ended before it was delivered",
            Reason::Deleted => "connect-relay: the message is dead: an operator deleted it",
            _ => return Refusal::upstream(error),
        };
        let text = if maybe_delivered {
            Cow::Owned(format!("{gone}; an attempt may have arrived"))
        } else {
            Cow::Borrowed(gone)
        };
        Refusal::new(StatusCode::GONE, "GoneException", text)
    }

    /// Why the queue did not keep it. `rate` is the learned one, `lifetime` what the bot asked for.
    pub(super) fn of_rejection(rejection: &Rejection, rate: f64, lifetime: Option<Duration>) -> Refusal {
        match rejection {
            Rejection::OtherContents(accepted) => Refusal::conflict(format!(
                "connect-relay: this ClientToken was accepted with other contents at {accepted}"
            )),
            Rejection::OtherConversation => Refusal::other_conversation(),
            Rejection::NotReplaceable => Refusal::forbidden(
                "connect-relay: Relay-Replaces-Token names a token that was never accepted in this conversation",
            ),
            Rejection::Disconnected => {
                Refusal::conflict("connect-relay: the disconnect of this conversation was accepted before")
            }
            Rejection::TokenRefused(error) => Refusal::upstream(error).counted(Rejected::Denied),
            Rejection::Full(full) => Refusal::full(*full, rate),
            Rejection::TooLate { ahead } => Refusal::later(
                "RelayTooLateException",
                format!(
                    "connect-relay: it cannot be delivered within Relay-Lifetime ({} s): {ahead} of its conversation \
                     are before it, and the learned rate is {rate:.1} a second",
                    lifetime.unwrap_or_default().as_secs()
                ),
            )
            .counted(Rejected::TooLate),
        }
    }

    fn full(full: QueueFull, rate: f64) -> Refusal {
        let (what, reason) = match full {
            QueueFull::Messages { queued, most } => {
                (format!("{queued} of {most} messages (queue.messages_max)"), Rejected::QueueFull)
            }
            QueueFull::Bytes { bytes, most } => {
                (format!("{bytes} of {most} bytes on disk (queue.bytes_max)"), Rejected::QueueFull)
            }
            QueueFull::Disk { free, least } => (
                format!("{free} bytes are free on its disk, {least} must stay free (queue.free_disk_min)"),
                Rejected::DiskFull,
            ),
        };
        let text = format!("connect-relay: the queue is full: {what}; it empties at {rate:.1} messages a second");
        // One place is free after the time that one message takes.
        let retry = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(RETRY_MAX).min(RETRY_MAX);
        Refusal { retry: Some(retry), ..Refusal::later("ThrottlingException", text).counted(reason) }
    }

    /// The reply; `usual` is how long a bot stays away where no more is known.
    pub(super) fn answer(self, usual: Duration) -> Answer {
        let body = to_json(&Text { message: &self.text });
        let mut answer = with_json(self.status, body);
        let headers = answer.headers_mut();
        let code = HeaderValue::try_from(&*self.code).unwrap_or(HeaderValue::from_static("ValidationException"));
        headers.insert(ERROR_TYPE, code);
        headers.insert(REQUEST_ID, request_id(self.request_id.as_deref()));
        if let StatusCode::TOO_MANY_REQUESTS | StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE =
            self.status
        {
            let wait = millis(self.retry.unwrap_or_default().max(usual)).max(1);
            headers.insert(AMZ_RETRY_AFTER, HeaderValue::from(wait));
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.div_ceil(1000)));
        }
        answer
    }

    /// As a line of a batch's reply, or a member of a message's state.
    pub(super) fn in_json(&self) -> ErrorPart<'_> {
        ErrorPart { code: &self.code, message: &self.text, reason: None }
    }
}

impl From<Invalid> for Refusal {
    fn from(Invalid(what): Invalid) -> Refusal {
        Refusal::invalid(what)
    }
}

impl From<StoreFailed> for Refusal {
    fn from(_: StoreFailed) -> Refusal {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerException",
            "connect-relay: the store failed, nothing was acknowledged",
        )
        .counted(Rejected::Store)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Text<'a> {
    message: &'a str,
}

/// An error inside a larger reply.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ErrorPart<'a> {
    pub(super) code: &'a str,
    pub(super) message: &'a str,
    /// Why a dead message is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Delivered<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    absolute_time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_metadata: Option<MessageMetadata<'a>>,
}

/// What the service says of a message that it has taken but not yet shown.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MessageMetadata<'a> {
    message_processing_status: &'a str,
}

impl MessageMetadata<'_> {
    pub(super) fn of(receipt: &Receipt) -> Option<MessageMetadata<'_>> {
        receipt.processing_status.as_deref().map(|status| MessageMetadata { message_processing_status: status })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Queued<'a> {
    client_token: &'a str,
    state: &'static str,
}

/// The name that users see.
pub(super) fn name(status: &Status) -> &'static str {
    match status {
        Status::Queued { .. } => "QUEUED",
        Status::Delivered(_) => "DELIVERED",
        Status::Dead { .. } => "DEAD",
    }
}

/// 200, 202 or the error that a dead message answers, with what is said of a message in headers. `bare` is for a
/// disconnect, which AWS answers without a body.
pub(super) fn of_state(state: &State, client_token: &ClientToken, bare: bool, usual: Duration) -> Answer {
    let mut answer = of_status(&state.status, client_token, bare, usual);
    label(&mut answer, state, client_token);
    answer
}

fn of_status(status: &Status, client_token: &ClientToken, bare: bool, usual: Duration) -> Answer {
    match status {
        Status::Queued { .. } => {
            let queued = Queued { client_token: client_token.as_str(), state: name(status) };
            with_json(StatusCode::ACCEPTED, to_json(&queued))
        }
        Status::Delivered(_) if bare => Response::new(Full::default()),
        Status::Delivered(receipt) => with_json(
            StatusCode::OK,
            to_json(&Delivered {
                id: receipt.id.as_deref(),
                absolute_time: receipt.absolute_time.as_deref(),
                message_metadata: MessageMetadata::of(receipt),
            }),
        ),
        Status::Dead { reason, maybe_delivered, error } => {
            Refusal::of_dead(*reason, *maybe_delivered, error).answer(usual)
        }
    }
}

/// Says in headers which message a reply is about.
pub(super) fn label(answer: &mut Answer, state: &State, client_token: &ClientToken) {
    let headers = answer.headers_mut();
    headers.insert(RELAY_STATE, HeaderValue::from_static(name(&state.status)));
    if let Ok(id) = HeaderValue::try_from(state.id.to_string()) {
        headers.insert(RELAY_MESSAGE, id);
    }
    if let Some(client_token) = in_header(client_token) {
        headers.insert(RELAY_CLIENT_TOKEN, client_token);
    }
    let upstreams = match &state.status {
        Status::Queued { .. } => None,
        Status::Delivered(receipt) => receipt.request_id.as_deref(),
        Status::Dead { error, .. } => error.request_id.as_deref(),
    };
    headers.insert(REQUEST_ID, request_id(upstreams));
}

/// Percent-encoded where it is not visible ASCII, as in the path of a look-up.
fn in_header(client_token: &ClientToken) -> Option<HeaderValue> {
    HeaderValue::from_str(&Cow::from(utf8_percent_encode(client_token.as_str(), NOT_IN_HEADERS))).ok()
}

/// A reply that is about no message.
pub(super) fn of_json(status: StatusCode, body: &impl Serialize) -> Answer {
    let mut answer = with_json(status, to_json(body));
    answer.headers_mut().insert(REQUEST_ID, request_id(None));
    answer
}

/// 202 for a typing event that was dropped.
pub(super) fn dropped() -> Answer {
    let mut answer = with_json(StatusCode::ACCEPTED, Bytes::from_static(b"{}"));
    let headers = answer.headers_mut();
    headers.insert(RELAY_STATE, HeaderValue::from_static("DROPPED"));
    headers.insert(REQUEST_ID, request_id(None));
    answer
}

/// A batch's reply.
pub(super) fn of_lines(lines: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(lines.into()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, NDJSON);
    headers.insert(REQUEST_ID, request_id(None));
    answer
}

/// One line of a batch's reply, about a message that was kept.
pub(super) fn line(lines: &mut Vec<u8>, client_token: &ClientToken, state: &State) {
    match &state.status {
        Status::Dead { reason, maybe_delivered, error } => {
            error_line(lines, &Refusal::of_dead(*reason, *maybe_delivered, error));
        }
        status => push_line(lines, &Queued { client_token: client_token.as_str(), state: name(status) }),
    }
}

/// One line of a batch's reply, about one that was not.
pub(super) fn error_line(lines: &mut Vec<u8>, refusal: &Refusal) {
    push_line(lines, &Failed { error: refusal.in_json() });
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failed<'a> {
    error: ErrorPart<'a>,
}

fn push_line(lines: &mut Vec<u8>, line: &impl Serialize) {
    push_json(lines, line);
    lines.push(b'\n');
}

fn push_json(into: &mut Vec<u8>, value: &impl Serialize) {
    // These shapes are structs of strings and numbers, and a Vec takes every write.
    serde_json::to_writer(into, value).expect("a reply can be written as JSON");
}

fn to_json(value: &impl Serialize) -> Bytes {
    let mut json = Vec::with_capacity(128);
    push_json(&mut json, value);
    json.into()
}

fn with_json(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
}

/// Upstream's id of the request, or one of our own. It need not be unguessable.
fn request_id(upstreams: Option<&str>) -> HeaderValue {
    if let Some(id) = upstreams.and_then(|id| HeaderValue::from_str(id).ok()) {
        return id;
    }
    let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("a UUID is a header value")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper::header::HeaderMap;

    use super::*;
    use crate::time::Timestamp;

    const USUAL: Duration = Duration::from_millis(1500);

    fn taken(answer: Answer) -> (u16, HeaderMap, String) {
        let (parts, body) = answer.into_parts();
        let mut body = std::pin::pin!(body.collect());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Ok(body)) = body.as_mut().poll(&mut cx) else { panic!("the body is there") };
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_bytes().to_vec()).unwrap())
    }

    fn token(text: &str) -> ClientToken {
        ClientToken::parse(text).unwrap().unwrap()
    }

    fn error(status: u16, code: &str, text: &str) -> ServiceError {
        ServiceError { status, code: code.into(), text: text.into(), request_id: Some("up-1".into()) }
    }

    #[test]
    fn queued_is_202_and_never_an_invented_id() {
        let queued = Status::Queued { next_attempt: None, ahead: 0 };
        let (status, headers, body) = taken(of_status(&queued, &token("c-1"), false, USUAL));
        assert_eq!((status, &*body), (202, r#"{"ClientToken":"c-1","State":"QUEUED"}"#));
        assert_eq!(headers["content-type"], "application/json");
    }

    #[test]
    fn delivered_is_200_as_aws_writes_it() {
        let receipt = Receipt {
            id: Some("id-1".into()),
            absolute_time: Some("2019-11-08T02:41:28.172Z".into()),
            processing_status: None,
            request_id: Some("up-1".into()),
        };
        let delivered = Status::Delivered(receipt.clone());
        let (status, _, body) = taken(of_status(&delivered, &token("c-1"), false, USUAL));
        assert_eq!((status, &*body), (200, r#"{"Id":"id-1","AbsoluteTime":"2019-11-08T02:41:28.172Z"}"#));
        let rejected = Status::Delivered(Receipt { processing_status: Some("REJECTED".into()), ..receipt });
        let (_, _, body) = taken(of_status(&rejected, &token("c-1"), false, USUAL));
        assert!(body.ends_with(r#","MessageMetadata":{"MessageProcessingStatus":"REJECTED"}}"#), "{body}");
        let (status, _, body) = taken(of_status(&delivered, &token("c-1"), true, USUAL));
        assert_eq!((status, &*body), (200, ""), "a disconnect that is done has no body");
    }

    #[test]
    fn dead_answers_upstreams_error_or_gone() {
        let dead = |reason, error| Status::Dead { reason, maybe_delivered: true, error };
        for (reason, given, status, code, text) in [
            (
                Reason::ChatOver,
                error(403, "AccessDeniedException", "Access denied"),
                403,
                "AccessDeniedException",
                "Access denied",
            ),
            (
                Reason::Invalid,
                error(400, "ValidationException", "too \"long\""),
                400,
                "ValidationException",
                "too \"long\"",
            ),
            (Reason::Refused, error(418, "TeapotException", "short"), 418, "TeapotException", "short"),
            (
                Reason::Refused,
                error(413, "", ""),
                413,
                "ValidationException",
                "connect-relay: the Participant Service answered 413 without a text",
            ),
            (
                Reason::Expired,
                ServiceError::default(),
                410,
                "GoneException",
                "connect-relay: the message is dead: its lifetime ended before it was delivered; an attempt may have arrived",
            ),
        ] {
            let (came, headers, body) = taken(of_status(&dead(reason, given), &token("c"), false, USUAL));
            assert_eq!(came, status);
            assert_eq!(headers["x-amzn-errortype"], code);
            assert_eq!(body, serde_json::json!({ "Message": text }).to_string());
            assert!(!headers.contains_key("retry-after"));
        }
    }

    #[test]
    fn rejections_say_what_was_hit_and_when_to_come_again() {
        let full = |full| Refusal::of_rejection(&Rejection::Full(full), 0.4, None);
        let (status, headers, body) = taken(full(QueueFull::Messages { queued: 10, most: 10 }).answer(USUAL));
        assert_eq!(status, 429);
        assert_eq!(headers["x-amzn-errortype"], "ThrottlingException");
        assert_eq!(
            (&headers["x-amz-retry-after"], &headers["retry-after"]),
            (&"2500".parse().unwrap(), &"3".parse().unwrap())
        );
        assert_eq!(
            body,
            r#"{"Message":"connect-relay: the queue is full: 10 of 10 messages (queue.messages_max); it empties at 0.4 messages a second"}"#
        );
        assert_eq!(full(QueueFull::Disk { free: 1, least: 2 }).counted, Some(Rejected::DiskFull));
        let late = Refusal::of_rejection(&Rejection::TooLate { ahead: 7 }, 2.0, Some(Duration::from_secs(3)));
        assert_eq!((late.status.as_u16(), &*late.code), (429, "RelayTooLateException"));
        assert_eq!(
            late.text,
            "connect-relay: it cannot be delivered within Relay-Lifetime (3 s): 7 of its conversation are before it, \
             and the learned rate is 2.0 a second"
        );
        let (_, headers, _) = taken(late.answer(USUAL));
        assert_eq!(
            (&headers["x-amz-retry-after"], &headers["retry-after"]),
            (&"1500".parse().unwrap(), &"2".parse().unwrap())
        );
        for (rejection, status, code, counted) in [
            (Rejection::OtherContents(Timestamp(0)), 409, "ConflictException", Rejected::Conflict),
            (Rejection::OtherConversation, 409, "ConflictException", Rejected::Conflict),
            (Rejection::Disconnected, 409, "ConflictException", Rejected::Conflict),
            (Rejection::NotReplaceable, 403, "RelayForbiddenException", Rejected::Forbidden),
            (
                Rejection::TokenRefused(error(403, "AccessDeniedException", "Access denied")),
                403,
                "AccessDeniedException",
                Rejected::Denied,
            ),
        ] {
            let refusal = Refusal::of_rejection(&rejection, 10.0, None);
            assert_eq!((refusal.status.as_u16(), &*refusal.code, refusal.counted), (status, code, Some(counted)));
        }
    }

    #[test]
    fn any_client_token_fits_into_a_header() {
        for (text, header) in [("a/b+c", "a/b+c"), ("50% é\n", "50%25%20%C3%A9%0A")] {
            assert_eq!(in_header(&token(text)).unwrap(), header);
        }
    }

    #[test]
    fn store_failure_and_unavailability_carry_both_retry_headers() {
        for refusal in [Refusal::from(StoreFailed("disk".into())), Refusal::unavailable("connect-relay: draining")] {
            let (_, headers, body) = taken(refusal.answer(USUAL));
            assert_eq!(headers["x-amz-retry-after"], "1500");
            assert_eq!(headers["retry-after"], "2");
            assert!(body.starts_with(r#"{"Message":"connect-relay: "#), "{body}");
        }
    }
}
