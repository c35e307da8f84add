//! Keyed hashes, which replace names and contents in keys and rows.

use ring::hmac;

use super::record::{Hash, caller_number};
use crate::message::{Body, Caller, ConnectionToken, Content};

/// A maker of keyed hashes.
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

    /// The hash of the parts in a domain. The length of each part is hashed with it, so that no two lists of parts are
    /// the same bytes.
    fn hash(&self, domain: u8, parts: &[&[u8]]) -> Hash {
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

    pub fn participant(&self, participant: &ConnectionToken) -> Hash {
        self.hash(b'g', &[participant.expose()])
    }

    /// The contents that two submissions must share to be the same one.
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

    /// A caller's conversation with a key.
    pub fn keyed_conversation(&self, caller: Caller, key: &str) -> Hash {
        self.hash(b'k', &[&caller_number(caller).to_be_bytes(), key.as_bytes()])
    }

    /// The conversation of a participant, for a token without a key.
    pub fn conversation_of_participant(&self, participant: &Hash) -> Hash {
        self.hash(b'P', &[participant])
    }

    /// The conversation of a token without a key, if its participant is unknown.
    pub fn conversation_of_token(&self, token: &Hash) -> Hash {
        self.hash(b'T', &[token])
    }

    pub fn destination(&self, destination: &str) -> Hash {
        self.hash(b'D', &[destination.as_bytes()])
    }
}
