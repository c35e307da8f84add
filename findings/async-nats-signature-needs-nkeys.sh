#!/usr/bin/env bash
# async-nats 0.51.0 (crate), default-features = false, features = ["ring"]
#
# Behaviour: with_auth_callback takes an Auth whose public field `signature` holds the signed nonce, with any signer.
#   Without the cargo feature `nkeys` the client refuses to send it: connect() fails with "failed signing nonce", and the
#   server never sees CONNECT. The feature is only needed to write the signature in base64, and brings nkeys, ed25519-dalek,
#   signatory and some twenty crates under them.
# Seen:
#   connect: failed signing nonce
#   sent to the server: nothing
# Wrong guess: a caller that signs by itself (ring) needs no feature; Auth has the field, and it compiles. Or: the error
#   means that the callback failed.
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
async-nats = { version = "=0.51.0", default-features = false, features = ["ring"] }
tokio = { version = "=1.54.1", features = ["rt", "net", "time", "macros", "io-util"] }
TOML
cat >"$work/src/main.rs" <<'RS'
use std::io::{Read, Write};
use std::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let info = r#"INFO {"server_id":"S","server_name":"s","host":"127.0.0.1","port":4222,"version":"2.15.1","go":"go","proto":1,"headers":true,"max_payload":1048576,"client_id":1,"client_ip":"127.0.0.1","auth_required":true,"nonce":"n0nce"}"#;
        stream.write_all(format!("{info}\r\n").as_bytes()).unwrap();
        let mut sent = [0; 1024];
        let length = stream.read(&mut sent).unwrap_or(0);
        String::from_utf8_lossy(&sent[..length]).into_owned()
    });
    let options = async_nats::ConnectOptions::with_auth_callback(|nonce| async move {
        assert_eq!(nonce, b"n0nce");
        let mut auth = async_nats::Auth::new();
        auth.nkey = Some("UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4".into());
        auth.signature = Some(vec![7; 64]);
        Ok(auth)
    });
    let result = options.connect(address.to_string()).await;
    let error = result.err().map(|error| error.to_string()).unwrap_or_else(|| "no error".into());
    let sent = server.join().unwrap();
    println!("connect: {error}");
    println!("sent to the server: {}", if sent.is_empty() { "nothing" } else { &sent });
    assert!(error == "failed signing nonce" && sent.is_empty(), "the behaviour changed");
}
RS
cargo run --quiet --manifest-path "$work/Cargo.toml" --target-dir "${CARGO_TARGET_DIR:-$work/target}"
