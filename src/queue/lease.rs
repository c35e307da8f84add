//! What the sender is given, and what it is told of an attempt.

use super::MessageId;
use super::codec::Hash;
use crate::delivery::Reason;
use crate::message::{Body, ClientToken, ConnectionToken};
use crate::time::Timestamp;

/// A message taken out for one attempt; its conversation starts nothing else until it is settled.
#[derive(Debug)]
pub struct Lease {
    /// The relay's id of it.
    pub id: MessageId,
    /// What to send.
    pub body: Body,
    /// Its idempotency token.
    pub client_token: ClientToken,
    /// The credential to send it with: its own, or the one that renewed it.
    pub connection_token: ConnectionToken,
    /// The conversation's name in logs.
    pub label: Box<str>,
    /// The trace id it came with.
    pub trace_id: Option<Box<str>>,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts that counted, before this one.
    pub attempts: u32,
    /// Answers with an unlisted code, before this one.
    pub strikes: u8,
    /// When it last failed.
    pub failed_at: Option<Timestamp>,
    pub(super) conversation: Hash,
    /// The hash of the token it is sent with.
    pub(super) token: Hash,
}

/// What settling came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// It is done.
    Delivered,
    /// It keeps its place.
    Kept,
    /// It is tried again then.
    Deferred(Timestamp),
    /// Its conversation waits so long for a renewed token.
    Held(Timestamp),
    /// It is a dead letter.
    Dead {
        /// Why.
        reason: Reason,
        /// A waiting caller gets the error itself.
        told: bool,
    },
}

/// What there is to send.
#[derive(Debug, Default)]
pub struct Work {
    /// Taken out for an attempt each.
    pub leases: Vec<Lease>,
    /// Where fewer came than were asked for: when the next one falls due by itself.
    pub next_due: Option<Timestamp>,
}
