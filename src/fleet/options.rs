//! The settings of the fleet.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::credentials::Credentials;
use crate::storage::SealingKey;
use crate::tls::Identity;

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

/// The settings of the copy of the queue in the fleet.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// The servers.
    pub fleet: Options,
    /// The name under which the queue outlives its machine.
    pub identity: String,
    /// The name of this machine, for operators.
    pub node: String,
    /// The queue's folder.
    pub path: PathBuf,
    /// The keys that seal records.
    pub keys: Vec<SealingKey>,
    /// Open an empty queue if the servers cannot be reached, and accept messages while they take no copies.
    pub go_on: bool,
    /// The time for the stream to take a commit.
    pub ack_timeout: Duration,
    /// The silence after which an owner counts as gone.
    pub lease: Duration,
    /// The stream's settings.
    pub shape: Shape,
}

/// The settings of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The number of copies.
    pub replicas: usize,
    /// The most bytes.
    pub bytes_max: u64,
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
