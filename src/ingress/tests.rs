//! The contract's corner cases at the API: a real queue in a temporary folder, and a real listener as the service. The
//! tests play the sender's part (a lease, a settlement).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;

use super::*;
use crate::delivery::{Disposition, Reason, Receipt, ServiceError};
use crate::pacer::{self, Pacer};
use crate::queue::{self, LeaseRequest, Settled};
use crate::{delivery, participant};

const BOT: Peer = Peer::Unix { uid: 1000, gid: 1000, pid: None };
const OTHER_BOT: Peer = Peer::Unix { uid: 1001, gid: 1001, pid: None };

/// Longer than any test takes; no test waits for it to pass.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Rig {
    ingress: Ingress,
    queue: Queue,
    drain_state: DrainState,
    clock: Clock,
    budget: Budget,
    metrics: Metrics,
    upstream: Upstream,
    /// The queue's log lines.
    log: Log,
    _folder: tempfile::TempDir,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines(&self) -> Vec<Value> {
        self.0
            .lock()
            .unwrap()
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }
}

struct Settings {
    store_fails: bool,
    ingress: Options,
    queue: queue::Options,
    pacer: pacer::Options,
}

/// A reply as a bot sees it.
#[derive(Debug)]
struct Seen {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Rig {
    async fn new() -> Rig {
        Rig::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            store_fails: false,
            ingress: Options { wait: TIMEOUT, ..Options::default() },
            queue: queue::Options {
                path: folder.path().join("queue"),
                messages_max: 1000,
                bytes_max: 1 << 30,
                free_disk_min: 0,
                outcomes_kept_for: Duration::from_secs(3600),
                outcomes_max: 1000,
                dead_kept_for: Duration::from_secs(3600),
                dead_max: 1000,
                volatile: true,
                damaged: queue::Damaged::Refuse,
                keys: Vec::new(),
                lifetime: Duration::from_secs(900),
                fresh: Duration::from_secs(30),
                token_wait: Duration::from_secs(120),
                refused_for: Duration::from_secs(60),
                probe_max: Duration::from_secs(5),
                due_max: Duration::from_secs(60),
                destination: "somewhere".into(),
            },
            pacer: pacer::Options::default(),
        };
        change(&mut settings);
        let (clock, metrics, drain_state) = (Clock::system(), Metrics::default(), DrainState::default());
        let (queue, writer) = Queue::open(settings.queue, clock.clone(), &metrics).unwrap();
        let log = Log::default();
        let page = log.clone();
        let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || page.clone()).finish();
        if settings.store_fails {
            drop(writer);
        } else {
            std::thread::spawn(move || tracing::subscriber::with_default(lines, || writer.run()));
        }
        let budget = Budget::new(Pacer::new(settings.pacer, clock.now(), 7));
        let upstream = Upstream::start().await;
        let client = participant::Options {
            endpoint: upstream.endpoint.parse().unwrap(),
            connect_timeout: TIMEOUT,
            attempt_timeout: TIMEOUT,
            idle_max: 4,
            proxy: None,
            extra_roots: Vec::new(),
        };
        let client = Participant::new(client, clock.clone()).unwrap();
        let ingress = Ingress::new(
            settings.ingress,
            queue.clone(),
            client,
            budget.clone(),
            drain_state.clone(),
            clock.clone(),
            &metrics,
        );
        Rig { ingress, queue, drain_state, clock, budget, metrics, upstream, log, _folder: folder }
    }

    async fn ask(&self, peer: Peer, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Seen {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = self.ingress.handle(request.body(Full::new(Bytes::from(body))).unwrap(), peer).await;
        let (parts, body) = reply.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Seen { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8(body).unwrap() }
    }

    /// Opens a connection to the API, for bodies in any pieces.
    fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let ingress = self.ingress.clone();
        let service = service_fn(move |request| {
            let ingress = ingress.clone();
            async move { Ok::<_, Infallible>(ingress.handle(request, BOT).await) }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service));
        ours
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Seen {
        self.ask(BOT, "POST", path, headers, body.to_string()).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Seen {
        self.ask(BOT, "GET", path, headers, String::new()).await
    }

    /// Sends a text with SendMessage.
    async fn send_text(&self, token: &str, client_token: &str, text: &str) -> Seen {
        self.send_text_with(&[("x-amz-bearer", token)], client_token, text).await
    }

    async fn send_text_with(&self, headers: &[(&str, &str)], client_token: &str, text: &str) -> Seen {
        self.post("/participant/message", headers, text_message(client_token, text)).await
    }

    /// Plays the sender for the next due message, as soon as there is one.
    async fn settle(&self, disposition: Disposition) -> Settled {
        loop {
            let mut poked = std::pin::pin!(self.queue.poked());
            poked.as_mut().enable();
            if let Some(lease) = self.queue.lease(LeaseRequest::any(1)).await.unwrap().leases.pop() {
                return self.queue.settle(lease, None, disposition, None).await.unwrap();
            }
            tokio::time::timeout(TIMEOUT, poked).await.unwrap();
        }
    }

    fn metrics(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.metrics.registry().gather()).unwrap()
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics().lines().any(|found| found == line)
    }

    fn commits(&self) -> u32 {
        let text = self.metrics();
        let count = text.lines().find_map(|line| line.strip_prefix("connect_relay_commit_messages_count "));
        count.unwrap().parse().unwrap()
    }
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that it is an error in the shape that every SDK reads.
    #[track_caller]
    fn assert_error(&self, status: u16, code: &str, text: &str) {
        assert_eq!((self.status, self.header("x-amzn-errortype")), (status, code), "{self:?}");
        let message = self.json()["Message"].as_str().unwrap().to_owned();
        assert!(message.contains(text), "{message}");
        assert_eq!(self.header("content-type"), "application/json");
        let waits = matches!(status, 429 | 500 | 503) && code != "RelayTooLateException";
        assert_eq!(self.headers.contains_key("x-amz-retry-after"), waits);
        assert_eq!(self.headers.contains_key("retry-after"), waits);
    }
}

/// A message's head, without the length of its body.
const HEAD: &str = "POST /participant/message HTTP/1.1\r\nx-amz-bearer: t-1\r\n";

async fn write(stream: &mut DuplexStream, text: &str) {
    tokio::time::timeout(TIMEOUT, stream.write_all(text.as_bytes())).await.unwrap().unwrap();
}

/// Reads one reply: its status and its body.
async fn reply(stream: &mut DuplexStream) -> (u16, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(TIMEOUT, stream.read_u8()).await.unwrap().expect("a whole reply"));
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

fn text_message(client_token: &str, text: &str) -> Value {
    json!({ "ContentType": "text/plain", "Content": text, "ClientToken": client_token })
}

fn delivered() -> Disposition {
    Disposition::Deliver(Receipt {
        id: Some("id-1".into()),
        absolute_time: Some("2019-11-08T02:41:28.172Z".into()),
        processing_status: None,
        request_id: Some("up-1".into()),
    })
}

fn denied() -> ServiceError {
    delivery::ServiceError {
        status: 403,
        code: "AccessDeniedException".into(),
        text: "Access denied".into(),
        request_id: Some("up-2".into()),
    }
}

/// A listener that gives scripted answers and records the requests.
struct Upstream {
    endpoint: String,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    replies: VecDeque<Scripted>,
    asked: Vec<(String, HeaderMap, Bytes)>,
}

struct Scripted {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: String,
}

impl Upstream {
    async fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                let service = service_fn(move |request| {
                    let shared = Arc::clone(&shared);
                    async move { Ok::<_, Infallible>(play(&shared, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        Upstream { endpoint, script }
    }

    fn answers(&self, status: u16, headers: &[(&'static str, &'static str)], body: &str) {
        self.lock().replies.push_back(Scripted { status, headers: headers.to_vec(), body: body.to_owned() });
    }

    fn asked(&self) -> Vec<(String, HeaderMap, Bytes)> {
        std::mem::take(&mut self.lock().asked)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn play(script: &Mutex<Script>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut script = script.lock().unwrap();
    script.asked.push((format!("{} {}", parts.method, parts.uri), parts.headers, body));
    let Scripted { status, headers, body } =
        script.replies.pop_front().expect("upstream was asked more than was expected");
    let mut reply = Response::builder().status(status);
    for (name, value) in headers {
        reply = reply.header(name, value);
    }
    reply.body(Full::new(body.into())).unwrap()
}

#[test]
fn future_of_a_request_can_be_served_on_any_thread() {
    fn is_send<T: Send>(_: T) {}
    let _ = |ingress: &Ingress, request: Request<Incoming>| is_send(ingress.handle(request, Peer::Tcp));
}

#[tokio::test]
async fn message_is_202_once_on_disk_and_its_state_can_be_seen() {
    let rig = Rig::new().await;
    let seen = rig.send_text("t-1", "c 1", "hello").await;
    let json = seen.json();
    assert_eq!(
        (seen.status, &json["ClientToken"], &json["State"], &json["Ahead"]),
        (202, &json!("c 1"), &json!("QUEUED"), &json!(0))
    );
    assert!(json["ExpectedTime"].as_str().unwrap().ends_with('Z') && json.get("Id").is_none());
    assert_eq!(seen.header("relay-state"), "QUEUED");
    assert_eq!(seen.header("relay-client-token"), "c%201");
    let (store, sequence) = seen.header("relay-message").split_once('-').unwrap();
    assert!(store.len() == 8 && sequence.parse::<u64>().is_ok());
    assert_eq!(seen.header("x-amzn-requestid").len(), 36);
    assert!(!seen.headers.contains_key("preference-applied"));

    let state = rig.get("/participant/message/c%201", &[("x-amz-bearer", "t-1")]).await;
    let json = state.json();
    assert_eq!(
        (state.status, &json["State"], &json["Ahead"], &json["Attempts"]),
        (200, &json!("QUEUED"), &json!(0), &json!(0))
    );
    assert_eq!(json["Conversation"], label("t-1"));
    assert!(json["AcceptedTime"].as_str().unwrap().ends_with('Z') && json["ExpectedTime"].is_string());
    assert_eq!(state.header("relay-message"), seen.header("relay-message"));

    rig.settle(delivered()).await;
    let json = rig.get("/participant/message/c%201", &[("x-amz-bearer", "t-1")]).await.json();
    assert_eq!((&json["State"], &json["Id"]), (&json!("DELIVERED"), &json!("id-1")));
    assert_eq!(json["AbsoluteTime"], "2019-11-08T02:41:28.172Z");
    assert!(json.get("Ahead").is_none() && json.get("Error").is_none());

    let unknown = rig.get("/participant/message/other", &[("x-amz-bearer", "t-1")]).await;
    unknown.assert_error(404, "ResourceNotFoundException", "connect-relay: ");
    let foreign = rig.get("/participant/message/c%201", &[("x-amz-bearer", "t-2")]).await;
    foreign.assert_error(404, "ResourceNotFoundException", "connect-relay: ");
    assert!(rig.metric("connect_relay_accept_seconds_count 1"));
}

fn label(token: &str) -> String {
    let token = crate::message::ConnectionToken::parse(token.as_bytes()).unwrap();
    crate::message::label(None, &token).into()
}

#[tokio::test]
async fn bot_that_hangs_up_before_the_commit_has_its_message_accepted_in_the_log() {
    let rig = Rig::new().await;
    let trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    {
        let headers = [("x-amz-bearer", "t-1"), trace];
        let mut asking = std::pin::pin!(rig.send_text_with(&headers, "c-1", "hello"));
        // The first poll submits it to the queue; then the connection is gone, and its request with it.
        let polled = std::future::poll_fn(|task| std::task::Poll::Ready(asking.as_mut().poll(task).is_pending()));
        assert!(polled.await);
    }
    assert_eq!(rig.queue.backlog(None).await.unwrap().queued, 1);
    rig.send_text("t-1", "c-1", "hello").await;
    let lines = rig.log.lines();
    let [line] = &lines[..] else { panic!("one message, one line: {lines:?}") };
    assert_eq!((&line["event"], &line["client_token"]), (&json!("accepted"), &json!("c-1")));
    assert_eq!(
        (&line["conversation"], &line["trace_id"]),
        (&json!(label("t-1")), &json!("0af7651916cd43dd8448eb211c80319c"))
    );
    assert_eq!(line["message_id"], rig.send_text("t-1", "c-1", "hello").await.header("relay-message"));
}

#[tokio::test]
async fn wait_ends_with_the_outcome() {
    let rig = Rig::new().await;
    let prefer = [("x-amz-bearer", "t-1"), ("prefer", "wait=60")];
    let (seen, settled) = tokio::join!(rig.send_text_with(&prefer, "c-1", "hello"), rig.settle(delivered()));
    assert_eq!(settled, Settled::Delivered);
    assert_eq!((seen.status, seen.json()), (200, json!({ "Id": "id-1", "AbsoluteTime": "2019-11-08T02:41:28.172Z" })));
    assert_eq!(seen.header("preference-applied"), "wait=50");
    assert_eq!(seen.header("x-amzn-requestid"), "up-1");
    assert_eq!(seen.header("relay-state"), "DELIVERED");
    assert!(rig.metric(r#"connect_relay_waits_total{outcome="delivered"} 1"#));

    let tcp = rig.ask(
        Peer::Tcp,
        "POST",
        "/participant/message",
        &[("x-amz-bearer", "t-2")],
        text_message("c-2", "x").to_string(),
    );
    let (seen, _) = tokio::join!(tcp, rig.settle(delivered()));
    assert_eq!(seen.status, 200, "on TCP a wait is implied");

    let patient = [("x-amz-bearer", "t-1"), ("prefer", "wait=0")];
    let seen = rig.send_text_with(&patient, "c-3", "hello").await;
    assert_eq!((seen.status, seen.header("preference-applied")), (202, "wait=0"));
}

#[tokio::test]
async fn refusal_reaches_the_waiting_caller_and_holds_for_later_requests() {
    let rig = Rig::new().await;
    let prefer = [("x-amz-bearer", "t-1"), ("prefer", "wait=60")];
    // The caller waits already when the refusal comes: the state is found only after its acceptance, and the yield
    // lets its wait begin.
    let (seen, settled) = tokio::join!(rig.send_text_with(&prefer, "c-1", "hello"), async {
        while rig.get("/participant/message/c-1", &[("x-amz-bearer", "t-1")]).await.status != 200 {}
        tokio::task::yield_now().await;
        rig.settle(Disposition::Deny(denied())).await
    });
    assert_eq!(settled, Settled::Dead { reason: Reason::ChatOver, told: true });
    seen.assert_error(403, "AccessDeniedException", "Access denied");
    assert_eq!((seen.header("x-amzn-requestid"), seen.header("relay-state")), ("up-2", "DEAD"));
    assert!(rig.metric(r#"connect_relay_waits_total{outcome="dead"} 1"#));

    let repeat = rig.send_text("t-1", "c-1", "hello").await;
    repeat.assert_error(403, "AccessDeniedException", "Access denied");
    let next = rig.send_text("t-1", "c-2", "hello").await;
    next.assert_error(403, "AccessDeniedException", "Access denied");
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="denied"} 1"#));
}

#[tokio::test]
async fn repeat_never_makes_a_second_message() {
    let rig = Rig::new().await;
    let first = rig.send_text("t-1", "c-1", "hello").await;
    let repeat = rig.send_text("t-1", "c-1", "hello").await;
    assert_eq!((repeat.status, repeat.header("relay-message")), (202, first.header("relay-message")));
    rig.send_text("t-1", "c-1", "other").await.assert_error(409, "ConflictException", "with other contents at 2");
    rig.settle(delivered()).await;
    let repeat = rig.send_text("t-1", "c-1", "hello").await;
    assert_eq!((repeat.status, repeat.header("relay-message")), (200, first.header("relay-message")));
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="conflict"} 1"#));

    let minted = rig.post("/participant/message", &[("x-amz-bearer", "t-1")], text_message("", "hello")).await;
    let again = rig.post("/participant/message", &[("x-amz-bearer", "t-1")], text_message("", "hello")).await;
    assert_eq!(minted.json()["ClientToken"], minted.header("relay-client-token"));
    assert_ne!(minted.header("relay-message"), again.header("relay-message"));
}

#[tokio::test]
async fn repeat_of_a_dead_message_returns_its_error() {
    let rig = Rig::new().await;
    let invalid = ServiceError {
        status: 400,
        code: "ValidationException".into(),
        text: "Content is too long for SMS".into(),
        request_id: None,
    };
    rig.send_text("t-1", "c-1", "hello").await;
    rig.settle(Disposition::DeadLetter(Reason::Invalid, invalid)).await;
    let repeat = rig.send_text("t-1", "c-1", "hello").await;
    repeat.assert_error(400, "ValidationException", "Content is too long for SMS");
    let state = rig.get("/participant/message/c-1", &[("x-amz-bearer", "t-1")]).await.json();
    assert_eq!(state["State"], "DEAD");
    assert_eq!(
        state["Error"],
        json!({ "Code": "ValidationException", "Message": "Content is too long for SMS", "Reason": "invalid" })
    );

    rig.send_text("t-1", "c-2", "hello").await;
    rig.settle(Disposition::DeadLetter(Reason::Expired, ServiceError::default())).await;
    rig.send_text("t-1", "c-2", "hello").await.assert_error(410, "GoneException", "connect-relay: ");
}

#[tokio::test]
async fn token_belongs_to_one_conversation_and_a_key_to_its_caller() {
    let rig = Rig::new().await;
    let keyed = [("x-amz-bearer", "t-1"), ("relay-conversation", "C/bot")];
    assert_eq!(rig.send_text_with(&keyed, "c-1", "hello").await.status, 202);
    rig.send_text("t-1", "c-2", "hello").await.assert_error(409, "ConflictException", "another conversation");
    let other = [("x-amz-bearer", "t-1"), ("relay-conversation", "D/bot")];
    rig.send_text_with(&other, "c-2", "hello").await.assert_error(409, "ConflictException", "another conversation");
    rig.get("/participant/message/c-1", &other).await.assert_error(409, "ConflictException", "another conversation");
    assert_eq!(rig.get("/participant/message/c-1", &keyed).await.json()["Conversation"], "C/bot");

    let theirs = [("x-amz-bearer", "t-2"), ("relay-conversation", "C/bot")];
    let body = text_message("c-1", "something else").to_string();
    let seen = rig.ask(OTHER_BOT, "POST", "/participant/message", &theirs, body).await;
    assert_eq!(seen.status, 202, "another user's equal key is another conversation");
    let waiting = rig.get("/participant/queue", &[]).await.json();
    assert_eq!((&waiting["Queued"], &waiting["Draining"]), (&json!(1), &json!(false)));
    assert!(waiting["Rate"].is_number() && waiting["OldestSeconds"].is_number());
}

#[tokio::test]
async fn replaced_token_must_be_one_of_this_conversation() {
    let rig = Rig::new().await;
    let renewed = [("x-amz-bearer", "t-2"), ("relay-replaces-token", "t-1")];
    let seen = rig.send_text_with(&renewed, "c-2", "hello").await;
    seen.assert_error(403, "RelayForbiddenException", "Relay-Replaces-Token");
    assert!(!seen.body.contains("t-1"));
    rig.send_text("t-1", "c-1", "hello").await;
    assert_eq!(rig.send_text_with(&renewed, "c-2", "hello").await.status, 202);
    let repeat = rig.send_text("t-2", "c-1", "hello").await;
    assert_eq!(repeat.status, 202, "the renewed token speaks for the same participant: this is a repeat");
    assert_eq!(rig.queue.backlog(None).await.unwrap().queued, 2);
}

#[tokio::test]
async fn full_queue_is_429_that_names_the_limit_and_still_knows_repeats() {
    let rig = Rig::with(|settings| settings.queue.messages_max = 1).await;
    rig.send_text("t-1", "c-1", "hello").await;
    let seen = rig.send_text("t-1", "c-2", "hello").await;
    seen.assert_error(429, "ThrottlingException", "1 of 1 messages (queue.messages_max); it empties at 9.0 messages");
    assert_eq!((seen.header("x-amz-retry-after"), seen.header("retry-after")), ("1000", "1"));
    assert_eq!(rig.send_text("t-1", "c-1", "hello").await.status, 202);
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="queue_full"} 1"#));
}

#[tokio::test]
async fn full_queue_that_does_not_empty_says_so_and_asks_for_a_late_retry() {
    let rig = Rig::with(|settings| settings.queue.messages_max = 1).await;
    rig.send_text("t-1", "c-1", "hello").await;
    let line = json!({"ContentType": "text/plain", "Content": "hello", "ConnectionToken": "t-1"}).to_string();
    let refused = async |why: &str| {
        let seen = rig.send_text("t-1", "c-2", "hello").await;
        seen.assert_error(429, "ThrottlingException", why);
        assert_eq!((seen.header("x-amz-retry-after"), seen.header("retry-after")), ("60000", "60"));
        let seen = rig.ask(BOT, "POST", "/participant/messages", &[], line.clone()).await;
        assert!(seen.body.contains(why), "{}", seen.body);
    };
    rig.queue.pause(String::new()).await.unwrap();
    refused("messages a second, but nothing is sent now: sending is paused").await;
    rig.queue.resume().await.unwrap();
    let now = rig.clock.now();
    rig.budget.pacer().ended(now, now, delivery::Signal::Down(crate::retry::RetryHint::default()));
    refused("messages a second, but nothing is sent now: the Participant Service is down").await;
}

#[tokio::test]
async fn full_disk_is_429_that_names_it() {
    let rig = Rig::with(|settings| settings.queue.free_disk_min = 1 << 60).await;
    rig.send_text("t-1", "c-1", "hello").await.assert_error(429, "ThrottlingException", "(queue.free_disk_min)");
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="disk_full"} 1"#));
}

#[tokio::test]
async fn failed_store_is_500_on_every_route() {
    let rig = Rig::with(|settings| settings.store_fails = true).await;
    let bearer = [("x-amz-bearer", "t-1")];
    let mut line = text_message("c-1", "hello");
    line["ConnectionToken"] = "t-1".into();
    for (path, body) in [
        ("message", text_message("c-1", "hello")),
        ("messages", line),
        ("disconnect", json!({})),
        ("event", json!({ "ContentType": parse::TYPING })),
    ] {
        let seen = rig.post(&format!("/participant/{path}"), &bearer, body).await;
        seen.assert_error(500, "InternalServerException", "nothing was acknowledged");
    }
    for path in ["/participant/message/c-1", "/participant/queue", "/participant/outcomes"] {
        rig.get(path, &bearer).await.assert_error(500, "InternalServerException", "the store failed");
    }
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="store"} 4"#));
}

/// The events of a stream: their ids, names and data.
fn events(stream: &str) -> Vec<(&str, &str, Value)> {
    let blocks = stream.split("\n\n").filter(|block| !block.is_empty() && *block != ":");
    blocks
        .map(|block| {
            let mut lines = block.lines();
            let mut field = |name| lines.next().unwrap().strip_prefix(name).unwrap();
            let (id, event, data) = (field("id: "), field("event: "), field("data: "));
            assert_eq!(lines.next(), None);
            (id, event, serde_json::from_str(data).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn outcomes_are_events_for_their_own_user_and_resume_from_each_id() {
    let rig = Rig::new().await;
    let open = |peer| {
        let request = Request::get("/participant/outcomes").body(Full::<Bytes>::default()).unwrap();
        rig.ingress.handle(request, peer)
    };
    let (own, others, tcp) = (open(BOT).await, open(OTHER_BOT).await, open(Peer::Tcp).await);
    assert_eq!((own.status().as_u16(), &own.headers()["content-type"]), (200, &"text/event-stream".parse().unwrap()));
    let keyed = [("x-amz-bearer", "t-1"), ("relay-conversation", "chat/bot")];
    let first = rig.send_text_with(&keyed, "c-1", "secret words").await;
    rig.settle(delivered()).await;
    let second = rig.send_text("t-2", "c-2\n\u{2028}é", "secret words").await;
    rig.settle(Disposition::DeadLetter(Reason::Invalid, denied())).await;
    assert_eq!(
        rig.ask(Peer::Tcp, "POST", "/participant/disconnect", &[("x-amz-bearer", "t-3")], "{}".into()).await.status,
        202
    );
    rig.settle(Disposition::Deliver(Receipt::default())).await;
    rig.drain_state.end_waits();
    let text = |reply: hyper::Response<ReplyBody>| async {
        String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    let (own, others, tcp) = (text(own).await, text(others).await, text(tcp).await);
    assert_eq!((others.as_str(), events(&tcp).len()), ("", 1));
    let found = events(&own);
    assert_eq!(found.len(), 2, "{own}");
    let (id, event, data) = &found[0];
    let accepted = data["AcceptedTime"].as_str().unwrap();
    assert!(accepted.ends_with('Z'));
    let expected = json!({
        "ClientToken": "c-1", "Conversation": "chat/bot", "Message": first.header("relay-message"),
        "AcceptedTime": accepted, "Id": "id-1", "AbsoluteTime": "2019-11-08T02:41:28.172Z",
    });
    assert_eq!((*event, data), ("delivered", &expected));
    let (_, event, data) = &found[1];
    assert_eq!(
        (*event, &data["ClientToken"], &data["Message"]),
        ("dead", &json!("c-2\n\u{2028}é"), &json!(second.header("relay-message")))
    );
    assert_eq!(data["Conversation"], label("t-2"));
    assert_eq!(
        data["Error"],
        json!({"Code": "AccessDeniedException", "Message": "Access denied", "Reason": "invalid"})
    );
    assert!(!own.contains("secret words") && !own.contains("t-2"), "{own}");

    let after = format!("/participant/outcomes?after={id}");
    let rest = rig.get(&after, &[]).await;
    assert_eq!(events(&rest.body), found[1..]);
    assert_eq!(rig.get("/participant/outcomes", &[("last-event-id", id)]).await.body, rest.body);
    assert_eq!(rig.get(&after, &[("last-event-id", found[1].0)]).await.body, "", "the header goes first");
    assert_eq!(rig.get(&format!("/participant/outcomes?after={}", id.replace('-', "%2D")), &[]).await.body, rest.body);
    assert_eq!(rig.get("/participant/outcomes?after=", &[("last-event-id", "")]).await.body, "", "from now on");
    assert_eq!(rig.ask(OTHER_BOT, "GET", &after, &[], String::new()).await.body, "");
}

#[tokio::test]
async fn bad_cursor_is_400_one_that_is_too_old_410_and_no_stream_begins_in_the_closing_phase() {
    let rig = Rig::new().await;
    rig.send_text("t-1", "c-1", "hello").await;
    let start = rig.queue.outcomes_from(None).await.unwrap().unwrap();
    rig.settle(delivered()).await;
    let caller = Caller::Uid(1000);
    let cursor = rig.queue.outcomes(caller, start).await.unwrap().unwrap().next.to_string();
    let after = |cursor: &str| format!("/participant/outcomes?after={cursor}");
    for bad in ["1", "x", &format!("{cursor}0x"), &format!("{cursor}&after={cursor}")] {
        rig.get(&after(bad), &[]).await.assert_error(400, "ValidationException", "connect-relay: after is not the id");
    }
    let bad = rig.get(&after(&cursor), &[("last-event-id", "\u{e9}")]).await;
    bad.assert_error(400, "ValidationException", "Last-Event-ID is not the id");
    let twice = [("last-event-id", &*cursor), ("last-event-id", &*cursor)];
    rig.get("/participant/outcomes", &twice).await.assert_error(400, "ValidationException", "more than once");
    let others = format!("{:08x}{}", !u32::from_str_radix(&cursor[..8], 16).unwrap(), &cursor[8..]);
    rig.get(&after(&others), &[]).await.assert_error(410, "GoneException", "queue.outcomes_kept_for");
    rig.clock.skip(Duration::from_secs(3600));
    rig.get(&after(&cursor), &[]).await.assert_error(410, "GoneException", "queue.outcomes_kept_for");
    rig.drain_state.close();
    rig.get("/participant/outcomes", &[]).await.assert_error(503, "ServiceUnavailableException", "stopping");
}

#[tokio::test]
async fn quiet_stream_has_comments_and_ends_with_the_waits() {
    let rig = Rig::new().await;
    let request = Request::get("/participant/outcomes").body(Full::<Bytes>::default()).unwrap();
    let mut body = rig.ingress.handle(request, BOT).await.into_body();
    let comment = tokio::time::timeout(TIMEOUT, body.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(comment.into_data().unwrap(), ":\n\n");
    rig.drain_state.end_waits();
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn repeat_does_not_change_the_lifetime() {
    let rig = Rig::new().await;
    let for_seconds = |seconds| [("x-amz-bearer", "t-1"), ("relay-lifetime", seconds), ("prefer", "wait=60")];
    assert_eq!(rig.send_text_with(&for_seconds("60")[..2], "c-1", "hello").await.status, 202);
    assert_eq!(rig.send_text_with(&for_seconds("3600")[..2], "c-1", "hello").await.status, 202);
    rig.clock.skip(Duration::from_secs(61));
    rig.send_text_with(&for_seconds("3600"), "c-1", "hello").await.assert_error(
        410,
        "GoneException",
        "its lifetime ended",
    );
}

#[tokio::test]
async fn lifetime_that_cannot_be_met_is_refused_at_once() {
    let rig = Rig::with(|settings| settings.pacer.quota_rate = 0.5).await;
    let hurried = [("x-amz-bearer", "t-1"), ("relay-lifetime", "1")];
    assert_eq!(rig.send_text_with(&hurried, "c-1", "nothing goes before it").await.status, 202);
    rig.send_text_with(&hurried, "c-2", "hello").await.assert_error(
        429,
        "RelayTooLateException",
        "Relay-Lifetime (1 s)",
    );
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="too_late"} 1"#));
    let calm = [("x-amz-bearer", "t-1"), ("relay-lifetime", "60")];
    assert_eq!(rig.send_text_with(&calm, "c-2", "hello").await.status, 202);
    let wrong = [("x-amz-bearer", "t-1"), ("relay-lifetime", "1.5")];
    rig.send_text_with(&wrong, "c-3", "hello").await.assert_error(400, "ValidationException", "Relay-Lifetime");
}

#[tokio::test]
async fn disconnect_ends_its_conversation() {
    let rig = Rig::new().await;
    let prefer = [("x-amz-bearer", "t-1"), ("prefer", "wait=60")];
    rig.send_text("t-1", "c-1", "farewell").await;
    let queued = rig.ask(BOT, "POST", "/participant/disconnect", &[("x-amz-bearer", "t-1")], String::new()).await;
    assert_eq!((queued.status, &queued.json()["State"]), (202, &json!("QUEUED")));
    rig.send_text("t-1", "c-2", "too late").await.assert_error(409, "ConflictException", "disconnect");
    let read = json!({ "ContentType": "application/vnd.amazonaws.connect.event.message.read" });
    rig.post("/participant/event", &prefer[..1], read).await.assert_error(409, "ConflictException", "disconnect");
    let again = rig.post("/participant/disconnect", &prefer[..1], json!({ "ClientToken": "another" })).await;
    assert_eq!((again.status, again.header("relay-message")), (202, queued.header("relay-message")));
    assert_eq!(again.header("relay-client-token"), queued.header("relay-client-token"), "it finds the disconnect");
    assert_eq!(again.json()["ClientToken"], queued.json()["ClientToken"]);
    rig.settle(delivered()).await;
    let (done, _) = tokio::join!(
        rig.post("/participant/disconnect", &prefer, json!({})),
        rig.settle(Disposition::Deliver(Receipt::default()))
    );
    assert_eq!((done.status, &*done.body), (200, ""));
    assert_eq!(done.header("relay-state"), "DELIVERED");
}

#[tokio::test]
async fn bad_line_of_a_batch_affects_only_itself() {
    let rig = Rig::new().await;
    let line = |client_token: &str, text: &str| {
        let mut line = text_message(client_token, text);
        line["ConnectionToken"] = "t-1".into();
        line.to_string()
    };
    let body = [
        line("c-1", "one"),
        "{broken".into(),
        String::new(),
        text_message("c-2", "no token").to_string(),
        line("c-1", "one"),
        line("c-1", "other"),
        line("c-3", &"x".repeat(1025)),
        "   \r".into(),
        line("c-4", "two"),
    ]
    .join("\n");
    let before = rig.commits();
    let seen = rig.ask(BOT, "POST", "/participant/messages", &[], body).await;
    assert_eq!(rig.commits(), before + 1, "one batch is one commit");
    assert_eq!((seen.status, seen.header("content-type")), (200, "application/x-ndjson"));
    let replies: Vec<Value> = seen.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let queued = |client_token: &str| json!({ "ClientToken": client_token, "State": "QUEUED" });
    assert_eq!(replies.len(), 7);
    assert_eq!((&replies[0], &replies[3], &replies[6]), (&queued("c-1"), &queued("c-1"), &queued("c-4")));
    for (at, code, text) in [
        (1, "ValidationException", "bad JSON"),
        (2, "ValidationException", "ConnectionToken is missing"),
        (4, "ConflictException", "other contents"),
        (5, "ValidationException", "ingress.content_chars_max.plain"),
    ] {
        assert_eq!(replies[at]["Error"]["Code"], code);
        assert!(replies[at]["Error"]["Message"].as_str().unwrap().contains(text), "{}", replies[at]);
    }
    assert_eq!(rig.queue.backlog(None).await.unwrap().queued, 2);
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="invalid"} 3"#));

    let nothing = rig.ask(BOT, "POST", "/participant/messages", &[], "\n\n".into()).await;
    assert_eq!((nothing.status, &*nothing.body), (200, ""));
}

#[tokio::test]
async fn request_that_is_not_a_message_gets_an_error() {
    let rig = Rig::with(|settings| {
        settings.ingress.body_bytes_max = 2000;
        settings.ingress.batch_bytes_max = 3000;
    })
    .await;
    let bearer = [("x-amz-bearer", "t-1")];
    let long = rig.send_text("t-1", "c-1", &"x".repeat(2000)).await;
    long.assert_error(413, "ValidationException", "ingress.body_bytes_max");
    let batch = rig.ask(BOT, "POST", "/participant/messages", &[], "x".repeat(3001)).await;
    batch.assert_error(413, "ValidationException", "ingress.batch_bytes_max");
    rig.send_text_with(&[], "c-1", "x").await.assert_error(400, "ValidationException", "X-Amz-Bearer");
    let surrogate = r#"{"ContentType":"text/plain","Content":"\ud83d"}"#.to_owned();
    let surrogate = rig.ask(BOT, "POST", "/participant/message", &bearer, surrogate).await;
    surrogate.assert_error(400, "ValidationException", "Content holds a lone surrogate");
    for (method, path, shown) in [
        ("GET", "/x", "GET /x"),
        ("GET", "/participant/message", "GET /participant/message"),
        ("POST", "/participant/queue", "POST /participant/queue"),
        ("POST", "/participant/outcomes", "POST /participant/outcomes"),
        ("DELETE", "/participant/message/c-1", "DELETE /participant/message/c-1"),
        ("POST", "/participant/../x", "POST /participant/../x"),
        ("POST", "/participant/%2e%2E/x", "POST /participant/%2e%2E/x"),
        ("GET", "/participant/views/%2e./..%2Fx", "GET /participant/views/%2e./..%2Fx"),
        ("POST", "/metrics?token=secret", "POST /metrics"),
    ] {
        let seen = rig.ask(BOT, method, path, &bearer, "{}".into()).await;
        seen.assert_error(404, "UnknownOperationException", "");
        assert_eq!(seen.json()["Message"], format!("connect-relay: no such operation: {shown}"));
    }
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="too_large"} 2"#));
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="draining"} 0"#));
    assert!(rig.upstream.asked().is_empty());
}

#[tokio::test]
async fn body_on_the_wire_is_bounded_in_bytes_and_the_connection_goes_on() {
    let rig = Rig::with(|settings| settings.ingress.body_bytes_max = 32 << 10).await;
    let mut stream = rig.connect();
    let text = text_message("c-1", "hello").to_string();
    let long = "x".repeat(900_000);
    for (sent, status, words) in [
        (format!("content-length: {}\r\n\r\n{text}", text.len()), 202, "QUEUED"),
        (
            format!(
                "transfer-encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
                &text[..5],
                text.len() - 5,
                &text[5..]
            ),
            202,
            "QUEUED",
        ),
        (format!("content-length: 900000\r\n\r\n{long}"), 413, "900000 bytes, at most 32768"),
        (
            format!(
                "transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
                format!("1000\r\n{}\r\n", &long[..4096]).repeat(9)
            ),
            413,
            "more bytes, at most 32768",
        ),
        (format!("content-length: {}\r\n\r\n{text}", text.len()), 202, "QUEUED"),
    ] {
        write(&mut stream, &format!("{HEAD}{sent}")).await;
        let (came, body) = reply(&mut stream).await;
        assert!(came == status && body.contains(words), "{came} {body}");
    }
}

#[tokio::test]
async fn body_that_does_not_come_in_time_gets_an_error() {
    let rig = Rig::with(|settings| settings.ingress.request_timeout = Duration::from_millis(50)).await;
    let mut stream = rig.connect();
    write(&mut stream, &format!("{HEAD}content-length: 3\r\n\r\n{{\"")).await;
    let (status, body) = reply(&mut stream).await;
    assert!(status == 408 && body.contains("50 ms (ingress.request_timeout)"), "{status} {body}");
}

#[tokio::test]
async fn half_read_bodies_that_fill_the_budget_end_in_replies() {
    let text = text_message("c-1", "hello").to_string();
    let rig = Rig::with(|settings| settings.ingress.bodies_bytes_max = 8 * text.len()).await;
    let (mut one, mut two, mut three) = (rig.connect(), rig.connect(), rig.connect());
    // Two fit into a caller's quarter: the third waits until one of the first two is read.
    for stream in [&mut one, &mut two, &mut three] {
        write(stream, &format!("{HEAD}content-length: {}\r\n\r\n", text.len())).await;
    }
    for stream in [&mut one, &mut three] {
        write(stream, &text).await;
        assert_eq!(reply(stream).await.0, 202);
    }
    drop(two);
}

#[tokio::test]
async fn peer_that_is_on_no_list_is_refused() {
    let rig = Rig::with(|settings| settings.ingress.allow_uids = vec![1001]).await;
    rig.send_text("t-1", "c-1", "hello").await.assert_error(403, "RelayForbiddenException", "ingress.allow_uids");
    let seen = rig
        .ask(OTHER_BOT, "POST", "/participant/message", &[("x-amz-bearer", "t-1")], text_message("c", "x").to_string())
        .await;
    assert_eq!(seen.status, 202);
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="forbidden"} 1"#));
}

#[tokio::test]
async fn closing_ends_waits_and_accepts_nothing_more() {
    let rig = Rig::new().await;
    let prefer = [("x-amz-bearer", "t-1"), ("prefer", "wait=60")];
    let (waited, ()) = tokio::join!(rig.send_text_with(&prefer, "c-1", "hello"), async {
        while rig.queue.backlog(None).await.unwrap().queued == 0 {}
        rig.drain_state.drain();
        assert_eq!(rig.send_text("t-1", "c-2", "farewell").await.status, 202, "a draining relay accepts");
        rig.drain_state.close();
    });
    assert_eq!(waited.status, 202, "what is on disk is on disk");
    rig.send_text("t-1", "c-3", "hello").await.assert_error(503, "ServiceUnavailableException", "connect-relay: ");
    let waiting = rig.get("/participant/queue", &[("prefer", "wait=60")]).await.json();
    assert_eq!((&waiting["Queued"], &waiting["Draining"]), (&json!(2), &json!(true)));
    assert!(rig.metric(r#"connect_relay_messages_rejected_total{reason="draining"} 1"#));
}

#[tokio::test]
async fn queue_can_be_waited_for_until_it_is_empty() {
    let rig = Rig::new().await;
    rig.send_text("t-1", "c-1", "hello").await;
    rig.clock.skip(Duration::from_secs(5));
    let now = rig.get("/participant/queue", &[]).await;
    assert!(now.json()["OldestSeconds"].as_f64().unwrap() >= 5.0);
    let (empty, _) = tokio::join!(rig.get("/participant/queue", &[("prefer", "wait=60")]), rig.settle(delivered()));
    assert_eq!((&empty.json()["Queued"], empty.header("preference-applied")), (&json!(0), "wait=50"));
}

#[tokio::test]
async fn typing_is_forwarded_only_if_nothing_waits_and_quota_is_to_spare() {
    let rig = Rig::new().await;
    let bearer = [("x-amz-bearer", "t-1")];
    let typing = json!({ "ContentType": parse::TYPING });
    rig.upstream.answers(200, &[("x-amzn-requestid", "up-1")], r#"{"Id":"e-1","AbsoluteTime":"z"}"#);
    let seen = rig.post("/participant/event", &bearer, typing.clone()).await;
    assert_eq!((seen.status, seen.json()), (200, json!({ "Id": "e-1", "AbsoluteTime": "z" })));
    let asked = rig.upstream.asked();
    assert_eq!((&*asked[0].0, &asked[0].2), ("POST /participant/event", &Bytes::from(typing.to_string())));

    rig.upstream.answers(429, &[("x-amz-retry-after", "700")], "{}");
    let seen = rig.post("/participant/event", &bearer, typing.clone()).await;
    assert_eq!((seen.status, &*seen.body), (202, "{}"));
    assert_eq!(rig.budget.pacer().closed(), Some(pacer::Closed::Throttled), "the sender hears of it");
    let seen = rig.post("/participant/event", &bearer, typing.clone()).await;
    assert_eq!((seen.status, &*seen.body), (202, "{}"), "nothing is to spare behind a closed gate");

    rig.send_text("t-2", "c-1", "hello").await;
    let seen = rig.post("/participant/event", &[("x-amz-bearer", "t-2")], typing).await;
    assert_eq!((seen.status, &*seen.body), (202, "{}"), "a message is queued before it");
    assert!(rig.metric("connect_relay_events_dropped_total 3"));
    assert_eq!(rig.upstream.asked().len(), 1);

    let receipt = json!({ "ContentType": "application/vnd.amazonaws.connect.event.message.read", "Content": "{}" });
    let (seen, _) = tokio::join!(
        rig.post("/participant/event", &[("x-amz-bearer", "t-3"), ("prefer", "wait=60")], receipt),
        async {
            rig.settle(delivered()).await;
            rig.settle(delivered()).await
        }
    );
    assert_eq!((seen.status, &seen.json()["Id"]), (200, &json!("id-1")), "a receipt waits in order");
}

#[tokio::test]
async fn renewed_token_continues_the_conversation_of_its_participant() {
    let rig = Rig::new().await;
    for token in ["t-1", "t-2"] {
        let body = json!({ "ConnectionCredentials": { "ConnectionToken": token, "Expiry": "z" } }).to_string();
        rig.upstream.answers(200, &[], &body);
        let seen =
            rig.post("/participant/connection", &[("x-amz-bearer", "p-1"), ("prefer", "wait=1")], json!({})).await;
        assert_eq!((seen.status, seen.body), (200, body));
        rig.send_text(token, "c-1", "hello").await;
    }
    assert_eq!(rig.queue.backlog(None).await.unwrap().queued, 1, "the second came with the renewed token: a repeat");
    let asked = rig.upstream.asked();
    assert_eq!(asked[0].1["x-amz-bearer"], "p-1");
    assert!(!asked[0].1.contains_key(HeaderName::from_static("prefer")));
}

#[tokio::test]
async fn other_operations_are_forwarded_unchanged() {
    let rig = Rig::new().await;
    rig.upstream.answers(418, &[("x-amzn-errortype", "TeapotException"), ("x-more", "1")], "short");
    let of_the_relay = [
        ("relay-replaces-token", "secret"),
        ("relay-conversation", "C/b"),
        ("prefer", "wait=1"),
        ("accept-encoding", "br"),
    ];
    let headers = [&[("x-amz-bearer", "t-1"), ("content-type", "application/json")], &of_the_relay[..]].concat();
    let seen = rig.post("/participant/transcript?a=b%20c", &headers, json!({ "MaxResults": 1 })).await;
    assert_eq!((seen.status, &*seen.body, seen.header("x-more")), (418, "short", "1"));
    let asked = rig.upstream.asked();
    assert_eq!((&*asked[0].0, &*asked[0].2), ("POST /participant/transcript?a=b%20c", &br#"{"MaxResults":1}"#[..]));
    assert_eq!(asked[0].1["content-type"], "application/json");
    for (name, value) in of_the_relay {
        assert!(asked[0].1.get(name).is_none_or(|passed| passed != value), "{name}");
    }

    rig.upstream.answers(302, &[("location", "http://127.0.0.1:9/")], "");
    let seen = rig.post("/participant/attachment", &headers, json!({})).await;
    assert_eq!((seen.status, rig.upstream.asked().len()), (302, 1), "a redirect is returned and not followed");

    rig.upstream.answers(200, &[], "{}");
    assert_eq!(rig.get("/participant/views/v%2F1", &[("x-amz-bearer", "t-1")]).await.status, 200);
    assert_eq!(rig.upstream.asked()[0].0, "GET /participant/views/v%2F1");
}
