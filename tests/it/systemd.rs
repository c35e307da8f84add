//! The program under a service manager: its notifications from start to exit.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;

use crate::process::{Relay, TIMEOUT, relay, send};

/// Reads datagrams until one holds this.
fn expect_notification(manager: &UnixDatagram, wanted: &str) -> String {
    let mut datagram = [0; 512];
    loop {
        let length =
            manager.recv(&mut datagram).unwrap_or_else(|error| panic!("no notification contains {wanted}: {error}"));
        let said = std::str::from_utf8(&datagram[..length]).unwrap();
        if said.contains(wanted) {
            return said.to_owned();
        }
    }
}

#[test]
fn service_manager_gets_ready_alive_and_stopping_while_connect_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let address = dir.path().join("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let folder = dir.path().join("relay");
    let mut command = relay(&folder);
    command.env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "300000");
    let relay = Relay::of(&mut command);
    assert_eq!(expect_notification(&manager, ""), "READY=1", "the first word");
    // From here on bots are served: the socket is there.
    send(&folder);
    let status = expect_notification(&manager, "STATUS=ready: 1 queued");
    assert!(status.contains("\nWATCHDOG=1"), "{status}");
    for _ in 0..3 {
        expect_notification(&manager, "Connect accepts no messages\nWATCHDOG=1");
    }
    relay.signal(Signal::TERM);
    expect_notification(&manager, "STOPPING=1");
    expect_notification(&manager, "STATUS=draining: 1 queued");
    // While it stops it still notifies the watchdog.
    expect_notification(&manager, "WATCHDOG=1");
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait().code(), Some(75));
}

#[test]
fn watchdog_of_another_process_gets_no_notifications() {
    let dir = tempfile::tempdir().unwrap();
    let address = dir.path().join("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut command = relay(&dir.path().join("relay"));
    command.env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "300000").env("WATCHDOG_PID", "1");
    let relay = Relay::of(&mut command);
    let status = expect_notification(&manager, "STATUS=");
    assert_eq!(status, "STATUS=ready: 0 queued, at 9.0 a second");
    relay.signal(Signal::TERM);
    assert!(relay.wait().success());
}
