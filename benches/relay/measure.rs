//! Figures: what one round gave, and the median of several.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The figures of one round of a contender.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Messages in all.
    pub messages: u64,
    /// Messages per second.
    pub per_second: f64,
    /// Half of the requests were answered within this.
    pub p50: Duration,
    /// 99 of 100 were.
    pub p99: Duration,
}

impl Figures {
    /// From the time a round took and that of each request in it.
    pub fn of(messages: u64, took: Duration, mut latencies: Vec<Duration>) -> Figures {
        latencies.sort_unstable();
        Figures {
            messages,
            per_second: messages as f64 / took.as_secs_f64(),
            p50: percentile(&latencies, 50),
            p99: percentile(&latencies, 99),
        }
    }

    /// For the raw file, in base units.
    pub fn json(&self) -> Value {
        json!({
            "messages": self.messages,
            "per_second": self.per_second,
            "p50_seconds": self.p50.as_secs_f64(),
            "p99_seconds": self.p99.as_secs_f64(),
        })
    }
}

/// The median of the known values; `None` if there are none.
pub fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Now, by the clock that never steps.
#[expect(clippy::disallowed_methods, reason = "a benchmark times a whole process from outside; it decides nothing")]
pub fn now() -> Instant {
    Instant::now()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}
