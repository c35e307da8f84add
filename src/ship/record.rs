//! The records of a stream: the copies of a store's commits that leave the machine.
//!
//! | bytes | content |
//! | --- | --- |
//! | 1 | the version of this layout |
//! | 1 | the [`Kind`] |
//! | 8 | the claim that the record belongs to: a random number |
//! | 8 | its number within the claim; the claim itself is 0 |
//! | 8 | the queued messages after it |
//! | 16 | the position of the last commit that the stream has with it |
//! | … | the body, sealed by `queue.key_file` |
//! | 4 | CRC-32 of all that comes before |
//!
//! All numbers are big-endian. The position is that in the journal of the relay: a start compares it with that of its
//! volume. The body contains rows, which have contents, tokens and names in them: it is never
//! readable without the key file. It is bound to its stream, its kind, its claim and its number, so a copy of it opens
//! nowhere else. The head is readable, so that an operator without the key file sees how much an orphan holds.

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::storage::{CommitPos, Key, Run, Sealer, SealingKey, Secret};

/// The version of the layout.
const VERSION: u8 = 2;
const HEAD: usize = 42;
const SUM: usize = 4;
/// The bytes that a record has besides its body, at most.
pub const OVERHEAD: usize = 128;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A relay makes the stream its own, and begins a snapshot. The body is an [`Owner`].
    Claim = 1,
    /// The rows of a commit, or of a part of a snapshot; or the end of rows that are too long for one record.
    Rows = 2,
    /// Rows that the next record continues.
    Part = 3,
    /// The snapshot that the claim began is complete.
    End = 4,
    /// The owner has left; everything that it committed comes before.
    Released = 5,
}

/// The readable part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The kind.
    pub kind: Kind,
    /// The claim.
    pub claim: u64,
    /// The number within the claim. A record with another number than its distance from its claim does not count.
    pub number: u64,
    /// The queued messages after it.
    pub queued: u64,
    /// The last commit that the stream has with it.
    pub at: CommitPos,
}

/// The body of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The copy of the store that the relay has on its volume.
    pub volume: u64,
    /// The process.
    pub instance: u64,
    /// The name of the machine, for operators.
    pub node: String,
    /// The format stamp of the store.
    pub stamp: String,
    /// True if the records before it, and those of the claim, have every commit of the store. After a gap only the
    /// snapshot has.
    pub continues: bool,
    /// The runs whose commits the store has, the owner's last.
    pub runs: Vec<Run>,
    /// The processes that owned the stream before and whose runs the store does not have, the newest last.
    pub predecessors: Vec<u64>,
    /// The first of the claims before it whose records do not count; what comes between may be removed. Behind the other
    /// fields, so that a relay without it reads them.
    #[serde(skip)]
    pub since: Option<u64>,
}

impl Owner {
    /// Encodes the body of a claim.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let encoded = postcard::to_stdvec(self).and_then(|own| postcard::to_extend(&self.since, own));
        encoded.expect("plain data serialises into memory")
    }
}

/// The reasons why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A newer relay wrote it.
    #[error("a record of the stream has version {0}, this relay reads {VERSION}")]
    Version(u8),
    /// It is not as a relay wrote it.
    #[error("a record of the stream is damaged")]
    Damaged,
    /// It was sealed by a key that is not in the key file.
    #[error("a record of the stream is sealed by a key that is not in queue.key_file")]
    Sealed,
}

/// Encodes and decodes the records of one stream.
#[derive(Clone, Debug)]
pub struct Codec {
    sealer: Sealer,
    stream: [u8; 16],
}

impl Codec {
    /// A codec for the stream of this name.
    #[must_use]
    pub fn new(keys: Vec<SealingKey>, stream: &str) -> Codec {
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest(&SHA256, stream.as_bytes()).as_ref()[..16]);
        Codec { sealer: Sealer::new(keys, 0), stream: hash }
    }

    /// Encodes a record.
    #[must_use]
    pub fn encode(&self, head: Head, body: &[u8]) -> Vec<u8> {
        let Head { kind, claim, number, queued, at } = head;
        let mut record = Vec::with_capacity(body.len() + OVERHEAD);
        record.extend_from_slice(&[VERSION, kind as u8]);
        for field in [claim, number, queued, at.epoch, at.number] {
            record.extend_from_slice(&field.to_be_bytes());
        }
        // What is sealed is no secret: it needs neither a copy of its own nor to be overwritten when that is dropped.
        self.sealer.seal_into(&self.place(head), body, &mut record);
        let sum = crc32fast::hash(&record);
        record.extend_from_slice(&sum.to_be_bytes());
        record
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// If it is damaged, of another version, or sealed by an unknown key.
    pub fn decode(&self, record: &[u8]) -> Result<(Head, Zeroizing<Vec<u8>>), Unreadable> {
        let head = head(record)?;
        let sealed = Secret::new(record[HEAD..record.len() - SUM].to_vec());
        let body = self.sealer.open(&self.place(head), &sealed).ok_or(Unreadable::Sealed)?;
        Ok((head, body))
    }

    /// Decodes a claim. `None` if the record is of another kind.
    ///
    /// # Errors
    /// If the record cannot be decoded.
    pub fn owner(&self, record: &[u8]) -> Result<Option<Owner>, Unreadable> {
        let (head, body) = self.decode(record)?;
        if head.kind != Kind::Claim {
            return Ok(None);
        }
        let (mut owner, rest): (Owner, _) = postcard::take_from_bytes(&body).map_err(|_| Unreadable::Damaged)?;
        if !rest.is_empty() {
            owner.since = postcard::from_bytes(rest).map_err(|_| Unreadable::Damaged)?;
        }
        Ok(Some(owner))
    }

    /// The place that a body is sealed for. No row of a store has a key that begins with this letter.
    fn place(&self, head: Head) -> Key {
        Key::new(b'S').hash(&self.stream).with(&[head.kind as u8]).number(head.claim).number(head.number)
    }
}

/// Reads the head of a record, without the key file.
///
/// # Errors
/// If it is damaged or of another version.
pub fn head(record: &[u8]) -> Result<Head, Unreadable> {
    let version = *record.first().ok_or(Unreadable::Damaged)?;
    let (rest, sum) =
        record.split_last_chunk::<SUM>().filter(|(rest, _)| rest.len() >= HEAD).ok_or(Unreadable::Damaged)?;
    if crc32fast::hash(rest).to_be_bytes() != *sum {
        return Err(Unreadable::Damaged);
    }
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let kinds = [Kind::Claim, Kind::Rows, Kind::Part, Kind::End, Kind::Released];
    let kind = kinds.into_iter().find(|kind| *kind as u8 == rest[1]).ok_or(Unreadable::Damaged)?;
    let field = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&rest[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let at = CommitPos { epoch: field(26), number: field(34) };
    Ok(Head { kind, claim: field(2), number: field(10), queued: field(18), at })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    use super::*;

    pub fn codec(key: u8, stream: &str) -> Codec {
        Codec::new(SealingKey::parse_file(&BASE64_STANDARD.encode([key; 32])).unwrap(), stream)
    }

    proptest! {
        #[test]
        fn record_opens_at_its_own_place_only_and_shows_nothing(
            body in prop::collection::vec(any::<u8>(), 8..300),
            (claim, number, queued, position) in any::<(u64, u64, u64, (u64, u64))>(),
            at in any::<usize>(),
            bit in 0u8..8,
        ) {
            let at_commit = CommitPos { epoch: position.0, number: position.1 };
            let head_of = |kind| Head { kind, claim, number, queued, at: at_commit };
            let own = codec(1, "CR_a=_b");
            let record = own.encode(head_of(Kind::Rows), &body);
            prop_assert!(record.len() <= body.len() + OVERHEAD);
            prop_assert!(!record.windows(body.len()).any(|window| window == body));
            prop_assert_eq!(head(&record), Ok(head_of(Kind::Rows)));
            let (found, opened) = own.decode(&record).unwrap();
            prop_assert_eq!((found, &opened[..]), (head_of(Kind::Rows), &body[..]));
            prop_assert_eq!(codec(2, "CR_a=_b").decode(&record).unwrap_err(), Unreadable::Sealed);
            prop_assert_eq!(codec(1, "CR_a=_c").decode(&record).unwrap_err(), Unreadable::Sealed);
            let mut changed = record.clone();
            changed[at % record.len()] ^= 1 << bit;
            prop_assert_eq!(own.decode(&changed).unwrap_err(), Unreadable::Damaged);
            // Another place, with a sum that is right.
            for (from, to) in [(1, 2), (2, 10), (10, 18)] {
                let mut moved = record[..record.len() - SUM].to_vec();
                moved[from..to].iter_mut().for_each(|byte| *byte ^= 1);
                moved.extend(crc32fast::hash(&moved).to_be_bytes());
                prop_assert!(own.decode(&moved).is_err());
            }
            for cut in [0, 1, HEAD, record.len() - 1] {
                prop_assert_eq!(own.decode(&record[..cut]).unwrap_err(), Unreadable::Damaged);
            }
        }
    }

    #[test]
    fn another_version_is_named_and_a_claim_is_read_back() {
        let own = codec(1, "s");
        let owner = Owner {
            volume: 1,
            instance: 2,
            node: "node-a".into(),
            stamp: "connect-relay queue".into(),
            continues: true,
            runs: vec![Run { instance: 2, after: CommitPos { epoch: 3, number: 4 }, sequence: 5 }],
            predecessors: vec![6],
            since: Some(9),
        };
        let head = Head { kind: Kind::Claim, claim: 7, number: 0, queued: 5, at: CommitPos::default() };
        let body = owner.encode();
        assert_eq!(own.owner(&own.encode(head, &body)), Ok(Some(owner.clone())));
        // A relay of an older version wrote the others.
        let older = postcard::to_stdvec(&owner).unwrap();
        assert_eq!(own.owner(&own.encode(head, &older)), Ok(Some(Owner { since: None, ..owner })));
        assert_eq!(own.owner(&own.encode(Head { kind: Kind::End, ..head }, &body)), Ok(None));
        assert_eq!(own.owner(&own.encode(head, &[0xff; 40])), Err(Unreadable::Damaged));
        let mut newer = own.encode(head, &body);
        newer.truncate(newer.len() - SUM);
        newer[0] = 3;
        newer.extend(crc32fast::hash(&newer).to_be_bytes());
        assert_eq!(own.owner(&newer), Err(Unreadable::Version(3)));
    }
}
