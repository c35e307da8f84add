//! The start of a run on a store: the numbers continue after those of the last run.

use std::ops::Bound;

use crate::fairness::Class;
use crate::queue::api::Result;
use crate::queue::rows::{Table, keys};
use crate::queue::state::State;
use crate::storage::Store;
use crate::time::{Anchor, Timestamp};

/// Continues the numbers of the last run, and records that this one has begun. Returns the anchor of the store's times,
/// and the newest time that it contains: the clock resumes there.
pub fn begin(state: &mut State) -> Result<(Option<Anchor>, Timestamp)> {
    if let Some(meta) = state.store.get(&Table::Meta.key())? {
        state.meta = meta;
    }
    // The counts may be lost with a damaged row; a number must never be used twice.
    let last = |store: &Store, table: Table| -> Result<u64> {
        let behind = table.key().end().map_or(Bound::Unbounded, Bound::Excluded);
        let key = store.last_key(table.key(), behind)?;
        Ok(key.map_or(0, |key| keys::number_in(&key)))
    };
    let pack = last(&state.store, Table::Pack)?;
    let records = state.next_pack(pack.saturating_sub(1))?.map(|live| live.records).unwrap_or_default();
    let sequence = records.iter().map(|(_, record)| record.sequence).max().unwrap_or(0);
    let sequence = sequence.max(last(&state.store, Table::Dead)?);
    let accepted = records.iter().map(|(_, record)| record.accepted).max();
    let pruned = [
        last(&state.store, Table::PruneOutcomes)?,
        last(&state.store, Table::PruneUsed)?,
        last(&state.store, Table::PruneDead)?,
    ]
    .map(Timestamp);
    let learned = state.meta.learned.map(|kept| kept.at);
    let newest = pruned.into_iter().chain(accepted).chain(learned).max().unwrap_or_default();
    let meta = &mut state.meta;
    meta.next_sequence = meta.next_sequence.max(sequence + 1);
    meta.next_pack = meta.next_pack.max(pack + 1);
    for kind in [Class::Fresh, Class::Late] {
        meta.next_turn = meta.next_turn.max(last(&state.store, Table::turns(kind))? + 1);
    }
    if !meta.clean && meta.boot > 0 {
        meta.unclean_boot = meta.boot;
    }
    meta.boot += 1;
    meta.clean = false;
    state.write_meta();
    Ok((state.store.get(&Table::Anchor.key())?, newest))
}
