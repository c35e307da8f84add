//! Deleting messages. A deleted message is a dead letter with the reason `deleted`.
//!
//! | queued | in flight | dead letter | delivered, or pruned |
//! | --- | --- | --- | --- |
//! | dead-lettered | refused | gets the reason `deleted`, and is kept as long as before | unknown |

use super::browse::{DeathRow, Stored, death_of, scan, stored, view};
use super::dead_letter::{Cause, dead_letter};
use crate::delivery::{Reason, ServiceError};
use crate::queue::api::{Cursor, MessageId, Seen, Selection, Sweep, Unmoved};
use crate::queue::rows::{ClientTokenRow, ErrorRow, FinalState, Outcome, keys, reason_index};
use crate::queue::state::State;
use crate::queue::state::event::{Death, Event, LastAnswer};
use crate::storage::StoreFailed;
use crate::time::Timestamp;

/// Deletes a message.
pub fn delete(state: &mut State, id: MessageId, now: Timestamp) -> Result<Result<Seen, Unmoved>, StoreFailed> {
    let Some(message) = stored(state, id, now)? else { return Ok(Err(Unmoved::Gone)) };
    if let Err(unmoved) = delete_stored(state, message, now)? {
        return Ok(Err(unmoved));
    }
    Ok(match stored(state, id, now)? {
        Some(dead) => Ok(view(state, dead, false, now)?),
        None => Err(Unmoved::Gone),
    })
}

/// Deletes the next messages of a selection, at most `most`.
pub fn delete_all(
    state: &mut State,
    of: &Selection,
    after: Cursor,
    most: usize,
    now: Timestamp,
) -> Result<Sweep, StoreFailed> {
    let mut progress = Sweep::default();
    progress.next = scan(state, of, (after, most), now, |state, message| {
        match delete_stored(state, message, now)? {
            Ok(()) => progress.done += 1,
            Err(_) => progress.in_flight += 1,
        }
        Ok(true)
    })?;
    Ok(progress)
}

fn delete_stored(state: &mut State, message: Stored, now: Timestamp) -> Result<Result<(), Unmoved>, StoreFailed> {
    let error = ServiceError {
        status: 410,
        code: "GoneException".into(),
        text: "connect-relay: the message was deleted by an operator".into(),
        request_id: None,
    };
    match message {
        Stored::Queued(queued) => {
            if state.is_in_flight(&queued.record) {
                return Ok(Err(Unmoved::InFlight));
            }
            let (conversation, token) = (queued.record.conversation, queued.record.token);
            let mut row = state.conversation(&conversation, now)?;
            let maybe_delivered = state.is_doubtful(&row, &queued.reference);
            let cause = Cause::new(Reason::Deleted, error, maybe_delivered, token);
            dead_letter(state, queued, &mut row, cause, now)?;
            state.save_conversation(&conversation, &row);
            state.wake_sender = true;
        }
        Stored::Dead(dead) => {
            let (record, died) = (dead.record, dead.died);
            let Some(DeathRow { reason, maybe_delivered, outcome, .. }) = death_of(state, &record)? else {
                return Ok(Ok(()));
            };
            if reason == Reason::Deleted {
                return Ok(Ok(()));
            }
            let (index, token) = (reason_index(Reason::Deleted), record.token);
            let fate = FinalState::Dead { reason: index, maybe_delivered, token, error: ErrorRow::from(&error) };
            let outcome = Outcome { fate, ..outcome };
            state.store.put(keys::entry(&record.conversation, &record.entry), &ClientTokenRow::Done(outcome));
            let (reason, answer) = (Reason::Deleted, LastAnswer { maybe_delivered, ..LastAnswer::default() });
            let (id, attempts) = (state.id(record.sequence, record.conversation, record.entry), dead.attempts.count);
            let death = Death { id, record, attempts, died, reason, error, maybe_delivered, answer };
            state.events.push(Event::Deleted(Box::new(death)));
        }
    }
    Ok(Ok(()))
}
