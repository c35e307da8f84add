//! The contents of messages: cut if they are long, sealed, and put together again.

use zeroize::Zeroizing;

use super::State;
use crate::message::{Body, Content, ContentType};
use crate::queue::api::Result;
use crate::queue::rows::{INLINE_MAX, Key, Kind, PIECE, Record, Secret, keys};
use crate::storage::Sealer;

impl State {
    /// Stores a body in its record, which has no pieces yet, or in pieces beside it if it is long.
    pub fn put_body(&mut self, record: &mut Record, body: &Body) {
        record.kind = Kind::of(body);
        let content = body.content().map_or("", Content::expose).as_bytes();
        if content.len() <= INLINE_MAX {
            record.inline = self.sealer.seal(&keys::inline_place(record.sequence), content);
            return;
        }
        for (number, piece) in (record.piece_numbers().start..).zip(content.chunks(PIECE)) {
            let sealed = self.sealer.seal(&keys::piece(record.sequence, number), piece);
            self.store.put(keys::piece(record.sequence, number), &sealed);
            record.pieces += 1;
        }
    }

    /// Reads the body of a record. `None` if a part is missing or damaged, or sealed by a key that is not known.
    pub fn body(&mut self, record: &Record) -> Result<Option<Body>> {
        body(record, &self.sealer, |key| self.store.get(&key))
    }

    /// Removes the pieces of a record's contents.
    pub fn remove_pieces(&mut self, record: &Record) {
        record.piece_numbers().for_each(|number| self.store.remove(keys::piece(record.sequence, number)));
    }
}

/// The body of a record, with its pieces from `read`. `None` if a part is missing or cannot be opened.
pub fn body<E>(
    record: &Record,
    sealer: &Sealer,
    mut read: impl FnMut(Key) -> Result<Option<Secret>, E>,
) -> Result<Option<Body>, E> {
    let mut content = Zeroizing::new(Vec::new());
    if record.piece_numbers().is_empty() {
        let Some(bytes) = sealer.open(&keys::inline_place(record.sequence), &record.inline) else { return Ok(None) };
        content = bytes;
    }
    for number in record.piece_numbers() {
        let sealed = read(keys::piece(record.sequence, number))?;
        let piece = sealed.and_then(|sealed| sealer.open(&keys::piece(record.sequence, number), &sealed));
        let Some(piece) = piece else { return Ok(None) };
        content.extend_from_slice(&piece);
    }
    let Ok(content) = String::from_utf8(std::mem::take(&mut *content)) else { return Ok(None) };
    Ok(record.kind.body(Content::new(content)))
}

/// Returns true if all pieces of a record's contents exist.
pub fn has_all_pieces<E>(record: &Record, mut read: impl FnMut(Key) -> Result<Option<Secret>, E>) -> Result<bool, E> {
    for number in record.piece_numbers() {
        if read(keys::piece(record.sequence, number))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Kind {
    fn of(body: &Body) -> Kind {
        match body {
            Body::Message { content_type, .. } => Kind::Message(*content_type as u8),
            Body::Event { content_type, content } => {
                Kind::Event { content_type: content_type.to_string(), content: content.is_some() }
            }
            Body::Disconnect => Kind::Disconnect,
        }
    }

    /// The ContentType on the wire; `None` for a disconnect, or if the index is unknown (damage).
    pub fn content_type(&self) -> Option<&str> {
        match self {
            Kind::Message(index) => ContentType::ALL.get(usize::from(*index)).map(|known| known.as_str()),
            Kind::Event { content_type, .. } => Some(content_type),
            Kind::Disconnect => None,
        }
    }

    /// The body with these contents; `None` if the index of its type is unknown (damage).
    fn body(&self, content: Content) -> Option<Body> {
        Some(match self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_restored_from_their_kind_and_contents() {
        let content = || Content::new("ä".into());
        let bodies = [
            Body::Event { content_type: "e".into(), content: Some(content()) },
            Body::Event { content_type: "e".into(), content: None },
            Body::Disconnect,
        ];
        let messages = ContentType::ALL.map(|content_type| Body::Message { content_type, content: content() });
        for body in bodies.into_iter().chain(messages) {
            assert_eq!(Kind::of(&body).body(content()), Some(body));
        }
        assert_eq!(Kind::Message(u8::MAX).body(content()), None);
    }
}
