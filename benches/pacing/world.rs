//! Virtual time: an upstream with one token bucket, and everybody who calls it.
//!
//! One heap of events, ordered by time and then by the order in which they were made, and one seeded generator: two runs
//! of one seed are the same run. Nothing here waits, and nothing reads a clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use connect_relay::delivery::Signal;
use connect_relay::fleet::quota::Message;
use connect_relay::retry::RetryHint;
use connect_relay::time::Timestamp;

/// Milliseconds since the run began.
pub type Millis = u64;

/// A client of upstream.
pub trait Client {
    /// Its next action: it is asked at the start, when it asked to be woken, and after each answer. Being asked once more
    /// than needed changes nothing.
    fn turn(&mut self, now: Millis) -> Turn;
    /// The result of an attempt.
    fn answered(&mut self, now: Millis, attempt: Attempt, signal: Signal);
    /// Takes the next message that it publishes to its fleet.
    fn publishes(&mut self) -> Option<Message> {
        None
    }
    /// A message of another relay of its fleet.
    fn hears(&mut self, _now: Millis, _message: &Message) {}
    /// The rate that it believes in, for the plot.
    fn rate(&self) -> f64 {
        0.0
    }
}

/// An action of a client.
#[derive(Debug, Default)]
pub struct Turn {
    /// So many attempts start, each with the client's own mark.
    pub starts: Vec<u64>,
    /// Ask again then.
    pub wake: Option<Millis>,
}

/// One request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The time of its start.
    pub started: Millis,
    /// The client's own mark.
    pub mark: u64,
}

/// The properties of upstream and of the connection to it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// From when on which rate and burst, in order; the first from 0.
    pub quota: Vec<(Millis, f64, f64)>,
    /// The period in which upstream is absent.
    pub down: Vec<(Millis, Millis)>,
    /// Of a request and its answer together, and how much more or less by chance.
    pub latency: (f64, f64),
    /// The connection between the relays of a fleet.
    pub bus: Bus,
}

/// The connection between the relays of a fleet: a message arrives at all others, after a delay, or is lost.
#[derive(Clone, Debug)]
pub struct Bus {
    /// The delay of a message, and how much more or less by chance.
    pub delay: (f64, f64),
    /// The part of the messages that is lost, for each relay on its own.
    pub loss: f64,
    /// The periods in which the server is absent.
    pub away: Vec<(Millis, Millis)>,
    /// The periods in which the clients below a number and the others do not hear one another.
    pub split: Vec<(Millis, Millis, usize)>,
    /// The periods in which a client is stopped: its events wait until it continues.
    pub stopped: Vec<(Millis, Millis, usize)>,
}

impl Bus {
    /// 3 ± 2 ms, and one of a hundred messages is lost.
    pub fn plain() -> Bus {
        Bus { delay: (3.0, 2.0), loss: 0.01, away: Vec::new(), split: Vec::new(), stopped: Vec::new() }
    }

    fn connects(&self, one: usize, other: usize, now: Millis) -> bool {
        let within = |from: Millis, to: Millis| (from..to).contains(&now);
        let away = self.away.iter().any(|(from, to)| within(*from, *to));
        let split = self.split.iter().any(|(from, to, at)| within(*from, *to) && (one < *at) != (other < *at));
        !away && !split
    }

    /// The time at which a stopped client continues.
    fn stopped_until(&self, client: usize, now: Millis) -> Option<Millis> {
        self.stopped.iter().find(|(from, to, who)| *who == client && (*from..*to).contains(&now)).map(|(_, to, _)| *to)
    }
}

impl Upstream {
    /// 10 a second and a burst of 15, 30 ± 10 ms away: what `connect-relay simulate` plays.
    pub fn plain() -> Upstream {
        Upstream { quota: vec![(0, 10.0, 15.0)], down: Vec::new(), latency: (30.0, 10.0), bus: Bus::plain() }
    }

    /// Another rate and burst.
    pub fn of(rate: f64, burst: f64) -> Upstream {
        Upstream { quota: vec![(0, rate, burst)], ..Upstream::plain() }
    }

    /// The rate and the burst at a moment.
    pub fn quota_at(&self, at: Millis) -> (f64, f64) {
        self.quota.iter().rev().find(|(from, ..)| *from <= at).map_or((0.0, 0.0), |(_, rate, burst)| (*rate, *burst))
    }

    /// The requests that the quota allows between two times in the long run.
    pub fn allows(&self, from: Millis, to: Millis) -> f64 {
        (from..to).step_by(100).map(|at| self.quota_at(at).0 * 0.1).sum()
    }
}

/// The result of a request, as upstream saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Accepted.
    Accepted,
    /// Over the quota.
    Throttled,
    /// Upstream was absent.
    Down,
}

/// One line of the record of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// The time of its arrival.
    pub at: Millis,
    /// Whose it was.
    pub client: usize,
    /// Its mark.
    pub mark: u64,
    /// Its result.
    pub fate: Fate,
}

/// A whole run.
#[derive(Debug, Default, PartialEq)]
pub struct Record {
    /// Every request, in the order of arrival.
    pub lines: Vec<Line>,
    /// Every second, the sum of the rates believed in.
    pub believed: Vec<f64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    Arrive { client: usize, started: Millis, mark: u64 },
    Answer { client: usize, started: Millis, mark: u64, fate: u8 },
    Publish { client: usize, message: usize },
    Hear { client: usize, message: usize },
}

/// Runs everybody until a moment.
pub fn run(upstream: &Upstream, clients: &mut [Box<dyn Client>], until: Millis, seed: u64) -> Record {
    let mut world = World {
        upstream,
        tokens: upstream.quota_at(0).1,
        filled_at: 0,
        dice: fastrand::Rng::with_seed(seed ^ 0x5eed),
        bus_dice: fastrand::Rng::with_seed(seed ^ 0xb05),
        messages: Vec::new(),
        events: BinaryHeap::new(),
        sequence: 0,
        wakes: vec![None; clients.len()],
    };
    let mut record = Record::default();
    for client in 0..clients.len() {
        world.push(0, Event::Wake(client));
    }
    while let Some(Reverse((now, _, event))) = world.events.pop() {
        if now >= until {
            break;
        }
        while record.believed.len() as u64 <= now / 1000 {
            record.believed.push(clients.iter().map(|client| client.rate()).sum());
        }
        if let Event::Wake(client) | Event::Answer { client, .. } | Event::Hear { client, .. } = event
            && let Some(until) = upstream.bus.stopped_until(client, now)
        {
            world.push(until, event);
            continue;
        }
        let client = match event {
            Event::Publish { client, message } => {
                for other in (0..clients.len()).filter(|other| *other != client) {
                    if !upstream.bus.connects(client, other, now) || world.bus_dice.f64() < upstream.bus.loss {
                        continue;
                    }
                    if let Some(until) = upstream.bus.stopped_until(other, now) {
                        world.push(until, Event::Hear { client: other, message });
                    } else {
                        clients[other].hears(now, &world.messages[message]);
                    }
                }
                continue;
            }
            Event::Hear { client, message } => {
                clients[client].hears(now, &world.messages[message]);
                client
            }
            Event::Wake(client) => {
                if world.wakes[client].is_some_and(|wake| wake <= now) {
                    world.wakes[client] = None;
                }
                client
            }
            Event::Arrive { client, started, mark } => {
                let fate = world.meet(now);
                record.lines.push(Line { at: now, client, mark, fate });
                let back = now + world.way();
                world.push(back, Event::Answer { client, started, mark, fate: fate as u8 });
                continue;
            }
            Event::Answer { client, started, mark, fate } => {
                let signal = match fate {
                    0 => Signal::Answered,
                    1 => Signal::Throttled(RetryHint::default()),
                    _ => Signal::Down(RetryHint::default()),
                };
                clients[client].answered(now, Attempt { started, mark }, signal);
                client
            }
        };
        let turn = clients[client].turn(now);
        for mark in turn.starts {
            let arrival = now + world.way();
            world.push(arrival, Event::Arrive { client, started: now, mark });
        }
        while let Some(message) = clients[client].publishes() {
            let (delay, jitter) = upstream.bus.delay;
            let arrival = now + (delay + jitter * (2.0 * world.bus_dice.f64() - 1.0)).round() as Millis;
            world.messages.push(message);
            world.push(arrival, Event::Publish { client, message: world.messages.len() - 1 });
        }
        if let Some(wake) = turn.wake {
            let wake = wake.max(now + 1);
            if world.wakes[client].is_none_or(|set| set > wake || set <= now) {
                world.wakes[client] = Some(wake);
                world.push(wake, Event::Wake(client));
            }
        }
    }
    record
}

struct World<'a> {
    upstream: &'a Upstream,
    tokens: f64,
    filled_at: Millis,
    dice: fastrand::Rng,
    bus_dice: fastrand::Rng,
    messages: Vec<Message>,
    events: BinaryHeap<Reverse<(Millis, u64, Event)>>,
    sequence: u64,
    wakes: Vec<Option<Millis>>,
}

impl World<'_> {
    fn push(&mut self, at: Millis, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    /// Half of a way there and back.
    fn way(&mut self) -> Millis {
        let (latency, jitter) = self.upstream.latency;
        ((latency + jitter * (2.0 * self.dice.f64() - 1.0)) / 2.0).round() as Millis
    }

    fn meet(&mut self, now: Millis) -> Fate {
        let (rate, burst) = self.upstream.quota_at(now);
        self.tokens = (self.tokens + rate * (now - self.filled_at) as f64 / 1000.0).min(burst);
        self.filled_at = now;
        if self.upstream.down.iter().any(|(from, to)| (*from..*to).contains(&now)) {
            return Fate::Down;
        }
        if self.tokens < 1.0 {
            return Fate::Throttled;
        }
        self.tokens -= 1.0;
        Fate::Accepted
    }
}

/// The relay's time for a moment of the run.
pub fn timestamp(at: Millis) -> Timestamp {
    Timestamp(1_000_000 + at)
}

/// The moment of the run for the relay's time.
pub fn moment(at: Timestamp) -> Millis {
    at.0.saturating_sub(1_000_000)
}
