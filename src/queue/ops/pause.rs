//! Pauses of sending, and a destination that refuses every token.
//!
//! | state | begins | sending | ends |
//! | --- | --- | --- | --- |
//! | paused | an operator pauses sending | stops; attempts in flight are settled | an operator resumes; a restart does not end it |
//! | `all_refused` | three tokens were refused, and this destination has never delivered a message | one message each `probe_max`, with a token that was not refused yet | the first delivery; an operator resumes; a restart |
//!
//! In neither state does a held message become a dead letter because its token was refused; lifetimes go on. Each end but
//! the first delivery resets all refusals: held conversations get turns, and the ingress accepts those tokens again. The
//! first delivery shows that the destination is the right one, so the tokens that it refused stay refused.
//!
//! Both states are one row (`h`), written only when it changes: a pause row without an operator is `all_refused`.

use std::ops::Bound;

use super::COMMIT_BYTES;
use crate::queue::api::Result;
use crate::queue::rows::{Hash, Key, PauseRow, Table, keys};
use crate::queue::state::State;
use crate::queue::state::event::Event;
use crate::queue::state::parts::Trust;
use crate::time::Timestamp;

/// So many different tokens, all refused, are no coincidence.
const REFUSED_MAX: usize = 3;

/// Reads the pause of the last run.
pub fn begin(state: &mut State) -> Result<()> {
    state.sending = state.store.get(&Table::PauseState.key())?.unwrap_or_default();
    let destination = state.hasher.destination(&state.options.destination);
    let proven = state.sending.delivered_to == Some(destination);
    state.trust = Trust { destination, proven, ..Trust::default() };
    Ok(())
}

/// Pauses sending for an operator. A second pause changes the reason, if it gives one, and not the time.
pub fn pause(state: &mut State, why: String, now: Timestamp) {
    let before = state.sending.paused.as_ref().and_then(|row| row.operator.clone()).filter(|_| why.is_empty());
    set_pause(state, Some(before.unwrap_or(why)), now);
}

fn set_pause(state: &mut State, operator: Option<String>, now: Timestamp) {
    let before = state.sending.paused.as_ref().filter(|row| row.operator.is_some() == operator.is_some());
    let since = before.map_or(now, |row| row.since);
    state.sending.paused = Some(PauseRow { since, operator });
    state.store.put(Table::PauseState.key(), &state.sending);
    // A caller that waits for the queue to empty has to know that it will not.
    state.messages_left = true;
}

/// A part of a resumption that is done: the conversations up to this key were looked at.
#[derive(Clone, Copy)]
pub struct Resumed(Key);

/// Resumes sending, and resets all refusals. Returns its progress if the commit is long: then it is called again with it.
pub fn resume(state: &mut State, done: Option<Resumed>, now: Timestamp) -> Result<Option<Resumed>> {
    let mut from = done.map_or(Bound::Included(Table::Due.key()), |Resumed(key)| Bound::Excluded(key));
    while let Some(key) = state.store.next_key(Table::Due.key(), from)? {
        let conversation = keys::conversation_in(&key);
        from = Bound::Excluded(key);
        let mut row = state.conversation(&conversation, now)?;
        if row.hold.is_some() {
            state.lift_hold(&conversation, &mut row, now);
            state.save_conversation(&conversation, &row);
            if state.store.pending_bytes() >= COMMIT_BYTES {
                return Ok(Some(Resumed(key)));
            }
        }
    }
    // Last: a crash before this leaves it paused, and no reply said otherwise.
    (state.trust.refused, state.trust.tried_at) = (Vec::new(), None);
    state.sending.refusals_reset_at = now;
    state.sending.paused = None;
    state.store.put(Table::PauseState.key(), &state.sending);
    state.wake_sender = true;
    Ok(None)
}

/// Records that the destination delivered a message: tokens that it refuses from now on are at fault themselves.
pub fn destination_delivers(state: &mut State, now: Timestamp) {
    if state.trust.proven {
        return;
    }
    state.trust.proven = true;
    state.sending.delivered_to = Some(state.trust.destination);
    if let Some(since) = state.all_refused() {
        state.sending.paused = None;
        state.wake_sender = true;
        state.events.push(Event::DestinationDelivers { after_s: now.since(since).as_secs() });
    }
    state.store.put(Table::PauseState.key(), &state.sending);
}

/// Records that the destination refused a token. The third one before any delivery begins `all_refused`.
pub fn destination_refuses(state: &mut State, token: &Hash, now: Timestamp) {
    let State { trust, .. } = state;
    if trust.proven || trust.refused.contains(token) || trust.refused.len() >= REFUSED_MAX {
        return;
    }
    trust.refused.push(*token);
    if trust.refused.len() == REFUSED_MAX && state.sending.paused.is_none() {
        state.trust.tried_at = Some(now);
        set_pause(state, None, now);
        let every_s = state.options.probe_max.as_secs_f64();
        state.events.push(Event::AllRefused { tokens: REFUSED_MAX, every_s });
    }
}
