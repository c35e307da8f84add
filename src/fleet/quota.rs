//! The shared quota: one rate for all relays of a fleet, and each relay's share of it.
//!
//! ```text
//!            heard(message, now)                 tick(report, now) ─▶ message
//! others ───────────────────────▶ Member ◀──────────────────────────────────── the pacer's report, each second
//!                                   │ guidance(now)
//!                                   ▼
//!                                 Pacer
//! ```
//!
//! Each relay publishes a [`Message`] each second and hears those of the others. From them each relay computes the same
//! sums, and feeds them to the estimator of `pacer/estimator.rs` as if the fleet were one relay. One relay, the
//! *learner*, decides: it is the one with the lowest id that recently had something to send. It publishes a
//! [`Division`]; the others replace their own result with it, so that another relay can continue at any moment.
//!
//! | relay | gets |
//! | --- | --- |
//! | *hungry*: only the rate holds back its messages | the level: an equal part of what the others leave |
//! | uses less than that | what it uses; it may double that, or take an equal part of the fleet's rate, at once |
//!
//! | event | the fleet's rate |
//! | --- | --- |
//! | a throttle anywhere | one step down. Throttles until the step has reached all relays belong to the same event |
//! | many throttles | the accepted rate: while the bucket is empty, it is the quota |
//! | throttles in a second in which relays sent more than their rate, because one of them woke up | unchanged |
//! | a relay leaves with a goodbye | unchanged; the others get its part |
//! | a relay falls silent for [`SILENCE`] | less its part, because it may send on, unheard. The part comes back slowly, unless a throttle shows that it is in use |
//! | a relay comes back, or two fleets meet | more, by what the others use |
//! | the learner changes | unchanged |
//!
//! A relay without word from others for [`SILENCE`] goes on alone from its last share. A relay that starts waits at
//! most [`SILENCE`] for its share; if it hears no other relay for [`LISTEN`] after it was connected, it begins alone.
//!
//! Messages of others are untrusted: no value makes a relay panic or exceed its own `rate_max`, and no value raises
//! the fleet's rate above a hundred times the configured quota. The module knows no clock, no socket and no NATS.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pacer::{Guidance, Options, RateEstimator, Report, Share};
use crate::time::{Timestamp, millis};

/// The time between two messages of one relay.
pub const PERIOD: Duration = Duration::from_secs(1);
/// The time between two looks for news: a throttle is published, and decided upon, without waiting for the period.
pub const LOOK: Duration = Duration::from_millis(250);
/// The time without word after which a relay counts as gone, and the longest wait for the first share.
pub const SILENCE: Duration = Duration::from_secs(3);
/// The time after the connection in which a relay hears each other relay at least once.
pub const LISTEN: Duration = Duration::from_millis(1200);

/// The time for which a relay counts as active after it had something to send.
const ACTIVE: Duration = Duration::from_secs(10);
/// The age of the learner's last decision from which another relay's decision is accepted.
const STALE: Duration = Duration::from_millis(2500);
/// The time until a lower rate has reached all relays, and their next messages have come back.
const REACTION: Duration = Duration::from_millis(1000);
/// The time over which the demand of a relay is measured, and that for the rate at which it joins.
const RECENT: Duration = Duration::from_millis(950);
const LATELY: Duration = Duration::from_millis(9950);
/// The part of a second from which a relay counts as hungry if the rate holds it back.
const HUNGRY: f64 = 0.75;
/// The factor by which a relay may exceed its recent rate before the learner has decided.
const GROWTH: f64 = 2.0;
/// The part of the rate by which the parts of silent relays come back each second.
const RETURN: f64 = 0.004;
/// The throttles, their part of the requests, and the seconds, from which the accepted rate is the quota.
const OVERRUNS: [(f64, f64, f64); 2] = [(3.0, 0.35, 0.95), (5.0, 0.2, 1.95)];
/// The seconds without a throttle that end a series of throttles; the same in requests.
const QUIET: f64 = 1.5;
const QUIET_REQUESTS: f64 = 4.0;
/// The factor above the rate at which relays together have sent more than the rate.
const EXCESS: f64 = 1.15;
/// The highest rate, as a multiple of the configured quota.
const PLAUSIBLE: f64 = 100.0;
/// The most relays that are remembered; further ones are ignored.
const MEMBERS_MAX: usize = 2000;
/// The longest id.
const ID_MAX: usize = 256;
/// The most requests in one message that are believed.
const REQUESTS_MAX: f64 = 1e6;

/// A relay's message to its fleet.
///
/// Members that are not known are ignored, and members that are missing have their default, so that relays of
/// different versions understand each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// The relay's name; the lowest one learns.
    pub id: String,
    /// A number for each run of the process, to distinguish two runs of one id.
    pub run: u64,
    /// The requests that were accepted in this run.
    pub accepted: u64,
    /// The requests that were throttled because of the rate in this run.
    pub throttled: u64,
    /// Those of them that turned out to have another cause.
    pub retracted: u64,
    /// The part of the last second in which only the rate held back a message.
    pub held: f64,
    /// The accepted requests per second, over the last second.
    pub used: f64,
    /// The same over the last ten seconds.
    pub lately: f64,
    /// The present rate without a search.
    pub rate: f64,
    /// True if that rate was learned or is a share.
    pub learned: bool,
    /// The highest rate that the relay's configuration allows; 0 for none.
    pub rate_max: f64,
    /// The run of the relay whose decisions this one follows; its own if it decides; absent if it is alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<u64>,
    /// The time for which it has followed the fleet's decisions without a break, in milliseconds.
    pub following_ms: u64,
    /// True if the relay stops now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// The decision, if this relay decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub division: Option<Division>,
}

impl Message {
    /// Reads a message; `None` if it is not one.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        serde_json::from_slice(bytes).ok()
    }

    /// The bytes to publish.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The learner's decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Division {
    /// The fleet's rate, requests per second.
    pub rate: f64,
    /// The same without the rise of a search.
    pub base: f64,
    /// The most that one relay may take.
    pub level: f64,
    /// An equal part of the rate, which each relay may take at any time.
    pub part: f64,
}

impl Division {
    /// The division with all values within their bounds; `None` if it contains no rate.
    fn checked(self, rate_most: f64) -> Option<Division> {
        let rate = plausible(self.rate).min(rate_most);
        let base = plausible(self.base).min(rate);
        let level = plausible(self.level).min(rate);
        let part = plausible(self.part).min(level);
        (base > 0.0).then_some(Division { rate, base, level, part })
    }
}

/// The recent figures of one relay.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    held: f64,
    used: f64,
    lately: f64,
    rate: f64,
    learned: bool,
    rate_max: f64,
    /// True from the second message on: the first one contains no demand yet.
    known: bool,
    /// The last time at which it had something to send.
    active_at: Option<Timestamp>,
}

impl Figures {
    fn is_active(&self, now: Timestamp) -> bool {
        self.active_at.is_some_and(|at| now.since(at) < ACTIVE)
    }

    fn note_active(&mut self, now: Timestamp) {
        if self.held > 0.0 || self.used > 0.0 {
            self.active_at = Some(now);
        }
    }

    /// True if only its share limits it.
    fn wants_more(&self) -> bool {
        !self.known || self.held >= HUNGRY
    }

    /// True if it could use more than `rate`.
    fn is_hungry(&self, rate: f64) -> bool {
        self.wants_more() && (self.rate_max <= 0.0 || rate < self.rate_max)
    }

    /// The rate that it could use; infinite for a hungry relay.
    fn demand(&self) -> f64 {
        let demand = if self.wants_more() { f64::INFINITY } else { self.used / (1.0 - self.held) };
        if self.rate_max > 0.0 { demand.min(self.rate_max) } else { demand }
    }
}

#[derive(Debug)]
struct Peer {
    id: String,
    joined_at: Timestamp,
    heard_at: Timestamp,
    figures: Figures,
    accepted: u64,
    throttled: u64,
    retracted: u64,
    follows: Option<u64>,
    /// True if another run of the same id has appeared since.
    replaced: bool,
}

/// Requests of the whole fleet since the last tick.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    accepted: f64,
    throttled: f64,
    retracted: f64,
}

/// A series of throttles.
#[derive(Clone, Copy, Debug, Default)]
struct Overrun {
    seconds: f64,
    accepted: f64,
    throttled: f64,
    /// Seconds since the last throttle.
    quiet: f64,
    /// The rate at its begin.
    rate: f64,
}

/// One relay's view of its fleet.
#[derive(Debug)]
pub struct Member {
    id: String,
    run: u64,
    /// The settings for the fleet's rate: `rate_min` applies to the sum, `rate_max` is that of plausible messages.
    options: Options,
    rate_max: f64,
    created_at: Timestamp,
    connected_at: Option<Timestamp>,
    /// The other relays, by their runs.
    peers: BTreeMap<u64, Peer>,
    own: Figures,
    /// This relay's figures at the time of the last decision: a relay that became hungry since is not in its level.
    known: Figures,
    /// The last reports: time and accepted requests.
    reports: VecDeque<(Timestamp, u64)>,
    last: Report,
    heard_at: Option<Timestamp>,
    ticked_at: Option<Timestamp>,
    pool: RateEstimator,
    /// True until the first decision about this relay.
    cold: bool,
    /// The run of the relay that decides, and the time of its last decision.
    follows: Option<(u64, Timestamp)>,
    division: Option<Division>,
    sums: Sums,
    overrun: Option<Overrun>,
    /// Until then a throttle may stem from before the last step.
    deaf_until: Timestamp,
    /// The rates before and after the last step.
    last_cut: Option<(f64, f64)>,
    /// The parts of silent relays that have not come back.
    reserved: f64,
    /// The time since which this relay follows the fleet's decisions without a break.
    following_since: Option<Timestamp>,
}

impl Member {
    /// A relay that knows no other yet. `seed` distinguishes this run of the process from others of the same id.
    #[must_use]
    pub fn new(id: &str, options: Options, now: Timestamp, seed: u64) -> Member {
        let rate_max = options.rate_max;
        let options = Options { rate_max: PLAUSIBLE * options.quota_rate, ..options };
        Member {
            id: id.to_owned(),
            run: run_of(id, seed),
            pool: RateEstimator::pooled(&options),
            options,
            rate_max,
            created_at: now,
            connected_at: None,
            peers: BTreeMap::new(),
            own: Figures { rate_max, ..Figures::default() },
            known: Figures::default(),
            reports: VecDeque::new(),
            last: Report::default(),
            heard_at: None,
            ticked_at: None,
            cold: true,
            follows: None,
            division: None,
            sums: Sums::default(),
            overrun: None,
            deaf_until: now,
            last_cut: None,
            reserved: 0.0,
            following_since: None,
        }
    }

    /// Notes that messages of others can arrive from now on.
    pub fn connected(&mut self, now: Timestamp) {
        self.connected_at.get_or_insert(now);
    }

    /// The number of relays of the fleet, this one included.
    #[must_use]
    pub fn members(&self, now: Timestamp) -> usize {
        1 + self.peers.values().filter(|peer| now.since(peer.heard_at) < SILENCE).count()
    }

    /// The fleet's rate, requests per second; this relay's own rate while it is alone.
    #[must_use]
    pub fn quota_rate(&self, now: Timestamp) -> f64 {
        if self.hears_others(now) { self.pool.rate() } else { self.last.rate }
    }

    /// The decision about this relay.
    #[must_use]
    pub fn guidance(&self, now: Timestamp) -> Guidance {
        if let Some(heard_at) = self.heard_at.filter(|_| self.hears_others(now))
            && let Some(division) = self.division
        {
            return Guidance::Share(self.share(&division, heard_at + SILENCE));
        }
        if self.cold {
            let hold = self.created_at + SILENCE;
            let until = match self.connected_at {
                Some(connected_at) if self.peers.is_empty() => hold.min(connected_at + LISTEN),
                _ => hold,
            };
            if now < until {
                return Guidance::Hold { until: hold };
            }
        }
        Guidance::Alone
    }

    /// Takes in a message of another relay. Its own messages are ignored.
    pub fn heard(&mut self, message: &Message, now: Timestamp) {
        let run = message.run;
        if run == self.run || message.id.is_empty() || message.id.len() > ID_MAX {
            return;
        }
        if message.leaving {
            self.heard_at = Some(now);
            self.peers.remove(&run);
            return;
        }
        if self.peers.len() >= MEMBERS_MAX && !self.peers.contains_key(&run) {
            return;
        }
        self.heard_at = Some(now);
        let mut figures = self.figures_of(message);
        if let Some(peer) = self.peers.get_mut(&run) {
            let more = |new: u64, old: u64| (new.saturating_sub(old) as f64).min(REQUESTS_MAX);
            self.sums.accepted += more(message.accepted, peer.accepted);
            self.sums.throttled += more(message.throttled, peer.throttled);
            self.sums.retracted += more(message.retracted, peer.retracted);
            (figures.active_at, figures.known) = (peer.figures.active_at, true);
            figures.note_active(now);
            (peer.heard_at, peer.figures, peer.follows, peer.replaced) = (now, figures, message.follows, false);
            // A counter never falls in one run: a lower one is an old message, or not meant.
            peer.accepted = peer.accepted.max(message.accepted);
            peer.throttled = peer.throttled.max(message.throttled);
            peer.retracted = peer.retracted.max(message.retracted);
        } else {
            self.join(message, &figures);
            figures.note_active(now);
            let Message { accepted, throttled, retracted, follows, .. } = *message;
            let id = message.id.clone();
            let peer = Peer {
                id,
                joined_at: now,
                heard_at: now,
                figures,
                accepted,
                throttled,
                retracted,
                follows,
                replaced: false,
            };
            self.peers.insert(run, peer);
        }
        if let Some(division) = message.division.and_then(|division| division.checked(self.options.rate_max))
            && self.accepts_decision_of(run, now)
        {
            self.pool.continue_at(division.base, division.rate, &self.options);
            self.division = Some(division);
            let is_new = self.peers.get(&run).is_none_or(|peer| now.since(peer.joined_at) < 2 * PERIOD);
            if self.followed() != Some(run) && is_new {
                // Another fleet's decision, or the first one.
                self.following_since = Some(now);
            }
            self.known = self.own;
            self.follows = Some((run, now));
            self.cold = false;
        }
    }

    /// Takes in this relay's own report and returns the message to publish. It is called when
    /// [`Member::is_due`] says so, also while nothing can be published.
    pub fn tick(&mut self, report: Report, now: Timestamp) -> Message {
        let since_last = self.ticked_at.map_or(PERIOD, |at| now.since(at)).min(2 * PERIOD);
        self.ticked_at = Some(now);
        self.note_own(report, now);
        self.stay_with_decision();
        self.remove_silent(now);
        if !self.hears_others(now) {
            self.be_alone(now);
            return self.message(None, now);
        }
        self.learn(since_last, now);
        let decides = self.decides(now);
        if decides {
            if self.cold {
                self.begin_cold();
            }
            let division = self.divide();
            (self.cold, self.known) = (false, self.own);
            self.follows = Some((self.run, now));
            self.following_since.get_or_insert(now);
            self.division = Some(division);
        }
        self.message(self.division.filter(|_| decides), now)
    }

    /// True if [`Member::tick`] has to be called now: the period is over, this relay was throttled (`has_news`), or it
    /// decides and another relay was. It is asked at least each [`LOOK`].
    #[must_use]
    pub fn is_due(&self, has_news: bool, now: Timestamp) -> bool {
        let decides = self.followed() == Some(self.run);
        let urgent = has_news || (decides && self.sums.throttled > 0.0);
        self.ticked_at.is_none_or(|at| now.since(at) >= if urgent { LOOK } else { PERIOD })
    }

    /// The message with which the relay leaves.
    #[must_use]
    pub fn goodbye(&self) -> Message {
        Message { leaving: true, ..self.message(None, self.ticked_at.unwrap_or(self.created_at)) }
    }

    fn message(&self, division: Option<Division>, now: Timestamp) -> Message {
        let Figures { held, used, lately, rate, learned, rate_max, .. } = self.own;
        let Report { accepted, throttled, retracted, .. } = self.last;
        Message {
            id: self.id.clone(),
            run: self.run,
            accepted,
            throttled,
            retracted,
            held,
            used,
            lately,
            rate,
            learned,
            rate_max,
            follows: self.followed(),
            following_ms: self.following_since.map_or(0, |since| millis(now.since(since))),
            leaving: false,
            division,
        }
    }

    /// The run of the relay that decides.
    fn followed(&self) -> Option<u64> {
        self.follows.map(|(run, _)| run)
    }

    /// True while another relay was heard recently.
    fn hears_others(&self, now: Timestamp) -> bool {
        !self.peers.is_empty() && self.heard_at.is_some_and(|at| now.since(at) < SILENCE)
    }

    fn figures_of(&self, message: &Message) -> Figures {
        let bounded = |value: f64| plausible(value).min(self.options.rate_max);
        Figures {
            held: plausible(message.held).min(1.0),
            used: bounded(message.used),
            lately: bounded(message.lately),
            rate: bounded(message.rate),
            learned: message.learned,
            rate_max: bounded(message.rate_max),
            known: false,
            active_at: None,
        }
    }

    /// This relay's share.
    fn share(&self, division: &Division, until: Timestamp) -> Share {
        let mut rate = division.level;
        if !self.known.wants_more() {
            rate = rate.min(division.part.max(GROWTH * self.known.demand()));
        }
        if self.rate_max > 0.0 {
            rate = rate.min(self.rate_max);
        }
        Share { rate, base: rate * division.base / division.rate, part: rate / division.rate, until }
    }

    fn note_own(&mut self, report: Report, now: Timestamp) {
        let more = |new: u64, old: u64| new.saturating_sub(old) as f64;
        self.sums.accepted += more(report.accepted, self.last.accepted);
        self.sums.throttled += more(report.throttled, self.last.throttled);
        self.sums.retracted += more(report.retracted, self.last.retracted);
        self.last = report;
        self.reports.push_back((now, report.accepted));
        while self.reports.get(1).is_some_and(|(at, _)| now.since(*at) >= LATELY) {
            self.reports.pop_front();
        }
        let used = |span: Duration| {
            let old = self.reports.iter().rev().find(|(at, _)| now.since(*at) >= span);
            let (at, accepted) = *old.or(self.reports.front())?;
            let millis = millis(now.since(at));
            (millis > 0).then(|| report.accepted.saturating_sub(accepted) as f64 * 1000.0 / millis as f64)
        };
        let (used, lately) = (used(RECENT).unwrap_or(0.0), used(LATELY).unwrap_or(0.0));
        let Report { held, rate, learned, .. } = report;
        let known = self.reports.len() > 1;
        self.own = Figures { held, used, lately, rate, learned, known, ..self.own };
        self.own.note_active(now);
    }

    /// Takes back what this relay's own result has risen above the last decision of another, which all relays use.
    fn stay_with_decision(&mut self) {
        if let Some(Division { base, rate, .. }) = self.division
            && self.followed() != Some(self.run)
            && self.pool.rate() > rate
        {
            self.pool.continue_at(base, rate, &self.options);
        }
    }

    /// Forgets relays without word. Their parts are not given to others, because they may send on.
    fn remove_silent(&mut self, now: Timestamp) {
        let level = self.division.map_or(0.0, |division| division.level);
        let mut silent = 0.0;
        self.peers.retain(|_, peer| {
            let there = now.since(peer.heard_at) < SILENCE;
            if !there && !peer.replaced {
                silent += peer.figures.demand().min(level);
            }
            there
        });
        if silent > 0.0 && !self.peers.is_empty() {
            let base = self.pool.base();
            let kept = (base - silent).max(base / self.peers.len().max(2) as f64 / 2.0).min(base);
            self.reserved += base - kept;
            self.pool.continue_at(kept, kept, &self.options);
        }
    }

    /// Adds to the fleet's rate what a new relay brings along.
    fn join(&mut self, message: &Message, joined: &Figures) {
        for peer in self.peers.values_mut().filter(|peer| peer.id == message.id) {
            peer.replaced = true;
        }
        if self.cold {
            return;
        }
        let base = self.pool.base();
        let is_held = self.is_held();
        let was_here = message.following_ms >= millis(SILENCE) && message.follows == self.followed();
        let merged = if was_here {
            // Only messages were lost.
            let back = joined.demand().min(joined.rate).min(self.reserved);
            self.reserved -= back;
            base + back
        } else if is_held {
            base + joined.lately
        } else if joined.held >= HUNGRY && joined.learned {
            let used = self.peers.values().map(|peer| peer.figures.used).sum::<f64>() + self.own.used;
            base.max(joined.rate.min(joined.lately * GROWTH) + used)
        } else if joined.learned {
            base.max(joined.rate.min(self.options.quota_rate))
        } else {
            base
        };
        self.pool.continue_at(merged, merged * self.pool.rate() / base, &self.options);
    }

    /// True if only the rate holds back messages of the fleet.
    fn is_held(&self) -> bool {
        let level = self.division.map_or(0.0, |division| division.level);
        self.own.is_hungry(level) || self.peers.values().any(|peer| peer.figures.is_hungry(level))
    }

    /// Keeps the fleet's rate equal to this relay's own while there is no other relay.
    fn be_alone(&mut self, now: Timestamp) {
        self.peers.clear();
        self.following_since = None;
        (self.follows, self.division, self.sums, self.overrun, self.reserved) =
            (None, None, Sums::default(), None, 0.0);
        if matches!(self.guidance(now), Guidance::Hold { .. }) {
            return;
        }
        self.cold = false;
        self.pool = if self.last.learned {
            RateEstimator::pooled_at(self.last.rate, &self.options)
        } else {
            RateEstimator::pooled(&self.options)
        };
    }

    /// The run of the relay that has to decide: the lowest id that recently had something to send, or the lowest one.
    fn learner(&self, now: Timestamp) -> u64 {
        let own = (!self.own.is_active(now), &*self.id, self.run);
        let others = self.peers.iter().map(|(run, peer)| (!peer.figures.is_active(now), &*peer.id, *run));
        others.chain([own]).min().map_or(self.run, |(.., run)| run)
    }

    /// True if this relay is the learner, or still is because its successor has not decided yet.
    fn decides(&self, now: Timestamp) -> bool {
        if self.followed() == Some(self.run) {
            return true;
        }
        if self.learner(now) != self.run {
            return false;
        }
        if !self.cold {
            return true;
        }
        let listened = now.since(self.connected_at.unwrap_or(self.created_at)) >= PERIOD;
        let others_decide = self.peers.values().any(|peer| peer.follows.is_some());
        listened && (!others_decide || now.since(self.created_at) + PERIOD >= SILENCE)
    }

    fn accepts_decision_of(&self, run: u64, now: Timestamp) -> bool {
        match self.follows {
            // A relay that was alone brings its own rate along, which a higher one may not have counted.
            None => self.cold || self.learner(now) == run,
            Some((followed, _)) if followed == self.run => self.learner(now) == run,
            Some((followed, at)) => followed == run || now.since(at) > STALE || self.learner(now) == run,
        }
    }

    /// The first rate of relays that start together: the sum of the rates that they kept, or the configured quota.
    fn begin_cold(&mut self) {
        let all = self.peers.values().map(|peer| &peer.figures).chain([&self.own]);
        let kept = |figures: &Figures| if figures.lately > 0.0 { figures.lately } else { figures.rate };
        let (sum, most) = all
            .filter(|figures| figures.learned)
            .map(kept)
            .fold((0.0, 0.0), |(sum, most): (f64, f64), rate| (sum + rate, most.max(rate)));
        if sum > 0.0 {
            let configured = self.options.quota_rate * (1.0 - self.options.headroom);
            self.pool = RateEstimator::pooled_at(sum.min(configured.max(most)), &self.options);
        }
    }

    /// Feeds the sums since the last tick to the estimator.
    fn learn(&mut self, since_last: Duration, now: Timestamp) {
        let Sums { accepted, throttled, retracted } = std::mem::take(&mut self.sums);
        let seconds = since_last.as_secs_f64();
        let is_held = self.is_held();
        self.pool.passes(since_last, accepted, is_held, &self.options);
        if retracted > 0.0
            && let Some((before, after)) = self.last_cut.take()
        {
            self.pool.undo_rate_cut(before, after, &self.options);
        }
        if throttled > 0.0 {
            let rate = self.pool.rate();
            self.overrun.get_or_insert(Overrun { rate, ..Overrun::default() }).quiet = 0.0;
        }
        if let Some(overrun) = &mut self.overrun {
            overrun.quiet += seconds;
            overrun.seconds += seconds;
            overrun.accepted += accepted;
            overrun.throttled += throttled;
            if overrun.quiet > QUIET.max(QUIET_REQUESTS / self.pool.rate()) {
                self.overrun = None;
            }
        }
        if throttled <= 0.0 {
            self.return_reserved(seconds, is_held);
            return;
        }
        self.reserved = 0.0;
        let Overrun { seconds: lasts, accepted: passed, throttled: refused, rate, .. } =
            self.overrun.unwrap_or_default();
        let sent = accepted + throttled;
        let is_excess = sent > EXCESS * self.pool.rate() * seconds + 2.0;
        if is_excess && lasts < SILENCE.as_secs_f64() {
            return;
        }
        let part = refused / (passed + refused);
        let is_overrun = |(least, least_part, least_seconds): (f64, f64, f64)| {
            refused >= least && part > least_part && lasts >= least_seconds
        };
        if OVERRUNS.into_iter().any(is_overrun) && now >= self.deaf_until {
            // The relays that were throttled have sent less than their share: the larger of two estimates.
            let measured = (passed / lasts).max(rate * (1.0 - part)).max(rate / 4.0);
            self.pool.lower_to(measured * (1.0 - self.options.headroom), &self.options);
            self.deaf_until = now + REACTION;
            self.overrun = None;
        } else if now >= self.deaf_until {
            let before = self.pool.rate();
            self.pool.throttled(&self.options);
            self.last_cut = Some((before, self.pool.rate()));
            self.deaf_until = now + REACTION;
        }
    }

    /// Gives back the parts of silent relays, slowly.
    fn return_reserved(&mut self, seconds: f64, is_held: bool) {
        if self.reserved > 0.0 && is_held {
            let (base, rate) = (self.pool.base(), self.pool.rate());
            let back = (RETURN * base * seconds).min(self.reserved);
            self.reserved -= back;
            self.pool.continue_at(base + back, rate + back, &self.options);
        }
    }

    /// Divides the fleet's rate: hungry relays get the level, so that the sum of all is the rate.
    fn divide(&self) -> Division {
        let (rate, base) = (self.pool.rate(), self.pool.base());
        let figures = self.peers.values().map(|peer| &peer.figures).chain([&self.own]);
        let mut demands: Vec<f64> = figures.map(Figures::demand).collect();
        demands.sort_unstable_by(f64::total_cmp);
        let part = rate / demands.len() as f64;
        let mut left = rate;
        let mut level = rate;
        for (index, demand) in demands.iter().enumerate() {
            let equal = left / (demands.len() - index) as f64;
            if *demand > equal {
                level = equal;
                break;
            }
            left -= demand;
            level = demand + left;
        }
        Division { rate, base, level: level.clamp(part, rate), part }
    }
}

/// A value of a message, if it is a number that can be meant; else 0.
fn plausible(value: f64) -> f64 {
    if value.is_finite() && value > 0.0 { value } else { 0.0 }
}

/// A number for this run: two relays with one seed, or two runs of one id, are distinct.
fn run_of(id: &str, seed: u64) -> u64 {
    id.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests;
