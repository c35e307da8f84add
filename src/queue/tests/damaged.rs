//! Damaged stores: they are read without sled, and rebuilt.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::*;
use crate::storage::{self, Image};

impl Rig {
    /// Ends cleanly.
    pub(super) fn close(self) -> (tempfile::TempDir, Options, Clock) {
        let Rig { folder, clock, options, queue, thread, runtime, .. } = self;
        drop((queue, runtime));
        thread.join().unwrap().unwrap();
        (folder, options, clock)
    }

    /// Ends cleanly, has its folder damaged, and starts again.
    pub(super) fn damaged(self, damage: impl FnOnce(&Path)) -> Rig {
        let (folder, options, clock) = self.close();
        damage(&options.path);
        Rig::open(folder, options, clock)
    }

    /// Accepts, delivers and dead-letters by chance, until some segments of the log have been freed.
    fn busy(mut self, seed: u64, rounds: u32) -> Rig {
        let mut dice = fastrand::Rng::with_seed(seed);
        for round in 0..rounds {
            let some = (0..dice.u32(1..60)).map(|n| {
                let longest = if dice.u32(..10) == 0 { 900 } else { 20 };
                let text = "é😀 text ".repeat(dice.usize(1..longest));
                message(&format!("chat{}", dice.u32(..40)), &format!("{round}-{n}"), &text)
            });
            self.push_all(some.collect());
            for lease in self.lease(dice.usize(1..40)) {
                let due = self.clock.now() + Duration::from_secs(1);
                self.settle(
                    lease,
                    match dice.u32(..10) {
                        0 => Disposition::DeadLetter(Reason::Invalid, ServiceError::default()),
                        1 => Disposition::Retry { due, answer_lost: true, strike: false, counted: false },
                        2 => Disposition::Keep,
                        _ => delivered(),
                    },
                );
            }
            if dice.u32(..20) == 0 {
                self = self.reopen();
            }
        }
        self
    }
}

#[test]
fn log_reads_row_by_row_as_sled_does() {
    for seed in 0..4 {
        let (_folder, options, _) = Rig::new().busy(seed, 120).close();
        assert_eq!(testing::find_damage(&options.path).unwrap(), Vec::<String>::new());
        let log = Image::read(&options.path, |_, _| ()).unwrap();
        let mine: BTreeMap<&[u8], Vec<u8>> =
            (0..u8::MAX).flat_map(|first| log.keys(first)).map(|key| (key, log.raw(key).unwrap().unwrap())).collect();
        let rows = testing::sled_rows(&options.path);
        let sleds: BTreeMap<&[u8], Vec<u8>> = rows.iter().map(|(key, value)| (&**key, value.clone())).collect();
        let differ: Vec<_> = mine.keys().chain(sleds.keys()).filter(|key| mine.get(*key) != sleds.get(*key)).collect();
        assert!(
            rows.len() > 500 && differ.is_empty(),
            "seed {seed}: {} rows, of them differ {:?}",
            rows.len(),
            differ.iter().map(|k| (k.to_vec(), mine.get(**k), sleds.get(**k))).collect::<Vec<_>>()
        );
    }
}

/// Flips a bit of each of these bytes.
fn flip(file: &Path, bytes: impl IntoIterator<Item = u64>) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    for at in bytes {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 16], at).unwrap();
    }
}

pub(super) fn aside(path: &Path) -> PathBuf {
    let files = std::fs::read_dir(path).unwrap().flatten();
    files.map(|file| file.path()).find(|path| path.display().to_string().contains("damaged-")).unwrap()
}

#[test]
fn store_without_its_stamp_is_rebuilt() {
    let rig = Rig::new();
    rig.push_all(vec![message("a", "1", "a1"), message("a", "2", "a2"), message("b", "1", "b1")]);
    let rig = rig.damaged(|path| std::fs::remove_file(path.join("format")).unwrap());
    assert_eq!(rig.overview().queued, 3);
    assert!(matches!(rig.push(message("b", "1", "b1")), Verdict::Accepted { repeat: true, .. }));
    assert_eq!(rig.drain(), ["a1", "b1", "a2"]);
}

#[test]
fn rebuild_loses_only_the_damaged_messages() {
    let rig = Rig::new();
    rig.push_all((0..600).map(|n| message(&format!("chat{}", n % 50), &n.to_string(), &format!("{n:04}"))).collect());
    let mut delivered_before = BTreeSet::new();
    for lease in rig.lease(40) {
        delivered_before.insert(text(&lease));
        rig.settle(lease, delivered());
    }
    let dead = rig.lease(1).pop().unwrap();
    rig.settle(dead, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
    let long = "😀".repeat(3000);
    rig.accepted(message("long", "1", &long));
    let (all, id) = (rig.overview().queued, rig.accepted(message("chat3", "last", "last")).id);
    // The middle of a block, far before the last checkpoint: of that one the journal would have it all.
    let rig = rig.reopen().damaged(|path| flip(&path.join("db"), 20_000..20_100));
    let overview = rig.overview();
    assert!(overview.set_aside && overview.dead == 1 && overview.queued + 30 > all, "{overview:?} of {all}");
    let Verdict::Accepted { state, repeat: true, .. } = rig.push(message("chat3", "last", "last")) else {
        panic!("a repeat of what was carried over is a repeat")
    };
    assert_eq!(state.id, id);
    let sent = rig.drain();
    assert!(sent.contains(&long) && sent.len() as u64 == overview.queued);
    assert!(sent.iter().all(|text| !delivered_before.contains(text)), "what had left has left");
    let mut of_chat: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for number in sent.iter().filter_map(|text| text.parse::<usize>().ok()) {
        of_chat.entry(number % 50).or_default().push(number);
    }
    assert!(of_chat.values().all(|numbers| numbers.is_sorted()), "{of_chat:?}");
    let fresh = rig.accepted(message("new", "1", "new")).id;
    assert!(fresh.sequence > id.sequence, "numbers are never used twice");

    let damaged = aside(&rig.options.path);
    let report = recovery::Doctor::open(&damaged, Vec::new(), |_, _| ()).unwrap().check().unwrap();
    assert!(!report.is_sound() && report.damage[0].contains("the log cannot be read from byte"), "{report}");
    std::fs::remove_dir_all(damaged).unwrap();
    rig.skip(Duration::from_secs(2));
    assert!(!rig.overview().set_aside, "until the folder is gone");
    let (_folder, options, _) = rig.close();
    let report = recovery::Doctor::open(&options.path, Vec::new(), |_, _| ()).unwrap().check().unwrap();
    assert!(report.is_sound(), "{report}");
}

#[test]
fn damaged_store_is_not_changed_if_the_options_refuse_it() {
    let rig = Rig::with(|options| options.damaged = Damaged::Refuse);
    rig.push_all((0..300).map(|n| message("a", &n.to_string(), "x")).collect());
    let (_folder, options, clock) = rig.reopen().close();
    flip(&options.path.join("db"), 10_000..10_001);
    let before = std::fs::read(options.path.join("db")).unwrap();
    let error = Queue::open(options.clone(), clock, &Metrics::default()).unwrap_err();
    assert!(error.to_string().contains("doctor check"), "{error}");
    assert!(std::fs::read(options.path.join("db")).unwrap() == before, "and nothing was written");
}

#[test]
fn damage_to_the_last_checkpoint_loses_nothing() {
    let rig = Rig::new();
    rig.push_all((0..50).map(|n| message("a", &n.to_string(), &n.to_string())).collect());
    let rig = rig.damaged(|path| flip(&path.join("db"), 3_000..3_001));
    assert!(!rig.overview().set_aside);
    assert_eq!(rig.drain(), (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn rebuild_copies_the_messages_in_the_journal() {
    let rig = Rig::new();
    rig.push_all((0..30).map(|n| message("a", &n.to_string(), &n.to_string())).collect());
    let rig = rig.reopen();
    rig.push_all((30..60).map(|n| message("a", &n.to_string(), &n.to_string())).collect());
    assert!(rig.lease(1).pop().is_some_and(|lease| rig.settle(lease, delivered()) == Settled::Delivered));
    std::fs::write(rig.options.path.join("conf"), "?").unwrap();
    let rig = rig.killed();
    assert!(rig.overview().set_aside);
    let rig = rig.killed();
    assert_eq!(rig.drain(), (1..60).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn rebuild_of_a_busy_store_loses_nothing() {
    for seed in 10..13 {
        let rig = Rig::new().busy(seed, 60);
        let before = rig.overview();
        let rig = rig.damaged(|path| std::fs::write(path.join("conf"), "?").unwrap());
        let after = rig.overview();
        assert!(after.set_aside);
        let counts = |o: &Overview| (o.queued, o.conversations, o.held, o.answer_lost, o.dead);
        assert_eq!(counts(&after), counts(&before), "seed {seed}");
        let (_folder, options, _) = rig.close();
        let report = recovery::Doctor::open(&options.path, Vec::new(), |_, _| ()).unwrap().check().unwrap();
        assert!(report.is_sound() && report.queued == before.queued, "{report}");
    }
}

#[test]
fn store_is_set_aside_after_eight_failed_starts() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "a1"));
    let rig = rig.damaged(|path| std::fs::write(path.join(testing::OPENING), ".".repeat(7)).unwrap());
    assert!(!rig.overview().set_aside, "seven can be chance");
    let rig = rig.damaged(|path| std::fs::write(path.join(testing::OPENING), ".".repeat(8)).unwrap());
    assert!(rig.overview().set_aside);
    assert!(!rig.options.path.join(testing::OPENING).exists());
    assert_eq!(rig.drain(), ["a1"]);
}

#[test]
fn damage_that_a_read_meets_is_set_aside_by_the_next_start() {
    let rig = Rig::new();
    // More than sled's cache holds.
    let text = "x".repeat(3500);
    for some in (0..4000).collect::<Vec<u32>>().chunks(200) {
        rig.push_all(some.iter().map(|n| message(&format!("chat{n}"), "1", &text)).collect());
    }
    let log = rig.options.path.join("db");
    flip(&log, (0..std::fs::metadata(&log).unwrap().len()).step_by(512));
    let damaged = rig.runtime.block_on(async {
        loop {
            match rig.queue.lease(LeaseRequest::any(1)).await {
                Ok(work) if work.leases.is_empty() => break false,
                Ok(_) => {}
                Err(StoreFailed(_)) => break true,
            }
        }
    });
    assert!(damaged, "something was read back from the file");
    let Rig { folder, clock, options, thread, queue, runtime, .. } = rig;
    drop((queue, runtime));
    assert!(thread.join().unwrap().is_err());
    assert!(options.path.join(testing::FAILED_READ).exists());
    let rig = Rig::open(folder, options, clock);
    assert!(rig.overview().set_aside && !rig.options.path.join(testing::FAILED_READ).exists());
}

#[test]
fn files_of_another_store_are_detected() {
    let one_of = |text: &'static str| {
        let rig = Rig::new();
        rig.accepted(message(text, "1", text));
        // In sled now; what comes next is in the journal.
        let rig = rig.reopen();
        rig.accepted(message(text, "2", &format!("{text} again")));
        rig
    };
    let other = one_of("other");
    for (file, left) in [("journal.1", vec!["own"]), ("format", vec!["own", "own again"]), ("db", vec!["other"])] {
        let rig = one_of("own");
        let foreign = other.options.path.join(file);
        let rig = rig.killed_with(|path| {
            std::fs::copy(foreign, path.join(file)).unwrap();
        });
        assert!(rig.overview().set_aside, "{file}");
        assert_eq!(rig.drain(), left, "{file}");
        let damaged = recovery::Doctor::open(&aside(&rig.options.path), Vec::new(), |_, _| ()).unwrap();
        let report = damaged.check().unwrap();
        assert!(report.damage.iter().any(|damage| damage.contains("another store's")), "{report}");
    }
}

#[test]
fn wrong_kind_of_file_is_damage() {
    for name in ["db", "conf", "format", "journal.0", "journal.1"] {
        let rig = Rig::new();
        rig.accepted(message("a", "1", "in sled"));
        let rig = rig.reopen();
        let rig = rig.killed_with(|path| {
            std::fs::remove_file(path.join(name)).unwrap();
            std::fs::create_dir(path.join(name)).unwrap();
        });
        assert!(rig.overview().set_aside, "{name}");
        assert_eq!(rig.drain(), ["in sled"], "{name}");
    }
    for name in ["blobs", "compacted"] {
        let rig = Rig::new();
        rig.accepted(message("a", "1", "in sled"));
        let rig = rig.killed_with(|path| std::fs::write(path.join(name), "?").unwrap());
        assert_eq!(rig.overview().set_aside, name == "blobs");
        assert_eq!(rig.drain(), ["in sled"], "{name}");
    }
}

#[test]
fn other_files_in_the_folder_are_not_changed() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let rig = Rig::new();
    rig.accepted(message("a", "1", "kept"));
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let wide = std::fs::Permissions::from_mode(0o644);
    elsewhere.as_file().set_permissions(wide.clone()).unwrap();
    let rig = rig.damaged(|path| {
        symlink("/nowhere/at/all", path.join("dangling")).unwrap();
        symlink(elsewhere.path(), path.join("link")).unwrap();
        std::fs::create_dir(path.join("lost+found")).unwrap();
        std::fs::set_permissions(path.join("lost+found"), wide.clone()).unwrap();
        std::fs::set_permissions(path.join("db"), wide.clone()).unwrap();
    });
    assert_eq!(rig.drain(), ["kept"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(elsewhere.path()), mode(&rig.options.path.join("lost+found"))), (0o644, 0o644));
    assert_eq!(mode(&rig.options.path.join("db")), 0o600, "but what is the relay's is closed");
}

#[test]
fn doctor_counts_what_waits_in_stores_that_were_set_aside() {
    let rig = Rig::new();
    rig.push_all((0..3).map(|n| message("chat", &n.to_string(), "text")).collect());
    let (folder, options, clock) = rig.close();
    let check = |path: &Path| recovery::Doctor::open(path, Vec::new(), |_, _| ()).unwrap().check().unwrap();
    assert!(!check(&options.path).to_string().contains("fleet"));
    storage::Volume::begin_run(&options.path, 1).unwrap();
    let left = storage::leave(&options.path, 2, clock.wall()).unwrap();
    let (_folder, options, _) = Rig::open(folder, options, clock).close();
    storage::Volume::begin_run(&options.path, 1).unwrap();
    let report = check(&options.path);
    assert!(report.is_sound() && report.replicated && report.queued == 0, "{report}");
    let all = check(&left.path).queued;
    assert_eq!(report.left, [recovery::LeftStore { path: left.path.clone(), waiting: Ok(all - 1) }]);
    let text = report.to_string();
    assert!(text.contains("copied into a fleet: ") && text.contains("2 messages in it wait; "), "{text}");
    left.mark_taken().unwrap();
    let text = check(&options.path).to_string();
    assert!(text.contains(&format!("{}: set aside", left.path.display())) && text.contains("can be removed"), "{text}");
}
