//! The decisions as tables; then `step` and `run` with a real queue in a temporary folder and a scripted upstream.

use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::delivery::Reason;
use crate::message::{Caller, ClientToken, ConnectionToken, Content, ContentType, Submission};
use crate::pacer::{self, Pacer};
use crate::queue::{self, MessageState, Status, Verdict};
use crate::retry::Backoff;
use crate::ship::Report;
use crate::ship::link::{Link, link};
use crate::{participant, time};

const NOW: Timestamp = Timestamp(1_000_000);

fn at(millis: u64) -> Timestamp {
    Timestamp(NOW.0 + millis)
}

#[test]
fn queue_is_asked_only_when_something_may_be_due_and_may_start() {
    let unasked = PollState::default();
    let asked = PollState { may_be_due: false, ..unasked };
    let due_in = |millis| PollState { next_due: Some(at(millis)), ..asked };
    let wait = |millis| Action::Wait(Duration::from_millis(millis));
    for (poll, allowance, capacity, next) in [
        (unasked, Allowance::Start(5), 32, Action::Lease(5)),
        (unasked, Allowance::Start(5), 2, Action::Lease(2)),
        (unasked, Allowance::Start(5), 0, Action::Wait(HEARTBEAT)),
        (unasked, Allowance::Wait(at(70)), 32, wait(70)),
        (unasked, Allowance::Wait(at(90_000)), 32, Action::Wait(HEARTBEAT)),
        (unasked, Allowance::Wait(NOW), 32, wait(1)),
        (unasked, Allowance::Probing(at(70)), 32, wait(70)),
        (asked, Allowance::Start(5), 32, Action::Wait(HEARTBEAT)),
        (asked, Allowance::Wait(at(70)), 32, Action::Wait(HEARTBEAT)),
        (due_in(0), Allowance::Start(5), 32, Action::Lease(5)),
        (due_in(30), Allowance::Start(5), 32, wait(30)),
        (due_in(30), Allowance::Wait(at(70)), 32, wait(30)),
        (due_in(0), Allowance::Wait(at(70)), 32, wait(70)),
        (PollState { leasing: true, ..unasked }, Allowance::Start(5), 32, Action::Wait(HEARTBEAT)),
        (PollState { stopping: true, ..unasked }, Allowance::Start(5), 32, Action::Wait(HEARTBEAT)),
    ] {
        assert_eq!(poll.next_action(allowance, capacity, NOW), next, "{poll:?} {allowance:?} {capacity}");
    }
}

#[test]
fn short_lease_stops_further_leases() {
    let mut poll = PollState::default();
    poll.lease_requested();
    poll.leased(5, &Work { next_due: Some(at(300)), ..Work::default() }, NOW);
    assert_eq!(poll, PollState { may_be_due: false, next_due: Some(at(300)), ..PollState::default() });
    // A due time that has passed already must not cause a busy loop.
    poll.lease_requested();
    poll.leased(5, &Work { next_due: Some(NOW), ..Work::default() }, NOW);
    assert_eq!(poll.next_action(Allowance::Start(5), 32, NOW), Action::Wait(DUE_MIN));
}

#[test]
fn wake_up_while_the_queue_is_asked_causes_another_lease_request() {
    let mut poll = PollState::default();
    poll.lease_requested();
    poll.may_be_due = true;
    poll.leased(5, &Work::default(), NOW);
    assert_eq!(poll.next_action(Allowance::Start(5), 32, NOW), Action::Lease(5));
}

/// A relay without listeners: a queue on disk, a sender, and an upstream that gives scripted answers.
struct Fixture {
    queue: Queue,
    sender: Sender,
    clock: Clock,
    requests: mpsc::UnboundedReceiver<Request>,
    last_step: Arc<AtomicU64>,
    writer: JoinHandle<Result<(), StoreFailed>>,
    _folder: TempDir,
}

/// One request that upstream received and has not answered yet.
struct Request {
    text: String,
    stream: TcpStream,
}

impl Request {
    /// Answers, and closes the connection.
    async fn answer(mut self, status: &str, headers: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n", body.len());
        self.stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
    }

    async fn deliver(self, id: &str) {
        self.answer("200 OK", "", &format!(r#"{{"Id":"{id}","AbsoluteTime":"2019-11-08T02:41:28.172Z"}}"#)).await;
    }
}

impl Fixture {
    async fn new(quota_burst: u32) -> Fixture {
        Fixture::with_copy(quota_burst, None).await
    }

    /// The queue is shipped to `copy`.
    async fn with_copy(quota_burst: u32, copy: Option<Link>) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let (clock, metrics) = (Clock::system(), Metrics::default());
        let (queue, mut writer) = Queue::open(queue_options(&folder), clock.clone(), &metrics).unwrap();
        copy.into_iter().for_each(|copy| writer.ship_to(copy, &metrics));
        let writer = std::thread::spawn(move || writer.run());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let participant = participant::Options {
            endpoint: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            connect_timeout: Duration::from_secs(20),
            attempt_timeout: Duration::from_secs(20),
            idle_max: 4,
            proxy: None,
            extra_roots: Vec::new(),
        };
        let participant = Participant::new(participant, clock.clone()).unwrap();
        let pacer = pacer::Options { quota_burst, ..pacer::Options::default() };
        let budget = Budget::new(Pacer::new(pacer, clock.now(), 7));
        let policy = Policy { backoff: Backoff::default(), hint_max: Duration::from_secs(60), attempts_max: 10 };
        let last_step = Arc::new(AtomicU64::new(0));
        let options = Options { policy, in_flight_max: 4, probe_max: Duration::from_secs(5) };
        let sender =
            Sender::new(options, queue.clone(), participant, budget, clock.clone(), &metrics, Arc::clone(&last_step));
        Fixture { queue, sender, clock, requests: upstream(listener), last_step, writer, _folder: folder }
    }

    async fn accept(&self, conversation: &str, client_token: &str) -> MessageId {
        let submission = Submission {
            body: Body::Message { content_type: ContentType::Plain, content: Content::new("hello".into()) },
            client_token: ClientToken::parse(client_token).unwrap().unwrap(),
            connection_token: ConnectionToken::parse(format!("token-{conversation}").as_bytes()).unwrap(),
            conversation: None,
            replaces: None,
            lifetime: None,
            caller: Caller::Uid(1000),
            trace_id: None,
        };
        match &self.queue.accept(vec![submission], 10.0).await.unwrap()[..] {
            [Verdict::Accepted { state, repeat: false, .. }] => state.id,
            other => panic!("{other:?}"),
        }
    }

    async fn state(&self, id: MessageId) -> MessageState {
        self.queue.outcome(id, Duration::ZERO).await.unwrap().expect("it was accepted")
    }

    /// Steps until a request has arrived upstream.
    async fn request(&mut self) -> Request {
        let bounded = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                tokio::select! {
                    biased;
                    request = self.requests.recv() => return request.unwrap(),
                    step = self.sender.step() => { step.unwrap(); }
                }
            }
        });
        bounded.await.expect("a request arrives upstream")
    }

    /// Steps until the sender asks for the owner of the queue. Nothing starts then.
    async fn confirming(&mut self) {
        while self.sender.step().await.unwrap() != Step::Confirming {}
        self.turns(1000).await;
        assert!(self.requests.is_empty());
    }

    /// Steps until something is settled.
    async fn settled(&mut self) -> (MessageId, Settled) {
        let bounded = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                if let Step::Settled(id, settled) = self.sender.step().await.unwrap() {
                    return (id, settled);
                }
            }
        });
        bounded.await.expect("an attempt is settled")
    }

    /// Lets the sender run for `count` turns of the runtime.
    async fn turns(&mut self, count: usize) {
        let steps = async {
            loop {
                self.sender.step().await.unwrap();
            }
        };
        let turns = async {
            for _ in 0..count {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = steps => {}
            () = turns => {}
        }
    }

    /// Lets the sender start what it can now. Returns the number of requests that wait for an answer upstream.
    async fn requests_now(&mut self) -> usize {
        self.turns(1000).await;
        while self.sender.poll.leasing || self.sender.metrics.in_flight.get() != self.requests.len() as i64 {
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => {}
                step = self.sender.step() => { step.unwrap(); }
            }
            self.turns(100).await;
        }
        self.requests.len()
    }

    /// Steps until the sender can only wait.
    async fn quiet(&mut self) {
        while self.sender.poll.may_be_due || !self.sender.tasks.is_empty() {
            self.sender.step().await.unwrap();
        }
    }
}

fn queue_options(folder: &TempDir) -> queue::Options {
    queue::Options {
        path: folder.path().join("queue"),
        messages_max: 100,
        bytes_max: 128 << 20,
        free_disk_min: 0,
        outcomes_kept_for: Duration::from_secs(3600),
        outcomes_max: 100,
        dead_kept_for: Duration::from_secs(3600),
        dead_max: 100,
        volatile: true,
        damaged: queue::Damaged::Refuse,
        keys: Vec::new(),
        lifetime: Duration::from_secs(900),
        fresh: Duration::from_secs(30),
        token_wait: Duration::from_secs(120),
        refused_for: Duration::from_secs(60),
        probe_max: Duration::from_secs(5),
        due_max: Duration::from_secs(5),
        destination: "somewhere".into(),
    }
}

/// Sends every incoming request to a channel, one per connection.
fn upstream(listener: TcpListener) -> mpsc::UnboundedReceiver<Request> {
    let (requests, arrived) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let requests = requests.clone();
            tokio::spawn(async move {
                let mut bytes = vec![0; 65536];
                let mut length = 0;
                // Every body here is an object without a nested one.
                while !bytes[..length].ends_with(b"}") {
                    match stream.read(&mut bytes[length..]).await {
                        Ok(more) if more > 0 => length += more,
                        _ => return,
                    }
                }
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                let _ = requests.send(Request { text, stream });
            });
        }
    });
    arrived
}

#[tokio::test]
async fn delivered_message_is_settled_with_its_receipt() {
    let mut fixture = Fixture::new(15).await;
    let id = fixture.accept("a", "ct-1").await;
    fixture.request().await.deliver("i-1").await;
    assert_eq!(fixture.settled().await, (id, Settled::Delivered));
    let Status::Delivered(receipt) = fixture.state(id).await.status else { panic!("it is delivered") };
    assert_eq!(receipt.id.as_deref(), Some("i-1"));
    assert!(time::millis(fixture.clock.awake().since(Timestamp(fixture.last_step.load(Ordering::Relaxed)))) < 60_000);
}

#[tokio::test]
async fn conversation_has_one_in_flight_and_others_do_not_wait_for_it() {
    let mut fixture = Fixture::new(15).await;
    for (conversation, client_token) in [("a", "a-1"), ("a", "a-2"), ("b", "b-1")] {
        fixture.accept(conversation, client_token).await;
    }
    let (first, second) = (fixture.request().await, fixture.request().await);
    let mut texts = [first.text.clone(), second.text.clone()];
    texts.sort_by_key(|text| text.contains("b-1"));
    assert!(texts[0].contains("a-1") && texts[1].contains("b-1"), "{texts:?}");
    let (of_a, of_b) = if first.text.contains("a-1") { (first, second) } else { (second, first) };
    of_b.deliver("i").await;
    fixture.settled().await;
    assert!(fixture.requests.try_recv().is_err(), "a-2 waits for a-1's outcome");
    of_a.deliver("i").await;
    fixture.settled().await;
    assert!(fixture.request().await.text.contains("a-2"));
}

#[tokio::test]
async fn throttled_message_keeps_its_place_uncounted_and_only_a_probe_goes_ahead() {
    let mut fixture = Fixture::new(15).await;
    let first = fixture.accept("a", "a-1").await;
    let throttled = fixture.request().await;
    throttled.answer("429 Too Many Requests", "x-amz-retry-after: 30000\r\n", "{}").await;
    assert_eq!(fixture.settled().await, (first, Settled::Kept));
    assert_eq!(fixture.state(first).await.attempts, 0);
    fixture.accept("b", "b-1").await;
    fixture.clock.skip(Duration::from_secs(31));
    let probe = fixture.request().await;
    assert!(fixture.requests.try_recv().is_err(), "one probe");
    probe.deliver("i").await;
    fixture.settled().await;
    fixture.request().await.deliver("i").await;
    assert_eq!(fixture.settled().await.1, Settled::Delivered);
}

#[tokio::test]
async fn failing_message_is_counted_and_sent_again_the_same() {
    let mut fixture = Fixture::new(15).await;
    let id = fixture.accept("a", "a-1").await;
    let failed = fixture.request().await;
    let text = failed.text.clone();
    failed.answer("500 Internal Server Error", "x-amzn-ErrorType: InternalServerException\r\n", "{}").await;
    let (settled, Settled::Deferred(due)) = fixture.settled().await else { panic!("it is deferred") };
    assert_eq!((settled, fixture.state(id).await.attempts), (id, 1));
    fixture.clock.skip(due.since(fixture.clock.now()));
    // The connection ends without an answer: the message may have been delivered.
    drop(fixture.request().await);
    let (_, Settled::Deferred(due)) = fixture.settled().await else { panic!("it is deferred") };
    fixture.clock.skip(due.since(fixture.clock.now()));
    let again = fixture.request().await;
    assert_eq!(again.text, text);
    again.deliver("i").await;
    assert_eq!(fixture.settled().await, (id, Settled::Delivered));
}

#[tokio::test]
async fn refused_message_is_dead_lettered_not_retried() {
    let mut fixture = Fixture::new(15).await;
    let id = fixture.accept("a", "a-1").await;
    let next = fixture.accept("a", "a-2").await;
    let headers = "x-amzn-ErrorType: ValidationException\r\n";
    fixture.request().await.answer("400 Bad Request", headers, r#"{"Message":"too long"}"#).await;
    assert_eq!(fixture.settled().await, (id, Settled::Dead { reason: Reason::Invalid, told: false }));
    fixture.request().await.deliver("i").await;
    assert_eq!(fixture.settled().await, (next, Settled::Delivered));
}

#[tokio::test]
async fn wrong_destination_closes_the_gate_and_no_message_is_dead_lettered() {
    let mut fixture = Fixture::new(15).await;
    let id = fixture.accept("a", "a-1").await;
    for announced in [Announced::Open, Announced::Open, Announced::NotTheService(404)] {
        fixture.request().await.answer("404 Not Found", "content-type: text/html\r\n", "<html>}").await;
        assert!(matches!(fixture.settled().await, (of, Settled::Deferred(_)) if of == id));
        assert_eq!(fixture.sender.announced, announced);
        fixture.clock.skip(Duration::from_secs(8));
    }
    assert_eq!(fixture.state(id).await.attempts, 0, "not an attempt of the message");
    fixture.request().await.deliver("i").await;
    assert_eq!(fixture.settled().await, (id, Settled::Delivered));
    assert_eq!(fixture.sender.announced, Announced::Open);
}

#[tokio::test]
async fn destination_that_is_down_gets_one_probe_at_a_time() {
    let mut fixture = Fixture::new(15).await;
    let mut waiting = Vec::new();
    for conversation in ["a", "b", "c", "d", "e", "f"] {
        waiting.push(fixture.accept(conversation, conversation).await);
    }
    let mut answered = 0;
    while fixture.sender.announced != Announced::Down || fixture.requests_now().await > 0 {
        fixture.request().await.answer("503 Service Unavailable", "", "{}").await;
        assert!(matches!(fixture.settled().await.1, Settled::Deferred(_)));
        answered += 1;
    }
    assert!((3..=6).contains(&answered), "three conversations, not one alone: {answered}");
    for _ in 0..2 {
        fixture.clock.skip(Duration::from_secs(5));
        // A conversation that has not failed yet is the probe; one that failed may be tried beside it.
        let probes = fixture.requests_now().await;
        assert!((1..=2).contains(&probes), "{probes}");
        for _ in 0..probes {
            fixture.request().await.answer("503 Service Unavailable", "", "{}").await;
            assert!(matches!(fixture.settled().await.1, Settled::Deferred(_)));
        }
    }
    // The destination works again: the next probe delivers, and the others follow.
    for _ in &waiting {
        fixture.clock.skip(Duration::from_secs(8));
        fixture.request().await.deliver("i").await;
        assert_eq!(fixture.settled().await.1, Settled::Delivered);
    }
    assert_eq!(fixture.sender.announced, Announced::Open);
}

#[tokio::test]
async fn healthy_conversations_go_before_those_that_keep_failing() {
    let mut fixture = Fixture::new(15).await;
    for sick in ["s-1", "s-2", "s-3"] {
        fixture.accept(sick, sick).await;
        // One that failed before may be tried again first.
        let mut failed = false;
        while !failed {
            let request = fixture.request().await;
            failed = request.text.contains(&format!("token-{sick}"));
            request.answer("500 Internal Server Error", "", "{}").await;
            fixture.settled().await;
        }
        // Others are delivered meanwhile.
        fixture.clock.skip(Duration::from_millis(200));
    }
    let mut healthy = Vec::new();
    for conversation in 0..20 {
        healthy.push(fixture.accept(&format!("h-{conversation}"), "1").await);
    }
    fixture.clock.skip(Duration::from_secs(6));
    let mut order: Vec<bool> = Vec::new();
    while order.iter().filter(|sick| !**sick).count() < healthy.len() {
        let request = fixture.request().await;
        let sick = request.text.contains("token-s-");
        order.push(sick);
        if sick {
            request.answer("500 Internal Server Error", "", "{}").await;
        } else {
            request.deliver("i").await;
        }
        fixture.settled().await;
        fixture.clock.skip(Duration::from_millis(200));
    }
    // The first may have been leased before the healthy ones were queued.
    assert!(!order[1..].windows(2).any(|pair| pair == [true, true]), "{order:?}");
    assert!(order.iter().filter(|sick| **sick).count() <= 4, "a tenth, and one each probe_max: {order:?}");
}

#[tokio::test]
async fn failure_counts_towards_poison_only_if_another_conversation_was_delivered_meanwhile() {
    let mut fixture = Fixture::new(15).await;
    fixture.sender.options.policy.attempts_max = 3;
    let sick = fixture.accept("s", "s-1").await;
    let mut failures = 0;
    // In every second round the message of another conversation goes first, and its own attempt is answered in the next.
    for round in 0..12 {
        let delivers = round >= 4;
        if delivers {
            fixture.accept(&format!("h-{round}"), "1").await;
        }
        while matches!(fixture.state(sick).await.status, Status::Queued { .. }) {
            let request = fixture.request().await;
            let of_sick = request.text.contains("token-s");
            if of_sick {
                failures += 1;
                request.answer("500 Internal Server Error", "", "{}").await;
            } else {
                request.deliver("i").await;
            }
            fixture.settled().await;
            if !delivers || !of_sick {
                break;
            }
        }
        fixture.clock.skip(Duration::from_secs(8));
    }
    assert!((7..=8).contains(&failures), "four while nothing was delivered, and three that count: {failures}");
    let state = fixture.state(sick).await;
    assert!(matches!(state.status, Status::Dead { reason: Reason::Poison, .. }), "{state:?}");
}

#[tokio::test]
async fn probe_without_an_answer_does_not_hold_back_the_next_one() {
    let mut fixture = Fixture::new(15).await;
    for conversation in ["a", "b", "c", "d"] {
        fixture.accept(conversation, "1").await;
    }
    let mut unanswered = Vec::new();
    for _ in 0..4 {
        unanswered.push(fixture.request().await);
    }
    drop(unanswered.split_off(3));
    fixture.settled().await;
    fixture.accept("e", "1").await;
    fixture.clock.skip(Duration::from_secs(5));
    fixture.turns(1000).await;
    assert_eq!(fixture.sender.announced, Announced::Down, "three without an answer");
    fixture.clock.skip(Duration::from_secs(5));
    let healthy = fixture.request().await;
    assert!(healthy.text.contains("token-e"), "{}", healthy.text);
    healthy.deliver("i").await;
    assert_eq!(fixture.settled().await.1, Settled::Delivered);
    assert_eq!(fixture.sender.announced, Announced::Open);
}

#[tokio::test]
async fn messages_leased_while_the_gate_closed_are_given_back() {
    let mut fixture = Fixture::new(1).await;
    let id = fixture.accept("a", "a-1").await;
    while !matches!(fixture.sender.step().await.unwrap(), Step::Asked(1)) {}
    let now = fixture.clock.now();
    fixture.sender.budget.pacer().started(now);
    assert_eq!(fixture.settled().await, (id, Settled::Kept));
    fixture.request().await.deliver("i").await;
    assert_eq!(fixture.settled().await, (id, Settled::Delivered));
}

#[tokio::test]
async fn idle_sender_does_not_ask_the_queue() {
    let mut fixture = Fixture::new(15).await;
    fixture.quiet().await;
    let asked = AtomicUsize::new(0);
    let steps = async {
        loop {
            fixture.sender.step().await.unwrap();
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    // A step that only waits does not return by itself within this number of turns of the runtime.
    let turns = async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = steps => {}
        () = turns => {}
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn stop_settles_what_is_in_flight_and_starts_nothing_more() {
    let Fixture { queue, sender, mut requests, writer, _folder, .. } = {
        let fixture = Fixture::new(15).await;
        fixture.accept("a", "a-1").await;
        fixture.accept("a", "a-2").await;
        fixture
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let run = tokio::spawn(sender.run(async { drop(stopped.await) }));
    let bounded = tokio::time::timeout(Duration::from_secs(60), async {
        let in_flight = requests.recv().await.unwrap();
        stop.send(()).unwrap();
        in_flight.deliver("i").await;
        run.await.unwrap().unwrap();
    });
    bounded.await.expect("the sender ends");
    assert!(requests.try_recv().is_err(), "a-2 is not started");
    assert_eq!(queue.overview().await.unwrap().queued, 1);
    drop((queue, requests));
    writer.join().unwrap().unwrap();
}

#[tokio::test]
async fn message_for_an_idle_sender_is_sent_without_another_request_to_the_queue() {
    let mut fixture = Fixture::new(15).await;
    fixture.quiet().await;
    fixture.accept("a", "a-1").await;
    let steps = async {
        let mut steps = Vec::new();
        while !matches!(steps.last(), Some(Step::Started(1))) {
            steps.push(fixture.sender.step().await.unwrap());
        }
        steps
    };
    let steps = tokio::time::timeout(Duration::from_secs(60), steps).await.expect("an attempt starts");
    assert!(!steps.iter().any(|step| matches!(step, Step::Asked(_))), "{steps:?}");
    fixture.request().await.deliver("i").await;
    assert_eq!(fixture.settled().await.1, Settled::Delivered);
}

#[tokio::test]
async fn sender_whose_standing_request_was_dropped_asks_again() {
    let mut fixture = Fixture::new(15).await;
    fixture.quiet().await;
    // So does a queue whose store has failed.
    fixture.queue.end_standing().await.unwrap();
    for _ in 0..4 {
        // Nothing is to be done: most of these steps only wait.
        let _ = tokio::time::timeout(Duration::from_millis(50), fixture.sender.step()).await;
    }
    fixture.accept("a", "a-1").await;
    let sent = async { while fixture.sender.step().await.unwrap() != Step::Started(1) {} };
    tokio::time::timeout(Duration::from_secs(60), sent).await.expect("an attempt starts");
    fixture.request().await.deliver("i").await;
    assert_eq!(fixture.settled().await.1, Settled::Delivered);
}

#[tokio::test]
async fn message_leased_for_a_sender_that_stops_is_given_back_unsent() {
    let mut fixture = Fixture::new(15).await;
    fixture.quiet().await;
    let id = fixture.accept("a", "a-1").await;
    // The queue has leased it, in the same commit; the sender does not know it yet.
    while !matches!(fixture.state(id).await.status, Status::Queued { in_flight: true, .. }) {}
    let Fixture { queue, sender, mut requests, writer, _folder, .. } = fixture;
    let bounded = tokio::time::timeout(Duration::from_secs(60), sender.run(std::future::ready(())));
    bounded.await.expect("the sender ends").unwrap();
    assert!(requests.try_recv().is_err(), "nothing is sent");
    let leased = queue.lease(LeaseRequest::any(1)).await.unwrap().leases;
    assert_eq!(leased.iter().map(|lease| (lease.id, lease.attempts)).collect::<Vec<_>>(), [(id, 0)]);
    drop((queue, requests));
    writer.join().unwrap().unwrap();
}

#[tokio::test]
async fn message_leased_for_a_sender_that_asks_again_meanwhile_is_sent_once() {
    let mut fixture = Fixture::new(15).await;
    fixture.quiet().await;
    let id = fixture.accept("a", "a-1").await;
    while !matches!(fixture.state(id).await.status, Status::Queued { in_flight: true, .. }) {}
    let now = fixture.clock.now();
    assert_eq!(fixture.sender.ask(1, now), Step::Asked(1));
    fixture.request().await.deliver("i").await;
    assert_eq!(fixture.settled().await, (id, Settled::Delivered));
    assert_eq!(fixture.requests_now().await, 0);
}

#[tokio::test]
async fn attempt_waits_until_the_fleet_confirms_the_owner_and_none_starts_for_another_one() {
    let (of_thread, copy) = link(Duration::from_secs(3600));
    let mut fixture = Fixture::with_copy(5, Some(of_thread)).await;
    fixture.accept("a", "1").await;
    fixture.confirming().await;
    copy.ownership.asked().await;
    copy.ownership.confirmed(fixture.clock.now());
    fixture.request().await.deliver("1").await;
    fixture.settled().await;
    // For a while no question is needed.
    fixture.accept("a", "2").await;
    fixture.request().await.deliver("2").await;
    fixture.settled().await;
    // The process is stopped, and goes on.
    fixture.clock.skip(Duration::from_secs(60));
    let id = fixture.accept("a", "3").await;
    fixture.confirming().await;
    copy.ownership.lose();
    copy.reports.send(Report::Fenced("another".into())).unwrap();
    assert_eq!(fixture.settled().await, (id, Settled::Kept));
    fixture.turns(1000).await;
    assert!(fixture.requests.is_empty());
}
