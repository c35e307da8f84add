#!/usr/bin/env bash
# prometheus 0.14.0 (crate), feature "process"; Linux
#
# Behaviour: process_cpu_seconds_total is a counter of integers. It is rounded down to whole seconds, where the
#   client libraries of other languages export hundredths. A process that uses 0.6 s of CPU exports 0. A process that
#   uses 1 % of a core changes the counter once in 100 s, so rate() over 1 min is either 0 or 1.7 %.
# Seen: CPU time in /proc over 1.5 s, process_cpu_seconds_total was only ever 0 and 1
# Wrong guess: the counter has the resolution of its source (10 ms), as in Go, Python and Java.
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
prometheus = { version = "=0.14.0", default-features = false, features = ["process"] }
TOML
cat >"$work/src/main.rs" <<'RS'
use std::fs;
use std::hint::black_box;

/// The CPU time of this process in clock ticks (100 a second): fields 14 and 15 of the file.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = &stat[stat.rfind(')').expect("a name") + 2..];
    let fields: Vec<&str> = after_name.split(' ').collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

fn exported() -> f64 {
    let families = prometheus::gather();
    let family = families.iter().find(|f| f.name() == "process_cpu_seconds_total").expect("the metric");
    family.get_metric()[0].get_counter().get_value()
}

fn main() {
    let mut values = vec![];
    // Bounded by CPU time, not by the clock: 1.5 to 1.99 s of it.
    while cpu_ticks() < 150 {
        for n in 0..200_000_u64 {
            black_box(n);
        }
        let value = exported();
        if values.last() != Some(&value) {
            values.push(value);
        }
    }
    assert_eq!(values, [0.0, 1.0], "the behaviour changed");
    println!("CPU time in /proc over 1.5 s, process_cpu_seconds_total was only ever 0 and 1");
}
RS
CARGO_TARGET_DIR="$work/target" cargo run --quiet --manifest-path "$work/Cargo.toml"
