//! The sender: leases due messages, makes one attempt each, and records the result on disk.
//!
//! ```text
//!       lease                attempt                  settle
//! Queue ───────▶ Sender ─────────────────▶ Participant ─────▶ Queue (durable)
//!                 ▲ │ started, ended
//!    allowance(now) │ ▼
//!                 Pacer
//! ```
//!
//! [`Sender::step`] does one thing, the first of these that is possible:
//!
//! 1. process what has ended: a lease (start the attempts), an attempt (report it to the pacer at once, decide,
//!    settle), a settlement; then start what the queue has leased for the standing request;
//! 2. ask the queue for as many messages as the pacer and `in_flight_max` allow, if some may be due;
//! 3. wait: for an end, a wake-up by the queue, a due time or the pacer, at most ten seconds.
//!
//! Only [`Sender::run`] loops. Promises:
//!
//! * An attempt starts only if the pacer allows it now and the queue has leased its message. It counts as in flight
//!   until its result is on disk, so a store that hangs also stops the sending.
//! * A conversation never has two attempts in flight: the queue leases one message of each.
//! * The queue is asked only after an event (a wake-up, a due time, a settlement, a lease that left due messages
//!   behind), never in a busy loop. A wait is armed before the queue is asked, so no wake-up is lost between the two.
//! * A request that finds nothing stands until the next one. The queue serves it in the commit that gives a
//!   conversation a turn, so an idle sender needs no wake-up and no second request. Its leases are subject to the same
//!   checks as all others when they arrive: the pacer, `in_flight_max`, the stop, the owner, the suspects.
//! * Dropping `step` while it waits loses nothing: leases, attempts and settlements are tasks of one set.
//! * After a stop no attempt starts. The sender gives back the messages that were leased and not sent, and ends when
//!   all attempts in flight are settled. If the store fails, everything ends at once: the messages in flight are sent
//!   again, unchanged, after a restart.
//!
//! * A relay whose queue has a copy in a fleet starts an attempt only if it knew a moment ago that no other relay
//!   continues the queue, or asks. If the fleet does not answer in time, the attempt starts.
//! * A conversation that keeps failing, is always throttled or is never answered does not hold up the others:
//!   [`suspects`] decides what an outcome says of the destination, and what may start.
//!
//! The sender knows no bot and no reply. It keeps nothing per waiting message. Of the past it keeps the time of the last
//! delivery, the recent duration of an attempt, and the suspects.

mod metrics;
mod outage;
#[cfg(test)]
mod tests;

use std::future::{pending, poll_fn};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::{JoinError, JoinSet};

use self::metrics::SenderMetrics;
use self::outage::Announced;
use crate::delivery::{Disposition, Facts, Outcome, Policy, Signal, decide};
use crate::health::Destination;
use crate::message::Body;
use crate::metrics::Metrics;
use crate::pacer::{Allowance, Budget, Closed};
use crate::participant::Participant;
use crate::queue::{Lease, LeaseRequest, MessageId, Queue, Settled, StoreFailed, Work};
use crate::retry::RetryHint;
use crate::suspects::{self, Suspects};
use crate::time::{Clock, Timestamp};

/// The longest wait of one step, so that a working loop is visible as one.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The shortest wait for a due time, so that a queue without a message for a due time is not asked in a busy loop.
const DUE_MIN: Duration = Duration::from_millis(5);

/// The sender's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The settings for retrying and giving up.
    pub policy: Policy,
    /// The most attempts in flight.
    pub in_flight_max: usize,
    /// The longest time between two probes of a closed gate.
    pub probe_max: Duration,
}

/// The sender. See the module's head.
pub struct Sender {
    options: Options,
    queue: Queue,
    participant: Participant,
    budget: Budget,
    clock: Clock,
    metrics: SenderMetrics,
    last_step: Arc<AtomicU64>,
    tasks: JoinSet<Done>,
    wake_up: Pin<Box<dyn Future<Output = ()> + Send>>,
    poll: PollState,
    standing: Option<Standing>,
    announced: Announced,
    suspects: Suspects<[u8; 16]>,
    destination: Destination,
    last_delivery: Option<Timestamp>,
    /// The recent average duration of an attempt until its answer.
    attempt_ewma: Duration,
}

/// A request that the queue serves when a message gets its turn.
struct Standing {
    asked: usize,
    work: oneshot::Receiver<Work>,
}

/// The action of one step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The sender asked the queue for this many messages.
    Asked(usize),
    /// The sender asks whether another relay continues the queue, before it starts anything.
    Confirming,
    /// The sender started this many attempts.
    Started(usize),
    /// An attempt ended with this result (the `outcome` label), and is being settled.
    Ended(&'static str),
    /// The result of an attempt is on disk.
    Settled(MessageId, Settled),
    /// The sender waited for an event.
    Woken,
}

impl Sender {
    /// A sender that has not asked the queue yet. `last_step` gets the time of every step, in milliseconds of
    /// [`Clock::awake`].
    #[must_use]
    pub fn new(
        options: Options,
        queue: Queue,
        participant: Participant,
        budget: Budget,
        clock: Clock,
        metrics: &Metrics,
        last_step: Arc<AtomicU64>,
    ) -> Sender {
        let metrics = SenderMetrics::new(metrics, &budget.pacer());
        last_step.store(clock.awake().0, Ordering::Relaxed);
        Sender {
            options,
            wake_up: next_wake_up(queue.clone()),
            queue,
            participant,
            budget,
            clock,
            metrics,
            last_step,
            tasks: JoinSet::new(),
            poll: PollState::default(),
            standing: None,
            announced: Announced::default(),
            suspects: Suspects::new(suspects::Options {
                probe_max: options.probe_max,
                in_flight_max: options.in_flight_max,
            }),
            destination: Destination::default(),
            last_delivery: None,
            attempt_ewma: Duration::ZERO,
        }
    }

    /// Makes the sender record the destination's answers here.
    #[must_use]
    pub fn reporting(self, destination: Destination) -> Sender {
        Sender { destination, ..self }
    }

    /// Sends until `stop`. Then it starts no attempt, and returns when all attempts in flight are settled.
    ///
    /// # Errors
    /// If the store has failed; the attempts in flight are dropped.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), StoreFailed> {
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                stepped = self.step() => stepped?,
            };
        }
        self.poll.stopping = true;
        self.end_standing();
        while !self.tasks.is_empty() {
            self.step().await?;
        }
        Ok(())
    }

    /// Does one thing. Dropping it while it waits loses nothing.
    pub async fn step(&mut self) -> Result<Step, StoreFailed> {
        self.arm().await;
        let now = self.clock.now();
        self.last_step.store(self.clock.awake().0, Ordering::Relaxed);
        self.held_back(now, false);
        if let Some(done) = self.tasks.try_join_next() {
            return self.handle_ended_task(done);
        }
        if let Some((asked, work)) = take_served(&mut self.standing) {
            return self.handle_served(asked, work);
        }
        self.note_overdue(now);
        let (allowance, closed) = {
            let mut pacer = self.budget.pacer();
            (pacer.allowance(now), pacer.closed())
        };
        let capacity = self.options.in_flight_max.max(1).saturating_sub(self.tasks.len());
        let wait = match self.poll.next_action(allowance, capacity, now) {
            Action::Lease(most) => return Ok(self.ask(most, now)),
            Action::Wait(wait) => self.suspects.next_overdue().map_or(wait, |overdue| wait.min(overdue.since(now))),
        };
        let waits = matches!(allowance, Allowance::Wait(_) | Allowance::Probing(_));
        self.held_back(now, self.poll.more && waits && capacity > 0 && closed != Some(Closed::Down));
        tokio::select! {
            biased;
            Some(done) = self.tasks.join_next() => self.handle_ended_task(done),
            (asked, work) = served(&mut self.standing) => self.handle_served(asked, work),
            () = &mut self.wake_up => {
                self.woken();
                Ok(Step::Woken)
            }
            () = tokio::time::sleep(wait) => Ok(Step::Woken),
        }
    }

    /// Notes if from now on only the quota holds back a message: for the metrics, and for the fleet.
    fn held_back(&mut self, now: Timestamp, held: bool) {
        self.metrics.quota(now, held);
        self.budget.pacer().held_back(now, held);
    }

    /// Makes sure that no later wake-up is missed.
    async fn arm(&mut self) {
        // The first poll registers for the wake-up. If one has come already, it is consumed and the next one is armed.
        while poll_fn(|task| Poll::Ready(self.wake_up.as_mut().poll(task).is_ready())).await {
            self.woken();
        }
    }

    fn woken(&mut self) {
        self.wake_up = next_wake_up(self.queue.clone());
        self.poll.may_be_due = true;
    }

    fn ask(&mut self, most: usize, now: Timestamp) -> Step {
        self.poll.lease_requested();
        let starts = self.suspects.starts(now);
        let (backed_off_first, backed_off_most) = (starts.suspects_first, starts.suspects_most);
        let request = LeaseRequest { most, backed_off_first, backed_off_most, takes: self.attempt_ewma };
        let (queue, mut earlier) = (self.queue.clone(), self.standing.take());
        self.tasks.spawn(async move {
            let mut leased = queue.lease_or_stand(request).await;
            // The queue served the earlier request before this one, or never will.
            if let (Ok((work, _)), Some((_, served))) = (&mut leased, take_served(&mut earlier)) {
                work.leases.extend(served.leases);
            }
            Done::Leased { asked: most, leased }
        });
        Step::Asked(most)
    }

    /// Ends the standing request. What it was served with meanwhile is handled as any work.
    fn end_standing(&mut self) {
        let (queue, mut standing) = (self.queue.clone(), self.standing.take());
        if standing.is_none() {
            return;
        }
        self.tasks.spawn(async move {
            let ended = queue.end_standing().await;
            let (asked, work) = take_served(&mut standing).unwrap_or_default();
            Done::Leased { asked, leased: ended.map(|()| (work, None)) }
        });
    }

    /// Handles the work of the standing request. Conversations that wait for their due times are left to the next one.
    fn handle_served(&mut self, asked: usize, work: Work) -> Result<Step, StoreFailed> {
        self.poll.leasing = true;
        self.handle_work(asked, Work { next_due: self.poll.next_due, ..work })
    }

    /// Treats attempts that have been without an answer for `probe_max` as failed.
    fn note_overdue(&mut self, now: Timestamp) {
        let Some(started) = self.suspects.overdue(now) else { return };
        let mut pacer = self.budget.pacer();
        if pacer.closed() != Some(Closed::Down) {
            pacer.ended(started, now, Signal::Down(RetryHint::default()));
            let why = format!("no answer within {}", humantime::format_duration(self.options.probe_max));
            let outcome = Outcome::AnswerLost { why };
            let (announced, rate) = (self.announced.after(pacer.closed_persistently(), &outcome), pacer.rate());
            self.metrics.destination(&pacer);
            drop(pacer);
            self.announce(announced, &outcome, rate);
        }
    }

    fn announce(&mut self, announced: Announced, outcome: &Outcome, rate: f64) {
        if announced != self.announced {
            announced.log(outcome, rate);
            self.announced = announced;
        }
    }

    fn handle_ended_task(&mut self, done: Result<Done, JoinError>) -> Result<Step, StoreFailed> {
        // These tasks are never aborted: one that did not end normally has panicked.
        match done.unwrap_or_else(|error| resume_unwind(error.into_panic())) {
            Done::Leased { asked, leased } => {
                let (work, standing) = leased?;
                if let Some(work) = standing {
                    self.standing = Some(Standing { asked, work });
                }
                if self.poll.stopping {
                    self.end_standing();
                }
                self.handle_work(asked, work)
            }
            Done::Ended { lease, outcome, started } => Ok(self.ended(*lease, outcome, started)),
            Done::Settled { id, settled } => {
                self.poll.may_be_due = true;
                Ok(Step::Settled(id, settled?))
            }
        }
    }

    /// Starts the attempts, once it is confirmed that no other relay continues the queue.
    fn handle_work(&mut self, asked: usize, work: Work) -> Result<Step, StoreFailed> {
        let confirmed = self.queue.is_owner(self.clock.now()) || self.queue.is_fenced();
        if confirmed || work.leases.is_empty() {
            return Ok(self.start(asked, work));
        }
        let queue = self.queue.clone();
        self.tasks.spawn(async move {
            queue.confirm_owner().await;
            Done::Leased { asked, leased: Ok((work, None)) }
        });
        Ok(Step::Confirming)
    }

    fn start(&mut self, asked: usize, work: Work) -> Step {
        let now = self.clock.now();
        self.poll.leased(asked, &work, now);
        let mut started = 0;
        let in_turn = work.leases.iter().filter(|lease| !lease.backed_off).count();
        for lease in work.leases {
            if !lease.backed_off && self.suspects.contains(&lease.conversation) {
                // A new message of a suspect: it is sent with the suspects, not with the others.
                self.poll.more = true;
                self.settle(lease, Disposition::Wait { due: now }, None);
                continue;
            }
            let others_wait = work.turns_left || in_turn > usize::from(!lease.backed_off);
            if self.may_start(&lease, others_wait, now) {
                started += 1;
                self.attempt(lease, now);
            } else {
                // The gate closed, or a typing event took the slot, while the queue was asked.
                self.poll.more = true;
                self.settle(lease, Disposition::Keep, None);
            }
        }
        Step::Started(started)
    }

    /// Returns true if the attempt may start, and counts it as started.
    fn may_start(&mut self, lease: &Lease, others_wait: bool, now: Timestamp) -> bool {
        let mut pacer = self.budget.pacer();
        let full = self.tasks.len() >= self.options.in_flight_max.max(1);
        let stopped = self.poll.stopping || self.queue.is_fenced();
        if full || stopped || !matches!(pacer.allowance(now), Allowance::Start(_)) {
            return false;
        }
        let failed = lease.failed_at.map(|last| (lease.attempts, last));
        if self.suspects.started(lease.conversation, failed, others_wait, now) {
            pacer.started_beside(now);
        } else {
            pacer.started(now);
        }
        true
    }

    fn attempt(&mut self, lease: Lease, started: Timestamp) {
        let participant = self.participant.clone();
        self.metrics.in_flight.inc();
        self.tasks.spawn(async move {
            let outcome = participant.attempt(&lease.body, &lease.client_token, &lease.connection_token).await;
            Done::Ended { lease: Box::new(lease), outcome, started }
        });
    }

    fn ended(&mut self, lease: Lease, outcome: Outcome, started: Timestamp) -> Step {
        let now = self.clock.now();
        let (attribution, jitter, announced, rate) = {
            let mut pacer = self.budget.pacer();
            let (down, before) = (pacer.closed() == Some(Closed::Down), pacer.rate());
            let attribution = self.suspects.ended(&lease.conversation, &outcome, down, self.poll.turns_left, now);
            pacer.ended(started, now, attribution.signal);
            if pacer.rate() < before {
                self.suspects.record_rate_cut(&lease.conversation, before, pacer.rate());
            }
            if let Some((before, after)) = attribution.wrong_rate_cut {
                pacer.undo_rate_cut(before, after);
            }
            self.metrics.destination(&pacer);
            self.destination.answered(now, pacer.closed() == Some(Closed::Down), outage::describe_failure(&outcome));
            (attribution, pacer.jitter(), self.announced.after(pacer.closed_persistently(), &outcome), pacer.rate())
        };
        self.metrics.in_flight.dec();
        self.metrics.ended(&outcome, now.since(started));
        self.announce(announced, &outcome, rate);
        let facts = Facts {
            disconnect: matches!(lease.body, Body::Disconnect),
            attempts: lease.attempts,
            strikes: lease.strikes,
            counted: lease.counted,
            others_delivered: lease.failed_at.is_some_and(|failed| self.last_delivery > Some(failed)),
            streak: attribution.streak,
            own_throttle: attribution.own_throttle,
            destination_waits: matches!(attribution.signal, Signal::Down(_)),
        };
        if matches!(outcome, Outcome::Delivered(_)) {
            self.last_delivery = Some(now);
            self.attempt_ewma = self.attempt_ewma * 7 / 8 + now.since(started) / 8;
        }
        let disposition = decide(&outcome, facts, &self.options.policy, now, jitter);
        let name = outcome.name();
        self.settle(lease, disposition, Some(outcome));
        Step::Ended(name)
    }

    fn settle(&mut self, lease: Lease, disposition: Disposition, outcome: Option<Outcome>) {
        let (id, queue) = (lease.id, self.queue.clone());
        let learned = self.budget.pacer().kept(self.clock.now());
        self.tasks.spawn(async move {
            Done::Settled { id, settled: queue.settle(lease, outcome, disposition, learned).await }
        });
    }
}

/// The result of a task of the sender.
enum Done {
    Leased { asked: usize, leased: Result<(Work, Option<oneshot::Receiver<Work>>), StoreFailed> },
    Ended { lease: Box<Lease>, outcome: Outcome, started: Timestamp },
    Settled { id: MessageId, settled: Result<Settled, StoreFailed> },
}

/// The sender's knowledge of the queue, and its next action: pure.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PollState {
    /// True if something may be due that was not asked for yet.
    may_be_due: bool,
    /// True if the last lease left something due behind.
    more: bool,
    /// True if the last lease left conversations behind whose turn it is.
    turns_left: bool,
    /// True while a request to the queue is in progress.
    leasing: bool,
    /// The time of the next due message.
    next_due: Option<Timestamp>,
    /// True if no attempt may start any more.
    stopping: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    /// Ask the queue for this many messages.
    Lease(usize),
    /// Wait this long, unless something ends or the queue wakes the sender.
    Wait(Duration),
}

impl Default for PollState {
    /// The state before the queue is first asked.
    fn default() -> PollState {
        PollState { may_be_due: true, more: false, turns_left: false, leasing: false, next_due: None, stopping: false }
    }
}

impl PollState {
    fn next_action(&self, allowance: Allowance, capacity: usize, now: Timestamp) -> Action {
        if self.stopping || self.leasing || capacity == 0 {
            return Action::Wait(HEARTBEAT);
        }
        let due = self.may_be_due || self.next_due.is_some_and(|due| due <= now);
        let until = match allowance {
            Allowance::Start(most) if due && most > 0 => return Action::Lease(most.min(capacity)),
            Allowance::Wait(until) | Allowance::Probing(until) if due => Some(until),
            _ if due => None,
            _ => self.next_due,
        };
        // A sleep that is a millisecond too short would only need a second sleep.
        let wait = until.map_or(HEARTBEAT, |until| until.since(now).max(Duration::from_millis(1)));
        Action::Wait(wait.min(HEARTBEAT))
    }

    /// A wake-up while the queue is being asked needs another request, so `may_be_due` is reset now, not after the answer.
    fn lease_requested(&mut self) {
        (self.leasing, self.may_be_due, self.next_due) = (true, false, None);
    }

    fn leased(&mut self, asked: usize, work: &Work, now: Timestamp) {
        self.leasing = false;
        self.more = work.leases.len() >= asked;
        self.turns_left = work.turns_left;
        self.may_be_due |= self.more;
        self.next_due = work.next_due.map(|due| due.max(now + DUE_MIN));
    }
}

/// The work that the queue has leased for the standing request, if it has. A request that is served, or never will be, is
/// over.
fn take_served(standing: &mut Option<Standing>) -> Option<(usize, Work)> {
    let Standing { asked, work } = standing.as_mut()?;
    let (asked, work) = (*asked, work.try_recv());
    if !matches!(work, Err(TryRecvError::Empty)) {
        *standing = None;
    }
    Some((asked, work.ok()?))
}

/// Resolves when the queue has leased for the standing request. If it never will, the next request replaces this one.
async fn served(standing: &mut Option<Standing>) -> (usize, Work) {
    if let Some(Standing { asked, work }) = standing {
        let (asked, work) = (*asked, work.await);
        *standing = None;
        if let Ok(work) = work {
            return (asked, work);
        }
    }
    pending().await
}

/// The queue's next wake-up. The first poll arms it.
fn next_wake_up(queue: Queue) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move { queue.poked().await })
}
