//! The integration tests: one binary, a module for each matter.

mod docs;
mod online;
mod process;
mod systemd;
mod tidy;
