//! The journal: its commits survive a kill, and checkpoints move them into sled.

use super::*;
use crate::storage::Image;

/// More than the journal holds.
const MANY: usize = 3000;

/// That of the first epoch, which is even; a checkpoint begins the next one in the other file.
const JOURNALS: [&str; 2] = ["journal.0", "journal.1"];

fn journal_of(rig: &Rig) -> Vec<u8> {
    std::fs::read(rig.options.path.join(JOURNALS[0])).unwrap()
}

fn stands(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

fn in_sled(rig: &Rig, text: &str) -> bool {
    stands(&std::fs::read(rig.options.path.join("db")).unwrap(), text).is_some()
}

fn push_many(rig: &Rig) {
    for group in (0..MANY).collect::<Vec<_>>().chunks(100) {
        let body = "x".repeat(900);
        rig.push_all(
            group.iter().map(|n| message(&format!("t{}", n % 50), &n.to_string(), &format!("{n} {body}"))).collect(),
        );
    }
}

#[test]
fn commit_goes_to_the_journal_and_a_kill_leaves_it_there() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "first"));
    rig.accepted(message("a", "2", "second"));
    assert!(stands(&journal_of(&rig), "second").is_some());
    assert!(!in_sled(&rig, "second"), "sled has nothing of it yet");
    let rig = rig.killed().killed();
    assert_eq!(rig.drain(), ["first", "second"]);
}

#[test]
fn message_that_left_before_a_checkpoint_never_reaches_sled() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "in and out"));
    rig.drain();
    let rig = rig.reopen();
    assert!(!in_sled(&rig, "in and out"));
    let again = rig.accepted(message("a", "1", "in and out"));
    assert!(matches!(again.status, Status::Delivered(_)), "its outcome did");
}

#[test]
fn full_journal_is_a_checkpoint() {
    let rig = Rig::new();
    push_many(&rig);
    assert!(in_sled(&rig, "0 xxx"));
    let rig = rig.killed();
    assert_eq!(rig.overview().queued, MANY as u64);
    assert_eq!(rig.drain().len(), MANY);
    let rig = rig.killed();
    assert_eq!((rig.overview().queued, rig.drain().len()), (0, 0));
}

#[test]
fn clean_end_leaves_everything_in_sled() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "kept"));
    let rig = rig.reopen();
    let (_folder, options, _) = rig.close();
    assert_eq!(testing::count(&options.path, b'm'), 1);
}

#[test]
fn queue_at_rest_moves_its_rows_into_sled() {
    let rig = Rig::with(|options| options.lifetime = Duration::from_secs(86_400));
    rig.accepted(message("a", "1", &format!("at rest {}", "x".repeat(5000))));
    rig.skip(Duration::from_secs(9));
    assert!(!in_sled(&rig, "at rest"));
    rig.skip(Duration::from_secs(60));
    assert!(happens(&rig, || in_sled(&rig, "at rest")), "after a minute");
    assert_eq!(rig.killed().overview().queued, 1);
}

/// Lets seconds pass until something has happened.
fn happens(rig: &Rig, has_happened: impl Fn() -> bool) -> bool {
    (0..1000).any(|_| {
        rig.skip(Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(10));
        has_happened()
    })
}

#[test]
fn queue_opens_its_log_anew_at_rest_after_much_work() {
    let rig = Rig::with(|options| options.lifetime = Duration::from_secs(86_400));
    push_many(&rig);
    // sled writes a snapshot when it opens a log that has rows.
    let is_opened_anew = || rig.files().keys().any(|name| name.to_string_lossy().starts_with("snap."));
    assert!(!is_opened_anew());
    rig.skip(Duration::from_secs(60));
    assert!(happens(&rig, is_opened_anew), "after a minute");
    assert_eq!(rig.drain().len(), MANY);
    let rig = rig.reopen();
    assert_eq!((rig.overview().queued, rig.drain().len()), (0, 0));
}

#[test]
fn checkpoint_that_was_cut_short_leaves_nothing_behind() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "sent once"));
    let (rig, written) = {
        // Of the checkpoint's batches sled has the first.
        let log = Image::read(&rig.options.path, |_, _| ()).unwrap();
        let rows: Vec<_> = [b'm', b'r'].iter().flat_map(|letter| log.keys(*letter)).collect();
        let rows: Vec<_> = rows.iter().map(|key| (key.to_vec(), log.raw(key).unwrap().unwrap())).collect();
        (rig.killed_with(|path| testing::write_sled_rows(path, &rows)), rows.len())
    };
    assert_eq!((written, rig.drain()), (2, vec!["sent once".to_owned()]));
    let (_folder, options, _) = rig.close();
    assert_eq!((testing::count(&options.path, b'm'), testing::count(&options.path, b'r')), (0, 0));
}

#[test]
fn incomplete_record_at_the_end_of_the_journal_is_no_commit() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "first"));
    rig.accepted(message("a", "2", "second"));
    let mut bytes = journal_of(&rig);
    let at = stands(&bytes, "second").unwrap();
    bytes[at..].fill(0);
    std::fs::write(rig.options.path.join(JOURNALS[0]), bytes).unwrap();
    let rig = rig.killed();
    assert!(!rig.overview().set_aside);
    assert_eq!(rig.drain(), ["first"]);
}

#[test]
fn damage_in_the_middle_of_the_journal_loses_one_commit_and_sets_the_store_aside() {
    let rig = Rig::new();
    for text in ["first", "second", "third"] {
        rig.accepted(message(text, "1", text));
    }
    let mut bytes = journal_of(&rig);
    let at = stands(&bytes, "second").unwrap();
    bytes[at] ^= 1;
    std::fs::write(rig.options.path.join(JOURNALS[0]), bytes).unwrap();
    let rig = rig.killed();
    assert!(rig.overview().set_aside);
    assert_eq!(rig.overview().queued, 2);
    assert_eq!(rig.drain(), ["first", "third"]);
    assert_eq!(rig.overview().queued, 0, "what was lost is not counted");
}

#[test]
fn journal_that_is_gone_is_damage() {
    let removed = |path: &PathBuf| std::fs::remove_file(path);
    let emptied = |path: &PathBuf| std::fs::write(path, "");
    let another = |path: &PathBuf| std::fs::copy(path.with_file_name("db"), path).map(|_| ());
    let other = |path: &PathBuf| std::fs::copy(path.with_file_name(JOURNALS[1]), path).map(|_| ());
    let damages = [&removed as &dyn Fn(&PathBuf) -> std::io::Result<()>, &emptied, &other, &another];
    for (damage, name) in damages.into_iter().zip(JOURNALS.into_iter().cycle()).chain([(damages[0], JOURNALS[1])]) {
        let rig = Rig::new();
        rig.accepted(message("a", "1", "kept"));
        let rig = rig.reopen();
        damage(&rig.options.path.join(name)).unwrap();
        let rig = rig.killed();
        assert!(rig.overview().set_aside);
        assert_eq!(rig.drain(), ["kept"]);
    }
    let rig = Rig::new();
    rig.accepted(message("a", "1", "in the journal alone"));
    let rig = rig.killed_with(|path| std::fs::remove_file(path.join(JOURNALS[0])).unwrap());
    assert!(rig.overview().set_aside, "also before the first checkpoint: what it had is lost, and that is told");
}

#[test]
fn journal_that_is_shorter_than_before_is_damage() {
    let rig = Rig::new();
    push_many(&rig);
    rig.accepted(message("a", "1", "after the checkpoint"));
    let read = |name| std::fs::read(rig.options.path.join(name)).unwrap();
    let (name, before, at) = JOURNALS
        .into_iter()
        .find_map(|name| stands(&read(name), "after the checkpoint").map(|at| (name, read(name), at)))
        .unwrap();
    let rig = rig.killed_with(|path| std::fs::write(path.join(name), &before[..at]).unwrap());
    assert!(rig.overview().set_aside, "the message is gone, and that is told");
    assert_eq!(rig.overview().queued, MANY as u64);
    // And one that has all its length is none.
    let rig = rig.killed().reopen().killed();
    assert_eq!(rig.drain().len(), MANY);
}

#[test]
fn damaged_copy_of_the_stamp_is_counted_and_replaced() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "kept"));
    let (folder, options, clock) = rig.reopen().close();
    let (key, mut value) = testing::sled_rows(&options.path).into_iter().find(|(key, _)| key == b"f").unwrap();
    *value.last_mut().unwrap() ^= 1;
    testing::write_sled_rows(&options.path, &[(key, value)]);
    let rig = Rig::open(folder, options, clock);
    assert!((corrupt(&rig) - 1.0).abs() < f64::EPSILON, "{}", corrupt(&rig));
    let rig = rig.reopen();
    assert!(corrupt(&rig) < 1.0);
    let (_folder, options, _) = rig.close();
    assert_eq!(testing::count(&options.path, b'k'), 1);
}
