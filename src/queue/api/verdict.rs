//! The answers to bots about their submissions.

use crate::delivery::{Reason, Receipt, ServiceError};
use crate::message::{Caller, ClientToken, ConnectionToken, ConversationKey};
use crate::queue::rows::Hash;
use crate::time::Timestamp;

/// The message's own id: the store's nonce and its sequence number, `9f86d081-42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId {
    pub(in crate::queue) store: u32,
    pub(in crate::queue) sequence: u64,
    pub(in crate::queue) conversation: Hash,
    pub(in crate::queue) entry: Hash,
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}-{}", self.store, self.sequence)
    }
}

/// The state of one submission.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageState {
    /// The relay's id of it.
    pub id: MessageId,
    /// The time of its acceptance.
    pub accepted: Timestamp,
    /// Attempts that counted.
    pub attempts: u32,
    /// Its status.
    pub status: Status,
}

/// Queued, delivered or dead.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// On disk, not delivered yet.
    Queued {
        /// The time of its next attempt, if it backs off or is held.
        next_attempt: Option<Timestamp>,
        /// Messages of its conversation before it.
        ahead: u64,
        /// The approximate number of messages that are sent before it, of all conversations; `None` while sending is paused.
        before: Option<u64>,
        /// True if its conversation waits for a renewed token.
        held: bool,
        /// True while an attempt is under way.
        in_flight: bool,
        /// The end of its lifetime.
        expires: Timestamp,
    },
    /// Connect has it.
    Delivered(Receipt),
    /// It will not be delivered.
    Dead {
        /// The reason.
        reason: Reason,
        /// True if it may have been delivered all the same.
        maybe_delivered: bool,
        /// The error of Connect, or of the relay.
        error: ServiceError,
    },
}

/// The decision on a submission. Everything in it is durable, so the reply may be sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// On disk.
    Accepted {
        /// Its state.
        state: MessageState,
        /// True if it was accepted before: same conversation, ClientToken and contents.
        repeat: bool,
        /// The ClientToken that it was stored with, if the submission came with another: a second disconnect.
        stored_token: Option<ClientToken>,
    },
    /// Nothing was stored.
    Rejected(Rejection),
}

/// The reason why a submission was not stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Rejection {
    /// This ClientToken was accepted with other contents at this time.
    OtherContents(Timestamp),
    /// The token belongs to another conversation (another key, or with and without one).
    OtherConversation,
    /// `Relay-Replaces-Token` names a token that was never accepted in this conversation.
    NotReplaceable,
    /// The conversation's disconnect was accepted before.
    Disconnected,
    /// Connect refused this token a short time ago.
    TokenRefused(ServiceError),
    /// The queue is full, and the reason why it does not empty now, if the queue knows one.
    Full(Full, Option<Stopped>),
    /// At the given rate it cannot be delivered within its lifetime.
    TooLate {
        /// The approximate number of messages before it.
        before: u64,
    },
}

/// The reason why the queue gives out no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// An operator paused sending.
    Paused,
    /// The destination refuses every token.
    AllRefused,
}

/// A limit that the queue has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `queue.messages_max`
    Messages {
        /// Queued now.
        queued: u64,
        /// The limit.
        most: u64,
    },
    /// `queue.bytes_max`
    Bytes {
        /// On disk now.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// `queue.free_disk_min`
    Disk {
        /// Free now.
        free: u64,
        /// The limit.
        least: u64,
    },
}

/// The caller of a read. A conversation is shown only to callers that present a token accepted in it.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The token presented.
    pub token: ConnectionToken,
    /// The key, if the caller used one.
    pub conversation: Option<ConversationKey>,
    /// The caller.
    pub caller: Caller,
}

/// The result of a look-up.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The submission's state.
    State(MessageState),
    /// Nothing of that token and ClientToken is known.
    Unknown,
    /// The token belongs to another conversation.
    OtherConversation,
}
