//! The queue's folder: what lies in it, who may open it, and what is looked at and put right before sled sees it.
//!
//! sled is not to be trusted with a damaged log: it cuts it where the damage begins, zeroes what comes after, panics, or
//! hangs in threads of its own. So a start reads the folder first, without sled: the marks that earlier runs have left,
//! sled's parameters, and the whole of the log. What is found is a value, [`OpenError::Damaged`], and the store is set
//! aside or left alone before anything was written to it.
//!
//! Nothing here knows a row.
//!
//! The folder:
//!
//! | file | what it is |
//! | --- | --- |
//! | `db`, `conf`, `snap.*`, `blobs` | sled's; `blobs` stays empty, because no row is long enough to go there |
//! | `format` | the format stamp and the key of the hashes, sealed where there is a key file; written last at the first start: without it nothing was ever acknowledged |
//! | `journal.0`, `journal.1` | what was committed and is not in sled yet |
//! | `compacted` | a copy that is to take the place of `db` |
//! | `lock` | held by the relay that runs on the folder |
//! | `ballast` | space set aside; given up on a full disk, so that outcomes can still be recorded |
//! | `failed-sync` | the mark of a write that failed |
//! | `opening` | a byte for each start in a row that ended while sled opened the log |
//! | `failed-read` | the mark of a read that met damage: the next start sets the store aside |
//! | `damaged-*` | damaged stores that were set aside, for `doctor` and for people; removed by them |

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, FlockOperation};
use rustix::io::Errno;
use tracing::warn;

use super::OpenError;
use super::{carry, compaction, journal, log, opening};
use crate::time::Timestamp;

/// Space set aside.
pub const BALLAST: &str = "ballast";
/// What sled writes when it opens a log, and more.
const ROOM: u64 = 1 << 20;
/// Held by the relay that runs on the folder.
const LOCK: &str = "lock";
/// What a relay and sled make here, beside snapshots and stores that were set aside.
const OWN: [&str; 13] = [
    "db",
    "conf",
    "blobs",
    "format",
    "format.new",
    "failed-sync",
    journal::NAMES[0],
    journal::NAMES[1],
    compaction::FOLDER,
    LOCK,
    BALLAST,
    opening::MARK,
    MARK,
];
/// What stands in sled's own file of parameters, from the first line on.
const SLED_CONF: &[u8] = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\n";
/// The mark of a log that could not be read.
pub const MARK: &str = "failed-read";

/// Takes the folder's lock; it is let go with the file.
pub fn lock(path: &Path) -> Result<File, OpenError> {
    take(path, private(OpenOptions::new().create(true).truncate(false).write(true), &path.join(LOCK)))
}

/// The same without writing anything: none where no relay ever ran on the folder itself.
pub fn lock_if_there(path: &Path) -> Result<Option<File>, OpenError> {
    match File::open(path.join(LOCK)) {
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

/// Looks for damage, before sled sees it: sled would cut the log there, and zero what comes after.
pub fn look_through(path: &Path) -> Result<(), OpenError> {
    let damaged = |damage| Err(OpenError::Damaged { path: path.to_owned(), damage });
    if let Ok(cause) = fs::read_to_string(path.join(MARK)) {
        return damaged(format!("when the relay last ran, it could not be read: {cause}"));
    }
    if let Some(odd) = opening::damage(path).or_else(|| odd_conf(path)).or_else(|| odd_blobs(path)) {
        return damaged(odd);
    }
    match log::sweep(path) {
        Ok(damage) => damage.into_iter().next().map_or(Ok(()), damaged),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
            damaged("its log is gone".into())
        }
        Err(error) => Err(OpenError::Failed { path: path.to_owned(), step: "read its log", cause: error.to_string() }),
    }
}

/// Whether a relay has written rows to the log of a folder that has no stamp (any more).
pub fn was_used(path: &Path) -> io::Result<bool> {
    Ok(!carry::open_log(path, |_, _| ())?.is_empty())
}

/// Without a stamp nothing was acknowledged, but nothing is deleted either.
pub fn set_aside_unstamped(path: &Path, now: Timestamp) -> io::Result<()> {
    let aside = path.join(format!("unfinished-{}", now.0));
    for file in fs::read_dir(path)? {
        let name = file?.file_name();
        let text = name.to_string_lossy();
        let own = matches!(&*text, "db" | "conf" | "blobs" | "format.new") || journal::NAMES.contains(&&*text);
        if !(own || text.starts_with("snap.")) {
            continue;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        fs::rename(path.join(&name), aside.join(&name))?;
    }
    sync_directory(path)
}

/// On a full volume sled cannot even open its log, and what is queued could not leave: that is what the ballast is for.
pub fn make_room(path: &Path) {
    if free(path).is_some_and(|free| free < ROOM) && fs::remove_file(path.join(BALLAST)).is_ok() {
        warn!(queue = %path.display(), "the volume is full: the space set aside is given up, so that what is queued can leave");
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
        if name.starts_with("snap.") && name.ends_with(".generating") {
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
    OWN.contains(&name) || name.starts_with("snap.") || name.starts_with(carry::ASIDE)
}

/// What in a store's folder is not as a relay leaves it, beside the log.
pub fn odd_files(path: &Path) -> Vec<String> {
    let blobs = fs::read_dir(path.join("blobs")).map_or(0, Iterator::count);
    let blobs = (blobs > 0).then(|| format!("{blobs} files in blobs/, which no relay writes"));
    blobs.into_iter().chain(odd_conf(path)).chain(odd_blobs(path)).collect()
}

/// sled's folder for what is too long for its log.
fn odd_blobs(path: &Path) -> Option<String> {
    fs::metadata(path.join("blobs")).is_ok_and(|blobs| !blobs.is_dir()).then(|| "blobs is no folder".into())
}

/// What is wrong with sled's file of parameters: it opens with others, or panics.
fn odd_conf(path: &Path) -> Option<String> {
    match fs::read(path.join("conf")) {
        Ok(conf) if conf.starts_with(SLED_CONF) => None,
        Ok(_) => Some("conf is not as sled writes it".into()),
        Err(cause) => Some(format!("conf cannot be read: {cause}")),
    }
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
