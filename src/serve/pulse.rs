//! The phase of a connection and its start, in one atomic word: written by the connection, read by the accepting loop.
//! The stream underneath shows what hyper does not: that the first byte of a head has come ([`Watched::poll_read`]) and
//! that a reply has been written completely (`poll_flush`, which hyper calls only then).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::time::{Clock, Timestamp};

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The connection was just accepted; it is unknown if a byte has come.
    Fresh,
    /// No byte of a request has come.
    Idle,
    /// Part of a request's head has come.
    Head,
    /// The service has the request.
    Busy,
    /// The reply is being written.
    Replying,
}

/// A phase and its start: the time in milliseconds above three bits.
#[derive(Debug)]
pub struct Pulse {
    word: AtomicU64,
    clock: Clock,
}

impl Pulse {
    pub fn new(clock: Clock) -> Pulse {
        let pulse = Pulse { word: AtomicU64::new(0), clock };
        pulse.begin(Phase::Fresh);
        pulse
    }

    pub fn read(&self) -> (Phase, Timestamp) {
        let word = self.word.load(Ordering::Relaxed);
        (phase(word), Timestamp(word >> 3))
    }

    /// Notes that the service has a request. The phase counts from the request's first byte, so no clock is read.
    pub fn busy(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store((word & !7) | Phase::Busy as u64, Ordering::Relaxed);
    }

    /// Notes that the service has answered.
    pub fn replying(&self) {
        self.begin(Phase::Replying);
    }

    fn is(&self, wanted: Phase) -> bool {
        phase(self.word.load(Ordering::Relaxed)) == wanted
    }

    fn begin(&self, phase: Phase) {
        self.word.store((self.clock.now().0 << 3) | phase as u64, Ordering::Relaxed);
    }
}

fn phase(word: u64) -> Phase {
    match word & 7 {
        0 => Phase::Fresh,
        1 => Phase::Idle,
        2 => Phase::Head,
        3 => Phase::Busy,
        _ => Phase::Replying,
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
pub struct Watched {
    stream: Stream,
    pulse: Arc<Pulse>,
}

impl Watched {
    pub fn new(stream: Stream, pulse: Arc<Pulse>) -> Watched {
        Watched { stream, pulse }
    }

    /// Notes progress of a long reply: a client that still reads is not cut.
    fn wrote(&self, written: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(some)) if some < offered) && self.pulse.is(Phase::Replying) {
            self.pulse.begin(Phase::Replying);
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = self.get_mut();
        let read = match &mut this.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match this.pulse.read().0 {
            Phase::Fresh | Phase::Idle if buf.filled().len() > before => this.pulse.begin(Phase::Head),
            Phase::Fresh => this.pulse.begin(Phase::Idle),
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        this.wrote(written, buf.len())
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
        this.wrote(written, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have nothing to flush.
        if self.pulse.is(Phase::Replying) {
            self.pulse.begin(Phase::Idle);
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
