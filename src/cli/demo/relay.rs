//! The relay of the demo: the daemon as `connect-relay run` starts it, in this process and in the demo's folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

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
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Starts a relay in `folder`, with the service at `endpoint`.
pub(super) async fn start(folder: &Path, endpoint: SocketAddr, quota: Quota) -> anyhow::Result<Relay> {
    let _ = (folder, endpoint, quota);
    bail!("start the relay: it is not part of this build")
}

impl Relay {
    /// Whether it has ended by itself: a fault.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Lets it deliver what is queued, and leave.
    pub(super) async fn drain(self, most: Duration) -> anyhow::Result<()> {
        // A relay that has ended already says why below.
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(most, self.task).await;
        ended.context("stop the relay: it did not leave in time")?.context("stop the relay")?
    }
}
