//! A crash-safe, ordered key-value store on sled: one folder, one tree, one thread that owns it.
//!
//! A [`Store`] maps keys of at most 34 bytes to rows of at most 7 KiB. The caller writes rows, reads them back, and
//! calls [`Store::commit`]: **when it returns, all of these rows are on disk; a crash before that leaves all of them or
//! none.**
//!
//! ```text
//! put, append, remove ──▶ memtable ──▶ journal ──▶ fdatasync = the instant of commit      Store::commit
//!                            │
//!                            └─▶ several sled batches, each: flush ──▶ fdatasync          Store::advance_checkpoint
//! get ◀── memtable, or sled
//! ```
//!
//! | part | what it does |
//! | --- | --- |
//! | `store` | reads, writes, commits, checkpoints; `store/open` opens a folder |
//! | `memtable`, `journal` | the rows that sled does not have yet, in memory and on disk |
//! | `compaction` | replaces sled's log by a copy without dead rows |
//! | `preflight`, `open_guard` | find damage before sled opens the log, and give up an open that hangs |
//! | `image`, `sled_log` | read the rows of a damaged or closed store without sled: [`Image`] |
//! | `quarantine` | puts a new store in the place of a damaged one, whose files are kept |
//! | `identity`, `sealing` | the format stamp with the store's own key, and the encryption of values |
//! | `left` | stores that are set aside because another relay has continued them |
//! | `restore` | makes a store of the copies of another one's commits |
//! | `trial` | checks a folder without an open |
//! | `volume` | the identity of a copy of a replicated store, and whose commits it has |
//! | `row`, `key`, `names`, `directory`, `space` | encoding, the folder's files, and their size |
//!
//! The store does not know what its rows mean. It reserves two keys: `j`, the journal's position, and `f`, a copy of
//! the format stamp. The caller gives it two facts about the rows in [`Options`]: which of them are written once, and
//! how much the removal of one weighs.
//!
//! The comments cite measured facts about sled 0.34.7 as "rule N of the store":
//!
//! 1. sled's `flush` is not durable on Linux, so `fdatasync` follows it.
//! 2. Each `fdatasync` of sled's log covers one batch, and one thread owns every write.
//! 3. No row is longer than 7 KiB, or sled stores it in a file that it never syncs.
//! 4. All rows are in one tree: a batch is atomic in one tree only.
//! 5. What a commit writes is used only after its `fdatasync`.
//! 6. The number and the order of rows decide speed, memory and the time of a start.
//! 7. After a failed write, flush or `fdatasync` the process acknowledges nothing more and ends.
//! 8. A first start ends with the format stamp, which is written last.
//! 9. On a full disk a store cannot even be opened: a ballast file is kept to be given up.
//! 10. Logs, keys and file modes protect secrets.
//! 11. A folder in memory is refused, and every row has a checksum of its own.
//! 12. The power-cut test must detect the mutants that break rules 1, 2, 3 and 8. The other rules have no mutant there.

mod compaction;
mod directory;
mod error;
mod identity;
mod image;
mod journal;
mod key;
mod left;
mod memtable;
mod names;
mod open_guard;
mod preflight;
mod quarantine;
mod restore;
pub mod row;
mod sealing;
mod sled_db;
mod sled_log;
mod space;
mod store;
#[cfg(test)]
pub mod testing;
mod trial;
mod volume;

pub use directory::{free, lock, lock_if_there};
pub use error::{OpenError, StoreFailed};
pub use identity::{FORMAT, Known, is_store};
pub use image::{Image, verify_own_row};
pub use journal::{CommitPos, last as last_commit, put_row, read_rows};
pub use key::{Key, hash_at, number_at};
pub use left::{Aside, Left, asides, finish_restore, leave, left, make as make_left};
pub use open_guard::guarded;
pub use preflight::odd_files;
pub use quarantine::{create_empty, quarantine, replace_quarantined, replacement_folder};
pub use restore::{Restore, is_unused};
pub use sealing::{Sealer, SealingKey, Secret};
pub use store::{Opened, Options, Space, Store};
pub use trial::{check_folder, is_damaged};
pub use volume::{Run, Volume, is_replicated};
