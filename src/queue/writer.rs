//! The one thread that owns the store: takes what waits, carries it out, commits once, answers.

mod begin;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tracing::{debug, error, info};

use super::act::Act;
use super::answers::{Answer, Answers};
use super::expiring::Expiring;
use super::gauges::Gauges;
use super::packs::Open;
use super::pause::Trust;
use super::rows::{Hash, Hasher, Meta, Sending, Table};
use super::schedule::Ahead;
use super::typed_store::TypedStore;
use super::waiters::Waiters;
use super::{MessageId, Options, Shared, StoreFailed};
use crate::memory;
use crate::pacer::{Closed, Kept};
use crate::storage::{Sealer, Space};
use crate::time::{Anchor, Clock, Timestamp, millis};
use crate::turns::{FreshTurns, Turns};

/// What is carried out between two commits, at the most: in bytes, because what a batch of sled's leaves to be freed
/// stays in memory for a while (with 1 MiB ten thousand messages took 47 MiB, with this 23), and in acts, because the
/// first of them waits for the last. A batch that a bot hands over is one commit, whatever its length.
const GROUP_BYTES: usize = 256 << 10;
const GROUP_ACTS: usize = 1024;
/// What the log may waste, beside three times what it holds, before it is compacted.
const COMPACT_BYTES: u64 = 32 << 20;
/// How often time itself makes work: expiry, pruning, gauges.
const TICK: Duration = Duration::from_secs(1);
/// How often memory that was freed is given back, if anything was committed since.
const GIVE_BACK: Duration = Duration::from_secs(60);

/// The thread that owns the store.
pub struct Writer {
    pub(super) options: Options,
    pub(super) store: TypedStore,
    pub(super) hasher: Hasher,
    /// The last anchor of the inner line that the store has.
    pub(super) anchor: Option<Anchor>,
    pub(super) sealer: Sealer,
    pub(super) meta: Meta,
    pub(super) gauges: Gauges,
    pub(super) waiters: Waiters,
    /// Conversations that the destination throttled, and the time since which they could have been sent.
    pub(super) throttled: HashMap<Hash, Timestamp>,
    /// Conversations in flight, and the message that is.
    pub(super) leased: HashMap<Hash, u64>,
    pub(super) turns: Turns,
    pub(super) ahead: Ahead,
    pub(super) fresh: FreshTurns,
    /// Up to this pack no message dies by the order of acceptance for now.
    pub(super) expiry_cursor: u64,
    /// Where the next record is filed; none where nothing was since the last commit.
    pub(super) open_pack: Option<Open>,
    /// The record being filed; kept for its room.
    pub(super) encoded: Vec<u8>,
    /// Outcomes since the last commit (conversation and entry), and rows that were last used now: to be pruned one day.
    pub(super) outcomes: Vec<(Hash, Hash)>,
    pub(super) used: Vec<(u8, Hash)>,
    /// Whether it is paused, and what else stands beside the messages.
    pub(super) sending: Sending,
    pub(super) trust: Trust,
    /// Something may have become due.
    pub(super) poke: bool,
    /// Messages have left.
    pub(super) left: bool,
    pub(super) space: Space,
    /// The loss to come, as of then.
    pub(super) expiring: Expiring,
    pub(super) foreseen_at: Timestamp,
    shared: Arc<Shared>,
    inbox: Receiver<Act>,
    answers: Vec<Answer>,
    /// Who carries them out; without one the writer does.
    answering: Option<UnboundedSender<Vec<Answer>>>,
    ticked: Timestamp,
    /// The first commit since memory was last given back.
    held_since: Option<Timestamp>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("store", &self.store).field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn note_meta(&mut self) {
        self.store.put(Table::Meta.key(), &self.meta);
    }

    /// Records where the inner line is, if the store does not know that well enough.
    fn note_anchor(&mut self) {
        if let Some(anchor) = self.shared.clock.anchor(self.anchor) {
            self.store.put(Table::Anchor.key(), &anchor);
            self.anchor = Some(anchor);
        }
    }

    /// Records a step of the wall clock at once: a reboot could not tell it from time that passed.
    fn note_step(&mut self) {
        let Some(last) = self.anchor.filter(|last| self.shared.clock.is_stepped(Some(*last))) else { return };
        self.note_anchor();
        let now = self.now();
        let (was, is) = (last.shown(now).seconds(), self.shared.clock.shown(now).seconds());
        info!(
            stepped_seconds = ((is - was) * 1000.0).round() / 1000.0,
            "the wall clock was set: ages and lifetimes go on by elapsed time, and the times shown move with it"
        );
    }

    pub(super) fn hasher(&self) -> Hasher {
        self.hasher.clone()
    }

    pub(super) fn learned(&self) -> Option<Kept> {
        self.meta.learned
    }

    /// From now on what follows from a commit is left to whoever has this.
    #[must_use]
    pub fn answers(&mut self) -> Answers {
        let (answering, answers) = unbounded_channel();
        self.answering = Some(answering);
        Answers(answers)
    }

    /// Carries out acts until the last handle is gone. A clean end is recorded, so that the next start knows that no
    /// head of a conversation is in doubt.
    ///
    /// # Errors
    /// When the store has failed: from then on every act is answered by that, and nothing is acknowledged.
    pub fn run(mut self) -> Result<(), StoreFailed> {
        let result = self.work();
        if let Err(failure) = &result {
            error!(%failure, "the store failed; nothing more is acknowledged or sent");
            let _ = self.shared.failure.set(failure.clone());
            self.shared.failed.notify_waiters();
        }
        // Answers that were not given are dropped with `self`: whoever awaits them learns of the failure.
        result
    }

    fn work(&mut self) -> Result<(), StoreFailed> {
        self.tick()?;
        loop {
            let idle = if self.store.is_checkpointing() { Duration::ZERO } else { TICK };
            let mut next = match self.inbox.recv_timeout(idle) {
                Ok(act) => Some(act),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut acts = 0;
            while let Some(act) = next.take() {
                self.carry_out(act)?;
                acts += 1;
                if acts < GROUP_ACTS && self.store.pending_bytes() < GROUP_BYTES {
                    next = self.inbox.try_recv().ok();
                }
            }
            if self.shared.clock.now().since(self.ticked) >= TICK {
                self.tick()?;
            }
            if acts > 0 {
                #[expect(clippy::cast_precision_loss, reason = "at most GROUP_ACTS")]
                self.gauges.commit_messages.observe(acts as f64);
            }
            self.commit()?;
        }
        self.meta.clean = self.leased.is_empty();
        self.note_meta();
        self.commit()?;
        self.store.checkpoint()
    }

    fn carry_out(&mut self, act: Act) -> Result<(), StoreFailed> {
        let now = self.now();
        match act {
            Act::Accept { prepared, rate, reply } => {
                let mut verdicts = Vec::with_capacity(prepared.len());
                for submission in prepared {
                    verdicts.push(self.accept(submission, rate, now)?);
                }
                self.answer(reply, verdicts);
            }
            Act::Await { id, reply } => match self.look(id)? {
                Some(state) if matches!(state.status, super::Status::Queued { .. }) => {
                    self.waiters.add(id.sequence, id.conversation, reply);
                }
                state => self.answer(reply, state),
            },
            Act::Look { id, reply } => {
                let state = self.look(id)?;
                self.answer(reply, state);
            }
            Act::Find { asked, client_token, reply } => {
                let found = self.find(asked, &client_token)?;
                self.answer(reply, found);
            }
            Act::IsIdle { asked, reply } => {
                let idle = self.is_idle(asked)?;
                self.answer(reply, idle);
            }
            Act::Remember { participant, hash, token, reply } => {
                self.remember(participant, hash, &token, now)?;
                self.answer(reply, ());
            }
            Act::Backlog { of, reply } => {
                let backlog = self.backlog(of)?;
                self.answer(reply, backlog);
            }
            Act::Overview { reply } => {
                let overview = self.overview(now)?;
                self.gauges.show(&overview, now, &self.shared.clock);
                self.answer(reply, overview);
            }
            Act::Pause { why, reply } => {
                self.pause(why, now);
                self.answer(reply, ());
            }
            Act::Resume { reply } => {
                self.resume(now)?;
                self.answer(reply, ());
            }
            Act::Operate(operation) => self.operate(operation, now)?,
            Act::Lease { request, reply } => {
                let work = self.lease(request, now)?;
                self.answer(reply, work);
            }
            Act::Settle { lease, disposition, learned, reply } => {
                self.meta.learned = learned.or(self.meta.learned);
                let settled = self.settle(&lease, disposition, now)?;
                self.answer(reply, settled);
            }
        }
        Ok(())
    }

    /// The rate at which messages go out, and why they do not.
    pub(super) fn pace(&self) -> (f64, Option<Closed>) {
        self.shared.budget.get().map_or((f64::INFINITY, None), |budget| {
            let pacer = budget.pacer();
            (pacer.rate(), pacer.closed())
        })
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    pub(super) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Answers after the commit.
    pub(super) fn answer<T: Send + 'static>(&mut self, reply: oneshot::Sender<T>, answer: T) {
        self.answers.push(Box::new(move || {
            // Whoever hung up does not want it.
            let _ = reply.send(answer);
        }));
    }

    /// Does something after the commit.
    pub(super) fn afterwards(&mut self, act: impl FnOnce() + Send + 'static) {
        self.answers.push(Box::new(act));
    }

    /// What time itself makes to do.
    fn tick(&mut self) -> Result<(), StoreFailed> {
        let now = self.now();
        self.ticked = now;
        self.waiters.sweep();
        self.store.scan_folder();
        self.measure_space();
        self.note_step();
        self.expire(now)?;
        self.prune(now)?;
        self.commit()?;
        let spare = COMPACT_BYTES.min(self.options.bytes_max / 4);
        let live = self.live_bytes();
        if let Some(bytes) = self.store.compact(live, spare)? {
            let took = self.now().since(now);
            debug!(bytes, took_ms = millis(took), "the queue's log was compacted");
            self.held_since = Some(Timestamp(0));
        }
        if self.held_since.is_some_and(|since| now.since(since) >= GIVE_BACK) {
            self.held_since = None;
            memory::give_back();
        }
        self.foresee(now)?;
        let overview = self.overview(now)?;
        self.gauges.show(&overview, now, &self.shared.clock);
        Ok(())
    }

    fn measure_space(&mut self) {
        self.space = self.store.measure_space(self.options.free_disk_min);
    }

    /// The instant of commit, and what follows from it.
    pub(super) fn commit(&mut self) -> Result<(), StoreFailed> {
        self.open_pack = None;
        self.write_prune_rows();
        let changed = self.store.pending_bytes() > 0 || self.store.is_checkpointing();
        if self.store.pending_bytes() > 0 {
            self.note_anchor();
            self.note_meta();
            let began = self.now();
            self.shared.commit_began.store(self.shared.clock.awake().0, Ordering::Relaxed);
            let timer = self.gauges.commit_seconds.start_timer();
            let committed = self.store.commit();
            if committed.is_err() {
                self.gauges.store_errors.with_label_values(&["commit"]).inc();
            }
            committed?;
            timer.observe_duration();
            self.shared.commit_began.store(0, Ordering::Relaxed);
            self.held_since = self.held_since.or(Some(began));
        }
        self.gauges.corrupt.inc_by(self.store.take_corrupt());
        self.let_know();
        if changed {
            // After the answers: what they say is durable, and this takes its time.
            self.shared.commit_began.store(self.shared.clock.awake().0, Ordering::Relaxed);
            let grown = self.store.advance_checkpoint()?;
            self.shared.commit_began.store(0, Ordering::Relaxed);
            if grown {
                self.measure_space();
            }
        }
        Ok(())
    }

    /// What is durable may be told.
    fn let_know(&mut self) {
        if std::mem::take(&mut self.poke) {
            let shared = Arc::clone(&self.shared);
            self.afterwards(move || shared.poked.notify_one());
        }
        if std::mem::take(&mut self.left) {
            let shared = Arc::clone(&self.shared);
            self.afterwards(move || shared.drained.notify_waiters());
        }
        if self.answers.is_empty() {
            return;
        }
        let answers = std::mem::take(&mut self.answers);
        let left = match &self.answering {
            // Where the task is gone, so is the runtime, and all who waited.
            Some(answering) => answering.send(answers).map_or_else(|unsent| unsent.0, |()| Vec::new()),
            None => answers,
        };
        left.into_iter().for_each(|answer| answer());
    }

    /// Splits work that is too long for one batch: between two commits the store is whole.
    pub(super) fn commit_if_long(&mut self) -> Result<(), StoreFailed> {
        if self.store.pending_bytes() >= GROUP_BYTES { self.commit() } else { Ok(()) }
    }

    pub(super) fn id(&self, sequence: u64, conversation: Hash, entry: Hash) -> MessageId {
        MessageId { store: self.store.nonce, sequence, conversation, entry }
    }
}
