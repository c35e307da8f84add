//! The requests to the queue's thread.

use tokio::sync::oneshot;

use super::waiters::{Waiter, Waiters};
use crate::queue::api::MessageId;
use crate::queue::state::State;
use crate::storage::StoreFailed;
use crate::time::Timestamp;

/// A request of a handle.
pub enum Request {
    /// Runs an operation, and replies after the commit.
    Call(Box<dyn Call>),
    /// Replies when the message has left the queue.
    Await { id: MessageId, waiter: Waiter },
}

/// An operation with its reply, in one allocation.
pub trait Call: Send {
    /// Runs the operation and keeps its result.
    fn run(&mut self, state: &mut State, waiters: &Waiters, now: Timestamp) -> Result<(), StoreFailed>;

    /// Sends the result.
    fn reply(self: Box<Self>);
}

/// The one kind of [`Call`]: any operation, with any result.
struct Operation<T, F> {
    op: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<T>,
}

impl Request {
    /// A request to run `op`, and the receiver of its reply.
    pub fn call<T: Send + 'static>(
        op: impl FnOnce(&mut State, &Waiters, Timestamp) -> Result<T, StoreFailed> + Send + 'static,
    ) -> (Request, oneshot::Receiver<T>) {
        let (reply, answer) = oneshot::channel();
        (Request::Call(Box::new(Operation { op: Some(op), result: None, reply })), answer)
    }
}

impl<T, F> Call for Operation<T, F>
where
    T: Send,
    F: FnOnce(&mut State, &Waiters, Timestamp) -> Result<T, StoreFailed> + Send,
{
    fn run(&mut self, state: &mut State, waiters: &Waiters, now: Timestamp) -> Result<(), StoreFailed> {
        if let Some(op) = self.op.take() {
            self.result = Some(op(state, waiters, now)?);
        }
        Ok(())
    }

    fn reply(self: Box<Self>) {
        if let Some(result) = self.result {
            // A caller that hung up does not need it.
            let _ = self.reply.send(result);
        }
    }
}
