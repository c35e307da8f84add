//! Checks before sled opens a log.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::directory::sync_directory;
use super::error::OpenError;
use super::image::Image;
use super::{names, open_guard, sled_log};
use crate::time::Timestamp;

/// What stands in sled's own file of parameters, from the first line on.
const SLED_CONF: &[u8] = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\n";

/// Looks for damage, before sled sees it: sled would cut the log there, and zero what comes after.
pub fn look_through(path: &Path) -> Result<(), OpenError> {
    let damaged = |damage| Err(OpenError::Damaged { path: path.to_owned(), damage });
    if let Ok(cause) = fs::read_to_string(path.join(names::FAILED_READ)) {
        return damaged(format!("when the relay last ran, it could not be read: {cause}"));
    }
    if let Some(odd) = open_guard::damage(path).or_else(|| odd_conf(path)).or_else(|| odd_blobs(path)) {
        return damaged(odd);
    }
    match sled_log::sweep(path) {
        Ok(damage) => damage.into_iter().next().map_or(Ok(()), damaged),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
            damaged("its log is gone".into())
        }
        Err(error) => Err(OpenError::Failed { path: path.to_owned(), step: "read its log", cause: error.to_string() }),
    }
}

/// Whether a relay has written rows to the log of a folder that has no stamp (any more).
pub fn was_used(path: &Path) -> io::Result<bool> {
    Ok(!Image::read(path, |_, _| ())?.is_empty())
}

/// Without a stamp nothing was acknowledged, but nothing is deleted either.
pub fn set_aside_unstamped(path: &Path, now: Timestamp) -> io::Result<()> {
    let aside = path.join(format!("{}{}", names::UNFINISHED_PREFIX, now.0));
    for file in fs::read_dir(path)? {
        let name = file?.file_name();
        let text = name.to_string_lossy();
        let own = matches!(&*text, names::LOG | names::CONF | names::BLOBS | names::NEW_STAMP)
            || names::JOURNALS.contains(&&*text);
        if !(own || names::is_snapshot(&text)) {
            continue;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        fs::rename(path.join(&name), aside.join(&name))?;
    }
    sync_directory(path)
}

/// What in a store's folder is not as a relay leaves it, beside the log.
pub fn odd_files(path: &Path) -> Vec<String> {
    let blobs = fs::read_dir(path.join(names::BLOBS)).map_or(0, Iterator::count);
    let blobs = (blobs > 0).then(|| format!("{blobs} files in blobs/, which no relay writes"));
    blobs.into_iter().chain(odd_conf(path)).chain(odd_blobs(path)).collect()
}

/// sled's folder for what is too long for its log.
fn odd_blobs(path: &Path) -> Option<String> {
    fs::metadata(path.join(names::BLOBS)).is_ok_and(|blobs| !blobs.is_dir()).then(|| "blobs is no folder".into())
}

/// What is wrong with sled's file of parameters: it opens with others, or panics.
fn odd_conf(path: &Path) -> Option<String> {
    match fs::read(path.join(names::CONF)) {
        Ok(conf) if conf.starts_with(SLED_CONF) => None,
        Ok(_) => Some("conf is not as sled writes it".into()),
        Err(cause) => Some(format!("conf cannot be read: {cause}")),
    }
}
