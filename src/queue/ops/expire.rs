//! Expiry: messages whose lifetime has ended are dead letters.
//!
//! Each function returns true if it stopped because the commit is long, with more work left, and false if it is done for
//! now: nothing more is due, or `left`, which it counts down, is used up.

use std::ops::Bound;

use super::COMMIT_BYTES;
use super::dead_letter::{Cause, dead_letter};
use crate::queue::rows::{Record, RecordPos, Table, keys};
use crate::queue::state::State;
use crate::queue::state::queued::Queued;
use crate::storage::StoreFailed;
use crate::time::Timestamp;

/// Expires messages with a lifetime of their own, which have expiry rows.
pub fn own_lifetimes(state: &mut State, now: Timestamp, left: &mut usize) -> Result<bool, StoreFailed> {
    let mut from = Bound::Included(Table::Expiry.key());
    while *left > 0 {
        let Some(key) = state.store.next_key(Table::Expiry.key(), from)? else { break };
        if keys::time_in(&key) > now {
            break;
        }
        *left -= 1;
        let at: Option<RecordPos> = state.store.get(&key)?;
        let record = match at {
            Some(at) => state.record(at)?,
            None => None,
        };
        if let Some(record) = record
            && !expire(state, record, now)?
        {
            // It is in flight: its answer decides.
            from = Bound::Excluded(key);
            continue;
        }
        state.store.remove(key);
        if state.store.pending_bytes() >= COMMIT_BYTES {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Expires messages with the default lifetime: they expire in the order of acceptance.
pub fn default_lifetimes(state: &mut State, now: Timestamp, left: &mut usize) -> Result<bool, StoreFailed> {
    let (mut after, mut advance) = (state.expiry_cursor, true);
    while *left > 0 {
        let Some(live) = state.next_pack(after)? else { break };
        for (_, record) in live.records.into_iter().filter(|(_, record)| record.default_lifetime) {
            if record.deadline > now {
                return Ok(false);
            }
            *left = left.saturating_sub(1);
            advance &= expire(state, record, now)?;
            if state.store.pending_bytes() >= COMMIT_BYTES {
                return Ok(true);
            }
        }
        after = live.pack;
        if advance {
            state.expiry_cursor = after;
        }
    }
    Ok(false)
}

/// Makes a dead letter of a message whose lifetime has ended. Returns false if it is in flight.
fn expire(state: &mut State, record: Record, now: Timestamp) -> Result<bool, StoreFailed> {
    if state.is_in_flight(&record) {
        return Ok(false);
    }
    let (conversation, sequence) = (record.conversation, record.sequence);
    let mut row = state.conversation(&conversation, now)?;
    let Some(reference) = state.reference(&conversation, &row, sequence)? else { return Ok(true) };
    let cause = Cause::expired(state.is_doubtful(&row, &reference), record.token);
    dead_letter(state, Queued { reference, record }, &mut row, cause, now)?;
    state.save_conversation(&conversation, &row);
    Ok(true)
}
