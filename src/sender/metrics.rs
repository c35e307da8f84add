//! The sender's metrics.

use std::time::Duration;

use prometheus::{Counter, Gauge, Histogram, IntCounterVec, IntGauge};

use crate::delivery::Outcome;
use crate::metrics::{ATTEMPT_SECONDS, Metrics};
use crate::pacer::{Closed, Pacer};
use crate::time::Timestamp;

/// Every value of the `outcome` label. All series exist from the start, so that alerts can use them.
const OUTCOMES: [&str; 7] =
    ["delivered", "throttled", "unavailable", "answer_lost", "refused", "denied", "misconfigured"];

#[derive(Debug)]
pub(super) struct SenderMetrics {
    attempts: IntCounterVec,
    attempt_seconds: Histogram,
    /// The attempts in flight.
    pub(super) in_flight: IntGauge,
    send_rate: Gauge,
    quota_rate: Gauge,
    quota_wait: Counter,
    gate_open: IntGauge,
    quota_held_since: Option<Timestamp>,
}

impl SenderMetrics {
    pub(super) fn new(metrics: &Metrics, pacer: &Pacer) -> SenderMetrics {
        let metrics = SenderMetrics {
            attempts: metrics.counters(
                "attempts_total",
                "Attempts at the Participant Service, by outcome.",
                &["outcome"],
            ),
            attempt_seconds: metrics.histogram(
                "attempt_seconds",
                "From the start of an attempt to its outcome.",
                ATTEMPT_SECONDS,
            ),
            in_flight: metrics.gauge("in_flight", "Attempts in progress."),
            send_rate: metrics.level("send_rate", "Attempts per second that the relay has learned to make."),
            quota_rate: metrics.level("quota_rate", "Requests per second that are configured as granted."),
            quota_wait: metrics
                .seconds("quota_wait_seconds_total", "Time in which something was due and only the quota held it."),
            gate_open: metrics.gauge("gate_open", "1 while upstream is there, 0 while it is down."),
            quota_held_since: None,
        };
        for outcome in OUTCOMES {
            metrics.attempts.with_label_values(&[outcome]);
        }
        metrics.quota_rate.set(pacer.quota_rate());
        metrics.destination(pacer);
        metrics
    }

    /// Counts an attempt that has ended.
    pub(super) fn ended(&self, outcome: &Outcome, took: Duration) {
        self.attempts.with_label_values(&[outcome.name()]).inc();
        self.attempt_seconds.observe(took.as_secs_f64());
    }

    /// Sets the gauges to the pacer's present view of the destination.
    pub(super) fn destination(&self, pacer: &Pacer) {
        self.send_rate.set(pacer.rate());
        self.gate_open.set(i64::from(pacer.closed() != Some(Closed::Down)));
    }

    /// Counts the time since the last call if the quota held something back then; `held` is true if it does now.
    pub(super) fn quota(&mut self, now: Timestamp, held: bool) {
        if let Some(since) = self.quota_held_since.take() {
            self.quota_wait.inc_by(now.since(since).as_secs_f64());
        }
        self.quota_held_since = held.then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{Receipt, ServiceError, Signal};
    use crate::pacer::Options;
    use crate::retry::RetryHint;

    fn pacer() -> Pacer {
        Pacer::new(Options::default(), Timestamp(0), 7)
    }

    #[test]
    fn every_outcome_has_its_series_from_the_start() {
        let exported = Metrics::default();
        let metrics = SenderMetrics::new(&exported, &pacer());
        let (hint, why, error) = (RetryHint::default(), String::new, ServiceError::default);
        for outcome in [
            Outcome::Delivered(Receipt::default()),
            Outcome::Throttled { status: 429, hint, why: why() },
            Outcome::Down { status: None, hint, why: why() },
            Outcome::Unavailable { status: 500, hint, why: why() },
            Outcome::AnswerLost { why: why() },
            Outcome::Refused(error()),
            Outcome::Unlisted(error()),
            Outcome::Denied(error()),
            Outcome::Misconfigured { status: 404, why: why() },
        ] {
            metrics.ended(&outcome, Duration::from_millis(20));
        }
        let families = exported.registry().gather();
        let attempts = families.iter().find(|family| family.name() == "connect_relay_attempts_total").unwrap();
        assert_eq!(attempts.get_metric().len(), OUTCOMES.len());
        assert_eq!(metrics.attempt_seconds.get_sample_count(), 9);
    }

    #[test]
    fn quota_wait_counts_only_the_time_it_held_something() {
        let mut metrics = SenderMetrics::new(&Metrics::default(), &pacer());
        for (now, held) in [(1000, false), (2000, true), (2500, true), (3000, false), (9000, true), (9000, false)] {
            metrics.quota(Timestamp(now), held);
        }
        assert!((metrics.quota_wait.get() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn gate_metric_is_closed_if_upstream_is_down_but_not_if_it_throttles() {
        let mut pacer = pacer();
        let metrics = SenderMetrics::new(&Metrics::default(), &pacer);
        pacer.ended(Timestamp(0), Timestamp(0), Signal::Throttled(RetryHint::default()));
        metrics.destination(&pacer);
        assert_eq!(metrics.gate_open.get(), 1);
        assert!((metrics.send_rate.get() - pacer.rate()).abs() < 1e-9);
        pacer.ended(Timestamp(0), Timestamp(0), Signal::Down(RetryHint::default()));
        metrics.destination(&pacer);
        assert_eq!(metrics.gate_open.get(), 0);
    }
}
