//! The Participant Service over HTTPS: a message in, an [`Outcome`] out; and plain forwarding. The only outbound
//! client.
//!
//! ```text
//! Body, ClientToken, ConnectionToken ─▶ attempt ─▶ Outcome        queued messages, one request each
//! method, path, headers, body ────────▶ forward ─▶ Forwarded      every other operation, unchanged
//! ```
//!
//! Everything else depends on one question: *was the request written?*
//!
//! | failure | outcome |
//! | --- | --- |
//! | name, TCP, proxy or TLS, or `connect_timeout` over all four | `Down`: nothing was written |
//! | an idle connection that had closed before the request was written | tried on another one, else `Down` |
//! | reset, end, garbage or `attempt_timeout` on an open connection | `AnswerLost`: it may have been delivered |
//! | the relay exits meanwhile ([`Participant::cut`]) | as `attempt_timeout` |
//! | none: an answer came | as `response` classifies it |
//!
//! * One attempt is one request: no redirect is followed, and a request that was written is not written again.
//! * HTTP/1.1 on kept connections, at most `idle_max` of them idle, and none for longer than the usual idle time-outs
//!   on the way.
//! * Roots are the system's and `extra_roots`; they are read when the client is made, for an https endpoint only. A
//!   `proxy` is used for https, by CONNECT.
//! * A body is read up to a limit: 1 MiB of an answer to an attempt, 8 MiB of a forwarded reply.
//! * No token, content or header value is in an error or a `Debug`. The token is masked in upstream's texts.
//!
//! The module knows no queue, no rate and no retry: it does not decide the consequence of an outcome.

mod causes;
mod connect;
mod forward;
pub mod online;
mod redact;
mod response;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body as _;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use tokio::sync::watch;

use self::causes::causes;
use self::connect::Connector;
use self::response::Response;
use crate::delivery::{Outcome, ServiceError};
use crate::message::{Body, ClientToken, ConnectionToken, Content};
use crate::retry::RetryHint;
use crate::time::Clock;
use crate::tls;

/// The longest body read of an answer to an attempt.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// The longest body read of a forwarded reply.
const FORWARDED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The longest time that a connection stays idle: shorter than the limits of balancers, gateways and NATs, so that the
/// relay closes it, and not the other end at the moment when a message is being written.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The name of this client in its requests.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("connect-relay/", env!("CARGO_PKG_VERSION")));

/// The address of the service and the way to it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The base URL, such as `https://participant.connect.eu-west-2.amazonaws.com`; a path in it is kept as a prefix.
    pub endpoint: Uri,
    /// The time limit for the connection, TLS included.
    pub connect_timeout: Duration,
    /// The time limit for one whole attempt.
    pub attempt_timeout: Duration,
    /// The most idle connections that are kept open.
    pub idle_max: usize,
    /// `http://host:port` of a proxy, by CONNECT.
    pub proxy: Option<Uri>,
    /// PEM of certificates that are trusted in addition to the system's.
    pub extra_roots: Vec<u8>,
}

/// The client; clones share its connections.
#[derive(Clone)]
pub struct Participant(Arc<Inner>);

/// A reply that is forwarded to a bot unchanged.
#[derive(Debug)]
pub struct Forwarded {
    /// Upstream's status.
    pub status: StatusCode,
    /// Upstream's headers, less those that belong to its connection.
    pub headers: HeaderMap,
    /// Upstream's body.
    pub body: Bytes,
}

/// The reason why forwarding got no reply.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

impl Participant {
    /// Prepares the client; loads the trusted roots if the endpoint is https.
    ///
    /// # Errors
    /// If the endpoint or the proxy is not a valid URL, or there is no root to trust.
    pub fn new(options: Options, clock: Clock) -> Result<Participant, String> {
        let endpoint = options.endpoint.into_parts();
        let scheme = endpoint.scheme.ok_or("the endpoint is not a whole URL: it has no scheme")?;
        let authority = endpoint.authority.ok_or("the endpoint is not a whole URL: it has no host")?;
        let proxied = options.proxy.as_ref();
        let has_user = |authority: &Authority| authority.as_str().contains('@');
        if has_user(&authority) || proxied.and_then(Uri::authority).is_some_and(has_user) {
            return Err("the URLs of the endpoint and of the proxy take no user name or password".into());
        }
        if proxied.is_some_and(|proxy| proxy.scheme() != Some(&Scheme::HTTP) || proxy.host().is_none()) {
            return Err("the proxy is not http://host:port".into());
        }
        let connector = if scheme == Scheme::HTTPS {
            Connector::new(tls::with_roots(&options.extra_roots)?, options.proxy, options.connect_timeout)
        } else if scheme == Scheme::HTTP {
            Connector::new(tls::without_roots()?, None, options.connect_timeout)
        } else {
            return Err(format!("the endpoint's scheme is {scheme}, it takes https or http"));
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(options.idle_max)
            .build(connector);
        let prefix = endpoint.path_and_query.as_ref().map_or("", PathAndQuery::path).trim_end_matches('/').into();
        let attempt_timeout = options.attempt_timeout;
        let cut = watch::Sender::default();
        Ok(Participant(Arc::new(Inner { client, scheme, authority, prefix, attempt_timeout, clock, cut })))
    }

    /// Ends every exchange as a time-out does: the relay exits.
    pub fn cut(&self) {
        self.0.cut.send_replace(true);
    }

    /// Makes one attempt.
    pub async fn attempt(&self, body: &Body, client_token: &ClientToken, token: &ConnectionToken) -> Outcome {
        let request = match self.0.request_for(body, client_token, token) {
            Ok(request) => request,
            Err(text) => {
                let error = ServiceError { status: 400, code: "ValidationException".into(), ..ServiceError::default() };
                return Outcome::Refused(ServiceError { text: text.into(), ..error });
            }
        };
        match self.0.exchange(request, ANSWER_BYTES_MAX, async |_| ()).await {
            Ok(Reply { status, headers, body: bytes }) => {
                let answer = Response { status, headers: &headers, body: bytes.as_deref() };
                response::classify(body, token, &answer, self.0.clock.wall())
            }
            Err(Failure::Unsent(why)) => Outcome::Down { status: None, hint: RetryHint::default(), why },
            Err(Failure::Broken(why)) => Outcome::AnswerLost { why },
        }
    }

    /// Forwards a request and returns its reply, unchanged except for signing and connection headers. The reply's body
    /// is read once `reserve` has reserved that many bytes.
    ///
    /// # Errors
    /// If no complete reply came; it is then unknown if the request arrived.
    pub async fn forward(
        &self,
        method: Method,
        path_and_query: &str,
        headers: &HeaderMap,
        body: Bytes,
        reserve: impl AsyncFnOnce(usize),
    ) -> Result<Forwarded, Unreachable> {
        let uri = self.0.uri(path_and_query).map_err(|_| Unreachable("the path is not one of a URL".into()))?;
        let mut headers = forward::request(headers);
        if method != Method::GET && method != Method::HEAD {
            headers.insert(CONTENT_LENGTH, body.len().into());
        }
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
        match self.0.exchange(request, FORWARDED_BYTES_MAX, reserve).await {
            Ok(Reply { status, headers, body: Some(body) }) => {
                Ok(Forwarded { status, headers: forward::end_to_end(&headers), body })
            }
            Ok(Reply { status, .. }) => Err(Unreachable(format!(
                "the Participant Service answered {status}, and the rest of the reply is missing"
            ))),
            Err(Failure::Unsent(why)) => Err(Unreachable(format!("the Participant Service cannot be reached: {why}"))),
            Err(Failure::Broken(why)) => Err(Unreachable(format!("the Participant Service did not answer: {why}"))),
        }
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Participant({}://{}{})", self.0.scheme, self.0.authority, self.0.prefix)
    }
}

struct Inner {
    client: Client<Connector, Full<Bytes>>,
    scheme: Scheme,
    authority: Authority,
    prefix: String,
    attempt_timeout: Duration,
    clock: Clock,
    /// True once the relay exits.
    cut: watch::Sender<bool>,
}

/// The reason why no answer came.
enum Failure {
    /// Nothing was written.
    Unsent(String),
    /// The request may have been written.
    Broken(String),
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    /// `None` if it broke off or was too long.
    body: Option<Bytes>,
}

/// The members in AWS's documented order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Members<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    client_token: &'a str,
}

impl Inner {
    fn request_for(
        &self,
        body: &Body,
        client_token: &ClientToken,
        token: &ConnectionToken,
    ) -> Result<Request<Full<Bytes>>, &'static str> {
        let path = match body {
            Body::Message { .. } => "/participant/message",
            Body::Event { .. } => "/participant/event",
            Body::Disconnect => "/participant/disconnect",
        };
        let members = Members {
            content_type: body.content_type(),
            content: body.content().map(Content::expose),
            client_token: client_token.as_str(),
        };
        let json = serde_json::to_vec(&members).map_err(|_| "connect-relay: the message cannot be written as JSON")?;
        let mut bearer = HeaderValue::from_bytes(token.expose())
            .map_err(|_| "connect-relay: the ConnectionToken is not the value of a header")?;
        bearer.set_sensitive(true);
        let length = json.len();
        let mut request = Request::new(Full::new(Bytes::from(json)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri(path).map_err(|_| "connect-relay: the endpoint's path is not one of a URL")?;
        let headers = request.headers_mut();
        headers.insert("x-amz-bearer", bearer);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, length.into());
        headers.insert(USER_AGENT, AGENT);
        Ok(request)
    }

    /// Sends one request and reads its reply, within the time of one attempt.
    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        bytes_max: usize,
        reserve: impl AsyncFnOnce(usize),
    ) -> Result<Reply, Failure> {
        let connection = capture_connection(&mut request);
        let mut limit = pin!(self.limit());
        let response = tokio::select! {
            response = self.client.request(request) => response.map_err(|error| self.failure(&error))?,
            limit = &mut limit => {
                let connected = connection.connection_metadata().is_some();
                return Err(if connected {
                    Failure::Broken(format!("{}: no answer {limit}", self.authority))
                } else {
                    Failure::Unsent(format!("connect to {}: no connection {limit}", self.authority))
                });
            }
        };
        let (head, body) = response.into_parts();
        let whole = async {
            reserve(body.size_hint().upper().map_or(bytes_max, |upper| upper.min(bytes_max as u64) as usize)).await;
            Limited::new(body, bytes_max).collect().await
        };
        let body = tokio::select! {
            body = whole => body.ok().map(|whole| whole.to_bytes()),
            _ = &mut limit => None,
        };
        Ok(Reply { status: head.status, headers: head.headers, body })
    }

    /// Resolves when an exchange has to end, with a description of the limit.
    async fn limit(&self) -> String {
        let mut cut = self.cut.subscribe();
        tokio::select! {
            () = tokio::time::sleep(self.attempt_timeout) => {
                format!("within {}", humantime::format_duration(self.attempt_timeout))
            }
            // The channel's sender is part of `self`, so the channel cannot end.
            _ = cut.wait_for(|cut| *cut) => "before the relay exited".into(),
        }
    }

    fn uri(&self, path_and_query: &str) -> Result<Uri, hyper::http::Error> {
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path_and_query}", self.prefix))
            .build()
    }

    /// hyper calls an error *canceled* if it never started the request.
    fn failure(&self, error: &legacy::Error) -> Failure {
        let inner = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
        if error.is_connect() {
            Failure::Unsent(format!("connect to {}: {}", self.authority, causes(error)))
        } else if inner.is_some_and(hyper::Error::is_canceled) {
            Failure::Unsent(format!("{}: the connection closed before the request was written", self.authority))
        } else {
            Failure::Broken(format!("{}: {}", self.authority, causes(error)))
        }
    }
}
