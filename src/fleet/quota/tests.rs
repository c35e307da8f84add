//! Tests of one fleet's decisions. The simulation (`benches/pacing`) shows them with pacers and a quota, and
//! `tests/pacing.rs` checks its figures.

use proptest::prelude::*;

use super::*;

const START: Timestamp = Timestamp(1_000_000);

fn after(millis: u64) -> Timestamp {
    Timestamp(START.0 + millis)
}

fn options() -> Options {
    Options { headroom: 0.0, ..Options::default() }
}

/// Relays that hear one another at once, each with its report.
struct Relays {
    members: Vec<Member>,
    reports: Vec<Report>,
    /// Relays that neither publish nor hear.
    silent: Vec<usize>,
    now: Timestamp,
}

impl Relays {
    fn new(count: usize) -> Relays {
        let member = |index: usize| {
            let mut member = Member::new(&format!("relay-{index:02}"), options(), START, 7);
            member.connected(START);
            member
        };
        let members = (0..count).map(member).collect();
        Relays { members, reports: vec![Report::default(); count], silent: Vec::new(), now: START }
    }

    /// Hungry relays, three seconds after their start.
    fn hungry(count: usize) -> Relays {
        let mut relays = Relays::new(count);
        for report in &mut relays.reports {
            report.held = 1.0;
        }
        relays.pass(3);
        relays
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let there: Vec<usize> = (0..self.members.len()).filter(|index| !self.silent.contains(index)).collect();
            for index in there {
                let message = self.members[index].tick(self.reports[index], self.now);
                self.hear(index, &message);
            }
            for (member, report) in self.members.iter().zip(&mut self.reports) {
                if let Guidance::Share(share) = member.guidance(self.now) {
                    let sends = if report.held > 0.0 { share.rate.round() as u64 } else { 0 };
                    (report.accepted, report.rate, report.learned) = (report.accepted + sends, share.base, true);
                }
            }
            self.now = self.now + PERIOD;
        }
    }

    fn hear(&mut self, from: usize, message: &Message) {
        for (index, member) in self.members.iter_mut().enumerate() {
            if index != from && !self.silent.contains(&index) {
                member.heard(message, self.now);
            }
        }
    }

    fn rates(&self) -> Vec<f64> {
        let rate = |member: &Member| match member.guidance(self.now) {
            Guidance::Share(share) => share.rate,
            guidance => panic!("no share: {guidance:?}"),
        };
        let there = self.members.iter().enumerate().filter(|(index, _)| !self.silent.contains(index));
        there.map(|(_, member)| rate(member)).collect()
    }

    fn assert_rates(&self, expected: &[f64]) {
        let rates = self.rates();
        assert_eq!(rates.len(), expected.len());
        for (rate, expected) in rates.iter().zip(expected) {
            assert!((rate / expected - 1.0).abs() < 0.1, "{rates:?}, expected {expected:?}");
        }
    }
}

#[test]
fn single_relay_begins_alone_once_it_has_listened() {
    let mut member = Member::new("relay", options(), START, 7);
    assert_eq!(
        member.guidance(after(2999)),
        Guidance::Hold { until: after(3000) },
        "no server: it waits three seconds"
    );
    assert_eq!(member.guidance(after(3000)), Guidance::Alone);
    member.connected(START);
    let _ = member.tick(Report::default(), START);
    assert!(matches!(member.guidance(after(1199)), Guidance::Hold { .. }));
    assert_eq!(member.guidance(after(1200)), Guidance::Alone, "connected, and no other relay");
    assert_eq!(member.members(after(1200)), 1);
}

#[test]
fn hungry_relays_get_equal_parts_of_the_configured_quota() {
    for count in [2, 5, 20] {
        let relays = Relays::hungry(count);
        relays.assert_rates(&vec![10.0 / count as f64; count]);
        assert!(relays.members.iter().all(|member| member.members(relays.now) == count));
        assert!(relays.members.iter().all(|member| (member.quota_rate(relays.now) - 10.0).abs() < 1.0));
    }
}

#[test]
fn one_relay_decides_and_it_is_the_lowest_that_has_something_to_send() {
    let mut relays = Relays::hungry(4);
    let decide = |relays: &Relays| -> Vec<bool> {
        relays.members.iter().map(|member| member.message(None, relays.now).follows == Some(member.run)).collect()
    };
    assert_eq!(decide(&relays), [true, false, false, false]);
    relays.reports[0].held = 0.0;
    relays.pass(15);
    assert_eq!(decide(&relays), [false, true, false, false]);
    relays.reports[0].held = 1.0;
    relays.pass(3);
    assert_eq!(decide(&relays), [true, false, false, false]);
}

#[test]
fn unused_part_goes_to_the_others_after_two_seconds() {
    let mut relays = Relays::hungry(5);
    relays.pass(5);
    for report in &mut relays.reports[1..] {
        report.held = 0.0;
    }
    relays.pass(3);
    let rates = relays.rates();
    assert!(rates[0] > 9.9, "{rates:?}");
    assert!(rates[1..].iter().all(|rate| *rate > 1.5), "an idle relay can start at an equal part: {rates:?}");
    relays.reports[1].held = 1.0;
    relays.pass(2);
    let rates = relays.rates();
    assert!((rates[0] / rates[1] - 1.0).abs() < 0.01 && rates[0] < 8.0, "{rates:?}");
}

#[test]
fn goodbye_leaves_the_rate_to_the_others_and_silence_does_not() {
    let mut relays = Relays::hungry(5);
    let goodbye = relays.members[4].goodbye();
    relays.silent = vec![4];
    relays.hear(4, &goodbye);
    relays.pass(2);
    let all = relays.rates()[0];
    assert!(all > 2.4, "{all}");
    relays.silent = vec![3, 4];
    relays.pass(4);
    let three = relays.rates()[0];
    assert!((three / all - 1.0).abs() < 0.2, "{all} became {three}");
    relays.pass(30);
    let later = relays.rates()[0];
    assert!(later > 1.3 * all, "without a throttle the part comes back: {all} became {later}");
}

#[test]
fn part_of_a_silent_relay_stays_away_if_a_throttle_shows_that_it_is_in_use() {
    let mut relays = Relays::hungry(3);
    relays.silent = vec![1];
    relays.pass(5);
    assert!(relays.members[0].reserved > 2.0);
    relays.reports[2].throttled += 1;
    let before = relays.rates()[0];
    relays.pass(2);
    assert!(relays.members[0].reserved.abs() < 1e-9);
    assert!(relays.rates()[0] < before);
}

#[test]
fn learner_that_vanishes_is_replaced_without_a_jump() {
    let mut relays = Relays::hungry(5);
    let mut before = relays.rates()[1];
    relays.silent = vec![0];
    for _ in 0..8 {
        relays.pass(1);
        for rate in relays.rates() {
            assert!((rate / before - 1.0).abs() < 0.05, "{before} became {rate}");
        }
        before = relays.rates()[0];
    }
}

#[test]
fn relay_that_hears_no_other_for_three_seconds_goes_on_alone_from_its_share() {
    let relays = Relays::hungry(4);
    let heard_at = relays.members[0].heard_at.unwrap();
    let Guidance::Share(share) = relays.members[0].guidance(relays.now) else { panic!("a share") };
    assert_eq!(share.until, heard_at + SILENCE, "the pacer leaves by itself");
    assert!((share.part - 0.25).abs() < 0.01);
    assert_eq!(relays.members[0].guidance(heard_at + SILENCE), Guidance::Alone);
}

#[test]
fn relays_that_were_apart_together_get_the_rates_that_they_had() {
    let mut relays = Relays::hungry(4);
    let mut members = std::mem::take(&mut relays.members);
    // A minute without a server: each is alone at its share.
    let mut now = relays.now;
    for _ in 0..60 {
        now = now + PERIOD;
        for (member, report) in members.iter_mut().zip(&mut relays.reports) {
            let share = Report { accepted: report.accepted + 2, rate: 2.5, learned: true, held: 1.0, ..*report };
            *report = share;
            let _ = member.tick(share, now);
        }
    }
    assert!(members.iter().all(|member| member.guidance(now) == Guidance::Alone));
    (relays.members, relays.now) = (members, now);
    relays.pass(3);
    let sum: f64 = relays.rates().iter().sum();
    assert!((7.0..11.0).contains(&sum), "{sum}");
}

#[test]
fn throttle_is_published_and_decided_upon_within_a_quarter_of_a_second() {
    let mut relays = Relays::hungry(2);
    let [learner, other] = relays.members.as_mut_slice() else { panic!("two relays") };
    let at = |millis: u64| relays.now + Duration::from_millis(millis);
    let _ = (learner.tick(relays.reports[0], at(0)), other.tick(relays.reports[1], at(0)));
    assert!(!other.is_due(false, at(999)) && other.is_due(false, at(1000)));
    assert!(!other.is_due(true, at(249)) && other.is_due(true, at(250)));
    let throttled = Report { throttled: 1, ..relays.reports[1] };
    let message = other.tick(throttled, at(250));
    assert!(!learner.is_due(false, at(250)));
    learner.heard(&message, at(255));
    assert!(learner.is_due(false, at(255)), "it decides");
    assert!(learner.tick(relays.reports[0], at(255)).division.is_some());
}

#[test]
fn relays_that_start_together_with_kept_rates_begin_at_their_sum_within_the_quota() {
    for (kept, expected) in [(0.5, 2.5), (2.0, 10.0), (9.0, 10.0), (15.0, 15.0)] {
        let mut relays = Relays::new(5);
        for report in &mut relays.reports {
            (report.held, report.rate, report.learned) = (1.0, kept, true);
        }
        relays.pass(3);
        let sum: f64 = relays.rates().iter().sum();
        assert!((sum / expected - 1.0).abs() < 0.1, "5 relays that kept {kept}: {sum}");
    }
}

#[test]
fn relay_that_joins_gets_its_share_and_changes_no_rate() {
    let mut relays = Relays::hungry(4);
    let mut joining = Member::new("relay-", options(), relays.now, 9);
    joining.connected(relays.now);
    relays.members.insert(0, joining);
    relays.reports.insert(0, Report { held: 1.0, ..Report::default() });
    relays.pass(3);
    let sum: f64 = relays.rates().iter().sum();
    assert!((9.9..12.5).contains(&sum), "{sum}");
}

#[test]
fn throttle_anywhere_lowers_all_shares_by_a_step_and_many_to_the_accepted_rate() {
    let mut relays = Relays::hungry(5);
    relays.pass(5);
    let before = relays.rates()[0];
    relays.reports[3].throttled += 1;
    relays.pass(2);
    let lowered = relays.rates()[0];
    assert!((0.7..0.95).contains(&(lowered / before)), "{before} became {lowered}");
    // A quota of four a second.
    for _ in 0..4 {
        for index in 0..5 {
            let report = &mut relays.reports[index];
            report.throttled += if index == 0 { 2 } else { 1 };
            report.accepted -= u64::from(index > 0);
        }
        relays.pass(1);
    }
    let sum: f64 = relays.rates().iter().sum();
    assert!((2.0..6.5).contains(&sum), "{sum}");
}

#[test]
fn own_rate_max_limits_the_share_and_the_others_get_the_rest() {
    let mut relays = Relays::new(2);
    relays.members[1] = Member::new("relay-01", Options { rate_max: 1.0, ..options() }, START, 7);
    relays.members[1].connected(START);
    for report in &mut relays.reports {
        report.held = 1.0;
    }
    relays.pass(4);
    let rates = relays.rates();
    assert!(rates[1] <= 1.0 && rates[0] > 8.0, "{rates:?}");
}

#[test]
fn two_runs_of_one_id_and_two_ids_with_one_seed_are_distinct() {
    let run = |id: &str, seed| Member::new(id, options(), START, seed).run;
    assert_ne!(run("a", 1), run("a", 2));
    assert_ne!(run("a", 1), run("b", 1));
}

#[test]
fn message_of_another_version_is_understood() {
    let newer = br#"{"id":"a","run":3,"accepted":7,"held":0.5,"mood":{"new":[1,2]},
        "division":{"rate":10,"base":10.0,"level":2,"part":1,"colour":"red"}}"#;
    let message: Message = serde_json::from_slice(newer).unwrap();
    assert_eq!((message.id.as_str(), message.run, message.accepted, message.throttled), ("a", 3, 7, 0));
    assert_eq!(message.division, Some(Division { rate: 10.0, base: 10.0, level: 2.0, part: 1.0 }));
    for bytes in [&b""[..], b"[]", b"{\"id\":7}", b"{\"held\":1e999}", b"{\"accepted\":-1}", b"\xff"] {
        assert!(serde_json::from_slice::<Message>(bytes).is_err() || bytes == b"[]", "{bytes:?}");
    }
}

#[test]
fn message_survives_the_wire() {
    let mut relays = Relays::hungry(2);
    let message = relays.members[0].tick(relays.reports[0], relays.now);
    assert!(message.division.is_some());
    for sent in [message, relays.members[0].goodbye()] {
        let bytes = serde_json::to_vec(&sent).unwrap();
        assert_eq!(serde_json::from_slice::<Message>(&bytes).unwrap(), sent);
    }
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(-1.0),
        Just(0.0),
        Just(f64::MIN_POSITIVE),
        Just(f64::MAX),
        0.0..20.0,
    ]
}

prop_compose! {
    fn any_message()(
        numbers in prop::collection::vec(any_number(), 9),
        counts in prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), 0..100u64], 3),
        id in "[a-z]{0,2}",
        run in 0..4u64,
        flags in prop::collection::vec(any::<bool>(), 4),
    ) -> Message {
        let division = Division { rate: numbers[5], base: numbers[6], level: numbers[7], part: numbers[8] };
        Message {
            id,
            run,
            accepted: counts[0],
            throttled: counts[1],
            retracted: counts[2],
            held: numbers[0],
            used: numbers[1],
            lately: numbers[2],
            rate: numbers[3],
            learned: flags[0],
            rate_max: numbers[4],
            follows: flags[1].then_some(run),
            following_ms: counts[0],
            leaving: flags[2] && flags[3],
            division: flags[2].then_some(division),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// No messages of others make a relay panic, exceed its own maximum, or stop.
    #[test]
    fn any_messages_are_survived(
        messages in prop::collection::vec((any_message(), 0u64..5000), 1..60),
        rate_max in prop_oneof![Just(0.0), Just(3.0)],
        held in 0.0..=1.0f64,
    ) {
        let options = Options { rate_max, ..options() };
        let mut member = Member::new("m", options, START, 7);
        let mut now = START;
        let most = if rate_max > 0.0 { rate_max } else { PLAUSIBLE * options.quota_rate };
        for (index, (message, millis)) in messages.into_iter().enumerate() {
            now = now + Duration::from_millis(millis);
            member.heard(&message, now);
            if index % 2 == 0 {
                let report = Report { held, accepted: index as u64, rate: 1.0, learned: true, ..Report::default() };
                let message = member.tick(report, now);
                let numbers = [message.held, message.used, message.lately, message.rate];
                prop_assert!(numbers.iter().all(|number| number.is_finite()));
            }
            let rate = member.quota_rate(now);
            prop_assert!(rate.is_finite() && rate >= 0.0);
            if let Guidance::Share(share) = member.guidance(now) {
                let numbers = [share.rate, share.base, share.part];
                prop_assert!(numbers.iter().all(|number| number.is_finite() && *number >= 0.0), "{share:?}");
                prop_assert!(share.rate <= most * 1.000_001 && share.base <= share.rate * 1.000_001, "{share:?}");
                prop_assert!(share.until <= now + SILENCE);
            }
        }
    }

    /// Shares by the level use the whole rate if a relay is hungry, and never more.
    #[test]
    fn division_gives_the_rate_and_not_more(
        used in prop::collection::vec((0.0..5.0f64, prop::bool::ANY), 1..30),
        rate_max in prop_oneof![Just(0.0), 0.5..3.0f64],
    ) {
        let mut member = Member::new("m", options(), START, 7);
        for (index, (used, hungry)) in used.iter().enumerate() {
            let (held, run) = (f64::from(u8::from(*hungry)), index as u64 + 1);
            let message = Message { id: "a".to_owned(), run, held, used: *used, rate_max, ..Message::default() };
            // The first message contains no demand yet.
            member.heard(&message, START);
            member.heard(&message, START);
        }
        member.own.known = true;
        let Division { rate, level, part, .. } = member.divide();
        let demand = |(used, hungry): &(f64, bool)| {
            let demand = if *hungry { f64::INFINITY } else { *used };
            if rate_max > 0.0 { demand.min(rate_max) } else { demand }
        };
        let sum: f64 = used.iter().map(|one| demand(one).min(level)).sum();
        prop_assert!(sum <= rate * 1.000_001, "{sum} of {rate}");
        let total: f64 = used.iter().map(demand).sum();
        prop_assert!(total < rate || sum > 0.999 * rate, "{sum} of {rate}");
        prop_assert!(part <= level && level <= rate);
    }
}
