//! Notifications to the service manager that started the relay, by systemd's protocol (`sd_notify`): one datagram of
//! `NAME=value` lines to the socket named in `NOTIFY_SOCKET`.
//!
//! | the relay | sends |
//! | --- | --- |
//! | serves bots | `READY=1` |
//! | drains or exits | `STOPPING=1` |
//! | at any time | `STATUS=`, a line for `systemctl status` |
//! | makes steps, as `/livez` checks them | `WATCHDOG=1`, if the manager asked for it |
//!
//! Without a manager (in a pod, at a terminal) nothing is sent. The relay never waits for a manager that does not read;
//! the next datagram repeats everything. Other modules decide if the relay is alive and compose the status.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The service manager; clones send to the same one, the default to none.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog_timeout: Option<Duration>,
}

/// A notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification<'a> {
    /// The relay serves bots.
    Ready,
    /// The relay is stopping.
    Stopping,
    /// The relay is alive.
    Alive,
    /// The state of the relay, in a line.
    Status(&'a str),
}

impl ServiceManager {
    /// The manager that listens at this path, or, with an `@` first, at this abstract name; `watchdog_timeout`
    /// is its own.
    ///
    /// # Errors
    /// If no process listens there.
    pub fn at(address: &Path, watchdog_timeout: Option<Duration>) -> io::Result<ServiceManager> {
        let address = match address.as_os_str().as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(ServiceManager { socket: Some(Arc::new(socket)), watchdog_timeout })
    }

    /// True if there is a manager.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.socket.is_some()
    }

    /// The manager's watchdog time-out, if it has one.
    #[must_use]
    pub fn watchdog_timeout(&self) -> Option<Duration> {
        self.watchdog_timeout
    }

    /// Sends all notifications in one datagram.
    pub fn notify(&self, notifications: &[Notification<'_>]) {
        let Some(socket) = &self.socket else { return };
        let lines: Vec<String> = notifications.iter().map(Notification::line).collect();
        // The buffer may be full, or the manager gone: the relay goes on in both cases.
        let _ = socket.send(lines.join("\n").as_bytes());
    }
}

impl Notification<'_> {
    fn line(&self) -> String {
        match self {
            Notification::Ready => "READY=1".into(),
            Notification::Stopping => "STOPPING=1".into(),
            Notification::Alive => "WATCHDOG=1".into(),
            // An error's text may contain line breaks; the status must be one line.
            Notification::Status(text) => format!("STATUS={}", text.replace(['\r', '\n'], " ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_one_datagram_of_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let service_manager = ServiceManager::at(&path, Some(Duration::from_secs(30))).unwrap();
        service_manager.clone().notify(&[
            Notification::Ready,
            Notification::Alive,
            Notification::Stopping,
            Notification::Status("failed:\nREADY=0"),
        ]);
        let mut datagram = [0; 256];
        let length = manager.recv(&mut datagram).unwrap();
        assert_eq!(&datagram[..length], b"READY=1\nWATCHDOG=1\nSTOPPING=1\nSTATUS=failed: READY=0");
        assert!(service_manager.is_present() && service_manager.watchdog_timeout() == Some(Duration::from_secs(30)));
    }

    #[test]
    fn an_abstract_name_begins_with_an_at_sign() {
        let name = format!("connect-relay-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::at(Path::new(&format!("@{name}")), None).unwrap().notify(&[Notification::Ready]);
        let mut datagram = [0; 16];
        assert_eq!(manager.recv(&mut datagram).unwrap(), 7);
    }

    #[test]
    fn without_a_manager_nothing_is_sent_and_one_that_does_not_read_blocks_nothing() {
        assert!(ServiceManager::at(Path::new("/missing/here"), None).is_err());
        ServiceManager::default().notify(&[Notification::Ready]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let service_manager = ServiceManager::at(&path, None).unwrap();
        for _ in 0..10_000 {
            service_manager.notify(&[Notification::Alive]);
        }
        drop(manager);
        service_manager.notify(&[Notification::Alive]);
    }
}
