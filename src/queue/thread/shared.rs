//! The values that the handles share with the queue's thread.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use tokio::sync::Notify;

use crate::pacer::Budget;
use crate::storage::StoreFailed;
use crate::time::Clock;

/// The values that a handle reads without a request.
#[derive(Debug)]
pub struct Shared {
    pub clock: Clock,
    /// Wakes the sender: a message may have become due.
    pub poked: Notify,
    /// Wakes those that wait for the queue to empty.
    pub drained: Notify,
    /// The start of the commit under way, by [`Clock::awake`]; 0 if there is none.
    pub commit_began: AtomicU64,
    /// The rate at which messages are sent, and whether the destination is down.
    pub budget: OnceLock<Budget>,
    pub failure: OnceLock<StoreFailed>,
    pub failed: Notify,
}

impl Shared {
    pub fn new(clock: Clock) -> Shared {
        Shared {
            clock,
            poked: Notify::new(),
            drained: Notify::new(),
            commit_began: AtomicU64::new(0),
            budget: OnceLock::new(),
            failure: OnceLock::new(),
            failed: Notify::new(),
        }
    }
}
