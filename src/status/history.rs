//! The last hour: a sample each minute, in a ring of fixed size (3 KiB), for the status page.
//!
//! A sample has the running totals of the counters and the levels of the gauges, so a missed minute loses no count. The
//! queue's thread keeps its gauges fresh: sampling asks no other part and touches no disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

use super::Exported;
use crate::metrics::Metrics;
use crate::time::{Clock, Timestamp};

/// The time between two samples.
const EVERY: Duration = Duration::from_secs(60);
/// The span of the ring.
const SPAN: Duration = Duration::from_secs(3600);
/// The samples of an hour, and the one before.
const SAMPLES_MAX: usize = 61;
/// The shortest interval between the newest sample and the present that is shown.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The ring; clones share it.
#[derive(Clone, Debug)]
pub struct History {
    metrics: Metrics,
    clock: Clock,
    ring: Arc<Mutex<VecDeque<Sample>>>,
}

/// The figures at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: Timestamp,
    accepted: u64,
    delivered: u64,
    throttled: u64,
    queued: u64,
    expiring: u64,
}

/// An interval that ends at `time`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The end of the interval.
    pub time: String,
    /// Its length.
    pub seconds: f64,
    /// Messages accepted in it.
    pub accepted: u64,
    /// Messages delivered in it.
    pub delivered: u64,
    /// Attempts throttled in it.
    pub throttled: u64,
    /// Messages queued at its end.
    pub queued: u64,
    /// Messages that will expire before they can be sent, at its end.
    pub expiring: u64,
}

impl History {
    /// Creates a ring whose first sample is taken now.
    #[must_use]
    pub fn new(metrics: Metrics, clock: Clock) -> History {
        let history = History { metrics, clock, ring: Arc::new(Mutex::new(VecDeque::with_capacity(SAMPLES_MAX))) };
        history.take();
        history
    }

    /// Takes a sample each minute, until `stop`.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let takes = async {
            loop {
                sleep(EVERY).await;
                self.take();
            }
        };
        tokio::select! {
            () = stop => {}
            () = takes => {}
        }
    }

    fn take(&self) {
        let sample = self.sample();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == SAMPLES_MAX {
            ring.pop_front();
        }
        ring.push_back(sample);
    }

    /// The intervals of the last hour, oldest first; the last one ends now.
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        let now = self.sample();
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // The sleep of a machine takes no samples.
        let recent = ring.iter().copied().filter(|sample| now.at.since(sample.at) <= SPAN + EVERY);
        let is_short = ring.back().is_some_and(|last| now.at.since(last.at) < INTERVAL_MIN);
        let samples: Vec<Sample> = recent.chain((!is_short).then_some(now)).collect();
        let pairs = samples.iter().zip(samples.iter().skip(1));
        pairs.map(|(before, sample)| sample.point(before, &self.clock)).collect()
    }

    fn sample(&self) -> Sample {
        let exported = Exported::of(&self.metrics);
        let count = |name: &str, label| exported.count(name, label).unwrap_or(0);
        Sample {
            at: self.clock.now(),
            accepted: count("messages_accepted_total", None),
            delivered: count("messages_delivered_total", None),
            throttled: count("attempts_total", Some("throttled")),
            queued: count("queue_messages", None),
            expiring: count("expiring_messages", None),
        }
    }
}

impl Sample {
    fn point(&self, before: &Sample, clock: &Clock) -> Point {
        Point {
            time: clock.shown(self.at).to_string(),
            seconds: self.at.since(before.at).as_secs_f64(),
            accepted: self.accepted.saturating_sub(before.accepted),
            delivered: self.delivered.saturating_sub(before.delivered),
            throttled: self.throttled.saturating_sub(before.throttled),
            queued: self.queued,
            expiring: self.expiring,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_keeps_an_hour_of_intervals_and_loses_no_count() {
        let (metrics, clock) = (Metrics::default(), Clock::still());
        let accepted = metrics.counter("messages_accepted_total", "A.");
        let attempts = metrics.counters("attempts_total", "A.", &["outcome"]);
        let queued = metrics.gauge("queue_messages", "Q.");
        let history = History::new(metrics.clone(), clock.clone());
        assert_eq!(history.points(), [], "no interval has passed");
        for minute in 1..=100 {
            accepted.inc_by(minute);
            attempts.with_label_values(&["throttled"]).inc_by(2);
            attempts.with_label_values(&["delivered"]).inc_by(5);
            queued.set(minute.cast_signed());
            clock.skip(EVERY);
            history.take();
        }
        assert!(history.ring.lock().unwrap().capacity() * size_of::<Sample>() < 8 << 10);
        let points = history.points();
        assert_eq!(points.len(), 60);
        assert_eq!(points.iter().map(|point| point.accepted).collect::<Vec<_>>(), (41..=100).collect::<Vec<_>>());
        assert!(points.iter().all(|point| point.throttled == 2 && (point.seconds - 60.0).abs() < 1e-9));
        assert_eq!(points[59].queued, 100);
        // The present is an interval of its own.
        accepted.inc_by(7);
        clock.skip(Duration::from_secs(5));
        let points = history.points();
        let last = points.last().unwrap();
        assert_eq!((points.len(), last.accepted, last.queued), (61, 7, 100));
        assert!((last.seconds - 5.0).abs() < 1e-9 && last.time.ends_with('Z'), "{last:?}");
        // After the sleep of a machine only what is of the last hour is shown.
        clock.skip(Duration::from_secs(7200));
        assert_eq!(history.points().len(), 0);
    }
}
