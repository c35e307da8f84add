//! The space that the folder takes, and the ballast (rule 9 of the store).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::FallocateFlags;
use tracing::warn;

use super::directory::{self, private};
use super::names;

/// More than the bytes that sled writes when it opens a log.
const OPEN_BYTES: u64 = 1 << 20;
/// The size of the ballast: space for the commits that empty a store on a full disk.
pub const BALLAST_BYTES: u64 = 8 << 20;

/// The folder's files besides sled's log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Folder {
    /// Bytes that they take on disk.
    pub bytes: u64,
    /// True while the ballast exists.
    pub ballast: bool,
    /// True while a damaged store is quarantined there.
    pub quarantined: bool,
}

/// Looks at the folder's files.
pub fn scan(path: &Path) -> Folder {
    let mut folder = Folder::default();
    for file in fs::read_dir(path).into_iter().flatten().flatten() {
        let name = file.file_name();
        folder.ballast |= name == names::BALLAST;
        folder.quarantined |= name.to_string_lossy().starts_with(names::DAMAGED_PREFIX);
        if name != names::LOG
            && let Ok(metadata) = file.metadata()
            && metadata.is_file()
        {
            folder.bytes += metadata.blocks() * 512;
        }
    }
    folder
}

/// Makes the ballast, if it is missing and the volume has the space.
pub fn keep_ballast(path: &Path) {
    let ballast = path.join(names::BALLAST);
    if ballast.exists() || directory::free(path).is_none_or(|free| free < 4 * BALLAST_BYTES) {
        return;
    }
    let made = private(OpenOptions::new().create(true).truncate(false).write(true), &ballast)
        .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES)?));
    if made.is_err() {
        // A file system without fallocate: no ballast, which loses nothing.
        let _ = fs::remove_file(&ballast);
    }
}

/// Removes the ballast. Returns true if there was one.
pub fn release_ballast(path: &Path) -> bool {
    fs::remove_file(path.join(names::BALLAST)).is_ok()
}

/// Removes the ballast if the volume is so full that sled could not open its log.
pub fn free_open_bytes(path: &Path) {
    if directory::free(path).is_some_and(|free| free < OPEN_BYTES) && fs::remove_file(path.join(names::BALLAST)).is_ok()
    {
        warn!(queue = %path.display(), "the volume is full; the relay releases the reserved space, so that queued rows can be removed");
    }
}
