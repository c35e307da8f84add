//! Callers that wait for the outcome of a message: at most as many as there are connections.

use std::collections::HashMap;

use tokio::sync::oneshot;

use crate::queue::api::MessageState;
use crate::queue::rows::Hash;

pub type Waiter = oneshot::Sender<Option<MessageState>>;

/// The waiting callers, by sequence number, with the conversation of the message.
#[derive(Debug, Default)]
pub struct Waiters(HashMap<u64, (Hash, Vec<Waiter>)>);

impl Waiters {
    pub fn add(&mut self, sequence: u64, conversation: Hash, waiter: Waiter) {
        self.0.entry(sequence).or_insert_with(|| (conversation, Vec::new())).1.push(waiter);
    }

    /// The messages of a conversation for which a caller waits that has not hung up, in order.
    pub fn of(&self, conversation: &Hash) -> Vec<u64> {
        let own = self.0.iter().filter(|(_, (of, waiters))| of == conversation && is_any_open(waiters));
        let mut sequences: Vec<u64> = own.map(|(sequence, _)| *sequence).collect();
        sequences.sort_unstable();
        sequences
    }

    /// Takes the callers that wait for a message.
    pub fn take(&mut self, sequence: u64) -> Vec<Waiter> {
        self.0.remove(&sequence).map(|(_, waiters)| waiters).unwrap_or_default()
    }

    /// Removes callers that hung up.
    pub fn sweep(&mut self) {
        self.0.retain(|_, (_, waiters)| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
    }
}

/// Returns true if a caller has not hung up.
pub fn is_any_open(waiters: &[Waiter]) -> bool {
    waiters.iter().any(|waiter| !waiter.is_closed())
}
