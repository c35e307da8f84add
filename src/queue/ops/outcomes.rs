//! The outcomes of one caller's messages, in the order of their commits.
//!
//! The index is the `PruneOutcomes` rows: each commit with outcomes has one (or several, if it has many), which names the
//! messages. An outcome belongs to the row and the index that it contains ([`Origin`]): if the message was redriven and
//! settled again, an older row still names it, and is passed over. So a reader gets the newest outcome alone. Rows are pruned
//! oldest first; a reader that has not read a row before it was pruned may have missed an outcome, and gets none any more.

use std::ops::Bound;

use crate::queue::api::{OutcomeCursor, OutcomeEvent, OutcomePage, Result};
use crate::queue::rows::{ClientTokenRow, Hash, Key, Origin, Table, keys};
use crate::queue::state::State;
use crate::time::Timestamp;

/// The most messages that one page looks at, and the most outcomes in it: all other operations wait for it, and a reader
/// has one page in memory.
const LOOKS_MAX: usize = 256;
const EVENTS_MAX: usize = 32;

/// Returns the position to read from: `after`, or the present end. `None` if an outcome after it may have been pruned, or
/// it is of another store.
pub fn start(state: &mut State, after: Option<OutcomeCursor>, now: Timestamp) -> Result<Option<OutcomeCursor>> {
    let store = state.store.nonce;
    if let Some(cursor) = after {
        let kept = state.store.read(&keys::prune_outcomes(cursor.at, cursor.row), |_| ())?.is_some();
        let recent = now.since(cursor.at) < state.options.outcomes_kept_for;
        return Ok(Some(cursor).filter(|cursor| kept && recent && cursor.store == store));
    }
    let prefix = Table::PruneOutcomes.key();
    let last = state.store.last_key(prefix, prefix.end().map_or(Bound::Unbounded, Bound::Excluded))?;
    let (at, row) = last.map_or(state.pruned_outcomes, |key| place_of(&key));
    Ok(Some(OutcomeCursor { store, at, row, nth: u8::MAX }))
}

/// The next outcomes of a caller. `None` if one of them may have been pruned.
pub fn page(state: &mut State, caller: u64, after: OutcomeCursor) -> Result<Option<OutcomePage>> {
    if (after.at, after.row) < state.pruned_outcomes {
        return Ok(None);
    }
    let mut page = OutcomePage { events: Vec::new(), next: after, more: true };
    let mut looks = 0;
    let mut from = Bound::Included(keys::prune_outcomes(after.at, after.row));
    while let Some(key) = state.store.next_key(Table::PruneOutcomes.key(), from)? {
        let (at, row) = place_of(&key);
        let names = state.store.get::<Vec<(Hash, Hash)>>(&key)?.unwrap_or_default();
        let seen = |nth| (at, row) == (after.at, after.row) && nth <= after.nth;
        for (nth, (conversation, entry)) in (0..).zip(names).filter(|(nth, _)| !seen(*nth)) {
            if looks == LOOKS_MAX || page.events.len() == EVENTS_MAX {
                return Ok(Some(page));
            }
            looks += 1;
            page.next = OutcomeCursor { at, row, nth, ..after };
            page.events.extend(event(state, caller, page.next, &conversation, &entry)?);
        }
        from = Bound::Excluded(key);
    }
    page.more = false;
    Ok(Some(page))
}

/// The outcome at a position; `None` if it is another caller's, was pruned, or has another position.
fn event(
    state: &mut State,
    caller: u64,
    cursor: OutcomeCursor,
    conversation: &Hash,
    entry: &Hash,
) -> Result<Option<OutcomeEvent>> {
    let found = state.store.get(&keys::entry(conversation, entry))?;
    let Some(ClientTokenRow::Settled(outcome, origin)) = found else { return Ok(None) };
    let Origin { row, nth, ref names, .. } = origin;
    if origin.caller != caller || (row, nth) != (cursor.row, cursor.nth) {
        return Ok(None);
    }
    let names = state.sealer.open(&keys::names_place(outcome.sequence), names).unwrap_or_default();
    let names = String::from_utf8_lossy(&names);
    let (conversation_label, client_token) = names.split_once('\n').unwrap_or_default();
    let state = state.state_of_settled(conversation, entry, outcome);
    Ok(Some(OutcomeEvent { cursor, state, client_token: client_token.into(), conversation: conversation_label.into() }))
}

fn place_of(key: &Key) -> (Timestamp, u64) {
    (keys::time_in(key), keys::row_in(key))
}
