//! Secret values, sealed before they reach the disk.
//!
//! With a key file, AES-256-GCM under its first key; the other keys only open the values that they sealed when they
//! were first. Each value is bound to the store and to a *place*, a key, so that no copy of it opens elsewhere. Without
//! a key file the bytes are stored as they are.
//!
//! ```text
//! 0, bytes                                          stored as they are
//! 1, key id (4), nonce (12), ciphertext, tag (16)   sealed; the nonce is random
//! ```
//!
//! The store's own key, which the module above hashes with, is sealed in the format stamp: without the key file no one
//! can test guesses against a hash, and a start with the wrong key file is refused.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::key::Key;

const PLAIN: u8 = 0;
const SEALED: u8 = 1;
const ID_LEN: usize = 4;

/// A key of the key file.
#[derive(Clone)]
pub struct SealingKey {
    /// Distinguishes the key from others, without revealing it.
    id: [u8; ID_LEN],
    key: LessSafeKey,
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

impl PartialEq for SealingKey {
    fn eq(&self, other: &SealingKey) -> bool {
        self.id == other.id
    }
}

impl SealingKey {
    /// Reads a key file: 32 bytes in base64 a line, the first one seals; empty lines and `#` lines are skipped.
    ///
    /// # Errors
    /// Names the line, never its content.
    pub fn parse_file(text: &str) -> Result<Vec<SealingKey>, String> {
        let lines = (1..).zip(text.lines().map(str::trim));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(|(number, line)| {
            let bytes = Zeroizing::new(BASE64_STANDARD.decode(line).unwrap_or_default());
            SealingKey::new(&bytes).ok_or_else(|| format!("line {number} is not 32 bytes in base64"))
        });
        let keys: Vec<SealingKey> = keys.collect::<Result<_, _>>()?;
        if keys.is_empty() { Err("holds no key".into()) } else { Ok(keys) }
    }

    fn new(bytes: &[u8]) -> Option<SealingKey> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?);
        let sign = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), b"connect-relay key id");
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&sign.as_ref()[..ID_LEN]);
        Some(SealingKey { id, key })
    }
}

/// A value as it is stored: sealed if there is a key. Its memory is wiped, and `Debug` does not show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Serialises the bytes as one run; the derived code would write each byte as a number.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Secret(bytes.to_vec()))
    }
}

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
    /// A value as it is stored.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(bytes)
    }

    /// The bytes as they are stored.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The bytes that a sealed value has besides the value.
const SEALED_BYTES: usize = 1 + ID_LEN + NONCE_LEN + MAX_TAG_LEN;

/// Seals and opens the values of one store.
#[derive(Clone, Debug)]
pub struct Sealer {
    keys: Vec<SealingKey>,
    store: u32,
}

impl Sealer {
    /// A sealer for the store with this nonce; without keys it seals nothing.
    pub fn new(keys: Vec<SealingKey>, store: u32) -> Sealer {
        Sealer { keys, store }
    }

    /// Seals a value for a place.
    pub fn seal(&self, place: &Key, plain: &[u8]) -> Secret {
        let mut bytes = Vec::with_capacity(SEALED_BYTES + plain.len());
        self.seal_into(place, plain, &mut bytes);
        Secret::new(bytes)
    }

    /// Seals a value for a place, and appends it to `bytes`.
    pub fn seal_into(&self, place: &Key, plain: &[u8], bytes: &mut Vec<u8>) {
        let Some(SealingKey { id, key }) = self.keys.first() else {
            bytes.push(PLAIN);
            bytes.extend_from_slice(plain);
            return;
        };
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).expect("the system gives random bytes");
        bytes.push(SEALED);
        bytes.extend_from_slice(id);
        bytes.extend_from_slice(&nonce);
        let from = bytes.len();
        bytes.extend_from_slice(plain);
        let tag = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), self.aad(place), &mut bytes[from..])
            .expect("a row is shorter than the cipher's limit");
        bytes.extend_from_slice(tag.as_ref());
    }

    /// Opens a value. `None` if it was sealed for another place, or by a key that is not known.
    pub fn open(&self, place: &Key, sealed: &Secret) -> Option<Zeroizing<Vec<u8>>> {
        match sealed.bytes().split_first()? {
            (&PLAIN, bytes) => Some(Zeroizing::new(bytes.to_vec())),
            (&SEALED, rest) => {
                let (id, rest) = rest.split_at_checked(ID_LEN)?;
                let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
                let SealingKey { key, .. } = self.keys.iter().find(|key| key.id == id)?;
                let mut bytes = Zeroizing::new(rest.to_vec());
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let length = key.open_in_place(nonce, self.aad(place), &mut bytes).ok()?.len();
                bytes.truncate(length);
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Returns true if the first key has sealed it.
    pub fn is_newest(&self, sealed: &Secret) -> bool {
        match (sealed.bytes().split_first(), self.keys.first()) {
            (Some((&SEALED, rest)), Some(first)) => rest.starts_with(&first.id),
            (Some((&PLAIN, _)), None) => true,
            _ => false,
        }
    }

    /// The bytes that a value is bound to: the first byte of the place, the store's nonce, the rest of the place.
    fn aad(&self, place: &Key) -> Aad<Vec<u8>> {
        let (prefix, rest) = place.split_at(1);
        Aad::from([prefix, &self.store.to_be_bytes(), rest].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(text: &str) -> Vec<SealingKey> {
        SealingKey::parse_file(text).unwrap()
    }

    fn line(byte: u8) -> String {
        BASE64_STANDARD.encode([byte; 32])
    }

    fn place(prefix: u8, number: u64) -> Key {
        Key::new(prefix).number(number)
    }

    #[test]
    fn value_is_bound_to_its_key_and_the_store_number_after_the_prefix() {
        let sealer = Sealer::new(keys(&line(1)), 7);
        assert_eq!(sealer.aad(&place(b'm', 42)).as_ref(), b"m\0\0\0\x07\0\0\0\0\0\0\0\x2a");
        assert_eq!(sealer.aad(&Key::new(b's')).as_ref(), b"s\0\0\0\x07");
    }

    proptest! {
        #[test]
        fn sealed_value_opens_in_its_own_place_only(
            plain in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<usize>(),
            bit in 0u8..8,
        ) {
            let sealer = Sealer::new(keys(&line(1)), 7);
            let sealed = sealer.seal(&place(b'm', 42), &plain);
            prop_assert_eq!(&**sealer.open(&place(b'm', 42), &sealed).unwrap(), &plain[..]);
            prop_assert!(sealer.open(&place(b'm', 43), &sealed).is_none());
            prop_assert!(sealer.open(&place(b'p', 42), &sealed).is_none());
            prop_assert!(Sealer::new(keys(&line(1)), 8).open(&place(b'm', 42), &sealed).is_none());
            prop_assert!(Sealer::new(keys(&line(2)), 7).open(&place(b'm', 42), &sealed).is_none());
            prop_assert!(Sealer::new(Vec::new(), 7).open(&place(b'm', 42), &sealed).is_none());
            let mut bytes = sealed.bytes().to_vec();
            let at = 1 + at % (bytes.len() - 1);
            bytes[at] ^= 1 << bit;
            prop_assert!(sealer.open(&place(b'm', 42), &Secret::new(bytes)).is_none());
        }
    }

    #[test]
    fn first_key_seals_and_all_open() {
        let old = Sealer::new(keys(&line(1)), 7);
        let new = Sealer::new(keys(&format!("# rotated\n{}\n\n{}\n", line(2), line(1))), 7);
        let sealed = old.seal(&Key::new(b's'), b"x");
        assert_eq!(&**new.open(&Key::new(b's'), &sealed).unwrap(), b"x");
        assert!(old.is_newest(&sealed) && !new.is_newest(&sealed));
        assert!(old.open(&Key::new(b's'), &new.seal(&Key::new(b's'), b"x")).is_none());
    }

    #[test]
    fn without_a_key_nothing_is_sealed_and_everything_opens() {
        let sealer = Sealer::new(Vec::new(), 7);
        let stored = sealer.seal(&place(b'm', 1), b"x");
        assert!(sealer.is_newest(&stored));
        assert_eq!(&**Sealer::new(keys(&line(1)), 7).open(&place(b'm', 1), &stored).unwrap(), b"x");
    }

    #[test]
    fn key_file_is_refused_by_line_and_never_shown() {
        let fault = |text: &str| SealingKey::parse_file(text).unwrap_err();
        assert_eq!(fault("# none\n\n"), "holds no key");
        assert_eq!(fault(&format!("{}\nc2hvcnQ=\n", line(1))), "line 2 is not 32 bytes in base64");
        assert_eq!(fault("not base64 !"), "line 1 is not 32 bytes in base64");
        assert_eq!(format!("{:?}", keys(&line(1))), "[SealingKey(…)]");
    }
}
