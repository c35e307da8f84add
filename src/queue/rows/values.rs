//! The rows beside the messages themselves.

use serde::{Deserialize, Serialize};

use super::record::{Hash, Record};
use crate::delivery::{Reason, Receipt, ServiceError};
use crate::fairness::Class;
use crate::pacer::LearnedRate;
use crate::storage::Secret;
use crate::time::Timestamp;

/// The position of a record: the number of its pack, and its index there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordPos {
    pub pack: u64,
    pub nth: u8,
}

/// The next numbers and the counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub next_sequence: u64,
    pub next_pack: u64,
    pub next_turn: u64,
    /// Distinguishes rows of one millisecond.
    pub next_row: u64,
    /// Starts of the relay on this store.
    pub boot: u32,
    /// The newest of them that did not end cleanly.
    pub unclean_boot: u32,
    pub clean: bool,
    /// The default lifetime. Messages that have it expire in the order of acceptance, so they need no expiry row.
    pub default_lifetime_ms: u64,
    /// Queued messages that have it.
    pub default_lifetimes: u64,
    pub queued: u64,
    pub conversations: u64,
    pub held: u64,
    pub unknown: u64,
    pub dead: u64,
    pub outcomes: u64,
    /// Bytes of packs and dead letters, and what goes with them; see [`Record::weight`].
    pub weight: u64,
    /// The learned rate of delivery.
    pub learned: Option<LearnedRate>,
}

/// The pause of sending, and the facts known of the destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PauseState {
    pub paused: Option<PauseRow>,
    /// Refusals of tokens up to this time do not count.
    pub refusals_reset_at: Timestamp,
    /// The last destination that delivered something.
    pub delivered_to: Option<Hash>,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PauseRow {
    pub since: Timestamp,
    /// The operator's reason; `None` if the relay paused by itself.
    pub operator: Option<String>,
}

/// A dead letter. The outcome of its ClientToken has the reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dead {
    pub record: Record,
    pub attempts: Attempts,
    pub died: Timestamp,
}

/// The state of a ClientToken that its conversation's row does not contain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClientTokenRow {
    /// Queued, and its reference is in a chunk.
    Queued { at: RecordPos },
    /// An outcome that is in no stream: formats 3 and 4 have no other, and a message that was redriven into another
    /// conversation leaves one behind.
    Done(Outcome),
    /// An outcome with what its event needs besides. Since format 5.
    Settled(Outcome, Origin),
}

impl ClientTokenRow {
    /// The outcome; `None` if the message is queued.
    pub fn outcome(self) -> Option<Outcome> {
        match self {
            ClientTokenRow::Queued { .. } => None,
            ClientTokenRow::Done(outcome) | ClientTokenRow::Settled(outcome, _) => Some(outcome),
        }
    }
}

/// The caller and the names of a settled message, and the place of its outcome in the order of commits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub caller: u64,
    /// The number in the key of the `PruneOutcomes` row that names the outcome, and the index there. An older row that
    /// names the same message has another number.
    pub row: u64,
    pub nth: u8,
    /// The conversation's label and the ClientToken, on two lines.
    pub names: Secret,
}

/// A message that has left the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub sequence: u64,
    pub contents: Hash,
    pub accepted: Timestamp,
    pub attempts: u32,
    pub at: Timestamp,
    pub fate: FinalState,
}

/// The way in which a message left the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FinalState {
    Delivered(ReceiptRow),
    Dead { reason: u8, maybe_delivered: bool, token: Hash, error: ErrorRow },
}

/// A [`Receipt`] on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReceiptRow {
    id: Option<String>,
    absolute_time: Option<String>,
    processing_status: Option<String>,
    request_id: Option<String>,
}

impl From<&Receipt> for ReceiptRow {
    fn from(receipt: &Receipt) -> ReceiptRow {
        let short = |text: &Option<Box<str>>| text.as_deref().map(|text| cut(text, 256));
        ReceiptRow {
            id: short(&receipt.id),
            absolute_time: short(&receipt.absolute_time),
            processing_status: short(&receipt.processing_status),
            request_id: short(&receipt.request_id),
        }
    }
}

impl From<ReceiptRow> for Receipt {
    fn from(row: ReceiptRow) -> Receipt {
        Receipt {
            id: row.id.map(Into::into),
            absolute_time: row.absolute_time.map(Into::into),
            processing_status: row.processing_status.map(Into::into),
            request_id: row.request_id.map(Into::into),
        }
    }
}

/// A [`ServiceError`] on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorRow {
    status: u16,
    code: String,
    text: String,
    request_id: Option<String>,
}

impl From<&ServiceError> for ErrorRow {
    fn from(error: &ServiceError) -> ErrorRow {
        ErrorRow {
            status: error.status,
            code: cut(&error.code, 128),
            text: cut(&error.text, 1024),
            request_id: error.request_id.as_deref().map(|text| cut(text, 256)),
        }
    }
}

impl From<ErrorRow> for ServiceError {
    fn from(row: ErrorRow) -> ServiceError {
        ServiceError {
            status: row.status,
            code: row.code.into(),
            text: row.text.into(),
            request_id: row.request_id.map(Into::into),
        }
    }
}

/// A conversation with queued messages, or whose disconnect was accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// Messages queued, here and in chunks.
    pub count: u64,
    /// The first of them, in order; those in chunks come after.
    pub first: Vec<QueuedRef>,
    pub schedule: Schedule,
    pub hold: Option<Hold>,
    /// The sequence number of the disconnect; no message is accepted after it.
    pub disconnect: Option<u64>,
    pub used: Timestamp,
    /// The start of the relay in which the head became the head.
    pub boot: u32,
}

impl Conversation {
    /// The message that is sent next.
    pub fn head(&self) -> Option<&QueuedRef> {
        self.first.first()
    }

    /// The number of messages in chunks.
    pub fn in_chunks(&self) -> u64 {
        self.count.saturating_sub(self.first.len() as u64)
    }
}

/// The most references in a chunk, and in a conversation's row.
pub const REFS_MAX: usize = 64;

/// A reference to a queued message, in its conversation's row or in a chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueuedRef {
    pub sequence: u64,
    pub accepted: Timestamp,
    pub at: RecordPos,
    pub entry: Hash,
    pub attempts: Attempts,
}

/// The results of a message's attempts so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attempts {
    /// Attempts that counted.
    pub count: u32,
    pub strikes: u8,
    pub failures: Failures,
    /// True if an answer was lost: the message may have been delivered.
    pub unknown: bool,
    /// The token of the attempt whose answer was lost.
    pub sent_with: Option<Hash>,
}

/// The failures of a message, in one number: the low 48 bits are the time of the last one in milliseconds (until the
/// year 10889), the high 16 bits are the number of those that count towards `sender.attempts_max`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures(Option<u64>);

impl Failures {
    const TIME_BITS: u32 = 48;

    /// The failures after one more at this time.
    #[must_use]
    pub fn and(self, at: Timestamp, counts: bool) -> Failures {
        let counted = u64::from(self.counted()) + u64::from(counts);
        let time = at.0.min((1 << Self::TIME_BITS) - 1);
        Failures(Some(time | counted.min(u64::from(u16::MAX)) << Self::TIME_BITS))
    }

    /// The time of the last one.
    pub fn last(self) -> Option<Timestamp> {
        self.0.map(|number| Timestamp(number & ((1 << Self::TIME_BITS) - 1)))
    }

    /// The number of those that count.
    pub fn counted(self) -> u16 {
        u16::try_from(self.0.unwrap_or(0) >> Self::TIME_BITS).unwrap_or(u16::MAX)
    }
}

/// The time from which a conversation can be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// It has nothing to send.
    #[default]
    Idle,
    /// It can be sent in its turn, which has this number.
    Ready(Class, u64),
    /// It backs off or is held until this time.
    DelayedUntil(Timestamp),
}

/// A conversation whose token was refused waits for a renewed one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    pub token: Hash,
    pub until: Timestamp,
    pub error: ErrorRow,
}

/// A ConnectionToken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// The conversation in which it was first used.
    pub conversation: Option<Hash>,
    /// True if the bot named that conversation by a key.
    pub keyed: bool,
    /// Its participant, if the relay saw the participant's connection.
    pub participant: Option<Hash>,
    /// The participant's token before it.
    pub renews: Option<Hash>,
    /// The token that renewed it.
    pub renewed_by: Option<Hash>,
    pub refused: Option<(Timestamp, ErrorRow)>,
    pub used: Timestamp,
    /// Empty until a message is queued with it.
    pub secret: Secret,
}

/// A token came with another key than before, or once with a key and once without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherConversation;

impl Token {
    /// The conversation in which the token was used before, if that had the same key, or no key as now.
    pub fn belongs_to(&self, keyed: Option<Hash>) -> Result<Option<Hash>, OtherConversation> {
        match (self.conversation, keyed) {
            (Some(own), Some(keyed)) if self.keyed && own == keyed => Ok(Some(own)),
            (Some(own), None) if !self.keyed => Ok(Some(own)),
            (Some(_), _) => Err(OtherConversation),
            (None, _) => Ok(None),
        }
    }
}

/// A participant whose connection the relay saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Participant {
    pub token: Hash,
    pub used: Timestamp,
}

pub fn reason_index(reason: Reason) -> u8 {
    Reason::ALL.iter().position(|known| *known == reason).map_or(0, |index| u8::try_from(index).unwrap_or(0))
}

pub fn reason_at(index: u8) -> Reason {
    Reason::ALL.get(usize::from(index)).copied().unwrap_or(Reason::Refused)
}

fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}
