//! The outcome of an attempt, and its consequence for the message.
//!
//! [`Outcome`] is the answer of the Participant Service, or of whatever answered in its place. [`decide`] turns it into
//! a [`Disposition`]. It is pure, so the whole table can be read and tested in one place:
//!
//! | outcome | the message | the destination ([`Outcome::signal`]) |
//! | --- | --- | --- |
//! | delivered | done | healthy |
//! | throttled | stays first in its conversation, uncounted; the conversation waits among the suspects (`suspects`) | waits, unless the throttle is the conversation's own |
//! | unreachable, or an answer that is not the service's | later, uncounted | waits if several conversations fail (`suspects`) |
//! | 500, 502, 503, 504, 408, 425 | later, counted; `poison` in the end | waits if several conversations fail |
//! | answer lost: it may have arrived | later, counted, the same again before anything else | waits if several conversations fail |
//! | a code of the service that is not listed | later; `refused` at the fifth | healthy |
//! | ValidationException, ConflictException, 413 | dead | healthy |
//! | AccessDeniedException | denied: dead if its caller waits, else held | healthy |
//!
//! Only an error code of the service itself makes a message a dead letter.

use std::time::Duration;

use crate::metrics::label_values;
use crate::retry::{Backoff, RetryHint};
use crate::time::Timestamp;

/// The number of answers with an unlisted code after which a message is dead.
pub const STRIKES_MAX: u8 = 5;

/// The text in an outcome's `why` for a 2xx that is not the service's: a page of a proxy, or another service.
pub const NO_OBJECT: &str = "without a JSON object";

/// The outcome of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx with a JSON object.
    Delivered(Receipt),
    /// Any 429, or a ThrottlingException under another status.
    Throttled {
        /// The status.
        status: u16,
        /// The wait that upstream asks for.
        hint: RetryHint,
        /// The cause, for the log.
        why: String,
    },
    /// Nothing was written, or a 503: the destination is not available.
    Down {
        /// The status, if there was one.
        status: Option<u16>,
        /// The wait that upstream asks for.
        hint: RetryHint,
        /// The cause, for the log.
        why: String,
    },
    /// 500, 502, 504, 408, 425: this attempt failed, the next may succeed.
    Unavailable {
        /// The status.
        status: u16,
        /// The wait that upstream asks for.
        hint: RetryHint,
        /// The cause, for the log.
        why: String,
    },
    /// The request was written, but no complete answer came: it may have been delivered.
    AnswerLost {
        /// The cause, for the log.
        why: String,
    },
    /// The service will never accept this message.
    Refused(ServiceError),
    /// A code of the service that the table does not list.
    Unlisted(ServiceError),
    /// 403 AccessDeniedException: the token is no longer valid.
    Denied(ServiceError),
    /// A 3xx, or a 4xx without a code of the service: another server answered.
    Misconfigured {
        /// The status.
        status: u16,
        /// The cause, for the log.
        why: String,
    },
}

/// The service's answer for a delivered message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Connect's id of the message; `None` for a disconnect, or a participant that was gone already.
    pub id: Option<Box<str>>,
    /// The time at which Connect accepted it, in Connect's format.
    pub absolute_time: Option<Box<str>>,
    /// `PROCESSING`, `FAILED` or `REJECTED`, if the service sent it.
    pub processing_status: Option<Box<str>>,
    /// The service's `x-amzn-RequestId`.
    pub request_id: Option<Box<str>>,
}

/// An error in AWS's shape; the tokens in its text are masked before it is created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceError {
    /// The status.
    pub status: u16,
    /// The code, such as `ValidationException`.
    pub code: Box<str>,
    /// Its text.
    pub text: Box<str>,
    /// The service's `x-amzn-RequestId`.
    pub request_id: Option<Box<str>>,
}

impl ServiceError {
    /// An error of the relay itself, as its text says.
    pub fn of_relay(status: u16, code: &str, text: impl std::fmt::Display) -> ServiceError {
        ServiceError { status, code: code.into(), text: format!("connect-relay: {text}").into(), request_id: None }
    }
}

/// The information in an outcome about the destination: the pacer's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The service answered: the request used its share of the quota.
    Answered,
    /// The request was over the quota.
    Throttled(RetryHint),
    /// The same conversation was over the quota again, with no delivery between: no new information about the rate.
    StillThrottled(RetryHint),
    /// The destination does not answer, or another server answers.
    Down(RetryHint),
    /// No information about the destination: the failure or the throttle is one conversation's own.
    Unclear,
}

impl Outcome {
    /// The `outcome` label of `attempts_total`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Delivered(_) => "delivered",
            Outcome::Throttled { .. } => "throttled",
            Outcome::Down { .. } | Outcome::Unavailable { .. } => "unavailable",
            Outcome::AnswerLost { .. } => "answer_lost",
            Outcome::Refused(_) | Outcome::Unlisted(_) => "refused",
            Outcome::Denied(_) => "denied",
            Outcome::Misconfigured { .. } => "misconfigured",
        }
    }

    /// The information about the destination.
    #[must_use]
    pub fn signal(&self) -> Signal {
        match self {
            Outcome::Throttled { hint, .. } => Signal::Throttled(*hint),
            Outcome::Down { hint, .. } => Signal::Down(*hint),
            Outcome::Misconfigured { .. } => Signal::Down(RetryHint::default()),
            _ => Signal::Answered,
        }
    }

    /// The status of the answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Delivered(_) => Some(200),
            Outcome::Down { status, .. } => *status,
            Outcome::Throttled { status, .. }
            | Outcome::Unavailable { status, .. }
            | Outcome::Misconfigured { status, .. } => Some(*status),
            Outcome::AnswerLost { .. } => None,
            Outcome::Refused(error) | Outcome::Unlisted(error) | Outcome::Denied(error) => Some(error.status),
        }
    }

    /// The service's `x-amzn-RequestId`, if it answered for the message.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Outcome::Delivered(receipt) => receipt.request_id.as_deref(),
            Outcome::Refused(error) | Outcome::Unlisted(error) | Outcome::Denied(error) => error.request_id.as_deref(),
            _ => None,
        }
    }

    /// The cause in words, without secrets.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Outcome::Delivered(_) => "delivered",
            Outcome::Throttled { why, .. }
            | Outcome::Down { why, .. }
            | Outcome::Unavailable { why, .. }
            | Outcome::AnswerLost { why }
            | Outcome::Misconfigured { why, .. } => why,
            Outcome::Refused(error) | Outcome::Unlisted(error) | Outcome::Denied(error) => &error.code,
        }
    }
}

label_values! {
    /// The reason why a message is dead: a closed set, the `reason` label of `messages_dead_total`. A row on disk contains
    /// the index, so that their order stays.
    pub enum Reason {
        /// 403 AccessDeniedException: the participant is gone or the chat is over.
        ChatOver = "chat_over",
        /// 403 "explicit deny": the token is wrong or expired.
        TokenRefused = "token_refused",
        /// ValidationException.
        Invalid = "invalid",
        /// ConflictException, 413, or five answers with an unlisted code.
        Refused = "refused",
        /// The message kept failing while others were delivered.
        Poison = "poison",
        /// The message's lifetime ended.
        Expired = "expired",
        /// An operator deleted the message.
        Deleted = "deleted",
    }
}

impl Reason {
    /// The meaning of a 403. AWS documents neither text, so the text only selects the reason.
    #[must_use]
    pub fn of_denial(error: &ServiceError) -> Reason {
        if error.text.contains("explicit deny") { Reason::TokenRefused } else { Reason::ChatOver }
    }
}

/// The facts about a message when an attempt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// True for a disconnect: a denial means that the participant is gone already.
    pub disconnect: bool,
    /// Counted attempts before this one.
    pub attempts: u32,
    /// Answers with an unlisted code, before this one.
    pub strikes: u8,
    /// Counted failures of this message before this one.
    pub counted: u16,
    /// True if another conversation was delivered since this message last failed.
    pub others_delivered: bool,
    /// Failures and throttles of the conversation in a row, with this one.
    pub streak: u32,
    /// True if a throttle is the conversation's own, not the destination's.
    pub own_throttle: bool,
    /// True if the destination waits: then the hint applies to it.
    pub destination_waits: bool,
}

/// The settings for retrying and giving up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Delays between attempts of one message.
    pub backoff: Backoff,
    /// The longest wait that upstream may ask for.
    pub hint_max: Duration,
    /// Failures of one message before it is poison; one counts if another conversation was delivered since the one
    /// before.
    pub attempts_max: u32,
}

/// The consequence for the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Delivered.
    Deliver(Receipt),
    /// No consequence: the message keeps its place and is not counted.
    Keep,
    /// Later; not counted as an attempt of this message.
    Wait {
        /// The earliest time.
        due: Timestamp,
    },
    /// Later, and counted.
    Retry {
        /// The earliest time.
        due: Timestamp,
        /// True if it may have arrived: the same message is sent again before any other of its conversation.
        answer_lost: bool,
        /// True if its code is not listed.
        strike: bool,
        /// True if the failure counts towards `sender.attempts_max`.
        counted: bool,
    },
    /// Connect refused the token: dead if its caller waits, else the conversation is held.
    Deny(ServiceError),
    /// Dead.
    DeadLetter(Reason, ServiceError),
}

/// Decides the consequence of an attempt for its message. `jitter` is in 0..1.
#[must_use]
pub fn decide(outcome: &Outcome, facts: Facts, policy: &Policy, now: Timestamp, jitter: f64) -> Disposition {
    let after = |failures: u32, hint: RetryHint| {
        let asked = if facts.destination_waits { Duration::ZERO } else { hint.at_most(policy.hint_max) };
        now + policy.backoff.delay(failures, jitter).max(asked)
    };
    let later = |hint: RetryHint, answer_lost: bool, strike: bool, counted: bool| {
        let due = after(facts.streak.max(facts.attempts + 1), hint);
        Disposition::Retry { due, answer_lost, strike, counted }
    };
    let counts = facts.others_delivered;
    let poisonous = counts && u32::from(facts.counted) + 1 >= policy.attempts_max;
    match outcome {
        Outcome::Delivered(receipt) => Disposition::Deliver(receipt.clone()),
        Outcome::Throttled { hint, .. } if facts.own_throttle => Disposition::Wait { due: after(facts.streak, *hint) },
        Outcome::Throttled { .. } => Disposition::Wait { due: now },
        Outcome::Down { status: None, hint, .. } => Disposition::Wait { due: after(facts.streak, *hint) },
        Outcome::Misconfigured { .. } => Disposition::Wait { due: after(facts.streak, RetryHint::default()) },
        Outcome::Down { status: Some(_), .. } | Outcome::Unavailable { .. } | Outcome::AnswerLost { .. }
            if poisonous =>
        {
            let text = format!("gave up after {} attempts: {}", facts.attempts + 1, outcome.why());
            let status = outcome.status().unwrap_or(500);
            Disposition::DeadLetter(Reason::Poison, ServiceError::of_relay(status, "InternalServerException", text))
        }
        Outcome::Down { hint, .. } | Outcome::Unavailable { hint, .. } => later(*hint, false, false, counts),
        Outcome::AnswerLost { .. } => later(RetryHint::default(), true, false, counts),
        Outcome::Denied(error) if facts.disconnect => {
            Disposition::Deliver(Receipt { request_id: error.request_id.clone(), ..Receipt::default() })
        }
        Outcome::Denied(error) => Disposition::Deny(error.clone()),
        Outcome::Unlisted(error) if facts.strikes + 1 >= STRIKES_MAX => {
            Disposition::DeadLetter(Reason::Refused, error.clone())
        }
        Outcome::Unlisted(_) => later(RetryHint::default(), false, true, false),
        Outcome::Refused(error) => {
            let invalid = &*error.code == "ValidationException" && error.status == 400;
            Disposition::DeadLetter(if invalid { Reason::Invalid } else { Reason::Refused }, error.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn policy() -> Policy {
        Policy { backoff: Backoff::default(), hint_max: Duration::from_secs(60), attempts_max: 10 }
    }

    fn error(status: u16, code: &str) -> ServiceError {
        ServiceError { status, code: code.into(), ..ServiceError::default() }
    }

    fn decided(outcome: Outcome, facts: Facts) -> Disposition {
        decide(&outcome, facts, &policy(), NOW, 0.5)
    }

    #[test]
    fn throttle_or_unreachable_destination_is_not_counted_as_an_attempt() {
        let hint = RetryHint(Some(Duration::from_secs(9)));
        let throttled = || Outcome::Throttled { status: 429, hint, why: String::new() };
        let unreachable = || Outcome::Down { status: None, hint: RetryHint::default(), why: String::new() };
        let page = || Outcome::Misconfigured { status: 404, why: String::new() };
        let facts = Facts { attempts: 99, counted: 99, others_delivered: true, streak: 2, ..Facts::default() };
        for (outcome, own_throttle, wait) in
            [(throttled(), false, 0), (throttled(), true, 9000), (unreachable(), false, 400), (page(), false, 400)]
        {
            let wait = Disposition::Wait { due: Timestamp(NOW.0 + wait) };
            assert_eq!(decided(outcome, Facts { own_throttle, ..facts }), wait);
        }
    }

    #[test]
    fn hint_does_not_delay_the_message_if_the_destination_waits() {
        let hint = RetryHint(Some(Duration::from_secs(9)));
        for (destination_waits, wait) in [(false, 9000), (true, 200)] {
            let outcome = Outcome::Down { status: Some(503), hint, why: String::new() };
            let due = Timestamp(NOW.0 + wait);
            let retry = Disposition::Retry { due, answer_lost: false, strike: false, counted: false };
            assert_eq!(decided(outcome, Facts { destination_waits, ..Facts::default() }), retry);
        }
    }

    #[test]
    fn failing_message_waits_longer_each_time_and_obeys_the_hint() {
        let failed = |hint| Outcome::Unavailable { status: 500, hint, why: String::new() };
        for (attempts, hint, wait) in
            [(0, None, 200), (1, None, 400), (8, None, 5000), (0, Some(9), 9000), (0, Some(99), 60_000)]
        {
            let facts = Facts { attempts, ..Facts::default() };
            let hint = RetryHint(hint.map(Duration::from_secs));
            let due = Timestamp(NOW.0 + wait);
            assert_eq!(
                decided(failed(hint), facts),
                Disposition::Retry { due, answer_lost: false, strike: false, counted: false }
            );
        }
    }

    #[test]
    fn poison_needs_both_its_own_failures_and_the_others_deliveries() {
        let unknown = || Outcome::AnswerLost { why: "reset".into() };
        let facts = |counted, others_delivered| Facts { counted, others_delivered, attempts: 50, ..Facts::default() };
        assert!(matches!(decided(unknown(), facts(9, true)), Disposition::DeadLetter(Reason::Poison, _)));
        assert!(matches!(decided(unknown(), facts(9, false)), Disposition::Retry { counted: false, .. }));
        assert!(matches!(
            decided(unknown(), facts(8, true)),
            Disposition::Retry { answer_lost: true, counted: true, .. }
        ));
    }

    #[test]
    fn only_an_error_of_the_service_makes_a_dead_letter() {
        let dead_letter = |outcome| match decided(outcome, Facts::default()) {
            Disposition::DeadLetter(reason, _) => Some(reason),
            _ => None,
        };
        assert_eq!(dead_letter(Outcome::Refused(error(400, "ValidationException"))), Some(Reason::Invalid));
        assert_eq!(dead_letter(Outcome::Refused(error(409, "ConflictException"))), Some(Reason::Refused));
        assert_eq!(dead_letter(Outcome::Refused(error(413, ""))), Some(Reason::Refused));
        assert_eq!(dead_letter(Outcome::Unlisted(error(418, "TeapotException"))), None);
        let fifth = Facts { strikes: 4, ..Facts::default() };
        assert!(matches!(
            decided(Outcome::Unlisted(error(418, "TeapotException")), fifth),
            Disposition::DeadLetter(Reason::Refused, _)
        ));
    }

    #[test]
    fn denial_of_a_disconnect_means_gone_already() {
        let denied = || Outcome::Denied(error(403, "AccessDeniedException"));
        assert!(matches!(decided(denied(), Facts::default()), Disposition::Deny(_)));
        let disconnect = Facts { disconnect: true, ..Facts::default() };
        assert_eq!(decided(denied(), disconnect), Disposition::Deliver(Receipt::default()));
    }

    #[test]
    fn text_of_a_denial_only_selects_the_reason() {
        let with = |text: &str| ServiceError { text: text.into(), ..error(403, "AccessDeniedException") };
        assert_eq!(Reason::of_denial(&with("User is not authorized … with an explicit deny")), Reason::TokenRefused);
        assert_eq!(Reason::of_denial(&with("Access denied")), Reason::ChatOver);
        assert_eq!(Reason::of_denial(&with("")), Reason::ChatOver);
    }
}
