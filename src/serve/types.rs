//! The types of listeners and connections.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::Notify;

/// The process at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine, with its credentials at the time of the connect.
    Unix {
        /// Its user.
        uid: u32,
        /// Its primary group.
        gid: u32,
        /// Its id.
        pid: Option<i32>,
    },
    /// Any process: TCP has no credentials.
    Tcp,
}

/// A reply whose length is known: it goes out with an exact Content-Length.
pub type Reply = Response<Full<Bytes>>;

/// A reply with this body.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// The limits of the connections of one listener.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Places: connections served at once.
    pub connections_max: usize,
    /// The longest time of a connection without a request.
    pub idle_timeout: Duration,
    /// The time for a request's head to arrive. The service reads and limits the body.
    pub request_timeout: Duration,
    /// The most bytes in a request's head; at least hyper's minimum, 8192.
    pub head_bytes_max: usize,
}

/// The number of open connections of all [`serve`](super::serve) calls that share it. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCount(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    open: AtomicUsize,
    none: Notify,
    last_replies: AtomicBool,
}

impl ConnectionCount {
    /// The number of open connections now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Resolves when there is no open connection.
    pub async fn none(&self) {
        let mut gone = pin!(self.0.none.notified());
        loop {
            gone.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            gone.as_mut().await;
            gone.set(self.0.none.notified());
        }
    }

    /// Makes each reply from now on end its connection.
    pub fn close_after_replies(&self) {
        self.0.last_replies.store(true, Ordering::Relaxed);
    }

    /// True if each reply ends its connection.
    pub(super) fn is_ending(&self) -> bool {
        self.0.last_replies.load(Ordering::Relaxed)
    }

    /// Counts a connection.
    pub(super) fn enter(&self) -> CountedConnection {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        CountedConnection(Arc::clone(&self.0))
    }
}

/// Counts one connection until it is dropped.
pub(super) struct CountedConnection(Arc<Counter>);

impl Drop for CountedConnection {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none.notify_waiters();
        }
    }
}
