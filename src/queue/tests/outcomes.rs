//! The stream of outcomes: whose, in which order, and from which cursor on.

use super::*;

impl Rig {
    fn outcomes_from(&self, after: Option<OutcomeCursor>) -> Option<OutcomeCursor> {
        self.runtime.block_on(self.queue.outcomes_from(after)).unwrap()
    }

    /// The outcomes after a cursor; `None` if some may have been pruned.
    fn outcomes_after(&self, of: Caller, mut after: OutcomeCursor) -> Option<Vec<OutcomeEvent>> {
        let mut all = Vec::new();
        loop {
            let page = self.runtime.block_on(self.queue.outcomes(of, after)).unwrap()?;
            assert!(page.events.len() <= 32);
            all.extend(page.events);
            after = page.next;
            if !page.more {
                return Some(all);
            }
        }
    }

    fn client_tokens(&self, after: OutcomeCursor) -> String {
        let events = self.outcomes_after(BOT, after).unwrap();
        events.iter().map(|event| &*event.client_token).collect::<Vec<_>>().join(" ")
    }

    fn dead_letter_next(&self) -> MessageId {
        let lease = self.lease(1).pop().unwrap();
        let id = lease.id;
        self.settle(lease, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
        id
    }
}

const BOT: Caller = Caller::Uid(1000);
/// 32 bytes of 1 in base64.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn of(caller: Caller, submission: Submission) -> Submission {
    Submission { caller, ..submission }
}

#[test]
fn stream_has_the_outcomes_of_its_caller_alone_with_names_and_in_commit_order() {
    let rig = Rig::new();
    rig.accepted(message("a", "before", "x"));
    rig.drain();
    let start = rig.outcomes_from(None).unwrap();
    let first = rig.accepted(in_conversation("chat/bot", message("b", "one", "x")));
    rig.dead_letter_next();
    for caller in [Caller::Uid(1001), Caller::Tcp] {
        let bearer = format!("{caller:?}");
        rig.accepted(of(caller, message(&bearer, "theirs", "x")));
        rig.drain();
    }
    rig.accepted(disconnect("a", "two"));
    rig.drain();
    let events = rig.outcomes_after(BOT, start).unwrap();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!((&*events[0].client_token, &*events[0].conversation, events[0].state.id), ("one", "chat/bot", first.id));
    assert!(matches!(events[0].state.status, Status::Dead { reason: Reason::Invalid, .. }));
    assert_eq!(&*events[1].client_token, "two");
    assert!(matches!(&events[1].state.status, Status::Delivered(receipt) if receipt.id.as_deref() == Some("id-1")));
    for caller in [Caller::Uid(1001), Caller::Tcp] {
        assert_eq!(rig.outcomes_after(caller, start).unwrap().len(), 1);
    }
    assert_eq!(rig.outcomes_after(Caller::Uid(0), start), Some(Vec::new()));
}

#[test]
fn each_cursor_resumes_after_its_outcome_also_after_a_restart_and_a_rebuild() {
    let mut rig = Rig::with(|options| options.keys = SealingKey::parse_file(KEY).unwrap());
    let start = rig.outcomes_from(None).unwrap();
    // More than a page, and more than a row of the index: expiry settles many messages in one commit.
    let short = |n: usize| Submission { lifetime: Some(Duration::from_secs(1)), ..message("a", &format!("c{n}"), "x") };
    rig.push_all((0..250).map(short).collect());
    rig.skip(Duration::from_secs(5));
    rig.push_all((250..260).map(|n| message(&format!("b{n}"), &format!("c{n}"), "x")).collect());
    rig.drain();
    let all = rig.outcomes_after(BOT, start).unwrap();
    assert_eq!(all.len(), 260);
    let restarts: [fn(Rig) -> Rig; 3] =
        [Rig::reopen, Rig::killed, |rig| rig.damaged(|path| std::fs::remove_file(path.join("format")).unwrap())];
    for restart in restarts {
        for nth in [0, 30, 31, 32, 198, 199, 200, 249, 258, 259] {
            let cursor = OutcomeCursor::parse(&all[nth].cursor.to_string()).unwrap();
            assert_eq!(rig.outcomes_from(Some(cursor)), Some(cursor));
            assert_eq!(rig.outcomes_after(BOT, cursor).unwrap(), all[nth + 1..]);
        }
        rig = restart(rig);
    }
}

#[test]
fn redriven_message_has_its_newest_outcome_alone() {
    let rig = Rig::new();
    let start = rig.outcomes_from(None).unwrap();
    let first = rig.accepted(message("a", "first", "x"));
    rig.dead_letter_next();
    let moved = rig.accepted(message("b", "moved", "x"));
    rig.dead_letter_next();
    assert_eq!(rig.client_tokens(start), "first moved");
    rig.redrive(first.id, Redrive::default()).unwrap();
    assert_eq!(rig.client_tokens(start), "moved", "the other is queued");
    rig.drain();
    rig.redrive(moved.id, Redrive { token: Some(token("c")), body: None }).unwrap();
    rig.accepted(message("d", "last", "x"));
    rig.drain();
    assert_eq!(rig.client_tokens(start), "first moved last");
}

#[test]
fn deleted_dead_letter_is_no_second_outcome() {
    let rig = Rig::new();
    let start = rig.outcomes_from(None).unwrap();
    let id = rig.accepted(message("a", "1", "x")).id;
    rig.dead_letter_next();
    let dead = rig.outcomes_after(BOT, start).unwrap().remove(0).cursor;
    rig.delete(id).unwrap();
    assert_eq!(rig.outcomes_after(BOT, dead).unwrap(), []);
    let again = rig.outcomes_after(BOT, start).unwrap();
    assert!(matches!(
        again[..],
        [OutcomeEvent { state: MessageState { status: Status::Dead { reason: Reason::Deleted, .. }, .. }, .. }]
    ));
}

#[test]
fn cursor_is_refused_once_its_row_is_too_old_or_pruned_or_another_stores() {
    let rig = Rig::with(|options| (options.outcomes_kept_for, options.outcomes_max) = (Duration::from_secs(60), 2));
    let start = rig.outcomes_from(None).unwrap();
    let mut cursors = Vec::new();
    for number in ["1", "2", "3", "4"] {
        rig.accepted(message("a", number, "x"));
        rig.drain();
        cursors.push(rig.outcomes_after(BOT, cursors.last().copied().unwrap_or(start)).unwrap().remove(0).cursor);
        rig.skip(Duration::from_secs(2));
    }
    assert_eq!(rig.outcomes_from(Some(cursors[1])), None, "pruned by outcomes_max");
    assert_eq!(rig.outcomes_after(BOT, cursors[0]), None, "a reader that was this far missed one");
    assert_eq!(rig.client_tokens(cursors[1]), "3 4", "a reader that was this far missed none");
    assert_eq!(rig.outcomes_from(Some(cursors[2])), Some(cursors[2]));
    let other = OutcomeCursor { store: cursors[2].store ^ 1, ..cursors[2] };
    assert_eq!(rig.outcomes_from(Some(other)), None);
    rig.skip(Duration::from_secs(61));
    assert_eq!(rig.outcomes_from(Some(cursors[3])), None, "too old");
    let now = rig.outcomes_from(None).unwrap();
    rig.accepted(message("a", "5", "x"));
    rig.drain();
    assert_eq!((rig.client_tokens(now), rig.client_tokens(cursors[3])), ("5".into(), "5".into()));
}

#[test]
fn dead_letter_keeps_its_outcome_when_the_index_is_pruned() {
    let rig = Rig::with(|options| options.outcomes_kept_for = Duration::from_secs(1));
    let id = rig.accepted(message("a", "1", "x")).id;
    rig.dead_letter_next();
    rig.skip(Duration::from_secs(60));
    assert!(matches!(rig.push(message("a", "1", "x")), Verdict::Accepted { repeat: true, .. }));
    rig.redrive(id, Redrive::default()).unwrap();
    assert_eq!((rig.drain(), rig.overview().dead), (vec!["x".to_owned()], 0));
}

#[test]
fn outcome_of_a_dead_letter_that_dead_max_removed_stays_as_long_as_the_others() {
    let mut rig = Rig::with(|options| (options.outcomes_kept_for, options.dead_max) = (Duration::from_secs(60), 1));
    let start = rig.outcomes_from(None).unwrap();
    for number in ["1", "2", "3"] {
        rig.accepted(message("a", number, "x"));
        rig.dead_letter_next();
    }
    rig.skip(Duration::from_secs(2));
    assert_eq!(rig.overview().dead, 1);
    let restarts: [fn(Rig) -> Rig; 2] =
        [Rig::killed, |rig| rig.damaged(|path| std::fs::remove_file(path.join("format")).unwrap())];
    for restart in restarts {
        assert_eq!(rig.client_tokens(start), "1 2 3", "a reader misses none");
        assert!(
            matches!(rig.push(message("a", "1", "x")), Verdict::Accepted { repeat: true, .. }),
            "its repeat is known"
        );
        rig = restart(rig);
    }
    assert_eq!(rig.client_tokens(start), "1 2 3");
    rig.skip(Duration::from_secs(61));
    assert_eq!(rig.outcomes_from(Some(start)), None);
    assert!(matches!(rig.push(message("a", "1", "x")), Verdict::Accepted { repeat: false, .. }), "it is pruned");
    assert!(
        matches!(rig.push(message("a", "3", "x")), Verdict::Accepted { repeat: true, .. }),
        "it has its dead letter"
    );
}

#[test]
fn reader_is_woken_by_the_outcomes_of_its_caller_alone() {
    let rig = Rig::new();
    let mut settled = std::pin::pin!(rig.queue.settled(BOT));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut is_woken = || settled.as_mut().poll(&mut cx).is_ready();
    assert!(!is_woken());
    for caller in [Caller::Uid(1001), Caller::Tcp] {
        rig.accepted(of(caller, message(&format!("{caller:?}"), "theirs", "x")));
        rig.drain();
    }
    rig.accepted(message("a", "own", "x"));
    assert!(!is_woken(), "it has no outcome");
    rig.dead_letter_next();
    let woken = rig.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), settled).await });
    assert!(woken.is_ok());
}

#[test]
fn names_of_an_outcome_are_sealed() {
    let rig = Rig::with(|options| options.keys = SealingKey::parse_file(KEY).unwrap());
    let start = rig.outcomes_from(None).unwrap();
    rig.accepted(in_conversation("canary-label", message("a", "canary-token", "x")));
    rig.drain();
    assert_eq!(rig.client_tokens(start), "canary-token");
    let (folder, options, _) = rig.close();
    let log = crate::storage::Image::read(&options.path, |_, _| ()).unwrap();
    let rows: Vec<_> = log.keys(b'i').map(|key| log.raw(key).unwrap().unwrap()).collect();
    assert_eq!(rows.len(), 1);
    assert!(!rows[0].windows(6).any(|window| window == b"canary"));
    drop(folder);
}

#[test]
fn only_a_displayed_cursor_parses() {
    let cursor = OutcomeCursor { store: 0x9f, at: Timestamp(1_764_397_267_123), row: 42, nth: 7 };
    assert_eq!(cursor.to_string(), "0000009f-1764397267123-42-7");
    assert_eq!(OutcomeCursor::parse(&cursor.to_string()), Some(cursor));
    for text in [
        "",
        "x",
        "9f-1-42-7",
        "0000009F-1-42-7",
        "0000009f-1-42",
        "0000009f-1-42-7-",
        "0000009f-1-42-256",
        "0000009f-+1-42-7",
        "0000009f-01-42-7",
    ] {
        assert_eq!(OutcomeCursor::parse(text), None, "{text}");
    }
}
