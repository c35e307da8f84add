//! The operators' API: the state of the relay, and the operations on it. JSON, on a socket that only the relay's own
//! user may open (mode 0600), so no credentials are needed.
//!
//! | route | action |
//! | --- | --- |
//! | `GET /status` | returns the state ([`crate::status`] has the members) |
//! | `POST /pause` `{"reason"?}` | stops sending until it is resumed, also after a restart; bots notice nothing |
//! | `POST /resume` | starts sending again, and forgets which tokens were refused |
//! | `POST /drain` `{"timeout"?, "wait"?}` | as SIGTERM: delivers the queued messages, within the time-out in seconds (`shutdown.grace`), and exits |
//! | `POST /reload` | as SIGHUP: reads the configuration again, and returns what changed (`live_settings.rs`) |
//! | `POST /log-level` `{"Level", "For"?}` | changes the log's level, for a time if `For` is given (`live_settings.rs`) |
//! | `GET /summary` | counts the queued messages and dead letters, by age, reason and conversation (`summary.rs`) |
//! | `GET /messages`, `GET /messages/{id}` | shows queued messages and dead letters (`messages.rs` has the members) |
//! | `POST /messages/{id}/redrive` `{"ConnectionToken"?, "Content"?, "ContentType"?}`, `POST /redrive` | queues dead letters again; other contents only if `control.edit` allows them |
//! | `DELETE /messages/{id}`, `DELETE /messages` | makes dead letters of queued messages |
//!
//! The first four answer with the present status. A drain with `wait` answers when the relay exits, with the number of
//! messages that are left. Each completed act is logged once, with its operator's uid. Other parts carry out the
//! requests: the queue stops giving out messages during a pause, the daemon executes a [`Drain`], and the command line
//! executes the requests that come through [`SettingsSender`].

mod drain;
mod live_settings;
mod messages;
mod reply;
mod summary;

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::info;

pub use self::drain::Drain;
pub use self::live_settings::requests::{
    LogLevel, LogLevelRequest, Reloaded, SettingsRequest, SettingsRequests, SettingsSender, level_name,
};
use self::messages::query::{Target, target};
pub use self::messages::schema::{Deleted, Message, MessageError, Messages, RedriveRequest, Redriven};
pub use self::reply::ErrorBody;
use self::reply::{ErrorReply, error_reply, invalid, json, parse_body};
pub use self::summary::schema::{Age, ConversationCount, Summary};
use crate::message::Limits;
use crate::queue::{Queue, StoreFailed};
use crate::serve::{Peer, Reply};
use crate::status::reporter::Reporter;
pub use crate::status::{Paused, RelayInfo, Status};
use crate::time::Clock;

/// The time-out for an answer of the queue.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The time-out for a request's body, and the most bytes in it.
const BODY_WITHIN: Duration = Duration::from_secs(5);
const BODY_MAX: usize = 4096;
/// The most bytes of JSON for one byte of UTF-8.
const JSON_BYTES_MAX: usize = 6;
/// The most characters in a reason.
const REASON_MAX: usize = 200;
/// The longest drain that can be requested: the longest lifetime of a message.
const TIMEOUT_MAX: u64 = 7 * 24 * 3600;

/// The handler of the operators' API; clones are cheap.
#[derive(Clone, Debug)]
pub struct Control {
    /// The queue with the waiting messages.
    pub queue: Queue,
    /// The request to drain, for the daemon.
    pub drain: Drain,
    /// Passes changes of configuration and log level to the command line.
    pub settings_sender: SettingsSender,
    /// The source of the status.
    pub reporter: Reporter,
    /// The clock for ages.
    pub clock: Clock,
    /// `control.edit`: true if contents of dead letters may be changed.
    pub edit: bool,
    /// The limits of contents.
    pub limits: watch::Receiver<Limits>,
}

/// The body of `POST /pause`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PauseRequest {
    /// The operator's reason.
    pub reason: String,
}

/// The body of `POST /drain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainRequest {
    /// The time-out in seconds, instead of `shutdown.grace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// True if the reply is to come when the relay exits.
    pub wait: bool,
}

/// The result of a drain with `wait`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Messages left on disk; null if the store did not answer.
    pub queued: Option<u64>,
}

impl Control {
    /// Answers one request of this operator.
    pub async fn answer<B>(&self, request: Request<B>, peer: Peer) -> Reply
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let (parts, body) = request.into_parts();
        let (method, path) = (&parts.method, parts.uri.path());
        let uid = match peer {
            Peer::Unix { uid, .. } => Some(uid),
            Peer::Tcp => None,
        };
        let one = target(path);
        let allowed: &[Method] = match path {
            "/status" | "/summary" => &[Method::GET, Method::HEAD],
            "/pause" | "/resume" | "/drain" | "/redrive" | "/reload" | "/log-level" => &[Method::POST],
            "/messages" => &[Method::GET, Method::HEAD, Method::DELETE],
            _ => match one {
                Some(Target::Message(_)) => &[Method::GET, Method::HEAD, Method::DELETE],
                Some(Target::Redrive(_)) => &[Method::POST],
                None => return error_reply(StatusCode::NOT_FOUND, &format!("no such operation: {method} {path}")),
            },
        };
        if !allowed.contains(method) {
            let names = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let mut reply =
                error_reply(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is answered for {names}, not {method}"));
            reply.headers_mut().extend(HeaderValue::try_from(names).ok().map(|names| (ALLOW, names)));
            return reply;
        }
        let reply = async {
            match path {
                "/pause" => self.pause(parse_body(&read_body(body, BODY_MAX).await?)?, uid).await,
                "/resume" => self.resume(uid).await,
                "/drain" => self.drain(parse_body(&read_body(body, BODY_MAX).await?)?, uid).await,
                "/reload" => self.reload(uid).await,
                "/log-level" => self.log_level(parse_body(&read_body(body, BODY_MAX).await?)?, uid).await,
                "/redrive" => self.redrive_all(&parts, uid).await,
                "/summary" => self.summary().await,
                "/messages" if parts.method == Method::DELETE => self.delete_all(&parts, uid).await,
                "/messages" => self.list(&parts).await,
                _ => match one {
                    Some(Target::Message(id)) if parts.method == Method::DELETE => self.delete(&parts, id, uid).await,
                    Some(Target::Message(id)) => self.show(&parts, id).await,
                    Some(Target::Redrive(id)) => {
                        let most = BODY_MAX + JSON_BYTES_MAX * self.limits.borrow().content_bytes;
                        self.redrive(&parts, id, &read_body(body, most).await?, uid).await
                    }
                    None => self.status(StatusCode::OK).await,
                },
            }
        };
        reply.await.unwrap_or_else(|ErrorReply(status, why)| error_reply(status, &why))
    }

    async fn pause(&self, PauseRequest { reason }: PauseRequest, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        if reason.chars().count() > REASON_MAX || reason.chars().any(char::is_control) {
            return Err(invalid(format!("reason: one line of at most {REASON_MAX} characters")));
        }
        self.ask_queue(self.queue.pause(reason.clone())).await?;
        info!(act = "pause", uid, reason, "an operator paused sending; `connect-relay resume` resumes it");
        self.status(StatusCode::OK).await
    }

    async fn resume(&self, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        self.ask_queue(self.queue.resume()).await?;
        info!(act = "resume", uid, "an operator resumed sending; refused tokens are tried again");
        self.status(StatusCode::OK).await
    }

    async fn drain(&self, DrainRequest { timeout, wait }: DrainRequest, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        if timeout.is_some_and(|seconds| seconds > TIMEOUT_MAX) {
            return Err(invalid(format!("timeout: 0 to {TIMEOUT_MAX} seconds")));
        }
        info!(act = "drain", uid, timeout_seconds = timeout, "an operator drains the relay; it exits after that");
        self.drain.request(timeout.map(Duration::from_secs));
        if wait {
            return Ok(json(StatusCode::OK, &Left { queued: self.drain.finished().await }));
        }
        self.status(StatusCode::ACCEPTED).await
    }

    async fn status(&self, status: StatusCode) -> Result<Reply, ErrorReply> {
        let reported = self.ask_queue(self.reporter.status(self.drain.is_requested())).await?;
        Ok(json(status, &reported))
    }

    /// Returns the queue's answer, unless it takes too long.
    async fn ask_queue<T>(&self, answer: impl Future<Output = Result<T, StoreFailed>>) -> Result<T, ErrorReply> {
        self.ask_queue_within(ANSWER_MAX, answer).await
    }

    async fn ask_queue_within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, StoreFailed>>,
    ) -> Result<T, ErrorReply> {
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.map_err(|failed| ErrorReply(StatusCode::INTERNAL_SERVER_ERROR, failed.to_string())),
            Err(_) => Err(ErrorReply(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "the store has not answered for {} s: check the disk under queue.path",
                    self.queue.stalled().max(limit).as_secs()
                ),
            )),
        }
    }
}

/// Reads the whole body, if it is short and arrives in time.
async fn read_body<B>(body: B, most: usize) -> Result<Bytes, ErrorReply>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    match tokio::time::timeout(BODY_WITHIN, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        _ => Err(invalid(format!("the body: at most {most} bytes, within {} s", BODY_WITHIN.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use http_body_util::Full;

    use super::*;
    use crate::config::{Config, Sources};
    use crate::health::{Health, Obstacle};
    use crate::metrics::Metrics;
    use crate::pacer::{self, Budget, Pacer};
    use crate::queue::QueueThread;

    /// The operators' API of a queue in a folder. No thread runs the queue.
    pub(super) fn control(folder: &Path) -> (Control, QueueThread) {
        let environment = [("SENDER__REGION", "eu-west-2"), ("QUEUE__VOLATILE", "true")]
            .map(|(key, value)| (format!("CONNECT_RELAY__{key}").into(), value.into()));
        let sources = Sources { file: None, environment: environment.into(), dir: Some(folder.into()) };
        let (clock, metrics) = (Clock::system(), Metrics::default());
        let (queue, writer) = Queue::open(Config::load(&sources).unwrap().queue(), clock.clone(), &metrics).unwrap();
        let reporter = Reporter {
            queue: queue.clone(),
            budget: Budget::new(Pacer::new(pacer::Options::default(), clock.now(), 7)),
            health: Health::default(),
            metrics,
            relay: Arc::default(),
            started: clock.now(),
            clock: clock.clone(),
            socket_path: None,
            obstacle: Obstacle::default(),
        };
        let control = Control {
            queue,
            drain: Drain::default(),
            settings_sender: SettingsSender::default(),
            reporter,
            clock,
            edit: true,
            limits: watch::Sender::new(Limits::default()).subscribe(),
        };
        (control, writer)
    }

    #[test]
    fn body_is_an_object_of_known_members_or_empty() {
        let of = |text: &str| {
            parse_body::<DrainRequest>(text.as_bytes()).map_err(|ErrorReply(status, why)| (status.as_u16(), why))
        };
        let expected = DrainRequest { timeout: Some(60), wait: true };
        assert_eq!(of(r#"{"timeout": 60, "wait": true}"#), Ok(expected));
        assert_eq!(of(" \n"), Ok(DrainRequest::default()));
        for wrong in [
            "{",
            "[]",
            "[60, true]",
            "null",
            r#""60""#,
            r#"{"time": 60}"#,
            r#"{"timeout": -1}"#,
            r#"{"timeout": "1m"}"#,
        ] {
            let (status, why) = of(wrong).unwrap_err();
            assert!(status == 400 && why.starts_with("the body: "), "{wrong}");
        }
    }

    #[tokio::test]
    async fn body_is_bounded() {
        assert!(read_body(Full::from(vec![b' '; BODY_MAX]), BODY_MAX).await.is_ok());
        assert!(read_body(Full::from(vec![b' '; BODY_MAX + 1]), BODY_MAX).await.is_err());
    }

    #[tokio::test]
    async fn failed_store_is_500_and_a_hung_store_is_503_on_every_route() {
        for (hangs, status, text) in
            [(false, 500, "the store failed: "), (true, 503, "the store has not answered for 5 s: ")]
        {
            let folder = tempfile::tempdir().unwrap();
            let (control, writer) = control(folder.path());
            // A writer that exists and does not run simulates a disk that hangs.
            let _writer = hangs.then_some(writer);
            let ask = |method, path| {
                let control = control.clone();
                let request = Request::builder().method(method).uri(path).body(Full::<Bytes>::default()).unwrap();
                let operator = Peer::Unix { uid: 0, gid: 0, pid: None };
                tokio::spawn(async move { control.answer(request, operator).await })
            };
            let asked = [
                ask("GET", "/status"),
                ask("POST", "/pause"),
                ask("POST", "/resume"),
                ask("POST", "/drain"),
                ask("GET", "/messages"),
                ask("GET", "/summary"),
                ask("DELETE", "/messages?conversation=k"),
                ask("GET", "/messages/0000002a-1"),
                ask("DELETE", "/messages/0000002a-1"),
                ask("POST", "/messages/0000002a-1/redrive"),
                ask("POST", "/redrive?all=true"),
            ];
            for reply in asked {
                let (parts, body) = reply.await.unwrap().into_parts();
                let ErrorBody { error } = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                assert_eq!(parts.status, status);
                assert!(error.starts_with(&format!("connect-relay: {text}")), "{error}");
            }
        }
    }
}
