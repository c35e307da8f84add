//! Settling an attempt: the message is delivered, waits, is held, or is a dead letter.

use super::pause;
use super::transitions::{Cause, dead_letter, dequeue, put_outcome};
use crate::delivery::{Disposition, Outcome, Reason, Receipt, ServiceError};
use crate::queue::api::{Lease, Result, Settled};
use crate::queue::rows::{Conversation, ErrorRow, FinalState, Hash, Hold, Kind, Schedule, keys};
use crate::queue::state::State;
use crate::queue::state::event::{Event, LastAnswer};
use crate::queue::state::parts::Queued;
use crate::time::Timestamp;

/// The result of an attempt, or of a lease without one.
pub struct Attempted {
    pub lease: Box<Lease>,
    /// `None` if the message was not sent.
    pub outcome: Option<Outcome>,
    pub disposition: Disposition,
}

/// Records the result of a lease. `waiting` returns the sequence numbers of the messages of the conversation whose outcome
/// a caller waits for, in order.
pub fn settle(
    state: &mut State,
    attempted: Attempted,
    waiting: impl Fn() -> Vec<u64>,
    now: Timestamp,
) -> Result<Settled> {
    let Attempted { lease, outcome, disposition } = attempted;
    let (conversation, sequence) = (lease.conversation, lease.id.sequence);
    state.leased.remove(&conversation);
    state.wake_sender = true;
    let mut row = state.conversation(&conversation, now)?;
    // The message in flight is the head: no message is put before it, and no other operation takes it out.
    let reference = row.head().filter(|head| head.sequence == sequence).cloned();
    let queued = reference.map(|reference| state.queued(reference)).transpose()?.flatten();
    let Some(mut queued) = queued else {
        // Its row was damaged while it was in flight: there is nothing to record on.
        keep_turn(state, &conversation, &row);
        return Ok(deferred(state, lease, outcome, None, now));
    };
    let settled = match disposition {
        Disposition::Deliver(receipt) => {
            deliver(state, queued, &mut row, &receipt, now)?;
            state.events.push(Event::Delivered { lease, outcome, receipt, at: now });
            Settled::Delivered
        }
        Disposition::Keep => {
            keep_turn(state, &conversation, &row);
            return Ok(deferred(state, lease, outcome, None, now));
        }
        Disposition::Wait { due } if due > now => {
            state.reschedule(&conversation, &mut row, Schedule::DelayedUntil(due), now);
            deferred(state, lease, outcome, Some(due), now)
        }
        Disposition::Wait { .. } => {
            let since = due_since(state, &conversation, &row, now)?;
            state.reschedule(&conversation, &mut row, Schedule::DelayedUntil(now), now);
            state.throttled.insert(conversation, since);
            deferred(state, lease, outcome, None, now)
        }
        Disposition::Retry { due, answer_lost, strike, counted } => {
            let attempts = &mut row.first[0].attempts;
            attempts.count += 1;
            attempts.strikes = attempts.strikes.saturating_add(u8::from(strike));
            attempts.failures = attempts.failures.and(now, counted);
            if answer_lost {
                state.meta.unknown += u64::from(!attempts.unknown);
                attempts.unknown = true;
                attempts.sent_with = Some(lease.token);
            }
            state.reschedule(&conversation, &mut row, Schedule::DelayedUntil(due), now);
            deferred(state, lease, outcome, Some(due), now)
        }
        Disposition::Deny(error) => {
            let denied = Denied { lease, outcome, record_token: queued.record.token, error };
            deny(state, denied, &mut row, &waiting(), now)?
        }
        Disposition::DeadLetter(reason, error) => {
            let maybe_delivered = queued.reference.attempts.unknown && reason == Reason::Poison;
            queued.reference.attempts.count += 1;
            let answer = Some(last_answer(outcome.as_ref()));
            let cause = Cause { answer, ..Cause::new(reason, error, maybe_delivered, lease.token) };
            dead_letter(state, queued, &mut row, cause, now)?;
            Settled::Dead { reason, told: waiting().contains(&sequence) }
        }
    };
    state.save_conversation(&conversation, &row);
    Ok(settled)
}

/// Makes a conversation that was leased from the next one again.
fn keep_turn(state: &mut State, conversation: &Hash, row: &Conversation) {
    if let Schedule::Ready(kind, turn) = row.schedule {
        state.ahead.push_front(kind, turn, *conversation);
    }
}

/// The message waits: until a time, or `None` if it is due at once, and only the gate and the suspects' share hold it.
fn deferred(
    state: &mut State,
    lease: Box<Lease>,
    outcome: Option<Outcome>,
    until: Option<Timestamp>,
    at: Timestamp,
) -> Settled {
    if let Some(outcome) = outcome {
        state.events.push(Event::Deferred { lease, outcome, at, until });
    }
    until.map_or(Settled::Kept, Settled::Deferred)
}

fn last_answer(outcome: Option<&Outcome>) -> LastAnswer {
    LastAnswer {
        http_status: outcome.and_then(Outcome::status),
        request_id: outcome.and_then(Outcome::request_id).map(Into::into),
        maybe_delivered: matches!(outcome, Some(Outcome::AnswerLost { .. })),
    }
}

fn deliver(state: &mut State, queued: Queued, row: &mut Conversation, receipt: &Receipt, now: Timestamp) -> Result<()> {
    let Queued { reference, record } = &queued;
    put_outcome(state, record, reference.attempts.count + 1, FinalState::Delivered(receipt.into()), now);
    state.meta.outcomes += 1;
    dequeue(state, &queued, row, now)?;
    state.meta.weight = state.meta.weight.saturating_sub(queued.record.weight());
    state.remove_pieces(&queued.record);
    if receipt.id.is_some() {
        // A disconnect has no id, and counts as delivered even if Connect refuses it.
        pause::destination_delivers(state, now);
    }
    Ok(())
}

/// An attempt that ended with a refusal of its token.
struct Denied {
    lease: Box<Lease>,
    outcome: Option<Outcome>,
    /// The token that the message came with.
    record_token: Hash,
    error: ServiceError,
}

/// Records the refusal of a token. Messages whose callers wait are dead letters; the others wait for a renewed token.
fn deny(state: &mut State, denied: Denied, row: &mut Conversation, waiting: &[u64], now: Timestamp) -> Result<Settled> {
    let Denied { lease, outcome, record_token, error } = denied;
    let (conversation, sequence, refused) = (lease.conversation, lease.id.sequence, lease.token);
    let error_row = ErrorRow::from(&error);
    state.refuse_token(&refused, &error_row, now)?;
    if state.current_token(&record_token)?.0 != refused {
        // The token was renewed meanwhile: the new one is tried at once. If an answer to an attempt with the old token was
        // lost, Connect may get the message twice.
        let attempts = &mut row.first[0].attempts;
        if attempts.unknown || attempts.sent_with.is_some() {
            state.events.push(Event::DuplicatePossible);
        }
        attempts.sent_with = None;
        state.make_ready(&conversation, row, now);
        return Ok(deferred(state, lease, outcome, Some(now), now));
    }
    let reason = Reason::of_denial(&error);
    let mut told = false;
    pause::destination_refuses(state, &refused, now);
    for waited in waiting {
        let Some(reference) = state.reference(&conversation, row, *waited)? else { continue };
        let Some(mut queued) = state.queued(reference)? else { continue };
        let is_done_if_refused = state.is_done_if_refused(queued.record.kind == Kind::Disconnect);
        if is_done_if_refused || state.current_token(&queued.record.token)?.0 != refused {
            continue;
        }
        let own = *waited == sequence;
        told |= own;
        queued.reference.attempts.count += u32::from(own);
        let maybe_delivered = queued.reference.attempts.unknown;
        let answer = own.then(|| last_answer(outcome.as_ref()));
        let cause = Cause { answer, ..Cause::new(reason, error.clone(), maybe_delivered, refused) };
        dead_letter(state, queued, row, cause, now)?;
    }
    let head = row.head().map(|head| state.record(head.at)).transpose()?.flatten();
    let until = now + state.options.token_wait;
    if let Some(head) = head
        && !state.is_done_if_refused(head.kind == Kind::Disconnect)
        && state.current_token(&head.token)?.0 == refused
    {
        state.meta.held += u64::from(row.hold.is_none());
        row.hold = Some(Hold { token: refused, until, error: error_row });
        state.reschedule(&conversation, row, Schedule::DelayedUntil(until), now);
    }
    if told {
        return Ok(Settled::Dead { reason, told });
    }
    let attempts = &mut row.first[0].attempts;
    attempts.count += 1;
    attempts.failures = attempts.failures.and(now, false);
    if let Some(outcome) = outcome {
        state.events.push(Event::Held { lease, outcome, at: now, until });
    }
    Ok(Settled::Held(until))
}

/// The time since which the head of a conversation could have been sent.
fn due_since(state: &mut State, conversation: &Hash, row: &Conversation, now: Timestamp) -> Result<Timestamp> {
    if let Some(since) = state.throttled.get(conversation) {
        return Ok(*since);
    }
    Ok(match row.schedule {
        Schedule::Ready(kind, turn) => state.store.get(&keys::turn(kind, turn, conversation))?.unwrap_or(now),
        Schedule::DelayedUntil(due) => due.min(now),
        Schedule::Idle => now,
    })
}
