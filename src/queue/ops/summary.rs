//! The summary for operators: the queued messages by age and by conversation, the dead letters by age and reason.
//!
//! It counts references, not messages: a conversation's row has its number of messages and the acceptance of the first of
//! them, a chunk that of up to 64 others. So it reads no contents, and a million messages are some ten thousand rows. A step
//! ends after [`LOOKS_MAX`] rows or [`REFERENCES_MAX`] references. A message that changes between two steps may be counted
//! twice or not at all; the conversations with most messages are looked at again at the end.

use std::ops::Bound;

use super::browse::{LOOKS_MAX, death_of};
use crate::queue::api::{AGES, ConversationCount, Result, Summary};
use crate::queue::rows::{Conversation, Dead, Hash, QueuedRef, Table, keys};
use crate::queue::state::State;
use crate::time::Timestamp;

/// The references after which a step ends.
const REFERENCES_MAX: u64 = 4096;
/// The number of conversations in each list.
const RANKED: usize = 10;

/// Counts the next rows.
pub fn summarize(state: &mut State, mut summary: Summary, now: Timestamp) -> Result<Summary> {
    let (mut looks, mut references) = (0, 0);
    while let Some((table, after)) = summary.position
        && looks < LOOKS_MAX
        && references < REFERENCES_MAX
    {
        let Some(key) = state.store.next_key(table.key(), Bound::Excluded(after))? else {
            let next = match table {
                Table::Conversation => Some(Table::Chunk),
                Table::Chunk => Some(Table::Dead),
                _ => None,
            };
            summary.position = next.map(|table| (table, table.key()));
            continue;
        };
        summary.position = Some((table, key));
        looks += 1;
        match table {
            Table::Conversation => {
                let id = keys::hash_in(&key);
                let row = state.conversation(&id, now)?;
                references += count(&mut summary, &row.first, now);
                if let Some(oldest) = oldest(&row) {
                    rank(&mut summary.ranked[0], row.count, id);
                    rank(&mut summary.ranked[1], u64::MAX - oldest.sequence, id);
                }
            }
            Table::Chunk => {
                let chunk = state.store.get::<Vec<QueuedRef>>(&key)?.unwrap_or_default();
                references += count(&mut summary, &chunk, now);
            }
            _ => {
                // Its outcome is a second row.
                looks += 1;
                if let Some(dead) = state.store.get::<Dead>(&key)? {
                    summary.dead[class(dead.record.accepted, now)] += 1;
                    let reason = death_of(state, &dead.record)?.map_or("unknown", |death| death.reason.as_str());
                    *summary.reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    if summary.is_complete() {
        let [most, longest] = std::mem::take(&mut summary.ranked);
        summary.most_queued = conversations(state, &most, now)?;
        summary.longest_waiting = conversations(state, &longest, now)?;
    }
    Ok(summary)
}

/// Counts messages by their age. Returns their number.
fn count(summary: &mut Summary, references: &[QueuedRef], now: Timestamp) -> u64 {
    for reference in references {
        summary.queued[class(reference.accepted, now)] += 1;
    }
    references.len() as u64
}

/// The index of a message's class of age.
fn class(accepted: Timestamp, now: Timestamp) -> usize {
    AGES.partition_point(|most| *most < now.since(accepted))
}

/// The oldest message; not always the head, because a redriven message never goes before one that may have been delivered.
fn oldest(row: &Conversation) -> Option<&QueuedRef> {
    row.first.iter().min_by_key(|reference| reference.sequence)
}

/// Inserts a conversation into a list, by a number, if it is among the first.
fn rank(list: &mut Vec<(u64, Hash)>, by: u64, id: Hash) {
    let at = list.partition_point(|(other, _)| *other >= by);
    if at < RANKED {
        list.insert(at, (by, id));
        list.truncate(RANKED);
    }
}

/// The present counts of conversations, with their labels, which only their messages have.
fn conversations(state: &mut State, ranked: &[(u64, Hash)], now: Timestamp) -> Result<Vec<ConversationCount>> {
    let mut counts = Vec::with_capacity(ranked.len());
    for (_, id) in ranked {
        let row = state.conversation(id, now)?;
        let (Some(head), Some(oldest)) = (row.head(), oldest(&row)) else { continue };
        if let Some(record) = state.record(head.at)? {
            let (conversation, oldest) = (record.label.into(), oldest.accepted);
            counts.push(ConversationCount { conversation, queued: row.count, oldest });
        }
    }
    Ok(counts)
}
