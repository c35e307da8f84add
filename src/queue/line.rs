//! A conversation's line: its messages in order, and its one place among the conversations.
//!
//! The line's own row holds the first messages; those that it has no room for stand in chunks (`s` rows), each keyed by
//! its first sequence number, and have an entry (`i` row) for their ClientToken. Every message in the row comes before
//! every message in a chunk, and the chunks do not overlap. All stand by their sequence numbers, but for the first of all,
//! before which nothing is put while it is in flight or may have been delivered.
//! A place is changed only through [`Writer::move_to`], which keeps its index row beside it.

use std::ops::Bound;

use super::rows::{Entry, Hash, Key, Line, Place, Slot, Trial, keys};
use super::{StoreFailed, Writer};
use crate::time::Timestamp;
use crate::turns::Kind;

/// Messages that are appended to the row itself; a chunk that moves up may bring more.
const FIRST_MAX: usize = 32;
/// Messages in a chunk before a new one is begun.
pub const SLOTS_MAX: usize = 64;

impl Line {
    /// The message that goes next.
    pub fn head(&self) -> Option<&Slot> {
        self.first.first()
    }

    /// Messages in chunks.
    fn in_chunks(&self) -> u64 {
        self.count.saturating_sub(self.first.len() as u64)
    }
}

impl Writer {
    /// The line of a conversation; an empty one where it has none.
    pub(super) fn line(&mut self, conversation: &Hash) -> Result<Line, StoreFailed> {
        let corrupt = self.store.corrupt();
        match self.store.get(&keys::line(conversation))? {
            Some(line) => Ok(line),
            None if self.store.corrupt() > corrupt => self.rebuild_line(conversation),
            None => Ok(Line::default()),
        }
    }

    /// Writes a line back, or removes it where nothing is left to say.
    pub(super) fn put_line(&mut self, conversation: &Hash, line: &Line) {
        if line.count == 0 && line.disconnect.is_none() {
            self.store.remove(keys::line(conversation));
        } else {
            self.store.put(keys::line(conversation), line);
        }
    }

    /// Packs are the truth: a damaged line is made again from them. What its attempts came to is lost with it.
    fn rebuild_line(&mut self, conversation: &Hash) -> Result<Line, StoreFailed> {
        let mut slots = Vec::new();
        let mut after = 0;
        while let Some(live) = self.next_pack(after)? {
            after = live.pack;
            let own = live.records.into_iter().filter(|(_, record)| record.conversation == *conversation);
            slots.extend(own.map(|(at, record)| Slot {
                sequence: record.sequence,
                accepted: record.accepted,
                at,
                entry: record.entry,
                trial: Trial::default(),
            }));
        }
        slots.sort_unstable_by_key(|slot| slot.sequence);
        let mut line = Line::default();
        self.refill(conversation, &mut line, slots)?;
        if line.count > 0 {
            let now = self.now();
            self.take_turn(conversation, &mut line, now);
        }
        self.put_line(conversation, &line);
        Ok(line)
    }

    /// Puts a message at the end.
    pub(super) fn append(&mut self, conversation: &Hash, line: &mut Line, slot: Slot) -> Result<(), StoreFailed> {
        let in_chunks = line.in_chunks();
        line.count += 1;
        if in_chunks == 0 && line.first.len() < FIRST_MAX {
            line.first.push(slot);
            return Ok(());
        }
        let entry = Entry::Queued { at: slot.at };
        self.store.put(keys::entry(conversation, &slot.entry), &entry);
        if in_chunks > 0 {
            let to = Bound::Included(keys::chunk(conversation, u64::MAX));
            if let Some(key) = self.store.last_key(keys::chunks(conversation), to)? {
                let mut chunk = self.store.get::<Vec<Slot>>(&key)?.unwrap_or_default();
                if chunk.len() < SLOTS_MAX {
                    chunk.push(slot);
                    self.store.put(key, &chunk);
                    return Ok(());
                }
            }
        }
        self.store.put(keys::chunk(conversation, slot.sequence), &vec![slot]);
        Ok(())
    }

    /// Puts a message that comes back at its old place, but never before one that may have been delivered. Only what is
    /// around that place is written, however long the line is.
    pub(super) fn insert(&mut self, conversation: &Hash, line: &mut Line, slot: Slot) -> Result<(), StoreFailed> {
        let prefix = keys::chunks(conversation);
        let chunks = if line.in_chunks() > 0 { self.store.first_key(prefix)? } else { None };
        let chunks = chunks.map(|key| keys::first_in(&key));
        if chunks.is_some_and(|first| first <= slot.sequence) {
            return self.insert_in_chunk(conversation, line, slot);
        }
        let doubtful =
            self.leased.contains_key(conversation) || line.head().is_some_and(|head| self.is_doubtful(line, head));
        // Before such a one something was not put earlier: it stays the first, and all behind it are in order.
        let next = line.first.get(1).map(|next| next.sequence).or(chunks);
        let passed_over = line.head().zip(next).is_some_and(|(head, next)| head.sequence > next);
        let from = usize::from(doubtful || passed_over).min(line.first.len());
        let at = line.first[from..].partition_point(|other| other.sequence < slot.sequence);
        line.first.insert(from + at, slot);
        line.count += 1;
        if line.first.len() > SLOTS_MAX {
            let chunk = line.first.split_off(FIRST_MAX);
            for slot in &chunk {
                self.store.put(keys::entry(conversation, &slot.entry), &Entry::Queued { at: slot.at });
            }
            self.store.put(keys::chunk(conversation, chunk[0].sequence), &chunk);
        }
        Ok(())
    }

    /// Puts a message into the chunk that it belongs to, which is halved where it is full.
    fn insert_in_chunk(&mut self, conversation: &Hash, line: &mut Line, slot: Slot) -> Result<(), StoreFailed> {
        let key = keys::chunk(conversation, slot.sequence);
        let key = self.store.last_key(keys::chunks(conversation), Bound::Included(key))?.unwrap_or(key);
        let mut chunk = self.store.get::<Vec<Slot>>(&key)?.unwrap_or_default();
        self.store.put(keys::entry(conversation, &slot.entry), &Entry::Queued { at: slot.at });
        let at = chunk.partition_point(|other| other.sequence < slot.sequence);
        chunk.insert(at, slot);
        line.count += 1;
        if chunk.len() > SLOTS_MAX {
            let rest = chunk.split_off(SLOTS_MAX / 2);
            self.store.put(keys::chunk(conversation, rest[0].sequence), &rest);
        }
        self.store.put(key, &chunk);
        Ok(())
    }

    /// Makes a line of these, and of nothing else.
    pub(super) fn refill(&mut self, conversation: &Hash, line: &mut Line, slots: Vec<Slot>) -> Result<(), StoreFailed> {
        while let Some(key) = self.store.first_key(keys::chunks(conversation))? {
            self.store.remove(key);
        }
        line.count = 0;
        line.first.clear();
        for slot in slots {
            self.append(conversation, line, slot)?;
        }
        Ok(())
    }

    /// Whether a message of the line, not in flight, may have been delivered.
    pub(super) fn is_doubtful(&self, line: &Line, slot: &Slot) -> bool {
        let head = line.head().is_some_and(|head| head.sequence == slot.sequence);
        slot.trial.unknown || (head && line.boot <= self.meta.unclean_boot)
    }

    /// Takes a message out; true where it was the head.
    pub(super) fn take_out(
        &mut self,
        conversation: &Hash,
        line: &mut Line,
        sequence: u64,
    ) -> Result<bool, StoreFailed> {
        let head = line.head().is_some_and(|head| head.sequence == sequence);
        if let Some(at) = line.first.iter().position(|other| other.sequence == sequence) {
            line.first.remove(at);
            line.count -= 1;
        } else if let Some((key, mut chunk, at)) = self.chunk_of(conversation, sequence)? {
            chunk.remove(at);
            line.count -= 1;
            self.store.remove(key);
            if let Some(first) = chunk.first() {
                self.store.put(keys::chunk(conversation, first.sequence), &chunk);
            }
        }
        if line.first.is_empty() && line.count > 0 {
            if let Some(key) = self.store.first_key(keys::chunks(conversation))? {
                line.first = self.store.get(&key)?.unwrap_or_default();
                self.store.remove(key);
            }
            if line.first.is_empty() {
                // A chunk was damaged: what it named is found again from the packs.
                *line = self.rebuild_line(conversation)?;
            }
        }
        Ok(head)
    }

    /// A message of the line.
    pub(super) fn slot(
        &mut self,
        conversation: &Hash,
        line: &Line,
        sequence: u64,
    ) -> Result<Option<Slot>, StoreFailed> {
        if let Some(slot) = line.first.iter().find(|slot| slot.sequence == sequence) {
            return Ok(Some(slot.clone()));
        }
        if line.in_chunks() == 0 {
            return Ok(None);
        }
        Ok(self.chunk_of(conversation, sequence)?.map(|(_, mut chunk, at)| chunk.swap_remove(at)))
    }

    /// The chunk that a message stands in, and where.
    fn chunk_of(&mut self, conversation: &Hash, sequence: u64) -> Result<Option<(Key, Vec<Slot>, usize)>, StoreFailed> {
        let to = Bound::Included(keys::chunk(conversation, sequence));
        let Some(key) = self.store.last_key(keys::chunks(conversation), to)? else { return Ok(None) };
        let chunk = self.store.get::<Vec<Slot>>(&key)?.unwrap_or_default();
        let at = chunk.iter().position(|other| other.sequence == sequence);
        Ok(at.map(|at| (key, chunk, at)))
    }

    /// Every message of the line, in order.
    pub(super) fn slots(&mut self, conversation: &Hash, line: &Line) -> Result<Vec<Slot>, StoreFailed> {
        let mut all = line.first.clone();
        let mut from = Bound::Included(keys::chunks(conversation));
        while (all.len() as u64) < line.count {
            let Some(key) = self.store.next_key(keys::chunks(conversation), from)? else { break };
            all.extend(self.store.get::<Vec<Slot>>(&key)?.unwrap_or_default());
            from = Bound::Excluded(key);
        }
        Ok(all)
    }

    /// Moves a conversation to another place.
    pub(super) fn move_to(&mut self, conversation: &Hash, line: &mut Line, place: Place, now: Timestamp) {
        match line.place {
            Place::None => {}
            Place::Turn(kind, turn) => {
                self.store.remove(keys::turn(kind, turn, conversation));
                if kind == Kind::Fresh {
                    self.fresh.left(turn);
                }
            }
            Place::Due(due) => self.store.remove(keys::due(due, conversation)),
        }
        line.place = place;
        self.throttled.remove(conversation);
        match place {
            Place::None => {}
            Place::Turn(kind, turn) => {
                self.store.put(keys::turn(kind, turn, conversation), &now);
                if kind == Kind::Fresh {
                    self.fresh.given(turn, now, self.options.fresh);
                }
                self.poke = true;
            }
            Place::Due(due) => {
                self.store.put(keys::due(due, conversation), &());
                self.poke = true;
            }
        }
    }

    /// Puts a conversation at the end of those that can be sent, among those of its kind.
    pub(super) fn take_turn(&mut self, conversation: &Hash, line: &mut Line, now: Timestamp) {
        let turn = self.meta.next_turn;
        self.meta.next_turn += 1;
        let oldest = line.head().map_or(now, |head| head.accepted);
        let kind = Kind::of(oldest, now, self.options.fresh);
        self.move_to(conversation, line, Place::Turn(kind, turn), now);
    }
}
