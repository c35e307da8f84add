#!/usr/bin/env bash
# config 0.15.27 (crate)
#
# Behaviour: Environment::try_parsing(true) turns a variable into a number or a boolean before the type of the field
#   is known. A field of type String receives the printed number, so the text of the variable is lost. The option is
#   needed as soon as one other field is a list.
# Seen:
#   ACCOUNT: 012345678901 -> 12345678901
#   VERSION: 1.10 -> 1.1
#   COMMIT: 12e4567 -> inf
#   BUILD: 7e3 -> 7000
#   ORDER: 123456789012345678901 -> 123456789012345680000
#   SUFFIX: +15 -> 15
# Wrong guess: a String field receives the string; parsing is tried for fields that are numbers.
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
config = { version = "=0.15.27", default-features = false }
TOML
cat >"$work/src/main.rs" <<'RS'
use std::collections::HashMap;

use config::{Config, Environment};

const VARIABLES: [(&str, &str, &str); 6] = [
    ("ACCOUNT", "012345678901", "12345678901"),
    ("VERSION", "1.10", "1.1"),
    ("COMMIT", "12e4567", "inf"),
    ("BUILD", "7e3", "7000"),
    ("ORDER", "123456789012345678901", "123456789012345680000"),
    ("SUFFIX", "+15", "15"),
];

fn main() {
    let variables: HashMap<String, String> =
        VARIABLES.iter().map(|(key, value, _)| (key.to_string(), value.to_string())).collect();
    let read = |parse: bool| {
        let source = Environment::default().try_parsing(parse).source(Some(variables.clone()));
        let config = Config::builder().add_source(source).build().expect("a configuration");
        config.try_deserialize::<HashMap<String, String>>().expect("strings")
    };
    let (plain, parsed) = (read(false), read(true));
    for (key, value, changed) in VARIABLES {
        let field = key.to_lowercase();
        println!("{key}: {value} -> {}", parsed[&field]);
        assert_eq!(plain[&field], value, "without try_parsing");
        assert_eq!(parsed[&field], changed, "the behaviour changed");
    }
}
RS
CARGO_TARGET_DIR="$work/target" cargo run --quiet --manifest-path "$work/Cargo.toml"
