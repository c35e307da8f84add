//! What follows from a commit: replies, log lines, pokes.
//!
//! Each wakes a task, and to wake one from outside its runtime is a system call. Everybody waits for the writer's thread, so
//! it gives away all that follows from one commit as a whole, and a task of the runtime carries it out: to wake the others
//! costs that one next to nothing.

use tokio::sync::mpsc::UnboundedReceiver;

/// One thing that follows.
pub type Answer = Box<dyn FnOnce() + Send>;

/// What follows from commits, in their order. It does not pile up: there are as many acts as there are who wait for one.
#[derive(Debug)]
pub struct Answers(pub(super) UnboundedReceiver<Vec<Answer>>);

impl Answers {
    /// Carries it out until the writer is gone.
    pub async fn give(mut self) {
        while let Some(group) = self.0.recv().await {
            group.into_iter().for_each(|answer| answer());
        }
    }
}
