//! A Unix socket that the service manager made and listens on, and that this process inherits.
//!
//! The service manager keeps the socket over every stop, crash and kill of the relay: clients that connect meanwhile
//! wait in the kernel. The socket's path, owner and mode are the service manager's: the relay never removes, changes or
//! makes them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// A listening Unix stream socket of the service manager; clones share it.
#[derive(Clone, Debug)]
pub struct Inherited(Arc<UnixListener>);

impl Inherited {
    /// Checks that a descriptor is a Unix stream socket that listens at this path. Changes nothing of it.
    ///
    /// # Errors
    /// With the difference.
    pub fn new(descriptor: OwnedFd, path: &Path) -> Result<Inherited, String> {
        let socket = descriptor.as_fd();
        let family = socket_domain(socket).map_err(|_| "it is not a socket")?;
        if family != AddressFamily::UNIX {
            return Err("it is not a Unix socket (ListenStream= has to be a path)".into());
        }
        if socket_type(socket) != Ok(SocketType::STREAM) {
            return Err("it is not a stream socket (ListenStream=)".into());
        }
        if socket_acceptconn(socket) != Ok(true) {
            return Err("it does not listen: it may be a single connection (Accept=no is needed)".into());
        }
        let listener = UnixListener::from(descriptor);
        let address = listener.local_addr().map_err(|error| format!("its path cannot be read: {error}"))?;
        match address.as_pathname() {
            Some(own) if own == path || is_same_file(own, path) => Ok(Inherited(Arc::new(listener))),
            Some(own) => Err(format!("it is at {}, and ingress.socket is {}", own.display(), path.display())),
            None => Err(format!("it has no path, and ingress.socket is {}", path.display())),
        }
    }

    /// A non-blocking handle of the socket. It is closed when another program is executed.
    pub(super) fn listener(&self) -> std::io::Result<UnixListener> {
        let listener = self.0.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

/// True if two paths name one file, as `/var/run` and `/run` do.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}
