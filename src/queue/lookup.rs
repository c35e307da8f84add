//! Looking without changing.

use super::act::Asked;
use super::queued::{Known, Queued};
use super::rows::{self, Entry, Fate, Hash, Line, OtherConversation, Place, Record, Slot, Table, Token, Trial, keys};
use super::{Backlog, Found, MessageId, Overview, State, Status, StoreFailed, Writer};
use crate::message::{Caller, ClientToken};
use crate::time::Timestamp;
use crate::turns::Kind;

/// Packs looked through for the oldest message of one caller.
const LOOKS: usize = 256;

impl Writer {
    pub(super) fn find(&mut self, asked: Asked, client_token: &ClientToken) -> Result<Found, StoreFailed> {
        let Some(token) = self.store.get::<Token>(&keys::token(&asked.token))? else { return Ok(Found::Unknown) };
        let conversation = match (token.belongs_to(asked.keyed), asked.keyed) {
            (Err(OtherConversation), _) => return Ok(Found::OtherConversation),
            (Ok(Some(own)), _) => own,
            (Ok(None), Some(_)) => return Ok(Found::Unknown),
            (Ok(None), None) => self.default_conversation(&asked.token, &token),
        };
        let entry = self.hasher.entry(&conversation, client_token.as_str());
        Ok(self.state_of(&conversation, &entry)?.map_or(Found::Unknown, Found::State))
    }

    /// What is known of a message by its id.
    pub(super) fn look(&mut self, id: MessageId) -> Result<Option<State>, StoreFailed> {
        self.state_of(&id.conversation, &id.entry)
    }

    fn state_of(&mut self, conversation: &Hash, entry: &Hash) -> Result<Option<State>, StoreFailed> {
        let line = self.line(conversation)?;
        match self.known(conversation, &line, entry)? {
            Some(known) => self.state(conversation, &line, entry, known).map(Some),
            None => Ok(None),
        }
    }

    /// What is known of a ClientToken: the line tells of what is queued, an entry of the rest.
    pub(super) fn known(
        &mut self,
        conversation: &Hash,
        line: &Line,
        entry: &Hash,
    ) -> Result<Option<Known>, StoreFailed> {
        if let Some(slot) = line.first.iter().find(|slot| slot.entry == *entry) {
            return Ok(self.queued(slot.clone())?.map(Known::Queued));
        }
        let at = match self.store.get::<Entry>(&keys::entry(conversation, entry))? {
            None => return Ok(None),
            Some(Entry::Done(outcome)) => return Ok(Some(Known::Done(outcome))),
            Some(Entry::Queued { at }) => at,
        };
        let Some(record) = self.record(at)? else { return Ok(None) };
        let Record { sequence, accepted, .. } = record;
        let slot = Slot { sequence, accepted, at, entry: *entry, trial: Trial::default() };
        Ok(Some(Known::Queued(Queued { slot, record })))
    }

    /// A queued message; none where its record was damaged.
    pub(super) fn queued(&mut self, slot: Slot) -> Result<Option<Queued>, StoreFailed> {
        Ok(self.record(slot.at)?.map(|record| Queued { slot, record }))
    }

    pub(super) fn state(
        &mut self,
        conversation: &Hash,
        line: &Line,
        entry: &Hash,
        known: Known,
    ) -> Result<State, StoreFailed> {
        let outcome = match known {
            Known::Queued(queued) => return self.queued_state(line, queued),
            Known::Done(outcome) => outcome,
        };
        let status = match outcome.fate {
            Fate::Delivered(receipt) => Status::Delivered(receipt.into()),
            Fate::Dead { reason, maybe_delivered, error, .. } => {
                Status::Dead { reason: rows::reason_at(reason), maybe_delivered, error: error.into() }
            }
        };
        let id = self.id(outcome.sequence, *conversation, *entry);
        Ok(State { id, accepted: outcome.accepted, attempts: outcome.attempts, status })
    }

    pub(super) fn queued_state(&mut self, line: &Line, queued: Queued) -> Result<State, StoreFailed> {
        let Queued { slot, record } = queued;
        let ahead = match line.first.iter().position(|other| other.sequence == slot.sequence) {
            Some(at) => at,
            None => {
                let all = self.slots(&record.conversation, line)?;
                all.partition_point(|other| other.sequence < slot.sequence)
            }
        } as u64;
        let (next_attempt, before) = self.prospect(&record.conversation, line, ahead, self.now())?;
        Ok(State {
            id: self.id(slot.sequence, record.conversation, slot.entry),
            accepted: record.accepted,
            attempts: slot.trial.attempts,
            status: Status::Queued {
                next_attempt,
                ahead,
                before,
                held: line.hold.is_some(),
                in_flight: self.leased.get(&record.conversation) == Some(&slot.sequence),
                expires: record.deadline,
            },
        })
    }

    pub(super) fn is_idle(&mut self, asked: Asked) -> Result<bool, StoreFailed> {
        let token = self.store.get::<Token>(&keys::token(&asked.token))?.unwrap_or_default();
        let conversation =
            token.conversation.or(asked.keyed).unwrap_or_else(|| self.default_conversation(&asked.token, &token));
        Ok(self.line(&conversation)?.count == 0 && self.sending.paused.is_none())
    }

    pub(super) fn backlog(&mut self, of: Option<Caller>) -> Result<Backlog, StoreFailed> {
        let Some(caller) = of.map(rows::caller_number) else {
            return Ok(Backlog { queued: self.meta.queued, oldest: self.oldest(None)? });
        };
        let queued = self.store.get::<u64>(&keys::caller(caller))?.unwrap_or(0);
        let oldest = if queued > 0 { self.oldest(Some(caller))? } else { None };
        Ok(Backlog { queued, oldest })
    }

    /// Acceptance of the oldest message of a caller, or of all. Where many packs of other callers' messages lie before
    /// it, the look ends at one of those: no message of the caller's is older.
    fn oldest(&mut self, caller: Option<u64>) -> Result<Option<Timestamp>, StoreFailed> {
        let (mut after, mut seen) = (0, None);
        for _ in 0..LOOKS {
            let Some(live) = self.next_pack(after)? else { break };
            let own = live.records.iter().find(|(_, record)| caller.is_none_or(|caller| record.caller == caller));
            if let Some((_, record)) = own {
                return Ok(Some(record.accepted));
            }
            seen = live.records.last().map(|(_, record)| record.accepted).or(seen);
            after = live.pack;
        }
        Ok(seen)
    }

    pub(super) fn overview(&mut self, now: Timestamp) -> Result<Overview, StoreFailed> {
        let meta = self.meta.clone();
        Ok(Overview {
            queued: meta.queued,
            oldest: self.oldest(None)?,
            oldest_due: self.oldest_due(now)?,
            conversations: meta.conversations,
            held: meta.held,
            answer_lost: meta.unknown,
            dead: meta.dead,
            bytes: self.space.bytes,
            disk_free: self.space.free.unwrap_or(u64::MAX),
            full: self.full(),
            set_aside: self.space.set_aside,
            corrupt: self.gauges.corrupt.get(),
            paused: self.paused(),
            all_refused: self.all_refused(),
            expiring: self.expiring,
        })
    }

    /// Since when the longest waiting conversation could have been sent.
    /// The time since which the head of a conversation could have been sent.
    pub(super) fn due_since(
        &mut self,
        conversation: &Hash,
        line: &Line,
        now: Timestamp,
    ) -> Result<Timestamp, StoreFailed> {
        if let Some(since) = self.throttled.get(conversation) {
            return Ok(*since);
        }
        Ok(match line.place {
            Place::Turn(kind, turn) => self.store.get(&keys::turn(kind, turn, conversation))?.unwrap_or(now),
            Place::Due(due) => due.min(now),
            Place::None => now,
        })
    }

    fn oldest_due(&mut self, now: Timestamp) -> Result<Option<Timestamp>, StoreFailed> {
        let mut oldest = Vec::new();
        for kind in [Kind::Fresh, Kind::Late] {
            if let Some(key) = self.store.first_key(Table::turns(kind).key())? {
                oldest.push(self.store.get::<Timestamp>(&key)?.unwrap_or(now));
            }
        }
        let due = self.store.first_key(Table::Due.key())?;
        let due = due.map(|key| keys::time_in(&key)).filter(|due| *due <= now);
        let throttled = self.throttled.values().min().copied();
        Ok(oldest.into_iter().chain(due).chain(throttled).min())
    }
}
