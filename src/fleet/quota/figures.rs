//! The recent figures of one relay, and the sums over all.

use std::time::Duration;

use crate::time::Timestamp;

/// The time for which a relay counts as active after it had something to send.
const ACTIVE: Duration = Duration::from_secs(10);
/// The part of a second from which a relay counts as hungry if the rate holds it back.
pub(super) const HUNGRY: f64 = 0.75;

/// The recent figures of one relay.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) held: f64,
    pub(super) used: f64,
    pub(super) lately: f64,
    pub(super) rate: f64,
    pub(super) learned: bool,
    pub(super) rate_max: f64,
    /// True from the second message on: the first one contains no demand yet.
    pub(super) known: bool,
    /// The last time at which it had something to send.
    pub(super) active_at: Option<Timestamp>,
}

impl Figures {
    pub(super) fn is_active(&self, now: Timestamp) -> bool {
        self.active_at.is_some_and(|at| now.since(at) < ACTIVE)
    }

    pub(super) fn note_active(&mut self, now: Timestamp) {
        if self.held > 0.0 || self.used > 0.0 {
            self.active_at = Some(now);
        }
    }

    /// True if only its share limits it.
    pub(super) fn wants_more(&self) -> bool {
        !self.known || self.held >= HUNGRY
    }

    /// True if it could use more than `rate`.
    pub(super) fn is_hungry(&self, rate: f64) -> bool {
        self.wants_more() && (self.rate_max <= 0.0 || rate < self.rate_max)
    }

    /// The rate that it could use; infinite for a hungry relay.
    pub(super) fn demand(&self) -> f64 {
        let demand = if self.wants_more() { f64::INFINITY } else { self.used / (1.0 - self.held) };
        if self.rate_max > 0.0 { demand.min(self.rate_max) } else { demand }
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: String,
    pub(super) joined_at: Timestamp,
    pub(super) heard_at: Timestamp,
    pub(super) figures: Figures,
    pub(super) accepted: u64,
    pub(super) throttled: u64,
    pub(super) retracted: u64,
    pub(super) follows: Option<u64>,
    /// True if another run of the same id has appeared since.
    pub(super) replaced: bool,
}

/// Requests of the whole fleet since the last tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) accepted: f64,
    pub(super) throttled: f64,
    pub(super) retracted: f64,
}

/// A series of throttles.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Overrun {
    pub(super) seconds: f64,
    pub(super) accepted: f64,
    pub(super) throttled: f64,
    /// Seconds since the last throttle.
    pub(super) quiet: f64,
    /// The rate at its begin.
    pub(super) rate: f64,
}
