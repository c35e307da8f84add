//! The rate controller: a pure answer to "when may the next attempt start?".
//!
//! ```text
//!             allowance(now)                     ended(started, now, signal)
//! sender ───────────────────────▶ Pacer ◀──────────────────────────────── the result of each attempt
//!         Start(n) | Wait(t)   gate · slots · share
//!            | Probing
//! ```
//!
//! Upstream accepts a number of requests per second, with a burst, and answers the others with a throttle. Other
//! relays, agents and customers draw on the same bucket. A throttle is the only sign of them. The pacer has three
//! parts:
//!
//! * The **slots**: one attempt each `1 / rate` seconds, moved at random by up to a third of that, so that relays do
//!   not synchronise. First sends, retries and typing events all draw on them. Unused slots are kept, up to this
//!   relay's part of the burst less one. They are used one after another, each after the answer to the one before, so a
//!   burst that meets an empty bucket costs one throttle. The same holds for the first burst after a relay's first
//!   start.
//! * The **share** (`estimator.rs`): the rate that this relay may take. It rises slowly, so that a throttle is due about
//!   every 50 seconds (every two to three minutes for a relay that sends one message in ten seconds), and falls by
//!   about a tenth at each throttle. All relays do the same, and a relay that sends more is throttled more often, so
//!   the shares become equal, also if one relay started before the others.
//! * The **gate**: after a throttle or an outage no attempt starts for an exponential, jittered delay, never shorter
//!   than upstream's own hint. Then one probe starts. Its answer opens the gate, or closes it for longer: at most
//!   `probe_max`, unless upstream asks for more. An outage does not change the share, because it contains no
//!   information about the rate.
//!
//! An operator sees `send_rate` rise and fall slowly by about a tenth around this relay's share. A few throttles are
//! the cost of measuring: about one for each relay in 50 seconds, and more in the first two minutes after a start. A
//! relay that was alone gives up most of its rate within a minute when others start. Shares are equal within about a
//! fifth. With `headroom` 0.1 throttles are many times rarer, a step is a tenth, and a throttled relay leaves two more
//! slots to others, so agents and customers are hardly ever throttled. A raised quota is then found in about four
//! minutes, by one relay and by twenty; twenty take about ten more minutes to agree on all of it.
//!
//! In a fleet the share comes from `fleet/quota.rs` instead ([`Guidance`]): the pacer uses it as it is, and reports what it
//! met ([`Report`]). Slots and gate are the same, except that a relay begins without a burst at a random place in its slot,
//! and keeps that place until it is throttled. A share that is not renewed expires, and the relay learns again from there.
//!
//! [`Budget`] is the one pacer of a relay, shared by the parts that draw on it. The pacer knows no message, no
//! conversation, no clock and no socket.

mod estimator;
mod gate;
mod guidance;
mod options;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::gate::Gate;
use self::guidance::Counts;
use crate::delivery::Signal;
use crate::retry::{Backoff, RetryHint};
use crate::time::Timestamp;

pub(crate) use self::estimator::RateEstimator;
pub use self::gate::Closed;
pub use self::guidance::{Guidance, Report, Share};
pub use self::options::Options;

/// The attempts that may start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// The number of attempts that may start.
    Start(usize),
    /// No attempt before this time.
    Wait(Timestamp),
    /// No attempt before the current probe has ended, or before this time.
    Probing(Timestamp),
}

/// A learned rate, as it is stored over a restart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedRate {
    /// Requests per second.
    pub rate: f64,
    /// The time at which it was learned.
    pub at: Timestamp,
}

/// A rate older than this is not used: today's quota may differ.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// The slots that a throttled relay leaves to agents and customers, for a headroom of 1.
const YIELD: f64 = 20.0;
/// The largest random shift of an attempt, up and down, as a share of a slot.
const JITTER: f64 = 0.3;
/// The time within which slots are too close for timers: attempts of one such time may start together.
const TOGETHER: Duration = Duration::from_millis(20);
/// The longest time from the throttle of a relay's very first request to its repeat.
const FIRST_RETRY: Duration = Duration::from_millis(900);
/// The longest time between two probes, as a share of `probe_max`.
const APART_MAX: f64 = 0.95;
/// The longest delay after a slot, beside a quarter of the slot itself, at which a start still counts as held by its
/// slot.
const LAG_MAX: Duration = Duration::from_millis(250);
/// The factor on the share of a relay that was throttled, until the fleet's next decision.
const KEPT_TO_DECISION: f64 = 0.9;
/// The lowest share: one request in a quarter of an hour.
const RATE_LEAST: f64 = 0.001;
/// A sender that started nothing for longer than this was not held back by its rate.
const QUIET: Duration = Duration::from_secs(60);

/// The rate controller of one destination.
#[derive(Debug)]
pub struct Pacer {
    options: Options,
    estimator: RateEstimator,
    gate: Gate,
    /// Slots that have come and were not used.
    tokens: f64,
    /// The slots that the next attempt takes: about one, jittered.
    needed: f64,
    filled_at: Timestamp,
    /// The time of the next slot; `None` if a slot was already free at the last start.
    slot: Option<Timestamp>,
    /// The start of the last attempt; `None` before the first.
    last_start: Option<Timestamp>,
    /// Half a slot after the planned start of the last attempt. Before this time the next attempt waits for the answer
    /// to the last. It counts from the planned start, so that a sender that wakes up late does not lose a slot each
    /// time.
    apart: Timestamp,
    /// The latest start of the attempts that have ended.
    answered: Timestamp,
    /// The time of the last throttle or outage. Attempts that started before it contain no new information.
    closed_at: Timestamp,
    /// The start of the event under way that took a spare slot behind a throttle.
    event_behind_throttle: Option<Timestamp>,
    /// The fleet's decision about this relay; `Alone` without a fleet.
    guidance: Guidance,
    /// The factor on the share from a throttle until the fleet's next decision.
    cut: f64,
    /// True if a request was accepted since the last throttle.
    was_accepted: bool,
    counts: Counts,
    rng: fastrand::Rng,
}

impl Pacer {
    /// A pacer that starts at the configured quota with a burst.
    #[must_use]
    pub fn new(options: Options, now: Timestamp, seed: u64) -> Pacer {
        let estimator = RateEstimator::new(&options);
        let mut pacer = Pacer {
            options,
            estimator,
            gate: Gate::default(),
            tokens: 0.0,
            needed: 1.0,
            filled_at: now,
            slot: None,
            last_start: None,
            apart: Timestamp::default(),
            answered: Timestamp::default(),
            closed_at: Timestamp::default(),
            event_behind_throttle: None,
            guidance: Guidance::Alone,
            cut: 1.0,
            was_accepted: true,
            counts: Counts::new(now),
            rng: fastrand::Rng::with_seed(seed),
        };
        pacer.tokens = pacer.depth();
        pacer
    }

    /// A pacer that resumes with the stored rate if that is younger than an hour. It starts without a burst, and its
    /// first attempt is within two slots, jittered: the cause of this restart may have restarted all relays.
    #[must_use]
    pub fn resumed(options: Options, kept: Option<LearnedRate>, now: Timestamp, seed: u64) -> Pacer {
        let mut pacer = Pacer::new(options, now, seed);
        if let Some(kept) = kept.filter(|kept| now.since(kept.at) < KEPT_FOR && kept.rate > 0.0) {
            pacer.estimator = RateEstimator::known(kept.rate, &pacer.options);
            pacer.tokens = -pacer.rng.f64();
        }
        pacer
    }

    /// The rate to store over a restart; `None` before anything was learned.
    #[must_use]
    pub fn kept(&self, now: Timestamp) -> Option<LearnedRate> {
        let learned = self.share().map(|share| share.base).or_else(|| self.estimator.learned());
        learned.map(|rate| LearnedRate { rate, at: now })
    }

    /// Returns the attempts that may start now.
    pub fn allowance(&mut self, now: Timestamp) -> Allowance {
        self.leave_expired(now);
        if let Guidance::Hold { until } = self.guidance {
            return Allowance::Wait(until);
        }
        match self.gate {
            Gate::Closed { until, .. } if now < until => return Allowance::Wait(until),
            // A probe without an answer delays the next one by no more than this.
            Gate::Probing { since, .. } if now < since + self.options.probe_max => {
                return Allowance::Probing(since + self.options.probe_max);
            }
            Gate::Closed { why: Closed::Down, .. } | Gate::Probing { why: Closed::Down, .. } => {
                return Allowance::Start(1);
            }
            Gate::Closed { why: Closed::Throttled, .. } | Gate::Probing { why: Closed::Throttled, .. } | Gate::Open => {
            }
        }
        self.fill(now);
        let rate = self.rate();
        let soon =
            |slots: f64| Allowance::Wait(now + Duration::from_secs_f64(slots / rate).max(Duration::from_millis(1)));
        if self.tokens < self.needed {
            return soon(self.needed - self.tokens);
        }
        // Two attempts less than half a slot apart are a burst: the second waits for the answer to the first.
        if now < self.apart && rate * TOGETHER.as_secs_f64() < 1.0 && self.last_start > Some(self.answered) {
            return Allowance::Wait(self.apart);
        }
        if !self.gate.is_open() {
            return Allowance::Start(1);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 ≤ most ≤ quota_burst, a u32")]
        let most = self.tokens.min(rate * TOGETHER.as_secs_f64()).max(1.0) as usize;
        Allowance::Start(most)
    }

    /// Notes the start of an attempt.
    pub fn started(&mut self, now: Timestamp) {
        self.started_beside(now);
        self.gate.probe(now);
    }

    /// Notes the start of an attempt that draws on the budget but is not the probe of a closed gate.
    pub fn started_beside(&mut self, now: Timestamp) {
        self.fill(now);
        // Only time in which the rate held back a message counts. A start at its slot was held back.
        let slack = LAG_MAX + Duration::from_secs_f64(0.25 / self.rate());
        let held = self.gate.why() != Some(Closed::Down) && self.slot.is_some_and(|slot| now <= slot + slack);
        if let Some(last) = self.last_start
            && self.is_alone()
        {
            self.estimator.sends(now.since(last).min(QUIET), held, &self.options);
        }
        self.tokens -= 1.0;
        self.needed = 1.0 + self.jitter_of_slot() * (2.0 * self.rng.f64() - 1.0);
        let was_to = self.slot.unwrap_or(self.apart).max(self.apart);
        let late = now.since(was_to) <= LAG_MAX;
        self.apart = if late { was_to.min(now) } else { now } + Duration::from_secs_f64(0.5 / self.rate());
        self.last_start = Some(now);
        self.await_slot(now);
    }

    /// Notes the end of the attempt that started at `started`.
    pub fn ended(&mut self, started: Timestamp, now: Timestamp, signal: Signal) {
        self.fill(now);
        self.answered = self.answered.max(started);
        match signal {
            Signal::Answered => {
                self.gate.answered();
                self.was_accepted = true;
                self.counts.accepted += 1;
                if self.is_alone() {
                    self.estimator.accepted();
                }
            }
            Signal::Throttled(hint) => self.throttled(started, now, hint),
            Signal::StillThrottled(hint) => {
                self.tokens = self.tokens.min(0.0);
                if self.close(started, now, Closed::Throttled, hint) {
                    self.await_slot(self.gate.until().unwrap_or(now).max(now));
                }
            }
            Signal::Down(hint) => {
                self.close(started, now, Closed::Down, hint);
            }
            Signal::Unclear => self.gate.inconclusive(started, now),
        }
    }

    /// Takes over the fleet's decision. Without a fleet it is never called.
    pub fn guide(&mut self, guidance: Guidance, now: Timestamp) {
        self.fill(now);
        let was_alone = self.is_alone();
        if let Guidance::Alone | Guidance::Hold { .. } = guidance {
            self.leave();
        }
        self.guidance = guidance;
        self.cut = 1.0;
        if self.is_alone() {
            return;
        }
        if was_alone && self.last_start.is_none() {
            // All relays of a fleet may start at once: their first attempts are spread over one slot, without a burst.
            self.tokens = self.rng.f64();
        }
        self.tokens = self.tokens.min(self.depth());
        if self.slot.is_some() {
            self.await_slot(now);
        }
    }

    /// Notes if only the rate holds back a message now.
    pub fn held_back(&mut self, now: Timestamp, held: bool) {
        self.counts.held_back(now, held);
    }

    /// True if the fleet has to know at once: a request was throttled since the last report.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.counts.throttled > self.counts.reported
    }

    /// Returns the figures for the fleet. `held` covers the time since the last call.
    pub fn report(&mut self, now: Timestamp) -> Report {
        let held = self.counts.take_held(now);
        self.counts.reported = self.counts.throttled;
        let learned = self.kept(now).map(|kept| kept.rate);
        let Counts { accepted, throttled, retracted, .. } = self.counts;
        let rate = learned.unwrap_or_else(|| self.estimator.rate());
        Report { accepted, throttled, retracted, held, rate, learned: learned.is_some() }
    }

    /// Takes back a throttle that lowered the rate from `before` to `after` but was not caused by the rate.
    pub fn undo_rate_cut(&mut self, before: f64, after: f64) {
        self.counts.retracted += 1;
        (self.cut, self.was_accepted) = (1.0, true);
        self.estimator.undo_rate_cut(before, after, &self.options);
    }

    /// Notes the throttle of a request that took no slot of its own: a typing event.
    pub fn throttled_without_slot(&mut self, now: Timestamp, hint: RetryHint) {
        self.fill(now);
        self.event_behind_throttle = None;
        self.throttled(now, now, hint);
    }

    /// Takes a slot for an event that may be dropped, if one is to spare: half the burst is reserved for messages. After a
    /// throttle, one event at a time can have a slot that no message took as the probe: if only events come, nothing else
    /// would open the gate.
    pub fn take_spare(&mut self, now: Timestamp) -> bool {
        self.fill(now);
        let held = matches!(self.guidance, Guidance::Hold { until } if now < until);
        let is_alone = self.event_behind_throttle.is_none_or(|since| now >= since + self.options.probe_max);
        let may_start = match self.gate {
            Gate::Open => true,
            Gate::Closed { why: Closed::Throttled, until, .. } => until <= now && is_alone,
            Gate::Closed { .. } | Gate::Probing { .. } => false,
        };
        let spare = !held && may_start && self.tokens >= 1.0 + self.depth() / 2.0;
        if spare {
            self.tokens -= 1.0;
            self.event_behind_throttle = (!self.gate.is_open()).then_some(now);
        }
        spare
    }

    /// Notes the end of an event that took a spare slot at `started`, with an answer of the service that is no throttle, or
    /// without one.
    pub fn spare_ended(&mut self, started: Timestamp, answered: bool) {
        self.event_behind_throttle.take_if(|since| *since == started);
        if answered {
            self.gate.answered_beside(started);
        }
    }

    /// The learned rate, requests per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.share().map_or_else(|| self.estimator.rate(), |share| (share.rate * self.cut).max(RATE_LEAST))
    }

    /// The configured quota, requests per second.
    #[must_use]
    pub fn quota_rate(&self) -> f64 {
        self.options.quota_rate
    }

    /// A number in 0..1 from the relay's one seeded generator.
    pub fn jitter(&mut self) -> f64 {
        self.rng.f64()
    }

    /// The reason why only a probe may start; `None` while the gate is open.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.gate.why()
    }

    /// The same, except after a single throttle: that is the normal cost of measuring.
    #[must_use]
    pub fn closed_persistently(&self) -> Option<Closed> {
        self.gate.why().filter(|why| *why == Closed::Down || self.gate.times() > 1)
    }

    fn throttled(&mut self, started: Timestamp, now: Timestamp, hint: RetryHint) {
        self.counts.throttled += 1;
        if self.is_alone() && self.estimator.is_first_request() {
            // The throttle of one request contains no information about the rate. The request is repeated within a
            // second, at a random time, because other relays may have started at the same moment.
            self.close(started, now, Closed::Throttled, hint);
            self.gate.wait(now + FIRST_RETRY.mul_f64(0.5 + 0.5 * self.rng.f64()));
            self.await_slot(self.gate.until().unwrap_or(now).max(now));
            return;
        }
        // Slots are left to others once; a further throttle before anything was accepted only waits for its own slot.
        let left = if self.was_accepted { YIELD * self.options.headroom } else { 0.0 };
        self.tokens = self.tokens.min(-left);
        if !self.is_alone() {
            // Another place in the slot: this one is crowded.
            self.tokens += self.rng.f64();
        }
        if self.close(started, now, Closed::Throttled, hint) {
            self.was_accepted = false;
            if self.is_alone() {
                self.estimator.throttled(&self.options);
            } else {
                self.cut *= KEPT_TO_DECISION;
            }
            self.await_slot(self.gate.until().unwrap_or(now).max(now));
        }
    }

    /// The largest random shift of an attempt, in slots. Relays of a fleet keep their places in the slot, which they
    /// change only when they are throttled; so the fleet's attempts become evenly spread.
    fn jitter_of_slot(&self) -> f64 {
        self.share().map_or(JITTER, |share| JITTER * share.part.min(1.0))
    }

    /// The share of a fleet's rate that the relay uses, if it uses one.
    fn share(&self) -> Option<Share> {
        if let Guidance::Share(share) = self.guidance { Some(share) } else { None }
    }

    /// True while the relay uses no share of a fleet.
    fn is_alone(&self) -> bool {
        self.share().is_none()
    }

    /// Goes on alone from the last share, if there is one.
    fn leave(&mut self) {
        if let Guidance::Share(share) = std::mem::take(&mut self.guidance) {
            self.estimator = RateEstimator::left_with(share.base.max(RATE_LEAST), &self.options);
            self.cut = 1.0;
        }
    }

    /// Goes on alone if the fleet's decision has expired.
    fn leave_expired(&mut self, now: Timestamp) {
        match self.guidance {
            Guidance::Hold { until } if now >= until => self.guidance = Guidance::Alone,
            Guidance::Share(share) if now >= share.until => {
                self.fill(share.until);
                self.leave();
            }
            _ => {}
        }
    }

    /// Stores the time of the next slot; `None` if one is free already.
    fn await_slot(&mut self, from: Timestamp) {
        let slots = self.needed - self.tokens;
        self.slot = (slots > 0.0).then(|| from + Duration::from_secs_f64(slots / self.rate()));
    }

    /// Closes the gate. Returns false if the attempt started before the gate was last closed.
    fn close(&mut self, started: Timestamp, now: Timestamp, why: Closed, hint: RetryHint) -> bool {
        let asked = now + hint.at_most(self.options.hint_max);
        if started < self.closed_at {
            self.gate.wait(asked);
            return false;
        }
        self.closed_at = now;
        // Probes behind a throttle may be of conversations that are always throttled: a healthy one is not far behind.
        let max = if why == Closed::Down { self.options.probe_max } else { self.options.probe_max / 2 };
        let backoff = Backoff { max, ..self.options.backoff };
        let delay = backoff.delay(self.gate.close(why, asked), self.rng.f64());
        // The starts of two probes are less than `probe_max` apart, however slow the answers are: two of them, and the
        // other steps of a start, fit into twice `probe_max`.
        self.gate.wait((now + delay).min(started + self.options.probe_max.mul_f64(APART_MAX)));
        true
    }

    fn fill(&mut self, now: Timestamp) {
        let most = self.depth().max(self.tokens);
        self.tokens = (self.tokens + self.rate() * now.since(self.filled_at).as_secs_f64()).min(most);
        self.filled_at = self.filled_at.max(now);
    }

    /// This relay's part of upstream's burst, less one slot of slack; enough for one attempt in any case.
    fn depth(&self) -> f64 {
        let alone = || self.estimator.rate() / self.options.quota_rate;
        let part = self.share().map_or_else(alone, |share| share.part).min(1.0);
        (f64::from(self.options.quota_burst) * part - 1.0).max(1.0 + JITTER)
    }
}

/// The one budget of a relay, shared by the parts that draw on it: the sender for messages, the ingress for typing.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Mutex<Pacer>>);

impl Budget {
    /// Shares a pacer.
    #[must_use]
    pub fn new(pacer: Pacer) -> Budget {
        Budget(Arc::new(Mutex::new(pacer)))
    }

    /// Locks the pacer for a short access; the guard is never kept across an await.
    pub fn pacer(&self) -> MutexGuard<'_, Pacer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
