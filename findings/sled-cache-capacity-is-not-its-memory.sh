#!/usr/bin/env bash
# sled 0.34.7 (crate)
#
# Behaviour: `cache_capacity` does not bound what an open database holds. It counts pages by their bytes on disk; in memory a
#   page is a vector of keys and values with an allocation for each of them, and the page table and the gaps between the
#   allocations come on top. A database that was filled in batches, flushed, and left alone holds several times the limit, also
#   after `malloc_trim`. The same files, opened again by the same process, take half of it, with all rows readable.
# Seen: limit 6 MiB; filled: 33 MiB, opened again: 15 MiB
# Wrong guess: a page cache of 6 MiB takes about 6 MiB, and closing a database only to open it again gains nothing.
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
libc = "=0.2.177"
sled = { version = "=0.34.7", default-features = false, features = ["no_logs", "no_metrics"] }
TOML
cat >"$work/src/main.rs" <<'RS'
use std::fs;

const LIMIT: u64 = 6 << 20;
const ROWS: u64 = 200_000;

/// Anonymous memory in MiB, after the allocator has returned what it can.
fn held() -> u64 {
    // SAFETY: it may be called at any time.
    unsafe { libc::malloc_trim(0) };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn open(path: &str) -> sled::Db {
    sled::Config::new().path(path).cache_capacity(LIMIT).flush_every_ms(None).open().unwrap()
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let before = held();
    let db = open(&path);
    // Scattered keys: a multiplication by an odd number permutes them.
    let key = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    for first in (0..ROWS).step_by(200) {
        let mut batch = sled::Batch::default();
        for number in first..first + 200 {
            batch.insert(&key(number), vec![1; 130]);
        }
        db.apply_batch(batch).unwrap();
        db.flush().unwrap();
    }
    let filled = held() - before;
    drop(db);
    std::thread::sleep(std::time::Duration::from_millis(500)); // its lock is released by another thread
    let db = open(&path);
    for number in [0, ROWS / 2, ROWS - 1] {
        assert_eq!(db.get(key(number)).unwrap().unwrap().len(), 130);
    }
    let again = held() - before;
    println!("filled: {filled} MiB, opened again: {again} MiB");
    std::process::exit(i32::from(filled < 3 * (LIMIT >> 20) || again * 3 > filled * 2));
}
RS
cargo run --quiet --release --manifest-path "$work/Cargo.toml" -- "$work/db"
