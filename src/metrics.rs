//! Making metrics: a part asks for its counters, gauges and histograms by name and help text, and keeps the handles in
//! a struct of its own; the registry belongs to whoever composes the relay. There is no global one, so two relays can
//! run in one process.
//!
//! Every name gets the prefix `connect_relay_`. A name that is taken or malformed is a fault of the program, found by
//! the first test that starts a relay.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// A registry to which parts add what they measure.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Registry);

impl Metrics {
    /// The registry itself, for the one that renders it.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0
    }

    /// A counter.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    /// A counter by labels.
    #[must_use]
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(opts(name, help), labels))
    }

    /// A counter of seconds.
    #[must_use]
    pub fn seconds(&self, name: &str, help: &str) -> prometheus::Counter {
        self.add(prometheus::Counter::with_opts(opts(name, help)))
    }

    /// A whole-numbered gauge.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(opts(name, help)))
    }

    /// Whole-numbered gauges by labels.
    #[must_use]
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(opts(name, help), labels))
    }

    /// A gauge of fractions.
    #[must_use]
    pub fn level(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::with_opts(opts(name, help)))
    }

    /// Gauges of fractions by labels.
    #[must_use]
    pub fn levels(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(opts(name, help), labels))
    }

    /// A histogram with the given upper bounds.
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts { common_opts: opts(name, help), buckets: buckets.to_vec() };
        self.add(Histogram::with_opts(opts))
    }

    fn add<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("a metric's name and labels are well-formed");
        self.0.register(Box::new(metric.clone())).expect("a metric is registered once");
        metric
    }
}

/// Upper bounds for what happens on this machine: 0.25 ms to 2.5 s.
pub const LOCAL_SECONDS: &[f64] = &[0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Upper bounds for an attempt upstream: 5 ms to 20 s.
pub const ATTEMPT_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

/// Upper bounds for acceptance to delivery: 0.1 s to an hour.
pub const DELIVERY_SECONDS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("connect_relay_{name}"), help)
}
