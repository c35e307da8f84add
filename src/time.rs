//! The only place that reads a clock.
//!
//! Two kinds of time, and two types for them, so that one cannot pass for the other:
//!
//! * A [`Timestamp`] is a point on the store's **inner line**, in milliseconds. Rows, deadlines, due times and ages are
//!   made of it. The line begins as the wall clock when a store is created; from then on it follows real elapsed time
//!   and never steps.
//! * A [`WallTime`] is what a wall clock shows, in milliseconds since the Unix epoch. Replies, log lines and metrics
//!   show it, and `Retry-After` dates are compared with it. [`Clock::shown`] converts: a timestamp plus the present
//!   offset between the wall clock and the line. So a step of the wall clock moves the times that are shown, also those
//!   of messages accepted before it, and nothing else.
//!
//! A [`Clock`] hands them out. Within a boot of the machine the line follows `CLOCK_BOOTTIME`, which also counts while
//! the machine sleeps. Over a restart of the process the store's last [`Anchor`] says where the line is: one reading of
//! all clocks. The queue records it with its first commit, with a commit that is made anyway if the last anchor is
//! older than ten seconds, and at once after the wall clock was stepped.
//!
//! | the machine, since the last anchor | boot id | `CLOCK_BOOTTIME` | wall clock | the line goes on by |
//! | --- | --- | --- | --- | --- |
//! | runs; the process goes on, restarts, or is killed | same | ahead | ahead | `CLOCK_BOOTTIME` |
//! | sleeps an hour | same | an hour ahead | an hour ahead | `CLOCK_BOOTTIME`: the hour counts |
//! | wall clock stepped by a day, forward or back, while the process runs | same | ahead | a day off | `CLOCK_BOOTTIME`: the day does not count |
//! | … between two runs in one boot | same | ahead | a day off | the same |
//! | … before the first run | – | – | a day off | the line begins a day off, and only [`Clock::shown`] knows |
//! | rebooted, or the volume moved to another machine | other | any | ahead | the wall clock, less that of the anchor |
//! | rebooted, wall clock behind the anchor's | other | any | behind | nothing: ages are never negative |
//! | rebooted, wall clock stepped between the two boots | other | any | a day off | the wall clock: a step cannot be distinguished from a day switched off |
//! | rebooted, wall clock stepped after the last anchor, before the reboot | other | any | a day off | the same; the queue records an anchor within a second after a step, so that this hardly ever happens |
//! | restored from a snapshot of its memory | same | behind | any | the wall clock, less that of the anchor |
//! | boot id cannot be read | none | any | any | the wall clock, less that of the anchor |
//! | a store without an anchor: format 3, or a crash at its first start | – | – | any | it begins at the wall clock, by which format 3 counted |
//!
//! In no case does the line go back behind the newest timestamp in the store: after a power cut the last anchor is up
//! to ten seconds older than that. A store of format 3 never holds a queued message whose deadline is before its newest
//! timestamp (the relay that wrote that timestamp would have expired the message), so that rule expires nothing.
//!
//! | a message that was accepted with a lifetime of | is expired after | and not by |
//! | --- | --- | --- |
//! | a minute | a minute of running, sleeping or being switched off | a step of an hour while the relay runs, or between two runs |
//! | seven days | seven days of the same, in any number of boots | a step of eight days in one boot |
//!
//! Outcomes, dead letters, tokens, the learned rate and due times follow the line in the same way.
//!
//! Pure code takes *now* as an argument and never sees a `Clock`.

use std::fmt;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The smallest change of the offset that counts as a step; a smaller one is the time between two readings.
const STEP_MIN_MS: u64 = 20;
/// The age at which an anchor is replaced with the next commit.
const ANCHOR_KEPT_FOR: Duration = Duration::from_secs(10);
/// The most readings of all clocks; a reading is repeated if the thread was interrupted between them.
const READINGS_MAX: usize = 8;
/// The kernel's name of this boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A point on the store's inner line, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time elapsed since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(millis(span)))
    }
}

/// A time as a wall clock shows it: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WallTime(pub u64);

impl WallTime {
    /// The time from `earlier` until this; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: WallTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Seconds since the Unix epoch, as a metric has them.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this era fit")]
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// Parses a time of RFC 3339, with any offset: the displayed form, and what `date -Iseconds` and Python's `isoformat`
    /// write. A time before 1970 becomes 1970. `None` if the text is no such time.
    #[must_use]
    pub fn parse(text: &str) -> Option<WallTime> {
        let text = text.to_ascii_uppercase();
        let (local, offset_minutes) = match text.strip_suffix('Z') {
            Some(local) => (local, 0),
            None => {
                let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
                let (hours, minutes) = offset.get(1..)?.split_once(':')?;
                let minutes = number(hours, 2, 23)? * 60 + number(minutes, 2, 59)?;
                (local, if offset.starts_with('+') { minutes } else { offset.starts_with('-').then_some(-minutes)? })
            }
        };
        let (date, time) = local.split_once('T')?;
        let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
        if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let [year, month, day] = fields(date, '-')?;
        let (year, month, day) = (number(year, 4, 9999)?, number(month, 2, 12)?, number(day, 2, 31)?);
        let [hour, minute, second] = fields(time, ':')?;
        // RFC 3339 has leap seconds: :60 is the next second.
        let (hour, minute, second) = (number(hour, 2, 23)?, number(minute, 2, 59)?, number(second, 2, 60)?);
        let seconds =
            days_since_epoch(year, month, day)? * 86_400 + hour * 3600 + (minute - offset_minutes) * 60 + second;
        let millis = fraction.bytes().chain([b'0'; 3]).take(3).fold(0, |all, digit| all * 10 + i64::from(digit - b'0'));
        Some(WallTime(u64::try_from(seconds * 1000 + millis).unwrap_or(0)))
    }

    /// The time this long before.
    #[must_use]
    pub fn before(self, span: Duration) -> WallTime {
        WallTime(self.0.saturating_sub(millis(span)))
    }

    /// The hour, minute and second, in UTC: `19:36:57`.
    #[must_use]
    pub fn time_of_day(self) -> String {
        self.to_string()[11..19].to_owned()
    }
}

/// As AWS writes it: `2019-11-08T02:41:28.172Z`.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // humantime panics past the year 9999; a damaged record must not.
        let millis = self.0.min(253_402_300_799_999);
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).fmt(f)
    }
}

/// Splits a text into three fields.
fn fields(text: &str, separator: char) -> Option<[&str; 3]> {
    let mut fields = text.split(separator);
    let three = [fields.next()?, fields.next()?, fields.next()?];
    fields.next().is_none().then_some(three)
}

/// A number of so many digits, and at most `max`.
fn number(text: &str, digits: usize, max: i64) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| plain && *number <= max)
}

/// The days from 1970-01-01 to a day of the Gregorian calendar. `None` if there is no such day.
fn days_since_epoch(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let months = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month).ok()?.checked_sub(1)?;
    if day < 1 || day > *months.get(before)? {
        return None;
    }
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let of_years = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969);
    Some(of_years + months[..before].iter().sum::<i64>() + day - 1)
}

/// The kernel's name of one boot of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId([u8; 16]);

/// All clocks of a machine, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The present boot; `None` if the kernel does not say.
    pub boot: Option<BootId>,
    /// Milliseconds since that boot, those of sleep included.
    pub since_boot_ms: u64,
    /// The wall clock.
    pub wall: WallTime,
}

/// A place on the inner line, and all clocks at that moment: the store's record of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    boot: Option<BootId>,
    since_boot_ms: u64,
    wall: WallTime,
    inner: Timestamp,
}

impl Anchor {
    /// Returns the present point on the line of a store whose last anchor is `last`. `newest` is the newest timestamp
    /// in the store. See the table in the module's head.
    #[must_use]
    pub fn resume(last: Option<Anchor>, newest: Timestamp, now: Reading) -> Timestamp {
        let inner = match last {
            None => Timestamp(now.wall.0),
            Some(last) if last.is_of_boot(now) => {
                last.inner + Duration::from_millis(now.since_boot_ms - last.since_boot_ms)
            }
            Some(last) => last.inner + now.wall.since(last.wall),
        };
        inner.max(newest)
    }

    /// True if `now` is a later moment of the same boot.
    fn is_of_boot(&self, now: Reading) -> bool {
        self.boot.is_some() && self.boot == now.boot && self.since_boot_ms <= now.since_boot_ms
    }

    /// The time on the wall clock for a point on the line, as far as this anchor knows.
    #[must_use]
    pub fn shown(&self, inner: Timestamp) -> WallTime {
        shifted(inner, difference(self.wall.0, self.inner.0))
    }
}

/// The machine whose clocks are read.
#[derive(Clone, Debug)]
pub struct Machine {
    boot: Option<BootId>,
    started: Instant,
    /// The wall clock at `started`.
    wall: WallTime,
    #[cfg(test)]
    simulation: tests::simulation::Simulation,
}

impl Machine {
    /// The machine that this process runs on.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clocks")]
    fn real() -> Machine {
        let boot = std::fs::read_to_string(BOOT_ID).ok().and_then(|text| BootId::parse(&text));
        Machine {
            boot,
            started: Instant::now(),
            wall: wall_clock(),
            #[cfg(test)]
            simulation: tests::simulation::Simulation::default(),
        }
    }

    /// Reads all clocks.
    #[must_use]
    pub fn read(&self) -> Reading {
        let (mut before, mut wall, mut after) = (boot_clock(), wall_clock(), boot_clock());
        for _ in 1..READINGS_MAX {
            if after - before <= Duration::from_millis(1) {
                break;
            }
            (before, wall, after) = (boot_clock(), wall_clock(), boot_clock());
        }
        let reading = Reading { boot: self.boot, since_boot_ms: millis(after), wall };
        #[cfg(test)]
        let reading = self.simulation.reading(reading);
        reading
    }

    fn since_boot_ms(&self) -> u64 {
        let since_boot_ms = millis(boot_clock());
        #[cfg(test)]
        let since_boot_ms = self.simulation.since_boot_ms(since_boot_ms);
        since_boot_ms
    }

    /// A time that stops while the machine sleeps.
    fn awake(&self) -> Timestamp {
        let awake = Timestamp(self.wall.0) + self.started.elapsed();
        #[cfg(test)]
        let awake = self.simulation.awake(awake);
        awake
    }
}

/// Hands out timestamps that never go back, and jump only when a store is opened. Clones share one line.
#[derive(Clone, Debug)]
pub struct Clock {
    machine: Machine,
    line: Arc<Line>,
}

/// The position of the line.
#[derive(Debug)]
struct Line {
    /// The line less `CLOCK_BOOTTIME`, in milliseconds.
    base: AtomicI64,
    /// The wall clock less the line, in milliseconds, as it was after the last step.
    offset: AtomicI64,
}

impl Clock {
    /// A clock of this machine. Its line begins as the wall clock.
    #[must_use]
    pub fn system() -> Clock {
        Clock::of(&Machine::real())
    }

    /// A clock of a machine. Its line begins as the wall clock.
    #[must_use]
    pub fn of(machine: &Machine) -> Clock {
        let Reading { since_boot_ms, wall, .. } = machine.read();
        let base = AtomicI64::new(difference(wall.0, since_boot_ms));
        Clock { machine: machine.clone(), line: Arc::new(Line { base, offset: AtomicI64::new(0) }) }
    }

    /// A clock of the same machine whose line does not change when a store is opened: for timings during the opening.
    #[must_use]
    pub fn detached(&self) -> Clock {
        let Line { base, offset } = &*self.line;
        let copy = |number: &AtomicI64| AtomicI64::new(number.load(Ordering::Relaxed));
        Clock { machine: self.machine.clone(), line: Arc::new(Line { base: copy(base), offset: copy(offset) }) }
    }

    /// Now, on the line.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.point(self.machine.since_boot_ms())
    }

    /// Now, on the wall clock.
    #[must_use]
    pub fn wall(&self) -> WallTime {
        self.machine.read().wall
    }

    /// A time that stops while the machine sleeps: for work of a process while it runs. It is on no line.
    #[must_use]
    pub fn awake(&self) -> Timestamp {
        self.machine.awake()
    }

    /// The time that the wall clock, as it is set now, shows or showed at a point on the line.
    #[must_use]
    pub fn shown(&self, inner: Timestamp) -> WallTime {
        shifted(inner, self.offset(self.machine.read()))
    }

    /// The point on the line for which [`Clock::shown`] returns this time.
    #[must_use]
    pub fn point_shown(&self, wall: WallTime) -> Timestamp {
        Timestamp(wall.0.saturating_add_signed(self.offset(self.machine.read()).saturating_neg()))
    }

    /// Continues the line of a store that was opened. `last` is its last anchor, `newest` its newest timestamp.
    pub fn resume(&self, last: Option<Anchor>, newest: Timestamp) {
        let now = self.machine.read();
        let inner = Anchor::resume(last, newest, now);
        let offset = last.map_or(0, |last| difference(last.wall.0, last.inner.0));
        self.line.base.store(difference(inner.0, now.since_boot_ms), Ordering::Relaxed);
        self.line.offset.store(offset, Ordering::Relaxed);
    }

    /// Returns an anchor to store, if the last one is too old or the wall clock was stepped since.
    #[must_use]
    pub fn anchor(&self, last: Option<Anchor>) -> Option<Anchor> {
        let anchor = self.present_anchor();
        let kept = last.is_some_and(|last| {
            last.is_of_boot(self.machine.read()) && anchor.inner.since(last.inner) < ANCHOR_KEPT_FOR
        });
        (!kept || self.is_stepped(last)).then_some(anchor)
    }

    /// True if the wall clock was stepped since an anchor.
    #[must_use]
    pub fn is_stepped(&self, last: Option<Anchor>) -> bool {
        last.is_none_or(|last| {
            let present = self.present_anchor();
            difference(present.wall.0, present.inner.0) != difference(last.wall.0, last.inner.0)
        })
    }

    fn present_anchor(&self) -> Anchor {
        let now = self.machine.read();
        let inner = self.point(now.since_boot_ms);
        let wall = shifted(inner, self.offset(now));
        Anchor { boot: now.boot, since_boot_ms: now.since_boot_ms, wall, inner }
    }

    fn point(&self, since_boot_ms: u64) -> Timestamp {
        Timestamp(since_boot_ms.saturating_add_signed(self.line.base.load(Ordering::Relaxed)))
    }

    /// The wall clock less the line. It stays the same to the millisecond until the wall clock is stepped.
    fn offset(&self, now: Reading) -> i64 {
        let known = self.line.offset.load(Ordering::Relaxed);
        let found = difference(now.wall.0, self.point(now.since_boot_ms).0);
        if found.abs_diff(known) < STEP_MIN_MS {
            return known;
        }
        self.line.offset.store(found, Ordering::Relaxed);
        found
    }
}

impl BootId {
    /// Reads a UUID as the kernel writes it.
    fn parse(text: &str) -> Option<BootId> {
        uuid::Uuid::try_parse(text.trim()).ok().map(|id| BootId(id.into_bytes()))
    }
}

/// The time since this machine booted, its sleep included.
fn boot_clock() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // A sandbox may not know the first clock; all know the second.
    for which in [libc::CLOCK_BOOTTIME, libc::CLOCK_MONOTONIC] {
        #[expect(
            unsafe_code,
            reason = "std has no CLOCK_BOOTTIME, and rustix goes past the C library, where tests set it"
        )]
        // SAFETY: the call writes one timespec to the address that it is given, and `time` is one.
        if unsafe { libc::clock_gettime(which, &raw mut time) } == 0 {
            break;
        }
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clocks")]
fn wall_clock() -> WallTime {
    WallTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
}

fn shifted(inner: Timestamp, by_ms: i64) -> WallTime {
    WallTime(inner.0.saturating_add_signed(by_ms))
}

fn difference(this: u64, other: u64) -> i64 {
    saturating(this).saturating_sub(saturating(other))
}

fn saturating(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// Whole milliseconds, saturating.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
