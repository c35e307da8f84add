//! JSON bodies, parsed once: borrowed if nothing is escaped, and checked member by member.
//!
//! An error names its member and the kind of its value, never the value itself. Unknown members are ignored, as by AWS;
//! a known one may be there once. `null` counts as absent. A string with half of a surrogate pair (a bot cut an emoji
//! in two) is refused, because UTF-8 cannot represent it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error_reply::Subject;
use super::request::lifetime_of;
use crate::message::{
    self, Body, Caller, ClientToken, ConnectionToken, Content, ContentType, ConversationKey, Invalid, LIFETIME_MAX,
    Limits, Submission, check_zeros,
};

/// The ContentType of a typing event.
pub(super) const TYPING: &str = "application/vnd.amazonaws.connect.event.typing";

/// The longest ContentType that the service accepts, in characters.
const CONTENT_TYPE_CHARS_MAX: usize = 100;

/// The first whole number that does not fit into 64 bits.
const TWO_TO_THE_64: f64 = 18_446_744_073_709_551_616.0;

/// The members of a body that the relay knows.
#[derive(Default)]
pub(super) struct Members<'a> {
    content_type: Member<'a>,
    content: Member<'a>,
    client_token: Member<'a>,
    connection_token: Member<'a>,
    conversation: Member<'a>,
    lifetime: Member<'a>,
}

/// The value of a member.
#[derive(Default)]
enum Member<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Count(u64),
    Other(&'static str),
}

impl<'a> Members<'a> {
    /// Parses an object; an empty input counts as an empty object.
    pub(super) fn parse(json: &'a [u8]) -> Result<Members<'a>, Invalid> {
        match json.trim_ascii_start().first() {
            None => Ok(Members::default()),
            Some(b'{') => serde_json::from_slice(json).map_err(|error| match error.classify() {
                // Errors created below: the only other kind of them is a body that is no object.
                serde_json::error::Category::Data => Invalid(error.to_string()),
                _ => Invalid(format!("bad JSON: {error}")),
            }),
            Some(_) => Err(Invalid("bad JSON: the body is not an object".into())),
        }
    }

    /// SendMessage.
    pub(super) fn message(&mut self, limits: &Limits) -> Result<Body, Invalid> {
        let content_type = self.required_content_type()?;
        let Some(content_type) = ContentType::parse(&content_type) else {
            let known = ContentType::ALL.map(ContentType::as_str).join(", ");
            return Err(Invalid(format!("ContentType is {content_type:?}, one of {known} is allowed")));
        };
        let Some(content) = self.content.text("Content")? else {
            return Err(Invalid("Content is missing".into()));
        };
        Ok(Body::Message { content_type, content: limits.content(content_type, content.into_owned())? })
    }

    /// SendEvent.
    pub(super) fn event(&mut self, limits: &Limits) -> Result<Body, Invalid> {
        let content_type: Box<str> = self.required_content_type()?.into();
        check_zeros("ContentType", &content_type)?;
        let content: Option<Content> =
            self.content.text("Content")?.map(|text| limits.event_content(text.into_owned())).transpose()?;
        Ok(Body::Event { content_type, content })
    }

    /// The bot's own idempotency token, or a minted one.
    pub(super) fn client_token(&mut self) -> Result<ClientToken, Invalid> {
        let given = self.client_token.text("ClientToken")?;
        if let Some(text) = &given {
            check_zeros("ClientToken", text)?;
        }
        let given = given.map(|text| ClientToken::parse(&text)).transpose()?.flatten();
        Ok(given.unwrap_or_else(ClientToken::mint))
    }

    /// A line of a batch, whose members include the values that are headers elsewhere.
    pub(super) fn line(
        &mut self,
        limits: &Limits,
        caller: Caller,
        trace_id: Option<Box<str>>,
    ) -> Result<Submission, Invalid> {
        let Some(token) = self.connection_token.text("ConnectionToken")? else {
            return Err(Invalid("ConnectionToken is missing".into()));
        };
        let key = self.conversation.text("Conversation")?;
        let key = key.map(|key| ConversationKey::parse(key.as_bytes())).transpose();
        Ok(Submission {
            connection_token: ConnectionToken::parse(token.as_bytes())?,
            // In a batch it is a member, not the header.
            conversation: key
                .map_err(|Invalid(what)| Invalid(what.replacen("Relay-Conversation", "Conversation", 1)))?,
            lifetime: self.lifetime()?,
            client_token: self.client_token()?,
            body: self.message(limits)?,
            replaces: None,
            caller,
            trace_id,
        })
    }

    /// Takes the names of a message out, as far as they are valid.
    pub(super) fn subject(&mut self) -> Subject {
        let text = |name: &str, member: &mut Member<'a>| member.text(name).ok().flatten();
        let token = text("ConnectionToken", &mut self.connection_token);
        let token = token.and_then(|token| ConnectionToken::parse(token.as_bytes()).ok());
        let key = text("Conversation", &mut self.conversation).map(|key| ConversationKey::parse(key.as_bytes()));
        let conversation = match (token, key.transpose()) {
            (Some(token), Ok(key)) => Some(message::label(key.as_ref(), &token)),
            _ => None,
        };
        let client_token = text("ClientToken", &mut self.client_token);
        let client_token = client_token.and_then(|token| ClientToken::parse(&token).ok().flatten());
        Subject { conversation, client_token: client_token.map(|token| token.as_str().into()) }
    }

    fn lifetime(&self) -> Result<Option<std::time::Duration>, Invalid> {
        let what = match self.lifetime {
            Member::Absent => return Ok(None),
            Member::Count(seconds) => return lifetime_of(seconds, "Lifetime").map(Some),
            Member::Text(_) => "a string",
            Member::Other(what) => what,
        };
        let most = LIFETIME_MAX.as_secs();
        Err(Invalid(format!("Lifetime is {what}, a whole number of seconds from 1 to {most} is needed")))
    }

    fn required_content_type(&mut self) -> Result<Cow<'a, str>, Invalid> {
        let Some(text) = self.content_type.text("ContentType")? else {
            return Err(Invalid("ContentType is missing".into()));
        };
        match text.chars().count() {
            1..=CONTENT_TYPE_CHARS_MAX => Ok(text),
            chars => {
                Err(Invalid(format!("ContentType has {chars} characters, 1 to {CONTENT_TYPE_CHARS_MAX} are allowed")))
            }
        }
    }
}

impl<'a> Member<'a> {
    /// Takes the text out.
    fn text(&mut self, name: &str) -> Result<Option<Cow<'a, str>>, Invalid> {
        match std::mem::take(self) {
            Member::Absent => Ok(None),
            Member::Text(text) => Ok(Some(text)),
            Member::Count(_) => Err(Invalid(format!("{name} is a number, a string is needed"))),
            Member::Other(what) => Err(Invalid(format!("{name} is {what}, a string is needed"))),
        }
    }
}

/// The names of members.
#[derive(Clone, Copy, serde::Deserialize)]
#[serde(field_identifier)]
enum Name {
    ContentType,
    Content,
    ClientToken,
    ConnectionToken,
    Conversation,
    Lifetime,
    #[serde(other)]
    Unknown,
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'a>, D::Error> {
        struct Object<'a>(std::marker::PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Object<'a> {
            type Value = Members<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'a>, A::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key()? {
                    let (member, name) = match name {
                        Name::ContentType => (&mut members.content_type, "ContentType"),
                        Name::Content => (&mut members.content, "Content"),
                        Name::ClientToken => (&mut members.client_token, "ClientToken"),
                        Name::ConnectionToken => (&mut members.connection_token, "ConnectionToken"),
                        Name::Conversation => (&mut members.conversation, "Conversation"),
                        Name::Lifetime => (&mut members.lifetime, "Lifetime"),
                        Name::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if !matches!(member, Member::Absent) {
                        return Err(A::Error::custom(format_args!("{name} comes more than once")));
                    }
                    *member = map.next_value().map_err(|error| named(name, &error))?;
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Object(std::marker::PhantomData))
    }
}

/// Names the member of an error. serde_json's texts about syntax never quote the input.
fn named<E: serde::de::Error>(name: &str, error: &E) -> E {
    let text = error.to_string();
    if text.contains("surrogate") || text.contains("end of hex escape") {
        let place = text.find(" at line ").map_or("", |at| &text[at..]);
        return E::custom(format_args!("{name} holds a lone surrogate, half of a \\u pair{place}"));
    }
    E::custom(format_args!("bad JSON: {name}: {text}"))
}

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Member<'a>, D::Error> {
        struct Value<'a>(std::marker::PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Value<'a> {
            type Value = Member<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Member<'a>, E> {
                Ok(Member::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Member<'a>, E> {
                Ok(Member::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Member<'a>, E> {
                Ok(Member::Absent)
            }

            fn visit_u64<E>(self, count: u64) -> Result<Member<'a>, E> {
                Ok(Member::Count(count))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Member<'a>, E> {
                Ok(Member::Other("a negative number"))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Member<'a>, E> {
                // A whole number comes as a float if it does not fit into 64 bits, or is written as `5.0` or `5e0`.
                Ok(Member::Other(if number.fract() != 0.0 {
                    "a number that is not whole"
                } else if number.abs() >= TWO_TO_THE_64 {
                    "a number of more than 64 bits"
                } else {
                    "a number with a decimal point or an exponent"
                }))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Member<'a>, E> {
                Ok(Member::Other("a boolean"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Member<'a>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Member::Other("an array"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'a>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Member::Other("an object"))
            }
        }

        deserializer.deserialize_any(Value(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str) -> Result<(String, String), String> {
        let body = Members::parse(json.as_bytes()).and_then(|mut members| members.message(&Limits::default()));
        match body.map_err(|invalid| invalid.0)? {
            Body::Message { content_type, content } => Ok((content_type.as_str().into(), content.expose().into())),
            _ => panic!("not a message"),
        }
    }

    #[test]
    fn message_is_read_however_it_is_escaped() {
        let plain = |text: &str| Ok(("text/plain".to_owned(), text.to_owned()));
        for (json, content) in [
            (r#"{"ContentType": "text/plain", "Content": "hello"}"#, "hello"),
            (r#" {"Content":"a\"b\\\u00e9\ud83d\ude00","ContentType":"text\/plain"} "#, "a\"b\\é😀"),
            (r#"{"Unknown":{"a":[1,{"b":null}]},"Content":"é😀","ContentType":"text/plain"}"#, "é😀"),
            ("{\"\\u0043ontent\":\"x\\u0000\",\"ContentType\":\"text/plain\",\"Lifetime\":-1}", "x\0"),
            (r#"{"ContentType":"text/plain","Content":"x","ClientToken":null}"#, "x"),
        ] {
            assert_eq!(message(json), plain(content), "{json}");
        }
    }

    #[test]
    fn fault_names_the_member_and_what_came() {
        for (json, text) in [
            ("", "ContentType is missing"),
            ("{}", "ContentType is missing"),
            (r#"{"ContentType":"text/plain"}"#, "Content is missing"),
            (r#"{"ContentType":"text/plain","Content":null}"#, "Content is missing"),
            (r#"{"ContentType":"text/plain","Content":5}"#, "Content is a number, a string is needed"),
            (r#"{"ContentType":["canary"],"Content":"x"}"#, "ContentType is an array, a string is needed"),
            (r#"{"ContentType":"text/plain","Content":{"canary":1}}"#, "Content is an object, a string is needed"),
            (r#"{"ContentType":"text/plain","Content":true}"#, "Content is a boolean, a string is needed"),
            (r#"{"ContentType":"text/plain","Content":""}"#, "Content is empty, at least 1 character is needed"),
            (
                r#"{"ContentType":"text/html","Content":"canary"}"#,
                "ContentType is \"text/html\", one of text/plain, text/markdown, application/json, \
                 application/vnd.amazonaws.connect.message.interactive.response is allowed",
            ),
            (r#"{"ContentType":"","Content":"x"}"#, "ContentType has 0 characters, 1 to 100 are allowed"),
            (r#"{"Content":"canary","Content":"x"}"#, "Content comes more than once at line 1 column 29"),
            (
                r#"{"ContentType":"text/plain","Content":"canary \uD800"}"#,
                "Content holds a lone surrogate, half of a \\u pair at line 1 column 53",
            ),
            (
                r#"{"Content":"\ud83dx","ContentType":"text/plain"}"#,
                "Content holds a lone surrogate, half of a \\u pair at line 1 column 19",
            ),
            (
                r#"{"Content":"\udc00","ContentType":"text/plain"}"#,
                "Content holds a lone surrogate, half of a \\u pair at line 1 column 18",
            ),
            ("[\"canary\"]", "bad JSON: the body is not an object"),
            ("\"canary\"", "bad JSON: the body is not an object"),
            ("{\"Content\":\"canary", "bad JSON: Content: EOF while parsing a string at line 1 column 18"),
            ("{\"Content\":\"x\"} canary", "bad JSON: trailing characters at line 1 column 17"),
            ("{canary", "bad JSON: key must be a string at line 1 column 2"),
        ] {
            let came = message(json).unwrap_err();
            assert_eq!(came, text, "{json}");
            assert!(!came.contains("canary"));
        }
        assert!(Members::parse(b"{\"Content\":\"\xff\"}").is_err());
    }

    #[test]
    fn client_token_is_the_bots_or_minted() {
        let token = |json: &str| Members::parse(json.as_bytes()).unwrap().client_token();
        assert_eq!(token(r#"{"ClientToken":"c-1"}"#).unwrap().as_str(), "c-1");
        for absent in ["{}", r#"{"ClientToken":""}"#, r#"{"ClientToken":null}"#, ""] {
            assert_eq!(token(absent).unwrap().as_str().len(), 36);
        }
        let long = format!(r#"{{"ClientToken":"{}"}}"#, "x".repeat(501));
        assert_eq!(token(&long).unwrap_err().0, "ClientToken has 501 characters, at most 500 are allowed");
    }

    #[test]
    fn event_may_be_without_contents() {
        let event = |json: &str| Members::parse(json.as_bytes()).unwrap().event(&Limits::default());
        let body = event(r#"{"ContentType":"application/vnd.amazonaws.connect.event.message.read"}"#).unwrap();
        assert!(matches!(body, Body::Event { content: None, .. }));
        assert!(event(r#"{"ContentType":"x","Content":"{}"}"#).unwrap().content().is_some());
        assert_eq!(event(r#"{"Content":"{}"}"#).unwrap_err().0, "ContentType is missing");
        let zeros = event("{\"ContentType\":\"a\\u0000\\u0000\\u0000\\u0000\"}").unwrap_err().0;
        assert_eq!(zeros, "ContentType has four characters U+0000 in a row, which are not allowed");
        let token = |json: &str| Members::parse(json.as_bytes()).unwrap().client_token().map_err(|invalid| invalid.0);
        let zeros = token("{\"ClientToken\":\"\\u0000\\u0000\\u0000\\u0000\"}").unwrap_err();
        assert_eq!(zeros, "ClientToken has four characters U+0000 in a row, which are not allowed");
    }

    #[test]
    fn line_of_a_batch_has_the_header_values_as_members() {
        let line = |rest: &str| {
            let json = format!(r#"{{"ContentType":"text/plain","Content":"x"{rest}}}"#);
            Members::parse(json.as_bytes())
                .unwrap()
                .line(&Limits::default(), Caller::Tcp, None)
                .map_err(|invalid| invalid.0)
        };
        let full = line(
            r#","ConnectionToken":"t","Conversation":"C/bot","Lifetime":60,"ClientToken":"c"}"#.trim_end_matches('}'),
        );
        let full = full.unwrap();
        assert_eq!(full.connection_token.expose(), b"t");
        assert_eq!(full.conversation.unwrap().as_str(), "C/bot");
        assert_eq!(full.lifetime.unwrap().as_secs(), 60);
        assert_eq!(full.client_token.as_str(), "c");
        for (rest, text) in [
            ("", "ConnectionToken is missing"),
            (r#","ConnectionToken":"a b""#, "ConnectionToken contains a space or a control character"),
            (
                r#","ConnectionToken":"t","Conversation":"a b""#,
                "Conversation contains a space, a control character or one outside ASCII, U+0021 to U+007E are allowed",
            ),
            (r#","ConnectionToken":"t","Lifetime":0"#, "Lifetime is 0 seconds, 1 to 604800 are allowed"),
            (
                r#","ConnectionToken":"t","Lifetime":-5"#,
                "Lifetime is a negative number, a whole number of seconds from 1 to 604800 is needed",
            ),
            (
                r#","ConnectionToken":"t","Lifetime":1.5"#,
                "Lifetime is a number that is not whole, a whole number of seconds from 1 to 604800 is needed",
            ),
            (
                r#","ConnectionToken":"t","Lifetime":5.0"#,
                "Lifetime is a number with a decimal point or an exponent, a whole number of seconds from 1 to 604800 is needed",
            ),
            (
                r#","ConnectionToken":"t","Lifetime":99999999999999999999"#,
                "Lifetime is a number of more than 64 bits, a whole number of seconds from 1 to 604800 is needed",
            ),
            (
                r#","ConnectionToken":"t","Lifetime":"5""#,
                "Lifetime is a string, a whole number of seconds from 1 to 604800 is needed",
            ),
        ] {
            assert_eq!(line(rest).err().as_deref(), Some(text), "{rest}");
        }
    }
}
