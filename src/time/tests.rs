//! The table of the module's head, case by case, and then any sequence of them.

use proptest::prelude::*;

use super::*;

pub(super) mod simulation;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const WEEK: Duration = Duration::from_secs(7 * 86_400);
const WALL: WallTime = WallTime(1_795_860_000_000);

/// A store on a machine, as far as it uses the time.
struct Store {
    machine: Machine,
    clock: Clock,
    anchor: Option<Anchor>,
    newest: Timestamp,
}

impl Store {
    fn new() -> Store {
        let machine = Machine::simulated(WALL);
        let clock = Clock::of(&machine);
        clock.resume(None, Timestamp::default());
        let mut store = Store { machine, clock, anchor: None, newest: Timestamp::default() };
        store.commit();
        store
    }

    /// Commits a row that has the present time.
    fn commit(&mut self) -> Timestamp {
        self.anchor = self.clock.anchor(self.anchor).or(self.anchor);
        self.newest = self.newest.max(self.clock.now());
        self.clock.now()
    }

    /// A tick of the queue, once a second.
    fn tick(&mut self) {
        if self.clock.is_stepped(self.anchor) {
            self.commit();
        }
    }

    /// Opens the store in another process.
    fn restart(&mut self) {
        self.clock = Clock::of(&self.machine);
        self.clock.resume(self.anchor, self.newest);
        self.anchor = None;
        self.commit();
    }

    fn age(&self, of: Timestamp) -> Duration {
        self.clock.now().since(of)
    }
}

fn ms(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap()
}

#[test]
fn wall_time_is_written_as_aws_writes_it() {
    assert_eq!(WallTime(1_573_180_888_172).to_string(), "2019-11-08T02:41:28.172Z");
    assert_eq!(WallTime(1_573_180_888_172).time_of_day(), "02:41:28");
    assert_eq!(WallTime(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
}

#[test]
fn ages_are_never_negative() {
    assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
}

#[test]
fn clones_share_a_skip() {
    let clock = Clock::system();
    let before = clock.clone().now();
    clock.skip(MINUTE);
    assert!(clock.clone().now().since(before) >= MINUTE);
}

#[test]
fn boot_id_is_read_as_the_kernel_writes_it() {
    let id = BootId::parse("01020304-0506-0708-090a-0b0c0d0e0f10\n");
    assert_eq!(id, Some(BootId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])));
    assert_eq!(BootId::parse(""), None);
    assert!(Machine::real().read().boot.is_some(), "this machine has one");
}

#[test]
fn clock_of_this_machine_agrees_with_its_wall_clock_and_does_not_go_back() {
    let clock = Clock::system();
    let (mut last, shown) = (clock.now(), clock.shown(clock.now()));
    assert!(clock.wall().since(shown) < MINUTE && shown.since(clock.wall()) < MINUTE);
    for _ in 0..1000 {
        let now = clock.now();
        assert!(now >= last && now.since(last) < MINUTE);
        last = now;
    }
}

#[test]
fn step_of_the_wall_clock_counts_for_no_age_and_moves_the_times_that_are_shown() {
    for by in [ms(DAY), -ms(DAY), ms(8 * DAY), 1000, -1000] {
        let mut store = Store::new();
        let accepted = store.commit();
        let before = store.clock.shown(accepted);
        store.machine.pass(MINUTE);
        store.machine.step(by);
        store.machine.pass(MINUTE);
        assert_eq!(store.age(accepted), 2 * MINUTE, "{by}");
        let moved = difference(store.clock.shown(accepted).0, before.0);
        assert_eq!(moved, by, "the time of an old message moves with the clock");
        assert_eq!(store.clock.shown(store.clock.now()), store.clock.wall());
        store.restart();
        assert_eq!(store.age(accepted), 2 * MINUTE, "and after a restart, {by}");
        store.machine.step(by);
        store.restart();
        assert_eq!(store.age(accepted), 2 * MINUTE, "between two runs in one boot, {by}");
        assert_eq!(store.clock.shown(store.clock.now()), store.clock.wall());
    }
}

#[test]
fn time_that_is_shown_is_read_back_also_after_a_step() {
    let mut store = Store::new();
    for step in [0, ms(HOUR), -ms(DAY)] {
        store.machine.step(step);
        store.machine.pass(MINUTE);
        let at = store.commit();
        let shown = store.clock.shown(at);
        assert_eq!(WallTime::parse(&shown.to_string()), Some(shown));
        assert_eq!(store.clock.point_shown(shown), at);
    }
    assert_eq!(WallTime(5).before(HOUR), WallTime(0));
}

#[test]
fn times_of_rfc_3339_are_read_with_any_offset() {
    for (text, millis) in [
        ("2019-11-08T02:41:28Z", 1_573_180_888_000),
        ("2019-11-08t02:41:28z", 1_573_180_888_000),
        ("2019-11-08T02:41:28.1Z", 1_573_180_888_100),
        ("2019-11-08T02:41:28.172999999Z", 1_573_180_888_172),
        ("2019-11-08T02:41:28+00:00", 1_573_180_888_000),
        ("2019-11-08T02:41:28.172000-00:00", 1_573_180_888_172),
        ("2019-11-08T08:11:28+05:30", 1_573_180_888_000),
        ("2019-11-07T18:41:28-08:00", 1_573_180_888_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000),
        ("2000-02-29T00:00:00Z", 951_782_400_000),
        ("2100-03-01T00:00:00Z", 4_107_542_400_000),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+02:00", 0),
        ("1969-12-31T23:59:59Z", 0),
        ("0000-02-29T00:00:00Z", 0),
    ] {
        assert_eq!(WallTime::parse(text), Some(WallTime(millis)), "{text}");
    }
    let cut = "2019-11-08T02:41:28Z";
    let cuts = (0..cut.len()).map(|end| &cut[..end]);
    for wrong in cuts.chain([
        "2019-13-08T02:41:28Z",
        "2019-00-08T02:41:28Z",
        "2019-11-00T02:41:28Z",
        "2019-11-31T02:41:28Z",
        "2019-02-29T02:41:28Z",
        "1900-02-29T02:41:28Z",
        "2019-11-08T24:41:28Z",
        "2019-11-08T02:60:28Z",
        "2019-11-08T02:41:61Z",
        "2019-11-08T02:41:28.Z",
        "2019-11-08T02:41:28.1.1Z",
        "2019-11-08T02:41:28+24:00",
        "2019-11-08T02:41:28+0000",
        "2019-11-08T02:41:28 00:00",
        "2019-11-08T02:41:28+00:60",
        "2019-11-08T02:41:28é",
        "+019-11-08T02:41:28Z",
        "2019-11-08-01T02:41:28Z",
        "2019-11-08 02:41:28Z",
        "-1",
        "1573180888",
    ]) {
        assert_eq!(WallTime::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn store_that_began_a_day_behind_loses_nothing_when_the_clock_is_corrected() {
    let mut store = Store::new();
    store.machine.step(-ms(DAY));
    store.restart();
    let accepted = store.commit();
    store.machine.step(ms(DAY));
    store.tick();
    store.restart();
    assert_eq!(store.age(accepted), Duration::ZERO);
    assert_eq!(store.clock.shown(accepted), store.clock.wall());
    store.machine.reboot(HOUR);
    store.restart();
    assert_eq!(store.age(accepted), HOUR, "the tick recorded the step before the reboot");
}

#[test]
fn sleep_and_time_switched_off_count() {
    let mut store = Store::new();
    let accepted = store.commit();
    let awake = store.clock.awake();
    store.machine.sleep(HOUR);
    assert_eq!(store.age(accepted), HOUR);
    assert_eq!(store.clock.awake(), awake, "though the process stood still");
    store.restart();
    assert_eq!(store.age(accepted), HOUR);
    store.machine.reboot(6 * DAY);
    store.restart();
    assert_eq!(store.age(accepted), HOUR + 6 * DAY);
    assert_eq!(store.clock.shown(accepted).since(WALL), Duration::ZERO);
}

#[test]
fn wall_clock_that_is_behind_after_a_reboot_makes_no_age_negative() {
    let mut store = Store::new();
    let accepted = store.commit();
    store.machine.pass(MINUTE);
    let later = store.commit();
    store.machine.reboot(MINUTE);
    store.machine.step(-ms(30 * DAY));
    store.restart();
    assert!(store.clock.now() >= later, "it never goes back behind what was written");
    assert_eq!(store.age(accepted), MINUTE);
}

#[test]
fn machine_restored_from_a_snapshot_of_its_memory_goes_by_the_wall_clock() {
    let (inner, boot) = (Timestamp(5_000), Some(BootId([1; 16])));
    let last = Some(Anchor { boot, since_boot_ms: 900_000, wall: WALL, inner });
    let now = Reading { boot, since_boot_ms: 300_000, wall: WallTime(WALL.0 + 7000) };
    assert_eq!(Anchor::resume(last, inner, now), Timestamp(12_000));
    let unknown = Reading { boot: None, since_boot_ms: 990_000, ..now };
    assert_eq!(Anchor::resume(last.map(|last| Anchor { boot: None, ..last }), inner, unknown), Timestamp(12_000));
}

#[test]
fn store_without_an_anchor_goes_by_the_wall_clock_and_never_back() {
    let now = Reading { boot: None, since_boot_ms: 1, wall: WALL };
    assert_eq!(Anchor::resume(None, Timestamp(WALL.0 - 3000), now), Timestamp(WALL.0));
    assert_eq!(Anchor::resume(None, Timestamp(WALL.0 + 3000), now), Timestamp(WALL.0 + 3000));
}

#[test]
fn anchor_is_recorded_once_in_ten_seconds_and_after_a_step() {
    let mut store = Store::new();
    assert_eq!(store.clock.anchor(store.anchor), None);
    store.machine.pass(Duration::from_millis(9_999));
    assert_eq!(store.clock.anchor(store.anchor), None);
    store.machine.pass(Duration::from_millis(1));
    assert!(store.clock.anchor(store.anchor).is_some());
    store.commit();
    store.machine.step(-1000);
    assert!(store.clock.is_stepped(store.anchor));
    assert!(store.clock.anchor(store.anchor).is_some());
    store.commit();
    assert!(!store.clock.is_stepped(store.anchor));
    store.machine.step(19);
    assert!(!store.clock.is_stepped(store.anchor), "that may be the time between two readings");
}

#[test]
fn detached_clock_does_not_notice_that_a_store_is_opened() {
    let machine = Machine::simulated(WALL);
    let clock = Clock::of(&machine);
    let detached = clock.detached();
    clock.resume(None, Timestamp(WALL.0 + 60_000));
    assert_eq!((detached.now().0, clock.now().0), (WALL.0, WALL.0 + 60_000));
}

/// An event for a store and its machine.
#[derive(Clone, Copy, Debug)]
enum Event {
    Run(Duration),
    Step(i64),
    Sleep(Duration),
    Commit,
    Restart,
    /// The machine is switched off after a tick; the wall clock is right.
    Reboot(Duration),
    /// The wall clock is behind after the reboot.
    RebootBehind(Duration, i64),
}

fn event() -> impl Strategy<Value = Event> {
    let span = || (0u64..100_000_000).prop_map(Duration::from_millis);
    let week = ms(WEEK);
    prop_oneof![
        span().prop_map(Event::Run),
        (-week..week).prop_map(Event::Step),
        span().prop_map(Event::Sleep),
        Just(Event::Commit),
        Just(Event::Restart),
        span().prop_map(Event::Reboot),
        (span(), 1..week).prop_map(|(off, behind)| Event::RebootBehind(off, behind)),
    ]
}

proptest! {
    /// An age is always the elapsed time: exactly within a boot, and over a reboot with a correct clock up to the time
    /// since the last anchor. It is never negative, and never longer than the elapsed time.
    #[test]
    fn age_is_elapsed_time_over_any_sequence_of_events(events in prop::collection::vec(event(), 1..60)) {
        let mut store = Store::new();
        let accepted = store.commit();
        let mut elapsed = Duration::ZERO;
        let mut lost = Duration::ZERO;
        let mut last = store.clock.now();
        for event in events {
            match event {
                Event::Run(span) => {
                    store.machine.pass(span);
                    elapsed += span;
                }
                Event::Sleep(span) => {
                    store.machine.sleep(span);
                    elapsed += span;
                }
                Event::Step(by) => {
                    store.machine.step(by);
                    store.tick();
                }
                Event::Commit => {
                    store.commit();
                }
                Event::Restart => store.restart(),
                Event::Reboot(off) => {
                    store.machine.reboot(off);
                    elapsed += off;
                    store.restart();
                }
                Event::RebootBehind(off, behind) => {
                    let before = store.clock.now();
                    store.machine.reboot(off);
                    store.machine.step(-behind);
                    elapsed += off;
                    store.restart();
                    // The time by which the clock is behind is not counted, at most all time since the last anchor.
                    lost += (before.since(accepted) + off).saturating_sub(store.age(accepted));
                }
            }
            prop_assert!(store.clock.now() >= store.newest, "{event:?}");
            prop_assert_eq!(store.age(accepted) + lost, elapsed, "{:?}", event);
            prop_assert!(store.clock.now() >= last || !matches!(event, Event::Run(_) | Event::Step(_) | Event::Restart));
            prop_assert_eq!(store.clock.shown(store.clock.now()).since(store.clock.wall()).as_millis() / 20, 0);
            last = store.clock.now();
        }
    }
}

proptest::proptest! {
    #[test]
    fn each_time_that_is_shown_is_read_back(millis in 0u64..253_402_300_800_000) {
        proptest::prop_assert_eq!(WallTime::parse(&WallTime(millis).to_string()), Some(WallTime(millis)));
    }
}
