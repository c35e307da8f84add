//! Reads for bots and operators: the state of a submission, the backlog, the overview.

use crate::fairness::Class;
use crate::message::{Caller, ClientToken};
use crate::queue::api::{Backlog, Found, MessageId, MessageState, Overview, Result};
use crate::queue::hashed::CallerKeys;
use crate::queue::rows::{self, Hash, OtherConversation, Table, Token, keys};
use crate::queue::state::State;
use crate::queue::state::event::Event;
use crate::time::Timestamp;

/// The most packs that are searched for the oldest message of one caller.
const PACKS_MAX: usize = 256;

/// Finds a submission by its ClientToken.
pub fn find(state: &mut State, asked: CallerKeys, client_token: &ClientToken, now: Timestamp) -> Result<Found> {
    let Some(token) = state.store.get::<Token>(&keys::token(&asked.token))? else { return Ok(Found::Unknown) };
    let conversation = match (token.belongs_to(asked.keyed), asked.keyed) {
        (Err(OtherConversation), _) => return Ok(Found::OtherConversation),
        (Ok(Some(own)), _) => own,
        (Ok(None), Some(_)) => return Ok(Found::Unknown),
        (Ok(None), None) => state.default_conversation(&asked.token, &token),
    };
    let entry = state.hasher.entry(&conversation, client_token.as_str());
    Ok(state_of(state, &conversation, &entry, now)?.map_or(Found::Unknown, Found::State))
}

/// The state of a submission by its id; `None` if nothing is known of it any more.
pub fn look(state: &mut State, id: MessageId, now: Timestamp) -> Result<Option<MessageState>> {
    state_of(state, &id.conversation, &id.entry, now)
}

fn state_of(state: &mut State, conversation: &Hash, entry: &Hash, now: Timestamp) -> Result<Option<MessageState>> {
    let row = state.conversation(conversation, now)?;
    let known = state.known(conversation, &row, entry)?;
    known.map(|known| state.state_of(conversation, &row, entry, known, now)).transpose()
}

/// Returns true if the caller's conversation has no queued message, and sending is not paused.
pub fn is_idle(state: &mut State, asked: CallerKeys, now: Timestamp) -> Result<bool> {
    let token = state.token(&asked.token)?;
    let conversation =
        token.conversation.or(asked.keyed).unwrap_or_else(|| state.default_conversation(&asked.token, &token));
    Ok(state.conversation(&conversation, now)?.count == 0 && state.sending.paused.is_none())
}

/// The queued messages of one caller, or of all.
pub fn backlog(state: &mut State, of: Option<Caller>) -> Result<Backlog> {
    let Some(caller) = of.map(rows::caller_number) else {
        return Ok(Backlog { queued: state.meta.queued, oldest: oldest(state, None)? });
    };
    let queued = state.store.get::<u64>(&keys::caller(caller))?.unwrap_or(0);
    let oldest = if queued > 0 { oldest(state, Some(caller))? } else { None };
    Ok(Backlog { queued, oldest })
}

/// The acceptance of the oldest message of a caller, or of all. The search ends after some packs of other callers' messages,
/// and returns the last of those: no message of the caller is older.
fn oldest(state: &mut State, caller: Option<u64>) -> Result<Option<Timestamp>> {
    let (mut after, mut seen) = (0, None);
    for _ in 0..PACKS_MAX {
        let Some(live) = state.next_pack(after)? else { break };
        let own = live.records.iter().find(|(_, record)| caller.is_none_or(|caller| record.caller == caller));
        if let Some((_, record)) = own {
            return Ok(Some(record.accepted));
        }
        seen = live.records.last().map(|(_, record)| record.accepted).or(seen);
        after = live.pack;
    }
    Ok(seen)
}

/// The queue's state for operators. The gauges show it after the commit.
pub fn overview(state: &mut State, now: Timestamp) -> Result<Overview> {
    let overview = Overview {
        queued: state.meta.queued,
        oldest: oldest(state, None)?,
        oldest_due: oldest_due(state, now)?,
        conversations: state.meta.conversations,
        held: state.meta.held,
        answer_lost: state.meta.unknown,
        dead: state.meta.dead,
        bytes: state.space.bytes,
        disk_free: state.space.free.unwrap_or(u64::MAX),
        full: state.full(),
        set_aside: state.space.set_aside,
        corrupt: state.store.corrupt(),
        paused: state.paused(),
        all_refused: state.all_refused(),
        expiring: state.expiring.of_at_most(state.meta.queued),
        behind: state.behind,
    };
    state.events.push(Event::Measured { overview: overview.clone(), at: now });
    Ok(overview)
}

/// The time since which the longest waiting conversation could have been sent.
fn oldest_due(state: &mut State, now: Timestamp) -> Result<Option<Timestamp>> {
    let mut oldest = Vec::new();
    for kind in [Class::Fresh, Class::Late] {
        if let Some(key) = state.store.first_key(Table::turns(kind).key())? {
            oldest.push(state.store.get::<Timestamp>(&key)?.unwrap_or(now));
        }
    }
    let due = state.store.first_key(Table::Due.key())?;
    let due = due.map(|key| keys::time_in(&key)).filter(|due| *due <= now);
    let throttled = state.throttled.values().min().copied();
    Ok(oldest.into_iter().chain(due).chain(throttled).min())
}
