//! connect-relay: bots hand it their Amazon Connect chat messages; it delivers them.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that fails says where"))]

pub mod config;
pub mod delivery;
pub mod life;
pub mod message;
pub mod metrics;
pub mod pacer;
pub mod participant;
pub mod queue;
pub mod retry;
pub mod time;
