//! `connect-relay check --online` through the real program, with real sockets on loopback.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

use super::process::{Relay, TIMEOUT, program, relay, text};

const REFUSED: &str =
    "HTTP/1.1 403 Forbidden\r\nx-amzn-ErrorType: AccessDeniedException\r\nContent-Length: 2\r\n\r\n{}";

/// A listener that answers one request on one connection, and returns the request.
struct Answers {
    at: String,
    request: JoinHandle<String>,
}

impl Answers {
    fn with(answer: &'static str) -> Answers {
        Answers::of(move |mut stream| answered(&mut stream, answer))
    }

    fn of(serve: impl FnOnce(TcpStream) -> String + Send + 'static) -> Answers {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let request = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            serve(stream)
        });
        Answers { at, request }
    }

    /// Speaks TLS with a certificate for 127.0.0.1; returns the PEM of the authority that issued it too.
    fn with_tls(answer: &'static str) -> (Answers, String) {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let issued = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.der().clone()], key)
            .unwrap();
        let answers = Answers::of(move |mut stream| {
            let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
            answered(&mut Stream::new(&mut tls, &mut stream), answer)
        });
        (answers, issuer.pem())
    }

    fn request(self) -> String {
        self.request.join().unwrap()
    }
}

/// Reads a request and answers it; returns what was read, also if the other end broke it off.
fn answered(stream: &mut (impl Read + Write), answer: &str) -> String {
    let (mut request, mut part) = (String::new(), [0; 4096]);
    while !request.ends_with("\r\n\r\n") && !request.ends_with("{}") {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return request,
            Ok(length) => request.push_str(&String::from_utf8_lossy(&part[..length])),
        }
    }
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.flush();
    request
}

/// The findings: the lines on stderr about the checks.
fn findings(output: &Output) -> Vec<String> {
    let names = ["ingress.", "control.", "queue.", "admin.", "resolve ", "connect ", "certificate ", "answer "];
    let lines = text(&output.stderr).lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    lines.filter(|line| !line.contains(" is set by ")).map(str::to_owned).collect()
}

/// The only finding that is not ok.
#[track_caller]
fn fault(output: &Output, code: i32) -> String {
    let (bad, good): (Vec<_>, Vec<_>) = findings(output).into_iter().partition(|line| !line.contains(": ok"));
    assert_eq!(output.status.code(), Some(code), "{bad:#?}\n{}", text(&output.stderr));
    assert!(good.len() >= 3, "{good:?}");
    let [bad] = &bad[..] else { panic!("{bad:#?}") };
    bad.clone()
}

fn check(dir: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = program(&["check", "--online", "--dir", dir.to_str().unwrap()]);
    command.env("CONNECT_RELAY__QUEUE__VOLATILE", "true").env("CONNECT_RELAY__ADMIN__LISTEN", "127.0.0.1:0");
    command.envs(settings.iter().map(|(key, value)| (format!("CONNECT_RELAY__{key}"), *value)));
    command
}

fn run(dir: &Path, settings: &[(&str, &str)]) -> Output {
    check(dir, settings).output().unwrap()
}

/// Checks a folder with a service that answers, so that only faults of this machine are reported.
fn with_service(dir: &Path, settings: &[(&str, &str)]) -> Output {
    let service = Answers::with(REFUSED);
    let endpoint = format!("http://{}", service.at);
    let output = run(dir, &[settings, &[("SENDER__ENDPOINT", &endpoint)]].concat());
    service.request();
    output
}

#[test]
fn all_checks_pass_and_nothing_is_created_or_sent() {
    let dir = tempfile::tempdir().unwrap();
    let relay = dir.path().join("relay");
    let service = Answers::with(REFUSED);
    let endpoint = format!("http://{}", service.at);
    let output = run(&relay, &[("SENDER__ENDPOINT", &endpoint), ("INGRESS__TCP", "127.0.0.1:0")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = relay.display();
    let found = findings(&output);
    let expected = [
        format!("ingress.socket {shown}/relay.sock: ok"),
        format!("control.socket {shown}/private/control.sock: ok"),
        format!("queue.path {shown}/private/queue: ok ("),
        "ingress.tcp 127.0.0.1:0: ok".into(),
        "admin.listen 127.0.0.1:0: ok".into(),
        format!("connect {}: ok", service.at),
        format!("answer of {}: ok (403 AccessDeniedException)", service.at),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, begin) in found.iter().zip(&expected) {
        assert!(line.starts_with(begin), "{line}");
    }
    assert!(!relay.exists(), "nothing is created");
    assert!(text(&output.stdout).contains("\n[sender]\n"), "the effective configuration is printed too");
    let request = service.request().to_lowercase();
    assert!(request.starts_with("post /participant/message http/1.1\r\n"), "{request}");
    assert!(
        !request.contains("bearer") && !request.contains("content\"") && request.ends_with("\r\n\r\n{}"),
        "{request}"
    );
}

#[test]
fn paths_and_ports_of_a_running_relay_are_ok() {
    let dir = tempfile::tempdir().unwrap();
    let mut ports = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()]
        .map(|port| port.local_addr().unwrap().to_string());
    ports.sort();
    let running = Relay::of(
        relay(dir.path()).env("CONNECT_RELAY__ADMIN__LISTEN", &ports[0]).env("CONNECT_RELAY__INGRESS__TCP", &ports[1]),
    );
    let output = with_service(dir.path(), &[("ADMIN__LISTEN", &ports[0]), ("INGRESS__TCP", &ports[1])]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let held = findings(&output).into_iter().filter(|line| line.ends_with(": ok (a relay is running)")).count();
    assert_eq!(held, 5, "{}", text(&output.stderr));
    drop(running);
}

#[test]
fn unknown_host_name_is_reported_with_its_setting() {
    let dir = tempfile::tempdir().unwrap();
    // No resolver asks for a label of more than 63 characters.
    let host = format!("{}.example", "a".repeat(64));
    let output = run(dir.path(), &[("SENDER__ENDPOINT", &format!("https://{host}"))]);
    let line = fault(&output, 1);
    assert!(line.starts_with(&format!("resolve {host}: there is no such name (")), "{line}");
    assert!(line.contains(&format!("check sender.endpoint (https://{host}/)")) && line.contains("DNS"), "{line}");
}

#[test]
fn refused_or_blocked_connection_is_reported_with_what_to_allow() {
    let dir = tempfile::tempdir().unwrap();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("https://{unused}");
    let line = fault(&run(dir.path(), &[("SENDER__ENDPOINT", &endpoint)]), 1);
    assert!(line.starts_with(&format!("connect {unused}: nothing listens there, or a firewall refuses it")), "{line}");
    assert!(line.contains("check sender.endpoint (https://127.0.0.1:"), "{line}");
    // To a client, a listener that never answers is like a firewall that drops packets.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    let endpoint = format!("https://{at}");
    let line = fault(&run(dir.path(), &[("SENDER__ENDPOINT", &endpoint), ("SENDER__CONNECT_TIMEOUT", "50ms")]), 1);
    assert!(line.starts_with(&format!("connect {at}: no connection within 50ms (sender.connect_timeout)")), "{line}");
    assert!(line.contains(&format!("allow this host to connect to {at}")) && line.contains("NetworkPolicy"), "{line}");
}

#[test]
fn refusing_proxy_is_reported_with_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    for (answer, words) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "answered CONNECT with 403 Forbidden: it has to allow 127.0.0.1:1"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 Proxy Authentication Required"),
    ] {
        let proxy = Answers::with(answer);
        let at = format!("http://{}", proxy.at);
        let output = run(dir.path(), &[("SENDER__ENDPOINT", "https://127.0.0.1:1"), ("SENDER__PROXY", &at)]);
        let line = fault(&output, 1);
        assert!(line.contains(words) && line.contains("sender.proxy"), "{line}");
        assert!(line.starts_with(&format!("connect 127.0.0.1:1 through the proxy {}: ", proxy.at)), "{line}");
        assert!(proxy.request().starts_with("CONNECT 127.0.0.1:1 "));
    }
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = format!("http://{unused}");
    let line = fault(&run(dir.path(), &[("SENDER__ENDPOINT", "https://127.0.0.1:1"), ("SENDER__PROXY", &at)]), 1);
    assert!(line.contains(&format!("check sender.proxy ({at}/)")), "{line}");
}

#[test]
fn untrusted_certificate_is_reported_and_a_trusted_one_passes() {
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    for trusted in [false, true] {
        let (service, own) = Answers::with_tls(REFUSED);
        let (_, other) = Answers::with_tls(REFUSED);
        std::fs::write(&ca_file, if trusted { &own } else { &other }).unwrap();
        let endpoint = format!("https://{}", service.at);
        let settings = [("SENDER__ENDPOINT", endpoint.as_str()), ("SENDER__CA_FILE", ca_file.to_str().unwrap())];
        let output = run(&dir.path().join("relay"), &settings);
        let certificate = format!("certificate of {}: ", service.at);
        if trusted {
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
            assert!(findings(&output).contains(&format!("{certificate}ok")), "{}", text(&output.stderr));
            assert!(service.request().starts_with("POST /participant/message "));
        } else {
            let line = fault(&output, 1);
            assert!(line.starts_with(&certificate) && line.contains("sender.ca_file"), "{line}");
            assert!(findings(&output).contains(&format!("connect {}: ok", service.at)));
            assert_eq!(service.request(), "", "nothing is sent");
        }
    }
}

#[test]
fn answer_of_another_server_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    for (answer, words) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "a page of a proxy, or another service"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404 with a body"),
        ("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "302: a redirect"),
        ("HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", "503: try again in a minute"),
        ("", "no answer came"),
    ] {
        let service = Answers::with(answer);
        let (at, endpoint) = (service.at.clone(), format!("http://{}", service.at));
        let line = fault(&run(dir.path(), &[("SENDER__ENDPOINT", &endpoint)]), 1);
        assert!(line.starts_with(&format!("answer of {at}: ")) && line.contains(words), "{line}");
        assert!(line.contains("check sender.endpoint"), "{line}");
    }
}

#[test]
fn port_and_socket_of_another_program_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let other = Answers::of(|_| String::new());
    let line = fault(&with_service(dir.path(), &[("ADMIN__LISTEN", &other.at)]), 1);
    let expected = format!(
        "admin.listen {}: the port is in use by another program: stop it, or set admin.listen to a free one",
        other.at
    );
    assert_eq!(line, expected);
    std::fs::write(dir.path().join("relay.sock"), "").unwrap();
    let line = fault(&with_service(dir.path(), &[]), 1);
    assert!(line.starts_with("ingress.socket ") && line.contains("not a socket has that name: move it away"), "{line}");
    assert!(line.ends_with("or set another --dir"), "{line}");
}

/// A copy of the program that every user can run.
fn copy_for_all_users(dir: &Path) -> PathBuf {
    let copy = dir.join("connect-relay");
    std::fs::copy(env!("CARGO_BIN_EXE_connect-relay"), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn unwritable_folder_is_reported_with_the_user_and_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    for (folder, mode) in [(dir.path(), 0o755), (&locked, 0o555)] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let root = rustix::process::geteuid().is_root();
    let binary = copy_for_all_users(dir.path());
    let ordinary = |arguments: &[&str], endpoint: &str| {
        let mut command = Command::new(&binary);
        let (queue, control) = (locked.join("lib/queue"), locked.join("lib/control.sock"));
        command.args(arguments).env_clear().envs([
            ("CONNECT_RELAY__SENDER__ENDPOINT", endpoint),
            ("CONNECT_RELAY__ADMIN__LISTEN", "127.0.0.1:0"),
            ("CONNECT_RELAY__QUEUE__VOLATILE", "true"),
            ("CONNECT_RELAY__QUEUE__PATH", queue.to_str().unwrap()),
            ("CONNECT_RELAY__CONTROL__SOCKET", control.to_str().unwrap()),
            ("CONNECT_RELAY__INGRESS__SOCKET", locked.join("run/relay.sock").to_str().unwrap()),
        ]);
        if root {
            command.uid(65_534).gid(65_534);
        }
        command.output().unwrap()
    };
    let service = Answers::with(REFUSED);
    let output = ordinary(&["check", "--online"], &format!("http://{}", service.at));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let user = if root { 65_534 } else { rustix::process::geteuid().as_raw() };
    let faults = findings(&output);
    for key in ["ingress.socket", "control.socket", "queue.path"] {
        let line = faults.iter().find(|line| line.starts_with(key)).unwrap();
        let fault =
            format!("{} is not writable for user {user} (Permission denied): give it to that user", locked.display());
        assert!(line.contains(&fault) && line.contains(key) && line.contains("--dir"), "{line}");
    }
    service.request();
    // The first start of an ordinary user.
    let output = ordinary(&["run"], "http://127.0.0.1:9");
    assert_eq!(output.status.code(), Some(1));
    let line = text(&output.stderr);
    assert!(line.contains("Permission denied") && line.contains("`connect-relay run --dir DIR`"), "{line}");
}

#[test]
fn store_that_a_start_would_refuse_with_78_is_78() {
    let dir = tempfile::tempdir().unwrap();
    let queue = dir.path().join("private/queue");
    std::fs::create_dir_all(&queue).unwrap();
    std::fs::write(queue.join("format"), "connect-relay queue, format 99\n").unwrap();
    let line = fault(&with_service(dir.path(), &[]), 78);
    assert!(line.starts_with("queue.path ") && line.contains("its format is 99"), "{line}");
}

#[test]
fn disk_that_is_too_full_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let line = fault(&with_service(dir.path(), &[("QUEUE__FREE_DISK_MIN", "1024TiB")]), 1);
    assert!(line.contains("queue.free_disk_min is 1.0 PiB: free some space"), "{line}");
}

#[test]
fn bad_configuration_is_78_and_nothing_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &[("SENDER__QUOTA_RATE", "fast")]);
    assert_eq!(output.status.code(), Some(78));
    assert!(findings(&output).is_empty() && output.stdout.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn doctor_finds_the_queue_below_the_folder_of_run() {
    let dir = tempfile::tempdir().unwrap();
    drop(Relay::of(&mut relay(dir.path())));
    let output = program(&["doctor", "check", dir.path().to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("{0} is not a queue; the queue is {0}/private/queue", dir.path().display());
    assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
}
