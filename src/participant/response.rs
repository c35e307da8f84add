//! The meaning of an answer: a pure function of its status, headers and body.
//!
//! | answer | outcome |
//! | --- | --- |
//! | 2xx with a JSON object (for an event or a disconnect also with an empty body) | delivered |
//! | 2xx otherwise, or cut short | answer lost |
//! | 3xx | misconfigured: never followed |
//! | 429; an error with a throttle's code | throttled |
//! | 503 | down |
//! | any other 5xx, 408, 425 | unavailable |
//! | 401, 404, 405 | misconfigured |
//! | 413; 409 ConflictException; 400 ValidationException | refused |
//! | 403 AccessDeniedException | denied |
//! | a 4xx without a code of the service's own | misconfigured |
//! | any other 4xx | unlisted |
//!
//! The code is the header `x-amzn-ErrorType` without its `:tail` and its `ns#` head, else `__type`, else `code` of the
//! body. A code is the service's own if it is in a place that only AWS uses (the header, `__type`) or ends in
//! `Exception`, and is not one that an API gateway answers by itself.
//!
//! Texts and ids are cut, because a row on disk contains them, and contain no token. The log text (`why`) contains only
//! upstream's status and code.

use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde_json::{Map, Value};

use super::redact::{redact, redact_id};
use crate::delivery::{NO_OBJECT, Outcome, Receipt, ServiceError};
use crate::message::{Body, ConnectionToken};
use crate::retry::RetryHint;
use crate::time::WallTime;

/// Codes that mean that the quota is exceeded, whatever the status.
const THROTTLES: [&str; 3] = ["ThrottlingException", "TooManyRequestsException", "LimitExceededException"];

/// Codes that an API gateway answers by itself, before the service has received the request.
const GATEWAYS: [&str; 9] = [
    "MissingAuthenticationTokenException",
    "ForbiddenException",
    "UnrecognizedClientException",
    "IncompleteSignatureException",
    "InvalidSignatureException",
    "ExpiredTokenException",
    "UnauthorizedException",
    "UnknownOperationException",
    "NotFoundException",
];

/// The longest text that is accepted as a code.
const CODE_MAX: usize = 128;
/// The longest id or time that is kept, in characters.
const ID_CHARS_MAX: usize = 256;
/// The longest error text that is kept, in characters.
const TEXT_CHARS_MAX: usize = 1024;
/// The longest part of an error text that is read, in bytes.
const TEXT_BYTES_READ: usize = 64 * 1024;

/// An answer as it arrived.
#[derive(Debug)]
pub(super) struct Response<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    /// `None` if it broke off or was too long.
    pub(super) body: Option<&'a [u8]>,
}

/// Classifies the answer to `sent`.
pub(super) fn classify(sent: &Body, token: &ConnectionToken, answer: &Response<'_>, now: WallTime) -> Outcome {
    if answer.status.is_success() {
        return success(sent, token, answer);
    }
    let status = answer.status.as_u16();
    let hint = RetryHint::parse(header(answer, "x-amz-retry-after"), header(answer, "retry-after"), now);
    let object = answer.object().unwrap_or_default();
    let Code { name: code, in_awss_place } = code(answer, &object).unwrap_or_default();
    let named = || if code.is_empty() { status.to_string() } else { format!("{status} {code}") };
    let error = || service_error(answer, &object, &code, token);
    let is_error = answer.status.is_client_error() || answer.status.is_server_error();
    match status {
        429 => Outcome::Throttled { status, hint, why: named() },
        _ if is_error && THROTTLES.contains(&&*code) => Outcome::Throttled { status, hint, why: named() },
        503 => Outcome::Down { status: Some(status), hint, why: named() },
        408 | 425 | 500..=599 => Outcome::Unavailable { status, hint, why: named() },
        300..=399 => Outcome::Misconfigured { status, why: format!("{status}: a redirect, which is never followed") },
        401 | 404 | 405 => Outcome::Misconfigured { status, why: not_the_service(answer, &code) },
        413 => Outcome::Refused(error()),
        400 if code == "ValidationException" => Outcome::Refused(error()),
        403 if code == "AccessDeniedException" => Outcome::Denied(error()),
        409 if code == "ConflictException" => Outcome::Refused(error()),
        400..=499 if code.is_empty() && answer.body.is_none() => {
            Outcome::Unavailable { status, hint, why: format!("{status}, and the rest of the answer is missing") }
        }
        400..=499 if is_the_services(&code, in_awss_place) => Outcome::Unlisted(error()),
        _ => Outcome::Misconfigured { status, why: not_the_service(answer, &code) },
    }
}

/// The status and code of an answer by which the service, or the gateway in front of it, shows that it was reached. To a
/// request without a token the gateway may answer by itself.
///
/// # Errors
/// With a description of an answer of another server, or of a failure of the service.
pub(super) fn recognise(answer: &Response<'_>) -> Result<String, String> {
    let status = answer.status.as_u16();
    let object = answer.object();
    let is_json = object.is_some() || answer.body.is_some_and(|body| body.trim_ascii().is_empty());
    let Code { name, in_awss_place } = code(answer, &object.unwrap_or_default()).unwrap_or_default();
    let named = || if name.is_empty() { status.to_string() } else { format!("{status} {name}") };
    match status {
        200..=299 if is_json => Ok(named()),
        200..=299 => Err(format!("{status} {NO_OBJECT}: a page of a proxy, or another service")),
        300..=399 => Err(format!("{status}: a redirect, which is never followed")),
        404 | 405 => Err(not_the_service(answer, &name)),
        429 => Ok(named()),
        400..=499 if in_awss_place || is_the_services(&name, in_awss_place) => Ok(named()),
        500..=599 => Err(named()),
        _ => Err(not_the_service(answer, &name)),
    }
}

impl Response<'_> {
    fn object(&self) -> Option<Map<String, Value>> {
        match serde_json::from_slice(self.body?) {
            Ok(Value::Object(object)) => Some(object),
            _ => None,
        }
    }
}

fn success(sent: &Body, token: &ConnectionToken, answer: &Response<'_>) -> Outcome {
    let status = answer.status.as_u16();
    let Some(body) = answer.body else {
        return Outcome::AnswerLost { why: format!("{status}, and the rest of the answer is missing") };
    };
    let may_be_empty = !matches!(sent, Body::Message { .. });
    let object = match answer.object() {
        Some(object) => object,
        None if may_be_empty && body.trim_ascii().is_empty() => Map::new(),
        None => {
            return Outcome::AnswerLost { why: format!("{status} {NO_OBJECT}: a page of a proxy, or another service") };
        }
    };
    let member = |object: &Map<String, Value>, name: &str| {
        object.get(name).and_then(Value::as_str).map(|text| stored_id(text, token))
    };
    let metadata = object.get("MessageMetadata").and_then(Value::as_object);
    Outcome::Delivered(Receipt {
        id: member(&object, "Id"),
        absolute_time: member(&object, "AbsoluteTime"),
        processing_status: metadata.and_then(|metadata| member(metadata, "MessageProcessingStatus")),
        request_id: request_id(answer, token),
    })
}

fn service_error(
    answer: &Response<'_>,
    object: &Map<String, Value>,
    code: &str,
    token: &ConnectionToken,
) -> ServiceError {
    let text = ["Message", "message"].into_iter().find_map(|name| object.get(name)?.as_str());
    let status = answer.status.as_u16();
    // A 413 may come from a proxy, without a code or a text.
    let code = if code.is_empty() { "RequestTooLargeException" } else { code };
    ServiceError {
        status,
        code: code.into(),
        text: text.map(|text| stored_text(text, token)).unwrap_or_default(),
        request_id: request_id(answer, token),
    }
}

fn request_id(answer: &Response<'_>, token: &ConnectionToken) -> Option<Box<str>> {
    header(answer, "x-amzn-requestid").map(|id| stored_id(id, token))
}

/// An error's code.
#[derive(Default)]
struct Code {
    name: String,
    /// True if it is in a place that only AWS uses; other servers have a `code` too.
    in_awss_place: bool,
}

fn code(answer: &Response<'_>, object: &Map<String, Value>) -> Option<Code> {
    let body = |name: &str| object.get(name).and_then(Value::as_str).and_then(bare);
    let awss = header(answer, "x-amzn-errortype").and_then(bare).or_else(|| body("__type"));
    let in_awss_place = awss.is_some();
    awss.or_else(|| body("code")).map(|name| Code { name, in_awss_place })
}

/// The code alone: `aws.connect#ConflictException:http://…` is `ConflictException`.
fn bare(text: &str) -> Option<String> {
    let text = text.split(':').next().unwrap_or_default();
    let text = text.rsplit('#').next().unwrap_or_default().trim();
    let is_code = !text.is_empty()
        && text.len() <= CODE_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    is_code.then(|| text.to_string())
}

fn is_the_services(code: &str, in_awss_place: bool) -> bool {
    !code.is_empty() && (in_awss_place || code.ends_with("Exception")) && !GATEWAYS.contains(&code)
}

fn not_the_service(answer: &Response<'_>, code: &str) -> String {
    let status = answer.status.as_u16();
    if !code.is_empty() {
        format!("{status} {code}: not one of the service's own answers")
    } else if answer.object().is_some() {
        format!("{status} without an error code")
    } else {
        format!("{status} with a body that is not the service's JSON")
    }
}

fn header<'a>(answer: &'a Response<'_>, name: &str) -> Option<&'a str> {
    answer.headers.get(name)?.to_str().ok()
}

/// Prepares a text for storage: masks the token and cuts the length.
fn stored_text(text: &str, token: &ConnectionToken) -> Box<str> {
    cut(&redact(looked_at(text), token.expose()), TEXT_CHARS_MAX)
}

/// Prepares an id or a time for storage.
fn stored_id(text: &str, token: &ConnectionToken) -> Box<str> {
    cut(&redact_id(looked_at(text), token.expose()), ID_CHARS_MAX)
}

fn looked_at(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_READ)]
}

fn cut(text: &str, chars_max: usize) -> Box<str> {
    text.chars().take(chars_max).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Content, ContentType};

    const OBJECT: &str = r#"{"Id":"i","AbsoluteTime":"t"}"#;
    const HTML: &str = "<html>403 Forbidden</html>";

    fn token() -> ConnectionToken {
        ConnectionToken::parse(b"secret/token").unwrap()
    }

    fn message() -> Body {
        Body::Message { content_type: ContentType::Plain, content: Content::new("hello".into()) }
    }

    fn event() -> Body {
        Body::Event { content_type: "application/vnd.amazonaws.connect.event.typing".into(), content: None }
    }

    fn ask(sent: &Body, status: u16, headers: &[(&'static str, &str)], body: Option<&str>) -> Outcome {
        let headers = headers.iter().map(|(name, value)| {
            (hyper::header::HeaderName::from_static(name), hyper::header::HeaderValue::from_str(value).unwrap())
        });
        let headers = headers.collect();
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Response { status, headers: &headers, body: body.map(str::as_bytes) };
        classify(sent, &token(), &answer, WallTime(0))
    }

    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Delivered(_) => "delivered",
            Outcome::Throttled { .. } => "throttled",
            Outcome::Down { .. } => "down",
            Outcome::Unavailable { .. } => "unavailable",
            Outcome::AnswerLost { .. } => "answer_lost",
            Outcome::Refused(_) => "refused",
            Outcome::Unlisted(_) => "unlisted",
            Outcome::Denied(_) => "denied",
            Outcome::Misconfigured { .. } => "misconfigured",
        }
    }

    #[test]
    fn answers_are_classified_by_the_table() {
        for (status, code, body, expected) in [
            (400, "ValidationException", "{}", "refused"),
            (422, "ValidationException", "{}", "unlisted"),
            (409, "ConflictException", "{}", "refused"),
            (409, "OtherException", "{}", "unlisted"),
            (409, "", "{}", "misconfigured"),
            (413, "", HTML, "refused"),
            (413, "ValidationException", "{}", "refused"),
            (403, "AccessDeniedException", "{}", "denied"),
            (403, "ForbiddenException", "{}", "misconfigured"),
            (403, "MissingAuthenticationTokenException", "{}", "misconfigured"),
            (403, "", HTML, "misconfigured"),
            (403, "", "", "misconfigured"),
            (403, "SomethingElse", "{}", "unlisted"),
            (418, "", r#"{"__type":"ns#Teapot"}"#, "unlisted"),
            (418, "", r#"{"code":"TeapotException"}"#, "unlisted"),
            (403, "", r#"{"code":"FORBIDDEN","message":"by the proxy"}"#, "misconfigured"),
            (400, "", r#"{"message":"bad request"}"#, "misconfigured"),
            (401, "AccessDeniedException", "{}", "misconfigured"),
            (404, "ResourceNotFoundException", "{}", "misconfigured"),
            (405, "", "", "misconfigured"),
            (407, "", HTML, "misconfigured"),
            (402, "ServiceQuotaExceededException", "{}", "unlisted"),
            (418, "TeapotException", "{}", "unlisted"),
            (429, "", "", "throttled"),
            (429, "ValidationException", "{}", "throttled"),
            (429, "TooManyRequestsException", "{}", "throttled"),
            (400, "ThrottlingException", "{}", "throttled"),
            (503, "ThrottlingException", "{}", "throttled"),
            (404, "ThrottlingException", "{}", "throttled"),
            (403, "LimitExceededException", "{}", "throttled"),
            (503, "", HTML, "down"),
            (500, "InternalServerException", "{}", "unavailable"),
            (500, "ValidationException", "{}", "unavailable"),
            (501, "", "", "unavailable"),
            (502, "", HTML, "unavailable"),
            (504, "", "", "unavailable"),
            (408, "", "", "unavailable"),
            (425, "", "", "unavailable"),
            (301, "", "", "misconfigured"),
            (307, "ThrottlingException", "", "misconfigured"),
            (600, "ThrottlingException", "{}", "misconfigured"),
        ] {
            let headers: &[(&str, &str)] = if code.is_empty() { &[] } else { &[("x-amzn-errortype", code)] };
            let outcome = ask(&message(), status, headers, Some(body));
            assert_eq!(kind(&outcome), expected, "{status} {code} {body}: {outcome:?}");
        }
    }

    #[test]
    fn success_needs_an_object_or_except_for_a_message_an_empty_body() {
        for (sent, status, body, expected) in [
            (message(), 200, Some(OBJECT), "delivered"),
            (message(), 201, Some("{}"), "delivered"),
            (message(), 200, Some(""), "answer_lost"),
            (message(), 204, Some(""), "answer_lost"),
            (message(), 200, Some("[]"), "answer_lost"),
            (message(), 200, Some("{\"Id\":"), "answer_lost"),
            (message(), 200, Some(HTML), "answer_lost"),
            (message(), 200, None, "answer_lost"),
            (event(), 200, Some(OBJECT), "delivered"),
            (event(), 200, Some("{}"), "delivered"),
            (event(), 200, Some(""), "delivered"),
            (event(), 200, Some(HTML), "answer_lost"),
            (event(), 200, None, "answer_lost"),
            (Body::Disconnect, 200, Some(" \r\n"), "delivered"),
            (Body::Disconnect, 204, Some(""), "delivered"),
            (Body::Disconnect, 200, Some("{}"), "delivered"),
            (Body::Disconnect, 200, Some(HTML), "answer_lost"),
        ] {
            let outcome = ask(&sent, status, &[], body);
            assert_eq!(kind(&outcome), expected, "{sent:?} {status} {body:?}: {outcome:?}");
        }
    }

    #[test]
    fn receipt_is_read_and_kept_short() {
        let long = "x".repeat(5000);
        let body = format!(
            r#"{{"Id":"{long}","AbsoluteTime":"2019-11-08T02:41:28.172Z","MessageMetadata":{{"MessageProcessingStatus":"FAILED"}}}}"#
        );
        let Outcome::Delivered(receipt) = ask(&message(), 200, &[("x-amzn-requestid", "r-1")], Some(&body)) else {
            panic!("it is a delivery")
        };
        assert_eq!(receipt.id.as_deref().map(str::len), Some(256));
        assert_eq!(receipt.absolute_time.as_deref(), Some("2019-11-08T02:41:28.172Z"));
        assert_eq!(receipt.processing_status.as_deref(), Some("FAILED"));
        assert_eq!(receipt.request_id.as_deref(), Some("r-1"));
        let bare = ask(&message(), 200, &[], Some(r#"{"Id":7,"MessageMetadata":"no"}"#));
        assert_eq!(bare, Outcome::Delivered(Receipt::default()));
    }

    #[test]
    fn code_is_found_in_every_place() {
        for (in_header, body, expected) in [
            ("ValidationException", "{}", "ValidationException"),
            ("ValidationException:http://internal.amazon.com/coral/", "{}", "ValidationException"),
            ("com.amazonaws.connectparticipant#ValidationException", "{}", "ValidationException"),
            ("ns#ValidationException:http://x/#y", "{}", "ValidationException"),
            ("ConflictException", r#"{"__type":"ValidationException"}"#, "ConflictException"),
            ("", r#"{"__type":"ns#ValidationException:tail","code":"ConflictException"}"#, "ValidationException"),
            ("", r#"{"code":"ConflictException"}"#, "ConflictException"),
            ("", r#"{"__type":7,"code":"ConflictException"}"#, "ConflictException"),
            (":http://x", r#"{"code":"ConflictException"}"#, "ConflictException"),
            ("no code at all", r#"{"code":"ConflictException"}"#, "ConflictException"),
        ] {
            let headers: &[(&str, &str)] = if in_header.is_empty() { &[] } else { &[("x-amzn-errortype", in_header)] };
            match ask(&message(), 418, headers, Some(body)) {
                Outcome::Unlisted(error) => assert_eq!(&*error.code, expected, "{in_header} {body}"),
                other => panic!("{in_header} {body}: {other:?}"),
            }
        }
    }

    #[test]
    fn error_text_is_either_spelling_without_token_and_cut() {
        let headers = [("x-amzn-errortype", "ValidationException"), ("x-amzn-requestid", "r-2")];
        let text = |body: &str| match ask(&message(), 400, &headers, Some(body)) {
            Outcome::Refused(error) => {
                assert_eq!((error.status, error.request_id.as_deref()), (400, Some("r-2")));
                error.text
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(&*text(r#"{"Message":"a","message":"b"}"#), "a");
        assert_eq!(
            &*text(r#"{"message":"bad token secret\/token or secret%2Ftoken"}"#),
            "bad token [token] or [token]"
        );
        assert_eq!(&*text("<html>"), "");
        assert_eq!(text(&format!(r#"{{"Message":"{}"}}"#, "é".repeat(100_000))).chars().count(), 1024);
    }

    #[test]
    fn hints_come_from_both_headers() {
        let headers = [("x-amz-retry-after", "1500"), ("retry-after", "3")];
        let hint = RetryHint(Some(Duration::from_secs(3)));
        let throttled = Outcome::Throttled { status: 429, hint, why: "429".into() };
        assert_eq!(ask(&message(), 429, &headers, None), throttled);
        let headers = [("x-amzn-errortype", "ns#ThrottlingException"), headers[0], headers[1]];
        let throttled = Outcome::Throttled { status: 400, hint, why: "400 ThrottlingException".into() };
        assert_eq!(ask(&message(), 400, &headers, None), throttled);
        let headers = &headers[1..];
        let outcome = ask(&message(), 503, &headers[..1], Some(""));
        assert!(
            matches!(outcome, Outcome::Down { status: Some(503), hint: RetryHint(Some(wait)), .. } if wait.as_millis() == 1500)
        );
        assert!(
            matches!(ask(&message(), 500, headers, Some("")), Outcome::Unavailable { hint: found, .. } if found == hint)
        );
    }

    #[test]
    fn truncated_error_is_classified_by_its_head_alone() {
        let headers = [("x-amzn-errortype", "ValidationException")];
        assert_eq!(kind(&ask(&message(), 400, &headers, None)), "refused");
        assert_eq!(kind(&ask(&message(), 400, &[], None)), "unavailable");
        assert_eq!(kind(&ask(&message(), 500, &[], None)), "unavailable");
    }

    #[test]
    fn log_text_contains_nothing_of_upstream_but_its_code() {
        for status in [302, 400, 401, 403, 404, 408, 500, 503] {
            let body = r#"{"Message":"canary","message":"secret/token"}"#;
            let outcome = ask(&message(), status, &[("location", "http://canary/"), ("server", "canary")], Some(body));
            assert!(!outcome.why().contains("canary") && !outcome.why().contains("secret"), "{}", outcome.why());
        }
    }
}
