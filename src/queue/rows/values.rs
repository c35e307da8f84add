//! The rows beside the messages themselves.

use serde::{Deserialize, Serialize};

use super::record::{Hash, Record};
use crate::delivery::{Reason, Receipt, ServiceError};
use crate::pacer::Kept;
use crate::storage::Secret;
use crate::time::Timestamp;
use crate::turns::Kind;

/// The place of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    pub pack: u64,
    pub nth: u8,
}

/// The next numbers and the counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub next_sequence: u64,
    pub next_pack: u64,
    pub next_turn: u64,
    /// Tells rows of one millisecond apart.
    pub next_row: u64,
    /// Starts of the relay on this store.
    pub boot: u32,
    /// The newest of them that did not end cleanly.
    pub unclean_boot: u32,
    pub clean: bool,
    /// The lifetime of which the order of acceptance tells the order of death.
    pub implied_lifetime_ms: u64,
    /// Messages that rely on it.
    pub implied: u64,
    pub queued: u64,
    pub conversations: u64,
    pub held: u64,
    pub unknown: u64,
    pub dead: u64,
    pub outcomes: u64,
    /// Bytes of packs and dead letters, and what goes with them; see [`Record::weight`].
    pub weight: u64,
    /// The learned rate of delivery.
    pub learned: Option<Kept>,
}

/// What stands beside the messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sending {
    pub paused: Option<PauseRow>,
    /// Refusals of tokens up to then are forgotten.
    pub forgiven: Timestamp,
    /// The last destination that delivered something.
    pub delivered_to: Option<Hash>,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PauseRow {
    pub since: Timestamp,
    /// The reason that an operator gave; none where the relay paused by itself.
    pub operator: Option<String>,
}

/// A dead letter: the record as it was, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dead {
    pub record: Record,
    pub trial: Trial,
    pub died: Timestamp,
}

/// What a ClientToken came to, where its conversation's line does not tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// Queued so far back that it stands in an `s` row.
    Queued {
        at: At,
    },
    Done(Outcome),
}

/// A message that has left the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub sequence: u64,
    pub contents: Hash,
    pub accepted: Timestamp,
    pub attempts: u32,
    pub at: Timestamp,
    pub fate: Fate,
}

/// How it left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fate {
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

/// A conversation with something queued, or whose disconnect was accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Messages queued, here and in `s` rows.
    pub count: u64,
    /// The first of them, in order; those in `s` rows come after.
    pub first: Vec<Slot>,
    pub place: Place,
    pub hold: Option<Hold>,
    /// The disconnect: nothing is accepted behind it.
    pub disconnect: Option<u64>,
    pub used: Timestamp,
    /// The start of the relay in which the head became the head.
    pub boot: u32,
}

/// A message's place in its line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    pub sequence: u64,
    pub accepted: Timestamp,
    pub at: At,
    pub entry: Hash,
    pub trial: Trial,
}

/// What the attempts so far came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub attempts: u32,
    pub strikes: u8,
    pub failures: Failures,
    /// It may have been delivered.
    pub unknown: bool,
    /// The token of the attempt of which nobody knows what it came to.
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

/// Where a conversation waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// It has nothing to send.
    #[default]
    None,
    /// It can be sent when its turn comes.
    Turn(Kind, u64),
    /// It backs off or is held until then.
    Due(Timestamp),
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
    /// The conversation that it was first used in.
    pub conversation: Option<Hash>,
    /// That conversation has a key of the bot's own.
    pub keyed: bool,
    /// Whose it is, where its connection was seen.
    pub participant: Option<Hash>,
    /// The participant's token before it.
    pub renews: Option<Hash>,
    /// The one that took its place.
    pub renewed_by: Option<Hash>,
    pub refused: Option<(Timestamp, ErrorRow)>,
    pub used: Timestamp,
    /// Empty until something is queued with it.
    pub secret: Secret,
}

/// A token came under another key than before, or with one and without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherConversation;

impl Token {
    /// The conversation that the token was used in before, if that was under the same key, or without one as now.
    pub fn belongs_to(&self, keyed: Option<Hash>) -> Result<Option<Hash>, OtherConversation> {
        match (self.conversation, keyed) {
            (Some(own), Some(keyed)) if self.keyed && own == keyed => Ok(Some(own)),
            (Some(own), None) if !self.keyed => Ok(Some(own)),
            (Some(_), _) => Err(OtherConversation),
            (None, _) => Ok(None),
        }
    }
}

/// A participant whose connection was seen.
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
