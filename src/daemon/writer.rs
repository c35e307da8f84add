//! The thread of the queue's writer: the only part of a relay that is not a task.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::failure::Failure;
use crate::queue::{QueueThread, StoreFailed};

/// A running writer.
#[derive(Debug)]
pub struct WriterThread {
    thread: JoinHandle<()>,
    /// The task that runs the post-commit actions; it ends after the thread.
    answers: tokio::task::JoinHandle<()>,
    ended: oneshot::Receiver<Result<(), StoreFailed>>,
}

impl WriterThread {
    /// Starts the thread.
    pub fn start(mut writer: QueueThread) -> Result<WriterThread, Failure> {
        let answers = tokio::spawn(writer.effects().run());
        let (report, ended) = oneshot::channel();
        let work = move || {
            let result = writer.run();
            // The receiver is dropped if the wait for the thread timed out.
            let _ = report.send(result);
        };
        let thread = thread::Builder::new().name("queue".into()).spawn(work);
        let thread = thread.map_err(|error| Failure::Failed(format!("start the queue's thread: {error}")))?;
        Ok(WriterThread { thread, answers, ended })
    }

    /// Waits for its end, which comes when the last handle on the queue is dropped. The wait is bounded: a disk may
    /// hang.
    pub async fn join(self, most: Duration) -> Result<(), String> {
        match timeout(most, self.ended).await {
            Ok(Ok(result)) => {
                // The thread sends its result as its last action.
                let _ = self.thread.join();
                let _ = self.answers.await;
                result.map_err(|failed| failed.to_string())
            }
            Ok(Err(_)) => Err("the queue's thread panicked".into()),
            Err(_) => Err(format!("the queue's last commit took longer than {} s: it is not awaited", most.as_secs())),
        }
    }
}
