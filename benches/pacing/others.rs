//! Other clients of upstream: those that relays are compared with, and those that share the quota with them.
//!
//! Written from the published constants of the AWS SDKs: in standard mode a random part of 2ⁿ seconds, at most 20,
//! after the n-th failure; in adaptive mode CUBIC on a token bucket of the client's own (scale 0.4, beta 0.7, smoothing 0.8, at most
//! twice the measured rate, at least 0.5/s, off until the first throttle).

use connect_relay::delivery::Signal;

use crate::world::{Attempt, Client, Millis, Turn};

/// The longest wait of standard mode, seconds.
const BACKOFF_MAX: f64 = 20.0;

fn full_jitter(dice: &mut fastrand::Rng, failures: u64) -> Millis {
    let most = 2f64.powi(failures.min(10) as i32).min(BACKOFF_MAX);
    (dice.f64() * most * 1000.0) as Millis
}

/// People who type, by chance, through an SDK with some tries and no queue; or bots that do.
#[derive(Debug)]
pub struct People {
    rate: f64,
    tries: u64,
    dice: fastrand::Rng,
    next: Millis,
    again: Vec<(Millis, u64)>,
}

impl People {
    /// So many messages a second, each with so many tries: an attempt's mark is its number, 1 the first.
    pub fn new(rate: f64, tries: u64, seed: u64) -> People {
        let mut people = People { rate, tries, dice: fastrand::Rng::with_seed(seed), next: 0, again: Vec::new() };
        people.next = people.pause();
        people
    }

    fn pause(&mut self) -> Millis {
        (-(1.0 - self.dice.f64()).ln() / self.rate * 1000.0) as Millis
    }
}

impl Client for People {
    fn turn(&mut self, now: Millis) -> Turn {
        let mut turn = Turn::default();
        while self.next <= now {
            turn.starts.push(1);
            self.next += self.pause();
        }
        let (due, later) = self.again.iter().partition(|(at, _)| *at <= now);
        self.again = later;
        turn.starts.extend(due.into_iter().map(|(_, tries): (Millis, u64)| tries));
        turn.wake = self.again.iter().map(|(at, _)| *at).chain([self.next]).min();
        turn
    }

    fn answered(&mut self, now: Millis, attempt: Attempt, signal: Signal) {
        if signal != Signal::Answered && attempt.mark < self.tries {
            self.again.push((now + full_jitter(&mut self.dice, attempt.mark - 1), attempt.mark + 1));
        }
    }
}

/// So many senders, each with one message after another, that back off and never give up.
#[derive(Debug)]
pub struct Backoff {
    senders: Vec<(Millis, u64)>,
    dice: fastrand::Rng,
}

impl Backoff {
    /// So many senders.
    pub fn new(senders: usize, seed: u64) -> Backoff {
        Backoff { senders: vec![(0, 0); senders], dice: fastrand::Rng::with_seed(seed) }
    }
}

impl Client for Backoff {
    fn turn(&mut self, now: Millis) -> Turn {
        let mut turn = Turn::default();
        for (mark, (next, _)) in (0..).zip(&mut self.senders) {
            if *next <= now {
                turn.starts.push(mark);
                *next = Millis::MAX;
            }
        }
        turn.wake = self.senders.iter().map(|(next, _)| *next).min().filter(|next| *next < Millis::MAX);
        turn
    }

    fn answered(&mut self, now: Millis, attempt: Attempt, signal: Signal) {
        let (next, failures) = &mut self.senders[attempt.mark as usize];
        if signal == Signal::Answered {
            (*next, *failures) = (now, 0);
        } else {
            *next = now + full_jitter(&mut self.dice, *failures);
            *failures += 1;
        }
    }
}

/// The same senders behind adaptive mode.
#[derive(Debug)]
pub struct Adaptive {
    senders: Backoff,
    ready: Vec<u64>,
    on: bool,
    fill_rate: f64,
    capacity: f64,
    tokens: f64,
    filled_at: f64,
    /// Requests per second as measured, in half seconds.
    measured: f64,
    half_second: f64,
    requests: f64,
    max_rate: f64,
    throttled_at: f64,
    window: f64,
}

const SMOOTH: f64 = 0.8;
const BETA: f64 = 0.7;
const SCALE: f64 = 0.4;
const MIN_FILL_RATE: f64 = 0.5;

impl Adaptive {
    /// So many senders.
    pub fn new(senders: usize, seed: u64) -> Adaptive {
        Adaptive {
            senders: Backoff::new(senders, seed),
            ready: Vec::new(),
            on: false,
            fill_rate: 0.0,
            capacity: 0.0,
            tokens: 0.0,
            filled_at: 0.0,
            measured: 0.0,
            half_second: 0.0,
            requests: 0.0,
            max_rate: 0.0,
            throttled_at: 0.0,
            window: 0.0,
        }
    }

    fn refill(&mut self, now: f64) {
        self.tokens = (self.tokens + (now - self.filled_at) * self.fill_rate).min(self.capacity);
        self.filled_at = now;
    }

    fn measure(&mut self, now: f64) {
        let half_second = (now * 2.0).floor() / 2.0;
        self.requests += 1.0;
        if half_second > self.half_second {
            let rate = self.requests / (half_second - self.half_second);
            self.measured = rate * SMOOTH + self.measured * (1.0 - SMOOTH);
            (self.requests, self.half_second) = (0.0, half_second);
        }
    }
}

impl Client for Adaptive {
    fn turn(&mut self, now: Millis) -> Turn {
        let mut turn = self.senders.turn(now);
        self.ready.append(&mut turn.starts);
        if !self.on {
            turn.starts = std::mem::take(&mut self.ready);
            return turn;
        }
        self.refill(now as f64 / 1000.0);
        let starts = self.ready.len().min(self.tokens.max(0.0) as usize);
        self.tokens -= starts as f64;
        turn.starts = self.ready.drain(..starts).collect();
        if !self.ready.is_empty() {
            let wake = now + ((1.0 - self.tokens) / self.fill_rate * 1000.0).ceil() as Millis;
            turn.wake = Some(turn.wake.map_or(wake, |other| other.min(wake)));
        }
        turn
    }

    fn answered(&mut self, now: Millis, attempt: Attempt, signal: Signal) {
        self.senders.answered(now, attempt, signal);
        let now = now as f64 / 1000.0;
        self.measure(now);
        let cubic = if matches!(signal, Signal::Throttled(_)) {
            self.max_rate = if self.on { self.measured.min(self.fill_rate) } else { self.measured };
            self.window = (self.max_rate * (1.0 - BETA) / SCALE).cbrt();
            self.throttled_at = now;
            self.on = true;
            self.max_rate * BETA
        } else {
            SCALE * (now - self.throttled_at - self.window).powi(3) + self.max_rate
        };
        if self.on {
            self.refill(now);
            self.fill_rate = cubic.min(2.0 * self.measured).max(MIN_FILL_RATE);
            self.capacity = self.fill_rate.max(1.0);
            self.tokens = self.tokens.min(self.capacity);
        }
    }

    fn rate(&self) -> f64 {
        self.fill_rate
    }
}
