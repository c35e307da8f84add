//! The bots: one task for each conversation. It opens the conversation, writes its messages one after the other over
//! the relay's Unix socket, sometimes repeats one as an SDK does that missed a reply, and sometimes disconnects at the
//! end.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

/// The submitted messages of one conversation, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversation {
    /// The ConnectionToken of its messages.
    pub token: String,
    /// Its messages.
    pub sent: Vec<Sent>,
}

/// One message.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Its idempotency token.
    pub client_token: String,
    /// Its contents.
    pub content: String,
    /// True if the relay replied that it is on disk.
    pub acknowledged: bool,
}

/// The shared record of all bots: each bot records its actions at once, so that those of a stopped bot are known too.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<BotRecord>);

/// The notes.
#[derive(Debug, Default)]
pub(super) struct BotRecord {
    /// Each bot's conversation.
    pub conversations: Vec<Conversation>,
    /// Messages acknowledged by the relay.
    pub acknowledged: u64,
    /// Messages submitted once more with the same ClientToken.
    pub repeats: u64,
    /// Disconnects acknowledged by the relay.
    pub disconnects: u64,
    /// Messages acknowledged with `Relay-Durable: fleet`.
    pub copied: u64,
}

impl Record {
    /// An empty record for this number of conversations.
    pub(super) fn new(conversations: usize) -> Arc<Record> {
        let conversations = vec![Conversation::default(); conversations];
        Arc::new(Record(Mutex::new(BotRecord { conversations, ..BotRecord::default() })))
    }

    /// Locks the notes for a short access; the guard is never kept across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, BotRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of one bot.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The relay's socket for bots.
    pub socket: PathBuf,
    /// The number of the conversation, from 0.
    pub number: usize,
    /// Messages to write.
    pub messages: usize,
    /// The seed of its random generator.
    pub seed: u64,
}

/// The time between the starts of two conversations.
const ARRIVALS: Duration = Duration::from_millis(100);
/// The longest pause between two messages of a bot, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 300;
/// One message in this many is submitted twice.
const REPEAT_EVERY: usize = 9;
/// One conversation in this many is disconnected at the end.
const DISCONNECT_EVERY: usize = 4;
/// The most attempts of a bot that is throttled, gets a 5xx or finds no relay: a relay that takes over from one that was
/// killed waits for its lease.
const TRIES_MAX: u32 = 240;

const PHRASES: [&str; 8] = [
    "Hello! I am the shop's assistant. How can I help?",
    "Let me look that up for you.",
    "I have found your order.",
    "It left our warehouse this morning.",
    "The parcel should be with you tomorrow before noon.",
    "Would you like a message when it is out for delivery?",
    "Done. Is there anything else?",
    "Thank you for your patience!",
];

/// Executes a plan.
pub(super) async fn run(plan: Plan, record: Arc<Record>) -> anyhow::Result<()> {
    let Plan { socket, number, messages, seed } = plan;
    let mut rng = fastrand::Rng::with_seed(seed ^ number as u64);
    sleep(ARRIVALS * u32::try_from(number).unwrap_or(u32::MAX)).await;
    let mut relay = BotClient { socket, client: None, tasks: JoinSet::new() };
    let token = open(&mut relay).await?;
    record.lock().conversations[number].token.clone_from(&token);

    for place in 0..messages {
        let content = format!("{} ({} of {messages})", PHRASES[place % PHRASES.len()], place + 1);
        let client_token = Uuid::new_v4().to_string();
        let body = json!({"ContentType": "text/plain", "Content": content, "ClientToken": client_token});
        record.lock().conversations[number].sent.push(Sent { client_token, content, acknowledged: false });
        let reply = relay.post("message", &token, &body).await?;
        {
            let mut notes = record.lock();
            notes.copied += u64::from(reply.copied);
            notes.conversations[number].sent[place].acknowledged = true;
            notes.acknowledged += 1;
        }
        if (number + place) % REPEAT_EVERY == REPEAT_EVERY - 1 {
            relay.post("message", &token, &body).await?;
            record.lock().repeats += 1;
        }
        sleep(Duration::from_millis(rng.u64(..PAUSE_MILLIS_MAX))).await;
    }
    if number % DISCONNECT_EVERY == DISCONNECT_EVERY - 1 {
        relay.post("disconnect", &token, &json!({"ClientToken": Uuid::new_v4().to_string()})).await?;
        record.lock().disconnects += 1;
    }
    Ok(())
}

/// CreateParticipantConnection, which the relay forwards at once: the request itself may be throttled or fail.
async fn open(relay: &mut BotClient) -> anyhow::Result<String> {
    let body = json!({"Type": ["CONNECTION_CREDENTIALS"], "ConnectParticipant": true});
    let participant = format!("participant-{}", Uuid::new_v4());
    let reply = relay.post("connection", &participant, &body).await?;
    let token = reply.body["ConnectionCredentials"]["ConnectionToken"].as_str();
    Ok(token.context("create a connection: the reply holds no ConnectionToken")?.to_owned())
}

/// A reply of the relay.
struct Reply {
    body: Value,
    /// True if the fleet has the message too.
    copied: bool,
}

/// A bot's connection to the relay.
struct BotClient {
    socket: PathBuf,
    client: Option<SendRequest<Full<Bytes>>>,
    tasks: JoinSet<()>,
}

impl BotClient {
    /// Repeats a request until it is accepted, as an SDK does: after 429 and 5xx.
    async fn post(&mut self, operation: &str, bearer: &str, body: &Value) -> anyhow::Result<Reply> {
        let mut refused = String::new();
        for _ in 0..TRIES_MAX {
            match self.ask(operation, bearer, body).await {
                Ok((status, reply)) if status.is_success() => return Ok(reply),
                Ok((status, reply)) if status.as_u16() == 429 || status.is_server_error() => {
                    refused = format!("{status} {}", reply.body);
                }
                Ok((status, reply)) => bail!("post {operation}: {status} {}", reply.body),
                Err(error) => {
                    self.client = None;
                    refused = format!("{error:#}");
                }
            }
            sleep(Duration::from_millis(250)).await;
        }
        bail!("post {operation}: gave up after {TRIES_MAX} tries: {refused}")
    }

    async fn ask(&mut self, operation: &str, bearer: &str, body: &Value) -> anyhow::Result<(StatusCode, Reply)> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/participant/{operation}"))
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("x-amz-bearer", bearer)
            .body(Full::from(body.to_string()))?;
        let client = self.client().await?;
        client.ready().await.context("write to the relay")?;
        let response = client.send_request(request).await.context("read the relay's reply")?;
        let status = response.status();
        let copied = response.headers().get("relay-durable").is_some_and(|durable| durable == "fleet");
        let body = response.into_body().collect().await.context("read the relay's reply")?.to_bytes();
        Ok((status, Reply { body: serde_json::from_slice(&body).unwrap_or(Value::Null), copied }))
    }

    async fn client(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        if self.client.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = UnixStream::connect(&self.socket)
                .await
                .with_context(|| format!("connect to {}", self.socket.display()))?;
            let (client, connection) = handshake(TokioIo::new(stream)).await?;
            self.tasks.spawn(async move {
                let _ = connection.await;
            });
            self.client = Some(client);
        }
        self.client.as_mut().context("connect to the relay")
    }
}
