//! Changing what becomes of one message: it is deleted, or comes back from the dead.

use super::{Death, Met, Redrive, Unmoved};
use crate::delivery::{Reason, ServiceError};
use crate::life;
use crate::message::{self, ClientToken, ConnectionToken};
use crate::queue::burial::Burial;
use crate::queue::queued::{Known, Queued};
use crate::queue::rows::{
    Dead, Entry, ErrorRow, Fate, Hash, Line, Outcome, Record, Secret, Token, Trial, keys, reason_index,
};
use crate::queue::{StoreFailed, Writer};
use crate::time::Timestamp;

impl Writer {
    /// Whatever is deleted is a dead letter of that reason; one that was dead before stays for as long as it would have.
    pub(super) fn delete(&mut self, met: Met, now: Timestamp) -> Result<Result<(), Unmoved>, StoreFailed> {
        let error = ServiceError {
            status: 410,
            code: "GoneException".into(),
            text: "connect-relay: the message was deleted by an operator".into(),
            request_id: None,
        };
        let reason = Reason::Deleted;
        match met {
            Met::Queued(queued) => {
                let Record { conversation, sequence, token, .. } = queued.record;
                if self.leased.get(&conversation) == Some(&sequence) {
                    return Ok(Err(Unmoved::InFlight));
                }
                let mut line = self.line(&conversation)?;
                let maybe_delivered = self.is_doubtful(&line, &queued.slot);
                let burial = Burial { reason, error, maybe_delivered, token, logged: true };
                self.bury(queued, &mut line, burial, now)?;
                self.put_line(&conversation, &line);
                self.poke = true;
            }
            Met::Dead(dead) => {
                let record = &dead.record;
                let Some(death) = self.death(record)?.filter(|death| death.reason != reason) else { return Ok(Ok(())) };
                let maybe_delivered = death.maybe_delivered;
                let row = ErrorRow::from(&error);
                let fate =
                    Fate::Dead { reason: reason_index(reason), maybe_delivered, token: record.token, error: row };
                let outcome = Outcome { fate, ..death.outcome };
                self.store.put(keys::entry(&record.conversation, &record.entry), &Entry::Done(outcome));
                self.say_dead(dead, (None, None), reason, maybe_delivered);
            }
        }
        Ok(Ok(()))
    }

    /// Queues a dead letter again, as it is or changed.
    pub(super) fn redrive(
        &mut self,
        dead: Dead,
        with: Redrive,
        now: Timestamp,
    ) -> Result<Result<Queued, Unmoved>, StoreFailed> {
        if let Some(full) = self.full() {
            return Ok(Err(Unmoved::Full(full)));
        }
        let death = self.death(&dead.record)?;
        let mut again = dead.clone();
        let record = &mut again.record;
        if with.body.is_some() {
            record.client_token = ClientToken::mint().as_str().to_owned();
        }
        let bearer = with.token.map(|bearer| (self.hasher.token(&bearer), bearer));
        let mut token: Token = match &bearer {
            Some((hash, _)) => self.store.get(&keys::token(hash))?.unwrap_or_default(),
            None => Token::default(),
        };
        if let Some((hash, bearer)) = &bearer {
            record.token = *hash;
            record.conversation = token.conversation.unwrap_or_else(|| self.default_conversation(hash, &token));
            if record.conversation != dead.record.conversation && !self.move_in(record, &token, bearer)? {
                return Ok(Err(Unmoved::Taken));
            }
        }
        let conversation = record.conversation;
        let moved = conversation != dead.record.conversation;

        let (attempts, reason, edited) =
            (dead.trial.attempts, death.as_ref().map(|death| death.reason), with.body.is_some());
        self.exhume(&dead);
        if let Some(Death { outcome, .. }) = death.as_ref().filter(|_| moved) {
            // Its repeats are answered as before, and it is another message from here on.
            let (left, entry) = (dead.record.conversation, dead.record.entry);
            self.store.put(keys::entry(&left, &entry), &Entry::Done(Outcome { at: now, ..outcome.clone() }));
            self.outcomes.push((left, entry));
            self.meta.outcomes += 1;
        }
        if let Some((hash, bearer)) = &bearer {
            let keyed = token.keyed;
            self.give_token(&mut token, *hash, (conversation, keyed), bearer, now);
            self.succeed(&mut token, hash, now)?;
        }
        let doubtful = death.map_or(dead.trial.unknown, |death| death.maybe_delivered);
        again.trial = if moved || with.body.is_some() {
            self.gauges.duplicates_possible.inc_by(u64::from(moved && doubtful && with.body.is_none()));
            Trial::default()
        } else {
            let sent_with = dead.trial.sent_with.or(Some(dead.record.token)).filter(|_| doubtful);
            Trial { unknown: doubtful, sent_with, ..Trial::default() }
        };
        if let Some(body) = &with.body {
            let record = &mut again.record;
            self.meta.weight = self.meta.weight.saturating_sub(record.weight());
            self.remove_pieces(record);
            record.change_pieces();
            record.inline = Secret::default();
            self.put_body(record, body);
            self.meta.weight += record.weight();
        }
        let token = again.record.token;
        let mut line = self.line(&conversation)?;
        let queued = self.bring_back(again, &mut line, now)?;
        self.forget_refusal(&token, &conversation, &mut line, now)?;
        let record = queued.record.clone();
        let id = self.id(record.sequence, record.conversation, record.entry);
        self.afterwards(move || {
            life::redriven(record.subject(&id), attempts, now.since(record.accepted), reason, edited);
        });
        Ok(Ok(queued))
    }

    /// Gives a message its name in the conversation that it moves to; false where another has it.
    fn move_in(&mut self, record: &mut Record, token: &Token, bearer: &ConnectionToken) -> Result<bool, StoreFailed> {
        let conversation = record.conversation;
        record.entry = self.hasher.entry(&conversation, &record.client_token);
        let line = self.line(&conversation)?;
        match self.known(&conversation, &line, &record.entry)? {
            None => {}
            // It was here before.
            Some(Known::Done(outcome)) if outcome.sequence == record.sequence => {
                self.store.remove(keys::entry(&conversation, &record.entry));
                self.meta.outcomes = self.meta.outcomes.saturating_sub(1);
            }
            Some(_) => return Ok(false),
        }
        // A key is written down with its messages alone.
        let neighbour = match line.head().filter(|_| token.keyed) {
            Some(head) => self.record(head.at)?,
            None => None,
        };
        record.label = neighbour.map_or_else(|| message::label(None, bearer).into(), |neighbour| neighbour.label);
        Ok(true)
    }

    /// The token that goes with a message is tried again, and let in at the door.
    fn forget_refusal(
        &mut self,
        token: &Hash,
        conversation: &Hash,
        line: &mut Line,
        now: Timestamp,
    ) -> Result<(), StoreFailed> {
        let (newest, mut row) = self.newest(token)?;
        if row.refused.take().is_some() {
            self.store.put(keys::token(&newest), &row);
        }
        if line.hold.as_ref().is_some_and(|hold| hold.token == newest) {
            self.lift_hold(conversation, line, now);
            self.put_line(conversation, line);
        }
        Ok(())
    }
}
