//! connect-relay: bots hand it their Amazon Connect chat messages; it delivers them.
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
pub mod message;
pub mod metrics;
pub mod pacer;
pub mod participant;
pub mod queue;
pub mod retry;
pub mod sender;
pub mod serve;
pub mod simulator;
pub mod time;
