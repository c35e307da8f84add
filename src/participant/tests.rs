//! The client with real listeners on loopback that follow a script.

use std::net::SocketAddr;

use hyper::header::HeaderName;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::message::ContentType;

const DELIVERED: &str = r#"{"Id":"i-1","AbsoluteTime":"2019-11-08T02:41:28.172Z"}"#;

/// A listener, and the options that lead to it.
async fn upstream(scheme: &str) -> (TcpListener, Options) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, options(&format!("{scheme}://127.0.0.1:{port}")))
}

fn options(endpoint: &str) -> Options {
    Options {
        endpoint: endpoint.parse().unwrap(),
        connect_timeout: Duration::from_secs(20),
        attempt_timeout: Duration::from_secs(20),
        idle_max: 4,
        proxy: None,
        extra_roots: Vec::new(),
    }
}

fn client(options: Options) -> Participant {
    Participant::new(options, Clock::system()).unwrap()
}

fn message() -> Body {
    Body::Message { content_type: ContentType::Plain, content: Content::new("héllo".into()) }
}

async fn attempt(participant: &Participant, body: &Body) -> Outcome {
    let client_token = ClientToken::parse("ct-1").unwrap().unwrap();
    let token = ConnectionToken::parse("canary/tökén".as_bytes()).unwrap();
    participant.attempt(body, &client_token, &token).await
}

/// Runs both sides of a script, under a time-out that only a fault exceeds.
async fn both<A, B>(script: impl Future<Output = A>, client: impl Future<Output = B>) -> (A, B) {
    bounded(async { tokio::join!(script, client) }).await
}

async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("the script comes to its end")
}

/// Reads one request: its head, and its body by Content-Length.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0usize) {
                return text.into_owned();
            }
        }
        let mut part = [0; 4096];
        let length = stream.read(&mut part).await.unwrap();
        assert!(length > 0, "the client hung up after {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&part[..length]);
    }
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

/// Accepts one connection and answers one request; returns the connection still open.
async fn serve(listener: &TcpListener, answer: &str) -> (String, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let request = request(&mut stream).await;
    stream.write_all(answer.as_bytes()).await.unwrap();
    (request, stream)
}

fn assert_unknown(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::AnswerLost { .. }), "{outcome:?}");
}

fn assert_nothing_written(outcome: &Outcome, why: &str) {
    assert!(matches!(outcome, Outcome::Down { status: None, .. }), "{outcome:?}");
    assert!(outcome.why().contains(why), "{}", outcome.why());
}

#[tokio::test]
async fn message_goes_out_as_the_protocol_has_it() {
    let (listener, options) = upstream("http").await;
    let host = options.endpoint.authority().unwrap().to_string();
    let participant = client(options);
    let headers = "x-amzn-RequestId: r-1\r\n";
    let (sent, outcome) =
        both(serve(&listener, &reply("200 OK", headers, DELIVERED)), attempt(&participant, &message())).await;
    let (head, body) = sent.0.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, r#"{"ContentType":"text/plain","Content":"héllo","ClientToken":"ct-1"}"#);
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("POST /participant/message HTTP/1.1"));
    let mut lines: Vec<&str> = lines.collect();
    lines.sort_unstable();
    let expected = [
        format!("content-length: {}", body.len()),
        "content-type: application/json".into(),
        format!("host: {host}"),
        format!("user-agent: connect-relay/{}", env!("CARGO_PKG_VERSION")),
        "x-amz-bearer: canary/tökén".into(),
    ];
    assert_eq!(lines, expected);
    let Outcome::Delivered(receipt) = outcome else { panic!("{outcome:?}") };
    assert_eq!((receipt.id.as_deref(), receipt.request_id.as_deref()), (Some("i-1"), Some("r-1")));
}

#[tokio::test]
async fn events_and_disconnects_go_to_their_own_routes_behind_the_prefix() {
    let (listener, mut options) = upstream("http").await;
    options.endpoint = format!("{}stage/", options.endpoint).parse().unwrap();
    let participant = client(options);
    let receipt = Body::Event {
        content_type: "application/vnd.amazonaws.connect.event.message.read".into(),
        content: Some(Content::new(r#"{"messageId":"m"}"#.into())),
    };
    let typing = Body::Event { content_type: "application/vnd.amazonaws.connect.event.typing".into(), content: None };
    for (body, line, json) in [
        (
            &receipt,
            "POST /stage/participant/event HTTP/1.1\r\n",
            r#"{"ContentType":"application/vnd.amazonaws.connect.event.message.read","Content":"{\"messageId\":\"m\"}","ClientToken":"ct-1"}"#,
        ),
        (
            &typing,
            "POST /stage/participant/event HTTP/1.1\r\n",
            r#"{"ContentType":"application/vnd.amazonaws.connect.event.typing","ClientToken":"ct-1"}"#,
        ),
        (&Body::Disconnect, "POST /stage/participant/disconnect HTTP/1.1\r\n", r#"{"ClientToken":"ct-1"}"#),
    ] {
        let answer = reply("200 OK", "connection: close\r\n", "");
        let ((sent, _), outcome) = both(serve(&listener, &answer), attempt(&participant, body)).await;
        assert!(sent.starts_with(line) && sent.ends_with(&format!("\r\n\r\n{json}")), "{sent}");
        assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
    }
}

#[tokio::test]
async fn nothing_is_written_if_the_connection_is_refused() {
    let (listener, options) = upstream("http").await;
    drop(listener);
    let outcome = bounded(attempt(&client(options), &message())).await;
    assert_nothing_written(&outcome, "refused");
}

#[tokio::test]
async fn nothing_is_written_if_the_handshake_never_ends() {
    let (listener, mut options) = upstream("https").await;
    options.extra_roots = authority().1.into_bytes();
    options.connect_timeout = Duration::from_millis(50);
    let outcome = bounded(attempt(&client(options.clone()), &message())).await;
    assert_nothing_written(&outcome, "no connection within 50ms");
    // The same if the attempt's own time limit is the shorter one.
    (options.connect_timeout, options.attempt_timeout) = (Duration::from_secs(20), Duration::from_millis(50));
    let outcome = bounded(attempt(&client(options), &message())).await;
    assert_nothing_written(&outcome, "no connection within 50ms");
    drop(listener);
}

#[tokio::test]
async fn time_out_after_the_request_is_a_lost_answer() {
    let (listener, mut options) = upstream("http").await;
    options.attempt_timeout = Duration::from_millis(200);
    let participant = client(options);
    let (_held, outcome) = both(serve(&listener, ""), attempt(&participant, &message())).await;
    assert_unknown(&outcome);
    assert!(outcome.why().ends_with("no answer within 200ms"), "{}", outcome.why());
    let (_held, outcome) =
        both(serve(&listener, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), attempt(&participant, &message()))
            .await;
    assert_unknown(&outcome);
}

#[tokio::test]
async fn closed_connection_after_the_request_is_a_lost_answer() {
    for answer in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{\"Id\":",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        "this is not HTTP\r\n\r\n",
    ] {
        let (listener, options) = upstream("http").await;
        let participant = client(options);
        let script = async { drop(serve(&listener, answer).await) };
        let ((), outcome) = both(script, attempt(&participant, &message())).await;
        assert_unknown(&outcome);
    }
}

#[tokio::test]
async fn reset_with_the_request_unread_is_a_lost_answer() {
    let (listener, options) = upstream("http").await;
    let participant = client(options);
    let script = async {
        let (stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.peek(&mut [0]).await.unwrap(), 1);
    };
    let ((), outcome) = both(script, attempt(&participant, &message())).await;
    assert_unknown(&outcome);
}

#[tokio::test]
async fn answer_that_does_not_end_is_not_read_to_its_end() {
    let (listener, options) = upstream("http").await;
    let participant = client(options);
    let script = async {
        let (_, mut stream) = serve(&listener, "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    };
    let ((), outcome) = both(script, attempt(&participant, &message())).await;
    assert_unknown(&outcome);
}

#[tokio::test]
async fn connection_is_kept_and_used_again() {
    let (listener, options) = upstream("http").await;
    let participant = client(options);
    let answer = reply("200 OK", "", DELIVERED);
    let ((_, mut stream), _) = both(serve(&listener, &answer), attempt(&participant, &message())).await;
    let again = async {
        request(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let ((), outcome) = both(again, attempt(&participant, &message())).await;
    assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
}

#[tokio::test]
async fn connection_that_closed_while_idle_costs_no_attempt() {
    let (listener, options) = upstream("http").await;
    let address = listener.local_addr().unwrap();
    let participant = client(options);
    let answer = reply("200 OK", "", DELIVERED);
    for _ in 0..3 {
        let ((_, stream), outcome) = both(serve(&listener, &answer), attempt(&participant, &message())).await;
        assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
        drop(stream);
        bounded(let_the_client_notice(address, &listener)).await;
    }
}

/// Makes the runtime poll its sockets and run the tasks that this wakes: the kernel has reported the end already.
async fn let_the_client_notice(address: SocketAddr, listener: &TcpListener) {
    let (there, here) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut there, mut here) = (there.unwrap(), here.unwrap().0);
    for _ in 0..8 {
        here.write_all(b"x").await.unwrap();
        there.read_exact(&mut [0]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

/// A certificate for 127.0.0.1, and the PEM of the authority that issued it.
fn authority() -> (TlsAcceptor, String) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let issued = CertificateParams::new(["127.0.0.1".to_string()]).unwrap().signed_by(&key, &issuer).unwrap();
    (acceptor(issued.der().clone(), key.serialize_der()), issuer.pem())
}

fn acceptor(certificate: CertificateDer<'static>, key: Vec<u8>) -> TlsAcceptor {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve_tls(tls: &TlsAcceptor, stream: TcpStream) -> String {
    let mut stream = tls.accept(stream).await.unwrap();
    let request = request(&mut stream).await;
    stream.write_all(reply("200 OK", "", DELIVERED).as_bytes()).await.unwrap();
    request
}

#[tokio::test]
async fn certificate_of_an_extra_root_is_trusted() {
    let (listener, mut options) = upstream("https").await;
    let (tls, pem) = authority();
    options.extra_roots = pem.into_bytes();
    let participant = client(options);
    let script = async { serve_tls(&tls, listener.accept().await.unwrap().0).await };
    let (sent, outcome) = both(script, attempt(&participant, &message())).await;
    assert!(sent.starts_with("POST /participant/message HTTP/1.1\r\n"), "{sent}");
    assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
}

#[tokio::test]
async fn untrusted_certificate_is_refused_and_nothing_is_written() {
    let (listener, mut options) = upstream("https").await;
    let (tls, _) = authority();
    options.extra_roots = authority().1.into_bytes();
    let participant = client(options);
    let script = async { tls.accept(listener.accept().await.unwrap().0).await.is_err() };
    let (failed, outcome) = both(script, attempt(&participant, &message())).await;
    assert!(failed);
    assert_nothing_written(&outcome, "the signature of the server's certificate is wrong: ");
}

/// Tries a certificate of each kind that operators get wrong, and expects a sentence for it.
#[tokio::test]
async fn refused_certificate_is_reported_in_a_sentence() {
    let issued = |edit: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (acceptor(certificate.der().clone(), key.serialize_der()), certificate.pem())
    };
    for (edit, text) in [
        (
            &(|params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
                as &dyn Fn(&mut CertificateParams),
            "the certificate of an authority (CA:TRUE) as its own",
        ),
        (&|params| params.not_after = rcgen::date_time_ymd(2001, 9, 9), "expired at 2001-09-09T00:00:00.000Z: "),
        (&|params| params.not_before = rcgen::date_time_ymd(2999, 1, 1), "not valid before 2999-01-01T00:00:00.000Z: "),
        (
            &|params| params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())],
            "is for localhost, not for 127.0.0.1: ",
        ),
    ] {
        let (listener, mut options) = upstream("https").await;
        let (tls, pem) = issued(edit);
        options.extra_roots = pem.into_bytes();
        let participant = client(options);
        let script = async { tls.accept(listener.accept().await.unwrap().0).await.is_err() };
        let (failed, outcome) = both(script, attempt(&participant, &message())).await;
        assert!(failed);
        assert_nothing_written(&outcome, text);
    }
}

#[tokio::test]
async fn proxy_gets_a_connect_and_sees_no_more() {
    let (listener, mut options) = upstream("https").await;
    let (tls, pem) = authority();
    options.extra_roots = pem.into_bytes();
    options.proxy = Some(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    options.endpoint = "https://127.0.0.1:1".parse().unwrap();
    let participant = client(options);
    let script = async {
        let (connect, stream) = serve(&listener, "HTTP/1.1 200 Connection established\r\n\r\n").await;
        (connect, serve_tls(&tls, stream).await)
    };
    let ((connect, sent), outcome) = both(script, attempt(&participant, &message())).await;
    assert_eq!(connect, "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n");
    assert!(sent.starts_with("POST /participant/message HTTP/1.1\r\n"), "{sent}");
    assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
}

#[tokio::test]
async fn nothing_is_written_if_the_proxy_refuses_or_is_silent() {
    let (listener, mut options) = upstream("https").await;
    options.extra_roots = authority().1.into_bytes();
    options.proxy = Some(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    options.endpoint = "https://127.0.0.1:1".parse().unwrap();
    let participant = client(options.clone());
    for (answer, why) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "(sender.proxy) answered CONNECT with 407 Proxy Auth"),
        (
            "HTTP/1.1 403 Forbidden\r\n\r\n",
            "(sender.proxy) answered CONNECT with 403 Forbidden: it has to allow 127.0.0.1:1",
        ),
        ("HTTP/1.0 503 canary\r\nx: canary\r\n\r\n", "(sender.proxy) answered CONNECT with 503 Service Unavailable"),
        ("SSH-2.0-canary\r\n\r\n", "(sender.proxy) did not answer CONNECT in HTTP/1"),
    ] {
        let (_held, outcome) = both(serve(&listener, answer), attempt(&participant, &message())).await;
        assert_nothing_written(&outcome, why);
        assert!(outcome.why().contains(&format!("the proxy {} ", listener.local_addr().unwrap())), "{outcome:?}");
    }
    options.connect_timeout = Duration::from_millis(50);
    let outcome = bounded(attempt(&client(options), &message())).await;
    assert_nothing_written(&outcome, "no connection within 50ms");
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let (listener, options) = upstream("http").await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let participant = client(options);
    let headers = format!("location: http://{}/participant/message\r\n", elsewhere.local_addr().unwrap());
    let (_held, outcome) =
        both(serve(&listener, &reply("307 Temporary Redirect", &headers, "")), attempt(&participant, &message())).await;
    assert!(matches!(outcome, Outcome::Misconfigured { status: 307, .. }), "{outcome:?}");
    let followed = std::future::poll_fn(|task| std::task::Poll::Ready(elsewhere.poll_accept(task).is_ready()));
    assert!(!followed.await);
}

#[tokio::test]
async fn forwarding_passes_everything_but_signatures_and_connections() {
    let (listener, options) = upstream("http").await;
    let host = options.endpoint.authority().unwrap().to_string();
    let participant = client(options);
    let given = [
        ("host", "127.0.0.1:8480"),
        ("x-amz-bearer", "participant-token"),
        ("authorization", "AWS4-HMAC-SHA256 canary"),
        ("amz-sdk-request", "attempt=1; max=3"),
        ("content-length", "999"),
        ("content-type", "application/json"),
    ];
    let given = given.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let given: HeaderMap = given.into_iter().collect();
    let answer = reply("403 Forbidden", "x-amzn-ErrorType: AccessDeniedException\r\nkeep-alive: timeout=5\r\n", "{}");
    let forward = participant.forward(
        Method::POST,
        "/participant/connection?a=b",
        &given,
        Bytes::from("{\"Type\":[]}"),
        async |bytes| assert_eq!(bytes, 2),
    );
    let ((sent, _), forwarded) = both(serve(&listener, &answer), forward).await;
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "{\"Type\":[]}");
    let mut lines: Vec<&str> = head.lines().collect();
    lines[1..].sort_unstable();
    let host = format!("host: {host}");
    assert_eq!(
        lines,
        [
            "POST /participant/connection?a=b HTTP/1.1",
            "accept-encoding: identity",
            "content-length: 11",
            "content-type: application/json",
            &host,
            "x-amz-bearer: participant-token",
        ]
    );
    let forwarded = forwarded.unwrap();
    assert_eq!((forwarded.status, &forwarded.body[..]), (StatusCode::FORBIDDEN, &b"{}"[..]));
    assert_eq!(forwarded.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-amzn-errortype"]);
}

#[tokio::test]
async fn forwarding_without_a_complete_reply_is_an_error() {
    let (listener, options) = upstream("http").await;
    let participant = client(options);
    let headers = HeaderMap::new();
    let script = async { drop(serve(&listener, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await) };
    let forward = participant.forward(Method::GET, "/participant/views/canary", &headers, Bytes::new(), async |_| ());
    let ((), forwarded) = both(script, forward).await;
    let text = forwarded.unwrap_err().to_string();
    assert!(text.ends_with("200 OK, and the rest of the reply is missing") && !text.contains("canary"), "{text}");
    drop(listener);
    let forward = participant.forward(Method::GET, "/participant/views/canary", &headers, Bytes::new(), async |_| ());
    let text = bounded(forward).await.unwrap_err().to_string();
    assert!(
        text.starts_with("the Participant Service cannot be reached: connect to 127.0.0.1:")
            && !text.contains("canary"),
        "{text}"
    );
}

#[test]
fn invalid_urls_are_refused_and_their_passwords_not_shown() {
    for (endpoint, proxy, text) in [
        ("/participant", None, "the endpoint is not a whole URL: it has no scheme"),
        ("ftp://127.0.0.1", None, "the endpoint's scheme is ftp, it takes https or http"),
        ("https://u:canary@127.0.0.1", None, "the URLs of the endpoint and of the proxy take no user name or password"),
        (
            "https://127.0.0.1",
            Some("http://u:canary@127.0.0.1:1"),
            "the URLs of the endpoint and of the proxy take no user name or password",
        ),
        ("https://127.0.0.1", Some("https://127.0.0.1:1"), "the proxy is not http://host:port"),
        ("https://127.0.0.1", Some("127.0.0.1:1"), "the proxy is not http://host:port"),
    ] {
        let proxy = proxy.map(|proxy| proxy.parse().unwrap());
        let error = Participant::new(Options { proxy, ..options(endpoint) }, Clock::system()).unwrap_err();
        assert_eq!(error, text);
    }
    let participant = client(options("http://127.0.0.1:1/stage/"));
    assert_eq!(format!("{participant:?}"), "Participant(http://127.0.0.1:1/stage)");
}
