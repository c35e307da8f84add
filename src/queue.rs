//! The durable queue: the messages that bots handed over, until Connect has them or they are dead letters.
//!
//! One thread, the [`QueueThread`], owns the store and runs every request, reads included; a [`Queue`] is a handle that
//! sends it requests and awaits their replies. Requests that wait together are run together and committed by one
//! `fdatasync`; **replies, log lines and counters follow after it**. So everything that another part of the relay learns,
//! by a reply, an attempt or a metric, is on disk, two equal submissions in one group are one message, and no lock exists.
//!
//! The legal states of a message, by the rows that exist (`rows` has every row's layout):
//!
//! | state | record in a pack `m` | reference in its conversation's `v` or `s` | ClientToken `i` | dead letter `x` |
//! | --- | --- | --- | --- | --- |
//! | queued | yes | yes | `Queued`, if the reference is in an `s` row | – |
//! | delivered | – | – | `Delivered`, until pruned | – |
//! | dead | – | – | `Dead`, until pruned | yes, until pruned |
//! | pruned, or never accepted | – | – | – | – |
//!
//! A conversation with queued messages has exactly one schedule: a turn (`r`, `q`), or a time until which it is delayed
//! (`d`: its first message backs off, or its token was refused and it is held). An attempt in flight is no state on disk:
//! after a crash the relay sends the first message again, with the same ClientToken, before any other message of its
//! conversation.
//!
//! **The instant of commit** is the return of `fdatasync`. A crash before it leaves all of the commit's rows or none, a
//! crash after it leaves all of them: a record of the journal counts only if it is whole. An operation that meets the
//! leftovers of a crash repairs them: nothing scans the store at start.
//!
//! In memory the queue keeps nothing per queued message; sled's page table keeps 50–130 bytes per row, and a queued
//! message has a share of its pack's row and of its conversation's, and a row of its own if its conversation is long. A
//! page of turns (256) and the messages in flight are all that the queue keeps.
//!
//! The parts, from the top; each names only parts below it (`tests/it/tidy.rs` proves it):
//!
//! | part | content |
//! | --- | --- |
//! | `queue` | the handle, [`Queue`]; opens the store, and has a damaged one rebuilt |
//! | [`recovery`] | survey, rebuild and doctor of a store offline |
//! | `thread` | group commit, replies, log lines, metrics, waiting callers, ticks |
//! | `ops` | the operations: pure functions on the state |
//! | `state` | the typed rows, and the events of operations |
//! | `hashed`, `api` | the types of requests and results |
//! | `rows` | every byte of every row |
//!
//! The queue does not know HTTP, statuses, or when an attempt may start.

mod api;
mod hashed;
mod ops;
pub mod recovery;
mod rows;
mod state;
mod thread;

#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::oneshot;

pub use self::api::{
    AGES, ActionError, Asker, Backlog, BulkProgress, ConversationCount, Cursor, Damaged, Expiring, Found, Full, Lease,
    LeaseRequest, Location, Lookup, MessageId, MessageState, MessageView, Options, OutcomeCursor, OutcomeEvent,
    OutcomePage, Overview, Page, Pause, Redrive, Rejection, Selection, Settled, StateFilter, Status, Stopped, Summary,
    Verdict, Work,
};
use self::hashed::{CallerKeys, HashedSubmission};
use self::ops::settle::Attempted;
use self::state::State;
use self::state::parts::CallerSet;
use self::thread::request::{Request, Shared, StandingRequest};
pub use self::thread::{Effects, QueueThread};
use crate::delivery::{Disposition, Outcome};
use crate::message::{Caller, ClientToken, ConnectionToken, Submission};
use crate::metrics::Metrics;
use crate::pacer::{Budget, LearnedRate};
use crate::ship;
pub use crate::storage::{OpenError, SealingKey, StoreFailed};
use crate::time::{Clock, Timestamp};

/// A handle on the queue; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    requests: mpsc::Sender<Request>,
    hasher: rows::Hasher,
    learned: Option<LearnedRate>,
    shared: Arc<Shared>,
}

/// The outcome of a message that was accepted for a waiting caller.
#[derive(Debug)]
pub struct PendingOutcome(oneshot::Receiver<Option<MessageState>>);

/// Every request fails if the store has failed. Nothing of it was acknowledged then, and a message whose outcome is not
/// recorded is sent again.
impl Queue {
    /// Opens the queue's folder, or creates it. A damaged store is set aside and rebuilt first, if the options say so. The
    /// [`QueueThread`] must run on a thread of its own before the first request.
    ///
    /// # Errors
    /// If another process uses the folder, it is in memory, it has a newer format, or it cannot be opened.
    pub fn open(options: Options, clock: Clock, metrics: &Metrics) -> Result<(Queue, QueueThread), OpenError> {
        match Queue::open_or_set_aside(&options, &clock, metrics)? {
            Some(opened) => Ok(opened),
            None => Queue::open_once(&options, &clock, metrics),
        }
    }

    /// The same, but if the store is damaged and is set aside, its replacement is not opened: `None`.
    ///
    /// # Errors
    /// As for [`Queue::open`].
    pub fn open_or_set_aside(
        options: &Options,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Option<(Queue, QueueThread)>, OpenError> {
        match Queue::open_once(options, clock, metrics) {
            Err(OpenError::Damaged { damage, .. }) if options.damaged == Damaged::SetAside => {
                recovery::set_aside(options, clock, &damage)?;
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    fn open_once(options: &Options, clock: &Clock, metrics: &Metrics) -> Result<(Queue, QueueThread), OpenError> {
        let (requests, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::new(clock.clone()));
        let thread = QueueThread::open(options.clone(), inbox, Arc::clone(&shared), metrics)?;
        let (hasher, learned) = (thread.state.hasher.clone(), thread.state.meta.learned);
        Ok((Queue { requests, hasher, learned, shared }, thread))
    }

    /// Accepts submissions, in their order, in one commit. `rate` is the learned rate of delivery: a lifetime that cannot
    /// be met at this rate is rejected.
    pub async fn accept(&self, submissions: Vec<Submission>, rate: f64) -> Result<Vec<Verdict>, StoreFailed> {
        let mut verdicts = Vec::with_capacity(submissions.len());
        let mut hashed: Vec<_> =
            submissions.into_iter().map(|submission| HashedSubmission::new(submission, &self.hasher)).collect();
        let accepted = self.call(move |state, now| {
            for submission in &mut hashed {
                verdicts.push(ops::accept::accept(state, submission, rate, now)?);
            }
            // The submissions go back, too: the caller's thread frees what it allocated, without a wait for the allocator's lock.
            Ok((verdicts, hashed))
        });
        Ok(accepted.await?.0)
    }

    /// Accepts one submission, and registers its caller for the outcome in the same step, if it stays queued. The caller
    /// waits with [`Queue::outcome_of`].
    pub async fn accept_and_wait(
        &self,
        submission: Submission,
        rate: f64,
    ) -> Result<(Verdict, PendingOutcome), StoreFailed> {
        let mut submission = HashedSubmission::new(submission, &self.hasher);
        let (waiter, outcome) = oneshot::channel();
        let (call, verdict) = Request::call(move |state, waiters, now| {
            let verdict = ops::accept::accept(state, &mut submission, rate, now)?;
            if let Verdict::Accepted { state: MessageState { id, status: Status::Queued { .. }, .. }, .. } = &verdict {
                waiters.add(*id, waiter);
            }
            Ok((verdict, submission))
        });
        self.send(call)?;
        let (verdict, _) = verdict.await.map_err(|_| self.why_failed())?;
        Ok((verdict, PendingOutcome(outcome)))
    }

    /// Waits at most `wait` for the outcome of an accepted submission, and returns its state then. While a caller waits, a
    /// refusal of the message's token makes it a dead letter at once, because the caller gets the error.
    ///
    /// Returns `None` if nothing is known of the submission any more.
    pub async fn outcome(&self, id: MessageId, wait: Duration) -> Result<Option<MessageState>, StoreFailed> {
        self.outcome_until(id, tokio::time::sleep(wait)).await
    }

    /// The same until `over` resolves.
    pub async fn outcome_until(
        &self,
        id: MessageId,
        over: impl Future<Output = ()>,
    ) -> Result<Option<MessageState>, StoreFailed> {
        let (waiter, outcome) = oneshot::channel();
        self.send(Request::Await { id, waiter })?;
        self.outcome_of(id, PendingOutcome(outcome), over).await
    }

    /// The same for a caller that was registered with the acceptance.
    pub async fn outcome_of(
        &self,
        id: MessageId,
        PendingOutcome(mut outcome): PendingOutcome,
        over: impl Future<Output = ()>,
    ) -> Result<Option<MessageState>, StoreFailed> {
        tokio::select! {
            state = &mut outcome => state.map_err(|_| self.why_failed()),
            () = over => {
                // From here on no caller waits. If the outcome was decided before, the look, which comes after it, finds
                // it: a message is never dead-lettered for a caller that does not get the error.
                outcome.close();
                match outcome.try_recv() {
                    Ok(state) => Ok(state),
                    Err(_) => self.look(id).await,
                }
            }
        }
    }

    /// Returns the present state of an accepted submission; `None` if nothing is known of it any more.
    pub async fn look(&self, id: MessageId) -> Result<Option<MessageState>, StoreFailed> {
        self.call(move |state, now| ops::query::look(state, id, now)).await
    }

    /// Sets the budget by which messages are sent. Until then the queue assumes that all of them are sent at once.
    pub fn paced_by(&self, budget: Budget) {
        // A relay has one budget: the first one stays.
        let _ = self.shared.budget.set(budget);
    }

    /// Finds a submission by its ClientToken.
    pub async fn find(&self, asker: Asker, client_token: ClientToken) -> Result<Found, StoreFailed> {
        let asked = CallerKeys::new(&asker, &self.hasher);
        self.call(move |state, now| ops::query::find(state, asked, &client_token, now)).await
    }

    /// Returns true if a request of this caller may bypass the queue: no message of its conversation is queued or in
    /// flight, and sending is not paused.
    pub async fn is_idle(&self, asker: Asker) -> Result<bool, StoreFailed> {
        let asked = CallerKeys::new(&asker, &self.hasher);
        self.call(move |state, now| ops::query::is_idle(state, asked, now)).await
    }

    /// Records that a participant got a connection token, by keyed hashes only. Messages that are queued with the
    /// participant's earlier token are sent with this one.
    pub async fn remember(&self, participant: ConnectionToken, token: ConnectionToken) -> Result<(), StoreFailed> {
        let (participant, hash) = (self.hasher.participant(&participant), self.hasher.token(&token));
        self.call(move |state, now| state.remember(participant, hash, &token, now)).await
    }

    /// The queued messages of one caller, or of all.
    pub async fn backlog(&self, of: Option<Caller>) -> Result<Backlog, StoreFailed> {
        self.call(move |state, _| ops::query::backlog(state, of)).await
    }

    /// Returns the position to read outcomes from: `after`, or the present end. `None` if an outcome after it may have been
    /// pruned, or it is of another store.
    pub async fn outcomes_from(&self, after: Option<OutcomeCursor>) -> Result<Option<OutcomeCursor>, StoreFailed> {
        self.call(move |state, now| ops::outcomes::start(state, after, now)).await
    }

    /// The next outcomes of a caller's messages, in the order of their commits. `None` if one of them may have been pruned.
    /// After the last page, [`Queue::settled`] resolves when there may be more: arm it before looking.
    pub async fn outcomes(&self, of: Caller, after: OutcomeCursor) -> Result<Option<OutcomePage>, StoreFailed> {
        let caller = rows::caller_number(of);
        self.call(move |state, _| ops::outcomes::page(state, caller, after)).await
    }

    /// The queue's state for operators; also updates the metrics that depend on the time.
    pub async fn overview(&self) -> Result<Overview, StoreFailed> {
        self.call(ops::query::overview).await
    }

    /// Takes out messages that are due, each of another conversation, in turn.
    pub async fn lease(&self, request: LeaseRequest) -> Result<Work, StoreFailed> {
        self.call(move |state, now| ops::lease::lease(state, request, now)).await
    }

    /// The same. If nothing can be sent, the request stands until the next one: the commit that gives a conversation a
    /// turn leases for it, and the second result resolves. It fails if the next request came first. A standing request
    /// gets no message of a conversation that backed off. If it was served, its result is there before that of the next
    /// request.
    pub async fn lease_or_stand(
        &self,
        request: LeaseRequest,
    ) -> Result<(Work, Option<oneshot::Receiver<Work>>), StoreFailed> {
        let (reply, later) = oneshot::channel();
        let (call, work) = Request::call(move |state, waiters, now| {
            let work = ops::lease::lease(state, request, now)?;
            let request = LeaseRequest { backed_off_first: 0, backed_off_most: 0, ..request };
            waiters.sender = work.leases.is_empty().then_some(StandingRequest { request, reply });
            Ok(work)
        });
        self.send(call)?;
        let work = work.await.map_err(|_| self.why_failed())?;
        let later = work.leases.is_empty().then_some(later);
        Ok((work, later))
    }

    /// Ends the standing request.
    pub async fn end_standing(&self) -> Result<(), StoreFailed> {
        let (call, ended) = Request::call(|_, waiters, _| {
            waiters.sender = None;
            Ok(())
        });
        self.send(call)?;
        ended.await.map_err(|_| self.why_failed())
    }

    /// Records the result of a lease: the outcome of its attempt, or `None` if the message was not sent, and the learned
    /// rate, if there is one.
    pub async fn settle(
        &self,
        lease: Lease,
        outcome: Option<Outcome>,
        disposition: Disposition,
        learned: Option<LearnedRate>,
    ) -> Result<Settled, StoreFailed> {
        let (conversation, attempted) =
            (lease.conversation, Attempted { lease: Box::new(lease), outcome, disposition });
        let (request, settled) = Request::call(move |state, waiters, now| {
            state.meta.learned = learned.or(state.meta.learned);
            ops::settle::settle(state, attempted, || waiters.of(&conversation), now)
        });
        self.send(request)?;
        settled.await.map_err(|_| self.why_failed())
    }

    /// Pauses sending: attempts in flight are settled, and no message is leased, also after a restart.
    pub async fn pause(&self, why: String) -> Result<(), StoreFailed> {
        self.call(move |state, now| {
            ops::pause::pause(state, why, now);
            Ok(())
        })
        .await
    }

    /// Ends a pause, and resets refusals of tokens.
    pub async fn resume(&self) -> Result<(), StoreFailed> {
        let mut resumed = None;
        loop {
            resumed = self.call(move |state, now| ops::pause::resume(state, resumed, now)).await?;
            if resumed.is_none() {
                return Ok(());
            }
        }
    }

    /// The next messages of a selection, at most `most`.
    pub async fn list(&self, of: Selection, after: Cursor, most: usize) -> Result<Page, StoreFailed> {
        self.call(move |state, now| ops::browse::list(state, &of, after, most, now)).await
    }

    /// Continues a summary by one step; [`Summary::is_complete`] returns true after the last one.
    pub async fn summarize(&self, summary: Summary) -> Result<Summary, StoreFailed> {
        self.call(move |state, now| ops::summary::summarize(state, summary, now)).await
    }

    /// Finds a message by the displayed form of its id.
    pub async fn seek(&self, name: &str) -> Result<Lookup, StoreFailed> {
        let Some((store, sequence)) = MessageId::parts(name) else { return Ok(Lookup::Never) };
        let mut after = 0;
        loop {
            match self.call(move |state, _| ops::browse::seek(state, store, sequence, after)).await? {
                Ok(sought) => return Ok(sought),
                Err(further) => after = further,
            }
        }
    }

    /// A message that is queued or dead, with its contents if `contents` is true.
    pub async fn show(&self, id: MessageId, contents: bool) -> Result<Option<MessageView>, StoreFailed> {
        self.call(move |state, now| ops::browse::show(state, id, contents, now)).await
    }

    /// Queues a dead letter again, with a fresh lifetime, and removes the refusal of its token.
    pub async fn redrive(&self, id: MessageId, with: Redrive) -> Result<Result<MessageView, ActionError>, StoreFailed> {
        self.call(move |state, now| ops::redrive::redrive(state, id, with, now)).await
    }

    /// Redrives the next dead letters of a selection, at most `most`; deleted ones only if the selection has that reason.
    /// Ends when the queue is full. With `dry_run` it counts them and changes nothing.
    pub async fn redrive_all(
        &self,
        of: Selection,
        page: (Cursor, usize),
        dry_run: bool,
    ) -> Result<BulkProgress, StoreFailed> {
        let of = Selection { state: Some(StateFilter::Dead), ..of };
        self.call(move |state, now| ops::redrive::redrive_all(state, &of, page, dry_run, now)).await
    }

    /// Makes a message a dead letter with the reason `deleted`.
    pub async fn delete(&self, id: MessageId) -> Result<Result<MessageView, ActionError>, StoreFailed> {
        self.call(move |state, now| ops::redrive::delete(state, id, now)).await
    }

    /// Deletes the next messages of a selection, at most `most`: queued ones, or with a reason dead letters. With `dry_run`
    /// it counts them and changes nothing.
    pub async fn delete_all(
        &self,
        of: Selection,
        page: (Cursor, usize),
        dry_run: bool,
    ) -> Result<BulkProgress, StoreFailed> {
        let state = if of.reason.is_some() { StateFilter::Dead } else { StateFilter::Queued };
        let of = Selection { state: Some(state), ..of };
        self.call(move |state, now| ops::redrive::delete_all(state, &of, page, dry_run, now)).await
    }

    /// The rate that was learned before this start.
    #[must_use]
    pub fn learned(&self) -> Option<LearnedRate> {
        self.learned
    }

    /// Resolves when a message may have become due since this was last awaited: arm it before looking.
    pub fn poked(&self) -> Notified<'_> {
        self.shared.poked.notified()
    }

    /// Wakes what waits for [`Queue::poked`]: more may start than it knows.
    pub fn poke(&self) {
        self.shared.poked.notify_one();
    }

    /// Resolves when messages have left the queue, or sending pauses: arm it before looking.
    pub fn drained(&self) -> Notified<'_> {
        self.shared.drained.notified()
    }

    /// The state of the copy in the fleet; `None` if there is no copy. While it is `Up`, the fleet has everything that was
    /// committed.
    #[must_use]
    pub fn copy(&self) -> Option<ship::link::State> {
        self.shared.copy.get().map(|state| *state.borrow())
    }

    /// Returns true if attempts may start, as far as the fleet is concerned: always, if there is no copy.
    #[must_use]
    pub fn is_owner(&self, now: Timestamp) -> bool {
        self.shared.ownership.get().is_none_or(|(ownership, _)| ownership.is_confirmed(now))
    }

    /// Returns true if another relay continues this queue.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.shared.ownership.get().is_some_and(|(ownership, _)| ownership.is_lost())
    }

    /// Waits until the fleet confirms that this relay owns the queue, or does not answer in time, or another one does.
    pub async fn confirm_owner(&self) {
        if let Some((ownership, within)) = self.shared.ownership.get() {
            ownership.confirm(&self.shared.clock, *within).await;
        }
    }

    /// Resolves when the copy in the fleet has this state; never if there is no copy.
    pub async fn copy_is(&self, wanted: ship::link::State) {
        let Some(mut state) = self.shared.copy.get().cloned() else { return std::future::pending().await };
        if state.wait_for(|state| *state == wanted).await.is_err() {
            // The queue's thread has ended.
            std::future::pending().await
        }
    }

    /// Resolves when a message of this caller may have an outcome: arm it before looking.
    pub fn settled(&self, of: Caller) -> Notified<'_> {
        self.shared.settled[CallerSet::slot(rows::caller_number(of))].notified()
    }

    /// The duration so far of the commit under way; zero if there is none.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        match self.shared.commit_began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => self.shared.clock.awake().since(Timestamp(began)),
        }
    }

    /// Resolves when the store has failed.
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

    /// Runs an operation on the queue's thread, and returns its result after the commit.
    async fn call<T: Send + 'static>(
        &self,
        op: impl FnOnce(&mut State, Timestamp) -> Result<T, StoreFailed> + Send + 'static,
    ) -> Result<T, StoreFailed> {
        let (request, result) = Request::call(move |state, _, now| op(state, now));
        self.send(request)?;
        result.await.map_err(|_| self.why_failed())
    }

    fn send(&self, request: Request) -> Result<(), StoreFailed> {
        self.requests.send(request).map_err(|_| self.why_failed())
    }

    fn why_failed(&self) -> StoreFailed {
        self.shared.failure.get().cloned().unwrap_or_else(|| StoreFailed("the queue is closed".into()))
    }
}
