//! Reads a relay's status from its parts.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Counts, Facts, RelayInfo, Status};
use crate::health::{Health, Obstacle, State};
use crate::metrics::Metrics;
use crate::pacer::Budget;
use crate::queue::{Queue, StoreFailed};
use crate::serve::SocketPath;
use crate::time::{Clock, Timestamp};

/// The parts of a relay that its status is read from; clones share them.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// The queue with the waiting messages.
    pub queue: Queue,
    /// The source of the rates.
    pub budget: Budget,
    /// The source of the state.
    pub health: Health,
    /// The source of the counts.
    pub metrics: Metrics,
    /// The identity of the relay.
    pub relay: Arc<RelayInfo>,
    /// The time at which it was started.
    pub started: Timestamp,
    /// The clock for ages.
    pub clock: Clock,
    /// The path of the bots' socket.
    pub socket_path: Option<SocketPath>,
    /// The reason why the copy in the fleet is behind, if there is a copy.
    pub obstacle: Obstacle,
}

impl Reporter {
    /// The present status. `draining` is true if a drain was requested, which the daemon sees a moment later.
    pub async fn status(&self, draining: bool) -> Result<Status, StoreFailed> {
        let overview = self.queue.overview().await?;
        let (rate, closed) = {
            let pacer = self.budget.pacer();
            (pacer.rate(), pacer.closed())
        };
        let now = self.clock.now();
        let facts = Facts {
            overview,
            state: match self.health.state() {
                State::Ready if draining => State::Draining,
                state => state,
            },
            stalled: self.health.live(self.clock.awake(), self.queue.stalled()).err(),
            no_socket: self.socket_path.as_ref().and_then(no_socket),
            rate,
            closed,
            seen: self.health.destination().seen(),
            copy: (self.queue.copy().unwrap_or_default(), self.obstacle.last()),
            counts: Counts::read(&self.metrics),
            uptime: now.since(self.started),
            now,
            clock: self.clock.clone(),
        };
        Ok(Status::of(&self.relay, &facts))
    }
}

/// The path of a socket that is not there, what is there instead, and the remedy.
fn no_socket(path: &SocketPath) -> Option<(PathBuf, String)> {
    let mut why = path.check().err()?;
    if !path.is_inherited() {
        why.push_str(
            ". If the path is free, the relay binds the socket again within 5 s; otherwise move the file there away",
        );
    }
    Some((path.path().to_owned(), why))
}
