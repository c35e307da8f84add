//! A very small HTTP/1.1 client for the relay's own Unix sockets: one request, one connection, one reply.
//!
//! A connection for each request is dearer than one kept, and simpler: the commands ask seldom, and one that watches
//! must outlive a restart of the relay anyway.
//!
//! Its errors are for people. The commonest one, that no relay is running, names the socket and says what to do.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// The bots' socket, where nothing else is said.
pub const INGRESS: &str = "/run/connect-relay/relay.sock";
/// The operators' socket, where nothing else is said.
pub const CONTROL: &str = "/var/lib/connect-relay/control.sock";

/// Sends one request and reads its whole reply.
///
/// # Errors
/// When nobody listens, the connection breaks, or the time is over.
pub async fn ask(socket: &Path, request: Request<Full<Bytes>>, within: Duration) -> anyhow::Result<Response<Bytes>> {
    match tokio::time::timeout(within, exchange(socket, request)).await {
        Ok(reply) => reply,
        Err(_) => bail!("the relay at {} did not answer within {within:?}", socket.display()),
    }
}

async fn exchange(socket: &Path, mut request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
    let broken = || format!("talk to the relay at {}", socket.display());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(broken)?;
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let mut reply = pin!(async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>(Response::from_parts(head, body.collect().await?.to_bytes()))
    });
    // Both in this task: the connection moves the bytes. When it ends first, what it has read is still to be had.
    let early = tokio::select! {
        biased;
        reply = &mut reply => Some(reply),
        _ = connection => None,
    };
    match early {
        Some(reply) => reply,
        None => reply.await,
    }
    .with_context(broken)
}

fn unreachable(socket: &Path, error: &std::io::Error) -> anyhow::Error {
    let is_socket = std::fs::metadata(socket).is_ok_and(|file| file.file_type().is_socket());
    let socket = socket.display();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("the relay is not running: there is no socket {socket} (--socket names another)")
        }
        ErrorKind::ConnectionRefused if !is_socket => anyhow!("connect to {socket}: it is not a socket"),
        ErrorKind::ConnectionRefused => {
            anyhow!("the relay is not running: nobody listens on {socket}, a relay that was killed left it behind")
        }
        ErrorKind::PermissionDenied => {
            anyhow!("connect to {socket}: this user may not; the relay's user, or one its mode lets in, may")
        }
        _ => anyhow!("connect to {socket}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn get() -> Request<Full<Bytes>> {
        Request::get("/status").body(Full::default()).unwrap()
    }

    #[tokio::test]
    async fn no_relay_is_said_in_words_that_name_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let error = ask(&path, get(), LONG).await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("the relay is not running: there is no socket {} (--socket names another)", path.display())
        );
        drop(UnixListener::bind(&path).unwrap());
        let error = ask(&path, get(), LONG).await.unwrap_err().to_string();
        assert!(error.starts_with("the relay is not running: nobody listens on "), "{error}");
        let error = ask(folder.path(), get(), LONG).await.unwrap_err().to_string();
        assert_eq!(error, format!("connect to {}: it is not a socket", folder.path().display()));
    }

    #[tokio::test]
    async fn reply_is_read_whole_though_the_connection_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await.unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await.unwrap();
        };
        let ask_twice = async {
            assert_eq!(ask(&path, get(), LONG).await.unwrap().into_body(), "ok");
            assert!(ask(&path, get(), LONG).await.unwrap_err().to_string().starts_with("talk to the relay at "));
        };
        tokio::join!(serve, ask_twice);
    }

    #[tokio::test]
    async fn silence_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = ask(&path, get(), Duration::from_millis(20)).await.unwrap_err().to_string();
        assert!(error.ends_with("did not answer within 20ms"), "{error}");
    }
}
