//! The types of the queue's interface. They contain no logic of the queue.

pub mod lease;
pub mod messages;
pub mod options;
pub mod overview;
pub mod verdict;

pub use lease::{Lease, LeaseRequest, Settled, Work};
pub use messages::{Cursor, Page, Part, Redrive, Seen, SeenPlace, Selection, Sought, Sweep, Unmoved};
pub use options::{Damaged, Options};
pub use overview::{Backlog, Expiring, Overview, Pause};
pub use verdict::{Asker, Found, Full, MessageId, MessageState, Rejection, Status, Verdict};

/// The result of a step that reads or writes the store.
pub type Result<T, E = crate::storage::StoreFailed> = std::result::Result<T, E>;
