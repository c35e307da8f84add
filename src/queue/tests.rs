//! The queue's promises, each against a real store in a temporary folder. Tests skip time, they never sleep.

mod clock;
mod copy;
mod damaged;
mod expiring;
mod journal;
mod kept;
mod keys;
mod model;
mod operate;
mod operations;
mod outcomes;
mod pause;
mod sealed;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::JoinHandle;

use tokio::sync::oneshot::{Receiver, error::TryRecvError};

use super::*;
use crate::delivery::{Reason, Receipt, ServiceError};
use crate::message::{Body, Content, ContentType, ConversationKey};
use crate::storage::testing;

struct Rig {
    folder: tempfile::TempDir,
    clock: Clock,
    options: Options,
    queue: Queue,
    metrics: Metrics,
    thread: JoinHandle<Result<(), StoreFailed>>,
    runtime: tokio::runtime::Runtime,
}

fn options(path: PathBuf) -> Options {
    Options {
        path,
        messages_max: 100_000,
        bytes_max: 1 << 40,
        free_disk_min: 0,
        outcomes_kept_for: Duration::from_secs(3600),
        outcomes_max: 100_000,
        dead_kept_for: Duration::from_secs(7 * 86400),
        dead_max: 10_000,
        volatile: true,
        damaged: Damaged::SetAside,
        keys: Vec::new(),
        lifetime: Duration::from_secs(900),
        fresh: Duration::from_secs(30),
        token_wait: Duration::from_secs(120),
        refused_for: Duration::from_secs(60),
        probe_max: Duration::from_secs(5),
        due_max: Duration::from_secs(60),
        destination: "somewhere".into(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Rig {
    fn new() -> Rig {
        Rig::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Options)) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path().join("queue"));
        change(&mut options);
        Rig::open(folder, options, Clock::system())
    }

    fn open(folder: tempfile::TempDir, options: Options, clock: Clock) -> Rig {
        let metrics = Metrics::default();
        let (queue, thread) = Queue::open(options.clone(), clock.clone(), &metrics).unwrap();
        let thread = std::thread::spawn(move || thread.run());
        Rig { folder, clock, options, queue, metrics, thread, runtime: runtime() }
    }

    /// Ends cleanly and starts again.
    fn reopen(self) -> Rig {
        let Rig { folder, clock, options, queue, thread, runtime, .. } = self;
        drop((queue, runtime));
        thread.join().unwrap().unwrap();
        Rig::open(folder, options, clock)
    }

    /// Starts again on the files that a kill would leave while the thread writes nothing.
    fn killed(self) -> Rig {
        self.killed_with(|_| ())
    }

    /// The same, after `event` has changed the files.
    fn killed_with(self, event: impl FnOnce(&std::path::Path)) -> Rig {
        self.overview();
        let folder = tempfile::tempdir().unwrap();
        let options = Options { path: folder.path().join("queue"), ..self.options.clone() };
        std::fs::create_dir(&options.path).unwrap();
        // The thread may advance a checkpoint: files that are read twice with equal contents existed at one moment.
        let mut files = self.files();
        while std::mem::replace(&mut files, self.files()) != files {}
        for (name, bytes) in files {
            std::fs::write(options.path.join(name), bytes).unwrap();
        }
        event(&options.path);
        Rig::open(folder, options, self.clock.clone())
    }

    fn files(&self) -> BTreeMap<std::ffi::OsString, Vec<u8>> {
        let files = std::fs::read_dir(&self.options.path).unwrap().flatten();
        let files = files.filter(|file| file.file_type().unwrap().is_file() && file.file_name() != "ballast");
        files.filter_map(|file| Some((file.file_name(), std::fs::read(file.path()).ok()?))).collect()
    }

    fn push(&self, submission: Submission) -> Verdict {
        self.push_all(vec![submission]).remove(0)
    }

    fn push_all(&self, submissions: Vec<Submission>) -> Vec<Verdict> {
        self.runtime.block_on(self.queue.accept(submissions, 0.0)).unwrap()
    }

    fn accepted(&self, submission: Submission) -> MessageState {
        match self.push(submission) {
            Verdict::Accepted { state, .. } => state,
            Verdict::Rejected(rejection) => panic!("rejected: {rejection:?}"),
        }
    }

    fn rejected(&self, submission: Submission) -> Rejection {
        match self.push(submission) {
            Verdict::Rejected(rejection) => rejection,
            Verdict::Accepted { .. } => panic!("accepted"),
        }
    }

    fn lease(&self, most: usize) -> Vec<Lease> {
        self.lease_where(most, Duration::ZERO)
    }

    /// A lease with the duration of an attempt.
    fn lease_where(&self, most: usize, takes: Duration) -> Vec<Lease> {
        self.runtime.block_on(self.queue.lease(LeaseRequest { takes, ..LeaseRequest::any(most) })).unwrap().leases
    }

    fn settle(&self, lease: Lease, disposition: Disposition) -> Settled {
        self.runtime.block_on(self.queue.settle(lease, None, disposition, None)).unwrap()
    }

    fn pause(&self, why: &str) {
        self.runtime.block_on(self.queue.pause(why.into())).unwrap();
    }

    fn resume(&self) {
        self.runtime.block_on(self.queue.resume()).unwrap();
    }

    /// A counter without labels.
    fn count(&self, name: &str) -> u64 {
        let families = self.metrics.registry().gather();
        let family = families.iter().find(|family| family.name() == format!("connect_relay_{name}")).unwrap();
        family.get_metric()[0].get_counter().get_value() as u64
    }

    fn overview(&self) -> Overview {
        self.runtime.block_on(self.queue.overview()).unwrap()
    }

    /// Delivers until nothing is due, and returns the sent texts in order.
    fn drain(&self) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(lease) = self.lease(1).pop() {
            sent.push(text(&lease));
            assert_eq!(self.settle(lease, delivered()), Settled::Delivered);
        }
        sent
    }

    /// Skips time, and waits for a tick.
    fn skip(&self, span: Duration) {
        self.clock.skip(span);
        self.overview();
        self.overview();
    }

    fn find(&self, asker: Asker, client_token: &str) -> Found {
        let client_token = ClientToken::parse(client_token).unwrap().unwrap();
        self.runtime.block_on(self.queue.find(asker, client_token)).unwrap()
    }
}

fn corrupt(rig: &Rig) -> f64 {
    rig.overview();
    let families = rig.metrics.registry().gather();
    let family = families.iter().find(|family| family.name().ends_with("records_corrupt_total")).unwrap();
    family.get_metric()[0].get_counter().get_value()
}

fn token(text: &str) -> ConnectionToken {
    ConnectionToken::parse(text.as_bytes()).unwrap()
}

fn message(bearer: &str, client_token: &str, text: &str) -> Submission {
    Submission {
        body: Body::Message { content_type: ContentType::Plain, content: Content::new(text.into()) },
        client_token: ClientToken::parse(client_token).unwrap().unwrap(),
        connection_token: token(bearer),
        conversation: None,
        replaces: None,
        lifetime: None,
        caller: Caller::Uid(1000),
        trace_id: None,
    }
}

fn in_conversation(key: &str, submission: Submission) -> Submission {
    Submission { conversation: Some(ConversationKey::parse(key.as_bytes()).unwrap()), ..submission }
}

fn disconnect(bearer: &str, client_token: &str) -> Submission {
    Submission { body: Body::Disconnect, ..message(bearer, client_token, "x") }
}

fn asker(bearer: &str) -> Asker {
    Asker { token: token(bearer), conversation: None, caller: Caller::Uid(1000) }
}

fn text(lease: &Lease) -> String {
    lease.body.content().map_or("disconnect", Content::expose).to_owned()
}

fn delivered() -> Disposition {
    Disposition::Deliver(Receipt { id: Some("id-1".into()), ..Receipt::default() })
}

fn denied(text: &str) -> Disposition {
    let code = "AccessDeniedException".into();
    Disposition::Deny(ServiceError { status: 403, code, text: text.into(), request_id: None })
}

#[test]
fn conversations_take_turns_and_keep_their_order() {
    let rig = Rig::new();
    for number in 0..3 {
        for who in ["a", "b", "c"] {
            rig.accepted(message(who, &format!("{who}{number}"), &format!("{who}{number}")));
        }
    }
    rig.accepted(message("a", "a3", "a3"));
    assert_eq!(rig.drain().join(" "), "a0 b0 c0 a1 b1 c1 a2 b2 c2 a3");
    assert_eq!(rig.overview().queued, 0);
    assert_eq!(rig.overview().conversations, 0);
}

#[test]
fn new_chats_go_before_a_backlog_and_the_backlog_still_moves() {
    let rig = Rig::new();
    rig.push_all((0..40).map(|n| message(&format!("old{n}"), "1", &format!("old{n}"))).collect());
    rig.skip(Duration::from_secs(31));
    rig.push_all((0..6).map(|n| message(&format!("new{n}"), "1", &format!("new{n}"))).collect());
    let rig = rig.reopen();
    let sent = rig.drain();
    let first = sent[..9].join(" ");
    assert_eq!(first, "new0 new1 new2 new3 old0 new4 new5 old1 old2");
    let late: Vec<String> = (0..40).map(|n| format!("old{n}")).collect();
    assert_eq!(sent.into_iter().filter(|text| text.starts_with("old")).collect::<Vec<_>>(), late);
}

#[test]
fn message_that_can_arrive_in_time_goes_before_one_that_cannot() {
    let rig = Rig::new();
    let within =
        |who: &str, seconds| Submission { lifetime: Some(Duration::from_secs(seconds)), ..message(who, who, who) };
    rig.push_all(vec![
        within("hopeless", 10),
        within("near", 12),
        within("hopeless-2", 10),
        message("calm", "1", "calm"),
    ]);
    rig.clock.skip(Duration::from_secs(9));
    let takes = Duration::from_secs(2);
    let texts = |leases: &[Lease]| leases.iter().map(text).collect::<Vec<_>>().join(", ");
    let first = rig.lease_where(1, takes);
    assert_eq!(texts(&first), "near");
    // With spare capacity, messages that will probably expire are sent in their turns.
    let rest = rig.lease_where(2, takes);
    assert_eq!(texts(&rest), "calm, hopeless");
    for lease in rest.into_iter().chain(first) {
        rig.settle(lease, delivered());
    }
    assert_eq!(texts(&rig.lease_where(9, takes)), "hopeless-2");
}

#[test]
fn retry_that_will_expire_goes_after_messages_that_will_not() {
    let rig = Rig::new();
    rig.accepted(Submission { lifetime: Some(Duration::from_secs(10)), ..message("a", "1", "retry") });
    let lease = rig.lease(1).pop().unwrap();
    let due = rig.clock.now() + Duration::from_secs(5);
    rig.settle(lease, Disposition::Retry { due, answer_lost: true, strike: false, counted: false });
    rig.accepted(message("b", "1", "calm"));
    rig.clock.skip(Duration::from_secs(9));
    assert_eq!(text(&rig.lease_where(1, Duration::from_secs(2))[0]), "calm");
    assert_eq!(text(&rig.lease_where(1, Duration::from_secs(2))[0]), "retry");
}

#[test]
fn one_message_of_a_conversation_is_in_flight_at_a_time() {
    let rig = Rig::new();
    rig.push_all((0..4).map(|n| message(["a", "b"][n % 2], &n.to_string(), &n.to_string())).collect());
    let mut leases = rig.lease(9);
    assert_eq!(leases.iter().map(text).collect::<Vec<_>>(), ["0", "1"]);
    assert!(rig.lease(9).is_empty());
    rig.settle(leases.remove(0), delivered());
    assert_eq!(rig.lease(9).iter().map(text).collect::<Vec<_>>(), ["2"]);
}

#[test]
fn repeat_is_the_same_message_before_and_after_delivery_and_restart() {
    let rig = Rig::new();
    let first = rig.accepted(message("a", "1", "hello"));
    assert_eq!(first.id.to_string().split('-').nth(1), Some("1"));
    assert!(
        matches!(rig.push(message("a", "1", "hello")), Verdict::Accepted { repeat: true, state, .. } if state.id == first.id)
    );
    assert!(matches!(rig.rejected(message("a", "1", "other")), Rejection::OtherContents(_)));
    let rig = rig.reopen();
    assert!(matches!(rig.push(message("a", "1", "hello")), Verdict::Accepted { repeat: true, .. }));
    assert_eq!(rig.drain(), ["hello"]);
    let rig = rig.reopen();
    let state = rig.accepted(message("a", "1", "hello"));
    assert!(matches!(state.status, Status::Delivered(receipt) if receipt.id.as_deref() == Some("id-1")));
    assert!(rig.drain().is_empty());
}

#[test]
fn equal_submissions_of_one_group_are_one_message() {
    let rig = Rig::new();
    let verdicts = rig.push_all(vec![message("a", "1", "x"), message("a", "1", "x"), message("b", "1", "x")]);
    let repeats: Vec<bool> =
        verdicts.iter().map(|verdict| matches!(verdict, Verdict::Accepted { repeat: true, .. })).collect();
    assert_eq!(repeats, [false, true, false]);
    assert_eq!(rig.overview().queued, 2);
}

#[test]
fn repeat_after_its_outcome_was_pruned_is_a_new_message() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "x"));
    rig.drain();
    rig.skip(Duration::from_secs(3601));
    assert!(matches!(rig.push(message("a", "1", "x")), Verdict::Accepted { repeat: false, .. }));
}

#[test]
fn oldest_outcomes_go_first_when_there_are_too_many() {
    let rig = Rig::with(|options| options.outcomes_max = 2);
    for number in ["1", "2", "3", "4"] {
        rig.accepted(message("a", number, number));
        rig.drain();
        rig.skip(Duration::from_secs(2));
    }
    let known: Vec<bool> = ["1", "2", "3", "4"].iter().map(|n| rig.find(asker("a"), n) != Found::Unknown).collect();
    assert_eq!(known, [false, false, true, true]);
}

#[test]
fn long_conversation_keeps_its_order_through_chunks_and_restarts() {
    let rig = Rig::new();
    let numbers: Vec<String> = (0..1500).map(|n| format!("{n:04}")).collect();
    for some in numbers.chunks(100) {
        rig.push_all(some.iter().map(|n| message("a", n, n)).collect());
    }
    let Found::State(MessageState { status: Status::Queued { ahead, .. }, .. }) = rig.find(asker("a"), "1234") else {
        panic!("it is queued")
    };
    assert_eq!(ahead, 1234);
    let rig = rig.reopen();
    let mut sent = Vec::new();
    for _ in 0..700 {
        let lease = rig.lease(1).pop().unwrap();
        sent.push(text(&lease));
        rig.settle(lease, delivered());
    }
    let rig = rig.reopen();
    sent.extend(rig.drain());
    assert_eq!(sent, numbers);
}

#[test]
fn longest_messages_of_every_type_come_back_and_leave_no_blobs() {
    let rig = Rig::new();
    let mut expected = Vec::new();
    for (index, content_type) in ContentType::ALL.into_iter().enumerate() {
        for number in 0..40 {
            let content = "😀".repeat(12_288);
            let body = Body::Message { content_type, content: Content::new(content.clone()) };
            let name = format!("{index}-{number}");
            rig.accepted(Submission { body: body.clone(), ..message(&name, "1", "x") });
            expected.push(body);
        }
    }
    let rig = rig.reopen();
    for body in expected {
        let lease = rig.lease(1).pop().unwrap();
        assert!(lease.body == body);
        rig.settle(lease, delivered());
    }
    let blobs = rig.options.path.join("blobs");
    assert_eq!(std::fs::read_dir(blobs).map_or(0, Iterator::count), 0);
}

#[test]
fn throttled_message_stays_due_and_one_that_backs_off_does_not() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "a1"));
    let since = rig.overview().oldest_due.unwrap();
    for _ in 0..3 {
        rig.skip(Duration::from_secs(9));
        let lease = rig.lease(1).pop().unwrap();
        assert_eq!(rig.settle(lease, Disposition::Wait { due: rig.clock.now() }), Settled::Kept);
        assert_eq!(rig.overview().oldest_due, Some(since), "it could have been sent all along");
    }
    let lease = rig.lease(1).pop().unwrap();
    let due = rig.clock.now() + Duration::from_secs(5);
    assert_eq!(rig.settle(lease, Disposition::Wait { due }), Settled::Deferred(due));
    assert_eq!(rig.overview().oldest_due, None);
    rig.skip(Duration::from_secs(6));
    assert_eq!(rig.overview().oldest_due, Some(due));
    assert_eq!(rig.drain(), ["a1"]);
    assert_eq!(rig.overview().oldest_due, None);
}

#[test]
fn failing_message_waits_and_holds_back_its_conversation_only() {
    let rig = Rig::new();
    rig.push_all(vec![message("a", "1", "a1"), message("a", "2", "a2"), message("b", "1", "b1")]);
    let lease = rig.lease(1).pop().unwrap();
    let due = rig.clock.now() + Duration::from_secs(5);
    assert_eq!(
        rig.settle(lease, Disposition::Retry { due, answer_lost: true, strike: false, counted: false }),
        Settled::Deferred(due)
    );
    assert_eq!(rig.drain(), ["b1"]);
    let work = rig.runtime.block_on(rig.queue.lease(LeaseRequest::any(1))).unwrap();
    assert_eq!(work.next_due, Some(due));
    assert_eq!(rig.overview().answer_lost, 1);
    let rig = rig.reopen();
    assert!(rig.drain().is_empty(), "the due time is in the record");
    rig.clock.skip(Duration::from_secs(5));
    let lease = rig.lease(1).pop().unwrap();
    assert_eq!((lease.attempts, text(&lease).as_str()), (1, "a1"));
    rig.settle(lease, delivered());
    assert_eq!(rig.drain(), ["a2"]);
}

#[test]
fn kept_message_is_the_next_one() {
    let rig = Rig::new();
    rig.push_all(vec![message("a", "1", "a1"), message("b", "1", "b1")]);
    let lease = rig.lease(1).pop().unwrap();
    assert_eq!(rig.settle(lease, Disposition::Keep), Settled::Kept);
    let lease = rig.lease(1).pop().unwrap();
    assert_eq!((text(&lease).as_str(), lease.attempts), ("a1", 0));
}

#[test]
fn message_is_dead_lettered_when_its_lifetime_ends_wherever_it_waits() {
    let rig = Rig::new();
    rig.accepted(Submission { lifetime: Some(Duration::from_secs(5)), ..message("a", "short", "x") });
    rig.accepted(message("a", "usual", "x"));
    rig.accepted(Submission { lifetime: Some(Duration::from_secs(5000)), ..message("b", "long", "x") });
    let dead = |client_token: &str, bearer: &str| match rig.find(asker(bearer), client_token) {
        Found::State(MessageState { status: Status::Dead { reason, maybe_delivered, .. }, .. }) => {
            Some((reason, maybe_delivered))
        }
        _ => None,
    };
    rig.skip(Duration::from_secs(6));
    assert_eq!(dead("short", "a"), Some((Reason::Expired, false)));
    assert_eq!(dead("usual", "a"), None);
    rig.skip(Duration::from_secs(900));
    assert_eq!(dead("usual", "a"), Some((Reason::Expired, false)));
    assert_eq!(dead("long", "b"), None);
    assert_eq!((rig.overview().queued, rig.overview().dead), (1, 2));
    assert!(matches!(
        rig.push(message("a", "short", "x")),
        Verdict::Accepted { state: MessageState { status: Status::Dead { .. }, .. }, repeat: true, .. }
    ));
}

#[test]
fn answer_wins_over_a_lifetime_that_ends_in_flight() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "x"));
    let lease = rig.lease(1).pop().unwrap();
    rig.skip(Duration::from_secs(1000));
    assert_eq!(rig.settle(lease, delivered()), Settled::Delivered);
    assert_eq!(rig.overview().dead, 0);
}

#[test]
fn head_of_a_conversation_is_in_doubt_after_an_unclean_stop_only() {
    let rig = Rig::new();
    rig.push_all(vec![message("a", "1", "x"), message("a", "2", "x")]);
    let rig = rig.reopen();
    let _lease = rig.lease(1);
    // Ending with a message in flight is not a clean end.
    let rig = rig.reopen();
    rig.skip(Duration::from_secs(1000));
    let maybe = |client_token| match rig.find(asker("a"), client_token) {
        Found::State(MessageState { status: Status::Dead { maybe_delivered, .. }, .. }) => maybe_delivered,
        other => panic!("{other:?}"),
    };
    assert_eq!((maybe("1"), maybe("2")), (true, false));
}

#[test]
fn token_belongs_to_one_conversation() {
    let rig = Rig::new();
    rig.accepted(in_conversation("k", message("a", "1", "x")));
    assert_eq!(rig.rejected(message("a", "2", "x")), Rejection::OtherConversation);
    assert_eq!(rig.rejected(in_conversation("l", message("a", "2", "x"))), Rejection::OtherConversation);
    rig.accepted(message("b", "1", "x"));
    assert_eq!(rig.rejected(in_conversation("k", message("b", "2", "x"))), Rejection::OtherConversation);
    let repeat = rig.push(in_conversation("k", message("renewed", "1", "x")));
    assert!(matches!(repeat, Verdict::Accepted { repeat: true, .. }));
    assert_eq!(rig.rejected(message("renewed", "2", "x")), Rejection::OtherConversation, "a repeat binds it as well");
    let other_uid = Submission { caller: Caller::Uid(7), ..message("c", "1", "other") };
    assert!(matches!(rig.push(in_conversation("k", other_uid)), Verdict::Accepted { repeat: false, .. }));
    assert_eq!(rig.find(asker("a"), "1"), Found::OtherConversation);
    assert_eq!(rig.find(asker("unknown"), "1"), Found::Unknown);
}

#[test]
fn refused_token_holds_its_conversation_until_it_is_renewed() {
    let rig = Rig::new();
    rig.push_all(vec![message("old", "1", "one"), message("old", "2", "two")]);
    let lease = rig.lease(1).pop().unwrap();
    assert!(matches!(rig.settle(lease, denied("with an explicit deny")), Settled::Held(_)));
    assert!(rig.lease(1).is_empty());
    assert_eq!(rig.overview().held, 1);
    assert!(matches!(rig.rejected(message("old", "3", "three")), Rejection::TokenRefused(_)));
    let renewed = Submission { replaces: Some(token("old")), ..message("new", "3", "three") };
    rig.accepted(renewed);
    let lease = rig.lease(1).pop().unwrap();
    assert!(lease.connection_token == token("new"));
    rig.settle(lease, delivered());
    assert_eq!(rig.drain(), ["two", "three"]);
    assert_eq!(rig.overview().held, 0);
}

#[test]
fn queued_messages_are_sent_with_a_token_whose_renewal_the_relay_saw() {
    let rig = Rig::new();
    let remember =
        |bearer: &str| rig.runtime.block_on(rig.queue.remember(token("participant"), token(bearer))).unwrap();
    remember("first");
    rig.push_all(vec![message("first", "1", "one"), message("first", "2", "two")]);
    let lease = rig.lease(1).pop().unwrap();
    assert!(matches!(rig.settle(lease, denied("with an explicit deny")), Settled::Held(_)));
    remember("second");
    let lease = rig.lease(1).pop().unwrap();
    assert!(lease.connection_token == token("second"));
    rig.settle(lease, delivered());
    assert!(matches!(rig.push(message("second", "2", "two")), Verdict::Accepted { repeat: true, .. }));
    assert_eq!(rig.drain(), ["two"]);
    // And one that was idle when it was renewed goes on in the same conversation.
    remember("third");
    assert!(matches!(rig.push(message("third", "2", "two")), Verdict::Accepted { repeat: true, .. }));
}

#[test]
fn renewed_token_under_the_same_key_keeps_the_order_and_sends_held_messages() {
    let rig = Rig::new();
    let say =
        |bearer: &str, number: u8| in_conversation("k", message(bearer, &number.to_string(), &number.to_string()));
    let remember =
        |bearer: &str| rig.runtime.block_on(rig.queue.remember(token("participant"), token(bearer))).unwrap();
    remember("first");
    rig.push_all(vec![say("first", 1), say("first", 2)]);
    let lease = rig.lease(1).pop().unwrap();
    assert!(matches!(rig.settle(lease, denied("with an explicit deny")), Settled::Held(_)));
    // The bot uses the new token before and after the relay has seen the renewal.
    rig.accepted(say("stranger", 3));
    assert!(rig.lease(1).is_empty(), "a token that was not seen renewed frees nothing");
    remember("second");
    rig.accepted(say("second", 4));
    let mut went = Vec::new();
    while let Some(lease) = rig.lease(1).pop() {
        went.push((text(&lease), lease.connection_token.expose().to_vec()));
        rig.settle(lease, delivered());
    }
    let expected = [("1", "second"), ("2", "second"), ("3", "stranger"), ("4", "second")];
    assert_eq!(went, expected.map(|(text, token)| (text.to_owned(), token.as_bytes().to_vec())));
}

#[test]
fn message_that_may_have_arrived_keeps_its_token_until_that_is_refused() {
    let rig = Rig::new();
    rig.push_all(vec![message("old", "1", "one"), message("old", "2", "two")]);
    let lease = rig.lease(1).pop().unwrap();
    let now = rig.clock.now();
    rig.settle(lease, Disposition::Retry { due: now, answer_lost: true, strike: false, counted: false });
    rig.accepted(Submission { replaces: Some(token("old")), ..message("new", "3", "three") });
    let lease = rig.lease(9).pop().unwrap();
    assert!(text(&lease) == "one" && lease.connection_token == token("old"), "the same again, before anything else");
    assert!(rig.lease(9).is_empty());
    rig.settle(lease, denied("Access denied"));
    assert_eq!(rig.count("duplicates_possible_total"), 1);
    let lease = rig.lease(9).pop().unwrap();
    assert!(text(&lease) == "one" && lease.connection_token == token("new"));
    rig.settle(lease, delivered());
    assert_eq!(rig.drain(), ["two", "three"]);
}

#[test]
fn held_messages_are_dead_lettered_if_their_token_is_not_renewed() {
    let rig = Rig::new();
    rig.push_all((0..3).map(|n| message("old", &n.to_string(), "x")).collect());
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, denied("Access denied"));
    rig.clock.skip(Duration::from_secs(121));
    assert!(rig.lease(1).is_empty());
    assert_eq!((rig.overview().queued, rig.overview().dead, rig.overview().held), (0, 3, 0));
    let state = rig.accepted(message("old", "1", "x"));
    assert!(matches!(state.status, Status::Dead { reason: Reason::ChatOver, .. }));
    // A repeat that comes with the renewed token revives it.
    let renewed = Submission { replaces: Some(token("old")), ..message("new", "1", "x") };
    assert!(matches!(rig.accepted(renewed).status, Status::Queued { .. }));
    assert_eq!(rig.drain(), ["x"]);
}

#[test]
fn token_without_a_proven_renewal_sends_no_queued_message() {
    let rig = Rig::new();
    rig.accepted(in_conversation("k", message("old", "1", "secret")));
    let guess = Submission { replaces: Some(token("guess")), ..message("thief", "2", "x") };
    assert_eq!(rig.rejected(in_conversation("k", guess)), Rejection::NotReplaceable);
    rig.accepted(in_conversation("k", message("thief", "2", "x")));
    assert!(rig.lease(1).pop().unwrap().connection_token == token("old"));
}

#[test]
fn no_message_is_accepted_after_a_disconnect() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "farewell"));
    let first = rig.accepted(disconnect("a", "2"));
    assert_eq!(rig.rejected(message("a", "3", "x")), Rejection::Disconnected);
    assert_eq!(rig.accepted(disconnect("a", "4")).id, first.id);
    let second = rig.push(disconnect("a", "4"));
    let Verdict::Accepted { stored_token: Some(stored), .. } = second else { panic!("{second:?}") };
    assert_eq!(stored.as_str(), "2", "the ClientToken that finds it");
    assert_eq!(rig.drain(), ["farewell", "disconnect"]);
    let rig = rig.reopen();
    assert_eq!(rig.rejected(message("a", "3", "x")), Rejection::Disconnected);
    assert!(matches!(rig.accepted(disconnect("a", "5")).status, Status::Delivered(_)));
    rig.skip(Duration::from_secs(26 * 3600));
    rig.accepted(message("a", "6", "a day later"));
}

#[test]
fn disconnect_waits_for_no_renewed_token() {
    let rig = Rig::new();
    let disconnect_is_sent = |rig: &Rig| {
        let lease = rig.lease(9).pop().unwrap();
        assert_eq!(text(&lease), "disconnect");
        rig.settle(lease, Disposition::Deliver(Receipt::default()));
    };
    rig.accepted(message("ok", "1", "x"));
    rig.drain();
    // Behind a message that is held.
    rig.accepted(message("a", "1", "x"));
    rig.accepted(disconnect("a", "2"));
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, denied("Access denied"));
    assert!(rig.lease(9).is_empty(), "it waits for the message before it");
    rig.skip(Duration::from_secs(121));
    disconnect_is_sent(&rig);
    assert_eq!((rig.overview().queued, rig.overview().dead, rig.overview().held), (0, 1, 0));
    // At submission, after a refusal.
    rig.accepted(message("b", "1", "x"));
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, denied("Access denied"));
    assert!(matches!(rig.rejected(message("b", "2", "x")), Rejection::TokenRefused(_)));
    rig.accepted(disconnect("b", "3"));
    rig.skip(Duration::from_secs(121));
    disconnect_is_sent(&rig);
    // Behind a message whose caller waits, with a caller that waits for it too.
    let first = rig.accepted(message("c", "1", "x"));
    let last = rig.accepted(disconnect("c", "2"));
    let queue = rig.queue.clone();
    let (_, done, ()) = rig.runtime.block_on(async {
        let settling = async {
            for answer in [denied("Access denied"), Disposition::Deliver(Receipt::default())] {
                let lease = queue.lease(LeaseRequest::any(1)).await.unwrap().leases.pop().unwrap();
                queue.settle(lease, None, answer, None).await.unwrap();
            }
        };
        let wait = |id| queue.outcome(id, Duration::from_secs(60));
        tokio::join!(wait(first.id), wait(last.id), settling)
    });
    assert!(matches!(done.unwrap().unwrap().status, Status::Delivered(_)));
}

#[test]
fn waiting_caller_gets_the_error_and_later_messages_are_held() {
    let rig = Rig::new();
    let first = rig.accepted(message("a", "1", "x"));
    rig.accepted(message("a", "2", "x"));
    let queue = rig.queue.clone();
    let (waits, settled) = rig.runtime.block_on(async {
        let waiting = async { queue.outcome(first.id, Duration::from_secs(60)).await.unwrap().unwrap() };
        let settling = async {
            let lease = queue.lease(LeaseRequest::any(1)).await.unwrap().leases.pop().unwrap();
            queue.settle(lease, None, denied("Access denied"), None).await.unwrap()
        };
        tokio::join!(waiting, settling)
    });
    assert!(matches!(waits.status, Status::Dead { reason: Reason::ChatOver, .. }));
    assert_eq!(settled, Settled::Dead { reason: Reason::ChatOver, told: true });
    assert_eq!((rig.overview().queued, rig.overview().held), (1, 1));
}

#[test]
fn caller_that_submits_and_waits_gets_the_error_of_an_attempt_that_ends_before_it_looks() {
    let rig = Rig::new();
    let (verdict, outcome) = rig.runtime.block_on(rig.queue.accept_and_wait(message("a", "1", "x"), 0.0)).unwrap();
    let Verdict::Accepted { state, repeat: false, .. } = verdict else { panic!("{verdict:?}") };
    let lease = rig.lease(1).pop().unwrap();
    let settled = rig.settle(lease, denied("Access denied"));
    assert_eq!(settled, Settled::Dead { reason: Reason::ChatOver, told: true });
    let waited =
        rig.runtime.block_on(rig.queue.outcome_of(state.id, outcome, std::future::pending())).unwrap().unwrap();
    assert!(matches!(waited.status, Status::Dead { reason: Reason::ChatOver, .. }));
    // A caller that hangs up at once does not get the error, so its message waits for a renewed token.
    drop(rig.runtime.block_on(rig.queue.accept_and_wait(message("b", "1", "x"), 0.0)).unwrap());
    let lease = rig.lease(1).pop().unwrap();
    assert!(matches!(rig.settle(lease, denied("Access denied")), Settled::Held(_)));
    // A repeat of a message that has left the queue has its outcome already.
    let (verdict, _) = rig.runtime.block_on(rig.queue.accept_and_wait(message("a", "1", "x"), 0.0)).unwrap();
    let Verdict::Accepted { state, repeat: true, .. } = verdict else { panic!("{verdict:?}") };
    assert!(matches!(state.status, Status::Dead { .. }), "{state:?}");
}

/// A request of the sender that finds nothing to send.
fn stand(rig: &Rig, most: usize) -> Receiver<Work> {
    let (work, later) = rig.runtime.block_on(rig.queue.lease_or_stand(LeaseRequest::any(most))).unwrap();
    assert!(work.leases.is_empty());
    later.expect("a request without leases stands")
}

#[test]
fn standing_request_is_served_by_the_commit_that_gives_a_turn() {
    let rig = Rig::new();
    let mut later = stand(&rig, 2);
    assert!(later.try_recv().is_err());
    rig.push_all(vec![message("a", "1", "x"), message("b", "1", "y"), message("a", "2", "z"), message("c", "1", "w")]);
    let work = rig.runtime.block_on(later).unwrap();
    assert_eq!(work.leases.iter().map(text).collect::<Vec<_>>(), ["x", "y"]);
    assert!(work.turns_left, "c's message is left");
    assert_eq!(rig.lease(9).iter().map(text).collect::<Vec<_>>(), ["w"], "a message is leased once");
    // It is served once; a request that gets leases does not stand.
    rig.accepted(message("d", "1", "v"));
    let (work, later) = rig.runtime.block_on(rig.queue.lease_or_stand(LeaseRequest::any(9))).unwrap();
    assert_eq!(work.leases.iter().map(text).collect::<Vec<_>>(), ["v"]);
    assert!(later.is_none());
    // The next message of a conversation is leased in the commit of the outcome before it.
    let later = stand(&rig, 9);
    let first = work.leases.into_iter().next().unwrap();
    rig.accepted(message("d", "2", "u"));
    rig.settle(first, Disposition::Deliver(Receipt::default()));
    let work = rig.runtime.block_on(later).unwrap();
    assert_eq!(work.leases.iter().map(text).collect::<Vec<_>>(), ["u"]);
}

#[test]
fn standing_request_obeys_pauses_and_delays_and_ends_with_the_next_request() {
    let rig = Rig::new();
    let (mut first, mut second) = (stand(&rig, 1), stand(&rig, 1));
    assert_eq!(first.try_recv().unwrap_err(), TryRecvError::Closed);
    rig.pause("an exercise");
    rig.accepted(message("a", "1", "x"));
    assert_eq!(second.try_recv().unwrap_err(), TryRecvError::Empty);
    rig.resume();
    rig.accepted(message("b", "1", "y"));
    let lease = rig.runtime.block_on(second).unwrap().leases.pop().unwrap();
    assert_eq!(text(&lease), "x", "the first turn goes first");
    let other = rig.lease(1).pop().unwrap();
    rig.settle(other, Disposition::Deliver(Receipt::default()));
    // A conversation that backs off is for the sender to ask for: it knows how many of them may go.
    let mut later = stand(&rig, 1);
    rig.settle(lease, Disposition::Wait { due: Timestamp(0) });
    assert_eq!(later.try_recv().unwrap_err(), TryRecvError::Empty);
    assert!(rig.lease(1)[0].backed_off);
    // Without the sender nothing is leased for it, and a request that was ended is not served.
    drop(later);
    rig.accepted(message("d", "1", "y"));
    assert_eq!(rig.lease(9).iter().map(text).collect::<Vec<_>>(), ["y"]);
    let mut later = stand(&rig, 1);
    rig.runtime.block_on(rig.queue.end_standing()).unwrap();
    assert_eq!(later.try_recv().unwrap_err(), TryRecvError::Closed);
    rig.accepted(message("c", "1", "z"));
    assert_eq!(rig.lease(9).iter().map(text).collect::<Vec<_>>(), ["z"]);
}

#[test]
fn message_stays_queued_after_a_wait_ends() {
    let rig = Rig::new();
    let state = rig.accepted(message("a", "1", "x"));
    let waited = rig.runtime.block_on(rig.queue.outcome(state.id, Duration::from_millis(1))).unwrap().unwrap();
    assert!(matches!(waited.status, Status::Queued { .. }));
    let lease = rig.lease(1).pop().unwrap();
    assert!(matches!(rig.settle(lease, denied("Access denied")), Settled::Held(_)));
}

#[test]
fn full_queue_keeps_nothing_and_still_answers_repeats() {
    let rig = Rig::with(|options| options.messages_max = 2);
    rig.push_all(vec![message("a", "1", "x"), message("a", "2", "x")]);
    assert_eq!(rig.rejected(message("a", "3", "x")), Rejection::Full(Full::Messages { queued: 2, most: 2 }, None));
    assert!(matches!(rig.push(message("a", "2", "x")), Verdict::Accepted { repeat: true, .. }));
}

#[test]
fn backlog_is_each_callers_own() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "x"));
    rig.accepted(Submission { caller: Caller::Tcp, ..message("b", "1", "x") });
    rig.accepted(Submission { caller: Caller::Tcp, ..message("b", "2", "x") });
    let queued = |of| rig.runtime.block_on(rig.queue.backlog(of)).unwrap().queued;
    assert_eq!(
        (queued(None), queued(Some(Caller::Tcp)), queued(Some(Caller::Uid(1000))), queued(Some(Caller::Uid(1)))),
        (3, 2, 1, 0)
    );
}

#[test]
fn learned_rate_outlives_a_restart() {
    let rig = Rig::new();
    assert_eq!(rig.queue.learned(), None);
    rig.push_all(vec![message("a", "1", "x"), message("a", "2", "x")]);
    let learned = Some(LearnedRate { rate: 7.5, at: rig.clock.now() });
    let lease = rig.lease(1).pop().unwrap();
    rig.runtime.block_on(rig.queue.settle(lease, None, delivered(), learned)).unwrap();
    // One of which nothing was learned takes nothing away.
    rig.drain();
    assert_eq!(rig.reopen().queue.learned(), learned);
}

#[test]
fn second_relay_on_one_folder_is_refused() {
    let rig = Rig::new();
    let second = Queue::open(rig.options.clone(), Clock::system(), &Metrics::default());
    assert!(matches!(second, Err(OpenError::Locked { .. })));
}

#[test]
fn another_format_is_refused_by_name() {
    let rig = Rig::new();
    let Rig { folder, options, queue, thread, .. } = rig;
    drop(queue);
    thread.join().unwrap().unwrap();
    let stamp = options.path.join("format");
    let text = std::fs::read_to_string(&stamp).unwrap();
    for other in [2, 6] {
        std::fs::write(&stamp, text.replace("format 5", &format!("format {other}"))).unwrap();
        let error = Queue::open(options.clone(), Clock::system(), &Metrics::default()).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with(&format!("its format is {other}, this relay reads 5, and older ones from 3 on")),
            "{error}"
        );
    }
    drop(folder);
}

#[test]
fn unfinished_first_start_is_set_aside_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().join("queue"));
    testing::create_log(&options.path);
    let rig = Rig::open(folder, options, Clock::system());
    assert_eq!(rig.overview().queued, 0);
    let aside = std::fs::read_dir(&rig.options.path).unwrap().flatten();
    assert!(aside.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("unfinished-")));
}

#[test]
fn damaged_rows_are_set_aside_and_the_conversation_goes_on() {
    let rig = Rig::new();
    rig.push_all((0..5).map(|n| message("a", &n.to_string(), &n.to_string())).collect());
    let Rig { folder, options, queue, thread, clock, runtime, .. } = rig;
    drop((queue, runtime));
    thread.join().unwrap().unwrap();
    {
        // A record in the middle of its pack, and the line itself, damaged as a disk would.
        let rows = testing::sled_rows(&options.path);
        let first = |prefix: &[u8]| rows.iter().find(|(key, _)| key.starts_with(prefix)).unwrap();
        for ((key, value), of) in [(first(b"m"), 2), (first(b"v"), 10)] {
            let mut value = value.clone();
            let at = value.len() / of;
            value[at] ^= 1;
            testing::write_sled_rows(&options.path, &[(key.clone(), value)]);
        }
    }
    let rig = Rig::open(folder, options, clock);
    assert_eq!(rig.drain(), ["0", "1", "3", "4"]);
    assert!(corrupt(&rig) >= 2.0);
}

#[test]
fn lifetime_of_the_configuration_may_change() {
    let rig = Rig::with(|options| options.lifetime = Duration::from_secs(5000));
    rig.accepted(message("a", "1", "old"));
    let mut rig = rig;
    rig.options.lifetime = Duration::from_secs(10);
    let rig = rig.reopen();
    rig.accepted(message("b", "1", "new"));
    rig.skip(Duration::from_secs(11));
    assert_eq!((rig.overview().queued, rig.overview().dead), (1, 1));
    rig.skip(Duration::from_secs(5000));
    assert_eq!((rig.overview().queued, rig.overview().dead), (0, 2));
}

#[test]
fn lifetime_that_cannot_be_met_is_rejected() {
    let rig = Rig::new();
    rig.push_all((0..20).map(|n| message("a", &n.to_string(), "x")).collect());
    let hurried = Submission { lifetime: Some(Duration::from_secs(1)), ..message("a", "hurried", "x") };
    let verdict = rig.runtime.block_on(rig.queue.accept(vec![hurried.clone()], 10.0)).unwrap().remove(0);
    assert_eq!(verdict, Verdict::Rejected(Rejection::TooLate { before: 20 }));
    let verdict = rig.runtime.block_on(rig.queue.accept(vec![hurried], 100.0)).unwrap().remove(0);
    assert!(matches!(verdict, Verdict::Accepted { .. }));
}

#[test]
fn number_of_messages_before_one_counts_the_turns_of_other_conversations() {
    let rig = Rig::new();
    let before = |who: &str, number: u8| match rig.accepted(message(who, &number.to_string(), "x")).status {
        Status::Queued { ahead, before, .. } => (ahead, before.unwrap()),
        other => panic!("{other:?}"),
    };
    rig.push_all((0..8).map(|n| message(&format!("old{n}"), "1", "x")).collect());
    assert_eq!(before("a", 1), (0, 8));
    assert_eq!(before("a", 2), (1, 10), "all that is queued");
    rig.skip(Duration::from_secs(31));
    // Nobody has met them since, but they are late now and do not stand before a new chat.
    assert_eq!(before("b", 1), (0, 0));
    assert_eq!(before("c", 1), (0, 1));
    let hurried = Submission { lifetime: Some(Duration::from_secs(1)), ..message("d", "1", "x") };
    let verdict = rig.runtime.block_on(rig.queue.accept(vec![hurried], 2.0)).unwrap().remove(0);
    assert!(matches!(verdict, Verdict::Accepted { .. }), "two go before it, in a second");
    assert_eq!(rig.drain().len(), 13);
    assert_eq!(before("e", 1), (0, 0));
}

#[test]
fn store_that_was_full_takes_messages_again_once_it_is_drained() {
    let most = 32 << 20;
    let rig = Rig::with(|options| (options.bytes_max, options.outcomes_kept_for) = (most, Duration::ZERO));
    let body = "x".repeat(3000);
    let mut number = 0;
    for _ in 0..4 {
        let mut accepted = 0;
        loop {
            let group = (0..100).map(|n| message(&format!("t{n}"), &(number + n).to_string(), &body)).collect();
            number += 100;
            let verdicts = rig.push_all(group);
            accepted += verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Accepted { .. })).count();
            if matches!(verdicts.last(), Some(Verdict::Rejected(Rejection::Full(Full::Bytes { .. }, _)))) {
                break;
            }
        }
        assert!(accepted >= 1000, "{accepted} fit");
        while rig.overview().queued > 0 {
            for lease in rig.lease(100) {
                rig.settle(lease, delivered());
            }
        }
        assert!(rig.overview().bytes < 2 * most, "{} bytes", rig.overview().bytes);
    }
}

#[test]
fn log_does_not_grow_with_delivered_messages() {
    // An eighth of the bound is the ballast, a quarter is what the log may waste.
    let most = 64 << 20;
    let rig = Rig::with(|options| (options.outcomes_kept_for, options.bytes_max) = (Duration::from_secs(3), most));
    rig.push_all((0..20).map(|n| message("waits", &n.to_string(), &n.to_string())).collect());
    let _in_flight = rig.lease(1);
    for round in 0..8 {
        for number in 0..500 {
            let name = format!("{round}-{number}");
            rig.accepted(message(&format!("t{}", number % 50), &name, &"x".repeat(3000)));
            let lease = rig.lease(1).pop().unwrap();
            rig.settle(lease, delivered());
        }
        rig.skip(Duration::from_secs(2));
        let bytes = rig.overview().bytes;
        assert!(bytes < most / 2, "{bytes} bytes after round {round}");
    }
    assert!(matches!(rig.push(message("waits", "7", "7")), Verdict::Accepted { repeat: true, .. }));
    let rig = rig.reopen();
    assert_eq!(rig.drain(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn compaction_cut_short_anywhere_loses_nothing() {
    let rig = Rig::new();
    rig.push_all((0..50).map(|n| message("a", &n.to_string(), &n.to_string())).collect());
    let Rig { folder, options, queue, thread, clock, runtime, .. } = rig;
    drop((queue, runtime));
    thread.join().unwrap().unwrap();
    let path = options.path.clone();
    let compacted = path.join("compacted");
    let move_up = |name: &str| std::fs::rename(compacted.join(name), path.join(name)).unwrap();
    let cuts: [&dyn Fn(); 5] = [
        &|| std::fs::remove_file(compacted.join("complete")).unwrap(),
        &|| (),
        &|| move_up("conf"),
        &|| ["conf", "db"].into_iter().for_each(move_up),
        &|| {
            testing::finish_compaction(&path).unwrap();
            std::fs::create_dir(&compacted).unwrap();
        },
    ];
    let mut folder = folder;
    for cut in cuts {
        {
            testing::complete_compaction(&path);
        }
        cut();
        let rig = Rig::open(folder, options.clone(), clock.clone());
        assert!(!compacted.exists());
        assert_eq!(rig.overview().queued, 50);
        drop((rig.queue, rig.runtime));
        rig.thread.join().unwrap().unwrap();
        folder = rig.folder;
    }
    let rig = Rig::open(folder, options, clock);
    assert_eq!(rig.drain().len(), 50);
}
