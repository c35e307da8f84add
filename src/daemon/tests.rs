//! Whole relays in this process: a temporary folder, a simulated or absent service, and all three listeners.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::watchdog::Watchdog;
use super::*;
use crate::config::{Config, Sources};
use crate::delivery::Signal;
use crate::retry::RetryHint;
use crate::simulator::{self, Simulator};
use crate::time::Clock;

/// Far longer than any test takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The options of `run --dir`, with every port chosen by the system.
fn options(dir: &Path, endpoint: &str, grace: &str) -> Options {
    let set = |key: &str, value: &str| (format!("CONNECT_RELAY__{key}").into(), value.into());
    let environment = vec![
        set("SENDER__ENDPOINT", endpoint),
        set("SENDER__PROBE_MAX", "50ms"),
        set("QUEUE__VOLATILE", "true"),
        set("ADMIN__LISTEN", "127.0.0.1:0"),
        set("SHUTDOWN__GRACE", grace),
    ];
    let config = Config::load(&Sources { file: None, environment, dir: Some(dir.into()) }).unwrap();
    Options {
        socket_mode: 0o600,
        tcp: Some("127.0.0.1:0".parse().unwrap()),
        region: "eu-west-2".into(),
        connect_instance: "test".into(),
        seed: 1,
        ..Options::from(&config)
    }
}

/// A running daemon.
struct Relay {
    dir: TempDir,
    bound: Bound,
    stop: watch::Sender<StopRequest>,
    ended: tokio::task::JoinHandle<Result<Exit, Failure>>,
}

impl Relay {
    async fn start(endpoint: &str, grace: &str) -> Relay {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::open(options(dir.path(), endpoint, grace), Clock::system()).await.unwrap();
        Relay::run(dir, daemon)
    }

    fn run(dir: TempDir, daemon: Daemon) -> Relay {
        let (stop, receiver) = watch::channel(StopRequest::None);
        Relay { dir, bound: daemon.bound(), stop, ended: tokio::spawn(daemon.run(receiver)) }
    }

    async fn get(&self, path: &str) -> String {
        let stream = TcpStream::connect(self.bound.admin).await.unwrap();
        request(stream, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    async fn until_ready_says(&self, status: u16) {
        let turn = async {
            while !self.get("/readyz").await.starts_with(&format!("HTTP/1.1 {status} ")) {
                tokio::task::yield_now().await;
            }
        };
        timeout(TIMEOUT, turn).await.unwrap();
    }

    async fn send(&self, content: &str) -> String {
        let stream = UnixStream::connect(self.dir.path().join("relay.sock")).await.unwrap();
        request(stream, &message(content)).await
    }

    /// Sends an operator's request.
    async fn operate(&self, method: &str, path: &str, body: &str) -> String {
        let stream = UnixStream::connect(self.dir.path().join("private/control.sock")).await.unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}");
        request(stream, &format!("{head}\r\n\r\n{body}")).await
    }

    async fn exit(self) -> Result<Exit, Failure> {
        timeout(TIMEOUT, self.ended).await.unwrap().unwrap()
    }
}

/// Opens the stream of outcomes, and returns it after its head.
async fn outcomes(dir: &Path, after: &str) -> BufReader<UnixStream> {
    let mut stream = BufReader::new(UnixStream::connect(dir.join("relay.sock")).await.unwrap());
    let head = format!("GET /participant/outcomes HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {after}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        timeout(TIMEOUT, stream.read_line(&mut head)).await.unwrap().unwrap();
    }
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream
}

/// The ids and the messages of the events in a stream, which ends.
async fn events(mut stream: BufReader<UnixStream>) -> Vec<(String, String)> {
    let mut text = String::new();
    timeout(TIMEOUT, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.ends_with("\r\n0\r\n\r\n"), "the stream ends by itself: {text}");
    let ids = text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned);
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let messages = data.map(|data| {
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        data["Message"].as_str().unwrap().to_owned()
    });
    ids.zip(messages).collect()
}

/// The id of the message that a reply is about.
fn message_id(reply: &str) -> String {
    reply.lines().find_map(|line| line.strip_prefix("relay-message: ")).unwrap().to_owned()
}

#[tokio::test]
async fn stream_of_outcomes_continues_over_restarts_with_nothing_missed_and_nothing_twice() {
    let (endpoint, _simulator) = service().await;
    let Relay { dir, stop, ended, .. } = Relay::start(&endpoint, "25s").await;
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut sent = Vec::new();
    let mut running = (stop, ended);
    for (round, kept) in [3, 5, 1].into_iter().enumerate() {
        let cursor = seen.last().map_or("", |(id, _)| id);
        let stream = outcomes(dir.path(), cursor).await;
        for number in 0..5 {
            let connection = UnixStream::connect(dir.path().join("relay.sock")).await.unwrap();
            sent.push(message_id(&request(connection, &message(&format!("{round}-{number}"))).await));
        }
        running.0.send_replace(StopRequest::Drain);
        // When the queue is empty, the stream ends, and does not hold up the drain.
        seen.extend(events(stream).await.into_iter().take(kept));
        assert_eq!(timeout(TIMEOUT, running.1).await.unwrap().unwrap(), Ok(Exit::Drained));
        let daemon = Daemon::open(options(dir.path(), &endpoint, "25s"), Clock::system()).await.unwrap();
        let (stop, receiver) = watch::channel(StopRequest::None);
        running = (stop, tokio::spawn(daemon.run(receiver)));
    }
    let stream = outcomes(dir.path(), &seen.last().unwrap().0).await;
    running.0.send_replace(StopRequest::Drain);
    seen.extend(events(stream).await);
    assert_eq!(seen.into_iter().map(|(_, message)| message).collect::<Vec<_>>(), sent);
}

fn message(content: &str) -> String {
    let body = format!(r#"{{"ContentType":"text/plain","Content":"{content}"}}"#);
    format!(
        "POST /participant/message HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Amz-Bearer: token\r\nContent-Length: \
         {}\r\n\r\n{body}",
        body.len()
    )
}

async fn request(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
    let mut reply = String::new();
    stream.write_all(request.as_bytes()).await.unwrap();
    timeout(TIMEOUT, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    reply
}

/// A service on its own port; it ends with the test's runtime.
async fn service() -> (String, Simulator) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let simulator = Simulator::new(simulator::Options::default(), Clock::system());
    let serving = simulator.clone();
    tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
    (endpoint, simulator)
}

/// An address on which no process listens.
async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn drain_delivers_queued_messages_and_removes_the_sockets() {
    let (endpoint, simulator) = service().await;
    let relay = Relay::start(&endpoint, "25s").await;
    relay.until_ready_says(200).await;
    for number in 0..20 {
        assert!(relay.send(&format!("{number}")).await.starts_with("HTTP/1.1 202 "));
    }
    let (socket, control) = (relay.dir.path().join("relay.sock"), relay.dir.path().join("private/control.sock"));
    assert!(socket.exists() && control.exists());
    relay.stop.send_replace(StopRequest::Drain);
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
    assert_eq!(simulator.counts().accepted, 20);
    assert!(!socket.exists() && !control.exists());
}

#[tokio::test]
async fn listeners_stay_open_during_a_drain_and_remaining_messages_are_counted() {
    let relay = Relay::start(&closed_port().await, "4s").await;
    assert!(relay.send("before").await.starts_with("HTTP/1.1 202 "));
    relay.stop.send_replace(StopRequest::Drain);
    relay.until_ready_says(503).await;
    assert!(relay.send("farewell").await.starts_with("HTTP/1.1 202 "));
    assert!(relay.get("/livez").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(relay.exit().await, Ok(Exit::Undelivered { queued: Some(2) }));
}

#[tokio::test]
async fn drain_waits_for_a_request_that_has_begun_and_sends_its_message() {
    let (endpoint, simulator) = service().await;
    let relay = Relay::start(&endpoint, "1h").await;
    let mut bot = UnixStream::connect(relay.dir.path().join("relay.sock")).await.unwrap();
    let farewell = message("farewell").replace("Connection: close\r\n", "");
    let (first, rest) = farewell.split_at(10);
    bot.write_all(first.as_bytes()).await.unwrap();
    relay.until_ready_says(200).await;
    relay.stop.send_replace(StopRequest::Drain);
    relay.until_ready_says(503).await;
    let reply = request(bot, rest).await;
    assert!(reply.starts_with("HTTP/1.1 202 ") && reply.contains("\r\nconnection: close\r\n"), "{reply}");
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
    assert_eq!(simulator.counts().accepted, 1);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_drain_of_an_empty_queue() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    let address = relay.bound.tcp.unwrap();
    let mut silent = UnixStream::connect(relay.dir.path().join("relay.sock")).await.unwrap();
    let mut used = TcpStream::connect(address).await.unwrap();
    used.write_all(b"GET /participant/queue HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.unwrap();
    let mut reply = [0; 1024];
    let length = timeout(TIMEOUT, used.read(&mut reply)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&reply[..length]).contains("\r\nkeep-alive: timeout=74\r\n"));
    relay.stop.send_replace(StopRequest::Drain);
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
    assert_eq!(timeout(TIMEOUT, silent.read(&mut reply)).await.unwrap().unwrap(), 0);
    assert_eq!(timeout(TIMEOUT, used.read(&mut reply)).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn short_drain_still_sends_for_most_of_its_grace() {
    let (endpoint, simulator) = service().await;
    let relay = Relay::start(&endpoint, "1h").await;
    relay.operate("POST", "/pause", "").await;
    for number in 0..5 {
        assert!(relay.send(&format!("{number}")).await.starts_with("HTTP/1.1 202 "));
    }
    relay.operate("POST", "/resume", "").await;
    let drained = relay.operate("POST", "/drain", r#"{"timeout": 2, "wait": true}"#).await;
    assert!(drained.ends_with(r#"{"queued":0}"#), "{drained}");
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
    assert_eq!(simulator.counts().accepted, 5);
}

#[tokio::test]
async fn waits_are_answered_when_nothing_is_left_to_send() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    relay.operate("POST", "/pause", "").await;
    let stream = UnixStream::connect(relay.dir.path().join("relay.sock")).await.unwrap();
    let waiting = message("waits").replace("Host: x", "Host: x\r\nPrefer: wait=50");
    let waiting = tokio::spawn(async move { request(stream, &waiting).await });
    while !relay.get("/metrics").await.contains("\nconnect_relay_queue_messages 1\n") {
        tokio::task::yield_now().await;
    }
    relay.stop.send_replace(StopRequest::Drain);
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 202 "));
    assert_eq!(relay.exit().await, Ok(Exit::Undelivered { queued: Some(1) }));
}

#[tokio::test]
async fn attempt_that_is_cut_puts_its_own_conversation_in_doubt_and_no_other() {
    for (grace, second) in [("1s", false), ("0s", false), ("1h", true)] {
        // Accepts requests and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), &format!("http://{}", silent.local_addr().unwrap()), grace);
        options.sender.in_flight_max = 1;
        let daemon = Daemon::open(options.clone(), Clock::system()).await.unwrap();
        let relay = Relay::run(dir, daemon);
        for token in ["one", "two", "three"] {
            let stream = UnixStream::connect(relay.dir.path().join("relay.sock")).await.unwrap();
            let sent = request(stream, &message(token).replace("Bearer: token", &format!("Bearer: {token}"))).await;
            assert!(sent.starts_with("HTTP/1.1 202 "), "{sent}");
        }
        let (mut attempt, _) = timeout(TIMEOUT, silent.accept()).await.unwrap().unwrap();
        timeout(TIMEOUT, attempt.read_u8()).await.unwrap().unwrap();
        relay.stop.send_replace(if second { StopRequest::Exit } else { StopRequest::Drain });
        let dir = relay.dir;
        let ended = timeout(TIMEOUT, relay.ended).await.unwrap().unwrap();
        assert_eq!(ended, Ok(Exit::Undelivered { queued: Some(3) }), "{grace}");

        let daemon = Daemon::open(options, Clock::system()).await.unwrap();
        assert_eq!(daemon.queue.overview().await.unwrap().answer_lost, 1, "{grace}");
        drop((daemon, dir));
    }
}

#[test]
fn closing_phase_is_a_tenth_of_the_grace_and_at_most_two_seconds() {
    for (grace, phase) in [(0, 0), (500, 50), (2000, 200), (20_000, 2000), (3_600_000, 2000)] {
        assert_eq!(closing(Duration::from_millis(grace)), Duration::from_millis(phase));
    }
}

#[tokio::test]
async fn missing_bots_socket_is_reported_by_probe_metric_and_status() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    let path = relay.dir.path().join("relay.sock");
    assert!(relay.get("/metrics").await.contains("\nconnect_relay_socket_present 1\n"));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "mine").unwrap();
    let ready = relay.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("the bots' socket is not at its path"), "{ready}");
    assert!(relay.get("/metrics").await.contains("\nconnect_relay_socket_present 0\n"));
    assert!(relay.get("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(relay.operate("GET", "/status", "").await.contains("Bots cannot connect"));
    std::fs::remove_file(&path).unwrap();
    relay.until_ready_says(200).await;
    assert!(relay.send("again").await.starts_with("HTTP/1.1 202 "));
    relay.stop.send_replace(StopRequest::Exit);
    assert_eq!(relay.exit().await, Ok(Exit::Undelivered { queued: Some(1) }));
}

#[tokio::test]
async fn request_to_exit_ends_a_drain_at_once() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    relay.send("left behind").await;
    relay.stop.send_replace(StopRequest::Drain);
    relay.until_ready_says(503).await;
    relay.stop.send_replace(StopRequest::Exit);
    assert_eq!(relay.exit().await, Ok(Exit::Undelivered { queued: Some(1) }));
}

#[tokio::test]
async fn pause_stops_sending_and_nothing_else() {
    let (endpoint, simulator) = service().await;
    let relay = Relay::start(&endpoint, "25s").await;
    let paused = relay.operate("POST", "/pause", r#"{"reason": "the instance moves"}"#).await;
    assert!(paused.starts_with("HTTP/1.1 200 ") && paused.contains(r#""reason":"the instance moves"}"#), "{paused}");
    assert!(relay.send("waits").await.starts_with("HTTP/1.1 202 "));
    assert!(relay.get("/metrics").await.contains("\nconnect_relay_paused 1\n"));
    assert!(relay.get("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(relay.get("/readyz").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(simulator.counts().accepted, 0);
    let resumed = relay.operate("POST", "/resume", "").await;
    assert!(resumed.starts_with("HTTP/1.1 200 ") && resumed.contains(r#""paused":null"#), "{resumed}");
    assert!(relay.get("/metrics").await.contains("\nconnect_relay_paused 0\n"));
    relay.stop.send_replace(StopRequest::Drain);
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
    assert_eq!(simulator.counts().accepted, 1);
}

#[tokio::test]
async fn drain_with_wait_returns_the_messages_left() {
    let (endpoint, simulator) = service().await;
    let relay = Relay::start(&endpoint, "25s").await;
    for number in 0..20 {
        assert!(relay.send(&format!("{number}")).await.starts_with("HTTP/1.1 202 "));
    }
    let drained = relay.operate("POST", "/drain", r#"{"wait": true}"#).await;
    assert!(drained.starts_with("HTTP/1.1 200 ") && drained.ends_with(r#"{"queued":0}"#), "{drained}");
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
    assert_eq!(simulator.counts().accepted, 20);
}

#[tokio::test]
async fn operators_drain_has_a_grace_of_its_own() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    assert!(relay.send("left").await.starts_with("HTTP/1.1 202 "));
    let asked = relay.operate("POST", "/drain", r#"{"timeout": 1}"#).await;
    assert!(asked.starts_with("HTTP/1.1 202 ") && asked.contains(r#""state":"draining""#), "{asked}");
    assert_eq!(relay.exit().await, Ok(Exit::Undelivered { queued: Some(1) }));
}

#[tokio::test]
async fn signal_cuts_a_long_drain_short() {
    let relay = Relay::start(&closed_port().await, "3s").await;
    assert!(relay.send("left").await.starts_with("HTTP/1.1 202 "));
    relay.operate("POST", "/drain", r#"{"timeout": 86400}"#).await;
    relay.until_ready_says(503).await;
    relay.stop.send_replace(StopRequest::Drain);
    assert_eq!(relay.exit().await, Ok(Exit::Undelivered { queued: Some(1) }));
}

#[tokio::test]
async fn drain_of_a_paused_relay_does_not_wait_for_its_queue() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    assert!(relay.send("left").await.starts_with("HTTP/1.1 202 "));
    relay.stop.send_replace(StopRequest::Drain);
    relay.until_ready_says(503).await;
    relay.operate("POST", "/pause", "").await;
    assert_eq!(relay.exit().await, Ok(Exit::Undelivered { queued: Some(1) }));
}

#[tokio::test]
async fn operators_api_reports_requests_that_it_does_not_know() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    for (method, path, body, status) in [
        ("GET", "/", "", 404),
        ("GET", "/pause", "", 405),
        ("POST", "/status", "", 405),
        ("HEAD", "/status", "", 200),
        ("POST", "/pause", r#"{"because": "x"}"#, 400),
        ("POST", "/pause", r#"{"reason": "two\nlines"}"#, 400),
        ("POST", "/drain", r#"{"timeout": -1}"#, 400),
        ("POST", "/drain", r#"{"timeout": 604801}"#, 400),
    ] {
        let reply = relay.operate(method, path, body).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path} {body}: {reply}");
        assert!(status < 400 || reply.contains(r#"{"Error":"connect-relay: "#), "{reply}");
    }
    assert!(relay.operate("GET", "/status", "").await.contains(r#""paused":null"#));
    relay.stop.send_replace(StopRequest::Exit);
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
}

#[tokio::test]
async fn remaining_messages_are_delivered_after_the_next_start() {
    let relay = Relay::start(&closed_port().await, "1h").await;
    relay.send("kept").await;
    relay.stop.send_replace(StopRequest::Exit);
    let dir = relay.dir;
    assert_eq!(relay.ended.await.unwrap(), Ok(Exit::Undelivered { queued: Some(1) }));

    let (endpoint, simulator) = service().await;
    let daemon = Daemon::open(options(dir.path(), &endpoint, "25s"), Clock::system()).await.unwrap();
    let relay = Relay::run(dir, daemon);
    relay.stop.send_replace(StopRequest::Drain);
    assert_eq!(relay.exit().await, Ok(Exit::Drained));
    assert_eq!(simulator.counts().accepted, 1);
}

#[tokio::test]
async fn unexpected_end_of_a_task_drains_and_ends_the_relay() {
    let (endpoint, simulator) = service().await;
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::open(options(dir.path(), &endpoint, "25s"), Clock::system()).await.unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    daemon.admin_tasks.spawn(async {
        let _ = ended.await;
        "a part of the test"
    });
    let relay = Relay::run(dir, daemon);
    relay.send("still delivered").await;
    drop(end);
    let failure = Failure::Failed("a part of the test ended unexpectedly".into());
    assert_eq!(relay.exit().await, Err(failure));
    assert_eq!(simulator.counts().accepted, 1);
}

#[tokio::test]
async fn two_relays_run_in_one_process_and_share_no_folder() {
    let endpoint = closed_port().await;
    let (one, other) = (Relay::start(&endpoint, "25s").await, Relay::start(&endpoint, "25s").await);
    one.send("one's own").await;
    assert!(one.get("/metrics").await.contains("\nconnect_relay_queue_messages 1\n"));
    assert!(other.get("/metrics").await.contains("\nconnect_relay_queue_messages 0\n"));

    let third = Daemon::open(options(one.dir.path(), &endpoint, "25s"), Clock::system()).await.unwrap_err();
    let Failure::Failed(why) = third else { panic!("{third:?}") };
    assert!(why.ends_with("private/queue: locked by another process"), "{why}");
}

#[tokio::test]
async fn taken_port_is_reported_before_the_store_is_touched() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = listener.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { admin: taken, ..options(dir.path(), "http://127.0.0.1:9", "25s") };
    let Failure::Failed(why) = Daemon::open(options, Clock::system()).await.unwrap_err() else { panic!() };
    assert!(why.starts_with(&format!("listen on {taken}: ")), "{why}");
    assert!(!dir.path().join("private/queue").exists());
    drop(listener);
}

#[tokio::test]
async fn the_process_and_the_build_are_measured() {
    let relay = Relay::start(&closed_port().await, "25s").await;
    let page = relay.get("/metrics").await;
    let info = format!(
        "connect_relay_info{{connect_instance=\"test\",region=\"eu-west-2\",version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    );
    for line in [&*info, "\nprocess_resident_memory_bytes ", "\nconnect_relay_config_reload_ok 1\n"] {
        assert!(page.contains(line), "{line}");
    }
}

#[tokio::test]
async fn watchdog_notifications_stop_only_if_a_restart_would_help() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
    let mut daemon = Daemon::open(options(dir.path(), "http://127.0.0.1:9", "1m"), clock.clone()).await.unwrap();
    let address = dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&address).unwrap();
    let received = || {
        let mut datagram = [0; 512];
        let length = manager.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    };
    let last_step = Arc::new(AtomicU64::new(clock.awake().0));
    let watchdog = Watchdog {
        service_manager: ServiceManager::at(&address, Some(TIMEOUT)).unwrap(),
        health: Health::new(Arc::clone(&last_step)),
        queue: daemon.queue.clone(),
        budget: daemon.budget.clone(),
        clock: clock.clone(),
    };
    watchdog.health.set(State::Ready);
    watchdog.budget.pacer().ended(clock.now(), clock.now(), Signal::Down(RetryHint::default()));
    watchdog.notify().await;
    assert_eq!(received(), "STATUS=ready: 0 queued, at 9.0 a second; Connect accepts no messages\nWATCHDOG=1");
    daemon.service_manager = watchdog.service_manager.clone();
    daemon.report_backlog().await;
    assert_eq!(received(), "STATUS=draining: 0 queued, at 9.0 a second; Connect accepts no messages");
    last_step.store(clock.awake().0 - 61_000, Ordering::Relaxed);
    watchdog.notify().await;
    assert_eq!(received(), "STATUS=hangs: the sender's loop has made no step for 61 s");
}
