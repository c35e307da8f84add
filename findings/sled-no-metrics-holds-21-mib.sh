#!/usr/bin/env bash
# sled 0.34.7 (crate); Linux, glibc
#
# Behaviour: with the feature no_metrics (a default one) sled still makes the 41 histograms of its metrics when it opens,
#   65,536 counters of 8 bytes each, and nothing reads or writes them again. They are filled with zeros one by one. A
#   release build keeps these 20.5 MiB resident, unless its optimiser turns the fill into memory that is zero already:
#   with fat LTO it does, without LTO it does not, so the build profile decides. The feature miri_optimizations,
#   meant for an interpreter, asks for zeroed memory, and the pages stay untouched.
# Seen: private memory of a process that has opened an empty database, in MiB:
#   no_metrics, without LTO: 21.0
#   no_metrics, with fat LTO: 1.1
#   no_metrics and miri_optimizations, without LTO: 0.5
# Wrong guess: without metrics there is no memory for metrics; and a build profile changes speed and the size of the
#   binary, not what is held in memory.
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
sled = { version = "=0.34.7", default-features = false, features = ["no_metrics"] }
[features]
zeroed = ["sled/miri_optimizations"]
[profile.release]
lto = "off"
TOML
cat >"$work/src/main.rs" <<'RS'
fn main() {
    let path = std::env::args().nth(1).expect("a folder");
    let config = sled::Config::new().path(&path).cache_capacity(1 << 20).flush_every_ms(None);
    let db = config.open().expect("a database");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    println!("{}", line.split_whitespace().nth(1).unwrap());
    drop(db);
}
RS
# Prints the private memory in KiB of a build with these features.
measure() {
  CARGO_TARGET_DIR="$work/target" cargo build --quiet --release --manifest-path "$work/Cargo.toml" --features "$1"
  "$work/target/release/probe" "$work/db-$1"
}
plain=$(measure '')
lto=$(CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 measure '')
zeroed=$(measure zeroed)
mib() { awk -v kib="$1" 'BEGIN { printf "%.1f", kib / 1024 }'; }
echo "no_metrics, without LTO: $(mib "$plain")"
echo "no_metrics, with fat LTO: $(mib "$lto")"
echo "no_metrics and miri_optimizations, without LTO: $(mib "$zeroed")"
[ $((plain - zeroed)) -gt 18000 ] && [ $((plain - lto)) -gt 18000 ] || { echo "the behaviour changed" >&2; exit 1; }
