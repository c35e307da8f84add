//! The store's folder: its lock, its permissions, and durable names in it.
//!
//! The folder has mode 0700 and its files 0600 (rule 10 of the store). A name that is made, changed or removed is on
//! disk only after the folder was synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, FlockOperation};
use rustix::io::Errno;

use super::error::OpenError;
use super::names;

/// Takes the folder's lock, which is released when the file is closed.
///
/// # Errors
/// If another process has it, or the file cannot be opened.
pub fn lock(path: &Path) -> Result<File, OpenError> {
    take(path, private(OpenOptions::new().create(true).truncate(false).write(true), &path.join(names::LOCK)))
}

/// Takes the folder's lock without writing anything. `None` if no store was ever open in the folder.
///
/// # Errors
/// If another process has it, or the file cannot be opened.
pub fn lock_if_there(path: &Path) -> Result<Option<File>, OpenError> {
    match File::open(path.join(names::LOCK)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        lock => take(path, lock).map(Some),
    }
}

fn take(path: &Path, lock: io::Result<File>) -> Result<File, OpenError> {
    let failed = |cause| OpenError::failed(path, "open its lock", cause);
    let lock = lock.map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(OpenError::Locked { path: path.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

/// Bytes free on the folder's volume. `None` if the volume does not report them.
pub fn free(path: &Path) -> Option<u64> {
    let volume = rustix::fs::statvfs(path).ok()?;
    Some(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Makes the folder, and closes it to other users.
pub fn make(path: &Path) -> Result<(), OpenError> {
    let failed = |step| {
        move |cause: io::Error| OpenError::Failed {
            path: path.to_owned(),
            step,
            cause: format!("{cause}{}", obstacle(path)),
        }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create the folder"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("make the folder private"))
}

/// The obstacle at a path, in words, if it is visible.
fn obstacle(path: &Path) -> String {
    let own = rustix::process::geteuid().as_raw();
    match fs::metadata(path) {
        Ok(there) if !there.is_dir() => "; it is no folder".into(),
        Ok(there) if there.uid() != own => format!("; it belongs to user {}, and the relay is user {own}", there.uid()),
        Err(_) if fs::symlink_metadata(path).is_ok() => "; it is a link that leads nowhere".into(),
        _ => String::new(),
    }
}

/// Removes snapshots that sled did not finish: it refuses to open beside one (rule 8 of the store).
pub fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?.path();
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if names::is_unfinished_snapshot(&name) {
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

/// Drops the files from the page cache: after a failed write the disk has other bytes (rule 7 of the store).
pub fn drop_cached(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?;
        if file.file_type()?.is_file() {
            rustix::fs::fadvise(File::open(file.path())?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Closes the store's files to other users: sled makes its own with the modes of the umask.
pub fn close_to_others(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?;
        let kind = file.file_type()?;
        // Other files are not the store's: a volume's `lost+found`, links to other places.
        if kind.is_symlink() || !is_own(&file.file_name().to_string_lossy()) {
            continue;
        }
        let mode = if kind.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn is_own(name: &str) -> bool {
    names::ALL.contains(&name) || names::is_snapshot(name) || name.starts_with(names::DAMAGED_PREFIX)
}

/// The name of the folder's file system if it is one in memory (rule 11 of the store).
pub fn memory_filesystem(path: &Path) -> Option<&'static str> {
    match rustix::fs::statfs(path).ok()?.f_type {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    }
}

/// Opens a file that only its owner can read, from its creation on.
pub fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.mode(0o600).open(path)
}

/// Writes and syncs a file that only its owner can read.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = private(OpenOptions::new().create(true).truncate(true).write(true), path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a folder durable: those made, changed and removed before.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the names of the folder and of those above it durable, because any of them may be new. A folder that cannot be
/// read, or is on another volume, was not made with it.
pub fn sync_ancestors(path: &Path) -> io::Result<()> {
    let device = fs::metadata(path)?.dev();
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let Ok(folder) = File::open(above) else { break };
        if folder.metadata()?.dev() != device {
            break;
        }
        folder.sync_all()?;
    }
    Ok(())
}
