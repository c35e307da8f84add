//! The rate controller: a pure answer to "when may the next attempt start?".
//!
//! ```text
//!             allowance(now)                     ended(started, now, signal)
//! sender ───────────────────────▶ Pacer ◀───────────────────────────────────── what each attempt came to
//!         Start(n) | Wait(t)   gate · slots · share
//!            | Probing
//! ```
//!
//! Upstream takes so many requests per second, with a burst, and answers the rest with a throttle. Other relays, agents
//! and customers draw on the same bucket, and nothing but a throttle ever tells of them. Three parts, each simple:
//!
//! * The **slots**: one attempt each `1 / rate` seconds, moved by chance up to a third of that, so that relays do not fall
//!   into step. First sends, retries and typing events draw on them alike. What is not used is kept, up to this relay's
//!   part of the burst less one; it goes out one after another, each after the answer before it, so a burst that meets
//!   an empty bucket costs one throttle. So does the first burst of a relay's life.
//! * The **share** (`share.rs`): what rate this relay may take. It creeps up so that a throttle is due about every
//!   50 seconds (two to three minutes for one that sends a message in ten seconds), and gives up some tenth at each. Since
//!   everybody does, and a throttle hits who sends more, the shares grow equal: also where one was there before the others.
//! * The **gate**: after a throttle or an outage nothing starts for an exponential delay moved by chance, never shorter
//!   than upstream's own hint; then one probe goes ahead, and its answer opens the gate or closes it for longer, at most
//!   `probe_max` unless upstream asks for more. An outage leaves the share alone: it says nothing of it.
//!
//! What an operator sees: `send_rate` rises and falls slowly by a tenth or so around this relay's share. A few throttles
//! are the price of knowing: about one for each relay and 50 seconds, more in the first two minutes after a start. A relay
//! that was alone gives most of its rate away within a minute when others start; shares are equal within a fifth or so.
//! With `headroom` 0.1 throttles are many times rarer, a step is a tenth and a throttled relay leaves two slots more to
//! others, so agents and customers hardly ever meet one; a raised quota is then found in some four minutes, by one relay
//! and by twenty, though twenty take some ten more to agree on all of it.
//!
//! [`Budget`] is the one pacer of a relay, shared by those who draw on it. The pacer knows no message, no
//! conversation, no clock and no socket.

mod gate;
mod share;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::gate::Gate;
use self::share::Share;
use crate::delivery::Signal;
use crate::retry::{Backoff, Hint};
use crate::time::Timestamp;

pub use self::gate::Closed;

/// What bounds and starts the learning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Requests per second that AWS granted the instance: where learning starts.
    pub quota_rate: f64,
    /// The bucket's size.
    pub quota_burst: u32,
    /// Never faster; 0 for no ceiling but what is learned.
    pub rate_max: f64,
    /// Never slower while there is something to send.
    pub rate_min: f64,
    /// Share of what is learned that is left to others.
    pub headroom: f64,
    /// How long the gate stays closed after a throttle or an outage, by how many there were in a row.
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

/// What may start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// So many attempts.
    Start(usize),
    /// None before this.
    Wait(Timestamp),
    /// None before the probe under way has come back, or before this.
    Probing(Timestamp),
}

/// A learned rate, as it is kept over a restart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Requests per second.
    pub rate: f64,
    /// When it was learned.
    pub at: Timestamp,
}

/// A rate older than this says nothing of today's quota.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// Slots that a throttled relay leaves to agents and customers, for each part of the quota that is headroom.
const YIELD: f64 = 20.0;
/// Share of a slot that chance moves an attempt, up and down.
const JITTER: f64 = 0.3;
/// What may start at once where the slots are closer than timers can tell apart.
const TOGETHER: Duration = Duration::from_millis(20);
/// The time from the throttle of the first request of all to its repeat, at most.
const FIRST_RETRY: Duration = Duration::from_millis(900);
/// The longest time between two probes, as a share of `probe_max`.
const APART_MAX: f64 = 0.95;
/// By how much a sender may be late for its slot, beside a quarter of the slot itself, and still be held by it.
const LAG_MAX: Duration = Duration::from_millis(250);
/// A sender that has been quiet for longer than this was not held by its rate.
const QUIET: Duration = Duration::from_secs(60);

/// The rate controller of one destination.
#[derive(Debug)]
pub struct Pacer {
    options: Options,
    share: Share,
    gate: Gate,
    /// Slots that have come and were not used.
    tokens: f64,
    /// How many of them the next attempt takes: one, moved by chance.
    needed: f64,
    filled_at: Timestamp,
    /// When the next attempt can start; none where it could have when the last one did.
    slot: Option<Timestamp>,
    /// When the last attempt started; none before the first.
    last_start: Option<Timestamp>,
    /// Half a slot after the last attempt was to start: before that the next one waits for its answer. A sender that wakes
    /// up late starts late what it was told to, and must not lose a slot each time.
    apart: Timestamp,
    /// The latest start whose attempt has come back.
    answered: Timestamp,
    /// Attempts that started before this knew nothing of the last throttle or outage: they tell nothing new.
    closed_at: Timestamp,
    dice: fastrand::Rng,
}

impl Pacer {
    /// A pacer that starts at the configured quota with a burst.
    #[must_use]
    pub fn new(options: Options, now: Timestamp, seed: u64) -> Pacer {
        let share = Share::new(&options);
        let mut pacer = Pacer {
            options,
            share,
            gate: Gate::default(),
            tokens: 0.0,
            needed: 1.0,
            filled_at: now,
            slot: None,
            last_start: None,
            apart: Timestamp::default(),
            answered: Timestamp::default(),
            closed_at: Timestamp::default(),
            dice: fastrand::Rng::with_seed(seed),
        };
        pacer.tokens = pacer.depth();
        pacer
    }

    /// A pacer that goes on from the rate that was kept, if that is younger than an hour: without a burst, its first
    /// attempt within two slots, moved by chance, since whatever restarted this relay may have restarted all.
    #[must_use]
    pub fn resumed(options: Options, kept: Option<Kept>, now: Timestamp, seed: u64) -> Pacer {
        let mut pacer = Pacer::new(options, now, seed);
        if let Some(kept) = kept.filter(|kept| now.since(kept.at) < KEPT_FOR && kept.rate > 0.0) {
            pacer.share = Share::known(kept.rate, &pacer.options);
            pacer.tokens = -pacer.dice.f64();
        }
        pacer
    }

    /// What is to be kept over a restart; none before anything was learned.
    #[must_use]
    pub fn kept(&self, now: Timestamp) -> Option<Kept> {
        self.share.learned().map(|rate| Kept { rate, at: now })
    }

    /// What may start now.
    pub fn allowance(&mut self, now: Timestamp) -> Allowance {
        match self.gate {
            Gate::Closed { until, .. } if now < until => return Allowance::Wait(until),
            // A probe without an answer does not hold back the next one for longer than this.
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
        let rate = self.share.rate();
        let soon =
            |slots: f64| Allowance::Wait(now + Duration::from_secs_f64(slots / rate).max(Duration::from_millis(1)));
        if self.tokens < self.needed {
            return soon(self.needed - self.tokens);
        }
        // Two closer than half a slot are a burst: one after another.
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

    /// One attempt starts.
    pub fn started(&mut self, now: Timestamp) {
        self.started_beside(now);
        self.gate.probe(now);
    }

    /// One attempt starts that draws on the budget but is not the probe of a closed gate.
    pub fn started_beside(&mut self, now: Timestamp) {
        self.fill(now);
        // Only time in which the rate held something back says anything of it: what starts when its slot comes was held.
        let slack = LAG_MAX + Duration::from_secs_f64(0.25 / self.share.rate());
        let held = self.gate.why() != Some(Closed::Down) && self.slot.is_some_and(|slot| now <= slot + slack);
        if let Some(last) = self.last_start {
            self.share.sends(now.since(last).min(QUIET), held, &self.options);
        }
        self.tokens -= 1.0;
        self.needed = 1.0 + JITTER * (2.0 * self.dice.f64() - 1.0);
        let was_to = self.slot.unwrap_or(self.apart).max(self.apart);
        let late = now.since(was_to) <= LAG_MAX;
        self.apart = if late { was_to.min(now) } else { now } + Duration::from_secs_f64(0.5 / self.share.rate());
        self.last_start = Some(now);
        self.await_slot(now);
    }

    /// The attempt that started at `started` has come back.
    pub fn ended(&mut self, started: Timestamp, now: Timestamp, signal: Signal) {
        self.fill(now);
        self.answered = self.answered.max(started);
        match signal {
            Signal::Answered => {
                self.gate.answered();
                self.share.accepted();
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

    /// A throttle that lowered the rate from `before` to `after` turned out to be no fault of the rate: it is taken back.
    pub fn acquit(&mut self, before: f64, after: f64) {
        self.share.acquit(before, after, &self.options);
    }

    /// Something that took no slot for itself was throttled: a typing event.
    pub fn overheard(&mut self, now: Timestamp, hint: Hint) {
        self.fill(now);
        self.throttled(now, now, hint);
    }

    /// Takes a token for something that may be dropped, if one is to spare: half the burst stays for messages.
    pub fn take_spare(&mut self, now: Timestamp) -> bool {
        self.fill(now);
        let spare = self.gate.is_open() && self.tokens >= 1.0 + self.depth() / 2.0;
        if spare {
            self.tokens -= 1.0;
        }
        spare
    }

    /// The learned rate, requests per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.share.rate()
    }

    /// The configured quota, requests per second.
    #[must_use]
    pub fn quota_rate(&self) -> f64 {
        self.options.quota_rate
    }

    /// A number in 0..1 from the relay's one seeded generator.
    pub fn jitter(&mut self) -> f64 {
        self.dice.f64()
    }

    /// Why nothing starts but a probe; none while the gate is open.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.gate.why()
    }

    /// The same, but for a single throttle: that is the price of knowing, and no news.
    #[must_use]
    pub fn held_up(&self) -> Option<Closed> {
        self.gate.why().filter(|why| *why == Closed::Down || self.gate.times() > 1)
    }

    fn throttled(&mut self, started: Timestamp, now: Timestamp, hint: Hint) {
        if self.share.is_first_request() {
            // One request says nothing of the rate: it is tried once more within a second, by chance early or late in it,
            // because others may have started at the same time.
            self.close(started, now, Closed::Throttled, hint);
            self.gate.wait(now + FIRST_RETRY.mul_f64(0.5 + 0.5 * self.dice.f64()));
            self.await_slot(self.gate.until().unwrap_or(now).max(now));
            return;
        }
        // Slots are left to others once; a further throttle before anything was accepted only waits for its own slot.
        let left = if self.share.was_accepted() { YIELD * self.options.headroom } else { 0.0 };
        self.tokens = self.tokens.min(-left);
        if self.close(started, now, Closed::Throttled, hint) {
            self.share.throttled(&self.options);
            self.await_slot(self.gate.until().unwrap_or(now).max(now));
        }
    }

    /// Notes when the next slot comes; none where one has come already.
    fn await_slot(&mut self, from: Timestamp) {
        let slots = self.needed - self.tokens;
        self.slot = (slots > 0.0).then(|| from + Duration::from_secs_f64(slots / self.share.rate()));
    }

    /// Closes the gate; false where this attempt started before it was closed the last time.
    fn close(&mut self, started: Timestamp, now: Timestamp, why: Closed, hint: Hint) -> bool {
        let asked = now + hint.at_most(self.options.hint_max);
        if started < self.closed_at {
            self.gate.wait(asked);
            return false;
        }
        self.closed_at = now;
        // Probes behind a throttle may be of conversations that are always throttled: a healthy one is not far behind.
        let max = if why == Closed::Down { self.options.probe_max } else { self.options.probe_max / 2 };
        let backoff = Backoff { max, ..self.options.backoff };
        let delay = backoff.delay(self.gate.close(why, asked), self.dice.f64());
        // From start to start probes are less than probe_max apart, however slowly they are answered: two of them, with what
        // else a start needs, fit into twice that.
        self.gate.wait((now + delay).min(started + self.options.probe_max.mul_f64(APART_MAX)));
        true
    }

    fn fill(&mut self, now: Timestamp) {
        let most = self.depth().max(self.tokens);
        self.tokens = (self.tokens + self.share.rate() * now.since(self.filled_at).as_secs_f64()).min(most);
        self.filled_at = self.filled_at.max(now);
    }

    /// This relay's part of upstream's burst, and a token of slack left in it; enough for one attempt in any case.
    fn depth(&self) -> f64 {
        let part = (self.share.rate() / self.options.quota_rate).min(1.0);
        (f64::from(self.options.quota_burst) * part - 1.0).max(1.0 + JITTER)
    }
}

/// The one budget of a relay, shared by those who draw on it: the sender for messages, the ingress for typing.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Mutex<Pacer>>);

impl Budget {
    /// Shares a pacer.
    #[must_use]
    pub fn new(pacer: Pacer) -> Budget {
        Budget(Arc::new(Mutex::new(pacer)))
    }

    /// The pacer, for one short look or act; never kept across an await.
    pub fn pacer(&self) -> MutexGuard<'_, Pacer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
