#!/usr/bin/env bash
# backoff 0.4.0 (crate)
#
# Behaviour: an operation that returns Error::retry_after bypasses the policy whole: retry() does not ask it for the
#   next interval, so max_elapsed_time is never compared. A service that answers every request with a Retry-After is
#   asked for ever; only the operation itself can end the loop.
# Seen (max_elapsed_time is 100 ms; the probe gives up after 40 tries):
#   transient: ended by the policy
#   retry_after: ended by the probe after 40 tries, over 300 ms
# Wrong guess: max_elapsed_time bounds the whole retry(); retry_after replaces one interval only.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/src"
cat >"$work/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2021"
[dependencies]
backoff = "=0.4.0"
TOML
cat >"$work/src/main.rs" <<'RS'
use std::time::{Duration, Instant};

use backoff::{retry, Error, ExponentialBackoff, ExponentialBackoffBuilder};

const LIMIT: u32 = 40;
const HINT: Duration = Duration::from_millis(10);

fn policy() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(HINT)
        .with_max_interval(HINT)
        .with_max_elapsed_time(Some(Duration::from_millis(100)))
        .build()
}

/// Runs an operation that always fails with `error`. Returns true if the policy ended the retries.
fn policy_ends(error: impl Fn() -> Error<&'static str>) -> (bool, u32, Duration) {
    let (mut tries, start) = (0, Instant::now());
    let result: Result<(), _> = retry(policy(), || {
        tries += 1;
        Err(if tries < LIMIT { error() } else { Error::permanent("the probe ends it") })
    });
    (matches!(result, Err(Error::Transient { .. })), tries, start.elapsed())
}

fn main() {
    let (ended, _, _) = policy_ends(|| Error::transient("busy"));
    assert!(ended, "the behaviour changed: a transient error is not bounded");
    println!("transient: ended by the policy");

    let (ended, tries, elapsed) = policy_ends(|| Error::retry_after("busy", HINT));
    assert!(!ended && tries == LIMIT && elapsed > Duration::from_millis(300), "the behaviour changed");
    println!("retry_after: ended by the probe after {tries} tries, over 300 ms");
}
RS
CARGO_TARGET_DIR="$work/target" cargo run --quiet --manifest-path "$work/Cargo.toml"
