//! Whether the relay takes messages: one-way, open → draining → ending or closing.
//!
//! While it drains the relay goes on taking messages, because the bots beside it are stopping too and have farewells to
//! say. Waits for an outcome end, with what is known, when the queue is empty (*ending*) and when the grace is nearly over
//! (*closing*). Only while it closes the relay turns messages away.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stand {
    #[default]
    Open,
    Draining,
    Ending,
    Closing,
}

/// The one door of a relay; clones share it. It never opens again.
#[derive(Clone, Debug, Default)]
pub struct Door(Arc<watch::Sender<Stand>>);

impl Door {
    /// An open door.
    #[must_use]
    pub fn open() -> Door {
        Door::default()
    }

    /// The relay was asked to stop: messages are still taken.
    pub fn drain(&self) {
        self.go(Stand::Draining);
    }

    /// The queue is empty: waits end, messages are still taken.
    pub fn end_waits(&self) {
        self.go(Stand::Ending);
    }

    /// The end of the grace: nothing is taken any more, waits end.
    pub fn close(&self) {
        self.go(Stand::Closing);
    }

    /// Whether the relay was asked to stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Stand::Draining
    }

    /// Whether nothing is taken any more.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        *self.0.borrow() == Stand::Closing
    }

    /// Resolves when waits are to end.
    pub async fn waits_end(&self) {
        // The sender lives in `self`, so the channel cannot end.
        let _ = self.0.subscribe().wait_for(|stand| *stand >= Stand::Ending).await;
    }

    fn go(&self, to: Stand) {
        self.0.send_if_modified(|stand| {
            let moves = *stand < to;
            *stand = to.max(*stand);
            moves
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn door_only_ever_closes_further() {
        let door = Door::open();
        assert!(!door.is_draining());
        door.drain();
        assert!(door.is_draining() && !door.is_closing());
        let waiting = door.waits_end();
        door.clone().end_waits();
        waiting.await;
        assert!(!door.is_closing());
        door.clone().close();
        door.drain();
        assert!(door.is_draining() && door.is_closing());
    }
}
