//! The messages of a conversation in order, and its schedule.
//!
//! The conversation's own row (`v`) contains the first messages. The others are in chunks (`s` rows), each with the
//! sequence number of its first message in the key, and have a row of their ClientToken (`i`). Every message in the row
//! comes before every message in a chunk, and chunks do not overlap. Messages are in the order of their sequence numbers,
//! except the first one: while it is in flight or may have been delivered, nothing is put before it.
//! Only [`State::reschedule`] changes a schedule; it keeps the index row (`r`, `q` or `d`) equal to it.

use std::ops::Bound;

use super::State;
use crate::fairness::Class;
use crate::queue::api::Result;
use crate::queue::rows::{Attempts, ClientTokenRow, Conversation, Hash, Key, QueuedRef, REFS_MAX, Schedule, keys};
use crate::time::Timestamp;

/// Messages that are appended to the row itself; a chunk that moves up may bring more.
const FIRST_MAX: usize = 32;

impl State {
    /// The row of a conversation; an empty one if it has none.
    pub fn conversation(&mut self, id: &Hash, now: Timestamp) -> Result<Conversation> {
        let corrupt = self.store.corrupt();
        match self.store.get(&keys::conversation(id))? {
            Some(row) => Ok(row),
            None if self.store.corrupt() > corrupt => self.rebuild_conversation(id, now),
            None => Ok(Conversation::default()),
        }
    }

    /// Writes the row, or removes it if it has no message and no disconnect.
    pub fn save_conversation(&mut self, id: &Hash, row: &Conversation) {
        if row.count == 0 && row.disconnect.is_none() {
            self.store.remove(keys::conversation(id));
        } else {
            self.store.put(keys::conversation(id), row);
        }
    }

    /// Makes a damaged row again from the packs, which are the truth. The results of its attempts are lost.
    fn rebuild_conversation(&mut self, id: &Hash, now: Timestamp) -> Result<Conversation> {
        let mut references = Vec::new();
        let mut after = 0;
        while let Some(live) = self.next_pack(after)? {
            after = live.pack;
            let own = live.records.into_iter().filter(|(_, record)| record.conversation == *id);
            references.extend(own.map(|(at, record)| QueuedRef {
                sequence: record.sequence,
                accepted: record.accepted,
                at,
                entry: record.entry,
                attempts: Attempts::default(),
            }));
        }
        references.sort_unstable_by_key(|reference| reference.sequence);
        let mut row = Conversation::default();
        self.refill(id, &mut row, references)?;
        if row.count > 0 {
            self.make_ready(id, &mut row, now);
        }
        self.save_conversation(id, &row);
        Ok(row)
    }

    /// Adds a message at the end.
    pub fn append(&mut self, id: &Hash, row: &mut Conversation, reference: QueuedRef) -> Result<()> {
        let in_chunks = row.in_chunks();
        row.count += 1;
        if in_chunks == 0 && row.first.len() < FIRST_MAX {
            row.first.push(reference);
            return Ok(());
        }
        self.put_client_token(id, &reference);
        if in_chunks > 0 {
            let to = Bound::Included(keys::chunk(id, u64::MAX));
            if let Some(key) = self.store.last_key(keys::chunks(id), to)? {
                let mut chunk = self.store.get::<Vec<QueuedRef>>(&key)?.unwrap_or_default();
                if chunk.len() < REFS_MAX {
                    chunk.push(reference);
                    self.store.put(key, &chunk);
                    return Ok(());
                }
            }
        }
        self.store.put(keys::chunk(id, reference.sequence), &vec![reference]);
        Ok(())
    }

    /// Writes the row of the ClientToken of a message whose reference is in a chunk.
    fn put_client_token(&mut self, id: &Hash, reference: &QueuedRef) {
        self.store.put(keys::entry(id, &reference.entry), &ClientTokenRow::Queued { at: reference.at });
    }

    /// Inserts a requeued message at its old place, but never before a message that may have been delivered. Only the rows
    /// around that place are written, however long the conversation is.
    pub fn insert(&mut self, id: &Hash, row: &mut Conversation, reference: QueuedRef) -> Result<()> {
        let prefix = keys::chunks(id);
        let chunks = if row.in_chunks() > 0 { self.store.first_key(prefix)? } else { None };
        let chunks = chunks.map(|key| keys::first_in(&key));
        if chunks.is_some_and(|first| first <= reference.sequence) {
            return self.insert_in_chunk(id, row, reference);
        }
        let doubtful = self.leased.contains_key(id) || row.head().is_some_and(|head| self.is_doubtful(row, head));
        // If an earlier message was once put behind a doubtful head, the head stays the first, and all others are in
        // order.
        let next = row.first.get(1).map(|next| next.sequence).or(chunks);
        let passed_over = row.head().zip(next).is_some_and(|(head, next)| head.sequence > next);
        let from = usize::from(doubtful || passed_over).min(row.first.len());
        let at = row.first[from..].partition_point(|other| other.sequence < reference.sequence);
        row.first.insert(from + at, reference);
        row.count += 1;
        if row.first.len() > REFS_MAX {
            let chunk = row.first.split_off(FIRST_MAX);
            chunk.iter().for_each(|reference| self.put_client_token(id, reference));
            self.store.put(keys::chunk(id, chunk[0].sequence), &chunk);
        }
        Ok(())
    }

    /// Inserts a message into its chunk, which is halved if it is full.
    fn insert_in_chunk(&mut self, id: &Hash, row: &mut Conversation, reference: QueuedRef) -> Result<()> {
        let key = keys::chunk(id, reference.sequence);
        let key = self.store.last_key(keys::chunks(id), Bound::Included(key))?.unwrap_or(key);
        let mut chunk = self.store.get::<Vec<QueuedRef>>(&key)?.unwrap_or_default();
        self.put_client_token(id, &reference);
        let at = chunk.partition_point(|other| other.sequence < reference.sequence);
        chunk.insert(at, reference);
        row.count += 1;
        if chunk.len() > REFS_MAX {
            let rest = chunk.split_off(REFS_MAX / 2);
            self.store.put(keys::chunk(id, rest[0].sequence), &rest);
        }
        self.store.put(key, &chunk);
        Ok(())
    }

    /// Replaces all messages of a conversation.
    pub fn refill(&mut self, id: &Hash, row: &mut Conversation, references: Vec<QueuedRef>) -> Result<()> {
        while let Some(key) = self.store.first_key(keys::chunks(id))? {
            self.store.remove(key);
        }
        row.count = 0;
        row.first.clear();
        for reference in references {
            self.append(id, row, reference)?;
        }
        Ok(())
    }

    /// Returns true if a message that is not in flight may have been delivered.
    pub fn is_doubtful(&self, row: &Conversation, reference: &QueuedRef) -> bool {
        let is_head = row.head().is_some_and(|head| head.sequence == reference.sequence);
        reference.attempts.unknown || (is_head && row.boot <= self.meta.unclean_boot)
    }

    /// Takes a message out. Returns true if it was the head.
    pub fn take_out(&mut self, id: &Hash, row: &mut Conversation, sequence: u64, now: Timestamp) -> Result<bool> {
        let was_head = row.head().is_some_and(|head| head.sequence == sequence);
        if let Some(at) = row.first.iter().position(|other| other.sequence == sequence) {
            row.first.remove(at);
            row.count -= 1;
        } else if let Some((key, mut chunk, at)) = self.chunk_of(id, sequence)? {
            chunk.remove(at);
            row.count -= 1;
            self.store.remove(key);
            if let Some(first) = chunk.first() {
                self.store.put(keys::chunk(id, first.sequence), &chunk);
            }
        }
        if row.first.is_empty() && row.count > 0 {
            if let Some(key) = self.store.first_key(keys::chunks(id))? {
                row.first = self.store.get(&key)?.unwrap_or_default();
                self.store.remove(key);
            }
            if row.first.is_empty() {
                // The chunk was damaged: its messages are found again from the packs.
                *row = self.rebuild_conversation(id, now)?;
            }
        }
        Ok(was_head)
    }

    /// The reference to a message of the conversation.
    pub fn reference(&mut self, id: &Hash, row: &Conversation, sequence: u64) -> Result<Option<QueuedRef>> {
        if let Some(reference) = row.first.iter().find(|reference| reference.sequence == sequence) {
            return Ok(Some(reference.clone()));
        }
        if row.in_chunks() == 0 {
            return Ok(None);
        }
        Ok(self.chunk_of(id, sequence)?.map(|(_, mut chunk, at)| chunk.swap_remove(at)))
    }

    /// The chunk that contains a message, with its key and the message's index.
    fn chunk_of(&mut self, id: &Hash, sequence: u64) -> Result<Option<(Key, Vec<QueuedRef>, usize)>> {
        let to = Bound::Included(keys::chunk(id, sequence));
        let Some(key) = self.store.last_key(keys::chunks(id), to)? else { return Ok(None) };
        let chunk = self.store.get::<Vec<QueuedRef>>(&key)?.unwrap_or_default();
        let at = chunk.iter().position(|other| other.sequence == sequence);
        Ok(at.map(|at| (key, chunk, at)))
    }

    /// All messages of the conversation, in order.
    pub fn references(&mut self, id: &Hash, row: &Conversation) -> Result<Vec<QueuedRef>> {
        let mut all = row.first.clone();
        let mut from = Bound::Included(keys::chunks(id));
        while (all.len() as u64) < row.count {
            let Some(key) = self.store.next_key(keys::chunks(id), from)? else { break };
            all.extend(self.store.get::<Vec<QueuedRef>>(&key)?.unwrap_or_default());
            from = Bound::Excluded(key);
        }
        Ok(all)
    }

    /// Changes the schedule of a conversation, and its index row.
    pub fn reschedule(&mut self, id: &Hash, row: &mut Conversation, schedule: Schedule, now: Timestamp) {
        match row.schedule {
            Schedule::Idle => {}
            Schedule::Ready(kind, turn) => {
                self.store.remove(keys::turn(kind, turn, id));
                if kind == Class::Fresh {
                    self.fresh.left(turn);
                }
            }
            Schedule::DelayedUntil(due) => self.store.remove(keys::due(due, id)),
        }
        row.schedule = schedule;
        self.throttled.remove(id);
        match schedule {
            Schedule::Idle => {}
            Schedule::Ready(kind, turn) => {
                self.store.put(keys::turn(kind, turn, id), &now);
                if kind == Class::Fresh {
                    self.fresh.given(turn, now, self.options.fresh);
                }
                self.turn_given = true;
            }
            Schedule::DelayedUntil(due) => {
                self.store.put(keys::due(due, id), &());
                self.wake_sender = true;
            }
        }
    }

    /// Gives a conversation the last turn of its kind.
    pub fn make_ready(&mut self, id: &Hash, row: &mut Conversation, now: Timestamp) {
        let turn = self.meta.next_turn;
        self.meta.next_turn += 1;
        let oldest = row.head().map_or(now, |head| head.accepted);
        let kind = Class::of(oldest, now, self.options.fresh);
        self.reschedule(id, row, Schedule::Ready(kind, turn), now);
    }

    /// Ends a hold: the conversation gets a turn.
    pub fn lift_hold(&mut self, id: &Hash, row: &mut Conversation, now: Timestamp) {
        if row.hold.take().is_some() {
            self.meta.held = self.meta.held.saturating_sub(1);
            self.make_ready(id, row, now);
        }
    }
}
