//! A drain that an operator requested: from the operators' API to the daemon, which executes it.

use std::time::Duration;

use tokio::sync::watch;

/// The request and its result; clones share it. A second request changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// The requested grace; the inner value is `None` for `shutdown.grace`.
    wish: watch::Sender<Option<Option<Duration>>>,
    /// The number of messages that are left; the inner value is `None` if the store did not answer.
    left: watch::Sender<Option<Option<u64>>>,
}

impl Drain {
    /// Requests that the relay drains and exits, within this time.
    pub fn wish(&self, within: Option<Duration>) {
        self.wish.send_if_modified(|wish| {
            let first = wish.is_none();
            *wish = wish.or(Some(within));
            first
        });
    }

    /// True if a drain was requested.
    #[must_use]
    pub fn is_wished(&self) -> bool {
        self.wish.borrow().is_some()
    }

    /// The requested grace, if one was requested.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        self.wish.borrow().flatten()
    }

    /// Resolves with the grace when a drain is requested.
    pub async fn wished(&self) -> Option<Duration> {
        first(&self.wish).await
    }

    /// Notes that the relay exits, and the number of messages left.
    pub fn end(&self, left: Option<u64>) {
        self.left.send_replace(Some(left));
    }

    /// Resolves when the relay exits, with the number of messages left.
    pub async fn ended(&self) -> Option<u64> {
        first(&self.left).await
    }
}

/// Resolves with the first value.
async fn first<T: Copy>(of: &watch::Sender<Option<Option<T>>>) -> Option<T> {
    let mut values = of.subscribe();
    // The channel's sender is borrowed here, so the channel is open.
    values.wait_for(Option::is_some).await.ok().and_then(|value| *value).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_request_counts_and_every_waiter_sees_the_end() {
        let drain = Drain::default();
        assert!(!drain.is_wished());
        drain.wish(Some(Duration::from_secs(9)));
        drain.clone().wish(None);
        assert_eq!(drain.wished().await, Some(Duration::from_secs(9)));
        let (one, other) = (drain.clone(), drain.clone());
        let ((), one, other) = tokio::join!(async { drain.end(Some(3)) }, one.ended(), other.ended());
        assert_eq!((one, other), (Some(3), Some(3)));
    }
}
