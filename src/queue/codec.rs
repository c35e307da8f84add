//! Every byte on disk: keys, rows, checksums.
//!
//! A key is a prefix letter and fixed-width big-endian parts, so that the order of keys is the order of sequence
//! numbers, turns and times. A value is a CRC-32 of key and payload, then the payload (postcard: the fields of the
//! structs below in their order, integers as varints). The key is part of the sum, so a row cannot pass for another's.
//!
//! | key | row | what it is |
//! | --- | --- | --- |
//! | `!` | [`Meta`] | the next numbers, the counts; written with every batch |
//! | `m` seq | [`Record`] | a queued message: the truth |
//! | `p` seq n | bytes | the n-th piece of contents too long for their record |
//! | `i` entry | [`Entry`] | what a ClientToken came to: queued, then its outcome |
//! | `v` conv | [`Line`] | a conversation: its messages in order, its place, its hold |
//! | `s` conv seq | `Vec<u64>` | sequence numbers that the line has no room for |
//! | `r` turn conv | time | its turn among those that can be sent, and since when |
//! | `d` time conv | – | it can be sent from then on |
//! | `e` time seq | – | a message that dies then, where the order of acceptance does not tell |
//! | `t` hash | [`Token`] | a ConnectionToken: whose it is, what became of it |
//! | `g` hash | [`Participant`] | a participant's newest ConnectionToken |
//! | `u` caller | u64 | messages queued by one caller |
//! | `x` seq | [`Dead`] | a dead letter |
//! | `o` time n | `Vec<Hash>` | outcomes recorded then, to be pruned |
//! | `y` time n | `Vec<(u8, Hash)>` | tokens, participants, lines last used then, to be pruned |
//! | `z` time seq | – | a dead letter buried then, to be pruned |
//! | `k` key | bytes | a row that failed its sum, set aside |
//!
//! No value exceeds [`ROW_MAX`]. Contents up to [`INLINE_MAX`] bytes stand in the record, longer ones in pieces of
//! [`PIECE`]. Conversations, participants, ClientTokens and contents stand in keys and comparisons as 128 bits of
//! HMAC-SHA-256 under the store's own key: the folder does not tell who spoke.

use ring::hmac;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::delivery::{Reason, Receipt, ServiceError};
use crate::message::{Body, Caller, ConnectionToken, Content, ContentType};
use crate::time::Timestamp;

/// The layout's number, in the format stamp.
pub const FORMAT: u32 = 1;
/// No row is longer: sled writes 16 of them as one item, and an item over 128 KiB would become a file that it never
/// syncs.
pub const ROW_MAX: usize = 7 * 1024;
/// Contents up to here stand in their record.
pub const INLINE_MAX: usize = 3584;
/// Longer contents are cut into pieces of this.
pub const PIECE: usize = 4096;

/// 128 bits of a keyed hash.
pub type Hash = [u8; 16];

/// Makes the keyed hashes.
#[derive(Clone)]
pub struct Hasher(hmac::Key);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher(…)")
    }
}

impl Hasher {
    pub fn new(key: &[u8]) -> Hasher {
        Hasher(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The hash of the parts under a domain; lengths are hashed with them, so parts cannot run into one another.
    pub fn hash(&self, domain: u8, parts: &[&[u8]]) -> Hash {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[domain]);
        for part in parts {
            context.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            context.update(part);
        }
        let mut hash = Hash::default();
        hash.copy_from_slice(&context.sign().as_ref()[..16]);
        hash
    }

    pub fn token(&self, token: &ConnectionToken) -> Hash {
        self.hash(b't', &[token.expose()])
    }

    /// What two submissions must share to be the same one.
    pub fn contents(&self, body: &Body) -> Hash {
        let kind = [match body {
            Body::Message { .. } => b'm',
            Body::Event { .. } => b'e',
            Body::Disconnect => b'd',
        }];
        let content = body.content().map_or("", Content::expose);
        self.hash(b'c', &[&kind, body.content_type().unwrap_or("").as_bytes(), content.as_bytes()])
    }

    pub fn entry(&self, conversation: &Hash, client_token: &str) -> Hash {
        self.hash(b'i', &[conversation, client_token.as_bytes()])
    }
}

/// A key under construction.
pub struct Key(pub Vec<u8>);

impl Key {
    pub fn new(prefix: u8) -> Key {
        let mut bytes = Vec::with_capacity(26);
        bytes.push(prefix);
        Key(bytes)
    }

    pub fn number(mut self, number: u64) -> Key {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn time(self, time: Timestamp) -> Key {
        self.number(time.0)
    }

    pub fn hash(mut self, hash: &Hash) -> Key {
        self.0.extend_from_slice(hash);
        self
    }
}

/// The number that stands at `at` in a key; 0 where the key is too short.
pub fn number_at(key: &[u8], at: usize) -> u64 {
    key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// The hash that stands at `at` in a key.
pub fn hash_at(key: &[u8], at: usize) -> Hash {
    key.get(at..at + 16).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

pub fn caller_number(caller: Caller) -> u64 {
    match caller {
        Caller::Uid(uid) => u64::from(uid),
        Caller::Tcp => u64::MAX,
    }
}

/// A payload with the sum of it and its key.
pub fn seal<T: Serialize>(key: &[u8], row: &T) -> Vec<u8> {
    let bytes = postcard::to_extend(row, vec![0; 4]).expect("a row of plain data serialises into memory");
    with_sum(key, bytes)
}

/// Raw bytes with the sum of them and their key.
pub fn seal_bytes(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(payload);
    with_sum(key, bytes)
}

fn with_sum(key: &[u8], mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = sum(key, &bytes[4..]);
    bytes[..4].copy_from_slice(&sum);
    debug_assert!(bytes.len() <= ROW_MAX, "a row of {} bytes under {:?}", bytes.len(), key[0] as char);
    bytes
}

/// The payload, if the sum holds.
pub fn open_bytes<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (found, payload) = value.split_at_checked(4)?;
    (found == sum(key, payload)).then_some(payload)
}

/// The row, if the sum holds and it is well-formed.
pub fn open<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Option<T> {
    postcard::from_bytes(open_bytes(key, value)?).ok()
}

fn sum(key: &[u8], payload: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize().to_le_bytes()
}

/// The next numbers and the counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub next_sequence: u64,
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
    /// What the messages and dead letters weigh; see [`Record::weight`].
    pub weight: u64,
}

/// A queued message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub conversation: Hash,
    pub entry: Hash,
    pub label: String,
    pub client_token: String,
    /// The token it came with.
    pub token: Hash,
    /// The token of the attempt of which nobody knows what it came to.
    pub sent_with: Option<Hash>,
    pub caller: u64,
    pub trace_id: Option<String>,
    pub accepted: Timestamp,
    pub lifetime_ms: u64,
    pub deadline: Timestamp,
    /// Counted by the order of acceptance; else it has an `e` row.
    pub implied: bool,
    pub attempts: u32,
    pub strikes: u8,
    pub failed_at: Option<Timestamp>,
    /// It may have been delivered.
    pub unknown: bool,
    pub kind: Kind,
    /// Where there are pieces, `inline` is empty.
    pub pieces: u16,
    pub inline: Secret,
}

/// The kind of body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Message(u8),
    Event { content_type: String, content: bool },
    Disconnect,
}

/// Bytes of contents or of a token, on their way to or from the disk: wiped, and not shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl Secret {
    pub fn of(token: &ConnectionToken) -> Secret {
        Secret(token.expose().to_vec())
    }

    /// The token; none where only its hash was kept.
    pub fn token(&self) -> Option<ConnectionToken> {
        ConnectionToken::parse(&self.0).ok()
    }
}

impl Record {
    /// Takes a body apart: what goes into the record, and the pieces that go beside it.
    pub fn set_body<'a>(&mut self, body: &'a Body) -> impl Iterator<Item = &'a [u8]> {
        self.kind = match body {
            Body::Message { content_type, .. } => Kind::Message(*content_type as u8),
            Body::Event { content_type, content } => {
                Kind::Event { content_type: content_type.to_string(), content: content.is_some() }
            }
            Body::Disconnect => Kind::Disconnect,
        };
        let content = body.content().map_or("", Content::expose).as_bytes();
        let pieces = if content.len() <= INLINE_MAX {
            self.inline = Secret(content.to_vec());
            &[][..]
        } else {
            content
        };
        self.pieces = u16::try_from(pieces.len().div_ceil(PIECE)).unwrap_or(u16::MAX);
        pieces.chunks(PIECE)
    }

    /// About how many bytes of rows it takes, with its share of the others'.
    pub fn weight(&self) -> u64 {
        (self.inline.0.len() + usize::from(self.pieces) * PIECE + 700) as u64
    }

    /// Puts the body together again; none where a piece is missing or is not text.
    pub fn body(&self, mut piece: impl FnMut(u16) -> Option<Vec<u8>>) -> Option<Body> {
        let mut bytes = self.inline.0.clone();
        for number in 0..self.pieces {
            bytes.extend_from_slice(&piece(number)?);
        }
        let content = Content::new(String::from_utf8(bytes).ok()?);
        Some(match &self.kind {
            Kind::Message(index) => {
                Body::Message { content_type: *ContentType::ALL.get(usize::from(*index))?, content }
            }
            Kind::Event { content_type, content: has } => {
                Body::Event { content_type: content_type.as_str().into(), content: has.then_some(content) }
            }
            Kind::Disconnect => Body::Disconnect,
        })
    }
}

impl Default for Record {
    fn default() -> Record {
        Record {
            conversation: Hash::default(),
            entry: Hash::default(),
            label: String::new(),
            client_token: String::new(),
            token: Hash::default(),
            sent_with: None,
            caller: 0,
            trace_id: None,
            accepted: Timestamp(0),
            lifetime_ms: 0,
            deadline: Timestamp(0),
            implied: false,
            attempts: 0,
            strikes: 0,
            failed_at: None,
            unknown: false,
            kind: Kind::Disconnect,
            pieces: 0,
            inline: Secret::default(),
        }
    }
}

/// A dead letter: the record as it was, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dead {
    pub record: Record,
    pub died: Timestamp,
}

/// What a ClientToken came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub sequence: u64,
    pub contents: Hash,
    pub accepted: Timestamp,
    pub fate: Fate,
}

/// The part of an entry that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fate {
    Queued,
    Delivered { at: Timestamp, attempts: u32, receipt: ReceiptRow },
    Dead { at: Timestamp, attempts: u32, reason: u8, maybe_delivered: bool, token: Hash, error: ErrorRow },
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
    pub first: Vec<u64>,
    pub place: Place,
    pub hold: Option<Hold>,
    /// The disconnect: nothing is accepted behind it.
    pub disconnect: Option<u64>,
    pub used: Timestamp,
    /// The start of the relay in which the head became the head.
    pub boot: u32,
}

/// Where a conversation waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// It has nothing to send.
    #[default]
    None,
    /// It can be sent when its turn comes.
    Turn(u64),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(content_type: ContentType, text: &str) -> Body {
        Body::Message { content_type, content: Content::new(text.into()) }
    }

    fn round_trip(body: &Body) -> Option<Body> {
        let mut record = Record::default();
        let pieces: Vec<Vec<u8>> = record.set_body(body).map(<[u8]>::to_vec).collect();
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE));
        let key = Key::new(b'm').number(7).0;
        let record: Record = open(&key, &seal(&key, &record))?;
        assert_eq!(usize::from(record.pieces), pieces.len());
        record.body(|number| pieces.get(usize::from(number)).cloned())
    }

    proptest! {
        #[test]
        fn bodies_come_back_as_they_went(text in "\\PC{0,2000}", times in 1usize..12, kind in 0usize..6) {
            let text = text.repeat(times);
            let body = match kind {
                4 => Body::Event { content_type: "e".into(), content: (times > 3).then(|| Content::new(text)) },
                5 => Body::Disconnect,
                index => body(ContentType::ALL[index], &text),
            };
            prop_assert_eq!(round_trip(&body), Some(body));
        }

        #[test]
        fn flipped_bit_fails_the_sum(at in 0usize..64, bit in 0u8..8) {
            let key = Key::new(b'e').number(1).0;
            let mut value = seal_bytes(&key, &[7u8; 60]);
            value[at % 64] ^= 1 << bit;
            prop_assert!(open_bytes(&key, &value).is_none());
        }

        #[test]
        fn garbage_is_no_row(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Even where the sum holds: decoding must not panic.
            let key = Key::new(b'm').0;
            let _ = open::<Record>(&key, &seal_bytes(&key, &bytes));
            let _ = open::<Line>(&key, &seal_bytes(&key, &bytes));
            let _ = open::<Entry>(&key, &seal_bytes(&key, &bytes));
        }
    }

    #[test]
    fn row_cannot_pass_for_anothers() {
        let (here, there) = (Key::new(b'm').number(1).0, Key::new(b'm').number(2).0);
        assert!(open_bytes(&there, &seal_bytes(&here, b"x")).is_none());
        assert_eq!(open_bytes(&here, &seal_bytes(&here, b"x")), Some(&b"x"[..]));
        assert!(open_bytes(&here, b"abc").is_none());
    }

    #[test]
    fn longest_row_of_every_kind_stays_short() {
        let mut record = Record {
            label: "k".repeat(256),
            client_token: "😀".repeat(500),
            trace_id: Some("t".repeat(32)),
            sent_with: Some([9; 16]),
            accepted: Timestamp(u64::MAX),
            failed_at: Some(Timestamp(u64::MAX)),
            lifetime_ms: u64::MAX,
            deadline: Timestamp(u64::MAX),
            caller: u64::MAX,
            ..Record::default()
        };
        let event = Body::Event {
            content_type: "😀".repeat(100).into(),
            content: Some(Content::new("x".repeat(INLINE_MAX))),
        };
        record.set_body(&event).count();
        let key = Key::new(b'x').number(u64::MAX).0;
        assert!(seal(&key, &Dead { record, died: Timestamp(u64::MAX) }).len() <= ROW_MAX);
        let line = Line {
            first: vec![u64::MAX; 512],
            hold: Some(Hold {
                token: [1; 16],
                until: Timestamp(0),
                error: ErrorRow { text: "x".repeat(1024), ..ErrorRow::default() },
            }),
            ..Line::default()
        };
        assert!(seal(&key, &line).len() <= ROW_MAX);
        assert!(seal_bytes(&key, &[0; PIECE]).len() <= ROW_MAX);
    }
}
