//! The table: what is played, what is measured, and what it must come to.
//!
//! **One setting for all rows**: the relay's defaults, configured with 10 requests per second and a burst of 15,
//! but for the headroom (0 where the row does not say) and `rate_min` (0.05: a hundred relays on 10 per second take 0.1
//! each, which the default of 0.2 would forbid).

use std::time::Duration;

use connect_relay::pacer::{LearnedRate, Options, Pacer};

use crate::measure::{SECOND, Slice};
use crate::others::{Adaptive, Backoff, People};
use crate::relay::{Chats, Line, Relay, Saturated, Twice};
use crate::world::{Bus, Client, Fate, Millis, Record, Upstream, run, timestamp};

/// A figure of one run, and the condition on its mean over the seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// Its notation.
    pub unit: Unit,
    /// Its value.
    pub value: f64,
    /// Its condition; `None` if it is only reported.
    pub bound: Bound,
}

/// The notation of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 0.98
    Share,
    /// 2.1 %
    Percent,
    /// 43 s
    Seconds,
}

/// The condition on a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Reported,
}

use Bound::{AtLeast, AtMost, Reported};

impl Bound {
    /// Returns true if a value meets it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            AtLeast(least) => value >= least,
            AtMost(most) => value <= most,
            Reported => true,
        }
    }
}

/// One row: a scenario and its figures.
#[derive(Clone, Copy)]
pub struct Row {
    /// The scenario.
    pub name: &'static str,
    /// Throttled ÷ requests that no way of asking for more can go below: relays ÷ (quota × seconds to follow a change).
    pub floor: Option<f64>,
    /// Plays it.
    pub play: fn(u64) -> Vec<Figure>,
}

/// Those who share a bucket, all saturated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Relays.
    Relays,
    /// Senders that back off.
    Backoff,
    /// The SDKs' adaptive mode.
    Adaptive,
}

/// A figure that is a share.
pub fn share(name: &'static str, value: f64, bound: Bound) -> Figure {
    Figure { name, unit: Unit::Share, value, bound }
}

/// One that is a percentage.
pub fn percent(name: &'static str, value: f64, bound: Bound) -> Figure {
    Figure { name, unit: Unit::Percent, value, bound }
}

/// A time; what never came took for ever.
pub fn seconds(name: &'static str, value: Option<u64>, bound: Bound) -> Figure {
    Figure { name, unit: Unit::Seconds, value: value.map_or(f64::INFINITY, |seconds| seconds as f64), bound }
}

/// The initial settings of every relay in the table.
pub fn options(headroom: f64) -> Options {
    Options { headroom, rate_min: 0.05, ..Options::default() }
}

/// So many clients of a kind, saturated until then.
pub fn crowd(who: Who, count: usize, until: Millis, headroom: f64, seed: u64) -> Vec<Box<dyn Client>> {
    // As many senders in all as the measurements of the SDKs had.
    let senders = 16usize.div_ceil(count).max(2);
    let client = |index: usize| -> Box<dyn Client> {
        let seed = seed * 1000 + index as u64;
        match who {
            Who::Relays => {
                Box::new(Relay::new(Pacer::new(options(headroom), timestamp(0), seed), Saturated { from: 0, until }))
            }
            Who::Backoff => Box::new(Backoff::new(senders, seed)),
            Who::Adaptive => Box::new(Adaptive::new(senders, seed)),
        }
    };
    (0..count).map(client).collect()
}

/// So many relays of one fleet, saturated.
pub fn fleet(count: usize, options: Options, seed: u64) -> Vec<Box<dyn Client>> {
    (0..count).map(|number| fleet_relay(number, options, (0, Millis::MAX), seed)).collect()
}

/// One relay of a fleet, saturated, from one moment to another. Relays that start together start within 0.3 s.
fn fleet_relay(number: usize, options: Options, life: (Millis, Millis), seed: u64) -> Box<dyn Client> {
    let seed = seed * 1000 + number as u64;
    let life = (life.0 + fastrand::Rng::with_seed(seed).u64(0..300), life.1);
    let pacer = Pacer::new(options, timestamp(life.0), seed);
    Box::new(Relay::of_fleet(number, options, pacer, Saturated { from: life.0, until: Millis::MAX }, life, seed))
}

/// The rows of the table, in its order.
pub const ROWS: &[Row] = &[
    Row { name: "1 relay, configured with the true quota", floor: Some(1.0 / (10.0 * 60.0)), play: one },
    Row { name: "1 relay, configured 10, true quota 4", floor: Some(1.0 / (4.0 * 60.0)), play: one_of_four },
    Row { name: "1 relay, configured 10, true quota 30", floor: Some(1.0 / (30.0 * 60.0)), play: one_of_thirty },
    Row { name: "1 relay, configured 10, true quota 30, burst 15", floor: None, play: one_soon_at_thirty },
    Row { name: "5 relays", floor: Some(5.0 / (10.0 * 60.0)), play: five },
    Row { name: "5 relays, started 0.3 s apart", floor: Some(5.0 / (10.0 * 60.0)), play: five_apart },
    Row { name: "20 relays", floor: Some(20.0 / (10.0 * 120.0)), play: twenty },
    Row { name: "100 relays", floor: Some(100.0 / (10.0 * 120.0)), play: hundred },
    Row { name: "fleet of 5", floor: None, play: fleet_steady::<5, true> },
    Row { name: "fleet of 20", floor: None, play: fleet_steady::<20, true> },
    Row { name: "fleet of 100", floor: None, play: fleet_steady::<100, true> },
    Row { name: "fleet of 5, all settings at their defaults", floor: None, play: fleet_steady::<5, false> },
    Row { name: "fleet of 20, all settings at their defaults", floor: None, play: fleet_steady::<20, false> },
    Row { name: "fleet of 100, all settings at their defaults", floor: None, play: fleet_steady::<100, false> },
    Row { name: "fleet of 1", floor: None, play: fleet_of_one },
    Row { name: "fleet of 5, quota halves, later doubles", floor: None, play: fleet_halves_and_doubles },
    Row { name: "fleet of 5, configured 4 to 30, true quota 10", floor: None, play: fleet_configured_differently },
    Row { name: "fleet of 5, configured 10, true quota 30", floor: None, play: fleet_of_thirty },
    Row { name: "fleet of 4, one joins, then leaves", floor: None, play: fleet_joined },
    Row { name: "fleet of 5, 4 fall idle, then wake", floor: None, play: fleet_falls_idle },
    Row { name: "fleet of 5, one stopped for a minute", floor: None, play: fleet_stopped },
    Row { name: "fleet of 5, no server for a minute", floor: None, play: fleet_without_server },
    Row { name: "fleet of 5, split for two minutes", floor: None, play: fleet_split },
    Row { name: "fleet of 5 beside direct callers at 0.5 of the quota", floor: None, play: fleet_beside_callers },
    Row { name: "fleet of 20, headroom 0.1, beside people", floor: None, play: fleet_beside_people },
    Row { name: "quota halves, later doubles, 5 relays", floor: Some(5.0 / (7.5 * 60.0)), play: halves_and_doubles },
    Row { name: "20 busy for 5 minutes, then 19 fall idle", floor: None, play: nineteen_fall_idle },
    Row { name: "5-minute outage, 20 relays", floor: None, play: outage },
    Row { name: "all 20 restart at once, rate kept", floor: None, play: restart_kept },
    Row { name: "all 20 restart at once, nothing kept", floor: None, play: restart_with_nothing },
    Row { name: "1 relay, headroom 0.1, beside people", floor: None, play: one_beside_people },
    Row { name: "20 relays, headroom 0.1, beside people", floor: None, play: twenty_beside_people },
    Row { name: "1 relay, headroom 0.1, the quota doubles", floor: None, play: one_is_given_more },
    Row { name: "20 relays, headroom 0.1, the quota doubles", floor: None, play: twenty_are_given_more },
    Row { name: "1 relay beside direct callers at 0.8 of the quota", floor: None, play: beside_callers::<8> },
    Row { name: "1 relay beside direct callers at 1.0 of the quota", floor: None, play: beside_callers::<10> },
    Row { name: "1 relay beside direct callers at 1.2 of the quota", floor: None, play: beside_callers::<12> },
    Row { name: "1 relay, an hour at a tenth of the quota", floor: None, play: hour_at_a_tenth::<30> },
    Row { name: "the same with plain turns", floor: None, play: hour_at_a_tenth::<0> },
];

/// The baselines, on the same bucket.
pub const BASELINES: &[Row] = &[
    Row { name: "1 × backoff, full jitter", floor: None, play: baseline::<false, 1> },
    Row { name: "5 × backoff, full jitter", floor: None, play: baseline::<false, 5> },
    Row { name: "20 × backoff, full jitter", floor: None, play: baseline::<false, 20> },
    Row { name: "100 × backoff, full jitter", floor: None, play: baseline::<false, 100> },
    Row { name: "1 × AWS adaptive", floor: None, play: baseline::<true, 1> },
    Row { name: "5 × AWS adaptive", floor: None, play: baseline::<true, 5> },
    Row { name: "20 × AWS adaptive", floor: None, play: baseline::<true, 20> },
    Row { name: "100 × AWS adaptive", floor: None, play: baseline::<true, 100> },
];

/// Saturated from a cold start: 120 s to 720 s, and what came before.
fn steady(who: Who, count: usize, upstream: &Upstream, seed: u64, bounds: [Bound; 3]) -> Vec<Figure> {
    let record = run(upstream, &mut crowd(who, count, Millis::MAX, 0.0, seed), 720 * SECOND, seed);
    let cold = Slice { record: &record, clients: count, from: 0, to: 120 };
    let warm = Slice { from: 120, to: 720, ..cold };
    let mut figures =
        vec![share("goodput", warm.goodput(upstream), bounds[0]), percent("throttled", warm.throttled(), bounds[1])];
    if count > 1 {
        figures.push(share("fairness", warm.fairness(), bounds[2]));
    }
    figures.push(share("goodput, first 120 s", cold.goodput(upstream), Reported));
    figures.push(percent("throttled, first 120 s", cold.throttled(), Reported));
    figures
}

/// The burst is as it was configured, the rate is not.
fn one_soon_at_thirty(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::of(30.0, 15.0);
    let record = run(&upstream, &mut crowd(Who::Relays, 1, Millis::MAX, 0.0, seed), 120 * SECOND, seed);
    let soon = Slice { record: &record, clients: 1, from: 30, to: 120 };
    vec![
        share("goodput, 30 to 120 s", soon.goodput(&upstream), AtLeast(0.95)),
        percent("throttled, 30 to 120 s", soon.throttled(), AtMost(0.015)),
    ]
}

fn one(seed: u64) -> Vec<Figure> {
    steady(Who::Relays, 1, &Upstream::plain(), seed, [AtLeast(0.99), AtMost(0.002), Reported])
}

fn one_of_four(seed: u64) -> Vec<Figure> {
    steady(Who::Relays, 1, &Upstream::of(4.0, 6.0), seed, [AtLeast(0.97), AtMost(0.015), Reported])
}

fn one_of_thirty(seed: u64) -> Vec<Figure> {
    steady(Who::Relays, 1, &Upstream::of(30.0, 45.0), seed, [AtLeast(0.97), AtMost(0.015), Reported])
}

fn five(seed: u64) -> Vec<Figure> {
    steady(Who::Relays, 5, &Upstream::plain(), seed, [AtLeast(0.98), AtMost(0.02), AtLeast(0.95)])
}

/// The first finds the bucket full and takes itself for alone; the others find it empty.
fn five_apart(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let relay = |index: u64| -> Box<dyn Client> {
        let pacer = Pacer::new(options(0.0), timestamp(0), seed * 1000 + index);
        Box::new(Relay::new(pacer, Saturated { from: 300 * index, until: Millis::MAX }))
    };
    let record = run(&upstream, &mut (0..5).map(relay).collect::<Vec<_>>(), 720 * SECOND, seed);
    let warm = Slice { record: &record, clients: 5, from: 120, to: 720 };
    vec![
        share("goodput", warm.goodput(&upstream), AtLeast(0.98)),
        percent("throttled", warm.throttled(), AtMost(0.02)),
        share("fairness", warm.fairness(), AtLeast(0.95)),
    ]
}

fn twenty(seed: u64) -> Vec<Figure> {
    steady(Who::Relays, 20, &Upstream::plain(), seed, [AtLeast(0.97), AtMost(0.04), AtLeast(0.93)])
}

fn hundred(seed: u64) -> Vec<Figure> {
    steady(Who::Relays, 100, &Upstream::plain(), seed, [AtLeast(0.94), AtMost(0.1), AtLeast(0.85)])
}

/// A saturated fleet from a cold start. Goodput is relative to the quota less the headroom.
fn fleet_steady<const COUNT: usize, const OF_TABLE: bool>(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let options = if OF_TABLE { options(0.0) } else { Options::default() };
    // A hundred relays publish and hear ten thousand messages a second.
    let end = if COUNT < 100 { 720 } else { 420 };
    let record = run(&upstream, &mut fleet(COUNT, options, seed), end * SECOND, seed);
    let cold = Slice { record: &record, clients: COUNT, from: 0, to: 120 };
    let warm = Slice { from: 120, to: end, ..cold };
    let cold_most = [(5, 0.01), (20, 0.02), (100, 0.05)].iter().find(|(count, _)| *count == COUNT).unwrap().1;
    vec![
        share("goodput", warm.goodput(&upstream) / (1.0 - options.headroom), AtLeast(0.99)),
        percent("throttled", warm.throttled(), AtMost(0.004)),
        share("fairness", warm.fairness(), AtLeast(0.99)),
        share("goodput, first 120 s", cold.goodput(&upstream) / (1.0 - options.headroom), Reported),
        percent("throttled, first 120 s", cold.throttled(), AtMost(cold_most)),
    ]
}

/// A relay that hears no other is as it would be without a fleet.
fn fleet_of_one(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let record = run(&upstream, &mut fleet(1, options(0.0), seed), 720 * SECOND, seed);
    let first = record.lines.first().map(|line| line.at.div_ceil(SECOND));
    let warm = Slice { record: &record, clients: 1, from: 120, to: 720 };
    vec![
        seconds("the first attempt", first, AtMost(3.0)),
        share("goodput", warm.goodput(&upstream), AtLeast(0.99)),
        percent("throttled", warm.throttled(), AtMost(0.002)),
    ]
}

/// Saturated relays with these lives and settings, of one fleet or not.
fn relays(
    lives: &[(u64, u64)],
    of_fleet: bool,
    settings: impl Fn(usize) -> Options,
    seed: u64,
) -> Vec<Box<dyn Client>> {
    let relay = |(number, (from, until)): (usize, &(u64, u64))| -> Box<dyn Client> {
        let life = (from * SECOND, until.saturating_mul(SECOND));
        if of_fleet {
            return fleet_relay(number, settings(number), life, seed);
        }
        let pacer = Pacer::new(settings(number), timestamp(life.0), seed * 1000 + number as u64);
        Box::new(Relay::new(pacer, Saturated { from: life.0, until: life.1 }))
    };
    lives.iter().enumerate().map(relay).collect()
}

/// The throttled part of the requests in the half minute that begins three seconds after a change, and the same of
/// relays without a fleet.
fn throttled_after(upstream: &Upstream, lives: &[(u64, u64)], changes: &[u64], seed: u64) -> (Record, Vec<Figure>) {
    let last = changes.iter().max().copied().unwrap_or(0) + 140;
    let play =
        |of_fleet: bool| run(upstream, &mut relays(lives, of_fleet, |_| options(0.0), seed), last * SECOND, seed);
    let (fleet, alone) = (play(true), play(false));
    let after = |record: &Record| {
        let part = |at: &u64| Slice { record, clients: lives.len(), from: at + 3, to: at + 33 }.throttled();
        changes.iter().map(part).sum::<f64>() / changes.len() as f64
    };
    let (with, without) = (after(&fleet), after(&alone));
    let figures = vec![
        percent("throttled, 3 to 33 s after a change", with, AtMost(0.02)),
        percent("more than without a fleet", (with - without).max(0.0), AtMost(0.005)),
        percent("without a fleet", without, Reported),
    ];
    (fleet, figures)
}

/// The life of a relay that is there all the time.
const ALWAYS: (u64, u64) = (0, u64::MAX);

fn fleet_halves_and_doubles(seed: u64) -> Vec<Figure> {
    let upstream = halving();
    let (record, mut figures) = throttled_after(&upstream, &[ALWAYS; 5], &[240, 480], seed);
    let slice = |from, to| Slice { record: &record, clients: 5, from, to };
    figures.push(seconds("0.9 of the half", slice(240, 480).reaches(0.9, &upstream), AtMost(15.0)));
    figures.push(seconds("0.9 of the double", slice(480, 620).reaches(0.9, &upstream), AtMost(130.0)));
    figures
}

fn fleet_of_configured(configured: [f64; 5], upstream: &Upstream, seed: u64) -> Vec<Figure> {
    let settings = |number: usize| Options { quota_rate: configured[number], ..options(0.0) };
    let record = run(upstream, &mut relays(&[ALWAYS; 5], true, settings, seed), 420 * SECOND, seed);
    let warm = Slice { record: &record, clients: 5, from: 120, to: 420 };
    vec![
        share("goodput", warm.goodput(upstream), AtLeast(0.97)),
        percent("throttled", warm.throttled(), AtMost(0.006)),
        share("fairness", warm.fairness(), AtLeast(0.99)),
        percent("throttled, first 120 s", Slice { from: 0, to: 120, ..warm }.throttled(), AtMost(0.02)),
    ]
}

fn fleet_configured_differently(seed: u64) -> Vec<Figure> {
    let mut configured = [4.0, 10.0, 10.0, 30.0, 30.0];
    // The one that decides first may have any of them.
    configured.rotate_left((seed % 5) as usize);
    fleet_of_configured(configured, &Upstream::plain(), seed)
}

fn fleet_of_thirty(seed: u64) -> Vec<Figure> {
    fleet_of_configured([10.0; 5], &Upstream::of(30.0, 45.0), seed)
}

fn fleet_joined(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let lives = [ALWAYS, ALWAYS, ALWAYS, ALWAYS, (200, 320)];
    let (record, mut figures) = throttled_after(&upstream, &lives, &[200, 320], seed);
    let five = Slice { record: &record, clients: 5, from: 205, to: 320 };
    figures.push(share("fairness with it", five.fairness(), AtLeast(0.98)));
    figures.push(share("goodput with it", five.goodput(&upstream), AtLeast(0.97)));
    figures.push(share("goodput without it", Slice { from: 323, to: 440, ..five }.goodput(&upstream), AtLeast(0.97)));
    figures
}

fn fleet_falls_idle(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let relay = |number: usize| -> Box<dyn Client> {
        let seed = seed * 1000 + number as u64;
        let pacer = Pacer::new(options(0.0), timestamp(0), seed);
        let load = Saturated { from: 0, until: if number == 0 { Millis::MAX } else { 200 * SECOND } };
        let again = Saturated { from: 260 * SECOND, until: Millis::MAX };
        let load = Twice(load, if number == 0 { load } else { again });
        Box::new(Relay::of_fleet(number, options(0.0), pacer, load, (0, Millis::MAX), seed))
    };
    let record = run(&upstream, &mut (0..5).map(relay).collect::<Vec<_>>(), 380 * SECOND, seed);
    let busy = Slice { record: &record, clients: 1, from: 204, to: 260 };
    let woken = Slice { record: &record, clients: 5, from: 263, to: 293 };
    vec![
        share("goodput of the busy one from 4 s on", busy.goodput(&upstream), AtLeast(0.96)),
        percent("throttled, 3 to 33 s after the others wake", woken.throttled(), AtMost(0.02)),
        share("fairness then", Slice { to: 380, ..woken }.fairness(), AtLeast(0.99)),
    ]
}

/// The relay of the fleet that the scenes stop; it is not the one that decides, or it is, by the seed.
fn fleet_stopped(seed: u64) -> Vec<Figure> {
    let bus = Bus { stopped: vec![(200 * SECOND, 260 * SECOND, (seed % 5) as usize)], ..Bus::plain() };
    let upstream = Upstream { bus, ..Upstream::plain() };
    let (record, mut figures) = throttled_after(&upstream, &[ALWAYS; 5], &[200, 260], seed);
    let others = Slice { record: &record, clients: 5, from: 215, to: 260 };
    figures.push(share("goodput of the others from 15 s on", others.goodput(&upstream), AtLeast(0.94)));
    figures.push(share(
        "goodput after the return",
        Slice { from: 263, to: 380, ..others }.goodput(&upstream),
        AtLeast(0.97),
    ));
    figures
}

fn fleet_without_server(seed: u64) -> Vec<Figure> {
    let bus = Bus { away: vec![(200 * SECOND, 260 * SECOND)], ..Bus::plain() };
    let upstream = Upstream { bus, ..Upstream::plain() };
    let (record, mut figures) = throttled_after(&upstream, &[ALWAYS; 5], &[200, 260], seed);
    let without = Slice { record: &record, clients: 5, from: 200, to: 263 };
    figures.push(share("goodput meanwhile", without.goodput(&upstream), AtLeast(0.95)));
    figures.push(share("goodput later", Slice { from: 263, to: 380, ..without }.goodput(&upstream), AtLeast(0.96)));
    figures
}

fn fleet_split(seed: u64) -> Vec<Figure> {
    let bus = Bus { split: vec![(200 * SECOND, 320 * SECOND, 2)], ..Bus::plain() };
    let upstream = Upstream { bus, ..Upstream::plain() };
    let (record, mut figures) = throttled_after(&upstream, &[ALWAYS; 5], &[200, 320], seed);
    let apart = Slice { record: &record, clients: 5, from: 200, to: 320 };
    figures.push(share("goodput meanwhile", apart.goodput(&upstream), AtLeast(0.95)));
    figures.push(percent("throttled meanwhile", apart.throttled(), AtMost(0.02)));
    figures.push(share("goodput later", Slice { from: 320, to: 440, ..apart }.goodput(&upstream), AtLeast(0.96)));
    figures
}

fn fleet_beside_callers(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let play = |of_fleet: bool| {
        let mut clients = relays(&[ALWAYS; 5], of_fleet, |_| options(0.0), seed);
        clients.push(Box::new(People::new(5.0, 3, seed)));
        run(&upstream, &mut clients, 420 * SECOND, seed)
    };
    let (with, without) = (play(true), play(false));
    let warm = |record| Slice { record, clients: 5, from: 120, to: 420 };
    vec![
        share("goodput of the fleet", warm(&with).goodput(&upstream), AtLeast(0.3)),
        percent("throttled", warm(&with).throttled(), AtMost(0.03)),
        percent("throttled without a fleet", warm(&without).throttled(), Reported),
        share("goodput without a fleet", warm(&without).goodput(&upstream), Reported),
        percent("callers' first tries", people(&with, 5, 3).0, Reported),
        percent("callers' first tries without a fleet", people(&without, 5, 3).0, Reported),
    ]
}

fn fleet_beside_people(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let mut clients = fleet(20, Options::default(), seed);
    clients.push(Box::new(People::new(0.5, 3, seed)));
    let record = run(&upstream, &mut clients, 720 * SECOND, seed);
    let warm = Slice { record: &record, clients: 20, from: 120, to: 720 };
    let (first, lost) = people(&record, 20, 3);
    vec![
        share("goodput", warm.goodput(&upstream), AtLeast(0.87)),
        percent("throttled", warm.throttled(), AtMost(0.004)),
        percent("people's first tries", first, AtMost(0.01)),
        percent("people's losses", lost, AtMost(0.001)),
    ]
}

fn baseline<const ADAPTIVE: bool, const COUNT: usize>(seed: u64) -> Vec<Figure> {
    let who = if ADAPTIVE { Who::Adaptive } else { Who::Backoff };
    steady(who, COUNT, &Upstream::plain(), seed, [Reported; 3])
}

/// The upstream of the row that halves and doubles.
pub fn halving() -> Upstream {
    let quota = vec![(0, 10.0, 15.0), (240 * SECOND, 5.0, 7.5), (480 * SECOND, 10.0, 15.0)];
    Upstream { quota, ..Upstream::plain() }
}

fn halves_and_doubles(seed: u64) -> Vec<Figure> {
    let upstream = halving();
    let record = run(&upstream, &mut crowd(Who::Relays, 5, Millis::MAX, 0.0, seed), 720 * SECOND, seed);
    let slice = |from, to| Slice { record: &record, clients: 5, from, to };
    vec![
        seconds("0.9 of the half", slice(240, 480).reaches(0.9, &upstream), AtMost(60.0)),
        seconds("0.9 of the double", slice(480, 720).reaches(0.9, &upstream), AtMost(60.0)),
        percent("throttled", slice(120, 720).throttled(), AtMost(0.03)),
        share("goodput", slice(120, 720).goodput(&upstream), Reported),
    ]
}

fn nineteen_fall_idle(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let mut clients = crowd(Who::Relays, 1, Millis::MAX, 0.0, seed);
    clients.extend(crowd(Who::Relays, 19, 300 * SECOND, 0.0, seed + 500));
    let record = run(&upstream, &mut clients, 900 * SECOND, seed);
    let busy = Slice { record: &record, clients: 1, from: 300, to: 900 };
    vec![seconds("the busy one at 0.9", busy.reaches(0.9, &upstream), AtMost(120.0))]
}

fn outage(seed: u64) -> Vec<Figure> {
    let upstream = Upstream { down: vec![(300 * SECOND, 600 * SECOND)], ..Upstream::plain() };
    let record = run(&upstream, &mut crowd(Who::Relays, 20, Millis::MAX, 0.0, seed), 720 * SECOND, seed);
    let back = Slice { record: &record, clients: 20, from: 600, to: 720 };
    vec![
        seconds("0.9 after the return", back.reaches(0.9, &upstream), AtMost(15.0)),
        percent("throttled, first minute", Slice { to: 660, ..back }.throttled(), AtMost(0.05)),
    ]
}

fn restarted(kept: bool, throttled_most: f64, seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let kept = kept.then(|| LearnedRate { rate: 0.5, at: timestamp(0) });
    let relay = |index: u64| -> Box<dyn Client> {
        let pacer = Pacer::resumed(options(0.0), kept, timestamp(0), seed * 1000 + index);
        Box::new(Relay::new(pacer, Saturated { from: 0, until: Millis::MAX }))
    };
    let record = run(&upstream, &mut (0..20).map(relay).collect::<Vec<_>>(), 120 * SECOND, seed);
    let all = Slice { record: &record, clients: 20, from: 0, to: 120 };
    vec![
        share("least goodput of 10 s, from 15 s on", Slice { from: 15, ..all }.least(&upstream), AtLeast(0.9)),
        percent("throttled, first minute", Slice { to: 60, ..all }.throttled(), AtMost(throttled_most)),
    ]
}

fn restart_kept(seed: u64) -> Vec<Figure> {
    restarted(true, 0.05, seed)
}

fn restart_with_nothing(seed: u64) -> Vec<Figure> {
    restarted(false, 0.2, seed)
}

fn beside_people(relays: usize, seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let mut clients = crowd(Who::Relays, relays, Millis::MAX, 0.1, seed);
    clients.push(Box::new(People::new(0.5, 3, seed)));
    let record = run(&upstream, &mut clients, 720 * SECOND, seed);
    let warm = Slice { record: &record, clients: relays, from: 120, to: 720 };
    let (first, lost) = people(&record, relays, 3);
    vec![
        share("goodput", warm.goodput(&upstream), AtLeast(0.87)),
        percent("throttled", warm.throttled(), Reported),
        percent("people's first tries", first, AtMost(0.01)),
        percent("people's losses", lost, AtMost(0.001)),
    ]
}

fn one_beside_people(seed: u64) -> Vec<Figure> {
    beside_people(1, seed)
}

fn twenty_beside_people(seed: u64) -> Vec<Figure> {
    beside_people(20, seed)
}

/// Beside the same people the quota doubles after half an hour: how soon 0.8 of it is used, and whether it stays so.
fn given_more(relays: usize, found_within: f64, seed: u64) -> Vec<Figure> {
    const RAISED: u64 = 1800;
    const END: u64 = RAISED + 1200;
    let quota = vec![(0, 10.0, 15.0), (RAISED * SECOND, 20.0, 30.0)];
    let upstream = Upstream { quota, ..Upstream::plain() };
    let mut clients = crowd(Who::Relays, relays, Millis::MAX, 0.1, seed);
    clients.push(Box::new(People::new(0.5, 3, seed)));
    let record = run(&upstream, &mut clients, END * SECOND, seed);
    let raised = Slice { record: &record, clients: relays, from: RAISED, to: END };
    let later = Slice { from: RAISED + 600, ..raised };
    let (first, _) = people(&record, relays, 3);
    vec![
        seconds("0.8 of the double", raised.reaches(0.8, &upstream), AtMost(found_within)),
        share("goodput, ten minutes later", later.goodput(&upstream), Reported),
        percent("people's first tries", first, AtMost(0.01)),
    ]
}

fn one_is_given_more(seed: u64) -> Vec<Figure> {
    given_more(1, 300.0, seed)
}

fn twenty_are_given_more(seed: u64) -> Vec<Figure> {
    given_more(20, 300.0, seed)
}

/// The shares of people's first tries that are throttled, and of their messages that are lost, after two minutes.
fn people(record: &Record, client: usize, tries: u64) -> (f64, f64) {
    let theirs = || record.lines.iter().filter(|line| line.client == client && line.at >= 120 * SECOND);
    let throttled = |mark| theirs().filter(|line| line.mark == mark && line.fate == Fate::Throttled).count() as f64;
    let messages = theirs().filter(|line| line.mark == 1).count().max(1) as f64;
    (throttled(1) / messages, throttled(tries) / messages)
}

/// Direct callers, in standard mode with its three tries, at so many messages a second; they know no headroom.
fn beside_callers<const RATE: u32>(seed: u64) -> Vec<Figure> {
    let upstream = Upstream::plain();
    let mut clients = crowd(Who::Relays, 1, Millis::MAX, 0.0, seed);
    clients.push(Box::new(People::new(f64::from(RATE), 3, seed)));
    let record = run(&upstream, &mut clients, 720 * SECOND, seed);
    let relay = Slice { record: &record, clients: 1, from: 120, to: 720 };
    let (first, lost) = people(&record, 1, 3);
    // The first of them may have started just before.
    let asks = (relay.lines().count() + 1) as f64 / 600.0;
    vec![
        share("the relay's goodput", relay.goodput(&upstream), Reported),
        percent("its throttled", relay.throttled(), Reported),
        share("its requests per second", asks, AtLeast(options(0.0).rate_min)),
        percent("callers' first tries", first, Reported),
        percent("callers' losses", lost, Reported),
    ]
}

/// Ten minutes as ever, an hour at a tenth, an hour as ever; 0.8 of the quota arrives all the time.
fn hour_at_a_tenth<const FRESH: u64>(seed: u64) -> Vec<Figure> {
    const BEFORE: u64 = 600;
    const AFTER: u64 = BEFORE + 3600;
    let quota = vec![(0, 10.0, 15.0), (BEFORE * SECOND, 1.0, 1.5), (AFTER * SECOND, 10.0, 15.0)];
    let upstream = Upstream { quota, ..Upstream::plain() };
    let until = (AFTER + 3600) * SECOND;
    let arrivals = Chats::arrivals(8.0, until, seed);
    let load = Chats::new(arrivals.clone(), Duration::from_secs(FRESH), 900 * SECOND);
    let relay = Relay::new(Pacer::new(options(0.0), timestamp(0), seed), load);
    let record = run(&upstream, &mut [Box::new(relay)], until, seed);
    let mut delivered = vec![None; arrivals.len()];
    for line in record.lines.iter().filter(|line| line.fate == Fate::Accepted) {
        delivered[line.mark as usize] = Some(line.at);
    }
    let firsts = |from: u64, to: u64| {
        let of = |(line, at): (&Line, &Option<Millis>)| {
            let within = line.first && (from * SECOND..to * SECOND).contains(&line.at);
            within.then(|| at.map_or(Millis::MAX, |at| at - line.at))
        };
        let mut waits: Vec<Millis> = arrivals.iter().zip(&delivered).filter_map(of).collect();
        waits.sort_unstable();
        waits.get(waits.len() * 95 / 100).map_or(0.0, |wait| *wait as f64 / 1000.0)
    };
    // Back to normal: from here on every minute's lines are delivered within ten seconds, 95 of 100.
    let late = |minute: u64| {
        let lines = arrivals.iter().zip(&delivered).filter(|(line, _)| line.at / 60_000 == minute);
        let (mut all, mut late) = (0, 0);
        for (line, at) in lines {
            all += 1;
            late += u32::from(at.is_none_or(|at| at > line.at + 10 * SECOND));
        }
        late * 20 > all
    };
    let normal =
        (AFTER / 60..AFTER / 60 + 58).rev().find(|minute| late(*minute)).map_or(0, |minute| minute + 1 - AFTER / 60);
    let bounds = if FRESH > 0 { [AtMost(20.0), AtMost(1200.0)] } else { [Reported; 2] };
    vec![
        seconds("p95 of chats' first, half hour after", Some(firsts(AFTER, AFTER + 1800).round() as u64), bounds[0]),
        seconds("back to normal after", Some(normal * 60), bounds[1]),
    ]
}
