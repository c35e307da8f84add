//! Tables and properties of [`Ship`], against a model of a stream.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::replay::{Plan, Replay};
use super::*;
use crate::storage::{SealingKey, put_row, read_rows};

fn codec() -> Codec {
    Codec::new(SealingKey::parse_file(&BASE64_STANDARD.encode([1; 32])).unwrap(), "CR_shop=_pod-0")
}

fn identity(volume: u64, instance: u64) -> Identity {
    Identity { volume, instance, node: format!("node-{instance}") }
}

fn at(number: u64) -> CommitPos {
    CommitPos { epoch: 2, number }
}

/// A run that began after so many commits.
fn run(instance: u64, after: u64) -> Run {
    Run { instance, after: at(after), sequence: after + 1 }
}

fn rows(key: u8, value: &[u8]) -> Vec<u8> {
    let mut rows = Vec::new();
    put_row(&mut rows, &[key], Some(value));
    rows
}

/// A model of a stream: the records in order, and copies that are still under way.
#[derive(Clone, Debug, Default)]
struct Stream {
    /// The sequence before the first record.
    before: u64,
    records: Vec<Vec<u8>>,
    under_way: Vec<(u64, Vec<u8>)>,
}

impl Stream {
    fn last(&self) -> u64 {
        self.before + self.records.len() as u64
    }

    fn publish(&mut self, expected: u64, record: &[u8]) -> Result<u64, u64> {
        if expected != self.last() {
            return Err(self.last());
        }
        self.records.push(record.to_vec());
        Ok(self.last())
    }

    fn get(&self, sequence: u64) -> Option<&[u8]> {
        let at = sequence.checked_sub(self.before + 1)?;
        self.records.get(usize::try_from(at).unwrap()).map(Vec::as_slice)
    }

    fn standing(&self) -> Standing {
        let last = self.last();
        let Some(record) = self.get(last) else { return Standing { last, ..Standing::default() } };
        let head = record::head(record).unwrap();
        let owner = codec().owner(self.get(last - head.number).unwrap()).unwrap();
        Standing { last, owner, at: head.at, ..Standing::default() }
    }

    /// The last commit that the store has which the stream makes up.
    fn at(&self) -> Option<CommitPos> {
        let mut plan = Plan::default();
        let all = (self.before + 1..=self.last()).map(|sequence| (sequence, self.get(sequence).unwrap()));
        all.for_each(|(sequence, record)| plan.read(&codec(), sequence, record).unwrap());
        plan.copy().map(|copy| copy.at)
    }

    /// The rows of the store that the stream has.
    fn replay(&self) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
        let (codec, mut plan) = (codec(), Plan::default());
        let all = || (self.before + 1..=self.last()).map(|sequence| (sequence, self.get(sequence).unwrap()));
        all().for_each(|(sequence, record)| plan.read(&codec, sequence, record).unwrap());
        let range = plan.range()?;
        let (mut replay, mut store) = (Replay::default(), BTreeMap::new());
        for (sequence, record) in all().filter(|(sequence, _)| range.contains(sequence)) {
            if let Some(rows) = replay.read(&codec, sequence, record).unwrap() {
                read_rows(&rows, &mut |key: &[u8], value: Option<&[u8]>| {
                    match value {
                        Some(value) => store.insert(key.to_vec(), value.to_vec()),
                        None => store.remove(key),
                    };
                });
            }
        }
        Some(store)
    }
}

/// Runs a ship until it waits, without any fault.
fn settle(ship: &mut Ship, stream: &mut Stream) -> Vec<Report> {
    let mut reports = ship.take_reports();
    loop {
        match ship.next() {
            Step::Wait | Step::Stop => break,
            Step::Publish { expected, record, .. } => match stream.publish(expected, record) {
                Ok(sequence) => ship.stored(sequence),
                Err(last) => ship.refused(last),
            },
            Step::Read(sequence) => {
                let found = stream.get(sequence).map(<[u8]>::to_vec);
                ship.read(found.as_deref());
            }
            Step::Look => ship.found(stream.standing()),
            Step::Purge(before) => {
                let gone = usize::try_from((before - 1).saturating_sub(stream.before)).unwrap();
                stream.records.drain(..gone);
                stream.before = before - 1;
                ship.purged();
            }
            Step::Remove { .. } => ship.removed(),
        }
        reports.extend(ship.take_reports());
    }
    reports
}

/// A writer: a store of a few rows, and the tickets that the thread of a queue would send.
struct Writer {
    ship: Ship,
    store: BTreeMap<Vec<u8>, Vec<u8>>,
    number: u64,
    stored: u64,
    begun: bool,
    /// The commits of the store.
    commits: u64,
}

impl Writer {
    fn new(mut ship: Ship) -> Writer {
        let Identity { volume, instance, .. } = ship.identity;
        ship.set_volume(volume, vec![run(instance, 0)]);
        Writer { ship, store: BTreeMap::new(), number: 0, stored: 0, begun: false, commits: 0 }
    }

    fn push(&mut self, item: Item) -> u64 {
        self.number += 1;
        self.commits += u64::from(matches!(item, Item::Rows(_)) && self.begun);
        self.ship.push(Ticket { number: self.number, queued: 0, at: at(self.commits), item });
        self.number
    }

    fn snapshot(&mut self) -> u64 {
        self.begun = true;
        self.push(Item::Begin { stamp: "stamp".into(), continues: false });
        let mut all = Vec::new();
        self.store.iter().for_each(|(key, value)| put_row(&mut all, key, Some(value)));
        self.push(Item::Rows(all));
        self.push(Item::End)
    }

    fn commit(&mut self, key: u8, value: &[u8]) -> u64 {
        self.store.insert(vec![key], value.to_vec());
        self.push(Item::Rows(rows(key, value)))
    }
}

/// A writer with a complete snapshot in an empty stream.
fn shipped() -> (Writer, Stream) {
    let mut stream = Stream::default();
    let mut writer = Writer::new(Ship::new(codec(), identity(1, 1), None, 3));
    assert_eq!(writer.ship.next(), Step::Look);
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Ready]);
    writer.commit(0, b"before the snapshot");
    assert_eq!(settle(&mut writer.ship, &mut stream), [], "a commit before the claim is not shipped");
    let last = writer.snapshot();
    assert_eq!(settle(&mut writer.ship, &mut stream).last(), Some(&Report::Stored(last)));
    assert_eq!(stream.replay().unwrap(), writer.store);
    (writer, stream)
}

fn in_flight(writer: &Writer) -> (u64, Vec<u8>) {
    match writer.ship.next() {
        Step::Publish { expected, record, .. } => (expected, record.to_vec()),
        step => panic!("nothing is in flight: {step:?}"),
    }
}

#[test]
fn sequence_that_goes_back_is_no_fence_and_the_volume_is_shipped_again() {
    let (mut writer, mut stream) = shipped();
    let last = writer.commit(1, b"one");
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Stored(last)]);
    // The engine loses the last records.
    stream.records.truncate(stream.records.len() - 1);
    writer.commit(2, b"two");
    let reports = settle(&mut writer.ship, &mut stream);
    assert_eq!(reports, [Report::Dropped, Report::Ready]);
    let last = writer.snapshot();
    assert_eq!(settle(&mut writer.ship, &mut stream).last(), Some(&Report::Stored(last)));
    assert_eq!(stream.replay().unwrap(), writer.store);
}

#[test]
fn stream_that_is_gone_is_claimed_anew() {
    let (mut writer, _) = shipped();
    let mut stream = Stream::default();
    writer.commit(1, b"one");
    writer.ship.gone();
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Dropped, Report::Ready]);
    writer.snapshot();
    settle(&mut writer.ship, &mut stream);
    assert_eq!(stream.replay().unwrap(), writer.store);
}

#[test]
fn refusal_alone_is_no_fence() {
    let (mut writer, mut stream) = shipped();
    let last = writer.commit(1, b"one");
    let (expected, record) = in_flight(&writer);
    for proposed in [expected, expected + 1, expected + 9] {
        // The leader counts a proposal that fails later.
        writer.ship.refused(proposed);
        assert_eq!(writer.ship.next(), Step::Read(expected + 1));
        writer.ship.read(None);
        assert_eq!(in_flight(&writer), (expected, record.clone()), "the same bytes with the same expectation");
    }
    // The first copy is stored, and its answer is lost.
    stream.publish(expected, &record).unwrap();
    writer.ship.refused(expected + 1);
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Stored(last)]);
    assert_eq!(stream.replay().unwrap(), writer.store);
}

#[test]
fn answer_with_another_sequence_is_not_trusted() {
    let (mut writer, mut stream) = shipped();
    writer.commit(1, b"one");
    let (expected, _) = in_flight(&writer);
    writer.ship.stored(expected + 5);
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Dropped, Report::Ready]);
}

#[test]
fn claim_of_another_relay_fences_and_nothing_of_the_old_owner_is_stored_after_it() {
    let (mut writer, mut stream) = shipped();
    writer.commit(1, b"one");
    let late = in_flight(&writer);
    let mut successor = Writer::new(Ship::new(codec(), identity(2, 2), Some(stream.standing()), 9));
    successor.store = stream.replay().unwrap();
    successor.snapshot();
    settle(&mut successor.ship, &mut stream);
    assert_eq!(stream.publish(late.0, &late.1), Err(stream.last()), "a late copy");
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Dropped, Report::Fenced("node-2".into())]);
    assert_eq!(writer.ship.next(), Step::Stop);
    assert_eq!(stream.replay().unwrap(), successor.store);
    let owner = stream.standing().owner.unwrap();
    assert_eq!(owner.runs, [run(2, 0)]);
    // The same volume, in a later process, is not fenced by its own claim, unless the stream has more.
    for (after, expected) in [(successor.commits, Report::Ready), (0, Report::Fenced("node-2".into()))] {
        let mut again = Ship::new(codec(), identity(2, 3), None, 1);
        again.set_volume(2, vec![run(2, 0), run(3, after)]);
        assert_eq!(settle(&mut again, &mut stream), [expected]);
    }
    let mut returned = Ship::new(codec(), identity(1, 4), None, 1);
    assert_eq!(settle(&mut returned, &mut stream), [Report::Fenced("node-2".into())]);
}

#[test]
fn idle_owner_notices_its_successor_and_a_stream_that_lost_records() {
    let (mut writer, mut stream) = shipped();
    assert!(writer.ship.is_owner());
    writer.ship.measured(stream.last());
    assert_eq!(writer.ship.next(), Step::Wait, "nothing has happened");
    writer.commit(1, b"one");
    writer.ship.measured(stream.last() + 1);
    assert!(matches!(writer.ship.next(), Step::Publish { .. }), "the record in flight may be stored");
    settle(&mut writer.ship, &mut stream);
    stream.records.pop();
    writer.ship.measured(stream.last());
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Dropped, Report::Ready]);
    writer.snapshot();
    settle(&mut writer.ship, &mut stream);
    let mut successor = Writer::new(Ship::new(codec(), identity(2, 2), Some(stream.standing()), 9));
    successor.snapshot();
    settle(&mut successor.ship, &mut stream);
    writer.ship.measured(stream.last());
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Dropped, Report::Fenced("node-2".into())]);
    assert!(!writer.ship.is_owner() && successor.ship.is_owner());
}

#[test]
fn ownership_is_confirmed_by_a_stored_record_and_by_a_look_that_finds_no_other() {
    let (mut writer, mut stream) = shipped();
    let mut before = writer.ship.confirmations;
    let mut more = move |writer: &Writer| {
        let now = writer.ship.confirmations;
        std::mem::replace(&mut before, now) < now
    };
    writer.ship.measured(stream.last());
    assert!(more(&writer));
    writer.commit(1, b"one");
    writer.ship.measured(stream.last());
    assert!(!more(&writer), "a record is in flight");
    let (expected, record) = in_flight(&writer);
    stream.publish(expected, &record).unwrap();
    writer.ship.refused(expected + 1);
    writer.ship.read(Some(&record));
    assert!(!more(&writer), "it may have been stored long ago");
    writer.commit(2, b"two");
    settle(&mut writer.ship, &mut stream);
    assert!(more(&writer));
    let mut successor = Writer::new(Ship::new(codec(), identity(2, 2), Some(stream.standing()), 9));
    successor.ship.measured(stream.last());
    assert_eq!(successor.ship.confirmations, 0, "it has claimed nothing yet");
    successor.snapshot();
    settle(&mut successor.ship, &mut stream);
    let before = writer.ship.confirmations;
    writer.ship.measured(stream.last());
    settle(&mut writer.ship, &mut stream);
    assert_eq!(writer.ship.confirmations, before);
}

#[test]
fn owner_that_writes_after_it_was_read_is_not_succeeded() {
    let (mut writer, mut stream) = shipped();
    let mut successor = Writer::new(Ship::new(codec(), identity(2, 2), Some(stream.standing()), 9));
    writer.commit(1, b"one");
    settle(&mut writer.ship, &mut stream);
    successor.snapshot();
    let reports = settle(&mut successor.ship, &mut stream);
    assert_eq!(reports, [Report::Ready, Report::Dropped, Report::Fenced("node-1".into())]);
    assert_eq!(stream.replay().unwrap(), writer.store);
}

#[test]
fn late_copy_from_before_the_last_claim_does_not_count() {
    let (mut writer, mut stream) = shipped();
    writer.commit(1, b"old");
    let (expected, record) = in_flight(&writer);
    let lost = usize::try_from(expected - stream.before).unwrap() - 1;
    stream.records.truncate(lost);
    writer.ship.refused(stream.last());
    settle(&mut writer.ship, &mut stream);
    writer.store.insert(vec![1], b"new".to_vec());
    writer.snapshot();
    settle(&mut writer.ship, &mut stream);
    while stream.last() < expected {
        writer.commit(2, b"more");
        settle(&mut writer.ship, &mut stream);
    }
    if stream.last() == expected {
        stream.publish(expected, &record).unwrap();
    }
    assert_eq!(stream.replay().unwrap(), writer.store);
    writer.commit(3, b"after");
    let reports = settle(&mut writer.ship, &mut stream);
    if reports.contains(&Report::Ready) {
        writer.snapshot();
        settle(&mut writer.ship, &mut stream);
    }
    assert_eq!(stream.replay().unwrap(), writer.store);
}

#[test]
fn long_commit_goes_in_parts_and_counts_whole_or_not_at_all() {
    let (mut writer, mut stream) = shipped();
    writer.ship.limit_records(4096);
    let before = writer.store.clone();
    let value: Vec<u8> = (0..60_000u32).map(|byte| (byte % 251) as u8).collect();
    let last = writer.commit(1, &value);
    let mut lengths = Vec::new();
    loop {
        let (expected, record) = in_flight(&writer);
        lengths.push(record.len());
        let sequence = stream.publish(expected, &record).unwrap();
        let is_last = record::head(&record).unwrap().kind == Kind::Rows;
        assert_eq!(stream.replay().unwrap(), if is_last { writer.store.clone() } else { before.clone() });
        assert_eq!(stream.at(), Some(at(writer.commits - u64::from(!is_last))));
        writer.ship.stored(sequence);
        let reports = writer.ship.take_reports();
        assert_eq!(reports, if is_last { vec![Report::Stored(last)] } else { vec![] });
        if is_last {
            break;
        }
    }
    assert!(lengths.len() > 14 && lengths.iter().all(|length| *length <= 4096), "{lengths:?}");
}

#[test]
fn long_backlog_is_dropped_and_a_snapshot_takes_its_place() {
    let (mut writer, mut stream) = shipped();
    let first = writer.commit(1, b"in flight");
    for number in 0..20 {
        writer.commit(number, &[number; 40_000]);
    }
    assert_eq!(writer.ship.take_reports(), [], "a short backlog waits");
    let saved = (writer.ship.bytes, writer.ship.tickets.len());
    assert!(saved.0 <= BACKLOG_MAX && saved.1 == 20, "{saved:?}");
    for number in 0..7 {
        writer.commit(number, &[number; 40_000]);
    }
    assert_eq!(writer.ship.take_reports(), [], "the last one found less than the most");
    writer.commit(8, b"short");
    assert_eq!(writer.ship.take_reports(), [Report::Dropped]);
    assert_eq!((writer.ship.bytes, writer.ship.tickets.len()), (0, 0));
    assert_eq!(settle(&mut writer.ship, &mut stream), [Report::Stored(first), Report::Ready]);
    let stored = stream.replay().unwrap();
    assert_eq!(stored.get(&vec![1][..]).map(Vec::as_slice), Some(&b"in flight"[..]));
    writer.snapshot();
    assert!(writer.ship.take_reports().is_empty());
    settle(&mut writer.ship, &mut stream);
    assert_eq!(stream.replay().unwrap(), writer.store);
}

#[test]
fn long_commit_behind_a_part_of_a_snapshot_is_not_dropped() {
    let (mut writer, mut stream) = shipped();
    writer.commit(1, b"in flight");
    writer.commit(2, &[2; 256 << 10]);
    let last = writer.commit(3, &[3; BACKLOG_MAX]);
    assert_eq!(writer.ship.take_reports(), []);
    assert!(settle(&mut writer.ship, &mut stream).contains(&Report::Stored(last)));
    assert_eq!(stream.replay().unwrap(), writer.store);
}

#[test]
fn records_before_a_snapshot_are_removed_only_after_its_end_is_stored() {
    let (mut writer, mut stream) = shipped();
    writer.commit(1, b"one");
    settle(&mut writer.ship, &mut stream);
    let begins = stream.last() + 1;
    writer.snapshot();
    loop {
        match writer.ship.next() {
            Step::Publish { expected, record, .. } => {
                let sequence = stream.publish(expected, record).unwrap();
                writer.ship.stored(sequence);
            }
            Step::Purge(before) => {
                let last = stream.get(stream.last()).unwrap();
                assert_eq!((record::head(last).unwrap().kind, before), (Kind::End, begins));
                break;
            }
            step => panic!("{step:?}"),
        }
    }
}

#[test]
fn store_ends_before_a_gap_until_the_next_snapshot_is_complete() {
    let (mut writer, mut stream) = shipped();
    writer.commit(1, b"shipped");
    settle(&mut writer.ship, &mut stream);
    let (before, at_gap) = (writer.store.clone(), at(writer.commits));
    assert_eq!(stream.at(), Some(at_gap));
    writer.ship.stored(99);
    settle(&mut writer.ship, &mut stream);
    writer.store.remove(&vec![1][..]);
    writer.push(Item::Begin { stamp: "stamp".into(), continues: false });
    writer.commit(2, b"after the gap");
    settle(&mut writer.ship, &mut stream);
    assert_eq!(stream.replay().unwrap(), before);
    assert_eq!((stream.at(), stream.standing().at), (Some(at_gap), at(writer.commits)));
    writer.push(Item::Rows(rows(0, b"before the snapshot")));
    writer.push(Item::End);
    settle(&mut writer.ship, &mut stream);
    assert_eq!(stream.replay().unwrap(), writer.store);
    // A snapshot without a gap before it: its commits count at once.
    writer.push(Item::Begin { stamp: "stamp".into(), continues: true });
    writer.commit(3, b"at once");
    settle(&mut writer.ship, &mut stream);
    assert_eq!(stream.replay().unwrap(), writer.store);
}

/// A fault of the model, or the next step of one of two writers.
#[derive(Clone, Debug)]
enum Act {
    /// The writer commits.
    Commit(bool, u8, u16),
    /// The writer takes its next step, with this fault.
    Step(bool, Fault),
    /// A copy that is under way arrives.
    Arrive(prop::sample::Index),
    /// The successor starts: it reads the stream and claims it.
    Succeed,
}

/// A fault of a request to the stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    None,
    /// The request is lost.
    Lost,
    /// The request arrives, the answer does not.
    AnswerLost,
    /// The request arrives later.
    Late,
    /// There is no leader, or the one that answers counts proposals that fail.
    Proposal(u8),
}

/// Faults, and `sound` times as many requests without one as of each kind; the leader counts fewer than `proposals`.
pub(super) fn faults(sound: u32, proposals: u8) -> impl Strategy<Value = Fault> {
    prop_oneof![
        sound => Just(Fault::None),
        1 => Just(Fault::Lost),
        1 => Just(Fault::AnswerLost),
        1 => Just(Fault::Late),
        1 => (0..proposals).prop_map(Fault::Proposal),
    ]
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (any::<bool>(), 0u8..6, any::<u16>()).prop_map(|(who, key, value)| Act::Commit(who, key, value)),
        12 => (any::<bool>(), faults(6, 5)).prop_map(|(who, fault)| Act::Step(who, fault)),
        2 => any::<prop::sample::Index>().prop_map(Act::Arrive),
        1 => Just(Act::Succeed),
    ]
}

fn step(writer: &mut Writer, stream: &mut Stream, fault: Fault) {
    match writer.ship.next() {
        Step::Publish { expected, record, .. } => {
            let record = record.to_vec();
            match fault {
                Fault::None => match stream.publish(expected, &record) {
                    Ok(sequence) => writer.ship.stored(sequence),
                    Err(last) => writer.ship.refused(last),
                },
                Fault::AnswerLost => drop(stream.publish(expected, &record)),
                Fault::Late => stream.under_way.push((expected, record)),
                Fault::Proposal(more) => writer.ship.refused(stream.last().max(expected) + u64::from(more)),
                Fault::Lost => {}
            }
        }
        Step::Read(sequence) => match fault {
            Fault::None => {
                let found = stream.get(sequence).map(<[u8]>::to_vec);
                writer.ship.read(found.as_deref());
            }
            _ => writer.ship.read(None),
        },
        Step::Look => {
            if matches!(fault, Fault::None) {
                writer.ship.found(stream.standing());
            }
        }
        Step::Purge(_) => writer.ship.purged(),
        Step::Remove { .. } => writer.ship.removed(),
        Step::Wait | Step::Stop => {}
    }
    for report in writer.ship.take_reports() {
        match report {
            Report::Stored(number) => writer.stored = number,
            Report::Ready => {
                writer.snapshot();
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn records_of_two_writers_never_alternate_and_no_acknowledged_one_is_missing(
        acts in prop::collection::vec(acts(), 1..160),
    ) {
        let (first, mut stream) = shipped();
        let mut writers = [Some(first), None::<Writer>];
        // The rows of each ticket that the stream acknowledged, in order, by writer.
        let mut committed: [Vec<(u64, Vec<u8>)>; 2] = [Vec::new(), Vec::new()];
        for act in acts {
            match act {
                Act::Commit(who, key, value) => {
                    let who = usize::from(who);
                    if let Some(writer) = &mut writers[who] && writer.begun {
                        let value = value.to_be_bytes();
                        let number = writer.commit(key, &value);
                        committed[who].push((number, rows(key, &value)));
                    }
                }
                Act::Step(who, fault) => {
                    if let Some(writer) = &mut writers[usize::from(who)] {
                        step(writer, &mut stream, fault);
                    }
                }
                Act::Arrive(index) if !stream.under_way.is_empty() => {
                    let at = index.index(stream.under_way.len());
                    let (expected, record) = stream.under_way.swap_remove(at);
                    let _ = stream.publish(expected, &record);
                }
                Act::Succeed if writers[1].is_none() => {
                    let mut writer = Writer::new(Ship::new(codec(), identity(2, 2), Some(stream.standing()), 9));
                    writer.store = stream.replay().unwrap();
                    writers[1] = Some(writer);
                }
                Act::Arrive(_) | Act::Succeed => {}
            }
        }
        // In the end all copies that are under way arrive.
        for (expected, record) in std::mem::take(&mut stream.under_way) {
            let _ = stream.publish(expected, &record);
        }
        // Records of the two never alternate.
        let owners: Vec<u64> = stream.records.iter().scan(0, |owner, record| {
            let head = record::head(record).unwrap();
            if head.kind == Kind::Claim {
                *owner = codec().owner(record).unwrap().unwrap().instance;
            }
            Some((*owner, head.claim))
        }).map(|(owner, _)| owner).collect();
        prop_assert!(owners.windows(2).all(|pair| pair[0] <= pair[1]), "{owners:?}");
        let mut claims = Vec::new();
        for record in &stream.records {
            let head = record::head(record).unwrap();
            match claims.last() {
                Some(last) if *last == head.claim => {}
                _ => {
                    prop_assert!(!claims.contains(&head.claim), "a claim goes on after another");
                    claims.push(head.claim);
                }
            }
        }
        // Each acknowledged commit is in the stream, in order and once.
        let bodies: Vec<Vec<u8>> =
            stream.records.iter().map(|record| codec().decode(record).unwrap().1.to_vec()).collect();
        for (writer, committed) in writers.iter().zip(&committed) {
            let Some(writer) = writer else { continue };
            let acknowledged = committed.iter().filter(|(number, _)| *number <= writer.stored);
            let mut at = 0;
            for (_, rows) in acknowledged {
                let found = bodies[at..].iter().position(|body| body == rows);
                prop_assert!(found.is_some(), "an acknowledged commit is missing");
                at += found.unwrap() + 1;
            }
        }
    }
}
