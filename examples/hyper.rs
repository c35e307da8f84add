//! A bot's line with hyper, over the relay's Unix socket.
//!
//! ```sh
//! RELAY_SOCKET=/run/connect-relay/relay.sock CONNECTION_TOKEN=… CONTACT_ID=… cargo run --example hyper
//! ```

use std::env;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// One connection to the relay; dial a new one when a request fails, and send it again with the same `ClientToken`.
async fn dial(socket: &str) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = UnixStream::connect(socket).await?;
    let (relay, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // hyper leaves it to its caller to drive the connection.
    tokio::spawn(connection);
    Ok(relay)
}

/// 202 is on disk, 200 delivered.
async fn say(
    relay: &mut SendRequest<Full<Bytes>>,
    content: &str,
    client_token: &str,
    prefer: &str,
) -> anyhow::Result<(StatusCode, String)> {
    let body = json!({ "ContentType": "text/plain", "Content": content, "ClientToken": client_token }).to_string();
    let request = Request::post("/participant/message")
        .header("Host", "relay") // hyper's connection adds none
        .header("Content-Type", "application/json")
        .header("X-Amz-Bearer", env::var("CONNECTION_TOKEN")?)
        .header("Relay-Conversation", format!("{}/bot", env::var("CONTACT_ID")?))
        .header("Prefer", prefer)
        .body(Full::from(body))?;
    relay.ready().await?;
    let reply = timeout(Duration::from_secs(10), relay.send_request(request)).await??;
    let status = reply.status();
    let answer = reply.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&answer).into_owned()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let socket = env::var("RELAY_SOCKET").unwrap_or_else(|_| "/run/connect-relay/relay.sock".into());
    let mut relay = dial(&socket).await?;
    for (content, client_token, prefer) in
        [("Hello!", "greeting-1", "respond-async"), ("How can I help?", "question-1", "wait=8")]
    {
        let (status, answer) = say(&mut relay, content, client_token, prefer).await?;
        println!("{} {answer}", status.as_u16());
        anyhow::ensure!(status.is_success(), "the relay refused it");
    }
    Ok(())
}
