//! The relay of the demo: the daemon as `connect-relay run --dir` starts it, in this process and in the demo's folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cli::run;
use crate::config::{Config, Sources};
use crate::daemon::{Daemon, Exit, Failure, Options, StopRequest};
use crate::time::Clock;

/// The quota in the relay's configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Requests per second.
    pub rate: f64,
    /// Requests at once.
    pub burst: u32,
}

/// A running relay.
#[derive(Debug)]
pub(super) struct Relay {
    /// The bots' socket.
    pub socket: PathBuf,
    stop: watch::Sender<StopRequest>,
    task: JoinHandle<Result<Exit, Failure>>,
}

/// The time-out for the exit of a relay that is asked to exit at once.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts a relay in `folder`, with the service at `endpoint`.
pub(super) async fn start(folder: &Path, endpoint: SocketAddr, quota: Quota) -> anyhow::Result<Relay> {
    let environment = settings(endpoint, quota).into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let config = Config::load(&Sources { file: None, environment, dir: Some(folder.to_owned()) })?;
    run::create_folders(folder).with_context(|| format!("create {}", folder.display()))?;
    let options = Options::from(&config);
    let socket = options.ingress_socket.clone();
    let daemon = Daemon::open(options, Clock::system()).await?;
    let (stop, receiver) = watch::channel(StopRequest::None);
    Ok(Relay { socket, stop, task: tokio::spawn(daemon.run(receiver)) })
}

/// The settings of a relay of the demo, as variables of the environment.
pub(super) fn settings(endpoint: SocketAddr, quota: Quota) -> Vec<(String, String)> {
    let set = |key: &str, value: &str| (format!("CONNECT_RELAY__{key}"), value.to_owned());
    vec![
        set("SENDER__ENDPOINT", &format!("http://{endpoint}")),
        set("SENDER__QUOTA_RATE", &quota.rate.to_string()),
        set("SENDER__QUOTA_BURST", &quota.burst.to_string()),
        set("ADMIN__LISTEN", "127.0.0.1:0"),
        // A temporary folder may be in memory.
        set("QUEUE__VOLATILE", "true"),
    ]
}

impl Relay {
    /// True if it has ended by itself: a fault.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Lets it deliver the queued messages and exit; after `most` it has to exit at once.
    pub(super) async fn drain(mut self, most: Duration) -> anyhow::Result<()> {
        self.stop.send_replace(StopRequest::Drain);
        let mut ended = timeout(most, &mut self.task).await;
        if ended.is_err() {
            self.stop.send_replace(StopRequest::Exit);
            ended = timeout(EXIT_TIMEOUT, &mut self.task).await;
        }
        match ended.context("stop the relay: it did not exit in time")?.context("stop the relay")?? {
            Exit::Drained => Ok(()),
            Exit::Undelivered { queued: Some(queued) } => bail!("stop the relay: {queued} messages are still queued"),
            Exit::Undelivered { queued: None } => bail!("stop the relay: its store did not report the queued messages"),
        }
    }
}
