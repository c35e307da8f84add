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
//!    settle), a settlement;
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
//! * Dropping `step` while it waits loses nothing: leases, attempts and settlements are tasks of one set.
//! * After a stop no attempt starts. The sender gives back the messages that were leased and not sent, and ends when
//!   all attempts in flight are settled. If the store fails, everything ends at once: the messages in flight are sent
//!   again, unchanged, after a restart.
//!
//! * A conversation that keeps failing, is always throttled or is never answered does not hold up the others:
//!   [`suspects`](crate::suspects) decides what an outcome says of the destination, and what may start.
//!
//! The sender knows no bot and no reply. It keeps nothing per waiting message. Of the past it keeps the time of the last
//! delivery, the recent duration of an attempt, and the suspects.

mod gate;
mod measures;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

use self::gate::Said;
use self::measures::Measures;
use crate::delivery::{Disposition, Facts, Outcome, Policy, Signal, settle};
use crate::health::Destination;
use crate::message::Body;
use crate::metrics::Metrics;
use crate::pacer::{Allowance, Budget, Closed};
use crate::participant::Participant;
use crate::queue::{Lease, LeaseRequest, MessageId, Queue, Settled, StoreFailed, Work};
use crate::retry::Hint;
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
    measures: Measures,
    pulse: Arc<AtomicU64>,
    tasks: JoinSet<Done>,
    poke: Pin<Box<dyn Future<Output = ()> + Send>>,
    sight: Sight,
    said: Said,
    suspects: Suspects<[u8; 16]>,
    destination: Destination,
    last_delivery: Option<Timestamp>,
    /// The recent average duration of an attempt until its answer.
    takes: Duration,
}

/// The action of one step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The sender asked the queue for this many messages.
    Asked(usize),
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
    /// A sender that has not asked the queue yet. `pulse` gets the time of every step, in milliseconds of
    /// [`Clock::awake`].
    #[must_use]
    pub fn new(
        options: Options,
        queue: Queue,
        participant: Participant,
        budget: Budget,
        clock: Clock,
        metrics: &Metrics,
        pulse: Arc<AtomicU64>,
    ) -> Sender {
        let measures = Measures::new(metrics, &budget.pacer());
        pulse.store(clock.awake().0, Ordering::Relaxed);
        Sender {
            options,
            poke: next_poke(queue.clone()),
            queue,
            participant,
            budget,
            clock,
            measures,
            pulse,
            tasks: JoinSet::new(),
            sight: Sight::default(),
            said: Said::default(),
            suspects: Suspects::new(suspects::Options {
                probe_max: options.probe_max,
                in_flight_max: options.in_flight_max,
            }),
            destination: Destination::default(),
            last_delivery: None,
            takes: Duration::ZERO,
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
        self.sight.stopping = true;
        while !self.tasks.is_empty() {
            self.step().await?;
        }
        Ok(())
    }

    /// Does one thing. Dropping it while it waits loses nothing.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn step(&mut self) -> Result<Step, StoreFailed> {
        self.arm().await;
        let now = self.clock.now();
        self.pulse.store(self.clock.awake().0, Ordering::Relaxed);
        self.measures.quota(now, false);
        if let Some(done) = self.tasks.try_join_next() {
            return self.take_in(done);
        }
        self.note_overdue(now);
        let (allowance, closed) = {
            let mut pacer = self.budget.pacer();
            (pacer.allowance(now), pacer.closed())
        };
        let room = self.options.in_flight_max.max(1).saturating_sub(self.tasks.len());
        let wait = match self.sight.next(allowance, room, now) {
            Next::Ask(most) => return Ok(self.ask(most, now)),
            Next::Wait(wait) => self.suspects.next_overdue().map_or(wait, |overdue| wait.min(overdue.since(now))),
        };
        let waits = matches!(allowance, Allowance::Wait(_) | Allowance::Probing(_));
        self.measures.quota(now, self.sight.more && waits && room > 0 && closed != Some(Closed::Down));
        tokio::select! {
            biased;
            Some(done) = self.tasks.join_next() => self.take_in(done),
            () = &mut self.poke => {
                self.poked();
                Ok(Step::Woken)
            }
            () = tokio::time::sleep(wait) => Ok(Step::Woken),
        }
    }

    /// Makes sure that no later wake-up is missed.
    async fn arm(&mut self) {
        // The first poll registers for the wake-up. If one has come already, it is consumed and the next one is armed.
        while poll_fn(|task| Poll::Ready(self.poke.as_mut().poll(task).is_ready())).await {
            self.poked();
        }
    }

    fn poked(&mut self) {
        self.poke = next_poke(self.queue.clone());
        self.sight.look = true;
    }

    fn ask(&mut self, most: usize, now: Timestamp) -> Step {
        self.sight.asked();
        let starts = self.suspects.starts(now);
        let (backed_off_first, backed_off_most) = (starts.suspects_first, starts.suspects_most);
        let request = LeaseRequest { most, backed_off_first, backed_off_most, takes: self.takes };
        let queue = self.queue.clone();
        self.tasks.spawn(async move { Done::Leased { asked: most, work: queue.lease(request).await } });
        Step::Asked(most)
    }

    /// Treats attempts that have been without an answer for `probe_max` as failed.
    fn note_overdue(&mut self, now: Timestamp) {
        let Some(started) = self.suspects.overdue(now) else { return };
        let mut pacer = self.budget.pacer();
        if pacer.closed() != Some(Closed::Down) {
            pacer.ended(started, now, Signal::Down(Hint::default()));
            let why = format!("no answer within {}", humantime::format_duration(self.options.probe_max));
            let (said, rate) =
                (self.said.after(pacer.held_up(), &Outcome::AnswerLost { why: why.clone() }), pacer.rate());
            self.measures.destination(&pacer);
            drop(pacer);
            self.say(said, &Outcome::AnswerLost { why }, rate);
        }
    }

    fn say(&mut self, said: Said, outcome: &Outcome, rate: f64) {
        if said != self.said {
            said.say(outcome, rate);
            self.said = said;
        }
    }

    fn take_in(&mut self, done: Result<Done, JoinError>) -> Result<Step, StoreFailed> {
        // These tasks are never aborted: one that did not end normally has panicked.
        match done.unwrap_or_else(|error| resume_unwind(error.into_panic())) {
            Done::Leased { asked, work } => Ok(self.start(asked, work?)),
            Done::Ended { lease, outcome, started } => Ok(self.ended(*lease, outcome, started)),
            Done::Settled { id, settled } => {
                self.sight.look = true;
                Ok(Step::Settled(id, settled?))
            }
        }
    }

    fn start(&mut self, asked: usize, work: Work) -> Step {
        let now = self.clock.now();
        self.sight.leased(asked, &work, now);
        let mut started = 0;
        let in_turn = work.leases.iter().filter(|lease| !lease.backed_off).count();
        for lease in work.leases {
            if !lease.backed_off && self.suspects.contains(&lease.conversation) {
                // A new message of a suspect: it is sent with the suspects, not with the others.
                self.sight.more = true;
                self.settle(lease, Disposition::Wait { due: now }, None);
                continue;
            }
            let others_wait = work.turns_left || in_turn > usize::from(!lease.backed_off);
            if self.starts(&lease, others_wait, now) {
                started += 1;
                self.attempt(lease, now);
            } else {
                // The gate closed, or a typing event took the slot, while the queue was asked.
                self.sight.more = true;
                self.settle(lease, Disposition::Keep, None);
            }
        }
        Step::Started(started)
    }

    /// Returns true if the attempt may start, and counts it as started.
    fn starts(&mut self, lease: &Lease, others_wait: bool, now: Timestamp) -> bool {
        let mut pacer = self.budget.pacer();
        if self.sight.stopping || !matches!(pacer.allowance(now), Allowance::Start(_)) {
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
        self.measures.in_flight.inc();
        self.tasks.spawn(async move {
            let outcome = participant.attempt(&lease.body, &lease.client_token, &lease.connection_token).await;
            Done::Ended { lease: Box::new(lease), outcome, started }
        });
    }

    fn ended(&mut self, lease: Lease, outcome: Outcome, started: Timestamp) -> Step {
        let now = self.clock.now();
        let (judgement, jitter, said, rate) = {
            let mut pacer = self.budget.pacer();
            let (down, before) = (pacer.closed() == Some(Closed::Down), pacer.rate());
            let judgement = self.suspects.ended(&lease.conversation, &outcome, down, self.sight.turns_left, now);
            pacer.ended(started, now, judgement.signal);
            if pacer.rate() < before {
                self.suspects.blamed(&lease.conversation, before, pacer.rate());
            }
            if let Some((before, after)) = judgement.acquitted {
                pacer.acquit(before, after);
            }
            self.measures.destination(&pacer);
            self.destination.answered(now, pacer.closed() == Some(Closed::Down), gate::words(&outcome));
            (judgement, pacer.jitter(), self.said.after(pacer.held_up(), &outcome), pacer.rate())
        };
        self.measures.in_flight.dec();
        self.measures.ended(&outcome, now.since(started));
        self.say(said, &outcome, rate);
        let facts = Facts {
            disconnect: matches!(lease.body, Body::Disconnect),
            attempts: lease.attempts,
            strikes: lease.strikes,
            counted: lease.counted,
            others_delivered: lease.failed_at.is_some_and(|failed| self.last_delivery > Some(failed)),
            row: judgement.row,
            own_throttle: judgement.own,
            destination_waits: matches!(judgement.signal, Signal::Down(_)),
        };
        if matches!(outcome, Outcome::Delivered(_)) {
            self.last_delivery = Some(now);
            self.takes = self.takes * 7 / 8 + now.since(started) / 8;
        }
        let disposition = settle(&outcome, facts, &self.options.policy, now, jitter);
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
    Leased { asked: usize, work: Result<Work, StoreFailed> },
    Ended { lease: Box<Lease>, outcome: Outcome, started: Timestamp },
    Settled { id: MessageId, settled: Result<Settled, StoreFailed> },
}

/// The sender's knowledge of the queue, and its next action: pure.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sight {
    /// True if something may be due that was not asked for yet.
    look: bool,
    /// True if the last lease left something due behind.
    more: bool,
    /// True if the last lease left conversations behind whose turn it is.
    turns_left: bool,
    /// True while the queue is being asked.
    asking: bool,
    /// The time of the next due message.
    next_due: Option<Timestamp>,
    /// True if no attempt may start any more.
    stopping: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    /// Ask the queue for this many messages.
    Ask(usize),
    /// Wait this long, unless something ends or the queue wakes the sender.
    Wait(Duration),
}

impl Default for Sight {
    /// The state before the queue is first asked.
    fn default() -> Sight {
        Sight { look: true, more: false, turns_left: false, asking: false, next_due: None, stopping: false }
    }
}

impl Sight {
    fn next(&self, allowance: Allowance, room: usize, now: Timestamp) -> Next {
        if self.stopping || self.asking || room == 0 {
            return Next::Wait(HEARTBEAT);
        }
        let due = self.look || self.next_due.is_some_and(|due| due <= now);
        let until = match allowance {
            Allowance::Start(most) if due && most > 0 => return Next::Ask(most.min(room)),
            Allowance::Wait(until) | Allowance::Probing(until) if due => Some(until),
            _ if due => None,
            _ => self.next_due,
        };
        // A sleep that is a millisecond too short would only need a second sleep.
        let wait = until.map_or(HEARTBEAT, |until| until.since(now).max(Duration::from_millis(1)));
        Next::Wait(wait.min(HEARTBEAT))
    }

    /// An event while the queue is being asked needs another look, so `look` is reset now and not after the answer.
    fn asked(&mut self) {
        (self.asking, self.look, self.next_due) = (true, false, None);
    }

    fn leased(&mut self, asked: usize, work: &Work, now: Timestamp) {
        self.asking = false;
        self.more = work.leases.len() >= asked;
        self.turns_left = work.turns_left;
        self.look |= self.more;
        self.next_due = work.next_due.map(|due| due.max(now + DUE_MIN));
    }
}

/// The queue's next wake-up. The first poll arms it.
fn next_poke(queue: Queue) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move { queue.poked().await })
}
