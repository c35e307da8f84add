//! The types of the state: messages with their references, and the parts that are in memory only.

use std::collections::VecDeque;

use crate::fairness::Class;
use crate::queue::rows::{Hash, Outcome, QueuedRef, Record, RecordPos};
use crate::time::Timestamp;

/// A queued message.
pub struct Queued {
    pub reference: QueuedRef,
    pub record: Record,
}

/// The message or the outcome that a ClientToken names.
pub enum Known {
    Queued(Queued),
    Done(Outcome),
}

impl Known {
    pub fn contents(&self) -> &Hash {
        match self {
            Known::Queued(queued) => &queued.record.contents,
            Known::Done(outcome) => &outcome.contents,
        }
    }

    pub fn accepted(&self) -> Timestamp {
        match self {
            Known::Queued(queued) => queued.record.accepted,
            Known::Done(outcome) => outcome.accepted,
        }
    }
}

/// The pack in which this commit files records.
#[derive(Clone, Copy, Debug)]
pub struct OpenPack {
    pub next: RecordPos,
    pub bytes: usize,
}

/// The next turns, read ahead.
#[derive(Debug, Default)]
pub struct ReadAhead {
    fresh: Page,
    late: Page,
}

/// The next turns of one kind of conversations.
#[derive(Debug, Default)]
pub struct Page {
    pub turns: VecDeque<(u64, Hash)>,
    /// The last turn that was read.
    pub cursor: u64,
}

impl ReadAhead {
    pub fn of(&mut self, kind: Class) -> &mut Page {
        match kind {
            Class::Fresh => &mut self.fresh,
            Class::Late => &mut self.late,
        }
    }

    /// Makes a conversation that was not served the next of its kind.
    pub fn push_front(&mut self, kind: Class, turn: u64, conversation: Hash) {
        self.of(kind).turns.push_front((turn, conversation));
    }
}

/// The facts known of the destination, since the start.
#[derive(Debug, Default)]
pub struct Trust {
    /// The destination, by its name.
    pub destination: Hash,
    /// True if it has delivered a message before.
    pub proven: bool,
    /// Tokens that it refused while it had delivered none.
    pub refused: Vec<Hash>,
    /// The time of the last lease while every token was refused.
    pub tried_at: Option<Timestamp>,
}

/// A set of callers, in which several can share a slot: a look-up may find one that was not inserted.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallerSet(u64);

impl CallerSet {
    /// The number of slots.
    pub const SLOTS: usize = u64::BITS as usize;

    /// The slot of a caller, by its number.
    pub fn slot(caller: u64) -> usize {
        // Less than 64, so it fits.
        usize::try_from(caller % Self::SLOTS as u64).unwrap_or_default()
    }

    pub fn insert(&mut self, caller: u64) {
        self.0 |= 1 << Self::slot(caller);
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The slots that are in use.
    pub fn slots(self) -> impl Iterator<Item = usize> {
        (0..Self::SLOTS).filter(move |slot| self.0 & (1 << slot) != 0)
    }
}
