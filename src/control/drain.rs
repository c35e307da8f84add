//! A drain that an operator requested: from the operators' API to the daemon, which executes it.

use std::time::Duration;

use tokio::sync::watch;

/// The request and its result; clones share it. A second request changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// The requested grace; the inner value is `None` for `shutdown.grace`.
    requested_grace: watch::Sender<Option<Option<Duration>>>,
    /// The number of messages that are left; the inner value is `None` if the store did not answer.
    left: watch::Sender<Option<Option<u64>>>,
}

impl Drain {
    /// Requests that the relay drains and exits, within this time.
    pub fn request(&self, within: Option<Duration>) {
        self.requested_grace.send_if_modified(|requested_grace| {
            let first = requested_grace.is_none();
            *requested_grace = requested_grace.or(Some(within));
            first
        });
    }

    /// True if a drain was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested_grace.borrow().is_some()
    }

    /// The requested grace, if one was requested.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        self.requested_grace.borrow().flatten()
    }

    /// Resolves with the grace when a drain is requested.
    pub async fn requested(&self) -> Option<Duration> {
        first(&self.requested_grace).await
    }

    /// Notes that the relay exits, and the number of messages left.
    pub fn finish(&self, left: Option<u64>) {
        self.left.send_replace(Some(left));
    }

    /// Resolves when the relay exits, with the number of messages left.
    pub async fn finished(&self) -> Option<u64> {
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
        assert!(!drain.is_requested());
        drain.request(Some(Duration::from_secs(9)));
        drain.clone().request(None);
        assert_eq!(drain.requested().await, Some(Duration::from_secs(9)));
        let (one, other) = (drain.clone(), drain.clone());
        let ((), one, other) = tokio::join!(async { drain.finish(Some(3)) }, one.finished(), other.finished());
        assert_eq!((one, other), (Some(3), Some(3)));
    }
}
