//! The rate that this relay may take, learned from its own answers and throttles alone.
//!
//! No relay can see the others, but upstream throttles any request over the quota, so a relay that sends more is
//! throttled more often. If all relays raise their rates alike and lower them alike at each throttle, the shares become
//! equal, and their sum follows the quota: upstream's burst hides small steps, so no quota is lost by them. The rules
//! below do this with few throttles:
//!
//! | when | what |
//! | --- | --- |
//! | no throttle comes | the rate rises by one step in each *interval*: a throttle is due at about its end |
//! | a throttle | one step down: a fifth of the rate at first, a tenth after some throttles |
//! | four early throttles in a row | steps of a fifth: the quota became smaller, or more relays share it |
//! | throttles in a row without an accepted request between them | a quarter down at each from the fourth on |
//! | 1.5 times the requests in which a throttle is due have passed | a *search*: the rate rises faster and faster, at most a tenth per second |
//! | a throttle ends the search | back to the rate at its start, less a step: the late throttle may have been chance |
//! | … for the second time in a row, or very late | not chance: the last sent rate, less a step, and large steps again |
//! | … the first throttle of all, or one of a relay that is alone | believed at once |
//! | the same rate is found again and again | this relay is alone: smaller steps |
//!
//! An interval is 17 s, plus the time of fifteen requests, plus 11 s times the square root of the rate: 55 s at half a
//! request per second, 40 s at two, 53 s at ten, 170 s at a tenth. It is long for slow relays, because there are many
//! of them: a hundred relays on ten per second cause ten throttles in a hundred requests, twenty cause four, five cause
//! one. It is long for fast relays too, because the others get their shares from them. Of five relays, the first to
//! start assumes that it is alone and takes everything; then the others' requests cause its throttles, and it rises
//! again more slowly than they do. In the first 90 s of sending intervals are shorter, the shorter the slower the
//! relay, so that relays that start together become equal early. The first throttles are due within 80, 200 and 500
//! requests.
//!
//! The first burst gives an estimate: a relay that is alone gets all of a full bucket; one that got a third shares it
//! with two others.
//!
//! With headroom intervals are longer: sixteenfold for a tenth, except for the square root's part. A search is as fast
//! as without: a bucket that empties slowly throttles agents and customers for as long as the relay takes to meet its
//! own throttle.
//!
//! Two limits: a relay can only find free quota by asking for it, and at saturation that costs a throttle. Relays ÷
//! (quota × seconds to follow a change) is the lower bound of throttled ÷ requests. And fairness is learned from the
//! number of throttles alone, which is random: one of twenty relays gets about a dozen in ten minutes.
//!
//! The numbers below were found by simulation (`cargo bench --bench pacing`), all rows of its table at once. The
//! optimum is broad: a change of any one number by a fifth changes no figure by much.

use std::time::Duration;

use super::options::Options;

/// A step, as a share of the rate: at the start, and at the end.
const FIRST_STEP: f64 = 0.22;
const STEP: f64 = 0.09;
/// The number of throttles after which the step is half way between the two.
const STEPS_TO_SETTLE: f64 = 3.0;

/// The parts of an interval: seconds at any usual rate; a number of requests, whose time is added; and seconds that are
/// multiplied by the square root of the rate.
const INTERVAL: f64 = 17.0;
const REQUESTS: f64 = 15.0;
const FAST: f64 = 11.0;
/// The exponent by which the rise slows down above the usual rate, and the number of throttles by which that rate lags.
const PULL: f64 = 0.6;
const LAG: f64 = 20.0;
/// The usual rate stays within this factor of the present one.
const NEAR: f64 = 2.2;
/// The most requests until the first throttle, or the first after a change, is due; and the factor for each later one.
const SOON: f64 = 80.0;
const SOON_GROWTH: f64 = 2.5;

/// Seconds of sending in which a relay is young; a young relay's first interval, at half a request per second; and its
/// shortest, in requests. It grows with the rate, so that the faster of two relays is throttled more often.
const YOUTH: f64 = 90.0;
const YOUNG: f64 = 11.0;
const REQUESTS_MIN: f64 = 3.3;

/// A throttle within this part of the requests in which it is due is early; the number of early ones in a row that
/// enlarges the step; and that step.
const EARLY: f64 = 0.5;
const EARLY_TIMES: u32 = 4;
const EARLY_STEP: f64 = 0.2;
/// Throttles without an accepted request between them that are still ordinary, and the factor of the rate at each more.
const IN_ROW: u32 = 2;
const KEPT_IN_ROW: f64 = 0.75;

/// The lateness at which a search begins.
const LATE: f64 = 1.5;
/// The acceleration of a search, its fastest rise per second, and the part of the rise that is kept.
const ACCELERATION: f64 = 2.4;
const RISE_MAX: f64 = 0.09;
const KEPT: f64 = 0.06;
/// A throttle this late is still often chance. The excess over it adds up, a shortfall subtracts. From `DOUBT` on a
/// find is believed in part, and at `DOUBT` + `DOUBT_WIDTH` fully.
const LUCK: f64 = 1.5;
const DOUBT: f64 = 2.9;
const DOUBT_WIDTH: f64 = 2.4;
/// The time in seconds by which the recently sent rate lags behind the rate: a full bucket hides a rise for that time.
const MEMORY: f64 = 12.0;

/// The same until the first throttle, when the first burst has emptied the bucket: the lateness, the time, and the step at
/// the throttle that ends the search.
const FIRST_LATE: f64 = 1.0;
const FIRST_MEMORY: f64 = 3.0;
const FIRST_FIND_STEP: f64 = 0.12;

/// Two finds this close are the same if each has at least `FIND_MIN` requests; the factor on the steadiness for each,
/// and its maximum.
const SAME: f64 = 0.05;
const FIND_MIN: f64 = 25.0;
const STEADIER: f64 = 1.75;
const STEADY_MAX: f64 = 5.0;
/// The steadiness from which a relay is alone; and the growth from which a search of such a relay has found more quota.
const ALONE: f64 = 2.0;
const MORE: f64 = 1.3;

/// The step below the measured rate of a whole fleet.
const POOL_STEP: f64 = 0.04;
/// The part of the rate that is kept at a throttle in any case.
const POOL_KEPT: f64 = 0.94;
/// The lateness at which a search begins.
const POOL_LATE: f64 = 1.25;
/// The factor of intervals.
const POOL_PATIENCE: f64 = 1.5;
/// The first step at a throttle that follows another at once.
const POOL_EARLY: f64 = 0.015;
/// The requests over which the rate of a whole fleet is measured.
const POOL_FIND: f64 = 80.0;

/// The factor of intervals for a headroom of 1.
const HEADROOM: f64 = 150.0;

/// The longest first burst in seconds; the addition to the requests it got; the assumed number for a relay that got
/// none; and the part of the estimate that is taken, because others start at the same time.
const FIRST_BURST: f64 = 5.0;
const BURST_LEAST: f64 = 1.6;
const BURST_NONE: f64 = 1.0;
const BURST_PART: f64 = 0.7;

#[derive(Debug)]
pub(crate) struct RateEstimator {
    /// Requests per second, without a search.
    base: f64,
    /// The factor of the current search.
    search: f64,
    /// The recently sent rate, per second.
    recent: f64,
    /// The long-term average of the base.
    usual: f64,
    /// Seconds from the last throttle to the next one that is due.
    interval: f64,
    /// True while only the rate holds messages back: time and requests count.
    held: bool,
    /// Since the last throttle: the counted seconds and requests.
    seconds: f64,
    accepted: f64,
    /// The counted seconds since the start.
    age: f64,
    /// Throttles since the start, or since the last change that was believed.
    throttles: f64,
    /// Throttles since the last accepted request, and since the last throttle that was not early.
    in_row: u32,
    early: u32,
    /// The sum of the times by which throttles came later than chance explains.
    evidence: f64,
    /// The average rate between the last two throttles, and the factor by which steps are smaller because it stays the
    /// same.
    found: f64,
    steady: f64,
    /// Seconds since the first attempt, and requests accepted in them; `None` after the first throttle.
    untried: Option<(f64, f64)>,
    /// The lowest rate, if it is below `rate_min`: that of a relay that left a fleet with a smaller share.
    floor: Option<f64>,
    /// True for the rate of a whole fleet: no other relay draws on the quota.
    pooled: bool,
    measured_at: f64,
    /// The rate after the last throttle.
    lowest: f64,
}

impl RateEstimator {
    /// A share that starts at the configured quota, less the headroom.
    pub(super) fn new(options: &Options) -> RateEstimator {
        RateEstimator::at(options.quota_rate * (1.0 - options.headroom), options)
    }

    /// A share that starts at a learned rate.
    pub(crate) fn known(rate: f64, options: &Options) -> RateEstimator {
        let mut estimator = RateEstimator::at(rate, options);
        (estimator.untried, estimator.age, estimator.throttles) = (None, YOUTH, 3.0 * STEPS_TO_SETTLE);
        estimator.interval = estimator.due_in(options);
        estimator
    }

    /// The share of a relay that left a fleet with this rate. A hundred such relays must not begin at a hundred times
    /// `rate_min`: it is no lower bound above this rate.
    pub(super) fn left_with(rate: f64, options: &Options) -> RateEstimator {
        let mut estimator = RateEstimator::known(rate, options);
        if rate < options.rate_min {
            estimator.floor = Some(rate);
            (estimator.base, estimator.usual, estimator.recent) = (rate, rate, rate);
            estimator.bound(options);
            estimator.interval = estimator.due_in(options);
        }
        estimator
    }

    /// The rate of a whole fleet, which starts at the configured quota without a burst.
    pub(crate) fn pooled(options: &Options) -> RateEstimator {
        RateEstimator { untried: Some((FIRST_BURST, 0.0)), pooled: true, ..RateEstimator::new(options) }
    }

    /// The rate of a whole fleet that starts at a learned rate.
    pub(crate) fn pooled_at(rate: f64, options: &Options) -> RateEstimator {
        RateEstimator { pooled: true, ..RateEstimator::known(rate, options) }
    }

    fn at(rate: f64, options: &Options) -> RateEstimator {
        let rate = bounded(rate, options);
        let mut estimator = RateEstimator {
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
            floor: None,
            pooled: false,
            measured_at: 0.0,
            lowest: rate,
        };
        estimator.interval = estimator.due_in(options);
        estimator
    }

    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.base * self.search
    }

    /// The rate without a search; `None` while no throttle contradicts the configured quota.
    pub(crate) fn learned(&self) -> Option<f64> {
        self.untried.is_none().then_some(self.base)
    }

    /// True until a second request starts or the first one is accepted.
    pub(super) fn is_first_request(&self) -> bool {
        self.untried == Some((0.0, 0.0))
    }

    /// Takes back the effect of a throttle, but never beyond the rate before it.
    pub(crate) fn undo_rate_cut(&mut self, before: f64, after: f64, options: &Options) {
        if before > after && after > 0.0 {
            self.base = self.base.max((self.base * before / after).min(before));
            self.usual = self.usual.max(self.base / NEAR);
            self.in_row = 0;
            self.bound(options);
            self.interval = self.due_in(options);
        }
    }

    /// Notes the start of an attempt and the time since the one before; `held` if only the rate delayed it.
    pub(crate) fn sends(&mut self, since_last: Duration, held: bool, options: &Options) {
        let seconds = since_last.as_secs_f64();
        self.held = held;
        if let Some((running, _)) = &mut self.untried {
            *running += seconds;
        }
        if held && self.in_row == 0 {
            self.rise(seconds, options);
        }
        let memory = if self.is_untried() { FIRST_MEMORY } else { MEMORY };
        self.recent += (self.rate() - self.recent) * (1.0 - (-seconds / memory).exp());
    }

    /// Notes an accepted attempt.
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
        let late = (self.lateness() - self.late()).max(0.0);
        let pace = rarer(options) * self.rate() / (self.usual * self.interval);
        let rise = (ACCELERATION * late * pace).min(RISE_MAX);
        self.base *= ((creep + KEPT * rise) * seconds).exp();
        self.search *= ((1.0 - KEPT) * rise * seconds).exp();
        self.bound(options);
    }

    /// Notes the accepted attempts of a whole fleet in a period; `held` if only the rate limited them.
    pub(crate) fn passes(&mut self, period: Duration, accepted: f64, held: bool, options: &Options) {
        if accepted > 0.0 {
            self.in_row = 0;
        }
        self.accepted += if held { accepted } else { 0.0 };
        self.sends(period, held, options);
    }

    /// The rate without a search.
    pub(crate) fn base(&self) -> f64 {
        self.base
    }

    /// Continues at a rate that another relay learned, and keeps what is known of its steadiness.
    pub(crate) fn continue_at(&mut self, base: f64, rate: f64, options: &Options) {
        let change = base / self.base;
        (self.usual, self.accepted, self.lowest) = (self.usual * change, self.accepted * change, self.lowest * change);
        (self.base, self.search) = (base, rate / base);
        self.bound(options);
        self.interval = self.due_in(options);
    }

    /// Lowers the rate to one that was measured while the quota was exceeded.
    pub(crate) fn lower_to(&mut self, rate: f64, options: &Options) {
        if rate < self.rate() {
            (self.base, self.usual, self.recent, self.search) = (rate, rate, rate, 1.0);
            (self.accepted, self.seconds, self.lowest) = (0.0, 0.0, rate);
            self.bound(options);
            self.interval = self.due_in(options);
        }
    }

    /// Notes the throttle of an attempt that started after all earlier throttles were known.
    pub(crate) fn throttled(&mut self, options: &Options) {
        if self.pooled && self.untried.is_none() && self.accepted < POOL_FIND {
            // The bucket was empty a moment ago, and the rate is nearly right; less so at each further throttle.
            self.base *= 1.0 - (POOL_EARLY * 2f64.powi(self.early.min(10) as i32)).min(EARLY_STEP);
            self.search = 1.0;
            self.early += 1;
            self.in_row += 1;
            self.bound(options);
            return;
        }
        self.early = if self.lateness() < EARLY { self.early + 1 } else { 0 };
        let step = if self.early >= EARLY_TIMES { self.step(options).max(EARLY_STEP) } else { self.step(options) };
        let burst = f64::from(options.quota_burst);
        let untried = self.untried.take();
        if let Some((running, accepted)) = untried
            && running < FIRST_BURST
            && accepted < 0.9 * (burst - 1.0)
        {
            // No accepted request means two throttles: the first one alone is not believed.
            let least = if accepted > 0.0 { BURST_LEAST } else { BURST_NONE };
            let part = BURST_PART * (accepted + least) / burst;
            self.base = options.quota_rate * (1.0 - options.headroom) * part;
            (self.recent, self.usual) = (self.base, self.base);
        } else if self.in_row > IN_ROW {
            self.base *= KEPT_IN_ROW;
        } else {
            self.evidence = (self.evidence + self.lateness() - LUCK).max(0.0);
            let first_is_late = untried.is_some() && (self.lateness() > LATE || self.search > MORE);
            let alone = self.steady > ALONE && self.search > MORE;
            let belief =
                if first_is_late || alone { 1.0 } else { ((self.evidence - DOUBT) / DOUBT_WIDTH).clamp(0.0, 1.0) };
            let last = self.rate().min(self.recent).max(self.base);
            let measured = self.measured(untried.is_some(), options);
            let step = if first_is_late && !self.pooled { FIRST_FIND_STEP } else { step };
            let kept = POOL_KEPT.min(1.0 - options.headroom);
            let step = if self.pooled && untried.is_none() && belief < 0.5 { 1.0 - kept } else { step };
            self.base *= (last / self.base).powf(belief) * (1.0 - step);
            if self.pooled {
                let measured = (measured * (1.0 - options.headroom.max(POOL_STEP))).min(last);
                // A full bucket makes the average too small. The rate at the throttle is a little too large.
                let overflowed = untried.is_some() || self.search > 1.0 || self.lateness() > LATE;
                if measured > 0.0 {
                    self.base = self.base.max(measured).min(if overflowed {
                        last
                    } else {
                        last.min(measured.max(kept * last))
                    });
                }
                self.measured_at = if belief > 0.5 { 0.0 } else { measured };
            }
            (self.throttles, self.evidence) =
                if belief > 0.5 { (0.0, 0.0) } else { (self.throttles + 1.0, self.evidence) };
            self.compare();
        }
        self.search = 1.0;
        self.bound(options);
        self.usual *= (self.base / self.usual).powf(1.0 / (self.throttles + 1.0).min(LAG));
        self.recent = self.recent.min(1.2 * self.base);
        self.in_row += 1;
        (self.accepted, self.seconds, self.lowest) = (0.0, 0.0, self.base);
        self.interval = self.due_in(options);
    }

    /// The requests since the last throttle, as a multiple of those in which one is due.
    fn lateness(&self) -> f64 {
        self.accepted / (self.usual * self.interval)
    }

    /// The quota as measured from one throttle to the next; 0 if there were too few requests. The bucket was empty at
    /// both, so it let pass what it was given. If it was full in between, the end of the rise says when it was not:
    /// since then it lost its whole burst.
    fn measured(&self, is_first: bool, options: &Options) -> f64 {
        let burst = f64::from(options.quota_burst);
        let seconds = self.seconds.max(1.0);
        let (passed, least) =
            if is_first { (self.accepted - burst, POOL_FIND / 2.0) } else { (self.accepted, POOL_FIND) };
        if passed < least {
            return 0.0;
        }
        let rise = (self.base - self.lowest).max(0.0);
        let average = passed / seconds;
        if !is_first && rise * seconds / 8.0 > 0.8 * burst {
            average.max(self.base - (2.0 * burst * rise / seconds).sqrt())
        } else {
            average
        }
    }

    /// The lateness at which a search begins: later for a relay that shares the quota with others it cannot see.
    fn late(&self) -> f64 {
        if self.pooled {
            POOL_LATE
        } else if self.is_untried() {
            FIRST_LATE
        } else {
            LATE
        }
    }

    /// True while no throttle contradicts the configured quota. A fleet does not begin with a burst, which would have
    /// emptied the bucket.
    fn is_untried(&self) -> bool {
        self.untried.is_some() && !self.pooled
    }

    /// Compares the average since the last throttle with the one before. Other relays make it differ; a bucket that
    /// this relay has alone does not.
    fn compare(&mut self) {
        let found = self.accepted / self.seconds.max(0.001);
        let same = self.accepted > FIND_MIN && self.found > 0.0 && (found / self.found).ln().abs() < SAME;
        self.steady = if same { (self.steady * STEADIER).min(STEADY_MAX) } else { 1.0 };
        self.found = found;
    }

    fn step(&self, options: &Options) -> f64 {
        if self.pooled {
            return (2.0 * POOL_STEP).max(options.headroom);
        }
        let first = FIRST_STEP / rarer(options);
        let step = STEP + (first - STEP).max(0.0) / (1.0 + self.throttles / STEPS_TO_SETTLE);
        (step / self.steady).max(options.headroom)
    }

    fn due_in(&self, options: &Options) -> f64 {
        let rarer = rarer(options);
        let soon = rarer * SOON * SOON_GROWTH.powf(self.throttles) / self.usual;
        let fast = if self.throttles > 0.0 { FAST * self.usual.sqrt() } else { 0.0 };
        let settled = if self.pooled { POOL_PATIENCE } else { 1.0 }
            * (rarer * (INTERVAL + REQUESTS / self.usual) + fast).min(soon);
        let young = (rarer * (YOUNG * self.base / 0.5).max(REQUESTS_MIN / self.base)).min(settled);
        let grown = (self.age / YOUTH).min(1.0);
        young.powf(1.0 - grown) * settled.powf(grown)
    }

    fn bound(&mut self, options: &Options) {
        let options = &Options { rate_min: self.floor.unwrap_or(options.rate_min), ..*options };
        self.base = bounded(self.base, options);
        self.search = (bounded(self.rate(), options) / self.base).max(1.0);
        self.usual = self.usual.clamp(self.base / NEAR, self.base * NEAR);
    }
}

/// The factor by which the headroom makes throttles rarer.
fn rarer(options: &Options) -> f64 {
    1.0 + HEADROOM * options.headroom
}

fn bounded(rate: f64, options: &Options) -> f64 {
    let ceiling = if options.rate_max > 0.0 { options.rate_max } else { f64::MAX };
    rate.clamp(options.rate_min.min(ceiling), ceiling)
}
