//! Creation of metrics. A part asks for its counters, gauges and histograms by name and help text, and keeps the
//! handles in its own struct. The registry belongs to the composer of the relay. There is no global one, so two relays
//! can run in one process.
//!
//! Every name gets the prefix `connect_relay_`. A duplicate or malformed name is a programming error; the first test
//! that starts a relay finds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Counter, MetricFamily};
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// A registry to which parts add their metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Registry);

impl Metrics {
    /// The registry itself, for rendering.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0
    }

    /// A counter.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    /// A counter that shows a number that is counted elsewhere, also from before the registry exists.
    pub fn counter_of(&self, name: &str, help: &str, counted: Arc<AtomicU64>) {
        let shown = IntCounter::with_opts(opts(name, help)).expect("a metric's name and help are well-formed");
        self.0.register(Box::new(Counted { shown, counted })).expect("a metric is registered once");
    }

    /// The `process_*` family.
    pub fn process(&self) {
        self.0.register(Box::new(Process(ProcessCollector::for_self()))).expect("nothing else is called process");
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

/// A counter that follows a number.
struct Counted {
    shown: IntCounter,
    counted: Arc<AtomicU64>,
}

impl Collector for Counted {
    fn desc(&self) -> Vec<&Desc> {
        self.shown.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.shown.inc_by(self.counted.load(Ordering::Relaxed).saturating_sub(self.shown.get()));
        self.shown.collect()
    }
}

/// The process collector. prometheus' own collector counts CPU time in whole seconds. This one has the kernel's
/// resolution, so that the graph of a relay that needs a hundredth of a CPU is smooth.
struct Process(ProcessCollector);

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        for family in families.iter_mut().filter(|family| family.name() == "process_cpu_seconds_total") {
            for metric in family.mut_metric() {
                let mut counter = Counter::default();
                counter.set_value(cpu_seconds());
                metric.set_counter(counter);
            }
        }
        families
    }
}

/// CPU time of all threads of this process, user and system.
#[expect(clippy::cast_precision_loss, reason = "exact to the nanosecond for three months of CPU time")]
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Upper bounds for local work: 0.25 ms to 2.5 s.
pub const LOCAL_SECONDS: &[f64] = &[0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Upper bounds for an attempt upstream: 5 ms to 20 s.
pub const ATTEMPT_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

/// Upper bounds for acceptance to delivery: 0.1 s to an hour.
pub const DELIVERY_SECONDS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// Defines an enum of the values of a label, with the text of each: one list for all three.
macro_rules! label_values {
    ($(#[$doc:meta])* $visible:vis enum $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visible enum $name {
            $($(#[$value_doc])* $value,)*
        }

        impl $name {
            /// All values, in the order of their declaration.
            $visible const ALL: [$name; [$($text),*].len()] = [$($name::$value),*];

            /// The name for users.
            $visible fn as_str(self) -> &'static str {
                match self {
                    $($name::$value => $text,)*
                }
            }
        }
    };
}
pub(crate) use label_values;

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("connect_relay_{name}"), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(metrics: &Metrics, name: &str) -> f64 {
        let families = metrics.registry().gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric()[0].get_counter().get_value()
    }

    #[test]
    fn cpu_time_is_not_counted_in_whole_seconds() {
        let metrics = Metrics::default();
        metrics.process();
        let cpu = || value(&metrics, "process_cpu_seconds_total");
        let before = cpu();
        // Reads until the kernel has counted some CPU time: each read is work.
        let after = std::iter::repeat_with(cpu).find(|now| *now > before).unwrap();
        assert!(before > 0.0 && after - before < 1.0, "{before} {after}");
    }

    #[test]
    fn counter_follows_what_is_counted_elsewhere() {
        let (metrics, counted) = (Metrics::default(), Arc::new(AtomicU64::new(3)));
        metrics.counter_of("x_total", "X.", Arc::clone(&counted));
        assert!((value(&metrics, "connect_relay_x_total") - 3.0).abs() < f64::EPSILON);
        counted.store(7, Ordering::Relaxed);
        assert!((value(&metrics, "connect_relay_x_total") - 7.0).abs() < f64::EPSILON);
    }
}
