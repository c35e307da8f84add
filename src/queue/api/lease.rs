//! Leases, and the results of settling them.

use std::time::Duration;

use super::verdict::MessageId;
use crate::delivery::Reason;
use crate::message::{Body, ClientToken, ConnectionToken};
use crate::queue::rows::Hash;
use crate::time::Timestamp;

/// A message taken out for one attempt; its conversation starts nothing else until it is settled.
#[derive(Debug)]
pub struct Lease {
    /// The relay's id of it.
    pub id: MessageId,
    /// The contents.
    pub body: Body,
    /// Its idempotency token.
    pub client_token: ClientToken,
    /// The credential to send it with: its own, or the one that renewed it.
    pub connection_token: ConnectionToken,
    /// The conversation's name in logs.
    pub label: Box<str>,
    /// Its trace id.
    pub trace_id: Option<Box<str>>,
    /// The time of its acceptance.
    pub accepted: Timestamp,
    /// Attempts that counted, before this one.
    pub attempts: u32,
    /// Answers with an unlisted code, before this one.
    pub strikes: u8,
    /// The failures that count towards `sender.attempts_max`, before this attempt.
    pub counted: u16,
    /// The time of the last failure.
    pub failed_at: Option<Timestamp>,
    /// The conversation, as a keyed hash.
    pub conversation: [u8; 16],
    /// True if the conversation backed off or was held until now.
    pub backed_off: bool,
    /// The hash of the token it is sent with.
    pub(in crate::queue) token: Hash,
}

/// The result of settling.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// It is delivered.
    Delivered,
    /// It keeps its place.
    Kept,
    /// It is tried again at this time.
    Deferred(Timestamp),
    /// Its conversation waits until this time for a renewed token.
    Held(Timestamp),
    /// It is a dead letter.
    Dead {
        /// The reason.
        reason: Reason,
        /// True if a waiting caller gets the error itself.
        told: bool,
    },
}

/// The messages that the sender asks for: of conversations whose turn it is, and of those that backed off or were held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// Messages at most.
    pub most: usize,
    /// Of them, so many of conversations that backed off go first.
    pub backed_off_first: usize,
    /// Of them, at most so many of conversations that backed off.
    pub backed_off_most: usize,
    /// The time that an attempt takes: a message that will not arrive within its lifetime goes last.
    pub takes: Duration,
}

impl LeaseRequest {
    /// A request for so many messages of any conversations.
    #[must_use]
    pub fn any(most: usize) -> LeaseRequest {
        LeaseRequest { most, backed_off_first: most, backed_off_most: most, takes: Duration::ZERO }
    }
}

/// The messages that can be sent now.
#[derive(Debug, Default)]
pub struct Work {
    /// Taken out for an attempt each.
    pub leases: Vec<Lease>,
    /// True if conversations whose turn it is are left.
    pub turns_left: bool,
    /// The time at which the next message becomes due by itself, if there were fewer than requested.
    pub next_due: Option<Timestamp>,
}
