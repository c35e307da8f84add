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
use crate::daemon::{Daemon, Ending, Failure, Options, Wish};
use crate::time::Clock;

/// What the relay is told of its quota.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Requests per second.
    pub rate: f64,
    /// Requests at once.
    pub burst: u32,
}

/// A relay that runs.
#[derive(Debug)]
pub(super) struct Relay {
    /// The bots' door.
    pub socket: PathBuf,
    wish: watch::Sender<Wish>,
    task: JoinHandle<Result<Ending, Failure>>,
}

/// For a relay that is told to leave at once.
const LEAVE_AT_ONCE_WITHIN: Duration = Duration::from_secs(5);

/// Starts a relay in `folder`, with the service at `endpoint`.
pub(super) async fn start(folder: &Path, endpoint: SocketAddr, quota: Quota) -> anyhow::Result<Relay> {
    let set = |key: &str, value: &str| (format!("CONNECT_RELAY__{key}").into(), value.into());
    let environment = vec![
        set("SENDER__ENDPOINT", &format!("http://{endpoint}")),
        set("SENDER__QUOTA_RATE", &quota.rate.to_string()),
        set("SENDER__QUOTA_BURST", &quota.burst.to_string()),
        set("ADMIN__LISTEN", "127.0.0.1:0"),
        // Where temporary folders are in memory, the demo's may be.
        set("QUEUE__VOLATILE", "true"),
    ];
    let config = Config::load(&Sources { file: None, environment, dir: Some(folder.to_owned()) })?;
    run::make(folder).with_context(|| format!("make {}", folder.display()))?;
    let options = Options::from(&config);
    let socket = options.ingress_socket.clone();
    let daemon = Daemon::open(options, Clock::system()).await?;
    let (wish, stop) = watch::channel(Wish::Run);
    Ok(Relay { socket, wish, task: tokio::spawn(daemon.run(stop)) })
}

impl Relay {
    /// Whether it has ended by itself: a fault.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Lets it deliver what is queued, and leave; after `most` it has to leave at once.
    pub(super) async fn drain(mut self, most: Duration) -> anyhow::Result<()> {
        self.wish.send_replace(Wish::Drain);
        let mut ended = timeout(most, &mut self.task).await;
        if ended.is_err() {
            self.wish.send_replace(Wish::Leave);
            ended = timeout(LEAVE_AT_ONCE_WITHIN, &mut self.task).await;
        }
        match ended.context("stop the relay: it did not leave in time")?.context("stop the relay")?? {
            Ending::Drained => Ok(()),
            Ending::Left { queued: Some(queued) } => bail!("stop the relay: it left {queued} messages in its queue"),
            Ending::Left { queued: None } => bail!("stop the relay: it did not say what it left in its queue"),
        }
    }
}
