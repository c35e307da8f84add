//! What goes in comes out, what was damaged does not, and nothing is too long for a row.

use proptest::prelude::*;

use super::*;
use crate::delivery::ServiceError;
use crate::message::ContentType;

fn body(content_type: ContentType, text: &str) -> Body {
    Body::Message { content_type, content: Content::new(text.into()) }
}

fn round_trip(body: &Body) -> Option<Body> {
    let mut record = Record::default();
    let pieces: Vec<Vec<u8>> = record.set_body(body).map(<[u8]>::to_vec).collect();
    assert!(pieces.iter().all(|piece| piece.len() <= PIECE));
    let at = At { pack: 7, nth: 0 };
    let record = pack::open(at, &pack::seal(at, &record))?;
    assert_eq!(usize::from(record.pieces), pieces.len());
    record.body(|number| pieces.get(usize::from(number)).cloned())
}

fn pack_of(count: u8) -> Vec<u8> {
    let record = |nth| Record { sequence: 100 + u64::from(nth), ..Record::default() };
    (0..count).flat_map(|nth| pack::seal(At { pack: 3, nth }, &record(nth))).collect()
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
    fn flipped_bit_takes_one_record_or_those_behind_it(at in 0usize..10_000, bit in 0u8..8) {
        let whole = pack_of(8);
        let mut damaged = whole.clone();
        let at = at % damaged.len();
        damaged[at] ^= 1 << bit;
        let hit = at / (whole.len() / 8);
        for nth in 0..8u8 {
            let record = pack::open(At { pack: 3, nth }, &damaged);
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
        let _ = open::<Record>(&key, &seal_bytes(&key, &bytes));
        let _ = open::<Line>(&key, &seal_bytes(&key, &bytes));
        let _ = open::<Entry>(&key, &seal_bytes(&key, &bytes));
        let _ = pack::open(At::default(), &bytes);
        prop_assert!(pack::count(&bytes) <= pack::RECORDS_MAX);
    }
}

#[test]
fn row_cannot_pass_for_anothers() {
    let (here, there) = (Key::new(b'm').number(1).0, Key::new(b'm').number(2).0);
    assert!(open_bytes(&there, &seal_bytes(&here, b"x")).is_none());
    assert_eq!(open_bytes(&here, &seal_bytes(&here, b"x")), Some(&b"x"[..]));
    assert!(open_bytes(&here, b"abc").is_none());
    let pack = pack_of(2);
    assert!(pack::open(At { pack: 3, nth: 1 }, &pack).is_some());
    assert!(pack::open(At { pack: 4, nth: 1 }, &pack).is_none());
    assert!(pack::open(At { pack: 3, nth: 0 }, &pack[pack.len() / 2..]).is_none());
}

#[test]
fn every_record_of_a_pack_has_a_bit() {
    assert_eq!((pack::all(0), pack::all(1), pack::all(64)), (0, 1, u64::MAX));
    let bits = (0..64).map(|nth| At { pack: 1, nth }.bit()).fold(0, |all, bit| all | bit);
    assert_eq!(bits, pack::all(pack::RECORDS_MAX));
}

#[test]
fn longest_row_of_every_kind_stays_short() {
    let mut record = Record {
        sequence: u64::MAX,
        label: "k".repeat(256),
        client_token: "😀".repeat(500),
        trace_id: Some("t".repeat(32)),
        accepted: Timestamp(u64::MAX),
        lifetime_ms: u64::MAX,
        deadline: Timestamp(u64::MAX),
        caller: u64::MAX,
        ..Record::default()
    };
    let event =
        Body::Event { content_type: "😀".repeat(100).into(), content: Some(Content::new("x".repeat(INLINE_MAX))) };
    record.set_body(&event).count();
    assert!(pack::seal(At { pack: u64::MAX, nth: 63 }, &record).len() <= ROW_MAX);
    let trial = Trial {
        attempts: u32::MAX,
        strikes: u8::MAX,
        failed_at: Some(Timestamp(u64::MAX)),
        unknown: true,
        sent_with: Some([9; 16]),
    };
    let key = Key::new(b'x').number(u64::MAX).0;
    assert!(seal(&key, &Dead { record, trial: trial.clone(), died: Timestamp(u64::MAX) }).len() <= ROW_MAX);
    let slot = Slot { sequence: u64::MAX, at: At { pack: u64::MAX, nth: 63 }, entry: [9; 16], trial };
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
    assert!(seal(&key, &line).len() <= ROW_MAX);
    assert!(seal_bytes(&key, &[0; PIECE]).len() <= ROW_MAX);
}
