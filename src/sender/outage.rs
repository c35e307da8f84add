//! Log lines about the destination: one when its gate closes or opens, or the reason changes; none for each message,
//! and none for a single throttle or failure.

use tracing::{info, warn};

use crate::delivery::{NO_OBJECT, Outcome};
use crate::pacer::Closed;

/// The last logged state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Announced {
    /// The gate is open.
    #[default]
    Open,
    /// The quota is used up.
    Throttled,
    /// Attempts of several conversations fail.
    Down,
    /// Something else answers, with this status.
    NotTheService(u16),
}

impl Announced {
    /// Returns the state to log after an attempt; the same as before if there is nothing new.
    pub(super) fn after(self, closed: Option<Closed>, outcome: &Outcome) -> Announced {
        match (closed, outcome) {
            (None, _) => Announced::Open,
            (Some(Closed::Throttled), _) => Announced::Throttled,
            (Some(Closed::Down), Outcome::Misconfigured { status, .. }) => Announced::NotTheService(*status),
            (Some(Closed::Down), Outcome::Down { .. } | Outcome::Unavailable { .. } | Outcome::AnswerLost { .. }) => {
                Announced::Down
            }
            // An attempt that was in flight when the gate closed was answered: only the probe decides.
            (Some(Closed::Down), _) => self,
        }
    }

    /// Logs the state, for the operator.
    pub(super) fn log(self, outcome: &Outcome, rate: f64) {
        let (http_status, why) = (outcome.status(), outcome.why());
        let rate = (rate * 100.0).round() / 100.0;
        match self {
            Announced::Open => info!(rate, "Amazon Connect accepts messages again; sending resumes"),
            Announced::Throttled => {
                warn!(
                    rate,
                    http_status, "Amazon Connect throttles; sending pauses, then continues at this rate per second"
                );
            }
            Announced::Down => {
                let Some((what, _)) = describe_failure(outcome) else { return };
                warn!(http_status, why, "the Participant Service {what}; messages wait on disk while probes are sent");
            }
            Announced::NotTheService(_) => {
                warn!(
                    http_status,
                    why,
                    "another server answers in place of the Participant Service: check sender.region, sender.endpoint, \
                     sender.proxy; messages wait on disk while probes are sent"
                );
            }
        }
    }
}

/// Describes a failed outcome in words that follow "the Participant Service", and gives the operator's next step;
/// `None` if it contains no information about the destination.
pub(super) fn describe_failure(outcome: &Outcome) -> Option<(String, &'static str)> {
    const ELSEWHERE: &str = "Check sender.region, sender.endpoint and sender.proxy.";
    const HEALTH: &str = "Look at AWS's health page for the region. A proxy or a private endpoint on the way can answer so \
                          too: check sender.endpoint and sender.proxy.";
    let elsewhere = |why: &String| Some((format!("was not reached, another server answered: {why}"), ELSEWHERE));
    match outcome {
        Outcome::Down { status: Some(_), why, .. } | Outcome::Unavailable { why, .. } => {
            Some((format!("answered {why}"), HEALTH))
        }
        Outcome::Down { status: None, why, .. } => Some((
            format!("cannot be reached: {why}"),
            "Check the network and DNS, and sender.region, sender.endpoint and sender.proxy.",
        )),
        Outcome::AnswerLost { why } if why.contains(NO_OBJECT) => elsewhere(why),
        Outcome::AnswerLost { why } => Some((format!("gives no complete answer: {why}"), HEALTH)),
        Outcome::Misconfigured { why, .. } => elsewhere(why),
        Outcome::Delivered(_)
        | Outcome::Throttled { .. }
        | Outcome::Refused(_)
        | Outcome::Unlisted(_)
        | Outcome::Denied(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Receipt;
    use crate::retry::RetryHint;

    #[test]
    fn each_change_is_logged_once() {
        let hint = RetryHint::default();
        let down = || Outcome::Down { status: Some(503), hint, why: "503".into() };
        let wrong = |status| Outcome::Misconfigured { status, why: String::new() };
        let delivered = || Outcome::Delivered(Receipt::default());
        let throttled = || Outcome::Throttled { status: 429, hint, why: "429".into() };
        let (full, gone) = (Some(Closed::Throttled), Some(Closed::Down));
        let mut announced = Announced::default();
        let mut changes = Vec::new();
        for (closed, outcome) in [
            (None, delivered()),
            (full, throttled()),
            (full, throttled()),
            (full, delivered()),
            (gone, down()),
            (gone, down()),
            (gone, delivered()),
            (gone, wrong(404)),
            (gone, wrong(404)),
            (gone, delivered()),
            (gone, wrong(302)),
            (None, delivered()),
            (None, delivered()),
        ] {
            let next = announced.after(closed, &outcome);
            if next != announced {
                next.log(&outcome, 7.0);
                changes.push(next);
            }
            announced = next;
        }
        let expected = [
            Announced::Throttled,
            Announced::Down,
            Announced::NotTheService(404),
            Announced::NotTheService(302),
            Announced::Open,
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn service_that_answered_is_not_reported_as_unreachable() {
        let (hint, why) = (RetryHint::default(), |why: &str| why.to_owned());
        for (outcome, expected) in [
            (Outcome::Down { status: Some(503), hint, why: why("503") }, "answered 503"),
            (Outcome::Unavailable { status: 500, hint, why: why("500 X") }, "answered 500 X"),
            (Outcome::Down { status: None, hint, why: why("connect to x") }, "cannot be reached: connect to x"),
            (
                Outcome::AnswerLost { why: why("200 without a JSON object: a page") },
                "was not reached, another server answered: 200 without a JSON object: a page",
            ),
            (Outcome::AnswerLost { why: why("x: reset") }, "gives no complete answer: x: reset"),
            (Outcome::Misconfigured { status: 404, why: why("404") }, "was not reached, another server answered: 404"),
        ] {
            let (what, advice) = describe_failure(&outcome).unwrap();
            assert_eq!(what, expected);
            assert!(advice.contains("sender.endpoint"), "{advice}");
        }
        assert_eq!(describe_failure(&Outcome::Delivered(Receipt::default())), None);
    }
}
