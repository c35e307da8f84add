//! The judgements as tables; then whole relays in virtual time, among conversations that fail for ever.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::delivery::{Policy, Receipt};
use crate::pacer::{self, Allowance, Closed, Pacer};
use crate::retry::Backoff;

const NOW: Timestamp = Timestamp(1_000_000);
const PROBE_MAX: Duration = Duration::from_secs(5);

fn at(millis: u64) -> Timestamp {
    Timestamp(NOW.0 + millis)
}

fn suspects() -> Suspects<u32> {
    Suspects::new(Options { probe_max: PROBE_MAX, in_flight_max: 32 })
}

fn delivered() -> Outcome {
    Outcome::Delivered(Receipt::default())
}

fn failed() -> Outcome {
    Outcome::Unavailable { status: 500, hint: RetryHint::default(), why: "500".into() }
}

fn throttled() -> Outcome {
    Outcome::Throttled { status: 429, hint: RetryHint::default(), why: "429".into() }
}

const DOWN: Signal = Signal::Down(RetryHint(None));
const THROTTLED: Signal = Signal::Throttled(RetryHint(None));
const STILL: Signal = Signal::StillThrottled(RetryHint(None));

/// One attempt that starts and ends at once.
fn attempt(suspects: &mut Suspects<u32>, conversation: u32, outcome: &Outcome, down: bool, now: u64) -> Attribution {
    suspects.started(conversation, None, true, at(now));
    suspects.ended(&conversation, outcome, down, true, at(now))
}

#[test]
fn three_new_failures_in_a_row_are_the_destinations_and_any_answer_ends_the_row() {
    let unreachable = || Outcome::Down { status: None, hint: RetryHint::default(), why: "refused".into() };
    let page = || Outcome::Misconfigured { status: 404, why: "404".into() };
    let lost = || Outcome::AnswerLost { why: "timed out".into() };
    let mut suspects = suspects();
    for (now, (conversation, outcome, signal)) in (0u64..).zip([
        (1, failed(), Signal::Answered),
        (2, unreachable(), Signal::Unclear),
        (1, failed(), Signal::Answered),
        (2, lost(), Signal::Unclear),
        (3, page(), DOWN),
        (4, delivered(), Signal::Answered),
        (5, lost(), Signal::Unclear),
        (6, page(), Signal::Unclear),
        (7, throttled(), THROTTLED),
        (8, unreachable(), Signal::Unclear),
        (9, failed(), Signal::Answered),
        (10, unreachable(), DOWN),
    ]) {
        assert_eq!(attempt(&mut suspects, conversation, &outcome, false, now).signal, signal, "{now}: {outcome:?}");
    }
}

#[test]
fn lone_conversation_shows_an_outage_by_its_third_failure() {
    let mut suspects = suspects();
    for (now, signal) in [(0, Signal::Answered), (1, Signal::Answered), (2, DOWN)] {
        suspects.started(1, None, false, at(now));
        assert_eq!(suspects.ended(&1, &failed(), false, false, at(now)).signal, signal);
    }
}

#[test]
fn failures_of_a_chronic_conversation_are_not_the_destinations() {
    let mut suspects = suspects();
    attempt(&mut suspects, 1, &failed(), false, 0);
    attempt(&mut suspects, 2, &delivered(), false, 1);
    for now in 2..20 {
        suspects.started(1, None, false, at(now));
        assert_eq!(suspects.ended(&1, &failed(), false, false, at(now)).signal, Signal::Answered);
    }
    assert_eq!(attempt(&mut suspects, 1, &delivered(), false, 30).streak, 0);
    assert!(!suspects.contains(&1));
}

#[test]
fn second_throttle_among_deliveries_is_the_conversations_own_and_restores_the_rate() {
    let mut suspects = suspects();
    assert_eq!(attempt(&mut suspects, 1, &throttled(), false, 0).signal, THROTTLED);
    suspects.record_rate_cut(&1, 9.0, 7.0);
    let again = attempt(&mut suspects, 1, &throttled(), false, 1);
    assert_eq!((again.signal, again.wrong_rate_cut), (STILL, None), "nothing was delivered: it may be the quota");
    suspects.record_rate_cut(&1, 7.0, 5.0);
    attempt(&mut suspects, 2, &delivered(), false, 2);
    let own = attempt(&mut suspects, 1, &throttled(), false, 3);
    assert_eq!(
        own,
        Attribution { signal: Signal::Unclear, streak: 3, own_throttle: true, wrong_rate_cut: Some((9.0, 5.0)) }
    );
    let next = attempt(&mut suspects, 1, &throttled(), true, 4);
    assert_eq!((next.signal, next.wrong_rate_cut), (Signal::Answered, None), "an answer of the service ends an outage");
}

#[test]
fn own_throttle_of_a_conversation_undoes_the_rate_cuts_of_its_run() {
    let mut suspects = suspects();
    for (conversation, before, after) in [(1, 9.0, 7.0), (2, 7.0, 5.0), (3, 5.0, 4.0)] {
        assert_eq!(attempt(&mut suspects, conversation, &throttled(), false, 0).signal, THROTTLED);
        suspects.record_rate_cut(&conversation, before, after);
    }
    attempt(&mut suspects, 4, &delivered(), false, 1);
    assert_eq!(attempt(&mut suspects, 2, &throttled(), false, 2).wrong_rate_cut, Some((9.0, 4.0)));
    assert_eq!(attempt(&mut suspects, 1, &throttled(), false, 3).wrong_rate_cut, None, "once");
}

#[test]
fn suspects_get_a_tenth_of_the_starts_and_one_each_probe_max() {
    let mut suspects = suspects();
    for _ in 0..2 {
        attempt(&mut suspects, 0, &failed(), false, 0);
    }
    for start in 1..=9 {
        assert_eq!(suspects.starts(at(start)).suspects_first, 0, "{start}");
        attempt(&mut suspects, u32::try_from(start).unwrap(), &delivered(), false, start);
    }
    assert_eq!(suspects.starts(at(10)).suspects_first, 1);
    attempt(&mut suspects, 0, &failed(), false, 10);
    assert_eq!(suspects.starts(at(9_000)).suspects_first, 0, "never two in a row");
    attempt(&mut suspects, 20, &delivered(), false, 11);
    assert_eq!(suspects.starts(at(5_009)).suspects_first, 0);
    assert_eq!(suspects.starts(at(5_010)).suspects_first, 1);
}

#[test]
fn suspects_and_overdue_attempts_take_a_quarter_of_what_is_in_flight() {
    let mut suspects = suspects();
    for conversation in 0..20 {
        suspects.started(conversation, (conversation < 5).then_some((1, NOW)), true, NOW);
    }
    assert_eq!(suspects.starts(at(5000)).suspects_most, 3);
    assert_eq!(suspects.next_overdue(), Some(at(5000)));
    assert_eq!(suspects.overdue(at(4999)), None);
    assert_eq!(suspects.overdue(at(5000)), Some(NOW), "fifteen without an answer in a row");
    assert_eq!(suspects.starts(at(5000)), Starts { suspects_first: 0, suspects_most: 0 });
    assert_eq!(suspects.next_overdue(), None);
    // Their later results are no information about the destination, except an answer.
    assert_eq!(suspects.ended(&7, &failed(), true, true, at(9000)).signal, Signal::Unclear);
    assert_eq!(suspects.ended(&8, &delivered(), true, true, at(9000)).signal, Signal::Answered);
    assert!(suspects.contains(&9) && !suspects.contains(&8));
}

#[test]
fn probe_fails_for_the_destination_and_an_attempt_beside_it_for_itself() {
    let mut suspects = suspects();
    for conversation in 1..=3 {
        attempt(&mut suspects, conversation, &failed(), false, 0);
    }
    assert!(!suspects.started(4, None, true, at(1)), "no suspect: it is the probe");
    assert!(suspects.started(1, None, true, at(1)), "beside the probe");
    assert_eq!(suspects.ended(&4, &failed(), true, true, at(2)).signal, DOWN);
    assert_eq!(suspects.ended(&1, &failed(), true, true, at(2)).signal, Signal::Unclear);
    assert!(!suspects.started(1, None, false, at(3)), "no other can be the probe");
    assert_eq!(suspects.ended(&1, &failed(), true, false, at(4)).signal, DOWN);
}

#[test]
fn oldest_suspect_is_removed_first() {
    let mut suspects = suspects();
    for conversation in 0..=u32::try_from(SUSPECTS_MAX).unwrap() {
        attempt(&mut suspects, conversation, &failed(), false, u64::from(conversation));
    }
    assert_eq!(suspects.known.len(), SUSPECTS_MAX);
    assert!(!suspects.contains(&0) && suspects.contains(&1));
}

// ---- whole relays in virtual time ----

/// The way in which a conversation fails for ever.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sick {
    Fails(u16),
    Throttled,
    NeverAnswers,
}

/// One run: the sick conversations, with the time of their first message, and the healthy messages per second, each in
/// its own conversation.
#[derive(Clone, Debug)]
struct Scene {
    sick: Vec<(u64, Sick)>,
    rate: f64,
    until: u64,
    seed: u64,
}

/// The figures of a run.
#[derive(Debug, Default)]
struct Played {
    /// The longest time from falling due to the first attempt of a healthy message, less the time that the healthy
    /// messages before it take and one `probe_max` for each sick conversation that was tried for the first time
    /// meanwhile: a conversation is not known to be sick before.
    worst: u64,
    /// The same, but nothing is subtracted for first attempts of sick conversations.
    longest: u64,
    /// Healthy messages.
    delivered: usize,
    accepted: usize,
    /// Failures of one sick message that counted towards `attempts_max`, at most.
    counted: u32,
    in_flight_most: usize,
    /// Starts of suspects, and all starts, while a healthy message was due.
    shares: (usize, usize),
}

impl Played {
    /// Notes the wait of a healthy message.
    fn note(&mut self, message: &Message, now: u64) {
        let waited = message.waited(now);
        self.longest = self.longest.max(waited);
        self.worst = self.worst.max(waited.saturating_sub(message.discoveries * crate::time::millis(PROBE_MAX)));
    }
}

const ATTEMPT_TIMEOUT: u64 = 10_000;
const LATENCY: u64 = 30;
/// Healthy conversations have numbers from here on.
const HEALTHY: u32 = 1000;

struct Message {
    due: u64,
    /// The healthy messages before it.
    before: usize,
    /// The lowest rate while it waits.
    slowest: f64,
    /// First attempts of sick conversations while it waits.
    discoveries: u64,
}

impl Message {
    /// The time that it has waited, less what the healthy messages before it take.
    fn waited(&self, now: u64) -> u64 {
        (now - self.due).saturating_sub((self.before as f64 / self.slowest * 1000.0) as u64)
    }
}

fn play(scene: &Scene) -> Played {
    let mut dice = fastrand::Rng::with_seed(scene.seed);
    let options = pacer::Options { rate_min: 1.0, ..pacer::Options::default() };
    let (mut pacer, mut suspects) = (Pacer::new(options, NOW, scene.seed), suspects());
    let policy = Policy { backoff: Backoff::default(), hint_max: Duration::from_secs(60), attempts_max: 10 };
    let (mut tokens, mut filled) = (15.0f64, 0);
    let (mut turns, mut due): (VecDeque<u32>, BTreeMap<(u64, u32), ()>) = Default::default();
    let mut flights: BTreeMap<(u64, u32), (u64, Outcome)> = BTreeMap::new();
    let mut healthy: HashMap<u32, Message> = HashMap::new();
    let mut sick: Vec<(u64, u32)> = scene.sick.iter().zip(0..).map(|((from, _), number)| (*from, number)).collect();
    sick.sort_unstable_by(|a, b| b.cmp(a));
    let mut failures: HashMap<u32, (u64, u32)> = HashMap::new();
    let (mut next_arrival, mut next_number, mut last_delivery) = (0u64, HEALTHY, None);
    let mut played = Played::default();
    let mut now = 0;
    while now < scene.until {
        while let Some((_, number)) = sick.pop_if(|(from, _)| *from <= now) {
            turns.push_back(number);
        }
        while next_arrival <= now {
            let before = healthy.len();
            healthy.insert(next_number, Message { due: now, before, slowest: f64::MAX, discoveries: 0 });
            turns.push_back(next_number);
            next_number += 1;
            played.accepted += 1;
            next_arrival += 1 + (-(1.0 - dice.f64()).ln() / scene.rate * 1000.0) as u64;
        }
        while let Some((&(back, number), _)) = flights.first_key_value()
            && back <= now
        {
            let (started, outcome) = flights.pop_first().expect("it is there").1;
            let down = pacer.closed() == Some(Closed::Down);
            let before = pacer.rate();
            let attribution = suspects.ended(&number, &outcome, down, !turns.is_empty(), at(now));
            pacer.ended(at(started), at(now), attribution.signal);
            if pacer.rate() < before {
                suspects.record_rate_cut(&number, before, pacer.rate());
            }
            if let Some((before, after)) = attribution.wrong_rate_cut {
                pacer.undo_rate_cut(before, after);
            }
            if matches!(outcome, Outcome::Delivered(_)) {
                played.delivered += 1;
                last_delivery = Some(now);
                continue;
            }
            let wait = if matches!(attribution.signal, Signal::Throttled(_) | Signal::StillThrottled(_)) {
                0
            } else {
                let failed = failures.entry(number).or_insert((now, 0));
                failed.1 += u32::from(last_delivery > Some(failed.0) && !matches!(outcome, Outcome::Throttled { .. }));
                failed.0 = now;
                played.counted = played.counted.max(failed.1);
                crate::time::millis(policy.backoff.delay(attribution.streak, pacer.jitter()))
            };
            due.insert((now + wait, number), ());
        }
        if let Some(started) = suspects.overdue(at(now))
            && pacer.closed() != Some(Closed::Down)
        {
            pacer.ended(started, at(now), Signal::Down(RetryHint::default()));
        }
        for message in healthy.values_mut() {
            message.slowest = message.slowest.min(pacer.rate());
        }
        while flights.len() < 32
            && let Allowance::Start(_) = pacer.allowance(at(now))
        {
            let starts = suspects.starts(at(now));
            let backed_off = due.first_key_value().map(|(key, ())| *key).filter(|(from, _)| *from <= now);
            let healthy_due = turns.iter().any(|number| *number >= HEALTHY);
            let number = match (backed_off, turns.front().copied()) {
                (Some(key), _) if starts.suspects_first > 0 => drop_due(&mut due, key),
                (_, Some(number)) => {
                    turns.pop_front();
                    number
                }
                (Some(key), None) if starts.suspects_most > 0 => drop_due(&mut due, key),
                _ => break,
            };
            let suspect = suspects.contains(&number);
            if healthy_due {
                played.shares.0 += usize::from(suspect);
                played.shares.1 += 1;
            }
            if suspects.started(number, None, !turns.is_empty(), at(now)) {
                pacer.started_beside(at(now));
            } else {
                pacer.started(at(now));
            }
            if let Some(message) = healthy.remove(&number) {
                played.note(&message, now);
            } else if !suspect {
                healthy.values_mut().for_each(|message| message.discoveries += 1);
            }
            tokens = (tokens + (now - filled) as f64 * 0.01).min(15.0);
            filled = now;
            let (after, outcome) = match scene.sick.get(number as usize).map(|(_, sick)| *sick) {
                Some(Sick::Fails(503)) => {
                    (LATENCY, Outcome::Down { status: Some(503), hint: RetryHint(None), why: String::new() })
                }
                Some(Sick::Fails(_)) => (LATENCY, failed()),
                Some(Sick::NeverAnswers) => (ATTEMPT_TIMEOUT, Outcome::AnswerLost { why: String::new() }),
                Some(Sick::Throttled) => (LATENCY, throttled()),
                None if tokens >= 1.0 => {
                    tokens -= 1.0;
                    (LATENCY, delivered())
                }
                None => (LATENCY, throttled()),
            };
            flights.insert((now + after, number), (now, outcome));
            played.in_flight_most = played.in_flight_most.max(flights.len());
        }
        now += 10;
    }
    for message in healthy.values() {
        played.note(message, scene.until);
    }
    played
}

/// Removes a conversation from those that back off.
fn drop_due(due: &mut BTreeMap<(u64, u32), ()>, key: (u64, u32)) -> u32 {
    due.remove(&key);
    key.1
}

#[test]
fn conversations_behind_five_that_are_always_throttled_wait_for_no_longer_than_two_probes() {
    for (count, from) in [(1, 0), (2, 0), (3, 0), (1, 30_000), (2, 30_000), (3, 30_000), (5, 30_000)] {
        for seed in 0..20 {
            for rate in [0.2, 1.0, 5.0] {
                let sick = vec![(from, Sick::Throttled); count];
                let scene = Scene { sick, rate, until: 60_000, seed };
                let with = play(&scene);
                assert!(with.longest <= 10_000, "{count} from {from} at {rate}, seed {seed}: {with:?}");
            }
        }
    }
}

#[test]
fn retry_hint_of_another_failure_than_a_503_is_no_hint_for_the_destination() {
    let hint = RetryHint(Some(Duration::from_secs(8)));
    for (status, expected) in [(500, RetryHint::default()), (503, hint)] {
        let mut suspects = suspects();
        let outcome = match status {
            503 => Outcome::Down { status: Some(503), hint, why: String::new() },
            _ => Outcome::Unavailable { status, hint, why: String::new() },
        };
        let signals: Vec<_> = (1..=3).map(|number| attempt(&mut suspects, number, &outcome, false, 0).signal).collect();
        assert_eq!(signals[2], Signal::Down(expected), "{status}");
    }
}

/// A scene of at most `most` sick conversations of any kinds.
fn scene(seed: u64, most: usize) -> Scene {
    let mut dice = fastrand::Rng::with_seed(seed ^ 0x51c4);
    let sick = (0..dice.usize(1..=most)).map(|_| {
        let kind = match dice.u8(0..4) {
            0 => Sick::Fails(500),
            1 => Sick::Fails(503),
            2 => Sick::Throttled,
            _ => Sick::NeverAnswers,
        };
        (dice.u64(0..30_000), kind)
    });
    let sick = sick.collect();
    // Up to 0.8 of the rate at the start; from one message in ten seconds to seven a second, evenly on a log scale.
    let rate = 0.1 * (0.8f64 * 9.0 / 0.1).powf(dice.f64());
    Scene { sick, rate, until: 120_000, seed }
}

#[test]
fn healthy_message_never_waits_for_failing_conversations() {
    for seed in 0..1000 {
        let scene = scene(seed, 8);
        let with = play(&scene);
        let without = play(&Scene { sick: Vec::new(), ..scene.clone() });
        assert!(with.worst <= 2 * crate::time::millis(PROBE_MAX), "{scene:?} {with:?}");
        assert!(with.delivered * 10 >= without.delivered * 9, "{scene:?} {with:?} {without:?}");
        assert!(with.in_flight_most <= 32, "{scene:?} {with:?}");
        // One start in ten, and one each probe_max.
        let (of_suspects, starts) = with.shares;
        assert!(of_suspects <= starts / 10 + 120 / 5 + 1, "{scene:?} {with:?}");
        let fails = scene.sick.iter().any(|(_, sick)| matches!(sick, Sick::Fails(_)));
        assert!(with.counted >= 10 || !fails || scene.rate < 1.0, "it becomes poison: {scene:?} {with:?}");
    }
}
