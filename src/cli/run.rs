//! `connect-relay run`: the daemon, from its configuration to its exit code.
//!
//! SIGTERM and SIGINT ask it to drain, a second one to exit at once, SIGHUP to read its configuration again. An operator
//! can request a reload through the control socket too.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, warn};

use super::availability;
use super::exit_code::{UNDELIVERED, code};
use super::inherited;
use super::live_settings::LiveSettings;
use super::logging::Log;
use super::signals::{Signal, Signals};
use crate::config::{Config, Sources};
use crate::control::{SettingsRequests, SettingsSender};
use crate::daemon::{Daemon, Exit, Failure, Options, StopRequest};
use crate::serve::Inherited;
use crate::service_manager::ServiceManager;
use crate::time::Clock;

/// The time after which a daemon that was asked to exit at once is abandoned.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Run the relay: accept messages from bots, keep them on disk, deliver them to Amazon Connect in order.
///
/// The only required setting is the region of the Connect instance: sender.region in the configuration file, or
/// CONNECT_RELAY__SENDER__REGION, or AWS_REGION.
///
/// SIGTERM or SIGINT: the relay continues to send until all messages are delivered or shutdown.grace is nearly over,
/// then exits with 0, or with 75 if messages remain on disk. A second signal: it exits at once. SIGHUP, or
/// `connect-relay reload`: it reads its configuration again, applies some keys (log.level, and of ingress the access
/// lists, the limits of bodies and contents, and the waits), and logs the keys that need a restart.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file [default: /etc/connect-relay/relay.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Put sockets and queue under this folder: DIR/relay.sock for bots; DIR/private/control.sock and
    /// DIR/private/queue for the relay alone. Other settings do not change
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs until it is asked to exit, or fails.
///
/// # Errors
/// With the errors of the configuration; later failures are logged.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&Sources::of_process(args.config.clone(), args.dir.clone()))?;
    let inherited = inherited::bots_socket(&config.settings.ingress.socket).map_err(Failure::Config)?;
    let log = Log::start(config.settings.log.format, config.settings.log.level)?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    Ok(relay(&args, &config, inherited, &log).await.unwrap_or_else(|failure| {
        error!(error = format!("{failure:#}"), "failed");
        code(&failure).into()
    }))
}

async fn relay(args: &Args, config: &Config, inherited: Option<Inherited>, log: &Log) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    if let Some(dir) = &args.dir {
        create_folders(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let (settings_sender, requests) = SettingsSender::new();
    let options = Options {
        service_manager: find_manager(),
        log_lines_dropped: log.dropped(),
        settings_sender,
        inherited,
        ..Options::from(config)
    };
    let is_inherited = options.inherited.is_some();
    let daemon = tokio::select! {
        opened = Daemon::open(options, Clock::system()) => opened.map_err(|failure| add_hint(failure, args, config, is_inherited))?,
        () = signals.stop() => {
            warn!("stopped before the queue was open: its messages stay on disk");
            return Ok(UNDELIVERED.into());
        }
    };
    let (stop, receiver) = watch::channel(StopRequest::None);
    let sources = || Sources::of_process(args.config.clone(), args.dir.clone());
    let settings = LiveSettings::new(config, sources, log, daemon.reload());
    tokio::select! {
        exit = daemon.run(receiver) => Ok(match exit? {
            Exit::Drained => ExitCode::SUCCESS,
            Exit::Undelivered { .. } => UNDELIVERED.into(),
        }),
        () = handle_signals(&mut signals, requests, &stop, settings) => {
            warn!("stopped at once, on a second signal: the queued messages stay on disk");
            Ok(UNDELIVERED.into())
        }
    }
}

/// Adds the next step for a user who cannot write to the default folders.
fn add_hint(failure: Failure, args: &Args, config: &Config, is_inherited: bool) -> Failure {
    let options = Options::from(config);
    let folder = |socket: &Path| availability::writable(socket.parent().unwrap_or(Path::new("/")));
    // A service manager makes the folder of its socket.
    let ingress = if is_inherited { Ok(()) } else { folder(&options.ingress_socket) };
    let all = [availability::own(&options.queue.path), folder(&options.control_socket), ingress];
    match failure {
        Failure::Failed(text) if args.dir.is_none() && all.iter().any(Result::is_err) => Failure::Failed(format!(
            "{text}; `connect-relay run --dir DIR` keeps sockets and queue under a folder of this user; `connect-relay check \
             --online` checks each of them"
        )),
        failure => failure,
    }
}

/// The service manager, if one started this process and listens.
fn find_manager() -> ServiceManager {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return ServiceManager::default() };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
    ServiceManager::at(Path::new(&address), watchdog).unwrap_or_else(|error| {
        warn!(address = %address.display(), %error, "the service manager does not listen: the relay sends it no notifications");
        ServiceManager::default()
    })
}

/// Creates the folders of `--dir`: bots may read DIR, only the relay's user its own files.
pub(super) fn create_folders(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir.join("private"))
}

/// Carries out the requests of signals and operators; resolves when the exit after a second signal takes too long.
async fn handle_signals(
    signals: &mut Signals,
    mut requests: SettingsRequests,
    stop: &watch::Sender<StopRequest>,
    mut settings: LiveSettings<'_>,
) {
    for next in [StopRequest::Drain, StopRequest::Exit] {
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    // A fault is logged.
                    Signal::Reload => drop(settings.reload(None, false)),
                    Signal::Stop => break,
                },
                request = requests.next() => settings.carry_out(request),
                () = settings.restored() => {}
            }
        }
        stop.send_replace(next);
    }
    sleep(EXIT_TIMEOUT).await;
}
