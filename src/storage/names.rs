//! The names of the files in a store's folder.
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

/// sled's log.
pub const LOG: &str = "db";
/// sled's parameters.
pub const CONF: &str = "conf";
/// sled's folder for items that are too long for its log.
pub const BLOBS: &str = "blobs";
/// The format stamp.
pub const STAMP: &str = "format";
/// The format stamp before it is renamed.
pub const NEW_STAMP: &str = "format.new";
/// The journal's files: the even epochs' and the odd epochs'.
pub const JOURNALS: [&str; 2] = ["journal.0", "journal.1"];
/// The folder of a copy of the store that takes its place.
pub const COMPACTED: &str = "compacted";
/// The lock of the relay that runs on the folder.
pub const LOCK: &str = "lock";
/// Space that is set aside.
pub const BALLAST: &str = "ballast";
/// The mark of a failed write.
pub const FAILED_SYNC: &str = "failed-sync";
/// The mark of starts that did not come back from sled, a byte for each.
pub const OPENING: &str = "opening";
/// The mark of a log that could not be read.
pub const FAILED_READ: &str = "failed-read";
/// How the names of folders begin that contain damaged stores.
pub const DAMAGED_PREFIX: &str = "damaged-";
/// How the names of folders begin that contain what an unfinished first start left.
pub const UNFINISHED_PREFIX: &str = "unfinished-";

/// The files that a relay and sled make, besides snapshots and quarantined stores.
pub const ALL: [&str; 13] = [
    LOG,
    CONF,
    BLOBS,
    STAMP,
    NEW_STAMP,
    FAILED_SYNC,
    JOURNALS[0],
    JOURNALS[1],
    COMPACTED,
    LOCK,
    BALLAST,
    OPENING,
    FAILED_READ,
];

/// Returns true for sled's snapshots, unfinished ones too.
pub fn is_snapshot(name: &str) -> bool {
    name.starts_with("snap.")
}

/// Returns true for a snapshot that sled did not finish.
pub fn is_unfinished_snapshot(name: &str) -> bool {
    is_snapshot(name) && name.ends_with(".generating")
}
