//! Looking without changing.

use std::ops::Bound;

use super::accept::{entry_key, record_key, token_key};
use super::codec::{self, Entry, Fate, Hash, Key, OtherConversation, Place, Record, Token, number_at};
use super::writer::Asked;
use super::{Backlog, Found, MessageId, Overview, State, Status, StoreFailed, Writer};
use crate::message::{Caller, ClientToken};
use crate::time::Timestamp;

/// Messages looked through for the oldest of one caller.
const LOOKS: usize = 1024;

impl Writer {
    pub(super) fn find(&mut self, asked: Asked, client_token: &ClientToken) -> Result<Found, StoreFailed> {
        let Some(token) = self.store.get::<Token>(&token_key(&asked.token))? else { return Ok(Found::Unknown) };
        let conversation = match (token.belongs_to(asked.keyed), asked.keyed) {
            (Err(OtherConversation), _) => return Ok(Found::OtherConversation),
            (Ok(Some(own)), _) => own,
            (Ok(None), Some(_)) => return Ok(Found::Unknown),
            (Ok(None), None) => self.default_conversation(&asked.token, &token),
        };
        let hash = self.hasher.entry(&conversation, client_token.as_str());
        match self.store.get::<Entry>(&entry_key(&hash))? {
            Some(entry) => Ok(Found::State(self.state(&entry, hash)?)),
            None => Ok(Found::Unknown),
        }
    }

    /// What is known of a message by its id.
    pub(super) fn look(&mut self, id: MessageId) -> Result<Option<State>, StoreFailed> {
        if let Some(record) = self.store.get::<Record>(&record_key(id.sequence))? {
            return self.queued_state(id.sequence, &record).map(Some);
        }
        match self.store.get::<Entry>(&entry_key(&id.entry))? {
            Some(entry) => self.state(&entry, id.entry).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn conversation_of(&mut self, sequence: u64) -> Result<Hash, StoreFailed> {
        Ok(self.store.get::<Record>(&record_key(sequence))?.map(|record| record.conversation).unwrap_or_default())
    }

    pub(super) fn state(&mut self, entry: &Entry, hash: Hash) -> Result<State, StoreFailed> {
        let (attempts, status) = match entry.fate.clone() {
            Fate::Queued => {
                if let Some(record) = self.store.get::<Record>(&record_key(entry.sequence))? {
                    return self.queued_state(entry.sequence, &record);
                }
                // Its record was damaged and set aside.
                let error = crate::delivery::ServiceError {
                    status: 500,
                    code: "InternalServerException".into(),
                    text: "connect-relay: its record was damaged on disk".into(),
                    request_id: None,
                };
                (0, Status::Dead { reason: crate::delivery::Reason::Poison, maybe_delivered: true, error })
            }
            Fate::Delivered { attempts, receipt, .. } => (attempts, Status::Delivered(receipt.into())),
            Fate::Dead { attempts, reason, maybe_delivered, error, .. } => {
                let reason = codec::reason_at(reason);
                (attempts, Status::Dead { reason, maybe_delivered, error: error.into() })
            }
        };
        Ok(State { id: self.id(entry.sequence, hash), accepted: entry.accepted, attempts, status })
    }

    pub(super) fn queued_state(&mut self, sequence: u64, record: &Record) -> Result<State, StoreFailed> {
        let line = self.line(&record.conversation)?;
        let ahead = match line.first.iter().position(|other| *other == sequence) {
            Some(at) => at,
            None => self.sequences(&record.conversation, &line)?.partition_point(|other| *other < sequence),
        };
        let next_attempt = match line.place {
            Place::Due(due) => Some(due),
            _ => None,
        };
        Ok(State {
            id: self.id(sequence, record.entry),
            accepted: record.accepted,
            attempts: record.attempts,
            status: Status::Queued { next_attempt, ahead: ahead as u64 },
        })
    }

    pub(super) fn is_idle(&mut self, asked: Asked) -> Result<bool, StoreFailed> {
        let token = self.store.get::<Token>(&token_key(&asked.token))?.unwrap_or_default();
        let conversation =
            token.conversation.or(asked.keyed).unwrap_or_else(|| self.default_conversation(&asked.token, &token));
        Ok(self.line(&conversation)?.count == 0)
    }

    pub(super) fn backlog(&mut self, of: Option<Caller>) -> Result<Backlog, StoreFailed> {
        let Some(caller) = of.map(codec::caller_number) else {
            return Ok(Backlog { queued: self.meta.queued, oldest: self.oldest(None)? });
        };
        let queued = self.store.get::<u64>(&Key::new(b'u').number(caller))?.unwrap_or(0);
        let oldest = if queued > 0 { self.oldest(Some(caller))? } else { None };
        Ok(Backlog { queued, oldest })
    }

    /// Acceptance of the oldest message of a caller, or of all. Where thousands of other callers' messages lie before
    /// it, the look ends at one of those: no message of the caller's is older.
    fn oldest(&mut self, caller: Option<u64>) -> Result<Option<Timestamp>, StoreFailed> {
        let mut from = Bound::Included(vec![b'm']);
        let mut seen = None;
        for _ in 0..LOOKS {
            let Some(key) = self.store.next_key(b"m", from.as_ref().map(Vec::as_slice))? else { break };
            if let Some(record) = self.store.get::<Record>(&Key(key.clone()))? {
                seen = Some(record.accepted);
                if caller.is_none_or(|caller| record.caller == caller) {
                    break;
                }
            }
            from = Bound::Excluded(key);
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
            unknown: meta.unknown,
            dead: meta.dead,
            bytes: self.space.bytes,
            disk_free: self.space.free.unwrap_or(u64::MAX),
            full: self.full(),
        })
    }

    /// Since when the longest waiting conversation could have been sent.
    fn oldest_due(&mut self, now: Timestamp) -> Result<Option<Timestamp>, StoreFailed> {
        let turn = self.store.next_key(b"r", Bound::Included(b"r"))?;
        let turn = match turn {
            Some(key) => Some(self.store.get::<Timestamp>(&Key(key))?.unwrap_or(now)),
            None => None,
        };
        let due = self.store.next_key(b"d", Bound::Included(b"d"))?;
        let due = due.map(|key| Timestamp(number_at(&key, 1))).filter(|due| *due <= now);
        Ok([turn, due].into_iter().flatten().min())
    }
}
