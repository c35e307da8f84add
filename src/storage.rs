//! A crash-safe, ordered key-value store on sled.

mod compaction;
mod directory;
mod error;
mod identity;
mod image;
mod journal;
mod key;
mod memtable;
mod names;
mod open_guard;
mod preflight;
mod quarantine;
pub mod row;
mod sealing;
mod sled_db;
mod sled_log;
mod space;
mod store;
#[cfg(test)]
pub mod testing;

pub use directory::{lock, lock_if_there};
pub use error::{OpenError, StoreFailed};
pub use identity::{FORMAT, Known};
pub use image::Image;
pub use key::{Key, hash_at, number_at};
pub use open_guard::guarded;
pub use preflight::odd_files;
pub use quarantine::{create, empty_replacement, quarantine, replace};
pub use sealing::{Sealer, SealingKey, Secret};
pub use store::{Options, Space, Store};
