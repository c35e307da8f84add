//! Binding of listen addresses, and supervision of a Unix socket's name.
//!
//! | step | reason |
//! | --- | --- |
//! | lock `NAME.lock` beside the socket | of two relays, only the one that holds the lock may remove a stale socket |
//! | remove a socket that refuses connections | a relay that was killed leaves its socket behind |
//! | bind in place | the kernel, `ss -xl` and systemd-tmpfiles know the socket by the path that bots use |
//! | set its mode, then listen | connections are refused until the socket listens, and by then its mode is in force |
//!
//! If there is a live socket, or a file of another kind, it is left alone, and the bind is refused.
//!
//! A socket can lose its name while its relay runs: to a cleaner of `/run`, to a volume that is mounted over its
//! folder, to an operator. [`UnixSocket::watch`] checks once, and binds the name again if it is free; any other file
//! there is left alone. Existing connections go on. [`SocketPath`] checks at any time if the socket is at its path.
//!
//! A socket that is inherited from the service manager is only watched: it is never removed, changed or bound again.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

use super::inherited::Inherited;

/// The longest path of a Unix socket. Linux itself accepts one byte more, but then without the zero at its end, which
/// most clients need.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The most connections that wait in the kernel to be accepted. The kernel limits it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Sockets do not block and are not inherited.
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// The device and the inode of a file.
type Identity = (u64, u64);

/// The reason why the relay cannot listen on an address.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {cause}")]
pub struct BindError {
    /// The path, or the address and port.
    pub address: String,
    /// The obstacle.
    pub cause: String,
}

/// A Unix socket that listens, with its name and its lock. Dropped, it removes both, but not the name of an inherited
/// socket.
#[derive(Debug)]
pub struct UnixSocket {
    pub(super) listener: UnixListener,
    mode: u32,
    socket_path: SocketPath,
    /// `None` for an inherited socket in a folder in which the relay can create no file.
    lock: Option<Lock>,
    /// The reason of the absence that was last logged; `None` while the socket is at its path.
    absence: Option<String>,
}

impl UnixSocket {
    /// The path of the socket, for checks from other parts.
    #[must_use]
    pub fn socket_path(&self) -> SocketPath {
        self.socket_path.clone()
    }

    /// Checks the socket's path, and binds the socket again if its name is free. Logs each change once.
    pub(super) fn watch(&mut self) {
        let socket = self.socket_path.path().to_owned();
        let socket = socket.display();
        let (absence, renewed) = match self.socket_path.compare() {
            Ok(()) => (None, false),
            Err(Absence::Gone) if !self.socket_path.is_inherited() => match self.rebind() {
                Ok(()) => (None, true),
                Err(cause) => (Some(format!("it is gone, and the relay cannot bind it again: {cause}")), false),
            },
            Err(absence) => (Some(self.socket_path.describe(&absence)), false),
        };
        match (&self.absence, &absence) {
            (None, None) if renewed => warn!(%socket, "the socket was gone from its path; it is bound there again"),
            (None, None) => {}
            (Some(_), None) => info!(%socket, "the socket is at its path again"),
            (before, Some(why)) if before.as_ref() == Some(why) => {}
            (_, Some(error)) => warn!(%socket, error, "the socket is not at its path: new connections cannot reach it"),
        }
        self.absence = absence;
    }

    fn rebind(&mut self) -> Result<(), String> {
        let path = self.socket_path.path().to_owned();
        prepare_path(&path)?;
        if !self.lock.as_ref().is_some_and(Lock::is_at_its_path) {
            self.lock = Some(Lock::take(&path).map_err(|refused| refused.to_string())?);
        }
        let (listener, identity) = bind_at_path(&path, self.mode)?;
        self.listener = listener;
        self.socket_path.set(identity);
        Ok(())
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if !self.socket_path.is_inherited() && self.socket_path.compare().is_ok() {
            // The next start removes a socket that is left.
            let _ = fs::remove_file(self.socket_path.path());
        }
    }
}

/// The path at which a socket has to be; clones share it.
#[derive(Clone, Debug)]
pub struct SocketPath(Arc<Place>);

#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// The socket's file; `None` if an inherited socket was not at its path at the start.
    file: Mutex<Option<Identity>>,
    is_inherited: bool,
}

impl SocketPath {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Checks the path: one system call.
    ///
    /// # Errors
    /// With a description of what is there instead of the socket.
    pub fn check(&self) -> Result<(), String> {
        self.compare().map_err(|absence| self.describe(&absence))
    }

    /// True if the service manager made the socket, and only it can make it again.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.0.is_inherited
    }

    fn describe(&self, absence: &Absence) -> String {
        if self.is_inherited() {
            format!("{absence}; only systemd can make the socket again: systemctl restart connect-relay.socket")
        } else {
            absence.to_string()
        }
    }

    fn compare(&self) -> Result<(), Absence> {
        let socket = *self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::symlink_metadata(self.path()) {
            Ok(found) if Some(identity(&found)) == socket => Ok(()),
            Ok(found) if found.file_type().is_socket() => Err(Absence::Replaced("another socket")),
            Ok(_) => Err(Absence::Replaced("something that is not a socket")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Absence::Gone),
            Err(error) => Err(Absence::Unknown(error)),
        }
    }

    fn set(&self, socket: Identity) {
        *self.0.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }
}

/// The reason why a socket is not at its path.
#[derive(Debug, thiserror::Error)]
enum Absence {
    #[error("nothing is there")]
    Gone,
    #[error("{0} is there, and is left alone")]
    Replaced(&'static str),
    #[error("look at what is there: {0}")]
    Unknown(io::Error),
}

/// The reason why a lock was not taken.
#[derive(Debug, thiserror::Error)]
enum NotLocked {
    #[error("another relay holds {}", .0.display())]
    Held(PathBuf),
    #[error("{0}")]
    Failed(String),
}

/// The lock file beside a socket. Only its holder may remove the socket of another relay.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Lock, NotLocked> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |step: &str, error: io::Error| NotLocked::Failed(format!("{step} {}: {error}", path.display()));
        loop {
            let mut open = OpenOptions::new();
            open.read(true).write(true).create(true).truncate(false).mode(0o600);
            open.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
            let file = open.open(&path).map_err(|error| failed("open", error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(NotLocked::Held(path));
                }
                Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
            }
            let lock = Lock { path: path.clone(), file };
            // The previous holder may have removed it between the two steps above.
            if lock.is_at_its_path() {
                return Ok(lock);
            }
        }
    }

    fn is_at_its_path(&self) -> bool {
        let (ours, there) = (self.file.metadata(), fs::symlink_metadata(&self.path));
        matches!((ours, there), (Ok(ours), Ok(there)) if identity(&ours) == identity(&there))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_at_its_path() {
            // The next start takes a lock file that is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on a Unix socket with this mode; creates its folder if it is missing. Needs a runtime.
///
/// # Errors
/// If another process listens there, if another file has the name, or if a step fails.
pub fn bind_unix(path: &Path, mode: u32) -> Result<UnixSocket, BindError> {
    let open = || {
        prepare_path(path)?;
        // Before the lock: a process that is not a relay is reported as such.
        is_stale(path)?;
        let lock = Some(Lock::take(path).map_err(|refused| refused.to_string())?);
        if is_stale(path)? {
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        let (listener, identity) = bind_at_path(path, mode)?;
        let file = Mutex::new(Some(identity));
        let socket_path = SocketPath(Arc::new(Place { path: path.into(), file, is_inherited: false }));
        Ok(UnixSocket { listener, mode, socket_path, lock, absence: None })
    };
    open().map_err(|cause| BindError { address: path.display().to_string(), cause })
}

/// Accepts on a socket of the service manager, which should have this path and mode. Logs it if it has not. Needs a
/// runtime.
///
/// # Errors
/// If another relay holds the lock, or if a step fails.
pub fn adopt_unix(inherited: &Inherited, path: &Path, mode: u32) -> Result<UnixSocket, BindError> {
    let open = || {
        let lock = match Lock::take(path) {
            Ok(lock) => Some(lock),
            Err(held @ NotLocked::Held(_)) => return Err(held.to_string()),
            // The folder is the service manager's. The lock is not needed: the socket is never removed.
            Err(NotLocked::Failed(_)) => None,
        };
        let listener = inherited.listener().and_then(UnixListener::from_std).map_err(failed("register"))?;
        let found = fs::symlink_metadata(path).ok().filter(|found| found.file_type().is_socket());
        // One that refuses connections belongs to another listener, which is gone.
        let found = found.filter(|_| !matches!(is_stale(path), Ok(true)));
        if let Some(found) = &found {
            warn_of_mode(path, found.permissions().mode(), mode);
        }
        let file = Mutex::new(found.as_ref().map(identity));
        let socket_path = SocketPath(Arc::new(Place { path: path.into(), file, is_inherited: true }));
        let mut socket = UnixSocket { listener, mode, socket_path, lock, absence: None };
        socket.watch();
        Ok(socket)
    };
    open().map_err(|cause| BindError { address: path.display().to_string(), cause })
}

/// Logs that users may connect who could not if the relay had made the socket, or the reverse.
fn warn_of_mode(path: &Path, found: u32, configured: u32) {
    // To connect, a user needs the permission to write.
    const CONNECT: u32 = 0o222;
    if found & CONNECT != configured & CONNECT {
        let socket = path.display();
        let (mode, configured) = (format!("{:04o}", found & 0o777), format!("{configured:04o}"));
        warn!(
            %socket,
            mode,
            configured,
            "the inherited socket has another mode than ingress.socket_mode: set SocketMode= in connect-relay.socket"
        );
    }
}

/// Listens on a TCP port. Needs a runtime.
pub(super) fn bind_tcp(address: SocketAddr) -> Result<TcpListener, BindError> {
    listen_on(address).map_err(|error| bind_error(address, &error))
}

/// Listens on a TCP port; on a host without IPv6, on the equivalent IPv4 address. Needs a runtime.
///
/// # Errors
/// If the address is in use or not this machine's.
pub fn bind_tcp_or_ipv4(address: SocketAddr) -> Result<TcpListener, BindError> {
    match listen_on(address) {
        Ok(listener) => Ok(listener),
        Err(error) => {
            let instead = without_ipv6(address, &error).ok_or_else(|| bind_error(address, &error))?;
            let listener = bind_tcp(instead)?;
            warn!(%address, %instead, %error, "this host has no IPv6: the relay listens on the IPv4 address instead");
            Ok(listener)
        }
    }
}

/// The IPv4 address to use after this error; `None` if the error is not about IPv6 or no address is equivalent.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let missing = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT];
    let missing = missing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    let ip = match address.ip() {
        IpAddr::V6(ip) if missing && ip.is_unspecified() => Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(ip) if missing && ip.is_loopback() => Ipv4Addr::LOCALHOST,
        _ => return None,
    };
    Some(SocketAddr::from((ip, address.port())))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, FLAGS, None)?;
    // A restart does not wait for the connections of the previous relay.
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind_error(address: SocketAddr, error: &io::Error) -> BindError {
    BindError { address: address.to_string(), cause: error.to_string() }
}

/// Binds, sets the mode, then listens.
fn bind_at_path(path: &Path, mode: u32) -> Result<(UnixListener, Identity), String> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None).map_err(|error| error.to_string())?;
    let address = SocketAddrUnix::new(path).map_err(|error| format!("use its path: {error}"))?;
    bind(&socket, &address).map_err(|error| format!("bind: {error}"))?;
    let open = || -> Result<Identity, String> {
        let found = fs::symlink_metadata(path).map_err(failed("look at it"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set its mode"))?;
        listen(&socket, BACKLOG).map_err(|error| format!("listen: {error}"))?;
        Ok(identity(&found))
    };
    let identity = open().inspect_err(|_| {
        // It was bound a moment ago and is not used.
        let _ = fs::remove_file(path);
    })?;
    let listener = UnixListener::from_std(socket.into()).map_err(failed("register"))?;
    Ok((listener, identity))
}

/// Checks the path of a socket, and creates its folder, writable by its owner alone, whatever the umask: a user who can
/// write there could replace this socket with their own.
fn prepare_path(path: &Path) -> Result<(), String> {
    path.file_name().ok_or("it names no file")?;
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(format!("the path has {bytes} bytes, a Unix socket allows {SOCKET_PATH_BYTES_MAX}"));
    }
    match path.parent() {
        Some(folder) if folder != Path::new("") => {
            DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed("make its folder"))
        }
        _ => Ok(()),
    }
}

/// True if the name has a socket that refuses connections, false if it is free.
fn is_stale(path: &Path) -> Result<bool, String> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(format!("look at what is there: {error}")),
        Ok(found) if !found.file_type().is_socket() => return Err("something is there that is not a socket".into()),
        Ok(_) => {}
    }
    let try_connect = || {
        let address = SocketAddrUnix::new(path)?;
        // Non-blocking: a live listener with a full backlog must not delay the start.
        connect(&socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?, &address)
    };
    match try_connect() {
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Err("another process is listening there".into()),
        // Another kind of socket, or one that this user may not use.
        Err(error) => Err(format!("a socket is there, and the relay cannot find out if it is in use: {error}")),
    }
}

fn identity(found: &fs::Metadata) -> Identity {
    (found.dev(), found.ino())
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{step}: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_replaces_only_an_equivalent_address_and_only_without_ipv6() {
        let no_ipv6 = io::Error::from(Errno::AFNOSUPPORT);
        let of = |address: &str, error: &io::Error| {
            without_ipv6(address.parse().unwrap(), error).map(|instead| instead.to_string())
        };
        assert_eq!(of("[::]:9581", &no_ipv6).as_deref(), Some("0.0.0.0:9581"));
        assert_eq!(of("[::1]:9581", &no_ipv6).as_deref(), Some("127.0.0.1:9581"));
        assert_eq!(of("[::1]:0", &Errno::ADDRNOTAVAIL.into()).as_deref(), Some("127.0.0.1:0"));
        assert_eq!(of("[2001:db8::1]:9581", &no_ipv6), None);
        assert_eq!(of("10.0.0.1:9581", &Errno::ADDRNOTAVAIL.into()), None);
        assert_eq!(of("[::]:9581", &Errno::ADDRINUSE.into()), None);
        assert_eq!(of("[::]:80", &Errno::ACCESS.into()), None);
    }
}
