//! The state of one message, and its outlook: the messages before it, and the time of its next attempt.

use super::State;
use super::parts::{Known, Queued};
use crate::fairness::{self, Class, Others};
use crate::queue::api::{MessageState, Pause, Result, Status, Stopped};
use crate::queue::rows::{
    self, Attempts, ClientTokenRow, Conversation, FinalState, Hash, Key, Meta, Outcome, QueuedRef, Record, Schedule,
    Table, keys,
};
use crate::time::Timestamp;

impl State {
    /// The message or outcome of a ClientToken: a queued one is in the conversation's row or has a row of its own.
    pub fn known(&mut self, conversation: &Hash, row: &Conversation, entry: &Hash) -> Result<Option<Known>> {
        if let Some(reference) = row.first.iter().find(|reference| reference.entry == *entry) {
            return Ok(self.queued(reference.clone())?.map(Known::Queued));
        }
        let at = match self.store.get::<ClientTokenRow>(&keys::entry(conversation, entry))? {
            None => return Ok(None),
            Some(ClientTokenRow::Queued { at }) => at,
            Some(row) => return Ok(row.outcome().map(Known::Done)),
        };
        let Some(record) = self.record(at)? else { return Ok(None) };
        let Record { sequence, accepted, .. } = record;
        let reference = QueuedRef { sequence, accepted, at, entry: *entry, attempts: Attempts::default() };
        Ok(Some(Known::Queued(Queued { reference, record })))
    }

    /// A queued message; `None` if its record is damaged.
    pub fn queued(&mut self, reference: QueuedRef) -> Result<Option<Queued>> {
        Ok(self.record(reference.at)?.map(|record| Queued { reference, record }))
    }

    /// The state of a ClientToken, for callers.
    pub fn state_of(
        &mut self,
        conversation: &Hash,
        row: &Conversation,
        entry: &Hash,
        known: Known,
        now: Timestamp,
    ) -> Result<MessageState> {
        match known {
            Known::Queued(queued) => self.state_of_queued(row, queued, now),
            Known::Done(outcome) => Ok(self.state_of_settled(conversation, entry, outcome)),
        }
    }

    /// The outcome under a key of `ClientToken`; `None` if there is no row, or the message is queued.
    pub fn outcome(&mut self, key: &Key) -> Result<Option<Outcome>> {
        Ok(self.store.get(key)?.and_then(ClientTokenRow::outcome))
    }

    /// The state of a message that has left the queue, for callers.
    pub fn state_of_settled(&self, conversation: &Hash, entry: &Hash, outcome: Outcome) -> MessageState {
        let status = match outcome.fate {
            FinalState::Delivered(receipt) => Status::Delivered(receipt.into()),
            FinalState::Dead { reason, maybe_delivered, error, .. } => {
                Status::Dead { reason: rows::reason_at(reason), maybe_delivered, error: error.into() }
            }
        };
        let id = self.id(outcome.sequence, *conversation, *entry);
        MessageState { id, accepted: outcome.accepted, attempts: outcome.attempts, status }
    }

    /// The state of a queued message, for callers.
    pub fn state_of_queued(&mut self, row: &Conversation, queued: Queued, now: Timestamp) -> Result<MessageState> {
        let Queued { reference, record } = queued;
        let ahead = match row.first.iter().position(|other| other.sequence == reference.sequence) {
            Some(at) => at,
            None => {
                let all = self.references(&record.conversation, row)?;
                all.partition_point(|other| other.sequence < reference.sequence)
            }
        } as u64;
        let (next_attempt, before) = self.prospect(&record.conversation, row, ahead, now)?;
        Ok(MessageState {
            id: self.id(reference.sequence, record.conversation, reference.entry),
            accepted: record.accepted,
            attempts: reference.attempts.count,
            status: Status::Queued {
                next_attempt,
                ahead,
                before,
                held: row.hold.is_some(),
                in_flight: self.is_in_flight(&record),
                expires: record.deadline,
            },
        })
    }

    /// Returns true while an attempt of this message is under way.
    pub fn is_in_flight(&self, record: &Record) -> bool {
        self.leased.get(&record.conversation) == Some(&record.sequence)
    }

    /// The approximate number of messages that are sent before one that has `ahead` messages of its own conversation
    /// before it; `None` while sending is paused or the destination refuses every token. Nothing is scanned.
    pub fn before(&self, row: &Conversation, ahead: u64, now: Timestamp) -> Option<u64> {
        if self.paused().is_some() || self.all_refused().is_some() {
            return None;
        }
        let kind = match row.schedule {
            Schedule::Ready(kind, _) => kind,
            _ => Class::of(row.head().map_or(now, |head| head.accepted), now, self.options.fresh),
        };
        let Meta { queued, conversations, held, .. } = self.meta;
        let fresh = self.fresh.waiting(now, self.options.fresh);
        let late = conversations.saturating_sub(held + fresh);
        let own = u64::from(row.count > 0);
        let others = match kind {
            Class::Fresh => Others { fresh: fresh.saturating_sub(own), late },
            Class::Late => Others { fresh, late: late.saturating_sub(own) },
        };
        Some(fairness::before(kind, ahead, others).min(queued).max(ahead))
    }

    /// The time before which a message is not sent, if there is one, and the approximate number of messages that are sent
    /// before it; the number is `None` if it cannot be estimated.
    pub fn prospect(
        &self,
        conversation: &Hash,
        row: &Conversation,
        ahead: u64,
        now: Timestamp,
    ) -> Result<(Option<Timestamp>, Option<u64>)> {
        if self.all_refused().is_some() {
            let next = ahead == 0 && self.has_next_turn(conversation, row)?;
            return Ok(if next { (self.next_try(), Some(0)) } else { (None, None) });
        }
        let due = if let Schedule::DelayedUntil(due) = row.schedule { Some(due) } else { None };
        Ok((due, self.before(row, ahead, now)))
    }

    /// Returns true if no other conversation has its turn before this one.
    fn has_next_turn(&self, conversation: &Hash, row: &Conversation) -> Result<bool> {
        let Schedule::Ready(kind, turn) = row.schedule else { return Ok(false) };
        let first = |kind| self.store.first_key(Table::turns(kind).key());
        let (fresh, late) = (first(Class::Fresh)?, first(Class::Late)?);
        let next = self.turns.next(fresh.is_some(), late.is_some());
        let first = if kind == Class::Fresh { fresh } else { late };
        Ok(next == Some(kind) && first == Some(keys::turn(kind, turn, conversation)))
    }

    /// The operator's pause, if sending is paused.
    pub fn paused(&self) -> Option<Pause> {
        let row = self.sending.paused.as_ref()?;
        row.operator.clone().map(|why| Pause { since: row.since, why })
    }

    /// The time since which the destination, which has never delivered a message, refuses every token.
    pub fn all_refused(&self) -> Option<Timestamp> {
        self.sending.paused.as_ref().filter(|row| row.operator.is_none()).map(|row| row.since)
    }

    /// The reason why no message is given out, if there is one.
    pub fn stopped(&self) -> Option<Stopped> {
        let row = self.sending.paused.as_ref()?;
        Some(if row.operator.is_some() { Stopped::Paused } else { Stopped::AllRefused })
    }

    /// The time of the next attempt while every token is refused.
    pub fn next_try(&self) -> Option<Timestamp> {
        self.all_refused()?;
        self.trust.tried_at.map(|tried| tried + self.options.probe_max)
    }
}
