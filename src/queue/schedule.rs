//! What is due, in turn.
//!
//! Conversations that can be sent stand in the order of their turns, the fresh ones (`r` rows) apart from the late ones
//! (`q` rows); `turns` says whose turn it is. One that was served and has more goes to the end, so a long conversation
//! starves nobody. One that has become late among the fresh is moved over when its turn comes.
//!
//! A message whose lifetime will probably end before it arrives, by what an attempt takes, is passed over as long as there
//! is another to be sent: no message misses its deadline for one that misses its own anyway.
//!
//! Conversations that back off or are held have no turn: they are in the order of their times (`d` rows). The sender
//! says how many of them may go before those whose turn it is, and how many may go at all, so that conversations that
//! keep failing never hold up the others. One page of turns is read ahead; leases are known in memory only.

use super::burial::Burial;
use super::queued::Queued;
use super::rows::{Hash, Key, Line, Meta, Place, Table, Token, keys};
use super::{Lease, LeaseRequest, StoreFailed, Work, Writer};
use crate::delivery::{Reason, ServiceError};
use crate::message::{ClientToken, ConnectionToken};
use crate::time::Timestamp;
use crate::turns::{self, Kind, Others};
use std::collections::VecDeque;
use std::ops::Bound;

/// Turns read ahead.
const PAGE: usize = 256;
/// What may be buried on the way to messages that can be sent, before others get a chance.
const BURIED_BYTES_MAX: usize = 256 << 10;

/// The next turns, read ahead.
#[derive(Debug, Default)]
pub struct Ahead {
    fresh: Page,
    late: Page,
}

#[derive(Debug, Default)]
struct Page {
    turns: VecDeque<(u64, Hash)>,
    /// The last turn read.
    cursor: u64,
}

/// What is met where a conversation stands.
enum Met {
    /// A message that can be sent.
    Ready(Box<Lease>),
    /// One whose lifetime will probably end before it arrives.
    TooLate,
    /// Nobody, for now.
    Nothing,
}

/// One request of the sender's, being answered.
struct Round {
    request: LeaseRequest,
    /// Bytes at which the round ends, so that the commit stays short.
    limit: usize,
    /// Leases of conversations that backed off.
    backed_off: usize,
    /// The `d` rows before this were looked at.
    after: Bound<Key>,
    /// Conversations whose message will probably not arrive within its lifetime.
    passed_over: Vec<(Hash, Place)>,
    work: Work,
}

impl Round {
    fn has_room(&self) -> bool {
        self.work.leases.len() < self.request.most
    }

    /// The time that a message's lifetime must outlast.
    fn in_time(&self, now: Timestamp) -> Timestamp {
        if self.passed_over.len() < PAGE { now + self.request.takes } else { now }
    }
}

impl Ahead {
    fn of(&mut self, kind: Kind) -> &mut Page {
        match kind {
            Kind::Fresh => &mut self.fresh,
            Kind::Late => &mut self.late,
        }
    }

    /// One that was not served is the next of its kind.
    pub fn give_back(&mut self, kind: Kind, turn: u64, conversation: Hash) {
        self.of(kind).turns.push_front((turn, conversation));
    }
}

impl Writer {
    /// The approximate number of messages that go before one that has so many of its own conversation before it; `None`
    /// while sending is paused or the destination refuses every token. Nothing is scanned.
    pub(super) fn before(&self, line: &Line, ahead: u64, now: Timestamp) -> Option<u64> {
        if self.paused().is_some() || self.all_refused().is_some() {
            return None;
        }
        let kind = match line.place {
            Place::Turn(kind, _) => kind,
            _ => Kind::of(line.head().map_or(now, |head| head.accepted), now, self.options.fresh),
        };
        let Meta { queued, conversations, held, .. } = self.meta;
        let fresh = self.fresh.waiting(now, self.options.fresh);
        let late = conversations.saturating_sub(held + fresh);
        let own = u64::from(line.count > 0);
        let others = match kind {
            Kind::Fresh => Others { fresh: fresh.saturating_sub(own), late },
            Kind::Late => Others { fresh, late: late.saturating_sub(own) },
        };
        Some(turns::before(kind, ahead, others).min(queued).max(ahead))
    }

    /// The time before which a message is not sent, if there is one, and the approximate number of messages that go before
    /// it; the number is `None` if it cannot be estimated.
    pub(super) fn prospect(
        &self,
        conversation: &Hash,
        line: &Line,
        ahead: u64,
        now: Timestamp,
    ) -> Result<(Option<Timestamp>, Option<u64>), StoreFailed> {
        if self.all_refused().is_some() {
            let next = ahead == 0 && self.has_next_turn(conversation, line)?;
            return Ok(if next { (self.next_try(), Some(0)) } else { (None, None) });
        }
        let due = if let Place::Due(due) = line.place { Some(due) } else { None };
        Ok((due, self.before(line, ahead, now)))
    }

    /// True if no other conversation has its turn before this one.
    fn has_next_turn(&self, conversation: &Hash, line: &Line) -> Result<bool, StoreFailed> {
        let Place::Turn(kind, turn) = line.place else { return Ok(false) };
        let first = |kind| self.store.first_key(Table::turns(kind).key());
        let (fresh, late) = (first(Kind::Fresh)?, first(Kind::Late)?);
        let next = self.turns.next(fresh.is_some(), late.is_some());
        let first = if kind == Kind::Fresh { fresh } else { late };
        Ok(next == Some(kind) && first == Some(keys::turn(kind, turn, conversation)))
    }

    pub(super) fn lease(&mut self, request: LeaseRequest, now: Timestamp) -> Result<Work, StoreFailed> {
        if self.paused().is_some() {
            return Ok(Work::default());
        }
        let Some(most) = self.most_while_refused(request.most, now) else {
            return Ok(Work { next_due: self.next_try(), ..Work::default() });
        };
        // While every token is refused, those that were not tried yet go first.
        let backed_off_first = if self.all_refused().is_some() { 0 } else { request.backed_off_first };
        let mut round = Round {
            request: LeaseRequest { most, ..request },
            limit: self.store.pending_bytes() + BURIED_BYTES_MAX,
            backed_off: 0,
            after: Bound::Included(Table::Due.key()),
            passed_over: Vec::new(),
            work: Work::default(),
        };
        self.lease_backed_off(&mut round, backed_off_first, now)?;
        while round.work.leases.len() < most && self.store.pending_bytes() < round.limit {
            let (fresh, late) = (self.anyone(Kind::Fresh)?, self.anyone(Kind::Late)?);
            let Some(kind) = self.turns.next(fresh, late) else { break };
            let Some((turn, conversation)) = self.ahead.of(kind).turns.pop_front() else { break };
            let place = Place::Turn(kind, turn);
            match self.prepare(&conversation, place, round.limit, round.in_time(now), now)? {
                Met::Ready(lease) => {
                    self.turns.taken();
                    round.work.leases.push(*lease);
                }
                Met::TooLate => round.passed_over.push((conversation, place)),
                Met::Nothing => {}
            }
        }
        self.lease_backed_off(&mut round, request.backed_off_most, now)?;
        self.lease_passed_over(&mut round, now)?;
        round.work.turns_left = self.anyone(Kind::Fresh)? || self.anyone(Kind::Late)?;
        self.poke |= self.store.pending_bytes() >= round.limit;
        Ok(round.work)
    }

    /// Takes out messages of conversations whose time has come, until the round has so many of these.
    fn lease_backed_off(&mut self, round: &mut Round, most: usize, now: Timestamp) -> Result<(), StoreFailed> {
        while round.has_room() && round.backed_off < most && self.store.pending_bytes() < round.limit {
            let Some(key) = self.store.next_key(Table::Due.key(), round.after)? else { break };
            let due = keys::time_in(&key);
            let conversation = keys::conversation_in(&key);
            // The clock may have stepped back since the time was written: no backing off outlasts its bound.
            if due > now && due.since(now) <= self.options.due_max.max(self.options.token_wait) {
                round.work.next_due = Some(due);
                break;
            }
            round.after = Bound::Excluded(key);
            match self.prepare(&conversation, Place::Due(due), round.limit, round.in_time(now), now)? {
                Met::Ready(lease) => {
                    round.backed_off += 1;
                    round.work.leases.push(*lease);
                }
                Met::TooLate => round.passed_over.push((conversation, Place::Due(due))),
                Met::Nothing => {}
            }
        }
        Ok(())
    }

    /// Takes out what was passed over if nothing else has to wait for it. The rest is met again.
    fn lease_passed_over(&mut self, round: &mut Round, now: Timestamp) -> Result<(), StoreFailed> {
        let all_met = self.store.pending_bytes() < round.limit;
        let mut left = Vec::new();
        for (conversation, place) in std::mem::take(&mut round.passed_over) {
            let waits = matches!(place, Place::Due(_)) && round.backed_off >= round.request.backed_off_most;
            if !all_met || !round.has_room() || waits {
                left.push((conversation, place));
            } else if let Met::Ready(lease) = self.prepare(&conversation, place, round.limit, now, now)? {
                round.backed_off += usize::from(lease.backed_off);
                round.work.leases.push(*lease);
            }
        }
        for (conversation, place) in left.into_iter().rev() {
            if let Place::Turn(kind, turn) = place {
                self.ahead.give_back(kind, turn, conversation);
            }
        }
        Ok(())
    }

    /// Whether anyone of a kind waits for a turn; a page of them is read ahead.
    fn anyone(&mut self, kind: Kind) -> Result<bool, StoreFailed> {
        let page = self.ahead.of(kind);
        if page.turns.is_empty() {
            let prefix = Table::turns(kind).key();
            let mut after = Bound::Excluded(keys::turn(kind, page.cursor, &[u8::MAX; 16]));
            while page.turns.len() < PAGE {
                let Some(key) = self.store.next_key(prefix, after)? else { break };
                page.cursor = keys::number_in(&key);
                page.turns.push_back((page.cursor, keys::conversation_in(&key)));
                after = Bound::Excluded(key);
            }
        }
        Ok(!page.turns.is_empty())
    }

    /// Takes out the head of a conversation, if it is (still) in that place, something of it can be sent, and its lifetime
    /// does not end before `in_time`.
    fn prepare(
        &mut self,
        conversation: &Hash,
        place: Place,
        limit: usize,
        in_time: Timestamp,
        now: Timestamp,
    ) -> Result<Met, StoreFailed> {
        if self.leased.contains_key(conversation) {
            return Ok(Met::Nothing);
        }
        let mut line = self.line(conversation)?;
        if line.place != place {
            // An index row without its conversation, or a turn that has passed: met, and gone.
            if line.count == 0
                && let Place::Turn(kind, turn) = place
            {
                self.store.remove(keys::turn(kind, turn, conversation));
            } else if let Place::Due(due) = place {
                self.store.remove(keys::due(due, conversation));
            }
            return Ok(Met::Nothing);
        }
        while self.store.pending_bytes() < limit {
            let Some(slot) = line.head().cloned() else { return Ok(Met::Nothing) };
            let Some(queued) = self.queued(slot.clone())? else {
                // Its record was damaged and is set aside: the line goes on without it.
                self.take_out(conversation, &mut line, slot.sequence)?;
                self.store.remove(keys::entry(conversation, &slot.entry));
                self.meta.unknown = self.meta.unknown.saturating_sub(u64::from(slot.trial.unknown));
                self.meta.queued = self.meta.queued.saturating_sub(1);
                if line.count == 0 {
                    self.meta.conversations = self.meta.conversations.saturating_sub(1);
                    self.move_to(conversation, &mut line, Place::None, now);
                }
                self.put_line(conversation, &line);
                continue;
            };
            let doubtful = queued.slot.trial.unknown || line.boot <= self.meta.unclean_boot;
            let (newest, row) = self.newest(&queued.record.token)?;
            let mut burial = None;
            if queued.record.deadline <= now {
                burial = Some(Burial { maybe_delivered: doubtful, ..Burial::expired(queued.record.token) });
            } else if let Some(hold) = line.hold.clone() {
                if newest == hold.token && hold.until <= now && self.all_refused().is_none() {
                    let error = ServiceError::from(hold.error);
                    let reason = Reason::of_denial(&error);
                    burial = Some(Burial { reason, error, maybe_delivered: doubtful, token: newest, logged: true });
                } else if newest == hold.token {
                    return Ok(Met::Nothing);
                } else {
                    line.hold = None;
                    self.meta.held = self.meta.held.saturating_sub(1);
                    self.put_line(conversation, &line);
                }
            }
            let before = line.place;
            if burial.is_none()
                && let Place::Turn(Kind::Fresh, _) = line.place
                && Kind::of(queued.record.accepted, now, self.options.fresh) == Kind::Late
            {
                self.take_turn(conversation, &mut line, now);
                self.put_line(conversation, &line);
                return Ok(Met::Nothing);
            }
            if let Some(burial) = burial {
                self.bury(queued, &mut line, burial, now)?;
                self.put_line(conversation, &line);
                if line.count == 0 || (line.place != before && line.hold.is_none()) {
                    // What is left has a turn of its own now.
                    return Ok(Met::Nothing);
                }
                continue;
            }
            if queued.record.deadline <= in_time {
                return Ok(Met::TooLate);
            }
            return self.take(queued, place, doubtful, (newest, row));
        }
        Ok(Met::Nothing)
    }

    fn take(
        &mut self,
        queued: Queued,
        place: Place,
        doubtful: bool,
        newest: (Hash, Token),
    ) -> Result<Met, StoreFailed> {
        let (hash, token) = self.credential(&queued, doubtful, newest)?;
        let Queued { slot, record } = &queued;
        let (conversation, sequence) = (record.conversation, slot.sequence);
        let body = self.body(record)?;
        let connection_token = self.sealer.open(&keys::token(&hash), &token.secret);
        let connection_token = connection_token.and_then(|bytes| ConnectionToken::parse(&bytes).ok());
        let client_token = ClientToken::parse(&record.client_token).ok().flatten();
        let (Some(body), Some(connection_token), Some(client_token)) = (body, connection_token, client_token) else {
            // Some of what belongs to it was damaged, or its key is gone: it cannot be sent as it was accepted.
            let mut line = self.line(&conversation)?;
            let error = ServiceError {
                code: "InternalServerException".into(),
                text: "connect-relay: it cannot be read back from the disk: damaged, or sealed by a key that is gone"
                    .into(),
                status: 500,
                request_id: None,
            };
            let burial = Burial { reason: Reason::Poison, error, maybe_delivered: doubtful, token: hash, logged: true };
            self.bury(queued, &mut line, burial, self.now())?;
            self.put_line(&conversation, &line);
            return Ok(Met::Nothing);
        };
        self.leased.insert(conversation, sequence);
        Ok(Met::Ready(Box::new(Lease {
            id: self.id(sequence, conversation, record.entry),
            body,
            client_token,
            connection_token,
            label: record.label.as_str().into(),
            trace_id: record.trace_id.as_deref().map(Into::into),
            accepted: record.accepted,
            attempts: slot.trial.attempts,
            strikes: slot.trial.strikes,
            counted: slot.trial.failures.counted(),
            failed_at: slot.trial.failures.last(),
            conversation,
            backed_off: matches!(place, Place::Due(_)),
            token: hash,
        })))
    }

    /// The token to send with: the newest; but where an attempt may have arrived, the one that it was made with, as long
    /// as that is not refused, because upstream knows a repeat by both tokens.
    fn credential(
        &mut self,
        queued: &Queued,
        doubtful: bool,
        newest: (Hash, Token),
    ) -> Result<(Hash, Token), StoreFailed> {
        let first = queued.slot.trial.sent_with.unwrap_or(queued.record.token);
        if !doubtful || first == newest.0 {
            return Ok(newest);
        }
        match self.store.get::<Token>(&keys::token(&first))? {
            Some(row) if self.refusal(&row).is_none() && !row.secret.bytes().is_empty() => Ok((first, row)),
            _ => Ok(newest),
        }
    }
}
