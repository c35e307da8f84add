//! The requests to the queue's thread, the callers that wait for outcomes, and the values that it shares with the handles.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use tokio::sync::{Notify, oneshot};

use crate::pacer::Budget;
use crate::queue::api::{MessageId, MessageState, Result};
use crate::queue::rows::Hash;
use crate::queue::state::State;
use crate::storage::StoreFailed;
use crate::time::{Clock, Timestamp};

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
    fn run(&mut self, state: &mut State, waiters: &Waiters, now: Timestamp) -> Result<()>;

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
        op: impl FnOnce(&mut State, &Waiters, Timestamp) -> Result<T> + Send + 'static,
    ) -> (Request, oneshot::Receiver<T>) {
        let (reply, answer) = oneshot::channel();
        (Request::Call(Box::new(Operation { op: Some(op), result: None, reply })), answer)
    }
}

impl<T, F> Call for Operation<T, F>
where
    T: Send,
    F: FnOnce(&mut State, &Waiters, Timestamp) -> Result<T> + Send,
{
    fn run(&mut self, state: &mut State, waiters: &Waiters, now: Timestamp) -> Result<()> {
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

/// The values that a handle reads without a request.
#[derive(Debug)]
pub struct Shared {
    pub clock: Clock,
    /// Wakes the sender: a message may have become due.
    pub poked: Notify,
    /// Wakes those that wait for the queue to empty.
    pub drained: Notify,
    /// The start of the commit under way, by [`Clock::awake`]; 0 if there is none.
    pub commit_began: AtomicU64,
    /// The rate at which messages are sent, and whether the destination is down.
    pub budget: OnceLock<Budget>,
    pub failure: OnceLock<StoreFailed>,
    pub failed: Notify,
}

impl Shared {
    pub fn new(clock: Clock) -> Shared {
        Shared {
            clock,
            poked: Notify::new(),
            drained: Notify::new(),
            commit_began: AtomicU64::new(0),
            budget: OnceLock::new(),
            failure: OnceLock::new(),
            failed: Notify::new(),
        }
    }
}

/// A caller that waits for the outcome of a message.
pub type Waiter = oneshot::Sender<Option<MessageState>>;

/// The waiting callers, by sequence number, with the conversation of the message.
#[derive(Debug, Default)]
pub struct Waiters(HashMap<u64, (Hash, Vec<Waiter>)>);

impl Waiters {
    pub fn add(&mut self, sequence: u64, conversation: Hash, waiter: Waiter) {
        self.0.entry(sequence).or_insert_with(|| (conversation, Vec::new())).1.push(waiter);
    }

    /// The messages of a conversation for which a caller waits that has not hung up, in order.
    pub fn of(&self, conversation: &Hash) -> Vec<u64> {
        let own = self.0.iter().filter(|(_, (of, waiters))| of == conversation && is_any_open(waiters));
        let mut sequences: Vec<u64> = own.map(|(sequence, _)| *sequence).collect();
        sequences.sort_unstable();
        sequences
    }

    /// Takes the callers that wait for a message.
    pub fn take(&mut self, sequence: u64) -> Vec<Waiter> {
        self.0.remove(&sequence).map(|(_, waiters)| waiters).unwrap_or_default()
    }

    /// Removes callers that hung up.
    pub fn sweep(&mut self) {
        self.0.retain(|_, (_, waiters)| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
    }
}

/// Returns true if a caller has not hung up.
pub fn is_any_open(waiters: &[Waiter]) -> bool {
    waiters.iter().any(|waiter| !waiter.is_closed())
}
