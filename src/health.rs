//! Whether the relay is alive and ready: what its two probes say, and in which words.
//!
//! *Ready* asks whether bots should come: not while it starts or drains, not after the store has failed. *Alive* asks
//! whether a restart would help: only where the sender's loop or a commit has made no step for a minute. A throttle, an
//! outage, a full queue or a pause is neither: restarting the relay mends none of them.
//!
//! The daemon sets the state; the sender stores the time of its last step in the pulse, at least every few seconds
//! while it has nothing to do; everybody may look.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::time::Timestamp;

/// How long without a step is too long.
pub const STALL_MAX: Duration = Duration::from_secs(60);

/// Where the relay is in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It opens its queue.
    #[default]
    Starting,
    /// It takes messages.
    Ready,
    /// It was told to stop.
    Draining,
    /// It leaves, because of this.
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

/// The destination as the last attempts found it, for those who report on it; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Destination(Arc<RwLock<Seen>>);

/// What was seen of the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When the last attempt ended; none before the first.
    pub attempted: Option<Timestamp>,
    /// Present while the destination is down.
    pub trouble: Option<Trouble>,
}

/// A destination that is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When its gate closed.
    pub since: Timestamp,
    /// The last failure, in words that follow "The Participant Service".
    pub what: String,
    /// The operator's next step.
    pub advice: &'static str,
}

impl Destination {
    /// Notes the end of an attempt; `failure` is in words, if it was one of the destination.
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

    /// What was seen of it.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The relay's health; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<RwLock<State>>,
    sender_pulse: Arc<AtomicU64>,
    destination: Destination,
}

impl Health {
    /// A starting relay's, whose sender stores the milliseconds of its last step here (0 before the first).
    #[must_use]
    pub fn new(sender_pulse: Arc<AtomicU64>) -> Health {
        Health { sender_pulse, ..Health::default() }
    }

    /// The destination, as the sender sees it.
    #[must_use]
    pub fn destination(&self) -> Destination {
        self.destination.clone()
    }

    /// Where the relay is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the relay is from now on. A failure is for good, and its first reason stands.
    pub fn set(&self, state: State) {
        let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*current, State::Failed(_)) {
            *current = state;
        }
    }

    /// Whether bots should come.
    ///
    /// # Errors
    /// Why they should not, in one line.
    pub fn ready(&self) -> Result<(), String> {
        match self.state() {
            State::Ready => Ok(()),
            State::Failed(why) => Err(format!("failed: {why}")),
            state => Err(state.as_str().into()),
        }
    }

    /// Whether everything that must move does; `commit` is how long the commit under way has taken. `now` and the pulse are
    /// of [`Clock::awake`](crate::time::Clock::awake): a machine that slept did not stand still.
    ///
    /// # Errors
    /// What stands still, in one line.
    pub fn live(&self, now: Timestamp, commit: Duration) -> Result<(), String> {
        if commit >= STALL_MAX {
            return Err(format!("a commit to the queue has made no step for {} s", commit.as_secs()));
        }
        let pulse = self.sender_pulse.load(Ordering::Relaxed);
        let still = now.since(Timestamp(pulse));
        if pulse > 0 && still >= STALL_MAX {
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
    fn only_a_standstill_is_not_alive() {
        let pulse = Arc::new(AtomicU64::new(0));
        let health = Health::new(Arc::clone(&pulse));
        assert_eq!(health.live(NOW, Duration::ZERO), Ok(()), "the sender has not begun");
        pulse.store(NOW.0 - 59_999, Ordering::Relaxed);
        for state in [State::Ready, State::Draining, State::Failed("x".into())] {
            health.set(state);
            assert_eq!(health.live(NOW, Duration::from_secs(59)), Ok(()));
        }
        pulse.store(NOW.0 - 75_000, Ordering::Relaxed);
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
    fn ready_says_why_not() {
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
