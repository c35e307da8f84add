//! The copy of the queue in the fleet, as the daemon runs it: before the queue is open, beside it, and after it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::failure::Failure;
use crate::fleet::CopyOptions;
use crate::fleet::replica::{Replica, StartError};
use crate::health::Obstacle;
use crate::metrics::Metrics;
use crate::queue::{self, Queue, QueueThread};
use crate::ship::link::{State, link};
use crate::storage;
use crate::time::Clock;

/// The volume is ready to be opened.
#[derive(Debug)]
pub struct Prepared {
    replica: Replica,
    ack_timeout: Duration,
    metrics: Metrics,
}

/// The copy of an open queue.
#[derive(Debug)]
pub struct Copy {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    ack_timeout: Duration,
    restored: bool,
    restored_messages: IntCounter,
    late: Arc<Notify>,
    late_messages: IntCounter,
    obstacle: Obstacle,
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        match error {
            StartError::Config(text) => Failure::Config(text),
            StartError::Unanswered(text) | StartError::Failed(text) => Failure::Failed(text),
        }
    }
}

impl Prepared {
    /// Makes the volume ready, if the options have a copy.
    pub async fn new(
        options: Option<&CopyOptions>,
        seed: u64,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Option<Prepared>, Failure> {
        let Some(copy) = options.cloned() else { return Ok(None) };
        let ack_timeout = copy.ack_timeout;
        let replica = Replica::prepare(copy, clock.clone(), metrics, seed).await?;
        Ok(Some(Prepared { replica, ack_timeout, metrics: metrics.clone() }))
    }

    /// Makes the volume ready again, after the store was damaged and is set aside.
    pub async fn again(&mut self) -> Result<(), Failure> {
        Ok(self.replica.make_ready().await?)
    }

    /// Ships the commits of the queue from its first one on.
    pub fn start(self, thread: &mut QueueThread) -> Result<Copy, Failure> {
        let Prepared { mut replica, ack_timeout, metrics } = self;
        replica.begin(thread.next_sequence())?;
        let (of_thread, of_task) = link(ack_timeout);
        replica.announce(&of_task);
        thread.ship_to(of_thread, &metrics);
        let (restored, late, obstacle) = (replica.restored, Arc::clone(&replica.late), replica.obstacle.clone());
        let help = "Queued messages that were restored from the fleet at the start.";
        let restored_messages = metrics.counter("fleet_restored_messages_total", help);
        let help = "Messages that were accepted anew: another relay had continued the queue without them, or the fleet could not be reached at the start.";
        let late_messages = metrics.counter("fleet_late_messages_total", help);
        let (stop, mut stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let stop = async {
                // A dropped sender counts as a request to stop.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            replica.run(of_task, stop).await;
        });
        Ok(Copy { tasks, stop, ack_timeout, restored, restored_messages, late, late_messages, obstacle })
    }
}

impl Copy {
    /// Waits until the fleet has everything, or for the time that a commit may take.
    pub async fn ready(&self, queue: &Queue) {
        if self.restored {
            let queued = queue.backlog(None).await.map_or(0, |backlog| backlog.queued);
            self.restored_messages.inc_by(queued);
            info!(queued, "queue restored");
        }
        let _ = timeout(self.ack_timeout, queue.copy_is(State::Up)).await;
    }

    /// Accepts the messages of stores that were set aside, at the start and when another one is.
    pub fn accept_late(&self, queue: Queue, options: &queue::Options) -> impl Future<Output = ()> + Send + use<> {
        let (late, counter) = (Arc::clone(&self.late), self.late_messages.clone());
        let (path, keys) = (options.path.clone(), options.keys.clone());
        async move {
            loop {
                if let Err(error) = accept_left(&queue, &path, &keys, &counter).await {
                    warn!(
                        error = format!("{error:#}"),
                        "the messages of a store that was set aside could not be accepted"
                    );
                }
                late.notified().await;
            }
        }
    }

    /// The reason why the fleet lacks commits.
    pub fn obstacle(&self) -> Obstacle {
        self.obstacle.clone()
    }

    /// The time that the last commit may take longer.
    pub fn grace(&self) -> Duration {
        self.ack_timeout
    }

    /// Waits until the last commits are shipped, after the queue's thread has ended.
    pub async fn finish(mut self) {
        if timeout(self.ack_timeout, all(&mut self.tasks)).await.is_err() {
            warn!("the fleet does not take the last commits; they are on this volume alone");
        }
        self.stop.send_replace(true);
        all(&mut self.tasks).await;
    }
}

/// Resolves when all of them have ended.
async fn all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// The messages that are accepted in one commit.
const LATE_MESSAGES: usize = 64;
/// The pause while the queue is full.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Accepts the messages of each store that was set aside, the oldest first. A message that is known already makes nothing
/// new.
async fn accept_left(
    queue: &Queue,
    path: &Path,
    keys: &[queue::SealingKey],
    counter: &IntCounter,
) -> anyhow::Result<()> {
    let folder = path.to_owned();
    for left in spawn_blocking(move || storage::left(&folder)).await?? {
        let (folder, from, keys) = (left.path.clone(), left.from, keys.to_vec());
        let late = spawn_blocking(move || queue::recovery::late(&folder, &keys, from)).await??;
        let mut refused = 0u64;
        let (mut waiting, mut accepted) = (late.submissions, 0u64);
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(LATE_MESSAGES));
            // The time that a message waits in the other store does not count: no lifetime is too short.
            let verdicts = queue.accept(waiting.clone(), f64::INFINITY).await?;
            let mut full = Vec::new();
            for (submission, verdict) in waiting.into_iter().zip(verdicts) {
                match verdict {
                    queue::Verdict::Accepted { repeat, .. } => accepted += u64::from(!repeat),
                    // None goes before one of its own conversation that waits.
                    queue::Verdict::Rejected(queue::Rejection::Full(..)) => full.push(submission),
                    queue::Verdict::Rejected(_) => refused += 1,
                }
            }
            if !full.is_empty() {
                sleep(FULL_PAUSE).await;
            }
            full.extend(rest);
            waiting = full;
        }
        counter.inc_by(accepted);
        if accepted + refused + late.unreadable > 0 {
            warn!(
                folder = %left.path.display(),
                accepted,
                refused,
                unreadable = late.unreadable,
                "messages of a store that was set aside were accepted, behind what was queued"
            );
        }
        left.mark_taken()?;
    }
    Ok(())
}
