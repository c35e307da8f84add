//! A Participant Service for development: bots and relays can use it without an AWS account.
//!
//! It speaks plain HTTP/1.1 on a given listener and simulates five operations: `/participant/connection`, `/message`,
//! `/event`, `/disconnect` and `/transcript`; `GET /ledger` returns its [`Counts`], and `/faults` switches its faults
//! (`switch.rs`). Any other route gets an API Gateway's answer: 403 `MissingAuthenticationTokenException`.
//!
//! | rule | as AWS documents it | the simulator's own choice |
//! | --- | --- | --- |
//! | quota | token buckets; 429 `ThrottlingException` without any hint | messages and events share one; a request that is refused for another reason takes its token too |
//! | tokens | each call of `/connection` gives a new one for the same participant | any other string is a participant of its own |
//! | limits | those of the service model; 400 `ValidationException` | of the text's form only |
//! | idempotency | undocumented | by operation, ConnectionToken and ClientToken, without end, whatever the contents: the same Id again |
//! | disconnect | afterwards 403 "Access denied" | for every token of the participant, also for a repeat |
//! | order | none promised | that of acceptance, half of the latency after arrival: with jitter, concurrent requests overtake one another |
//!
//! Faults come from a seeded random generator: errors (nothing is accepted) and lost replies (accepted, and the
//! connection is cut instead of an answer). It returns a WebSocket's URL, but no process listens there.
//!
//! Each accepted message is an [`Entry`] of the ledger, in the order of acceptance: in a file, in memory, or neither.

mod bucket;
mod ledger;
mod options;
mod request;
mod service;
mod switch;
mod transcript;

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::time::Clock;
pub use ledger::Entry;
pub use options::{Counts, Options};
use service::{Reply, Request, Service};
pub use switch::Faults;

/// The largest body that is read.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A simulated Participant Service; clones share its state.
#[derive(Clone, Debug)]
pub struct Simulator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    service: Mutex<Service>,
    /// The faults of the start.
    start: Faults,
    /// The dice for delays.
    dice: Mutex<fastrand::Rng>,
    clock: Clock,
}

impl Simulator {
    /// Prepares a simulator.
    #[must_use]
    pub fn new(options: Options, clock: Clock) -> Simulator {
        let (start, dice) = (options.faults.clone(), Mutex::new(fastrand::Rng::with_seed(options.seed)));
        let service = Mutex::new(Service::new(options, clock.now()));
        Simulator(Arc::new(Shared { service, start, dice, clock }))
    }

    /// Serves a listener until `stop`, then cuts its connections, as a crash would. Its state stays, and it can serve
    /// another listener.
    pub async fn serve(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => { connections.spawn(self.clone().connection(stream)); }
                    // The process is probably out of file descriptors: a connection has to end first.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                },
                Some(_) = connections.join_next() => {}
                () = &mut stop => break,
            }
        }
        connections.shutdown().await;
    }

    /// The counts since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.service().counts
    }

    /// The messages accepted so far, in order; none unless [`Options::keep_accepted`] is set.
    #[must_use]
    pub fn accepted(&self) -> Vec<Entry> {
        self.service().ledger.kept().to_vec()
    }

    async fn connection(self, stream: TcpStream) {
        // Replies are small and awaited: they must not be delayed.
        let _ = stream.set_nodelay(true);
        let answer = service_fn(|request| self.answer(request));
        // An error here is a client that disconnected, or a reply that was withheld: both are normal.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> Result<Response<Full<Bytes>>, Withheld> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
            let text = format!("The body is larger than {BODY_BYTES_MAX} bytes, or was cut short");
            return Ok(respond(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", &text)));
        };
        let body = body.to_bytes();
        if (&head.method, head.uri.path()) == (&Method::GET, "/ledger") {
            let body = serde_json::to_string(&self.counts()).unwrap_or_default();
            return Ok(respond(Reply::ok(body)));
        }
        if head.uri.path() == "/faults" {
            return Ok(respond(self.switch(&head.method, &body)));
        }
        let leg = self.leg();
        if let Some(leg) = leg {
            tokio::time::sleep(leg).await;
        }
        let bearer = head.headers.get("x-amz-bearer").map_or(&b""[..], |value| value.as_bytes());
        let request = Request { method: &head.method, path: head.uri.path(), bearer, body: &body };
        let reply = self.service().answer(self.0.clock.now(), request);
        if let Some(leg) = leg {
            tokio::time::sleep(leg).await;
        }
        reply.map(respond).ok_or(Withheld)
    }

    /// `/faults`
    fn switch(&self, method: &Method, body: &[u8]) -> Reply {
        let mut service = self.service();
        let wanted = match *method {
            Method::GET | Method::HEAD => Ok(service.faults().clone()),
            Method::POST | Method::PUT | Method::PATCH => service.faults().changed(body),
            Method::DELETE => Ok(self.0.start.clone()),
            _ => Err(format!("{method} /faults: GET, POST or DELETE is needed")),
        };
        match wanted {
            Ok(faults) => {
                let body = serde_json::to_string(&faults).unwrap_or_default();
                if *service.faults() != faults {
                    service.switch(faults, self.0.clock.now());
                }
                Reply::ok(body)
            }
            Err(why) => Reply::error(StatusCode::BAD_REQUEST, "ValidationException", &why),
        }
    }

    /// The delay of one direction of a request; `None` if there is none.
    fn leg(&self) -> Option<Duration> {
        let (latency, jitter) = {
            let service = self.service();
            (service.faults().latency, service.faults().jitter)
        };
        if latency.is_zero() && jitter.is_zero() {
            return None;
        }
        let dice = self.0.dice.lock().unwrap_or_else(PoisonError::into_inner).f64();
        Some((latency + jitter.mul_f64(2.0 * dice)).saturating_sub(jitter) / 2)
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        self.0.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reply is withheld; hyper cuts the connection when the service fails.
#[derive(Debug, thiserror::Error)]
#[error("the reply is withheld")]
struct Withheld;

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::builder()
        .status(reply.status)
        .header("content-type", "application/json")
        .header("x-amzn-RequestId", Uuid::new_v4().to_string());
    if let Some(code) = reply.error {
        response = response.header("x-amzn-ErrorType", code);
    }
    if let Some(seconds) = reply.retry_after {
        response = response.header("Retry-After", seconds);
    }
    response.body(Full::from(reply.body)).expect("the headers are well-formed")
}

#[cfg(test)]
mod tests;
