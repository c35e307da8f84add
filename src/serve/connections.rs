//! The connections of one listener: the open ones, the pending ones that wait for a place, and their time limits.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::error;

use super::activity::{Activity, Phase, Stream, TrackedStream};
use super::admission::{self, Admission, ConnectionState};
use super::request_body::RequestBody;
use super::types::{ConnectionCount, CountedConnection, Limits, Peer};
use crate::time::{Clock, Timestamp};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The connections of one listener.
pub struct Connections<S> {
    limits: Limits,
    clock: Clock,
    count: ConnectionCount,
    /// The `Keep-Alive` header of a reply on a connection that stays open.
    keep_alive: Option<HeaderValue>,
    http: http1::Builder,
    service: S,
    tasks: JoinSet<()>,
    open: Vec<Connection>,
    /// Accepted connections that wait for a place: at most [`admission::per_user_share`] plus one.
    pending: Vec<Pending>,
    /// Set while every reply is to end its connection: a connection waits, or this is the drain.
    last_reply: Arc<AtomicBool>,
    draining: bool,
}

/// An open connection: it has a place.
struct Connection {
    peer: Peer,
    activity: Arc<Activity>,
    task: AbortHandle,
    /// Asks it to close as soon as it has no request; `None` once it was asked.
    close_request: Option<oneshot::Sender<()>>,
}

/// An accepted connection without a place.
pub struct Pending {
    pub stream: Stream,
    pub peer: Peer,
    pub counted: CountedConnection,
}

impl<S, F, B> Connections<S>
where
    S: Fn(Request<RequestBody>, Peer) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    pub fn new(limits: Limits, clock: Clock, count: ConnectionCount, service: S) -> Connections<S> {
        let mut http = http1::Builder::new();
        // The time is checked in this module: hyper's head timer would also cut idle connections, and is armed for
        // every request.
        http.header_read_timeout(None).max_buf_size(limits.head_bytes_max.max(8192));
        // `printf … | socat - UNIX-CONNECT:…` closes its half after sending, and still expects the reply.
        http.half_close(true);
        Connections {
            limits,
            clock,
            count,
            keep_alive: keep_alive(limits.idle_timeout),
            http,
            service,
            tasks: JoinSet::new(),
            open: Vec::new(),
            pending: Vec::new(),
            last_reply: Arc::default(),
            draining: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for a connection to end, and frees its place; pending if there is none. Safe to drop.
    pub async fn join_next(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.remove(ended),
            None => std::future::pending().await,
        }
    }

    /// False while the pending list is full and places are about to be free: new connections wait in the kernel's
    /// backlog.
    pub fn may_accept(&self) -> bool {
        self.pending.len() < admission::per_user_share(self.limits.connections_max) || !self.is_changing()
    }

    pub fn add(&mut self, pending: Pending) {
        self.pending.push(pending);
        self.admit_pending();
        // No connection can be closed, and the pending list is full: the newest is closed. Its client may retry; the
        // others were first.
        if self.pending.len() > admission::per_user_share(self.limits.connections_max) && !self.is_changing() {
            self.pending.pop();
        }
    }

    fn remove(&mut self, ended: Result<(tokio::task::Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    error!(%error, "a connection's task failed");
                }
                error.id()
            }
        };
        self.open.retain(|connection| connection.task.id() != id);
        self.admit_pending();
    }

    /// Gives free places to pending connections, and closes others for the rest.
    fn admit_pending(&mut self) {
        while !self.pending.is_empty() {
            let states: Vec<ConnectionState> = self.open.iter().map(Connection::state).collect();
            let most = self.limits.connections_max;
            let first = admission::next_pending(&states, most, self.pending.iter().map(|pending| pending.peer));
            match admission::admit(&states, most, self.pending[first].peer, self.clock.now()) {
                Admission::Admit => {
                    let pending = self.pending.remove(first);
                    self.start(pending);
                }
                // As many connections are closing as are pending.
                Admission::CloseIdle(_) | Admission::Abort(_) if self.count_closing() >= self.pending.len() => break,
                Admission::CloseIdle(index) => self.open[index].close(),
                Admission::Abort(index) => self.open[index].abort(),
                Admission::Wait => break,
            }
        }
        self.last_reply.store(self.draining || !self.pending.is_empty(), Ordering::Relaxed);
    }

    fn start(&mut self, pending: Pending) {
        let Pending { stream, peer, counted } = pending;
        let activity = Arc::new(Activity::new(self.clock.clone()));
        let (close_request, close_requested) = oneshot::channel();
        let service = {
            let (service, count, keep_alive) = (self.service.clone(), self.count.clone(), self.keep_alive.clone());
            let (activity, last_reply) = (Arc::clone(&activity), Arc::clone(&self.last_reply));
            service_fn(move |request: Request<Incoming>| {
                activity.begin_handling();
                let stays = stays_open(request.version(), request.headers());
                let (activity, count, keep_alive) = (Arc::clone(&activity), count.clone(), keep_alive.clone());
                let request = request.map(|body| RequestBody::new(body, Arc::clone(&activity)));
                let (reply, last_reply) = (service(request, peer), Arc::clone(&last_reply));
                async move {
                    let mut reply = reply.await;
                    let is_stream = reply.body().size_hint().exact().is_none();
                    let ends = is_stream || !activity.body_is_read();
                    if ends || last_reply.load(Ordering::Relaxed) || count.is_ending() {
                        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    } else if let Some(keep_alive) = keep_alive.filter(|_| stays && !closes(reply.headers())) {
                        reply.headers_mut().insert(KEEP_ALIVE, keep_alive);
                    }
                    activity.begin(if is_stream { Phase::Streaming } else { Phase::Writing });
                    Ok::<_, Infallible>(reply)
                }
            })
        };
        let stream = TokioIo::new(TrackedStream::new(stream, Arc::clone(&activity)));
        let connection = self.http.serve_connection(stream, service);
        let task = self.tasks.spawn(async move {
            // Dropped last, so that the socket is closed when the count reaches zero.
            let _counted = counted;
            // After a turn of the reactor the first read shows if a request has come with the connection. Such a
            // connection must not be treated as idle.
            tokio::task::yield_now().await;
            let mut connection = pin!(connection);
            // A peer's error concerns only that peer: hyper has answered it if it could.
            tokio::select! {
                biased;
                _ = connection.as_mut() => return,
                _ = close_requested => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
        self.open.push(Connection { peer, activity, task, close_request: Some(close_request) });
    }

    /// Ends the connections that have run out of time. Returns the time of the next sweep.
    pub fn sweep(&mut self) -> Timestamp {
        let now = self.clock.now();
        let mut next = Timestamp(u64::MAX);
        for connection in &mut self.open {
            let (phase, since) = connection.activity.read();
            let limit = match phase {
                Phase::ReadingHead => self.limits.request_timeout,
                Phase::New | Phase::Idle | Phase::Writing | Phase::Stalled => self.limits.idle_timeout,
                Phase::Handling | Phase::Streaming => continue,
            };
            if now.since(since) < limit {
                next = next.min(since + limit);
            } else if matches!(phase, Phase::New | Phase::Idle) {
                connection.close();
            } else {
                connection.abort();
            }
        }
        self.admit_pending();
        next.min(now + self.shortest_limit())
    }

    /// The shortest limit: no phase that begins now runs out of time before this.
    pub fn shortest_limit(&self) -> Duration {
        // There is no event when a connection becomes idle and could be closed: sweep again soon.
        let look_again = if self.pending.is_empty() { Duration::MAX } else { Duration::from_millis(20) };
        let limit = self.limits.idle_timeout.min(self.limits.request_timeout).min(look_again);
        // Never zero: the loop must not spin if a limit is configured as zero.
        limit.max(Duration::from_millis(1))
    }

    /// Closes the longest idle connection.
    pub fn close_longest_idle(&mut self) {
        let idle =
            self.open.iter_mut().filter(|open| open.close_request.is_some() && open.state().phase == Phase::Idle);
        if let Some(connection) = idle.min_by_key(|connection| connection.activity.read().1) {
            connection.close();
        }
    }

    /// Begins the drain.
    pub fn drain(&mut self) {
        self.pending.clear();
        self.draining = true;
        self.last_reply.store(true, Ordering::Relaxed);
        for connection in &mut self.open {
            match connection.state().phase {
                // A half-read head would be dropped without an answer; its reply ends the connection anyway.
                Phase::ReadingHead => {}
                // Its client does not read the end, and can continue after what it has read.
                Phase::Stalled => connection.abort(),
                _ => connection.close(),
            }
        }
    }

    /// True if places are about to be free, or connections are about to show if they are idle.
    fn is_changing(&self) -> bool {
        self.open.iter().any(|open| open.close_request.is_none() || open.state().phase == Phase::New)
    }

    fn count_closing(&self) -> usize {
        self.open.iter().filter(|connection| connection.close_request.is_none()).count()
    }
}

/// The lifetime that a reply announces for its connection: a second less than the real one, so that a request which is
/// sent at its very end still finds it open; none below 2 s.
fn keep_alive(idle_timeout: Duration) -> Option<HeaderValue> {
    let seconds = idle_timeout.as_secs().saturating_sub(1);
    HeaderValue::try_from(format!("timeout={seconds}")).ok().filter(|_| seconds >= 2)
}

/// True if hyper keeps the connection of a request with this version and these headers open.
fn stays_open(version: Version, headers: &HeaderMap) -> bool {
    match version {
        Version::HTTP_11 => !closes(headers),
        _ => has_connection_option(headers, "keep-alive"),
    }
}

fn closes(headers: &HeaderMap) -> bool {
    has_connection_option(headers, "close")
}

fn has_connection_option(headers: &HeaderMap, option: &str) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(option))
}

impl Connection {
    fn state(&self) -> ConnectionState {
        let (phase, since) = self.activity.read();
        ConnectionState { peer: self.peer, phase, since, closing: self.close_request.is_none() }
    }

    fn close(&mut self) {
        if let Some(close_request) = self.close_request.take() {
            // The connection may have ended by itself.
            let _ = close_request.send(());
        }
    }

    fn abort(&mut self) {
        self.close_request = None;
        self.task.abort();
    }
}
