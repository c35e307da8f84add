//! The bots: one task for each conversation. It opens the conversation, writes its messages one after the other over
//! the relay's Unix socket, sometimes repeats one as an SDK does that missed a reply, and sometimes disconnects at the
//! end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::cli::client;

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
/// The time-out for a reply.
const ANSWER: Duration = Duration::from_secs(30);
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
    let token = open(&socket).await?;
    record.lock().conversations[number].token.clone_from(&token);

    for place in 0..messages {
        let content = format!("{} ({} of {messages})", PHRASES[place % PHRASES.len()], place + 1);
        let client_token = Uuid::new_v4().to_string();
        let body = json!({"ContentType": "text/plain", "Content": content, "ClientToken": client_token});
        record.lock().conversations[number].sent.push(Sent { client_token, content, acknowledged: false });
        let reply = post(&socket, "message", &token, &body).await?;
        {
            let mut notes = record.lock();
            notes.copied += u64::from(reply.copied);
            notes.conversations[number].sent[place].acknowledged = true;
            notes.acknowledged += 1;
        }
        if (number + place) % REPEAT_EVERY == REPEAT_EVERY - 1 {
            post(&socket, "message", &token, &body).await?;
            record.lock().repeats += 1;
        }
        sleep(Duration::from_millis(rng.u64(..PAUSE_MILLIS_MAX))).await;
    }
    if number % DISCONNECT_EVERY == DISCONNECT_EVERY - 1 {
        post(&socket, "disconnect", &token, &json!({"ClientToken": Uuid::new_v4().to_string()})).await?;
        record.lock().disconnects += 1;
    }
    Ok(())
}

/// CreateParticipantConnection, which the relay forwards at once: the request itself may be throttled or fail.
async fn open(relay: &Path) -> anyhow::Result<String> {
    let body = json!({"Type": ["CONNECTION_CREDENTIALS"], "ConnectParticipant": true});
    let participant = format!("participant-{}", Uuid::new_v4());
    let reply = post(relay, "connection", &participant, &body).await?;
    let token = reply.body["ConnectionCredentials"]["ConnectionToken"].as_str();
    Ok(token.context("create a connection: the reply holds no ConnectionToken")?.to_owned())
}

/// A reply of the relay.
struct Reply {
    body: Value,
    /// True if the fleet has the message too.
    copied: bool,
}

/// Repeats a request until it is accepted, as an SDK does: after 429 and 5xx.
async fn post(relay: &Path, operation: &str, bearer: &str, body: &Value) -> anyhow::Result<Reply> {
    let mut refused = String::new();
    for _ in 0..TRIES_MAX {
        match ask(relay, operation, bearer, body).await {
            Ok((status, reply)) if status.is_success() => return Ok(reply),
            Ok((status, reply)) if status.as_u16() == 429 || status.is_server_error() => {
                refused = format!("{status} {}", reply.body);
            }
            Ok((status, reply)) => bail!("post {operation}: {status} {}", reply.body),
            Err(error) => refused = format!("{error:#}"),
        }
        sleep(Duration::from_millis(250)).await;
    }
    bail!("post {operation}: gave up after {TRIES_MAX} tries: {refused}")
}

async fn ask(relay: &Path, operation: &str, bearer: &str, body: &Value) -> anyhow::Result<(StatusCode, Reply)> {
    let request = Request::post(format!("/participant/{operation}"))
        .header("content-type", "application/json")
        .header("x-amz-bearer", bearer)
        .body(Full::from(body.to_string()))?;
    let reply = client::send(relay, request, ANSWER).await?;
    let copied = reply.headers().get("relay-durable").is_some_and(|durable| durable == "fleet");
    Ok((reply.status(), Reply { body: serde_json::from_slice(reply.body()).unwrap_or(Value::Null), copied }))
}
