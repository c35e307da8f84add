//! Making the sockets that are listened on.
//!
//! A Unix socket is made in a 0700 folder beside its place, given its mode there, and renamed into place: at no moment
//! can anybody connect whom the mode keeps out, and a stale file of a relay that was killed is replaced in one step.
//! A live one, or anything that is not a socket, is left alone and refused.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::net::{TcpListener, UnixListener};

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {cause}")]
pub struct BindError {
    /// The path, or the address and port.
    pub address: String,
    /// What is in the way.
    pub cause: String,
}

/// A Unix socket's file: removed when this is dropped, if it still is the same one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // A file that stays behind is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on a Unix socket with this mode; makes its folder where it is missing. The file lives as long as the second
/// of the pair. Needs a runtime.
///
/// # Errors
/// When another process listens there, when something else has the name, or when a step fails.
pub fn bind_unix(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), BindError> {
    let fail = |cause: String| BindError { address: path.display().to_string(), cause };
    let failed = |step: &'static str| move |error: io::Error| fail(format!("{step}: {error}"));
    let name = path.file_name().ok_or_else(|| fail("it names no file".into()))?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Whatever the umask: who can write here could put a socket of their own in this one's place.
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed("make its folder"))?;
    let target = folder.join(name);
    check_free(&target).map_err(fail)?;
    // Short names: the whole path has to fit in 107 bytes.
    let private =
        tempfile::Builder::new().prefix(".").permissions(fs::Permissions::from_mode(0o700)).tempdir_in(folder);
    let private = private.map_err(failed("make a folder beside it"))?;
    let made = private.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&made).map_err(failed("bind"))?;
    fs::set_permissions(&made, fs::Permissions::from_mode(mode)).map_err(failed("set its mode"))?;
    let metadata = fs::symlink_metadata(&made).map_err(failed("look at it"))?;
    fs::rename(&made, &target).map_err(failed("rename it into place"))?;
    let file = SocketFile { path: target, device: metadata.dev(), inode: metadata.ino() };
    listener.set_nonblocking(true).map_err(failed("set it non-blocking"))?;
    let listener = UnixListener::from_std(listener).map_err(failed("register"))?;
    Ok((listener, file))
}

/// Listens on a TCP port. Needs a runtime.
///
/// # Errors
/// When the address is taken or not this machine's.
pub fn bind_tcp(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listen().map_err(|error: io::Error| BindError { address: address.to_string(), cause: error.to_string() })
}

/// Whether the name is free or has a socket that nobody listens on.
fn check_free(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("look at what is there: {error}")),
        Ok(found) if !found.file_type().is_socket() => return Err("something is there that is not a socket".into()),
        Ok(_) => {}
    }
    let knock = || {
        let address = SocketAddrUnix::new(path)?;
        // Non-blocking: a live listener with a full backlog must not hold up the start.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        connect(&socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, &address)
    };
    match knock() {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Err("another process is listening there".into()),
        // Another kind of socket, or one that this user may not touch.
        Err(error) => Err(format!("a socket is there, and whether somebody listens cannot be told: {error}")),
    }
}
