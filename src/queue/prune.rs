//! What time removes: messages whose lifetime ends, outcomes and dead letters that were kept long enough, tokens and
//! participants of the day before.

use std::ops::Bound;
use std::time::Duration;

use super::burial::Burial;
use super::queued::Queued;
use super::rows::{
    At, Dead, Entry, Fate, Hash, Key, Outcome, Participant, Record, Table, Token, USED_PARTICIPANT, USED_TOKEN, keys,
};
use super::{StoreFailed, Writer};
use crate::time::Timestamp;

/// A connection token lives a day.
const USED_KEPT_FOR: Duration = Duration::from_secs(25 * 3600);
/// Outcomes, or rows last used, in one prune row.
const ROW_HASHES: usize = 200;
/// Prune rows that one tick works through: other acts wait meanwhile.
const ROWS_A_TICK: usize = 256;
/// Messages that one tick buries.
const DEATHS_A_TICK: usize = 4096;

impl Writer {
    /// Writes down what this commit has made prunable.
    pub(super) fn write_prune_rows(&mut self) {
        let now = self.now();
        for hashes in std::mem::take(&mut self.outcomes).chunks(ROW_HASHES) {
            let key = keys::prune_outcomes(now, self.next_row());
            self.store.put(key, &hashes);
        }
        for used in std::mem::take(&mut self.used).chunks(ROW_HASHES) {
            let key = keys::prune_used(now, self.next_row());
            self.store.put(key, &used);
        }
    }

    fn next_row(&mut self) -> u64 {
        self.meta.next_row += 1;
        self.meta.next_row
    }

    /// Buries what has outlived its lifetime.
    pub(super) fn expire(&mut self, now: Timestamp) -> Result<(), StoreFailed> {
        let mut from = Bound::Included(Table::Expiry.key());
        for _ in 0..DEATHS_A_TICK {
            let Some(key) = self.store.next_key(Table::Expiry.key(), from)? else { break };
            if keys::time_in(&key) > now {
                break;
            }
            let at: Option<At> = self.store.get(&key)?;
            let record = match at {
                Some(at) => self.record(at)?,
                None => None,
            };
            if let Some(record) = record
                && !self.expire_one(record, now)?
            {
                // In flight: its answer wins.
                from = Bound::Excluded(key);
                continue;
            }
            self.store.remove(key);
            self.commit_if_long()?;
        }
        // Where a message has the usual lifetime the order of acceptance is the order of death.
        let (mut after, mut advance, mut deaths) = (self.expiry_cursor, true, 0);
        while deaths < DEATHS_A_TICK {
            let Some(live) = self.next_pack(after)? else { break };
            for (_, record) in live.records.into_iter().filter(|(_, record)| record.implied) {
                if record.deadline > now {
                    return Ok(());
                }
                deaths += 1;
                advance &= self.expire_one(record, now)?;
                self.commit_if_long()?;
            }
            after = live.pack;
            if advance {
                self.expiry_cursor = after;
            }
        }
        Ok(())
    }

    /// True where the message is gone.
    fn expire_one(&mut self, record: Record, now: Timestamp) -> Result<bool, StoreFailed> {
        let (conversation, sequence) = (record.conversation, record.sequence);
        if self.leased.get(&conversation) == Some(&sequence) {
            return Ok(false);
        }
        let mut line = self.line(&conversation)?;
        let Some(slot) = self.slot(&conversation, &line, sequence)? else { return Ok(true) };
        let maybe_delivered = self.is_doubtful(&line, &slot);
        let burial = Burial { maybe_delivered, ..Burial::expired(record.token) };
        self.bury(Queued { slot, record }, &mut line, burial, now)?;
        self.put_line(&conversation, &line);
        Ok(true)
    }

    /// Removes what was kept long enough, and the oldest of what there is too much of.
    pub(super) fn prune(&mut self, now: Timestamp) -> Result<(), StoreFailed> {
        for _ in 0..ROWS_A_TICK {
            let too_many = self.meta.outcomes > self.options.outcomes_max;
            let Some((key, at)) =
                self.oldest_row(Table::PruneOutcomes, now, self.options.outcomes_kept_for, too_many)?
            else {
                break;
            };
            for (conversation, entry) in self.store.get::<Vec<(Hash, Hash)>>(&key)?.unwrap_or_default() {
                let key = keys::entry(&conversation, &entry);
                let Some(Entry::Done(outcome)) = self.store.get::<Entry>(&key)? else { continue };
                if outcome.at <= at && !self.has_dead_letter(&outcome, &entry)? {
                    self.store.remove(key);
                    self.meta.outcomes = self.meta.outcomes.saturating_sub(1);
                }
            }
            self.store.remove(key);
            self.commit_if_long()?;
        }
        for _ in 0..ROWS_A_TICK {
            let too_many = self.meta.dead > self.options.dead_max;
            let Some((key, _)) = self.oldest_row(Table::PruneDead, now, self.options.dead_kept_for, too_many)? else {
                break;
            };
            self.forget_dead(keys::dead_in(&key))?;
            self.store.remove(key);
            self.commit_if_long()?;
        }
        for _ in 0..ROWS_A_TICK {
            let Some((key, at)) = self.oldest_row(Table::PruneUsed, now, USED_KEPT_FOR, false)? else { break };
            for (what, hash) in self.store.get::<Vec<(u8, Hash)>>(&key)?.unwrap_or_default() {
                self.forget_used(what, &hash, at, now)?;
            }
            self.store.remove(key);
            self.commit_if_long()?;
        }
        Ok(())
    }

    fn oldest_row(
        &mut self,
        table: Table,
        now: Timestamp,
        kept_for: Duration,
        too_many: bool,
    ) -> Result<Option<(Key, Timestamp)>, StoreFailed> {
        let Some(key) = self.store.first_key(table.key())? else { return Ok(None) };
        let at = keys::time_in(&key);
        Ok((too_many || now.since(at) >= kept_for).then_some((key, at)))
    }

    /// Whether an outcome goes with a dead letter. One that was redriven into another conversation is none here.
    fn has_dead_letter(&mut self, outcome: &Outcome, entry: &Hash) -> Result<bool, StoreFailed> {
        Ok(match outcome.fate {
            Fate::Delivered(_) => false,
            Fate::Dead { .. } => {
                let dead = self.store.get::<Dead>(&keys::dead(outcome.sequence))?;
                dead.is_some_and(|dead| dead.record.entry == *entry)
            }
        })
    }

    fn forget_dead(&mut self, sequence: u64) -> Result<(), StoreFailed> {
        let Some(Dead { record, .. }) = self.store.get(&keys::dead(sequence))? else { return Ok(()) };
        self.store.remove(keys::dead(sequence));
        self.meta.weight = self.meta.weight.saturating_sub(record.weight() + record.dead_weight());
        self.remove_pieces(&record);
        let key = keys::entry(&record.conversation, &record.entry);
        if matches!(self.store.get(&key)?, Some(Entry::Done(outcome)) if outcome.sequence == sequence) {
            self.store.remove(key);
        }
        self.meta.dead = self.meta.dead.saturating_sub(1);
        Ok(())
    }

    /// Forgets a row that was last used then; one that still has something queued is looked at again in a day.
    fn forget_used(&mut self, what: u8, hash: &Hash, at: Timestamp, now: Timestamp) -> Result<(), StoreFailed> {
        match what {
            USED_TOKEN => {
                let Some(mut row) = self.store.get::<Token>(&keys::token(hash))? else { return Ok(()) };
                if row.used > at {
                    return Ok(());
                }
                let queued = match &row.conversation {
                    Some(conversation) => self.line(conversation)?.count > 0,
                    None => false,
                };
                if queued {
                    row.used = now;
                    self.used.push((USED_TOKEN, *hash));
                    self.store.put(keys::token(hash), &row);
                } else {
                    self.store.remove(keys::token(hash));
                }
            }
            USED_PARTICIPANT => {
                let key = keys::participant(hash);
                if self.store.get::<Participant>(&key)?.is_some_and(|row| row.used <= at) {
                    self.store.remove(key);
                }
            }
            _ => {
                let mut line = self.line(hash)?;
                if line.disconnect.is_some() && line.count == 0 && line.used <= at {
                    line.disconnect = None;
                    self.store.remove(keys::line(hash));
                }
            }
        }
        Ok(())
    }
}
