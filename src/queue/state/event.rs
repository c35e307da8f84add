//! Events: the changes that are logged, counted or answered after their commit.

use crate::delivery::{Outcome, Reason, Receipt, ServiceError};
use crate::queue::api::{Lease, MessageId, Overview};
use crate::queue::rows::Record;
use crate::time::Timestamp;

/// A change, with all that its log line, its counters and the reply to a waiting caller need.
#[derive(Debug)]
pub enum Event {
    /// A new message is stored.
    Accepted { id: MessageId, label: String, client_token: String, trace_id: Option<String> },
    /// A submission was a repeat.
    Repeated,
    /// Connect has the message.
    Delivered { lease: Box<Lease>, outcome: Option<Outcome>, receipt: Receipt, at: Timestamp },
    /// An attempt failed. `until` is `None` if the message keeps its place.
    Deferred { lease: Box<Lease>, outcome: Outcome, at: Timestamp, until: Option<Timestamp> },
    /// The token was refused, and the conversation waits for a renewed one.
    Held { lease: Box<Lease>, outcome: Outcome, at: Timestamp, until: Timestamp },
    /// A queued message is a dead letter.
    Dead(Box<Death>),
    /// A dead letter was deleted by an operator: its reason changed, and it is not counted again.
    Deleted(Box<Death>),
    /// A dead letter is queued again: by an operator, or because its bot sent it again with a renewed token.
    Redriven(Box<Redriven>),
    /// A message is sent with another token after an attempt whose answer was lost.
    DuplicatePossible,
    /// The destination, which had refused every token, delivered a message.
    DestinationDelivers { after_s: u64 },
    /// The destination refused this many tokens and has never delivered a message.
    AllRefused { tokens: usize, every_s: f64 },
    /// An overview was made: the gauges show it.
    Measured { overview: Overview, at: Timestamp },
}

/// A dead letter, and the reason for it.
#[derive(Debug)]
pub struct Death {
    pub id: MessageId,
    pub record: Record,
    pub attempts: u32,
    pub died: Timestamp,
    pub reason: Reason,
    pub error: ServiceError,
    pub maybe_delivered: bool,
    pub answer: LastAnswer,
}

/// The answer that made a message a dead letter, as the log shows it.
#[derive(Clone, Debug, Default)]
pub struct LastAnswer {
    pub http_status: Option<u16>,
    pub request_id: Option<Box<str>>,
    pub maybe_delivered: bool,
}

/// A dead letter that was queued again.
#[derive(Debug)]
pub struct Redriven {
    pub id: MessageId,
    pub record: Record,
    /// Its attempts before.
    pub attempts: u32,
    pub at: Timestamp,
    /// Its last cause of death.
    pub reason: Option<Reason>,
    /// True if it has other contents now.
    pub edited: bool,
}
