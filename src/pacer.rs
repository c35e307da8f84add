//! The rate controller: a pure answer to "when may the next attempt start?".
//!
//! ```text
//!             allowance(now)                     ended(now, signal)
//! sender ───────────────────────▶ Pacer ◀─────────────────────────── what each attempt came to
//!            Start(n) | Wait(t)
//! ```
//!
//! * A **token bucket** of `burst` tokens fills at the current rate. Every attempt takes one: first sends, retries and
//!   typing events draw on the same budget.
//! * A **throttle** empties the bucket, cuts the rate to 7/10 (once per closing, however many attempts in flight come
//!   back throttled) and closes the gate for an exponential, jittered delay, never shorter than upstream's own hint.
//! * While the **gate** is closed nothing starts. After the delay one probe goes ahead; its answer opens the gate or
//!   closes it again for longer, at most `probe_max` unless upstream asks for more.
//! * Every **answer** raises the rate a little: to the configured quota within some 20 s of sending, beyond it ten
//!   times slower, and never above `rate_max` where that is set.
//! * A destination that is **down** closes the gate in the same way and leaves the rate alone: it said nothing of it.
//!
//! [`Budget`] is the one pacer of a relay, shared by those who draw on it. The pacer knows no message, no
//! conversation, no clock and no socket.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::delivery::Signal;
use crate::retry::Backoff;
use crate::time::Timestamp;

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
    /// None before the probe under way has come back.
    Probing,
}

/// Why the gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Over the quota.
    Throttled,
    /// The destination is not there.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Gate {
    Open,
    Closed { why: Closed, until: Timestamp },
    Probing { why: Closed },
}

/// Share of the rate that is kept at a throttle.
const DECREASE: f64 = 0.7;
/// Share of the configured quota that one second of answers at full rate adds, below it.
const RECOVERY_PER_SECOND: f64 = 0.02;
/// How much slower the rate grows beyond the configured quota.
const BEYOND: f64 = 0.1;

/// The rate controller of one destination.
#[derive(Debug)]
pub struct Pacer {
    options: Options,
    rate: f64,
    tokens: f64,
    filled_at: Timestamp,
    gate: Gate,
    failures: u32,
    jitter: fastrand::Rng,
}

impl Pacer {
    /// A pacer that starts at the configured quota with a full bucket.
    #[must_use]
    pub fn new(options: Options, now: Timestamp, seed: u64) -> Pacer {
        let tokens = f64::from(options.quota_burst.max(1));
        let mut pacer = Pacer {
            options,
            rate: 0.0,
            tokens,
            filled_at: now,
            gate: Gate::Open,
            failures: 0,
            jitter: fastrand::Rng::with_seed(seed),
        };
        pacer.rate = pacer.bounded(options.quota_rate);
        pacer
    }

    /// What may start now.
    pub fn allowance(&mut self, now: Timestamp) -> Allowance {
        match self.gate {
            Gate::Closed { until, .. } if now < until => Allowance::Wait(until),
            Gate::Closed { .. } => Allowance::Start(1),
            Gate::Probing { .. } => Allowance::Probing,
            Gate::Open => {
                self.fill(now);
                if self.tokens >= 1.0 {
                    // The bucket holds at most `quota_burst`, a u32.
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "0 ≤ tokens ≤ u32::MAX"
                    )]
                    return Allowance::Start(self.tokens as usize);
                }
                Allowance::Wait(
                    now + Duration::from_secs_f64((1.0 - self.tokens) / self.rate).max(Duration::from_millis(1)),
                )
            }
        }
    }

    /// One attempt starts.
    pub fn started(&mut self, now: Timestamp) {
        self.fill(now);
        self.tokens = (self.tokens - 1.0).max(0.0);
        if let Gate::Closed { why, .. } = self.gate {
            self.gate = Gate::Probing { why };
        }
    }

    /// One attempt has come back.
    pub fn ended(&mut self, now: Timestamp, signal: Signal) {
        self.fill(now);
        match signal {
            Signal::Answered => {
                // Those that were under way when the gate closed do not open it: the probe does.
                if !matches!(self.gate, Gate::Closed { .. }) {
                    self.failures = 0;
                    self.gate = Gate::Open;
                }
                let step = RECOVERY_PER_SECOND * self.options.quota_rate / self.rate.max(0.001);
                let step = if self.rate < self.options.quota_rate { step } else { step * BEYOND };
                self.rate = self.bounded(self.rate + step);
            }
            Signal::Throttled(hint) => {
                self.tokens = 0.0;
                if self.close(now, Closed::Throttled, hint.at_most(self.options.hint_max)) {
                    self.rate = self.bounded(self.rate * DECREASE);
                }
            }
            Signal::Down(hint) => {
                self.close(now, Closed::Down, hint.at_most(self.options.hint_max));
            }
        }
    }

    /// Takes a token for something that may be dropped, if one is to spare: half the bucket stays for messages.
    pub fn take_spare(&mut self, now: Timestamp) -> bool {
        self.fill(now);
        let spare = self.gate == Gate::Open && self.tokens >= 1.0 + f64::from(self.options.quota_burst) / 2.0;
        if spare {
            self.tokens -= 1.0;
        }
        spare
    }

    /// The learned rate, requests per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The configured quota, requests per second.
    #[must_use]
    pub fn quota_rate(&self) -> f64 {
        self.options.quota_rate
    }

    /// A number in 0..1 from the relay's one seeded generator.
    pub fn jitter(&mut self) -> f64 {
        self.jitter.f64()
    }

    /// Why nothing starts but a probe; none while the gate is open.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        match self.gate {
            Gate::Open => None,
            Gate::Closed { why, .. } | Gate::Probing { why } => Some(why),
        }
    }

    /// Closes the gate; false where it was closed already and this is a straggler of the same closing.
    fn close(&mut self, now: Timestamp, why: Closed, at_least: Duration) -> bool {
        let straggler = matches!(self.gate, Gate::Closed { .. });
        if !straggler {
            self.failures += 1;
        }
        let backoff = Backoff { max: self.options.probe_max, ..self.options.backoff };
        let wait = backoff.delay(self.failures, self.jitter.f64()).min(self.options.probe_max).max(at_least);
        let until = match self.gate {
            Gate::Closed { until, .. } => until.max(now + at_least),
            _ => now + wait,
        };
        self.gate = Gate::Closed { why, until };
        !straggler
    }

    fn fill(&mut self, now: Timestamp) {
        let most = f64::from(self.options.quota_burst.max(1));
        self.tokens = (self.tokens + self.rate * now.since(self.filled_at).as_secs_f64()).min(most);
        self.filled_at = self.filled_at.max(now);
    }

    fn bounded(&self, rate: f64) -> f64 {
        let ceiling = if self.options.rate_max > 0.0 { self.options.rate_max } else { f64::MAX };
        rate.clamp(self.options.rate_min.min(ceiling), ceiling)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Hint;

    const START: Timestamp = Timestamp(1_000_000);

    fn after(millis: u64) -> Timestamp {
        Timestamp(START.0 + millis)
    }

    fn pacer() -> Pacer {
        Pacer::new(Options::default(), START, 7)
    }

    fn drain(pacer: &mut Pacer, now: Timestamp) -> usize {
        let mut started = 0;
        while let Allowance::Start(_) = pacer.allowance(now) {
            pacer.started(now);
            started += 1;
        }
        started
    }

    #[test]
    fn burst_then_the_rate() {
        let mut pacer = pacer();
        assert_eq!(drain(&mut pacer, START), 15);
        assert_eq!(pacer.allowance(START), Allowance::Wait(after(100)));
        assert_eq!(drain(&mut pacer, after(1000)), 10);
    }

    #[test]
    fn throttle_slows_everyone_and_lets_one_probe_go_ahead() {
        let mut pacer = pacer();
        drain(&mut pacer, START);
        for _ in 0..5 {
            pacer.ended(START, Signal::Throttled(Hint::default()));
        }
        assert!((pacer.rate() - 7.0).abs() < 1e-9, "five stragglers of one closing cut the rate once");
        assert_eq!(pacer.closed(), Some(Closed::Throttled));
        let Allowance::Wait(until) = pacer.allowance(START) else { panic!("the gate is closed") };
        assert!(until >= after(100) && until <= after(300));
        assert_eq!(pacer.allowance(until), Allowance::Start(1));
        pacer.started(until);
        assert_eq!(pacer.allowance(until), Allowance::Probing);
        pacer.ended(until, Signal::Answered);
        assert_eq!(pacer.closed(), None);
    }

    #[test]
    fn probes_that_fail_wait_longer_up_to_the_bound() {
        let mut pacer = pacer();
        let mut now = START;
        for _ in 0..20 {
            pacer.ended(now, Signal::Down(Hint::default()));
            let Allowance::Wait(until) = pacer.allowance(now) else { panic!("the gate is closed") };
            assert!(until.since(now) <= Options::default().probe_max);
            now = until;
            pacer.started(now);
        }
        assert!((pacer.rate() - 10.0).abs() < 1e-9, "an outage says nothing of the quota");
    }

    #[test]
    fn hint_is_obeyed_within_its_bound() {
        let mut pacer = pacer();
        pacer.ended(START, Signal::Throttled(Hint(Some(Duration::from_secs(600)))));
        assert_eq!(pacer.allowance(START), Allowance::Wait(after(60_000)));
    }

    #[test]
    fn rate_recovers_to_the_quota_and_keeps_within_its_bounds() {
        let mut pacer = Pacer::new(Options { rate_max: 12.0, ..Options::default() }, START, 7);
        for round in 0..50 {
            pacer.ended(after(round), Signal::Throttled(Hint::default()));
            pacer.started(after(round));
        }
        assert!(pacer.rate() >= 0.2);
        for _ in 0..10_000 {
            pacer.ended(after(60_000), Signal::Answered);
        }
        assert!((pacer.rate() - 12.0).abs() < 1e-9);
    }

    #[test]
    fn typing_takes_only_what_is_to_spare() {
        let mut pacer = pacer();
        assert_eq!((0..100).filter(|_| pacer.take_spare(START)).count(), 7);
        pacer.ended(START, Signal::Throttled(Hint::default()));
        assert!(!pacer.take_spare(after(50)));
    }
}
