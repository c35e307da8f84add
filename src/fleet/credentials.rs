//! The credentials of a relay at the servers of its fleet: a JWT with the NKey that signs for it, or an NKey alone.
//!
//! A NATS credentials file has two blocks in the form of PEM, a JWT and a seed. A file with a seed alone is what `nk -gen
//! user` writes. A seed is base32 without padding: two bytes with the prefixes of "seed" and "user", the 32 bytes of an
//! Ed25519 seed, and a CRC-16 (XMODEM) of both, low byte first. The server sends a nonce, and the relay signs it.

use std::fmt;

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use zeroize::Zeroizing;

/// The five bits of each letter.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// The prefix "S" of a seed: the upper five bits of its first byte.
const PREFIX_SEED: u8 = 18 << 3;
/// The prefix "U" of a user.
const PREFIX_USER: u8 = 20 << 3;
/// The bytes of a decoded seed: two prefixes, the seed, a checksum.
const SEED_BYTES: usize = 2 + 32 + 2;

/// The credentials of a user.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    jwt: Option<Zeroizing<String>>,
    seed: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(not shown)")
    }
}

impl Credentials {
    /// Reads a credentials file.
    ///
    /// # Errors
    /// With the missing or wrong part, without its text.
    pub fn parse(text: &str) -> Result<Credentials, String> {
        let jwt = block(text, "NATS USER JWT").map(|jwt| Zeroizing::new(jwt.to_owned()));
        let alone = || {
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.next().filter(|_| jwt.is_none() && lines.next().is_none())
        };
        let seed = block(text, "USER NKEY SEED").or_else(alone);
        let seed = seed.ok_or("must hold a block USER NKEY SEED, or an NKey seed alone")?;
        Ok(Credentials { seed: decode_seed(seed)?, jwt })
    }

    /// The JWT, if there is one.
    #[must_use]
    pub fn jwt(&self) -> Option<&str> {
        self.jwt.as_ref().map(|jwt| jwt.as_str())
    }

    /// The public NKey, as the server's configuration has it.
    ///
    /// # Errors
    /// If ring refuses the seed.
    pub fn public_key(&self) -> Result<String, String> {
        let mut bytes = vec![PREFIX_USER];
        bytes.extend_from_slice(self.pair()?.public_key().as_ref());
        bytes.extend_from_slice(&crc16(&bytes).to_le_bytes());
        Ok(encode_base32(&bytes))
    }

    /// The signature of a nonce.
    ///
    /// # Errors
    /// If ring refuses the seed.
    pub fn sign(&self, nonce: &[u8]) -> Result<Vec<u8>, String> {
        Ok(self.pair()?.sign(nonce).as_ref().to_vec())
    }

    fn pair(&self) -> Result<Ed25519KeyPair, String> {
        Ed25519KeyPair::from_seed_unchecked(&*self.seed).map_err(|error| format!("use the NKey seed: {error}"))
    }
}

/// The text of a block between lines of dashes: five or six, as NATS' tools write it.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("BEGIN {name}"))?;
    let (body, _) = rest.split_once(&format!("END {name}"))?;
    let body = body.trim_matches(|c: char| c == '-' || c.is_whitespace());
    (!body.is_empty() && !body.contains(char::is_whitespace)).then_some(body)
}

fn decode_seed(text: &str) -> Result<Zeroizing<[u8; 32]>, String> {
    let bytes = Zeroizing::new(decode_base32(text).ok_or("the NKey seed must be base32")?);
    if bytes.len() != SEED_BYTES {
        return Err(format!("the NKey seed must have {SEED_BYTES} bytes"));
    }
    let (body, checksum) = bytes.split_at(SEED_BYTES - 2);
    if crc16(body).to_le_bytes() != checksum {
        return Err("the NKey seed fails its checksum".into());
    }
    // The second prefix begins in the last three bits of the first byte.
    let kind = (body[0] & 7) << 5 | (body[1] & 0xf8) >> 3;
    if body[0] & 0xf8 != PREFIX_SEED || kind != PREFIX_USER {
        return Err("the NKey seed must be a user's: it begins with SU".into());
    }
    let mut seed = Zeroizing::new([0; 32]);
    seed.copy_from_slice(&body[2..]);
    Ok(seed)
}

fn decode_base32(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut buffer, mut bits) = (Vec::new(), 0u32, 0);
    for letter in text.bytes() {
        let value = BASE32.iter().position(|known| *known == letter)?;
        buffer = buffer << 5 | u32::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits & 0xff) as u8);
            buffer &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

fn encode_base32(bytes: &[u8]) -> String {
    let (mut text, mut buffer, mut bits) = (String::new(), 0u32, 0);
    for byte in bytes {
        buffer = buffer << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(BASE32[(buffer >> bits & 31) as usize]));
            buffer &= (1 << bits) - 1;
        }
    }
    if bits > 0 {
        text.push(char::from(BASE32[(buffer << (5 - bits) & 31) as usize]));
    }
    text
}

fn crc16(bytes: &[u8]) -> u16 {
    let step = |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
    bytes.iter().fold(0, |crc, byte| (0..8).fold(crc ^ u16::from(*byte) << 8, step))
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    // The pair of the documentation of nkeys.
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

    fn file(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn seed_alone_and_credentials_file_have_the_same_key() {
        let alone = Credentials::parse(&format!("# a user\n{SEED}\n")).unwrap();
        let whole = Credentials::parse(&file("eyJ0.eyJq.c2ln", SEED)).unwrap();
        assert_eq!((alone.jwt(), whole.jwt()), (None, Some("eyJ0.eyJq.c2ln")));
        let key = alone.public_key().unwrap();
        assert_eq!((&key[..1], key.len()), ("U", 56));
        assert_eq!(whole.public_key().unwrap(), key);
        let public = &decode_base32(&key).unwrap()[1..33];
        let signature = whole.sign(b"nonce").unwrap();
        UnparsedPublicKey::new(&ED25519, public).verify(b"nonce", &signature).unwrap();
        assert_eq!(format!("{whole:?}"), "Credentials(not shown)");
    }

    #[test]
    fn what_is_no_seed_of_a_user_is_refused_without_its_text() {
        let mut flipped = SEED.to_owned();
        flipped.replace_range(10..11, "A");
        for (text, expected) in [
            (String::new(), "must hold a block USER NKEY SEED"),
            ("-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------".into(), "must hold a block"),
            ("hunter2".into(), "the NKey seed must be base32"),
            (SEED[..20].into(), "the NKey seed must have 36 bytes"),
            (flipped, "the NKey seed fails its checksum"),
            (account_seed(), "the NKey seed must be a user's"),
            (file("eyJ0", "hunter2"), "the NKey seed must be base32"),
        ] {
            let error = Credentials::parse(&text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    /// A well-formed seed of an account.
    fn account_seed() -> String {
        let mut bytes = vec![PREFIX_SEED, 0];
        bytes.extend_from_slice(&[7; 32]);
        bytes.extend_from_slice(&crc16(&bytes).to_le_bytes());
        encode_base32(&bytes)
    }

    #[test]
    fn base32_is_that_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "MY"), ("fo", "MZXQ"), ("foo", "MZXW6"), ("foobar", "MZXW6YTBOI")] {
            assert_eq!(encode_base32(bytes.as_bytes()), text);
            assert_eq!(decode_base32(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }
}
