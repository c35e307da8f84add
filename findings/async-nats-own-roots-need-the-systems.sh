#!/usr/bin/env bash
# async-nats 0.51.0 (crate)
#
# Behaviour: with a complete rustls configuration (tls_client_config) the client still loads the system's certificates for
#   each TLS connection, does not use them, and fails if one of them cannot be read. With add_root_certificates, and no
#   tls_client_config, it does not load them.
# Seen:
#   the system's roots are readable: the handshake begins
#   SSL_CERT_FILE=/nowhere: TLS error: could not load platform certs
# Wrong guess: who gives a rustls configuration decides alone what is trusted; in an image without certificates, or with one
#   that is broken, only the roots of that configuration matter.
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
rustls = { version = "0.23", default-features = false, features = ["ring", "std", "tls12"] }
tokio = { version = "=1.54.1", features = ["rt", "net", "time", "macros", "io-util"] }
TOML
cat >"$work/src/main.rs" <<'RS'
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let info = r#"INFO {"server_id":"S","server_name":"s","host":"127.0.0.1","port":4222,"version":"2.15.1","go":"go","proto":1,"headers":true,"max_payload":1048576,"client_id":1,"client_ip":"127.0.0.1","tls_required":true}"#;
        stream.write_all(format!("{info}\r\n").as_bytes()).unwrap();
        let mut hello = [0; 1024];
        // The first byte of a TLS handshake is 22.
        stream.read(&mut hello).unwrap_or(0) > 0 && hello[0] == 22
    });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = rustls::RootCertStore::empty();
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let options = async_nats::ConnectOptions::new().tls_client_config(tls);
    let error = options.connect(format!("tls://{address}")).await.err().unwrap().to_string();
    let first = error.lines().next().unwrap().split(": ").take(2).collect::<Vec<_>>().join(": ");
    println!("{}", if server.join().unwrap() { "the handshake begins" } else { &first });
}
RS
target="${CARGO_TARGET_DIR:-$work/target}"
cargo build --quiet --manifest-path "$work/Cargo.toml" --target-dir "$target"
readable=$(env -u SSL_CERT_FILE -u SSL_CERT_DIR "$target/debug/probe")
unreadable=$(env -u SSL_CERT_DIR SSL_CERT_FILE=/nowhere "$target/debug/probe")
echo "the system's roots are readable: $readable"
echo "SSL_CERT_FILE=/nowhere: $unreadable"
[ "$readable" = "the handshake begins" ] && [ "$unreadable" = "TLS error: could not load platform certs" ]
