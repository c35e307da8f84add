//! The changes of operators: dead letters are queued again, as they are or changed; messages are deleted.
//!
//! | operation | queued | in flight | dead letter | delivered, or pruned |
//! | --- | --- | --- | --- | --- |
//! | redrive | refused | refused | queued again, at its old place | refused |
//! | delete | dead-lettered, with the reason `deleted` | refused | gets that reason, and is kept as long as before | unknown |
//!
//! A redriven message keeps its id, the length of its lifetime and the contents that repeats are compared with; its attempts
//! begin again. If it may have been delivered, it keeps the token that it was sent with. With other contents it is another
//! message to Connect, with a new ClientToken, but not to the bot: its entry stays that of the bot's ClientToken. With a
//! token of another conversation it gets an entry there too; repeats in the conversation that it left are answered with its
//! outcome there.

use super::browse::{DeathRow, Stored, death_of, scan, stored, view};
use super::transitions::{Cause, dead_letter, requeue, take_dead_letter};
use crate::delivery::{Reason, ServiceError};
use crate::message::{self, Body, ClientToken, ConnectionToken};
use crate::queue::api::{ActionError, BulkProgress, Cursor, MessageId, MessageView, Redrive, Result, Selection};
use crate::queue::rows::{
    Attempts, ClientTokenRow, Dead, ErrorRow, FinalState, Hash, Outcome, Record, Secret, Token, keys, reason_index,
};
use crate::queue::state::State;
use crate::queue::state::event::{Death, Event, LastAnswer, Redriven};
use crate::queue::state::parts::{Known, Queued};
use crate::time::Timestamp;

/// Redrives a dead letter.
pub fn redrive(
    state: &mut State,
    id: MessageId,
    with: Redrive,
    now: Timestamp,
) -> Result<Result<MessageView, ActionError>> {
    Ok(match stored(state, id, now)? {
        Some(Stored::Dead(dead)) => match redrive_dead(state, dead, with, now)? {
            Ok(queued) => Ok(view(state, Stored::Queued(queued), false, now)?),
            Err(unmoved) => Err(unmoved),
        },
        Some(Stored::Queued(_)) => Err(ActionError::Queued),
        None => Err(ActionError::Gone),
    })
}

/// Redrives the next dead letters of a selection, at most `most`; deleted ones only if the selection has that reason. Ends
/// when the queue is full. With `dry_run` it counts them and changes nothing.
pub fn redrive_all(
    state: &mut State,
    of: &Selection,
    page: (Cursor, usize),
    dry_run: bool,
    now: Timestamp,
) -> Result<BulkProgress> {
    let mut progress = BulkProgress::default();
    progress.next = scan(state, of, page, now, |state, message| {
        let Stored::Dead(dead) = message else { return Ok(true) };
        let death = death_of(state, &dead.record)?;
        if of.reason.is_none() && death.is_some_and(|death| death.reason == Reason::Deleted) {
            return Ok(true);
        }
        if dry_run {
            progress.done += 1;
            return Ok(true);
        }
        match redrive_dead(state, dead, Redrive::default(), now)? {
            Err(ActionError::Full(full)) => progress.full = Some(full),
            Err(_) => {}
            Ok(_) => progress.done += 1,
        }
        Ok(progress.full.is_none())
    })?;
    Ok(progress)
}

fn redrive_dead(state: &mut State, dead: Dead, with: Redrive, now: Timestamp) -> Result<Result<Queued, ActionError>> {
    if let Some(full) = state.full() {
        return Ok(Err(ActionError::Full(full)));
    }
    let death = death_of(state, &dead.record)?;
    let mut again = dead.clone();
    let record = &mut again.record;
    if with.body.is_some() {
        record.client_token = ClientToken::mint().as_str().to_owned();
    }
    let bearer = with.token.map(|bearer| (state.hasher.token(&bearer), bearer));
    let mut token = bearer.as_ref().map(|(hash, _)| state.token(hash)).transpose()?.unwrap_or_default();
    if let Some((hash, bearer)) = &bearer {
        record.token = *hash;
        record.conversation = token.conversation.unwrap_or_else(|| state.default_conversation(hash, &token));
        if record.conversation != dead.record.conversation && !move_into(state, record, &token, bearer, now)? {
            return Ok(Err(ActionError::Taken));
        }
    }
    let conversation = record.conversation;
    let moved = conversation != dead.record.conversation;

    let (attempts, reason, edited) =
        (dead.attempts.count, death.as_ref().map(|death| death.reason), with.body.is_some());
    take_dead_letter(state, &dead);
    if let Some(death) = death.as_ref().filter(|_| moved) {
        // Repeats in the conversation that it leaves are answered as before. The stream shows its next outcome alone.
        let (left, entry) = (dead.record.conversation, dead.record.entry);
        let outcome = Outcome { at: now, ..death.outcome.clone() };
        state.store.put(keys::entry(&left, &entry), &ClientTokenRow::Done(outcome));
        state.outcomes.push((left, entry));
        state.meta.outcomes += 1;
    }
    if let Some((hash, bearer)) = &bearer {
        let keyed = token.keyed;
        state.bind_token_to(&mut token, *hash, (conversation, keyed), bearer, now);
        state.apply_renewal(&mut token, hash, now)?;
    }
    let doubtful = death.map_or(dead.attempts.unknown, |death| death.maybe_delivered);
    again.attempts = if moved || edited {
        if moved && doubtful && !edited {
            state.events.push(Event::DuplicatePossible);
        }
        Attempts::default()
    } else {
        let sent_with = dead.attempts.sent_with.or(Some(dead.record.token)).filter(|_| doubtful);
        Attempts { unknown: doubtful, sent_with, ..Attempts::default() }
    };
    if let Some(body) = &with.body {
        replace_body(state, &mut again.record, body);
    }
    let token = again.record.token;
    let mut row = state.conversation(&conversation, now)?;
    let queued = requeue(state, again, &mut row, now)?;
    state.forget_refusal(&token, &conversation, now)?;
    let record = queued.record.clone();
    let id = state.id(record.sequence, record.conversation, record.entry);
    state.events.push(Event::Redriven(Box::new(Redriven { id, record, attempts, at: now, reason, edited })));
    Ok(Ok(queued))
}

fn replace_body(state: &mut State, record: &mut Record, body: &Body) {
    state.meta.weight = state.meta.weight.saturating_sub(record.weight());
    state.remove_pieces(record);
    record.change_pieces();
    record.inline = Secret::default();
    state.put_body(record, body);
    state.meta.weight += record.weight();
}

/// Gives a message its entry and its label in the conversation that it moves to. Returns false if another message has that
/// entry.
fn move_into(
    state: &mut State,
    record: &mut Record,
    token: &Token,
    bearer: &ConnectionToken,
    now: Timestamp,
) -> Result<bool> {
    let conversation: Hash = record.conversation;
    record.entry = state.hasher.entry(&conversation, &record.client_token);
    let row = state.conversation(&conversation, now)?;
    match state.known(&conversation, &row, &record.entry)? {
        None => {}
        // It was in this conversation before.
        Some(Known::Done(outcome)) if outcome.sequence == record.sequence => {
            state.store.remove(keys::entry(&conversation, &record.entry));
            state.meta.outcomes = state.meta.outcomes.saturating_sub(1);
        }
        Some(_) => return Ok(false),
    }
    // The store contains a conversation's key only in its messages' labels.
    let head = row.head().filter(|_| token.keyed);
    let neighbour = head.map(|head| state.record(head.at)).transpose()?.flatten();
    record.label = neighbour.map_or_else(|| message::label(None, bearer).into(), |neighbour| neighbour.label);
    Ok(true)
}

/// Deletes a message.
pub fn delete(state: &mut State, id: MessageId, now: Timestamp) -> Result<Result<MessageView, ActionError>> {
    let Some(message) = stored(state, id, now)? else { return Ok(Err(ActionError::Gone)) };
    if let Err(unmoved) = delete_stored(state, message, now)? {
        return Ok(Err(unmoved));
    }
    Ok(match stored(state, id, now)? {
        Some(dead) => Ok(view(state, dead, false, now)?),
        None => Err(ActionError::Gone),
    })
}

/// Deletes the next messages of a selection, at most `most`. With `dry_run` it counts them and changes nothing.
pub fn delete_all(
    state: &mut State,
    of: &Selection,
    page: (Cursor, usize),
    dry_run: bool,
    now: Timestamp,
) -> Result<BulkProgress> {
    let mut progress = BulkProgress::default();
    if of.reason == Some(Reason::Deleted) {
        return Ok(progress);
    }
    progress.next = scan(state, of, page, now, |state, message| {
        let deleted = if dry_run { may_delete(state, &message) } else { delete_stored(state, message, now)? };
        match deleted {
            Ok(()) => progress.done += 1,
            Err(_) => progress.in_flight += 1,
        }
        Ok(true)
    })?;
    Ok(progress)
}

fn may_delete(state: &State, message: &Stored) -> Result<(), ActionError> {
    match message {
        Stored::Queued(queued) if state.is_in_flight(&queued.record) => Err(ActionError::InFlight),
        _ => Ok(()),
    }
}

fn delete_stored(state: &mut State, message: Stored, now: Timestamp) -> Result<Result<(), ActionError>> {
    if let Err(refused) = may_delete(state, &message) {
        return Ok(Err(refused));
    }
    let error = ServiceError::of_relay(410, "GoneException", "the message was deleted by an operator");
    match message {
        Stored::Queued(queued) => {
            let (conversation, token) = (queued.record.conversation, queued.record.token);
            let mut row = state.conversation(&conversation, now)?;
            let maybe_delivered = state.is_doubtful(&row, &queued.reference);
            let cause = Cause::new(Reason::Deleted, error, maybe_delivered, token);
            dead_letter(state, queued, &mut row, cause, now)?;
            state.save_conversation(&conversation, &row);
            state.wake_sender = true;
        }
        Stored::Dead(dead) => {
            let (record, died) = (dead.record, dead.died);
            let Some(DeathRow { reason, maybe_delivered, outcome, .. }) = death_of(state, &record)? else {
                return Ok(Ok(()));
            };
            if reason == Reason::Deleted {
                return Ok(Ok(()));
            }
            let (index, token) = (reason_index(Reason::Deleted), record.token);
            let fate = FinalState::Dead { reason: index, maybe_delivered, token, error: ErrorRow::from(&error) };
            let key = keys::entry(&record.conversation, &record.entry);
            let outcome = Outcome { fate, ..outcome };
            let row = match state.store.get(&key)? {
                Some(ClientTokenRow::Settled(_, origin)) => ClientTokenRow::Settled(outcome, origin),
                _ => ClientTokenRow::Done(outcome),
            };
            state.store.put(key, &row);
            let (reason, answer) = (Reason::Deleted, LastAnswer { maybe_delivered, ..LastAnswer::default() });
            let (id, attempts) = (state.id(record.sequence, record.conversation, record.entry), dead.attempts.count);
            let death = Death { id, record, attempts, died, reason, error, maybe_delivered, answer };
            state.events.push(Event::Deleted(Box::new(death)));
        }
    }
    Ok(Ok(()))
}
