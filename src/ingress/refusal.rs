//! An error on its way to a bot: which status, which of AWS's codes, and what it says.
//!
//! | error | from |
//! | --- | --- |
//! | 400, 404, 408, 413 | the request itself |
//! | 403 `RelayForbiddenException`, 409, 429, 503 | the door, or the queue's rejection |
//! | 403 `AccessDeniedException` and whatever else upstream said | the message's death, or its token's |
//! | 410 | a message that died without a word from upstream |
//! | 500 | the store |
//!
//! The texts of those made here start with `connect-relay: `, name what came and the limit with its key, and never hold
//! a token, contents or a header's value. Upstream's are passed on as they came: they were scrubbed on arrival.

use std::borrow::Cow;
use std::time::Duration;

use hyper::StatusCode;

use crate::delivery::{Reason, ServiceError};
use crate::message::Invalid;
use crate::queue::{Full, Rejection, StoreFailed};
use crate::time::Clock;

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

    /// Why the queue did not keep it. `rate` is the learned one, `lifetime` what the bot asked for; `clock` shows
    /// times.
    pub(super) fn of_rejection(rejection: &Rejection, rate: f64, lifetime: Option<Duration>, clock: &Clock) -> Refusal {
        match rejection {
            Rejection::OtherContents(accepted) => Refusal::conflict(format!(
                "connect-relay: this ClientToken was accepted with other contents at {}",
                clock.shown(*accepted)
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
            Rejection::TooLate { before } => Refusal::later(
                "RelayTooLateException",
                format!(
                    "connect-relay: it cannot be delivered within Relay-Lifetime ({} s): about {before} messages go before \
                     it, and the learned rate is {rate:.1} a second",
                    lifetime.unwrap_or_default().as_secs()
                ),
            )
            .counted(Rejected::TooLate),
        }
    }

    fn full(full: Full, rate: f64) -> Refusal {
        let (what, reason) = match full {
            Full::Messages { queued, most } => {
                (format!("{queued} of {most} messages (queue.messages_max)"), Rejected::QueueFull)
            }
            Full::Bytes { bytes, most } => {
                (format!("{bytes} of {most} bytes on disk (queue.bytes_max)"), Rejected::QueueFull)
            }
            Full::Disk { free, least } => (
                format!("{free} bytes are free on its disk, {least} must stay free (queue.free_disk_min)"),
                Rejected::DiskFull,
            ),
        };
        let text = format!("connect-relay: the queue is full: {what}; it empties at {rate:.1} messages a second");
        // One place is free after the time that one message takes.
        let retry = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(RETRY_MAX).min(RETRY_MAX);
        Refusal { retry: Some(retry), ..Refusal::later("ThrottlingException", text).counted(reason) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn full_queue_names_the_limit_its_key_and_how_fast_it_empties() {
        let of = |full, rate| Refusal::of_rejection(&Rejection::Full(full), rate, None, &Clock::still());
        for (full, reason, text) in [
            (Full::Messages { queued: 10, most: 10 }, Rejected::QueueFull, "10 of 10 messages (queue.messages_max)"),
            (Full::Bytes { bytes: 9, most: 8 }, Rejected::QueueFull, "9 of 8 bytes on disk (queue.bytes_max)"),
            (
                Full::Disk { free: 1, least: 2 },
                Rejected::DiskFull,
                "1 bytes are free on its disk, 2 must stay free (queue.free_disk_min)",
            ),
        ] {
            let refusal = of(full, 0.4);
            assert_eq!((refusal.status.as_u16(), &*refusal.code), (429, "ThrottlingException"));
            assert_eq!((refusal.counted, refusal.retry), (Some(reason), Some(Duration::from_millis(2500))));
            let text = format!("connect-relay: the queue is full: {text}; it empties at 0.4 messages a second");
            assert_eq!(refusal.text, text);
        }
        assert_eq!(of(Full::Disk { free: 1, least: 2 }, 0.0).retry, Some(RETRY_MAX));
    }

    #[test]
    fn rejections_have_the_codes_of_the_contract() {
        let clock = Clock::still();
        let denied = ServiceError { status: 403, code: "AccessDeniedException".into(), ..ServiceError::default() };
        for (rejection, status, code, counted) in [
            (Rejection::OtherContents(Timestamp(0)), 409, "ConflictException", Rejected::Conflict),
            (Rejection::OtherConversation, 409, "ConflictException", Rejected::Conflict),
            (Rejection::Disconnected, 409, "ConflictException", Rejected::Conflict),
            (Rejection::NotReplaceable, 403, "RelayForbiddenException", Rejected::Forbidden),
            (Rejection::TooLate { before: 7 }, 429, "RelayTooLateException", Rejected::TooLate),
            (Rejection::TokenRefused(denied), 403, "AccessDeniedException", Rejected::Denied),
        ] {
            let refusal = Refusal::of_rejection(&rejection, 10.0, None, &clock);
            assert_eq!((refusal.status.as_u16(), &*refusal.code, refusal.counted), (status, code, Some(counted)));
            assert!(refusal.text.starts_with("connect-relay: "));
        }
        let late = Refusal::of_rejection(&Rejection::TooLate { before: 7 }, 2.0, Some(Duration::from_secs(3)), &clock);
        assert_eq!(
            late.text,
            "connect-relay: it cannot be delivered within Relay-Lifetime (3 s): about 7 messages go before it, and the \
             learned rate is 2.0 a second"
        );
    }

    #[test]
    fn every_reason_is_found_at_its_own_index() {
        for (index, reason) in Rejected::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
