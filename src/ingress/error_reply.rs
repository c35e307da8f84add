//! An error reply to a bot: the status, the AWS code and the text.
//!
//! | error | source |
//! | --- | --- |
//! | 400, 404, 408, 413, 415 | the request itself |
//! | 403 `RelayForbiddenException`, 409, 429, 503 | access control, the intake state, or the queue's rejection |
//! | 403 `AccessDeniedException` and other errors of upstream | the message's dead letter, or its refused token |
//! | 410 | a message that became a dead letter without an error of upstream |
//! | 500 | the store |
//!
//! The texts of errors made here start with `connect-relay: `, name the value and the limit with its key, and never
//! contain a token, contents or a header's value. Upstream's texts are passed on unchanged: tokens were masked on
//! arrival.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use bytesize::ByteSize;
use hyper::StatusCode;
use hyper::header::HeaderValue;

use crate::delivery::{Reason, ServiceError};
use crate::message::{ClientToken, Invalid};
use crate::metrics::label_values;
use crate::queue::{Full, Rejection, Stopped, StoreFailed};
use crate::time::Clock;

/// The longest Retry-After of a full queue, and that of one that does not empty.
const RETRY_MAX: Duration = Duration::from_secs(60);

label_values! {
    /// The reason why a submission was not stored: the `reason` label of `messages_rejected_total`.
    pub(super) enum RejectReason {
        Invalid = "invalid",
        Conflict = "conflict",
        Denied = "denied",
        Forbidden = "forbidden",
        TooLarge = "too_large",
        QueueFull = "queue_full",
        DiskFull = "disk_full",
        TooLate = "too_late",
        Draining = "draining",
        Store = "store",
        Fenced = "fenced",
        FleetDown = "fleet_down",
    }
}

/// An error reply to a bot.
#[derive(Debug)]
pub(super) struct ErrorReply {
    pub(super) status: StatusCode,
    pub(super) code: Cow<'static, str>,
    pub(super) text: Cow<'static, str>,
    /// The Retry-After, if a better one than the default is known.
    pub(super) retry: Option<Duration>,
    /// Upstream's request id, if the error is upstream's.
    pub(super) request_id: Option<Box<str>>,
    /// The kind of rejection, if it is one.
    pub(super) counted: Option<RejectReason>,
    /// The refused message, for the log.
    pub(super) subject: Option<Box<Subject>>,
}

/// The present state of sending.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendingState {
    /// The learned rate.
    pub(super) rate: f64,
    /// True while the Participant Service is down.
    pub(super) down: bool,
}

/// The names of a refused message, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subject {
    /// The conversation's label.
    pub(super) conversation: Option<Box<str>>,
    pub(super) client_token: Option<Box<str>>,
}

/// The code of a message whose Relay-Lifetime cannot be met. It has no retry headers: the same call asks for it again.
pub(super) const TOO_LATE: &str = "RelayTooLateException";

impl ErrorReply {
    pub(super) fn new(status: StatusCode, code: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code: code.into(),
            text: text.into(),
            retry: None,
            request_id: None,
            counted: None,
            subject: None,
        }
    }

    /// Adds names to the known ones.
    pub(super) fn about(mut self, names: Subject) -> Self {
        let subject = self.subject.get_or_insert_default();
        subject.conversation = subject.conversation.take().or(names.conversation);
        subject.client_token = subject.client_token.take().or(names.client_token);
        self
    }

    pub(super) fn about_token(self, client_token: &ClientToken) -> Self {
        self.about(Subject { client_token: Some(client_token.as_str().into()), ..Subject::default() })
    }

    pub(super) fn counted(self, reason: RejectReason) -> Self {
        Self { counted: Some(reason), ..self }
    }

    /// 400; the text names the member and the fault.
    pub(super) fn invalid(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "ValidationException", format!("connect-relay: {what}"))
            .counted(RejectReason::Invalid)
    }

    /// 415
    pub(super) fn encoded(encoding: &HeaderValue) -> Self {
        let text = format!(
            "connect-relay: Content-Encoding is {}, only identity is allowed: send the body as it is",
            shown(encoding)
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "ValidationException", text).counted(RejectReason::Invalid)
    }

    pub(super) fn unavailable(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableException", text)
    }

    pub(super) fn forbidden(text: &'static str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "RelayForbiddenException", text).counted(RejectReason::Forbidden)
    }

    fn conflict(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, "ConflictException", text).counted(RejectReason::Conflict)
    }

    fn later(code: &'static str, text: String) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, text)
    }

    /// A token that belongs to another conversation.
    pub(super) fn other_conversation() -> Self {
        Self::conflict(
            "connect-relay: this ConnectionToken belongs to another conversation: it came under another \
             Relay-Conversation, or with one and without, or from another user or door",
        )
    }

    /// The service's error, unchanged.
    pub(super) fn upstream(error: &ServiceError) -> Self {
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
        Self { status, code, text, retry: None, request_id: error.request_id.clone(), counted: None, subject: None }
    }

    /// The reply about a dead message, to waiting callers and to repeats.
    pub(super) fn of_dead(reason: Reason, maybe_delivered: bool, error: &ServiceError) -> Self {
        let gone = match reason {
            Reason::Expired => "connect-relay: the message is dead: its lifetime ended before it was delivered",
            Reason::Deleted => "connect-relay: the message is dead: an operator deleted it",
            _ => return Self::upstream(error),
        };
        let text = if maybe_delivered {
            Cow::Owned(format!("{gone}; an attempt may have arrived"))
        } else {
            Cow::Borrowed(gone)
        };
        Self::new(StatusCode::GONE, "GoneException", text)
    }

    /// The reply to a rejection by the queue. `lifetime` is the one that the bot asked for; `clock` converts times.
    pub(super) fn of_rejection(
        rejection: &Rejection,
        sending: SendingState,
        lifetime: Option<Duration>,
        clock: &Clock,
    ) -> Self {
        match rejection {
            Rejection::OtherContents(accepted) => Self::conflict(format!(
                "connect-relay: this ClientToken was accepted with other contents at {}",
                clock.shown(*accepted)
            )),
            Rejection::OtherConversation => Self::other_conversation(),
            Rejection::NotReplaceable => Self::forbidden(
                "connect-relay: Relay-Replaces-Token names a token that was never accepted in this conversation",
            ),
            Rejection::Disconnected => {
                Self::conflict("connect-relay: the disconnect of this conversation was accepted before")
            }
            Rejection::TokenRefused(error) => Self::upstream(error).counted(RejectReason::Denied),
            Rejection::Full(full, stopped) => Self::full(*full, *stopped, sending),
            Rejection::TooLate { before } => Self::later(
                TOO_LATE,
                format!(
                    "connect-relay: it cannot be delivered within Relay-Lifetime ({} s): about {before} messages go before \
                     it, and the learned rate is {:.1} a second",
                    lifetime.unwrap_or_default().as_secs(),
                    sending.rate
                ),
            )
            .counted(RejectReason::TooLate),
        }
    }

    fn full(full: Full, stopped: Option<Stopped>, SendingState { rate, down }: SendingState) -> Self {
        use RejectReason::{DiskFull, QueueFull};
        let (what, reason) = match full {
            Full::Messages { queued, most } => (format!("{queued} of {most} messages (queue.messages_max)"), QueueFull),
            Full::Bytes { bytes, most } => {
                (format!("{} of {} on disk (queue.bytes_max)", ByteSize(bytes), ByteSize(most)), QueueFull)
            }
            Full::Disk { free, least } => {
                let (free, least) = (ByteSize(free), ByteSize(least));
                (format!("{free} are free on its disk, {least} must stay free (queue.free_disk_min)"), DiskFull)
            }
        };
        let stopped = match stopped {
            Some(Stopped::Paused) => Some("sending is paused"),
            Some(Stopped::AllRefused) => Some("Connect refuses every token"),
            None => down.then_some("the Participant Service is down"),
        };
        let mut text = format!("connect-relay: the queue is full: {what}; it empties at {rate:.1} messages a second");
        // One place is free after the time that one message takes.
        let mut retry = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(RETRY_MAX).min(RETRY_MAX);
        if let Some(why) = stopped {
            let _ = write!(text, ", but nothing is sent now: {why}");
            retry = RETRY_MAX;
        }
        if reason == DiskFull {
            text.push_str(if stopped.is_some() { ", and" } else { ", but" });
            text.push_str(" messages are accepted again only when space was freed on that disk");
            retry = RETRY_MAX;
        }
        Self { retry: Some(retry), ..Self::later("ThrottlingException", text).counted(reason) }
    }
}

/// A header's value as an error shows it: cut, and without terminal control characters.
fn shown(value: &HeaderValue) -> String {
    let value = String::from_utf8_lossy(value.as_bytes());
    value.chars().take(40).map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect()
}

impl From<Invalid> for ErrorReply {
    fn from(Invalid(what): Invalid) -> Self {
        Self::invalid(what)
    }
}

impl From<StoreFailed> for ErrorReply {
    fn from(_: StoreFailed) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerException",
            "connect-relay: the store failed, nothing was acknowledged",
        )
        .counted(RejectReason::Store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn full_queue_names_the_limit_its_key_and_how_fast_it_empties() {
        let of = |full, rate| {
            let sending = SendingState { rate, down: false };
            ErrorReply::of_rejection(&Rejection::Full(full, None), sending, None, &Clock::still())
        };
        for (full, reason, text, retry, more) in [
            (
                Full::Messages { queued: 10, most: 10 },
                RejectReason::QueueFull,
                "10 of 10 messages (queue.messages_max)",
                2500,
                "",
            ),
            (
                Full::Bytes { bytes: (128 << 20) + (1 << 19), most: 128 << 20 },
                RejectReason::QueueFull,
                "128.5 MiB of 128.0 MiB on disk (queue.bytes_max)",
                2500,
                "",
            ),
            (
                Full::Disk { free: 1 << 20, least: 64 << 20 },
                RejectReason::DiskFull,
                "1.0 MiB are free on its disk, 64.0 MiB must stay free (queue.free_disk_min)",
                60_000,
                ", but messages are accepted again only when space was freed on that disk",
            ),
        ] {
            let error = of(full, 0.4);
            assert_eq!((error.status.as_u16(), &*error.code), (429, "ThrottlingException"));
            assert_eq!((error.counted, error.retry), (Some(reason), Some(Duration::from_millis(retry))));
            let text = format!("connect-relay: the queue is full: {text}; it empties at 0.4 messages a second{more}");
            assert_eq!(error.text, text);
        }
        assert_eq!(of(Full::Disk { free: 1, least: 2 }, 0.0).retry, Some(RETRY_MAX));
    }

    #[test]
    fn full_queue_that_does_not_empty_now_names_the_reason() {
        let messages = Full::Messages { queued: 10, most: 10 };
        for (full, stopped, down, text) in [
            (
                messages,
                Some(Stopped::Paused),
                false,
                "(queue.messages_max); it empties at 9.0 messages a second, but nothing is sent now: sending is paused",
            ),
            (messages, Some(Stopped::Paused), true, "nothing is sent now: sending is paused"),
            (messages, Some(Stopped::AllRefused), false, "nothing is sent now: Connect refuses every token"),
            (messages, None, true, "nothing is sent now: the Participant Service is down"),
            (
                Full::Disk { free: 1, least: 2 },
                None,
                true,
                "nothing is sent now: the Participant Service is down, and messages are accepted again only when space was \
                 freed on that disk",
            ),
        ] {
            let sending = SendingState { rate: 9.0, down };
            let error = ErrorReply::of_rejection(&Rejection::Full(full, stopped), sending, None, &Clock::still());
            assert!(error.text.ends_with(text), "{}", error.text);
            assert_eq!((error.status.as_u16(), error.retry), (429, Some(RETRY_MAX)));
        }
    }

    #[test]
    fn rejections_have_the_codes_of_the_contract() {
        let clock = Clock::still();
        let sending = SendingState { rate: 2.0, down: false };
        let denied = ServiceError { status: 403, code: "AccessDeniedException".into(), ..ServiceError::default() };
        for (rejection, status, code, counted) in [
            (Rejection::OtherContents(Timestamp(0)), 409, "ConflictException", RejectReason::Conflict),
            (Rejection::OtherConversation, 409, "ConflictException", RejectReason::Conflict),
            (Rejection::Disconnected, 409, "ConflictException", RejectReason::Conflict),
            (Rejection::NotReplaceable, 403, "RelayForbiddenException", RejectReason::Forbidden),
            (Rejection::TooLate { before: 7 }, 429, "RelayTooLateException", RejectReason::TooLate),
            (Rejection::TokenRefused(denied), 403, "AccessDeniedException", RejectReason::Denied),
        ] {
            let error = ErrorReply::of_rejection(&rejection, sending, None, &clock);
            assert_eq!((error.status.as_u16(), &*error.code, error.counted), (status, code, Some(counted)));
            assert!(error.text.starts_with("connect-relay: "));
        }
        let lifetime = Some(Duration::from_secs(3));
        let late = ErrorReply::of_rejection(&Rejection::TooLate { before: 7 }, sending, lifetime, &clock);
        assert_eq!(
            late.text,
            "connect-relay: it cannot be delivered within Relay-Lifetime (3 s): about 7 messages go before it, and the \
             learned rate is 2.0 a second"
        );
    }

    #[test]
    fn encoding_is_named_and_harmless() {
        let of = |value: &[u8]| ErrorReply::encoded(&HeaderValue::from_bytes(value).unwrap());
        let error = of(b"gzip");
        assert_eq!((error.status.as_u16(), &*error.code), (415, "ValidationException"));
        assert_eq!(error.counted, Some(RejectReason::Invalid));
        assert!(error.text.starts_with("connect-relay: Content-Encoding is gzip, only identity"), "{}", error.text);
        assert!(of(b"a\xff\tb").text.contains("is a??b,"), "{}", of(b"a\xff\tb").text);
        assert!(of(b"identity, br").text.contains("is identity, br,"), "{}", of(b"identity, br").text);
        assert!(of(&[b'x'; 500]).text.len() < 150);
    }

    #[test]
    fn every_reason_is_found_at_its_own_index() {
        for (index, reason) in RejectReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
