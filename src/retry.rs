//! The delay before the next attempt: pure arithmetic.
//!
//! Intervals grow as in the `backoff` crate (`initial × multiplierⁿ`, at most `max`). Its jitter and its clock are not
//! used. The interval follows from the attempt count in the record, so that a restart resumes the schedule. The jitter
//! is an argument, so that a simulation can be repeated.
//!
//! [`RetryHint`] reads the wait that upstream asks for: `x-amz-retry-after` (milliseconds) and `Retry-After` (seconds or an
//! HTTP date). If both are present the larger one counts. The caller limits it.

use std::time::{Duration, UNIX_EPOCH};

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;

use crate::time::{WallTime, millis};

/// The shape of an exponential delay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first delay.
    pub initial: Duration,
    /// The factor from one delay to the next.
    pub multiplier: f64,
    /// The largest random change of the delay, up and down, as a share of it: 0 to 1.
    pub randomization: f64,
    /// The longest delay, before jitter.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff {
            initial: Duration::from_millis(200),
            multiplier: 2.0,
            randomization: 0.5,
            max: Duration::from_secs(5),
        }
    }
}

impl Backoff {
    /// The delay after the `failures`-th failure in a row (1 is the first). `jitter` in 0..1 selects a point in the
    /// randomised interval.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let mut intervals = ExponentialBackoffBuilder::new()
            .with_initial_interval(self.initial.min(self.max))
            .with_multiplier(self.multiplier)
            .with_randomization_factor(0.0)
            .with_max_interval(self.max)
            .with_max_elapsed_time(None)
            .build();
        let mut interval = self.initial.min(self.max);
        for _ in 0..failures.clamp(1, 64) {
            interval = intervals.next_backoff().unwrap_or(self.max).min(self.max);
        }
        interval.mul_f64((1.0 + self.randomization * (2.0 * jitter - 1.0)).max(0.0))
    }
}

/// The wait that upstream asks for in its two headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryHint(pub Option<Duration>);

impl RetryHint {
    /// Reads the values of both headers and ignores a malformed one. A date is compared with the wall clock.
    #[must_use]
    pub fn parse(amz_millis: Option<&str>, retry_after: Option<&str>, now: WallTime) -> RetryHint {
        let amz = amz_millis.and_then(|text| text.trim().parse().ok()).map(Duration::from_millis);
        let standard = retry_after.map(str::trim).and_then(|text| match text.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => {
                let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
                Some(WallTime(millis(date)).since(now))
            }
        });
        RetryHint(amz.max(standard))
    }

    /// The wait asked for, at most `bound`; zero without a hint.
    #[must_use]
    pub fn at_most(self, bound: Duration) -> Duration {
        self.0.unwrap_or_default().min(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intervals_double_up_to_the_bound() {
        let backoff = Backoff::default();
        let delays: Vec<u64> = (1..=7).map(|n| millis(backoff.delay(n, 0.5))).collect();
        assert_eq!(delays, [200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn the_larger_of_both_hints_counts_within_the_bound() {
        let now = WallTime(784_111_777_000);
        let minute = Duration::from_secs(60);
        for (amz, standard, expected) in [
            (None, None, 0),
            (Some("1500"), None, 1500),
            (Some("1500"), Some("1"), 1500),
            (Some("1500"), Some("3"), 3000),
            (None, Some("Sun, 06 Nov 1994 08:49:40 GMT"), 3000),
            (None, Some("Sun, 06 Nov 1994 08:00:00 GMT"), 0),
            (Some("999999999999999999999999"), Some("soon"), 0),
            (Some("-1"), Some("100000000"), 60_000),
        ] {
            assert_eq!(millis(RetryHint::parse(amz, standard, now).at_most(minute)), expected, "{amz:?} {standard:?}");
        }
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_share(failures in 0u32..2000, jitter in 0.0f64..1.0) {
            let backoff = Backoff::default();
            let middle = backoff.delay(failures, 0.5);
            let delay = backoff.delay(failures, jitter);
            prop_assert!(delay >= middle.mul_f64(0.499) && delay <= middle.mul_f64(1.501));
        }
    }
}
