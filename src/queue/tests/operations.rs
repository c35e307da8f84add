//! Operations on a [`State`] without a thread and a runtime: the results, events and schedules of each decision.

use super::ops::settle::{Attempted, settle};
use super::rows::Schedule;
use super::state::event::Event;
use super::*;
use crate::delivery::Outcome;
use crate::retry::RetryHint;
use crate::storage::{self, Store};
use crate::time::WallTime;

const NOW: Timestamp = Timestamp(1_000_000);
const LATER: Timestamp = Timestamp(1_005_000);

fn state(folder: &tempfile::TempDir) -> State {
    let path = folder.path().join("queue");
    let of_store = storage::Options {
        volatile: true,
        keys: Vec::new(),
        write_once: rows::WRITE_ONCE,
        removal_weight: rows::removal_weight,
    };
    let opened = Store::open(&path, of_store, WallTime(0)).unwrap();
    opened.store.finish_open();
    let mut state = State::new(options(path), opened.store, opened.damaged, &opened.key, opened.sealer);
    ops::begin::begin(&mut state).unwrap();
    ops::pause::begin(&mut state).unwrap();
    state
}

fn push(state: &mut State, submission: Submission, now: Timestamp) -> Verdict {
    let mut hashed = HashedSubmission::new(submission, &state.hasher);
    ops::accept::accept(state, &mut hashed, 0.0, now).unwrap()
}

fn lease_one(state: &mut State, now: Timestamp) -> Lease {
    ops::lease::lease(state, LeaseRequest::any(1), now).unwrap().leases.pop().unwrap()
}

/// The names of the events since the last call.
fn events(state: &mut State) -> Vec<&'static str> {
    let name = |event| match event {
        Event::Accepted { .. } => "accepted",
        Event::Repeated => "repeated",
        Event::Delivered { .. } => "delivered",
        Event::Deferred { .. } => "deferred",
        Event::Held { .. } => "held",
        Event::Dead(_) => "dead",
        Event::Deleted(_) => "deleted",
        Event::Redriven(_) => "redriven",
        Event::DuplicatePossible => "duplicate_possible",
        Event::DestinationDelivers { .. } => "destination_delivers",
        Event::AllRefused { .. } => "all_refused",
        Event::Measured { .. } => "measured",
    };
    state.events.drain(..).map(name).collect()
}

/// The row of the one conversation, of the token `a`.
fn row(state: &mut State) -> rows::Conversation {
    let hash = state.hasher.token(&token("a"));
    let conversation = state.hasher.conversation_of_token(&hash);
    state.conversation(&conversation, NOW).unwrap()
}

#[test]
fn each_disposition_has_its_result_its_event_and_its_schedule() {
    let error = || ServiceError { status: 403, code: "AccessDeniedException".into(), ..ServiceError::default() };
    let failed = || Some(Outcome::Down { status: None, hint: RetryHint::default(), why: "refused".into() });
    let denied = || Some(Outcome::Denied(error()));
    let receipt = Receipt { id: Some("id-1".into()), ..Receipt::default() };
    let retry = Disposition::Retry { due: LATER, answer_lost: true, strike: false, counted: true };
    let (delayed, held) = (Schedule::DelayedUntil(LATER), NOW + Duration::from_secs(120));
    let dead = |reason, told| Settled::Dead { reason, told };
    let bury = || Disposition::DeadLetter(Reason::Invalid, error());
    let (idle, until) = (Schedule::Idle, Schedule::DelayedUntil);
    let cases = [
        (Disposition::Deliver(receipt), None, false, Settled::Delivered, vec!["delivered"], Some(idle)),
        (Disposition::Keep, None, false, Settled::Kept, vec![], None),
        (Disposition::Wait { due: NOW }, failed(), false, Settled::Kept, vec!["deferred"], Some(until(NOW))),
        (Disposition::Wait { due: LATER }, failed(), false, Settled::Deferred(LATER), vec!["deferred"], Some(delayed)),
        (Disposition::Wait { due: LATER }, None, false, Settled::Deferred(LATER), vec![], Some(delayed)),
        (retry, failed(), false, Settled::Deferred(LATER), vec!["deferred"], Some(delayed)),
        (Disposition::Deny(error()), denied(), false, Settled::Held(held), vec!["held"], Some(until(held))),
        (Disposition::Deny(error()), denied(), true, dead(Reason::ChatOver, true), vec!["dead"], Some(idle)),
        (bury(), denied(), false, dead(Reason::Invalid, false), vec!["dead"], Some(idle)),
        (bury(), denied(), true, dead(Reason::Invalid, true), vec!["dead"], Some(idle)),
    ];
    for (disposition, outcome, waits, settled, expected, schedule) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut state = state(&folder);
        push(&mut state, message("a", "1", "x"), NOW);
        assert_eq!(events(&mut state), ["accepted"]);
        let before = row(&mut state).schedule;
        let case = format!("{disposition:?}, waits: {waits}");
        let attempted = Attempted { lease: Box::new(lease_one(&mut state, NOW)), outcome, disposition };
        let waiting = || if waits { vec![1] } else { Vec::new() };
        assert_eq!(settle(&mut state, attempted, waiting, NOW).unwrap(), settled, "{case}");
        assert_eq!(events(&mut state), expected, "{case}");
        assert_eq!(row(&mut state).schedule, schedule.unwrap_or(before), "{case}");
        assert!(state.leased.is_empty() && state.wake_sender, "{case}");
    }
}

#[test]
fn event_of_a_dead_letter_has_the_answer_of_its_last_attempt() {
    let lost = || Some(Outcome::AnswerLost { why: "timeout".into() });
    let refused = ServiceError {
        status: 400,
        code: "ValidationException".into(),
        request_id: Some("r".into()),
        ..ServiceError::default()
    };
    let cases = [
        (Reason::Invalid, Some(Outcome::Refused(refused.clone())), (Some(400), Some("r"), false)),
        (Reason::Poison, lost(), (None, None, true)),
    ];
    for (reason, outcome, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut state = state(&folder);
        push(&mut state, message("a", "1", "x"), NOW);
        let lease = Box::new(lease_one(&mut state, NOW));
        let disposition = Disposition::DeadLetter(reason, refused.clone());
        settle(&mut state, Attempted { lease, outcome, disposition }, Vec::new, LATER).unwrap();
        let Some(Event::Dead(death)) = state.events.pop() else { panic!("it is dead") };
        let answer = &death.answer;
        assert_eq!((answer.http_status, answer.request_id.as_deref(), answer.maybe_delivered), expected);
        assert_eq!((death.attempts, death.died, death.reason), (1, LATER, reason));
    }
}

#[test]
fn expiry_returns_after_each_commits_worth_of_work() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = state(&folder);
    let text = "x".repeat(3000);
    for number in 0..400 {
        push(&mut state, message(&format!("t{number}"), "1", &text), NOW);
    }
    state.events.clear();
    state.write_common_rows(NOW);
    state.store.commit().unwrap();
    let (mut left, mut commits) = (4096, 1);
    let ended = NOW + Duration::from_secs(900);
    while ops::expire::expire_default_lifetimes(&mut state, ended, &mut left).unwrap() {
        assert!(state.store.pending_bytes() < 2 * ops::COMMIT_BYTES);
        state.write_common_rows(ended);
        state.store.commit().unwrap();
        commits += 1;
    }
    assert!(commits > 2, "{commits} commits");
    assert_eq!((state.meta.queued, state.meta.dead, left), (0, 400, 4096 - 400));
    assert_eq!(events(&mut state), vec!["dead"; 400]);
}
