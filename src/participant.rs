//! The Participant Service over HTTPS: a message in, an [`Outcome`] out; and plain forwarding. The only outbound client.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};

use crate::delivery::Outcome;
use crate::message::{Body, ClientToken, ConnectionToken};
use crate::time::Clock;

/// Where the service is and how it is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// The base URL, such as `https://participant.connect.eu-west-2.amazonaws.com`; a path in it is kept as a prefix.
    pub endpoint: hyper::Uri,
    /// For the connection to stand, TLS included.
    pub connect_timeout: Duration,
    /// For one whole attempt.
    pub attempt_timeout: Duration,
    /// Connections kept open and idle at the most.
    pub idle_max: usize,
    /// `http://host:port` of a proxy, by CONNECT.
    pub proxy: Option<hyper::Uri>,
    /// PEM of certificates trusted beside the system's.
    pub extra_roots: Vec<u8>,
}

/// The client; clones share its connections.
#[derive(Clone, Debug)]
pub struct Participant {}

/// A reply passed on to a bot as it came.
#[derive(Debug)]
pub struct Forwarded {
    /// Upstream's status.
    pub status: StatusCode,
    /// Upstream's headers, less those that belong to its connection.
    pub headers: HeaderMap,
    /// Upstream's body.
    pub body: Bytes,
}

/// Why forwarding got no reply.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

#[expect(unused_variables, missing_docs, clippy::unused_async, clippy::missing_errors_doc, reason = "sketch")]
impl Participant {
    /// Prepares the client; loads the trusted roots where the endpoint is https.
    pub fn new(options: Options, clock: Clock) -> Result<Participant, String> {
        todo!()
    }
    /// One attempt.
    pub async fn attempt(&self, body: &Body, client_token: &ClientToken, token: &ConnectionToken) -> Outcome {
        todo!()
    }
    /// Passes a request on and its reply back, unchanged but for signing and connection headers.
    pub async fn forward(
        &self,
        method: Method,
        path_and_query: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Forwarded, Unreachable> {
        todo!()
    }
}
