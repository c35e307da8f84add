#!/usr/bin/env bash
# tokio 1.54.1 (crate)
#
# Behaviour: `sleep(Duration::ZERO)` is not ready when it is polled first. It ends with the timer's next millisecond, so a
#   loop with a delay that is zero most of the time does at most a thousand steps a second.
# Seen: 200 sleeps of no time took 200 ms or more; 200 calls of yield_now took under 20 ms
# Wrong guess: a sleep of no time is ready at once, so a delay before each try needs no case for "no delay". (The documents
#   say that timers have a granularity of a millisecond, and that a sleep does no work before its deadline.)
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
tokio = { version = "=1.54.1", default-features = false, features = ["rt", "time"] }
TOML
cat >"$work/src/main.rs" <<'RS'
use std::time::{Duration, Instant};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let began = Instant::now();
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        let yields = began.elapsed();
        let began = Instant::now();
        for _ in 0..200 {
            tokio::time::sleep(Duration::ZERO).await;
        }
        let sleeps = began.elapsed();
        println!("200 calls of yield_now: {} ms, 200 sleeps of no time: {} ms", yields.as_millis(), sleeps.as_millis());
        // A quarter of a millisecond each would be another behaviour.
        assert!(sleeps > Duration::from_millis(50) && sleeps > 10 * yields);
    });
}
RS
target="${CARGO_TARGET_DIR:-$work/target}"
cargo run --quiet --manifest-path "$work/Cargo.toml" --target-dir "$target"
