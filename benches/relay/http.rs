//! One keep-alive connection of the load generator: a request's bytes go out as they are, a reply is parsed only as far
//! as its length must be known.
//!
//! A client library would spend more time than the relay does, and on the same two cores; this one costs a few
//! microseconds a request. It understands what an HTTP/1.1 server may answer here: `Content-Length` or chunks, one
//! request at a time.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// The address of a server.
#[derive(Clone, Debug)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

impl Address {
    /// A connection of its own.
    pub async fn connect(&self) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match self {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        Ok(Connection { stream, input: Vec::with_capacity(16 * 1024) })
    }

    /// One GET on a connection of its own: the body of a 200.
    pub async fn get(&self, path: &str, headers: &str) -> anyhow::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\n{headers}\r\n");
        let mut connection = self.connect().await.with_context(|| format!("connect to {self:?}"))?;
        let reply = connection.call(request.as_bytes()).await.with_context(|| format!("GET {path}"))?;
        anyhow::ensure!(reply.status == 200, "GET {path}: {reply}");
        Ok(String::from_utf8_lossy(&reply.body).into_owned())
    }
}

/// A connection; one request is on its way at a time.
pub struct Connection {
    stream: Box<dyn Stream>,
    input: Vec<u8>,
}

impl Connection {
    /// Sends a request and reads its whole reply.
    pub async fn call(&mut self, request: &[u8]) -> io::Result<Reply> {
        self.stream.write_all(request).await?;
        self.input.clear();
        let head = self.read_past(b"\r\n\r\n", 0).await?;
        let (status, framing) = parse(&self.input[..head])?;
        let body = match framing {
            Framing::Length(length) => {
                self.read_to(head + length).await?;
                self.input[head..head + length].to_vec()
            }
            Framing::Chunked => self.chunks(head).await?,
        };
        Ok(Reply { status, body })
    }

    async fn chunks(&mut self, mut at: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let data = self.read_past(b"\r\n", at).await?;
            let line = std::str::from_utf8(&self.input[at..data - 2]).unwrap_or_default();
            let size = line.split(';').next().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
            let size = size.ok_or_else(|| malformed("a chunk without a size"))?;
            self.read_to(data + size + 2).await?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&self.input[data..data + size]);
            at = data + size + 2;
        }
    }

    /// Reads until `mark` is at `from` or later; returns the position after it.
    async fn read_past(&mut self, mark: &[u8], mut from: usize) -> io::Result<usize> {
        loop {
            let unseen = self.input.get(from..).unwrap_or_default();
            if let Some(at) = unseen.windows(mark.len()).position(|bytes| bytes == mark) {
                return Ok(from + at + mark.len());
            }
            from = from.max(self.input.len().saturating_sub(mark.len() - 1));
            self.read_more().await?;
        }
    }

    async fn read_to(&mut self, length: usize) -> io::Result<()> {
        while self.input.len() < length {
            self.read_more().await?;
        }
        Ok(())
    }

    async fn read_more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.input).await? {
            0 => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection before it answered"))
            }
            _ => Ok(()),
        }
    }
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The body, out of its chunks.
    pub body: Vec<u8>,
}

/// For an error's text: the status and the beginning of the body.
impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.body[..self.body.len().min(300)];
        write!(f, "{} {}", self.status, String::from_utf8_lossy(shown))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Framing {
    Length(usize),
    Chunked,
}

fn parse(head: &[u8]) -> io::Result<(u16, Framing)> {
    let head = std::str::from_utf8(head).map_err(|_| malformed("a head that is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.get(9..12)).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| malformed("a reply without a status"))?;
    let mut framing = Framing::Length(0);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            framing = Framing::Length(value.trim().parse().map_err(|_| malformed("a length that is no number"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked") {
            framing = Framing::Chunked;
        }
    }
    Ok((status, framing))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
