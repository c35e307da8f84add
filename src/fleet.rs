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
#[cfg(feature = "fleet")]
pub mod operate;
mod options;
#[cfg(feature = "fleet")]
mod orphans;
pub mod quota;
#[cfg(feature = "fleet")]
pub mod replica;
#[cfg(feature = "fleet")]
mod restore;
#[cfg(feature = "fleet")]
mod signs;
#[cfg(feature = "fleet")]
pub mod stream;
pub mod subject;
#[cfg(feature = "fleet")]
mod task;

pub use self::credentials::Credentials;
pub use self::options::{CopyOptions, Login, Options, Server, Shape, SharedQuota};
#[cfg(feature = "fleet")]
pub use self::task::{Fleet, Guided};

/// True if this build can have a fleet: the cargo feature `fleet`.
pub const AVAILABLE: bool = cfg!(feature = "fleet");
