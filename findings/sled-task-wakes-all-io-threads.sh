#!/usr/bin/env bash
# sled 0.34.7 (crate)
#
# Behaviour: sled keeps seven I/O threads, and hands each write of its log to them with a `notify_all`: all seven wake up, one
#   finds the work, six go back to sleep. A small insert with its `flush` makes such a task or two.
# Seen: 500 inserts, each with a flush: 4028 wake-ups of the I/O threads, 8.1 for each
# Wrong guess: a pool of threads wakes one of them for a task, so that a flush costs one or two wake-ups.
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
sled = { version = "=0.34.7", default-features = false, features = ["no_logs", "no_metrics"] }
TOML
cat >"$work/src/main.rs" <<'RS'
use std::fs;
use std::time::Duration;

const FLUSHES: u64 = 500;

/// The times that sled's I/O threads went to sleep, which they do after each wake-up; and the number of these threads.
fn sleeps() -> (u64, u64) {
    let (mut sleeps, mut threads) = (0, 0);
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let folder = task.unwrap().path();
        if !fs::read_to_string(folder.join("comm")).unwrap().starts_with("sled-io") {
            continue;
        }
        let status = fs::read_to_string(folder.join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        sleeps += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        threads += 1;
    }
    (sleeps, threads)
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let db = sled::Config::new().path(path).flush_every_ms(None).open().unwrap();
    let write = |number: u64| {
        db.insert(number.to_be_bytes(), vec![1; 100]).unwrap();
        assert!(db.flush().unwrap() > 0);
        // All of them are asleep again before the next task.
        std::thread::sleep(Duration::from_millis(1));
    };
    (0..10).for_each(write);
    let (before, _) = sleeps();
    (10..10 + FLUSHES).for_each(write);
    let (after, threads) = sleeps();
    let wakeups = after - before;
    println!(
        "{FLUSHES} inserts, each with a flush: {wakeups} wake-ups of the I/O threads, {:.1} for each",
        wakeups as f64 / FLUSHES as f64
    );
    assert_eq!(threads, 7);
    // One task each would wake one thread each.
    assert!(wakeups > 5 * FLUSHES);
}
RS
cd "$work"
cargo run --quiet -- "$work/db"
