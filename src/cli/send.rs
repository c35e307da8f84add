//! `connect-relay send`: submits a message, or a file of them, to a running relay; for scripts and for trying it out.
//!
//! The relay's replies go to stdout unchanged, one line of JSON each; all texts for people go to stderr. The
//! ConnectionToken comes from the environment or a file: every user of the machine can see argv.
//!
//! A batch (NDJSON, a message per line, each with its own ConnectionToken) is sent in pieces of at most [`PIECE_MAX`]
//! bytes, one after the other, so the file's order is the order of acceptance. If the relay accepts less at once, the
//! piece is halved. After a failure no further piece is sent, and the command reports how many were: the rest can be
//! sent later, and lines with a ClientToken can be repeated.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::client;
use super::out;
use crate::message::{ConnectionToken, ConversationKey, Invalid};

/// The largest piece: the default of `ingress.batch_bytes_max`.
const PIECE_MAX: usize = 1 << 20;
/// The time-out for the relay's answer, beside a wait that was asked for.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Submit a message, or a file of messages, to the relay.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The relay's socket for bots [default: $CONNECT_RELAY__INGRESS__SOCKET, then /run/connect-relay/relay.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "dir")]
    socket: Option<PathBuf>,
    /// The folder that the relay was started with (`run --dir DIR`).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The ordering key: one participant of one chat.
    #[arg(long, value_name = "KEY", conflicts_with = "batch")]
    conversation: Option<String>,
    /// The idempotency token: a repeat with it sends no second message.
    #[arg(long, value_name = "TOKEN", conflicts_with = "batch")]
    client_token: Option<String>,
    /// The content type of the text.
    #[arg(long, value_name = "TYPE", default_value = "text/plain", conflicts_with = "batch")]
    content_type: String,
    /// Wait this long for Connect's answer, at most ingress.wait_max, instead of returning once the message is on disk.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "batch")]
    wait: Option<Duration>,
    /// Read the ConnectionToken from this file instead of $CONNECTION_TOKEN.
    #[arg(long, value_name = "FILE", conflicts_with = "batch")]
    connection_token_file: Option<PathBuf>,
    /// Send the messages of this NDJSON file, - for stdin; each line has its own ConnectionToken.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    batch: Option<PathBuf>,
    /// The text; - reads it from stdin.
    #[arg(value_name = "TEXT", required_unless_present = "batch")]
    text: Option<String>,
}

/// A SendMessage's body.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Message<'a> {
    content_type: &'a str,
    content: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_token: Option<&'a str>,
}

/// The progress of a batch.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    accepted: u64,
    refused: u64,
}

/// Submits the messages of the arguments.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let of_dir = || args.dir.as_ref().map(|dir| dir.join("relay.sock"));
    let of_environment = || std::env::var_os("CONNECT_RELAY__INGRESS__SOCKET").map(PathBuf::from);
    let socket = args.socket.clone().or_else(of_dir).or_else(of_environment).unwrap_or_else(|| client::INGRESS.into());
    let mut out = out::stdout();
    if let Some(file) = &args.batch {
        let lines: Box<dyn BufRead> = if file == Path::new("-") {
            Box::new(BufReader::new(std::io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(file).with_context(|| format!("open {}", file.display()))?))
        };
        return batch(&socket, lines, PIECE_MAX, &mut out).await;
    }
    let request = match request(&args) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("connect-relay: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    let reply = client::send(&socket, request, TIMEOUT + args.wait.unwrap_or_default()).await?;
    if let Some(error) = error_text(&reply) {
        eprintln!("{error}");
        return Ok(ExitCode::FAILURE);
    }
    print(&mut out, reply.body())?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the request for one message; an error here is the caller's.
fn request(args: &Args) -> anyhow::Result<Request<Full<Bytes>>> {
    let token = connection_token(args.connection_token_file.as_deref())?;
    let mut bearer = HeaderValue::from_bytes(token.expose()).context("read the ConnectionToken")?;
    bearer.set_sensitive(true);
    let text = match args.text.as_deref().unwrap_or_default() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read the text from stdin")?;
            // `echo hello | connect-relay send -` sends `hello` without the line break.
            text.truncate(text.strip_suffix('\n').map_or(text.len(), |text| text.trim_end_matches('\r').len()));
            text
        }
        text => text.to_owned(),
    };
    let message =
        Message { content_type: &args.content_type, content: &text, client_token: args.client_token.as_deref() };
    let mut request = Request::post("/participant/message").header(CONTENT_TYPE, "application/json");
    request = request.header("x-amz-bearer", bearer);
    if let Some(key) = &args.conversation {
        // Here it is a flag, not the header.
        let key = ConversationKey::parse(key.as_bytes())
            .map_err(|Invalid(what)| anyhow!(what.replacen("Relay-Conversation", "--conversation", 1)))?;
        request = request.header("relay-conversation", key.as_str());
    }
    if let Some(wait) = args.wait {
        // Whole seconds, rounded up.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        request = request.header("prefer", format!("wait={seconds}"));
    }
    Ok(request.body(Full::from(serde_json::to_vec(&message)?))?)
}

fn connection_token(file: Option<&Path>) -> anyhow::Result<ConnectionToken> {
    let bytes = match file {
        Some(path) => std::fs::read(path).with_context(|| format!("read {}", path.display()))?,
        None => match std::env::var_os("CONNECTION_TOKEN") {
            Some(value) => std::os::unix::ffi::OsStringExt::into_vec(value),
            None => bail!("set CONNECTION_TOKEN, or name a file with --connection-token-file"),
        },
    };
    let bytes = Zeroizing::new(bytes);
    // Files end with a line break; a token never does.
    Ok(ConnectionToken::parse(bytes.trim_ascii_end())?)
}

/// Sends lines in pieces, and prints the reply lines in their order.
async fn batch(socket: &Path, mut lines: impl BufRead, most: usize, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut tally = Tally::default();
    let mut next = Vec::new();
    loop {
        let mut piece = std::mem::take(&mut next);
        while piece.len() < most {
            let whole = piece.len();
            if lines.read_until(b'\n', &mut piece).context("read the batch")? == 0 {
                break;
            }
            if !piece.ends_with(b"\n") {
                piece.push(b'\n');
            }
            if piece.len() > most && whole > 0 {
                next = piece.split_off(whole);
                break;
            }
        }
        if piece.is_empty() {
            break;
        }
        if let Err(error) = post(socket, Bytes::from(piece), &mut tally, out).await {
            return Err(error.context(format!("stopped after {} lines", tally.accepted + tally.refused)));
        }
    }
    eprintln!("{} accepted, {} refused", tally.accepted, tally.refused);
    Ok(if tally.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Posts one piece, or its halves if it is too large.
async fn post(socket: &Path, piece: Bytes, tally: &mut Tally, out: &mut impl Write) -> anyhow::Result<()> {
    let mut pieces = vec![piece];
    while let Some(piece) = pieces.pop() {
        let request = Request::post("/participant/messages").header(CONTENT_TYPE, "application/x-ndjson");
        let reply = client::send(socket, request.body(Full::new(piece.clone()))?, TIMEOUT).await?;
        if reply.status() == StatusCode::PAYLOAD_TOO_LARGE
            && let Some(middle) = middle(&piece)
        {
            pieces.push(piece.slice(middle..));
            pieces.push(piece.slice(..middle));
            continue;
        }
        if let Some(error) = error_text(&reply) {
            bail!(error);
        }
        for line in reply.body().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if is_refused(line) {
                tally.refused += 1;
            } else {
                tally.accepted += 1;
            }
        }
        print(out, reply.body())?;
    }
    Ok(())
}

/// The start of a line near the middle; `None` if there is only one line.
fn middle(piece: &[u8]) -> Option<usize> {
    let half = piece.len() / 2;
    let after = piece[half..piece.len() - 1].iter().position(|byte| *byte == b'\n').map(|end| half + end + 1);
    after.or_else(|| piece[..half].iter().rposition(|byte| *byte == b'\n').map(|end| end + 1))
}

fn is_refused(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "Error")]
        error: Option<serde_json::Value>,
    }
    serde_json::from_slice(line).map_or(true, |Line { error }| error.is_some())
}

fn print(out: &mut impl Write, body: &[u8]) -> anyhow::Result<()> {
    out.write_all(body.trim_ascii_end()).context("write to standard output")?;
    if !body.is_empty() {
        out.write_all(b"\n")?;
    }
    out.flush().context("write to standard output")
}

/// The text of an error reply; `None` for a 2xx.
fn error_text(reply: &Response<Bytes>) -> Option<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct ErrorBody {
        #[serde(rename = "Message", alias = "message")]
        message: String,
        #[serde(rename = "Error")]
        error: Option<String>,
    }
    if reply.status().is_success() {
        return None;
    }
    let error: ErrorBody = serde_json::from_slice(reply.body()).unwrap_or_default();
    let header = |name| reply.headers().get(name).and_then(|value| value.to_str().ok());
    if error.error.is_some() && header("x-amzn-errortype").is_none() {
        return Some(
            "this is the operators' socket: `send` needs the bots' (ingress.socket), given by --socket".into(),
        );
    }
    let mut text = format!("refused with {}", reply.status().as_u16());
    for part in [header("x-amzn-errortype"), Some(error.message.as_str()).filter(|text| !text.is_empty())] {
        text.extend([": ", part.unwrap_or_default()].into_iter().filter(|_| part.is_some()));
    }
    if let Some(seconds) = header("retry-after") {
        text.extend([" (try again in ", seconds, " s)"]);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use clap::Parser;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::serve::{ConnectionCount, Limits, Listener, Reply, bind_unix, serve};
    use crate::time::Clock;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from([&["send"], args].concat()).map(|cli| cli.args)
    }

    /// Accepts pieces of at most `most` bytes, answers one line for each line, and refuses the word `bad`.
    fn relay(path: &Path, most: usize, pieces: Arc<Mutex<Vec<usize>>>) -> tokio::task::JoinHandle<()> {
        let listener = bind_unix(path, 0o600).unwrap();
        let limits =
            Limits { connections_max: 4, idle_timeout: TIMEOUT, request_timeout: TIMEOUT, head_bytes_max: 8192 };
        let service = move |request: Request<crate::serve::RequestBody>, _| {
            let pieces = Arc::clone(&pieces);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                pieces.lock().unwrap().push(body.len());
                if body.len() > most {
                    return Reply::new(Full::default()).map_status(413);
                }
                let text = String::from_utf8(body.to_vec()).unwrap();
                let answer = |line: &str| if line == "bad" { "{\"Error\":{}}\n" } else { "{\"State\":\"QUEUED\"}\n" };
                Reply::new(Full::from(text.lines().map(answer).collect::<String>()))
            }
        };
        let serving = serve(
            Listener::Unix(listener),
            limits,
            Clock::system(),
            ConnectionCount::default(),
            service,
            std::future::pending(),
        );
        tokio::spawn(serving)
    }

    trait MapStatus {
        fn map_status(self, status: u16) -> Self;
    }

    impl MapStatus for Reply {
        fn map_status(mut self, status: u16) -> Reply {
            *self.status_mut() = StatusCode::from_u16(status).unwrap();
            self
        }
    }

    #[tokio::test]
    async fn batch_goes_in_whole_lines_that_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let pieces = Arc::default();
        let _relay = relay(&path, 6, Arc::clone(&pieces));
        let mut out = Vec::new();
        let code = batch(&path, &b"aaa\nbad\ncccc\nddddd\ne"[..], 12, &mut out).await.unwrap();
        assert_eq!(code, ExitCode::FAILURE);
        let text = String::from_utf8(out).unwrap();
        let refused: Vec<bool> = text.lines().map(|line| is_refused(line.as_bytes())).collect();
        assert_eq!(refused, [false, true, false, false, false], "in the order of the file");
        assert_eq!(*pieces.lock().unwrap(), [8, 4, 4, 11, 5, 6, 2]);
    }

    #[tokio::test]
    async fn line_that_fits_nowhere_stops_the_batch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _relay = relay(&path, 6, Arc::default());
        let error = batch(&path, &b"aaa\nlonger than six\nb\n"[..], 8, &mut Vec::new()).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "stopped after 1 lines: refused with 413");
    }

    #[test]
    fn request_is_a_send_message() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "secret\n").unwrap();
        let file = file.to_str().unwrap();
        let args =
            parse(&["--connection-token-file", file, "--wait", "1500ms", "--conversation", "C/bot", "hello"]).unwrap();
        let request = request(&args).unwrap();
        assert_eq!(request.uri().path(), "/participant/message");
        assert_eq!(request.headers()["x-amz-bearer"], "secret");
        assert_eq!(request.headers()["prefer"], "wait=2");
        assert_eq!(request.headers()["relay-conversation"], "C/bot");
        assert!(!format!("{request:?}").contains("secret"));
        let body = request.into_body();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(body.collect()).unwrap().to_bytes();
        assert_eq!(body, r#"{"ContentType":"text/plain","Content":"hello"}"#);
    }

    #[test]
    fn usage_is_one_text_or_one_batch() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--batch", "f", "hello"]).is_err());
        assert!(parse(&["--batch", "f", "--client-token", "t"]).is_err());
        assert!(parse(&["--batch", "-"]).is_ok());
        assert!(parse(&["-"]).is_ok());
    }

    #[test]
    fn error_reply_is_shown_as_text() {
        let reply = Response::builder()
            .status(429)
            .header("x-amzn-ErrorType", "ThrottlingException")
            .header("Retry-After", "7")
            .body(Bytes::from(r#"{"Message":"connect-relay: the queue is full"}"#))
            .unwrap();
        assert_eq!(
            error_text(&reply).unwrap(),
            "refused with 429: ThrottlingException: connect-relay: the queue is full (try again in 7 s)"
        );
        let reply = Response::builder().status(502).body(Bytes::from("<html>")).unwrap();
        assert_eq!(error_text(&reply).unwrap(), "refused with 502");
        assert_eq!(error_text(&Response::new(Bytes::new())), None);
        let of_operators = Bytes::from(r#"{"Error":"connect-relay: no such operation: POST /participant/message"}"#);
        let reply = Response::builder().status(404).body(of_operators).unwrap();
        assert!(error_text(&reply).unwrap().starts_with("this is the operators' socket: `send` needs the bots'"));
    }

    #[test]
    fn piece_is_halved_between_lines() {
        assert_eq!(middle(b"aa\nbb\ncc\n"), Some(6));
        assert_eq!(middle(b"a\nbbbbbbbb\n"), Some(2));
        assert_eq!(middle(b"aaaaaaaaaa\n"), None);
    }
}
