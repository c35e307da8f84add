//! A very small HTTP/1.1 client for the relay's own Unix sockets: one request, one connection, one reply.
//!
//! A connection for each request is slower than a kept one, and simpler: the commands send few requests, and a command
//! that watches must continue after a restart of the relay anyway.
//!
//! Its errors are for people. The most frequent one, that no relay is running, names the socket and the next step.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::CONTENT_TYPE;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::control::ErrorBody;

/// The default bots' socket.
pub const INGRESS: &str = "/run/connect-relay/relay.sock";
/// The default operators' socket.
pub const CONTROL: &str = "/var/lib/connect-relay/control.sock";

/// The operators' socket, as a command finds it.
#[derive(Debug, clap::Args)]
pub struct ControlSocket {
    /// The relay's control socket [default: $CONNECT_RELAY__CONTROL__SOCKET, then /var/lib/connect-relay/control.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "dir")]
    pub socket: Option<PathBuf>,
    /// The folder that the relay was started with (`run --dir DIR`).
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

impl ControlSocket {
    /// The path of the socket.
    pub fn path(&self) -> PathBuf {
        let of_dir = || self.dir.as_ref().map(|dir| dir.join("private/control.sock"));
        let of_environment = || std::env::var_os("CONNECT_RELAY__CONTROL__SOCKET").map(PathBuf::from);
        self.socket.clone().or_else(of_dir).or_else(of_environment).unwrap_or_else(|| CONTROL.into())
    }
}

/// Sends a command to the relay's control socket, and parses the reply.
pub async fn command<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    command: &impl Serialize,
    within: Duration,
) -> anyhow::Result<T> {
    parse(socket, &success_body(socket, post(socket, path, command, within).await?)?)
}

/// Asks the relay's control socket for something. Returns the relay's own JSON as a line, and the parsed reply.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str, within: Duration) -> anyhow::Result<(String, T)> {
    let request = Request::get(path).body(Full::default())?;
    json_and_parsed(socket, send(socket, request, within).await?)
}

/// The relay's own JSON of a successful reply as a line, and the parsed reply.
pub fn json_and_parsed<T: DeserializeOwned>(socket: &Path, reply: Response<Bytes>) -> anyhow::Result<(String, T)> {
    let body = success_body(socket, reply)?;
    let parsed = parse(socket, &body)?;
    Ok((String::from_utf8_lossy(&body).trim_end().to_owned() + "\n", parsed))
}

/// Sends a command to the relay's control socket, and returns the reply, also an error.
pub async fn post(
    socket: &Path,
    path: &str,
    command: &impl Serialize,
    within: Duration,
) -> anyhow::Result<Response<Bytes>> {
    let body = match serde_json::to_vec(command)? {
        null if null == b"null" => Bytes::new(),
        object => object.into(),
    };
    let request = Request::post(path).header(CONTENT_TYPE, "application/json").body(Full::new(body))?;
    send(socket, request, within).await
}

/// Returns the body of a successful reply of the control socket.
///
/// # Errors
/// With the relay's own text, if the reply is an error; with the socket that is needed, if it came from the bots' one.
pub fn success_body(socket: &Path, reply: Response<Bytes>) -> anyhow::Result<Bytes> {
    if reply.status().is_success() {
        return Ok(reply.into_body());
    }
    if reply.headers().contains_key("x-amzn-errortype") {
        bail!(
            "{} is the bots' socket: this command needs the operators' (control.socket; with run --dir DIR it is \
             DIR/private/control.sock), given by --socket or --dir",
            socket.display()
        );
    }
    bail!("the relay answers {}: {}", reply.status().as_u16(), error_text(reply.body()))
}

/// Parses a reply of the control socket.
pub fn parse<T: DeserializeOwned>(socket: &Path, body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).with_context(|| format!("{} is not a relay's control socket", socket.display()))
}

/// Returns the text of an error reply.
pub fn error_text(body: &[u8]) -> String {
    serde_json::from_slice(body).map_or_else(
        |_| String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned(),
        |ErrorBody { error }| error.strip_prefix("connect-relay: ").map_or(error.clone(), str::to_owned),
    )
}

/// Sends one request and reads its whole reply.
///
/// # Errors
/// If no process listens, the connection breaks, or the time is over.
pub async fn send(socket: &Path, request: Request<Full<Bytes>>, within: Duration) -> anyhow::Result<Response<Bytes>> {
    match tokio::time::timeout(within, exchange(socket, request)).await {
        Ok(reply) => reply,
        Err(_) => {
            bail!("the relay at {} did not answer within {}", socket.display(), humantime::format_duration(within))
        }
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
    // Both run in this task: the connection moves the bytes. If it ends first, the bytes that it has read are still
    // available.
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
            anyhow!("the relay is not running: no process listens on {socket}; a relay that was killed left it there")
        }
        ErrorKind::PermissionDenied => {
            anyhow!("connect to {socket}: permission denied: only users that the socket's mode allows can connect")
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

    #[test]
    fn error_reply_is_shown_with_the_relays_text() {
        let reply = |body: &'static str| Response::builder().status(503).body(Bytes::from(body)).unwrap();
        let socket = Path::new("/run/relay.sock");
        let error = |body| success_body(socket, reply(body)).unwrap_err().to_string();
        assert_eq!(error(r#"{"Error":"connect-relay: the store failed"}"#), "the relay answers 503: the store failed");
        assert_eq!(error("<html>"), "the relay answers 503: <html>");
        assert_eq!(success_body(socket, Response::new(Bytes::from("{}"))).unwrap(), "{}");
        let of_the_bots = Response::builder().status(404).header("x-amzn-ErrorType", "UnknownOperationException");
        let error = success_body(socket, of_the_bots.body(Bytes::new()).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("/run/relay.sock is the bots' socket: this command needs the operators'"), "{error}");
    }

    #[test]
    fn dir_names_the_socket_inside_it() {
        let control = ControlSocket { socket: None, dir: Some("/tmp/r".into()) };
        assert_eq!(control.path(), PathBuf::from("/tmp/r/private/control.sock"));
    }

    #[tokio::test]
    async fn missing_relay_is_reported_with_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let error = send(&path, get(), LONG).await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("the relay is not running: there is no socket {} (--socket names another)", path.display())
        );
        drop(UnixListener::bind(&path).unwrap());
        let error = send(&path, get(), LONG).await.unwrap_err().to_string();
        assert!(error.starts_with("the relay is not running: no process listens on "), "{error}");
        let error = send(folder.path(), get(), LONG).await.unwrap_err().to_string();
        assert_eq!(error, format!("connect to {}: it is not a socket", folder.path().display()));
    }

    #[tokio::test]
    async fn reply_is_read_to_its_end_if_the_connection_closes_with_it() {
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
            assert_eq!(send(&path, get(), LONG).await.unwrap().into_body(), "ok");
            assert!(send(&path, get(), LONG).await.unwrap_err().to_string().starts_with("talk to the relay at "));
        };
        tokio::join!(serve, ask_twice);
    }

    #[tokio::test]
    async fn request_without_an_answer_times_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = send(&path, get(), Duration::from_millis(20)).await.unwrap_err().to_string();
        assert!(error.ends_with("did not answer within 20ms"), "{error}");
    }
}
