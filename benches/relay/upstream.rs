//! A Participant Service that answers one message and no other: it reports the first delivery, and then holds
//! the relay still, with its queue as full as it was.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::measure::now;

/// A listener in this process, on this runtime.
#[derive(Debug)]
pub struct Upstream {
    /// Its address.
    pub address: SocketAddr,
    /// Resolves at the first message, with the time at which all of it had come.
    pub first: oneshot::Receiver<Instant>,
    server: JoinHandle<()>,
}

impl Upstream {
    /// Listens.
    pub async fn open() -> anyhow::Result<Upstream> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (report, first) = oneshot::channel();
        let server = tokio::spawn(serve(listener, Arc::new(Mutex::new(Some(report)))));
        Ok(Upstream { address, first, server })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Taken by the first message.
type Report = Arc<Mutex<Option<oneshot::Sender<Instant>>>>;

async fn serve(listener: TcpListener, report: Report) {
    while let Ok((stream, _)) = listener.accept().await {
        let report = Arc::clone(&report);
        let service = service_fn(move |request| answer(request, Arc::clone(&report)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(request: Request<Incoming>, report: Report) -> Result<Response<Full<Bytes>>, hyper::Error> {
    request.into_body().collect().await?;
    let sender = report.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(report) = sender else { return std::future::pending().await };
    // The receiver may be gone; the answer is sent in any case.
    let _ = report.send(now());
    let body = r#"{"Id":"6f1e0c52-9a41-4d7b-8f30-000000000000","AbsoluteTime":"2019-11-08T02:41:28.172Z"}"#;
    let reply = Response::builder()
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(body.as_bytes())));
    Ok(reply.expect("the headers are well-formed"))
}
