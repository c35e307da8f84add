#!/usr/bin/env bash
# sled 0.34.7 (crate), strace (Debian); Linux
#
# Behaviour: flush() on Linux calls sync_file_range and neither fsync nor fdatasync. sync_file_range writes no file
#   metadata and does not empty the write cache of the disk, so a write that flush() acknowledged can be lost in a
#   power cut. The documentation of flush() says that it calls fsync. A value that is stored as a file of its own
#   (above 131,052 bytes, in blobs/) is not synced either, nor is its directory.
# Seen:
#   20 flushes of small values: fsync 0, fdatasync 0, sync_file_range at least 20
#   1 flush of a large value: fsync 0, fdatasync 0, files in blobs/: 1
# Wrong guess: flush() makes a write durable, as documented.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
command -v strace >/dev/null || { echo "strace is missing: apt-get install strace" >&2; exit 2; }

mkdir "$work/src"
cat >"$work/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2021"
[dependencies]
sled = "=0.34.7"
TOML
cat >"$work/src/main.rs" <<'RS'
use std::fs::{read_dir, write};

fn main() {
    let path = std::env::args().nth(1).expect("a folder");
    let db = sled::Config::new().path(&path).flush_every_ms(None).open().expect("a database");
    db.insert("first", "value").unwrap();
    db.flush().unwrap();
    // A write to a path that does not exist marks a phase in the trace.
    let mark = |name: &str| write(format!("/nonexistent/{name}"), "").unwrap_err();
    mark("small");
    for n in 0..20_u32 {
        db.insert(n.to_be_bytes(), "value").unwrap();
        db.flush().unwrap();
    }
    mark("large");
    db.insert("large", vec![7; 200_000]).unwrap();
    db.flush().unwrap();
    mark("end");
    println!("{}", read_dir(format!("{path}/blobs")).map_or(0, Iterator::count));
}
RS
CARGO_TARGET_DIR="$work/target" cargo build --quiet --manifest-path "$work/Cargo.toml"
blobs=$(strace -f -o "$work/trace" -e trace=openat,fsync,fdatasync,sync_file_range,msync,sync,syncfs \
  "$work/target/debug/probe" "$work/db")

# Prints the calls of the given kind between two marks.
count() {
  awk -v from="/nonexistent/$1" -v to="/nonexistent/$2" -v call="(^|[ ])$3[(]" \
    'index($0, to) { on = 0 } on && $0 ~ call { n++ } index($0, from) { on = 1 } END { print n + 0 }' "$work/trace"
}
ranges=$(count small large sync_file_range)
echo "20 flushes of small values: fsync $(count small large fsync), fdatasync $(count small large fdatasync)," \
  "sync_file_range $ranges"
echo "1 flush of a large value: fsync $(count large end fsync), fdatasync $(count large end fdatasync)," \
  "files in blobs/: $blobs"
failed=0
for call in fsync fdatasync msync sync syncfs; do
  [ "$(count small end "$call")" = 0 ] || { echo "the behaviour changed: $call was called" >&2; failed=1; }
done
[ "$ranges" -ge 20 ] && [ "$blobs" = 1 ] || { echo "the behaviour changed" >&2; failed=1; }
exit "$failed"
