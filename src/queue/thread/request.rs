//! The requests to the queue's thread, the callers that wait for outcomes, and the values that it shares with the handles.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use crate::pacer::Budget;
use crate::queue::api::{LeaseRequest, MessageId, MessageState, Result, Work};
use crate::queue::rows::Hash;
use crate::queue::state::State;
use crate::queue::state::parts::CallerSet;
use crate::ship;
use crate::ship::ownership::Ownership;
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
    fn run(&mut self, state: &mut State, waiters: &mut Waiters, now: Timestamp) -> Result<()>;

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
        op: impl FnOnce(&mut State, &mut Waiters, Timestamp) -> Result<T> + Send + 'static,
    ) -> (Request, oneshot::Receiver<T>) {
        let (reply, answer) = oneshot::channel();
        (Request::Call(Box::new(Operation { op: Some(op), result: None, reply })), answer)
    }
}

impl<T, F> Call for Operation<T, F>
where
    T: Send,
    F: FnOnce(&mut State, &mut Waiters, Timestamp) -> Result<T> + Send,
{
    fn run(&mut self, state: &mut State, waiters: &mut Waiters, now: Timestamp) -> Result<()> {
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
    /// Wakes the readers of outcomes, by the slots of their callers.
    pub settled: [Notify; CallerSet::SLOTS],
    /// The start of the commit under way, by [`Clock::awake`]; 0 if there is none.
    pub commit_began: AtomicU64,
    /// The rate at which messages are sent, and whether the destination is down.
    pub budget: OnceLock<Budget>,
    pub failure: OnceLock<StoreFailed>,
    pub failed: Notify,
    /// The state of the copy in the fleet, if there is one.
    pub copy: OnceLock<watch::Receiver<ship::link::State>>,
    /// The ownership of the copy, and the longest wait for its confirmation.
    pub ownership: OnceLock<(Arc<Ownership>, Duration)>,
}

impl Shared {
    pub fn new(clock: Clock) -> Shared {
        Shared {
            clock,
            poked: Notify::new(),
            drained: Notify::new(),
            settled: std::array::from_fn(|_| Notify::new()),
            commit_began: AtomicU64::new(0),
            budget: OnceLock::new(),
            failure: OnceLock::new(),
            failed: Notify::new(),
            copy: OnceLock::new(),
            ownership: OnceLock::new(),
        }
    }
}

/// A caller that waits for the outcome of a message.
pub type Waiter = oneshot::Sender<Option<MessageState>>;

/// A request of the sender that found nothing to send: it stands until a message gets its turn, or the next request.
#[derive(Debug)]
pub struct StandingRequest {
    pub request: LeaseRequest,
    pub reply: oneshot::Sender<Work>,
}

/// The callers that wait for something.
#[derive(Debug, Default)]
pub struct Waiters {
    /// Those that wait for an outcome, by conversation, with the sequence number of the message.
    outcomes: HashMap<Hash, Vec<(u64, Waiter)>>,
    /// The sender, if it waits for a message to send.
    pub sender: Option<StandingRequest>,
}

impl Waiters {
    pub fn add(&mut self, id: MessageId, waiter: Waiter) {
        self.outcomes.entry(id.conversation).or_default().push((id.sequence, waiter));
    }

    /// The messages of a conversation for which a caller waits that has not hung up, in order.
    pub fn of(&self, conversation: &Hash) -> Vec<u64> {
        let own = self.outcomes.get(conversation).into_iter().flatten().filter(|(_, waiter)| !waiter.is_closed());
        own.map(|(sequence, _)| *sequence).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Takes the callers that wait for a message.
    pub fn take(&mut self, id: MessageId) -> Vec<Waiter> {
        let Some(own) = self.outcomes.get_mut(&id.conversation) else { return Vec::new() };
        own.extract_if(.., |(sequence, _)| *sequence == id.sequence).map(|(_, waiter)| waiter).collect()
    }

    /// Removes callers that hung up.
    pub fn sweep(&mut self) {
        self.outcomes.retain(|_, own| {
            own.retain(|(_, waiter)| !waiter.is_closed());
            !own.is_empty()
        });
    }
}

/// Returns true if a caller has not hung up.
pub fn is_any_open(waiters: &[Waiter]) -> bool {
    waiters.iter().any(|waiter| !waiter.is_closed())
}
