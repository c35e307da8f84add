//! The bytes of keys and keyed hashes on disk. A store that an earlier build wrote has these bytes, so no expected value
//! here may change without a new format.

use super::rows::{
    Hash, Hasher, Key, RecordPos, Table, USED_CONVERSATION, USED_PARTICIPANT, USED_TOKEN, WRITE_ONCE, keys,
};
use super::*;
use crate::fairness::Class;

const NUMBER: u64 = 0x0102_0304_0506_0708;
const N: &[u8] = b"\x01\x02\x03\x04\x05\x06\x07\x08";
const TIME: Timestamp = Timestamp(0x1112_1314_1516_1718);
const INSTANT: &[u8] = b"\x11\x12\x13\x14\x15\x16\x17\x18";
const CONVERSATION: Hash = [0xc1; 16];
const ENTRY: Hash = [0xe1; 16];

#[test]
fn the_key_of_each_table_has_its_bytes() {
    let (c, e) = (&CONVERSATION[..], &ENTRY[..]);
    let keys: &[(Table, Key, &[&[u8]])] = &[
        (Table::Meta, Table::Meta.key(), &[b"!"]),
        (Table::Anchor, Table::Anchor.key(), &[b"c"]),
        (Table::Pack, RecordPos { pack: NUMBER, nth: 3 }.key(), &[b"m", N]),
        (Table::Pack, keys::pack(NUMBER), &[b"m", N]),
        (Table::Gone, keys::gone(NUMBER), &[b"l", N]),
        (Table::Piece, keys::piece(NUMBER, 0x2122), &[b"p", N, b"\x21\x22"]),
        (Table::Conversation, keys::conversation(&CONVERSATION), &[b"v", c]),
        (Table::Chunk, keys::chunk(&CONVERSATION, NUMBER), &[b"s", c, N]),
        (Table::ClientToken, keys::entry(&CONVERSATION, &ENTRY), &[b"i", c, e]),
        (Table::FreshTurn, keys::turn(Class::Fresh, NUMBER, &CONVERSATION), &[b"r", N, c]),
        (Table::LateTurn, keys::turn(Class::Late, NUMBER, &CONVERSATION), &[b"q", N, c]),
        (Table::Due, keys::due(TIME, &CONVERSATION), &[b"d", INSTANT, c]),
        (Table::Expiry, keys::expiry(TIME, NUMBER), &[b"e", INSTANT, N]),
        (Table::Token, keys::token(&ENTRY), &[b"t", e]),
        (Table::Participant, keys::participant(&ENTRY), &[b"g", e]),
        (Table::PauseState, Table::PauseState.key(), &[b"h"]),
        (Table::Caller, keys::caller(NUMBER), &[b"u", N]),
        (Table::Dead, keys::dead(NUMBER), &[b"x", N]),
        (Table::PruneOutcomes, keys::prune_outcomes(TIME, NUMBER), &[b"o", INSTANT, N]),
        (Table::PruneUsed, keys::prune_used(TIME, NUMBER), &[b"y", INSTANT, N]),
        (Table::PruneDead, keys::prune_dead(TIME, NUMBER), &[b"z", INSTANT, N]),
        (Table::Quarantine, keys::quarantine(&keys::dead(NUMBER)), &[b"kx", N]),
    ];
    for (table, key, bytes) in keys {
        assert_eq!(**key, bytes.concat()[..], "{table:?}");
        assert_eq!(Table::of(key), Some(*table));
        assert!(key.starts_with(&table.key()));
    }
    for table in Table::ALL {
        assert!(keys.iter().any(|(listed, ..)| *listed == table), "{table:?} is not in the list");
    }
    assert_eq!(keys::inline_place(NUMBER)[..], *[b"m", N].concat());
    assert_eq!(WRITE_ONCE, b"mpqr");
    assert_eq!([USED_TOKEN, USED_PARTICIPANT, USED_CONVERSATION], *b"tgv");
}

#[test]
fn the_parts_of_a_key_are_read_where_they_are_written() {
    let entry = keys::entry(&CONVERSATION, &ENTRY);
    assert_eq!((keys::hash_in(&entry), keys::entry_in(&entry)), (CONVERSATION, ENTRY));
    let turn = keys::turn(Class::Late, NUMBER, &CONVERSATION);
    assert_eq!((keys::number_in(&turn), keys::conversation_in(&turn)), (NUMBER, CONVERSATION));
    let due = keys::due(TIME, &CONVERSATION);
    assert_eq!((keys::time_in(&due), keys::conversation_in(&due)), (TIME, CONVERSATION));
    assert_eq!(keys::first_in(&keys::chunk(&CONVERSATION, NUMBER)), NUMBER);
    assert_eq!(keys::row_in(&keys::prune_dead(TIME, NUMBER)), NUMBER);
}

#[test]
fn the_keyed_hash_of_each_domain_has_its_bytes() {
    let hasher = Hasher::new(&[7; 32]);
    let hashes = [
        (hasher.token(&token("token")), "5297dfbad37aabbed3c9ec19f5e1cc57"),
        (hasher.participant(&token("token")), "7bef8b979685606c57c459b24e84d546"),
        (hasher.entry(&CONVERSATION, "A"), "553f5975d7a7e58ce9dce12f2ee99545"),
        (hasher.keyed_conversation(Caller::Uid(7), "key"), "f83001d11bbc3dcb8d66597793ab3c74"),
        (hasher.conversation_of_participant(&CONVERSATION), "b1b6b10d45c9c5e1deb1163833f4f191"),
        (hasher.conversation_of_token(&CONVERSATION), "fe04c0f43db4ee630eb224bc551f15c5"),
        (hasher.destination("https://x"), "3928946dffaec6218bce62e0b4aede1a"),
        (hasher.contents(&Body::Disconnect), "b1f53555f554a4fcb208127039d783fd"),
    ];
    for (hash, hex) in hashes {
        assert_eq!(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), hex);
    }
}
