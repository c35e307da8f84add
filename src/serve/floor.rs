//! The connections of one listener: those with a place, those that wait for one, and those that have run out of time.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::error;

use super::pulse::{Phase, Pulse, Stream, Watched};
use super::room::{self, Place, Room};
use super::{Connections, Limits, Open, Peer, Reply};
use crate::time::{Clock, Timestamp};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The connections of one listener.
pub struct Floor<S> {
    limits: Limits,
    clock: Clock,
    connections: Connections,
    /// The `Keep-Alive` header of a reply on a connection that stays open.
    keep_alive: Option<HeaderValue>,
    http: http1::Builder,
    service: S,
    tasks: JoinSet<()>,
    seats: Vec<Seat>,
    /// Accepted connections without a place; at most [`room::quarter`] plus one.
    waiting: Vec<Newcomer>,
    /// Set while every reply is to end its connection: a connection waits, or this is the drain.
    last_reply: Arc<AtomicBool>,
    draining: bool,
}

/// A connection that has a place.
struct Seat {
    peer: Peer,
    pulse: Arc<Pulse>,
    task: AbortHandle,
    /// Asks it to close as soon as it has no request; taken once it has been asked.
    finish: Option<oneshot::Sender<()>>,
}

/// A connection without a place.
pub struct Newcomer {
    pub stream: Stream,
    pub peer: Peer,
    pub open: Open,
}

impl<S, F> Floor<S>
where
    S: Fn(Request<Incoming>, Peer) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    pub fn new(limits: Limits, clock: Clock, connections: Connections, service: S) -> Floor<S> {
        let mut http = http1::Builder::new();
        // The time is checked in this module: hyper's head timer would also cut idle connections, and is armed for
        // every request.
        http.header_read_timeout(None).max_buf_size(limits.head_bytes_max.max(8192));
        // `printf … | socat - UNIX-CONNECT:…` closes its half after sending, and still expects the reply.
        http.half_close(true);
        Floor {
            limits,
            clock,
            connections,
            keep_alive: keep_alive(limits.idle_timeout),
            http,
            service,
            tasks: JoinSet::new(),
            seats: Vec::new(),
            waiting: Vec::new(),
            last_reply: Arc::default(),
            draining: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for a connection to end, and frees its place; pending if there is none. Safe to drop.
    pub async fn ended(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.leave(ended),
            None => std::future::pending().await,
        }
    }

    /// False while the waiting list is full and places are about to be free: new connections wait in the kernel's
    /// backlog.
    pub fn may_accept(&self) -> bool {
        self.waiting.len() < room::quarter(self.limits.connections_max) || !self.is_moving()
    }

    pub fn enter(&mut self, newcomer: Newcomer) {
        self.waiting.push(newcomer);
        self.place_waiting();
        // No connection can be closed, and the waiting list is full: the newest is closed. Its client may retry; the
        // others were first.
        if self.waiting.len() > room::quarter(self.limits.connections_max) && !self.is_moving() {
            self.waiting.pop();
        }
    }

    fn leave(&mut self, ended: Result<(tokio::task::Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    error!(%error, "a connection's task failed");
                }
                error.id()
            }
        };
        self.seats.retain(|seat| seat.task.id() != id);
        self.place_waiting();
    }

    /// Gives free places to waiting connections, and closes others for the rest.
    fn place_waiting(&mut self) {
        while !self.waiting.is_empty() {
            let places: Vec<Place> = self.seats.iter().map(Seat::place).collect();
            let first = room::first(&places, self.limits.connections_max, self.waiting.iter().map(|new| new.peer));
            match room::find(&places, self.limits.connections_max, self.waiting[first].peer, self.clock.now()) {
                Room::Free => {
                    let newcomer = self.waiting.remove(first);
                    self.seat(newcomer);
                }
                // As many connections are closing as are waiting.
                Room::Close(_) | Room::Cut(_) if self.leaving() >= self.waiting.len() => break,
                Room::Close(index) => self.seats[index].close(),
                Room::Cut(index) => self.seats[index].cut(),
                Room::None => break,
            }
        }
        self.last_reply.store(self.draining || !self.waiting.is_empty(), Ordering::Relaxed);
    }

    fn seat(&mut self, newcomer: Newcomer) {
        let Newcomer { stream, peer, open } = newcomer;
        let pulse = Arc::new(Pulse::new(self.clock.clone()));
        let (finish, finished) = oneshot::channel();
        let service = {
            let (service, pulse, last_reply) = (self.service.clone(), Arc::clone(&pulse), Arc::clone(&self.last_reply));
            let (connections, keep_alive) = (self.connections.clone(), self.keep_alive.clone());
            service_fn(move |request: Request<Incoming>| {
                pulse.busy();
                let stays = stays_open(request.version(), request.headers());
                let (reply, pulse, last_reply) = (service(request, peer), Arc::clone(&pulse), Arc::clone(&last_reply));
                let (connections, keep_alive) = (connections.clone(), keep_alive.clone());
                async move {
                    let mut reply = reply.await;
                    if last_reply.load(Ordering::Relaxed) || connections.is_ending() {
                        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    } else if let Some(keep_alive) = keep_alive.filter(|_| stays && !closes(reply.headers())) {
                        reply.headers_mut().insert(KEEP_ALIVE, keep_alive);
                    }
                    pulse.replying();
                    Ok::<_, Infallible>(reply)
                }
            })
        };
        let connection = self.http.serve_connection(TokioIo::new(Watched::new(stream, Arc::clone(&pulse))), service);
        let task = self.tasks.spawn(async move {
            // Dropped last, so that the socket is closed when the count reaches zero.
            let _open = open;
            // After a turn of the reactor the first read shows if a request has come with the connection. Such a
            // connection must not be treated as idle.
            tokio::task::yield_now().await;
            let mut connection = pin!(connection);
            // A peer's error concerns only that peer: hyper has answered it if it could.
            tokio::select! {
                biased;
                _ = connection.as_mut() => return,
                _ = finished => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
        self.seats.push(Seat { peer, pulse, task, finish: Some(finish) });
    }

    /// Ends the connections that have run out of time. Returns the time of the next sweep.
    pub fn sweep(&mut self) -> Timestamp {
        let now = self.clock.now();
        let mut next = Timestamp(u64::MAX);
        for seat in &mut self.seats {
            let (phase, since) = seat.pulse.read();
            let limit = match phase {
                Phase::Head => self.limits.request_timeout,
                Phase::Fresh | Phase::Idle | Phase::Replying => self.limits.idle_timeout,
                Phase::Busy => continue,
            };
            if now.since(since) < limit {
                next = next.min(since + limit);
            } else if matches!(phase, Phase::Fresh | Phase::Idle) {
                seat.close();
            } else {
                seat.cut();
            }
        }
        self.place_waiting();
        next.min(now + self.shortest())
    }

    /// The shortest limit: no phase that begins now runs out of time before this.
    pub fn shortest(&self) -> Duration {
        // There is no event when a connection becomes idle and could be closed: sweep again soon.
        let look_again = if self.waiting.is_empty() { Duration::MAX } else { Duration::from_millis(20) };
        let limit = self.limits.idle_timeout.min(self.limits.request_timeout).min(look_again);
        // Never zero: the loop must not spin if a limit is configured as zero.
        limit.max(Duration::from_millis(1))
    }

    /// Closes the longest idle connection.
    pub fn shrink(&mut self) {
        let idle = self.seats.iter_mut().filter(|seat| seat.finish.is_some() && seat.pulse.read().0 == Phase::Idle);
        if let Some(seat) = idle.min_by_key(|seat| seat.pulse.read().1) {
            seat.close();
        }
    }

    /// Begins the drain.
    pub fn finish(&mut self) {
        self.waiting.clear();
        self.draining = true;
        self.last_reply.store(true, Ordering::Relaxed);
        for seat in &mut self.seats {
            // A half-read head would be dropped without an answer; its reply ends the connection anyway.
            if seat.pulse.read().0 != Phase::Head {
                seat.close();
            }
        }
    }

    /// True if places are about to be free, or connections are about to show if they are idle.
    fn is_moving(&self) -> bool {
        self.seats.iter().any(|seat| seat.finish.is_none() || seat.pulse.read().0 == Phase::Fresh)
    }

    fn leaving(&self) -> usize {
        self.seats.iter().filter(|seat| seat.finish.is_none()).count()
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

impl Seat {
    fn place(&self) -> Place {
        let (phase, since) = self.pulse.read();
        Place { peer: self.peer, phase, since, leaving: self.finish.is_none() }
    }

    fn close(&mut self) {
        if let Some(finish) = self.finish.take() {
            // The connection may have ended by itself.
            let _ = finish.send(());
        }
    }

    fn cut(&mut self) {
        self.finish = None;
        self.task.abort();
    }
}
