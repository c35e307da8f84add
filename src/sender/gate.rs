//! Log lines on the destination: one when its gate closes or opens, or the reason changes; none for each message, and
//! none for a single throttle or failure.

use tracing::{info, warn};

use crate::delivery::Outcome;
use crate::pacer::Closed;

/// What was last said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Said {
    /// Messages go out.
    #[default]
    Open,
    /// The quota is used up.
    Throttled,
    /// Nobody is there, or it says 503.
    Down,
    /// Something else answers, with this status.
    NotTheService(u16),
}

impl Said {
    /// What is to be said after an attempt; the same as before where nothing is.
    pub(super) fn after(self, closed: Option<Closed>, outcome: &Outcome) -> Said {
        match (closed, outcome) {
            (None, _) => Said::Open,
            (Some(Closed::Throttled), _) => Said::Throttled,
            (Some(Closed::Down), Outcome::Misconfigured { status, .. }) => Said::NotTheService(*status),
            (Some(Closed::Down), Outcome::Down { .. } | Outcome::Unavailable { .. } | Outcome::Unknown { .. }) => {
                Said::Down
            }
            // Answered by one that was under way when the gate closed: the probe will tell.
            (Some(Closed::Down), _) => self,
        }
    }

    /// Says it, in the operator's words.
    pub(super) fn say(self, outcome: &Outcome, rate: f64) {
        let (http_status, why) = (outcome.status(), outcome.why());
        let rate = (rate * 100.0).round() / 100.0;
        match self {
            Said::Open => info!(rate, "Amazon Connect takes messages again: sending goes on"),
            Said::Throttled => {
                warn!(
                    rate,
                    http_status, "Amazon Connect throttles: sending pauses, then goes on at this rate per second"
                );
            }
            Said::Down => {
                warn!(
                    http_status,
                    why, "the Participant Service cannot be reached: messages wait on disk and a probe goes ahead"
                );
            }
            Said::NotTheService(_) => {
                warn!(
                    http_status,
                    why,
                    "what answers is not the Participant Service: check sender.region, sender.endpoint, sender.proxy; \
                     messages wait on disk and a probe goes ahead"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Receipt;
    use crate::retry::Hint;

    #[test]
    fn each_change_is_said_once() {
        let hint = Hint::default();
        let down = || Outcome::Down { status: Some(503), hint, why: "503".into() };
        let wrong = |status| Outcome::Misconfigured { status, why: String::new() };
        let delivered = || Outcome::Delivered(Receipt::default());
        let throttled = || Outcome::Throttled { status: 429, hint, why: "429".into() };
        let (full, gone) = (Some(Closed::Throttled), Some(Closed::Down));
        let mut said = Said::default();
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
            let next = said.after(closed, &outcome);
            if next != said {
                next.say(&outcome, 7.0);
                changes.push(next);
            }
            said = next;
        }
        let expected = [Said::Throttled, Said::Down, Said::NotTheService(404), Said::NotTheService(302), Said::Open];
        assert_eq!(changes, expected);
    }
}
