//! connect-relay: bots hand it their Amazon Connect chat messages, and it delivers them.
//!
//! # What it promises
//! A success reply means that the message is on disk, synced. From then on it is delivered, in its conversation's order,
//! with one ClientToken that never changes, or it becomes a dead letter that says why. The service's own word is the only
//! thing that buries a message before its lifetime ends.
//!
//! # One way through
//! ```text
//!        bots                                                        Participant Service
//!         │ Unix socket, loopback TCP                                        ▲ HTTPS
//!    ┌────▼────┐  accept   ┌───────────┐  lease, settle  ┌────────┐ attempt ┌┴────────────┐
//!    │ ingress ├──────────▶│   queue   │◀───────────────▶│ sender ├────────▶│ participant │
//!    └─────────┘           └─────┬─────┘                 └───┬────┘         └─────────────┘
//!                      one writer, one fdatasync a group     └ pacer: when may the next one start
//! ```
//! [`queue`] is the heart: begin there. [`delivery`] has the table of what an answer means, [`pacer`] the one of how fast,
//! [`ingress`] the one of what a bot is told. [`daemon`] puts the parts together and takes them apart again.
//!
//! # Floors
//! A module names only modules on lower floors, and its own children; `tests/it/tidy.rs` proves it.
//!
//! | floor | modules |
//! | --- | --- |
//! | the program | [`cli`], over [`daemon`], over [`config`] |
//! | doors and work | [`ingress`], [`sender`], [`control`], [`admin`], [`simulator`] |
//! | what they stand on | [`queue`], [`participant`], [`serve`] |
//! | words and decisions | [`life`], [`pacer`], [`turns`], [`health`], [`supervisor`], over [`message`], [`delivery`] |
//! | ground | [`retry`], [`storage`], over [`time`], [`metrics`], [`memory`] |
//!
//! # What is not here
//! Only `storage` names sled, and it does not know what its rows mean, only `participant` dials out, only `time` reads a clock, only `cli` and `config` read
//! arguments and the environment, only `daemon` spawns what lives long. `ingress` and `sender` do not know each other.
//! There are no statics: two relays run in one process. A waiting message is a row, never a task.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that fails says where"))]

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod delivery;
pub mod health;
pub mod ingress;
pub mod life;
pub mod memory;
pub mod message;
pub mod metrics;
pub mod pacer;
pub mod participant;
pub mod queue;
pub mod retry;
pub mod sender;
pub mod serve;
pub mod simulator;
pub mod storage;
pub mod supervisor;
pub mod suspects;
pub mod time;
pub mod turns;
