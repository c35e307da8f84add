//! The gate: open, closed until a moment, or waiting for the one probe under way.

use crate::time::Timestamp;

/// The reason why the gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The quota is exceeded.
    Throttled,
    /// The destination does not answer.
    Down,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gate {
    #[default]
    Open,
    /// Closed for the `times`-th time in a row.
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

    /// The end of the present delay; `None` unless it is closed.
    pub(super) fn until(self) -> Option<Timestamp> {
        match self {
            Gate::Closed { until, .. } => Some(until),
            _ => None,
        }
    }

    /// The number of times in a row that it was closed.
    pub(super) fn times(self) -> u32 {
        match self {
            Gate::Open => 0,
            Gate::Closed { times, .. } | Gate::Probing { times, .. } => times,
        }
    }

    /// Notes the start of an attempt: after the delay it is the probe.
    pub(super) fn probe(&mut self, now: Timestamp) {
        if let Gate::Closed { why, times, .. } | Gate::Probing { why, times, .. } = *self {
            *self = Gate::Probing { why, since: now, times };
        }
    }

    /// Notes an answer of the service. It ends an outage; it ends a throttle only if the attempt started after the
    /// throttle.
    pub(super) fn answered(&mut self) {
        if !matches!(self, Gate::Closed { why: Closed::Throttled, .. }) {
            *self = Gate::Open;
        }
    }

    /// Notes an answer of the service to a request beside the attempts. It ends a throttle whose delay was over when that
    /// request started.
    pub(super) fn answered_beside(&mut self, started: Timestamp) {
        if matches!(self, Gate::Closed { why: Closed::Throttled, until, .. } if *until <= started) {
            *self = Gate::Open;
        }
    }

    /// Notes an attempt without information about the destination. If it was the probe, the next one may start now.
    pub(super) fn inconclusive(&mut self, started: Timestamp, now: Timestamp) {
        if let Gate::Probing { why, since, times } = *self
            && since == started
        {
            *self = Gate::Closed { why, until: now, times };
        }
    }

    /// Closes until a time. Returns the number of times in a row.
    pub(super) fn close(&mut self, why: Closed, until: Timestamp) -> u32 {
        let times = self.times().saturating_add(1);
        *self = Gate::Closed { why, until, times };
        times
    }

    /// Extends the present delay at least until this time.
    pub(super) fn wait(&mut self, at_least: Timestamp) {
        if let Gate::Closed { until, .. } = self {
            *until = (*until).max(at_least);
        }
    }
}
