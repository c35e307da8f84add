//! A conversation's line: its messages in order, and its one place among the conversations.
//!
//! The line's own row holds the first sequence numbers; those that it has no room for stand in chunks (`s` rows), each
//! keyed by the first number it was made with. Every number in the row comes before every number in a chunk, and the
//! chunks do not overlap. A place is changed only through [`Writer::move_to`], which keeps its index row beside it.

use std::ops::Bound;

use super::codec::{Hash, Key, Line, Place, Record, hash_at, number_at};
use super::{StoreFailed, Writer};
use crate::time::Timestamp;

/// Numbers that are appended to the row itself; a chunk that moves up may bring more.
const FIRST_MAX: usize = 64;
/// Numbers in a chunk before a new one is begun.
const CHUNK_MAX: usize = 256;

pub fn line_key(conversation: &Hash) -> Key {
    Key::new(b'v').hash(conversation)
}

fn chunk_key(conversation: &Hash, first: u64) -> Key {
    Key::new(b's').hash(conversation).number(first)
}

impl Writer {
    /// The line of a conversation; an empty one where it has none.
    pub(super) fn line(&mut self, conversation: &Hash) -> Result<Line, StoreFailed> {
        let corrupt = self.store.corrupt();
        match self.store.get(&line_key(conversation))? {
            Some(line) => Ok(line),
            None if self.store.corrupt() > corrupt => self.rebuild_line(conversation),
            None => Ok(Line::default()),
        }
    }

    /// Writes a line back, or removes it where nothing is left to say.
    pub(super) fn put_line(&mut self, conversation: &Hash, line: &Line) {
        if line.count == 0 && line.disconnect.is_none() {
            self.store.remove(line_key(conversation));
        } else {
            self.store.put(line_key(conversation), line);
        }
    }

    /// Message rows are the truth: a damaged line is made again from them.
    fn rebuild_line(&mut self, conversation: &Hash) -> Result<Line, StoreFailed> {
        let mut line = Line { boot: 0, ..Line::default() };
        let chunks = Key::new(b's').hash(conversation).0;
        while let Some(key) = self.store.next_key(&chunks, Bound::Included(&chunks))? {
            self.store.remove(Key(key));
        }
        let mut after = None;
        loop {
            let page = self.store.page(b'm', after.as_deref(), 256)?;
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            for key in page {
                let sequence = number_at(&key, 1);
                let record = self.store.get::<Record>(&Key(key))?;
                if record.is_some_and(|record| record.conversation == *conversation) {
                    self.append(conversation, &mut line, sequence)?;
                }
            }
        }
        if line.count > 0 {
            let now = self.now();
            self.take_turn(conversation, &mut line, now);
        }
        self.put_line(conversation, &line);
        Ok(line)
    }

    /// Puts a message at the end.
    pub(super) fn append(&mut self, conversation: &Hash, line: &mut Line, sequence: u64) -> Result<(), StoreFailed> {
        let in_chunks = line.count - line.first.len() as u64;
        line.count += 1;
        if in_chunks == 0 && line.first.len() < FIRST_MAX {
            line.first.push(sequence);
            return Ok(());
        }
        let prefix = Key::new(b's').hash(conversation).0;
        if in_chunks > 0 {
            let last = self.store.last_key(&prefix, Bound::Included(&chunk_key(conversation, u64::MAX).0))?;
            if let Some(key) = last {
                let key = Key(key);
                let mut chunk = self.store.get::<Vec<u64>>(&key)?.unwrap_or_default();
                if chunk.len() < CHUNK_MAX {
                    chunk.push(sequence);
                    self.store.put(key, &chunk);
                    return Ok(());
                }
            }
        }
        self.store.put(chunk_key(conversation, sequence), &vec![sequence]);
        Ok(())
    }

    /// Puts a message that comes back at its old place.
    pub(super) fn insert(&mut self, conversation: &Hash, line: &mut Line, sequence: u64) -> Result<(), StoreFailed> {
        let mut all = self.sequences(conversation, line)?;
        let at = all.partition_point(|other| *other < sequence);
        all.insert(at, sequence);
        let prefix = Key::new(b's').hash(conversation).0;
        while let Some(key) = self.store.next_key(&prefix, Bound::Included(&prefix))? {
            self.store.remove(Key(key));
        }
        line.count = 0;
        line.first.clear();
        for sequence in all {
            self.append(conversation, line, sequence)?;
        }
        Ok(())
    }

    /// Takes a message out; true where it was the head.
    pub(super) fn take_out(
        &mut self,
        conversation: &Hash,
        line: &mut Line,
        sequence: u64,
    ) -> Result<bool, StoreFailed> {
        let head = line.first.first() == Some(&sequence);
        if let Some(at) = line.first.iter().position(|other| *other == sequence) {
            line.first.remove(at);
            line.count -= 1;
        } else {
            let prefix = Key::new(b's').hash(conversation).0;
            let key = self.store.last_key(&prefix, Bound::Included(&chunk_key(conversation, sequence).0))?;
            if let Some(key) = key.map(Key) {
                let mut chunk = self.store.get::<Vec<u64>>(&key)?.unwrap_or_default();
                if let Some(at) = chunk.iter().position(|other| *other == sequence) {
                    chunk.remove(at);
                    line.count -= 1;
                    if chunk.is_empty() {
                        self.store.remove(key);
                    } else {
                        self.store.put(key, &chunk);
                    }
                }
            }
        }
        if line.first.is_empty() && line.count > 0 {
            let prefix = Key::new(b's').hash(conversation).0;
            if let Some(key) = self.store.next_key(&prefix, Bound::Included(&prefix))?.map(Key) {
                line.first = self.store.get(&key)?.unwrap_or_default();
                self.store.remove(key);
            }
            if line.first.is_empty() {
                // A chunk was damaged: what it named is found again from the message rows.
                *line = self.rebuild_line(conversation)?;
            }
        }
        Ok(head)
    }

    /// Every message of the line, in order.
    pub(super) fn sequences(&mut self, conversation: &Hash, line: &Line) -> Result<Vec<u64>, StoreFailed> {
        let mut all = line.first.clone();
        let prefix = Key::new(b's').hash(conversation).0;
        let mut from = Bound::Included(prefix.clone());
        while let Some(key) = self.store.next_key(&prefix, from.as_ref().map(Vec::as_slice))? {
            all.extend(self.store.get::<Vec<u64>>(&Key(key.clone()))?.unwrap_or_default());
            from = Bound::Excluded(key);
        }
        Ok(all)
    }

    /// Moves a conversation to another place.
    pub(super) fn move_to(&mut self, conversation: &Hash, line: &mut Line, place: Place, now: Timestamp) {
        match line.place {
            Place::None => {}
            Place::Turn(turn) => self.store.remove(Key::new(b'r').number(turn).hash(conversation)),
            Place::Due(due) => self.store.remove(Key::new(b'd').time(due).hash(conversation)),
        }
        line.place = place;
        match place {
            Place::None => {}
            Place::Turn(turn) => {
                self.store.put(Key::new(b'r').number(turn).hash(conversation), &now);
                self.poke = true;
            }
            Place::Due(due) => {
                self.store.put(Key::new(b'd').time(due).hash(conversation), &());
                self.poke = true;
            }
        }
    }

    /// Puts a conversation at the end of those that can be sent.
    pub(super) fn take_turn(&mut self, conversation: &Hash, line: &mut Line, now: Timestamp) {
        let turn = self.meta.next_turn;
        self.meta.next_turn += 1;
        self.move_to(conversation, line, Place::Turn(turn), now);
    }
}

/// The conversation in a key of an `r` or `d` row.
pub fn conversation_in(key: &[u8]) -> Hash {
    hash_at(key, 9)
}
