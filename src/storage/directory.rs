//! The queue's folder: what lies in it, who may open it, and what is looked at and put right before sled sees it.
//!
//! sled is not to be trusted with a damaged log: it cuts it where the damage begins, zeroes what comes after, panics, or
//! hangs in threads of its own. So a start reads the folder first, without sled: the marks that earlier runs have left,
//! sled's parameters, and the whole of the log. What is found is a value, [`OpenError::Damaged`], and the store is set
//! aside or left alone before anything was written to it.
//!
//! Nothing here knows a row.
//!

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, FlockOperation};
use rustix::io::Errno;

use super::error::OpenError;
use super::names;

/// Takes the folder's lock; it is let go with the file.
pub fn lock(path: &Path) -> Result<File, OpenError> {
    take(path, private(OpenOptions::new().create(true).truncate(false).write(true), &path.join(names::LOCK)))
}

/// The same without writing anything: none where no relay ever ran on the folder itself.
pub fn lock_if_there(path: &Path) -> Result<Option<File>, OpenError> {
    match File::open(path.join(names::LOCK)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        lock => take(path, lock).map(Some),
    }
}

fn take(path: &Path, lock: io::Result<File>) -> Result<File, OpenError> {
    let failed =
        |cause: io::Error| OpenError::Failed { path: path.to_owned(), step: "open its lock", cause: cause.to_string() };
    let lock = lock.map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(OpenError::Locked { path: path.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

/// Bytes free on its volume; none where the volume does not say.
pub fn free(path: &Path) -> Option<u64> {
    let volume = rustix::fs::statvfs(path).ok()?;
    Some(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Makes the folder, and keeps others out of it.
pub fn make(path: &Path) -> Result<(), OpenError> {
    let failed = |step| {
        move |cause: io::Error| OpenError::Failed {
            path: path.to_owned(),
            step,
            cause: format!("{cause}{}", whose(path)),
        }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("close the folder to others"))
}

/// What stands in the way, where that is to be seen.
fn whose(path: &Path) -> String {
    let own = rustix::process::geteuid().as_raw();
    match fs::metadata(path) {
        Ok(there) if !there.is_dir() => "; it is no folder".into(),
        Ok(there) if there.uid() != own => format!("; it belongs to user {}, and the relay is user {own}", there.uid()),
        Err(_) if fs::symlink_metadata(path).is_ok() => "; it is a link that leads nowhere".into(),
        _ => String::new(),
    }
}

/// sled refuses to open beside a snapshot that it had not finished.
pub fn remove_half_snapshots(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?.path();
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if names::is_unfinished_snapshot(&name) {
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

/// Lets go of what the page cache has of the files: after a failed write the disk has other bytes.
pub fn drop_cached(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?;
        if file.file_type()?.is_file() {
            rustix::fs::fadvise(File::open(file.path())?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// sled makes its files as wide as the umask lets it.
pub fn close_to_others(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?;
        let kind = file.file_type()?;
        // What else lies here is not the relay's to change: a volume's `lost+found`, links that lead elsewhere.
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

/// The name of a file system that lives in memory.
pub fn memory_filesystem(path: &Path) -> Option<&'static str> {
    match rustix::fs::statfs(path).ok()?.f_type {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    }
}

/// Opens a file that is its owner's alone from the beginning.
pub fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.mode(0o600).open(path)
}

/// Names made, changed and removed in a folder are on disk when this returns.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Any of the folders above may be as new as the queue's: a power cut must not take their names away. Those that cannot
/// be read or are another volume's were not made for it.
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
