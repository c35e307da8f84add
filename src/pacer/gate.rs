//! The gate: open, closed until a moment, or waiting for the one probe under way.

use crate::time::Timestamp;

/// Why the gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Over the quota.
    Throttled,
    /// The destination is not there.
    Down,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gate {
    #[default]
    Open,
    /// Closed for the so-many-th time in a row.
    Closed { why: Closed, until: Timestamp, times: u32 },
    /// The probe that started at `since` is under way.
    Probing { why: Closed, since: Timestamp, times: u32 },
}

impl Gate {
    pub(super) fn is_open(self) -> bool {
        self == Gate::Open
    }

    pub(super) fn why(self) -> Option<Closed> {
        match self {
            Gate::Open => None,
            Gate::Closed { why, .. } | Gate::Probing { why, .. } => Some(why),
        }
    }

    /// Until when it is closed.
    pub(super) fn until(self) -> Option<Timestamp> {
        match self {
            Gate::Closed { until, .. } => Some(until),
            _ => None,
        }
    }

    /// How often in a row it was closed.
    pub(super) fn times(self) -> u32 {
        match self {
            Gate::Open => 0,
            Gate::Closed { times, .. } | Gate::Probing { times, .. } => times,
        }
    }

    /// An attempt starts: behind a gate whose time has come it is the probe.
    pub(super) fn probe(&mut self, now: Timestamp) {
        if let Gate::Closed { why, times, .. } | Gate::Probing { why, times, .. } = *self {
            *self = Gate::Probing { why, since: now, times };
        }
    }

    /// An attempt was answered by the service: this ends an outage. A throttle ends only if the attempt started after it.
    pub(super) fn answered(&mut self) {
        if !matches!(self, Gate::Closed { why: Closed::Throttled, .. }) {
            *self = Gate::Open;
        }
    }

    /// An attempt says nothing of the destination. If it was the probe, the next one may start now.
    pub(super) fn inconclusive(&mut self, started: Timestamp, now: Timestamp) {
        if let Gate::Probing { why, since, times } = *self
            && since == started
        {
            *self = Gate::Closed { why, until: now, times };
        }
    }

    /// Closes until a moment; how often in a row that makes.
    pub(super) fn close(&mut self, why: Closed, until: Timestamp) -> u32 {
        let times = self.times().saturating_add(1);
        *self = Gate::Closed { why, until, times };
        times
    }

    /// Stays closed at least until then.
    pub(super) fn wait(&mut self, at_least: Timestamp) {
        if let Gate::Closed { until, .. } = self {
            *until = (*until).max(at_least);
        }
    }
}
