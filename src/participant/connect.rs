//! Connecting to the Participant Service: TCP, a proxy's CONNECT and TLS, all under one time-out.
//!
//! Nothing of a request is written before the connection is complete, so a failure here, the time-out included, cannot
//! have delivered anything. hyper's own connect time-out covers TCP only, hence the wrapper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::{StatusCode, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower_service::Service;

use super::causes::causes_of;

/// The longest head of a proxy's answer.
const PROXY_HEAD_BYTES_MAX: usize = 8 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Makes connections within the time limit.
#[derive(Clone)]
pub(super) struct Connector {
    route: Route,
    limit: Duration,
}

#[derive(Clone)]
enum Route {
    Direct(HttpsConnector<HttpConnector>),
    Proxied(HttpsConnector<Tunnel>),
}

impl Connector {
    /// A connector over `tls`, through the proxy if there is one.
    pub(super) fn new(tls: ClientConfig, proxy: Option<Uri>, limit: Duration) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // The limit is divided among a name's addresses, so that one that drops packets leaves time for the next.
        tcp.set_connect_timeout(Some(limit));
        // Keep-alives detect an idle connection whose other end has vanished before a message is written to it.
        tcp.set_keepalive(Some(Duration::from_secs(15)));
        let tls = Arc::new(tls);
        let route = match proxy {
            Some(proxy) => Route::Proxied((Tunnel { proxy, tcp }, tls).into()),
            None => Route::Direct((tcp, tls).into()),
        };
        Connector { route, limit }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.route {
            Route::Direct(inner) => inner.poll_ready(task),
            Route::Proxied(inner) => inner.poll_ready(task),
        }
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = match &mut self.route {
            Route::Direct(inner) => inner.call(to),
            Route::Proxied(inner) => inner.call(to),
        };
        let limit = self.limit;
        Box::pin(async move {
            tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
                let text = format!("no connection within {}", humantime::format_duration(limit));
                Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
            })
        })
    }
}

/// A proxy's CONNECT. hyper-util's own does not report the proxy's status.
#[derive(Clone)]
struct Tunnel {
    proxy: Uri,
    tcp: HttpConnector,
}

impl Service<Uri> for Tunnel {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.tcp.call(self.proxy.clone());
        // The URI has no user name and no password: `Participant::new` refuses them.
        let name = format!("the proxy {} (sender.proxy)", self.proxy.authority().map_or("", |of| of.as_str()));
        Box::pin(async move {
            let mut stream = connecting.await.map_err(|error| format!("connect to {name}: {}", causes_of(&error)))?;
            connect_through(stream.inner_mut(), &to).await.map_err(|why| format!("{name} {why}"))?;
            Ok(stream)
        })
    }
}

/// Asks the proxy for a tunnel; the error describes the proxy's reaction.
async fn connect_through(stream: &mut TcpStream, to: &Uri) -> Result<(), String> {
    let (host, port) = (to.host().unwrap_or_default(), to.port_u16().unwrap_or(443));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "closed the connection without an answer to CONNECT".to_owned(),
        _ => format!("did not answer CONNECT: {error}"),
    };
    let asked = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    stream.write_all(asked.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::new();
    // Byte by byte: the bytes after the head belong to the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == PROXY_HEAD_BYTES_MAX {
            return Err(format!("answered CONNECT with a head of more than {} KiB", PROXY_HEAD_BYTES_MAX >> 10));
        }
        head.push(stream.read_u8().await.map_err(failed)?);
    }
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| StatusCode::from_bytes(rest.get(2..5)?).ok());
    match status {
        Some(status) if status.is_success() => Ok(()),
        Some(StatusCode::PROXY_AUTHENTICATION_REQUIRED) => Err(
            "answered CONNECT with 407 Proxy Authentication Required: the relay sends no credentials, so the proxy has to \
             allow this host without them"
                .into(),
        ),
        Some(status) => Err(format!("answered CONNECT with {status}: it has to allow {host}:{port}")),
        None => Err("did not answer CONNECT in HTTP/1".into()),
    }
}
