//! The simulator from a client's view: a real listener, real requests.

use std::collections::HashSet;
use std::fs::File;
use std::future::pending;

use hyper::client::conn::http1::{SendRequest, handshake};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;

const ENOUGH: Duration = Duration::from_secs(30);

/// A simulator that is being served, and one client's connection to it.
struct Rig {
    simulator: Simulator,
    clock: Clock,
    port: u16,
    client: SendRequest<Full<Bytes>>,
    tasks: JoinSet<()>,
    /// The hint of the last reply.
    retry_after: Option<String>,
}

/// A reply, or `None` if the connection was cut.
type Answer = Option<(StatusCode, Option<String>, Value)>;

fn faulty(faults: Faults) -> Options {
    Options { faults, ..Options::default() }
}

impl Rig {
    async fn new(options: Options) -> Rig {
        let clock = Clock::system();
        let simulator = Simulator::new(Options { keep_accepted: true, ..options }, clock.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        let served = simulator.clone();
        tasks.spawn(async move { served.serve(listener, pending()).await });
        let client = Rig::connect(port, &mut tasks).await;
        Rig { simulator, clock, port, client, tasks, retry_after: None }
    }

    async fn connect(port: u16, tasks: &mut JoinSet<()>) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (client, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tasks.spawn(async move {
            let _ = connection.await;
        });
        client
    }

    async fn ask(&mut self, method: Method, path: &str, bearer: &str, body: String) -> Answer {
        if self.client.is_closed() || self.client.ready().await.is_err() {
            self.client = Rig::connect(self.port, &mut self.tasks).await;
        }
        let mut request = hyper::Request::builder().method(method).uri(path).header("host", "localhost");
        if !bearer.is_empty() {
            request = request.header("x-amz-bearer", bearer);
        }
        let request = request.body(Full::from(body)).unwrap();
        let response = timeout(ENOUGH, self.client.send_request(request)).await.unwrap().ok()?;
        assert!(response.headers().contains_key("x-amzn-requestid"));
        self.retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let error = response.headers().get("x-amzn-errortype").map(|value| value.to_str().unwrap().to_owned());
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Some((status, error, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    async fn post(&mut self, operation: &str, bearer: &str, body: Value) -> Answer {
        self.ask(Method::POST, &format!("/participant/{operation}"), bearer, body.to_string()).await
    }

    async fn send(&mut self, bearer: &str, client_token: &str) -> Answer {
        let body = json!({"ContentType": "text/plain", "Content": "hello", "ClientToken": client_token});
        self.post("message", bearer, body).await
    }

    async fn open(&mut self, participant: &str) -> String {
        let body = json!({"Type": ["CONNECTION_CREDENTIALS"], "ConnectParticipant": true});
        let (status, _, reply) = self.post("connection", participant, body).await.unwrap();
        assert_eq!(status, 200, "{reply}");
        reply["ConnectionCredentials"]["ConnectionToken"].as_str().unwrap().to_owned()
    }
}

fn status(answer: &Answer) -> u16 {
    answer.as_ref().map_or(0, |(status, ..)| status.as_u16())
}

fn refusal(answer: Answer) -> (u16, String, String) {
    let (status, error, body) = answer.unwrap();
    let text = body["Message"].as_str().or(body["message"].as_str()).unwrap().to_owned();
    (status.as_u16(), error.unwrap(), text)
}

#[tokio::test]
async fn accepted_message_is_in_the_ledger() {
    let mut rig = Rig::new(Options::default()).await;
    let (status, error, body) = rig.send("token", "1").await.unwrap();
    assert_eq!((status.as_u16(), error), (200, None));
    let entries = rig.simulator.accepted();
    assert_eq!(entries.len(), 1);
    assert_eq!(body, json!({"Id": entries[0].id, "AbsoluteTime": entries[0].absolute_time}));
    assert!(entries[0].absolute_time.ends_with('Z'));
    let written = serde_json::to_value(&entries[0]).unwrap();
    assert_eq!(written["ClientToken"], "1");
    assert_eq!(written["ConnectionToken"], "token");
    assert_eq!(written["ContentType"], "text/plain");
    assert_eq!(written["Content"], "hello");
}

#[tokio::test]
async fn ledger_file_has_a_line_for_each_message_in_the_order_of_acceptance() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.ndjson");
    let mut rig = Rig::new(Options { ledger: Some(File::create(&path).unwrap()), ..Options::default() }).await;
    for client_token in ["1", "2", "2", "3"] {
        assert_eq!(status(&rig.send("token", client_token).await), 200);
    }
    let text = std::fs::read_to_string(path).unwrap();
    let tokens: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["ClientToken"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(tokens, ["1", "2", "3"]);
}

#[tokio::test]
async fn repeat_gets_the_first_answer_and_no_second_entry() {
    let mut rig = Rig::new(Options::default()).await;
    let first = rig.send("token", "1").await;
    rig.clock.skip(Duration::from_secs(3600));
    assert_eq!(rig.send("token", "1").await, first);
    assert_ne!(rig.send("other", "1").await, first, "another token's message is another message");
    assert_ne!(rig.send("token", "").await, rig.send("token", "").await, "without a ClientToken there is no repeat");
    let counts = rig.simulator.counts();
    assert_eq!((counts.accepted, counts.duplicates), (4, 1));
}

#[tokio::test]
async fn over_the_quota_is_429_without_a_hint_and_takes_nothing() {
    let mut rig = Rig::new(faulty(Faults { rate: 1.0, burst: 2, ..Faults::default() })).await;
    assert_eq!(status(&rig.send("token", "1").await), 200);
    assert_eq!(status(&rig.send("token", "1").await), 200, "a repeat takes its share as well");
    for _ in 0..5 {
        let expected = (429, "ThrottlingException".to_owned(), "Rate exceeded".to_owned());
        assert_eq!(refusal(rig.send("token", "2").await), expected);
    }
    rig.clock.skip(Duration::from_secs(1));
    assert_eq!(status(&rig.send("token", "2").await), 200);
    assert_eq!(rig.simulator.counts().throttled, 5);
}

#[tokio::test]
async fn each_connection_is_a_new_token_of_the_same_participant() {
    let mut rig = Rig::new(Options::default()).await;
    let (old, new, other) = (rig.open("alice").await, rig.open("alice").await, rig.open("bob").await);
    assert_eq!(HashSet::from([&old, &new, &other]).len(), 3);
    assert_eq!(status(&rig.post("disconnect", &new, json!({})).await), 200);
    for token in [&old, &new] {
        let expected = (403, "AccessDeniedException".to_owned(), "Access denied".to_owned());
        assert_eq!(refusal(rig.send(token, "1").await), expected);
        assert_eq!(refusal(rig.post("disconnect", token, json!({})).await), expected);
    }
    assert_eq!(status(&rig.post("connection", "alice", json!({})).await), 403);
    assert_eq!(status(&rig.send(&other, "1").await), 200);
    let counts = rig.simulator.counts();
    assert_eq!((counts.connections, counts.disconnects, counts.denied), (3, 1, 5));
}

#[tokio::test]
async fn websocket_is_returned_only_if_requested() {
    let mut rig = Rig::new(Options::default()).await;
    for (types, credentials, websocket) in [
        (json!(["CONNECTION_CREDENTIALS"]), true, false),
        (json!(["WEBSOCKET", "CONNECTION_CREDENTIALS"]), true, true),
        (json!(["WEBSOCKET"]), false, true),
        (json!([]), true, false),
    ] {
        let (_, _, body) = rig.post("connection", "alice", json!({ "Type": types })).await.unwrap();
        assert_eq!(body["ConnectionCredentials"]["Expiry"].is_string(), credentials, "{body}");
        assert_eq!(body["Websocket"]["Url"].is_string(), websocket, "{body}");
    }
}

#[tokio::test]
async fn missing_and_denied_and_old_tokens_are_403() {
    let faults = Faults { deny: vec!["thief".to_owned()], rate: 1e9, ..Faults::default() };
    let options = Options { token_life: Some(Duration::from_secs(60)), ..faulty(faults) };
    let mut rig = Rig::new(options).await;
    let explicit = (403, "AccessDeniedException".to_owned(), service_text());
    assert_eq!(status(&rig.send("", "1").await), 403);
    assert_eq!(refusal(rig.send("thief", "1").await), explicit);
    assert_eq!(refusal(rig.post("connection", "thief", json!({})).await), explicit);
    let issued = rig.open("alice").await;
    assert_eq!(status(&rig.send("brought along", "1").await), 200);
    rig.clock.skip(Duration::from_secs(61));
    assert_eq!(refusal(rig.send("brought along", "2").await), explicit);
    assert_eq!(refusal(rig.send(&issued, "2").await), explicit);
    let renewed = rig.open("alice").await;
    assert_eq!(status(&rig.send(&renewed, "2").await), 200);
}

fn service_text() -> String {
    "User is not authorized to access this resource with an explicit deny".to_owned()
}

#[tokio::test]
async fn malformed_is_400_and_unknown_operations_are_the_gateways_403() {
    let mut rig = Rig::new(Options::default()).await;
    for body in ["", "{", "[]", r#"{"ContentType":"text/plain","Content":""}"#] {
        let (status, code, _) = refusal(rig.ask(Method::POST, "/participant/message", "token", body.to_owned()).await);
        assert_eq!((status, &*code), (400, "ValidationException"), "{body}");
    }
    for (method, path) in [
        (Method::POST, "/participant/attachment"),
        (Method::GET, "/participant/message"),
        (Method::POST, "/"),
        (Method::POST, "/ledger"),
    ] {
        let (status, code, text) = refusal(rig.ask(method, path, "token", "{}".to_owned()).await);
        assert_eq!((status, &*code), (403, "MissingAuthenticationTokenException"), "{path}");
        assert_eq!(text, "Missing Authentication Token");
    }
    let long = "x".repeat(1001);
    assert_eq!(status(&rig.send(&long, "1").await), 400);
    let large = rig.ask(Method::POST, "/participant/message", "token", " ".repeat(BODY_BYTES_MAX + 1)).await;
    assert!(matches!(status(&large), 413 | 0), "refused, or cut while it was being sent");
    assert_eq!(rig.simulator.counts().rejected, 9);
}

#[tokio::test]
async fn events_share_the_quota_and_are_in_no_ledger() {
    let mut rig = Rig::new(faulty(Faults { rate: 0.0, burst: 2, ..Faults::default() })).await;
    let typing = json!({"ContentType": "application/vnd.amazonaws.connect.event.typing", "ClientToken": "1"});
    let first = rig.post("event", "token", typing.clone()).await;
    assert_eq!(status(&first), 200);
    assert_eq!(status(&rig.send("token", "1").await), 200, "a message is not a repeat of an event");
    assert_eq!(status(&rig.post("event", "token", typing).await), 429);
    let counts = rig.simulator.counts();
    assert_eq!((counts.events, counts.accepted, rig.simulator.accepted().len()), (1, 1, 1));
}

#[tokio::test]
async fn failed_request_accepts_nothing() {
    let mut rig = Rig::new(faulty(Faults { error_rate: 1.0, rate: 1e9, ..Faults::default() })).await;
    let mut met = Vec::new();
    for _ in 0..4 {
        let (status, code, _) = refusal(rig.send("token", "1").await);
        met.push((status, code));
    }
    let internal = (500, "InternalServerException".to_owned());
    let unavailable = (503, "ServiceUnavailableException".to_owned());
    assert_eq!(met, [internal.clone(), unavailable.clone(), internal, unavailable]);
    assert_eq!(rig.simulator.counts(), Counts { errors: 4, ..Counts::default() });
}

#[tokio::test]
async fn lost_reply_is_a_cut_connection_after_acceptance() {
    let mut rig = Rig::new(faulty(Faults { lost_reply_rate: 1.0, ..Faults::default() })).await;
    assert_eq!(rig.send("token", "1").await, None);
    assert_eq!(rig.send("token", "1").await, None);
    let counts = rig.simulator.counts();
    assert_eq!((counts.accepted, counts.duplicates, counts.lost_replies), (1, 1, 2));
}

#[tokio::test]
async fn same_seed_makes_the_same_faults() {
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let faults = Faults { error_rate: 0.3, lost_reply_rate: 0.3, rate: 1e9, ..Faults::default() };
        let options = Options { seed, ..faulty(faults) };
        let mut rig = Rig::new(options).await;
        let mut faults = Vec::new();
        for request in 0..40 {
            faults.push(status(&rig.send("token", &request.to_string()).await));
        }
        runs.push(faults);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    for met in [200, 500, 503, 0] {
        assert!(runs[0].contains(&met), "{met} is met within 40 requests");
    }
}

#[tokio::test]
async fn latency_and_jitter_keep_to_their_bounds() {
    let (latency, jitter) = (Duration::from_millis(30), Duration::from_millis(10));
    let simulator = Simulator::new(faulty(Faults { latency, jitter, ..Faults::default() }), Clock::system());
    for _ in 0..1000 {
        let both_ways = simulator.leg().unwrap() * 2;
        assert!(both_ways >= latency - jitter && both_ways <= latency + jitter, "{both_ways:?}");
    }
    let mut rig = Rig::new(faulty(Faults { latency, ..Faults::default() })).await;
    let asked = rig.clock.now();
    assert_eq!(status(&rig.send("token", "1").await), 200);
    assert!(rig.clock.now().since(asked) >= latency);
}

#[tokio::test]
async fn ledger_route_gives_the_counts_and_costs_no_quota() {
    let mut rig = Rig::new(faulty(Faults { rate: 0.0, burst: 1, error_rate: 0.0, ..Faults::default() })).await;
    for _ in 0..3 {
        assert_eq!(status(&rig.ask(Method::GET, "/ledger", "", String::new()).await), 200);
    }
    rig.send("token", "1").await;
    rig.send("token", "2").await;
    let (_, _, counts) = rig.ask(Method::GET, "/ledger", "", String::new()).await.unwrap();
    assert_eq!(
        counts,
        json!({"accepted": 1, "duplicates": 0, "throttled": 1, "denied": 0, "rejected": 0, "errors": 0,
               "lost_replies": 0, "connections": 0, "events": 0, "disconnects": 0})
    );
}

#[tokio::test]
async fn stop_cuts_connections_and_another_listener_continues_where_it_was() {
    let simulator = Simulator::new(Options::default(), Clock::system());
    for client_token in ["1", "1", "2"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = simulator.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move { served.serve(listener, async { drop(stopped.await) }).await });
        let mut tasks = JoinSet::new();
        let client = Rig::connect(port, &mut tasks).await;
        let mut rig =
            Rig { simulator: simulator.clone(), clock: Clock::system(), port, client, tasks, retry_after: None };
        assert_eq!(status(&rig.send("token", client_token).await), 200);
        stop.send(()).unwrap();
        timeout(ENOUGH, serving.join_next()).await.unwrap();
        let ended = timeout(ENOUGH, rig.tasks.join_next()).await.unwrap();
        assert!(ended.is_some(), "the client's connection ends");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "no process listens any more");
    }
    assert_eq!(simulator.counts().accepted, 2);
}

#[tokio::test]
async fn faults_are_switched_at_run_time_and_restored() {
    let mut rig = Rig::new(faulty(Faults { deny: vec!["bad".into()], ..Faults::default() })).await;
    let (status, _, start) = rig.ask(Method::GET, "/faults", "", String::new()).await.unwrap();
    assert_eq!((status.as_u16(), &start["Outage"], &start["Deny"]), (200, &json!(false), &json!(["bad"])));
    for (change, expected, hint) in [
        (json!({"Outage": true}), Some((503, "ServiceUnavailableException")), None),
        (json!({"RetryAfter": 7}), Some((503, "ServiceUnavailableException")), Some("7")),
        (json!({"Outage": false, "Throttle": true}), Some((429, "ThrottlingException")), Some("7")),
        (json!({"Throttle": false, "Deny": ["a"]}), Some((403, "AccessDeniedException")), None),
        (json!({"Deny": [], "LostReplyRate": 1}), None, None),
        (json!({"LostReplyRate": 0, "ErrorRate": 1}), Some((500, "InternalServerException")), None),
        (json!({"ErrorRate": 0, "Rate": 0, "Burst": 0}), Some((429, "ThrottlingException")), Some("7")),
    ] {
        let (status, _, shown) = rig.ask(Method::POST, "/faults", "", change.to_string()).await.unwrap();
        assert_eq!(status, 200, "{shown}");
        for (name, value) in change.as_object().unwrap() {
            assert!(shown[name] == *value || shown[name].as_f64() == value.as_f64(), "{name} is {}", shown[name]);
        }
        let answer = rig.send("a", "c").await;
        let found = answer.as_ref().map(|(status, code, _)| (status.as_u16(), code.as_deref().unwrap()));
        assert_eq!(found, expected, "{change}");
        if expected.is_some() {
            assert_eq!(rig.retry_after.as_deref(), hint, "{change}");
        }
    }
    let (status, code, wrong) = rig.ask(Method::POST, "/faults", "", r#"{"Outage":1}"#.into()).await.unwrap();
    assert_eq!((status.as_u16(), code.as_deref()), (400, Some("ValidationException")), "{wrong}");
    let (_, _, restored) = rig.ask(Method::DELETE, "/faults", "", String::new()).await.unwrap();
    assert_eq!(restored, start);
    assert_eq!(rig.send("a", "c").await.unwrap().0, 200);
    assert_eq!(rig.send("bad", "c").await.unwrap().0, 403);
}

#[tokio::test]
async fn latency_is_switched_at_run_time() {
    let mut rig = Rig::new(Options::default()).await;
    rig.ask(Method::POST, "/faults", "", json!({"Latency": "1h"}).to_string()).await.unwrap();
    let body = json!({"ContentType": "text/plain", "Content": "hello"});
    {
        let mut asking = std::pin::pin!(rig.post("message", "a", body));
        // It is sent, and an hour from its reply.
        assert!(timeout(Duration::from_millis(50), &mut asking).await.is_err());
    }
    assert_eq!(rig.simulator.counts().accepted, 0, "it is on its way");
    assert!(rig.simulator.leg().unwrap() > Duration::from_secs(1799));
}

#[tokio::test]
async fn transcript_has_the_messages_of_one_chat_in_pages() {
    let mut rig = Rig::new(faulty(Faults { rate: 1e6, burst: 1000, ..Faults::default() })).await;
    let token = rig.open("participant").await;
    for number in 0..5 {
        let body = json!({"ContentType": "text/plain", "Content": format!("line {number}")});
        assert_eq!(rig.post("message", &token, body).await.unwrap().0, 200);
        assert_eq!(rig.send("another chat", &format!("c-{number}")).await.unwrap().0, 200);
    }
    rig.post("event", &token, json!({"ContentType": "application/vnd.amazonaws.connect.event.typing"})).await.unwrap();
    // A renewed token is of the same chat.
    let token = rig.open("participant").await;
    let lines = |page: &Value| {
        let items = page["Transcript"].as_array().unwrap();
        items.iter().map(|item| item["Content"].as_str().unwrap_or("typing").to_owned()).collect::<Vec<_>>()
    };
    let (status, _, page) = rig.post("transcript", &token, json!({})).await.unwrap();
    assert_eq!(status, 200, "{page}");
    assert_eq!(lines(&page), ["line 0", "line 1", "line 2", "line 3", "line 4", "typing"]);
    assert_eq!((&page["Transcript"][0]["Type"], &page["Transcript"][5]["Type"]), (&json!("MESSAGE"), &json!("EVENT")));
    assert_eq!(page.get("NextToken"), None);
    let (_, _, last) = rig.post("transcript", &token, json!({"MaxResults": 4})).await.unwrap();
    assert_eq!(lines(&last), ["line 2", "line 3", "line 4", "typing"], "the newest, oldest first");
    let (_, _, first) =
        rig.post("transcript", &token, json!({"MaxResults": 4, "NextToken": last["NextToken"]})).await.unwrap();
    assert_eq!((lines(&first), first.get("NextToken")), (vec!["line 0".to_owned(), "line 1".to_owned()], None));
    let forward = json!({"MaxResults": 2, "ScanDirection": "FORWARD", "SortOrder": "DESCENDING"});
    let (_, _, page) = rig.post("transcript", &token, forward).await.unwrap();
    assert_eq!(lines(&page), ["line 1", "line 0"]);
    for wrong in [json!({"MaxResults": 101}), json!({"SortOrder": "UP"}), json!({"NextToken": "x"})] {
        let (status, code, _) = rig.post("transcript", &token, wrong).await.unwrap();
        assert_eq!((status.as_u16(), code.as_deref()), (400, Some("ValidationException")));
    }
    assert_eq!(rig.post("transcript", "", json!({})).await.unwrap().0, 403);
}
