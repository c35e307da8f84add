//! The bots' API: AWS's Participant Service, and the only place that picks a status for a bot.
//!
//! | route | action |
//! | --- | --- |
//! | `POST /participant/message`, `/participant/disconnect` | queued (`accept`): 202 once on disk, 200 once delivered |
//! | `POST /participant/event` | queued too; typing is forwarded or dropped (`forward`) |
//! | `POST /participant/connection` | forwarded, and the new token's participant is stored |
//! | `POST /participant/messages` | a `batch`, one line per message, one commit |
//! | `GET /participant/message/{ClientToken}`, `/participant/queue` | the state of a message, the waiting messages (`state`) |
//! | `GET /participant/outcomes` | server-sent events of the caller's outcomes (`outcomes`) |
//! | any other `/participant/…` | forwarded |
//! | anything else, and other methods on these | 404 |
//!
//! The steps of a request: check that the `peer` is allowed, that it is no `web` page and that the relay is not closing (`drain_state`) →
//! read its `body`, within limits → parse its headers (`request`) and members (`parse`) → call the queue once, which
//! answers when the request is on disk → write the `reply` or the `error_reply`. Nothing is kept here between requests. A
//! client that disconnects withdraws nothing.
//!
//! This module promises: a 2xx for a message means that the queue has confirmed it; AWS's SDKs can read every error; no
//! text contains a token, contents or a header's value. It does not know the sender: it reads the rate from the budget
//! that they share.

mod accept;
mod batch;
mod body;
mod drain_state;
mod error_reply;
mod forward;
#[cfg(test)]
mod openapi;
mod outcomes;
mod outlook;
mod parse;
mod peer;
mod rejections;
mod reply;
mod request;
mod state;
#[cfg(test)]
mod tests;
mod web;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, EXPECT, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use prometheus::{Histogram, IntCounter, IntCounterVec};

use self::body::{BodyBudget, BodyLimit};
pub use self::drain_state::DrainState;
use self::error_reply::{ErrorReply, RejectReason};
pub use self::outcomes::{OutcomeStream, ReplyBody};
use self::rejections::Reporter;
use self::request::{PREFERENCE_APPLIED, Preference, Wait};
use crate::message::{Caller, Limits};
use crate::metrics::{LOCAL_SECONDS, Metrics};
use crate::pacer::Budget;
use crate::participant::Participant;
use crate::queue::Queue;
use crate::serve::{Peer, Reply};
use crate::ship::link as copy;
use crate::time::Clock;

/// The result of a request.
type Handled = Result<Reply, ErrorReply>;

/// The moment at which a message is answered if its bot does not choose one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMode {
    /// Once it is on disk.
    Accepted,
    /// Once its outcome is known, or the implied wait has ended.
    Delivered,
}

/// The settings of the bots' API.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The reply mode on the Unix socket.
    pub reply: ReplyMode,
    /// The reply mode on the TCP port.
    pub tcp_reply: ReplyMode,
    /// The length of an implied wait.
    pub wait: Duration,
    /// The longest `Prefer: wait`.
    pub wait_max: Duration,
    /// The time for a body to arrive.
    pub request_timeout: Duration,
    /// The most bytes in one body.
    pub body_bytes_max: usize,
    /// The most bytes in the body of one batch.
    pub batch_bytes_max: usize,
    /// The most bytes in all bodies being read together; one caller's are at most a quarter.
    pub bodies_bytes_max: usize,
    /// The allowed users; if `allow_gids` is empty too, the socket's mode decides.
    pub allow_uids: Vec<u32>,
    /// The allowed groups, primary or supplementary.
    pub allow_gids: Vec<u32>,
    /// The limits of a message.
    pub limits: Limits,
    /// Refuse messages while the copy in the fleet is behind.
    pub fleet_only: bool,
}

#[cfg(test)]
impl Default for Options {
    fn default() -> Options {
        Options {
            reply: ReplyMode::Accepted,
            tcp_reply: ReplyMode::Delivered,
            wait: Duration::from_secs(4),
            wait_max: Duration::from_secs(50),
            request_timeout: Duration::from_secs(10),
            body_bytes_max: 256 << 10,
            batch_bytes_max: 1 << 20,
            bodies_bytes_max: 8 << 20,
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
            limits: Limits::default(),
            fleet_only: false,
        }
    }
}

/// The bots' API; clones share it.
#[derive(Clone, Debug)]
pub struct Ingress(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    options: Options,
    queue: Queue,
    participant: Participant,
    budget: Budget,
    drain_state: DrainState,
    clock: Clock,
    bodies: Arc<BodyBudget>,
    /// The budget for replies to forwarded requests, and for replies to lines that are shorter than their replies.
    replies: Arc<BodyBudget>,
    metrics: Arc<IngressMetrics>,
    reporter: Arc<Reporter>,
}

/// The metrics of this module.
#[derive(Debug)]
struct IngressMetrics {
    /// Counters by [`RejectReason`].
    rejected: IntCounterVec,
    waits_delivered: IntCounter,
    waits_queued: IntCounter,
    waits_dead: IntCounter,
    events_dropped: IntCounter,
    accept_seconds: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Message,
    Disconnect,
    Event,
    Connection,
    Batch,
    State,
    Queue,
    Outcomes,
    Forward,
    Unknown,
}

impl Ingress {
    /// The bots' API over this queue.
    #[must_use]
    pub fn new(
        options: Options,
        queue: Queue,
        participant: Participant,
        budget: Budget,
        drain_state: DrainState,
        clock: Clock,
        metrics: &Metrics,
    ) -> Ingress {
        let bodies = Arc::new(BodyBudget::new(options.bodies_bytes_max));
        let replies = Arc::new(BodyBudget::new(options.bodies_bytes_max));
        let metrics = Arc::new(IngressMetrics::new(metrics, queue.copy().is_some()));
        let reporter = Arc::new(Reporter::new(clock.clone()));
        let inner =
            Inner { options, queue, participant, budget, drain_state, clock, bodies, replies, metrics, reporter };
        Ingress(Arc::new(inner))
    }

    /// Logs what becomes due about refused messages after the last of them, until `stop` resolves. The future holds
    /// only the reporter.
    pub fn report_rejections<S: Future<Output = ()>>(&self, stop: S) -> impl Future<Output = ()> + use<S> {
        let reporter = Arc::clone(&self.0.reporter);
        async move { reporter.run(stop).await }
    }

    /// Returns the same API with other settings, for later requests; current requests keep theirs. The limits of
    /// connections and bodies stay as they were at the start.
    #[must_use]
    pub fn with(&self, options: Options) -> Ingress {
        let Options { request_timeout, bodies_bytes_max, fleet_only, .. } = self.0.options;
        let options = Options { request_timeout, bodies_bytes_max, fleet_only, ..options };
        Ingress(Arc::new(Inner { options, ..Inner::clone(&self.0) }))
    }

    /// Answers one request. A client that disconnects drops this future; accepted messages stay.
    pub async fn handle<B: Body<Data = Bytes>>(&self, request: Request<B>, peer: Peer) -> Response<ReplyBody> {
        let inner = &*self.0;
        let (parts, body) = request.into_parts();
        let route = Route::of(&parts.method, parts.uri.path());
        let limit = inner.body_limit(route, &parts);
        let reply = match inner.admit(route, &parts, peer) {
            Ok(()) if route == Route::Outcomes => {
                let (queue, drain_state, clock) = (inner.queue.clone(), inner.drain_state.clone(), inner.clock.clone());
                match outcomes::open(&parts, caller(peer), queue, drain_state, clock).await {
                    Ok(stream) => return stream,
                    Err(error) => Err(error),
                }
            }
            Ok(()) => inner.answer(route, parts, body, limit, peer).await,
            Err(error) => {
                body::discard(body, limit).await;
                Err(error.about(request::subject(&parts.headers)))
            }
        };
        let reply = reply.unwrap_or_else(|error| {
            if route.takes_messages() {
                inner.record_rejection(&error);
            }
            reply::of_error(&error)
        });
        reply.map(Either::Left)
    }
}

impl Inner {
    fn admit(&self, route: Route, parts: &Parts, peer: Peer) -> Result<(), ErrorReply> {
        if !peer::is_allowed(&self.options.allow_uids, &self.options.allow_gids, peer) {
            return Err(ErrorReply::forbidden(
                "connect-relay: this user is in neither ingress.allow_uids nor ingress.allow_gids",
            ));
        }
        if peer == Peer::Tcp {
            web::reject_browser(&parts.headers)?;
        }
        if route == Route::Unknown {
            return Err(unknown(&parts.method, parts.uri.path()));
        }
        self.require_copy(route)?;
        if self.drain_state.is_closing() && !matches!(route, Route::State | Route::Queue) {
            return Err(ErrorReply::unavailable("connect-relay: the relay is stopping, nothing was kept")
                .counted(RejectReason::Draining));
        }
        // A forwarded body may have any encoding: the service decides.
        if let Some(encoding) = route.takes_messages().then(|| encoding(&parts.headers)).flatten() {
            return Err(ErrorReply::encoded(encoding));
        }
        Ok(())
    }

    /// Refuses messages that the copy in the fleet would not have, if the options say so. A relay that another one has
    /// succeeded takes and forwards nothing.
    fn require_copy(&self, route: Route) -> Result<(), ErrorReply> {
        match self.queue.copy() {
            Some(copy::State::Fenced) if !matches!(route, Route::State | Route::Queue) => {
                Err(ErrorReply::unavailable("connect-relay: another relay continues this queue, nothing was kept")
                    .counted(RejectReason::Fenced))
            }
            Some(copy::State::Behind) if self.options.fleet_only && route.takes_messages() => {
                Err(ErrorReply::unavailable(
                    "connect-relay: the fleet's servers do not take a copy, nothing was kept (fleet.when_down)",
                )
                .counted(RejectReason::FleetDown))
            }
            _ => Ok(()),
        }
    }

    async fn answer<B: Body<Data = Bytes>>(
        &self,
        route: Route,
        parts: Parts,
        body: B,
        limit: BodyLimit,
        peer: Peer,
    ) -> Handled {
        let caller = caller(peer);
        match route {
            Route::State => self.state(&parts, caller).await,
            Route::Queue => self.backlog(&parts, caller).await,
            Route::Message => {
                let reply = match self.bodies.read(body, limit, caller).await {
                    Ok(body) => self.message(&parts.headers, body, peer).await,
                    Err(error) => Err(error),
                };
                reply.map_err(|error| error.about(request::subject(&parts.headers)))
            }
            Route::Batch => {
                let body = self.bodies.read(body, limit, caller).await?;
                self.batch(&parts.headers, body, caller).await
            }
            Route::Disconnect => {
                let reply = match self.bodies.read(body, limit, caller).await {
                    Ok(body) => self.disconnect(&parts.headers, body, peer).await,
                    Err(error) => Err(error),
                };
                reply.map_err(|error| error.about(request::subject(&parts.headers)))
            }
            // The remaining routes are rare and need much state: boxing them keeps every request's future small.
            Route::Event => {
                let subject = request::subject(&parts.headers);
                let reply = match self.bodies.read(body, limit, caller).await {
                    Ok(body) => Box::pin(self.event(parts, body, peer)).await,
                    Err(error) => Err(error),
                };
                reply.map_err(|error| error.about(subject))
            }
            Route::Connection => {
                let body = self.bodies.read(body, limit, caller).await?;
                Box::pin(self.connection(parts, body.bytes.clone(), caller)).await
            }
            Route::Forward => {
                let body = self.bodies.read(body, limit, caller).await?;
                Box::pin(self.forward(parts, body.bytes.clone(), caller)).await
            }
            Route::Outcomes | Route::Unknown => Err(unknown(&parts.method, parts.uri.path())),
        }
    }

    /// Counts a refused message, and logs it.
    fn record_rejection(&self, error: &ErrorReply) {
        if let Some(reason) = error.counted {
            self.metrics.rejected.with_label_values(&[reason.as_str()]).inc();
            self.reporter.rejected(reason, error);
        }
    }

    fn body_limit(&self, route: Route, parts: &Parts) -> BodyLimit {
        let (most, key) = match route {
            Route::Batch => (self.options.batch_bytes_max, "ingress.batch_bytes_max"),
            _ => (self.options.body_bytes_max, "ingress.body_bytes_max"),
        };
        let expects_continue = parts.headers.contains_key(EXPECT);
        BodyLimit { most, key, within: self.options.request_timeout, expects_continue }
    }

    /// The wait for an outcome of a request about one message.
    fn wait(&self, preference: Preference, mode: ReplyMode) -> Wait {
        let implied = match mode {
            ReplyMode::Accepted => Duration::ZERO,
            ReplyMode::Delivered => self.options.wait,
        };
        preference.wait(implied, self.options.wait_max)
    }

    fn reply_mode(&self, peer: Peer) -> ReplyMode {
        match peer {
            Peer::Unix { .. } => self.options.reply,
            Peer::Tcp => self.options.tcp_reply,
        }
    }
}

impl Route {
    fn of(method: &Method, path: &str) -> Route {
        let Some(operation) = path.strip_prefix("/participant/") else { return Route::Unknown };
        match (method, operation) {
            (&Method::POST, "message") => Route::Message,
            (&Method::POST, "disconnect") => Route::Disconnect,
            (&Method::POST, "event") => Route::Event,
            (&Method::POST, "connection") => Route::Connection,
            (&Method::POST, "messages") => Route::Batch,
            (&Method::GET, "queue") => Route::Queue,
            (&Method::GET, "outcomes") => Route::Outcomes,
            (&Method::GET, _) if operation.len() > "message/".len() && operation.starts_with("message/") => {
                Route::State
            }
            // Routes of the relay itself, or queued under one method only: no other method reaches the service.
            (_, "" | "message" | "disconnect" | "event" | "connection" | "messages" | "queue" | "outcomes") => {
                Route::Unknown
            }
            _ if operation.starts_with("message/") => Route::Unknown,
            // A browser asks this before a page may call: no page may, whatever the service would reply.
            (&Method::OPTIONS, _) => Route::Unknown,
            // A forwarded path stays under /participant/, also if upstream decodes it before it checks.
            _ if percent_decode_str(operation).collect::<Vec<u8>>().split(|byte| *byte == b'/').any(is_dots) => {
                Route::Unknown
            }
            _ => Route::Forward,
        }
    }

    /// True if an error reply on this route counts as a rejected message.
    fn takes_messages(self) -> bool {
        matches!(self, Route::Message | Route::Disconnect | Route::Event | Route::Batch)
    }
}

impl IngressMetrics {
    /// The metrics; the reasons of a copy in the fleet exist only if there is one.
    fn new(metrics: &Metrics, has_copy: bool) -> IngressMetrics {
        let rejected = metrics.counters(
            "messages_rejected_total",
            "Messages that were rejected, by reason. The bot got an error.",
            &["reason"],
        );
        for reason in RejectReason::ALL {
            if has_copy || !matches!(reason, RejectReason::Fenced | RejectReason::FleetDown) {
                rejected.with_label_values(&[reason.as_str()]);
            }
        }
        let waits = metrics.counters(
            "waits_total",
            "Requests that waited for a message's outcome, by what was known when they were answered.",
            &["outcome"],
        );
        IngressMetrics {
            rejected,
            waits_delivered: waits.with_label_values(&["delivered"]),
            waits_queued: waits.with_label_values(&["queued"]),
            waits_dead: waits.with_label_values(&["dead"]),
            events_dropped: metrics.counter(
                "events_dropped_total",
                "Typing events that were dropped: something was queued before them, or no quota was to spare.",
            ),
            accept_seconds: metrics.histogram(
                "accept_seconds",
                "From a message's last byte to its being on disk and acknowledged.",
                LOCAL_SECONDS,
            ),
        }
    }
}

/// The first encoding of the body other than identity.
fn encoding(headers: &HeaderMap) -> Option<&HeaderValue> {
    let is_identity = |value: &HeaderValue| {
        let value = value.as_bytes().split(|byte| *byte == b',');
        value.map(<[u8]>::trim_ascii).all(|name| name.is_empty() || name.eq_ignore_ascii_case(b"identity"))
    };
    headers.get_all(CONTENT_ENCODING).iter().find(|value| !is_identity(value))
}

/// True for a part of a path that leads elsewhere.
fn is_dots(part: &[u8]) -> bool {
    matches!(part, b"." | b"..")
}

fn caller(peer: Peer) -> Caller {
    match peer {
        Peer::Unix { uid, .. } => Caller::Uid(uid),
        Peer::Tcp => Caller::Tcp,
    }
}

/// Adds `Preference-Applied` with the result of `Prefer`.
fn applied(mut reply: Reply, applied: Option<String>) -> Reply {
    if let Some(value) = applied.and_then(|applied| HeaderValue::try_from(applied).ok()) {
        reply.headers_mut().insert(PREFERENCE_APPLIED, value);
    }
    reply
}

/// 404. The path is cut, and contains no terminal control characters.
fn unknown(method: &Method, path: &str) -> ErrorReply {
    let path: String = path.chars().take(100).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
    let method: String = method.as_str().chars().take(20).collect();
    let text = format!("connect-relay: no such operation: {method} {path}");
    ErrorReply::new(StatusCode::NOT_FOUND, "UnknownOperationException", text)
}
