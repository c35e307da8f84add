//! The copy of the queue in the fleet: its start, and the task that ships.
//!
//! ```text
//!                        ┌ the volume has everything that the stream has ───────────▶ open it
//! start: find the owner  ├ it lacks commits, or is empty ──────── silence ─▶ restore the stream's queue, then open it
//! of the stream          ├ both lack commits, or a successor ──── silence ─▶ set it aside, restore, open
//!                        └ no answer ─▶ a queue: open it; an empty volume: wait 2 x `lease`, then open an empty queue
//! ```
//!
//! *Silence*: the owner's last record says that it left, or for `lease` neither a sign of life nor a new record came. An
//! owner that lives keeps the doors of this relay shut. A relay that was wrong about that stores nothing: its claim
//! expects the last record that it read.
//!
//! The task owns one connection at a time. The queue's thread gives it tickets and gets reports; [`Ship`] decides.

mod start;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use super::connection::{BACKOFF, Connector, Happening, Link};
use super::options::CopyOptions;
use super::orphans::Orphans;
use super::signs::{self, Sign};
use super::stream::{Answer, IDENTITY, Info, Listed, Stream, StreamError, list};
use crate::health::Obstacle;
use crate::metrics::{LOCAL_SECONDS, Metrics};
use crate::retry::Backoff;
use crate::ship::ownership::Ownership;
use crate::ship::record::{Codec, Head, Kind};
use crate::ship::standing::Standing;
use crate::ship::{self, Identity, Report, Ship, Step, Ticket};
use crate::storage::Volume;
use crate::time::{Clock, Timestamp};

/// The delays before a record in doubt is published again.
const DOUBT: Backoff =
    Backoff { initial: Duration::from_millis(20), multiplier: 2.0, randomization: 0.0, max: Duration::from_secs(1) };
/// The interval of signs of life.
const SIGN: Duration = Duration::from_secs(1);
/// The interval of looks at the stream's size.
const MEASURE: Duration = Duration::from_secs(10);
/// The time without an answer to a record after which the relay tries another server: the one at hand may be cut off from
/// the majority. Longer than an election.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// The answers in vain after which the relay logs the reason.
const DOUBTS_MAX: u32 = 5;

/// A request to the servers that is under way.
type Request<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The reasons why a relay cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The configuration and the servers do not match.
    #[error("{0}")]
    Config(String),
    /// The servers did not answer in time.
    #[error("{0}")]
    Unanswered(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The copy before the queue is open.
#[derive(Debug)]
pub struct Replica {
    options: CopyOptions,
    connector: Connector,
    codec: Codec,
    ship: Ship,
    own: Identity,
    link: Option<Link>,
    clock: Clock,
    rng: fastrand::Rng,
    metrics: ReplicaMetrics,
    /// True if the queue was restored from the stream.
    pub restored: bool,
    /// The records in doubt and the looks in vain since a record was stored, and true if the reason was logged.
    doubts: (u32, bool),
    /// The runs of the queue, this one's last.
    volume: Volume,
    /// The time after which a start goes on without the servers. `None` if it does not.
    patience: Option<Duration>,
    /// Read by the sender.
    ownership: Arc<Ownership>,
    /// True if the queue began without a look at the stream, which may have more.
    unlooked: bool,
    /// True if it began empty.
    unrestored: bool,
    /// Notified when a store was set aside whose messages are to be accepted.
    pub late: Arc<Notify>,
    /// The reason why the stream lacks commits.
    pub obstacle: Obstacle,
    /// The last refusal of a server, until it is logged.
    refusal: Option<String>,
    /// The number of the server to begin with.
    first: usize,
}

#[derive(Clone, Debug)]
struct ReplicaMetrics {
    ack_seconds: Histogram,
    fenced: IntCounter,
    stream_bytes: IntGauge,
    orphans: IntGauge,
}

/// The owner of the stream, as a start finds it.
struct Found {
    standing: Standing,
    head: Option<Head>,
    info: Info,
}

impl Replica {
    /// Makes the volume ready to be opened: finds the stream's owner, waits for its silence, and restores the queue if
    /// another volume had it.
    ///
    /// # Errors
    /// If the servers do not work with this relay, its key file does not open the stream, or a file cannot be written.
    pub async fn prepare(
        options: CopyOptions,
        clock: Clock,
        metrics: &Metrics,
        seed: u64,
    ) -> Result<Replica, StartError> {
        let connector = Connector::new(&options.fleet).map_err(StartError::Failed)?;
        let codec = Codec::new(options.keys.clone(), &super::stream::name(&options.fleet.name, &options.identity));
        let own = Identity { volume: 0, instance: seed | 1, node: options.node.clone() };
        let metrics = ReplicaMetrics {
            ack_seconds: metrics.histogram(
                "fleet_ack_seconds",
                "From a record's first publication to the fleet's having it.",
                LOCAL_SECONDS,
            ),
            fenced: metrics.counter("fleet_fenced_total", "Times that another relay took over this queue."),
            stream_bytes: metrics.gauge("fleet_stream_bytes", "Bytes of this relay's stream, in one copy."),
            orphans: metrics.gauge(
                "fleet_orphans",
                "Streams of the fleet that hold queued messages and whose owner was not heard of for a minute.",
            ),
        };
        let ship = Ship::new(codec.clone(), own.clone(), None, seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let first = rng.usize(..);
        let mut replica = Replica {
            options,
            connector,
            codec,
            ship,
            own,
            link: None,
            clock,
            rng,
            metrics,
            restored: false,
            doubts: (0, false),
            volume: Volume::default(),
            patience: None,
            ownership: Arc::default(),
            unlooked: false,
            unrestored: false,
            late: Arc::default(),
            obstacle: Obstacle::default(),
            refusal: None,
            first,
        };
        replica.make_ready().await?;
        Ok(replica)
    }

    /// Connects, and finds the owner of the stream. Tries until the servers answer.
    async fn find(&mut self) -> Result<Found, StartError> {
        let mut failures = 0;
        let mut said = false;
        let began = self.clock.now();
        loop {
            let error = match self.look().await {
                Ok(found) => return Ok(found),
                Err(StreamError::Unsupported(why)) => return Err(StartError::Config(why)),
                Err(StreamError::Unreadable(why)) => return Err(StartError::Failed(why)),
                Err(StreamError::Failed(why)) => why,
            };
            let refusal = match &mut self.link {
                Some(link) => link.refusal().await,
                None => None,
            };
            let error = explained(error, refusal);
            self.link = None;
            self.obstacle.set(&error);
            if self.patience.is_some_and(|patience| self.clock.now().since(began) >= patience) {
                return Err(StartError::Unanswered(error));
            }
            if !said {
                said = true;
                warn!(why = error, "the fleet's servers do not answer yet");
            }
            failures += 1;
            sleep(BACKOFF.delay(failures, self.rng.f64())).await;
        }
    }

    async fn look(&mut self) -> Result<Found, StreamError> {
        if self.link.is_none() {
            let link = self.connector.connect(self.rng.usize(..)).await.map_err(StreamError::Failed)?;
            self.stream(&link).check_server().await?;
            self.link = Some(link);
        }
        let Some(link) = &self.link else { return Err(StreamError::Failed("not connected".into())) };
        let stream = self.stream(link);
        let info = stream.info().await?.unwrap_or_default();
        let (standing, head) = stream.standing(&self.codec).await?;
        Ok(Found { standing, head, info })
    }

    /// Makes the stream, or gives it the settings of this relay, which is about to own it.
    async fn shape_stream(&self) {
        let Some(link) = &self.link else { return };
        let stream = self.stream(link);
        // Without an answer the first record is in doubt, and the task looks again.
        let shaped = timeout(self.options.ack_timeout, stream.ensure(&self.options.shape, self.metadata())).await;
        if let Ok(Err(error)) = shaped {
            warn!(%error, "the stream does not have the settings of this relay");
        }
    }

    /// The names that the stream keeps for operators.
    fn metadata(&self) -> Value {
        json!({ (IDENTITY): self.options.identity, "connect-relay-fleet": self.options.fleet.name })
    }

    fn stream(&self, link: &Link) -> Stream {
        Stream::new(link.client(), &self.options.fleet.name, &self.options.identity)
    }

    /// Waits until the owner is gone, and returns the last state of its stream.
    async fn wait_for_silence(&mut self, found: Found) -> Result<Standing, StartError> {
        let mut found = found;
        let mut warned = false;
        loop {
            if found.head.is_some_and(|head| head.kind == Kind::Released) {
                return Ok(found.standing);
            }
            match self.listen(&found).await {
                Ok(None) => return Ok(found.standing),
                Ok(Some(node)) if !warned => {
                    warned = true;
                    let owner = found.standing.owner.as_ref().map(|owner| owner.node.clone()).unwrap_or_default();
                    let other = node.unwrap_or(owner);
                    self.obstacle.set(&format!("another relay lives under this fleet.identity, on {other}"));
                    warn!(
                        identity = self.options.identity,
                        other,
                        "another relay lives under this fleet.identity: this one waits with closed doors until it is gone"
                    );
                }
                Ok(Some(_)) => {}
                Err(why) => warn!(why, "the fleet's servers do not answer; the relay waits for them with closed doors"),
            }
            found = self.find().await?;
        }
    }

    /// Listens for a sign of life of the owner, for the time of the lease. Returns the other machine's name if one came;
    /// `None` inside if it was a record.
    async fn listen(&mut self, found: &Found) -> Result<Option<Option<String>>, String> {
        let Some(mut link) = self.link.take() else { return Err("not connected".into()) };
        link.subscribe(&signs::subject_of(&self.options.fleet.name, &self.options.identity)).await?;
        let stream = self.stream(&link);
        let last = found.info.last;
        let own = self.own.instance;
        let heard = async {
            let mut looks = interval(SIGN);
            loop {
                tokio::select! {
                    happening = link.next() => match happening {
                        Happening::Message(payload) => match serde_json::from_slice::<Sign>(&payload) {
                            Ok(sign) if sign.instance != own => return Ok(Some(sign.node)),
                            _ => {}
                        },
                        Happening::Lost(why) => return Err(why),
                        Happening::Refused(_) => {}
                    },
                    _ = looks.tick() => match stream.info().await {
                        Ok(info) if info.unwrap_or_default().last != last => return Ok(None),
                        Ok(_) => {}
                        Err(error) => return Err(error.to_string()),
                    },
                }
            }
        };
        let heard = timeout(self.options.lease, heard).await;
        match heard {
            Ok(Ok(node)) => Ok(Some(node)),
            Ok(Err(why)) => Err(why),
            Err(_) => {
                self.link = Some(link);
                Ok(None)
            }
        }
    }

    /// Ships until `stop`, or until the queue's thread has ended and everything is stored.
    pub async fn run(mut self, end: ship::link::TaskEnd, stop: impl Future<Output = ()>) {
        let ship::link::TaskEnd { mut tickets, reports, .. } = end;
        let mut stop = std::pin::pin!(stop);
        let mut failures = 0;
        // For each of the two kinds of errors: true if it was logged since the stream took records.
        let mut announced = [false; 2];
        let (ownership, clock) = (Arc::clone(&self.ownership), self.clock.clone());
        tokio::select! {
            () = &mut stop => {}
            () = async {
                let mut beats = interval(SIGN);
                loop {
                    beats.tick().await;
                    ownership.beat(clock.now());
                }
            } => {}
            () = async {
                loop {
                    let link = match self.link.take() {
                        Some(link) => Ok(Some(link)),
                        None => self.connect(&mut tickets).await,
                    };
                    let lost = match link {
                        Ok(Some(link)) if self.unlooked => {
                            self.link = Some(link);
                            match self.take_over_late().await {
                                Ok(()) => continue,
                                Err(StartError::Config(why)) => Err(Lost::Unsupported(why)),
                                Err(error) => Err(Lost::Closed(error.to_string())),
                            }
                        }
                        Ok(Some(link)) => {
                            failures = 0;
                            announced = [false; 2];
                            self.serve(link, &mut tickets, &reports).await
                        }
                        Ok(None) => return,
                        Err(StreamError::Unsupported(why)) => Err(Lost::Unsupported(why)),
                        Err(error) => Err(Lost::Closed(error.to_string())),
                    };
                    let _ = reports.send(Report::Connected(false));
                    let Err(lost) = lost else { return };
                    let (Lost::Unsupported(why) | Lost::Closed(why) | Lost::Silent(why)) = &lost;
                    self.obstacle.set(why);
                    let text = match lost {
                        Lost::Unsupported(_) if !std::mem::replace(&mut announced[0], true) => {
                            Some("the fleet's servers cannot hold the copy; the relay tries again until they can")
                        }
                        Lost::Closed(_) if !std::mem::replace(&mut announced[1], true) => {
                            Some("the fleet's servers are not reached; the relay tries again until they are")
                        }
                        // The silence of a leader is logged by itself.
                        _ => None,
                    };
                    if let Some(text) = text {
                        warn!(why, "{text}");
                    }
                    failures += 1;
                    let delay = BACKOFF.delay(failures, self.rng.f64());
                    if !self.pause(delay, &mut tickets).await {
                        return;
                    }
                }
            } => {}
        }
    }

    /// Sends the reports that the queue's thread finds at its beginning.
    pub fn announce(&mut self, end: &ship::link::TaskEnd) {
        self.ownership = Arc::clone(&end.ownership);
        let _ = end.reports.send(Report::Connected(self.link.is_some()));
        self.report(&end.reports);
    }

    fn report(&mut self, reports: &std::sync::mpsc::Sender<Report>) {
        for report in self.ship.take_reports() {
            if matches!(report, Report::Fenced(_)) {
                self.metrics.fenced.inc();
                self.ownership.lose();
            }
            // If the thread is gone, nothing is shipped any more.
            let _ = reports.send(report);
        }
    }

    /// Takes tickets for a while. Returns false if the queue's thread has ended.
    async fn pause(&mut self, delay: Duration, tickets: &mut UnboundedReceiver<Ticket>) -> bool {
        let mut over = std::pin::pin!(sleep(delay));
        loop {
            tokio::select! {
                () = &mut over => return true,
                ticket = tickets.recv() => match ticket {
                    Some(ticket) => self.ship.push(ticket),
                    None => return false,
                },
            }
        }
    }

    /// Connects to a server that works. `None` if the queue's thread has ended.
    async fn connect(&mut self, tickets: &mut UnboundedReceiver<Ticket>) -> Result<Option<Link>, StreamError> {
        let (connector, first) = (self.connector.clone(), self.first);
        // The next time it begins with the next one.
        self.first = first.wrapping_add(1);
        let (fleet, identity) = (self.options.fleet.name.clone(), self.options.identity.clone());
        let connecting = async move {
            let link = connector.connect(first).await.map_err(StreamError::Failed)?;
            Stream::new(link.client(), &fleet, &identity).check_server().await?;
            Ok(link)
        };
        let mut connecting = std::pin::pin!(connecting);
        loop {
            tokio::select! {
                link = &mut connecting => return link.map(Some),
                ticket = tickets.recv() => match ticket {
                    Some(ticket) => self.ship.push(ticket),
                    None => return Ok(None),
                },
            }
        }
    }

    /// Ships over one connection. Returns when the queue's thread has ended and everything is stored, or with the reason
    /// why another connection is needed.
    async fn serve(
        &mut self,
        mut link: Link,
        tickets: &mut UnboundedReceiver<Ticket>,
        reports: &std::sync::mpsc::Sender<Report>,
    ) -> Result<(), Lost> {
        let stream = self.stream(&link);
        self.ship.limit_records(stream.record_max());
        let fleet = self.options.fleet.name.clone();
        let signs = signs::subject_of(&fleet, &self.options.identity);
        link.subscribe(&signs::subject_of_all(&fleet)).await.map_err(Lost::Closed)?;
        let mut orphans = Orphans::new(&self.options.identity, self.clock.now());
        let sign =
            Sign { identity: self.options.identity.clone(), instance: self.own.instance, node: self.own.node.clone() };
        let sign = serde_json::to_vec(&sign).map_err(|error| Lost::Closed(error.to_string()))?;
        let mut ticks = interval(SIGN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measured: Option<Timestamp> = None;
        let (mut step, mut began, mut doubts, mut ended) = (None, self.clock.now(), 0u32, false);
        // The beginning of the step under way.
        let mut step_began = began;
        let ownership = Arc::clone(&self.ownership);
        // The servers may have lost records meanwhile: the stream counts as reached when its leader has answered.
        let (mut answered, mut connected) = (false, false);
        // The time since which no record was answered.
        let mut silent: Option<Timestamp> = None;
        // Not a step: the more streams the fleet has, the longer it takes, and commits do not wait for it.
        let mut listing: Option<Request<Result<Vec<Listed>, StreamError>>> = None;
        loop {
            self.report(reports);
            if answered && !connected {
                connected = true;
                let _ = reports.send(Report::Connected(true));
            }
            if step.is_none() {
                match self.begin_step(&stream, doubts) {
                    Some(next) => {
                        step_began = self.clock.now();
                        if doubts == 0 {
                            began = step_began;
                        }
                        step = Some(next);
                    }
                    None if ended => return Ok(()),
                    None => {}
                }
            }
            tokio::select! {
                listed = under_way(&mut listing) => {
                    listing = None;
                    if let Ok(streams) = listed {
                        orphans.listed(streams, self.clock.now(), self.rng.f64());
                    }
                }
                done = under_way(&mut step) => {
                    step = None;
                    let confirmations = self.ship.confirmations;
                    let published = matches!(done, Done::Published(Answer::Stored(_)));
                    answered |= published || matches!(done, Done::Looked(Ok(_)) | Done::Measured(Ok(_)));
                    match done.silence() {
                        Silence::Unknown => {}
                        Silence::No => silent = None,
                        Silence::Yes(why) => {
                            let now = self.clock.now();
                            let since = *silent.get_or_insert(began);
                            if now.since(since) >= ELSEWHERE {
                                return Err(Lost::Silent(format!("{}: {why}", link.server)));
                            }
                        }
                    }
                    doubts = if self.apply(done) { 0 } else { doubts.saturating_add(1) };
                    if self.ship.confirmations > confirmations {
                        ownership.confirmed(step_began);
                    }
                    if published && doubts == 0 {
                        self.metrics.ack_seconds.observe(self.clock.now().since(began).as_secs_f64());
                    }
                }
                ticket = tickets.recv(), if !ended => match ticket {
                    Some(ticket) => self.ship.push(ticket),
                    None => ended = true,
                },
                happening = link.next() => match happening {
                    Happening::Message(payload) => {
                        let sign = orphans.heard(&payload, self.clock.now());
                        // A successor, perhaps: the stream decides.
                        if sign.is_some_and(|sign| self.is_rival(&sign)) {
                            measured = None;
                        }
                    }
                    Happening::Lost(why) => return Err(Lost::Closed(format!("{}: {why}", link.server))),
                    Happening::Refused(why) => self.refusal = Some(why),
                },
                () = ownership.asked() => {
                    measured = None;
                    ticks.reset_immediately();
                }
                _ = ticks.tick() => {
                    if self.ship.is_owner() {
                        link.publish(&signs, sign.clone()).await.map_err(Lost::Closed)?;
                    }
                    let now = self.clock.now();
                    if step.is_none() && measured.is_none_or(|at| now.since(at) >= MEASURE) {
                        measured = Some(now);
                        step_began = now;
                        let stream = stream.clone();
                        step = Some(Box::pin(async move { Done::Measured(stream.info().await) }));
                    }
                    if listing.is_none() && orphans.is_due(now, self.rng.f64()) {
                        let (client, fleet, heard) = (link.client(), fleet.clone(), orphans.heard_of());
                        listing = Some(Box::pin(async move { list(&client, &fleet, |name| !heard.contains(name)).await }));
                    }
                    self.metrics.orphans.set(orphans.count());
                }
            }
        }
    }

    /// Logs the reason why the stream takes no records, once, if that goes on.
    fn doubt(&mut self, why: String) {
        let why = explained(why, self.refusal.take());
        self.obstacle.set(&why);
        self.doubts.0 += 1;
        if self.doubts.0 >= DOUBTS_MAX && !self.doubts.1 {
            self.doubts.1 = true;
            warn!(why, "the fleet's stream does not take records; the relay tries again until it does");
        }
    }

    fn is_rival(&self, sign: &Sign) -> bool {
        sign.identity == self.options.identity && sign.instance != self.own.instance && self.ship.is_owner()
    }

    /// Begins the next step. `None` if there is nothing to do.
    fn begin_step(&self, stream: &Stream, doubts: u32) -> Option<Request<Done>> {
        let (stream, within) = (stream.clone(), self.options.ack_timeout);
        let delay = if doubts == 0 { Duration::ZERO } else { DOUBT.delay(doubts, 0.5) };
        Some(match self.ship.next() {
            Step::Wait | Step::Stop => return None,
            Step::Publish { expected, record, provisional } => {
                let record = record.clone();
                Box::pin(async move {
                    wait(delay).await;
                    match stream.publish(expected, record, provisional, within).await {
                        Answer::Doubt(_) | Answer::Silence(_) if matches!(stream.info().await, Ok(None)) => Done::Gone,
                        answer => Done::Published(answer),
                    }
                })
            }
            Step::Read(sequence) => Box::pin(async move {
                wait(delay).await;
                let found = stream.get(sequence).await;
                if found == Ok(None)
                    && let Ok(Some(Info { first, last, .. })) = stream.info().await
                    && (first > sequence || (last >= sequence && stream.get(sequence).await == Ok(None)))
                {
                    return Done::Gone;
                }
                Done::Read(found.ok().flatten().map(|stored| stored.record))
            }),
            Step::Look => {
                let (shape, metadata, codec) = (self.options.shape, self.metadata(), self.codec.clone());
                Box::pin(async move {
                    wait(delay).await;
                    match stream.ensure(&shape, metadata).await {
                        Ok(()) => Done::Looked(stream.standing(&codec).await.map(|(standing, _)| standing)),
                        Err(error) => Done::Looked(Err(error)),
                    }
                })
            }
            Step::Purge(before) => Box::pin(async move {
                // If it fails, the next snapshot removes more.
                if let Err(error) = stream.purge(before).await {
                    debug!(%error, "the stream was not shortened");
                }
                Done::Purged
            }),
            Step::Remove { provisional, before } => Box::pin(async move {
                // If it fails, the next claim removes them.
                if let Err(error) = stream.remove(provisional, before).await {
                    debug!(%error, "an incomplete snapshot was not removed");
                }
                Done::Removed
            }),
        })
    }

    /// Takes in the result of a step. Returns false if it has to be repeated after a pause.
    fn apply(&mut self, done: Done) -> bool {
        match done {
            Done::Published(Answer::Stored(sequence)) => {
                self.doubts = (0, false);
                self.obstacle.clear();
                self.ship.stored(sequence);
            }
            Done::Published(Answer::Refused(last)) => self.ship.refused(last),
            Done::Published(Answer::Doubt(why) | Answer::Silence(why)) => {
                self.doubt(why);
                return false;
            }
            Done::Gone => self.ship.gone(),
            Done::Read(Some(record)) => self.ship.read(Some(&record)),
            Done::Read(None) => {
                self.ship.read(None);
                return false;
            }
            Done::Looked(Ok(standing)) => self.ship.found(standing),
            Done::Looked(Err(error)) => {
                self.doubt(error.to_string());
                return false;
            }
            Done::Purged => self.ship.purged(),
            Done::Removed => self.ship.removed(),
            Done::Measured(Ok(info)) => {
                let Info { last, bytes, .. } = info.unwrap_or_default();
                self.ship.measured(last);
                self.metrics.stream_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
            Done::Measured(Err(_)) => {}
        }
        true
    }
}

impl Done {
    /// A server that is cut off from a majority still answers questions about the stream: only records count.
    fn silence(&self) -> Silence {
        match self {
            Done::Published(Answer::Silence(why)) => Silence::Yes(why.clone()),
            Done::Looked(Err(error)) => Silence::Yes(error.to_string()),
            Done::Published(_) => Silence::No,
            Done::Gone | Done::Read(_) | Done::Looked(Ok(_)) | Done::Measured(_) | Done::Purged | Done::Removed => {
                Silence::Unknown
            }
        }
    }
}

/// The stream's leader gave no answer.
enum Silence {
    Yes(String),
    No,
    Unknown,
}

/// The reason why another connection is needed.
enum Lost {
    /// The servers cannot hold the copy.
    Unsupported(String),
    /// The connection is closed, or could not be made.
    Closed(String),
    /// The stream's leader does not answer over it.
    Silent(String),
}

/// An error with the server's own words, if there are any.
pub(super) fn explained(why: String, refusal: Option<String>) -> String {
    match refusal {
        Some(refusal) => format!("{why}; {refusal}"),
        None => why,
    }
}

/// Waits. Even a sleep of no time would end with the next millisecond, and every record would come that late.
async fn wait(delay: Duration) {
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

/// The result of the request; pending for ever if there is none.
async fn under_way<T>(future: &mut Option<Request<T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The result of a step.
enum Done {
    Published(Answer),
    Gone,
    Read(Option<Vec<u8>>),
    Looked(Result<Standing, StreamError>),
    Purged,
    Removed,
    Measured(Result<Option<Info>, StreamError>),
}
