//! A queue with a key file: the bytes on its disk, and the keys that open it.

use super::*;

/// 32 bytes of it in base64.
const FIRST: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const SECOND: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
/// The text that must not be found: in a short message, in a long one, as a token.
const CANARY: &str = "canary-4711";

fn keys(lines: &[&str]) -> Vec<SealingKey> {
    if lines.is_empty() { Vec::new() } else { SealingKey::parse_file(&lines.join("\n")).unwrap() }
}

fn sealed(lines: &[&str]) -> Rig {
    Rig::with(|options| options.keys = keys(lines))
}

impl Rig {
    fn reopen_with(mut self, lines: &[&str]) -> Rig {
        self.options.keys = keys(lines);
        self.reopen()
    }

    /// Why it does not open.
    fn refused_with(self, lines: &[&str]) -> (String, Rig) {
        let Rig { folder, clock, options, queue, thread, runtime, .. } = self;
        drop((queue, runtime));
        thread.join().unwrap().unwrap();
        let with = Options { keys: keys(lines), ..options.clone() };
        let error = Queue::open(with, clock.clone(), &Metrics::default()).unwrap_err();
        let text = error.to_string().replace(&options.path.display().to_string(), "PATH");
        (text, Rig::open(folder, options, clock))
    }

    /// True if a file of the folder contains the canary.
    fn shows_the_canary(&self) -> bool {
        let mut folders = vec![self.options.path.clone()];
        let mut found = false;
        while let Some(folder) = folders.pop() {
            for file in std::fs::read_dir(folder).unwrap().flatten() {
                if file.path().is_dir() {
                    folders.push(file.path());
                } else {
                    let bytes = std::fs::read(file.path()).unwrap();
                    found |= bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
                }
            }
        }
        found
    }

    fn push_canaries(&self) {
        self.accepted(message(&format!("token-{CANARY}"), "1", &format!("short {CANARY}")));
        self.accepted(message(&format!("token-{CANARY}"), "2", &CANARY.repeat(1000)));
        let dead = self.lease(1).pop().unwrap();
        self.settle(dead, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
        self.accepted(message(&format!("token-{CANARY}"), "3", &format!("short {CANARY}")));
    }
}

#[test]
fn contents_and_tokens_are_on_disk_only_sealed() {
    let open = Rig::new();
    open.push_canaries();
    assert!(open.shows_the_canary(), "unsealed it does: the search finds what there is");
    let rig = sealed(&[FIRST]);
    rig.push_canaries();
    assert!(!rig.shows_the_canary());
    let rig = rig.reopen();
    assert_eq!(rig.drain(), [CANARY.repeat(1000), format!("short {CANARY}")]);
    assert!(!rig.shows_the_canary());
}

#[test]
fn wrong_or_missing_key_refuses_the_start() {
    let rig = sealed(&[FIRST]);
    rig.accepted(message("a", "1", "x"));
    let (error, rig) = rig.refused_with(&[SECOND]);
    assert_eq!(error, "open queue PATH: it is sealed, and none of the 1 key(s) in queue.key_file opens it");
    let (error, rig) = rig.refused_with(&[]);
    assert_eq!(error, "open queue PATH: it is sealed, and queue.key_file is not set, so nothing opens it");
    assert_eq!(rig.drain(), ["x"]);
}

#[test]
fn keys_are_rotated_by_putting_the_new_one_first() {
    let rig = sealed(&[FIRST]);
    rig.accepted(message("a", "1", "old"));
    let rig = rig.reopen_with(&[SECOND, FIRST]);
    rig.accepted(message("b", "1", "new"));
    assert_eq!(rig.drain(), ["old", "new"]);
    // What the old key had sealed has left: it is not needed any more.
    let rig = rig.reopen_with(&[SECOND]);
    rig.accepted(message("c", "1", "newer"));
    assert_eq!(rig.drain(), ["newer"]);
    assert!(matches!(rig.push(message("a", "1", "old")), Verdict::Accepted { repeat: true, .. }));
}

#[test]
fn key_that_is_added_later_seals_new_messages() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "plain"));
    let rig = rig.reopen_with(&[FIRST]);
    rig.accepted(message(&format!("token-{CANARY}"), "1", CANARY));
    let (_, rig) = rig.refused_with(&[]);
    assert!(!rig.shows_the_canary());
    assert_eq!(rig.drain(), ["plain", CANARY]);
}

#[test]
fn message_whose_key_is_gone_is_dead_lettered_and_its_conversation_goes_on() {
    let rig = sealed(&[FIRST]);
    rig.accepted(message("a", "1", "old"));
    let rig = rig.reopen_with(&[SECOND, FIRST]);
    rig.accepted(message("a", "2", "new"));
    let rig = rig.reopen_with(&[SECOND]);
    assert!(rig.drain().is_empty(), "the token was sealed by the old key too");
    let Found::State(MessageState { status: Status::Dead { reason, error, .. }, .. }) = rig.find(asker("a"), "1")
    else {
        panic!("it is dead")
    };
    assert_eq!(reason, Reason::Poison);
    assert!(error.text.contains("sealed by a key that is gone"), "{error:?}");
}

#[test]
fn sealed_store_without_its_stamp_is_rebuilt() {
    type Spoil = fn(&std::path::Path) -> std::io::Result<()>;
    let gone: Spoil = |path| std::fs::remove_file(path.join("format"));
    let torn: Spoil = |path| std::fs::write(path.join("format"), "connect-relay queue, format 5");
    for spoil in [gone, torn] {
        let rig = sealed(&[FIRST]);
        let id = rig.accepted(message("a", "1", "kept")).id.to_string();
        let kept = |rig: &Rig| {
            assert!(rig.overview().set_aside);
            let Verdict::Accepted { state, repeat: true, .. } = rig.push(message("a", "1", "kept")) else {
                panic!("the key of the hashes is there too")
            };
            assert_eq!(state.id.to_string(), id);
        };
        let rig = rig.killed_with(|path| spoil(path).unwrap());
        kept(&rig);
        let (folder, options, clock) = rig.reopen().close();
        std::fs::remove_dir_all(super::damaged::aside(&options.path)).unwrap();
        spoil(&options.path).unwrap();
        for wrong in [&[SECOND][..], &[]] {
            let wrong = Options { keys: keys(wrong), ..options.clone() };
            let error = Queue::open(wrong, clock.clone(), &Metrics::default()).unwrap_err().to_string();
            assert!(error.contains("it is sealed, and"), "{error}");
        }
        let rig = Rig::open(folder, options, clock);
        kept(&rig);
        assert_eq!(rig.drain(), ["kept"]);
    }
}
