//! Why the store cannot be used.

use std::path::PathBuf;
use std::sync::Arc;

/// The store failed: nothing more is acknowledged, and the process leaves.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreFailed(pub Arc<str>);

/// Why the queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("open queue {path}: locked by another process")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Written by a newer relay, or one from before the first release: exit 78.
    #[error("open queue {path}: its format is {found}, this relay reads {known}")]
    OtherFormat {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: u32,
        /// What this build reads.
        known: u32,
    },
    /// In memory, and not allowed to be: exit 78.
    #[error(
        "open queue {path}: it lies on {filesystem}, in memory, and would not survive; use a disk, or set queue.volatile = true"
    )]
    Volatile {
        /// The folder.
        path: PathBuf,
        /// The file system's name.
        filesystem: &'static str,
    },
    /// Sealed, and no key opens it: exit 78.
    #[error("open queue {path}: it is sealed, and {} opens it", if *keys == 0 { "queue.key_file is not set, so nothing".to_owned() } else { format!("none of the {keys} key(s) in queue.key_file") })]
    Sealed {
        /// The folder.
        path: PathBuf,
        /// Keys that were tried.
        keys: usize,
    },
    /// Damaged, and it is to be left as it is.
    #[error("open queue {path}: it is damaged: {damage}; connect-relay doctor check {path} tells more")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What was found first.
        damage: String,
    },
    /// Something failed on the way.
    #[error("open queue {path}: {step}: {cause}")]
    Failed {
        /// The folder.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        cause: String,
    },
}
