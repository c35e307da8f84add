//! The processes that hold a Unix socket, found in `/proc` without a connection: with socket activation a connection makes
//! systemd start the relay.
//!
//! | file | content |
//! | --- | --- |
//! | `/proc/net/unix` | the sockets of this network namespace: flags, inode, path |
//! | `/proc/PID/fd` | the inodes of a process's open sockets; root can read all of them, a user those of its own processes |

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The flag of a listening socket in `/proc/net/unix` (`__SO_ACCEPTCON`).
const LISTENS: u32 = 1 << 16;

/// True if systemd listens at this path, and this user sees no other process that has the socket. False also if this user
/// cannot see systemd's sockets.
pub fn is_held_by_systemd_alone(socket: &Path) -> bool {
    let sockets = fs::read("/proc/net/unix").unwrap_or_default();
    let inodes = listening(&String::from_utf8_lossy(&sockets), socket);
    if inodes.is_empty() {
        return false;
    }
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let mut holders =
        processes.flatten().map(|entry| entry.path()).filter(|process| holds(process, &inodes)).peekable();
    holders.peek().is_some() && holders.all(|process| is_systemd_at(&process))
}

/// True if this process is systemd: root's, or this user's own.
pub fn is_systemd(pid: i32) -> bool {
    is_systemd_at(&PathBuf::from(format!("/proc/{pid}")))
}

fn is_systemd_at(process: &Path) -> bool {
    let is_trusted = |uid| uid == 0 || uid == rustix::process::geteuid().as_raw();
    process.metadata().is_ok_and(|found| is_trusted(found.uid()))
        && fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "systemd")
}

/// The inodes of the sockets that listen at this path, as the links in `/proc/PID/fd` name them.
fn listening(sockets: &str, path: &Path) -> Vec<PathBuf> {
    let inode = |line: &str| {
        // Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        let mut columns = line.split_whitespace();
        let flags = u32::from_str_radix(columns.nth(3)?, 16).ok()?;
        let inode = columns.nth(2)?;
        // A path can contain spaces.
        let (_, own) = line.split_once(&format!(" {inode} "))?;
        let is_at_path = Path::new(own) == path || fs::canonicalize(own).ok()? == fs::canonicalize(path).ok()?;
        (flags & LISTENS != 0 && is_at_path).then(|| PathBuf::from(format!("socket:[{inode}]")))
    };
    sockets.lines().filter_map(inode).collect()
}

fn holds(process: &Path, inodes: &[PathBuf]) -> bool {
    let Ok(open) = fs::read_dir(process.join("fd")) else { return false };
    open.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| inodes.contains(&target)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn listening_sockets_of_a_path_are_found() {
        let sockets = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/no such/relay.sock
0000000000000000: 00000003 00000000 00000000 0001 03 12 /run/no such/relay.sock
0000000000000000: 00000002 00000000 00000000 0002 01 13 /run/no such/relay.sock
0000000000000000: 00000002 00000000 00010000 0001 01 14 /run/no such/relay.sock.other
0000000000000000: 00000002 00000000 00010000 0005 01 15
0000000000000000: 00000002 00000000 00010000 0001 01 16 @abstract
";
        assert_eq!(listening(sockets, Path::new("/run/no such/relay.sock")), [PathBuf::from("socket:[11]")]);
        assert!(listening(sockets, Path::new("/run/other.sock")).is_empty());
    }

    #[test]
    fn socket_of_another_program_is_not_systemds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_held_by_systemd_alone(&path));
        let _listener = UnixListener::bind(&path).unwrap();
        let sockets = fs::read("/proc/net/unix").unwrap();
        let inodes = listening(&String::from_utf8_lossy(&sockets), &path);
        assert_eq!(inodes.len(), 1, "the kernel lists it");
        assert!(holds(Path::new("/proc/self"), &inodes));
        assert!(!is_held_by_systemd_alone(&path), "this process is not systemd");
    }
}
