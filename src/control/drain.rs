//! A drain that an operator asked for: between their door and the daemon, which carries it out.

use std::time::Duration;

use tokio::sync::watch;

/// The wish, and what came of it; clones share it. A second wish changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// The grace that was asked for; the inner one is none where `shutdown.grace` is meant.
    wish: watch::Sender<Option<Option<Duration>>>,
    /// How many messages are left; the inner one is none where the store did not say.
    left: watch::Sender<Option<Option<u64>>>,
}

impl Drain {
    /// Somebody wishes that the relay drains and leaves, within so long.
    pub fn wish(&self, within: Option<Duration>) {
        self.wish.send_if_modified(|wish| {
            let first = wish.is_none();
            *wish = wish.or(Some(within));
            first
        });
    }

    /// Whether somebody does.
    #[must_use]
    pub fn is_wished(&self) -> bool {
        self.wish.borrow().is_some()
    }

    /// The grace that they asked for, if they did.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        self.wish.borrow().flatten()
    }

    /// Resolves with the grace when somebody does.
    pub async fn wished(&self) -> Option<Duration> {
        first(&self.wish).await
    }

    /// The relay leaves now, and leaves so much behind.
    pub fn end(&self, left: Option<u64>) {
        self.left.send_replace(Some(left));
    }

    /// Resolves when it does.
    pub async fn ended(&self) -> Option<u64> {
        first(&self.left).await
    }
}

/// Resolves with the first value.
async fn first<T: Copy>(of: &watch::Sender<Option<Option<T>>>) -> Option<T> {
    let mut values = of.subscribe();
    // Its sender is borrowed here, so it is not gone.
    values.wait_for(Option::is_some).await.ok().and_then(|value| *value).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_wish_counts_and_everybody_hears_of_the_end() {
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
