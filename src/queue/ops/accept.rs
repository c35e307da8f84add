//! Accepting a submission: find its conversation, answer a repeat, check the limits, store the message.

use super::transitions::{add_to_queue, requeue, take_dead_letter};
use crate::delivery::Receipt;
use crate::message::{Body, ClientToken};
use crate::queue::api::{MessageState, Rejection, Result, Status, Verdict};
use crate::queue::hashed::HashedSubmission;
use crate::queue::rows::{self, Attempts, Conversation, Dead, Hash, Record, Token, USED_CONVERSATION, keys};
use crate::queue::state::State;
use crate::queue::state::event::{Event, Redriven};
use crate::queue::state::parts::Known;
use crate::time::{Timestamp, millis};

/// A submission on its way through the checks, with the rows that they read.
struct Admission<'a> {
    submission: &'a mut HashedSubmission,
    conversation: Hash,
    entry: Hash,
    token: Token,
    row: Conversation,
}

/// Accepts a submission, or rejects it. `rate` is the learned rate of delivery: a lifetime that cannot be met at this rate
/// is rejected. Moves the label, the ClientToken and the trace id of a stored submission into its record.
pub fn accept(state: &mut State, submission: &mut HashedSubmission, rate: f64, now: Timestamp) -> Result<Verdict> {
    let mut token = state.token(&submission.asked.token)?;
    let old = submission.replaces.filter(|old| *old != submission.asked.token);
    let old = old.map(|hash| state.token(&hash).map(|row| (hash, row))).transpose()?;
    let conversation = match state.conversation_of(submission.asked, &token, old.as_ref().map(|(_, old)| old)) {
        Ok(conversation) => conversation,
        Err(rejection) => return Ok(Verdict::Rejected(rejection)),
    };
    let entry = state.hasher.entry(&conversation, &submission.client_token);
    let mut row = state.conversation(&conversation, now)?;
    let known = state.known(&conversation, &row, &entry)?;
    if let Some(known) = &known
        && *known.contents() != submission.contents
    {
        return Ok(Verdict::Rejected(Rejection::OtherContents(known.accepted())));
    }
    // A renewal counts even if the submission that declares it is a repeat.
    if let Some((old, _)) = old {
        state.bind_token(&mut token, conversation, submission, now);
        state.link_renewal(&old, &submission.asked.token, now)?;
        token = state.store.get(&keys::token(&submission.asked.token))?.unwrap_or(token);
        row = state.conversation(&conversation, now)?;
    }
    let mut admission = Admission { submission, conversation, entry, token, row };
    if let Some(known) = known {
        return answer_repeat(state, admission, known, now);
    }
    if let Some(verdict) = admit(state, &admission, rate, now)? {
        return Ok(verdict);
    }
    let Admission { submission, token, .. } = &mut admission;
    state.bind_token(token, conversation, submission, now);
    if state.apply_renewal(token, &submission.asked.token, now)? {
        admission.row = state.conversation(&conversation, now)?;
    }
    let state = enqueue(state, admission, now)?;
    Ok(Verdict::Accepted { state, repeat: false, stored_token: None })
}

/// Answers a submission whose ClientToken is known with the first one's state. Requeues it if it is a dead letter that
/// waits for this token.
fn answer_repeat(state: &mut State, admission: Admission<'_>, known: Known, now: Timestamp) -> Result<Verdict> {
    let Admission { submission, conversation, entry, mut token, mut row } = admission;
    state.events.push(Event::Repeated);
    if token.conversation.is_none() {
        // A repeat binds a renewed token to its conversation as a new message does.
        state.bind_token(&mut token, conversation, submission, now);
    }
    if let Known::Done(outcome) = &known
        && let Some(reason) = state.reason_of_requeued(outcome, &token, &submission.asked.token)
    {
        state.bind_token(&mut token, conversation, submission, now);
        let dead = state.store.get::<Dead>(&keys::dead(outcome.sequence))?;
        // A dead letter that was pruned, or redriven into another conversation, stays as it is.
        if let Some(mut dead) = dead.filter(|dead| dead.record.entry == entry) {
            if let Some(full) = state.full() {
                return Ok(Verdict::Rejected(Rejection::Full(full, state.stopped())));
            }
            let attempts = dead.attempts.count;
            take_dead_letter(state, &dead);
            dead.record.token = submission.asked.token;
            let queued = requeue(state, dead, &mut row, now)?;
            let record = queued.record.clone();
            let id = state.id(record.sequence, conversation, entry);
            let redriven = Redriven { id, record, attempts, at: now, reason: Some(reason), edited: false };
            state.events.push(Event::Redriven(Box::new(redriven)));
            let state = state.state_of_queued(&row, queued, now)?;
            return Ok(Verdict::Accepted { state, repeat: true, stored_token: None });
        }
    }
    let state = state.state_of(&conversation, &row, &entry, known, now)?;
    Ok(Verdict::Accepted { state, repeat: true, stored_token: None })
}

/// Checks a new submission: its token, the conversation's disconnect, its lifetime, the queue's limits. `None` if it can be
/// stored.
fn admit(state: &mut State, admission: &Admission<'_>, rate: f64, now: Timestamp) -> Result<Option<Verdict>> {
    let Admission { submission, token, row, .. } = admission;
    let rejected = |rejection| Ok(Some(Verdict::Rejected(rejection)));
    if !state.is_done_if_refused(matches!(submission.body, Body::Disconnect))
        && let Some((at, error)) = state.refusal(token)
        && now.since(*at) < state.options.refused_for
    {
        return rejected(Rejection::TokenRefused(error.clone().into()));
    }
    match (row.disconnect, &submission.body) {
        (Some(sequence), Body::Disconnect) => return answer_disconnected(state, admission, sequence, now).map(Some),
        (Some(_), _) => return rejected(Rejection::Disconnected),
        (None, _) => {}
    }
    if let Some(lifetime) = submission.lifetime
        && let Some(before) = state.before(row, row.count, now)
        && rate > 0.0
    {
        #[expect(clippy::cast_precision_loss, reason = "a count of messages")]
        let needed = before as f64 / rate;
        if needed > lifetime.as_secs_f64() {
            return rejected(Rejection::TooLate { before });
        }
    }
    Ok(state.full().map(|full| Verdict::Rejected(Rejection::Full(full, state.stopped()))))
}

/// Answers a second disconnect with the state of the first, whatever its ClientToken. While the first is queued, the answer
/// has its ClientToken too: only that one finds it later.
fn answer_disconnected(state: &mut State, admission: &Admission<'_>, sequence: u64, now: Timestamp) -> Result<Verdict> {
    let Admission { conversation, entry, row, .. } = admission;
    state.events.push(Event::Repeated);
    let reference = state.reference(conversation, row, sequence)?;
    let first = reference.map(|reference| state.queued(reference)).transpose()?.flatten();
    let (state, stored_token) = match first {
        Some(queued) => {
            let token = ClientToken::parse(&queued.record.client_token).ok().flatten();
            (state.state_of_queued(row, queued, now)?, token)
        }
        None => {
            let id = state.id(sequence, *conversation, *entry);
            (MessageState { id, accepted: now, attempts: 0, status: Status::Delivered(Receipt::default()) }, None)
        }
    };
    Ok(Verdict::Accepted { state, repeat: true, stored_token })
}

/// Stores a new message at the end of its conversation.
fn enqueue(state: &mut State, admission: Admission<'_>, now: Timestamp) -> Result<MessageState> {
    let Admission { submission, conversation, entry, mut row, .. } = admission;
    let sequence = state.meta.next_sequence;
    state.meta.next_sequence += 1;
    let lifetime = submission.lifetime.unwrap_or(state.options.lifetime);
    if state.meta.default_lifetimes == 0 {
        state.meta.default_lifetime_ms = millis(state.options.lifetime);
    }
    let mut record = Record {
        sequence,
        conversation,
        entry,
        contents: submission.contents,
        label: std::mem::take(&mut submission.label),
        client_token: std::mem::take(&mut submission.client_token),
        token: submission.asked.token,
        caller: rows::caller_number(submission.asked.caller),
        trace_id: submission.trace_id.take(),
        accepted: now,
        lifetime_ms: millis(lifetime),
        deadline: now + lifetime,
        default_lifetime: millis(lifetime) == state.meta.default_lifetime_ms,
        ..Record::default()
    };
    state.put_body(&mut record, &submission.body);
    state.meta.weight += record.weight();
    let reference = add_to_queue(state, &record, Attempts::default())?;

    let ahead = row.count;
    state.append(&conversation, &mut row, reference)?;
    if matches!(submission.body, Body::Disconnect) {
        row.disconnect = Some(sequence);
        row.used = now;
        state.used.push((USED_CONVERSATION, conversation));
    }
    if ahead == 0 {
        row.boot = state.meta.boot;
        state.meta.conversations += 1;
        state.make_ready(&conversation, &mut row, now);
    }
    state.save_conversation(&conversation, &row);
    let (next_attempt, before) = state.prospect(&conversation, &row, ahead, now)?;
    let (held, expires) = (row.hold.is_some(), record.deadline);
    let status = Status::Queued { next_attempt, ahead, before, held, in_flight: false, expires };
    let id = state.id(sequence, conversation, entry);
    let Record { label, client_token, trace_id, .. } = record;
    state.events.push(Event::Accepted { id, label, client_token, trace_id });
    Ok(MessageState { id, accepted: now, attempts: 0, status })
}
