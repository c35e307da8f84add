//! What an attempt came to is recorded: the message leaves, waits, is held, or dies.

use super::burial::Burial;
use super::queued::Queued;
use super::rows::{self, Dead, Entry, ErrorRow, Fate, Hash, Hold, Line, Outcome, Place, Record, keys};
use super::{Lease, Settled, State, Status, StoreFailed, Writer};
use crate::delivery::{Disposition, Reason, Receipt, ServiceError};
use crate::life;
use crate::time::Timestamp;

impl Writer {
    pub(super) fn settle(
        &mut self,
        lease: &Lease,
        disposition: Disposition,
        now: Timestamp,
    ) -> Result<Settled, StoreFailed> {
        let (conversation, sequence) = (lease.conversation, lease.id.sequence);
        self.leased.remove(&conversation);
        self.poke = true;
        let mut line = self.line(&conversation)?;
        // What is in flight is the head: nothing is put before it, and nothing else takes it out.
        let slot = line.head().filter(|head| head.sequence == sequence).cloned();
        let queued = match slot {
            Some(slot) => self.queued(slot)?,
            None => None,
        };
        let Some(mut queued) = queued else {
            // Its row was damaged while it was in flight: there is nothing left to record on.
            return Ok(Settled::Kept);
        };
        let settled = match disposition {
            Disposition::Deliver(receipt) => {
                self.deliver(queued, &mut line, &receipt, now)?;
                Settled::Delivered
            }
            Disposition::Keep => {
                self.keep(&conversation, &line);
                return Ok(Settled::Kept);
            }
            Disposition::Wait { due } if due > now => {
                self.move_to(&conversation, &mut line, Place::Due(due), now);
                Settled::Deferred(due)
            }
            Disposition::Wait { .. } => {
                let since = self.due_since(&conversation, &line, now)?;
                self.move_to(&conversation, &mut line, Place::Due(now), now);
                self.throttled.insert(conversation, since);
                Settled::Kept
            }
            Disposition::Retry { due, answer_lost, strike, counted } => {
                let trial = &mut line.first[0].trial;
                trial.attempts += 1;
                trial.strikes = trial.strikes.saturating_add(u8::from(strike));
                trial.failures = trial.failures.and(now, counted);
                if answer_lost {
                    self.meta.unknown += u64::from(!trial.unknown);
                    trial.unknown = true;
                    trial.sent_with = Some(lease.token);
                }
                self.move_to(&conversation, &mut line, Place::Due(due), now);
                Settled::Deferred(due)
            }
            Disposition::Deny(error) => self.deny(lease, &queued, &mut line, error, now)?,
            Disposition::Bury(reason, error) => {
                let maybe_delivered = queued.slot.trial.unknown && reason == Reason::Poison;
                let told = self.waiters.anyone(sequence);
                queued.slot.trial.attempts += 1;
                let burial = Burial { reason, error, maybe_delivered, token: lease.token, logged: false };
                self.bury(queued, &mut line, burial, now)?;
                Settled::Dead { reason, told }
            }
        };
        self.put_line(&conversation, &line);
        Ok(settled)
    }

    fn deliver(
        &mut self,
        queued: Queued,
        line: &mut Line,
        receipt: &Receipt,
        now: Timestamp,
    ) -> Result<(), StoreFailed> {
        let attempts = queued.slot.trial.attempts + 1;
        self.put_outcome(&queued.record, attempts, Fate::Delivered(receipt.into()), now);
        self.outcomes.push((queued.record.conversation, queued.record.entry));
        self.meta.outcomes += 1;
        self.leave(&queued, line, false, now)?;
        if receipt.id.is_some() {
            // A disconnect has none, and counts as done where Connect refuses it.
            self.destination_delivers(now);
        }
        self.gauges.delivered.inc();
        self.gauges.delivery_seconds.observe(now.since(queued.record.accepted).as_secs_f64());
        self.gauges.delivered_at(now, self.clock());
        self.tell(&queued.record, attempts, Status::Delivered(receipt.clone()));
        Ok(())
    }

    /// What became of a message answers its repeats from now on.
    fn put_outcome(&mut self, record: &Record, attempts: u32, fate: Fate, now: Timestamp) {
        let Record { sequence, contents, accepted, .. } = *record;
        let outcome = Outcome { sequence, contents, accepted, attempts, at: now, fate };
        self.store.put(keys::entry(&record.conversation, &record.entry), &Entry::Done(outcome));
    }

    /// The conversation keeps its place, and is the next to be looked at.
    fn keep(&mut self, conversation: &Hash, line: &Line) {
        if let Place::Turn(kind, turn) = line.place {
            self.ahead.give_back(kind, turn, *conversation);
        }
    }

    /// A token was refused. Those who wait are told, and their messages are dead; the rest waits for a renewed token.
    fn deny(
        &mut self,
        lease: &Lease,
        denied: &Queued,
        line: &mut Line,
        error: ServiceError,
        now: Timestamp,
    ) -> Result<Settled, StoreFailed> {
        let (conversation, sequence) = (lease.conversation, lease.id.sequence);
        let row = ErrorRow::from(&error);
        self.refuse_token(&lease.token, &row, now)?;
        if self.newest(&denied.record.token)?.0 != lease.token {
            // It was renewed meanwhile: the new one is tried at once. Where an attempt with the old one may have
            // arrived, this is where a duplicate can come from.
            let trial = &mut line.first[0].trial;
            if trial.unknown || trial.sent_with.is_some() {
                self.gauges.duplicates_possible.inc();
            }
            trial.sent_with = None;
            self.take_turn(&conversation, line, now);
            return Ok(Settled::Deferred(now));
        }
        let reason = Reason::of_denial(&error);
        let mut told = false;
        self.destination_refuses(&lease.token, now);
        for waited in self.waiters.of(&conversation) {
            let Some(slot) = self.slot(&conversation, line, waited)? else { continue };
            let Some(mut queued) = self.queued(slot)? else { continue };
            if self.newest(&queued.record.token)?.0 != lease.token {
                continue;
            }
            let own = waited == sequence;
            told |= own;
            queued.slot.trial.attempts += u32::from(own);
            let maybe_delivered = queued.slot.trial.unknown;
            let burial = Burial { reason, error: error.clone(), maybe_delivered, token: lease.token, logged: !own };
            self.bury(queued, line, burial, now)?;
        }
        let head = match line.head().map(|head| head.at) {
            Some(at) => self.record(at)?,
            None => None,
        };
        let until = now + self.options.token_wait;
        if let Some(head) = head
            && self.newest(&head.token)?.0 == lease.token
        {
            self.meta.held += u64::from(line.hold.is_none());
            line.hold = Some(Hold { token: lease.token, until, error: row });
            self.move_to(&conversation, line, Place::Due(until), now);
        }
        if told {
            return Ok(Settled::Dead { reason, told });
        }
        let trial = &mut line.first[0].trial;
        trial.attempts += 1;
        trial.failures = trial.failures.and(now, false);
        Ok(Settled::Held(until))
    }

    /// Makes a dead letter of a queued message.
    pub(super) fn bury(
        &mut self,
        queued: Queued,
        line: &mut Line,
        burial: Burial,
        now: Timestamp,
    ) -> Result<(), StoreFailed> {
        let Burial { reason, error, maybe_delivered, token, logged } = burial;
        let (sequence, attempts) = (queued.record.sequence, queued.slot.trial.attempts);
        let row = ErrorRow::from(&error);
        let fate = Fate::Dead { reason: rows::reason_index(reason), maybe_delivered, token, error: row };
        self.put_outcome(&queued.record, attempts, fate, now);
        if line.disconnect == Some(sequence) {
            line.disconnect = None;
        }
        self.leave(&queued, line, true, now)?;
        let told = self.waiters.anyone(sequence);
        self.gauges.dead.with_label_values(&[reason.as_str(), if told { "true" } else { "false" }]).inc();
        self.meta.dead += 1;
        self.store.put(keys::prune_dead(now, sequence), &());
        // Of age, or by an operator, it dies without a word from upstream: the error is what its bot is told.
        let of_a_word = !matches!(reason, Reason::Expired | Reason::Deleted) && error.status != 0;
        let (status, request_id) = (of_a_word.then_some(error.status), error.request_id.clone());
        self.tell(&queued.record, attempts, Status::Dead { reason, maybe_delivered, error });
        self.meta.weight += queued.record.dead_weight();
        let dead = Dead { record: queued.record, trial: queued.slot.trial, died: now };
        self.store.put(keys::dead(sequence), &dead);
        if logged {
            self.say_dead(dead, (status, request_id), reason, maybe_delivered);
        }
        Ok(())
    }

    /// Says in the log, after the commit, that a message is dead; `word` is the status and the request id of upstream's, where
    /// it died of one.
    pub(super) fn say_dead(
        &mut self,
        dead: Dead,
        word: (Option<u16>, Option<Box<str>>),
        reason: Reason,
        maybe_delivered: bool,
    ) {
        let Dead { record, trial, died } = dead;
        let id = self.id(record.sequence, record.conversation, record.entry);
        self.afterwards(move || {
            let word = (word.0, word.1.as_deref());
            life::dead(record.subject(&id), trial.attempts, died.since(record.accepted), word, reason, maybe_delivered);
        });
    }

    /// Takes a message out of the queue; its conversation's next one gets its turn.
    fn leave(&mut self, queued: &Queued, line: &mut Line, dead: bool, now: Timestamp) -> Result<(), StoreFailed> {
        let Queued { slot, record } = queued;
        let sequence = record.sequence;
        self.unfile(slot.at)?;
        if !dead {
            self.meta.weight = self.meta.weight.saturating_sub(record.weight());
            self.remove_pieces(record);
        }
        if record.implied {
            self.meta.implied = self.meta.implied.saturating_sub(1);
        } else {
            self.store.remove(keys::expiry(record.deadline, sequence));
        }
        self.count_queued(record.caller, -1)?;
        self.meta.unknown = self.meta.unknown.saturating_sub(u64::from(slot.trial.unknown));
        self.left = true;
        let conversation = record.conversation;
        let was_head = self.take_out(&conversation, line, sequence)?;
        if line.count == 0 {
            self.meta.held = self.meta.held.saturating_sub(u64::from(line.hold.take().is_some()));
            self.meta.conversations = self.meta.conversations.saturating_sub(1);
            self.move_to(&conversation, line, Place::None, now);
        } else if was_head {
            line.boot = self.meta.boot;
            if line.hold.is_none() {
                self.take_turn(&conversation, line, now);
            }
        }
        Ok(())
    }

    /// Tells those who wait, after the commit.
    fn tell(&mut self, record: &Record, attempts: u32, status: Status) {
        let id = self.id(record.sequence, record.conversation, record.entry);
        let state = State { id, accepted: record.accepted, attempts, status };
        for reply in self.waiters.take(record.sequence) {
            self.answer(reply, Some(state.clone()));
        }
    }
}
