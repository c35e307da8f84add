//! Looking at messages for operators: one after another, by their ids, and closely.
//!
//! A step looks at [`LOOKS_MAX`] messages at most and returns how far it came, so that other operations are not held up. A
//! [`Cursor`] goes through the queued messages in the order of their packs (the order of acceptance; requeued messages come
//! last), and then through the dead letters by sequence number. A message that changes between two steps may be met twice
//! or not at all.
//!
//! An operator names a conversation by its label, as the log does, because the store contains keys only as hashes: two
//! users' equal keys both match.

use std::ops::Bound;

use crate::delivery::Reason;
use crate::queue::api::{Cursor, Location, Lookup, MessageId, MessageView, Page, Result, Selection};
use crate::queue::rows::{Dead, ErrorRow, FinalState, Outcome, Record, RecordPos, Schedule, Table, keys, reason_at};
use crate::queue::state::State;
use crate::queue::state::parts::Queued;
use crate::time::Timestamp;

/// The most messages that one step looks at.
pub const LOOKS_MAX: usize = 256;
/// The bytes after which one step ends: it is one commit, and all other operations wait for it.
const WRITTEN_MAX: usize = 128 << 10;

/// A stored message.
pub enum Stored {
    Queued(Queued),
    Dead(Dead),
}

/// The reason of a dead letter, with its outcome.
pub struct DeathRow {
    pub reason: Reason,
    pub maybe_delivered: bool,
    pub error: ErrorRow,
    pub outcome: Outcome,
}

/// The next messages of a selection, at most `most`.
pub fn list(state: &mut State, of: &Selection, after: Cursor, most: usize, now: Timestamp) -> Result<Page> {
    let mut messages = Vec::new();
    let next = scan(state, of, (after, most), now, |state, stored| {
        messages.push(view(state, stored, false, now)?);
        Ok(true)
    })?;
    Ok(Page { messages, next })
}

/// Calls `act` with the next messages of a selection, at most `most` of them, until it returns false. Returns the position
/// to continue from.
pub fn scan(
    state: &mut State,
    of: &Selection,
    (after, most): (Cursor, usize),
    now: Timestamp,
    mut act: impl FnMut(&mut State, Stored) -> Result<bool>,
) -> Result<Option<Cursor>> {
    let (mut at, mut looks, mut acts) = (after, 0, 0);
    let limit = state.store.pending_bytes() + WRITTEN_MAX;
    while looks < LOOKS_MAX && state.store.pending_bytes() < limit {
        match at {
            Cursor::Queued { pack, nth } => {
                let behind = if nth == u8::MAX { pack } else { pack.saturating_sub(1) };
                let Some(live) = state.next_pack(behind)? else {
                    if of.state.is_some() {
                        return Ok(None);
                    }
                    at = Cursor::Dead(0);
                    continue;
                };
                looks += live.records.len().max(1);
                for (place, record) in live.records {
                    if (place.pack, place.nth) <= (pack, nth) || of.reason.is_some() || !of.has(&record) {
                        continue;
                    }
                    let Some(queued) = in_conversation(state, place, record, now)? else { continue };
                    let enough = acts == most || state.store.pending_bytes() >= limit;
                    if enough || !act(state, Stored::Queued(queued))? {
                        return Ok(Some(at));
                    }
                    acts += 1;
                    at = Cursor::Queued { pack: place.pack, nth: place.nth };
                }
                at = Cursor::Queued { pack: live.pack, nth: u8::MAX };
            }
            Cursor::Dead(sequence) => {
                let from = Bound::Excluded(keys::dead(sequence));
                let Some(key) = state.store.next_key(Table::Dead.key(), from)? else { return Ok(None) };
                looks += 1;
                let sequence = keys::number_in(&key);
                if let Some(dead) = state.store.get::<Dead>(&key)?
                    && has_dead(state, of, &dead)?
                {
                    if acts == most || !act(state, Stored::Dead(dead))? {
                        return Ok(Some(at));
                    }
                    acts += 1;
                }
                at = Cursor::Dead(sequence);
            }
        }
    }
    Ok(Some(at))
}

/// Returns true if a dead letter is selected.
fn has_dead(state: &mut State, of: &Selection, dead: &Dead) -> Result<bool> {
    Ok(of.has(&dead.record)
        && match of.reason {
            None => true,
            Some(reason) => death_of(state, &dead.record)?.is_some_and(|death| death.reason == reason),
        })
}

/// Searches for a message by its sequence number, in the packs after `after`. `Err` is the pack to continue after. Packs
/// have no index of sequence numbers, so this takes several steps.
pub fn seek(state: &mut State, store: u32, sequence: u64, after: u64) -> Result<Result<Lookup, u64>> {
    if store != state.store.nonce || !(1..state.meta.next_sequence).contains(&sequence) {
        return Ok(Ok(Lookup::Never));
    }
    let here =
        |state: &State, record: &Record| Ok(Ok(Lookup::Here(state.id(sequence, record.conversation, record.entry))));
    if let Some(dead) = state.store.get::<Dead>(&keys::dead(sequence))? {
        return here(state, &dead.record);
    }
    let (mut after, mut looks) = (after, 0);
    while looks < LOOKS_MAX {
        let Some(live) = state.next_pack(after)? else { return Ok(Ok(Lookup::Gone)) };
        if let Some((_, record)) = live.records.iter().find(|(_, record)| record.sequence == sequence) {
            return here(state, record);
        }
        looks += live.records.len().max(1);
        after = live.pack;
    }
    Ok(Err(after))
}

/// A message by its id, for an operator; `None` if it was delivered or pruned.
pub fn show(state: &mut State, id: MessageId, contents: bool, now: Timestamp) -> Result<Option<MessageView>> {
    stored(state, id, now)?.map(|stored| view(state, stored, contents, now)).transpose()
}

/// A stored message by its id.
pub fn stored(state: &mut State, id: MessageId, now: Timestamp) -> Result<Option<Stored>> {
    if let Some(dead) = state.store.get::<Dead>(&keys::dead(id.sequence))? {
        return Ok(Some(Stored::Dead(dead)));
    }
    let row = state.conversation(&id.conversation, now)?;
    let reference = state.reference(&id.conversation, &row, id.sequence)?;
    let queued = reference.map(|reference| state.queued(reference)).transpose()?.flatten();
    Ok(queued.map(Stored::Queued))
}

/// A record with the reference to it; `None` if its conversation's row has lost that.
fn in_conversation(state: &mut State, at: RecordPos, record: Record, now: Timestamp) -> Result<Option<Queued>> {
    let row = state.conversation(&record.conversation, now)?;
    let reference = state.reference(&record.conversation, &row, record.sequence)?;
    Ok(reference.filter(|reference| reference.at == at).map(|reference| Queued { reference, record }))
}

/// A message as an operator sees it.
pub fn view(state: &mut State, stored: Stored, contents: bool, now: Timestamp) -> Result<MessageView> {
    let (record, attempts, maybe_delivered, place) = match stored {
        Stored::Queued(Queued { reference, record }) => {
            let row = state.conversation(&record.conversation, now)?;
            let in_flight = state.is_in_flight(&record);
            let next_attempt = match row.schedule {
                Schedule::DelayedUntil(due) => Some(due),
                _ => None,
            };
            let doubtful = state.is_doubtful(&row, &reference);
            (record, reference.attempts, doubtful, Location::Queued { in_flight, next_attempt })
        }
        Stored::Dead(Dead { record, attempts, died }) => {
            let death = death_of(state, &record)?;
            let place = Location::Dead {
                died,
                reason: death.as_ref().map(|death| death.reason),
                error: death.as_ref().map(|death| death.error.clone().into()).unwrap_or_default(),
            };
            (record, attempts, death.is_some_and(|death| death.maybe_delivered), place)
        }
    };
    let body = if contents { state.body(&record)? } else { None };
    Ok(MessageView {
        id: state.id(record.sequence, record.conversation, record.entry),
        client_token: record.client_token.into(),
        conversation: record.label.into(),
        content_type: record.kind.content_type().map(Into::into),
        trace_id: record.trace_id.map(Into::into),
        accepted: record.accepted,
        deadline: record.deadline,
        attempts: attempts.count,
        maybe_delivered,
        place,
        body,
    })
}

/// The reason of a dead letter; `None` if its outcome is damaged.
pub fn death_of(state: &mut State, record: &Record) -> Result<Option<DeathRow>> {
    let key = keys::entry(&record.conversation, &record.entry);
    let Some(outcome) = state.outcome(&key)? else { return Ok(None) };
    Ok(match &outcome.fate {
        FinalState::Dead { reason, maybe_delivered, error, .. } if outcome.sequence == record.sequence => {
            Some(DeathRow {
                reason: reason_at(*reason),
                maybe_delivered: *maybe_delivered,
                error: error.clone(),
                outcome,
            })
        }
        _ => None,
    })
}
