//! The fleet's task: keeps a connection, publishes this relay's reports, and passes the reports of others on.
//!
//! | state | the task | ends when |
//! | --- | --- | --- |
//! | connecting | tries each server, waits (0.2 s to 5 s, jittered) after a round in which none accepted | a server accepts |
//! | connected | publishes a report each second, and a quarter of a second after a throttle, unless the one before it has not come back yet | the connection is lost, or a report does not come back for 3 s |
//!
//! The relay subscribes to the subject on which it publishes, so its own reports come back. That a report came back is
//! the proof that the server works and that the relay's account may use the subject: only then the fleet is *up*. At
//! most one report is on its way. Together with a client for each connection this means that no old report is sent
//! later.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use prometheus::{Gauge, IntGauge};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::connection::{BACKOFF, Connector, Happening, Link};
use super::freshness::Freshness;
use super::options::Options;
use super::quota::{LOOK, Member, Message, PERIOD, SILENCE};
use super::subject;
use crate::metrics::Metrics;
use crate::pacer::{self, Budget, Guidance};
use crate::time::{Clock, Timestamp};

/// The time for the goodbye to reach the server.
const GOODBYE_MAX: Duration = Duration::from_millis(300);
/// The change of the share, up or down, of which the sender is notified at once.
const CHANGE: f64 = 0.02;

/// The fleet, as one relay sees it.
pub struct Fleet {
    name: String,
    connector: Connector,
    clock: Clock,
    rng: fastrand::Rng,
    up: IntGauge,
    sharing: Option<Sharing>,
    /// The rounds in which no server accepted, in a row.
    failures: u32,
    /// The number of the server to begin with.
    first: usize,
    announced: Announced,
}

/// The parts that the fleet guides.
pub struct Guided {
    /// The pacer.
    pub budget: Budget,
    /// The settings of the pacer.
    pub pacer: pacer::Options,
    /// Notifies the sender that more may start than it knows.
    pub wake: Box<dyn Fn() + Send + Sync>,
}

/// The quota that the relay shares.
struct Sharing {
    subject: String,
    member: Member,
    /// The number of this run in its reports; `None` before the first.
    run: Option<u64>,
    freshness: Freshness,
    guided: Guided,
    /// The last decision that the sender was notified of.
    notified: Guidance,
    /// The time at which the report was published that has not come back.
    on_its_way: Option<Timestamp>,
    members: IntGauge,
    quota_rate: Gauge,
}

/// A report as it is published: with the sender's own time.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    #[serde(flatten)]
    message: Message,
    /// Milliseconds of the sender's clock.
    #[serde(default)]
    sent: u64,
}

/// The last log line about the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    Nothing,
    Joined,
    Down,
}

enum State {
    Connecting(Pin<Box<dyn Future<Output = Result<Link, String>> + Send>>),
    Connected(Link),
}

/// A change of the state, or a message.
enum Progress {
    Connected(Link),
    Heard(Bytes),
    /// The connection is lost, or there was none, and why.
    Lost(String),
}

impl State {
    /// Waits for what happens next. Dropping it loses nothing.
    async fn progress(&mut self) -> Progress {
        match self {
            State::Connecting(connecting) => connecting.await.map_or_else(Progress::Lost, Progress::Connected),
            State::Connected(link) => match link.next().await {
                Happening::Message(payload) => Progress::Heard(payload),
                Happening::Refused(why) | Happening::Lost(why) => Progress::Lost(format!("{}: {why}", link.server)),
            },
        }
    }
}

impl Fleet {
    /// The fleet, not connected yet. The pacer waits for its first share from here on.
    ///
    /// # Errors
    /// If the certificates or the credentials cannot be used.
    pub fn new(options: Options, guided: Guided, clock: Clock, metrics: &Metrics, seed: u64) -> Result<Fleet, String> {
        let connector = Connector::new(&options)?;
        let mut rng = fastrand::Rng::with_seed(seed);
        let sharing = options.quota.as_ref().map(|quota| {
            let now = clock.now();
            let subject = subject::of_quota(&options.name, &quota.connect_instance, &quota.destination);
            Sharing::new(subject, &options.id, guided, now, metrics, seed)
        });
        Ok(Fleet {
            name: options.name,
            connector,
            clock,
            first: rng.usize(..),
            rng,
            up: metrics.gauge("fleet_up", "1 while a server of the fleet passes this relay's reports on."),
            sharing,
            failures: 0,
            announced: Announced::Nothing,
        })
    }

    /// Runs until `stop`, and then leaves the fleet.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut looks = interval(LOOK);
        // After a delay, reports go on at the usual distance: a burst would only be a burden.
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = self.connecting(Duration::ZERO);
        loop {
            let lost = tokio::select! {
                biased;
                () = &mut stop => break,
                _ = looks.tick() => self.look(&mut state).await,
                progress = state.progress() => match progress {
                    Progress::Connected(link) => {
                        state = State::Connected(link);
                        self.connected(&mut state).await
                    }
                    Progress::Heard(payload) => {
                        self.heard(&payload, &state);
                        None
                    }
                    Progress::Lost(why) => Some(why),
                },
            };
            if let Some(why) = lost {
                state = self.lost(&state, &why);
            }
        }
        self.up.set(0);
        if let State::Connected(link) = state {
            self.leave(link).await;
        }
    }

    fn connecting(&mut self, after: Duration) -> State {
        let (connector, first) = (self.connector.clone(), self.first);
        self.first = self.first.wrapping_add(1);
        State::Connecting(Box::pin(async move {
            sleep(after).await;
            connector.connect(first).await
        }))
    }

    /// Begins to share over a new connection. Returns the reason if it is lost already.
    async fn connected(&mut self, state: &mut State) -> Option<String> {
        let State::Connected(link) = state else { return None };
        let Some(sharing) = &mut self.sharing else {
            let server = link.server.clone();
            self.is_up(&server);
            return None;
        };
        if let Err(why) = link.subscribe(&sharing.subject).await {
            return Some(why);
        }
        sharing.on_its_way = None;
        sharing.member.connected(self.clock.now());
        // The next report is up to a second away: the others hear of this relay at once.
        self.tick(state).await
    }

    /// Makes a report if one is due. Returns the reason if the connection is lost.
    async fn look(&mut self, state: &mut State) -> Option<String> {
        let now = self.clock.now();
        let sharing = self.sharing.as_mut()?;
        if let State::Connected(link) = state
            && let Some(since) = sharing.on_its_way
        {
            if now.since(since) >= SILENCE {
                return Some(format!("{}: this relay's own reports do not come back", link.server));
            }
            if now.since(since) < PERIOD {
                // News waits for it: what is reported now could not be published.
                return None;
            }
        }
        if sharing.is_due(now) {
            return self.tick(state).await;
        }
        sharing.guide(now);
        None
    }

    /// Makes this relay's report, and publishes it if it may. Returns the reason if the connection is lost.
    async fn tick(&mut self, state: &mut State) -> Option<String> {
        let now = self.clock.now();
        let sharing = self.sharing.as_mut()?;
        let message = sharing.tick(now);
        let State::Connected(link) = state else { return None };
        if sharing.on_its_way.is_some() {
            return None;
        }
        sharing.on_its_way = Some(now);
        link.publish(&sharing.subject, bytes(message, now)).await.err()
    }

    fn heard(&mut self, payload: &[u8], state: &State) {
        let now = self.clock.now();
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.heard(payload, now)
            && let State::Connected(link) = state
        {
            let server = link.server.clone();
            self.is_up(&server);
        }
    }

    /// Notes that the connection works.
    fn is_up(&mut self, server: &str) {
        self.failures = 0;
        self.up.set(1);
        if self.announced != Announced::Joined {
            self.announced = Announced::Joined;
            info!(fleet = self.name, server, "fleet joined");
        }
    }

    /// Begins to connect again. A connection that worked is replaced soon, and only a failure of that is announced.
    fn lost(&mut self, state: &State, why: &str) -> State {
        let worked = self.up.get() == 1 && matches!(state, State::Connected(_));
        self.up.set(0);
        if worked {
            let delay = BACKOFF.delay(1, self.rng.f64());
            return self.connecting(delay);
        }
        if self.announced != Announced::Down {
            self.announced = Announced::Down;
            let text = match self.sharing {
                Some(_) => "this relay goes on alone from its last share, and tries again until it is",
                None => "this relay tries again until it is",
            };
            warn!(fleet = self.name, why, "the fleet is not reached: {text}");
        }
        self.failures = self.failures.saturating_add(1);
        let delay = BACKOFF.delay(self.failures, self.rng.f64());
        self.connecting(delay)
    }

    /// Says goodbye, and waits until the server has it.
    async fn leave(&mut self, mut link: Link) {
        let Some(sharing) = &mut self.sharing else { return };
        let now = self.clock.now();
        if sharing.on_its_way.is_some_and(|since| now.since(since) > PERIOD)
            || link.publish(&sharing.subject, bytes(sharing.member.goodbye(), now)).await.is_err()
        {
            return;
        }
        let own = sharing.run;
        let came_back = async {
            loop {
                match link.next().await {
                    Happening::Message(payload) if is_goodbye_of(&payload, own) => break,
                    Happening::Message(_) => {}
                    Happening::Refused(_) | Happening::Lost(_) => break,
                }
            }
        };
        // A server that does not answer is not waited for: the others notice the silence.
        let _ = timeout(GOODBYE_MAX, came_back).await;
    }
}

impl Sharing {
    fn new(subject: String, id: &str, guided: Guided, now: Timestamp, metrics: &Metrics, seed: u64) -> Sharing {
        let mut sharing = Sharing {
            subject,
            member: Member::new(id, guided.pacer, now, seed),
            run: None,
            freshness: Freshness::default(),
            guided,
            notified: Guidance::Alone,
            on_its_way: None,
            members: metrics.gauge(
                "fleet_members",
                "Relays that share the quota and were heard in the last 3 s, this one included.",
            ),
            quota_rate: metrics.level("fleet_quota_rate", "Requests per second that the fleet has learned to make."),
        };
        sharing.guide(now);
        sharing
    }

    /// True if the pacer, or the decision, waits for a report.
    fn is_due(&self, now: Timestamp) -> bool {
        let has_news = self.guided.budget.pacer().has_news();
        self.member.is_due(has_news, now)
    }

    /// Takes in the pacer's report, and returns the message for the others.
    fn tick(&mut self, now: Timestamp) -> Message {
        let report = self.guided.budget.pacer().report(now);
        let message = self.member.tick(report, now);
        self.run = Some(message.run);
        self.guide(now);
        message
    }

    /// Takes in a message. Returns true if it is this relay's own.
    fn heard(&mut self, payload: &[u8], now: Timestamp) -> bool {
        let Ok(Report { message, sent }) = serde_json::from_slice(payload) else { return false };
        if Some(message.run) == self.run {
            self.on_its_way = None;
            return true;
        }
        if self.freshness.is_fresh(message.run, sent, now) {
            self.member.heard(&message, now);
            if message.division.is_some() {
                self.guide(now);
            }
        }
        false
    }

    /// Passes the fleet's decision on to the pacer.
    fn guide(&mut self, now: Timestamp) {
        let guidance = self.member.guidance(now);
        self.guided.budget.pacer().guide(guidance, now);
        if differs(&self.notified, &guidance) {
            self.notified = guidance;
            (self.guided.wake)();
        }
        self.members.set(i64::try_from(self.member.members(now)).unwrap_or(i64::MAX));
        self.quota_rate.set(self.member.quota_rate(now));
    }
}

/// True if the sender may start noticeably more, or less, than before.
fn differs(before: &Guidance, now: &Guidance) -> bool {
    match (before, now) {
        (Guidance::Share(before), Guidance::Share(now)) => (now.rate - before.rate).abs() > CHANGE * before.rate,
        (before, now) => std::mem::discriminant(before) != std::mem::discriminant(now),
    }
}

fn bytes(message: Message, now: Timestamp) -> Vec<u8> {
    // Numbers and texts: this cannot fail.
    serde_json::to_vec(&Report { message, sent: now.0 }).unwrap_or_default()
}

fn is_goodbye_of(payload: &[u8], run: Option<u64>) -> bool {
    serde_json::from_slice(payload).is_ok_and(|Report { message, .. }| message.leaving && Some(message.run) == run)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::pacer::{Allowance, Pacer};

    /// A relay's sharing, its pacer, and the number of notifications of its sender.
    fn sharing(id: &str, seed: u64) -> (Sharing, Budget, Arc<AtomicUsize>) {
        let pacer = pacer::Options::default();
        let budget = Budget::new(Pacer::new(pacer, Timestamp(0), seed));
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = Arc::clone(&woken);
        let wake = Box::new(move || {
            wake.fetch_add(1, Ordering::Relaxed);
        });
        let guided = Guided { budget: budget.clone(), pacer, wake };
        let sharing = Sharing::new("s".into(), id, guided, Timestamp(0), &Metrics::default(), seed);
        (sharing, budget, woken)
    }

    #[test]
    fn own_report_that_comes_back_makes_room_for_the_next_and_is_no_other_relay() {
        let (mut one, ..) = sharing("one", 1);
        let report = bytes(one.tick(Timestamp(1000)), Timestamp(1000));
        one.on_its_way = Some(Timestamp(1000));
        assert!(one.heard(&report, Timestamp(1010)));
        assert_eq!((one.on_its_way, one.member.members(Timestamp(1010))), (None, 1));
    }

    #[test]
    fn late_report_and_bytes_that_are_no_report_are_ignored() {
        let (mut one, ..) = sharing("one", 1);
        let (mut other, ..) = sharing("other", 2);
        let at = |ms: u64| Timestamp(ms);
        for payload in [&b""[..], b"{}", b"null", b"[1]", b"\xff"] {
            assert!(!one.heard(payload, at(500)));
        }
        assert_eq!(one.member.members(at(500)), 1);
        let mut report = |ms| bytes(other.tick(at(ms)), at(ms));
        let (first, second) = (report(1000), report(2000));
        one.heard(&first, at(1005));
        one.guide(at(1010));
        assert_eq!(one.members.get(), 2);
        // A server that was stopped passes the second on when the relay may be gone.
        one.heard(&second, at(9000));
        one.guide(at(9001));
        assert_eq!(one.members.get(), 1);
        one.heard(&report(9500), at(9505));
        assert_eq!(one.member.members(at(9505)), 2);
    }

    #[test]
    fn sender_is_notified_when_it_need_not_wait_any_longer() {
        let (mut one, budget, woken) = sharing("one", 1);
        assert_eq!(budget.pacer().allowance(Timestamp(10)), Allowance::Wait(Timestamp(3000)), "it waits for its share");
        one.member.connected(Timestamp(20));
        one.tick(Timestamp(1000));
        let before = woken.load(Ordering::Relaxed);
        one.guide(Timestamp(1219));
        assert_eq!(woken.load(Ordering::Relaxed), before, "another relay may be heard yet");
        one.guide(Timestamp(1220));
        assert_eq!(woken.load(Ordering::Relaxed), before + 1, "it heard no other relay");
        assert!(matches!(budget.pacer().allowance(Timestamp(1220)), Allowance::Start(_)));
        one.tick(Timestamp(3000));
        assert_eq!(woken.load(Ordering::Relaxed), before + 1, "nothing has changed");
    }
}
