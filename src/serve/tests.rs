//! Real sockets and raw bytes, without sleeps: each test waits for an event, under one generous time-out.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::Response;
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::socket::bind_tcp;
use super::*;

const LONG: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

/// A body of unknown length.
enum Unsized {
    /// Ends when it is released.
    Until(Pin<Box<OwnedNotified>>),
    Endless,
}

impl Body for Unsized {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Unsized::Until(released) => released.as_mut().poll(cx).map(|()| None),
            Unsized::Endless => Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; 16 << 10]))))),
        }
    }
}

/// A server on a Unix socket in a temporary folder.
struct Server {
    folder: tempfile::TempDir,
    connections: ConnectionCount,
    clock: Clock,
    /// Releases the requests for `/wait`.
    release: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<()>,
}

impl Server {
    fn start(change: impl FnOnce(&mut Limits)) -> Server {
        let mut limits =
            Limits { connections_max: 16, idle_timeout: LONG, request_timeout: LONG, head_bytes_max: 8192 };
        change(&mut limits);
        let folder = tempfile::tempdir().unwrap();
        let listener = bind_unix(&folder.path().join("s"), 0o600).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (connections, release) = (ConnectionCount::default(), Arc::new(Notify::new()));
        let released = Arc::clone(&release);
        let service = move |request: Request<RequestBody>, _: Peer| {
            let released = Arc::clone(&released);
            async move {
                let path = request.uri().path().to_owned();
                match path.as_str() {
                    "/wait" => released.notified().await,
                    "/long" => return Response::new(Either::Left(Bytes::from(vec![b'x'; 8 << 20]).into())),
                    "/stream" => {
                        return Response::new(Either::Right(Unsized::Until(Box::pin(
                            Arc::clone(&released).notified_owned(),
                        ))));
                    }
                    "/endless" => return Response::new(Either::Right(Unsized::Endless)),
                    "/unread" => return Response::new(Either::Left(Full::from(path))),
                    _ => {}
                }
                let body = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
                Response::new(Either::Left(Full::from(format!("{path} {body}"))))
            }
        };
        let stopped = async { drop(stopped.await) };
        let (counted, clock) = (connections.clone(), Clock::system());
        let ticking = clock.clone();
        let done = tokio::spawn(async move {
            serve(Listener::Unix(listener), limits, ticking, counted, service, stopped).await;
        });
        Server { folder, connections, clock, release, stop: Some(stop), done }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("s")).await.unwrap()
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    async fn done(self) {
        in_time(self.done).await.unwrap();
    }
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(TIMEOUT, what).await.expect("in time")
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    in_time(stream.write_all(text.as_bytes())).await.unwrap();
}

/// Reads one reply: its head in lower case, and its body.
async fn reply(stream: &mut (impl AsyncRead + Unpin)) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time(stream.read_u8()).await.expect("a whole reply"));
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    in_time(stream.read_exact(&mut body)).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

async fn get(stream: &mut UnixStream, path: &str) -> (String, String) {
    send(stream, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    reply(stream).await
}

/// Checks that the other side has closed: nothing more comes.
async fn assert_closed(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    // A reset counts as an end.
    let _ = in_time(stream.read_to_end(&mut rest)).await;
    assert_eq!(String::from_utf8_lossy(&rest), "");
}

#[tokio::test]
async fn slow_head_times_out() {
    let server = Server::start(|limits| limits.request_timeout = SHORT);
    let mut fresh = server.connect().await;
    send(&mut fresh, "GET / HT").await;
    assert_closed(&mut fresh).await;
    let mut used = server.connect().await;
    get(&mut used, "/a").await;
    send(&mut used, "GET / HT").await;
    assert_closed(&mut used).await;
}

#[tokio::test]
async fn idle_connection_is_closed_after_the_idle_time_out() {
    let server = Server::start(|limits| limits.idle_timeout = SHORT);
    let (mut fresh, mut used) = (server.connect().await, server.connect().await);
    get(&mut used, "/a").await;
    assert_closed(&mut used).await;
    assert_closed(&mut fresh).await;
    in_time(server.connections.none()).await;
}

#[tokio::test]
async fn longest_idle_is_closed_at_the_limit() {
    let server = Server::start(|limits| limits.connections_max = 2);
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    get(&mut second, "/a").await;
    server.clock.skip(Duration::from_secs(1));
    get(&mut first, "/a").await;
    let mut third = server.connect().await;
    assert_eq!(get(&mut third, "/b").await.1, "/b 0");
    assert_closed(&mut second).await;
    assert_eq!(get(&mut first, "/c").await.1, "/c 0");
    assert_eq!(server.connections.open(), 2);
}

#[tokio::test]
async fn newest_of_a_hundred_silent_connections_is_served() {
    let server = Server::start(|limits| limits.connections_max = 8);
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(server.connect().await);
    }
    assert_eq!(get(&mut server.connect().await, "/a").await.1, "/a 0");
    let kept = server.connections.open();
    assert!(kept <= 8, "{kept} are open");
}

#[tokio::test]
async fn new_connection_is_pending_while_all_others_are_in_a_request() {
    let server = Server::start(|limits| limits.connections_max = 1);
    let mut busy = server.connect().await;
    send(&mut busy, "GET /wait HTTP/1.1\r\n\r\n").await;
    let mut newest = server.connect().await;
    send(&mut newest, "GET /b HTTP/1.1\r\n\r\n").await;
    while server.connections.open() < 2 {
        tokio::task::yield_now().await;
    }
    server.release.notify_one();
    let (head, body) = reply(&mut busy).await;
    assert_eq!(body, "/wait 0");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(reply(&mut newest).await.1, "/b 0");
    assert!(!get(&mut newest, "/c").await.0.contains("connection: close"), "no connection is pending any more");
}

#[tokio::test]
async fn user_over_its_share_loses_a_place_to_another_user() {
    let limits = Limits { connections_max: 4, idle_timeout: LONG, request_timeout: LONG, head_bytes_max: 8192 };
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    // None of the first user's requests is ever answered.
    let service = move |_, peer| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            match peer {
                Peer::Unix { uid: 1, .. } => std::future::pending().await,
                _ => Response::new(Full::new(Bytes::from("served"))),
            }
        }
    };
    let (count, mut connections) =
        (ConnectionCount::default(), Connections::new(limits, Clock::system(), ConnectionCount::default(), service));
    let add = |connections: &mut Connections<_>, uid| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::Unix { uid, gid: uid, pid: None };
        connections.add(Pending { stream: Stream::Unix(theirs), peer, counted: count.enter() });
        ours
    };
    let mut busy = Vec::new();
    for _ in 0..4 {
        let mut stream = add(&mut connections, 1);
        send(&mut stream, "GET /a HTTP/1.1\r\n\r\n").await;
        busy.push(stream);
    }
    // A lone user may have all places.
    while requests.load(Ordering::Relaxed) < 4 {
        tokio::task::yield_now().await;
    }
    let mut newest = add(&mut connections, 2);
    send(&mut newest, "GET /a HTTP/1.1\r\n\r\n").await;
    let served = async {
        while count.open() > 0 {
            connections.join_next().await
        }
    };
    let [a, b, c, d] = &mut busy[..] else { unreachable!() };
    let asked = async {
        assert_eq!(reply(&mut newest).await.1, "served");
        // They came within a millisecond: chance decides which counts as the longest idle.
        tokio::select! {
            () = assert_closed(a) => {}
            () = assert_closed(b) => {}
            () = assert_closed(c) => {}
            () = assert_closed(d) => {}
        }
    };
    tokio::select! {
        () = in_time(asked) => {}
        () = served => panic!("no connection is left"),
    }
    assert_eq!(count.open(), 4, "one was aborted, no more");
}

#[tokio::test]
async fn new_connection_is_closed_if_the_pending_list_is_full() {
    let server = Server::start(|limits| limits.connections_max = 1);
    let mut busy = server.connect().await;
    send(&mut busy, "GET /wait HTTP/1.1\r\n\r\n").await;
    let mut waits = server.connect().await;
    while server.connections.open() < 2 {
        tokio::task::yield_now().await;
    }
    assert_closed(&mut server.connect().await).await;
    server.release.notify_one();
    assert_eq!(reply(&mut busy).await.1, "/wait 0");
    assert_eq!(get(&mut waits, "/b").await.1, "/b 0");
}

#[tokio::test]
async fn drain_closes_idle_connections_and_finishes_requests_in_flight() {
    let mut server = Server::start(|_| {});
    let (mut idle, mut busy, mut half) = (server.connect().await, server.connect().await, server.connect().await);
    send(&mut busy, "GET /wait HTTP/1.1\r\n\r\n").await;
    send(&mut half, "GET /half HT").await;
    get(&mut idle, "/a").await;
    server.stop();
    assert_closed(&mut idle).await;
    let refused = UnixStream::connect(server.folder.path().join("s")).await;
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(!server.done.is_finished());
    server.release.notify_one();
    send(&mut half, "TP/1.1\r\n\r\n").await;
    for (stream, expected) in [(&mut busy, "/wait 0"), (&mut half, "/half 0")] {
        let (head, body) = reply(stream).await;
        assert_eq!(body, expected);
        assert!(head.contains("connection: close"), "{head}");
        assert_closed(stream).await;
    }
    in_time(server.connections.none()).await;
    server.done().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(|_| {});
    let mut stream = server.connect().await;
    send(&mut stream, &"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\n\r\n".repeat(100)).await;
    for _ in 0..100 {
        assert_eq!(reply(&mut stream).await.1, "/a 3");
        assert_eq!(reply(&mut stream).await.1, "/b 0");
    }
}

#[tokio::test]
async fn half_closed_connection_gets_its_reply() {
    let server = Server::start(|_| {});
    let mut stream = server.connect().await;
    send(&mut stream, "GET /wait HTTP/1.1\r\n\r\n").await;
    stream.shutdown().await.unwrap();
    server.release.notify_one();
    assert_eq!(reply(&mut stream).await.1, "/wait 0");
    assert_closed(&mut stream).await;
}

#[tokio::test]
async fn garbage_and_endless_heads_are_refused() {
    let server = Server::start(|_| {});
    for (text, status) in [("\x16\x03\x01\x02\r\n\r\n".to_owned(), "400"), ("x".repeat(9000), "4")] {
        let mut stream = server.connect().await;
        // The other side may have closed before everything was written.
        let _ = stream.write_all(format!("GET /{text}").as_bytes()).await;
        let mut all = Vec::new();
        let _ = in_time(stream.read_to_end(&mut all)).await;
        assert!(String::from_utf8_lossy(&all).starts_with(&format!("HTTP/1.1 {status}")), "{all:?}");
    }
    in_time(server.connections.none()).await;
}

#[tokio::test]
async fn long_reply_is_cut_only_if_its_client_does_not_read() {
    let server = Server::start(|limits| limits.idle_timeout = SHORT);
    let mut reads = server.connect().await;
    assert_eq!(get(&mut reads, "/long").await.1.len(), 8 << 20);
    drop(reads);
    let mut deaf = server.connect().await;
    send(&mut deaf, "GET /long HTTP/1.1\r\n\r\n").await;
    while server.connections.open() < 1 {
        tokio::task::yield_now().await;
    }
    in_time(server.connections.none()).await;
}

#[tokio::test]
async fn stream_is_open_until_it_ends_and_is_the_last_reply_of_its_connection() {
    let server = Server::start(|limits| limits.idle_timeout = SHORT);
    let mut stream = server.connect().await;
    send(&mut stream, "GET /stream HTTP/1.1\r\n\r\n").await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time(stream.read_u8()).await.expect("a head"));
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.contains("connection: close") && !head.contains("keep-alive"), "{head}");
    // Other connections come and time out meanwhile.
    for _ in 0..3 {
        assert_closed(&mut server.connect().await).await;
    }
    assert_eq!(server.connections.open(), 1);
    server.release.notify_one();
    let mut rest = String::new();
    in_time(stream.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "0\r\n\r\n");
    in_time(server.connections.none()).await;
}

#[tokio::test]
async fn stream_is_cut_if_its_client_does_not_read() {
    let server = Server::start(|limits| limits.idle_timeout = SHORT);
    let mut deaf = server.connect().await;
    send(&mut deaf, "GET /endless HTTP/1.1\r\n\r\n").await;
    while server.connections.open() < 1 {
        tokio::task::yield_now().await;
    }
    in_time(server.connections.none()).await;
}

#[tokio::test]
async fn drain_waits_for_streams_and_cuts_those_whose_client_does_not_read() {
    let mut server = Server::start(|_| ());
    let (mut stream, mut deaf) = (server.connect().await, server.connect().await);
    send(&mut deaf, "GET /endless HTTP/1.1\r\n\r\n").await;
    send(&mut stream, "GET /stream HTTP/1.1\r\n\r\n").await;
    assert_eq!(in_time(stream.read_u8()).await.unwrap(), b'H');
    assert_eq!(in_time(deaf.read_u8()).await.unwrap(), b'H');
    server.stop();
    while server.connections.open() > 1 {
        tokio::task::yield_now().await;
    }
    server.release.notify_one();
    let mut rest = Vec::new();
    in_time(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"));
    server.done().await;
}

#[tokio::test]
async fn tcp_peers_are_served_too() {
    let listener = bind_tcp(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let error = bind_tcp(address).unwrap_err().to_string();
    assert!(error.starts_with(&format!("listen on {address}: ")), "{error}");
    let limits = Limits { connections_max: 1, idle_timeout: LONG, request_timeout: LONG, head_bytes_max: 8192 };
    let service = |_, peer| async move { Response::new(Full::new(Bytes::from(format!("{peer:?}")))) };
    let serving = serve(
        Listener::Tcp(listener),
        limits,
        Clock::system(),
        ConnectionCount::default(),
        service,
        std::future::pending(),
    );
    let asking = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
        assert_eq!(reply(&mut stream).await.1, "Tcp");
    };
    tokio::select! {
        () = serving => panic!("it was not asked to stop"),
        () = in_time(asking) => {}
    }
}

#[tokio::test]
async fn stale_socket_is_replaced_and_a_live_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/made/relay.sock");
    let socket = bind_unix(&path, 0o660).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(
        bind_unix(&path, 0o660).unwrap_err().to_string(),
        format!("listen on {}: another process is listening there", path.display())
    );
    drop(socket);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing is left");
    // The relay was killed: the socket and the lock file stay, and no process listens.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    fs::write(folder.path().join("run/made/relay.sock.lock"), "").unwrap();
    let _socket = bind_unix(&path, 0o600).unwrap();
    UnixStream::connect(&path).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn stale_socket_is_left_alone_while_another_relay_holds_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.sock");
    let lock = folder.path().join("relay.sock.lock");
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let stale = fs::symlink_metadata(&path).unwrap().ino();
    assert_eq!(
        bind_unix(&path, 0o600).unwrap_err().to_string(),
        format!("listen on {}: another relay holds {}", path.display(), lock.display())
    );
    assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), stale);
    drop(held);
    bind_unix(&path, 0o600).unwrap();
}

#[tokio::test]
async fn every_path_that_fits_a_socket_address_is_bound_and_no_longer_one() {
    let folder = tempfile::tempdir().unwrap();
    for length in [99, 100, 103, 106, 107, 108] {
        for name in ["s", "relay.sock"] {
            // The folders fill the path to exactly this length.
            let fill = length - folder.path().as_os_str().len() - name.len() - 2;
            let path = folder.path().join("d".repeat(fill)).join(name);
            assert_eq!(path.as_os_str().len(), length);
            let bound = bind_unix(&path, 0o600);
            assert_eq!(bound.is_ok(), length <= 107, "{length} {name}: {bound:?}");
        }
    }
}

#[tokio::test]
async fn vanished_socket_is_bound_again_with_its_folder_and_its_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/relay.sock");
    let mut socket = bind_unix(&path, 0o660).unwrap();
    let socket_path = socket.socket_path();
    let mut old = UnixStream::connect(&path).await.unwrap();
    let (mut served, _) = socket.listener.accept().await.unwrap();
    for way in ["the socket", "the folder"] {
        match way {
            "the socket" => fs::remove_file(&path).unwrap(),
            _ => fs::remove_dir_all(folder.path().join("run")).unwrap(),
        }
        assert_eq!(socket_path.check().unwrap_err(), "nothing is there", "{way}");
        socket.watch();
        assert_eq!(socket_path.check(), Ok(()), "{way}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        UnixStream::connect(&path).await.unwrap();
        in_time(socket.listener.accept()).await.unwrap();
        assert!(bind_unix(&path, 0o600).is_err(), "{way}");
    }
    served.write_all(b"x").await.unwrap();
    assert_eq!(in_time(old.read_u8()).await.unwrap(), b'x', "connections go on");
    drop(socket);
    assert_eq!(fs::read_dir(folder.path().join("run")).unwrap().count(), 0, "nothing is left");
}

#[tokio::test]
async fn other_file_at_the_path_of_a_running_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.sock");
    let mut socket = bind_unix(&path, 0o660).unwrap();
    let socket_path = socket.socket_path();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    socket.watch();
    assert_eq!(socket_path.check().unwrap_err(), "something that is not a socket is there, and is left alone");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(other);
    socket.watch();
    assert_eq!(socket_path.check().unwrap_err(), "another socket is there, and is left alone");
    drop(socket);
    assert!(path.exists(), "and is not removed at the end");
}

#[tokio::test]
async fn vanished_socket_is_bound_again_within_five_seconds() {
    let server = Server::start(|_| {});
    let path = server.folder.path().join("s");
    let mut before = server.connect().await;
    get(&mut before, "/a").await;
    fs::remove_file(&path).unwrap();
    let again = async {
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(get(&mut in_time(again).await, "/b").await.1, "/b 0");
    assert_eq!(get(&mut before, "/c").await.1, "/c 0", "connections go on");
}

/// A socket as a service manager makes it, and the relay's handle of it.
fn inherit(path: &std::path::Path) -> (std::os::unix::net::UnixListener, Inherited) {
    let manager = std::os::unix::net::UnixListener::bind(path).unwrap();
    let inherited = Inherited::new(manager.try_clone().unwrap().into(), path).unwrap();
    (manager, inherited)
}

#[tokio::test]
async fn inherited_socket_is_served_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.sock");
    let (_manager, inherited) = inherit(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    let before = fs::symlink_metadata(&path).unwrap();
    let (ino, mode, ctime) = (before.ino(), before.mode(), (before.ctime(), before.ctime_nsec()));
    for _ in 0..2 {
        // A client connects while no relay runs, and is served by the next.
        let _client = UnixStream::connect(&path).await.unwrap();
        let mut socket = adopt_unix(&inherited, &path, 0o660).unwrap();
        in_time(socket.listener.accept()).await.unwrap();
        socket.watch();
        assert_eq!(socket.socket_path().check(), Ok(()));
        let error = adopt_unix(&inherited, &path, 0o660).unwrap_err().to_string();
        assert_eq!(error, format!("listen on {0}: another relay holds {0}.lock", path.display()));
        drop(socket);
        let after = fs::symlink_metadata(&path).unwrap();
        assert_eq!((after.ino(), after.mode(), (after.ctime(), after.ctime_nsec())), (ino, mode, ctime));
    }
}

#[tokio::test]
async fn vanished_inherited_socket_is_reported_and_never_bound_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.sock");
    let (_manager, inherited) = inherit(&path);
    let remedy = "; only systemd can make the socket again: systemctl restart connect-relay.socket";
    for vanished in ["while the relay runs", "before its start"] {
        let mut socket = adopt_unix(&inherited, &path, 0o660).unwrap();
        if vanished == "while the relay runs" {
            fs::remove_file(&path).unwrap();
        }
        let socket_path = socket.socket_path();
        assert_eq!(socket_path.check().unwrap_err(), format!("nothing is there{remedy}"), "{vanished}");
        socket.watch();
        assert!(!path.exists(), "{vanished}");
        // Another socket comes, and stays.
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        socket.watch();
        assert_eq!(socket_path.check().unwrap_err(), format!("another socket is there, and is left alone{remedy}"));
        drop((socket, other));
        assert!(path.exists(), "{vanished}");
        fs::remove_file(&path).unwrap();
    }
    // A socket without a listener, at the start.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = adopt_unix(&inherited, &path, 0o660).unwrap();
    assert!(socket.socket_path().check().unwrap_err().starts_with("another socket is there"));
}

#[test]
fn inherited_descriptor_that_is_no_listening_unix_stream_socket_of_the_path_is_refused() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("relay.sock"), folder.path().join("other.sock"));
    let abstract_name = format!("connect-relay-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(abstract_name);
    let unbound = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let refused: Vec<(std::os::fd::OwnedFd, String)> = vec![
        (fs::File::create(folder.path().join("file")).unwrap().into(), "it is not a socket".into()),
        (std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(), "it is not a Unix socket".into()),
        (UnixDatagram::bind(folder.path().join("datagram")).unwrap().into(), "it is not a stream socket".into()),
        (UnixStream::pair().unwrap().0.into(), "it does not listen".into()),
        (unbound, "it does not listen".into()),
        (UnixListener::bind_addr(&abstract_name.unwrap()).unwrap().into(), "it has no path".into()),
        (
            UnixListener::bind(&other).unwrap().into(),
            format!("it is at {}, and ingress.socket is {}", other.display(), path.display()),
        ),
    ];
    for (descriptor, cause) in refused {
        let error = Inherited::new(descriptor, &path).unwrap_err();
        assert!(error.starts_with(&cause), "{error}");
    }
    // The same folder under another name, as /var/run and /run.
    let alias = folder.path().join("alias");
    std::os::unix::fs::symlink(folder.path(), &alias).unwrap();
    let listener = UnixListener::bind(alias.join("relay.sock")).unwrap();
    Inherited::new(listener.into(), &path).unwrap();
}

#[tokio::test]
async fn kernel_backlog_takes_a_burst_of_connections() {
    let listener = bind_tcp(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let most: usize = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    // None is accepted: all of them wait in the kernel.
    let mut waiting = Vec::new();
    for _ in 0..most.min(500) {
        waiting.push(in_time(tokio::net::TcpStream::connect(address)).await.unwrap());
    }
}

#[tokio::test]
async fn replies_on_a_connection_that_stays_open_announce_its_lifetime() {
    let cases = [(75_000, Some("timeout=74")), (4000, Some("timeout=3")), (3000, Some("timeout=2")), (2999, None)];
    for (idle_ms, expected) in cases {
        let server = Server::start(|limits| limits.idle_timeout = Duration::from_millis(idle_ms));
        let mut stream = server.connect().await;
        let (head, _) = get(&mut stream, "/a").await;
        let said = head.lines().find_map(|line| line.strip_prefix("keep-alive: "));
        assert_eq!(said, expected, "{idle_ms}: {head}");
    }
    let server = Server::start(|_| {});
    for head in ["GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
        let mut stream = server.connect().await;
        send(&mut stream, head).await;
        assert!(!reply(&mut stream).await.0.contains("keep-alive: "), "{head}");
    }
    let mut stream = server.connect().await;
    send(&mut stream, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert!(reply(&mut stream).await.0.contains("keep-alive: timeout=59"));
    server.connections.close_after_replies();
    let mut stream = server.connect().await;
    let (head, _) = get(&mut stream, "/b").await;
    assert!(head.contains("connection: close") && !head.contains("keep-alive"), "{head}");
    assert_closed(&mut stream).await;
}

#[tokio::test]
async fn reply_to_a_request_whose_body_was_not_read_ends_its_connection() {
    let server = Server::start(|_| {});
    for (head, stays) in [
        ("POST /read HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", true),
        ("POST /read HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", true),
        ("POST /unread HTTP/1.1\r\nContent-Length: 0\r\n\r\n", true),
        ("GET /unread HTTP/1.1\r\n\r\n", true),
        ("POST /unread HTTP/1.1\r\nContent-Length: 2\r\n\r\na", false),
        ("POST /unread HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", false),
        ("POST /unread HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", false),
    ] {
        let mut stream = server.connect().await;
        send(&mut stream, "POST /first HTTP/1.1\r\nContent-Length: 2\r\n\r\nab").await;
        assert!(reply(&mut stream).await.0.contains("keep-alive: timeout="));
        send(&mut stream, head).await;
        let (said, _) = reply(&mut stream).await;
        assert_eq!(
            (said.contains("keep-alive: "), said.contains("connection: close")),
            (stays, !stays),
            "{head}: {said}"
        );
        if stays {
            assert!(get(&mut stream, "/again").await.0.contains("keep-alive: timeout="), "{head}");
        } else {
            assert_closed(&mut stream).await;
        }
    }
}

#[tokio::test]
async fn file_that_is_not_a_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    fs::write(&path, "mine").unwrap();
    assert_eq!(
        bind_unix(&path, 0o600).unwrap_err().to_string(),
        format!("listen on {}: something is there that is not a socket", path.display())
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}
