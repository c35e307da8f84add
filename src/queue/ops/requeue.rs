//! The transition of a message into the queue: from a submission, or from the dead letters.

use std::time::Duration;

use crate::queue::api::Result;
use crate::queue::rows::{Attempts, Conversation, Dead, Failures, Kind, QueuedRef, Record, USED_CONVERSATION, keys};
use crate::queue::state::State;
use crate::queue::state::parts::Queued;
use crate::time::Timestamp;

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
