//! Replies to bots: the shapes and headers of every reply.
//!
//! A reply is a JSON object, unencoded, except for a completed disconnect, for which AWS sends an empty body. An error
//! has its code in `x-amzn-ErrorType` and its text in `Message`, because each SDK looks in another place. 429, 500 and
//! 503 announce when to retry, in AWS's header and in HTTP's. All facts about a message are in headers too, because
//! SDKs drop members that they do not know.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use super::error_reply::{ErrorReply, TOO_LATE};
use crate::delivery::Receipt;
use crate::message::ClientToken;
use crate::participant::Forwarded;
use crate::queue::{MessageState, Status};
use crate::retry::RetryHint;
use crate::serve::{Reply, reply};
use crate::ship::link as copy;
use crate::time::{WallTime, millis};

/// The outlook of a queued message, as in a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outlook {
    /// The time at which it is likely to be sent; `None` while sending is paused or Connect is down.
    pub(super) expected: Option<WallTime>,
    /// The end of its lifetime.
    pub(super) expires: WallTime,
    /// True if its lifetime ends before it is likely to be sent.
    pub(super) will_expire: bool,
    /// A remark on the wait for its outcome.
    pub(super) note: Option<String>,
}

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const AMZ_RETRY_AFTER: HeaderName = HeaderName::from_static("x-amz-retry-after");
const RELAY_STATE: HeaderName = HeaderName::from_static("relay-state");
const RELAY_MESSAGE: HeaderName = HeaderName::from_static("relay-message");
const RELAY_DURABLE: HeaderName = HeaderName::from_static("relay-durable");
const RELAY_CLIENT_TOKEN: HeaderName = HeaderName::from_static("relay-client-token");

/// The Retry-After of the relay's own 429, 500 and 503, unless it is longer, and of a forwarded one that has none.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// The characters of a ClientToken that are percent-encoded in its header.
const NOT_IN_HEADERS: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

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
    /// The reason why a dead message is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
}

impl ErrorPart<'_> {
    pub(super) fn of(error: &ErrorReply) -> ErrorPart<'_> {
        ErrorPart { code: &error.code, message: &error.text, reason: None }
    }
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

/// The service's metadata of a message that it has accepted but not yet shown.
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

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Queued<'a> {
    client_token: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ahead: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    will_expire: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

/// The name for users.
pub(super) fn name(status: &Status) -> &'static str {
    match status {
        Status::Queued { .. } => "QUEUED",
        Status::Delivered(_) => "DELIVERED",
        Status::Dead { .. } => "DEAD",
    }
}

/// 200, 202 or the error for a dead message, with the facts about the message in headers. `outlook` is that of a queued
/// message; `bare` is for a disconnect, which AWS answers without a body.
pub(super) fn of_state(
    state: &MessageState,
    client_token: &ClientToken,
    outlook: Option<Outlook>,
    bare: bool,
) -> Reply {
    let mut reply = of_status(&state.status, client_token, outlook, bare);
    add_message_headers(&mut reply, state, client_token);
    reply
}

fn of_status(status: &Status, client_token: &ClientToken, outlook: Option<Outlook>, bare: bool) -> Reply {
    match status {
        Status::Queued { ahead, .. } => {
            let outlook = outlook.as_ref();
            let queued = Queued {
                client_token: client_token.as_str(),
                state: name(status),
                ahead: Some(*ahead),
                expected_time: outlook.and_then(|outlook| outlook.expected).map(|expected| expected.to_string()),
                expires: outlook.map(|outlook| outlook.expires.to_string()),
                will_expire: outlook.is_some_and(|outlook| outlook.will_expire),
                note: outlook.and_then(|outlook| outlook.note.as_deref()),
            };
            json(StatusCode::ACCEPTED, &queued)
        }
        Status::Delivered(_) if bare => Response::new(Full::default()),
        Status::Delivered(receipt) => json(
            StatusCode::OK,
            &Delivered {
                id: receipt.id.as_deref(),
                absolute_time: receipt.absolute_time.as_deref(),
                message_metadata: MessageMetadata::of(receipt),
            },
        ),
        Status::Dead { reason, maybe_delivered, error } => {
            of_error(&ErrorReply::of_dead(*reason, *maybe_delivered, error))
        }
    }
}

/// Adds the headers that identify the message of a reply.
pub(super) fn add_message_headers(reply: &mut Reply, state: &MessageState, client_token: &ClientToken) {
    let headers = reply.headers_mut();
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

/// Adds the places that have the message of a success: the fleet's copy too, or this volume alone.
pub(super) fn add_durable(mut reply: Reply, copy: Option<copy::State>) -> Reply {
    if let Some(copy) = copy.filter(|_| reply.status().is_success()) {
        let durable = if copy == copy::State::Up { "fleet" } else { "local" };
        reply.headers_mut().insert(RELAY_DURABLE, HeaderValue::from_static(durable));
    }
    reply
}

/// The token percent-encoded except for visible ASCII, as in the path of a look-up.
fn in_header(client_token: &ClientToken) -> Option<HeaderValue> {
    HeaderValue::from_str(&Cow::from(utf8_percent_encode(client_token.as_str(), NOT_IN_HEADERS))).ok()
}

/// An error.
pub(super) fn of_error(error: &ErrorReply) -> Reply {
    let mut reply = json(error.status, &Text { message: &error.text });
    let headers = reply.headers_mut();
    let code = HeaderValue::try_from(&*error.code).unwrap_or(HeaderValue::from_static("ValidationException"));
    headers.insert(ERROR_TYPE, code);
    headers.insert(REQUEST_ID, request_id(error.request_id.as_deref()));
    if allows_retry(error.status) && error.code != TOO_LATE {
        set_retry_headers(headers, error.retry.unwrap_or_default().max(RETRY_AFTER_MIN));
    }
    reply
}

fn allows_retry(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// Adds the time of a retry, in AWS's header and in HTTP's. A header that is present already stays.
fn set_retry_headers(headers: &mut HeaderMap, wait: Duration) {
    let wait = millis(wait).max(1);
    headers.entry(AMZ_RETRY_AFTER).or_insert(HeaderValue::from(wait));
    headers.entry(RETRY_AFTER).or_insert(HeaderValue::from(wait.div_ceil(1000)));
}

/// A reply that is about no message.
pub(super) fn of_json(status: StatusCode, body: &impl Serialize) -> Reply {
    let mut reply = json(status, body);
    reply.headers_mut().insert(REQUEST_ID, request_id(None));
    reply
}

/// 202 for a typing event that was dropped.
pub(super) fn dropped(client_token: &ClientToken) -> Reply {
    let mut reply = reply(StatusCode::ACCEPTED, "application/json", "{}");
    let headers = reply.headers_mut();
    headers.insert(RELAY_STATE, HeaderValue::from_static("DROPPED"));
    if let Some(client_token) = in_header(client_token) {
        headers.insert(RELAY_CLIENT_TOKEN, client_token);
    }
    headers.insert(REQUEST_ID, request_id(None));
    reply
}

/// The service's reply to a forwarded request, unchanged. But a success always has a request id, and a reply that
/// allows a retry has both headers for it: a gateway's 429 usually has neither.
pub(super) fn of_forwarded(forwarded: Forwarded, now: WallTime) -> Reply {
    let Forwarded { status, headers, body } = forwarded;
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    if allows_retry(status) {
        let hint = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let RetryHint(hint) = RetryHint::parse(hint(AMZ_RETRY_AFTER), hint(RETRY_AFTER), now);
        set_retry_headers(reply.headers_mut(), hint.unwrap_or(RETRY_AFTER_MIN));
    }
    // Upstream's own headers take precedence.
    reply.headers_mut().extend(headers);
    if status.is_success() {
        reply.headers_mut().entry(REQUEST_ID).or_insert_with(|| request_id(None));
    }
    reply
}

/// A batch's reply.
pub(super) fn of_lines(lines: Bytes) -> Reply {
    let mut reply = reply(StatusCode::OK, "application/x-ndjson", lines);
    reply.headers_mut().insert(REQUEST_ID, request_id(None));
    reply
}

/// One line of a batch's reply, about a stored message.
pub(super) fn line(lines: &mut Vec<u8>, client_token: &ClientToken, state: &MessageState) {
    match &state.status {
        Status::Dead { reason, maybe_delivered, error } => {
            error_line(lines, &ErrorReply::of_dead(*reason, *maybe_delivered, error));
        }
        status => {
            push_line(lines, &Queued { client_token: client_token.as_str(), state: name(status), ..Queued::default() });
        }
    }
}

/// One line of a batch's reply, about a refused message.
pub(super) fn error_line(lines: &mut Vec<u8>, error: &ErrorReply) {
    push_line(lines, &Failed { error: ErrorPart::of(error) });
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

pub(super) fn push_json(into: &mut Vec<u8>, value: &impl Serialize) {
    // These shapes are structs of strings and numbers, and a Vec accepts every write.
    serde_json::to_writer(into, value).expect("a reply can be written as JSON");
}

fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    let mut json = Vec::with_capacity(128);
    push_json(&mut json, value);
    reply(status, "application/json", json)
}

/// Upstream's request id, or a generated one. It need not be unguessable.
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

    use super::super::error_reply::SendingState;
    use super::*;
    use crate::delivery::{Reason, ServiceError};
    use crate::queue::{Full, Rejection, StoreFailed};
    use crate::time::{Clock, Timestamp};

    const SENDING: SendingState = SendingState { rate: 0.4, down: false };

    fn taken(reply: Reply) -> (u16, HeaderMap, String) {
        let (parts, body) = reply.into_parts();
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
        let queued = Status::Queued {
            next_attempt: None,
            ahead: 3,
            before: Some(7),
            held: false,
            in_flight: false,
            expires: Timestamp(9000),
        };
        let outlook = Outlook { expected: Some(WallTime(0)), expires: WallTime(9000), will_expire: false, note: None };
        let (status, headers, body) = taken(of_status(&queued, &token("c-1"), Some(outlook), false));
        let expected = r#"{"ClientToken":"c-1","State":"QUEUED","Ahead":3,"ExpectedTime":"1970-01-01T00:00:00.000Z","Expires":"1970-01-01T00:00:09.000Z"}"#;
        assert_eq!((status, &*body), (202, expected));
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
        let (status, _, body) = taken(of_status(&delivered, &token("c-1"), None, false));
        assert_eq!((status, &*body), (200, r#"{"Id":"id-1","AbsoluteTime":"2019-11-08T02:41:28.172Z"}"#));
        let rejected = Status::Delivered(Receipt { processing_status: Some("REJECTED".into()), ..receipt });
        let (_, _, body) = taken(of_status(&rejected, &token("c-1"), None, false));
        assert!(body.ends_with(r#","MessageMetadata":{"MessageProcessingStatus":"REJECTED"}}"#), "{body}");
        let (status, _, body) = taken(of_status(&delivered, &token("c-1"), None, true));
        assert_eq!((status, &*body), (200, ""), "a disconnect that is done has no body");
    }

    #[test]
    fn forwarded_reply_is_unchanged_and_a_success_has_a_request_id() {
        let reply = |status: u16, id: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            id.map(|id| headers.insert(REQUEST_ID, HeaderValue::from_static(id)));
            let status = status.try_into().unwrap();
            let forwarded = Forwarded { status, headers, body: "as it came".into() };
            let (came, headers, body) = taken(of_forwarded(forwarded, WallTime(0)));
            assert_eq!((came, &*body), (status.as_u16(), "as it came"));
            headers.get(REQUEST_ID).map(|id| id.to_str().unwrap().to_owned())
        };
        assert_eq!(reply(200, Some("up-1")).as_deref(), Some("up-1"));
        assert_eq!(reply(200, None).map(|id| id.len()), Some(36));
        assert_eq!(reply(404, None), None);
    }

    #[test]
    fn forwarded_reply_that_allows_a_retry_has_both_headers() {
        for (status, given, amz, standard) in [
            (429, &[][..], Some("1000"), Some("1")),
            (503, &[("retry-after", "7")], Some("7000"), Some("7")),
            (500, &[("x-amz-retry-after", "2500")], Some("2500"), Some("3")),
            (429, &[("x-amz-retry-after", "10"), ("retry-after", "9")], Some("10"), Some("9")),
            (502, &[], None, None),
            (200, &[], None, None),
        ] {
            let headers =
                given.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let forwarded = Forwarded {
                status: StatusCode::from_u16(status).unwrap(),
                headers: headers.collect(),
                body: Bytes::new(),
            };
            let (_, headers, _) = taken(of_forwarded(forwarded, WallTime(0)));
            let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!((header("x-amz-retry-after"), header("retry-after")), (amz, standard), "{status} {given:?}");
            assert_eq!(headers.get_all("retry-after").iter().count(), usize::from(standard.is_some()));
        }
    }

    #[test]
    fn dead_message_returns_upstreams_error_or_410() {
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
            let (came, headers, body) = taken(of_status(&dead(reason, given), &token("c"), None, false));
            assert_eq!(came, status);
            assert_eq!(headers["x-amzn-errortype"], code);
            assert_eq!(body, serde_json::json!({ "Message": text }).to_string());
            assert!(!headers.contains_key("retry-after"));
        }
    }

    #[test]
    fn message_that_is_too_late_has_no_retry_headers() {
        let late = ErrorReply::of_rejection(&Rejection::TooLate { before: 7 }, SENDING, None, &Clock::still());
        let (status, headers, _) = taken(of_error(&late));
        assert_eq!((status, &headers["x-amzn-errortype"]), (429, &HeaderValue::from_static(TOO_LATE)));
        assert!(!headers.contains_key("x-amz-retry-after") && !headers.contains_key("retry-after"));
    }

    #[test]
    fn error_that_allows_a_retry_has_both_headers() {
        let full = Full::Messages { queued: 10, most: 10 };
        for (error, millis, seconds) in [
            (ErrorReply::of_rejection(&Rejection::Full(full, None), SENDING, None, &Clock::still()), "2500", "3"),
            (ErrorReply::from(StoreFailed("disk".into())), "1000", "1"),
            (ErrorReply::unavailable("connect-relay: stopping"), "1000", "1"),
        ] {
            let (status, headers, body) = taken(of_error(&error));
            assert_eq!(status, error.status.as_u16());
            assert_eq!(headers["x-amzn-errortype"], *error.code);
            assert_eq!(
                (headers["x-amz-retry-after"].to_str().unwrap(), headers["retry-after"].to_str().unwrap()),
                (millis, seconds)
            );
            assert!(body.starts_with(r#"{"Message":"connect-relay: "#), "{body}");
        }
    }

    #[test]
    fn any_client_token_fits_into_a_header() {
        for (text, header) in [("a/b+c", "a/b+c"), ("50% é\n", "50%25%20%C3%A9%0A")] {
            assert_eq!(in_header(&token(text)).unwrap(), header);
        }
    }
}
