//! Reading a stream back: the records that make up the store, and their rows.
//!
//! A stream contains the snapshots of several claims, of which only the last complete one counts, and the commits after
//! it. Rows have their whole value, and a snapshot and the commits between its parts are in one order, so the rows from
//! the claim of that snapshot on give the exact store.
//!
//! Records may be missing: a claim names the range before it that never counted, and may be removed (`ship`).
//!
//! A claim after a gap, a time in which commits were not shipped, counts only when its snapshot is complete. Until then
//! the store ends before it: the relay said of no message after it that the fleet has it.

use std::ops::Range;

use super::history::Copy;
use super::record::{Codec, Head, Kind, Owner, Unreadable};
use crate::storage::CommitPos;

/// Follows the claims of a stream, record by record.
#[derive(Clone, Copy, Debug, Default)]
struct Claims {
    /// The last claim and its sequence.
    last: Option<(u64, u64)>,
}

impl Claims {
    /// Returns true if the record is one of its claim, at its place. A late copy of a record from before the last claim
    /// is none.
    fn counts(&mut self, sequence: u64, head: Head) -> bool {
        if head.kind == Kind::Claim {
            if head.number == 0 {
                self.last = Some((head.claim, sequence));
            }
            return head.number == 0;
        }
        self.last.is_some_and(|(claim, at)| head.claim == claim && sequence.checked_sub(at) == Some(head.number))
    }
}

/// Finds the records of a stream that make up the store.
#[derive(Debug, Default)]
pub struct Plan {
    claims: Claims,
    /// The claim of the last complete snapshot.
    base: Option<u64>,
    /// The first record that does not count.
    until: Option<u64>,
    /// The last record that was read.
    pub last: u64,
    /// The places of missing records that may have counted.
    missing: Vec<Range<u64>>,
    /// The owner at the last claim, and at the last record that makes up the store; the last commit there.
    owner: Option<Owner>,
    owner_there: Option<Owner>,
    at: CommitPos,
}

impl Plan {
    /// Reads the next record. Records must come in order.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&mut self, codec: &Codec, sequence: u64, record: &[u8]) -> Result<(), Unreadable> {
        if self.last > 0 && sequence != self.last + 1 {
            self.missing.push(self.last + 1..sequence);
        }
        self.last = sequence;
        let head = super::record::head(record)?;
        if !self.claims.counts(sequence, head) {
            return Ok(());
        }
        match head.kind {
            Kind::Claim => {
                let owner = codec.owner(record)?;
                let continues = owner.as_ref().is_some_and(|owner| owner.continues);
                if continues && self.until.is_none() && head.at < self.at {
                    // A late copy of one that continued the stream before it was put back from a backup.
                    return Ok(());
                }
                self.owner = owner;
                if let (Some(since), Some(until)) = (self.owner.as_ref().and_then(|owner| owner.since), self.until) {
                    self.missing.retain(|missing| missing.start <= since || missing.start < until);
                }
                if !continues && self.until.is_none() {
                    self.until = Some(sequence);
                }
                if self.until.is_none() {
                    self.owner_there.clone_from(&self.owner);
                }
            }
            Kind::End => {
                self.base = self.claims.last.map(|(_, at)| at);
                self.until = None;
                self.owner_there.clone_from(&self.owner);
            }
            Kind::Rows | Kind::Part | Kind::Released => {}
        }
        // A part alone does not count.
        if self.until.is_none() && head.kind != Kind::Part {
            self.at = head.at;
        }
        Ok(())
    }

    /// The sequences of the records that make up the store. `None` if no snapshot is complete.
    #[must_use]
    pub fn range(&self) -> Option<Range<u64>> {
        self.base.map(|base| base..self.until.unwrap_or(self.last + 1))
    }

    /// The first missing record that may have counted. `None` if what was read is all of the store.
    #[must_use]
    pub fn missing(&self) -> Option<u64> {
        self.missing.first().map(|missing| missing.start)
    }

    /// The store that these records make up. `None` if no snapshot is complete.
    #[must_use]
    pub fn copy(&self) -> Option<Copy<'_>> {
        let owner = self.owner_there.as_ref().filter(|_| self.base.is_some())?;
        Some(Copy { runs: &owner.runs, at: self.at })
    }
}

/// Finds the records that make up the store, and reads their rows on the way, as long as the first snapshot of the stream
/// is the last complete one, or no commit is missing before a later one.
#[derive(Debug, Default)]
pub struct OnePass {
    /// The records that make up the store.
    pub plan: Plan,
    replay: Replay,
    /// The first claim.
    start: Option<u64>,
    /// True if the rows are not those of the store.
    wrong: bool,
}

impl OnePass {
    /// Reads the next record, and returns the rows of a whole commit if they count as far as that is known yet.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&mut self, codec: &Codec, sequence: u64, record: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let gap = self.gap();
        self.plan.read(codec, sequence, record)?;
        let claim = self.plan.claims.last.map(|(_, at)| at).filter(|at| *at == sequence);
        self.start = self.start.or(claim);
        if claim.is_some() && claim != self.start && self.plan.until == self.start {
            // The first snapshot was never completed.
            self.wrong = true;
        }
        // A snapshot after a gap is complete.
        self.wrong |= gap && !self.gap();
        if self.wrong || self.start.is_none() || self.gap() {
            return Ok(None);
        }
        self.replay.read(codec, sequence, record)
    }

    /// True if what was read last counts only with a later snapshot.
    fn gap(&self) -> bool {
        self.plan.until.is_some() && self.plan.until != self.start
    }

    /// The format stamp of the store whose rows were read. `None` if they are not all of it.
    #[must_use]
    pub fn stamp(&self) -> Option<String> {
        let owner = self.replay.owner.as_ref().filter(|_| !self.wrong && self.plan.base.is_some())?;
        Some(owner.stamp.clone())
    }
}

/// Reads the rows of the records that a [`Plan`] found.
#[derive(Debug, Default)]
pub struct Replay {
    claims: Claims,
    parts: Vec<u8>,
    /// The owner at the last claim.
    pub owner: Option<Owner>,
}

impl Replay {
    /// Reads the next record, and returns the rows of a whole commit.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&mut self, codec: &Codec, sequence: u64, record: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let (head, body) = codec.decode(record)?;
        if !self.claims.counts(sequence, head) {
            return Ok(None);
        }
        match head.kind {
            Kind::Part => self.parts.extend_from_slice(&body),
            Kind::Rows => {
                self.parts.extend_from_slice(&body);
                return Ok(Some(std::mem::take(&mut self.parts)));
            }
            Kind::Claim => {
                self.parts.clear();
                self.owner = codec.owner(record)?;
            }
            Kind::End | Kind::Released => {}
        }
        Ok(None)
    }
}
