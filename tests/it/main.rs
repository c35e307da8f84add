//! The integration tests: one binary, a module for each matter.

mod process;
mod systemd;
mod tidy;
