//! `/faults`: faults that are switched while the simulator runs, so that a bot's author can rehearse an incident.
//!
//! | request | effect |
//! | --- | --- |
//! | `GET /faults` | returns the present faults |
//! | `POST /faults` | sets the given members, leaves the others, and returns the result |
//! | `DELETE /faults` | restores those of the start |
//!
//! | member | fault |
//! | --- | --- |
//! | `Outage` | every operation is answered 503 |
//! | `Throttle` | every operation is answered 429 |
//! | `RetryAfter` | 429 and 503 carry `Retry-After` with this number of seconds; null: without the header |
//! | `Latency`, `Jitter` | the time from a request to its reply, as a duration such as `"2s"` |
//! | `ErrorRate`, `LostReplyRate` | shares of the requests, 0 to 1 |
//! | `Rate`, `Burst` | the quota of messages and events; the bucket is full after a change |
//! | `Deny` | tokens that are answered 403 |
//!
//! These requests take nothing of the quota, have no delay, and draw no fault.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// The longest latency, and the longest hint.
const LONGEST: Duration = Duration::from_secs(3600);

/// The present faults.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Faults {
    /// True if every operation is answered 503.
    pub outage: bool,
    /// True if every operation is answered 429.
    pub throttle: bool,
    /// The seconds in `Retry-After` of a 429 and a 503.
    pub retry_after: Option<u64>,
    /// The time from a request to its reply.
    #[serde(serialize_with = "as_text")]
    pub latency: Duration,
    /// The largest random change of the latency, up and down.
    #[serde(serialize_with = "as_text")]
    pub jitter: Duration,
    /// Share of the requests that fail with a 500 or a 503, in turn.
    pub error_rate: f64,
    /// Share of the requests that are executed, but get no reply.
    pub lost_reply_rate: f64,
    /// Messages and events per second.
    pub rate: f64,
    /// Messages and events in a burst.
    pub burst: u32,
    /// Tokens that are refused.
    pub deny: Vec<String>,
}

/// A change of some faults.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct Change {
    outage: Option<bool>,
    throttle: Option<bool>,
    /// The outer value is `None` if the member is absent.
    #[serde(deserialize_with = "present")]
    retry_after: Option<Option<u64>>,
    latency: Option<String>,
    jitter: Option<String>,
    error_rate: Option<f64>,
    lost_reply_rate: Option<f64>,
    rate: Option<f64>,
    burst: Option<u32>,
    deny: Option<Vec<String>>,
}

impl Default for Faults {
    /// AWS's default quota, and no faults.
    fn default() -> Faults {
        Faults {
            outage: false,
            throttle: false,
            retry_after: None,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            error_rate: 0.0,
            lost_reply_rate: 0.0,
            rate: 10.0,
            burst: 15,
            deny: Vec::new(),
        }
    }
}

impl Faults {
    /// Returns these faults with the members of a body applied.
    ///
    /// # Errors
    /// With the member that is not allowed, and the allowed values.
    pub(super) fn changed(&self, body: &[u8]) -> Result<Faults, String> {
        // Serde would take an array for a struct too.
        let change = serde_json::from_slice(body).map(Value::Object).and_then(serde_json::from_value);
        let change: Change = change.map_err(|error| format!("the body: {error}"))?;
        let faults = Faults {
            outage: change.outage.unwrap_or(self.outage),
            throttle: change.throttle.unwrap_or(self.throttle),
            retry_after: change.retry_after.unwrap_or(self.retry_after),
            latency: duration("Latency", change.latency)?.unwrap_or(self.latency),
            jitter: duration("Jitter", change.jitter)?.unwrap_or(self.jitter),
            error_rate: change.error_rate.unwrap_or(self.error_rate),
            lost_reply_rate: change.lost_reply_rate.unwrap_or(self.lost_reply_rate),
            rate: change.rate.unwrap_or(self.rate),
            burst: change.burst.unwrap_or(self.burst),
            deny: change.deny.unwrap_or_else(|| self.deny.clone()),
        };
        for (name, share) in [("ErrorRate", faults.error_rate), ("LostReplyRate", faults.lost_reply_rate)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{name} is {share}: a share from 0 to 1 is needed"));
            }
        }
        if !faults.rate.is_finite() || faults.rate < 0.0 {
            return Err(format!("Rate is {}: a number of requests per second is needed, 0 or more", faults.rate));
        }
        if faults.retry_after.is_some_and(|seconds| seconds > LONGEST.as_secs()) {
            return Err(format!("RetryAfter is more than {} seconds", LONGEST.as_secs()));
        }
        Ok(faults)
    }
}

fn duration(name: &str, text: Option<String>) -> Result<Option<Duration>, String> {
    let Some(text) = text else { return Ok(None) };
    match humantime::parse_duration(&text) {
        Ok(duration) if duration <= LONGEST => Ok(Some(duration)),
        _ => Err(format!("{name} is {text:?}: a duration of at most an hour is needed, such as \"2s\"")),
    }
}

fn as_text<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&humantime::format_duration(*duration).to_string())
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_sets_its_members_and_leaves_the_others() {
        let start = Faults::default();
        let body = br#"{"Outage":true,"Latency":"2s","RetryAfter":7,"Deny":["a"],"Rate":0.5}"#;
        let changed = start.changed(body).unwrap();
        let expected = Faults {
            outage: true,
            latency: Duration::from_secs(2),
            retry_after: Some(7),
            deny: vec!["a".into()],
            rate: 0.5,
            ..start.clone()
        };
        assert_eq!(changed, expected);
        assert_eq!(changed.changed(b"{}").unwrap(), expected);
        assert_eq!(changed.changed(br#"{"RetryAfter":null}"#).unwrap().retry_after, None);
    }

    #[test]
    fn member_out_of_range_is_refused_with_what_is_allowed() {
        let start = Faults::default();
        for (body, words) in [
            ("", "the body: "),
            ("[]", "the body: "),
            (r#"{"Outrage":true}"#, "unknown field `Outrage`, expected one of `Outage`, `Throttle`"),
            (r#"{"Latency":"2"}"#, "Latency is \"2\": a duration of at most an hour is needed"),
            (r#"{"Jitter":"2h"}"#, "Jitter is \"2h\""),
            (r#"{"ErrorRate":1.5}"#, "ErrorRate is 1.5: a share from 0 to 1 is needed"),
            (r#"{"LostReplyRate":-1}"#, "LostReplyRate is -1"),
            (r#"{"Rate":-1}"#, "Rate is -1"),
            (r#"{"RetryAfter":3601}"#, "RetryAfter is more than 3600 seconds"),
        ] {
            let why = start.changed(body.as_bytes()).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
