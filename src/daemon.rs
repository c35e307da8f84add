//! The composition root: open, bind, spawn, wait, drain, report. The one place that spawns long-lived tasks, and it
//! joins every one.
//!
//! ```text
//! open ─▶ ready ──a wish, or a part that ends uninvited──▶ draining ─▶ ending ─▶ closing ─▶ gone
//!           └────────────────the store has failed──────────────────────────────────────────▲
//! ```
//!
//! | | readiness | the bots' door | sending | ends when |
//! | --- | --- | --- | --- | --- |
//! | ready | 200 | open | goes on | it is told to drain |
//! | draining | 503 | open: bots that stop too have farewells to say | goes on | nothing is queued, or sending is paused; or the closing phase begins |
//! | ending | 503 | shut once idle: no new connection, what has begun is finished | goes on | the last request is answered and nothing is queued; or the closing phase begins |
//! | closing | 503 | 503, what has begun is finished | finishes what is in flight | all is finished, or the grace is over |
//! | gone | – | – | – | the queue's thread has ended |
//!
//! The closing phase is the last tenth of the grace, at most 2 s. What is in flight at the end of the grace is cut and
//! recorded as an answer that was lost, so that the stop is clean and only its own conversation is in doubt.
//!
//! The operators' door and the probes are open until *gone*. An operator's wish to drain is the same as a signal's, with
//! a grace of its own where they name one; of two, the grace that is over first counts. [`Wish::Leave`] goes there from
//! wherever it is. What is still queued at the end is on disk, and [`Ending::Left`] says how much it is.

mod beat;
mod open;
#[cfg(test)]
mod tests;
mod writer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use self::writer::WriterThread;
use crate::config::Config;
use crate::control::Drain;
use crate::health::{Health, State};
use crate::ingress::{self, Door, Ingress};
use crate::pacer::{self, Budget};
use crate::participant::Participant;
use crate::queue::{self, Overview, Queue, StoreFailed};
use crate::serve::{Connections, Limits};
use crate::supervisor::{Supervisor, Word};
use crate::{message, participant, sender};

/// The longest closing phase: for what is in flight; nothing is taken any more in it.
const CLOSING_MAX: Duration = Duration::from_secs(2);
/// How long connections without a request stay open after the queue is empty: a bot that stops too may have a last word.
const LINGER: Duration = Duration::from_millis(500);
/// For the replies that say that the store has failed, or what is left behind; and to record the attempts that were cut.
const LAST_REPLIES: Duration = Duration::from_secs(1);
/// For the queue's thread to end: a commit, at most.
const LAST_COMMIT: Duration = Duration::from_secs(2);
/// All parts' settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store.
    pub queue: queue::Options,
    /// The bots' door.
    pub ingress: ingress::Options,
    /// Its Unix socket.
    pub ingress_socket: PathBuf,
    /// The socket's permissions.
    pub socket_mode: u32,
    /// Its loopback port, where there is one.
    pub tcp: Option<SocketAddr>,
    /// What bounds its connections, per listener.
    pub connections: Limits,
    /// Sending.
    pub sender: sender::Options,
    /// How fast.
    pub pacer: pacer::Options,
    /// Where to.
    pub participant: participant::Options,
    /// The operators' Unix socket.
    pub control_socket: PathBuf,
    /// Whether they may change contents.
    pub control_edit: bool,
    /// Metrics and probes.
    pub admin: SocketAddr,
    /// From being told to drain to the end.
    pub grace: Duration,
    /// A label of the metrics.
    pub region: String,
    /// A label of the metrics.
    pub connect_instance: String,
    /// What jitter starts from.
    pub seed: u64,
    /// Who is told that it is ready, alive and stopping.
    pub supervisor: Supervisor,
    /// The number of log lines that were dropped.
    pub log_lines_dropped: Arc<AtomicU64>,
}

impl From<&Config> for Options {
    /// Each part's settings, a seed from the system, no service manager.
    fn from(config: &Config) -> Options {
        let shape = &config.shape;
        Options {
            queue: config.queue(),
            ingress: config.ingress(),
            ingress_socket: shape.ingress.socket.clone(),
            socket_mode: shape.ingress.socket_mode.0,
            tcp: shape.ingress.tcp,
            connections: config.connections(),
            sender: config.sender(),
            pacer: config.pacer(),
            participant: config.participant(),
            control_socket: config.control_socket().to_owned(),
            control_edit: config.control_edit(),
            admin: shape.admin.listen,
            grace: config.grace(),
            region: shape.sender.region.clone(),
            connect_instance: shape.sender.connect_instance.clone(),
            seed: fastrand::u64(..),
            supervisor: Supervisor::default(),
            log_lines_dropped: Arc::default(),
        }
    }
}

/// What a daemon is wished to do; it never goes back to an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Go on.
    #[default]
    Run,
    /// Deliver what is queued, within the grace, and end.
    Drain,
    /// End at once.
    Leave,
}

/// Hears wishes. One whose sender is gone is wished to drain.
pub type Stop = watch::Receiver<Wish>;

/// How it ended, where nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is queued.
    Drained,
    /// Messages are queued, on disk.
    Left {
        /// How many; none where the store did not say.
        queued: Option<u64>,
    },
}

/// What failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The store and the configuration do not fit.
    #[error("{0}")]
    Config(String),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// The addresses that were bound, where a port was left to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Metrics and probes.
    pub admin: SocketAddr,
    /// The bots' loopback port.
    pub tcp: Option<SocketAddr>,
}

/// A relay that serves bots.
#[derive(Debug)]
pub struct Daemon {
    grace: Duration,
    bound: Bound,
    reload: Reload,
    queue: Queue,
    writer: WriterThread,
    budget: Budget,
    health: Health,
    supervisor: Supervisor,
    participant: Participant,
    door: Door,
    connections: Connections,
    drain: Drain,
    stage: watch::Sender<Stage>,
    /// The sender: until [`Stage::nothing_new`].
    sending: Tasks,
    /// The bots' listeners: until [`Stage::doors_shut`].
    doors: Tasks,
    /// The operators' door and the probes: until [`Stage::dark`].
    windows: Tasks,
}

/// What can be changed while a daemon runs; clones change the same.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The bots' door as the next request finds it. Its listeners own it: it holds the queue, whose thread ends with the
    /// last who does.
    ingress: Weak<watch::Sender<Ingress>>,
    /// What bounds contents, at the operators' door too.
    limits: watch::Sender<message::Limits>,
    ok: IntGauge,
}

impl Reload {
    /// The configuration was read again: the bots' door goes on with this.
    pub fn taken(&self, ingress: ingress::Options) {
        self.limits.send_replace(ingress.limits);
        if let Some(door) = self.ingress.upgrade() {
            door.send_modify(|door| *door = door.with(ingress));
        }
        self.ok.set(1);
    }

    /// The configuration was read again, and was not valid.
    pub fn refused(&self) {
        self.ok.set(0);
    }
}

/// Which tasks are told to end.
#[derive(Clone, Copy, Debug, Default)]
struct Stage {
    /// The sender starts nothing more.
    nothing_new: bool,
    /// The bots' listeners close.
    doors_shut: bool,
    /// The operators' door and the probes close.
    dark: bool,
}

/// Long-lived tasks; each tells its name when it ends.
type Tasks = JoinSet<&'static str>;

impl Daemon {
    /// The addresses that were bound.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// What can be changed while it runs.
    #[must_use]
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Runs until it is wished to end, and until it has.
    ///
    /// # Errors
    /// When the store failed, or a part ended that nobody had told to.
    pub async fn run(mut self, stop: Stop) -> Result<Ending, Failure> {
        let ended = {
            let queue = self.queue.clone();
            tokio::select! {
                biased;
                failed = queue.failed() => Err(failed),
                uninvited = self.live(stop.clone()) => Ok(uninvited),
                () = wished(stop, Wish::Leave) => Ok(None),
            }
        };
        match ended {
            Ok(uninvited) => self.end(uninvited).await,
            Err(failed) => Err(self.fail(failed).await),
        }
    }

    /// Serves, drains and closes; gives the name of the part that ended uninvited, if one did.
    async fn live(&mut self, stop: Stop) -> Option<&'static str> {
        let drain = self.drain.clone();
        let uninvited = tokio::select! {
            () = wished(stop.clone(), Wish::Drain) => None,
            _ = drain.wished() => None,
            part = self.uninvited() => Some(part),
        };
        if let Some(part) = uninvited {
            error!(part, "a part of the relay ended that nobody had told to: the relay drains and leaves");
            drain.wish(None);
        }
        let (last_words, end) = (self.over(stop.clone(), closing), self.over(stop, |_| Duration::ZERO));
        let finish = async {
            self.health.set(State::Draining);
            self.supervisor.tell(&[Word::Stopping]);
            self.door.drain();
            self.connections.end_with_their_replies();
            self.tell_what_is_queued().await;
            if !self.sending.is_empty() {
                tokio::select! {
                    () = self.finish_requests() => {}
                    () = last_words => {}
                }
            }
            self.door.close();
            self.stage.send_modify(|stage| stage.nothing_new = true);
            all(&mut self.sending).await;
            self.stage.send_modify(|stage| stage.doors_shut = true);
            all(&mut self.doors).await;
        };
        tokio::select! {
            () = finish => {}
            () = end => warn!("the grace is over before everything in flight was finished"),
        }
        uninvited
    }

    /// Resolves when nothing is left to send and no request is under way: then no bot can come any more.
    async fn finish_requests(&mut self) {
        loop {
            self.sent().await;
            tokio::select! {
                () = self.connections.none() => {}
                () = sleep(LINGER) => {}
            }
            if self.is_sent().await {
                break;
            }
        }
        self.door.end_waits();
        self.stage.send_modify(|stage| stage.doors_shut = true);
        all(&mut self.doors).await;
        // The last requests may have been messages.
        self.sent().await;
    }

    /// Resolves so long before the grace is over, counted from when it was told to drain: whoever's grace ends first.
    fn over(&self, stop: Stop, before: fn(Duration) -> Duration) -> impl Future<Output = ()> + use<> {
        let (drain, grace) = (self.drain.clone(), self.grace);
        async move {
            let told = async {
                wished(stop, Wish::Drain).await;
                sleep(grace.saturating_sub(before(grace))).await;
            };
            let asked = async {
                let asked = drain.wished().await.unwrap_or(grace);
                sleep(asked.saturating_sub(before(asked))).await;
            };
            tokio::select! {
                () = told => {}
                () = asked => {}
            }
        }
    }

    /// Resolves with the name of a task that has ended.
    async fn uninvited(&mut self) -> &'static str {
        let ended = tokio::select! {
            Some(ended) = self.sending.join_next() => ended,
            Some(ended) = self.doors.join_next() => ended,
            Some(ended) = self.windows.join_next() => ended,
        };
        ended.unwrap_or("a part that panicked")
    }

    /// Resolves when there is nothing to send.
    async fn sent(&self) {
        loop {
            let mut drained = pin!(self.queue.drained());
            drained.as_mut().enable();
            if self.is_sent().await {
                return;
            }
            drained.await;
        }
    }

    /// True if nothing is queued, or while sending is paused.
    async fn is_sent(&self) -> bool {
        self.queue.overview().await.is_ok_and(|now| now.queued == 0 || now.paused.is_some())
    }

    async fn queued(&self) -> Option<u64> {
        self.queue.backlog(None).await.ok().map(|backlog| backlog.queued)
    }

    async fn tell_what_is_queued(&self) {
        let Ok(Overview { queued, paused, .. }) = self.queue.overview().await else { return };
        let paused = paused.is_some();
        let rate = self.budget.pacer().rate();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let expected_seconds = (queued as f64 / rate).ceil();
        let grace_seconds = self.drain.grace().unwrap_or(self.grace).as_secs_f64();
        info!(queued, rate, expected_seconds, grace_seconds, paused, connections = self.connections.open(), "draining");
        self.supervisor.tell(&[Word::Status(&format!("draining: {queued} queued, at {rate:.1} a second"))]);
    }

    /// Ends what has not, waits for the queue's thread, and says what is left behind.
    async fn end(mut self, uninvited: Option<&'static str>) -> Result<Ending, Failure> {
        self.cut().await;
        let left = timeout(LAST_COMMIT, self.queued()).await.ok().flatten();
        self.drain.end(left);
        self.stop_everything().await;
        let Daemon { queue, writer, .. } = self;
        drop(queue);
        writer.join(LAST_COMMIT).await.map_err(Failure::Failed)?;
        match left {
            Some(0) => info!("left: nothing is queued"),
            Some(queued) => warn!(queued, "left: what is queued stays on disk, for the next start"),
            None => warn!("left: what is queued stays on disk, for the next start; the store did not say how much"),
        }
        match (uninvited, left) {
            (Some(part), _) => Err(Failure::Failed(format!("{part} ended that nobody had told to"))),
            (None, Some(0)) => Ok(Ending::Drained),
            (None, queued) => Ok(Ending::Left { queued }),
        }
    }

    /// Cuts what is still in flight, and waits until that is recorded and the last requests are answered.
    async fn cut(&mut self) {
        self.door.close();
        self.stage.send_modify(|stage| (stage.nothing_new, stage.doors_shut) = (true, true));
        self.participant.cut();
        let Daemon { sending, doors, .. } = self;
        // A store that takes longer is left behind: the next start takes every conversation's head for in doubt.
        let _ = timeout(LAST_REPLIES, async { tokio::join!(all(sending), all(doors)) }).await;
    }

    /// Nothing is acknowledged or sent any more; who waits for a reply is told so.
    async fn fail(mut self, failed: StoreFailed) -> Failure {
        error!(error = %failed, "nothing is accepted or sent any more: the relay leaves");
        self.health.set(State::Failed(failed.0.clone()));
        self.supervisor.tell(&[Word::Stopping, Word::Status(&format!("failed: {failed}"))]);
        self.drain.end(None);
        self.door.close();
        self.stage.send_modify(|stage| stage.doors_shut = true);
        // Those that are still in a request after that hang anyway.
        let _ = timeout(LAST_REPLIES, all(&mut self.doors)).await;
        self.stop_everything().await;
        let Daemon { queue, writer, .. } = self;
        drop(queue);
        let _ = writer.join(LAST_COMMIT).await;
        Failure::Failed(failed.to_string())
    }

    async fn stop_everything(&mut self) {
        self.stage.send_modify(|stage| stage.dark = true);
        // An operator who waits for the end is told of it.
        let _ = timeout(LAST_REPLIES, all(&mut self.windows)).await;
        for tasks in [&mut self.sending, &mut self.doors, &mut self.windows] {
            tasks.shutdown().await;
        }
    }
}

/// How long the closing phase of a grace lasts.
fn closing(grace: Duration) -> Duration {
    (grace / 10).min(CLOSING_MAX)
}

/// Resolves when all of them have ended.
async fn all(tasks: &mut Tasks) {
    while tasks.join_next().await.is_some() {}
}

/// Resolves when so much is wished for; where nobody can wish any more, that is a wish to drain.
async fn wished(mut stop: Stop, wish: Wish) {
    if stop.wait_for(|current| *current >= wish).await.is_err() && wish > Wish::Drain {
        std::future::pending().await
    }
}
