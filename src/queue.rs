//! The durable queue: what bots handed over, until Connect has it or it is a dead letter.
//!
//! One thread, the [`Writer`], owns the store and carries out every act, reads included; a [`Queue`] is a handle that
//! sends it acts and awaits their answers. Acts that wait together are carried out together and committed by one
//! `fdatasync`; **answers go out after it**. So whatever anybody has been told, by a reply, an attempt or a metric, is
//! on disk, two equal submissions in one group are one message, and there is no lock to hold.
//!
//! The legal states of a message, by the rows that exist (`rows` has every row's layout):
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
mod act;
mod answers;
mod burial;
mod carry;
mod contents;
pub mod doctor;
mod expiring;
mod gauges;
mod lease;
mod line;
mod lookup;
mod operate;
mod overview;
mod packs;
mod pause;
mod prune;
mod queued;
mod rows;
mod salvage;
mod schedule;
mod settle;
mod tokens;
mod typed_store;
mod verdict;
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

use crate::delivery::Disposition;
use crate::message::{Caller, ClientToken, ConnectionToken, Submission};
use crate::metrics::Metrics;
use crate::pacer::{Budget, Kept};
pub use crate::storage::{OpenError, SealingKey, StoreFailed};
use crate::time::{Clock, Timestamp};
use act::{Act, Asked, Prepared};
pub use answers::Answers;
pub use carry::Carried;
pub use expiring::Expiring;
pub use lease::{Lease, LeaseRequest, Settled, Work};
pub use operate::{Cursor, Page, Part, Redrive, Seen, SeenPlace, Selection, Sought, Sweep, Unmoved};
pub use overview::{Backlog, Overview, Pause};
pub use verdict::{Asker, Found, Full, MessageId, Rejection, State, Status, Verdict};
pub use writer::Writer;

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
    /// The time between two messages while the destination refuses every token.
    pub probe_max: Duration,
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

/// A handle on the queue; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    acts: mpsc::Sender<Act>,
    hasher: rows::Hasher,
    learned: Option<Kept>,
    shared: Arc<Shared>,
}

/// What the handles see of the writer without asking it.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    poked: Notify,
    drained: Notify,
    /// The start of the commit under way, by [`Clock::awake`]; 0 if there is none.
    commit_began: AtomicU64,
    /// The rate at which messages go out, and whether the destination is down.
    budget: OnceLock<Budget>,
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
            budget: OnceLock::new(),
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
    /// If the store has failed.
    pub async fn outcome(&self, id: MessageId, wait: Duration) -> Result<Option<State>, StoreFailed> {
        self.outcome_until(id, tokio::time::sleep(wait)).await
    }

    /// The same until `over` resolves.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn outcome_until(
        &self,
        id: MessageId,
        over: impl Future<Output = ()>,
    ) -> Result<Option<State>, StoreFailed> {
        let (reply, mut outcome) = oneshot::channel();
        self.send(Act::Await { id, reply })?;
        tokio::select! {
            state = &mut outcome => state.map_err(|_| self.why_failed()),
            () = over => {
                // From here on nobody waits. If the outcome was decided while somebody did, the look, which comes
                // after it, finds it: nobody is told twice, and nothing is buried as told that nobody hears of.
                outcome.close();
                match outcome.try_recv() {
                    Ok(state) => Ok(state),
                    Err(_) => self.look(id).await,
                }
            }
        }
    }

    /// Returns the present state of an accepted submission; None if nothing is known of it any more.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn look(&self, id: MessageId) -> Result<Option<State>, StoreFailed> {
        self.ask(|reply| Act::Look { id, reply }).await
    }

    /// Names the budget that messages go out by. Until then the queue assumes that all go out at once.
    pub fn paced_by(&self, budget: Budget) {
        // The first one stands: a relay has one.
        let _ = self.shared.budget.set(budget);
    }

    /// Looks a submission up by its ClientToken.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn find(&self, asker: Asker, client_token: ClientToken) -> Result<Found, StoreFailed> {
        let asked = Asked::new(&asker, &self.hasher);
        self.ask(|reply| Act::Find { asked, client_token, reply }).await
    }

    /// Whether something of the asker's may go past the queue: nothing of its conversation is queued or in flight, and
    /// sending is not paused.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn is_idle(&self, asker: Asker) -> Result<bool, StoreFailed> {
        let asked = Asked::new(&asker, &self.hasher);
        self.ask(|reply| Act::IsIdle { asked, reply }).await
    }

    /// Remembers that a participant was given a connection token, by keyed hashes only. What is queued with the
    /// participant's earlier token goes with this one from now on.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn remember(&self, participant: ConnectionToken, token: ConnectionToken) -> Result<(), StoreFailed> {
        let (participant, hash) = (self.hasher.participant(&participant), self.hasher.token(&token));
        self.ask(|reply| Act::Remember { participant, hash, token, reply }).await
    }

    /// What waits, all in all or of one caller.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn backlog(&self, of: Option<Caller>) -> Result<Backlog, StoreFailed> {
        self.ask(|reply| Act::Backlog { of, reply }).await
    }

    /// What an operator sees; also brings the metrics that depend on the time up to date.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn overview(&self) -> Result<Overview, StoreFailed> {
        self.ask(|reply| Act::Overview { reply }).await
    }

    /// Takes out messages that are due, each of another conversation, in turn.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn lease(&self, request: LeaseRequest) -> Result<Work, StoreFailed> {
        self.ask(|reply| Act::Lease { request, reply }).await
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
    /// If the store has failed.
    pub async fn pause(&self, why: String) -> Result<(), StoreFailed> {
        self.ask(|reply| Act::Pause { why, reply }).await
    }

    /// Ends a pause, whoever began it, and forgets refused tokens.
    ///
    /// # Errors
    /// If the store has failed.
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
            began => self.shared.clock.awake().since(Timestamp(began)),
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
