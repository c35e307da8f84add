//! Opening a relay: the queue, the sockets, the tasks, in the order of their dependencies.
//!
//! The admin port is served first, so that probes have an answer while a large or damaged queue opens. The bots'
//! sockets are bound last: every client that can connect to them is served.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use super::copy::{Copy, Prepared};
use super::queue_runner::QueueRunner;
use super::watchdog::Watchdog;
use super::{Bound, Daemon, Failure, Options, Reload, Shutdown, Tasks};
use crate::admin::{Admin, Sources};
use crate::control::{Control, Drain};
#[cfg(feature = "fleet")]
use crate::fleet::{Fleet, Guided};
use crate::health::{Health, State};
use crate::ingress::{DrainState, Ingress};
use crate::metrics::Metrics;
use crate::pacer::{Budget, Pacer};
use crate::participant::Participant;
use crate::queue::{self, Pause, Queue, QueueThread};
use crate::sender::Sender;
use crate::serve::{ConnectionCount, Limits, Listener, SocketPath, adopt_unix, bind_tcp_or_ipv4, bind_unix, serve};
use crate::service_manager::Notification;
use crate::status::history::History;
use crate::status::reporter::Reporter;
use crate::status::{CopyInfo, FleetInfo, RelayInfo};
use crate::storage::Volume;
use crate::time::Clock;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The connection limits of the operators' API and of the admin port.
const ADMIN_LIMITS: Limits = Limits {
    connections_max: 16,
    idle_timeout: Duration::from_secs(75),
    request_timeout: Duration::from_secs(10),
    head_bytes_max: 16 << 10,
};

/// The dependencies of every part.
struct Common {
    participant: Participant,
    metrics: Metrics,
    clock: Clock,
}

impl Daemon {
    /// Opens the queue and the listeners. From here on bots are served, while [`run`](Daemon::run) is awaited.
    ///
    /// # Errors
    /// If the queue cannot be opened, an address cannot be listened on, or the client cannot be made.
    pub async fn open(options: Options, clock: Clock) -> Result<Daemon, Failure> {
        let metrics = Metrics::default();
        let reload_ok = describe(&metrics, &options);
        let participant = Participant::new(options.participant.clone(), clock.clone()).map_err(Failure::Failed)?;
        let admin = bind_tcp_or_ipv4(options.admin)?;
        let admin_address = address(&admin)?;
        let last_step = Arc::new(AtomicU64::new(0));
        let probes = Admin {
            metrics: metrics.clone(),
            health: Health::new(Arc::clone(&last_step)),
            queue: Arc::new(OnceLock::new()),
            sources: Arc::new(OnceLock::new()),
            socket_path: Arc::new(OnceLock::new()),
            socket_present: metrics.gauge("socket_present", "0: the bots' socket is not at its path."),
            clock: clock.clone(),
        };
        let (health, opened, socket_path) =
            (probes.health.clone(), Arc::clone(&probes.queue), Arc::clone(&probes.socket_path));
        let sources = Arc::clone(&probes.sources);
        let (shutdown, mut admin_tasks) = (watch::Sender::default(), Tasks::new());
        let served = serve_admin(probes, admin, until(&shutdown, |shutdown| shutdown.all_closed));
        admin_tasks.spawn(named("the admin port", served));
        let mut copy = Prepared::new(options.copy.as_ref(), options.seed, &clock, &metrics).await?;
        let run_without_copy = if copy.is_none() { begin_run_without_copy(&options)? } else { None };
        let (queue, mut thread) = match open_queue(options.queue.clone(), clock.clone(), metrics.clone()).await? {
            Some(opened) => opened,
            None => {
                if let Some(copy) = &mut copy {
                    // The fleet may have what the damaged store has lost.
                    copy.again().await?;
                }
                let opened = open_queue(options.queue.clone(), clock.clone(), metrics.clone()).await?;
                opened.ok_or_else(|| Failure::Failed("open the queue: its replacement is damaged too".into()))?
            }
        };
        if let Some(volume) = run_without_copy {
            note_run_without_copy(volume, &options, thread.next_sequence())?;
        }
        // No other code sets it.
        let _ = opened.set(queue.clone());
        let budget = Budget::new(Pacer::resumed(options.pacer, queue.learned(), clock.now(), options.seed));
        queue.paced_by(budget.clone());
        let copy = copy.map(|copy| copy.start(&mut thread)).transpose()?;
        let runner = QueueRunner::start(thread)?;
        if let Some(copy) = &copy {
            copy.ready(&queue).await;
        }
        let control = bind_unix(&options.control_socket, 0o600)?;
        let tcp = options.tcp.map(bind_tcp_or_ipv4).transpose()?;
        let unix = match &options.inherited {
            Some(inherited) => adopt_unix(inherited, &options.ingress_socket, options.socket_mode)?,
            None => bind_unix(&options.ingress_socket, options.socket_mode)?,
        };
        let socket_path = socket_path.get_or_init(|| unix.socket_path()).clone();
        let bound = Bound { admin: admin_address, tcp: tcp.as_ref().map(address).transpose()? };
        announce(&options, bound, &queue, &clock).await;

        let mut daemon = Daemon {
            grace: options.grace,
            bound,
            reload: Reload { ingress: Weak::new(), limits: watch::Sender::new(options.ingress.limits), ok: reload_ok },
            queue,
            runner,
            copy,
            budget,
            health,
            service_manager: options.service_manager.clone(),
            participant: participant.clone(),
            drain_state: DrainState::default(),
            connections: ConnectionCount::default(),
            drain: Drain::default(),
            shutdown,
            sender_tasks: Tasks::new(),
            ingress_tasks: Tasks::new(),
            admin_tasks,
        };
        let common = Common { participant, metrics, clock };
        // Before the sender: its first attempt waits for the share.
        daemon.spawn_fleet(&options, &common)?;
        daemon.spawn_late(&options);
        daemon.spawn_sender(&options, &common, last_step);
        daemon.spawn_ingress(&options, &common, Listener::Unix(unix), tcp.map(Listener::Tcp));
        daemon.spawn_admin(&options, common, socket_path, Listener::Unix(control), &sources);
        daemon.health.set(State::Ready);
        daemon.service_manager.notify(&[Notification::Ready]);
        Ok(daemon)
    }

    #[cfg(feature = "fleet")]
    fn spawn_fleet(&mut self, options: &Options, common: &Common) -> Result<(), Failure> {
        let Some(fleet) = options.fleet.clone() else { return Ok(()) };
        let queue = self.queue.clone();
        let guided = Guided { budget: self.budget.clone(), pacer: options.pacer, wake: Box::new(move || queue.poke()) };
        let fleet = Fleet::new(fleet, guided, common.clock.clone(), &common.metrics, options.seed);
        let fleet = fleet.map_err(|error| Failure::Config(format!("set up the fleet: {error}")))?;
        // It leaves as soon as nothing more is sent: others use its share then.
        let stop = until(&self.shutdown, |shutdown| shutdown.sender_stopped || shutdown.all_closed);
        self.admin_tasks.spawn(named("the fleet", fleet.run(stop)));
        Ok(())
    }

    #[cfg(not(feature = "fleet"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as in a build with a fleet")]
    fn spawn_fleet(&mut self, _: &Options, _: &Common) -> Result<(), Failure> {
        Ok(())
    }

    /// Accepts messages of stores that were set aside, as long as messages are sent.
    fn spawn_late(&mut self, options: &Options) {
        let Some(copy) = &self.copy else { return };
        let late = copy.accept_late(self.queue.clone(), &options.queue);
        let stop = until(&self.shutdown, |shutdown| shutdown.sender_stopped || shutdown.all_closed);
        self.admin_tasks.spawn(async move {
            tokio::select! {
                () = late => {}
                () = stop => {}
            }
            "the late messages"
        });
    }

    fn spawn_sender(&mut self, options: &Options, common: &Common, last_step: Arc<AtomicU64>) {
        let Common { participant, metrics, clock } = common;
        let (queue, budget) = (self.queue.clone(), self.budget.clone());
        let sender = Sender::new(options.sender, queue, participant.clone(), budget, clock.clone(), metrics, last_step);
        let sender = sender.reporting(self.health.destination());
        let stop = until(&self.shutdown, |shutdown| shutdown.sender_stopped);
        self.sender_tasks.spawn(async move {
            // All parts see a failure of the store by themselves.
            let _ = sender.run(stop).await;
            "the sender"
        });
    }

    fn spawn_ingress(&mut self, options: &Options, common: &Common, unix: Listener, tcp: Option<Listener>) {
        let Common { participant, metrics, clock } = common;
        let ingress = Ingress::new(
            options.ingress.clone(),
            self.queue.clone(),
            participant.clone(),
            self.budget.clone(),
            self.drain_state.clone(),
            clock.clone(),
            metrics,
        );
        let reports = ingress.report_rejections(until(&self.shutdown, |shutdown| shutdown.all_closed));
        self.admin_tasks.spawn(named("the report of refused messages", reports));
        let ingress = Arc::new(watch::Sender::new(ingress));
        self.reload.ingress = Arc::downgrade(&ingress);
        for (name, listener) in [("the bots' socket", Some(unix)), ("the bots' port", tcp)] {
            let Some(listener) = listener else { continue };
            let ingress = Arc::clone(&ingress);
            let service = move |request, peer| {
                let ingress = ingress.borrow().clone();
                async move { ingress.handle(request, peer).await }
            };
            let (connections, stop) = (self.connections.clone(), until(&self.shutdown, |now| now.ingress_closed));
            let served = serve(listener, options.connections, clock.clone(), connections, service, stop);
            self.ingress_tasks.spawn(named(name, served));
        }
    }

    fn spawn_admin(
        &mut self,
        options: &Options,
        common: Common,
        socket_path: SocketPath,
        control: Listener,
        sources: &OnceLock<Sources>,
    ) {
        let Common { metrics, clock, .. } = common;
        let reporter = Reporter {
            queue: self.queue.clone(),
            budget: self.budget.clone(),
            health: self.health.clone(),
            metrics: metrics.clone(),
            relay: Arc::new(RelayInfo {
                version: VERSION,
                region: options.region.clone(),
                upstream: options.participant.endpoint.to_string(),
                connect_instance: options.connect_instance.clone(),
                quota_rate: options.pacer.quota_rate,
                messages_max: options.queue.messages_max,
                bytes_max: options.queue.bytes_max,
                fleet: options.fleet.as_ref().map(|fleet| FleetInfo {
                    name: fleet.name.clone(),
                    shares_quota: fleet.quota.is_some(),
                    copy: options
                        .copy
                        .as_ref()
                        .map(|copy| CopyInfo { identity: copy.identity.clone(), goes_on: copy.go_on }),
                }),
            }),
            started: clock.now(),
            clock: clock.clone(),
            socket_path: Some(socket_path),
            obstacle: self.copy.as_ref().map(Copy::obstacle).unwrap_or_default(),
        };
        let history = History::new(metrics, clock.clone());
        let stop = until(&self.shutdown, |shutdown| shutdown.all_closed);
        self.admin_tasks.spawn(named("the history", history.clone().run(stop)));
        // No other code sets it.
        let _ = sources.set(Sources { reporter: reporter.clone(), history });
        let operators = Control {
            queue: self.queue.clone(),
            drain: self.drain.clone(),
            settings_sender: options.settings_sender.clone(),
            reporter,
            clock: clock.clone(),
            edit: options.control_edit,
            limits: self.reload.limits.subscribe(),
        };
        let service = move |request, peer| {
            let operators = operators.clone();
            async move { operators.answer(request, peer).await }
        };
        let (connections, stop) = (ConnectionCount::default(), until(&self.shutdown, |shutdown| shutdown.all_closed));
        let served = serve(control, ADMIN_LIMITS, clock.clone(), connections, service, stop);
        self.admin_tasks.spawn(named("the operators' API", served));

        if self.service_manager.is_present() {
            let watchdog = Watchdog {
                service_manager: self.service_manager.clone(),
                health: self.health.clone(),
                queue: self.queue.clone(),
                budget: self.budget.clone(),
                clock: clock.clone(),
            };
            let stop = until(&self.shutdown, |shutdown| shutdown.all_closed);
            self.admin_tasks.spawn(named("the watchdog", watchdog.run(stop)));
        }
    }
}

/// Resolves when the shutdown has reached a shutdown.
fn until(shutdown: &watch::Sender<Shutdown>, wanted: fn(&Shutdown) -> bool) -> impl Future<Output = ()> + Send + use<> {
    let mut shutdown = shutdown.subscribe();
    async move {
        // If the daemon is dropped, its tasks end too.
        let _ = shutdown.wait_for(wanted).await;
    }
}

async fn serve_admin(probes: Admin, listener: TcpListener, stop: impl Future<Output = ()>) {
    // The queue opens meanwhile, and sets the clock to its store's line. ConnectionCount must not see that jump.
    let clock = probes.clock.detached();
    let service = move |request, _| {
        let probes = probes.clone();
        async move { probes.answer(&request).await }
    };
    serve(Listener::Tcp(listener), ADMIN_LIMITS, clock, ConnectionCount::default(), service, stop).await;
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Records a run in the history of a volume whose queue once had a copy: a later start with one compares them. `None` if
/// the volume never had one.
fn begin_run_without_copy(options: &Options) -> Result<Option<Volume>, Failure> {
    let path = &options.queue.path;
    let known = match Volume::read(path) {
        Ok(known) => known,
        // A folder that cannot be used: the opening of the store says what is wrong with it.
        Err(error) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::PermissionDenied) => None,
        Err(error) => return Err(Failure::Failed(format!("{}: {error}", path.display()))),
    };
    Ok(known.map(|_| Volume::begin_run(path, options.seed)).transpose()?)
}

/// Completes the record of the run, if the store was not set aside meanwhile.
fn note_run_without_copy(mut volume: Volume, options: &Options, sequence: u64) -> Result<(), Failure> {
    let path = &options.queue.path;
    volume.begin_at(sequence);
    let noted = Volume::read(path).and_then(|there| there.map_or(Ok(()), |_| volume.write(path)));
    noted.map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

/// Opens the queue on a thread of its own, so that a large store does not delay signals. `None` if the store was damaged,
/// and its replacement is to be opened.
async fn open_queue(
    options: queue::Options,
    clock: Clock,
    metrics: Metrics,
) -> Result<Option<(Queue, QueueThread)>, Failure> {
    let opened = tokio::task::spawn_blocking(move || Queue::open_or_set_aside(&options, &clock, &metrics)).await;
    match opened {
        Ok(opened) => Ok(opened?),
        Err(error) => Err(Failure::Failed(format!("open the queue: {error}"))),
    }
}

fn address(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(|error| Failure::Failed(format!("read the address listened on: {error}")))
}

/// Registers the metrics of the process and the build. Returns the gauge of reloads.
fn describe(metrics: &Metrics, options: &Options) -> IntGauge {
    let help = "Always 1: the build, the region and the instance are its labels.";
    let labels = [VERSION, options.region.as_str(), options.connect_instance.as_str()];
    metrics.gauges("info", help, &["version", "region", "connect_instance"]).with_label_values(&labels).set(1);
    metrics.process();
    metrics.counter_of(
        "log_lines_dropped_total",
        "Log lines that were dropped because stderr did not take them.",
        Arc::clone(&options.log_lines_dropped),
    );
    let reload_ok = metrics.gauge(
        "config_reload_ok",
        "0: the configuration last read was refused. Keys that wait for a restart are in the log.",
    );
    reload_ok.set(1);
    reload_ok
}

async fn announce(options: &Options, bound: Bound, queue: &Queue, clock: &Clock) {
    let overview = queue.overview().await.unwrap_or_default();
    info!(
        version = VERSION,
        ingress = %options.ingress_socket.display(),
        inherited = options.inherited.is_some(),
        tcp = bound.tcp.map(tracing::field::display),
        control = %options.control_socket.display(),
        admin = %bound.admin,
        upstream = %options.participant.endpoint,
        region = options.region,
        connect_instance = options.connect_instance,
        quota_rate = options.pacer.quota_rate,
        quota_burst = options.pacer.quota_burst,
        queued = overview.queued,
        "started",
    );
    if let Some(Pause { since, why }) = overview.paused {
        let since = clock.shown(since);
        warn!(%since, reason = why, "sending is still paused by an operator; `connect-relay resume` ends the pause");
    }
}
