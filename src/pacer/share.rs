//! What rate this relay may take: learned from its own answers and throttles alone.
//!
//! Nobody can see the others, but a throttle hits a request whoever sent it, so who sends more is hit more often. If
//! everybody goes up alike and gives up alike at each throttle, the shares grow equal, and their sum follows the quota:
//! upstream's burst hides small steps, so nothing is wasted by them. The rest is to do this with few throttles:
//!
//! | when | what |
//! | --- | --- |
//! | nothing is heard | the rate creeps up by a step in each *interval*: a throttle is due about then |
//! | a throttle | a step down: a fifth of the rate at first, a tenth once some have come |
//! | four throttles in a row that came early | steps of a fifth: the quota is smaller, or has more to share it |
//! | throttles in a row, nothing accepted between them | a quarter down at each from the fourth on |
//! | half as many requests again as a throttle is due in have passed | a *search*: faster and faster up, at most a tenth per second |
//! | a throttle ends the search | back to where it began, less a step: it may have been luck |
//! | … for the second time running, or very late | no luck: on from what was sent last, less a step, and large steps again |
//! | … the first throttle of all, or that of a relay alone | believed at once |
//! | the same rate is found again and again | this relay is alone: smaller steps |
//!
//! An interval is 17 s, and the time of fifteen requests, and 11 s times the root of the rate: 55 s at half a request
//! per second, 40 s at two, 53 s at ten, 170 s at a tenth. So it is long for who sends little, since there are many of
//! those (a hundred relays on ten per second pay ten throttles in a hundred requests, twenty pay four, five pay one),
//! and long for who sends much, since it is from those that others must get their shares: the first of five to start
//! takes itself for alone and takes all, is hit by what the others ask for, and comes back up more slowly than they do.
//! In the first 90 s of sending intervals are shorter, the shorter the slower the relay, so that those that start
//! together grow equal early; and the first throttles are due within 80, 200 and 500 requests.
//!
//! The first burst is worth a guess: of a full bucket a relay alone gets all; one that got a third shares it with two.
//!
//! With headroom intervals are longer: sixteenfold for a tenth, but for the root. A search is as brisk as ever: a bucket
//! that empties slowly throttles agents and customers for as long as it takes the relay to meet its own throttle.
//!
//! What cannot be had: to know whether there is more, somebody has to ask for it, and in saturation that costs a throttle.
//! Relays ÷ (quota × seconds to follow a change) is the floor of throttled ÷ requests. And fairness is learned from
//! nothing but who was hit how often, which is chance: a relay of twenty is hit a dozen times in ten minutes.
//!
//! The numbers below were found by simulation (`cargo bench --bench pacing`), all rows of its table at once; it is broad
//! around them: a fifth more or less of any one moves no figure by much.

use std::time::Duration;

use super::Options;

/// A step, as a share of the rate: at the start, and in the end.
const FIRST_STEP: f64 = 0.22;
const STEP: f64 = 0.09;
/// After so many throttles it is half way from the one to the other.
const STEPS_TO_SETTLE: f64 = 3.0;

/// Seconds until a throttle is due, whatever the usual rate; the requests whose time is added; and what is added times the
/// root of the rate.
const INTERVAL: f64 = 17.0;
const REQUESTS: f64 = 15.0;
const FAST: f64 = 11.0;
/// By what power the creeping slows down above the usual rate, and by how many throttles the usual rate lags behind.
const PULL: f64 = 0.6;
const LAG: f64 = 20.0;
/// The usual rate stays within this factor of the present one.
const NEAR: f64 = 2.2;
/// Requests that the first throttle, or the first after a change, is due in at most; and by what factor that grows with each.
const SOON: f64 = 80.0;
const SOON_GROWTH: f64 = 2.5;

/// Seconds of sending in which a relay is young; its interval at first, at half a request per second; and its least,
/// in requests. It rises with the rate, so that the faster of two is hit the more for it.
const YOUTH: f64 = 90.0;
const YOUNG: f64 = 11.0;
const REQUESTS_MIN: f64 = 3.3;

/// A throttle is early that comes within half of the requests that it is due in; what so many in a row make of a step.
const EARLY: f64 = 0.5;
const EARLY_TIMES: u32 = 4;
const EARLY_STEP: f64 = 0.2;
/// Throttles with nothing accepted between them that are still ordinary, and what is kept of the rate at each more.
const IN_ROW: u32 = 2;
const KEPT_IN_ROW: f64 = 0.75;

/// A search begins when so many times the requests have passed that a throttle is due in.
const LATE: f64 = 1.5;
/// Its acceleration, the most that it rises per second, and what part of the rise is no search but kept.
const ACCELERATION: f64 = 2.4;
const RISE_MAX: f64 = 0.09;
const KEPT: f64 = 0.06;
/// So late a throttle comes by luck often enough. What exceeds it adds up, and what falls short of it takes off; from
/// `DOUBT` on a find is believed in part, and wholly so much beyond.
const LUCK: f64 = 1.5;
const DOUBT: f64 = 2.9;
const DOUBT_WIDTH: f64 = 2.4;
/// Seconds by which what counts as sent last lags behind the rate: what a full bucket hides of a rise.
const MEMORY: f64 = 12.0;

/// Two finds this close are the same, where each has so many requests; what each that is makes of the steps.
const SAME: f64 = 0.05;
const FIND_MIN: f64 = 25.0;
const STEADIER: f64 = 1.75;
const STEADY_MAX: f64 = 5.0;
/// From two such finds on a relay is alone, and what a search has multiplied its rate by is there, if it is this much.
const ALONE: f64 = 2.0;
const MORE: f64 = 1.3;

/// How much longer intervals are for each part of the quota that is left as headroom.
const HEADROOM: f64 = 150.0;

/// Seconds that the first burst lasts at most, what is added to what a relay got of it, what one is thought to have got
/// that got nothing, and the part of the guess that is taken, because others start at the same time.
const FIRST_BURST: f64 = 5.0;
const BURST_LEAST: f64 = 1.6;
const BURST_NONE: f64 = 1.0;
const BURST_PART: f64 = 0.7;

#[derive(Debug)]
pub(super) struct Share {
    /// Requests per second, without a search.
    base: f64,
    /// What a search has multiplied it by.
    search: f64,
    /// What was sent last, per second.
    recent: f64,
    /// Where the base is in the long run.
    usual: f64,
    /// Seconds from the last throttle to the next that is due.
    interval: f64,
    /// Only the rate holds something back: time and requests count.
    held: bool,
    /// Since the last throttle: seconds and requests that counted.
    seconds: f64,
    accepted: f64,
    /// Seconds that counted since the start.
    age: f64,
    /// Throttles since the start, or since the last change that was believed.
    throttles: f64,
    /// Throttles since the last request that was accepted, and since the last that was not early.
    in_row: u32,
    early: u32,
    /// By how much throttles came later than by luck.
    evidence: f64,
    /// The average rate from throttle to throttle, and how much smaller the steps are for its being the same.
    found: f64,
    steady: f64,
    /// Seconds since the first attempt, and requests accepted in them; none once something was throttled.
    untried: Option<(f64, f64)>,
}

impl Share {
    /// What the operator was told, less the headroom.
    pub(super) fn new(options: &Options) -> Share {
        Share::at(options.quota_rate * (1.0 - options.headroom), options)
    }

    /// A share learned before.
    pub(super) fn known(rate: f64, options: &Options) -> Share {
        let mut share = Share::at(rate, options);
        (share.untried, share.age, share.throttles) = (None, YOUTH, 3.0 * STEPS_TO_SETTLE);
        share.interval = share.due_in(options);
        share
    }

    fn at(rate: f64, options: &Options) -> Share {
        let rate = bounded(rate, options);
        let mut share = Share {
            base: rate,
            search: 1.0,
            recent: rate,
            usual: rate,
            interval: 0.0,
            held: false,
            seconds: 0.0,
            accepted: 0.0,
            age: 0.0,
            throttles: 0.0,
            in_row: 0,
            early: 0,
            evidence: 0.0,
            found: 0.0,
            steady: 1.0,
            untried: Some((0.0, 0.0)),
        };
        share.interval = share.due_in(options);
        share
    }

    /// Requests per second.
    pub(super) fn rate(&self) -> f64 {
        self.base * self.search
    }

    /// The rate without a search; none where nothing contradicted what the operator told.
    pub(super) fn learned(&self) -> Option<f64> {
        self.untried.is_none().then_some(self.base)
    }

    /// True until a second request starts or the first one is accepted.
    pub(super) fn is_first_request(&self) -> bool {
        self.untried == Some((0.0, 0.0))
    }

    /// True if a request was accepted since the last throttle.
    pub(super) fn was_accepted(&self) -> bool {
        self.in_row == 0
    }

    /// Takes back what a throttle took, but never to more than there was before it.
    pub(super) fn acquit(&mut self, before: f64, after: f64, options: &Options) {
        if before > after && after > 0.0 {
            self.base = self.base.max((self.base * before / after).min(before));
            self.usual = self.usual.max(self.base / NEAR);
            self.in_row = 0;
            self.bound(options);
            self.interval = self.due_in(options);
        }
    }

    /// An attempt starts, so long after the one before; `held` if it could have started earlier but for the rate.
    pub(super) fn sends(&mut self, since_last: Duration, held: bool, options: &Options) {
        let seconds = since_last.as_secs_f64();
        self.held = held;
        if let Some((running, _)) = &mut self.untried {
            *running += seconds;
        }
        if held && self.in_row == 0 {
            self.rise(seconds, options);
        }
        self.recent += (self.rate() - self.recent) * (1.0 - (-seconds / MEMORY).exp());
    }

    /// An attempt was accepted.
    pub(super) fn accepted(&mut self) {
        self.accepted += f64::from(u8::from(self.held));
        self.in_row = 0;
        if let Some((_, accepted)) = &mut self.untried {
            *accepted += 1.0;
        }
    }

    fn rise(&mut self, seconds: f64, options: &Options) {
        self.seconds += seconds;
        self.age += seconds;
        let creep = self.step(options) / self.interval * (self.base / self.usual).powf(-PULL);
        let late = (self.lateness() - LATE).max(0.0);
        let pace = rarer(options) * self.rate() / (self.usual * self.interval);
        let rise = (ACCELERATION * late * pace).min(RISE_MAX);
        self.base *= ((creep + KEPT * rise) * seconds).exp();
        self.search *= ((1.0 - KEPT) * rise * seconds).exp();
        self.bound(options);
    }

    /// An attempt was throttled that knew of all throttles before.
    pub(super) fn throttled(&mut self, options: &Options) {
        self.early = if self.lateness() < EARLY { self.early + 1 } else { 0 };
        let step = if self.early >= EARLY_TIMES { self.step(options).max(EARLY_STEP) } else { self.step(options) };
        let burst = f64::from(options.quota_burst);
        let untried = self.untried.take();
        if let Some((running, accepted)) = untried
            && running < FIRST_BURST
            && accepted < 0.9 * (burst - 1.0)
        {
            // Nothing accepted means two throttles: the first one alone is not believed.
            let least = if accepted > 0.0 { BURST_LEAST } else { BURST_NONE };
            let part = BURST_PART * (accepted + least) / burst;
            self.base = options.quota_rate * (1.0 - options.headroom) * part;
            (self.recent, self.usual) = (self.base, self.base);
        } else if self.in_row > IN_ROW {
            self.base *= KEPT_IN_ROW;
        } else {
            self.evidence = (self.evidence + self.lateness() - LUCK).max(0.0);
            let told = untried.is_some() && self.lateness() > LATE;
            let alone = self.steady > ALONE && self.search > MORE;
            let belief = if told || alone { 1.0 } else { ((self.evidence - DOUBT) / DOUBT_WIDTH).clamp(0.0, 1.0) };
            let last = self.rate().min(self.recent).max(self.base);
            self.base *= (last / self.base).powf(belief) * (1.0 - step);
            (self.throttles, self.evidence) =
                if belief > 0.5 { (0.0, 0.0) } else { (self.throttles + 1.0, self.evidence) };
            self.compare();
        }
        self.search = 1.0;
        self.bound(options);
        self.usual *= (self.base / self.usual).powf(1.0 / (self.throttles + 1.0).min(LAG));
        self.recent = self.recent.min(1.2 * self.base);
        self.in_row += 1;
        (self.accepted, self.seconds) = (0.0, 0.0);
        self.interval = self.due_in(options);
    }

    /// How many times the requests have passed that a throttle is due in.
    fn lateness(&self) -> f64 {
        self.accepted / (self.usual * self.interval)
    }

    /// Whether the average since the last throttle is the one before it: others make it differ, a bucket of one's own
    /// does not.
    fn compare(&mut self) {
        let found = self.accepted / self.seconds.max(0.001);
        let same = self.accepted > FIND_MIN && self.found > 0.0 && (found / self.found).ln().abs() < SAME;
        self.steady = if same { (self.steady * STEADIER).min(STEADY_MAX) } else { 1.0 };
        self.found = found;
    }

    fn step(&self, options: &Options) -> f64 {
        let first = FIRST_STEP / rarer(options);
        let step = STEP + (first - STEP).max(0.0) / (1.0 + self.throttles / STEPS_TO_SETTLE);
        (step / self.steady).max(options.headroom)
    }

    fn due_in(&self, options: &Options) -> f64 {
        let rarer = rarer(options);
        let soon = rarer * SOON * SOON_GROWTH.powf(self.throttles) / self.usual;
        let fast = if self.throttles > 0.0 { FAST * self.usual.sqrt() } else { 0.0 };
        let settled = (rarer * (INTERVAL + REQUESTS / self.usual) + fast).min(soon);
        let young = (rarer * (YOUNG * self.base / 0.5).max(REQUESTS_MIN / self.base)).min(settled);
        let grown = (self.age / YOUTH).min(1.0);
        young.powf(1.0 - grown) * settled.powf(grown)
    }

    fn bound(&mut self, options: &Options) {
        self.base = bounded(self.base, options);
        self.search = (bounded(self.rate(), options) / self.base).max(1.0);
        self.usual = self.usual.clamp(self.base / NEAR, self.base * NEAR);
    }
}

/// How much rarer throttles are to be for the headroom.
fn rarer(options: &Options) -> f64 {
    1.0 + HEADROOM * options.headroom
}

fn bounded(rate: f64, options: &Options) -> f64 {
    let ceiling = if options.rate_max > 0.0 { options.rate_max } else { f64::MAX };
    rate.clamp(options.rate_min.min(ceiling), ceiling)
}
