//! The settings and the counts of a simulator.

use std::fs::File;
use std::time::Duration;

use serde::Serialize;

use super::switch::Faults;

/// The settings of a simulator.
#[derive(Debug, Default)]
pub struct Options {
    /// The faults of the start.
    pub faults: Faults,
    /// The lifetime of a connection token, since it was issued or first seen.
    pub token_life: Option<Duration>,
    /// The seed of the random generators.
    pub seed: u64,
    /// The file for accepted messages, one line each.
    pub ledger: Option<File>,
    /// True to keep accepted messages in memory, for [`Simulator::accepted`](super::Simulator::accepted).
    pub keep_accepted: bool,
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
