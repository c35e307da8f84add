//! A relay in virtual time: the pacer and the turns of the real one, over messages that are numbers.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use connect_relay::delivery::Signal;
use connect_relay::fairness::{Class, RoundRobin};
use connect_relay::fleet::quota::{LOOK, Member, Message};
use connect_relay::pacer::{Allowance, Options, Pacer};

use crate::world::{Attempt, Client, Millis, Turn, moment, timestamp};

/// `sender.in_flight_max`.
const IN_FLIGHT_MAX: usize = 32;

/// The messages to send.
pub trait Load {
    /// The next message, as a mark of its own; `None` if nothing is due.
    fn next(&mut self, now: Millis) -> Option<u64>;
    /// The time of the next due message.
    fn due(&self, now: Millis) -> Option<Millis>;
    /// True if something is due.
    fn waits(&self, now: Millis) -> bool;
    /// An attempt of this message has come back.
    fn ended(&mut self, _attempt: Attempt, _now: Millis, _delivered: bool) {}
}

/// The relay.
pub struct Relay<L> {
    pacer: Pacer,
    load: L,
    in_flight: usize,
    seat: Option<Seat>,
}

/// A relay's place in a fleet.
struct Seat {
    member: Member,
    from: Millis,
    /// The relay stops then, with a goodbye.
    until: Millis,
    next_look: Millis,
    published: VecDeque<Message>,
}

impl<L> Relay<L> {
    /// A relay with this to send.
    pub fn new(pacer: Pacer, load: L) -> Relay<L> {
        Relay { pacer, load, in_flight: 0, seat: None }
    }

    /// A relay of a fleet, from one moment to another. Its id is its number.
    pub fn of_fleet(
        number: usize,
        options: Options,
        pacer: Pacer,
        load: L,
        life: (Millis, Millis),
        seed: u64,
    ) -> Relay<L> {
        let (from, until) = life;
        let mut member = Member::new(&format!("relay-{number:03}"), options, timestamp(from), seed);
        member.connected(timestamp(from));
        let seat = Seat { member, from, until, next_look: from, published: VecDeque::new() };
        Relay { seat: Some(seat), ..Relay::new(pacer, load) }
    }

    /// Does what is due in the fleet. Returns false while the relay does not run.
    fn tick(&mut self, now: Millis) -> bool {
        let Some(seat) = &mut self.seat else { return true };
        if now < seat.from || seat.next_look == Millis::MAX {
            return false;
        }
        if now >= seat.until {
            seat.published.push_back(seat.member.goodbye());
            seat.next_look = Millis::MAX;
            return false;
        }
        if now >= seat.next_look {
            seat.next_look = now + LOOK.as_millis() as Millis;
            if seat.member.is_due(self.pacer.has_news(), timestamp(now)) {
                let message = seat.member.tick(self.pacer.report(timestamp(now)), timestamp(now));
                seat.published.push_back(message);
            }
        }
        self.pacer.guide(seat.member.guidance(timestamp(now)), timestamp(now));
        true
    }
}

impl<L: Load> Client for Relay<L> {
    fn turn(&mut self, now: Millis) -> Turn {
        let runs = self.tick(now);
        let seat = self.seat.as_ref().map(|seat| seat.next_look.min(seat.until).max(seat.from));
        if !runs {
            return Turn { wake: seat.filter(|at| *at > now), ..Turn::default() };
        }
        let mut turn = Turn { wake: self.load.due(now), ..Turn::default() };
        let mut held = false;
        while self.in_flight < IN_FLIGHT_MAX {
            match self.pacer.allowance(timestamp(now)) {
                Allowance::Start(_) => {
                    let Some(mark) = self.load.next(now) else { break };
                    self.pacer.started(timestamp(now));
                    self.in_flight += 1;
                    turn.starts.push(mark);
                }
                Allowance::Wait(until) | Allowance::Probing(until) => {
                    let until = moment(until);
                    turn.wake = Some(turn.wake.map_or(until, |due| due.max(now + 1).min(until)));
                    held = self.load.waits(now);
                    break;
                }
            }
        }
        if let Some(at) = seat {
            self.pacer.held_back(timestamp(now), held);
            turn.wake = Some(turn.wake.map_or(at, |wake| wake.min(at)));
        }
        turn
    }

    fn answered(&mut self, now: Millis, attempt: Attempt, signal: Signal) {
        self.in_flight -= 1;
        self.load.ended(attempt, now, signal == Signal::Answered);
        self.pacer.ended(timestamp(attempt.started), timestamp(now), signal);
    }

    fn publishes(&mut self) -> Option<Message> {
        self.seat.as_mut()?.published.pop_front()
    }

    fn hears(&mut self, now: Millis, message: &Message) {
        let Some(seat) = self.seat.as_mut().filter(|seat| (seat.from..seat.until).contains(&now)) else { return };
        seat.member.heard(message, timestamp(now));
        if message.division.is_some() {
            self.pacer.guide(seat.member.guidance(timestamp(now)), timestamp(now));
        }
    }

    fn rate(&self) -> f64 {
        self.pacer.rate()
    }
}

/// More than can be sent, from one moment to another.
#[derive(Clone, Copy, Debug)]
pub struct Saturated {
    /// From then.
    pub from: Millis,
    /// Until then.
    pub until: Millis,
}

impl Load for Saturated {
    fn next(&mut self, now: Millis) -> Option<u64> {
        (self.from..self.until).contains(&now).then_some(0)
    }

    fn due(&self, now: Millis) -> Option<Millis> {
        (now < self.from).then_some(self.from)
    }

    fn waits(&self, now: Millis) -> bool {
        (self.from..self.until).contains(&now)
    }
}

/// One load after another.
#[derive(Clone, Copy, Debug)]
pub struct Twice(pub Saturated, pub Saturated);

impl Load for Twice {
    fn next(&mut self, now: Millis) -> Option<u64> {
        self.0.next(now).or(self.1.next(now))
    }

    fn due(&self, now: Millis) -> Option<Millis> {
        self.0.due(now).or(self.1.due(now))
    }

    fn waits(&self, now: Millis) -> bool {
        self.0.waits(now) || self.1.waits(now)
    }
}

/// Chats that begin by chance and say a few lines each: a mark is the number of the line.
pub struct Chats {
    arrivals: Vec<Line>,
    arrived: usize,
    lines: HashMap<u32, VecDeque<u64>>,
    fresh: VecDeque<u32>,
    late: VecDeque<u32>,
    turns: RoundRobin,
    /// `sender.fresh`, or zero for plain turns.
    fresh_for: Duration,
    lifetime: Millis,
    /// The recent duration of an attempt until its answer.
    takes: Millis,
}

/// One line of a chat.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The time at which the bot submitted it.
    pub at: Millis,
    /// Which chat.
    pub chat: u32,
    /// It opens the chat.
    pub first: bool,
}

impl Chats {
    /// So many lines a second until then, five to a chat, about twenty seconds between two.
    pub fn arrivals(rate: f64, until: Millis, seed: u64) -> Vec<Line> {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut pause = move |mean: f64| (-(1.0 - dice.f64()).ln() * mean * 1000.0) as Millis;
        let (mut begin, mut lines) = (0, Vec::new());
        for chat in 0.. {
            begin += pause(5.0 / rate);
            if begin >= until {
                break;
            }
            let mut at = begin;
            for line in 0..5 {
                lines.push(Line { at, chat, first: line == 0 });
                at += pause(20.0);
            }
        }
        lines.sort_by_key(|line| line.at);
        lines
    }

    /// Nothing has arrived yet.
    pub fn new(arrivals: Vec<Line>, fresh_for: Duration, lifetime: Millis) -> Chats {
        let (lines, fresh, late) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Chats { arrivals, arrived: 0, lines, fresh, late, turns: RoundRobin::default(), fresh_for, lifetime, takes: 0 }
    }

    fn of(&mut self, kind: Class) -> &mut VecDeque<u32> {
        match kind {
            Class::Fresh => &mut self.fresh,
            Class::Late => &mut self.late,
        }
    }

    fn arrive(&mut self, now: Millis) {
        while let Some(line) = self.arrivals.get(self.arrived).filter(|line| line.at <= now) {
            let chat = line.chat;
            let lines = self.lines.entry(chat).or_default();
            lines.push_back(self.arrived as u64);
            self.arrived += 1;
            // A conversation with earlier messages waits already, or is in flight.
            if lines.len() == 1 {
                self.append(chat, now);
            }
        }
    }

    /// Appends it to the conversations of its kind; expired messages are removed.
    fn append(&mut self, chat: u32, now: Millis) {
        let Some(lines) = self.lines.get_mut(&chat) else { return };
        while lines.front().is_some_and(|line| self.arrivals[*line as usize].at + self.lifetime <= now) {
            lines.pop_front();
        }
        match lines.front() {
            None => drop(self.lines.remove(&chat)),
            Some(oldest) => {
                let accepted = timestamp(self.arrivals[*oldest as usize].at);
                self.of(Class::of(accepted, timestamp(now), self.fresh_for)).push_back(chat);
            }
        }
    }
}

impl Load for Chats {
    fn next(&mut self, now: Millis) -> Option<u64> {
        self.arrive(now);
        // Those whose lifetime will end before they arrive: one is sent only if no other can be.
        let mut passed_over = Vec::new();
        let found = loop {
            let Some(kind) = self.turns.next(!self.fresh.is_empty(), !self.late.is_empty()) else { break None };
            let Some(chat) = self.of(kind).pop_front() else { break None };
            let Some(oldest) = self.lines.get(&chat).and_then(|lines| lines.front().copied()) else { continue };
            let Line { at, .. } = self.arrivals[oldest as usize];
            // It has grown late, or died, while it stood there: no turn is taken.
            let grown = kind == Class::Fresh && Class::of(timestamp(at), timestamp(now), self.fresh_for) == Class::Late;
            if grown || at + self.lifetime <= now {
                self.append(chat, now);
            } else if at + self.lifetime <= now + self.takes {
                passed_over.push((kind, chat, oldest));
            } else {
                self.turns.taken();
                break Some(oldest);
            }
        };
        let chance = found.is_none() && !passed_over.is_empty();
        let tried = chance.then(|| passed_over.remove(0).2);
        for (kind, chat, _) in passed_over.into_iter().rev() {
            self.of(kind).push_front(chat);
        }
        found.or(tried)
    }

    fn due(&self, now: Millis) -> Option<Millis> {
        self.arrivals.get(self.arrived).map(|line| line.at.max(now + 1))
    }

    fn waits(&self, _now: Millis) -> bool {
        !self.fresh.is_empty() || !self.late.is_empty()
    }

    fn ended(&mut self, attempt: Attempt, now: Millis, delivered: bool) {
        let chat = self.arrivals[attempt.mark as usize].chat;
        if delivered {
            self.takes = self.takes * 7 / 8 + (now - attempt.started) / 8;
            self.lines.get_mut(&chat).map(VecDeque::pop_front);
        }
        self.append(chat, now);
    }
}
