//! The space that the folder takes, and has.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::FallocateFlags;

use super::Store;
use crate::queue::carry::ASIDE;
use crate::queue::folder::{self, BALLAST, private};

/// Space set aside for recording outcomes on a full disk.
pub const BALLAST_BYTES: u64 = 8 << 20;

impl Store {
    /// Bytes that the folder takes on disk beside the log itself.
    pub fn other_bytes(&self) -> u64 {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let files = files.filter(|file| file.file_name() != "db").filter_map(|file| file.metadata().ok());
        files.filter(fs::Metadata::is_file).map(|file| file.blocks() * 512).sum()
    }

    /// Whether a damaged store lies set aside.
    pub fn has_set_aside(&self) -> bool {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with(ASIDE))
    }

    /// Bytes that the log takes on disk.
    pub fn log_bytes(&self) -> u64 {
        self.data.metadata().map_or(0, |file| file.blocks() * 512)
    }

    /// Bytes free on its volume; none where the volume does not say.
    pub fn bytes_free(&self) -> Option<u64> {
        folder::free(&self.path)
    }

    /// Sets the ballast aside, if the volume has the space.
    pub fn keep_ballast(&self) {
        let path = self.path.join(BALLAST);
        if path.exists() || self.bytes_free().is_none_or(|free| free < 4 * BALLAST_BYTES) {
            return;
        }
        let made = private(OpenOptions::new().create(true).truncate(false).write(true), &path)
            .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES)?));
        if made.is_err() {
            // A file system without fallocate: there is nothing to set aside, and nothing is lost by it.
            let _ = fs::remove_file(&path);
        }
    }

    /// Gives the ballast up.
    pub fn release_ballast(&self) -> bool {
        fs::remove_file(self.path.join(BALLAST)).is_ok()
    }
}
