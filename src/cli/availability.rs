//! Checks if this user can use the folders, sockets and ports that a start needs. Creates and changes nothing.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use rustix::fs::{Access, AtFlags, CWD};
use tokio::net::UnixStream;

use super::client;
use super::socket_holders;
use crate::participant::online;
use crate::serve::bind_tcp_or_ipv4;

/// The time-out for the answer of a program on this machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The state of a path or port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// A start can use it.
    Free,
    /// A running relay uses it.
    UsedByRelay,
    /// systemd listens on the socket, and starts a relay when a bot connects. No relay answers there.
    HeldBySystemd,
    /// A start cannot use it: the fault, and the operator's next step other than to choose another path or port.
    Unavailable(String),
}

/// An API of the relay, which shows that a relay holds a socket or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// The bots' API.
    Ingress,
    /// The operators' API.
    Control,
    /// The API for probes and metrics.
    Admin,
}

impl Api {
    fn path(self) -> &'static str {
        match self {
            Api::Ingress => "/participant/queue",
            Api::Control => "/status",
            Api::Admin => "/metrics",
        }
    }

    /// True if a reply comes from this API of a relay. The relay's errors contain its name.
    fn matches(self, body: &[u8]) -> bool {
        let text = String::from_utf8_lossy(body);
        let words: &[&str] = match self {
            Api::Ingress => &["\"Draining\":", "connect-relay: "],
            Api::Control => &["\"uptime_seconds\":", "connect-relay: "],
            Api::Admin => &["connect_relay_info{"],
        };
        words.iter().any(|word| text.contains(word))
    }
}

/// Checks that this user can create files in a folder, or create the folder first.
pub fn writable(folder: &Path) -> Result<(), String> {
    let there = folder.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    let shown = there.display();
    let user = rustix::process::geteuid().as_raw();
    match there.metadata() {
        Ok(found) if !found.is_dir() => return Err(format!("{shown} is not a folder: move it away")),
        Ok(_) => {}
        Err(error) => return Err(format!("{shown} cannot be used by user {user} ({})", plain(&error))),
    }
    let access = rustix::fs::accessat(CWD, there, Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty());
    access.map_err(io::Error::from).map_err(|error| match error.kind() {
        ErrorKind::ReadOnlyFilesystem => {
            format!("{shown} is on a file system that is mounted read-only: mount a writable volume there")
        }
        _ => format!("{shown} is not writable for user {user} ({}): give it to that user", plain(&error)),
    })
}

/// Checks the folder of a store: a start also closes it to other users.
pub fn own(folder: &Path) -> Result<(), String> {
    let user = rustix::process::geteuid();
    match folder.metadata() {
        Ok(found) if !user.is_root() && found.uid() != user.as_raw() && found.is_dir() => Err(format!(
            "{} belongs to user {}, and this is user {}: give it to that user",
            folder.display(),
            found.uid(),
            user.as_raw()
        )),
        _ => writable(folder),
    }
}

/// Checks the path of a Unix socket.
pub async fn socket(path: &Path, api: Api) -> Availability {
    let folder = || {
        writable(path.parent().unwrap_or(Path::new("/")))
            .map_or_else(Availability::Unavailable, |()| Availability::Free)
    };
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return folder(),
        Err(error) => return Availability::Unavailable(format!("its state cannot be read ({})", plain(&error))),
        Ok(found) if !found.file_type().is_socket() => {
            return Availability::Unavailable("a file that is not a socket has that name: move it away".into());
        }
        Ok(_) => {}
    }
    // A connection would start a relay.
    if socket_holders::is_held_by_systemd_alone(path) {
        return Availability::HeldBySystemd;
    }
    let is_systemds = match UnixStream::connect(path).await {
        // A relay that was killed left it, and the next start removes it.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return folder(),
        Err(error) => {
            return Availability::Unavailable(format!(
                "connect to the socket there: {}; run this as the relay's user, or remove the socket",
                plain(&error)
            ));
        }
        // The kernel reports the process that listens: systemd, also after the relay has taken its socket.
        Ok(stream) => stream.peer_cred().is_ok_and(|peer| peer.pid().is_some_and(socket_holders::is_systemd)),
    };
    let Ok(request) = Request::get(api.path()).body(Full::<Bytes>::default()) else { return Availability::Free };
    match client::send(path, request, ANSWER_WITHIN).await {
        Ok(reply) if api.matches(reply.body()) => Availability::UsedByRelay,
        _ if is_systemds => Availability::HeldBySystemd,
        _ => Availability::Unavailable("another program listens there: stop it".into()),
    }
}

/// Checks a TCP port.
pub async fn port(address: SocketAddr, api: Api) -> Availability {
    let Err(error) = std::net::TcpListener::bind(address) else { return Availability::Free };
    match error.kind() {
        ErrorKind::AddrInUse => match online::get_page(reachable(address), api.path(), ANSWER_WITHIN).await {
            Some((_, body)) if api.matches(&body) => Availability::UsedByRelay,
            _ => Availability::Unavailable("the port is in use by another program: stop it".into()),
        },
        // On a host without IPv6 a start takes the equivalent IPv4 address.
        _ if bind_tcp_or_ipv4(address).is_ok() => Availability::Free,
        ErrorKind::PermissionDenied => Availability::Unavailable(format!(
            "user {} may not use a port below 1024",
            rustix::process::geteuid().as_raw()
        )),
        ErrorKind::AddrNotAvailable => Availability::Unavailable("this host has no such address".into()),
        _ => Availability::Unavailable(format!("it cannot be used ({})", plain(&error))),
    }
}

/// Returns an address at which this machine reaches a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Returns the text of an error without the system's number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn fault(place: Availability) -> String {
        match place {
            Availability::Unavailable(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn missing_folder_is_checked_by_its_nearest_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable(&dir.path().join("a/b")), Ok(()));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(writable(&file.join("a")), Err(format!("{} is not a folder: move it away", file.display())));
        assert_eq!(own(&dir.path().join("a/b")), Ok(()));
    }

    #[tokio::test]
    async fn socket_of_another_program_or_another_file_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(socket(&path, Api::Control).await, Availability::Free);
        std::fs::write(&path, "").unwrap();
        assert!(fault(socket(&path, Api::Control).await).contains("not a socket"));
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let answer = std::thread::spawn(move || {
            // Two connections: the first sends no request.
            for _ in 0..2 {
                use std::io::Write as _;
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            }
        });
        assert!(fault(socket(&path, Api::Control).await).contains("another program listens there"));
        answer.join().unwrap();
        assert_eq!(
            socket(&path, Api::Control).await,
            Availability::Free,
            "no process listens on it: a start removes it"
        );
    }

    #[tokio::test]
    async fn port_of_another_program_is_not_free() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = std::thread::spawn(move || {
            use std::io::Write as _;
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        });
        assert!(fault(port(address, Api::Admin).await).contains("in use by another program"));
        answer.join().unwrap();
        assert_eq!(port(address, Api::Admin).await, Availability::Free);
        assert_eq!(port("127.0.0.1:0".parse().unwrap(), Api::Admin).await, Availability::Free);
    }
}
