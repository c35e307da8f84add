//! The settings of the pacer.

use std::time::Duration;

use crate::retry::Backoff;

/// The bounds and the starting point of the learning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Requests per second that AWS granted the instance; learning starts at this rate.
    pub quota_rate: f64,
    /// The bucket's size.
    pub quota_burst: u32,
    /// The highest rate; 0 if only the learned rate is the limit.
    pub rate_max: f64,
    /// The lowest rate while there is something to send.
    pub rate_min: f64,
    /// The share of the learned rate that is left to others.
    pub headroom: f64,
    /// The delay for which the gate stays closed after a number of throttles or outages in a row.
    pub backoff: Backoff,
    /// The longest such delay.
    pub probe_max: Duration,
    /// The longest wait upstream may ask for.
    pub hint_max: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            quota_rate: 10.0,
            quota_burst: 15,
            rate_max: 0.0,
            rate_min: 0.2,
            headroom: 0.1,
            backoff: Backoff::default(),
            probe_max: Duration::from_secs(5),
            hint_max: Duration::from_secs(60),
        }
    }
}
