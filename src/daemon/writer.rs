//! The thread of the queue's writer: the one thing of a relay that is not a task.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Failure;
use crate::queue::{StoreFailed, Writer};

/// A writer at work.
#[derive(Debug)]
pub struct WriterThread {
    thread: JoinHandle<()>,
    /// Carries out what follows from its commits; it ends after the thread.
    answers: tokio::task::JoinHandle<()>,
    ended: oneshot::Receiver<Result<(), StoreFailed>>,
}

impl WriterThread {
    /// Starts it.
    pub fn start(mut writer: Writer) -> Result<WriterThread, Failure> {
        let answers = tokio::spawn(writer.answers().give());
        let (tell, ended) = oneshot::channel();
        let work = move || {
            let result = writer.run();
            // Nobody listens any more where the wait for it was given up.
            let _ = tell.send(result);
        };
        let thread = thread::Builder::new().name("queue".into()).spawn(work);
        let thread = thread.map_err(|error| Failure::Failed(format!("start the queue's thread: {error}")))?;
        Ok(WriterThread { thread, answers, ended })
    }

    /// Waits for its end, which comes when the last handle on the queue is gone: not for ever, for a disk may hang.
    pub async fn join(self, most: Duration) -> Result<(), String> {
        match timeout(most, self.ended).await {
            Ok(Ok(result)) => {
                // It told its result as its last act.
                let _ = self.thread.join();
                let _ = self.answers.await;
                result.map_err(|failed| failed.to_string())
            }
            Ok(Err(_)) => Err("the queue's thread panicked".into()),
            Err(_) => Err(format!("the queue's last commit took longer than {} s: it was left behind", most.as_secs())),
        }
    }
}
