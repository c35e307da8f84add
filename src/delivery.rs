//! What an attempt came to, and what that means for the message.
//!
//! [`Outcome`] is what the Participant Service (or whatever answered in its place) said. [`settle`] turns it into a
//! [`Disposition`]; it is pure, so the whole table can be read and tested in one place:
//!
//! | outcome | the message | the destination ([`Outcome::signal`]) |
//! | --- | --- | --- |
//! | delivered | done | healthy |
//! | throttled | stays where it is, uncounted | waits, unless the throttle is the conversation's own |
//! | unreachable, not the service speaking | later, uncounted | waits if it fails everyone (`suspects`) |
//! | 500, 502, 503, 504, 408, 425 | later, counted; `poison` in the end | waits if it fails everyone |
//! | answer lost: it may have arrived | later, counted, the same again before anything else | waits if it fails everyone |
//! | a code of the service that is not listed | later; `refused` at the fifth | healthy |
//! | ValidationException, ConflictException, 413 | dead | healthy |
//! | AccessDeniedException | denied: dead if its caller waits, else held | healthy |
//!
//! Only the service's own word buries a message.

use std::time::Duration;

use crate::retry::{Backoff, Hint};
use crate::time::Timestamp;

/// How often a code that is not listed may come before the message is dead.
pub const STRIKES_MAX: u8 = 5;

/// The words in an outcome's `why` for a 2xx that is not the service's: a page of a proxy, or another service.
pub const NO_OBJECT: &str = "without a JSON object";

/// What one attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx with a JSON object.
    Delivered(Receipt),
    /// Any 429, or a ThrottlingException under another status.
    Throttled {
        /// The status.
        status: u16,
        /// How long upstream asks to wait.
        hint: Hint,
        /// What happened, for the log.
        why: String,
    },
    /// Nothing was written, or a 503: the destination is not there.
    Down {
        /// The status, where there was one.
        status: Option<u16>,
        /// How long upstream asks to wait.
        hint: Hint,
        /// What happened, for the log.
        why: String,
    },
    /// 500, 502, 504, 408, 425: this attempt failed, the next may not.
    Unavailable {
        /// The status.
        status: u16,
        /// How long upstream asks to wait.
        hint: Hint,
        /// What happened, for the log.
        why: String,
    },
    /// The request was written, no whole answer came: it may have been delivered.
    AnswerLost {
        /// What happened, for the log.
        why: String,
    },
    /// The service will never take this message.
    Refused(ServiceError),
    /// A code of the service's that the table does not list.
    Unlisted(ServiceError),
    /// 403 AccessDeniedException: the token is worth nothing any more.
    Denied(ServiceError),
    /// A 3xx, or a 4xx without a code of the service's own: it is not the service speaking.
    Misconfigured {
        /// The status.
        status: u16,
        /// What happened, for the log.
        why: String,
    },
}

/// What the service said of a delivered message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Connect's id of the message; none for a disconnect, or one that was gone already.
    pub id: Option<Box<str>>,
    /// When Connect took it, as it wrote it.
    pub absolute_time: Option<Box<str>>,
    /// `PROCESSING`, `FAILED` or `REJECTED`, where the service said it.
    pub processing_status: Option<Box<str>>,
    /// The service's `x-amzn-RequestId`.
    pub request_id: Option<Box<str>>,
}

/// An error in AWS's shape; tokens are scrubbed from its text before it is made.
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

/// What an outcome says of the destination: what the pacer learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It answered: the request took its share of the quota.
    Answered,
    /// It was over the quota.
    Throttled(Hint),
    /// The same conversation was over the quota again, with no delivery between: nothing new is known of the rate.
    StillThrottled(Hint),
    /// It is not there, or not itself.
    Down(Hint),
    /// It says nothing of the destination: the failure or the throttle is one conversation's own.
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

    /// What it says of the destination.
    #[must_use]
    pub fn signal(&self) -> Signal {
        match self {
            Outcome::Throttled { hint, .. } => Signal::Throttled(*hint),
            Outcome::Down { hint, .. } => Signal::Down(*hint),
            Outcome::Misconfigured { .. } => Signal::Down(Hint::default()),
            _ => Signal::Answered,
        }
    }

    /// The status it came with, where there was an answer.
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

    /// The service's `x-amzn-RequestId`, where it spoke of the message.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Outcome::Delivered(receipt) => receipt.request_id.as_deref(),
            Outcome::Refused(error) | Outcome::Unlisted(error) | Outcome::Denied(error) => error.request_id.as_deref(),
            _ => None,
        }
    }

    /// What happened, in words that hold nothing secret.
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

/// Why a message is dead: a closed set, the `reason` label of `messages_dead_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// 403 AccessDeniedException: the participant is gone or the chat is over.
    ChatOver,
    /// 403 "explicit deny": the token is wrong or expired.
    TokenRefused,
    /// ValidationException.
    Invalid,
    /// ConflictException, 413, or five times another code of the service.
    Refused,
    /// It kept failing while others were delivered.
    Poison,
    /// Its lifetime ended.
    Expired,
    /// An operator deleted it.
    Deleted,
}

impl Reason {
    /// All of them; a row on disk holds the index.
    pub const ALL: [Reason; 7] = [
        Reason::ChatOver,
        Reason::TokenRefused,
        Reason::Invalid,
        Reason::Refused,
        Reason::Poison,
        Reason::Expired,
        Reason::Deleted,
    ];

    /// The name users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::ChatOver => "chat_over",
            Reason::TokenRefused => "token_refused",
            Reason::Invalid => "invalid",
            Reason::Refused => "refused",
            Reason::Poison => "poison",
            Reason::Expired => "expired",
            Reason::Deleted => "deleted",
        }
    }

    /// Which of the two a 403 means; AWS documents neither text, so it only chooses the reason.
    #[must_use]
    pub fn of_denial(error: &ServiceError) -> Reason {
        if error.text.contains("explicit deny") { Reason::TokenRefused } else { Reason::ChatOver }
    }
}

/// What is known of a message when an attempt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// It is a disconnect: a denial means that the participant is gone already.
    pub disconnect: bool,
    /// Attempts that counted, before this one.
    pub attempts: u32,
    /// Answers with an unlisted code, before this one.
    pub strikes: u8,
    /// Failures of this message that count, before this one.
    pub counted: u16,
    /// Another conversation was delivered since this message last failed.
    pub others_delivered: bool,
    /// Failures and throttles of the conversation in a row, with this one.
    pub row: u32,
    /// A throttle is the conversation's own, not the destination's.
    pub own_throttle: bool,
    /// The destination waits: it obeys the hint.
    pub destination_waits: bool,
}

/// The settings that decide when to try again and when to give up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Delays between attempts of one message.
    pub backoff: Backoff,
    /// The longest wait upstream may ask for.
    pub hint_max: Duration,
    /// Failures of one message before it is poison; one counts if another conversation was delivered since the one before.
    pub attempts_max: u32,
}

/// What becomes of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It arrived.
    Deliver(Receipt),
    /// Nothing is said of this message: it keeps its place and is not counted.
    Keep,
    /// Later; not an attempt of this message.
    Wait {
        /// Not before this.
        due: Timestamp,
    },
    /// Later, and counted.
    Retry {
        /// Not before this.
        due: Timestamp,
        /// It may have arrived: the same again before anything else of its conversation.
        answer_lost: bool,
        /// Its code was not a listed one.
        strike: bool,
        /// The failure counts towards `sender.attempts_max`.
        counted: bool,
    },
    /// Its token was refused: dead if its caller waits, else its conversation is held.
    Deny(ServiceError),
    /// Dead.
    Bury(Reason, ServiceError),
}

/// Decides what becomes of a message after an attempt. `jitter` is in 0..1.
#[must_use]
pub fn settle(outcome: &Outcome, facts: Facts, policy: &Policy, now: Timestamp, jitter: f64) -> Disposition {
    let after = |failures: u32, hint: Hint| {
        let asked = if facts.destination_waits { Duration::ZERO } else { hint.at_most(policy.hint_max) };
        now + policy.backoff.delay(failures, jitter).max(asked)
    };
    let later = |hint: Hint, answer_lost: bool, strike: bool, counted: bool| {
        let due = after(facts.row.max(facts.attempts + 1), hint);
        Disposition::Retry { due, answer_lost, strike, counted }
    };
    let counts = facts.others_delivered;
    let poisonous = counts && u32::from(facts.counted) + 1 >= policy.attempts_max;
    match outcome {
        Outcome::Delivered(receipt) => Disposition::Deliver(receipt.clone()),
        Outcome::Throttled { hint, .. } if facts.own_throttle => Disposition::Wait { due: after(facts.row, *hint) },
        Outcome::Throttled { .. } => Disposition::Wait { due: now },
        Outcome::Down { status: None, hint, .. } => Disposition::Wait { due: after(facts.row, *hint) },
        Outcome::Misconfigured { .. } => Disposition::Wait { due: after(facts.row, Hint::default()) },
        Outcome::Down { status: Some(_), .. } | Outcome::Unavailable { .. } | Outcome::AnswerLost { .. }
            if poisonous =>
        {
            Disposition::Bury(
                Reason::Poison,
                ServiceError {
                    status: outcome.status().unwrap_or(500),
                    code: "InternalServerException".into(),
                    text: format!("connect-relay: gave up after {} attempts: {}", facts.attempts + 1, outcome.why())
                        .into(),
                    request_id: None,
                },
            )
        }
        Outcome::Down { hint, .. } | Outcome::Unavailable { hint, .. } => later(*hint, false, false, counts),
        Outcome::AnswerLost { .. } => later(Hint::default(), true, false, counts),
        Outcome::Denied(error) if facts.disconnect => {
            Disposition::Deliver(Receipt { request_id: error.request_id.clone(), ..Receipt::default() })
        }
        Outcome::Denied(error) => Disposition::Deny(error.clone()),
        Outcome::Unlisted(error) if facts.strikes + 1 >= STRIKES_MAX => {
            Disposition::Bury(Reason::Refused, error.clone())
        }
        Outcome::Unlisted(_) => later(Hint::default(), false, true, false),
        Outcome::Refused(error) => {
            let invalid = &*error.code == "ValidationException" && error.status == 400;
            Disposition::Bury(if invalid { Reason::Invalid } else { Reason::Refused }, error.clone())
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

    fn decide(outcome: Outcome, facts: Facts) -> Disposition {
        settle(&outcome, facts, &policy(), NOW, 0.5)
    }

    #[test]
    fn throttle_or_a_destination_that_does_not_speak_is_no_attempt_of_the_message() {
        let hint = Hint(Some(Duration::from_secs(9)));
        let throttled = || Outcome::Throttled { status: 429, hint, why: String::new() };
        let unreachable = || Outcome::Down { status: None, hint: Hint::default(), why: String::new() };
        let page = || Outcome::Misconfigured { status: 404, why: String::new() };
        let facts = Facts { attempts: 99, counted: 99, others_delivered: true, row: 2, ..Facts::default() };
        for (outcome, own_throttle, wait) in
            [(throttled(), false, 0), (throttled(), true, 9000), (unreachable(), false, 400), (page(), false, 400)]
        {
            let wait = Disposition::Wait { due: Timestamp(NOW.0 + wait) };
            assert_eq!(decide(outcome, Facts { own_throttle, ..facts }), wait);
        }
    }

    #[test]
    fn destination_that_waits_obeys_the_hint_in_the_place_of_the_message() {
        let hint = Hint(Some(Duration::from_secs(9)));
        for (destination_waits, wait) in [(false, 9000), (true, 200)] {
            let outcome = Outcome::Down { status: Some(503), hint, why: String::new() };
            let due = Timestamp(NOW.0 + wait);
            let retry = Disposition::Retry { due, answer_lost: false, strike: false, counted: false };
            assert_eq!(decide(outcome, Facts { destination_waits, ..Facts::default() }), retry);
        }
    }

    #[test]
    fn failing_message_waits_longer_each_time_and_obeys_the_hint() {
        let failed = |hint| Outcome::Unavailable { status: 500, hint, why: String::new() };
        for (attempts, hint, wait) in
            [(0, None, 200), (1, None, 400), (8, None, 5000), (0, Some(9), 9000), (0, Some(99), 60_000)]
        {
            let facts = Facts { attempts, ..Facts::default() };
            let hint = Hint(hint.map(Duration::from_secs));
            let due = Timestamp(NOW.0 + wait);
            assert_eq!(
                decide(failed(hint), facts),
                Disposition::Retry { due, answer_lost: false, strike: false, counted: false }
            );
        }
    }

    #[test]
    fn poison_needs_both_its_own_failures_and_the_others_deliveries() {
        let unknown = || Outcome::AnswerLost { why: "reset".into() };
        let facts = |counted, others_delivered| Facts { counted, others_delivered, attempts: 50, ..Facts::default() };
        assert!(matches!(decide(unknown(), facts(9, true)), Disposition::Bury(Reason::Poison, _)));
        assert!(matches!(decide(unknown(), facts(9, false)), Disposition::Retry { counted: false, .. }));
        assert!(matches!(
            decide(unknown(), facts(8, true)),
            Disposition::Retry { answer_lost: true, counted: true, .. }
        ));
    }

    #[test]
    fn only_the_services_own_word_buries() {
        let bury = |outcome| match decide(outcome, Facts::default()) {
            Disposition::Bury(reason, _) => Some(reason),
            _ => None,
        };
        assert_eq!(bury(Outcome::Refused(error(400, "ValidationException"))), Some(Reason::Invalid));
        assert_eq!(bury(Outcome::Refused(error(409, "ConflictException"))), Some(Reason::Refused));
        assert_eq!(bury(Outcome::Refused(error(413, ""))), Some(Reason::Refused));
        assert_eq!(bury(Outcome::Unlisted(error(418, "TeapotException"))), None);
        let fifth = Facts { strikes: 4, ..Facts::default() };
        assert!(matches!(
            decide(Outcome::Unlisted(error(418, "TeapotException")), fifth),
            Disposition::Bury(Reason::Refused, _)
        ));
    }

    #[test]
    fn denial_of_a_disconnect_means_gone_already() {
        let denied = || Outcome::Denied(error(403, "AccessDeniedException"));
        assert!(matches!(decide(denied(), Facts::default()), Disposition::Deny(_)));
        let disconnect = Facts { disconnect: true, ..Facts::default() };
        assert_eq!(decide(denied(), disconnect), Disposition::Deliver(Receipt::default()));
    }

    #[test]
    fn denials_text_only_chooses_the_reason() {
        let with = |text: &str| ServiceError { text: text.into(), ..error(403, "AccessDeniedException") };
        assert_eq!(Reason::of_denial(&with("User is not authorized … with an explicit deny")), Reason::TokenRefused);
        assert_eq!(Reason::of_denial(&with("Access denied")), Reason::ChatOver);
        assert_eq!(Reason::of_denial(&with("")), Reason::ChatOver);
    }
}
