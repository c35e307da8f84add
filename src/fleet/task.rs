//! The fleet's task: keeps a connection, publishes this relay's report each second, and passes the reports of others on.
//!
//! | state | the task | ends when |
//! | --- | --- | --- |
//! | connecting | tries each server, waits (0.2 s to 5 s, jittered) after a round in which none accepted | a server accepts |
//! | connected | publishes one report a second, unless the one before it has not come back yet | the connection is lost, or a report does not come back for 3 s |
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

use super::connection::{Connector, Happening, Link};
use super::freshness::Freshness;
use super::options::Options;
use super::quota::{Member, Message, PERIOD, SILENCE};
use super::subject;
use crate::metrics::Metrics;
use crate::pacer::{self, Budget, Guidance};
use crate::retry::Backoff;
use crate::time::{Clock, Timestamp};

/// The delays between rounds in which no server accepted.
const BACKOFF: Backoff =
    Backoff { initial: Duration::from_millis(200), multiplier: 2.0, randomization: 0.5, max: Duration::from_secs(5) };
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
    /// The number of this run in its reports; 0 before the first.
    run: u64,
    freshness: Freshness,
    guided: Guided,
    /// The rate of the last guidance, if it was a share.
    guided_to: Option<f64>,
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
            let mut sharing = Sharing {
                subject: subject::of_quota(&options.name, &quota.connect_instance, &quota.destination),
                member: Member::new(&options.id, guided.pacer, now, seed),
                run: 0,
                freshness: Freshness::default(),
                guided,
                guided_to: None,
                on_its_way: None,
                members: metrics.gauge(
                    "fleet_members",
                    "Relays that share the quota and were heard in the last 3 s, this one included.",
                ),
                quota_rate: metrics
                    .level("fleet_quota_rate", "Requests per second that the fleet has learned to make."),
            };
            sharing.guide(now);
            sharing
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
        let mut ticks = interval(PERIOD);
        // After a delay, reports go on at the usual distance: a burst would only be a burden.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = self.connecting(Duration::ZERO);
        loop {
            let lost = tokio::select! {
                biased;
                () = &mut stop => break,
                _ = ticks.tick() => self.tick(&mut state).await,
                progress = state.progress() => match progress {
                    Progress::Connected(link) => {
                        state = State::Connected(link);
                        ticks.reset();
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
        // The next tick is up to a second away: the others hear of this relay at once.
        self.tick(state).await
    }

    /// Publishes this relay's report, if it may. Returns the reason if the connection is lost.
    async fn tick(&mut self, state: &mut State) -> Option<String> {
        let now = self.clock.now();
        let sharing = self.sharing.as_mut()?;
        let message = sharing.tick(now);
        let State::Connected(link) = state else { return None };
        if let Some(since) = sharing.on_its_way {
            let silent = now.since(since) >= SILENCE;
            return silent.then(|| format!("{}: this relay's own reports do not come back", link.server));
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
            warn!(
                fleet = self.name,
                why,
                "the fleet is not reached: this relay goes on alone from its last share, and tries again until it is"
            );
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
    /// Takes in the pacer's report, and returns the message for the others.
    fn tick(&mut self, now: Timestamp) -> Message {
        let report = self.guided.budget.pacer().report(now);
        let message = self.member.tick(report, now);
        self.run = message.run;
        self.guide(now);
        message
    }

    /// Takes in a message. Returns true if it is this relay's own.
    fn heard(&mut self, payload: &[u8], now: Timestamp) -> bool {
        let Ok(Report { message, sent }) = serde_json::from_slice(payload) else { return false };
        if message.run == self.run {
            self.on_its_way = None;
            return true;
        }
        if self.freshness.is_fresh(message.run, sent, now) {
            self.member.heard(&message, now);
            self.guide(now);
        }
        false
    }

    /// Passes the fleet's decision on to the pacer.
    fn guide(&mut self, now: Timestamp) {
        let guidance = self.member.guidance(now);
        self.guided.budget.pacer().guide(guidance, now);
        let rate = match guidance {
            Guidance::Share(share) => Some(share.rate),
            Guidance::Alone | Guidance::Hold { .. } => None,
        };
        let changed = match (self.guided_to, rate) {
            (Some(before), Some(rate)) => (rate - before).abs() > CHANGE * before,
            (before, rate) => before.is_some() != rate.is_some(),
        };
        if changed {
            self.guided_to = rate;
            (self.guided.wake)();
        }
        self.members.set(i64::try_from(self.member.members(now)).unwrap_or(i64::MAX));
        self.quota_rate.set(self.member.quota_rate(now));
    }
}

fn bytes(message: Message, now: Timestamp) -> Vec<u8> {
    // Numbers and texts: this cannot fail.
    serde_json::to_vec(&Report { message, sent: now.0 }).unwrap_or_default()
}

fn is_goodbye_of(payload: &[u8], run: u64) -> bool {
    serde_json::from_slice(payload).is_ok_and(|Report { message, .. }| message.leaving && message.run == run)
}
