//! The one thread that owns the store: it runs the requests that wait, commits once, and applies their effects.
//!
//! A group of requests is committed by one `fdatasync`. Replies, log lines, counters and wake-ups follow after it, so
//! everything that another part of the relay learns is on disk. [`State`] and `ops` decide; this module has the clock, the
//! waiting callers, the metrics and the ticks.

mod effects;
mod metrics;
pub mod request;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tracing::{debug, error, info};

pub use self::effects::Effects;
use self::effects::{Committed, Effect, is_reported, report};
use self::metrics::{CopyMetrics, QueueMetrics};
use self::request::{Request, Shared, Waiters, is_any_open};
use super::api::{Options, Result, Status};
use super::ops::estimate::Pace;
use super::ops::{self, COMMIT_BYTES, expire};
use super::rows::{self, Table};
use super::state::State;
use super::state::event::Event;
use crate::malloc;
use crate::metrics::Metrics;
use crate::pacer::Closed;
use crate::ship::link::{Link, Wanted};
use crate::storage::{self, OpenError, Opened, Store, StoreFailed};
use crate::time::{Anchor, Timestamp, millis};

/// The most requests of one commit, because the first of them waits for the last. A batch of a bot is one request, whatever
/// its length. [`COMMIT_BYTES`] limits a commit, too.
const GROUP_MAX: usize = 1024;
/// The bytes that the log may waste, besides three times the bytes in use, before it is compacted.
const COMPACT_BYTES: u64 = 32 << 20;
/// The interval of expiry, pruning and gauges.
const TICK: Duration = Duration::from_secs(1);
/// The interval at which the store's folder is looked through while nothing is committed.
const SCAN_AT_REST: Duration = Duration::from_secs(10);
/// The interval at which freed memory is given back, if anything was committed since.
const GIVE_BACK: Duration = Duration::from_secs(60);
/// The time without a commit after which the queue rests.
const REST: Duration = Duration::from_secs(10);

/// A part of a tick. It returns true if it has to be called again after a commit; the number is what is left of its work.
type TickPart = fn(&mut State, Timestamp, &mut usize) -> Result<bool>;

/// The parts of a tick that change rows, each with the most work of one tick: other requests wait meanwhile.
const TICK_PARTS: [(TickPart, usize); 5] = [
    (expire::expire_own_lifetimes, 4096),
    (expire::expire_default_lifetimes, 4096),
    (expire::prune_outcomes, 256),
    (expire::prune_dead_letters, 256),
    (expire::prune_last_uses, 256),
];

/// The thread that owns the store.
pub struct QueueThread {
    pub(super) state: State,
    shared: Arc<Shared>,
    inbox: Receiver<Request>,
    waiters: Waiters,
    metrics: QueueMetrics,
    /// The effects of the commit under way.
    effects: Vec<Effect>,
    /// The task that applies effects; without one this thread does.
    applying: Option<UnboundedSender<Committed>>,
    /// The last anchor of the clock that the store has.
    anchor: Option<Anchor>,
    ticked: Timestamp,
    /// True once the thread serves requests. The estimates of the first tick, and a checkpoint of the last run's commits,
    /// come after the first requests: a start does not wait for them.
    serves: bool,
    /// The last look through the store's folder. `None` once something was committed since.
    scanned: Option<Timestamp>,
    /// The first commit since memory was last given back at rest, or the last time that it was given back since then.
    held_since: Option<Timestamp>,
    /// The last commit.
    committed: Timestamp,
    /// The copy in the fleet, if there is one.
    link: Option<Link>,
}

impl std::fmt::Debug for QueueThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueThread").finish_non_exhaustive()
    }
}

impl QueueThread {
    /// Opens the store, and begins a run on it. It must run on a thread of its own before it gets requests.
    ///
    /// # Errors
    /// If the store cannot be opened.
    pub fn open(
        options: Options,
        inbox: Receiver<Request>,
        shared: Arc<Shared>,
        metrics: &Metrics,
    ) -> Result<QueueThread, OpenError> {
        let path = options.path.clone();
        let of_store = storage::Options {
            volatile: options.volatile,
            keys: options.keys.clone(),
            write_once: rows::WRITE_ONCE,
            removal_weight: rows::removal_weight,
        };
        let Opened { store, key, sealer, damaged } = Store::open(&path, of_store, shared.clock.wall())?;
        let metrics = QueueMetrics::new(metrics, &options);
        let mut thread = QueueThread {
            state: State::new(options, store, damaged, &key, sealer),
            shared,
            inbox,
            waiters: Waiters::default(),
            metrics,
            effects: Vec::new(),
            applying: None,
            anchor: None,
            ticked: Timestamp(0),
            serves: false,
            scanned: None,
            held_since: None,
            committed: Timestamp(0),
            link: None,
        };
        storage::guarded(&path.clone(), move || {
            let failed = |cause: StoreFailed| OpenError::Failed { path, step: "begin", cause: cause.to_string() };
            thread.begin().map_err(failed)?;
            thread.state.store.finish_open();
            Ok(thread)
        })
    }

    /// Continues where the last run ended, and records that this one has begun.
    fn begin(&mut self) -> Result<()> {
        let (anchor, newest) = ops::begin::begin(&mut self.state)?;
        self.resume_clock(anchor, newest);
        ops::pause::begin(&mut self.state)?;
        if self.state.all_refused().is_some() {
            let mut resumed = None;
            loop {
                let now = self.now();
                resumed = ops::pause::resume(&mut self.state, resumed, now)?;
                if resumed.is_none() {
                    break;
                }
                self.commit()?;
            }
        }
        self.commit()
    }

    /// Continues the times of a store with this anchor, whose newest timestamp is `newest`.
    pub(super) fn resume_clock(&mut self, anchor: Option<Anchor>, newest: Timestamp) {
        self.shared.clock.resume(anchor, newest);
        // The next commit writes the anchor of this boot.
        self.anchor = None;
    }

    /// The sequence number of the next message.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.state.meta.next_sequence
    }

    pub(super) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Returns the effects of commits, which a task has to run. Until this is called, the thread applies them itself.
    #[must_use]
    pub fn effects(&mut self) -> Effects {
        let (applying, commits) = unbounded_channel();
        self.applying = Some(applying);
        Effects { commits, shared: Arc::clone(&self.shared) }
    }

    /// Ships every commit from now on, beginning with a snapshot. The handles read the state of the copy.
    pub fn ship_to(&mut self, mut link: Link, metrics: &Metrics) {
        // A queue has one copy: the first one stays.
        let _ = self.shared.copy.set(link.state());
        let _ = self.shared.ownership.set((Arc::clone(&link.ownership), link.ack_timeout));
        self.metrics.copy = Some(CopyMetrics::new(metrics));
        link.at = self.state.store.last_commit();
        self.link = Some(link);
    }

    /// Runs requests until the last handle is dropped. Records a clean end, so that the next start knows that no message
    /// was in flight.
    ///
    /// # Errors
    /// If the store has failed: from then on every request fails, and nothing is acknowledged.
    pub fn run(mut self) -> Result<()> {
        let result = self.work();
        if let Err(failure) = &result {
            error!(%failure, "the store failed; nothing more is acknowledged or sent");
            let _ = self.shared.failure.set(failure.clone());
            self.shared.failed.notify_waiters();
        }
        // Replies that were not sent are dropped with `self`: their callers learn of the failure.
        result
    }

    fn work(&mut self) -> Result<()> {
        self.tick()?;
        self.commit()?;
        loop {
            self.ship_snapshot()?;
            let steps = self.state.store.is_checkpointing() && self.serves;
            let mut idle = if steps { Duration::ZERO } else { TICK };
            if let Some(link) = &mut self.link {
                idle = link.pause().map_or(idle, |pause| idle.min(pause));
                // The look for reports may have found another owner.
                self.state.fenced |= link.is_fenced();
            }
            let mut next = match self.inbox.recv_timeout(idle) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let first = !std::mem::replace(&mut self.serves, true);
            let mut requests = 0;
            while let Some(request) = next.take() {
                self.handle(request)?;
                requests += 1;
                if requests < GROUP_MAX && self.state.store.pending_bytes() < COMMIT_BYTES {
                    next = self.inbox.try_recv().ok();
                }
            }
            if requests > 0 {
                #[expect(clippy::cast_precision_loss, reason = "at most GROUP_MAX")]
                self.metrics.commit_messages.observe(requests as f64);
            }
            if first {
                // The replies to the first requests do not wait for the tick.
                self.commit()?;
            }
            if first || self.now().since(self.ticked) >= TICK {
                self.tick()?;
            }
            self.commit()?;
        }
        self.state.meta.clean = self.state.leased.is_empty();
        self.state.write_meta();
        self.commit()?;
        if let Some(link) = &mut self.link {
            link.release(self.state.meta.queued);
        }
        self.state.store.checkpoint()
    }

    /// Ships the next part of a snapshot, if one is under way, between two commits.
    fn ship_snapshot(&mut self) -> Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let queued = self.state.meta.queued;
        match link.wanted() {
            Wanted::Nothing => {}
            Wanted::Begin => {
                let stamp = self.state.store.stamp_text()?.to_string();
                link.begin(stamp, queued);
            }
            Wanted::Rows(after, bytes) => {
                let mut rows = Vec::with_capacity(bytes);
                let last = self.state.store.copy_rows(after, bytes, &mut rows)?;
                link.rows(rows, last, queued);
            }
        }
        Ok(())
    }

    /// Takes in the reports of the copy.
    fn note_copy(&mut self, began: Timestamp) {
        let now = self.now();
        let Some(link) = &mut self.link else { return };
        link.note(began, now);
        self.state.fenced |= link.is_fenced();
        self.state.behind = link.behind;
        if let Some(metrics) = &self.metrics.copy {
            let (commits, since) = self.state.behind;
            metrics.show(commits, since.map(|since| now.since(since)));
        }
    }

    fn handle(&mut self, request: Request) -> Result<()> {
        let now = self.now();
        match request {
            Request::Call(mut call) => {
                call.run(&mut self.state, &mut self.waiters, now)?;
                self.take_events();
                self.effects.push(Effect::Reply(call));
            }
            Request::Await { id, waiter } => match ops::query::look(&mut self.state, id, now)? {
                Some(state) if matches!(state.status, Status::Queued { .. }) => {
                    self.waiters.add(id, waiter);
                }
                state => self.effects.push(Effect::Look(waiter, state)),
            },
        }
        Ok(())
    }

    /// Makes effects of the events of an operation. A message that has left takes its waiting callers with it: the callers
    /// that begin to wait later in this group wait for the same message queued again.
    fn take_events(&mut self) {
        for event in self.state.events.drain(..) {
            let waiters = match &event {
                Event::Delivered { lease, .. } => self.waiters.take(lease.id),
                Event::Dead(death) => self.waiters.take(death.id),
                _ => Vec::new(),
            };
            self.effects.push(Effect::Event(event, waiters));
        }
    }

    /// The work that is due by time.
    fn tick(&mut self) -> Result<()> {
        let now = self.now();
        self.ticked = now;
        self.note_copy(now);
        if let Some(link) = &mut self.link {
            link.refresh(self.state.live_bytes());
        }
        self.waiters.sweep();
        if self.scanned.is_none_or(|at| now.since(at) >= SCAN_AT_REST) {
            self.state.store.scan_folder();
            self.scanned = Some(now);
        }
        self.measure_space();
        self.note_step();
        for (part, most) in TICK_PARTS {
            let mut left = most;
            while part(&mut self.state, now, &mut left)? {
                self.commit()?;
            }
        }
        self.commit()?;
        self.compact(now)?;
        if self.held_since.is_some_and(|since| now.since(since) >= GIVE_BACK) {
            self.give_back(now)?;
        }
        if self.serves {
            let pace = self.pace();
            ops::estimate::estimate_loss(&mut self.state, pace, now)?;
            ops::query::overview(&mut self.state, now)?;
            self.take_events();
        }
        Ok(())
    }

    /// Gives memory back, at the end of what frees it: that may take some ticks.
    fn give_back(&mut self, now: Timestamp) -> Result<()> {
        let rests = now.since(self.committed) >= REST;
        // A checkpoint frees the rows that sled gets, and leaves less for a start to replay.
        self.show_commit(true);
        let goes_on = (rests && self.state.store.begin_checkpoint_at_rest()) || self.state.store.reopen()?;
        self.show_commit(false);
        if !goes_on {
            // A queue that does not rest yet holds more a minute later.
            self.held_since = (!rests).then_some(now);
            malloc::trim();
        }
        Ok(())
    }

    fn compact(&mut self, now: Timestamp) -> Result<()> {
        let spare = COMPACT_BYTES.min(self.state.options.bytes_max / 4);
        let live = self.state.live_bytes();
        if let Some(bytes) = self.state.store.compact(live, spare)? {
            let took = self.now().since(now);
            debug!(bytes, took_ms = millis(took), "the queue's log was compacted");
            self.held_since = Some(Timestamp(0));
        }
        Ok(())
    }

    /// The rate at which messages are sent.
    fn pace(&self) -> Pace {
        self.shared.budget.get().map_or(Pace { rate: f64::INFINITY, stopped: false }, |budget| {
            let pacer = budget.pacer();
            Pace { rate: pacer.rate(), stopped: pacer.closed() == Some(Closed::Down) }
        })
    }

    fn measure_space(&mut self) {
        let Options { free_disk_min, bytes_max, .. } = self.state.options;
        self.state.space = self.state.store.measure_space(free_disk_min, bytes_max);
    }

    /// Records the position of the clock, if the store does not know it well enough.
    fn note_anchor(&mut self) {
        if let Some(anchor) = self.shared.clock.anchor(self.anchor) {
            self.state.store.put(Table::Anchor.key(), &anchor);
            self.anchor = Some(anchor);
        }
    }

    /// Records a step of the wall clock at once: after a reboot it could not be distinguished from time that passed.
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

    /// Leases for the sender's standing request, if a conversation has got a turn since the last commit. The sender gets the
    /// leases after the commit, and need not be woken to ask for them.
    fn serve_sender(&mut self) -> Result<()> {
        // While every token is refused, the times of the tries decide.
        if !self.state.turn_given || self.state.all_refused().is_some() {
            return Ok(());
        }
        let Some(standing) = self.waiters.sender.take().filter(|standing| !standing.reply.is_closed()) else {
            return Ok(());
        };
        let now = self.now();
        let work = ops::lease::lease(&mut self.state, standing.request, now)?;
        if work.leases.is_empty() {
            self.waiters.sender = Some(standing);
        } else {
            // The work says if turns are left. A lease that gives a turn takes it, or says so.
            self.state.turn_given = false;
            self.effects.push(Effect::Work(standing.reply, work));
        }
        Ok(())
    }

    /// Commits everything since the last commit, then applies its effects, then advances the checkpoint.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.serve_sender()?;
        self.take_events();
        self.state.write_common_rows(self.now());
        let changed = self.state.store.pending_bytes() > 0 || self.state.store.is_checkpointing();
        if self.state.store.pending_bytes() > 0 {
            self.note_anchor();
            let began = self.now();
            self.show_commit(true);
            let timer = self.metrics.commit_seconds.start_timer();
            let committed = match &mut self.link {
                Some(link) => {
                    let queued = self.state.meta.queued;
                    self.state.store.commit_and_copy(|rows, at| {
                        link.at = at;
                        link.commit(rows, queued);
                    })
                }
                None => self.state.store.commit(),
            };
            if committed.is_err() {
                self.metrics.store_errors.with_label_values(&["commit"]).inc();
            }
            committed?;
            if let Some(link) = &mut self.link {
                link.wait(began, || self.shared.clock.now());
                self.note_copy(began);
            }
            timer.observe_duration();
            self.scanned = None;
            self.show_commit(false);
            self.held_since = self.held_since.or(Some(began));
            self.committed = began;
        }
        self.apply_effects();
        if changed && (self.serves || !self.state.store.can_checkpoint_wait()) {
            // After the replies, because it takes a while.
            self.show_commit(true);
            let grown = self.state.store.advance_checkpoint()?;
            self.show_commit(false);
            if grown {
                self.measure_space();
            }
        }
        Ok(())
    }

    /// Records the beginning or the end of work on the disk, for `/livez`: a disk may hang.
    fn show_commit(&self, begins: bool) {
        let began = if begins { self.shared.clock.awake().0 } else { 0 };
        self.shared.commit_began.store(began, Ordering::Relaxed);
    }

    /// Commits if the commit is long: between two commits the store is consistent.
    pub(super) fn commit_if_long(&mut self) -> Result<()> {
        if self.state.store.pending_bytes() >= COMMIT_BYTES { self.commit() } else { Ok(()) }
    }

    /// Counts the events that are durable now, and hands them on with the replies and wake-ups.
    fn apply_effects(&mut self) {
        for table in self.state.store.take_quarantined() {
            self.metrics.corrupt.inc();
            let row = char::from(table);
            error!(%row, "a row of the queue fails its checksum; it is set aside and the rest goes on");
        }
        self.effects.retain(|effect| match effect {
            Effect::Event(event, waiters) => {
                self.metrics.count(event, is_any_open(waiters), &self.shared.clock);
                is_reported(event)
            }
            _ => true,
        });
        // The next commit probably has as many effects.
        let next = Vec::with_capacity(self.effects.len());
        let committed = Committed {
            effects: std::mem::replace(&mut self.effects, next),
            wake_sender: std::mem::take(&mut self.state.wake_sender) | std::mem::take(&mut self.state.turn_given),
            messages_left: std::mem::take(&mut self.state.messages_left),
            settled: std::mem::take(&mut self.state.settled),
        };
        if committed.is_empty() {
            return;
        }
        let left = match &self.applying {
            // If the task is gone, its runtime is, too, with all callers.
            Some(applying) => applying.send(committed).err().map(|unsent| unsent.0),
            None => Some(committed),
        };
        if let Some(committed) = left {
            committed.apply(&self.shared).into_iter().for_each(report);
        }
    }
}
