//! The durable queue. (The model's head stands here.)

use std::path::PathBuf;
use std::time::Duration;

use crate::delivery::{Disposition, Reason, Receipt, ServiceError};
use crate::message::{Caller, ClientToken, ConnectionToken, ConversationKey, Submission};
use crate::metrics::Metrics;
use crate::time::{Clock, Timestamp};

/// The queue's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The folder.
    pub path: PathBuf,
    /// Messages queued at once.
    pub messages_max: u64,
    /// Bytes on disk.
    pub bytes_max: u64,
    /// Bytes that must stay free on the volume.
    pub free_disk_min: u64,
    /// How long a delivered message's outcome answers repeats.
    pub outcomes_kept_for: Duration,
    /// How many outcomes are kept; the oldest go first.
    pub outcomes_max: u64,
    /// How long a dead letter is kept.
    pub dead_kept_for: Duration,
    /// How many dead letters are kept; the oldest go first.
    pub dead_max: u64,
    /// Accept a folder in memory (tmpfs, ramfs).
    pub volatile: bool,
    /// How long a message waits where its bot names no lifetime.
    pub lifetime: Duration,
    /// How long a refused token's conversation is held for a renewed one.
    pub token_wait: Duration,
    /// How long a refused token is refused at the door.
    pub refused_for: Duration,
    /// The longest a due time read from disk may lie ahead (clocks step).
    pub due_max: Duration,
}

/// The message's own id: the store's nonce and its sequence number, `9f86d081-42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// Made with the store.
    pub store: u32,
    /// Its place in the order of acceptance.
    pub sequence: u64,
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
        /// Messages of its conversation before it.
        ahead: u64,
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

/// What waits, all in all or of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Messages queued.
    pub queued: u64,
    /// Acceptance of the oldest of them.
    pub oldest: Option<Timestamp>,
}

/// What the queue shows an operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// Messages queued.
    pub queued: u64,
    /// Acceptance of the oldest of them.
    pub oldest: Option<Timestamp>,
    /// Since when the longest waiting conversation could have been sent; none when nothing is due.
    pub oldest_due: Option<Timestamp>,
    /// Conversations with something queued.
    pub conversations: u64,
    /// Of them, held after a refused token.
    pub held: u64,
    /// Of them, with a head that may have been delivered.
    pub unknown: u64,
    /// Dead letters kept.
    pub dead: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes free on the volume.
    pub disk_free: u64,
    /// Which limit refuses new messages now.
    pub full: Option<Full>,
}

/// The store failed: nothing more is acknowledged, and the process leaves.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreFailed(pub std::sync::Arc<str>);

/// A message taken out for one attempt; its conversation starts nothing else until it is settled.
#[derive(Debug)]
pub struct Lease {
    /// The relay's id of it.
    pub id: MessageId,
    /// What to send.
    pub body: crate::message::Body,
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
    // private: the conversation's id, the token's hash
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

/// A handle on the queue; clones share it. Every act is carried out by the one thread that owns the store, and
/// answered when it is durable.
#[derive(Clone, Debug)]
pub struct Queue {}

/// The thread that owns the store: run it on a thread of its own; it ends when every [`Queue`] is dropped or the
/// store fails.
#[derive(Debug)]
pub struct Writer {}

#[expect(unused_variables, missing_docs, clippy::unused_async, clippy::missing_errors_doc, reason = "sketch")]
impl Queue {
    /// Opens the folder, makes it where it is missing.
    pub fn open(options: Options, clock: Clock, metrics: &Metrics) -> Result<(Queue, Writer), OpenError> {
        todo!()
    }
    /// Accepts submissions, in order, in one commit where they fit. `rate` is the learned rate, for `TooLate`.
    pub async fn accept(&self, submissions: Vec<Submission>, rate: f64) -> Result<Vec<Verdict>, StoreFailed> {
        todo!()
    }
    /// Waits for the outcome of an accepted submission; at the end of `wait` the state is whatever it is then. While
    /// somebody waits here, a refusal of the token buries the message at once instead of holding it.
    pub async fn outcome(&self, id: MessageId, wait: Duration) -> Result<Option<State>, StoreFailed> {
        todo!()
    }
    pub async fn find(&self, asker: Asker, client_token: ClientToken) -> Result<Found, StoreFailed> {
        todo!()
    }
    /// Whether nothing of the asker's conversation is queued or in flight.
    pub async fn is_idle(&self, asker: Asker) -> Result<bool, StoreFailed> {
        todo!()
    }
    /// Remembers, by keyed hashes, that a participant was given a connection token; what is queued with the
    /// participant's earlier token goes with this one.
    pub async fn remember(&self, participant: ConnectionToken, token: ConnectionToken) -> Result<(), StoreFailed> {
        todo!()
    }
    pub async fn backlog(&self, of: Option<Caller>) -> Result<Backlog, StoreFailed> {
        todo!()
    }
    pub async fn overview(&self) -> Result<Overview, StoreFailed> {
        todo!()
    }
    /// Takes out up to `most` messages that are due, each of another conversation, in turn.
    pub async fn lease(&self, most: usize) -> Result<Work, StoreFailed> {
        todo!()
    }
    /// Records what an attempt came to.
    pub async fn settle(&self, lease: Lease, disposition: Disposition) -> Result<Settled, StoreFailed> {
        todo!()
    }
    /// Resolves when something may have become due, since this was last awaited: arm it (`enable`) before looking.
    pub fn poked(&self) -> tokio::sync::futures::Notified<'_> {
        todo!()
    }
    /// Resolves when a message has left the queue: arm it before looking.
    pub fn drained(&self) -> tokio::sync::futures::Notified<'_> {
        todo!()
    }
    /// How long the commit under way has taken; zero when there is none (for `/livez`).
    pub fn stalled(&self) -> Duration {
        todo!()
    }
    /// Resolves when the store has failed; pending for ever while it has not.
    pub async fn failed(&self) -> StoreFailed {
        todo!()
    }
}

impl Writer {
    /// Carries out acts until the last handle is gone. A clean end is recorded, so that the next start knows that no
    /// head of a conversation is in doubt.
    pub fn run(self) -> Result<(), StoreFailed> {
        todo!()
    }
}

/// Why the queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("open queue {path}: locked by another process")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Written by a newer relay: exit 78.
    #[error("open queue {path}: its format is {found}, this relay reads {known}")]
    NewerFormat {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: u32,
        /// What this build reads.
        known: u32,
    },
    /// In memory, and not allowed to be: exit 78.
    #[error(
        "open queue {path}: it lies on {filesystem}, in memory, and would not survive; use a disk, or set queue.volatile = true"
    )]
    Volatile {
        /// The folder.
        path: PathBuf,
        /// The file system's name.
        filesystem: &'static str,
    },
    /// Something failed on the way.
    #[error("open queue {path}: {step}: {cause}")]
    Failed {
        /// The folder.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        cause: String,
    },
}
