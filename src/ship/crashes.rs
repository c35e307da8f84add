//! Crashes, takeovers and mutants: [`Ship`] and [`Link`] as they are, against models of a stream and of volumes.
//!
//! A commit adds a row for itself, and a row that the next commit removes, so that the rows of a store show which commits
//! it has, and in which order. The judge reads the stream back at every commit that was answered `fleet`, and at every
//! start on an empty volume:
//!
//! - The rows are those of the first commits of one relay: none is missing between two, none is doubled or undone.
//! - Every commit that any relay answered `fleet` is among them.
//! - A relay is fenced only while another one has the stream.
//! - In the end one relay remains, and the stream has everything of it.
//!
//! - The position that the stream has is that of its last commit.
//!
//! A start compares its volume with the stream as `fleet` does: it goes on with its own store, or restores the stream's. A
//! start without servers compares later. What it finds then is accepted again as messages, which the model leaves out.
//!
//! While the servers are put back from a backup, the volume is the only place of what was answered: it stays until a relay
//! says again that the stream has everything.
//!
//! A *mutant* breaks one rule of shipping; the same judge must find a fault in it.

use std::collections::BTreeMap;
use std::future::ready;
use std::ops::Bound::{Excluded, Unbounded};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::link::{Link, State, TaskEnd, Wanted, link};
use super::record::Unreadable;
use super::replay::{OnePass, Plan, Replay};
use super::standing::{Records, Stored};
use super::tests::{Fault, faults};
use super::*;
use crate::storage::{Key, SealingKey, Volume, put_row, read_rows};
use crate::time::Timestamp;

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// Records are published without the expected sequence.
    NoExpectation,
    /// A refusal counts as a fence, without a look at the stream.
    RefusalIsFence,
    /// A commit is answered `fleet` before its record is acknowledged.
    NoWait,
    /// The records before a snapshot are removed when its end is published, not when it is stored.
    EarlyPurge,
    /// Records have a `Nats-Msg-Id`: their place in the stream. The stream looks at it before the expected sequence.
    MessageId,
    /// After a time-out another record is published with the same expected sequence, if there is one.
    AnotherRecord,
    /// A place that the successor has removed counts as one that is not written yet.
    RemovedIsAbsent,
    /// The stream counts as reached before its leader has answered over a new connection.
    EarlyConnect,
    /// Provisional records are removed when the later claim is published, not when it is stored.
    EarlyRemove,
    /// Records count as provisional still after the end of their snapshot.
    RemoveComplete,
}

const MUTANTS: [Mutant; 10] = [
    Mutant::NoExpectation,
    Mutant::RefusalIsFence,
    Mutant::NoWait,
    Mutant::EarlyPurge,
    Mutant::MessageId,
    Mutant::AnotherRecord,
    Mutant::RemovedIsAbsent,
    Mutant::EarlyConnect,
    Mutant::EarlyRemove,
    Mutant::RemoveComplete,
];

fn codec() -> Codec {
    Codec::new(SealingKey::parse_file(&BASE64_STANDARD.encode([1; 32])).unwrap(), "CR_shop=_pod-0")
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(table: u8, commit: u16) -> Vec<u8> {
    [&[table][..], &commit.to_be_bytes()].concat()
}

/// The value of the row that the next commit removes. Some are long, so that snapshots are renewed.
fn passing(commit: u16) -> Vec<u8> {
    vec![7; if commit.is_multiple_of(3) { 40_000 } else { 1 }]
}

fn rows_of(commit: u16, previous: Option<u16>) -> Vec<u8> {
    let mut rows = Vec::new();
    put_row(&mut rows, &key(b'c', commit), Some(&[1]));
    put_row(&mut rows, &key(b'p', commit), Some(&passing(commit)));
    put_row(&mut rows, b"z", Some(&commit.to_be_bytes()));
    previous.iter().for_each(|previous| put_row(&mut rows, &key(b'p', *previous), None));
    rows
}

/// The position of the last one of so many commits.
fn at(commits: usize) -> CommitPos {
    CommitPos { epoch: 2, number: commits as u64 }
}

/// Adds a run to a volume, as a start does.
fn begin_run(volume: &mut Volume, instance: u64, commits: usize) {
    match volume.runs.last_mut() {
        Some(last) if volume.alone => last.instance = instance,
        _ => volume.runs.push(Run { instance, after: at(commits), sequence: commits as u64 }),
    }
    volume.alone = true;
}

fn store_of(commits: &[u16]) -> Rows {
    let mut rows: Rows = commits.iter().map(|commit| (key(b'c', *commit), vec![1])).collect();
    if let Some(last) = commits.last() {
        rows.insert(key(b'p', *last), passing(*last));
        rows.insert(b"z".to_vec(), last.to_be_bytes().to_vec());
    }
    rows
}

/// `None` if the record was removed.
type Slot = Option<Stored>;

/// A model of a stream.
#[derive(Clone, Default)]
struct Stream {
    /// The sequence before the first record.
    before: u64,
    records: Vec<Slot>,
    /// The copies of records that are still under way.
    under_way: Vec<(u64, Vec<u8>, Option<u64>)>,
    /// The sequence of each `Nats-Msg-Id`.
    ids: BTreeMap<u64, u64>,
}

impl Stream {
    fn last(&self) -> u64 {
        self.before + self.records.len() as u64
    }

    fn stored(&self, sequence: u64) -> Option<&(Vec<u8>, Option<u64>)> {
        let at = sequence.checked_sub(self.before + 1)?;
        self.records.get(usize::try_from(at).unwrap())?.as_ref()
    }

    fn get(&self, sequence: u64) -> Option<&[u8]> {
        self.stored(sequence).map(|(record, _)| record.as_slice())
    }

    /// Returns true if the place of a record was used, and the record was removed since.
    fn is_removed(&self, sequence: u64) -> bool {
        sequence <= self.last() && self.get(sequence).is_none()
    }

    fn publish(
        &mut self,
        expected: u64,
        record: &[u8],
        provisional: Option<u64>,
        mutant: Option<Mutant>,
    ) -> Result<u64, u64> {
        if let Some(sequence) = self.ids.get(&expected).filter(|_| mutant == Some(Mutant::MessageId)) {
            return Ok(*sequence);
        }
        if expected != self.last() && mutant != Some(Mutant::NoExpectation) {
            return Err(self.last());
        }
        self.records.push(Some((record.to_vec(), provisional)));
        self.ids.insert(expected, self.last());
        Ok(self.last())
    }

    fn purge(&mut self, before: u64) {
        let gone = usize::try_from(before.saturating_sub(self.before + 1)).unwrap().min(self.records.len());
        self.records.drain(..gone);
        self.before += gone as u64;
    }

    /// Removes the provisional records of a claim.
    fn remove(&mut self, claim: u64, before: u64) {
        let older = usize::try_from(before.saturating_sub(self.before + 1)).unwrap();
        for slot in self.records.iter_mut().take(older) {
            slot.take_if(|(_, provisional)| *provisional == Some(claim));
        }
    }

    /// The state of the stream.
    fn standing(&self) -> Standing {
        at_once(Standing::find(self, &codec(), self.before + 1, self.last())).unwrap().0
    }

    /// The records, each with its sequence.
    fn all(&self) -> impl Iterator<Item = (u64, &Vec<u8>)> {
        let all = (self.before + 1..=self.last()).zip(&self.records);
        all.filter_map(|(sequence, stored)| stored.as_ref().map(|(record, _)| (sequence, record)))
    }

    /// The records that make up the store.
    fn plan(&self) -> Result<Plan, String> {
        let mut plan = Plan::default();
        for (sequence, record) in self.all() {
            plan.read(&codec(), sequence, record).map_err(|error| error.to_string())?;
        }
        match plan.missing() {
            Some(missing) => Err(format!("record {missing} is missing")),
            None => Ok(plan),
        }
    }

    /// The store that a start on an empty volume finds.
    fn replay(&self) -> Result<Rows, String> {
        let (codec, mut replay, mut store) = (codec(), Replay::default(), Rows::new());
        let Some(range) = self.plan()?.range() else { return Ok(store) };
        for (sequence, record) in self.all().filter(|(sequence, _)| range.contains(sequence)) {
            let rows = replay.read(&codec, sequence, record).map_err(|error| error.to_string())?;
            apply(&mut store, &rows.unwrap_or_default());
        }
        Ok(store)
    }

    /// The same, by reading the stream once. `None` if that is not enough.
    fn replay_in_one_pass(&self) -> Result<Option<Rows>, String> {
        let (codec, mut pass, mut store) = (codec(), OnePass::default(), Rows::new());
        for (sequence, record) in self.all() {
            let rows = pass.read(&codec, sequence, record).map_err(|error| error.to_string())?;
            apply(&mut store, &rows.unwrap_or_default());
        }
        assert_eq!(pass.plan.range(), self.plan()?.range());
        Ok(pass.stamp().map(|_| store))
    }
}

impl Records for Stream {
    type Error = Unreadable;

    fn record(&self, sequence: u64) -> impl Future<Output = Result<Option<Stored>, Unreadable>> + Send {
        ready(Ok(self.stored(sequence).cloned()))
    }
}

/// The result of a future that waits for nothing.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits"),
    }
}

fn apply(store: &mut Rows, rows: &[u8]) {
    read_rows(rows, &mut |key: &[u8], value: Option<&[u8]>| {
        match value {
            Some(value) => store.insert(key.to_vec(), value.to_vec()),
            None => store.remove(key),
        };
    });
}

/// The end of a process.
#[derive(Clone, Copy, Debug)]
enum Crash {
    /// The next process has the same volume.
    SameVolume,
    /// The next process has an empty volume.
    EmptyVolume,
    /// The next process has the same volume, without the commit under way: its record was published before the disk was
    /// synced.
    Unsynced,
}

#[derive(Clone, Debug)]
enum Act {
    /// A commit, and these steps until its wait for the record ends.
    Commit(prop::sample::Index, Vec<Fault>),
    /// The thread of the queue ships a part of a snapshot.
    Thread(prop::sample::Index),
    Step(prop::sample::Index, Fault),
    /// A copy that is under way arrives.
    Arrive(prop::sample::Index),
    /// The newest relay is killed after these steps of a commit, and starts again. True: it reads the stream first.
    Restart(Vec<Fault>, Crash, bool),
    /// Another relay starts on an empty volume, while the others go on.
    Succeed,
    /// The connection of a relay is lost, or comes back.
    Connect(prop::sample::Index, bool),
    /// A bot repeats its messages: there is no commit.
    Repeat(prop::sample::Index),
    /// The servers are down, and come back with an older stream.
    PutBack,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let steps = || prop::collection::vec(faults(12, 3), 0..5);
    let crashes = prop_oneof![Just(Crash::SameVolume), Just(Crash::EmptyVolume), Just(Crash::Unsynced)];
    let act = prop_oneof![
        8 => (any::<prop::sample::Index>(), steps()).prop_map(|(who, steps)| Act::Commit(who, steps)),
        12 => any::<prop::sample::Index>().prop_map(Act::Thread),
        24 => (any::<prop::sample::Index>(), faults(12, 3)).prop_map(|(who, fault)| Act::Step(who, fault)),
        2 => any::<prop::sample::Index>().prop_map(Act::Arrive),
        2 => (steps(), crashes, any::<bool>()).prop_map(|(steps, crash, known)| Act::Restart(steps, crash, known)),
        1 => Just(Act::Succeed),
        4 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(who, on)| Act::Connect(who, on)),
        4 => any::<prop::sample::Index>().prop_map(Act::Repeat),
        1 => Just(Act::PutBack),
    ];
    prop::collection::vec(act, 1..200)
}

/// A relay.
struct Relay {
    instance: u64,
    volume: Volume,
    link: Link,
    task: TaskEnd,
    ship: Ship,
    /// The commits that the volume has.
    commits: Vec<u16>,
    /// The last row of the snapshot under way.
    after: Vec<u8>,
    fenced: bool,
    /// True if there is a connection, and if the stream's leader has answered over it.
    connected: (bool, bool),
    /// True if the relay has not compared its volume with the stream.
    unlooked: bool,
}

impl Relay {
    fn new(instance: u64, mut volume: Volume, commits: Vec<u16>, standing: Option<Standing>) -> Relay {
        let (mut link, task) = link(Duration::ZERO);
        link.at = at(commits.len());
        begin_run(&mut volume, instance, commits.len());
        let unlooked = standing.is_none();
        volume.alone = unlooked;
        let ship = Relay::new_ship(instance, &volume, standing);
        let (after, fenced, connected) = (Vec::new(), false, (true, false));
        let mut relay = Relay { instance, volume, link, task, ship, commits, after, fenced, connected, unlooked };
        relay.report();
        relay
    }

    fn new_ship(instance: u64, volume: &Volume, standing: Option<Standing>) -> Ship {
        let identity = Identity { volume: volume.number, instance, node: format!("node-{instance}") };
        let mut ship = Ship::new(codec(), identity, standing, instance);
        ship.set_volume(volume.number, volume.runs.clone());
        ship
    }

    /// Compares the volume with the stream after a start without it.
    fn take_over_late(&mut self, stream: &Stream) {
        let found = stream.standing();
        let store = Copy { runs: &self.volume.runs, at: CommitPos::MAX };
        let has = |stream: Option<Copy<'_>>| stream.is_none_or(|stream| store.relation(stream) == Relation::Complete);
        let is_own = found.owner.as_ref().is_some_and(|owner| owner.volume == self.volume.number);
        // What the stream has beyond an own claim is accepted again.
        let standing = (has(found.copy()) || is_own).then_some(found);
        self.volume.alone &= standing.is_none();
        self.ship = Relay::new_ship(self.instance, &self.volume, standing);
        self.unlooked = false;
        self.report();
    }

    fn is_up(&mut self) -> bool {
        self.link.note(Timestamp(0), Timestamp(0));
        *self.link.state().borrow() == State::Up
    }

    /// One look of the queue's thread for a snapshot.
    fn thread(&mut self) {
        let queued = self.commits.len() as u64;
        self.link.refresh(0);
        match self.link.wanted() {
            Wanted::Nothing => {}
            Wanted::Begin => {
                self.after.clear();
                self.link.begin("stamp".into(), queued);
            }
            Wanted::Rows(..) => {
                let store = store_of(&self.commits);
                let mut rows = Vec::new();
                for (key, value) in store.range((Excluded(self.after.clone()), Unbounded)).take(4) {
                    put_row(&mut rows, key, Some(value));
                    self.after.clone_from(key);
                }
                let more = store.range((Excluded(self.after.clone()), Unbounded)).next().is_some();
                self.link.rows(rows, more.then_some(Key::FIRST), queued);
            }
        }
    }

    fn report(&mut self) {
        for report in self.ship.take_reports() {
            self.fenced |= matches!(report, Report::Fenced(_));
            self.task.reports.send(report).unwrap();
        }
    }

    fn connect(&mut self, on: bool, mutant: Option<Mutant>) {
        if on && !self.connected.0 {
            self.connected = (true, false);
            if mutant == Some(Mutant::EarlyConnect) {
                self.answered();
            }
        } else if !on {
            self.connected = (false, false);
            self.task.reports.send(Report::Connected(false)).unwrap();
        }
    }

    /// The stream's leader has answered.
    fn answered(&mut self) {
        self.report();
        if !std::mem::replace(&mut self.connected.1, true) {
            self.task.reports.send(Report::Connected(true)).unwrap();
        }
    }

    fn take_tickets(&mut self) {
        while let Ok(ticket) = self.task.tickets.try_recv() {
            self.ship.push(ticket);
        }
    }

    /// One step of the task.
    fn step(&mut self, stream: &mut Stream, fault: Fault, mutant: Option<Mutant>) -> Result<(), String> {
        self.take_tickets();
        if !self.connected.0 {
            self.report();
            return Ok(());
        }
        if self.unlooked {
            if matches!(fault, Fault::None) {
                self.take_over_late(stream);
            }
            return Ok(());
        }
        match self.ship.next() {
            Step::Publish { expected, record, provisional } => {
                let record = record.to_vec();
                let head = record::head(&record).unwrap();
                if mutant == Some(Mutant::EarlyPurge) && head.kind == Kind::End {
                    stream.purge(expected + 1 - head.number);
                }
                if mutant == Some(Mutant::EarlyRemove) && head.kind == Kind::Claim {
                    self.ship.provisional.iter().for_each(|claim| stream.remove(*claim, expected + 1));
                }
                let publish = |stream: &mut Stream| stream.publish(expected, &record, provisional, mutant);
                let answer = match fault {
                    Fault::None => Some(publish(stream)),
                    Fault::AnswerLost => publish(stream).ok().and(None),
                    Fault::Proposal(more) => Some(Err(stream.last().max(expected) + u64::from(more))),
                    Fault::Late => {
                        stream.under_way.push((expected, record, provisional));
                        None
                    }
                    Fault::Lost => None,
                };
                match answer {
                    Some(Ok(sequence)) => {
                        self.ship.stored(sequence);
                        if mutant == Some(Mutant::RemoveComplete) && head.kind == Kind::End {
                            self.ship.provisional.push(head.claim);
                        }
                        self.answered();
                    }
                    Some(Err(last)) if mutant == Some(Mutant::RefusalIsFence) => {
                        self.ship.gone();
                        let owner = Owner { instance: 0, volume: 0, ..self.owner() };
                        self.ship.found(Standing { last, owner: Some(owner), ..Standing::default() });
                    }
                    Some(Err(last)) => self.ship.refused(last),
                    None if mutant == Some(Mutant::AnotherRecord) && !self.ship.tickets.is_empty() => {
                        self.ship.flight = None;
                        self.ship.rest.clear();
                        self.ship.go_on();
                    }
                    None => {}
                }
            }
            Step::Read(sequence) => match fault {
                Fault::None if stream.is_removed(sequence) && mutant != Some(Mutant::RemovedIsAbsent) => {
                    self.ship.gone()
                }
                Fault::None => self.ship.read(stream.get(sequence)),
                _ => self.ship.read(None),
            },
            Step::Look => {
                if matches!(fault, Fault::None) {
                    self.ship.found(stream.standing());
                    self.answered();
                }
            }
            Step::Purge(before) => {
                if matches!(fault, Fault::None) {
                    stream.purge(before);
                }
                self.ship.purged();
            }
            Step::Remove { provisional, before } => {
                if matches!(fault, Fault::None) {
                    stream.remove(provisional, before);
                }
                self.ship.removed();
            }
            Step::Wait => {
                if matches!(fault, Fault::None) {
                    self.ship.measured(stream.last());
                    self.answered();
                }
            }
            Step::Stop => {}
        }
        self.report();
        let owner = stream.standing().owner.map(|owner| owner.instance);
        // An older process may claim after this one, but not in a stream that lost this one's claim.
        let went_back = stream.last() < self.ship.expected;
        let another = |owner: u64| owner > self.instance || (owner < self.instance && !went_back);
        if self.fenced && !owner.is_some_and(another) {
            return Err(format!("relay {} is fenced, and {owner:?} has the stream", self.instance));
        }
        Ok(())
    }

    fn owner(&self) -> Owner {
        let Identity { volume, instance, node } = self.ship.identity.clone();
        Owner {
            volume,
            instance,
            node,
            stamp: String::new(),
            continues: false,
            runs: Vec::new(),
            predecessors: Vec::new(),
            since: None,
        }
    }
}

struct World {
    mutant: Option<Mutant>,
    stream: Stream,
    /// The relays that live, the newest last.
    relays: Vec<Relay>,
    /// The commits of each relay so far, those that it published before it was killed included.
    written: BTreeMap<u64, Vec<u16>>,
    /// The commits that were answered `fleet`.
    fleet: Vec<u16>,
    next: u16,
    /// An older stream.
    backup: Option<(u64, Vec<Slot>)>,
    /// True from the time when the servers were put back until a relay says that the stream has everything.
    went_back: bool,
}

impl World {
    /// One relay, with an empty queue that the stream has.
    fn new(mutant: Option<Mutant>) -> World {
        let relays = vec![Relay::new(1, Volume { number: 1, ..Volume::default() }, Vec::new(), None)];
        let written = BTreeMap::from([(1, Vec::new())]);
        World {
            mutant,
            stream: Stream::default(),
            relays,
            written,
            fleet: Vec::new(),
            next: 1,
            backup: None,
            went_back: false,
        }
    }

    /// Reads the stream back, and returns the commits that it has.
    fn judge(&self) -> Result<Vec<u16>, String> {
        let store = self.stream.replay()?;
        if self.stream.replay_in_one_pass()?.is_some_and(|once| once != store) {
            return Err("the stream has other rows if it is read once".into());
        }
        let count = store.keys().filter(|key| key[0] == b'c').count();
        let found =
            self.written.values().find(|commits| commits.len() >= count && store_of(&commits[..count]) == store);
        let commits =
            found.ok_or_else(|| format!("the stream has the rows {:?}, which no relay wrote", store.keys()))?;
        let position = self.stream.plan()?.copy().map(|copy| copy.at);
        if position.is_some_and(|position| position != at(count)) {
            return Err(format!("the stream has {count} commits, and the position {position:?}"));
        }
        match self.fleet.iter().find(|commit| !commits[..count].contains(commit)) {
            Some(lost) => Err(format!("the stream lacks commit {lost}, which was answered `fleet`")),
            None => Ok(commits[..count].to_vec()),
        }
    }

    /// Runs a commit, until its wait is over or, in a crash, until its disk was synced.
    fn commit(&mut self, who: usize, steps: &[Fault], crashes: bool) -> Result<(), String> {
        let mutant = self.mutant;
        let relay = &mut self.relays[who];
        let commit = self.next;
        self.next += 1;
        let was_up = relay.is_up();
        relay.link.at = at(relay.commits.len() + 1);
        relay.link.commit(&rows_of(commit, relay.commits.last().copied()), relay.commits.len() as u64);
        relay.commits.push(commit);
        self.written.insert(relay.instance, relay.commits.clone());
        for fault in steps {
            relay.step(&mut self.stream, *fault, mutant)?;
        }
        if crashes {
            return Ok(());
        }
        relay.link.wait(Timestamp(0), || Timestamp(0));
        if if mutant == Some(Mutant::NoWait) { was_up } else { relay.is_up() } {
            self.fleet.push(commit);
            if mutant != Some(Mutant::NoWait) {
                self.judge()?;
                self.went_back = false;
            }
        }
        Ok(())
    }

    /// Repeats of everything are answered.
    fn repeat(&mut self, who: usize) -> Result<(), String> {
        if self.relays[who].is_up() {
            self.fleet.extend(&self.relays[who].commits);
            self.fleet.sort_unstable();
            self.fleet.dedup();
            self.judge()?;
            self.went_back = false;
        }
        Ok(())
    }

    /// Keeps a copy of the stream, or replaces the stream by the copy.
    fn put_back(&mut self) {
        let answered = |relay: &Relay| self.fleet.iter().all(|commit| relay.commits.contains(commit));
        match (&mut self.relays[..], self.backup.take()) {
            // A relay that has not looked yet cannot know which volume it succeeded, and one that was succeeded while it
            // had no connection does not have what its successor answered.
            ([relay], Some((before, records))) if relay.ship.expected > 0 && answered(relay) => {
                relay.connect(false, self.mutant);
                self.stream = Stream { before, records, ..Stream::default() };
                self.went_back = true;
            }
            _ => self.backup = Some((self.stream.before, self.stream.records.clone())),
        }
    }

    /// Starts a relay on a volume, which is empty if there is none.
    fn start(&mut self, volume: Option<(Volume, Vec<u16>)>, known: bool) -> Result<(), String> {
        let instance = 1 + self.written.keys().last().unwrap();
        let (standing, plan) = (self.stream.standing(), self.stream.plan()?);
        let kept = volume.filter(|(volume, commits)| {
            let store = Copy { runs: &volume.runs, at: at(commits.len()) };
            let has =
                |stream: Option<Copy<'_>>| stream.is_none_or(|stream| store.relation(stream) == Relation::Complete);
            let is_own = standing.owner.as_ref().is_some_and(|owner| owner.volume == volume.number);
            !known || (is_own && has(standing.copy())) || has(plan.copy())
        });
        let relay = match kept {
            Some((volume, commits)) => Relay::new(instance, volume, commits, known.then_some(standing)),
            None => {
                let runs = plan.copy().map(|copy| copy.runs.to_vec()).unwrap_or_default();
                let volume = Volume { number: instance, runs, alone: false };
                Relay::new(instance, volume, self.judge()?, Some(standing))
            }
        };
        self.written.insert(instance, relay.commits.clone());
        self.relays.push(relay);
        Ok(())
    }

    fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Commit(who, steps) => self.commit(who.index(self.relays.len()), &steps, false)?,
            Act::Thread(who) => {
                let who = who.index(self.relays.len());
                self.relays[who].thread();
            }
            Act::Step(who, fault) => {
                let who = who.index(self.relays.len());
                self.relays[who].step(&mut self.stream, fault, self.mutant)?;
            }
            Act::Arrive(index) if !self.stream.under_way.is_empty() => {
                self.arrive(index.index(self.stream.under_way.len()));
            }
            Act::Restart(steps, crash, known) if !self.went_back => {
                self.commit(self.relays.len() - 1, &steps, true)?;
                let Relay { volume, mut commits, .. } = self.relays.pop().unwrap();
                if matches!(crash, Crash::Unsynced) {
                    commits.pop();
                }
                let same = !matches!(crash, Crash::EmptyVolume);
                self.start(same.then_some((volume, commits)), known)?;
            }
            Act::Succeed if self.relays.len() < 3 && !self.went_back => self.start(None, true)?,
            Act::Connect(who, on) => {
                let who = who.index(self.relays.len());
                self.relays[who].connect(on, self.mutant);
            }
            Act::Repeat(who) => self.repeat(who.index(self.relays.len()))?,
            Act::PutBack => self.put_back(),
            Act::Arrive(_) | Act::Succeed | Act::Restart(..) => {}
        }
        self.leave()
    }

    /// A copy that is under way arrives.
    fn arrive(&mut self, at: usize) {
        let (expected, record, provisional) = self.stream.under_way.swap_remove(at);
        let _ = self.stream.publish(expected, &record, provisional, self.mutant);
    }

    /// Relays that are fenced exit.
    fn leave(&mut self) -> Result<(), String> {
        self.relays.retain(|relay| !relay.fenced);
        if self.relays.is_empty() { self.start(None, true) } else { Ok(()) }
    }

    /// Without further faults the stream has everything of the relay that has it.
    fn settle(&mut self) -> Result<(), String> {
        while !self.stream.under_way.is_empty() {
            self.arrive(0);
        }
        self.relays.iter_mut().for_each(|relay| relay.connect(true, None));
        for _ in 0..2000 {
            for who in 0..self.relays.len() {
                let relay = &mut self.relays[who];
                relay.thread();
                relay.step(&mut self.stream, Fault::None, self.mutant)?;
            }
            self.leave()?;
            let shipped = |ship: &Ship| ship.flight.is_none() && ship.tickets.is_empty();
            let idle = |relay: &mut Relay| relay.is_up() && shipped(&relay.ship) && relay.link.pause().is_none();
            if let [relay] = &mut self.relays[..]
                && idle(relay)
            {
                let commits = relay.commits.clone();
                return if self.judge()? == commits { Ok(()) } else { Err("the stream lacks commits".into()) };
            }
        }
        Err("the relays do not come to rest".into())
    }
}

fn run(acts: Vec<Act>, mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = World::new(mutant);
    for _ in 0..8 {
        world.relays[0].step(&mut world.stream, Fault::None, None)?;
        world.relays[0].thread();
    }
    acts.into_iter().try_for_each(|act| world.act(act))?;
    world.settle()
}

#[test]
fn stream_that_is_put_back_from_a_backup_is_no_fence_for_its_owner() {
    for (restarts, volume) in
        [(0, Crash::SameVolume), (1, Crash::SameVolume), (1, Crash::EmptyVolume), (3, Crash::EmptyVolume)]
    {
        let mut world = World::new(None);
        world.settle().unwrap();
        world.commit(0, &[Fault::None; 3], false).unwrap();
        let (before, records) = (world.stream.before, world.stream.records.clone());
        for _ in 0..restarts {
            world.act(Act::Restart(vec![Fault::None; 3], volume, true)).unwrap();
            world.settle().unwrap();
        }
        world.commit(0, &[Fault::None; 3], false).unwrap();
        world.settle().unwrap();
        let runs = world.relays[0].ship.runs.clone();
        (world.stream.before, world.stream.records) = (before, records);
        world.relays[0].ship.measured(world.stream.last());
        assert_eq!(world.relays[0].ship.next(), Step::Look);
        world.settle().unwrap();
        let owner = world.stream.standing().owner.unwrap();
        assert_eq!((owner.instance, &owner.runs), (world.relays[0].instance, &runs), "{restarts} {volume:?}");
        assert_eq!(world.relays.len(), 1);
    }
}

/// A relay that is killed in each of its snapshots, after a complete one.
fn crash_loop(world: &mut World, restarts: usize) {
    for restart in 0..restarts {
        let crash = if restart % 3 == 0 { Crash::EmptyVolume } else { Crash::SameVolume };
        world.act(Act::Restart(vec![Fault::None; 2], crash, restart % 2 == 0)).unwrap();
        for _ in 0..6 {
            let relay = world.relays.last_mut().unwrap();
            relay.thread();
            relay.step(&mut world.stream, Fault::None, None).unwrap();
        }
        world.judge().unwrap();
        assert!(!world.stream.standing().provisional.is_empty(), "no snapshot is complete");
    }
}

#[test]
fn snapshots_of_a_crash_loop_are_removed_except_the_last() {
    let mut world = World::new(None);
    for _ in 0..40 {
        world.commit(0, &[Fault::None; 3], false).unwrap();
    }
    world.settle().unwrap();
    let records = |world: &World| world.stream.all().count();
    let (before, last) = (records(&world), world.stream.last());
    crash_loop(&mut world, 2);
    let most = records(&world);
    for _ in 0..20 {
        crash_loop(&mut world, 3);
        assert!(records(&world) <= most + 2, "{} records, {most} after two crashes, {before} before", records(&world));
    }
    assert!(world.stream.last() > last + 200);
    world.settle().unwrap();
}

#[test]
fn missing_record_is_noticed_or_makes_no_difference() {
    let mut world = World::new(None);
    for _ in 0..20 {
        world.commit(0, &[Fault::None; 3], false).unwrap();
    }
    world.settle().unwrap();
    for restarts in [0, 1, 3] {
        crash_loop(&mut world, restarts);
        assert_eq!(world.stream.records.iter().any(Option::is_none), restarts > 1);
        // The records of a later snapshot, up to its end.
        loop {
            let found = |stream: &Stream| stream.plan().map(|plan| (plan.range(), plan.copy().map(|copy| copy.at)));
            let whole = found(&world.stream).unwrap();
            for at in 1..world.stream.records.len() - 1 {
                let mut stream = world.stream.clone();
                if stream.records[at].take().is_some() {
                    match found(&stream) {
                        Ok(other) => assert_eq!(other, whole, "record {at}"),
                        Err(why) => assert!(why.ends_with("is missing"), "{why}"),
                    }
                }
            }
            let relay = world.relays.last_mut().unwrap();
            if matches!(relay.ship.next(), Step::Purge(_) | Step::Wait) && relay.is_up() {
                break;
            }
            relay.thread();
            relay.step(&mut world.stream, Fault::None, None).unwrap();
        }
        world.settle().unwrap();
    }
}

#[test]
fn stream_is_read_once_until_a_snapshot_after_a_gap_is_complete_beside_an_older_one() {
    let mut world = World::new(None);
    assert_eq!(world.stream.replay_in_one_pass().unwrap(), None, "no snapshot is complete");
    world.settle().unwrap();
    let reads_once = |world: &World| world.stream.replay_in_one_pass().unwrap().is_some();
    world.commit(0, &[Fault::None; 3], false).unwrap();
    assert!(reads_once(&world));
    let relay = &mut world.relays[0];
    relay.ship.gone();
    for steps in 0.. {
        let relay = &mut world.relays[0];
        relay.thread();
        let purges = matches!(relay.ship.next(), Step::Purge(_));
        // The older snapshot is still there, and then it is removed.
        assert_eq!(reads_once(&world), !purges, "{steps}");
        if purges {
            break;
        }
        world.relays[0].step(&mut world.stream, Fault::None, None).unwrap();
        world.judge().unwrap();
    }
    world.settle().unwrap();
    assert!(reads_once(&world));
}

#[test]
fn stream_that_goes_back_to_a_claim_without_a_snapshot_is_no_fence_for_its_owner() {
    for restarts in 1..4 {
        let mut world = World::new(None);
        while world.stream.last() == 0 {
            world.relays[0].step(&mut world.stream, Fault::None, None).unwrap();
            world.relays[0].thread();
        }
        let records = world.stream.records.clone();
        for _ in 0..restarts {
            world.act(Act::Restart(Vec::new(), Crash::EmptyVolume, true)).unwrap();
            world.settle().unwrap();
        }
        let instance = world.relays[0].instance;
        assert!(!world.relays[0].ship.has_run(1), "the store has nothing of the first process");
        (world.stream.before, world.stream.records) = (0, records);
        world.relays[0].ship.measured(world.stream.last());
        world.settle().unwrap();
        assert_eq!(world.stream.standing().owner.unwrap().instance, instance, "{restarts}");
    }
}

#[test]
fn copy_of_a_volume_and_a_successor_in_a_stream_that_was_put_back_fence() {
    let mut world = World::new(None);
    world.settle().unwrap();
    let old = world.stream.records.clone();
    world.commit(0, &[Fault::None; 3], false).unwrap();
    world.settle().unwrap();
    // Another process with the same volume: a disk that was cloned.
    let claim = |volume, stream: &mut Stream| {
        let standing = stream.standing();
        let runs = standing.owner.as_ref().unwrap().runs.clone();
        let volume = Volume { number: volume, runs, alone: false };
        let mut other = Relay::new(9, volume, Vec::new(), Some(standing));
        (0..12).for_each(|_| {
            other.thread();
            other.step(stream, Fault::None, None).unwrap();
        });
    };
    let mut owner = world.relays.pop().unwrap();
    claim(owner.volume.number, &mut world.stream);
    owner.ship.gone();
    owner.step(&mut world.stream, Fault::None, None).unwrap();
    assert!(owner.fenced);
    for volume in [77, 1] {
        let mut world = World::new(None);
        world.settle().unwrap();
        for _ in 0..4 {
            world.commit(0, &[Fault::None; 3], false).unwrap();
        }
        world.stream.records.clone_from(&old);
        claim(volume, &mut world.stream);
        let owner = &mut world.relays[0];
        assert!(world.stream.last() < owner.ship.expected);
        owner.ship.measured(world.stream.last());
        owner.step(&mut world.stream, Fault::None, None).unwrap();
        assert!(owner.fenced, "{volume}");
    }
}

impl World {
    /// So many steps of the first relay.
    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.relays[0].thread();
            self.relays[0].step(&mut self.stream, Fault::None, None).unwrap();
        }
    }

    /// Puts the stream back before the claim in flight, a copy of which is late: it is stored behind those records that are
    /// there by then. Meanwhile the relay that made it may restart.
    fn late_claim(&mut self, restart: bool) {
        if restart {
            self.relays[0].step(&mut self.stream, Fault::Late, None).unwrap();
            self.act(Act::Restart(Vec::new(), Crash::SameVolume, true)).unwrap();
            self.relays[0].thread();
        }
        let late = std::mem::take(&mut self.stream.under_way);
        self.put_back();
        self.stream.under_way = late;
        self.relays[0].connect(true, None);
        if !restart {
            self.relays[0].step(&mut self.stream, Fault::Late, None).unwrap();
        }
        let (place, ref claim, _) = self.stream.under_way[0];
        assert_eq!(record::head(claim).unwrap().kind, Kind::Claim);
        while self.stream.last() < place {
            self.steps(1);
            if self.relays[0].ship.next() == Step::Wait {
                self.commit(0, &[], false).unwrap();
            }
        }
        self.arrive(0);
        assert_eq!(self.stream.last(), place + 1, "the claim is stored");
    }
}

/// A relay that was started after so many commits and unfinished snapshots, and begins another one.
fn started(commits: usize, unfinished: usize) -> World {
    let mut world = World::new(None);
    world.settle().unwrap();
    world.put_back();
    (0..commits).for_each(|_| world.commit(0, &[Fault::None; 3], false).unwrap());
    for restart in 0..=unfinished {
        world.act(Act::Restart(Vec::new(), Crash::SameVolume, true)).unwrap();
        world.steps(if restart < unfinished { 3 } else { 0 });
    }
    world.relays[0].thread();
    world.relays[0].take_tickets();
    world
}

#[test]
fn late_claim_in_a_stream_that_was_put_back_leaves_the_first_that_does_not_count_where_it_is() {
    for (commits, unfinished) in (1..8).flat_map(|commits| [(commits, 0), (commits, 1), (commits, 2)]) {
        // The servers are put back once more, to the state after so many steps.
        for kept in [None, Some(0), Some(2), Some(3), Some(4), Some(5)] {
            let mut world = started(commits, unfinished);
            world.late_claim(false);
            if let Some(kept) = kept {
                world.steps(kept);
                world.put_back();
                world.steps(3);
                world.put_back();
            }
            world.settle().unwrap_or_else(|why| panic!("{commits}, {unfinished}, {kept:?}: {why}"));
        }
    }
}

#[test]
fn late_claim_that_continued_the_stream_before_it_was_put_back_does_not_count() {
    for restart in [false, true] {
        let mut world = World::new(None);
        world.settle().unwrap();
        world.put_back();
        let renews = |relay: &Relay| relay.ship.flight.as_ref().is_some_and(|flight| flight.continues);
        while !renews(&world.relays[0]) {
            assert!(world.stream.last() < 500, "the stream is not renewed");
            world.commit(0, &[Fault::None; 3], false).unwrap();
            world.relays[0].thread();
            world.relays[0].take_tickets();
        }
        let before = world.relays[0].link.at;
        world.late_claim(restart);
        let commits = world.judge().unwrap().len();
        assert!(before < at(commits), "the copy has an older position");
        let (instance, standing) = (world.relays[0].instance, world.stream.standing());
        assert_eq!((standing.at, standing.owner.unwrap().instance), (at(commits), instance), "{restart}");
        assert_eq!(world.stream.plan().unwrap().copy().unwrap().runs, &world.relays[0].ship.runs[..], "{restart}");
        world.settle().unwrap();
        assert_eq!(world.relays[0].instance, instance, "no relay is fenced");
    }
}

#[test]
fn lost_record_before_a_late_claim_is_noticed_and_nothing_that_counts_is_removed() {
    let mut world = started(12, 1);
    world.late_claim(false);
    let before = world.stream.before;
    assert!(before > 0 && world.stream.plan().is_ok(), "a snapshot is complete");
    let lost = usize::try_from(world.stream.last() - 1 - before - 1).unwrap();
    world.stream.records[lost] = None;
    for steps in 0.. {
        assert!(steps < 50, "no snapshot is complete");
        assert!(world.stream.plan().is_err(), "{steps}");
        assert!(world.stream.records[..lost].iter().all(Option::is_some), "{steps}");
        world.steps(1);
        if world.stream.before > before {
            break;
        }
    }
    world.settle().unwrap();
}

#[test]
fn rows_that_a_server_does_not_take_any_more_are_shipped_again_in_shorter_records() {
    let mut world = World::new(None);
    world.settle().unwrap();
    for bytes in [600 << 10, 30 << 10, 2 << 10, 0] {
        let who = &mut world.relays[0];
        who.ship.limit_records(600 << 10);
        world.commit(0, &[], false).unwrap();
        world.commit(0, &[], false).unwrap();
        world.commit(0, &[], false).unwrap();
        let relay = &mut world.relays[0];
        relay.take_tickets();
        relay.ship.limit_records(bytes);
        let before = world.stream.last();
        world.settle().unwrap();
        let most = bytes.max(OVERHEAD + 1024);
        let long: Vec<_> = world
            .stream
            .records
            .iter()
            .skip(usize::try_from(before - world.stream.before).unwrap_or(0))
            .flatten()
            .map(|(record, _)| record.len())
            .collect();
        assert!(long.iter().all(|length| *length <= most), "{bytes}: {long:?}");
    }
}

proptest! {
    #[test]
    fn crash_at_any_step_loses_nothing_that_was_answered_fleet(acts in acts()) {
        prop_assert_eq!(run(acts, None), Ok(()));
    }
}

#[test]
fn each_mutant_is_detected() {
    for mutant in MUTANTS {
        let config = Config { cases: 2000, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let found = runner.run(&acts(), |acts| run(acts, Some(mutant)).map_err(TestCaseError::fail));
        let Err(TestError::Fail(fault, _)) = found else { panic!("{mutant:?} is not detected: {found:?}") };
        println!("{mutant:?}: {fault}");
    }
}
