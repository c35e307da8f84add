//! Drives HTTP/1.1 connections on any listener until it is asked to drain. It knows no messages and no routes: its
//! input is a request and its peer, its output a reply of known length, or a stream.
//!
//! ```text
//! listener ─▶ pending (at most a quarter) ─▶ a place: Idle ─▶ ReadingHead ─▶ Handling ─▶ Writing ─▶ Idle …
//!                                                                                    └▶ Streaming ◀─▶ Stalled, then closed
//! ```
//!
//! | state of a connection | ends by itself after | at the limit | on drain |
//! | --- | --- | --- | --- |
//! | `New`: just accepted, for one turn of the reactor | `idle_timeout` | stays | closed |
//! | `Idle`: no byte of a request has come | `idle_timeout` | the longest idle one is closed first | closed |
//! | `ReadingHead`: bytes, but no complete head | `request_timeout` | next after the idle | finishes its request, then closed |
//! | `Handling`: the service has the request | when the service answers | stays | the same |
//! | `Writing`: the answer is being written | `idle_timeout` without progress | as `ReadingHead`, once it makes none | the same |
//! | `Streaming`: all of the stream so far is written | when the service ends it | stays | the same |
//! | `Stalled`: the client has not read all of it | as `Writing` | as `Writing` | cut: it can continue after what it has read |
//!
//! A reply of unknown length is a stream, and the last reply of its connection.
//!
//! *Stays* has one exception, in `admission`: a user with more than a quarter of the places has to give up one for a user
//! with less, whatever its connections are doing. A connection without a place is pending; while one is, every reply
//! ends its connection. Everything is bounded: places, pending connections, the bytes of a head, and time. A reply on a
//! connection that stays open announces the time (`Keep-Alive: timeout=N`): a second less than `idle_timeout`, so that
//! a client does not send into a connection that is about to close. A reply to a request whose body was not read to its
//! end is the last one of its connection.
//!
//! Every connection is a task in a `JoinSet` in this module, so that none is left when [`serve`] returns. A request
//! takes no lock, arms no timer and allocates nothing on its way. A connection records its phase and the start of the
//! phase in one atomic word. The accepting loop reads those words when the first of them can have run out of time.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::warn;

use crate::time::{Clock, Timestamp, millis};

mod activity;
mod admission;
mod connections;
mod inherited;
mod request_body;
mod socket;
mod types;

pub use inherited::Inherited;
pub use request_body::RequestBody;
pub use socket::{BindError, SOCKET_PATH_BYTES_MAX, SocketPath, UnixSocket, adopt_unix, bind_tcp_or_ipv4, bind_unix};
pub use types::{ConnectionCount, Limits, Peer, Reply, reply};

use activity::Stream;
use connections::{Connections, Pending};

/// The time between two checks of a Unix socket's path: a name that vanished is bound again within 5 s.
const WATCH_EVERY: Duration = Duration::from_millis(4500);

/// The source of connections.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket: its peers have credentials. Its name is checked regularly.
    Unix(UnixSocket),
    /// A TCP port.
    Tcp(TcpListener),
}

/// Serves until `stop` resolves. Then it accepts no connection, closes idle ones, lets requests finish (with
/// `Connection: close`), and returns when the last connection has ended. Dropping the future cuts all of them.
pub async fn serve<S, F, B>(
    mut listener: Listener,
    limits: Limits,
    clock: Clock,
    count: ConnectionCount,
    service: S,
    stop: impl Future<Output = ()>,
) where
    S: Fn(Request<RequestBody>, Peer) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let mut connections = Connections::new(limits, clock.clone(), count.clone(), service);
    let mut stop = pin!(stop);
    let mut pause = Pause::default();
    let mut sweep_at = clock.now();
    let mut watch_at = clock.now() + WATCH_EVERY;
    loop {
        let now = clock.now();
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = connections.join_next() => {}
            () = sleep(sweep_at.since(now)), if !connections.is_empty() => sweep_at = connections.sweep(),
            () = sleep(watch_at.since(now)), if matches!(listener, Listener::Unix(_)) => {
                if let Listener::Unix(socket) = &mut listener {
                    socket.watch();
                }
                watch_at = clock.now() + WATCH_EVERY;
            }
            accepted = pause.accept(&listener, now), if connections.may_accept() => match accepted {
                Ok((stream, peer)) => {
                    pause = Pause::default();
                    connections.add(Pending { stream, peer, counted: count.enter() });
                }
                Err(error) if is_of_one_peer(&error) => {}
                Err(error) => {
                    pause = pause.longer(clock.now());
                    warn!(%error, retry_in_ms = millis(pause.length), "cannot accept a connection");
                    // The process is probably out of file descriptors, and an idle connection holds one.
                    connections.close_longest_idle();
                }
            },
        }
        sweep_at = sweep_at.min(clock.now() + connections.shortest_limit());
    }
    drop(listener);
    connections.drain();
    while !connections.is_empty() {
        let now = clock.now();
        tokio::select! {
            biased;
            () = connections.join_next() => {}
            () = sleep(sweep_at.since(now)) => sweep_at = connections.sweep(),
        }
    }
}

/// The pause between attempts to accept after a failure: 10 ms, doubling, at most a second.
#[derive(Clone, Copy, Default)]
struct Pause {
    length: Duration,
    until: Timestamp,
}

impl Pause {
    fn longer(self, now: Timestamp) -> Pause {
        let length = (self.length * 2).clamp(Duration::from_millis(10), Duration::from_secs(1));
        Pause { length, until: now + length }
    }

    async fn accept(self, listener: &Listener, now: Timestamp) -> io::Result<(Stream, Peer)> {
        let wait = self.until.since(now);
        if !wait.is_zero() {
            sleep(wait).await;
        }
        match listener {
            Listener::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                let peer = stream.peer_cred()?;
                Ok((Stream::Unix(stream), Peer::Unix { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() }))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Small replies must not wait for an acknowledgement; without the option they are only slower.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Peer::Tcp))
            }
        }
    }
}

/// True if the error concerns one peer, which is gone; the listener works.
fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, NotConnected, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | NotConnected | WouldBlock)
}

#[cfg(test)]
mod tests;
