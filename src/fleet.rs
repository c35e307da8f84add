//! The fleet: relays that share NATS servers.
//!
//! ```text
//!                    reports, once a second, on one subject
//! relay ─▶ Sharing ◀──────────────────────────────────────▶ NATS ◀──▶ the other relays
//!            │  share of the quota
//!            ▼
//!          Pacer
//! ```
//!
//! `Fleet::run` is one task, which the daemon spawns and joins. It connects to one of the servers, shares the quota over
//! that connection until it is lost, and connects again, for ever. Promises:
//!
//! * Without a configured server nothing of this module runs: no task, no connection, no thread.
//! * A server that cannot be reached delays neither the start nor an attempt, apart from the 3 s for which the pacer waits
//!   for its first share.
//! * A message of a connection that was lost is never sent over a later one: each connection has a client of its own.
//!   The NATS client alone would keep up to 2,048 messages and send them after it has connected again.
//! * An outage is one warning when it begins, and one line when it ends.
//!
//! Only `connection` names the NATS client. [`quota`] decides, and is pure: no clock, no socket, no NATS. The module knows
//! no message and no queue.

#[cfg(feature = "fleet")]
pub mod connection;
mod credentials;
#[cfg(feature = "fleet")]
mod freshness;
pub mod quota;
pub mod subject;
#[cfg(feature = "fleet")]
mod task;

use std::fmt;

use zeroize::Zeroizing;

pub use self::credentials::Credentials;
#[cfg(feature = "fleet")]
pub use self::task::{Fleet, Guided};
use crate::tls::Identity;

/// True if this build can have a fleet: the cargo feature `fleet`.
pub const AVAILABLE: bool = cfg!(feature = "fleet");

/// The settings of the fleet.
#[derive(Clone, Debug)]
pub struct Options {
    /// The servers; the relay connects to one of them.
    pub servers: Vec<Server>,
    /// The name of the fleet.
    pub name: String,
    /// The name of this relay, the same after a restart, and another one for each relay.
    pub id: String,
    /// The quota that the relay shares; `None` if it shares none.
    pub quota: Option<SharedQuota>,
    /// The credentials of the relay, if it has no user and no token in the URLs.
    pub credentials: Option<Credentials>,
    /// Certificate authorities of the servers, in PEM, beside the system's.
    pub extra_roots: Vec<u8>,
    /// The certificate that the relay shows.
    pub identity: Option<Identity>,
}

/// A quota that relays share: that of one Connect instance at one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedQuota {
    /// The operator's name for the instance.
    pub connect_instance: String,
    /// The destination, equal for all relays that send there.
    pub destination: String,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// True if the relay insists on TLS.
    pub tls: bool,
    /// The name or address, an IPv6 address in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user and the password, or a token.
    pub login: Option<Login>,
}

impl fmt::Display for Server {
    /// The URL, without the login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// A login of a URL.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A token alone.
    Token(Zeroizing<String>),
    /// A user and a password.
    User(String, Zeroizing<String>),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(not shown)")
    }
}
