#!/usr/bin/env bash
# sled 0.34.7 (crate)
#
# Behaviour: the memory that `apply_batch` takes grows with the number of its rows, not with their bytes. Each row copies its
#   leaf (up to 16 rows), and all copies live until the batch is over. Of two batches of 128 KiB into a tree of 50,000 rows,
#   the one of 4,096 short rows takes many times as much as the one of 32 long rows.
# Seen: 128 KiB as 4096 rows: 12 MiB more at the peak; as 32 rows: 0 MiB more
# Wrong guess: a limit of bytes bounds what a batch takes, as it does in other stores.
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

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rows: u64 = arguments[2].parse().unwrap();
    let db = sled::Config::new().path(&arguments[1]).cache_capacity(64 << 20).flush_every_ms(None).open().unwrap();
    // Scattered keys: a multiplication by an odd number permutes them.
    let key = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    for number in 0..50_000 {
        db.insert(key(number), vec![1; 100]).unwrap();
    }
    db.flush().unwrap();
    let before = peak();
    let mut batch = sled::Batch::default();
    for number in 0..rows {
        batch.insert(&key(number * 50_000 / rows)[..], vec![2; (128 << 10) / rows as usize]);
    }
    db.apply_batch(batch).unwrap();
    println!("{}", peak() - before);
}
RS
target="${CARGO_TARGET_DIR:-$work/target}"
cargo build --quiet --release --manifest-path "$work/Cargo.toml" --target-dir "$target"
short=$("$target/release/probe" "$work/short" 4096)
long=$("$target/release/probe" "$work/long" 32)
echo "128 KiB as 4096 rows: $short MiB more at the peak; as 32 rows: $long MiB more"
[ "$short" -ge $((long + 4)) ]
