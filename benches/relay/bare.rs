//! Rival (a): the same hyper server, answering without a store.
//!
//! It is the cost of the relay's API when nothing is behind it: hyper's HTTP/1.1 server on a Unix socket, one
//! current-thread runtime, the whole body read, a reply of the same status, members and headers. It parses no JSON,
//! checks no limit and keeps nothing, so no relay on hyper can be faster; the distance is what the relay adds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::http::Address;
use crate::process::Process;

/// The hidden word that makes this program that server.
pub const WORD: &str = "serve-without-a-store";

/// The server as a process of its own.
#[derive(Debug)]
pub struct Bare {
    /// The process.
    pub process: Process,
    /// Its address.
    pub address: Address,
}

impl Bare {
    /// Starts it and waits until it listens.
    pub async fn open(folder: &Path) -> anyhow::Result<Bare> {
        let socket = folder.join("bare.sock");
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = Process::start(command.arg(WORD).arg(&socket).stdin(Stdio::null()))?;
        let address = Address::Unix(socket);
        while address.connect().await.is_err() {
            anyhow::ensure!(process.ended().is_none(), "the server without a store ended by itself");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(Bare { process, address })
    }
}

/// Serves until the process that asked for it is gone.
pub fn serve(socket: &Path) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(accept(socket.to_owned()))
}

async fn accept(socket: PathBuf) -> anyhow::Result<()> {
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
        // A caller that hangs up is the end of its connection and of nothing else.
        tokio::spawn(connection);
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let batch = request.uri().path().ends_with("/messages");
    let body = request.into_body().collect().await?.to_bytes();
    let (status, content_type, body) = if batch {
        let lines = body.iter().filter(|byte| **byte == b'\n').count();
        (200, "application/x-ndjson", format!("{ANSWER}\n").repeat(lines).into())
    } else {
        (202, "application/json", Bytes::from_static(ANSWER.as_bytes()))
    };
    let reply = Response::builder()
        .status(status)
        .header("content-type", content_type)
        .header("relay-state", "QUEUED")
        .header("relay-message", "9f86d081-4200000")
        .header("relay-client-token", CLIENT_TOKEN)
        .header("x-amzn-requestid", CLIENT_TOKEN)
        .body(Full::new(body));
    Ok(reply.expect("the headers are well-formed"))
}

const CLIENT_TOKEN: &str = "6f1e0c52-9a41-4d7b-8f30-000000000000";
const ANSWER: &str = r#"{"ClientToken":"6f1e0c52-9a41-4d7b-8f30-000000000000","State":"QUEUED"}"#;
