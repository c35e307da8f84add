//! Sending pauses: because an operator says so, or because everything points to a wrong destination.
//!
//! | who pauses | when | over a restart |
//! | --- | --- | --- |
//! | an operator | as they say | stays: what somebody ordered stands until somebody takes it back |
//! | the relay, `all_refused` | three tokens were refused, and this destination has never delivered anything | ends: a start is mostly the remedy, and finds out anew |
//!
//! While sending pauses nothing is leased, and so nothing that is held dies of its token; messages are accepted, what is
//! in flight is settled, and lifetimes go on. The end of a pause forgets every refused token: what is held gets its
//! turns, and the door lets those tokens in again.
//!
//! All of it is one row (`h`), written only when it changes.

use std::ops::Bound;

use tracing::error;

use super::codec::{ErrorRow, Hash, Key, PauseRow, Token};
use super::line::conversation_in;
use super::{Pause, PauseReason, StoreFailed, Writer};
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
}

impl Writer {
    /// Takes up what was written down.
    pub(super) fn begin_sending(&mut self, now: Timestamp) -> Result<(), StoreFailed> {
        self.sending = self.store.get(&Key::new(b'h'))?.unwrap_or_default();
        let destination = self.hasher.hash(b'D', &[self.options.destination.as_bytes()]);
        let proven = self.sending.delivered_to == Some(destination);
        self.trust = Trust { destination, proven, refused: Vec::new() };
        if self.paused().is_some_and(|pause| pause.reason == PauseReason::AllRefused) {
            self.resume(now)?;
        }
        Ok(())
    }

    pub(super) fn paused(&self) -> Option<Pause> {
        self.sending.paused.as_ref().map(|row| Pause {
            since: row.since,
            reason: row.operator.as_ref().map_or(PauseReason::AllRefused, |why| PauseReason::Operator(why.clone())),
        })
    }

    /// An operator pauses sending. A second word changes the reason, not the time.
    pub(super) fn pause(&mut self, why: String, now: Timestamp) {
        self.set_pause(Some(why), now);
    }

    fn set_pause(&mut self, operator: Option<String>, now: Timestamp) {
        let since = self.sending.paused.as_ref().map_or(now, |row| row.since);
        self.sending.paused = Some(PauseRow { since, operator });
        self.store.put(Key::new(b'h'), &self.sending);
        // Who waits for the queue to empty has to know that it will not.
        self.left = true;
    }

    /// Sending goes on, and refused tokens are forgotten.
    pub(super) fn resume(&mut self, now: Timestamp) -> Result<(), StoreFailed> {
        let mut from = Bound::Included(Key::new(b'd'));
        while let Some(key) = self.store.next_key(Key::new(b'd'), from)? {
            let conversation = conversation_in(&key);
            from = Bound::Excluded(key);
            let mut line = self.line(&conversation)?;
            if line.hold.is_some() {
                self.lift_hold(&conversation, &mut line, now);
                self.put_line(&conversation, &line);
                self.commit_if_long()?;
            }
        }
        // Last: a crash before this leaves it paused, and nobody was told otherwise.
        self.trust.refused.clear();
        self.sending.forgiven = now;
        self.sending.paused = None;
        self.store.put(Key::new(b'h'), &self.sending);
        self.poke = true;
        Ok(())
    }

    /// When and how upstream refused a token, unless that was forgotten.
    pub(super) fn refusal<'a>(&self, token: &'a Token) -> Option<&'a (Timestamp, ErrorRow)> {
        token.refused.as_ref().filter(|(at, _)| *at > self.sending.forgiven)
    }

    /// The destination has delivered a message: whatever it refuses from now on, it is the right one.
    pub(super) fn destination_delivers(&mut self) {
        if !self.trust.proven {
            self.trust.proven = true;
            self.sending.delivered_to = Some(self.trust.destination);
            self.store.put(Key::new(b'h'), &self.sending);
        }
    }

    /// The destination has refused a token; true where sending is paused for that, and nothing is to die of it.
    pub(super) fn destination_refuses(&mut self, token: &Hash, now: Timestamp) -> bool {
        if !self.trust.proven && !self.trust.refused.contains(token) && self.trust.refused.len() < REFUSED_MAX {
            self.trust.refused.push(*token);
        }
        let all = !self.trust.proven && self.trust.refused.len() >= REFUSED_MAX;
        if all && self.sending.paused.is_none() {
            self.set_pause(None, now);
            self.afterwards(|| {
                error!(
                    reason = PauseReason::AllRefused.as_str(),
                    tokens = REFUSED_MAX,
                    "Amazon Connect refuses every token, and has never taken a message: sender.region or the Connect \
                     instance may be wrong. Sending is paused, nothing is given up; mend it and restart, or resume"
                );
            });
        }
        all
    }
}
