//! The names of the files in a store's folder.
//!
//! | file | what it is |
//! | --- | --- |
//! | `db`, `conf`, `snap.*`, `blobs` | sled's; `blobs` stays empty, because no row is that long (rule 3 of the store) |
//! | `format` | the format stamp with the store's own key, sealed if there is a key file; written last at the first start: without it nothing was ever acknowledged (rule 8 of the store) |
//! | `journal.0`, `journal.1` | the commits that are not in sled yet |
//! | `compacted` | a copy that takes the place of `db` |
//! | `volume` | the identity of this copy of a replicated store, and the runs that wrote it; only with `fleet.replicate` |
//! | `left-*` | stores that were set aside because another relay has continued them |
//! | `lock` | locked by the process that has the folder open |
//! | `ballast` | space that is given up on a full disk, so that a store can be emptied (rule 9 of the store) |
//! | `failed-sync` | the mark of a failed write (rule 7 of the store) |
//! | `opening` | a byte for each successive start that ended while sled opened the log |
//! | `failed-read` | the mark of a read that found damage: the next start quarantines the store |
//! | `damaged-*` | quarantined stores, for `doctor` and for operators, who remove them |

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
/// The lock of the process that has the folder open.
pub const LOCK: &str = "lock";
/// Space that is given up on a full disk.
pub const BALLAST: &str = "ballast";
/// The mark of a failed write.
pub const FAILED_SYNC: &str = "failed-sync";
/// The mark of starts that ended while sled opened the log, a byte for each.
pub const OPENING: &str = "opening";
/// The mark of a log that could not be read.
pub const FAILED_READ: &str = "failed-read";
/// The identity of this copy of a replicated store.
pub const VOLUME: &str = "volume";
/// The same before it is renamed.
pub const NEW_VOLUME: &str = "volume.new";
/// The prefix of folders with stores that another relay has continued.
pub const LEFT_PREFIX: &str = "left-";
/// The prefix of folders with quarantined stores.
pub const DAMAGED_PREFIX: &str = "damaged-";
/// The prefix of folders with the files of an unfinished first start.
pub const UNFINISHED_PREFIX: &str = "unfinished-";

/// The files that a relay and sled make, besides snapshots and quarantined stores.
pub const ALL: [&str; 15] = [
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
    VOLUME,
    NEW_VOLUME,
];

/// Returns true for the files with a store's rows: sled's and the journal's.
pub fn has_rows(name: &str) -> bool {
    matches!(name, LOG | CONF | BLOBS) || JOURNALS.contains(&name) || is_snapshot(name)
}

/// Returns true for sled's snapshots, unfinished ones too.
pub fn is_snapshot(name: &str) -> bool {
    name.starts_with("snap.")
}

/// Returns true for a snapshot that sled did not finish.
pub fn is_unfinished_snapshot(name: &str) -> bool {
    is_snapshot(name) && name.ends_with(".generating")
}
