//! The copy of a queue: what a stream got is the queue again, in another folder.

use super::*;
use crate::ship::link::{State as CopyState, TaskEnd, link};
use crate::ship::record::Codec;
use crate::ship::replay::{Plan, Replay};
use crate::ship::standing::Standing;
use crate::ship::{Identity, Report, Ship, Step};
use crate::storage::{Restore, SealingKey};

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn codec() -> Codec {
    Codec::new(SealingKey::parse_file(KEY).unwrap(), "CR_shop=_bots-0")
}

/// Ships into a stream that takes everything, until the queue's thread has ended. Returns its records.
fn ship(mut task: TaskEnd) -> JoinHandle<Vec<Vec<u8>>> {
    std::thread::spawn(move || {
        let identity = Identity { volume: 1, instance: 2, node: "node".into() };
        let mut ship = Ship::new(codec(), identity, Some(Standing::default()), 3);
        let mut records = Vec::new();
        task.reports.send(Report::Connected(true)).unwrap();
        loop {
            for report in ship.take_reports() {
                let _ = task.reports.send(report);
            }
            match ship.next() {
                Step::Publish { expected, record, .. } => {
                    assert_eq!(expected, records.len() as u64);
                    records.push(record.to_vec());
                    ship.stored(records.len() as u64);
                }
                Step::Purge(_) => ship.purged(),
                Step::Remove { .. } => ship.removed(),
                Step::Wait => match task.tickets.blocking_recv() {
                    Some(ticket) => ship.push(ticket),
                    None => return records,
                },
                step => panic!("{step:?}"),
            }
        }
    })
}

/// A queue with a copy, which has everything.
fn copied() -> (Rig, JoinHandle<Vec<Vec<u8>>>) {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().join("queue"));
    let (clock, metrics) = (Clock::system(), Metrics::default());
    let (queue, mut thread) = Queue::open(options.clone(), clock.clone(), &metrics).unwrap();
    assert_eq!(queue.copy(), None, "without a copy there is no state");
    let (of_thread, of_task) = link(Duration::from_secs(60));
    thread.ship_to(of_thread, &metrics);
    let shipped = ship(of_task);
    let thread = std::thread::spawn(move || thread.run());
    let rig = Rig { folder, clock, options, queue, metrics, thread, runtime: runtime() };
    rig.runtime.block_on(rig.queue.copy_is(CopyState::Up));
    (rig, shipped)
}

/// Opens the queue that the records are.
fn restored(records: &[Vec<u8>], clock: &Clock) -> Rig {
    let (codec, mut plan, mut replay) = (codec(), Plan::default(), Replay::default());
    let all = || (1..).zip(records);
    all().for_each(|(sequence, record)| plan.read(&codec, sequence, record).unwrap());
    let range = plan.range().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().join("queue"));
    let mut restore = Restore::begin(&options.path).unwrap();
    for (sequence, record) in all().filter(|(sequence, _)| range.contains(sequence)) {
        if let Some(rows) = replay.read(&codec, sequence, record).unwrap() {
            restore.apply(&rows).unwrap();
        }
    }
    restore.finish(&replay.owner.unwrap().stamp, None).unwrap();
    Rig::open(folder, options, clock.clone())
}

#[test]
fn restored_queue_has_the_same_messages_in_the_same_order_with_their_client_tokens() {
    let (rig, shipped) = copied();
    for round in 0..30u32 {
        for chat in 0..5u32 {
            let long = "x".repeat(if round % 7 == 0 { 9000 } else { 10 });
            let text = format!("{round}-{chat}-{long}");
            rig.accepted(message(&format!("token-{chat}"), &format!("c-{round}-{chat}"), &text));
        }
        if round % 3 == 0 {
            let lease = rig.lease(1).pop().unwrap();
            rig.settle(lease, delivered());
        }
        if round % 10 == 5 {
            let lease = rig.lease(1).pop().unwrap();
            rig.settle(lease, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
        }
    }
    assert_eq!(rig.queue.copy(), Some(CopyState::Up));
    let (before, clock, options) = (rig.overview(), rig.clock.clone(), rig.options.clone());
    let Rig { folder, queue, runtime, thread, .. } = rig;
    drop((queue, runtime));
    thread.join().unwrap().unwrap();
    let records = shipped.join().unwrap();
    let visible =
        records.iter().any(|record| record.windows(6).any(|window| window == b"token-" || window == b"xxxxxx"));
    assert!(!visible, "a record shows a token or contents");
    let own = Rig::open(folder, options, clock.clone());
    let copy = restored(&records, &clock);
    let counts = |overview: &Overview| (overview.queued, overview.conversations, overview.dead);
    assert_eq!(counts(&copy.overview()), counts(&before));
    let repeat = copy.push(message("token-4", "c-29-4", &format!("29-4-{}", "x".repeat(10))));
    assert!(matches!(repeat, Verdict::Accepted { repeat: true, .. }), "{repeat:?}");
    assert_eq!(copy.drain(), own.drain());
    assert_eq!(corrupt(&copy), 0.0);
}

#[test]
fn fenced_queue_leases_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().join("queue"));
    let (clock, metrics) = (Clock::system(), Metrics::default());
    let (queue, mut thread) = Queue::open(options.clone(), clock.clone(), &metrics).unwrap();
    let (of_thread, of_task) = link(Duration::from_secs(60));
    thread.ship_to(of_thread, &metrics);
    let thread = std::thread::spawn(move || thread.run());
    let rig = Rig { folder, clock, options, queue, metrics, thread, runtime: runtime() };
    rig.accepted(message("token", "1", "one"));
    of_task.reports.send(Report::Fenced("another".into())).unwrap();
    rig.runtime.block_on(rig.queue.copy_is(CopyState::Fenced));
    assert!(rig.lease(1).is_empty());
    assert_eq!(rig.overview().queued, 1);
}
