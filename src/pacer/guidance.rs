//! The fleet's decision about this relay, and this relay's report to the fleet.
//!
//! | guidance | the pacer |
//! | --- | --- |
//! | `Hold` | starts nothing until that time, then goes on as `Alone` |
//! | `Alone` | learns its own rate, as a relay without a fleet |
//! | `Share` | uses the share and learns nothing; when the share expires it goes on alone from it, as from a learned rate |

use std::time::Duration;

use crate::time::Timestamp;

/// The decision about one relay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Guidance {
    /// The relay belongs to no fleet, or has lost it.
    #[default]
    Alone,
    /// The fleet has not decided yet: no attempt starts before this time.
    Hold {
        /// The end of the wait.
        until: Timestamp,
    },
    /// This relay's share of the fleet's rate.
    Share(Share),
}

/// A relay's share of the fleet's rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Requests per second.
    pub rate: f64,
    /// The same without the rise of a search: the rate from which the relay goes on alone.
    pub base: f64,
    /// The share as a part of the fleet's rate, 0 to 1: the relay's part of the burst.
    pub part: f64,
    /// The time at which the share expires if it is not renewed.
    pub until: Timestamp,
}

/// A relay's figures for the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// The requests that were accepted since the start of the process.
    pub accepted: u64,
    /// The requests that were throttled because of the rate, since the start of the process.
    pub throttled: u64,
    /// Those of them that turned out to have another cause.
    pub retracted: u64,
    /// The part of the time since the last report in which only the rate held back a message, 0 to 1.
    pub held: f64,
    /// The present rate without the rise of a search, requests per second.
    pub rate: f64,
    /// True if the rate was learned or is a share; false if it is the configured quota.
    pub learned: bool,
}

/// The counters behind a report.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) throttled: u64,
    pub(super) retracted: u64,
    /// The throttled requests in the last report.
    pub(super) reported: u64,
    /// The time since which only the rate has held back a message; `None` while it does not.
    held_since: Option<Timestamp>,
    held_for: Duration,
    reported_at: Timestamp,
}

impl Counts {
    pub(super) fn new(now: Timestamp) -> Counts {
        Counts { reported_at: now, ..Counts::default() }
    }

    /// Notes the beginning or the end of a period in which only the rate holds back a message.
    pub(super) fn held_back(&mut self, now: Timestamp, held: bool) {
        if let Some(since) = self.held_since {
            self.held_for += now.since(since);
        }
        self.held_since = held.then_some(now);
    }

    /// Returns the part of the time since the last call in which only the rate held back a message.
    pub(super) fn take_held(&mut self, now: Timestamp) -> f64 {
        self.held_back(now, self.held_since.is_some());
        let whole = now.since(self.reported_at).as_secs_f64();
        let held = std::mem::take(&mut self.held_for).as_secs_f64();
        self.reported_at = self.reported_at.max(now);
        if whole > 0.0 { (held / whole).min(1.0) } else { f64::from(u8::from(held > 0.0)) }
    }
}
