//! A stream of JetStream: the requests that shipping needs, as JSON over the connection.
//!
//! Every question about the stream's state goes to its leader (`STREAM.INFO`, `STREAM.MSG.GET`): another replica may lag. A
//! server that is cut off from the majority answers too: as the leader that it was for about 20 s, then without one
//! (`findings/jetstream-info-without-majority.sh`). So only a stored record proves that the relay owns the stream.
//! The relay publishes with `Nats-Expected-Last-Sequence` and `Nats-Expected-Stream` alone. With a `Nats-Msg-Id` the
//! server would acknowledge a record of a fenced relay.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, HeaderMap, Request};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::Connector;
use super::options::{Server, Shape};
use super::subject::part;
use crate::ship::record::{self, Codec, Head};
use crate::ship::standing::{self, Records, Standing};

/// The time for an answer about a stream. Longer than for a publish: a new stream needs an election.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The oldest server that works: before it, a leader's sequence could run ahead of what it had stored.
pub const OLDEST_SERVER: (u32, u32) = (2, 14);
/// About the bytes of the records that are requested at once, and the most records: each request costs the server some
/// 50 us, so the answers must overlap, but a snapshot's records are long.
const READ_AHEAD_BYTES: usize = 1 << 20;
const READ_AHEAD: u64 = 64;
/// The bytes of a request besides the record: subject, reply subject, headers.
const REQUEST_BYTES: usize = 1 << 10;

/// The name of the relay's identity in the stream's metadata.
pub const IDENTITY: &str = "connect-relay-identity";

const NOT_FOUND_STREAM: u64 = 10059;
const NOT_FOUND_MESSAGE: u64 = 10037;
const WRONG_SEQUENCE: u64 = 10071;
const FULL: u64 = 10077;

/// A stream, over one connection.
#[derive(Clone, Debug)]
pub struct Stream {
    client: Client,
    name: String,
    subject: String,
}

/// The answer to a published record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is stored at this sequence.
    Stored(u64),
    /// It was refused: this is the last sequence.
    Refused(u64),
    /// It may be stored: an error.
    Doubt(String),
    /// It may be stored: no answer.
    Silence(String),
}

/// The state of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// The first sequence and the last one.
    pub first: u64,
    /// The last sequence, also if its record was removed.
    pub last: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An error about a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// This relay, with its configuration, never works with these servers or with this stream.
    #[error("{0}")]
    Unsupported(String),
    /// A record is damaged, or what it has cannot be written.
    #[error("{0}")]
    Unreadable(String),
    /// Anything else, which may pass.
    #[error("{0}")]
    Failed(String),
}

impl StreamError {
    pub(super) fn failed(text: impl std::fmt::Display) -> StreamError {
        StreamError::Failed(text.to_string())
    }
}

impl From<record::Unreadable> for StreamError {
    fn from(error: record::Unreadable) -> StreamError {
        match error {
            record::Unreadable::Version(_) | record::Unreadable::Sealed => StreamError::Unsupported(error.to_string()),
            record::Unreadable::Damaged => StreamError::Unreadable(error.to_string()),
        }
    }
}

/// A record, and how the stream has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The sequence.
    pub sequence: u64,
    /// The claim under whose subject it is, if it is provisional.
    pub provisional: Option<u64>,
    /// The record.
    pub record: Vec<u8>,
}

/// An answer with a record.
#[derive(Deserialize)]
struct Got<'a> {
    #[serde(borrow)]
    message: Option<Message<'a>>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    subject: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    /// In base64. Borrowed: a copy of a long record would be made for each.
    #[serde(borrow, default)]
    data: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The subject of the provisional records of a claim.
fn provisional(subject: &str, claim: u64) -> String {
    format!("{subject}.{claim:016x}")
}

/// The name of a relay's stream. Neither part contains `=_`, so two pairs never have one name.
#[must_use]
pub fn name(fleet: &str, identity: &str) -> String {
    format!("CR_{}=_{}", part(fleet), part(identity))
}

/// The subject of a relay's stream.
#[must_use]
pub fn subject(fleet: &str, identity: &str) -> String {
    format!("cr.{}.j.{}", part(fleet), part(identity))
}

impl Stream {
    /// The stream of a relay of the fleet.
    #[must_use]
    pub fn new(client: Client, fleet: &str, identity: &str) -> Stream {
        Stream { client, name: name(fleet, identity), subject: subject(fleet, identity) }
    }

    /// The most bytes of a record.
    #[must_use]
    pub fn record_max(&self) -> usize {
        self.client.server_info().max_payload.saturating_sub(REQUEST_BYTES)
    }

    /// Checks that the server can hold a copy.
    ///
    /// # Errors
    /// If it is too old, or has no JetStream.
    pub async fn check_server(&self) -> Result<(), StreamError> {
        let version = self.client.server_info().version;
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
        let found = (numbers.next().flatten().unwrap_or(0), numbers.next().flatten().unwrap_or(0));
        if found < OLDEST_SERVER {
            let (major, minor) = OLDEST_SERVER;
            return Err(StreamError::Unsupported(format!(
                "the NATS server has version {version}, fleet.replicate needs {major}.{minor} or newer"
            )));
        }
        let none = || {
            StreamError::Unsupported(format!(
                "the NATS server ({version}) has no JetStream for this account, which fleet.replicate needs"
            ))
        };
        match self.request("$JS.API.INFO", &Value::Null).await {
            Ok(answer) => match error_of(&answer) {
                Some(ApiError { err_code: 10039 | 10076, .. }) => Err(none()),
                Some(error) => Err(StreamError::failed(error.description)),
                None => Ok(()),
            },
            Err(RequestErrorKind::NoResponders) => Err(none()),
            Err(error) => Err(StreamError::failed(error)),
        }
    }

    /// The state of the stream. `None` if there is no stream.
    ///
    /// # Errors
    /// If its leader does not answer, or a server answers that knows of none.
    pub async fn info(&self) -> Result<Option<Info>, StreamError> {
        let answer = self.api("INFO", &Value::Null).await?;
        let is_led = |answer: &Value| answer["cluster"].is_null() || answer["cluster"]["leader"].is_string();
        if !answer.as_ref().is_none_or(is_led) {
            return Err(StreamError::Failed("the stream has no leader".into()));
        }
        Ok(answer.map(|answer| {
            let number = |name: &str| answer["state"][name].as_u64().unwrap_or(0);
            Info { first: number("first_seq"), last: number("last_seq"), bytes: number("bytes") }
        }))
    }

    /// The server that leads it, by its name. `None` while none does, and without a cluster.
    ///
    /// # Errors
    /// If no server answers.
    pub async fn leader(&self) -> Result<Option<String>, StreamError> {
        let answer = self.api("INFO", &Value::Null).await?.unwrap_or_default();
        Ok(answer["cluster"]["leader"].as_str().map(str::to_owned))
    }

    /// Creates the stream if it is missing, and changes its settings if they differ.
    ///
    /// # Errors
    /// If the servers refuse that.
    pub async fn ensure(&self, shape: &Shape, metadata: Value) -> Result<(), StreamError> {
        let wanted = json!({
            "name": self.name, "subjects": [self.subject, format!("{}.*", self.subject)], "retention": "limits", "storage": "file", "discard": "new",
            "num_replicas": shape.replicas, "max_bytes": shape.bytes_max, "max_msgs": -1, "max_age": 0,
            "max_consumers": -1, "max_msgs_per_subject": -1, "deny_delete": true, "allow_direct": true,
            "metadata": metadata,
        });
        let found = match self.api("INFO", &Value::Null).await? {
            None => self.api("CREATE", &wanted).await?,
            Some(found) => {
                let differs = ["num_replicas", "max_bytes", "subjects"]
                    .into_iter()
                    .any(|name| found["config"][name] != wanted[name]);
                if differs { self.api("UPDATE", &wanted).await? } else { Some(found) }
            }
        };
        // An older server ignores settings that it does not know, and another program may have made the stream.
        let config = &found.unwrap_or_default()["config"];
        for name in ["subjects", "retention", "storage", "discard", "num_replicas", "max_bytes", "deny_delete"] {
            if config[name] != wanted[name] {
                return Err(StreamError::Failed(format!(
                    "the stream {} has {name} {}, not {}",
                    self.name, config[name], wanted[name]
                )));
            }
        }
        Ok(())
    }

    /// Publishes a record behind the expected sequence; a provisional one under the subject of this claim.
    pub async fn publish(&self, expected: u64, record: Bytes, claim: Option<u64>, within: Duration) -> Answer {
        let subject = claim.map_or_else(|| self.subject.clone(), |claim| provisional(&self.subject, claim));
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", expected.to_string().as_str());
        headers.insert("Nats-Expected-Stream", self.name.as_str());
        let request = Request::new().payload(record).headers(headers).timeout(Some(within));
        let answer = match self.client.send_request(subject, request).await {
            Ok(answer) => serde_json::from_slice::<Value>(&answer.payload).unwrap_or_default(),
            Err(error) => return Answer::Silence(error.to_string()),
        };
        match (error_of(&answer), answer["seq"].as_u64()) {
            (None, Some(sequence)) => Answer::Stored(sequence),
            (Some(ApiError { err_code: WRONG_SEQUENCE, description }), _) => {
                let last = description.rsplit(' ').next().and_then(|number| number.parse().ok());
                last.map_or(Answer::Doubt(description), Answer::Refused)
            }
            (Some(ApiError { err_code: FULL, .. }), _) => {
                Answer::Doubt("the stream is full: raise fleet.stream_bytes_max and restart the relay".into())
            }
            (Some(ApiError { err_code, description }), _) => Answer::Doubt(format!("{description} ({err_code})")),
            (None, None) => Answer::Doubt("an answer without a sequence".into()),
        }
    }

    /// The record at a sequence, by the leader. `None` if there is none.
    ///
    /// # Errors
    /// If the leader does not answer.
    pub async fn get(&self, sequence: u64) -> Result<Option<Stored>, StreamError> {
        self.get_by(json!({ "seq": sequence })).await
    }

    /// The first record at or after a sequence, by the leader. `None` if there is none.
    async fn get_from(&self, sequence: u64) -> Result<Option<Stored>, StreamError> {
        self.get_by(json!({ "seq": sequence, "next_by_subj": ">" })).await
    }

    async fn get_by(&self, wanted: Value) -> Result<Option<Stored>, StreamError> {
        let operation = "MSG.GET";
        let answer = self.ask(&self.api_subject(operation), wanted.to_string().into()).await;
        let answer = answer.map_err(|error| self.failed(operation, &error))?;
        let got: Got<'_> = serde_json::from_slice(&answer).map_err(StreamError::failed)?;
        match got {
            Got { error: None, message: Some(Message { subject, seq, data }) } => {
                let record = BASE64_STANDARD.decode(&*data);
                let record = record.map_err(|_| StreamError::failed("a record is not base64"))?;
                Ok(Some(Stored { sequence: seq, provisional: self.claim_of(&subject), record }))
            }
            Got { error: Some(ApiError { err_code: NOT_FOUND_STREAM | NOT_FOUND_MESSAGE, .. }), .. } => Ok(None),
            Got { error: Some(ApiError { err_code, description }), .. } => {
                Err(self.failed(operation, &format!("{description} ({err_code})")))
            }
            Got { .. } => Err(self.failed(operation, &"an answer without a record")),
        }
    }

    /// Removes the provisional records of a claim that come before a sequence.
    ///
    /// # Errors
    /// If the servers refuse that.
    pub async fn remove(&self, claim: u64, before: u64) -> Result<(), StreamError> {
        self.api("PURGE", &json!({ "filter": provisional(&self.subject, claim), "seq": before })).await.map(drop)
    }

    /// Removes all records before a sequence.
    ///
    /// # Errors
    /// If the servers refuse that.
    pub async fn purge(&self, before: u64) -> Result<(), StreamError> {
        self.api("PURGE", &json!({ "seq": before })).await.map(drop)
    }

    /// Removes the stream.
    ///
    /// # Errors
    /// If the servers refuse that.
    pub async fn delete(&self) -> Result<(), StreamError> {
        self.api("DELETE", &Value::Null).await.map(drop)
    }

    /// The last record and the claim that it belongs to.
    ///
    /// # Errors
    /// If the leader does not answer, or the record cannot be read.
    pub async fn standing(&self, codec: &Codec) -> Result<(Standing, Option<Head>), StreamError> {
        let Some(info) = self.info().await? else { return Ok((Standing::default(), None)) };
        // An empty stream begins behind its last record.
        Standing::find(self, codec, info.first, info.last).await
    }

    /// Reads records in their order.
    #[must_use]
    pub fn read(&self, range: Range<u64>) -> Reader {
        Reader {
            stream: self.clone(),
            next: range.start,
            asked: range.start,
            end: range.end,
            requests: JoinSet::new(),
            found: BTreeMap::new(),
            typical: READ_AHEAD_BYTES / 4,
        }
    }

    async fn api(&self, operation: &str, body: &Value) -> Result<Option<Value>, StreamError> {
        let answer = self.request(&self.api_subject(operation), body).await;
        let answer = answer.map_err(|error| self.failed(operation, &error))?;
        match error_of(&answer) {
            None => Ok(Some(answer)),
            Some(ApiError { err_code: NOT_FOUND_STREAM | NOT_FOUND_MESSAGE, .. }) if operation != "CREATE" => Ok(None),
            Some(ApiError { err_code, description }) => {
                Err(self.failed(operation, &format!("{description} ({err_code})")))
            }
        }
    }

    /// The claim whose provisional records have this subject.
    fn claim_of(&self, subject: &str) -> Option<u64> {
        let claim = subject.strip_prefix(&self.subject)?.strip_prefix('.')?;
        u64::from_str_radix(claim, 16).ok()
    }

    fn api_subject(&self, operation: &str) -> String {
        format!("$JS.API.STREAM.{operation}.{}", self.name)
    }

    fn failed(&self, operation: &str, why: &dyn std::fmt::Display) -> StreamError {
        StreamError::Failed(format!("{operation} of the stream {}: {why}", self.name))
    }

    async fn request(&self, subject: &str, body: &Value) -> Result<Value, RequestErrorKind> {
        let payload = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        Ok(serde_json::from_slice(&self.ask(subject, payload).await?).unwrap_or_default())
    }

    async fn ask(&self, subject: &str, payload: Bytes) -> Result<Bytes, RequestErrorKind> {
        let request = Request::new().payload(payload).timeout(Some(ANSWER_MAX));
        // While the connection is lost the client would wait.
        match timeout(ANSWER_MAX, self.client.send_request(subject.to_owned(), request)).await {
            Ok(Ok(answer)) => Ok(answer.payload),
            Ok(Err(error)) => Err(error.kind()),
            Err(_) => Err(RequestErrorKind::TimedOut),
        }
    }
}

impl Records for Stream {
    type Error = StreamError;

    async fn record(&self, sequence: u64) -> Result<Option<standing::Stored>, StreamError> {
        Ok(self.get(sequence).await?.map(|stored| (stored.record, stored.provisional)))
    }
}

/// The sequence of a request, and its answer.
type Requested = (u64, Result<Option<Stored>, StreamError>);

/// A range of records that is read in order, with several requests under way.
#[derive(Debug)]
pub struct Reader {
    stream: Stream,
    /// The next record to be returned, the next to be requested, and the end of the range.
    next: u64,
    asked: u64,
    end: u64,
    /// Ended with the reader.
    requests: JoinSet<Requested>,
    /// The answers that came before their turn, by the sequences that were requested.
    found: BTreeMap<u64, Stored>,
    /// The length of the next records, as the last ones suggest.
    typical: usize,
}

impl Reader {
    /// The next record with its sequence. `None` at the end of the range. Records that are missing are left out.
    ///
    /// # Errors
    /// If the leader does not answer, or the range has no record at its end.
    pub async fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, StreamError> {
        while self.next < self.end {
            self.request_more();
            if let Some(Stored { sequence, record, .. }) = self.found.remove(&self.next) {
                self.next = sequence + 1;
                self.asked = self.asked.max(self.next);
                self.found = self.found.split_off(&self.next);
                return Ok((sequence < self.end).then_some((sequence, record)));
            }
            let Some(read) = self.requests.join_next().await else { break };
            let (sequence, stored) = read.map_err(StreamError::failed)?;
            let stored = stored?.ok_or_else(|| StreamError::failed(format!("record {sequence} is missing")))?;
            // After a long record few are requested at once, until many short ones have come.
            self.typical = stored.record.len().max(self.typical - self.typical / 16);
            if sequence >= self.next {
                self.found.insert(sequence, stored);
            }
        }
        Ok(None)
    }

    fn request_more(&mut self) {
        let most = u64::try_from(READ_AHEAD_BYTES / self.typical.max(1)).unwrap_or(u64::MAX).clamp(2, READ_AHEAD);
        while self.asked < self.end.min(self.next + most) {
            let (stream, sequence) = (self.stream.clone(), self.asked);
            self.requests.spawn(async move { (sequence, stream.get_from(sequence).await) });
            self.asked += 1;
        }
    }
}

/// A stream of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The identity of the relay whose queue it has.
    pub identity: String,
    /// The time of its last record, by the servers' clock.
    pub last: String,
    /// Queued messages after its last record. `None` if that cannot be read.
    pub queued: Option<u64>,
    /// Bytes, in one copy.
    pub bytes: u64,
}

/// The streams of a fleet that are wanted, by identity: each costs a request.
///
/// # Errors
/// If the servers do not answer.
pub async fn list(
    client: &Client,
    fleet: &str,
    is_wanted: impl Fn(&str) -> bool + Send,
) -> Result<Vec<Listed>, StreamError> {
    let server = Stream::new(client.clone(), fleet, "");
    let mut found = Vec::new();
    loop {
        let asked = json!({ "offset": found.len(), "subject": format!("cr.{}.j.*", part(fleet)) });
        let answer = server.request("$JS.API.STREAM.LIST", &asked).await.map_err(StreamError::failed)?;
        if let Some(error) = error_of(&answer) {
            return Err(StreamError::failed(error.description));
        }
        let page = answer["streams"].as_array().cloned().unwrap_or_default();
        let (all, some) = (answer["total"].as_u64().unwrap_or(0), !page.is_empty());
        found.extend(page);
        if !some || found.len() as u64 >= all {
            break;
        }
    }
    let mut listed = Vec::new();
    for stream in found {
        let identity = stream["config"]["metadata"][IDENTITY].as_str();
        let Some(identity) = identity.filter(|identity| is_wanted(identity)) else { continue };
        let state = &stream["state"];
        let last = Stream::new(client.clone(), fleet, identity).get(state["last_seq"].as_u64().unwrap_or(0)).await?;
        listed.push(Listed {
            identity: identity.to_owned(),
            last: state["last_ts"].as_str().unwrap_or_default().to_owned(),
            queued: match last {
                Some(last) => record::head(&last.record).ok().map(|head| head.queued),
                // A stream without records holds nothing.
                None => (state["messages"].as_u64() == Some(0)).then_some(0),
            },
            bytes: state["bytes"].as_u64().unwrap_or(0),
        });
    }
    listed.sort_by(|one, other| one.identity.cmp(&other.identity));
    Ok(listed)
}

/// Checks that one server of a fleet can hold a copy.
///
/// # Errors
/// If it cannot be reached, is too old, or has no JetStream.
pub async fn try_server(connector: &Connector, server: &Server, fleet: &str) -> Result<(), StreamError> {
    let link = connector.connect_to(server).await.map_err(StreamError::Failed)?;
    Stream::new(link.client(), fleet, "").check_server().await
}

fn error_of(answer: &Value) -> Option<ApiError> {
    let error = answer.get("error")?;
    Some(serde_json::from_value(error.clone()).unwrap_or(ApiError { err_code: 0, description: error.to_string() }))
}
