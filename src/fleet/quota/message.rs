//! The message of a relay to its fleet, and the decision that the learner's messages contain.

use serde::{Deserialize, Serialize};

/// A relay's message to its fleet.
///
/// Members that are not known are ignored, and members that are missing have their default, so that relays of
/// different versions understand each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// The relay's name; the lowest one learns.
    pub id: String,
    /// A number for each run of the process, to distinguish two runs of one id.
    pub run: u64,
    /// The requests that were accepted in this run.
    pub accepted: u64,
    /// The requests that were throttled because of the rate in this run.
    pub throttled: u64,
    /// Those of them that turned out to have another cause.
    pub retracted: u64,
    /// The part of the last second in which only the rate held back a message.
    pub held: f64,
    /// The accepted requests per second, over the last second.
    pub used: f64,
    /// The same over the last ten seconds.
    pub lately: f64,
    /// The present rate without a search.
    pub rate: f64,
    /// True if that rate was learned or is a share.
    pub learned: bool,
    /// The highest rate that the relay's configuration allows; 0 for none.
    pub rate_max: f64,
    /// The run of the relay whose decisions this one follows; its own if it decides; absent if it is alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<u64>,
    /// The time for which it has followed the fleet's decisions without a break, in milliseconds.
    pub following_ms: u64,
    /// True if the relay stops now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// The decision, if this relay decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub division: Option<Division>,
}

/// The learner's decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Division {
    /// The fleet's rate, requests per second.
    pub rate: f64,
    /// The same without the rise of a search.
    pub base: f64,
    /// The most that one relay may take.
    pub level: f64,
    /// An equal part of the rate, which each relay may take at any time.
    pub part: f64,
}

impl Division {
    /// The division with all values within their bounds; `None` if it contains no rate.
    pub(super) fn checked(self, rate_most: f64) -> Option<Division> {
        let rate = plausible(self.rate).min(rate_most);
        let base = plausible(self.base).min(rate);
        let level = plausible(self.level).min(rate);
        let part = plausible(self.part).min(level);
        (base > 0.0).then_some(Division { rate, base, level, part })
    }
}

/// A value of a message, if it is a number that can be meant; else 0.
pub(super) fn plausible(value: f64) -> f64 {
    if value.is_finite() && value > 0.0 { value } else { 0.0 }
}
