//! The operations on the queue: `fn op(&mut State, …, now) -> Result<T>`.
//!
//! An operation reads and writes rows, pushes events, and returns its result. `thread` commits the rows of a group of
//! operations, and then sends the replies and applies the events. An operation that would write more than one commit takes
//! (`expire`, `pause::resume`) returns after a part of its work, and is called again.
//!
//! | operation | caller |
//! | --- | --- |
//! | `accept`, `query`, [`State::remember`](super::state::State::remember) | bots, by ingress |
//! | `lease`, `settle` | the sender |
//! | `pause`, `browse`, `summary`, `redrive` | operators, by control |
//! | `begin`, `expire`, `estimate` | the queue's thread itself |
//!
//! `transitions` has the changes of a message that several operations share.

pub mod accept;
pub mod begin;
pub mod browse;
pub mod estimate;
pub mod expire;
pub mod lease;
pub mod pause;
pub mod query;
pub mod redrive;
pub mod settle;
pub mod summary;
mod transitions;

/// The most bytes that an operation writes between two commits: a commit is in memory as rows and as one record of the
/// journal, and all requests wait while it is written.
pub const COMMIT_BYTES: usize = 256 << 10;
