//! The requests of bots for a chat, and their limits.
//!
//! A [`Submission`] is one act of a chat participant: a message, an event (a read or delivered receipt) or a
//! disconnect. All three wait in the same queue, because a last message must arrive before the disconnect that follows
//! it.
//!
//! [`ConnectionToken`] and [`Content`] are secrets. They have no `Display` or `Serialize`, their `Debug` shows nothing,
//! and they are wiped when dropped. Only the methods named `expose` return their contents. Log lines name a
//! conversation by its [`label`] instead.
//!
//! Lengths count Unicode scalar values, as the service does. The limits are settings, because AWS's own texts disagree
//! about them; a limit of 0 leaves the check to Connect.

use std::fmt;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use crate::metrics::label_values;

/// The longest ClientToken that the service accepts, in characters.
pub const CLIENT_TOKEN_CHARS_MAX: usize = 500;
/// The longest ConnectionToken that the service accepts, in bytes.
pub const CONNECTION_TOKEN_BYTES_MAX: usize = 1000;
/// The longest conversation key, in characters.
pub const CONVERSATION_KEY_CHARS_MAX: usize = 256;
/// The longest lifetime a message may ask for.
pub const LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// One act of a participant, as the bot submitted it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The act.
    pub body: Body,
    /// The idempotency token, from the bot or generated; it never changes.
    pub client_token: ClientToken,
    /// The participant's credential.
    pub connection_token: ConnectionToken,
    /// The ordering key, if the bot names one.
    pub conversation: Option<ConversationKey>,
    /// The token that `connection_token` renews, if the bot declares it.
    pub replaces: Option<ConnectionToken>,
    /// The longest time in the queue, if the bot sets it.
    pub lifetime: Option<Duration>,
    /// The caller that submitted it.
    pub caller: Caller,
    /// The trace id of a `traceparent` header.
    pub trace_id: Option<Box<str>>,
}

/// The act of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// SendMessage.
    Message {
        /// The type of the message.
        content_type: ContentType,
        /// The contents of the message.
        content: Content,
    },
    /// SendEvent: a receipt (typing is never queued).
    Event {
        /// The type of the event, as received.
        content_type: Box<str>,
        /// The contents of the event, if any.
        content: Option<Content>,
    },
    /// DisconnectParticipant.
    Disconnect,
}

impl Body {
    /// The ContentType member on the wire; `None` for a disconnect.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        match self {
            Body::Message { content_type, .. } => Some(content_type.as_str()),
            Body::Event { content_type, .. } => Some(content_type),
            Body::Disconnect => None,
        }
    }

    /// The Content member on the wire.
    #[must_use]
    pub fn content(&self) -> Option<&Content> {
        match self {
            Body::Message { content, .. } => Some(content),
            Body::Event { content, .. } => content.as_ref(),
            Body::Disconnect => None,
        }
    }
}

/// The caller that submitted a message. A conversation key belongs to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A process with this user id, on the Unix socket.
    Uid(u32),
    /// Any process on the loopback TCP port: TCP has no peer credentials, so all of them are one caller.
    Tcp,
}

label_values! {
    /// The types of message that the service accepts, with their names on the wire.
    pub enum ContentType {
        /// Plain text.
        Plain = "text/plain",
        /// Markdown.
        Markdown = "text/markdown",
        /// JSON.
        Json = "application/json",
        /// The answer to an interactive message.
        Interactive = "application/vnd.amazonaws.connect.message.interactive.response",
    }
}

impl ContentType {
    /// Returns the type with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<ContentType> {
        ContentType::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// The last part of the limit's key under `ingress.content_chars_max`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            ContentType::Plain => "plain",
            ContentType::Markdown => "markdown",
            ContentType::Json => "json",
            ContentType::Interactive => "interactive",
        }
    }
}

/// The limits of a message's Content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// UTF-8 bytes, for every type.
    pub content_bytes: usize,
    /// Characters by type, in the order of [`ContentType::ALL`]; 0 leaves the check to Connect.
    pub content_chars: [usize; 4],
}

#[cfg(test)]
impl Default for Limits {
    fn default() -> Limits {
        Limits { content_bytes: 16384, content_chars: [1024, 1024, 12000, 12288] }
    }
}

/// The reason why a member was refused: names the member, the value, the limit and, if it is a setting, its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Checks that a text has no four characters U+0000 in a row. After a crash the reader of the journal looks for the records
/// behind a damaged one by their heads, which have four zero bytes in a row: a text must not contain the bytes of a head.
pub fn check_zeros(name: &str, text: &str) -> Result<(), Invalid> {
    if text.contains("\0\0\0\0") {
        return Err(Invalid(format!("{name} has four characters U+0000 in a row, which are not allowed")));
    }
    Ok(())
}

impl Limits {
    /// Checks and wraps a message's contents.
    ///
    /// # Errors
    /// If the contents are empty, longer than a limit, or have four characters U+0000 in a row.
    pub fn content(&self, content_type: ContentType, text: String) -> Result<Content, Invalid> {
        let content = Content::new(text);
        let text = content.expose();
        if text.is_empty() {
            return Err(Invalid("Content is empty, at least 1 character is needed".into()));
        }
        let (chars, most) = (text.chars().count(), self.content_chars[content_type as usize]);
        if most > 0 && chars > most {
            return Err(Invalid(format!(
                "Content has {chars} characters, {} allows at most {most} (ingress.content_chars_max.{})",
                content_type.as_str(),
                content_type.key(),
            )));
        }
        self.check_bytes(text)?;
        Ok(content)
    }

    /// Checks and wraps an event's contents. The service limits them to 16,384 characters.
    ///
    /// # Errors
    /// If the contents have more bytes than the limit, or four characters U+0000 in a row.
    pub fn event_content(&self, text: String) -> Result<Content, Invalid> {
        self.check_bytes(&text)?;
        Ok(Content::new(text))
    }

    fn check_bytes(&self, content: &str) -> Result<(), Invalid> {
        let (bytes, most) = (content.len(), self.content_bytes);
        if bytes > most {
            return Err(Invalid(format!(
                "Content has {bytes} bytes of UTF-8, at most {most} are allowed (ingress.content_bytes_max)"
            )));
        }
        check_zeros("Content", content)
    }
}

/// A message's contents: never shown, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Zeroizing<String>);

impl Content {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: String) -> Content {
        Content(Zeroizing::new(text))
    }

    /// The text itself, for the wire and the disk.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A participant's credential: never shown, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionToken(Zeroizing<Vec<u8>>);

impl ConnectionToken {
    /// Checks and wraps a header's value.
    ///
    /// # Errors
    /// If the value is not 1 to 1000 bytes of 0x21–0x7E and 0x80–0xFF.
    pub fn parse(bytes: &[u8]) -> Result<ConnectionToken, Invalid> {
        if bytes.is_empty() || bytes.len() > CONNECTION_TOKEN_BYTES_MAX {
            return Err(Invalid(format!(
                "ConnectionToken has {} bytes, 1 to {CONNECTION_TOKEN_BYTES_MAX} are allowed",
                bytes.len()
            )));
        }
        if bytes.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
            return Err(Invalid("ConnectionToken contains a space or a control character".into()));
        }
        Ok(ConnectionToken(Zeroizing::new(bytes.to_vec())))
    }

    /// The bytes themselves, for the wire and the disk.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content(…)")
    }
}

impl fmt::Debug for ConnectionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionToken(…)")
    }
}

/// The idempotency token of one submission.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientToken(Box<str>);

impl From<ClientToken> for String {
    fn from(token: ClientToken) -> String {
        token.0.into()
    }
}

impl ClientToken {
    /// Generates a token, for a bot that sent none.
    #[must_use]
    pub fn mint() -> ClientToken {
        ClientToken(uuid::Uuid::new_v4().to_string().into())
    }

    /// Checks and wraps a bot's token; an empty one counts as none.
    ///
    /// # Errors
    /// If the token is longer than the service accepts.
    pub fn parse(text: &str) -> Result<Option<ClientToken>, Invalid> {
        let chars = text.chars().count();
        if chars > CLIENT_TOKEN_CHARS_MAX {
            return Err(Invalid(format!(
                "ClientToken has {chars} characters, at most {CLIENT_TOKEN_CHARS_MAX} are allowed"
            )));
        }
        Ok((!text.is_empty()).then(|| ClientToken(text.into())))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A bot's own name for one participant of one chat.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConversationKey(Box<str>);

impl ConversationKey {
    /// Checks and wraps a key.
    ///
    /// # Errors
    /// If the key is not 1 to 256 characters U+0021 to U+007E.
    pub fn parse(bytes: &[u8]) -> Result<ConversationKey, Invalid> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        let Some(text) = text else {
            return Err(Invalid(
                "Relay-Conversation contains a space, a control character or one outside ASCII, U+0021 to U+007E are allowed"
                    .into(),
            ));
        };
        match text.len() {
            1..=CONVERSATION_KEY_CHARS_MAX => Ok(ConversationKey(text.into())),
            chars => Err(Invalid(format!(
                "Relay-Conversation has {chars} characters, 1 to {CONVERSATION_KEY_CHARS_MAX} are allowed"
            ))),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a conversation in logs and replies: its key, or a short hash of the token that a bot can log as well.
#[must_use]
pub fn label(key: Option<&ConversationKey>, token: &ConnectionToken) -> Box<str> {
    if let Some(key) = key {
        return key.as_str().into();
    }
    let digest = digest(&SHA256, token.expose());
    let mut first = [0; 8];
    first[2..].copy_from_slice(&digest.as_ref()[..6]);
    format!("t:{:012x}", u64::from_be_bytes(first)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails to compile if the type has one of the traits: then `named` is ambiguous.
    macro_rules! lacks {
        ($type:ty: $($trait:path),+) => {$({
            trait Named<Which> {
                fn named() {}
            }
            struct Has;
            impl<T: ?Sized> Named<()> for T {}
            impl<T: ?Sized + $trait> Named<Has> for T {}
            <$type as Named<_>>::named();
        })+};
    }

    #[test]
    fn secrets_show_nothing() {
        let token = ConnectionToken::parse(b"canary-token").unwrap();
        let content = Content::new("canary text".into());
        assert_eq!(format!("{token:?} {token:#?}"), "ConnectionToken(…) ConnectionToken(…)");
        assert_eq!(format!("{content:?} {content:#?}"), "Content(…) Content(…)");
        let submission = Submission {
            body: Body::Message { content_type: ContentType::Plain, content },
            client_token: ClientToken::mint(),
            connection_token: token.clone(),
            conversation: None,
            replaces: Some(token),
            lifetime: None,
            caller: Caller::Tcp,
            trace_id: None,
        };
        assert!(!format!("{submission:#?}").contains("canary"));
        lacks!(ConnectionToken: fmt::Display, serde::Serialize, AsRef<[u8]>, Into<Vec<u8>>);
        lacks!(Content: fmt::Display, serde::Serialize, AsRef<str>, Into<String>);
    }

    #[test]
    fn lengths_count_characters_and_then_bytes() {
        let limits = Limits::default();
        assert!(limits.content(ContentType::Plain, "é".repeat(1024)).is_ok());
        let error = limits.content(ContentType::Plain, "é".repeat(1025)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Content has 1025 characters, text/plain allows at most 1024 (ingress.content_chars_max.plain)"
        );
        let error = limits.content(ContentType::Json, "😀".repeat(4097)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Content has 16388 bytes of UTF-8, at most 16384 are allowed (ingress.content_bytes_max)"
        );
        assert!(limits.content(ContentType::Plain, String::new()).is_err());
        let unlimited = Limits { content_chars: [0; 4], ..limits };
        assert!(unlimited.content(ContentType::Plain, "x".repeat(16384)).is_ok());
    }

    #[test]
    fn every_content_type_is_found_by_its_name() {
        for (index, content_type) in ContentType::ALL.into_iter().enumerate() {
            assert_eq!(ContentType::parse(content_type.as_str()), Some(content_type));
            assert_eq!(content_type as usize, index);
        }
        assert_eq!(ContentType::parse("text/html"), None);
    }

    #[test]
    fn secrets_are_wiped_when_dropped() {
        use std::os::unix::fs::FileExt as _;
        // The memory of this process, as a core dump would show it, also where no reference points to it.
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let lies_there = |at: *const u8| {
            let mut bytes = [0; 1000];
            let mapped = memory.read_exact_at(&mut bytes, at as u64).is_ok();
            mapped && bytes.windows(12).any(|window| window == b"canarycanary")
        };
        let content = Content::new("canary".repeat(200));
        let token = ConnectionToken::parse("canary".repeat(160).as_bytes()).unwrap();
        let places = [content.expose().as_ptr(), token.expose()[..].as_ptr()];
        assert!(places.iter().all(|place| lies_there(*place)));
        drop((content, token));
        assert!(!places.iter().any(|place| lies_there(*place)));
    }

    #[test]
    fn contents_have_no_bytes_like_the_head_of_a_record() {
        let limits = Limits::default();
        for (text, is_allowed) in [("a\0\0\0b\0", true), ("a\0\0\0\0b", false)] {
            assert_eq!(limits.content(ContentType::Plain, text.into()).is_ok(), is_allowed);
            assert_eq!(limits.event_content(text.into()).is_ok(), is_allowed);
            assert_eq!(check_zeros("ClientToken", text).is_ok(), is_allowed);
        }
        let Err(Invalid(why)) = limits.event_content("\0".repeat(9)) else { panic!("it is allowed") };
        assert_eq!(why, "Content has four characters U+0000 in a row, which are not allowed");
    }

    #[test]
    fn tokens_and_keys_keep_to_their_alphabets() {
        assert!(ConnectionToken::parse(&[0x80; 1000]).is_ok());
        for bad in [&b""[..], b"a b", b"a\x7f", b"a\tb", &[b'x'; 1001]] {
            assert!(ConnectionToken::parse(bad).is_err());
        }
        assert!(ConversationKey::parse(b"CONTACT/bot").is_ok());
        for bad in [&b""[..], b"a b", "é".as_bytes(), &[b'x'; 257]] {
            assert!(ConversationKey::parse(bad).is_err());
        }
        assert_eq!(ClientToken::parse("").unwrap(), None);
        assert!(ClientToken::parse(&"é".repeat(500)).unwrap().is_some());
        assert!(ClientToken::parse(&"é".repeat(501)).is_err());
    }

    #[test]
    fn label_is_the_key_or_a_hash_of_the_token() {
        let token = ConnectionToken::parse(b"abc").unwrap();
        assert_eq!(&*label(None, &token), "t:ba7816bf8f01");
        assert_eq!(&*label(Some(&ConversationKey::parse(b"C/bot").unwrap()), &token), "C/bot");
    }
}
