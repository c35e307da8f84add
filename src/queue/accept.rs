//! The door's decisions: whose conversation it is, whether it came before, whether there is room.

use std::time::Duration;

use super::act::{Asked, Prepared};
use super::queued::{Known, Queued};
use super::rows::{
    self, Dead, ErrorRow, Failures, Fate, Hash, Kind, Line, OtherConversation, Outcome, Participant, Record, Slot,
    Token, Trial, USED_LINE, USED_PARTICIPANT, USED_TOKEN, keys,
};
use super::tokens::newest_token;
use super::{Full, Rejection, State, Status, StoreFailed, Verdict, Writer};
use crate::delivery::{Reason, Receipt};
use crate::life;
use crate::message::{Body, ConnectionToken};
use crate::time::{Timestamp, millis};

/// How stale a "last used" may be before it is written again.
const USED_STEP_MS: u64 = 3_600_000;
/// About how many bytes of rows an outcome takes.
const OUTCOME_WEIGHT: u64 = 300;

impl Writer {
    pub(super) fn accept(&mut self, submission: Prepared, rate: f64, now: Timestamp) -> Result<Verdict, StoreFailed> {
        let mut token: Token = self.store.get(&keys::token(&submission.asked.token))?.unwrap_or_default();
        let old = match submission.replaces.filter(|old| *old != submission.asked.token) {
            Some(hash) => Some((hash, self.store.get::<Token>(&keys::token(&hash))?.unwrap_or_default())),
            None => None,
        };
        let renewed = old.as_ref().map(|(_, old)| old);
        let conversation = match self.place_of(submission.asked, &token, renewed) {
            Ok(conversation) => conversation,
            Err(rejection) => return Ok(Verdict::Rejected(rejection)),
        };

        let entry = self.hasher.entry(&conversation, submission.client_token.as_str());
        let mut line = self.line(&conversation)?;
        let known = self.known(&conversation, &line, &entry)?;
        if let Some(known) = &known
            && *known.contents() != submission.contents
        {
            return Ok(Verdict::Rejected(Rejection::OtherContents(known.accepted())));
        }
        // A renewal counts even where the message that brings it came before.
        if let Some((hash, _)) = old {
            self.own(&mut token, conversation, &submission, now);
            self.renew(&hash, &submission.asked.token, now)?;
            token = self.store.get(&keys::token(&submission.asked.token))?.unwrap_or(token);
            line = self.line(&conversation)?;
        }
        if let Some(known) = known {
            self.gauges.repeats.inc();
            if token.conversation.is_none() {
                // A repeat says whose a renewed token is as well as a new message does.
                self.own(&mut token, conversation, &submission, now);
            }
            let revived = match &known {
                Known::Done(outcome) if self.revives(outcome, &token, &submission.asked.token) => {
                    self.own(&mut token, conversation, &submission, now);
                    self.revive(outcome, &entry, &submission, &mut line, now)?
                }
                _ => None,
            };
            return Ok(match revived {
                Some(verdict) => verdict,
                None => {
                    let state = self.state(&conversation, &line, &entry, known)?;
                    Verdict::Accepted { state, repeat: true }
                }
            });
        }

        if let Some((at, error)) = self.refusal(&token)
            && now.since(*at) < self.options.refused_for
        {
            return Ok(Verdict::Rejected(Rejection::TokenRefused(error.clone().into())));
        }
        match (line.disconnect, &submission.body) {
            (Some(sequence), Body::Disconnect) => {
                return self.disconnected_before(sequence, &conversation, &line, entry, now);
            }
            (Some(_), _) => return Ok(Verdict::Rejected(Rejection::Disconnected)),
            (None, _) => {}
        }
        if let Some(lifetime) = submission.lifetime
            && let Some(before) = self.before(&line, line.count, now)
            && rate > 0.0
        {
            #[expect(clippy::cast_precision_loss, reason = "a count of messages")]
            let needed = before as f64 / rate;
            if needed > lifetime.as_secs_f64() {
                return Ok(Verdict::Rejected(Rejection::TooLate { before }));
            }
        }
        if let Some(full) = self.full() {
            return Ok(Verdict::Rejected(Rejection::Full(full)));
        }

        self.own(&mut token, conversation, &submission, now);
        if self.succeed(&mut token, &submission.asked.token, now)? {
            line = self.line(&conversation)?;
        }
        let (state, record) = self.enqueue(submission, conversation, entry, line, now)?;
        let id = state.id;
        // Here and not at the door: a bot that hangs up before the commit takes nothing back.
        self.afterwards(move || life::accepted(record.subject(&id)));
        Ok(Verdict::Accepted { state, repeat: false })
    }

    /// The conversation of what was handed over, or why it cannot be told.
    fn place_of(&self, asked: Asked, token: &Token, old: Option<&Token>) -> Result<Hash, Rejection> {
        let own = token.belongs_to(asked.keyed).map_err(|OtherConversation| Rejection::OtherConversation)?;
        let conversation = match (own.or(asked.keyed), old) {
            (Some(conversation), _) => conversation,
            (None, Some(old)) => old.conversation.filter(|_| !old.keyed).ok_or(Rejection::NotReplaceable)?,
            (None, None) => self.default_conversation(&asked.token, token),
        };
        match old {
            Some(old) if old.conversation != Some(conversation) => Err(Rejection::NotReplaceable),
            _ => Ok(conversation),
        }
    }

    /// Without a key a conversation is the token's participant, or where no connection was seen the token itself.
    pub(super) fn default_conversation(&self, hash: &Hash, token: &Token) -> Hash {
        match &token.participant {
            Some(participant) => self.hasher.conversation_of_participant(participant),
            None => self.hasher.conversation_of_token(hash),
        }
    }

    /// The submission's token belongs to this conversation from now on.
    fn own(&mut self, token: &mut Token, conversation: Hash, submission: &Prepared, now: Timestamp) {
        let Asked { token: hash, keyed, .. } = submission.asked;
        self.give_token(token, hash, (conversation, keyed.is_some()), &submission.bearer, now);
    }

    /// A token belongs to a conversation, which has a key or not, from now on.
    pub(super) fn give_token(
        &mut self,
        token: &mut Token,
        hash: Hash,
        (conversation, keyed): (Hash, bool),
        bearer: &ConnectionToken,
        now: Timestamp,
    ) {
        let stale = now.0.abs_diff(token.used.0) >= USED_STEP_MS;
        let new = token.secret.bytes().is_empty();
        if token.conversation.is_some() && !new && !stale {
            return;
        }
        token.conversation = Some(conversation);
        token.keyed = keyed;
        if new {
            token.secret = self.sealer.seal(&keys::token(&hash), bearer.expose());
        }
        if stale {
            token.used = now;
            self.used.push((USED_TOKEN, hash));
        }
        self.store.put(keys::token(&hash), token);
    }

    fn enqueue(
        &mut self,
        submission: Prepared,
        conversation: Hash,
        entry: Hash,
        mut line: Line,
        now: Timestamp,
    ) -> Result<(State, Record), StoreFailed> {
        let sequence = self.meta.next_sequence;
        self.meta.next_sequence += 1;
        let lifetime = submission.lifetime.unwrap_or(self.options.lifetime);
        if self.meta.implied == 0 {
            self.meta.implied_lifetime_ms = millis(self.options.lifetime);
        }
        let mut record = Record {
            sequence,
            conversation,
            entry,
            contents: submission.contents,
            label: submission.label.into(),
            client_token: submission.client_token.into(),
            token: submission.asked.token,
            caller: rows::caller_number(submission.asked.caller),
            trace_id: submission.trace_id.map(Into::into),
            accepted: now,
            lifetime_ms: millis(lifetime),
            deadline: now + lifetime,
            implied: millis(lifetime) == self.meta.implied_lifetime_ms,
            ..Record::default()
        };
        self.put_body(&mut record, &submission.body);
        self.meta.weight += record.weight();
        let slot = self.queue_up(&record, Trial::default())?;

        let ahead = line.count;
        self.append(&conversation, &mut line, slot)?;
        if matches!(submission.body, Body::Disconnect) {
            line.disconnect = Some(sequence);
            line.used = now;
            self.used.push((USED_LINE, conversation));
        }
        if ahead == 0 {
            line.boot = self.meta.boot;
            self.meta.conversations += 1;
            self.take_turn(&conversation, &mut line, now);
        }
        self.put_line(&conversation, &line);
        self.gauges.accepted.inc();
        let (next_attempt, before) = self.prospect(&conversation, &line, ahead, now)?;
        let (held, expires) = (line.hold.is_some(), record.deadline);
        let status = Status::Queued { next_attempt, ahead, before, held, in_flight: false, expires };
        let id = self.id(sequence, conversation, entry);
        Ok((State { id, accepted: now, attempts: 0, status }, record))
    }

    /// Files the record of a message that is queued from now on, and counts it.
    fn queue_up(&mut self, record: &Record, trial: Trial) -> Result<Slot, StoreFailed> {
        let at = self.file(record);
        if record.implied {
            self.meta.implied += 1;
        } else {
            self.store.put(keys::expiry(record.deadline, record.sequence), &at);
        }
        self.meta.unknown += u64::from(trial.unknown);
        self.count_queued(record.caller, 1)?;
        Ok(Slot { sequence: record.sequence, accepted: record.accepted, at, entry: record.entry, trial })
    }

    /// A second disconnect is the first one, whatever its ClientToken.
    fn disconnected_before(
        &mut self,
        sequence: u64,
        conversation: &Hash,
        line: &Line,
        entry: Hash,
        now: Timestamp,
    ) -> Result<Verdict, StoreFailed> {
        self.gauges.repeats.inc();
        let first = match self.slot(conversation, line, sequence)? {
            Some(slot) => self.queued(slot)?,
            None => None,
        };
        let state = match first {
            Some(queued) => self.queued_state(line, queued)?,
            None => State {
                id: self.id(sequence, *conversation, entry),
                accepted: now,
                attempts: 0,
                status: Status::Delivered(Receipt::default()),
            },
        };
        Ok(Verdict::Accepted { state, repeat: true })
    }

    /// A repeat puts a dead letter back, with its token. None where it is kept no longer, or elsewhere.
    fn revive(
        &mut self,
        outcome: &Outcome,
        entry: &Hash,
        submission: &Prepared,
        line: &mut Line,
        now: Timestamp,
    ) -> Result<Option<Verdict>, StoreFailed> {
        let dead = self.store.get::<Dead>(&keys::dead(outcome.sequence))?;
        let Some(mut dead) = dead.filter(|dead| dead.record.entry == *entry) else { return Ok(None) };
        if let Some(full) = self.full() {
            return Ok(Some(Verdict::Rejected(Rejection::Full(full))));
        }
        self.exhume(&dead);
        dead.record.token = submission.asked.token;
        let queued = self.bring_back(dead, line, now)?;
        let state = self.queued_state(line, queued)?;
        Ok(Some(Verdict::Accepted { state, repeat: true }))
    }

    /// Takes a dead letter from among those that are kept, with what its repeats were answered.
    pub(super) fn exhume(&mut self, dead: &Dead) {
        let Dead { record, died, .. } = dead;
        self.store.remove(keys::dead(record.sequence));
        self.store.remove(keys::prune_dead(*died, record.sequence));
        self.store.remove(keys::entry(&record.conversation, &record.entry));
        self.meta.dead = self.meta.dead.saturating_sub(1);
        self.meta.weight = self.meta.weight.saturating_sub(record.dead_weight());
    }

    /// Queues a message again that was dead: at its old place, with a fresh lifetime of the same length.
    pub(super) fn bring_back(&mut self, dead: Dead, line: &mut Line, now: Timestamp) -> Result<Queued, StoreFailed> {
        let Dead { mut record, mut trial, .. } = dead;
        record.deadline = now + Duration::from_millis(record.lifetime_ms);
        record.implied = false;
        trial.failures = Failures::default();
        let slot = self.queue_up(&record, trial)?;

        let conversation = record.conversation;
        let empty = line.count == 0;
        self.insert(&conversation, line, slot.clone())?;
        if line.head() == Some(&slot) {
            line.boot = self.meta.boot;
        }
        if record.kind == Kind::Disconnect {
            line.disconnect.get_or_insert(record.sequence);
            line.used = now;
            self.used.push((USED_LINE, conversation));
        }
        if empty {
            self.meta.conversations += 1;
            self.take_turn(&conversation, line, now);
        }
        self.put_line(&conversation, line);
        Ok(Queued { slot, record })
    }

    /// The first use of a token whose connection was seen: it takes its predecessor's place. True where it has one.
    pub(super) fn succeed(&mut self, token: &mut Token, hash: &Hash, now: Timestamp) -> Result<bool, StoreFailed> {
        let Some(old) = token.renews.take() else { return Ok(false) };
        self.store.put(keys::token(hash), token);
        self.renew(&old, hash, now)?;
        Ok(true)
    }

    /// `new` takes the place of `old` in what is queued.
    fn renew(&mut self, old: &Hash, new: &Hash, now: Timestamp) -> Result<(), StoreFailed> {
        let Some(mut row) = self.store.get::<Token>(&keys::token(old))? else { return Ok(()) };
        let Some(conversation) = row.conversation else { return Ok(()) };
        if row.renewed_by == Some(*new) {
            return Ok(());
        }
        row.renewed_by = Some(*new);
        self.store.put(keys::token(old), &row);
        let mut line = self.line(&conversation)?;
        if line.hold.as_ref().is_some_and(|hold| hold.token != *new) {
            // Only a hold for a token that now leads to the new one is lifted.
            let held = line.hold.as_ref().map(|hold| hold.token).unwrap_or_default();
            if self.newest(&held)?.0 == *new {
                self.lift_hold(&conversation, &mut line, now);
                self.put_line(&conversation, &line);
            }
        }
        Ok(())
    }

    pub(super) fn lift_hold(&mut self, conversation: &Hash, line: &mut Line, now: Timestamp) {
        if line.hold.take().is_some() {
            self.meta.held = self.meta.held.saturating_sub(1);
            self.take_turn(conversation, line, now);
        }
    }

    /// The token that a token's messages are sent with: itself, or the last that renewed it.
    pub(super) fn newest(&mut self, hash: &Hash) -> Result<(Hash, Token), StoreFailed> {
        newest_token(hash, |key| self.store.get(key))
    }

    pub(super) fn remember(
        &mut self,
        participant: Hash,
        hash: Hash,
        token: &ConnectionToken,
        now: Timestamp,
    ) -> Result<(), StoreFailed> {
        let key = keys::participant(&participant);
        let before = self.store.get::<Participant>(&key)?.map(|row| row.token).filter(|old| *old != hash);
        self.store.put(key, &Participant { token: hash, used: now });
        self.used.push((USED_PARTICIPANT, participant));
        self.used.push((USED_TOKEN, hash));
        let mut row: Token = self.store.get(&keys::token(&hash))?.unwrap_or_default();
        row.participant = Some(participant);
        row.used = now;
        row.refused = None;
        if row.conversation.is_none() {
            row.renews = before;
        }
        let Some(before) = before.filter(|_| row.conversation.is_none()) else {
            self.store.put(keys::token(&hash), &row);
            return Ok(());
        };
        let old: Token = self.store.get(&keys::token(&before))?.unwrap_or_default();
        let Some(conversation) = old.conversation else {
            // Never used: what it renewed is renewed by this one.
            row.renews = old.renews.or(Some(before));
            self.store.put(keys::token(&hash), &row);
            return Ok(());
        };
        let mut line = self.line(&conversation)?;
        if line.count > 0 {
            // There is something to send with it: that is the one case in which it is kept before its first use.
            row.conversation = Some(conversation);
            row.keyed = old.keyed;
            row.renews = None;
            row.secret = self.sealer.seal(&keys::token(&hash), token.expose());
            self.store.put(keys::token(&hash), &row);
            return self.renew(&before, &hash, now);
        }
        self.store.put(keys::token(&hash), &row);
        if line.disconnect.take().is_some() {
            // Connect has let the participant in again.
            self.store.remove(keys::line(&conversation));
        }
        Ok(())
    }

    /// Which limit refuses new messages now.
    pub(super) fn full(&self) -> Option<Full> {
        let Writer { options, meta, space, .. } = self;
        if meta.queued >= options.messages_max {
            return Some(Full::Messages { queued: meta.queued, most: options.messages_max });
        }
        // The files do not shrink with what they hold: where most of them is free, what comes next fits in.
        let mostly_free = 3 * self.live_bytes() < options.bytes_max;
        if space.bytes >= options.bytes_max && !mostly_free {
            return Some(Full::Bytes { bytes: space.bytes, most: options.bytes_max });
        }
        space
            .free
            .filter(|free| *free < options.free_disk_min)
            .map(|free| Full::Disk { free, least: options.free_disk_min })
    }

    /// About how many bytes of rows are in use.
    pub(super) fn live_bytes(&self) -> u64 {
        self.meta.weight + OUTCOME_WEIGHT * self.meta.outcomes
    }

    /// Counts a message in or out.
    pub(super) fn count_queued(&mut self, caller: u64, by: i64) -> Result<(), StoreFailed> {
        self.meta.queued = self.meta.queued.saturating_add_signed(by);
        let key = keys::caller(caller);
        let count = self.store.get::<u64>(&key)?.unwrap_or(0).saturating_add_signed(by);
        self.store.put(key, &count);
        Ok(())
    }

    /// What a refused token's row remembers.
    pub(super) fn refuse_token(&mut self, hash: &Hash, error: &ErrorRow, now: Timestamp) -> Result<(), StoreFailed> {
        if let Some(mut row) = self.store.get::<Token>(&keys::token(hash))? {
            row.refused = Some((now, error.clone()));
            self.store.put(keys::token(hash), &row);
        }
        Ok(())
    }

    /// Whether this repeat brings a dead message the renewed token that it died for want of.
    fn revives(&self, outcome: &Outcome, token: &Token, hash: &Hash) -> bool {
        let Fate::Dead { reason, token: died_with, .. } = &outcome.fate else { return false };
        let reason = rows::reason_at(*reason);
        let for_want_of_a_token = matches!(reason, Reason::TokenRefused | Reason::ChatOver);
        for_want_of_a_token && died_with != hash && self.refusal(token).is_none()
    }
}
