//! What goes in comes out, what was damaged does not, and nothing is too long for a row.

use proptest::prelude::*;

use super::*;
use crate::delivery::ServiceError;

/// What sealing adds.
const SEAL: usize = 33;

fn pack_of(count: u8) -> Vec<u8> {
    let record = |nth| Record { sequence: 100 + u64::from(nth), ..Record::default() };
    (0..count).flat_map(|nth| pack::encode(At { pack: 3, nth }, &record(nth))).collect()
}

proptest! {
    #[test]
    fn flipped_bit_fails_the_sum(at in any::<usize>(), bit in 0u8..8) {
        let key = Key::new(b'p').number(1).0;
        let mut value = encode(&key, &Secret::new(vec![7; 60]));
        let at = at % value.len();
        value[at] ^= 1 << bit;
        prop_assert!(decode::<Secret>(&key, &value).is_none());
    }

    #[test]
    fn flipped_bit_takes_one_record_or_those_behind_it(at in 0usize..10_000, bit in 0u8..8) {
        let whole = pack_of(8);
        let mut damaged = whole.clone();
        let at = at % damaged.len();
        damaged[at] ^= 1 << bit;
        let hit = at / (whole.len() / 8);
        for nth in 0..8u8 {
            let record = pack::decode(At { pack: 3, nth }, &damaged);
            prop_assert!(record.as_ref().is_none_or(|record| record.sequence == 100 + u64::from(nth)));
            match usize::from(nth).cmp(&hit) {
                std::cmp::Ordering::Less => prop_assert!(record.is_some()),
                std::cmp::Ordering::Equal => prop_assert!(record.is_none()),
                std::cmp::Ordering::Greater => {}
            }
        }
    }

    #[test]
    fn garbage_is_no_row(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // Even where the sum holds: decoding must not panic.
        let key = Key::new(b'm').0;
        let row = with_sum(&key, [&[0; 4], &bytes[..]].concat());
        let _ = decode::<Record>(&key, &row);
        let _ = decode::<Line>(&key, &row);
        let _ = decode::<Entry>(&key, &row);
        let _ = pack::decode(At::default(), &bytes);
        prop_assert!(pack::count(&bytes) <= pack::RECORDS_MAX);
    }
}

#[test]
fn row_cannot_pass_for_anothers() {
    let (here, there) = (Key::new(b'm').number(1).0, Key::new(b'm').number(2).0);
    assert_eq!(decode::<u8>(&there, &encode(&here, &7u8)), None);
    assert_eq!(decode::<u8>(&here, &encode(&here, &7u8)), Some(7));
    assert_eq!(decode::<u8>(&here, b"abc"), None);
    let pack = pack_of(2);
    assert!(pack::decode(At { pack: 3, nth: 1 }, &pack).is_some());
    assert!(pack::decode(At { pack: 4, nth: 1 }, &pack).is_none());
    assert!(pack::decode(At { pack: 3, nth: 0 }, &pack[pack.len() / 2..]).is_none());
}

#[test]
fn every_record_of_a_pack_has_a_bit() {
    assert_eq!((pack::all(0), pack::all(1), pack::all(64)), (0, 1, u64::MAX));
    let bits = (0..64).map(|nth| At { pack: 1, nth }.bit()).fold(0, |all, bit| all | bit);
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
    assert!(pack::encode(At { pack: u64::MAX, nth: 63 }, &record).len() <= ROW_MAX);
    let trial = Trial {
        attempts: u32::MAX,
        strikes: u8::MAX,
        failed_at: Some(Timestamp(u64::MAX)),
        unknown: true,
        sent_with: Some([9; 16]),
    };
    let key = Key::new(b'x').number(u64::MAX).0;
    assert!(encode(&key, &Dead { record, trial: trial.clone(), died: Timestamp(u64::MAX) }).len() <= ROW_MAX);
    let slot = Slot {
        sequence: u64::MAX,
        accepted: Timestamp(u64::MAX),
        at: At { pack: u64::MAX, nth: 63 },
        entry: [9; 16],
        trial,
    };
    let line = Line {
        first: vec![slot; crate::queue::line::SLOTS_MAX],
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
        ..Line::default()
    };
    assert!(encode(&key, &line).len() <= ROW_MAX);
    assert!(encode(&key, &Secret::new(vec![0; PIECE + SEAL])).len() <= ROW_MAX);
}
