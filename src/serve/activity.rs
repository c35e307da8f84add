//! The phase of a connection and its start, in one atomic integer: written by the connection, read by the accepting loop.
//! The stream underneath shows what hyper does not: that the first byte of a head has come ([`TrackedStream::poll_read`]) and
//! that a reply has been written completely (`poll_flush`, which hyper calls only then).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::time::{Clock, Timestamp};

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The connection was just accepted; it is unknown if a byte has come.
    New,
    /// No byte of a request has come.
    Idle,
    /// Part of a request's head has come.
    ReadingHead,
    /// The service has the request.
    Handling,
    /// The reply is being written.
    Writing,
    /// The reply is a stream, and all that it has so far is written.
    Streaming,
    /// A part of a stream is being written.
    Stalled,
}

/// A phase and its start: the time in milliseconds above three bits.
#[derive(Debug)]
pub struct Activity {
    packed: AtomicU64,
    /// True if the request's body was read to its end.
    body_is_read: AtomicBool,
    clock: Clock,
}

impl Activity {
    pub fn new(clock: Clock) -> Activity {
        let activity = Activity { packed: AtomicU64::new(0), body_is_read: AtomicBool::new(true), clock };
        activity.begin(Phase::New);
        activity
    }

    pub fn read(&self) -> (Phase, Timestamp) {
        let packed = self.packed.load(Ordering::Relaxed);
        (phase(packed), Timestamp(packed >> 3))
    }

    /// Notes that the service has a request. The phase counts from the request's first byte, so no clock is read.
    pub fn begin_handling(&self) {
        let packed = self.packed.load(Ordering::Relaxed);
        self.packed.store((packed & !7) | Phase::Handling as u64, Ordering::Relaxed);
    }

    /// Notes if the body of the request was read to its end.
    pub fn note_body(&self, is_read: bool) {
        self.body_is_read.store(is_read, Ordering::Relaxed);
    }

    /// True if the request's body was read to its end, so that a further request can follow.
    pub fn body_is_read(&self) -> bool {
        self.body_is_read.load(Ordering::Relaxed)
    }

    fn is_in(&self, wanted: Phase) -> bool {
        phase(self.packed.load(Ordering::Relaxed)) == wanted
    }

    /// Notes that a phase begins now.
    pub fn begin(&self, phase: Phase) {
        self.packed.store((self.clock.now().0 << 3) | phase as u64, Ordering::Relaxed);
    }
}

fn phase(packed: u64) -> Phase {
    match packed & 7 {
        0 => Phase::New,
        1 => Phase::Idle,
        2 => Phase::ReadingHead,
        3 => Phase::Handling,
        4 => Phase::Writing,
        5 => Phase::Streaming,
        _ => Phase::Stalled,
    }
}

/// A connection of either kind: one type, so that hyper is compiled once for a service.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A stream that records its phase.
#[derive(Debug)]
pub struct TrackedStream {
    stream: Stream,
    activity: Arc<Activity>,
}

impl TrackedStream {
    pub fn new(stream: Stream, activity: Arc<Activity>) -> TrackedStream {
        TrackedStream { stream, activity }
    }

    /// Notes progress of a long reply: a client that still reads is not cut. Notes that the client of a stream does not
    /// read as fast as it is written.
    fn note_progress(&self, written: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        let (some, all) = match &written {
            Poll::Ready(Ok(length)) => (true, *length == offered),
            _ => (false, false),
        };
        match self.activity.read().0 {
            Phase::Writing if some && !all => self.activity.begin(Phase::Writing),
            Phase::Streaming if !all => self.activity.begin(Phase::Stalled),
            Phase::Stalled if some => self.activity.begin(Phase::Stalled),
            _ => {}
        }
        written
    }
}

impl AsyncRead for TrackedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = self.get_mut();
        let read = match &mut this.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match this.activity.read().0 {
            Phase::New | Phase::Idle if buf.filled().len() > before => this.activity.begin(Phase::ReadingHead),
            Phase::New => this.activity.begin(Phase::Idle),
            _ => {}
        }
        read
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        this.note_progress(written, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        this.note_progress(written, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have nothing to flush.
        if self.activity.is_in(Phase::Writing) {
            self.activity.begin(Phase::Idle);
        } else if self.activity.is_in(Phase::Stalled) {
            self.activity.begin(Phase::Streaming);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
