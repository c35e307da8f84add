//! Rows decode to what was encoded, damaged rows do not, and no row is too long. Damaged rows are the fuzzing of this
//! module: `PROPTEST_CASES` times 80 of them, 20,480 unless set.

use proptest::prelude::*;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::delivery::{Receipt, ServiceError};
use crate::storage::row::{ROW_MAX, encode, put_checksum};
use crate::time::Timestamp;

/// The bytes that sealing adds.
const SEAL: usize = 33;

fn with_sum(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut row = [&[0; 4], payload].concat();
    put_checksum(key, &mut row);
    row
}

fn in_pack(at: RecordPos, record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack::encode_onto(&mut bytes, at, record);
    bytes
}

fn pack_of(count: u8) -> Vec<u8> {
    let record = |nth| Record { sequence: 100 + u64::from(nth), ..Record::default() };
    (0..count).flat_map(|nth| in_pack(RecordPos { pack: 3, nth }, &record(nth))).collect()
}

proptest! {
    #[test]
    fn flipped_bit_fails_the_checksum(at in any::<usize>(), bit in 0u8..8) {
        let key = Key::new(b'p').number(1);
        let mut value = encode(&key, &Secret::new(vec![7; 60]));
        let at = at % value.len();
        value[at] ^= 1 << bit;
        prop_assert!(decode::<Secret>(&key, &value).is_none());
    }

    #[test]
    fn flipped_bit_loses_one_record_or_the_later_ones_of_its_pack(at in 0usize..10_000, bit in 0u8..8) {
        let whole = pack_of(8);
        let mut damaged = whole.clone();
        let at = at % damaged.len();
        damaged[at] ^= 1 << bit;
        let hit = at / (whole.len() / 8);
        for nth in 0..8u8 {
            let record = pack::decode(RecordPos { pack: 3, nth }, &damaged);
            prop_assert!(record.as_ref().is_none_or(|record| record.sequence == 100 + u64::from(nth)));
            match usize::from(nth).cmp(&hit) {
                std::cmp::Ordering::Less => prop_assert!(record.is_some()),
                std::cmp::Ordering::Equal => prop_assert!(record.is_none()),
                std::cmp::Ordering::Greater => {}
            }
        }
    }

}

/// A change to a row's bytes.
#[derive(Clone, Debug)]
enum Spoil {
    Flip {
        at: usize,
        bit: u8,
    },
    /// Bytes in the place of others.
    Splice {
        at: usize,
        gone: usize,
        bytes: Vec<u8>,
    },
    /// A part of it once more.
    Repeat {
        at: usize,
        length: usize,
    },
    Cut(usize),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    // Lengths, tags and numbers on the edge of their varints.
    let edges = prop_oneof![
        Just(vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        Just(vec![0x80, 0x80, 0x80, 0x80, 0x10]),
        Just(vec![0x80, 0x00]),
        Just(vec![0xed, 0xa0, 0x80]),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop_oneof![
        3 => (any::<usize>(), 0u8..8).prop_map(|(at, bit)| Spoil::Flip { at, bit }),
        3 => (any::<usize>(), 0usize..12, edges).prop_map(|(at, gone, bytes)| Spoil::Splice { at, gone, bytes }),
        1 => (any::<usize>(), 1usize..64).prop_map(|(at, length)| Spoil::Repeat { at, length }),
        1 => any::<usize>().prop_map(Spoil::Cut),
    ]
}

fn spoilt(mut bytes: Vec<u8>, spoils: &[Spoil]) -> Vec<u8> {
    for spoil in spoils {
        let place = |at: usize| at % (bytes.len() + 1);
        match spoil {
            Spoil::Flip { at, bit } => {
                let at = place(*at);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
            }
            Spoil::Splice { at, gone, bytes: new } => {
                let at = place(*at);
                let end = (at + gone).min(bytes.len());
                bytes.splice(at..end, new.iter().copied());
            }
            Spoil::Repeat { at, length } => {
                let at = place(*at);
                let part = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            Spoil::Cut(at) => bytes.truncate(place(*at)),
        }
    }
    bytes.truncate(ROW_MAX - 4);
    bytes
}

/// A row of each kind with something in every field, without its sum.
fn payloads() -> Vec<Vec<u8>> {
    let error = ErrorRow::from(&ServiceError {
        status: 403,
        code: "AccessDeniedException".into(),
        text: "é😀".into(),
        request_id: Some("r".into()),
    });
    let record = Record {
        sequence: 7,
        label: "contact/bot".into(),
        client_token: "é-1".into(),
        trace_id: Some("t".repeat(32)),
        kind: Kind::Event { content_type: "x/y".into(), content: true },
        inline: Secret::new(vec![1; 40]),
        ..Record::default()
    };
    let attempts = Attempts {
        count: 300,
        strikes: 2,
        failures: Failures::default().and(Timestamp(1), true),
        unknown: true,
        sent_with: Some([3; 16]),
    };
    let slot = QueuedRef {
        sequence: 7,
        accepted: Timestamp(1 << 40),
        at: RecordPos { pack: 3, nth: 1 },
        entry: [9; 16],
        attempts,
    };
    let outcome = |fate| {
        let (contents, accepted, at) = ([4; 16], Timestamp(5), Timestamp(6));
        Outcome { sequence: 7, contents, accepted, attempts: 2, at, fate }
    };
    let died = outcome(FinalState::Dead { reason: 2, maybe_delivered: true, token: [1; 16], error: error.clone() });
    let origin = Origin { caller: 1000, row: 300, nth: 199, names: Secret::new(b"\0contact/bot\nc-1".to_vec()) };
    let receipt = Receipt {
        id: Some("id".into()),
        absolute_time: Some("2019-11-08T02:41:28.172Z".into()),
        processing_status: None,
        request_id: Some("r".into()),
    };
    let line = Conversation {
        count: 2,
        first: vec![slot.clone(), slot.clone()],
        schedule: Schedule::DelayedUntil(Timestamp(9)),
        hold: Some(Hold { token: [1; 16], until: Timestamp(3), error: error.clone() }),
        disconnect: Some(8),
        used: Timestamp(2),
        boot: 4,
    };
    let token = Token {
        conversation: Some([2; 16]),
        renews: Some([3; 16]),
        refused: Some((Timestamp(4), error.clone())),
        secret: Secret::new(vec![5; 30]),
        ..Token::default()
    };
    let payload = |row: Vec<u8>| row[4..].to_vec();
    vec![
        payload(encode(b"!", &Meta { queued: 3, weight: 1 << 20, ..Meta::default() })),
        payload(encode(b"m", &record)),
        payload(encode(b"v", &line)),
        payload(encode(b"s", &vec![slot.clone()])),
        payload(encode(b"i", &ClientTokenRow::Queued { at: slot.at })),
        payload(encode(b"i", &ClientTokenRow::Done(outcome(FinalState::Delivered((&receipt).into()))))),
        payload(encode(b"i", &ClientTokenRow::Done(died.clone()))),
        payload(encode(b"t", &token)),
        payload(encode(b"g", &Participant { token: [1; 16], used: Timestamp(1) })),
        payload(encode(b"x", &Dead { record, attempts: slot.attempts, died: Timestamp(1) })),
        payload(encode(b"o", &vec![([1u8; 16], [2u8; 16])])),
        pack_of(3),
        Vec::new(),
        payload(encode(b"i", &ClientTokenRow::Settled(died, origin))),
    ]
}

/// The rows that stores of formats 3 and 4 have, and the one that format 5 added. If a sum here changes, a relay cannot read
/// the rows of older stores: the head of `rows` says which changes are possible.
#[test]
fn rows_are_encoded_as_in_the_oldest_format() {
    let sums: Vec<_> = payloads().iter().map(|payload| (payload.len(), crc32fast::hash(payload))).collect();
    let expected = [
        (19, 0xcd2a_90d2),
        (169, 0x6769_ec27),
        (168, 0xc2ed_a41c),
        (55, 0x772e_d9ee),
        (3, 0xa36b_ba47),
        (56, 0x38bb_4f08),
        (74, 0x0352_787f),
        (105, 0x1c31_9152),
        (17, 0xf052_591c),
        (199, 0x437d_4245),
        (33, 0x2ee9_c278),
        (246, 0x1a42_ad27),
        (0, 0),
        (96, 0xbc39_311d),
    ];
    assert_eq!(sums, expected);
}

/// Bytes with a valid checksum decode to a row that is equal after it is written again, or to none, without a panic.
fn decodes_to_itself<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Result<(), TestCaseError> {
    let key = b"fuzz";
    let Some(row) = decode::<T>(key, &with_sum(key, payload)) else { return Ok(()) };
    let written = encode(key, &row);
    let again = decode::<T>(key, &written).map(|row| encode(key, &row));
    prop_assert_eq!(again, Some(written), "{}", std::any::type_name::<T>());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    #[test]
    fn damaged_row_decodes_to_none_or_to_itself(which in any::<usize>(), spoils in prop::collection::vec(spoil(), 0..5)) {
        let payloads = payloads();
        let whole = &payloads[which % payloads.len()];
        let bytes = spoilt(whole.clone(), &spoils);
        decodes_to_itself::<Meta>(&bytes)?;
        decodes_to_itself::<Record>(&bytes)?;
        decodes_to_itself::<Conversation>(&bytes)?;
        decodes_to_itself::<Vec<QueuedRef>>(&bytes)?;
        decodes_to_itself::<ClientTokenRow>(&bytes)?;
        decodes_to_itself::<Token>(&bytes)?;
        decodes_to_itself::<Participant>(&bytes)?;
        decodes_to_itself::<Dead>(&bytes)?;
        decodes_to_itself::<Vec<(Hash, Hash)>>(&bytes)?;
        decodes_to_itself::<Secret>(&bytes)?;
        // A sum that was made for other bytes, or for another key, does not hold.
        let mut row = with_sum(b"k", whole);
        prop_assert!(decode::<u8>(b"K", &row).is_none());
        row.splice(4.., bytes.iter().copied());
        prop_assert!(bytes == *whole || decode::<Secret>(b"k", &row).is_none());
        // As a pack: no more records than its bits, each the one of its own place.
        prop_assert!(pack::count(&bytes) <= pack::RECORDS_MAX);
        for nth in 0..4 {
            let record = pack::decode(RecordPos { pack: 3, nth }, &bytes);
            prop_assert!(record.is_none_or(|record| record.sequence == 100 + u64::from(nth)));
        }
    }
}

#[test]
fn row_under_another_key_fails_its_checksum() {
    let (here, there) = (Key::new(b'm').number(1), Key::new(b'm').number(2));
    assert_eq!(decode::<u8>(&there, &encode(&here, &7u8)), None);
    assert_eq!(decode::<u8>(&here, &encode(&here, &7u8)), Some(7));
    assert_eq!(decode::<u8>(&here, b"abc"), None);
    let pack = pack_of(2);
    assert!(pack::decode(RecordPos { pack: 3, nth: 1 }, &pack).is_some());
    assert!(pack::decode(RecordPos { pack: 4, nth: 1 }, &pack).is_none());
    assert!(pack::decode(RecordPos { pack: 3, nth: 0 }, &pack[pack.len() / 2..]).is_none());
}

#[test]
fn every_record_of_a_pack_has_a_bit() {
    assert_eq!((pack::all(0), pack::all(1), pack::all(64)), (0, 1, u64::MAX));
    let bits = (0..64).map(|nth| RecordPos { pack: 1, nth }.bit()).fold(0, |all, bit| all | bit);
    assert_eq!(bits, pack::all(pack::RECORDS_MAX));
}

#[test]
fn longest_row_of_every_kind_stays_short() {
    let record = Record {
        sequence: u64::MAX,
        label: "k".repeat(256),
        client_token: "😀".repeat(500),
        trace_id: Some("t".repeat(32)),
        accepted: Timestamp(u64::MAX),
        lifetime_ms: u64::MAX,
        deadline: Timestamp(u64::MAX),
        caller: u64::MAX,
        kind: Kind::Event { content_type: "😀".repeat(100), content: true },
        inline: Secret::new(vec![u8::MAX; INLINE_MAX + SEAL]),
        ..Record::default()
    };
    assert!(in_pack(RecordPos { pack: u64::MAX, nth: 63 }, &record).len() <= ROW_MAX);
    let attempts = Attempts {
        count: u32::MAX,
        strikes: u8::MAX,
        failures: Failures::default().and(Timestamp(u64::MAX), true),
        unknown: true,
        sent_with: Some([9; 16]),
    };
    let key = Key::new(b'x').number(u64::MAX);
    assert!(encode(&key, &Dead { record, attempts: attempts.clone(), died: Timestamp(u64::MAX) }).len() <= ROW_MAX);
    let slot = QueuedRef {
        sequence: u64::MAX,
        accepted: Timestamp(u64::MAX),
        at: RecordPos { pack: u64::MAX, nth: 63 },
        entry: [9; 16],
        attempts,
    };
    let line = Conversation {
        first: vec![slot; crate::queue::rows::REFS_MAX],
        hold: Some(Hold {
            token: [1; 16],
            until: Timestamp(0),
            error: ErrorRow::from(&ServiceError {
                status: 403,
                code: "c".repeat(500).into(),
                text: "x".repeat(5000).into(),
                request_id: Some("r".repeat(500).into()),
            }),
        }),
        ..Conversation::default()
    };
    assert!(encode(&key, &line).len() <= ROW_MAX);
    let error = ErrorRow::from(&ServiceError {
        status: 403,
        code: "c".repeat(500).into(),
        text: "x".repeat(5000).into(),
        request_id: Some("r".repeat(500).into()),
    });
    let fate = FinalState::Dead { reason: u8::MAX, maybe_delivered: true, token: [1; 16], error };
    let last = Timestamp(u64::MAX);
    let outcome = Outcome { sequence: u64::MAX, contents: [1; 16], accepted: last, attempts: u32::MAX, at: last, fate };
    let names = Secret::new(vec![0; 256 + 1 + 4 * 500 + SEAL]);
    let origin = Origin { caller: u64::MAX, row: u64::MAX, nth: u8::MAX, names };
    assert!(encode(&key, &ClientTokenRow::Settled(outcome, origin)).len() <= ROW_MAX);
    assert!(encode(&key, &Secret::new(vec![0; PIECE + SEAL])).len() <= ROW_MAX);
}

#[test]
fn keys_are_in_the_order_of_their_bytes() {
    let keys = [&b""[..], b"a", b"a\0", b"a\0\0", b"a\0\x01", b"a\x01", b"ab", b"b", b"\xff"];
    for (nth, bytes) in keys.iter().enumerate() {
        for (other, others) in keys.iter().enumerate() {
            assert_eq!(Key::of(bytes).cmp(&Key::of(others)), nth.cmp(&other), "{bytes:?} {others:?}");
        }
    }
    assert_eq!(Key::of(b"a").unwrap().end(), Key::of(b"b"));
    assert_eq!(Key::of(b"a\xff\xff").unwrap().end(), Key::of(b"b"));
    assert_eq!(Key::of(b"\xff").unwrap().end(), None);
    assert_eq!(Key::of(&[7; 100]), None, "longer than any row's");
    // Such a row can be set aside under another letter.
    assert_eq!(Key::new(b'k').with(&Key::new(b'i').hash(&[1; 16]).hash(&[2; 16])).len(), 34);
}
