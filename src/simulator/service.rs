//! The service itself: its state and its answers. Pure except for the ledger: *now* is an argument.
//!
//! A request passes these steps in order: its route, an outage, the quota, the injected failure, the token, the members,
//! and its execution. So every request, also an invalid one, takes its share of the quota, as at a gateway; only
//! throttled ones take nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use hyper::{Method, StatusCode};
use ring::digest::{Context, SHA256};
use serde_json::json;
use uuid::Uuid;

use crate::message::CONNECTION_TOKEN_BYTES_MAX;
use crate::time::{Timestamp, WallTime};

use super::bucket::Quotas;
use super::ledger::{Entry, Ledger};
use super::options::{Counts, Options};
use super::request::{Members, Operation};
use super::switch::Faults;
use super::transcript::{Item, Participant, Transcripts};

/// The default lifetime of a token.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The parts of a request that the service uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub bearer: &'a [u8],
    pub body: &'a [u8],
}

/// A reply in AWS's shape.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub status: StatusCode,
    /// The header `x-amzn-ErrorType`.
    pub error: Option<&'static str>,
    /// The header `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    pub body: String,
}

/// The state of the service.
#[derive(Debug)]
pub(super) struct Service {
    quotas: Quotas,
    faults: Faults,
    dice: Dice,
    denied: HashSet<Vec<u8>>,
    token_life: Option<Duration>,
    /// Participants by the participant token that opened them.
    participants: HashMap<Vec<u8>, Participant>,
    /// Connection tokens, issued or first seen.
    tokens: HashMap<Vec<u8>, Token>,
    gone: HashSet<Participant>,
    participants_made: u64,
    /// The answers to ClientTokens, by a hash of operation, token and ClientToken; grows with each message.
    answered: HashMap<[u8; 16], (Uuid, Timestamp)>,
    transcripts: Transcripts,
    pub ledger: Ledger,
    pub counts: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    participant: Participant,
    since: Timestamp,
}

/// The reason why a request is not executed.
#[derive(Debug)]
enum Refusal {
    NoSuchOperation,
    Throttled,
    Failed(StatusCode),
    Denied(&'static str),
    Invalid(String),
    LedgerFailed(std::io::Error),
}

impl Service {
    pub(super) fn new(options: Options, now: Timestamp) -> Service {
        Service {
            quotas: Quotas::new(options.faults.rate, options.faults.burst, now),
            dice: Dice { dice: fastrand::Rng::with_seed(options.seed), failed: 0 },
            denied: denied(&options.faults),
            faults: options.faults,
            token_life: options.token_life,
            participants: HashMap::new(),
            tokens: HashMap::new(),
            gone: HashSet::new(),
            participants_made: 0,
            answered: HashMap::new(),
            transcripts: Transcripts::default(),
            ledger: Ledger::new(options.ledger, options.keep_accepted),
            counts: Counts::default(),
        }
    }

    /// The present faults.
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Switches the faults.
    pub(super) fn switch(&mut self, faults: Faults, now: Timestamp) {
        if (faults.rate, faults.burst) != (self.faults.rate, self.faults.burst) {
            self.quotas = Quotas::new(faults.rate, faults.burst, now);
        }
        self.denied = denied(&faults);
        self.faults = faults;
    }

    /// Answers one request; `None` if the reply is lost.
    pub(super) fn answer(&mut self, now: Timestamp, request: Request<'_>) -> Option<Reply> {
        match self.try_answer(now, request) {
            Ok(reply) => reply,
            Err(refusal) => {
                self.counts.count(&refusal);
                let mut reply = Reply::from(refusal);
                if matches!(reply.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                    reply.retry_after = self.faults.retry_after;
                }
                Some(reply)
            }
        }
    }

    fn try_answer(&mut self, now: Timestamp, request: Request<'_>) -> Result<Option<Reply>, Refusal> {
        let operation = Operation::of(request.method, request.path).ok_or(Refusal::NoSuchOperation)?;
        if self.faults.outage {
            return Err(Refusal::Failed(StatusCode::SERVICE_UNAVAILABLE));
        }
        if self.faults.throttle || !self.quotas.take(operation, now) {
            return Err(Refusal::Throttled);
        }
        let lost = self.dice.draw(&self.faults)?;
        let reply = if operation == Operation::Connection {
            self.connect(now, request)?
        } else {
            self.act(now, operation, request)?
        };
        if lost {
            self.counts.lost_replies += 1;
        }
        Ok((!lost).then_some(reply))
    }

    /// CreateParticipantConnection: another token for the participant that this participant token belongs to.
    fn connect(&mut self, now: Timestamp, request: Request<'_>) -> Result<Reply, Refusal> {
        self.check_bearer(request.bearer)?;
        let participant = match self.participants.get(request.bearer) {
            Some(participant) => *participant,
            None => self.new_participant(),
        };
        if self.gone.contains(&participant) {
            return Err(Refusal::Denied(GONE));
        }
        let members = Members::parse(Operation::Connection, request.body).map_err(Refusal::Invalid)?;
        let token = format!("simulated-{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        self.participants.insert(request.bearer.to_vec(), participant);
        self.tokens.insert(token.clone().into_bytes(), Token { participant, since: now });
        self.counts.connections += 1;

        let expiry = shown(now + self.token_life.unwrap_or(DAY));
        let types = members.types.unwrap_or_default();
        let wants = |name: &str| types.iter().any(|wanted| wanted == name);
        let mut body = json!({});
        if wants("WEBSOCKET") {
            let url = format!("wss://websocket.invalid/chat?token={token}");
            body["Websocket"] = json!({"Url": url, "ConnectionExpiry": expiry});
        }
        if wants("CONNECTION_CREDENTIALS") || !wants("WEBSOCKET") {
            body["ConnectionCredentials"] = json!({"ConnectionToken": token, "Expiry": expiry});
        }
        Ok(Reply::ok(body.to_string()))
    }

    /// The operations that come with a connection token.
    fn act(&mut self, now: Timestamp, operation: Operation, request: Request<'_>) -> Result<Reply, Refusal> {
        self.check_bearer(request.bearer)?;
        let token = match self.tokens.get(request.bearer) {
            Some(token) => *token,
            None => {
                let token = Token { participant: self.new_participant(), since: now };
                self.tokens.insert(request.bearer.to_vec(), token);
                token
            }
        };
        if self.token_life.is_some_and(|life| now.since(token.since) > life) {
            return Err(Refusal::Denied(EXPLICIT_DENY));
        }
        if self.gone.contains(&token.participant) {
            return Err(Refusal::Denied(GONE));
        }
        if operation == Operation::Transcript {
            let page = self.transcripts.page(token.participant, request.body).map_err(Refusal::Invalid)?;
            return Ok(Reply::ok(page));
        }
        let members = Members::parse(operation, request.body).map_err(Refusal::Invalid)?;
        if operation == Operation::Disconnect {
            self.gone.insert(token.participant);
            self.counts.disconnects += 1;
            return Ok(Reply::ok(String::new()));
        }
        self.take_in(now, operation, request.bearer, token.participant, members)
    }

    /// Accepts a message or an event, once for each ClientToken of a connection token.
    fn take_in(
        &mut self,
        now: Timestamp,
        operation: Operation,
        bearer: &[u8],
        participant: Participant,
        members: Members,
    ) -> Result<Reply, Refusal> {
        let key = members.idempotency().map(|client_token| idempotency_key(operation, bearer, client_token));
        if let Some((id, accepted)) = key.and_then(|key| self.answered.get(&key)) {
            self.counts.duplicates += 1;
            return Ok(Reply::taken(*id, *accepted));
        }
        let id = Uuid::new_v4();
        self.transcripts.add(participant, Item::of(id, shown(now), operation, &members));
        if operation == Operation::Message {
            let entry = Entry {
                id: id.to_string(),
                absolute_time: shown(now),
                client_token: members.client_token.filter(|token| !token.is_empty()),
                connection_token: String::from_utf8_lossy(bearer).into_owned(),
                content_type: members.content_type.unwrap_or_default(),
                content: members.content.unwrap_or_default(),
            };
            self.ledger.append(entry).map_err(Refusal::LedgerFailed)?;
            self.counts.accepted += 1;
        } else {
            self.counts.events += 1;
        }
        if let Some(key) = key {
            self.answered.insert(key, (id, now));
        }
        Ok(Reply::taken(id, now))
    }

    fn check_bearer(&self, bearer: &[u8]) -> Result<(), Refusal> {
        if bearer.is_empty() {
            return Err(Refusal::Denied("Access denied: X-Amz-Bearer is missing or empty"));
        }
        if bearer.len() > CONNECTION_TOKEN_BYTES_MAX {
            return Err(Refusal::Invalid(format!(
                "1 validation error detected: Value at 'connectionToken' failed to satisfy constraint: Member must have \
                 length less than or equal to {CONNECTION_TOKEN_BYTES_MAX}"
            )));
        }
        if self.denied.contains(bearer) {
            return Err(Refusal::Denied(EXPLICIT_DENY));
        }
        Ok(())
    }

    fn new_participant(&mut self) -> Participant {
        self.participants_made += 1;
        Participant(self.participants_made)
    }
}

fn denied(faults: &Faults) -> HashSet<Vec<u8>> {
    faults.deny.iter().cloned().map(String::into_bytes).collect()
}

/// A time as AWS writes it. The simulator has no store, so its line is the wall clock as it was at the start.
fn shown(time: Timestamp) -> String {
    WallTime(time.0).to_string()
}

/// The gateway's text for a token that is wrong or too old.
const EXPLICIT_DENY: &str = "User is not authorized to access this resource with an explicit deny";
/// The service's text for a participant that has left.
const GONE: &str = "Access denied";

impl Reply {
    pub(super) fn ok(body: String) -> Reply {
        Reply { status: StatusCode::OK, error: None, retry_after: None, body }
    }

    fn taken(id: Uuid, time: Timestamp) -> Reply {
        Reply::ok(json!({"Id": id.to_string(), "AbsoluteTime": shown(time)}).to_string())
    }

    /// An error in the service's shape.
    pub(super) fn error(status: StatusCode, code: &'static str, text: &str) -> Reply {
        Reply { status, error: Some(code), retry_after: None, body: json!({ "Message": text }).to_string() }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        match refusal {
            // The gateway's own shape: it writes `message` where the service writes `Message`.
            Refusal::NoSuchOperation => Reply {
                status: StatusCode::FORBIDDEN,
                error: Some("MissingAuthenticationTokenException"),
                retry_after: None,
                body: json!({"message": "Missing Authentication Token"}).to_string(),
            },
            Refusal::Throttled => Reply::error(StatusCode::TOO_MANY_REQUESTS, "ThrottlingException", "Rate exceeded"),
            Refusal::Failed(StatusCode::SERVICE_UNAVAILABLE) => Reply::error(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailableException",
                "The simulator is configured to fail sometimes",
            ),
            Refusal::Failed(status) => {
                Reply::error(status, "InternalServerException", "The simulator is configured to fail sometimes")
            }
            Refusal::Denied(text) => Reply::error(StatusCode::FORBIDDEN, "AccessDeniedException", text),
            Refusal::Invalid(text) => Reply::error(StatusCode::BAD_REQUEST, "ValidationException", &text),
            Refusal::LedgerFailed(error) => Reply::error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalServerException",
                &format!("append to the ledger: {error}"),
            ),
        }
    }
}

impl Counts {
    fn count(&mut self, refusal: &Refusal) {
        *match refusal {
            Refusal::NoSuchOperation | Refusal::Invalid(_) => &mut self.rejected,
            Refusal::Throttled => &mut self.throttled,
            Refusal::Failed(_) | Refusal::LedgerFailed(_) => &mut self.errors,
            Refusal::Denied(_) => &mut self.denied,
        } += 1;
    }
}

/// Random faults: for the same seed, the n-th request that the quota lets pass always has the same ones.
#[derive(Debug)]
struct Dice {
    dice: fastrand::Rng,
    failed: u64,
}

impl Dice {
    /// Fails the request, or returns true if its reply is lost. Both random numbers are drawn each time, so that one
    /// rate does not change the other's faults.
    fn draw(&mut self, faults: &Faults) -> Result<bool, Refusal> {
        let (error, lost) = (self.dice.f64() < faults.error_rate, self.dice.f64() < faults.lost_reply_rate);
        if error {
            self.failed += 1;
            let alternating = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR];
            return Err(Refusal::Failed(alternating[usize::from(self.failed % 2 == 1)]));
        }
        Ok(lost)
    }
}

fn idempotency_key(operation: Operation, bearer: &[u8], client_token: &str) -> [u8; 16] {
    let mut context = Context::new(&SHA256);
    // A bearer never contains a zero byte, so its end is unambiguous.
    for part in [&[operation as u8][..], bearer, &[0], client_token.as_bytes()] {
        context.update(part);
    }
    let mut key = [0; 16];
    key.copy_from_slice(&context.finish().as_ref()[..16]);
    key
}
