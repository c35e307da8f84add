//! What a bot is told of its submissions.

use super::rows::Hash;
use crate::delivery::{Reason, Receipt, ServiceError};
use crate::message::{Caller, ConnectionToken, ConversationKey};
use crate::time::Timestamp;

/// The message's own id: the store's nonce and its sequence number, `9f86d081-42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId {
    pub(super) store: u32,
    pub(super) sequence: u64,
    pub(super) conversation: Hash,
    pub(super) entry: Hash,
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}-{}", self.store, self.sequence)
    }
}

/// What the queue knows of one submission.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The relay's id of it.
    pub id: MessageId,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts that counted.
    pub attempts: u32,
    /// Where it is.
    pub status: Status,
}

/// Where a submission is.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// On disk, not delivered yet.
    Queued {
        /// When its next attempt is due, where it backs off or is held.
        next_attempt: Option<Timestamp>,
        /// Messages of its conversation before it.
        ahead: u64,
        /// About how many messages go before it, those of others among them; none while sending is paused.
        before: Option<u64>,
        /// Its conversation waits for a renewed token.
        held: bool,
        /// An attempt is under way.
        in_flight: bool,
        /// The end of its lifetime.
        expires: Timestamp,
    },
    /// Connect has it.
    Delivered(Receipt),
    /// It will not be delivered.
    Dead {
        /// Why.
        reason: Reason,
        /// It may have been delivered all the same.
        maybe_delivered: bool,
        /// What upstream, or the relay, said.
        error: ServiceError,
    },
}

/// What became of one submission at the door. The reply may be sent: everything in it is durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// On disk.
    Accepted {
        /// What is known of it.
        state: State,
        /// It had been accepted before: same conversation, ClientToken and contents.
        repeat: bool,
    },
    /// Nothing was kept.
    Rejected(Rejection),
}

/// Why a submission was not kept.
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
    /// Upstream refused this token a short time ago.
    TokenRefused(ServiceError),
    /// The queue is full.
    Full(Full),
    /// At the given rate it cannot be delivered within its lifetime.
    TooLate {
        /// About how many messages go before it.
        before: u64,
    },
}

/// Which limit the queue has reached.
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

/// Who asks about a conversation: it is shown only to those who present a token accepted in it.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The token presented.
    pub token: ConnectionToken,
    /// The key, where one was used.
    pub conversation: Option<ConversationKey>,
    /// Who asks.
    pub caller: Caller,
}

/// What became of a look-up.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// This.
    State(State),
    /// Nothing of that token and ClientToken is known.
    Unknown,
    /// The token belongs to another conversation.
    OtherConversation,
}
