//! The state of intake: one-way, open → draining → ending or closing.
//!
//! While it drains the relay still accepts messages, because the bots beside it are stopping too and may send last
//! messages. Waits for an outcome end, with the present state, and streams of outcomes, when the queue is empty (*ending*) and when the grace is
//! nearly over (*closing*). The relay refuses messages only while it is closing.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Intake {
    #[default]
    Open,
    Draining,
    Ending,
    Closing,
}

/// The intake state of a relay, open by default; clones share it. It never opens again.
#[derive(Clone, Debug, Default)]
pub struct DrainState(Arc<watch::Sender<Intake>>);

impl DrainState {
    /// Notes that the relay was asked to stop; messages are still accepted.
    pub fn drain(&self) {
        self.advance(Intake::Draining);
    }

    /// Notes that the queue is empty: waits end, messages are still accepted.
    pub fn end_waits(&self) {
        self.advance(Intake::Ending);
    }

    /// Notes the end of the grace: no message is accepted any more, waits end.
    pub fn close(&self) {
        self.advance(Intake::Closing);
    }

    /// True if the relay was asked to stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Intake::Draining
    }

    /// True if no message is accepted any more.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        *self.0.borrow() == Intake::Closing
    }

    /// True if waits are to end.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        *self.0.borrow() >= Intake::Ending
    }

    /// Resolves when waits are to end.
    pub async fn waits_end(&self) {
        // The channel's sender is part of `self`, so the channel cannot end.
        let _ = self.0.subscribe().wait_for(|intake| *intake >= Intake::Ending).await;
    }

    fn advance(&self, to: Intake) {
        self.0.send_if_modified(|intake| {
            let advances = *intake < to;
            *intake = to.max(*intake);
            advances
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn intake_never_opens_again() {
        let state = DrainState::default();
        assert!(!state.is_draining());
        state.drain();
        assert!(state.is_draining() && !state.is_closing());
        let waiting = state.waits_end();
        state.clone().end_waits();
        waiting.await;
        assert!(state.is_ending() && !state.is_closing());
        state.clone().close();
        state.drain();
        assert!(state.is_draining() && state.is_closing());
    }
}
