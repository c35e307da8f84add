//! connect-relay: accepts Amazon Connect chat messages from bots and delivers them.
//!
//! # Promises
//! A success reply means that the message is on disk, synced. From then on the relay delivers it, in its conversation's
//! order, with one ClientToken that never changes, or makes it a dead letter with a reason. Before the end of its
//! lifetime only an answer of the service itself makes a message a dead letter.
//!
//! # The path of a message
//! ```text
//!       bots                                                        Participant Service
//!        │ Unix socket, loopback TCP                                        ▲ HTTPS
//!   ┌────▼────┐  accept   ┌───────────┐  lease, settle  ┌────────┐ attempt ┌┴────────────┐
//!   │ ingress ├──────────▶│   queue   │◀───────────────▶│ sender ├────────▶│ participant │
//!   └─────────┘           └─────┬─────┘                 └───┬────┘         └─────────────┘
//!                     one thread, one fdatasync a group     └ pacer: when may the next one start
//! ```
//! Begin with [`queue`]. [`delivery`] has the table of the meaning of each answer, [`pacer`] describes the rate,
//! [`ingress`] has the replies to bots. [`daemon`] starts and stops the parts.
//!
//! # Levels
//! A module names only modules of lower levels, and its own children; `tests/it/tidy.rs` proves it.
//!
//! | level | modules |
//! | --- | --- |
//! | program | [`cli`], over [`daemon`], over [`config`] |
//! | listeners and work | [`ingress`], [`sender`], [`control`], [`admin`], [`simulator`] |
//! | the state as text | [`status`] |
//! | their services | [`queue`], [`participant`], [`fleet`], [`serve`] |
//! | vocabulary and decisions | [`message_log`], [`pacer`], [`fairness`], [`health`], [`service_manager`], [`tls`], over [`message`], [`delivery`], [`ship`] |
//! | base | [`retry`], [`storage`], over [`time`], [`metrics`], [`malloc`] |
//!
//! # Restrictions
//! Only `storage` names sled, and it does not know the meaning of its rows. Only `participant` and
//! `fleet` open outbound connections, only `time` reads a clock, only `cli` and `config` read arguments and the environment, only `daemon`
//! spawns long-lived tasks. `ingress` and `sender` do not know each other. There are no statics: two relays run in one
//! process. A waiting message is a row, never a task.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that fails says where"))]

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod delivery;
pub mod fairness;
pub mod fleet;
pub mod health;
pub mod ingress;
pub mod malloc;
pub mod message;
pub mod message_log;
pub mod metrics;
pub mod pacer;
pub mod participant;
pub mod queue;
pub mod retry;
pub mod sender;
pub mod serve;
pub mod service_manager;
pub mod ship;
pub mod simulator;
pub mod status;
pub mod storage;
pub mod suspects;
pub mod time;
pub mod tls;
