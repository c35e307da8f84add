//! The errors of a store.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The store failed: the relay acknowledges nothing more, and the process ends (rule 7 of the store).
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreFailed(pub Arc<str>);

/// The reasons why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the folder's lock.
    #[error("open queue {path}: locked by another process")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A newer relay wrote it, or one from before the first release: exit 78.
    #[error("open queue {path}: its format is {found}, this relay reads {newest}, and older ones from {oldest} on")]
    OtherFormat {
        /// The folder.
        path: PathBuf,
        /// The format of the store.
        found: u32,
        /// The oldest format that this build reads.
        oldest: u32,
        /// The newest one.
        newest: u32,
    },
    /// The folder is in memory, which the options do not allow: exit 78.
    #[error(
        "open queue {path}: it is on {filesystem}, in memory, and would not survive a restart; use a disk, or set queue.volatile = true"
    )]
    Volatile {
        /// The folder.
        path: PathBuf,
        /// The file system's name.
        filesystem: &'static str,
    },
    /// It is sealed, and none of the keys opens it: exit 78.
    #[error("open queue {path}: it is sealed, and {} opens it", if *keys == 0 { "queue.key_file is not set, so nothing".to_owned() } else { format!("none of the {keys} key(s) in queue.key_file") })]
    Sealed {
        /// The folder.
        path: PathBuf,
        /// The number of keys that were tried.
        keys: usize,
    },
    /// It is damaged.
    #[error("open queue {path}: it is damaged: {damage}; run `connect-relay doctor check {path}` for details")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// The first damage that was found.
        damage: String,
    },
    /// A step failed.
    #[error("open queue {path}: {step}: {cause}")]
    Failed {
        /// The folder.
        path: PathBuf,
        /// The step.
        step: &'static str,
        /// The cause of its failure.
        cause: String,
    },
}

impl OpenError {
    /// The failure of a step.
    pub fn failed(path: &Path, step: &'static str, cause: io::Error) -> OpenError {
        OpenError::Failed { path: path.to_owned(), step, cause: cause.to_string() }
    }

    /// The damage of a store.
    pub fn damaged(path: &Path, damage: impl Into<String>) -> OpenError {
        OpenError::Damaged { path: path.to_owned(), damage: damage.into() }
    }

    /// The failure of a step of sled's: damage, or another failure.
    pub fn of_sled(path: &Path, step: &'static str, cause: io::Error) -> OpenError {
        match cause.kind() {
            // sled's kinds of error for damage, and for a log that ends too early.
            ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                OpenError::damaged(path, cause.to_string())
            }
            _ => OpenError::failed(path, step, cause),
        }
    }
}
