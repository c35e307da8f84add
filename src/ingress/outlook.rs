//! The outlook of a queued message: when it is sent, when its lifetime ends, and if its outcome can come within a wait.
//!
//! | state | `ExpectedTime` | an implied wait |
//! | --- | --- | --- |
//! | an attempt is in flight | as below | is waited for |
//! | sending is paused, or Connect is down | left out | ends |
//! | Connect refuses every token, and the message is not the next one to be tried | left out | ends |
//! | its conversation is held for a renewed token | the end of the hold | ends |
//! | others go before it for longer than the wait, or it backs off for longer | then | ends |
//! | else | when those before it have been sent | is waited for |
//!
//! The relay checks the outlook of an implied wait every [`LOOK_EVERY`]. A wait that the caller asks for with `Prefer`
//! goes on whatever the outlook is.

use std::time::Duration;

use super::Inner;
use super::reply::Outlook;
use super::request::Wait;
use crate::message;
use crate::pacer::Closed;
use crate::queue::{MessageId, MessageState, Status};
use crate::time::Timestamp;

/// The time between two checks of an implied wait.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The present state of sending.
#[derive(Clone, Copy, Debug)]
struct SendingState {
    rate: f64,
    down: bool,
}

impl Inner {
    /// The outlook of a message; `None` if it is not queued any more.
    pub(super) fn outlook(&self, state: &MessageState) -> Option<Outlook> {
        let Status::Queued { expires, .. } = state.status else { return None };
        let expected = expected(&state.status, self.sending(), self.clock.now());
        Some(Outlook {
            expected: expected.map(|expected| self.clock.shown(expected)),
            expires: self.clock.shown(expires),
            will_expire: expected.is_some_and(|expected| expected > expires),
            note: None,
        })
    }

    /// True if an implied wait is useless.
    pub(super) fn is_futile(&self, state: &MessageState, within: Duration) -> bool {
        is_futile(&state.status, self.sending(), within, self.clock.now())
    }

    /// Resolves when an implied wait has become useless; never for a wait that was asked for.
    pub(super) async fn becomes_futile(&self, id: MessageId, wait: &Wait) {
        if !wait.implied {
            return std::future::pending().await;
        }
        let began = self.clock.awake();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let left = wait.span.saturating_sub(self.clock.awake().since(began));
            match self.queue.look(id).await {
                Ok(Some(state)) if !self.is_futile(&state, left) => {}
                // It is settled: its outcome is about to be returned.
                Ok(Some(MessageState { status: Status::Delivered(_) | Status::Dead { .. }, .. })) => {}
                _ => return,
            }
        }
    }

    /// True while Connect is down.
    pub(super) fn is_down(&self) -> bool {
        self.sending().down
    }

    fn sending(&self) -> SendingState {
        let pacer = self.budget.pacer();
        SendingState { rate: pacer.rate(), down: pacer.closed() == Some(Closed::Down) }
    }
}

/// The time at which a queued message is likely to be sent; `None` if that cannot be estimated.
fn expected(status: &Status, sending: SendingState, now: Timestamp) -> Option<Timestamp> {
    let Status::Queued { next_attempt, before, .. } = status else { return None };
    let before = before.filter(|_| !sending.down)?;
    // The rounding of a large number of messages to f64 shifts the estimate by a fraction of a second at most.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let wait = Duration::try_from_secs_f64(before as f64 / sending.rate).unwrap_or(message::LIFETIME_MAX);
    Some((now + wait.min(message::LIFETIME_MAX)).max(next_attempt.unwrap_or_default()))
}

/// True if no outcome of a queued message can come within this time.
fn is_futile(status: &Status, sending: SendingState, within: Duration, now: Timestamp) -> bool {
    match status {
        Status::Queued { in_flight: true, .. } | Status::Delivered(_) | Status::Dead { .. } => false,
        Status::Queued { held: true, .. } => true,
        Status::Queued { .. } => expected(status, sending, now).is_none_or(|expected| expected > now + within),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    const OPEN: SendingState = SendingState { rate: 10.0, down: false };
    const WAIT: Duration = Duration::from_secs(4);

    fn queued(before: Option<u64>, next: Option<u64>) -> Status {
        let next_attempt = next.map(|seconds| NOW + Duration::from_secs(seconds));
        let expires = NOW + Duration::from_secs(900);
        Status::Queued { next_attempt, ahead: 0, before, held: false, in_flight: false, expires }
    }

    fn flagged(status: Status, is_held: bool, flies: bool) -> Status {
        match status {
            Status::Queued { next_attempt, ahead, before, expires, .. } => {
                Status::Queued { next_attempt, ahead, before, expires, held: is_held, in_flight: flies }
            }
            settled => settled,
        }
    }

    #[test]
    fn expected_time_is_after_the_messages_before_it() {
        let of = |before, next, rate| {
            expected(&queued(Some(before), next), SendingState { rate, ..OPEN }, NOW).map(|time| time.since(NOW))
        };
        assert_eq!(of(0, None, 10.0), Some(Duration::ZERO));
        assert_eq!(of(50, None, 10.0), Some(Duration::from_secs(5)));
        assert_eq!(of(50, Some(30), 10.0), Some(Duration::from_secs(30)));
        assert_eq!(of(50, Some(1), 10.0), Some(Duration::from_secs(5)));
        assert_eq!(of(1, None, 0.0), Some(message::LIFETIME_MAX));
        assert_eq!(expected(&queued(None, None), OPEN, NOW), None, "paused");
        assert_eq!(expected(&queued(Some(0), None), SendingState { down: true, ..OPEN }, NOW), None);
    }

    #[test]
    fn wait_is_futile_if_no_outcome_can_come_within_it() {
        let down = SendingState { down: true, ..OPEN };
        for (status, sending, futile) in [
            (queued(Some(0), None), OPEN, false),
            (queued(Some(40), None), OPEN, false),
            (queued(Some(41), None), OPEN, true),
            (queued(Some(0), Some(3)), OPEN, false),
            (queued(Some(0), Some(5)), OPEN, true),
            (queued(None, None), OPEN, true),
            (queued(Some(0), None), down, true),
            (flagged(queued(Some(0), None), true, false), OPEN, true),
            (flagged(queued(Some(99), None), false, true), OPEN, false),
            (flagged(queued(None, None), false, true), down, false),
        ] {
            assert_eq!(is_futile(&status, sending, WAIT, NOW), futile, "{status:?} {sending:?}");
        }
    }
}
