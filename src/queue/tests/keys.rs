//! The bytes of keys and keyed hashes on disk. A store that an earlier build wrote has these bytes, so no expected value
//! here may change without a new format.

use super::codec::{At, Hash, Hasher, Key};
use super::*;
use crate::turns::Kind;

const NUMBER: u64 = 0x0102_0304_0506_0708;
const N: &[u8] = b"\x01\x02\x03\x04\x05\x06\x07\x08";
const TIME: Timestamp = Timestamp(0x1112_1314_1516_1718);
const INSTANT: &[u8] = b"\x11\x12\x13\x14\x15\x16\x17\x18";
const CONVERSATION: Hash = [0xc1; 16];
const ENTRY: Hash = [0xe1; 16];

#[test]
fn the_key_of_each_table_has_its_bytes() {
    let (c, e) = (&CONVERSATION[..], &ENTRY[..]);
    let keys: &[(Key, &[&[u8]])] = &[
        (Key::new(b'!'), &[b"!"]),
        (Key::new(b'c'), &[b"c"]),
        (At { pack: NUMBER, nth: 3 }.key(), &[b"m", N]),
        (packs::gone_key(NUMBER), &[b"l", N]),
        (contents::piece_key(NUMBER, 0x2122), &[b"p", N, b"\x21\x22"]),
        (line::line_key(&CONVERSATION), &[b"v", c]),
        (line::chunks_of(&CONVERSATION).number(NUMBER), &[b"s", c, N]),
        (lookup::entry_key(&CONVERSATION, &ENTRY), &[b"i", c, e]),
        (line::turn_key(Kind::Fresh, NUMBER, &CONVERSATION), &[b"r", N, c]),
        (line::turn_key(Kind::Late, NUMBER, &CONVERSATION), &[b"q", N, c]),
        (Key::new(b'd').time(TIME).hash(&CONVERSATION), &[b"d", INSTANT, c]),
        (Key::new(b'e').time(TIME).number(NUMBER), &[b"e", INSTANT, N]),
        (accept::token_key(&ENTRY), &[b"t", e]),
        (Key::new(b'g').hash(&ENTRY), &[b"g", e]),
        (Key::new(b'h'), &[b"h"]),
        (Key::new(b'u').number(NUMBER), &[b"u", N]),
        (accept::dead_key(NUMBER), &[b"x", N]),
        (Key::new(b'o').time(TIME).number(NUMBER), &[b"o", INSTANT, N]),
        (Key::new(b'y').time(TIME).number(NUMBER), &[b"y", INSTANT, N]),
        (Key::new(b'z').time(TIME).number(NUMBER), &[b"z", INSTANT, N]),
        (Key::new(b'k').with(&accept::dead_key(NUMBER)), &[b"kx", N]),
    ];
    for (key, bytes) in keys {
        assert_eq!(**key, bytes.concat()[..]);
    }
}

#[test]
fn the_keyed_hash_of_each_domain_has_its_bytes() {
    let hasher = Hasher::new(&[7; 32]);
    let uid = 7_u64.to_be_bytes();
    let hashes = [
        (hasher.token(&token("token")), "5297dfbad37aabbed3c9ec19f5e1cc57"),
        (hasher.hash(b'g', &[b"token"]), "7bef8b979685606c57c459b24e84d546"),
        (hasher.entry(&CONVERSATION, "A"), "553f5975d7a7e58ce9dce12f2ee99545"),
        (hasher.hash(b'k', &[&uid, b"key"]), "f83001d11bbc3dcb8d66597793ab3c74"),
        (hasher.hash(b'P', &[&CONVERSATION]), "b1b6b10d45c9c5e1deb1163833f4f191"),
        (hasher.hash(b'T', &[&CONVERSATION]), "fe04c0f43db4ee630eb224bc551f15c5"),
        (hasher.hash(b'D', &[b"https://x"]), "3928946dffaec6218bce62e0b4aede1a"),
        (hasher.contents(&Body::Disconnect), "b1f53555f554a4fcb208127039d783fd"),
    ];
    for (hash, hex) in hashes {
        assert_eq!(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), hex);
    }
}
