//! The signals that a command handles. Once a [`Signals`] exists, none is lost.

use anyhow::Context as _;
use tokio::signal::unix::{self, SignalKind, signal};

/// SIGTERM, SIGINT and SIGHUP. SIGUSR1 and SIGUSR2 are taken and ignored: they would end the process otherwise.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
    _ignored: [unix::Signal; 2],
}

/// The request of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

impl Signals {
    /// Registers the handlers.
    pub fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            _ignored: [listen(SignalKind::user_defined1())?, listen(SignalKind::user_defined2())?],
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }

    /// Resolves with the next SIGTERM or SIGINT.
    pub async fn stop(&mut self) {
        while self.next().await != Signal::Stop {}
    }
}
