//! The fleet: relays that share one quota.
//!
//! [`quota`] has the decisions: pure, without a clock, a socket or NATS.

pub mod quota;
