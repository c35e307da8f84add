//! The durable queue: what bots handed over, until Connect has it or it is a dead letter.
//!
//! One thread, the [`Writer`], owns the store and carries out every act, reads included; a [`Queue`] is a handle that
//! sends it acts and awaits their answers. Acts that wait together are carried out together and committed by one
//! `fdatasync`; **answers go out after it**. So whatever anybody has been told, by a reply, an attempt or a metric, is
//! on disk, two equal submissions in one group are one message, and there is no lock to hold.
//!
//! The legal states of a message, by the rows that exist (`codec` has every row's layout):
//!
//! | state | record in a pack `m` | in its conversation's line `v`, `s` | entry `i` | dead letter `x` |
//! | --- | --- | --- | --- | --- |
//! | queued | yes | yes | `Queued`, where it stands in an `s` row | – |
//! | delivered | – | – | `Delivered`, until pruned | – |
//! | dead | – | – | `Dead`, until pruned | yes, until pruned |
//! | pruned, or never seen | – | – | – | – |
//!
//! A line with something queued has exactly one place: a turn (`r`, `q`), or a time from which it is due (`d`: its head
//! backs off, or its token was refused and it is held). Being in flight is no state on disk: after a crash the head is
//! simply sent again, with the same ClientToken, before anything else of its conversation.
//!
//! **The instant of commit** is the return of `fdatasync`. A crash before it leaves the rows of the commit before, a
//! crash after it the new ones; a batch is atomic, so there is nothing in between. What a crash leaves to do is found
//! when it is met: nothing scans the store at start.
//!
//! In memory per queued message: nothing here; sled's page table holds 50–130 bytes per row, and a queued message has a
//! share of its pack's row and of its conversation's, and one of its own where its conversation's line is long. A page of
//! turns (256) and the messages in flight are all that is kept.
//!
//! The queue does not know HTTP, statuses, or when an attempt may start.

mod accept;
mod answers;
mod carry;
mod codec;
mod compaction;
mod contents;
pub mod doctor;
mod folder;
mod gauges;
mod journal;
mod line;
mod log;
mod lookup;
mod opening;
mod operate;
mod overlay;
mod packs;
mod pause;
mod prune;
mod salvage;
mod schedule;
mod sealing;
mod settle;
mod stamp;
mod store;
mod waiters;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};

use crate::delivery::{Disposition, Reason, Receipt, ServiceError};
use crate::message::{Body, Caller, ClientToken, ConnectionToken, ConversationKey, Submission};
use crate::metrics::Metrics;
use crate::pacer::Kept;
use crate::time::{Clock, Timestamp};
pub use answers::Answers;
pub use carry::Carried;
pub use operate::{Cursor, Page, Part, Redrive, Seen, SeenPlace, Selection, Sought, Sweep, Unmoved};
pub use sealing::SealingKey;
pub use writer::Writer;
use writer::{Act, Asked, Prepared};

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
    /// What becomes of a store that is damaged.
    pub damaged: Damaged,
    /// What contents and ConnectionTokens are sealed with: by the first, while the others still open. Empty: not at all.
    pub keys: Vec<SealingKey>,
    /// How long a message waits where its bot names no lifetime.
    pub lifetime: Duration,
    /// How old a message may be for its conversation to go before those that have waited for long.
    pub fresh: Duration,
    /// How long a refused token's conversation is held for a renewed one.
    pub token_wait: Duration,
    /// How long a refused token is refused at the door.
    pub refused_for: Duration,
    /// The longest a due time read from disk may lie ahead (clocks step).
    pub due_max: Duration,
    /// The name of where messages go. One that has delivered before may refuse any number of tokens.
    pub destination: String,
}

/// What becomes of a damaged store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// It is set aside, and what verifies is carried into a new one.
    SetAside,
    /// It is left as it is, and not opened.
    Refuse,
}

/// The message's own id: the store's nonce and its sequence number, `9f86d081-42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId {
    store: u32,
    sequence: u64,
    conversation: codec::Hash,
    entry: codec::Hash,
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

/// What waits, all in all or of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Messages queued.
    pub queued: u64,
    /// Acceptance of the oldest of them.
    pub oldest: Option<Timestamp>,
}

/// Nothing is sent for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Since then.
    pub since: Timestamp,
    /// Why.
    pub reason: PauseReason,
}

/// Why nothing is sent for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// An operator said so, in these words.
    Operator(String),
    /// The destination refused three tokens, and never delivered anything.
    AllRefused,
}

impl PauseReason {
    /// The reason as it is shown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            PauseReason::Operator(why) => why,
            PauseReason::AllRefused => "all_refused",
        }
    }
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
    /// A damaged store lies set aside.
    pub set_aside: bool,
    /// Rows that failed their sums and were set aside since the start.
    pub corrupt: u64,
    /// Whether sending is paused.
    pub paused: Option<Pause>,
}

/// The store failed: nothing more is acknowledged, and the process leaves.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreFailed(pub Arc<str>);

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
    conversation: codec::Hash,
    /// The hash of the token it is sent with.
    token: codec::Hash,
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

/// A handle on the queue; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    acts: mpsc::Sender<Act>,
    hasher: codec::Hasher,
    learned: Option<Kept>,
    shared: Arc<Shared>,
}

/// What the handles see of the writer without asking it.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    poked: Notify,
    drained: Notify,
    /// When the commit under way began; 0 when there is none.
    commit_began: AtomicU64,
    failure: OnceLock<StoreFailed>,
    failed: Notify,
}

impl Queue {
    /// Opens the folder, or makes it. The [`Writer`] must run on a thread of its own before anything is asked.
    ///
    /// # Errors
    /// When the folder is another process's, in memory, of a newer format, or cannot be opened.
    pub fn open(options: Options, clock: Clock, metrics: &Metrics) -> Result<(Queue, Writer), OpenError> {
        let (acts, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            clock: clock.clone(),
            poked: Notify::new(),
            drained: Notify::new(),
            commit_began: AtomicU64::new(0),
            failure: OnceLock::new(),
            failed: Notify::new(),
        });
        let writer = Writer::open(options, inbox, Arc::clone(&shared), metrics)?;
        let (hasher, learned) = (writer.hasher(), writer.learned());
        Ok((Queue { acts, hasher, learned, shared }, writer))
    }

    /// Accepts submissions, in their order, in one commit. `rate` is the learned rate of delivery, by which a lifetime
    /// that cannot be met is told.
    ///
    /// # Errors
    /// When the store has failed: nothing was acknowledged.
    pub async fn accept(&self, submissions: Vec<Submission>, rate: f64) -> Result<Vec<Verdict>, StoreFailed> {
        let prepared = submissions.into_iter().map(|submission| Prepared::new(submission, &self.hasher)).collect();
        self.ask(|reply| Act::Accept { prepared, rate, reply }).await
    }

    /// Waits at most `wait` for the outcome of an accepted submission, and says where it is then. While somebody
    /// waits, a refusal of its token buries the message at once, because there is somebody to be told.
    ///
    /// None where nothing is known of it any more.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn outcome(&self, id: MessageId, wait: Duration) -> Result<Option<State>, StoreFailed> {
        let (reply, mut outcome) = oneshot::channel();
        self.send(Act::Await { id, reply })?;
        tokio::select! {
            state = &mut outcome => state.map_err(|_| self.why_failed()),
            () = tokio::time::sleep(wait) => {
                // From here on nobody waits. If the outcome was decided while somebody did, the look, which comes
                // after it, finds it: nobody is told twice, and nothing is buried as told that nobody hears of.
                outcome.close();
                match outcome.try_recv() {
                    Ok(state) => Ok(state),
                    Err(_) => self.ask(|reply| Act::Look { id, reply }).await,
                }
            }
        }
    }

    /// Looks a submission up by its ClientToken.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn find(&self, asker: Asker, client_token: ClientToken) -> Result<Found, StoreFailed> {
        let asked = Asked::new(&asker, &self.hasher);
        self.ask(|reply| Act::Find { asked, client_token, reply }).await
    }

    /// Whether something of the asker's may go past the queue: nothing of its conversation is queued or in flight, and
    /// sending is not paused.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn is_idle(&self, asker: Asker) -> Result<bool, StoreFailed> {
        let asked = Asked::new(&asker, &self.hasher);
        self.ask(|reply| Act::IsIdle { asked, reply }).await
    }

    /// Remembers that a participant was given a connection token, by keyed hashes only. What is queued with the
    /// participant's earlier token goes with this one from now on.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn remember(&self, participant: ConnectionToken, token: ConnectionToken) -> Result<(), StoreFailed> {
        let (participant, hash) = (self.hasher.hash(b'g', &[participant.expose()]), self.hasher.token(&token));
        self.ask(|reply| Act::Remember { participant, hash, token, reply }).await
    }

    /// What waits, all in all or of one caller.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn backlog(&self, of: Option<Caller>) -> Result<Backlog, StoreFailed> {
        self.ask(|reply| Act::Backlog { of, reply }).await
    }

    /// What an operator sees; also brings the metrics that depend on the time up to date.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn overview(&self) -> Result<Overview, StoreFailed> {
        self.ask(|reply| Act::Overview { reply }).await
    }

    /// Takes out up to `most` messages that are due, each of another conversation, in turn. What an attempt `takes` tells
    /// those that will not arrive within their lifetime: they go last.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn lease(&self, most: usize, takes: Duration) -> Result<Work, StoreFailed> {
        self.ask(|reply| Act::Lease { most, takes, reply }).await
    }

    /// Records what an attempt came to, and the rate that has been learned, if one was.
    ///
    /// # Errors
    /// When the store has failed: the outcome is not recorded, and the message will be sent again.
    pub async fn settle(
        &self,
        lease: Lease,
        disposition: Disposition,
        learned: Option<Kept>,
    ) -> Result<Settled, StoreFailed> {
        self.ask(|reply| Act::Settle { lease: Box::new(lease), disposition, learned, reply }).await
    }

    /// Pauses sending: what is in flight is settled, and nothing more is leased, also after a restart.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn pause(&self, why: String) -> Result<(), StoreFailed> {
        self.ask(|reply| Act::Pause { why, reply }).await
    }

    /// Ends a pause, whoever began it, and forgets refused tokens.
    ///
    /// # Errors
    /// When the store has failed.
    pub async fn resume(&self) -> Result<(), StoreFailed> {
        self.ask(|reply| Act::Resume { reply }).await
    }

    /// The rate that was learned before this start.
    #[must_use]
    pub fn learned(&self) -> Option<Kept> {
        self.learned
    }

    /// Resolves when something may have become due since this was last awaited: arm it before looking.
    pub fn poked(&self) -> Notified<'_> {
        self.shared.poked.notified()
    }

    /// Resolves when messages have left the queue, or sending pauses: arm it before looking.
    pub fn drained(&self) -> Notified<'_> {
        self.shared.drained.notified()
    }

    /// How long the commit under way has taken; zero when there is none.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        match self.shared.commit_began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => self.shared.clock.now().since(Timestamp(began)),
        }
    }

    /// Resolves when the store has failed; pending for ever while it has not.
    pub async fn failed(&self) -> StoreFailed {
        loop {
            let failed = self.shared.failed.notified();
            tokio::pin!(failed);
            failed.as_mut().enable();
            if let Some(failure) = self.shared.failure.get() {
                return failure.clone();
            }
            failed.await;
        }
    }

    async fn ask<T>(&self, act: impl FnOnce(oneshot::Sender<T>) -> Act) -> Result<T, StoreFailed> {
        let (reply, answer) = oneshot::channel();
        self.send(act(reply))?;
        answer.await.map_err(|_| self.why_failed())
    }

    fn send(&self, act: Act) -> Result<(), StoreFailed> {
        self.acts.send(act).map_err(|_| self.why_failed())
    }

    fn why_failed(&self) -> StoreFailed {
        self.shared.failure.get().cloned().unwrap_or_else(|| StoreFailed("the queue is closed".into()))
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
    /// Written by a newer relay, or one from before the first release: exit 78.
    #[error("open queue {path}: its format is {found}, this relay reads {known}")]
    OtherFormat {
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
    /// Sealed, and no key opens it: exit 78.
    #[error("open queue {path}: it is sealed, and {} opens it", if *keys == 0 { "queue.key_file is not set, so nothing".to_owned() } else { format!("none of the {keys} key(s) in queue.key_file") })]
    Sealed {
        /// The folder.
        path: PathBuf,
        /// Keys that were tried.
        keys: usize,
    },
    /// Damaged, and it is to be left as it is.
    #[error("open queue {path}: it is damaged: {damage}; connect-relay doctor check {path} tells more")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What was found first.
        damage: String,
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
