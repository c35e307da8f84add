//! The effects of a commit outside of the store: replies, log lines, wake-ups.
//!
//! To wake a task from outside its runtime is a system call, and all callers wait for the queue's thread. So the thread
//! sends all effects of a commit to one task of the runtime, which applies them in their order: first all replies and
//! wake-ups, then the log lines. To write a line wakes the thread of the log, and no caller waits for that.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::request::{Call, Shared, Waiter};
use crate::delivery::Outcome;
use crate::message_log::{self, Subject};
use crate::queue::api::{Lease, MessageState, Status, Work};
use crate::queue::state::event::{Death, Event, Redriven};
use crate::queue::state::parts::CallerSet;

/// One effect.
pub enum Effect {
    /// The reply to a request.
    Reply(Box<dyn Call>),
    /// A look at a message that needed no wait.
    Look(Waiter, Option<MessageState>),
    /// The leases for the sender's standing request.
    Work(oneshot::Sender<Work>, Work),
    /// The log line of an event, and the replies to the callers that wait for the message.
    Event(Event, Vec<Waiter>),
}

/// The effects of one commit.
#[derive(Default)]
pub struct Committed {
    pub effects: Vec<Effect>,
    pub wake_sender: bool,
    pub messages_left: bool,
    pub settled: CallerSet,
}

/// The effects of commits, in their order. It does not grow without bound: each request waits for its reply.
#[derive(Debug)]
pub struct Effects {
    pub(super) commits: UnboundedReceiver<Committed>,
    pub(super) shared: Arc<Shared>,
}

impl Effects {
    /// Applies them until the queue's thread has ended.
    pub async fn run(mut self) {
        while let Some(committed) = self.commits.recv().await {
            let lines = committed.apply(&self.shared);
            if !lines.is_empty() {
                // The tasks that were woken run first.
                tokio::task::yield_now().await;
                lines.into_iter().for_each(report);
            }
        }
    }
}

impl Committed {
    /// True if it has no effect.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty() && !self.wake_sender && !self.messages_left && self.settled.is_empty()
    }

    /// Sends the replies and wakes what waits. Returns the events that are to be logged then.
    pub fn apply(self, shared: &Shared) -> Vec<Event> {
        let mut lines = Vec::with_capacity(self.effects.len());
        for effect in self.effects {
            match effect {
                Effect::Reply(call) => call.reply(),
                // A caller that hung up does not need it.
                Effect::Look(waiter, state) => drop(waiter.send(state)),
                // If the sender is gone, the relay is about to exit.
                Effect::Work(reply, work) => drop(reply.send(work)),
                Effect::Event(event, waiters) => {
                    reply_outcome(&event, waiters);
                    lines.push(event);
                }
            }
        }
        if self.wake_sender {
            shared.poked.notify_one();
        }
        if self.messages_left {
            shared.drained.notify_waiters();
        }
        self.settled.slots().for_each(|slot| shared.settled[slot].notify_waiters());
        lines
    }
}

/// Returns false for an event that is only counted: the task is not woken for it.
pub fn is_reported(event: &Event) -> bool {
    !matches!(event, Event::Repeated | Event::DuplicatePossible | Event::Measured { .. })
}

/// Replies to the callers that wait for the outcome of an event's message.
fn reply_outcome(event: &Event, waiters: Vec<Waiter>) {
    for waiter in waiters {
        let state = match event {
            Event::Delivered { lease, receipt, .. } => MessageState {
                id: lease.id,
                accepted: lease.accepted,
                attempts: lease.attempts + 1,
                status: Status::Delivered(receipt.clone()),
            },
            Event::Dead(death) => {
                let Death { id, ref record, attempts, reason, maybe_delivered, ref error, .. } = **death;
                let status = Status::Dead { reason, maybe_delivered, error: error.clone() };
                MessageState { id, accepted: record.accepted, attempts, status }
            }
            // No other event is the outcome of a message.
            _ => return,
        };
        // A caller that hung up does not need it.
        let _ = waiter.send(Some(state));
    }
}

/// Writes the log line of an event.
pub fn report(event: Event) {
    match event {
        Event::Accepted { id, label, client_token, trace_id } => message_log::accepted(Subject {
            message: &id,
            conversation: &label,
            client_token: &client_token,
            trace_id: trace_id.as_deref(),
        }),
        Event::Delivered { lease, outcome, receipt, at } => {
            let (attempt, status) = (lease.attempts + 1, outcome.as_ref().and_then(Outcome::status));
            message_log::delivered(subject(&lease), attempt, at.since(lease.accepted), status, &receipt);
        }
        Event::Deferred { lease, outcome, at, until } => {
            let retry_in = until.map(|until| until.since(at));
            message_log::deferred(subject(&lease), lease.attempts + 1, at.since(lease.accepted), &outcome, retry_in);
        }
        Event::Held { lease, outcome, at, until } => {
            let waited = at.since(lease.accepted);
            message_log::held(subject(&lease), lease.attempts + 1, waited, &outcome, until.since(at));
        }
        Event::Dead(death) | Event::Deleted(death) => {
            let Death { id, record, attempts, died, reason, answer, .. } = *death;
            let word = (answer.http_status, answer.request_id.as_deref());
            let waited = died.since(record.accepted);
            message_log::dead(record.subject(&id), attempts, waited, word, reason, answer.maybe_delivered);
        }
        Event::Redriven(redriven) => {
            let Redriven { id, record, attempts, at, reason, edited } = *redriven;
            message_log::redriven(record.subject(&id), attempts, at.since(record.accepted), reason, edited);
        }
        Event::DestinationDelivers { after_s } => info!(after_s, "Amazon Connect took a message: sending goes on"),
        Event::AllRefused { tokens, every_s } => error!(
            reason = "all_refused",
            tokens,
            every_s,
            "Amazon Connect refused every token so far and has never taken a message: sender.region, \
             sender.endpoint or the bot's Connect instance may be wrong. The relay sends one message each \
             sender.probe_max, with a token that was not refused yet, until Connect takes one. Correct the \
             setting and restart the relay, or run `connect-relay resume`"
        ),
        Event::Repeated | Event::DuplicatePossible | Event::Measured { .. } => {}
    }
}

fn subject(lease: &Lease) -> Subject<'_> {
    Subject {
        message: &lease.id,
        conversation: &lease.label,
        client_token: lease.client_token.as_str(),
        trace_id: lease.trace_id.as_deref(),
    }
}
