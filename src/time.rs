//! The only place that reads a clock.
//!
//! A [`Timestamp`] is milliseconds since the Unix epoch: it is what stands in records, replies and log lines.
//! A [`Clock`] hands them out. It reads the wall clock once, when it is made, and from then on only adds what the
//! monotonic clock has counted: a step of the wall clock (NTP, a resumed laptop, an operator) moves no due time,
//! expires no message and makes no age negative while the relay runs.
//!
//! Pure code takes *now* as an argument and never sees a `Clock`.

use std::fmt;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// How long ago `earlier` was; zero where the clock has stepped and it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(millis(span)))
    }
}

/// As AWS writes it: `2019-11-08T02:41:28.172Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // humantime panics past the year 9999; a damaged record must not.
        let millis = self.0.min(253_402_300_799_999);
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).fmt(f)
    }
}

/// Hands out timestamps that never go back and never jump. Clones share one time.
#[derive(Clone, Debug)]
pub struct Clock {
    wall: Timestamp,
    /// None for a clock that stands still.
    started: Option<Instant>,
    skipped: Arc<AtomicU64>,
}

impl Clock {
    /// A clock that agrees with the system's at this moment.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clocks")]
    pub fn system() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
        Clock { wall: Timestamp(wall), started: Some(Instant::now()), skipped: Arc::default() }
    }

    /// A clock that stands still but for [`Clock::skip`]: for tests in which a moment must not pass by itself.
    #[must_use]
    pub fn still() -> Clock {
        Clock { started: None, ..Clock::system() }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        self.wall + elapsed + Duration::from_millis(self.skipped.load(Ordering::Relaxed))
    }

    /// Moves this clock and its clones ahead: for tests that will not sleep.
    pub fn skip(&self, span: Duration) {
        self.skipped.fetch_add(millis(span), Ordering::Relaxed);
    }
}

/// Whole milliseconds, saturating.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_is_written_as_aws_writes_it() {
        assert_eq!(Timestamp(1_573_180_888_172).to_string(), "2019-11-08T02:41:28.172Z");
        assert_eq!(Timestamp(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn ages_are_never_negative() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    }

    #[test]
    fn clones_share_a_skip() {
        let clock = Clock::system();
        let before = clock.clone().now();
        clock.skip(Duration::from_secs(60));
        assert!(clock.clone().now().since(before) >= Duration::from_secs(60));
    }
}
