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
use crate::{participant, time};

const NOW: Timestamp = Timestamp(1_000_000);

fn at(millis: u64) -> Timestamp {
    Timestamp(NOW.0 + millis)
}

#[test]
fn queue_is_asked_only_when_something_may_be_due_and_may_start() {
    let look = Sight::default();
    let blind = Sight { look: false, ..look };
    let due_in = |millis| Sight { next_due: Some(at(millis)), ..blind };
    let wait = |millis| Next::Wait(Duration::from_millis(millis));
    for (sight, allowance, room, next) in [
        (look, Allowance::Start(5), 32, Next::Ask(5)),
        (look, Allowance::Start(5), 2, Next::Ask(2)),
        (look, Allowance::Start(5), 0, Next::Wait(HEARTBEAT)),
        (look, Allowance::Wait(at(70)), 32, wait(70)),
        (look, Allowance::Wait(at(90_000)), 32, Next::Wait(HEARTBEAT)),
        (look, Allowance::Wait(NOW), 32, wait(1)),
        (look, Allowance::Probing(at(70)), 32, wait(70)),
        (blind, Allowance::Start(5), 32, Next::Wait(HEARTBEAT)),
        (blind, Allowance::Wait(at(70)), 32, Next::Wait(HEARTBEAT)),
        (due_in(0), Allowance::Start(5), 32, Next::Ask(5)),
        (due_in(30), Allowance::Start(5), 32, wait(30)),
        (due_in(30), Allowance::Wait(at(70)), 32, wait(30)),
        (due_in(0), Allowance::Wait(at(70)), 32, wait(70)),
        (Sight { asking: true, ..look }, Allowance::Start(5), 32, Next::Wait(HEARTBEAT)),
        (Sight { stopping: true, ..look }, Allowance::Start(5), 32, Next::Wait(HEARTBEAT)),
    ] {
        assert_eq!(sight.next(allowance, room, NOW), next, "{sight:?} {allowance:?} {room}");
    }
}

#[test]
fn short_lease_stops_further_leases() {
    let mut sight = Sight::default();
    sight.asked();
    sight.leased(5, &Work { next_due: Some(at(300)), ..Work::default() }, NOW);
    assert_eq!(sight, Sight { look: false, next_due: Some(at(300)), ..Sight::default() });
    // A due time that has passed already must not cause a busy loop.
    sight.asked();
    sight.leased(5, &Work { next_due: Some(NOW), ..Work::default() }, NOW);
    assert_eq!(sight.next(Allowance::Start(5), 32, NOW), Next::Wait(DUE_MIN));
}

#[test]
fn event_while_the_queue_is_asked_causes_another_look() {
    let mut sight = Sight::default();
    sight.asked();
    sight.look = true;
    sight.leased(5, &Work::default(), NOW);
    assert_eq!(sight.next(Allowance::Start(5), 32, NOW), Next::Ask(5));
}

/// A relay without listeners: a queue on disk, a sender, and an upstream that gives scripted answers.
struct House {
    queue: Queue,
    sender: Sender,
    clock: Clock,
    requests: mpsc::UnboundedReceiver<Request>,
    pulse: Arc<AtomicU64>,
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

impl House {
    async fn new(quota_burst: u32) -> House {
        let folder = tempfile::tempdir().unwrap();
        let (clock, metrics) = (Clock::system(), Metrics::default());
        let (queue, writer) = Queue::open(queue_options(&folder), clock.clone(), &metrics).unwrap();
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
        let pulse = Arc::new(AtomicU64::new(0));
        let options = Options { policy, in_flight_max: 4, probe_max: Duration::from_secs(5) };
        let sender =
            Sender::new(options, queue.clone(), participant, budget, clock.clone(), &metrics, Arc::clone(&pulse));
        House { queue, sender, clock, requests: upstream(listener), pulse, writer, _folder: folder }
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
            [Verdict::Accepted { state, repeat: false }] => state.id,
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
        while self.sender.sight.asking || self.sender.measures.in_flight.get() != self.requests.len() as i64 {
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
        while self.sender.sight.look || !self.sender.tasks.is_empty() {
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
    let mut house = House::new(15).await;
    let id = house.accept("a", "ct-1").await;
    house.request().await.deliver("i-1").await;
    assert_eq!(house.settled().await, (id, Settled::Delivered));
    let Status::Delivered(receipt) = house.state(id).await.status else { panic!("it is delivered") };
    assert_eq!(receipt.id.as_deref(), Some("i-1"));
    assert!(time::millis(house.clock.awake().since(Timestamp(house.pulse.load(Ordering::Relaxed)))) < 60_000);
}

#[tokio::test]
async fn conversation_has_one_in_flight_and_others_do_not_wait_for_it() {
    let mut house = House::new(15).await;
    for (conversation, client_token) in [("a", "a-1"), ("a", "a-2"), ("b", "b-1")] {
        house.accept(conversation, client_token).await;
    }
    let (first, second) = (house.request().await, house.request().await);
    let mut texts = [first.text.clone(), second.text.clone()];
    texts.sort_by_key(|text| text.contains("b-1"));
    assert!(texts[0].contains("a-1") && texts[1].contains("b-1"), "{texts:?}");
    let (of_a, of_b) = if first.text.contains("a-1") { (first, second) } else { (second, first) };
    of_b.deliver("i").await;
    house.settled().await;
    assert!(house.requests.try_recv().is_err(), "a-2 waits for a-1's outcome");
    of_a.deliver("i").await;
    house.settled().await;
    assert!(house.request().await.text.contains("a-2"));
}

#[tokio::test]
async fn throttled_message_keeps_its_place_uncounted_and_only_a_probe_goes_ahead() {
    let mut house = House::new(15).await;
    let first = house.accept("a", "a-1").await;
    let throttled = house.request().await;
    throttled.answer("429 Too Many Requests", "x-amz-retry-after: 30000\r\n", "{}").await;
    assert_eq!(house.settled().await, (first, Settled::Kept));
    assert_eq!(house.state(first).await.attempts, 0);
    house.accept("b", "b-1").await;
    house.clock.skip(Duration::from_secs(31));
    let probe = house.request().await;
    assert!(house.requests.try_recv().is_err(), "one probe");
    probe.deliver("i").await;
    house.settled().await;
    house.request().await.deliver("i").await;
    assert_eq!(house.settled().await.1, Settled::Delivered);
}

#[tokio::test]
async fn failing_message_is_counted_and_sent_again_the_same() {
    let mut house = House::new(15).await;
    let id = house.accept("a", "a-1").await;
    let failed = house.request().await;
    let text = failed.text.clone();
    failed.answer("500 Internal Server Error", "x-amzn-ErrorType: InternalServerException\r\n", "{}").await;
    let (settled, Settled::Deferred(due)) = house.settled().await else { panic!("it is deferred") };
    assert_eq!((settled, house.state(id).await.attempts), (id, 1));
    house.clock.skip(due.since(house.clock.now()));
    // The connection ends without an answer: the message may have been delivered.
    drop(house.request().await);
    let (_, Settled::Deferred(due)) = house.settled().await else { panic!("it is deferred") };
    house.clock.skip(due.since(house.clock.now()));
    let again = house.request().await;
    assert_eq!(again.text, text);
    again.deliver("i").await;
    assert_eq!(house.settled().await, (id, Settled::Delivered));
}

#[tokio::test]
async fn refused_message_is_dead_lettered_not_retried() {
    let mut house = House::new(15).await;
    let id = house.accept("a", "a-1").await;
    let next = house.accept("a", "a-2").await;
    let headers = "x-amzn-ErrorType: ValidationException\r\n";
    house.request().await.answer("400 Bad Request", headers, r#"{"Message":"too long"}"#).await;
    assert_eq!(house.settled().await, (id, Settled::Dead { reason: Reason::Invalid, told: false }));
    house.request().await.deliver("i").await;
    assert_eq!(house.settled().await, (next, Settled::Delivered));
}

#[tokio::test]
async fn wrong_destination_closes_the_gate_and_no_message_is_dead_lettered() {
    let mut house = House::new(15).await;
    let id = house.accept("a", "a-1").await;
    for said in [Said::Open, Said::Open, Said::NotTheService(404)] {
        house.request().await.answer("404 Not Found", "content-type: text/html\r\n", "<html>}").await;
        assert!(matches!(house.settled().await, (of, Settled::Deferred(_)) if of == id));
        assert_eq!(house.sender.said, said);
        house.clock.skip(Duration::from_secs(8));
    }
    assert_eq!(house.state(id).await.attempts, 0, "not an attempt of the message");
    house.request().await.deliver("i").await;
    assert_eq!(house.settled().await, (id, Settled::Delivered));
    assert_eq!(house.sender.said, Said::Open);
}

#[tokio::test]
async fn destination_that_is_down_gets_one_probe_at_a_time() {
    let mut house = House::new(15).await;
    let mut waiting = Vec::new();
    for conversation in ["a", "b", "c", "d", "e", "f"] {
        waiting.push(house.accept(conversation, conversation).await);
    }
    let mut answered = 0;
    while house.sender.said != Said::Down || house.requests_now().await > 0 {
        house.request().await.answer("503 Service Unavailable", "", "{}").await;
        assert!(matches!(house.settled().await.1, Settled::Deferred(_)));
        answered += 1;
    }
    assert!((3..=6).contains(&answered), "three conversations, not one alone: {answered}");
    for _ in 0..2 {
        house.clock.skip(Duration::from_secs(5));
        // A conversation that has not failed yet is the probe; one that failed may be tried beside it.
        let probes = house.requests_now().await;
        assert!((1..=2).contains(&probes), "{probes}");
        for _ in 0..probes {
            house.request().await.answer("503 Service Unavailable", "", "{}").await;
            assert!(matches!(house.settled().await.1, Settled::Deferred(_)));
        }
    }
    // The destination works again: the next probe delivers, and the others follow.
    for _ in &waiting {
        house.clock.skip(Duration::from_secs(8));
        house.request().await.deliver("i").await;
        assert_eq!(house.settled().await.1, Settled::Delivered);
    }
    assert_eq!(house.sender.said, Said::Open);
}

#[tokio::test]
async fn healthy_conversations_go_before_those_that_keep_failing() {
    let mut house = House::new(15).await;
    for sick in ["s-1", "s-2", "s-3"] {
        house.accept(sick, sick).await;
        house.request().await.answer("500 Internal Server Error", "", "{}").await;
        house.settled().await;
        // Others are delivered meanwhile.
        house.clock.skip(Duration::from_millis(200));
    }
    let mut healthy = Vec::new();
    for conversation in 0..20 {
        healthy.push(house.accept(&format!("h-{conversation}"), "1").await);
    }
    house.clock.skip(Duration::from_secs(6));
    let mut order: Vec<bool> = Vec::new();
    while order.iter().filter(|sick| !**sick).count() < healthy.len() {
        let request = house.request().await;
        let sick = request.text.contains("token-s-");
        order.push(sick);
        if sick {
            request.answer("500 Internal Server Error", "", "{}").await;
        } else {
            request.deliver("i").await;
        }
        house.settled().await;
        house.clock.skip(Duration::from_millis(200));
    }
    // The first may have been leased before the healthy ones were queued.
    assert!(!order[1..].windows(2).any(|pair| pair == [true, true]), "{order:?}");
    assert!(order.iter().filter(|sick| **sick).count() <= 4, "a tenth, and one each probe_max: {order:?}");
}

#[tokio::test]
async fn failure_counts_towards_poison_only_if_another_conversation_was_delivered_meanwhile() {
    let mut house = House::new(15).await;
    house.sender.options.policy.attempts_max = 3;
    let sick = house.accept("s", "s-1").await;
    let mut failures = 0;
    for round in 0..8 {
        let delivers = round >= 4;
        if delivers {
            house.accept(&format!("h-{round}"), "1").await;
        }
        while matches!(house.state(sick).await.status, Status::Queued { .. }) {
            let request = house.request().await;
            let of_sick = request.text.contains("token-s");
            if of_sick {
                failures += 1;
                request.answer("500 Internal Server Error", "", "{}").await;
            } else {
                request.deliver("i").await;
            }
            house.settled().await;
            if !delivers || !of_sick {
                break;
            }
        }
        house.clock.skip(Duration::from_secs(8));
    }
    assert!((7..=8).contains(&failures), "four while nothing was delivered, and three that count: {failures}");
    let state = house.state(sick).await;
    assert!(matches!(state.status, Status::Dead { reason: Reason::Poison, .. }), "{state:?}");
}

#[tokio::test]
async fn probe_without_an_answer_does_not_hold_back_the_next_one() {
    let mut house = House::new(15).await;
    for conversation in ["a", "b", "c", "d"] {
        house.accept(conversation, "1").await;
    }
    let mut unanswered = Vec::new();
    for _ in 0..4 {
        unanswered.push(house.request().await);
    }
    drop(unanswered.split_off(3));
    house.settled().await;
    house.accept("e", "1").await;
    house.clock.skip(Duration::from_secs(5));
    house.turns(1000).await;
    assert_eq!(house.sender.said, Said::Down, "three without an answer");
    house.clock.skip(Duration::from_secs(5));
    let healthy = house.request().await;
    assert!(healthy.text.contains("token-e"), "{}", healthy.text);
    healthy.deliver("i").await;
    assert_eq!(house.settled().await.1, Settled::Delivered);
    assert_eq!(house.sender.said, Said::Open);
}

#[tokio::test]
async fn messages_leased_while_the_gate_closed_are_given_back() {
    let mut house = House::new(1).await;
    let id = house.accept("a", "a-1").await;
    while !matches!(house.sender.step().await.unwrap(), Step::Asked(1)) {}
    let now = house.clock.now();
    house.sender.budget.pacer().started(now);
    assert_eq!(house.settled().await, (id, Settled::Kept));
    house.request().await.deliver("i").await;
    assert_eq!(house.settled().await, (id, Settled::Delivered));
}

#[tokio::test]
async fn idle_sender_asks_nothing_of_the_queue() {
    let mut house = House::new(15).await;
    house.quiet().await;
    let asked = AtomicUsize::new(0);
    let steps = async {
        loop {
            house.sender.step().await.unwrap();
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
    let House { queue, sender, mut requests, writer, _folder, .. } = {
        let house = House::new(15).await;
        house.accept("a", "a-1").await;
        house.accept("a", "a-2").await;
        house
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
