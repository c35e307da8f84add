//! Suspects: the conversations that failed or were throttled since their last delivery. Pure.
//!
//! A failure or a throttle can belong to the destination or to one conversation. The relay cannot see which, so it
//! compares conversations:
//!
//! | answer | of a conversation that | belongs to | the pacer gets |
//! | --- | --- | --- | --- |
//! | failure | is no suspect | the destination if it is the third in a row of such conversations, else the conversation | `Down`, else nothing |
//! | failure | is a suspect | the conversation; the destination if it is the third in a row and no other conversation can be sent | nothing, or `Down` |
//! | failure, while the destination is down | any | the destination, unless the attempt was not the probe | `Down`, or nothing |
//! | throttle | is no suspect | the destination | `Throttled` |
//! | throttle | is a suspect, and no other conversation was delivered since its last failure or throttle | the destination; nothing new is known of the rate | `StillThrottled` |
//! | throttle | is a suspect, and another conversation was delivered since its last failure or throttle | the conversation | nothing; what the throttles of the present suspects took from the rate is given back |
//! | any other answer of the service | any | neither: it ends an outage | `Answered` |
//!
//! A failure is a 5xx, an answer that was lost, a connection that failed or a 4xx without a code of the service. A
//! suspect is *chronic* once another conversation was delivered meanwhile: until its own delivery, its failures contain
//! no information about the destination.
//!
//! Suspects never hold up the other conversations, however many there are:
//!
//! * While another conversation can be sent, they all together take a tenth of the starts, and never two in a row. One
//!   of them normally starts each `probe_max`, at the latest after twice that.
//! * They take at most a quarter of `in_flight_max`.
//! * An attempt without an answer for `probe_max` makes its conversation a suspect before the attempt ends.
//!
//! The module knows no message, no clock and no socket. It keeps one entry for each suspect, [`SUSPECTS_MAX`] at most,
//! and one for each attempt in flight.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::delivery::{Outcome, Signal};
use crate::retry::RetryHint;
use crate::time::Timestamp;

/// The most suspects in memory; the one with the oldest last failure is removed first.
pub const SUSPECTS_MAX: usize = 4096;
/// Failures in a row that count as the destination's.
const DOWN_AFTER: u32 = 3;
/// Starts of other conversations that earn the suspects one start.
const STARTS_FOR_ONE: f64 = 9.0;

/// The settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The time after which an attempt without an answer counts as failed, and in which suspects get at least one
    /// start.
    pub probe_max: Duration,
    /// Attempts in flight at once.
    pub in_flight_max: usize,
}

/// The suspects, and the attempts in flight. `K` identifies a conversation.
#[derive(Debug)]
pub struct Suspects<K> {
    options: Options,
    known: HashMap<K, Suspect>,
    flights: HashMap<K, Flight>,
    /// Failures in a row of conversations that were no suspects.
    first_failures: u32,
    /// Failures in a row of conversations that are not chronic.
    failures: u32,
    last_delivery: Option<Timestamp>,
    /// Starts that the suspects have earned: at most one.
    earned: f64,
    /// The last start of a suspect.
    last_start: Option<Timestamp>,
    /// True if the last start was a suspect's: another conversation goes next, if one waits.
    had_turn: bool,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// Failures and throttles in a row.
    streak: u32,
    last: Timestamp,
    /// True if others were delivered while this one failed.
    chronic: bool,
    /// The rate before and after the first throttle that was attributed to the destination.
    rate_cut: Option<(f64, f64)>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    started: Timestamp,
    suspect: bool,
    /// True if it is not the probe of a closed gate: another conversation can be the probe.
    beside: bool,
    overdue: bool,
}

/// The number of attempts that may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starts {
    /// Attempts of suspects that start before the others.
    pub suspects_first: usize,
    /// The most attempts of suspects.
    pub suspects_most: usize,
}

/// The attribution of an outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attribution {
    /// The part of it that concerns the destination.
    pub signal: Signal,
    /// The failures and throttles of the conversation in a row, with this one; 0 if the service answered.
    pub streak: u32,
    /// True if a throttle is the conversation's own.
    pub own_throttle: bool,
    /// The rate before and after a throttle that was wrongly attributed to the destination.
    pub wrong_rate_cut: Option<(f64, f64)>,
}

enum Class {
    Delivered,
    Answered,
    Throttled,
    Failed(RetryHint),
}

impl Class {
    fn of(outcome: &Outcome) -> Class {
        match outcome {
            Outcome::Delivered(_) => Class::Delivered,
            Outcome::Refused(_) | Outcome::Unlisted(_) | Outcome::Denied(_) => Class::Answered,
            Outcome::Throttled { .. } => Class::Throttled,
            Outcome::Down { hint, .. } | Outcome::Unavailable { hint, .. } => Class::Failed(*hint),
            Outcome::AnswerLost { .. } | Outcome::Misconfigured { .. } => Class::Failed(RetryHint::default()),
        }
    }
}

impl<K: Copy + Eq + Hash> Suspects<K> {
    /// Creates an empty set of suspects.
    #[must_use]
    pub fn new(options: Options) -> Suspects<K> {
        Suspects {
            options,
            known: HashMap::new(),
            flights: HashMap::new(),
            first_failures: 0,
            failures: 0,
            last_delivery: None,
            earned: 0.0,
            last_start: None,
            had_turn: false,
        }
    }

    /// True if the conversation failed or was throttled since its last delivery.
    #[must_use]
    pub fn contains(&self, conversation: &K) -> bool {
        self.known.contains_key(conversation)
    }

    /// The starts that suspects may have now.
    #[must_use]
    pub fn starts(&self, now: Timestamp) -> Starts {
        let in_flight = self.flights.values().filter(|flight| flight.suspect || flight.overdue).count();
        let capacity = (self.options.in_flight_max / 4).max(1).saturating_sub(in_flight);
        let since = self.last_start.map_or(Duration::MAX, |last| now.since(last));
        let due = (self.earned >= 1.0 || since >= self.options.probe_max) && !self.had_turn;
        let due = due || since >= 2 * self.options.probe_max;
        Starts { suspects_first: capacity.min(usize::from(due)), suspects_most: capacity }
    }

    /// Notes the start of an attempt. `failed` has the failures of the message and the time of the last one, as they
    /// are on disk; `others_wait` is true if another conversation that is no suspect can be sent now. Returns true if
    /// the attempt is not to be the probe of a closed gate.
    pub fn started(
        &mut self,
        conversation: K,
        failed: Option<(u32, Timestamp)>,
        others_wait: bool,
        now: Timestamp,
    ) -> bool {
        if let Some((streak, last)) = failed
            && !self.contains(&conversation)
        {
            self.insert(conversation, Suspect { streak, last, chronic: false, rate_cut: None });
        }
        let suspect = self.contains(&conversation);
        self.had_turn = suspect;
        if suspect {
            self.last_start = Some(now);
            if others_wait {
                self.earned = (self.earned - 1.0).max(0.0);
            }
        } else {
            self.earned = (self.earned + 1.0 / STARTS_FOR_ONE).min(1.0);
        }
        let beside = suspect && others_wait;
        self.flights.insert(conversation, Flight { started: now, suspect, beside, overdue: false });
        beside
    }

    /// The time at which the next attempt in flight becomes overdue.
    #[must_use]
    pub fn next_overdue(&self) -> Option<Timestamp> {
        let waiting = self.flights.values().filter(|flight| !flight.overdue);
        waiting.map(|flight| flight.started + self.options.probe_max).min()
    }

    /// Notes the attempts that have been without an answer for too long. If they show that the destination is down,
    /// returns the start of one of them.
    pub fn overdue(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut down = None;
        let limit = self.options.probe_max;
        let late = |flight: &Flight| !flight.overdue && now.since(flight.started) >= limit;
        let late: Vec<K> = self.flights.iter().filter(|(_, flight)| late(flight)).map(|(key, _)| *key).collect();
        for conversation in late {
            let Some(flight) = self.flights.get_mut(&conversation) else { continue };
            flight.overdue = true;
            if !flight.suspect {
                let started = flight.started;
                self.first_failures += 1;
                self.failures += 1;
                self.insert(conversation, Suspect { streak: 0, last: now, chronic: false, rate_cut: None });
                if self.first_failures >= DOWN_AFTER {
                    down = Some(started);
                }
            }
        }
        down
    }

    /// Attributes the outcome of an attempt to the destination or to its conversation. `down` is true while the destination counts as down; `others_wait` as in
    /// [`started`](Suspects::started).
    pub fn ended(
        &mut self,
        conversation: &K,
        outcome: &Outcome,
        down: bool,
        others_wait: bool,
        now: Timestamp,
    ) -> Attribution {
        let flight = self.flights.remove(conversation);
        let before = self.known.get(conversation).copied();
        let others_delivered = before.is_some_and(|suspect| self.last_delivery > Some(suspect.last));
        let mut attribution =
            Attribution { signal: outcome.signal(), streak: 0, own_throttle: false, wrong_rate_cut: None };
        let hint = match Class::of(outcome) {
            class @ (Class::Delivered | Class::Answered) => {
                (self.first_failures, self.failures) = (0, 0);
                if matches!(class, Class::Delivered) {
                    self.known.remove(conversation);
                    self.last_delivery = Some(now);
                }
                return attribution;
            }
            Class::Throttled => {
                // This is an answer of the service itself.
                (self.first_failures, self.failures) = (0, 0);
                attribution.own_throttle = before.is_some_and(|suspect| suspect.chronic || others_delivered);
                if before.is_some()
                    && let Signal::Throttled(hint) = attribution.signal
                {
                    attribution.signal = Signal::StillThrottled(hint);
                }
                if attribution.own_throttle {
                    attribution.signal = if down { Signal::Answered } else { Signal::Unclear };
                    attribution.wrong_rate_cut = self.take_rate_cuts();
                }
                None
            }
            Class::Failed(hint) => Some(hint),
        };
        let known = self.known.get(conversation).copied();
        let mut suspect = known.unwrap_or(Suspect { streak: 0, last: now, chronic: false, rate_cut: None });
        suspect.streak = suspect.streak.saturating_add(1);
        suspect.last = now;
        // This was a suspect's start, whatever was known of the conversation when it began.
        (self.last_start, self.had_turn) = (self.last_start.max(flight.map(|flight| flight.started)), true);
        suspect.chronic |= others_delivered;
        self.insert(*conversation, suspect);
        attribution.streak = suspect.streak;
        if let Some(hint) = hint {
            let counted_already = flight.is_some_and(|flight| flight.overdue && !flight.suspect);
            self.first_failures += u32::from(before.is_none());
            self.failures += u32::from(!suspect.chronic && !counted_already);
            let alone = !others_wait && !self.flights.values().any(|flight| !flight.suspect && !flight.overdue);
            let is_down =
                self.first_failures >= DOWN_AFTER || (alone && !suspect.chronic && self.failures >= DOWN_AFTER);
            let not_the_probe = flight.is_some_and(|flight| flight.beside || flight.overdue);
            attribution.signal = match outcome {
                _ if down && not_the_probe => Signal::Unclear,
                // Only a 503 asks the whole destination to wait.
                Outcome::Down { .. } if down || is_down => Signal::Down(hint),
                _ if down || is_down => Signal::Down(RetryHint::default()),
                // The quota let it pass.
                Outcome::Unavailable { .. } => Signal::Answered,
                _ => Signal::Unclear,
            };
        }
        attribution
    }

    /// Remembers the change of the rate by a throttle that was attributed to the destination.
    pub fn record_rate_cut(&mut self, conversation: &K, before: f64, after: f64) {
        if let Some(suspect) = self.known.get_mut(conversation) {
            let first = suspect.rate_cut.map_or(before, |(first, _)| first);
            suspect.rate_cut = Some((first, after));
        }
    }

    /// Takes the rate cuts of all suspects: a throttle is known to be one conversation's own, and the cuts since the last
    /// delivery of each suspect belong to the same run. Returns the highest rate before them and the lowest after them.
    fn take_rate_cuts(&mut self) -> Option<(f64, f64)> {
        let rate_cut = self.known.values_mut().filter_map(|suspect| suspect.rate_cut.take());
        rate_cut.reduce(|(before, after), (higher, lower)| (before.max(higher), after.min(lower)))
    }

    fn insert(&mut self, conversation: K, suspect: Suspect) {
        if self.known.len() >= SUSPECTS_MAX && !self.known.contains_key(&conversation) {
            let oldest = self.known.iter().min_by_key(|(_, suspect)| suspect.last).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(conversation, suspect);
    }
}

#[cfg(test)]
mod tests;
