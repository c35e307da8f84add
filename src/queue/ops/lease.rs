//! Leasing: the messages that are due, conversation by conversation.
//!
//! Conversations that can be sent are in the order of their turns, the fresh ones (`r` rows) apart from the late ones
//! (`q` rows); `fairness` decides which kind is next. A conversation that was served and has more messages gets the last turn,
//! so a long conversation does not hold up the others. A fresh conversation that has become late is moved to the late ones
//! when its turn comes.
//!
//! A message whose lifetime will probably end before it arrives is passed over as long as another one can be sent: it uses
//! spare capacity only.
//!
//! Conversations that back off or are held have no turn: they are in the order of their times (`d` rows). The sender sets
//! (`suspects::Suspects::starts`) how many of them go before those with a turn, and how many may go at all, so that
//! conversations that keep failing never hold up the others. One page of turns is read ahead; leases are in memory only.

use std::ops::Bound;

use super::transitions::{Cause, dead_letter};
use crate::delivery::{Reason, ServiceError};
use crate::fairness::Class;
use crate::message::{ClientToken, ConnectionToken};
use crate::queue::api::{Lease, LeaseRequest, Result, Work};
use crate::queue::rows::{Conversation, Hash, Key, Kind, Schedule, Table, Token, keys};
use crate::queue::state::State;
use crate::queue::state::parts::Queued;
use crate::time::Timestamp;

/// The number of turns that are read ahead.
const PAGE: usize = 256;
/// The most bytes that one request writes for dead letters before it returns, so that the commit stays short.
const DEAD_BYTES_MAX: usize = 256 << 10;

/// One request of the sender.
struct Round {
    request: LeaseRequest,
    /// The bytes of the commit at which the round ends.
    limit: usize,
    /// The number of leases of conversations that backed off.
    backed_off: usize,
    /// The `d` rows before this one were looked at.
    after: Bound<Key>,
    /// Conversations whose message will probably not arrive within its lifetime.
    passed_over: Vec<(Hash, Schedule)>,
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

/// Takes out messages that are due, each of another conversation, in turn.
pub fn lease(state: &mut State, request: LeaseRequest, now: Timestamp) -> Result<Work> {
    if state.paused().is_some() || state.fenced {
        return Ok(Work::default());
    }
    let Some(most) = most_while_refused(state, request.most, now) else {
        return Ok(Work { next_due: state.next_try(), ..Work::default() });
    };
    // While every token is refused, conversations whose token was not tried yet go first.
    let backed_off_first = if state.all_refused().is_some() { 0 } else { request.backed_off_first };
    let mut round = Round {
        request: LeaseRequest { most, ..request },
        limit: state.store.pending_bytes() + DEAD_BYTES_MAX,
        backed_off: 0,
        after: Bound::Included(Table::Due.key()),
        passed_over: Vec::new(),
        work: Work::default(),
    };
    lease_backed_off(state, &mut round, backed_off_first, now)?;
    while round.has_room() && state.store.pending_bytes() < round.limit {
        let (fresh, late) = (has_ready(state, Class::Fresh)?, has_ready(state, Class::Late)?);
        let Some(kind) = state.turns.next(fresh, late) else { break };
        let Some((turn, conversation)) = state.ahead.of(kind).turns.pop_front() else { break };
        let schedule = Schedule::Ready(kind, turn);
        match try_lease(state, &conversation, schedule, round.limit, round.in_time(now), now)? {
            Candidate::Leased(lease) => {
                state.turns.taken();
                round.work.leases.push(*lease);
            }
            Candidate::TooLate => round.passed_over.push((conversation, schedule)),
            Candidate::None => {}
        }
    }
    lease_backed_off(state, &mut round, request.backed_off_most, now)?;
    lease_passed_over(state, &mut round, now)?;
    round.work.turns_left = has_ready(state, Class::Fresh)? || has_ready(state, Class::Late)?;
    state.wake_sender |= state.store.pending_bytes() >= round.limit;
    Ok(round.work)
}

/// The number of messages that may be leased now: all that are requested, or one each `probe_max` while every token is
/// refused. `None` if it is not time for the next try.
fn most_while_refused(state: &mut State, most: usize, now: Timestamp) -> Option<usize> {
    if state.all_refused().is_none() {
        return Some(most);
    }
    if state.next_try().is_some_and(|next| now < next) {
        return None;
    }
    state.trust.tried_at = Some(now);
    Some(most.min(1))
}

/// Leases messages of conversations whose delay is over, until the round has `most` of them.
fn lease_backed_off(state: &mut State, round: &mut Round, most: usize, now: Timestamp) -> Result<()> {
    while round.has_room() && round.backed_off < most && state.store.pending_bytes() < round.limit {
        let Some(key) = state.store.next_key(Table::Due.key(), round.after)? else { break };
        let due = keys::time_in(&key);
        let conversation = keys::conversation_in(&key);
        // A reboot may have set the clock back since the time was written: no delay is longer than its limit.
        if due > now && due.since(now) <= state.options.due_max.max(state.options.token_wait) {
            round.work.next_due = Some(due);
            break;
        }
        round.after = Bound::Excluded(key);
        let schedule = Schedule::DelayedUntil(due);
        match try_lease(state, &conversation, schedule, round.limit, round.in_time(now), now)? {
            Candidate::Leased(lease) => {
                round.backed_off += 1;
                round.work.leases.push(*lease);
            }
            Candidate::TooLate => round.passed_over.push((conversation, schedule)),
            Candidate::None => {}
        }
    }
    Ok(())
}

/// Leases messages that were passed over if there is room left. The others are looked at again in the next round.
fn lease_passed_over(state: &mut State, round: &mut Round, now: Timestamp) -> Result<()> {
    let all_met = state.store.pending_bytes() < round.limit;
    let mut left = Vec::new();
    for (conversation, schedule) in std::mem::take(&mut round.passed_over) {
        let is_delayed = matches!(schedule, Schedule::DelayedUntil(_));
        let waits = is_delayed && round.backed_off >= round.request.backed_off_most;
        if !all_met || !round.has_room() || waits {
            left.push((conversation, schedule));
        } else if let Candidate::Leased(lease) = try_lease(state, &conversation, schedule, round.limit, now, now)? {
            round.backed_off += usize::from(lease.backed_off);
            round.work.leases.push(*lease);
        }
    }
    for (conversation, schedule) in left.into_iter().rev() {
        if let Schedule::Ready(kind, turn) = schedule {
            state.ahead.push_front(kind, turn, conversation);
        }
    }
    Ok(())
}

/// Returns true if a conversation of this kind has a turn. Reads a page of them ahead.
fn has_ready(state: &mut State, kind: Class) -> Result<bool> {
    let page = state.ahead.of(kind);
    if page.turns.is_empty() {
        let prefix = Table::turns(kind).key();
        let mut after = Bound::Excluded(keys::turn(kind, page.cursor, &[u8::MAX; 16]));
        while page.turns.len() < PAGE {
            let Some(key) = state.store.next_key(prefix, after)? else { break };
            page.cursor = keys::number_in(&key);
            page.turns.push_back((page.cursor, keys::conversation_in(&key)));
            after = Bound::Excluded(key);
        }
    }
    Ok(!page.turns.is_empty())
}

/// The result of trying to lease from a conversation.
enum Candidate {
    /// Its head is leased.
    Leased(Box<Lease>),
    /// The lifetime of its head will probably end before it arrives.
    TooLate,
    /// It has nothing to send for now.
    None,
}

/// A message that can be sent.
struct LiveHead {
    queued: Queued,
    /// True if the message may have been delivered.
    doubtful: bool,
    /// The token that it is sent with, and its row.
    current: (Hash, Token),
}

/// Leases the head of a conversation, if the conversation still has this schedule, the head can be sent, and its lifetime
/// does not end before `in_time`.
fn try_lease(
    state: &mut State,
    conversation: &Hash,
    schedule: Schedule,
    limit: usize,
    in_time: Timestamp,
    now: Timestamp,
) -> Result<Candidate> {
    if state.leased.contains_key(conversation) {
        return Ok(Candidate::None);
    }
    let mut row = state.conversation(conversation, now)?;
    if row.schedule != schedule {
        // An index row without its conversation, or a turn that is over: it is removed.
        match schedule {
            Schedule::Ready(kind, turn) if row.count == 0 => state.store.remove(keys::turn(kind, turn, conversation)),
            Schedule::DelayedUntil(due) => state.store.remove(keys::due(due, conversation)),
            _ => {}
        }
        return Ok(Candidate::None);
    }
    let Some(head) = next_live_head(state, conversation, &mut row, limit, now)? else { return Ok(Candidate::None) };
    if head.queued.record.deadline <= in_time {
        return Ok(Candidate::TooLate);
    }
    let backed_off = matches!(schedule, Schedule::DelayedUntil(_));
    Ok(match take(state, head, backed_off, now)? {
        Some(lease) => Candidate::Leased(Box::new(lease)),
        None => Candidate::None,
    })
}

/// The head of a conversation if it can be sent now. Removes references to damaged records and dead-letters what has expired
/// or has waited too long for a renewed token, until the commit has `limit` bytes.
fn next_live_head(
    state: &mut State,
    conversation: &Hash,
    row: &mut Conversation,
    limit: usize,
    now: Timestamp,
) -> Result<Option<LiveHead>> {
    while state.store.pending_bytes() < limit {
        let Some(reference) = row.head().cloned() else { return Ok(None) };
        let Some(queued) = state.queued(reference.clone())? else {
            // The record is damaged and was quarantined: the conversation goes on without it.
            state.take_out(conversation, row, reference.sequence, now)?;
            state.store.remove(keys::entry(conversation, &reference.entry));
            state.meta.unknown = state.meta.unknown.saturating_sub(u64::from(reference.attempts.unknown));
            state.meta.queued = state.meta.queued.saturating_sub(1);
            if row.count == 0 {
                state.meta.conversations = state.meta.conversations.saturating_sub(1);
                state.reschedule(conversation, row, Schedule::Idle, now);
            }
            state.save_conversation(conversation, row);
            continue;
        };
        let doubtful = queued.reference.attempts.unknown || row.boot <= state.meta.unclean_boot;
        let current = state.current_token(&queued.record.token)?;
        let cause = if queued.record.deadline <= now {
            Some(Cause::expired(doubtful, queued.record.token))
        } else {
            let is_done_if_refused = state.is_done_if_refused(queued.record.kind == Kind::Disconnect);
            match check_hold(state, conversation, row, &current.0, doubtful, now) {
                Hold::None => None,
                Hold::Waits | Hold::Over(_) if is_done_if_refused => None,
                Hold::Waits => return Ok(None),
                Hold::Over(cause) => Some(cause),
            }
        };
        let before = row.schedule;
        if let Some(cause) = cause {
            dead_letter(state, queued, row, cause, now)?;
            state.save_conversation(conversation, row);
            if row.count == 0 || (row.schedule != before && row.hold.is_none()) {
                // The messages that are left have a turn of their own now.
                return Ok(None);
            }
            continue;
        }
        if let Schedule::Ready(Class::Fresh, _) = before
            && Class::of(queued.record.accepted, now, state.options.fresh) == Class::Late
        {
            state.make_ready(conversation, row, now);
            state.save_conversation(conversation, row);
            return Ok(None);
        }
        return Ok(Some(LiveHead { queued, doubtful, current }));
    }
    Ok(None)
}

/// The effect of a conversation's hold on its head.
enum Hold {
    /// None: there is no hold, or the token was renewed.
    None,
    /// The conversation waits for a renewed token. A disconnect does not.
    Waits,
    /// No renewed token came in time: the head is a dead letter.
    Over(Cause),
}

/// Checks a conversation's hold, and ends it if its token was renewed. `current` is the token that the head is sent with.
fn check_hold(
    state: &mut State,
    conversation: &Hash,
    row: &mut Conversation,
    current: &Hash,
    doubtful: bool,
    now: Timestamp,
) -> Hold {
    let Some(hold) = &row.hold else { return Hold::None };
    if hold.token != *current {
        row.hold = None;
        state.meta.held = state.meta.held.saturating_sub(1);
        state.save_conversation(conversation, row);
        return Hold::None;
    }
    if hold.until > now || state.all_refused().is_some() {
        return Hold::Waits;
    }
    let error = ServiceError::from(hold.error.clone());
    Hold::Over(Cause::new(Reason::of_denial(&error), error, doubtful, *current))
}

/// Leases a message. `None` if it cannot be sent as it was accepted: then it is a dead letter.
fn take(state: &mut State, head: LiveHead, backed_off: bool, now: Timestamp) -> Result<Option<Lease>> {
    let LiveHead { queued, doubtful, current } = head;
    let (hash, token) = credential(state, &queued, doubtful, current)?;
    let Queued { reference, record } = &queued;
    let (conversation, sequence) = (record.conversation, reference.sequence);
    let body = state.body(record)?;
    let connection_token = state.sealer.open(&keys::token(&hash), &token.secret);
    let connection_token = connection_token.and_then(|bytes| ConnectionToken::parse(&bytes).ok());
    let client_token = ClientToken::parse(&record.client_token).ok().flatten();
    let (Some(body), Some(connection_token), Some(client_token)) = (body, connection_token, client_token) else {
        // A part is damaged, or the key that sealed it is gone.
        let mut row = state.conversation(&conversation, now)?;
        let text = "it cannot be read back from the disk: damaged, or sealed by a key that is gone";
        let error = ServiceError::of_relay(500, "InternalServerException", text);
        dead_letter(state, queued, &mut row, Cause::new(Reason::Poison, error, doubtful, hash), now)?;
        state.save_conversation(&conversation, &row);
        return Ok(None);
    };
    state.leased.insert(conversation, sequence);
    Ok(Some(Lease {
        id: state.id(sequence, conversation, record.entry),
        body,
        client_token,
        connection_token,
        label: record.label.as_str().into(),
        trace_id: record.trace_id.as_deref().map(Into::into),
        accepted: record.accepted,
        attempts: reference.attempts.count,
        strikes: reference.attempts.strikes,
        counted: reference.attempts.failures.counted(),
        failed_at: reference.attempts.failures.last(),
        conversation,
        backed_off,
        token: hash,
    }))
}

/// The token to send with: the current one. If the message may have been delivered, it is the token of that attempt, unless
/// that was refused: Connect recognises a repeat by both tokens.
fn credential(state: &mut State, queued: &Queued, doubtful: bool, current: (Hash, Token)) -> Result<(Hash, Token)> {
    let first = queued.reference.attempts.sent_with.unwrap_or(queued.record.token);
    if !doubtful || first == current.0 {
        return Ok(current);
    }
    match state.store.get::<Token>(&keys::token(&first))? {
        Some(row) if state.refusal(&row).is_none() && !row.secret.bytes().is_empty() => Ok((first, row)),
        _ => Ok(current),
    }
}
