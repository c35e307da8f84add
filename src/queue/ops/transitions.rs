//! The transitions of a message that several operations share: into the queue, out of it, and to a dead letter and back.

use std::time::Duration;

use crate::delivery::{Reason, ServiceError};
use crate::queue::api::Result;
use crate::queue::rows::{
    self, Attempts, ClientTokenRow, Conversation, Dead, ErrorRow, Failures, FinalState, Hash, Kind, Origin, Outcome,
    QueuedRef, Record, Schedule, USED_CONVERSATION, keys,
};
use crate::queue::state::State;
use crate::queue::state::event::{Death, Event, LastAnswer};
use crate::queue::state::parts::Queued;
use crate::time::Timestamp;

/// The reason and the circumstances of a dead letter.
pub struct Cause {
    pub reason: Reason,
    pub error: ServiceError,
    pub maybe_delivered: bool,
    /// The refused token, or the one that the message came with.
    pub token: Hash,
    /// The answer of the last attempt, as the log shows it; `None` if no attempt is the cause.
    pub answer: Option<LastAnswer>,
}

impl Cause {
    /// A cause without an attempt.
    pub fn new(reason: Reason, error: ServiceError, maybe_delivered: bool, token: Hash) -> Cause {
        Cause { reason, error, maybe_delivered, token, answer: None }
    }

    /// The end of a message's lifetime.
    pub fn expired(maybe_delivered: bool, token: Hash) -> Cause {
        let text = "the message's lifetime ended before it could be delivered";
        let error = ServiceError::of_relay(410, "GoneException", text);
        Cause::new(Reason::Expired, error, maybe_delivered, token)
    }

    /// The answer for the log line. The relay's own errors are no answer of Connect.
    fn last_answer(&self) -> LastAnswer {
        let answered = !matches!(self.reason, Reason::Expired | Reason::Deleted) && self.error.status != 0;
        self.answer.clone().unwrap_or_else(|| LastAnswer {
            http_status: answered.then_some(self.error.status),
            request_id: self.error.request_id.clone(),
            maybe_delivered: self.maybe_delivered,
        })
    }
}

/// Makes a dead letter of a queued message.
pub fn dead_letter(
    state: &mut State,
    queued: Queued,
    row: &mut Conversation,
    cause: Cause,
    now: Timestamp,
) -> Result<()> {
    let answer = cause.last_answer();
    let Cause { reason, error, maybe_delivered, token, .. } = cause;
    let (sequence, attempts) = (queued.record.sequence, queued.reference.attempts.count);
    let error_row = ErrorRow::from(&error);
    let fate = FinalState::Dead { reason: rows::reason_index(reason), maybe_delivered, token, error: error_row };
    put_outcome(state, &queued.record, attempts, fate, now);
    if row.disconnect == Some(sequence) {
        row.disconnect = None;
    }
    dequeue(state, &queued, row, now)?;
    state.meta.dead += 1;
    state.store.put(keys::prune_dead(now, sequence), &());
    state.meta.weight += queued.record.dead_weight();
    let dead = Dead { record: queued.record, attempts: queued.reference.attempts, died: now };
    state.store.put(keys::dead(sequence), &dead);
    let record = dead.record;
    let id = state.id(sequence, record.conversation, record.entry);
    let death = Death { id, record, attempts, died: now, reason, error, maybe_delivered, answer };
    state.events.push(Event::Dead(Box::new(death)));
    Ok(())
}

/// Records the outcome of a message, which answers its repeats, and its place in the stream of outcomes.
pub fn put_outcome(state: &mut State, record: &Record, attempts: u32, fate: FinalState, now: Timestamp) {
    let Record { sequence, contents, accepted, .. } = *record;
    let outcome = Outcome { sequence, contents, accepted, attempts, at: now, fate };
    let names = format!("{}\n{}", record.label, record.client_token);
    let names = state.sealer.seal(&keys::names_place(sequence), names.as_bytes());
    state.settled.insert(record.caller);
    let (row, nth) = state.index_outcome(record.conversation, record.entry);
    let row = ClientTokenRow::Settled(outcome, Origin { caller: record.caller, row, nth, names });
    state.store.put(keys::entry(&record.conversation, &record.entry), &row);
}

/// Takes a message out of the queue; the next message of its conversation gets a turn. The pieces of its contents stay.
pub fn dequeue(state: &mut State, queued: &Queued, row: &mut Conversation, now: Timestamp) -> Result<()> {
    let Queued { reference, record } = queued;
    let sequence = record.sequence;
    state.unfile(reference.at)?;
    if record.default_lifetime {
        state.meta.default_lifetimes = state.meta.default_lifetimes.saturating_sub(1);
    } else {
        state.store.remove(keys::expiry(record.deadline, sequence));
    }
    state.count_queued(record.caller, -1)?;
    state.meta.unknown = state.meta.unknown.saturating_sub(u64::from(reference.attempts.unknown));
    state.messages_left = true;
    let conversation = record.conversation;
    let was_head = state.take_out(&conversation, row, sequence, now)?;
    if row.count == 0 {
        state.meta.held = state.meta.held.saturating_sub(u64::from(row.hold.take().is_some()));
        state.meta.conversations = state.meta.conversations.saturating_sub(1);
        state.reschedule(&conversation, row, Schedule::Idle, now);
    } else if was_head {
        row.boot = state.meta.boot;
        if row.hold.is_none() {
            state.make_ready(&conversation, row, now);
        }
    }
    Ok(())
}

/// Files the record of a message that is queued from now on, and counts it.
pub fn add_to_queue(state: &mut State, record: &Record, attempts: Attempts) -> Result<QueuedRef> {
    let at = state.file(record);
    if record.default_lifetime {
        state.meta.default_lifetimes += 1;
    } else {
        state.store.put(keys::expiry(record.deadline, record.sequence), &at);
    }
    state.meta.unknown += u64::from(attempts.unknown);
    state.count_queued(record.caller, 1)?;
    Ok(QueuedRef { sequence: record.sequence, accepted: record.accepted, at, entry: record.entry, attempts })
}

/// Removes a dead letter, and the outcome that answers its repeats.
pub fn take_dead_letter(state: &mut State, dead: &Dead) {
    let Dead { record, died, .. } = dead;
    state.store.remove(keys::dead(record.sequence));
    state.store.remove(keys::prune_dead(*died, record.sequence));
    state.store.remove(keys::entry(&record.conversation, &record.entry));
    state.meta.dead = state.meta.dead.saturating_sub(1);
    state.meta.weight = state.meta.weight.saturating_sub(record.dead_weight());
}

/// Queues a dead letter again: at its old place, with a fresh lifetime of the same length.
pub fn requeue(state: &mut State, dead: Dead, row: &mut Conversation, now: Timestamp) -> Result<Queued> {
    let Dead { mut record, mut attempts, .. } = dead;
    record.deadline = now + Duration::from_millis(record.lifetime_ms);
    record.default_lifetime = false;
    attempts.failures = Failures::default();
    let reference = add_to_queue(state, &record, attempts)?;

    let conversation = record.conversation;
    let empty = row.count == 0;
    state.insert(&conversation, row, reference.clone())?;
    if row.head() == Some(&reference) {
        row.boot = state.meta.boot;
    }
    if record.kind == Kind::Disconnect {
        row.disconnect.get_or_insert(record.sequence);
        row.used = now;
        state.used.push((USED_CONVERSATION, conversation));
    }
    if empty {
        state.meta.conversations += 1;
        state.make_ready(&conversation, row, now);
    }
    state.save_conversation(&conversation, row);
    Ok(Queued { reference, record })
}
