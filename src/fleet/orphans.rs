//! Streams that hold messages and have no owner, as one relay of the fleet sees them.
//!
//! Each relay hears the signs of life of all. It lists the streams at long intervals, and soon after an owner fell silent, and
//! reads the last record only of those whose owner it does not hear: a healthy fleet of *n* relays makes *n* requests in a
//! minute or two, not *n*² in ten seconds.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::signs::Sign;
use super::stream::Listed;
use crate::time::Timestamp;

/// The silence after which an owner counts as gone.
const ORPHANED: Duration = Duration::from_secs(60);
/// The time until the next listing, and the most that chance adds to it: all relays notice a silence together.
const HEALTHY: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(60)];
const WITH_ORPHANS: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(10)];
const AFTER_A_SILENCE: [Duration; 2] = [Duration::ZERO, Duration::from_secs(10)];

/// The owners of the fleet's streams as this relay hears them.
pub struct Orphans {
    own: String,
    /// The time since which this relay listens.
    since: Timestamp,
    heard: HashMap<String, Timestamp>,
    /// The streams of the last listing without an owner that was heard.
    silent: Vec<Listed>,
    /// The time of the next listing.
    due: Option<Timestamp>,
}

impl Orphans {
    /// The state of a relay of this identity that begins to listen.
    pub fn new(own: &str, since: Timestamp) -> Orphans {
        Orphans { own: own.to_owned(), since, heard: HashMap::new(), silent: Vec::new(), due: None }
    }

    /// Takes a sign of life.
    pub fn heard(&mut self, payload: &[u8], now: Timestamp) -> Option<Sign> {
        let sign: Sign = serde_json::from_slice(payload).ok()?;
        self.heard.insert(sign.identity.clone(), now);
        Some(sign)
    }

    /// Returns true if the streams are to be listed now; `chance` is 0 to 1.
    pub fn is_due(&mut self, now: Timestamp, chance: f64) -> bool {
        let before = self.heard.len();
        self.heard.retain(|_, at| now.since(*at) < ORPHANED);
        if now.since(self.since) < ORPHANED {
            return false;
        }
        if self.due.is_none() || self.heard.len() < before {
            let soon = after(now, AFTER_A_SILENCE, chance);
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
        let is_due = self.due.is_some_and(|due| now >= due);
        if is_due {
            // If the servers do not answer, the next try.
            self.due = Some(after(now, WITH_ORPHANS, chance));
        }
        is_due
    }

    /// The relays that live, this one included: their streams need no look.
    pub fn heard_of(&self) -> HashSet<String> {
        self.heard.keys().chain([&self.own]).cloned().collect()
    }

    /// Takes a listing of the streams whose owners were not heard.
    pub fn listed(&mut self, streams: Vec<Listed>, now: Timestamp, chance: f64) {
        self.silent = streams;
        let interval = if self.count() == 0 { HEALTHY } else { WITH_ORPHANS };
        self.due = Some(after(now, interval, chance));
    }

    /// The streams of others that hold messages and whose owner is silent.
    pub fn count(&self) -> i64 {
        let orphaned = |stream: &&Listed| {
            stream.identity != self.own && !self.heard.contains_key(&stream.identity) && stream.queued != Some(0)
        };
        i64::try_from(self.silent.iter().filter(orphaned).count()).unwrap_or(i64::MAX)
    }
}

fn after(now: Timestamp, [least, more]: [Duration; 2], chance: f64) -> Timestamp {
    now + least + more.mul_f64(chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    fn stream(identity: &str, queued: Option<u64>) -> Listed {
        Listed { identity: identity.into(), last: String::new(), queued, bytes: 0 }
    }

    fn sign(identity: &str) -> Vec<u8> {
        serde_json::to_vec(&Sign { identity: identity.into(), instance: 1, node: "n".into() }).unwrap()
    }

    #[test]
    fn orphan_holds_messages_and_was_silent_for_a_minute() {
        let streams = || vec![stream("own", Some(3)), stream("a", Some(3)), stream("b", Some(0)), stream("c", None)];
        let mut orphans = Orphans::new("own", at(0));
        orphans.heard(&sign("a"), at(30));
        orphans.heard(b"not a sign", at(30));
        assert!(!orphans.is_due(at(59), 0.0), "it has not listened for a minute");
        assert!(orphans.is_due(at(60), 0.0));
        assert_eq!(orphans.heard_of(), HashSet::from(["own".to_owned(), "a".to_owned()]));
        orphans.listed(streams(), at(60), 0.0);
        assert_eq!(orphans.count(), 1, "an unreadable one counts");
        assert!(!orphans.is_due(at(74), 0.0));
        assert!(orphans.is_due(at(75), 0.0), "while there is an orphan the streams are listed sooner");
        orphans.listed(streams(), at(76), 0.0);
        assert!(orphans.is_due(at(90), 0.0), "an owner fell silent");
        orphans.listed(streams(), at(90), 0.0);
        assert_eq!(orphans.count(), 2);
        orphans.heard(&sign("a"), at(91));
        assert_eq!(orphans.count(), 1, "it is heard again");
    }

    #[test]
    fn healthy_fleet_is_listed_rarely_and_not_by_all_relays_together() {
        for (chance, expected) in [(0.0, [60, 120, 180, 240]), (1.0, [70, 190, 310, 430])] {
            let mut orphans = Orphans::new("own", at(0));
            let mut times = Vec::new();
            for second in 0..500 {
                orphans.heard(&sign("a"), at(second));
                if orphans.is_due(at(second), chance) {
                    times.push(second);
                    orphans.listed(vec![stream("b", Some(0))], at(second), chance);
                }
            }
            assert_eq!(times[..4], expected);
        }
    }
}
