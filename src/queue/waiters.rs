//! Callers who wait for an outcome: the only thing the queue keeps in memory on behalf of a message, and there are at
//! most as many as there are connections.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::State;
use super::rows::Hash;

type Reply = oneshot::Sender<Option<State>>;

/// Who waits for what, by sequence number.
#[derive(Debug, Default)]
pub struct Waiters(HashMap<u64, (Hash, Vec<Reply>)>);

impl Waiters {
    pub fn add(&mut self, sequence: u64, conversation: Hash, reply: Reply) {
        self.0.entry(sequence).or_insert_with(|| (conversation, Vec::new())).1.push(reply);
    }

    /// Whether somebody waits who has not hung up.
    pub fn anyone(&self, sequence: u64) -> bool {
        self.0.get(&sequence).is_some_and(|(_, replies)| replies.iter().any(|reply| !reply.is_closed()))
    }

    /// The messages of a conversation for which somebody waits.
    pub fn of(&self, conversation: &Hash) -> Vec<u64> {
        let mine = self.0.iter().filter(|(sequence, (of, _))| of == conversation && self.anyone(**sequence));
        let mut sequences: Vec<u64> = mine.map(|(sequence, _)| *sequence).collect();
        sequences.sort_unstable();
        sequences
    }

    /// Takes those who wait for a message that is settled.
    pub fn take(&mut self, sequence: u64) -> Vec<Reply> {
        self.0.remove(&sequence).map(|(_, replies)| replies).unwrap_or_default()
    }

    /// Forgets those who have left.
    pub fn sweep(&mut self) {
        self.0.retain(|_, (_, replies)| {
            replies.retain(|reply| !reply.is_closed());
            !replies.is_empty()
        });
    }
}
