#!/usr/bin/env bash
# http 1.5.0, hyper-util 0.1.21 (crate)
#
# Behaviour: http::Uri accepts an authority whose port is not a port (70000, or 8080x). port() and port_u16() return
#   None for it, as for a URL without a port, so HttpConnector dials port 80 of the host. No step reports the mistake:
#   the parsed URL still prints the text of the port.
# Seen:
#   127.0.0.1:70000: parsed, port None, dials 127.0.0.1:80
#   127.0.0.1:8080x: parsed, port None, dials 127.0.0.1:80
#   127.0.0.1: parsed, port None, dials 127.0.0.1:80
# Wrong guess: a URL with an impossible port is an error of parse(), or of the connector; a configuration that
#   checks its URL with parse::<Uri>() finds a typo in the port.
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
http = "=1.5.0"
hyper-util = { version = "=0.1.21", default-features = false, features = ["client-legacy", "tokio"] }
tokio = { version = "=1.54.1", features = ["rt"] }
tower-service = "=0.3.3"
TOML
cat >"$work/src/main.rs" <<'RS'
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tower_service::Service;

fn main() {
    let authority = std::env::args().nth(1).expect("an authority");
    let uri: Uri = format!("http://{authority}/").parse().expect("the behaviour changed: parse() fails");
    assert_eq!(uri.authority().expect("an authority").as_str(), authority);
    println!("{authority}: parsed, port {:?}", uri.port_u16());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Whether something listens on port 80 does not matter: the trace shows the address.
    let _ = runtime.block_on(HttpConnector::new().call(uri));
}
RS
CARGO_TARGET_DIR="$work/target" cargo build --quiet --manifest-path "$work/Cargo.toml"
for authority in 127.0.0.1:70000 127.0.0.1:8080x 127.0.0.1; do
  parsed=$(strace -f -o "$work/trace" -e trace=connect "$work/target/debug/probe" "$authority")
  port=$(sed -n 's/.*connect(.*sin_port=htons(\([0-9]*\)), sin_addr=inet_addr("127.0.0.1").*/\1/p' "$work/trace")
  echo "$parsed, dials 127.0.0.1:$port"
  if [ "$parsed" != "$authority: parsed, port None" ] || [ "$port" != 80 ]; then
    echo "the behaviour changed" >&2
    exit 1
  fi
done
