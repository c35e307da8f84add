//! The settings and the counts of a simulator.

use std::fs::File;
use std::time::Duration;

use serde::Serialize;

/// The settings of a simulator.
#[derive(Debug)]
pub struct Options {
    /// Messages and events per second.
    pub rate: f64,
    /// Messages and events in a burst.
    pub burst: u32,
    /// The time from a request to its reply.
    pub latency: Duration,
    /// The largest random change of the latency, up and down.
    pub jitter: Duration,
    /// Share of the requests that fail with a 500 or a 503, in turn.
    pub error_rate: f64,
    /// Share of the requests that are executed, but get no reply.
    pub lost_reply_rate: f64,
    /// True if every operation is answered 503.
    pub outage: bool,
    /// True if every operation is answered 429.
    pub throttle: bool,
    /// The seconds in `Retry-After` of a 429 and a 503.
    pub retry_after: Option<u64>,
    /// Tokens that are refused.
    pub deny: Vec<String>,
    /// The lifetime of a connection token, since it was issued or first seen.
    pub token_life: Option<Duration>,
    /// The seed of the random generators.
    pub seed: u64,
    /// The file for accepted messages, one line each.
    pub ledger: Option<File>,
    /// True to keep accepted messages in memory, for [`Simulator::accepted`](super::Simulator::accepted).
    pub keep_accepted: bool,
}

impl Default for Options {
    /// AWS's default quota, and no faults.
    fn default() -> Options {
        Options {
            rate: 10.0,
            burst: 15,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            error_rate: 0.0,
            lost_reply_rate: 0.0,
            outage: false,
            throttle: false,
            retry_after: None,
            deny: Vec::new(),
            token_life: None,
            seed: 0,
            ledger: None,
            keep_accepted: false,
        }
    }
}

/// The counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Messages accepted: lines of the ledger.
    pub accepted: u64,
    /// Repeats of an accepted message or event, answered as the first was.
    pub duplicates: u64,
    /// Requests over the quota.
    pub throttled: u64,
    /// Requests refused with 403: no token, a denied or old one, or a participant that has left.
    pub denied: u64,
    /// Requests refused as malformed, or for an operation that is not simulated.
    pub rejected: u64,
    /// Requests failed on purpose.
    pub errors: u64,
    /// Requests executed whose reply was withheld on purpose.
    pub lost_replies: u64,
    /// Connections created.
    pub connections: u64,
    /// Events accepted.
    pub events: u64,
    /// Participants disconnected.
    pub disconnects: u64,
}
