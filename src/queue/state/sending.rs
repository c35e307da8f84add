//! The pause of sending, and the refusals of tokens. `ops::pause` changes them.

use super::State;
use crate::queue::api::Pause;
use crate::queue::rows::{ErrorRow, Token};
use crate::time::Timestamp;

impl State {
    /// The operator's pause, if sending is paused.
    pub fn paused(&self) -> Option<Pause> {
        let row = self.sending.paused.as_ref()?;
        row.operator.clone().map(|why| Pause { since: row.since, why })
    }

    /// The time since which the destination, which has never delivered a message, refuses every token.
    pub fn all_refused(&self) -> Option<Timestamp> {
        self.sending.paused.as_ref().filter(|row| row.operator.is_none()).map(|row| row.since)
    }

    /// The time of the next attempt while every token is refused.
    pub fn next_try(&self) -> Option<Timestamp> {
        self.all_refused()?;
        self.trust.tried_at.map(|tried| tried + self.options.probe_max)
    }

    /// The time and the error of the refusal of a token; `None` if it was not refused, or refusals were reset since.
    pub fn refusal<'a>(&self, token: &'a Token) -> Option<&'a (Timestamp, ErrorRow)> {
        token.refused.as_ref().filter(|(at, _)| *at > self.sending.refusals_reset_at)
    }
}
