//! Looking at messages without changing them: one after another, by their ids, and closely.

use std::ops::Bound;

use super::{Cursor, Death, LOOKS, Met, Seen, SeenPlace, Selection, Sought, WRITTEN_MAX};
use crate::queue::queued::Queued;
use crate::queue::rows::{At, Dead, Entry, Fate, Place, Record, Table, keys, reason_at};
use crate::queue::{MessageId, StoreFailed, Writer};

impl Writer {
    /// Looks at the next messages and does something with at most so many of those that are meant, until `act` wants no
    /// more; says where to go on.
    pub(super) fn go_through(
        &mut self,
        of: &Selection,
        after: Cursor,
        most: usize,
        mut act: impl FnMut(&mut Writer, Met) -> Result<bool, StoreFailed>,
    ) -> Result<Option<Cursor>, StoreFailed> {
        let (mut at, mut looks, mut acts) = (after, 0, 0);
        let limit = self.store.pending_bytes() + WRITTEN_MAX;
        while looks < LOOKS && self.store.pending_bytes() < limit {
            match at {
                Cursor::Queued { pack, nth } => {
                    let behind = if nth == u8::MAX { pack } else { pack.saturating_sub(1) };
                    let Some(live) = self.next_pack(behind)? else {
                        if of.state.is_some() {
                            return Ok(None);
                        }
                        at = Cursor::Dead(0);
                        continue;
                    };
                    looks += live.records.len().max(1);
                    for (place, record) in live.records {
                        if (place.pack, place.nth) <= (pack, nth) || !of.means_queued(&record) {
                            continue;
                        }
                        let Some(queued) = self.in_line(place, record)? else { continue };
                        let enough = acts == most || self.store.pending_bytes() >= limit;
                        if enough || !act(self, Met::Queued(queued))? {
                            return Ok(Some(at));
                        }
                        acts += 1;
                        at = Cursor::Queued { pack: place.pack, nth: place.nth };
                    }
                    at = Cursor::Queued { pack: live.pack, nth: u8::MAX };
                }
                Cursor::Dead(sequence) => {
                    let from = Bound::Excluded(keys::dead(sequence));
                    let Some(key) = self.store.next_key(Table::Dead.key(), from)? else { return Ok(None) };
                    looks += 1;
                    let sequence = keys::number_in(&key);
                    if let Some(dead) = self.store.get::<Dead>(&key)?
                        && self.means_dead(of, &dead)?
                    {
                        if acts == most || !act(self, Met::Dead(dead))? {
                            return Ok(Some(at));
                        }
                        acts += 1;
                    }
                    at = Cursor::Dead(sequence);
                }
            }
        }
        Ok(Some(at))
    }

    fn means_dead(&mut self, of: &Selection, dead: &Dead) -> Result<bool, StoreFailed> {
        Ok(of.means(&dead.record)
            && match of.reason {
                None => true,
                Some(reason) => self.death(&dead.record)?.is_some_and(|death| death.reason == reason),
            })
    }

    /// Finds a message by its sequence number, behind this pack; where it is not among the next ones, the last of them.
    pub(super) fn seek(&mut self, store: u32, sequence: u64, after: u64) -> Result<Result<Sought, u64>, StoreFailed> {
        if store != self.store.nonce || !(1..self.meta.next_sequence).contains(&sequence) {
            return Ok(Ok(Sought::Never));
        }
        let here = |writer: &Writer, record: &Record| {
            Ok(Ok(Sought::Here(writer.id(sequence, record.conversation, record.entry))))
        };
        if let Some(dead) = self.store.get::<Dead>(&keys::dead(sequence))? {
            return here(self, &dead.record);
        }
        let (mut after, mut looks) = (after, 0);
        while looks < LOOKS {
            let Some(live) = self.next_pack(after)? else { return Ok(Ok(Sought::Gone)) };
            if let Some((_, record)) = live.records.iter().find(|(_, record)| record.sequence == sequence) {
                return here(self, record);
            }
            looks += live.records.len().max(1);
            after = live.pack;
        }
        Ok(Err(after))
    }

    /// A message by its id, wherever it is.
    pub(super) fn find_met(&mut self, id: MessageId) -> Result<Option<Met>, StoreFailed> {
        if let Some(dead) = self.store.get::<Dead>(&keys::dead(id.sequence))? {
            return Ok(Some(Met::Dead(dead)));
        }
        let line = self.line(&id.conversation)?;
        Ok(match self.slot(&id.conversation, &line, id.sequence)? {
            Some(slot) => self.queued(slot)?.map(Met::Queued),
            None => None,
        })
    }

    /// A record with its place in its line; none where damage has taken that.
    fn in_line(&mut self, at: At, record: Record) -> Result<Option<Queued>, StoreFailed> {
        let line = self.line(&record.conversation)?;
        let slot = self.slot(&record.conversation, &line, record.sequence)?.filter(|slot| slot.at == at);
        Ok(slot.map(|slot| Queued { slot, record }))
    }

    pub(super) fn seen(&mut self, met: Met, contents: bool) -> Result<Seen, StoreFailed> {
        let (record, trial, maybe_delivered, place) = match met {
            Met::Queued(Queued { slot, record }) => {
                let line = self.line(&record.conversation)?;
                let in_flight = self.leased.get(&record.conversation) == Some(&slot.sequence);
                let next_attempt = match line.place {
                    Place::Due(due) => Some(due),
                    _ => None,
                };
                let doubtful = self.is_doubtful(&line, &slot);
                (record, slot.trial, doubtful, SeenPlace::Queued { in_flight, next_attempt })
            }
            Met::Dead(Dead { record, trial, died }) => {
                let death = self.death(&record)?;
                let place = SeenPlace::Dead {
                    died,
                    reason: death.as_ref().map(|death| death.reason),
                    error: death.as_ref().map(|death| death.error.clone().into()).unwrap_or_default(),
                };
                (record, trial, death.is_some_and(|death| death.maybe_delivered), place)
            }
        };
        let body = if contents { self.body(&record)? } else { None };
        Ok(Seen {
            id: self.id(record.sequence, record.conversation, record.entry),
            client_token: record.client_token.into(),
            conversation: record.label.into(),
            content_type: record.kind.content_type().map(Into::into),
            trace_id: record.trace_id.map(Into::into),
            accepted: record.accepted,
            deadline: record.deadline,
            attempts: trial.attempts,
            maybe_delivered,
            place,
            body,
        })
    }

    pub(super) fn death(&mut self, record: &Record) -> Result<Option<Death>, StoreFailed> {
        let key = keys::entry(&record.conversation, &record.entry);
        let Some(Entry::Done(outcome)) = self.store.get(&key)? else { return Ok(None) };
        Ok(match &outcome.fate {
            Fate::Dead { reason, maybe_delivered, error, .. } if outcome.sequence == record.sequence => Some(Death {
                reason: reason_at(*reason),
                maybe_delivered: *maybe_delivered,
                error: error.clone(),
                outcome,
            }),
            _ => None,
        })
    }
}
