#!/usr/bin/env bash
# hyper-util 0.1.21 (crate), feature "client-proxy"
#
# Behaviour: Tunnel reads the proxy's answer to CONNECT into a buffer and drops what follows the blank line. A peer
#   that speaks first (SMTP, SSH, MySQL) loses its greeting whenever it arrives in the same read as the answer; the
#   tunnel opens without an error. Only 200 opens a tunnel (RFC 9110: any 2xx), and the error text has no status.
# Seen:
#   200, then the greeting in a later packet: opened, read "220 ready"
#   200 and the greeting in one packet: opened, read ""
#   201: error "tunnel error: unsuccessful"
#   503: error "tunnel error: unsuccessful"
# Wrong guess: a connection that the connector returns starts at the first byte of the peer; the error says what the
#   proxy answered.
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
hyper-util = { version = "=0.1.21", default-features = false, features = ["client-legacy", "client-proxy", "tokio"] }
tokio = { version = "=1.54.1", features = ["io-util", "macros", "net", "rt", "sync", "time"] }
tower-service = "=0.3.3"
TOML
cat >"$work/src/main.rs" <<'RS'
use std::time::Duration;

use hyper_util::client::legacy::connect::{proxy::Tunnel, HttpConnector};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_service::Service;

/// A proxy that answers CONNECT with `answer`, and sends `later` once the tunnel is open. Returns what the client sees.
async fn tunnel(answer: &str, later: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let (opened, is_open) = oneshot::channel();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![];
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        if is_open.await.is_ok() {
            stream.write_all(later.as_bytes()).await.unwrap();
        }
    };
    let client = async {
        let mut tunnel = Tunnel::new(proxy.parse().unwrap(), HttpConnector::new());
        match tunnel.call("http://mail.example:25".parse().unwrap()).await {
            Ok(connection) => {
                opened.send(()).unwrap();
                let mut read = String::new();
                connection.into_inner().read_to_string(&mut read).await.unwrap();
                format!("opened, read {read:?}")
            }
            Err(error) => {
                drop(opened);
                format!("error {:?}", error.to_string())
            }
        }
    };
    tokio::join!(server, client).1
}

async fn probe() {
    let ok = "HTTP/1.1 200 OK\r\n\r\n";
    for (what, answer, later, expected) in [
        ("200, then the greeting in a later packet", ok, "220 ready", "opened, read \"220 ready\""),
        ("200 and the greeting in one packet", &format!("{ok}220 ready"), "", "opened, read \"\""),
        ("201", "HTTP/1.1 201 Created\r\n\r\n", "", "error \"tunnel error: unsuccessful\""),
        ("503", "HTTP/1.1 503 Service Unavailable\r\n\r\n", "", "error \"tunnel error: unsuccessful\""),
    ] {
        let seen = tunnel(answer, later).await;
        println!("{what}: {seen}");
        assert_eq!(seen, expected, "the behaviour changed");
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), probe()).await.expect("no end") });
}
RS
CARGO_TARGET_DIR="$work/target" cargo run --quiet --manifest-path "$work/Cargo.toml"
