//! Runs the queue's thread: the only part of a relay that is not a task.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::failure::Failure;
use crate::queue::{QueueThread, StoreFailed};

/// The running thread of the queue.
#[derive(Debug)]
pub struct QueueRunner {
    thread: JoinHandle<()>,
    /// The task that applies the effects of commits; it ends after the thread.
    effects: tokio::task::JoinHandle<()>,
    ended: oneshot::Receiver<Result<(), StoreFailed>>,
}

impl QueueRunner {
    /// Starts the thread.
    pub fn start(mut thread: QueueThread) -> Result<QueueRunner, Failure> {
        let effects = tokio::spawn(thread.effects().run());
        let (report, ended) = oneshot::channel();
        let work = move || {
            let result = thread.run();
            // The receiver is dropped if the wait for the thread timed out.
            let _ = report.send(result);
        };
        let thread = thread::Builder::new().name("queue".into()).spawn(work);
        let thread = thread.map_err(|error| Failure::Failed(format!("start the queue's thread: {error}")))?;
        Ok(QueueRunner { thread, effects, ended })
    }

    /// Waits for its end, which comes when the last handle on the queue is dropped. The wait is bounded: a disk may
    /// hang.
    pub async fn join(self, most: Duration) -> Result<(), String> {
        match timeout(most, self.ended).await {
            Ok(Ok(result)) => {
                // The thread sends its result as its last action.
                let _ = self.thread.join();
                let _ = self.effects.await;
                result.map_err(|failed| failed.to_string())
            }
            Ok(Err(_)) => Err("the queue's thread panicked".into()),
            Err(_) => Err(format!("the queue's last commit took longer than {} s: it is not awaited", most.as_secs())),
        }
    }
}
