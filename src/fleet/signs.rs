//! Signs of life: each owner of a stream publishes one a second. They decide when a takeover may be tried, and never
//! whether it succeeds: that is the stream's.

use serde::{Deserialize, Serialize};

use super::subject::part;

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sign {
    /// The identity of the relay.
    pub identity: String,
    /// Its process.
    pub instance: u64,
    /// Its machine, for operators.
    pub node: String,
}

/// The subject of the signs of one relay.
#[must_use]
pub fn subject_of(fleet: &str, identity: &str) -> String {
    format!("cr.{}.o.{}", part(fleet), part(identity))
}

/// The subject of the signs of all relays of a fleet.
#[must_use]
pub fn subject_of_all(fleet: &str) -> String {
    format!("cr.{}.o.*", part(fleet))
}
