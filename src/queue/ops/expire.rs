//! The work of time: messages whose lifetime has ended are dead letters; outcomes, dead letters, tokens and participants that
//! were kept long enough are pruned.
//!
//! Each function counts `left` down, the most work of one tick. It returns true if it stopped because the commit is long,
//! with more work left, and false if it is done for now.

use std::ops::Bound;
use std::time::Duration;

use super::COMMIT_BYTES;
use super::transitions::{Cause, dead_letter};
use crate::queue::api::Result;
use crate::queue::rows::{
    ClientTokenRow, Dead, FinalState, Hash, Key, Origin, Outcome, Participant, Record, RecordPos, Table, Token,
    USED_PARTICIPANT, USED_TOKEN, keys,
};
use crate::queue::state::State;
use crate::queue::state::parts::Queued;
use crate::time::Timestamp;

/// A connection token lives a day.
const USED_KEPT_FOR: Duration = Duration::from_secs(25 * 3600);

/// Expires messages with a lifetime of their own, which have expiry rows.
pub fn expire_own_lifetimes(state: &mut State, now: Timestamp, left: &mut usize) -> Result<bool> {
    let mut from = Bound::Included(Table::Expiry.key());
    while *left > 0 {
        let Some(key) = state.store.next_key(Table::Expiry.key(), from)? else { break };
        if keys::time_in(&key) > now {
            break;
        }
        *left -= 1;
        let at: Option<RecordPos> = state.store.get(&key)?;
        let record = at.map(|at| state.record(at)).transpose()?.flatten();
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
pub fn expire_default_lifetimes(state: &mut State, now: Timestamp, left: &mut usize) -> Result<bool> {
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
fn expire(state: &mut State, record: Record, now: Timestamp) -> Result<bool> {
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

/// Prunes outcomes of delivered messages. Those of dead letters stay as long as these, but leave the stream.
pub fn prune_outcomes(state: &mut State, now: Timestamp, left: &mut usize) -> Result<bool> {
    let kept_for = state.options.outcomes_kept_for;
    each_row(state, Table::PruneOutcomes, left, |state, key| {
        let at = keys::time_in(key);
        if state.meta.outcomes <= state.options.outcomes_max && now.since(at) < kept_for {
            return Ok(false);
        }
        for (conversation, entry) in state.store.get::<Vec<(Hash, Hash)>>(key)?.unwrap_or_default() {
            let key = keys::entry(&conversation, &entry);
            let Some(outcome) = state.outcome(&key)? else { continue };
            if outcome.at <= at && !has_dead_letter(state, &outcome, &entry)? {
                state.store.remove(key);
                state.meta.outcomes = state.meta.outcomes.saturating_sub(1);
            }
        }
        state.pruned_outcomes = (at, keys::row_in(key));
        Ok(true)
    })
}

/// Prunes dead letters. Their outcomes go with them, or later with their rows of the index.
pub fn prune_dead_letters(state: &mut State, now: Timestamp, left: &mut usize) -> Result<bool> {
    let kept_for = state.options.dead_kept_for;
    each_row(state, Table::PruneDead, left, |state, key| {
        if state.meta.dead <= state.options.dead_max && now.since(keys::time_in(key)) < kept_for {
            return Ok(false);
        }
        forget_dead_letter(state, keys::row_in(key))?;
        Ok(true)
    })
}

/// Prunes tokens, participants and disconnected conversations that were last used more than a day ago.
pub fn prune_last_uses(state: &mut State, now: Timestamp, left: &mut usize) -> Result<bool> {
    each_row(state, Table::PruneUsed, left, |state, key| {
        let at = keys::time_in(key);
        if now.since(at) < USED_KEPT_FOR {
            return Ok(false);
        }
        for (table, hash) in state.store.get::<Vec<(u8, Hash)>>(key)?.unwrap_or_default() {
            forget_used(state, table, &hash, at, now)?;
        }
        Ok(true)
    })
}

/// Calls `prune` with the prune rows of a table, oldest first, and removes each one for which it returns true. Ends at the
/// first one that is not to be pruned yet.
fn each_row(
    state: &mut State,
    table: Table,
    left: &mut usize,
    mut prune: impl FnMut(&mut State, &Key) -> Result<bool>,
) -> Result<bool> {
    while *left > 0 {
        *left -= 1;
        let Some(key) = state.store.first_key(table.key())? else { break };
        if !prune(state, &key)? {
            break;
        }
        state.store.remove(key);
        if state.store.pending_bytes() >= COMMIT_BYTES {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns true if an outcome belongs to a dead letter. One that was redriven into another conversation does not.
fn has_dead_letter(state: &mut State, outcome: &Outcome, entry: &Hash) -> Result<bool> {
    Ok(match outcome.fate {
        FinalState::Delivered(_) => false,
        FinalState::Dead { .. } => {
            let dead = state.store.get::<Dead>(&keys::dead(outcome.sequence))?;
            dead.is_some_and(|dead| dead.record.entry == *entry)
        }
    })
}

fn forget_dead_letter(state: &mut State, sequence: u64) -> Result<()> {
    let Some(Dead { record, .. }) = state.store.get(&keys::dead(sequence))? else { return Ok(()) };
    state.store.remove(keys::dead(sequence));
    state.meta.weight = state.meta.weight.saturating_sub(record.weight() + record.dead_weight());
    state.remove_pieces(&record);
    let key = keys::entry(&record.conversation, &record.entry);
    let (outcome, origin) = match state.store.get(&key)? {
        Some(ClientTokenRow::Settled(outcome, origin)) => (Some(outcome), Some(origin)),
        row => (row.and_then(ClientTokenRow::outcome), None),
    };
    if outcome.is_some_and(|outcome| outcome.sequence == sequence) {
        match origin {
            // It stays as long as that of a delivered message: readers of the stream and repeats ask for it.
            Some(origin) if is_in_stream(state, &origin)? => state.meta.outcomes += 1,
            _ => state.store.remove(key),
        }
    }
    state.meta.dead = state.meta.dead.saturating_sub(1);
    Ok(())
}

/// Returns true if the row of the index that names an outcome was not pruned: it is written, or will be by this commit.
fn is_in_stream(state: &State, origin: &Origin) -> Result<bool> {
    let first = state.store.first_key(Table::PruneOutcomes.key())?;
    Ok(origin.row >= first.map_or(state.meta.next_row + 1, |key| keys::row_in(&key)))
}

/// Removes a row that was last used at `at`. A token with queued messages is looked at again in a day.
fn forget_used(state: &mut State, table: u8, hash: &Hash, at: Timestamp, now: Timestamp) -> Result<()> {
    match table {
        USED_TOKEN => {
            let Some(mut token) = state.store.get::<Token>(&keys::token(hash))? else { return Ok(()) };
            if token.used > at {
                return Ok(());
            }
            let queued = match &token.conversation {
                Some(conversation) => state.conversation(conversation, now)?.count > 0,
                None => false,
            };
            if queued {
                token.used = now;
                state.used.push((USED_TOKEN, *hash));
                state.store.put(keys::token(hash), &token);
            } else {
                state.store.remove(keys::token(hash));
            }
        }
        USED_PARTICIPANT => {
            let key = keys::participant(hash);
            if state.store.get::<Participant>(&key)?.is_some_and(|row| row.used <= at) {
                state.store.remove(key);
            }
        }
        _ => {
            let row = state.conversation(hash, now)?;
            if row.disconnect.is_some() && row.count == 0 && row.used <= at {
                state.store.remove(keys::conversation(hash));
            }
        }
    }
    Ok(())
}
