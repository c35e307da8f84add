//! The composition root: open, bind, spawn, wait, drain, report. The only place that spawns long-lived tasks; it joins
//! every one.
//!
//! ```text
//! open ─▶ ready ──a stop request, or an unexpected end of a task──▶ draining ─▶ ending ─▶ closing ─▶ gone
//!           └────────────────the store has failed────────────────────────────────────────────────────▲
//! ```
//!
//! | | readiness | the bots' API | sending | ends when |
//! | --- | --- | --- | --- | --- |
//! | ready | 200 | open | goes on | the relay is asked to drain |
//! | draining | 503 | open: bots that stop too may send last messages | goes on | nothing is queued, or sending is paused; or the closing phase begins |
//! | ending | 503 | closed once idle: no new connection, requests that have begun are finished | goes on | the last request is answered and nothing is queued; or the closing phase begins |
//! | closing | 503 | 503, requests that have begun are finished | finishes the attempts in flight | all is finished, or the grace is over |
//! | gone | – | – | – | the queue's thread has ended |
//!
//! The closing phase is the last tenth of the grace, at most 2 s. Attempts in flight at the end of the grace are cut
//! and recorded as lost answers, so that the stop is clean and only their own conversations are in doubt.
//!
//! The operators' API and the probes are open until *gone*. An operator's request to drain is the same as a signal's,
//! with its own grace if the operator sets one. Of two requests, the grace that ends first counts. [`StopRequest::Exit`]
//! leads to *gone* from any state. Messages that are still queued at the end are on disk, and [`Exit::Undelivered`]
//! has their number.

#[cfg_attr(not(feature = "fleet"), path = "daemon/no_copy.rs")]
mod copy;
mod failure;
mod open;
mod queue_runner;
#[cfg(test)]
mod tests;
mod watchdog;

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

use self::copy::Copy;
pub use self::failure::Failure;
use self::queue_runner::QueueRunner;
use crate::config::Config;
use crate::control::{Drain, SettingsSender};
use crate::health::{Health, State};
use crate::ingress::{self, DrainState, Ingress};
use crate::pacer::{self, Budget, Closed};
use crate::participant::Participant;
use crate::queue::{self, Queue, StoreFailed};
use crate::serve::{ConnectionCount, Inherited, Limits};
use crate::service_manager::{Notification, ServiceManager};
use crate::{fleet, message, participant, sender, ship};

/// The longest closing phase: it is for the attempts in flight; no message is accepted in it.
const CLOSING_MAX: Duration = Duration::from_secs(2);
/// The time that idle connections stay open after the queue is empty: a bot that stops too may send a last message.
const LINGER: Duration = Duration::from_millis(500);
/// The time for the last replies (the store has failed, or the number of messages left), and for recording the attempts
/// that were cut.
const LAST_REPLIES: Duration = Duration::from_secs(1);
/// The time for the queue's thread to end: one commit at most.
const LAST_COMMIT: Duration = Duration::from_secs(2);
/// The settings of all parts.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings of the store.
    pub queue: queue::Options,
    /// The settings of the bots' API.
    pub ingress: ingress::Options,
    /// The bots' Unix socket.
    pub ingress_socket: PathBuf,
    /// The socket's permissions.
    pub socket_mode: u32,
    /// The socket, if the service manager made it.
    pub inherited: Option<Inherited>,
    /// The bots' loopback port, if there is one.
    pub tcp: Option<SocketAddr>,
    /// The limits of the bots' connections, per listener.
    pub connections: Limits,
    /// The settings of the sender.
    pub sender: sender::Options,
    /// The settings of the pacer.
    pub pacer: pacer::Options,
    /// The settings of the client.
    pub participant: participant::Options,
    /// The settings of the fleet, if there is one.
    pub fleet: Option<fleet::Options>,
    /// The settings of the copy of the queue in the fleet, if there is one.
    pub copy: Option<fleet::CopyOptions>,
    /// The operators' Unix socket.
    pub control_socket: PathBuf,
    /// True if operators may change contents.
    pub control_edit: bool,
    /// The address of metrics and probes.
    pub admin: SocketAddr,
    /// The time from a request to drain to the end.
    pub grace: Duration,
    /// A label of the metrics.
    pub region: String,
    /// A label of the metrics.
    pub connect_instance: String,
    /// The seed of the jitter.
    pub seed: u64,
    /// The service manager that is notified.
    pub service_manager: ServiceManager,
    /// The number of log lines that were dropped.
    pub log_lines_dropped: Arc<AtomicU64>,
    /// Passes an operator's changes of configuration and log level to the owner of both.
    pub settings_sender: SettingsSender,
}

impl From<&Config> for Options {
    /// The settings of each part, a seed from the system, no service manager and no socket of its, and no part that carries out the requests
    /// of [`SettingsSender`].
    fn from(config: &Config) -> Options {
        let settings = &config.settings;
        Options {
            queue: config.queue(),
            ingress: config.ingress(),
            ingress_socket: settings.ingress.socket.clone(),
            socket_mode: settings.ingress.socket_mode.0,
            inherited: None,
            tcp: settings.ingress.tcp,
            connections: config.connections(),
            sender: config.sender(),
            pacer: config.pacer(),
            participant: config.participant(),
            fleet: config.fleet(),
            copy: config.copy(),
            control_socket: settings.control.socket.clone(),
            control_edit: settings.control.edit,
            admin: settings.admin.listen,
            grace: settings.shutdown.grace,
            region: settings.sender.region.clone(),
            connect_instance: settings.sender.connect_instance.clone(),
            seed: fastrand::u64(..),
            service_manager: ServiceManager::default(),
            log_lines_dropped: Arc::default(),
            settings_sender: SettingsSender::default(),
        }
    }
}

/// A stop request to a daemon; it never goes back to an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopRequest {
    /// No request.
    #[default]
    None,
    /// Deliver the queued messages, within the grace, and end.
    Drain,
    /// End at once.
    Exit,
}

/// Receives stop requests. A dropped sender counts as a request to drain.
pub type Stop = watch::Receiver<StopRequest>;

/// The end of a daemon without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing is queued.
    Drained,
    /// Messages are queued, on disk.
    Undelivered {
        /// The number of messages; `None` if the store did not answer.
        queued: Option<u64>,
    },
}

/// The addresses that were bound, for ports that the system chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The address of metrics and probes.
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
    runner: QueueRunner,
    /// The copy of the queue in the fleet, if there is one.
    copy: Option<Copy>,
    budget: Budget,
    health: Health,
    service_manager: ServiceManager,
    participant: Participant,
    drain_state: DrainState,
    connections: ConnectionCount,
    drain: Drain,
    shutdown: watch::Sender<Shutdown>,
    /// The sender's task: until [`Shutdown::sender_stopped`].
    sender_tasks: Tasks,
    /// The tasks of the bots' listeners: until [`Shutdown::ingress_closed`].
    ingress_tasks: Tasks,
    /// The tasks of the operators' API and the probes: until [`Shutdown::all_closed`].
    admin_tasks: Tasks,
}

/// The settings that can change while a daemon runs; clones change the same daemon.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The bots' API for the next request. Its listeners own it, and it is weak here: it holds the queue, whose thread
    /// ends when the last handle is dropped.
    ingress: Weak<watch::Sender<Ingress>>,
    /// The limits of contents, also for the operators' API.
    limits: watch::Sender<message::Limits>,
    ok: IntGauge,
}

impl Reload {
    /// Applies a configuration that was read again: the bots' API continues with these settings.
    pub fn apply(&self, ingress: ingress::Options) {
        self.limits.send_replace(ingress.limits);
        if let Some(current) = self.ingress.upgrade() {
            current.send_modify(|current| *current = current.with(ingress));
        }
        self.ok.set(1);
    }

    /// Notes a configuration that was read again and was not valid.
    pub fn reject(&self) {
        self.ok.set(0);
    }
}

/// The phases of the shutdown; each ends some of the tasks.
#[derive(Clone, Copy, Debug, Default)]
struct Shutdown {
    /// True if the sender starts no more attempts.
    sender_stopped: bool,
    /// True if the bots' listeners close.
    ingress_closed: bool,
    /// True if the operators' API and the probes close.
    all_closed: bool,
}

/// The cause of the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// A stop request.
    Asked,
    /// A part that ended unexpectedly.
    Part(&'static str),
    /// Another relay continues the queue.
    Fenced,
}

/// Long-lived tasks; each returns its name when it ends.
type Tasks = JoinSet<&'static str>;

impl Daemon {
    /// The addresses that were bound.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// A handle for changes while it runs.
    #[must_use]
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Runs until it is asked to end, and has ended.
    ///
    /// # Errors
    /// If the store failed, or a task ended unexpectedly.
    pub async fn run(mut self, stop: Stop) -> Result<Exit, Failure> {
        let ended = {
            let queue = self.queue.clone();
            tokio::select! {
                biased;
                failed = queue.failed() => Err(failed),
                () = queue.copy_is(ship::link::State::Fenced) => Ok(Ended::Fenced),
                unexpected = self.serve_until_drained(stop.clone()) => Ok(unexpected.map_or(Ended::Asked, Ended::Part)),
                () = requested(stop, StopRequest::Exit) => Ok(Ended::Asked),
            }
        };
        match ended {
            Ok(ended) => self.exit(ended).await,
            Err(failed) => Err(self.fail(failed).await),
        }
    }

    /// Serves, drains and closes. Returns the name of the task that ended unexpectedly, if one did.
    async fn serve_until_drained(&mut self, stop: Stop) -> Option<&'static str> {
        let drain = self.drain.clone();
        let unexpected = tokio::select! {
            () = requested(stop.clone(), StopRequest::Drain) => None,
            _ = drain.requested() => None,
            part = self.unexpected_exit() => Some(part),
        };
        if let Some(part) = unexpected {
            error!(part, "a part of the relay ended unexpectedly; the relay drains and exits");
            drain.request(None);
        }
        let closing_starts = self.deadline(stop.clone(), closing);
        let grace_ends = self.deadline(stop, |_| Duration::ZERO);
        let finish = async {
            self.health.set(State::Draining);
            self.service_manager.notify(&[Notification::Stopping]);
            self.drain_state.drain();
            self.connections.close_after_replies();
            self.report_backlog().await;
            if !self.sender_tasks.is_empty() {
                tokio::select! {
                    () = self.finish_requests() => {}
                    () = closing_starts => {}
                }
            }
            self.drain_state.close();
            self.shutdown.send_modify(|shutdown| shutdown.sender_stopped = true);
            all(&mut self.sender_tasks).await;
            self.shutdown.send_modify(|shutdown| shutdown.ingress_closed = true);
            all(&mut self.ingress_tasks).await;
        };
        tokio::select! {
            () = finish => {}
            () = grace_ends => warn!("the grace is over, and some requests or attempts in flight have not finished: they are cut"),
        }
        unexpected
    }

    /// Resolves when nothing is left to send and no request is in progress: then no message can come any more.
    async fn finish_requests(&mut self) {
        loop {
            self.wait_until_sent().await;
            tokio::select! {
                () = self.connections.none() => {}
                () = sleep(LINGER) => {}
            }
            if self.is_sent().await {
                break;
            }
        }
        self.drain_state.end_waits();
        self.shutdown.send_modify(|shutdown| shutdown.ingress_closed = true);
        all(&mut self.ingress_tasks).await;
        // The last requests may have been messages.
        self.wait_until_sent().await;
    }

    /// Resolves `before` ahead of the drain deadline: the earlier one of the signal's and the operator's.
    fn deadline(&self, stop: Stop, before: fn(Duration) -> Duration) -> impl Future<Output = ()> + use<> {
        let (drain, grace) = (self.drain.clone(), self.grace);
        async move {
            let signalled = async {
                requested(stop, StopRequest::Drain).await;
                sleep(grace.saturating_sub(before(grace))).await;
            };
            let by_operator = async {
                let grace = drain.requested().await.unwrap_or(grace);
                sleep(grace.saturating_sub(before(grace))).await;
            };
            tokio::select! {
                () = signalled => {}
                () = by_operator => {}
            }
        }
    }

    /// Resolves with the name of a task that has ended.
    async fn unexpected_exit(&mut self) -> &'static str {
        let ended = tokio::select! {
            Some(ended) = self.sender_tasks.join_next() => ended,
            Some(ended) = self.ingress_tasks.join_next() => ended,
            Some(ended) = self.admin_tasks.join_next() => ended,
        };
        ended.unwrap_or("a part that panicked")
    }

    /// Resolves when there is nothing to send.
    async fn wait_until_sent(&self) {
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

    async fn report_backlog(&self) {
        let Ok(overview) = self.queue.overview().await else { return };
        let (queued, paused) = (overview.queued, overview.paused.is_some());
        let (rate, down) = {
            let pacer = self.budget.pacer();
            (pacer.rate(), pacer.closed() == Some(Closed::Down))
        };
        let is_sent = !paused && overview.all_refused.is_none() && !down;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let expected_seconds = is_sent.then(|| (queued as f64 / rate).ceil());
        let grace_seconds = self.drain.grace().unwrap_or(self.grace).as_secs_f64();
        info!(queued, rate, expected_seconds, grace_seconds, paused, connections = self.connections.open(), "draining");
        let status = watchdog::line(&State::Draining, &overview, &self.budget);
        self.service_manager.notify(&[Notification::Status(&status)]);
    }

    /// Ends the remaining tasks, waits for the queue's thread, and reports the messages that are left.
    async fn exit(mut self, ended: Ended) -> Result<Exit, Failure> {
        if ended == Ended::Fenced {
            self.health.set(State::Failed("fenced: another relay continues this queue".into()));
        }
        self.cut().await;
        let left = timeout(LAST_COMMIT, self.queued()).await.ok().flatten();
        self.drain.finish(left);
        self.stop_all_tasks().await;
        let Daemon { queue, runner, copy, .. } = self;
        drop(queue);
        let last_commit = LAST_COMMIT + copy.as_ref().map_or(Duration::ZERO, Copy::grace);
        runner.join(last_commit).await.map_err(Failure::Failed)?;
        if let Some(copy) = copy {
            copy.finish().await;
        }
        match (&ended, left) {
            (Ended::Fenced, queued) => warn!(queued, "stopped; the relay that continues this queue sends its messages"),
            (_, Some(0)) => info!("stopped with no message queued"),
            (_, queued) => {
                warn!(queued, "stopped with messages queued; they stay on disk and are sent at the next start")
            }
        }
        match (ended, left) {
            (Ended::Part(part), _) => Err(Failure::Failed(format!("{part} ended unexpectedly"))),
            (Ended::Asked, Some(0)) => Ok(Exit::Drained),
            (Ended::Asked | Ended::Fenced, queued) => Ok(Exit::Undelivered { queued }),
        }
    }

    /// Cuts the attempts in flight, and waits until that is recorded and the last requests are answered.
    async fn cut(&mut self) {
        self.drain_state.close();
        self.shutdown.send_modify(|shutdown| (shutdown.sender_stopped, shutdown.ingress_closed) = (true, true));
        self.participant.cut();
        let Daemon { sender_tasks, ingress_tasks, .. } = self;
        // The relay does not wait longer for the store: the next start treats every conversation's head as in doubt.
        let _ = timeout(LAST_REPLIES, async { tokio::join!(all(sender_tasks), all(ingress_tasks)) }).await;
    }

    /// Ends after a failure of the store: nothing is acknowledged or sent any more, and waiting callers get an error.
    async fn fail(mut self, failed: StoreFailed) -> Failure {
        error!(error = %failed, "the store failed: the relay accepts and sends nothing more, and exits");
        self.health.set(State::Failed(failed.0.clone()));
        self.service_manager.notify(&[Notification::Stopping, Notification::Status(&format!("failed: {failed}"))]);
        self.drain.finish(None);
        self.drain_state.close();
        self.shutdown.send_modify(|shutdown| shutdown.ingress_closed = true);
        // Requests that are still in progress after that hang.
        let _ = timeout(LAST_REPLIES, all(&mut self.ingress_tasks)).await;
        self.stop_all_tasks().await;
        let Daemon { queue, runner, .. } = self;
        drop(queue);
        let _ = runner.join(LAST_COMMIT).await;
        Failure::Failed(failed.to_string())
    }

    async fn stop_all_tasks(&mut self) {
        self.shutdown.send_modify(|shutdown| shutdown.all_closed = true);
        // An operator who waits for the end gets the reply.
        let _ = timeout(LAST_REPLIES, all(&mut self.admin_tasks)).await;
        for tasks in [&mut self.sender_tasks, &mut self.ingress_tasks, &mut self.admin_tasks] {
            tasks.shutdown().await;
        }
    }
}

/// The length of the closing phase of a grace.
fn closing(grace: Duration) -> Duration {
    (grace / 10).min(CLOSING_MAX)
}

/// Resolves when all of them have ended.
async fn all(tasks: &mut Tasks) {
    while tasks.join_next().await.is_some() {}
}

/// Resolves when at least this is requested; a dropped sender counts as a request to drain.
async fn requested(mut stop: Stop, request: StopRequest) {
    if stop.wait_for(|current| *current >= request).await.is_err() && request > StopRequest::Drain {
        std::future::pending().await
    }
}
