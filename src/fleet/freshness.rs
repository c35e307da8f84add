//! Detects reports that were delayed on their way, without a common clock.
//!
//! Each report has its sender's time, in milliseconds of a clock of its own. The difference between the time of arrival
//! and that time is the distance of the two clocks plus the delay. The least difference of the last one to two minutes
//! stands for a report without delay, so a report with a difference of [`DELAY_MAX`] more is late: a server that was
//! stopped, a network that recovered or a relay that was stopped itself held it back. A late report would show a relay
//! that may be gone since. Two minutes, because no two clocks run at exactly the same speed.

use std::collections::HashMap;
use std::time::Duration;

use crate::time::Timestamp;

/// The longest delay of a report that counts.
pub const DELAY_MAX: Duration = Duration::from_secs(1);
/// The time after which the least difference is measured anew; the one before it counts as long again.
const WINDOW: Duration = Duration::from_secs(60);
/// The most senders that are remembered.
const SENDERS_MAX: usize = 4000;

/// The senders that were heard recently.
#[derive(Debug, Default)]
pub struct Freshness(HashMap<u64, Least>);

/// The least differences for one sender, in milliseconds.
#[derive(Debug)]
struct Least {
    before: i64,
    now: i64,
    /// The beginning of the window of `now`.
    since: Timestamp,
}

impl Freshness {
    /// Returns true if a report that was sent at `sent`, by the clock of run `sender`, arrived without delay.
    pub fn is_fresh(&mut self, sender: u64, sent: u64, now: Timestamp) -> bool {
        // Any two numbers have a difference here: a sender may send any number.
        let difference = i64::try_from(i128::from(now.0) - i128::from(sent)).unwrap_or(i64::MIN);
        if self.0.len() >= SENDERS_MAX {
            self.0.retain(|_, least| now.since(least.since) < 2 * WINDOW);
        }
        if self.0.len() >= SENDERS_MAX && !self.0.contains_key(&sender) {
            return false;
        }
        let least = self.0.entry(sender).or_insert(Least { before: difference, now: difference, since: now });
        if now.since(least.since) >= WINDOW {
            *least = Least { before: least.now, now: difference, since: now };
        }
        least.now = least.now.min(difference);
        let delay = difference.saturating_sub(least.now.min(least.before));
        u128::try_from(delay).is_ok_and(|delay| delay <= DELAY_MAX.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers for reports as (sent, arrived).
    fn heard(reports: &[(u64, u64)]) -> Vec<bool> {
        let mut freshness = Freshness::default();
        reports.iter().map(|(sent, arrived)| freshness.is_fresh(7, *sent, Timestamp(*arrived))).collect()
    }

    #[test]
    fn delayed_report_is_late_whatever_the_distance_of_the_clocks() {
        for distance in [0, 5, 1_000_000_000_000] {
            let at = |sent: u64, delay: u64| (sent, sent + distance + delay);
            let answers = heard(&[at(1000, 30), at(2000, 1029), at(3000, 1031), at(4000, 30_000), at(35_000, 20)]);
            assert_eq!(answers, [true, true, false, false, true], "{distance}");
        }
        // The receiver's clock is behind.
        assert_eq!(heard(&[(9_000_000, 10), (9_001_000, 1010), (9_002_000, 4010)]), [true, true, false]);
    }

    #[test]
    fn clocks_of_different_speed_stay_comparable() {
        // A sender whose clock loses 5 ms a second: 300 ms in a window.
        let reports: Vec<_> = (0..3600).map(|second| (second * 995, second * 1000)).collect();
        assert!(heard(&reports).into_iter().all(|fresh| fresh));
    }

    #[test]
    fn senders_are_independent_and_bounded() {
        let mut freshness = Freshness::default();
        assert!(freshness.is_fresh(1, 0, Timestamp(5000)));
        assert!(freshness.is_fresh(2, 9_999_999, Timestamp(5000)));
        assert!(!freshness.is_fresh(1, 0, Timestamp(6100)));
        for sender in 0..SENDERS_MAX as u64 {
            freshness.is_fresh(sender, 0, Timestamp(5000));
        }
        assert!(!freshness.is_fresh(1 << 40, 0, Timestamp(6000)), "no room");
        assert!(freshness.is_fresh(1 << 40, 0, Timestamp(5000 + 120_000)), "those that fell silent make room");
        assert!(freshness.0.len() < 3);
        for wild in [0, u64::MAX] {
            freshness.is_fresh(9, wild, Timestamp(u64::MAX));
            freshness.is_fresh(9, wild, Timestamp(0));
        }
    }
}
