//! The health of the relay: the answers of its two probes.
//!
//! *Ready*: bots can use the relay. It is false during start and drain, and after the store has failed. *Alive*: a
//! restart would not help. It is false only if the sender's loop or a commit has made no step for a minute. A throttle,
//! an outage, a full queue or a pause changes neither: a restart repairs none of them.
//!
//! The daemon sets the state. The sender stores the time of its last step, at least every ten seconds while it is idle.
//! Every part may read both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::time::Timestamp;

/// The longest time without a step.
pub const STALL_MAX: Duration = Duration::from_secs(60);

/// The state of the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// The relay opens its queue.
    #[default]
    Starting,
    /// The relay accepts messages.
    Ready,
    /// The relay was asked to stop.
    Draining,
    /// The relay exits for this reason.
    Failed(Arc<str>),
}

impl State {
    /// The state in one word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Draining => "draining",
            State::Failed(_) => "failed",
        }
    }
}

/// The destination as the last attempts found it, for reports; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Destination(Arc<RwLock<Seen>>);

/// The last observations of the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The end of the last attempt; `None` before the first.
    pub attempted: Option<Timestamp>,
    /// Present while the destination is down.
    pub trouble: Option<Trouble>,
}

/// A destination that is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The time at which the gate closed.
    pub since: Timestamp,
    /// The last failure, in words that follow "The Participant Service".
    pub what: String,
    /// The operator's next step.
    pub advice: &'static str,
}

impl Destination {
    /// Notes the end of an attempt; `failure` describes a failure of the destination.
    pub fn answered(&self, now: Timestamp, down: bool, failure: Option<(String, &'static str)>) {
        let mut seen = self.0.write().unwrap_or_else(PoisonError::into_inner);
        seen.attempted = Some(now);
        if !down {
            seen.trouble = None;
        } else if let Some((what, advice)) = failure {
            let since = seen.trouble.as_ref().map_or(now, |trouble| trouble.since);
            seen.trouble = Some(Trouble { since, what, advice });
        }
    }

    /// The last observations.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The reason why the copy of the queue in the fleet lacks commits, for reports; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Obstacle(Arc<RwLock<Option<String>>>);

impl Obstacle {
    /// Notes the reason.
    pub fn set(&self, why: &str) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// Notes that the stream takes commits.
    pub fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The last reason since the stream took a commit.
    #[must_use]
    pub fn last(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The relay's health; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<RwLock<State>>,
    last_step: Arc<AtomicU64>,
    destination: Destination,
}

impl Health {
    /// The health of a starting relay. Its sender stores the milliseconds of its last step here (0 before the first).
    #[must_use]
    pub fn new(last_step: Arc<AtomicU64>) -> Health {
        Health { last_step, ..Health::default() }
    }

    /// The destination, as the sender sees it.
    #[must_use]
    pub fn destination(&self) -> Destination {
        self.destination.clone()
    }

    /// The state of the relay.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the state of the relay. A failure is final, and its first reason is kept.
    pub fn set(&self, state: State) {
        let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*current, State::Failed(_)) {
            *current = state;
        }
    }

    /// Checks if bots can use the relay.
    ///
    /// # Errors
    /// With the reason why they cannot, in one line.
    pub fn ready(&self) -> Result<(), String> {
        match self.state() {
            State::Ready => Ok(()),
            State::Failed(why) => Err(format!("failed: {why}")),
            state => Err(state.as_str().into()),
        }
    }

    /// Checks if the sender and the commits make progress; `commit` is the time that the current commit has taken.
    /// `now` and the time of the sender's last step are of [`Clock::awake`](crate::time::Clock::awake), so that the
    /// sleep of a machine does not count.
    ///
    /// # Errors
    /// With the part that makes no progress, in one line.
    pub fn live(&self, now: Timestamp, commit: Duration) -> Result<(), String> {
        if commit >= STALL_MAX {
            return Err(format!("a commit to the queue has made no step for {} s", commit.as_secs()));
        }
        let last_step = self.last_step.load(Ordering::Relaxed);
        let still = now.since(Timestamp(last_step));
        if last_step > 0 && still >= STALL_MAX {
            return Err(format!("the sender's loop has made no step for {} s", still.as_secs()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn only_missing_progress_is_not_alive() {
        let last_step = Arc::new(AtomicU64::new(0));
        let health = Health::new(Arc::clone(&last_step));
        assert_eq!(health.live(NOW, Duration::ZERO), Ok(()), "the sender has not begun");
        last_step.store(NOW.0 - 59_999, Ordering::Relaxed);
        for state in [State::Ready, State::Draining, State::Failed("x".into())] {
            health.set(state);
            assert_eq!(health.live(NOW, Duration::from_secs(59)), Ok(()));
        }
        last_step.store(NOW.0 - 75_000, Ordering::Relaxed);
        assert_eq!(health.live(NOW, Duration::ZERO).unwrap_err(), "the sender's loop has made no step for 75 s");
        assert_eq!(
            health.live(NOW, Duration::from_secs(60)).unwrap_err(),
            "a commit to the queue has made no step for 60 s"
        );
    }

    #[test]
    fn trouble_begins_when_the_gate_closes_and_names_the_last_failure() {
        let destination = Destination::default();
        assert_eq!(destination.seen(), Seen::default());
        let failure = |what: &str| Some((what.to_owned(), "Look."));
        destination.answered(NOW, false, failure("answered 503"));
        assert_eq!(destination.seen(), Seen { attempted: Some(NOW), trouble: None });
        destination.answered(NOW, true, failure("answered 503"));
        let later = NOW + Duration::from_secs(9);
        destination.answered(later, true, failure("cannot be reached"));
        destination.answered(later, true, None);
        let trouble = Trouble { since: NOW, what: "cannot be reached".into(), advice: "Look." };
        assert_eq!(destination.clone().seen(), Seen { attempted: Some(later), trouble: Some(trouble) });
        destination.answered(later, false, None);
        assert_eq!(destination.seen().trouble, None);
    }

    #[test]
    fn ready_returns_the_reason() {
        let health = Health::default();
        assert_eq!(health.ready().unwrap_err(), "starting");
        health.set(State::Ready);
        assert_eq!(health.clone().ready(), Ok(()));
        health.set(State::Draining);
        assert_eq!(health.ready().unwrap_err(), "draining");
        health.set(State::Failed("no space left on device".into()));
        health.set(State::Ready);
        assert_eq!(health.ready().unwrap_err(), "failed: no space left on device");
    }
}
