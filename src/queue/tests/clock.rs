//! The queue on a machine whose clocks are set, and that sleeps, reboots or loses its power. `time` has the table.

use super::*;
use crate::time::{Machine, WallTime};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const DAY_MS: i64 = 86_400_000;

impl Rig {
    fn on(machine: &Machine) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        // Longer than these tests take on their clocks.
        let options = Options { dead_kept_for: 30 * DAY, ..options(folder.path().join("queue")) };
        Rig::open(folder, options, Clock::of(machine))
    }

    /// Ends cleanly; another process starts.
    fn restarted(self, machine: &Machine) -> Rig {
        self.ended(machine, |_| ())
    }

    /// Is killed; another process starts.
    fn crashed(self, machine: &Machine) -> Rig {
        self.cut(machine, |_| ())
    }

    /// Ends cleanly; this happens to the machine, and another process starts.
    fn ended(self, machine: &Machine, event: impl FnOnce(&Machine)) -> Rig {
        let (folder, options, _) = self.close();
        event(machine);
        Rig::open(folder, options, Clock::of(machine))
    }

    /// Is cut off; this happens to the machine, and another process starts.
    fn cut(self, machine: &Machine, event: impl FnOnce(&Machine)) -> Rig {
        self.overview();
        let next = Clock::of(machine);
        let cut = Rig { clock: next, ..self };
        cut.killed_with(|_| event(machine))
    }

    fn dead(&self) -> u64 {
        // Two ticks: the first may have begun before the clock was set.
        self.skip(Duration::from_secs(2));
        self.overview().dead
    }
}

fn machine() -> Machine {
    Machine::simulated(WallTime(1_795_860_000_000))
}

fn living(seconds: u64, client_token: &str) -> Submission {
    Submission { lifetime: Some(Duration::from_secs(seconds)), ..message(client_token, client_token, client_token) }
}

/// Messages with a minute, the usual lifetime, and a week to live.
fn three(rig: &Rig) {
    rig.push_all(vec![living(60, "minute"), message("usual", "usual", "usual"), living(7 * 86_400, "week")]);
}

#[test]
fn step_of_the_wall_clock_expires_no_message_while_running_or_between_two_runs() {
    for by in [8 * DAY_MS, -8 * DAY_MS] {
        let machine = machine();
        let rig = Rig::on(&machine);
        three(&rig);
        machine.step(by);
        assert_eq!(rig.dead(), 0, "while running, {by}");
        let rig = rig.restarted(&machine);
        assert_eq!(rig.dead(), 0, "after a restart, {by}");
        machine.step(by);
        let rig = rig.restarted(&machine);
        assert_eq!(rig.dead(), 0, "stepped between two runs, {by}");
        machine.step(-by);
        let rig = rig.crashed(&machine);
        assert_eq!(rig.dead(), 0, "stepped before a crash was mended, {by}");
        rig.skip(MINUTE);
        assert_eq!(rig.dead(), 1, "a minute is a minute, {by}");
        rig.skip(15 * MINUTE);
        assert_eq!(rig.dead(), 2);
        rig.skip(7 * DAY);
        assert_eq!(rig.dead(), 3);
    }
}

#[test]
fn time_asleep_or_switched_off_counts_towards_lifetimes() {
    let machine = machine();
    let rig = Rig::on(&machine);
    three(&rig);
    machine.sleep(10 * MINUTE);
    assert_eq!(rig.dead(), 1, "the minute was slept away");
    let rig = rig.cut(&machine, |machine| machine.reboot(HOUR));
    assert_eq!(rig.dead(), 2, "an hour switched off counts");
    let rig = rig.ended(&machine, |machine| machine.reboot(6 * DAY));
    assert_eq!(rig.dead(), 2, "six days of seven");
    let rig = rig.ended(&machine, |machine| machine.reboot(DAY));
    assert_eq!(rig.dead(), 3);
}

#[test]
fn step_that_an_idle_relay_saw_does_not_count_after_a_reboot() {
    for by in [DAY_MS, -DAY_MS] {
        let machine = machine();
        let rig = Rig::on(&machine);
        three(&rig);
        machine.step(by);
        // The tick records it, though nothing else is committed.
        rig.skip(Duration::from_secs(2));
        let rig = rig.cut(&machine, |machine| machine.reboot(Duration::from_secs(20)));
        assert_eq!(rig.dead(), 0, "{by}");
        rig.skip(MINUTE);
        assert_eq!(rig.dead(), 1, "{by}");
    }
}

#[test]
fn wall_clock_far_behind_after_a_reboot_keeps_order_and_expiry() {
    let machine = machine();
    let rig = Rig::on(&machine);
    rig.accepted(message("a", "1", "1"));
    let rig = rig.ended(&machine, |machine| {
        machine.reboot(MINUTE);
        machine.step(-365 * DAY_MS);
    });
    rig.accepted(message("b", "1", "2"));
    assert_eq!(rig.dead(), 0);
    rig.skip(15 * MINUTE);
    assert_eq!(rig.dead(), 2, "the second does not wait for a year");
}

#[test]
fn rebuilt_store_continues_the_times_of_the_damaged_one() {
    let machine = machine();
    let rig = Rig::on(&machine);
    three(&rig);
    machine.step(8 * DAY_MS);
    assert_eq!(rig.dead(), 0);
    let (folder, options, _) = rig.close();
    std::fs::write(options.path.join("failed-read"), "x").unwrap();
    let rig = Rig::open(folder, options, Clock::of(&machine));
    assert_eq!((rig.overview().queued, rig.dead()), (3, 0));
    let rig = rig.restarted(&machine);
    assert_eq!((rig.overview().queued, rig.dead()), (3, 0));
}

#[test]
fn outcome_learned_rate_and_refused_token_age_by_elapsed_time() {
    let machine = machine();
    let rig = Rig::on(&machine);
    rig.accepted(message("a", "1", "x"));
    let lease = rig.lease(1).pop().unwrap();
    let learned = Some(LearnedRate { rate: 7.5, at: rig.clock.now() });
    rig.runtime.block_on(rig.queue.settle(lease, None, delivered(), learned)).unwrap();
    rig.accepted(message("b", "1", "x"));
    let lease = rig.lease(1).pop().unwrap();
    assert!(matches!(rig.settle(lease, denied("Access denied")), Settled::Held(_)));
    machine.step(DAY_MS);
    let rig = rig.restarted(&machine);
    rig.skip(Duration::from_secs(2));
    assert!(matches!(rig.find(asker("a"), "1"), Found::State(MessageState { status: Status::Delivered(_), .. })));
    let kept = rig.queue.learned().unwrap();
    assert!(rig.clock.now().since(kept.at) < MINUTE, "it is as old as it is");
    assert!(matches!(rig.rejected(message("b", "2", "x")), Rejection::TokenRefused(_)));
    assert_eq!(rig.overview().held, 1);
    rig.skip(MINUTE);
    rig.accepted(message("b", "2", "x"));
}

#[test]
fn last_delivery_is_shown_by_the_wall_clock_as_it_goes_now() {
    let machine = machine();
    let rig = Rig::on(&machine);
    let shown = |rig: &Rig| {
        rig.overview();
        let families = rig.metrics.registry().gather();
        let family = families.iter().find(|family| family.name().ends_with("last_delivery_timestamp_seconds")).unwrap();
        family.get_metric()[0].get_gauge().get_value()
    };
    rig.accepted(message("a", "1", "x"));
    rig.drain();
    assert!((shown(&rig) - 1_795_860_000.0).abs() < 1e-6);
    machine.step(DAY_MS);
    assert!((shown(&rig) - 1_795_946_400.0).abs() < 1e-6);
}

#[test]
fn store_of_format_3_is_upgraded_when_it_is_opened() {
    // Only the stamp is of format 3: `rows/tests.rs` compares bytes of rows, `tests/durability` opens such a store.
    let machine = machine();
    let rig = Rig::on(&machine);
    three(&rig);
    let (folder, options, _) = rig.close();
    let stamp = options.path.join("format");
    let text = std::fs::read_to_string(&stamp).unwrap().replace("format 5", "format 3");
    let body = text.split_once("sum ").unwrap().0;
    std::fs::write(&stamp, format!("{body}sum {:08x}\n", crc32fast::hash(body.as_bytes()))).unwrap();
    let rig = Rig::open(folder, options, Clock::of(&machine));
    assert_eq!((rig.overview().queued, rig.dead()), (3, 0));
    assert!(std::fs::read_to_string(&stamp).unwrap().starts_with("connect-relay queue, format 5\n"));
    let rig = rig.restarted(&machine);
    assert_eq!(rig.overview().queued, 3, "stamp, log and journal are of one store");
}
