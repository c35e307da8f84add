//! ConnectionTokens and their renewals.
//!
//! A token is bound to the conversation of its first use. A renewal links the old token's row to the new token
//! (`renewed_by`), so the rows of a participant's tokens are a chain: a queued message is sent with the last token of the
//! chain that begins with its own. There are three sources of a renewal: the bot declares it with a submission
//! (`Relay-Replaces-Token`), the relay sees that one participant gets another token ([`State::remember`]), or the
//! first use of a token that was seen that way ([`State::apply_renewal`]).

use super::State;
use crate::delivery::Reason;
use crate::message::ConnectionToken;
use crate::queue::api::{Rejection, Result};
use crate::queue::hashed::{CallerKeys, HashedSubmission};
use crate::queue::rows::{
    self, ErrorRow, FinalState, Hash, OtherConversation, Outcome, Participant, Token, USED_PARTICIPANT, USED_TOKEN,
    keys,
};
use crate::storage::Key;
use crate::time::Timestamp;

/// The age at which the time of a token's last use is written again.
const USED_STEP_MS: u64 = 3_600_000;
/// The most renewals that are followed: a guard against a cycle in damaged rows.
const RENEWALS_MAX: usize = 1000;

/// Returns the token that the messages of a token are sent with, and its row, which is empty if there is none. It is the
/// token itself or the last one that renewed it.
pub fn current_token<E>(
    hash: &Hash,
    mut read: impl FnMut(&Key) -> Result<Option<Token>, E>,
) -> Result<(Hash, Token), E> {
    let mut current = (*hash, read(&keys::token(hash))?.unwrap_or_default());
    for _ in 0..RENEWALS_MAX {
        let Some(next) = current.1.renewed_by else { break };
        let Some(row) = read(&keys::token(&next))? else { break };
        current = (next, row);
    }
    Ok(current)
}

impl State {
    /// The row of a token; an empty one if it has none.
    pub fn token(&mut self, hash: &Hash) -> Result<Token> {
        Ok(self.store.get(&keys::token(hash))?.unwrap_or_default())
    }

    /// The token that the messages of a token are sent with: itself, or the last one that renewed it.
    pub fn current_token(&mut self, hash: &Hash) -> Result<(Hash, Token)> {
        current_token(hash, |key| self.store.get(key))
    }

    /// The conversation of a submission. `old` is the row of the token that the submission replaces.
    pub fn conversation_of(&self, asked: CallerKeys, token: &Token, old: Option<&Token>) -> Result<Hash, Rejection> {
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

    /// The conversation of a token without a key: its participant's, or its own if its connection was not seen.
    pub fn default_conversation(&self, hash: &Hash, token: &Token) -> Hash {
        match &token.participant {
            Some(participant) => self.hasher.conversation_of_participant(participant),
            None => self.hasher.conversation_of_token(hash),
        }
    }

    /// Binds the token of a submission to a conversation.
    pub fn bind_token(&mut self, token: &mut Token, conversation: Hash, submission: &HashedSubmission, now: Timestamp) {
        let CallerKeys { token: hash, keyed, .. } = submission.asked;
        self.bind_token_to(token, hash, (conversation, keyed.is_some()), &submission.bearer, now);
    }

    /// Binds a token to a conversation, which has a key or not. Writes the row only if that changes something, or if the
    /// time of the last use is old.
    pub fn bind_token_to(
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

    /// Links a token to the participant's token before it, at its first use. Returns true if there was one.
    pub fn apply_renewal(&mut self, token: &mut Token, hash: &Hash, now: Timestamp) -> Result<bool> {
        let Some(old) = token.renews.take() else { return Ok(false) };
        self.store.put(keys::token(hash), token);
        self.link_renewal(&old, hash, now)?;
        Ok(true)
    }

    /// Makes `new` the token that the queued messages of `old` are sent with, and ends the hold that waited for it.
    pub fn link_renewal(&mut self, old: &Hash, new: &Hash, now: Timestamp) -> Result<()> {
        let Some(mut token) = self.store.get::<Token>(&keys::token(old))? else { return Ok(()) };
        let Some(conversation) = token.conversation else { return Ok(()) };
        if token.renewed_by == Some(*new) {
            return Ok(());
        }
        token.renewed_by = Some(*new);
        self.store.put(keys::token(old), &token);
        let mut row = self.conversation(&conversation, now)?;
        // A hold for another token, which does not lead to the new one, stays.
        if let Some(held) = row.hold.as_ref().map(|hold| hold.token).filter(|held| held != new)
            && self.current_token(&held)?.0 == *new
        {
            self.lift_hold(&conversation, &mut row, now);
            self.save_conversation(&conversation, &row);
        }
        Ok(())
    }

    /// Records that a participant got a token. The queued messages of the participant's token before it are sent with this
    /// one.
    pub fn remember(&mut self, participant: Hash, hash: Hash, bearer: &ConnectionToken, now: Timestamp) -> Result<()> {
        let key = keys::participant(&participant);
        let before = self.store.get::<Participant>(&key)?.map(|row| row.token).filter(|old| *old != hash);
        self.store.put(key, &Participant { token: hash, used: now });
        self.used.push((USED_PARTICIPANT, participant));
        self.used.push((USED_TOKEN, hash));
        let mut token = self.token(&hash)?;
        token.participant = Some(participant);
        token.used = now;
        token.refused = None;
        if token.conversation.is_none() {
            token.renews = before;
        }
        let Some(before) = before.filter(|_| token.conversation.is_none()) else {
            self.store.put(keys::token(&hash), &token);
            return Ok(());
        };
        let old = self.token(&before)?;
        let Some(conversation) = old.conversation else {
            // The token before was never used: this one renews the token that it renewed.
            token.renews = old.renews.or(Some(before));
            self.store.put(keys::token(&hash), &token);
            return Ok(());
        };
        let mut row = self.conversation(&conversation, now)?;
        if row.count > 0 {
            // Messages are queued that will be sent with it. Only then is a token stored before its first use.
            token.conversation = Some(conversation);
            token.keyed = old.keyed;
            token.renews = None;
            token.secret = self.sealer.seal(&keys::token(&hash), bearer.expose());
            self.store.put(keys::token(&hash), &token);
            return self.link_renewal(&before, &hash, now);
        }
        self.store.put(keys::token(&hash), &token);
        if row.disconnect.take().is_some() {
            // Connect has let the participant in again.
            self.store.remove(keys::conversation(&conversation));
        }
        Ok(())
    }

    /// Records that the destination refused a token.
    pub fn refuse_token(&mut self, hash: &Hash, error: &ErrorRow, now: Timestamp) -> Result<()> {
        if let Some(mut token) = self.store.get::<Token>(&keys::token(hash))? {
            token.refused = Some((now, error.clone()));
            self.store.put(keys::token(hash), &token);
        }
        Ok(())
    }

    /// Removes the refusal of the token that a message is sent with, and ends the hold that waits for its renewal.
    pub fn forget_refusal(&mut self, token: &Hash, conversation: &Hash, now: Timestamp) -> Result<()> {
        let (current, mut token) = self.current_token(token)?;
        if token.refused.take().is_some() {
            self.store.put(keys::token(&current), &token);
        }
        let mut row = self.conversation(conversation, now)?;
        if row.hold.as_ref().is_some_and(|hold| hold.token == current) {
            self.lift_hold(conversation, &mut row, now);
            self.save_conversation(conversation, &row);
        }
        Ok(())
    }

    /// Returns the reason of a dead letter that a repeat with this token requeues: the message was dead-lettered because its
    /// token was refused, and this is another token.
    pub fn reason_of_requeued(&self, outcome: &Outcome, token: &Token, hash: &Hash) -> Option<Reason> {
        let FinalState::Dead { reason, token: refused, .. } = &outcome.fate else { return None };
        let reason = rows::reason_at(*reason);
        let token_was_refused = matches!(reason, Reason::TokenRefused | Reason::ChatOver);
        (token_was_refused && refused != hash && self.refusal(token).is_none()).then_some(reason)
    }

    /// True if a refusal of its token leaves such a message nothing to wait for: the participant of a disconnect is gone
    /// already, and Connect's 403 counts as done. While every token is refused, a refusal proves nothing.
    pub fn is_done_if_refused(&self, is_disconnect: bool) -> bool {
        is_disconnect && self.all_refused().is_none()
    }

    /// The time and the error of the refusal of a token; `None` if it was not refused, or refusals were reset since.
    pub fn refusal<'a>(&self, token: &'a Token) -> Option<&'a (Timestamp, ErrorRow)> {
        token.refused.as_ref().filter(|(at, _)| *at > self.sending.refusals_reset_at)
    }
}
