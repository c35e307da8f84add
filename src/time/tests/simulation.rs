//! Changes that a test makes to the clocks of a machine.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::*;

/// The changes; clones share them.
#[derive(Clone, Debug, Default)]
pub(in crate::time) struct Simulation(Arc<Mutex<Changes>>);

#[derive(Debug, Default)]
struct Changes {
    /// The reading of clocks that do not go by themselves.
    still: Option<Reading>,
    slept_ms: u64,
    /// The time by which clocks that go by themselves are ahead.
    skipped_ms: u64,
}

impl Simulation {
    pub(in crate::time) fn reading(&self, real: Reading) -> Reading {
        let Changes { still, skipped_ms, .. } = *self.lock();
        let since_boot_ms = real.since_boot_ms + skipped_ms;
        still.unwrap_or(Reading { since_boot_ms, wall: WallTime(real.wall.0 + skipped_ms), ..real })
    }

    pub(in crate::time) fn since_boot_ms(&self, real: u64) -> u64 {
        let Changes { still, skipped_ms, .. } = *self.lock();
        still.map_or(real + skipped_ms, |reading| reading.since_boot_ms)
    }

    pub(in crate::time) fn awake(&self, real: Timestamp) -> Timestamp {
        let Changes { still, slept_ms, skipped_ms } = *self.lock();
        still.map_or(real + Duration::from_millis(skipped_ms), |reading| {
            Timestamp(reading.since_boot_ms.saturating_sub(slept_ms))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    /// A machine whose clocks change only by the methods below.
    pub fn simulated(wall: WallTime) -> Machine {
        let machine = Machine::real();
        let still = Reading { boot: Some(any_boot()), since_boot_ms: 1_000_000, wall };
        machine.simulation.lock().still = Some(still);
        machine
    }

    /// Lets time pass on all clocks.
    pub fn pass(&self, span: Duration) {
        let mut changes = self.simulation.lock();
        match &mut changes.still {
            Some(reading) => {
                reading.since_boot_ms += millis(span);
                reading.wall = WallTime(reading.wall.0.saturating_add(millis(span)));
            }
            None => changes.skipped_ms += millis(span),
        }
    }

    /// Sets the wall clock forward by `by_ms` milliseconds, or back.
    pub fn step(&self, by_ms: i64) {
        self.change(|reading, _| reading.wall = WallTime(reading.wall.0.saturating_add_signed(by_ms)));
    }

    /// Sleeps: all clocks go on except those that stop during sleep.
    pub fn sleep(&self, span: Duration) {
        self.pass(span);
        self.change(|_, slept_ms| *slept_ms += millis(span));
    }

    /// Switches the machine off for this time, and boots it.
    pub fn reboot(&self, off_for: Duration) {
        self.pass(off_for);
        self.change(|reading, slept_ms| {
            reading.boot = Some(any_boot());
            (reading.since_boot_ms, *slept_ms) = (fastrand::u64(1000..100_000), 0);
        });
    }

    /// Changes clocks that do not go by themselves.
    fn change(&self, change: impl FnOnce(&mut Reading, &mut u64)) {
        let mut changes = self.simulation.lock();
        let Changes { still: Some(reading), slept_ms, .. } = &mut *changes else { panic!("a real machine") };
        change(reading, slept_ms);
    }
}

impl Clock {
    /// A clock that changes only by [`Clock::skip`]: for tests in which no time may pass by itself.
    pub fn still() -> Clock {
        Clock::of(&Machine::simulated(wall_clock()))
    }

    /// Moves this clock and its clones ahead: tests do not sleep.
    pub fn skip(&self, span: Duration) {
        self.machine.pass(span);
    }
}

fn any_boot() -> BootId {
    BootId(fastrand::u128(..).to_ne_bytes())
}
