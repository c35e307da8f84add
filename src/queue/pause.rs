//! Pauses of sending, and a destination that refuses every token.
//!
//! | state | begins | sending | ends |
//! | --- | --- | --- | --- |
//! | paused | an operator says so | stops; what is in flight is settled | an operator resumes; a restart does not end it |
//! | `all_refused` | three tokens were refused, and this destination has never delivered anything | one message each `probe_max`, with a token that was not refused yet | the first delivery; an operator resumes; a restart |
//!
//! In neither state does a held message become a dead letter because its token was refused; lifetimes go on. Each end but
//! the first delivery forgets every refused token: what is held gets its turns, and the ingress accepts those tokens again.
//! The first delivery shows that the destination is the right one, so what it refused stays refused.
//!
//! Both states are one row (`h`), written only when it changes: a pause row without an operator is `all_refused`.

use std::ops::Bound;

use tracing::{error, info};

use super::rows::{ErrorRow, Hash, PauseRow, Table, Token, keys};
use super::{Pause, StoreFailed, Writer};
use crate::time::Timestamp;

/// So many different tokens, all refused, are no coincidence.
const REFUSED_MAX: usize = 3;

/// What the destination has shown of itself.
#[derive(Debug, Default)]
pub struct Trust {
    /// The destination, by its name.
    destination: Hash,
    /// It has delivered before.
    proven: bool,
    /// Tokens that it refused, while it has not.
    refused: Vec<Hash>,
    /// The last time that a message was looked for while every token was refused.
    tried_at: Option<Timestamp>,
}

impl Writer {
    /// Takes up what was written down.
    pub(super) fn begin_sending(&mut self, now: Timestamp) -> Result<(), StoreFailed> {
        self.sending = self.store.get(&Table::Sending.key())?.unwrap_or_default();
        let destination = self.hasher.destination(&self.options.destination);
        let proven = self.sending.delivered_to == Some(destination);
        self.trust = Trust { destination, proven, ..Trust::default() };
        if self.all_refused().is_some() {
            self.resume(now)?;
        }
        Ok(())
    }

    /// The operator's pause.
    pub(super) fn paused(&self) -> Option<Pause> {
        let row = self.sending.paused.as_ref()?;
        row.operator.clone().map(|why| Pause { since: row.since, why })
    }

    /// The time since which the destination, which has never delivered anything, refuses every token.
    pub(super) fn all_refused(&self) -> Option<Timestamp> {
        self.sending.paused.as_ref().filter(|row| row.operator.is_none()).map(|row| row.since)
    }

    /// The number of messages that may be leased now: all that are asked for, or one each `probe_max` while every token is
    /// refused. `None` before the next one.
    pub(super) fn most_while_refused(&mut self, most: usize, now: Timestamp) -> Option<usize> {
        if self.all_refused().is_none() {
            return Some(most);
        }
        if self.next_try().is_some_and(|next| now < next) {
            return None;
        }
        self.trust.tried_at = Some(now);
        Some(most.min(1))
    }

    /// The time of the next attempt while every token is refused.
    pub(super) fn next_try(&self) -> Option<Timestamp> {
        self.all_refused()?;
        self.trust.tried_at.map(|tried| tried + self.options.probe_max)
    }

    /// An operator pauses sending. A second word changes the reason, not the time.
    pub(super) fn pause(&mut self, why: String, now: Timestamp) {
        self.set_pause(Some(why), now);
    }

    fn set_pause(&mut self, operator: Option<String>, now: Timestamp) {
        let before = self.sending.paused.as_ref().filter(|row| row.operator.is_some() == operator.is_some());
        let since = before.map_or(now, |row| row.since);
        self.sending.paused = Some(PauseRow { since, operator });
        self.store.put(Table::Sending.key(), &self.sending);
        // Who waits for the queue to empty has to know that it will not.
        self.left = true;
    }

    /// Sending goes on, and refused tokens are forgotten.
    pub(super) fn resume(&mut self, now: Timestamp) -> Result<(), StoreFailed> {
        let mut from = Bound::Included(Table::Due.key());
        while let Some(key) = self.store.next_key(Table::Due.key(), from)? {
            let conversation = keys::conversation_in(&key);
            from = Bound::Excluded(key);
            let mut line = self.line(&conversation)?;
            if line.hold.is_some() {
                self.lift_hold(&conversation, &mut line, now);
                self.put_line(&conversation, &line);
                self.commit_if_long()?;
            }
        }
        // Last: a crash before this leaves it paused, and no reply said otherwise.
        (self.trust.refused, self.trust.tried_at) = (Vec::new(), None);
        self.sending.forgiven = now;
        self.sending.paused = None;
        self.store.put(Table::Sending.key(), &self.sending);
        self.poke = true;
        Ok(())
    }

    /// When and how upstream refused a token, unless that was forgotten.
    pub(super) fn refusal<'a>(&self, token: &'a Token) -> Option<&'a (Timestamp, ErrorRow)> {
        token.refused.as_ref().filter(|(at, _)| *at > self.sending.forgiven)
    }

    /// Notes that the destination delivered a message: tokens that it refuses from now on are at fault themselves.
    pub(super) fn destination_delivers(&mut self, now: Timestamp) {
        if self.trust.proven {
            return;
        }
        self.trust.proven = true;
        self.sending.delivered_to = Some(self.trust.destination);
        if let Some(since) = self.all_refused() {
            self.sending.paused = None;
            self.poke = true;
            let after_s = now.since(since).as_secs();
            self.afterwards(move || info!(after_s, "Amazon Connect took a message: sending goes on"));
        }
        self.store.put(Table::Sending.key(), &self.sending);
    }

    /// Notes that the destination refused a token. The third one before any delivery begins `all_refused`.
    pub(super) fn destination_refuses(&mut self, token: &Hash, now: Timestamp) {
        if self.trust.proven || self.trust.refused.contains(token) || self.trust.refused.len() >= REFUSED_MAX {
            return;
        }
        self.trust.refused.push(*token);
        if self.trust.refused.len() == REFUSED_MAX && self.sending.paused.is_none() {
            self.set_pause(None, now);
            self.trust.tried_at = Some(now);
            let every_s = self.options.probe_max.as_secs_f64();
            self.afterwards(move || {
                error!(
                    reason = "all_refused",
                    tokens = REFUSED_MAX,
                    every_s,
                    "Amazon Connect refused every token so far and has never taken a message: sender.region, \
                     sender.endpoint or the bot's Connect instance may be wrong. The relay sends one message each \
                     sender.probe_max, with a token that was not refused yet, until Connect takes one. Correct the \
                     setting and restart the relay, or run `connect-relay resume`"
                );
            });
        }
    }
}
