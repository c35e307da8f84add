//! The space that the folder takes, and has.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::FallocateFlags;
use tracing::warn;

use super::directory::{self, private};
use super::names;

/// What sled writes when it opens a log, and more.
const ROOM: u64 = 1 << 20;
/// Space set aside for recording outcomes on a full disk.
pub const BALLAST_BYTES: u64 = 8 << 20;

/// Bytes that the folder takes on disk beside the log itself.
pub fn other_bytes(path: &Path) -> u64 {
    let files = fs::read_dir(path).into_iter().flatten().flatten();
    let files = files.filter(|file| file.file_name() != names::LOG).filter_map(|file| file.metadata().ok());
    files.filter(fs::Metadata::is_file).map(|file| file.blocks() * 512).sum()
}

/// Whether a damaged store lies set aside.
pub fn has_set_aside(path: &Path) -> bool {
    let files = fs::read_dir(path).into_iter().flatten().flatten();
    files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with(names::DAMAGED_PREFIX))
}

/// Sets the ballast aside, if the volume has the space.
pub fn keep_ballast(path: &Path) {
    let ballast = path.join(names::BALLAST);
    if ballast.exists() || directory::free(path).is_none_or(|free| free < 4 * BALLAST_BYTES) {
        return;
    }
    let made = private(OpenOptions::new().create(true).truncate(false).write(true), &ballast)
        .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES)?));
    if made.is_err() {
        // A file system without fallocate: there is nothing to set aside, and nothing is lost by it.
        let _ = fs::remove_file(&ballast);
    }
}

/// Gives the ballast up.
pub fn release_ballast(path: &Path) -> bool {
    fs::remove_file(path.join(names::BALLAST)).is_ok()
}

/// On a full volume sled cannot even open its log, and what is queued could not leave: that is what the ballast is for.
pub fn make_room(path: &Path) {
    if directory::free(path).is_some_and(|free| free < ROOM) && fs::remove_file(path.join(names::BALLAST)).is_ok() {
        warn!(queue = %path.display(), "the volume is full: the space set aside is given up, so that what is queued can leave");
    }
}
