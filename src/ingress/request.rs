//! The contents of a request's headers. Pure: every part is a function of header values.
//!
//! | header | twice | malformed |
//! | --- | --- | --- |
//! | `X-Amz-Bearer`, `Relay-Conversation`, `Relay-Replaces-Token`, `Relay-Lifetime` | 400 | 400 |
//! | `Prefer` (RFC 7240) | all of them count, of equal preferences the first | that preference is ignored |
//! | `traceparent` (W3C) | ignored | ignored |
//!
//! The headers of an AWS SDK's signature and time stamp are ignored.

use std::time::Duration;

use hyper::header::{GetAll, HeaderMap, HeaderName, HeaderValue};

use super::error_reply::{ErrorReply, Subject};
use crate::message::{self, Caller, ConnectionToken, ConversationKey, Invalid, LIFETIME_MAX};
use crate::queue::Asker;

pub(super) const BEARER: HeaderName = HeaderName::from_static("x-amz-bearer");
const CONVERSATION: HeaderName = HeaderName::from_static("relay-conversation");
const REPLACES: HeaderName = HeaderName::from_static("relay-replaces-token");
const LIFETIME: HeaderName = HeaderName::from_static("relay-lifetime");
const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The conversation of a request.
pub(super) struct Identity {
    pub(super) token: ConnectionToken,
    pub(super) conversation: Option<ConversationKey>,
}

impl Identity {
    pub(super) fn of(headers: &HeaderMap) -> Result<Identity, ErrorReply> {
        let Some(bearer) = single(headers, &BEARER, "X-Amz-Bearer")? else {
            return Err(ErrorReply::invalid("ConnectionToken is missing, it travels in X-Amz-Bearer"));
        };
        let token = ConnectionToken::parse(bearer.as_bytes())?;
        let conversation = single(headers, &CONVERSATION, "Relay-Conversation")?
            .map(|key| ConversationKey::parse(key.as_bytes()))
            .transpose()?;
        Ok(Identity { token, conversation })
    }

    pub(super) fn asker(self, caller: Caller) -> Asker {
        Asker { token: self.token, conversation: self.conversation, caller }
    }
}

/// The names of a request's message that are in its headers.
pub(super) fn subject(headers: &HeaderMap) -> Subject {
    let conversation = Identity::of(headers).ok().map(|of| message::label(of.conversation.as_ref(), &of.token));
    Subject { conversation, client_token: None }
}

/// The token that this request's token renews.
pub(super) fn replaces(headers: &HeaderMap) -> Result<Option<ConnectionToken>, ErrorReply> {
    single(headers, &REPLACES, "Relay-Replaces-Token")?
        .map(|token| ConnectionToken::parse(token.as_bytes()))
        .transpose()
        .map_err(|Invalid(what)| ErrorReply::invalid(format_args!("Relay-Replaces-Token: {what}")))
}

/// The longest time that the message may wait.
pub(super) fn lifetime(headers: &HeaderMap) -> Result<Option<Duration>, ErrorReply> {
    let Some(value) = single(headers, &LIFETIME, "Relay-Lifetime")? else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let is_whole = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(seconds) if is_whole => Ok(Some(lifetime_of(seconds, "Relay-Lifetime")?)),
        // Also too many digits. A value that is no number is not repeated: it may be a token, in the wrong header.
        _ => Err(ErrorReply::invalid(format_args!(
            "Relay-Lifetime is {}, a whole number of seconds from 1 to {} is needed",
            text.parse::<f64>().ok().filter(|_| text.len() <= 40).map_or("not a number", |_| text),
            LIFETIME_MAX.as_secs()
        ))),
    }
}

/// Seconds as a lifetime.
pub(super) fn lifetime_of(seconds: u64, name: &str) -> Result<Duration, Invalid> {
    if !(1..=LIFETIME_MAX.as_secs()).contains(&seconds) {
        return Err(Invalid(format!("{name} is {seconds} seconds, 1 to {} are allowed", LIFETIME_MAX.as_secs())));
    }
    Ok(Duration::from_secs(seconds))
}

/// The trace id of a `traceparent` that is well-formed.
pub(super) fn trace_id(headers: &HeaderMap) -> Option<Box<str>> {
    let mut values = headers.get_all(TRACEPARENT).into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => trace_id_of(value.to_str().ok()?).map(Into::into),
        _ => None,
    }
}

/// `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`; a later version may have more after a dash.
fn trace_id_of(text: &str) -> Option<&str> {
    let is_hex = |part: &&str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_set = |part: &&str| part.bytes().any(|byte| byte != b'0');
    let mut parts = text.splitn(5, '-');
    let mut part = |length| parts.next().filter(|part| part.len() == length).filter(is_hex);
    let version = part(2).filter(|version| *version != "ff")?;
    let trace_id = part(32).filter(is_set)?;
    part(16).filter(is_set)?;
    part(2)?;
    (version != "00" || parts.next().is_none()).then_some(trace_id)
}

/// The preferences of `Prefer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preference {
    /// True to answer as soon as the message is on disk.
    pub(super) respond_async: bool,
    /// Seconds to wait for the outcome.
    pub(super) wait: Option<u64>,
}

/// The wait for an outcome, and the `Preference-Applied` of its reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) span: Duration,
    pub(super) applied: Option<String>,
    /// True if the caller did not ask for it.
    pub(super) implied: bool,
    /// True if the caller asked for a longer one.
    pub(super) cut: bool,
}

impl Wait {
    /// The text for a caller that asked for a longer wait, if it ended without an outcome.
    pub(super) fn note(&self) -> Option<String> {
        let most = humantime::format_duration(self.span);
        self.cut.then(|| format!("connect-relay: the wait was cut to {most}, the most that ingress.wait_max allows"))
    }
}

impl Preference {
    pub(super) fn of(headers: &HeaderMap) -> Preference {
        let mut preference = Preference::default();
        let mut wait_seen = false;
        for value in headers.get_all(PREFER) {
            for (name, argument) in list(value.as_bytes()) {
                if name.eq_ignore_ascii_case(b"respond-async") {
                    preference.respond_async = true;
                } else if name.eq_ignore_ascii_case(b"wait") && !wait_seen {
                    wait_seen = true;
                    preference.wait = seconds(argument);
                }
            }
        }
        preference
    }

    /// An asynchronous reply with a wait (`respond-async, wait=5`) waits too, and is 202 if no outcome comes: as every
    /// reply here.
    pub(super) fn wait(self, implied: Duration, most: Duration) -> Wait {
        let cut = self.wait.is_some_and(|seconds| Duration::from_secs(seconds) > most);
        let (span, applied) = match self {
            Preference { wait: Some(seconds), respond_async } => {
                let span = Duration::from_secs(seconds).min(most);
                let also = if respond_async { "respond-async, " } else { "" };
                (span, Some(format!("{also}wait={}", span.as_secs())))
            }
            Preference { respond_async: true, .. } => (Duration::ZERO, Some("respond-async".into())),
            _ => (implied, None),
        };
        Wait { span, implied: applied.is_none(), applied, cut }
    }
}

/// The names and values of a list of preferences; without parameters and quotes.
fn list(mut rest: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let mut escaped = false;
        let end = rest.iter().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' => return !quoted,
                _ => {}
            }
            false
        });
        let (item, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after.get(1..).unwrap_or_default();
        // A `;` in quotes cuts only values that have no meaning here.
        let preference = item.split(|byte| *byte == b';').next().unwrap_or_default();
        let (name, argument) = match preference.iter().position(|byte| *byte == b'=') {
            Some(at) => (&preference[..at], &preference[at + 1..]),
            None => (preference, &b""[..]),
        };
        let argument = argument.trim_ascii();
        let unquoted = argument.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\""));
        Some((name.trim_ascii(), unquoted.unwrap_or(argument)))
    })
}

fn seconds(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).map(|seconds| seconds.unwrap_or(u64::MAX))
}

/// The value of a header that may come once.
pub(super) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    shown: &str,
) -> Result<Option<&'a HeaderValue>, ErrorReply> {
    let values: GetAll<'a, HeaderValue> = headers.get_all(name);
    let mut values = values.into_iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ErrorReply::invalid(format_args!("{shown} comes more than once")));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn preferences_are_read_as_rfc_7240_has_them() {
        for (values, respond_async, wait) in [
            (&[][..], false, None),
            (&["respond-async"], true, None),
            (&["Respond-Async, WAIT = 10"], true, Some(10)),
            (&["return=minimal", "wait=\"7\"; x=y"], false, Some(7)),
            (&["wait=5", "wait=9"], false, Some(5)),
            (&["foo=\"a, wait=1 \\\" \", wait=2"], false, Some(2)),
            (&["wait"], false, None),
            (&["wait=", "wait=3"], false, None),
            (&["wait=-1"], false, None),
            (&["wait=1.5"], false, None),
            (&["wait=99999999999999999999999"], false, Some(u64::MAX)),
            (&[",, ,wait=0,"], false, Some(0)),
            (&["respond-async;wait=4"], true, None),
        ] {
            let pairs: Vec<_> = values.iter().map(|value| ("prefer", *value)).collect();
            assert_eq!(Preference::of(&headers(&pairs)), Preference { respond_async, wait }, "{values:?}");
        }
    }

    #[test]
    fn waits_are_limited_and_reported() {
        let (implied, most) = (Duration::from_secs(4), Duration::from_secs(50));
        let note = Some("connect-relay: the wait was cut to 50s, the most that ingress.wait_max allows");
        for (preference, span, applied, expected) in [
            (Preference::default(), 4, None, None),
            (Preference { respond_async: true, wait: None }, 0, Some("respond-async"), None),
            (Preference { respond_async: false, wait: Some(50) }, 50, Some("wait=50"), None),
            (Preference { respond_async: false, wait: Some(51) }, 50, Some("wait=50"), note),
            (Preference { respond_async: false, wait: Some(u64::MAX) }, 50, Some("wait=50"), note),
            (Preference { respond_async: false, wait: Some(0) }, 0, Some("wait=0"), None),
            (Preference { respond_async: true, wait: Some(5) }, 5, Some("respond-async, wait=5"), None),
        ] {
            let wait = preference.wait(implied, most);
            assert_eq!((wait.span.as_secs(), wait.applied.as_deref()), (span, applied));
            assert_eq!(wait.note().as_deref(), expected, "{preference:?}");
        }
    }

    #[test]
    fn lifetime_is_a_positive_whole_number_of_at_most_a_week() {
        let of = |value| lifetime(&headers(&[("relay-lifetime", value)])).map_err(|error| error.text);
        assert_eq!(of("1").unwrap(), Some(Duration::from_secs(1)));
        assert_eq!(of("604800").unwrap(), Some(LIFETIME_MAX));
        assert_eq!(lifetime(&HeaderMap::new()).unwrap(), None);
        for bad in ["0", "604801"] {
            let text = of(bad).unwrap_err();
            assert_eq!(text, format!("connect-relay: Relay-Lifetime is {bad} seconds, 1 to 604800 are allowed"));
        }
        for (bad, shown) in [
            ("-1", "-1"),
            ("+1", "+1"),
            ("1.5", "1.5"),
            ("1e3", "1e3"),
            ("99999999999999999999999", "99999999999999999999999"),
            (&"9".repeat(1000), "not a number"),
            ("", "not a number"),
            ("soon", "not a number"),
            ("1 2", "not a number"),
            ("0x10", "not a number"),
            ("١", "not a number"),
        ] {
            let text = of(bad).unwrap_err();
            let needed = "a whole number of seconds from 1 to 604800 is needed";
            assert_eq!(text, format!("connect-relay: Relay-Lifetime is {shown}, {needed}"));
        }
    }

    #[test]
    fn trace_id_is_taken_from_a_well_formed_traceparent_only() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (value, good) in [
            (format!("00-{trace}-b7ad6b7169203331-01"), true),
            (format!("01-{trace}-b7ad6b7169203331-01-more-of-it"), true),
            (format!("00-{trace}-b7ad6b7169203331-01-more"), false),
            (format!("ff-{trace}-b7ad6b7169203331-01"), false),
            (format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()), false),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
            (format!("00-{trace}-0000000000000000-01"), false),
            (format!("00-{trace}-b7ad6b7169203331"), false),
            (format!("00-{trace}x-b7ad6b7169203331-01"), false),
            (String::new(), false),
        ] {
            let found = trace_id(&headers(&[("traceparent", &value)]));
            assert_eq!(found.as_deref(), good.then_some(trace), "{value}");
        }
        let twice = format!("00-{trace}-b7ad6b7169203331-01");
        assert_eq!(trace_id(&headers(&[("traceparent", &twice), ("traceparent", &twice)])), None);
    }

    #[test]
    fn identity_needs_one_token_and_at_most_one_key() {
        let text = |pairs: &[(&'static str, &str)]| Identity::of(&headers(pairs)).err().unwrap().text;
        assert!(Identity::of(&headers(&[("x-amz-bearer", "t\u{e9}"), ("relay-conversation", "C/bot")])).is_ok());
        assert_eq!(text(&[]), "connect-relay: ConnectionToken is missing, it travels in X-Amz-Bearer");
        assert_eq!(text(&[("x-amz-bearer", "")]), "connect-relay: ConnectionToken has 0 bytes, 1 to 1000 are allowed");
        assert_eq!(
            text(&[("x-amz-bearer", "a"), ("x-amz-bearer", "a")]),
            "connect-relay: X-Amz-Bearer comes more than once"
        );
        assert!(
            text(&[("x-amz-bearer", "a"), ("relay-conversation", "a b")])
                .contains("Relay-Conversation contains a space")
        );
        assert!(!text(&[("x-amz-bearer", "se cret")]).contains("cret"));
        let error = replaces(&headers(&[("relay-replaces-token", "se cret")])).unwrap_err();
        assert_eq!(
            error.text,
            "connect-relay: Relay-Replaces-Token: ConnectionToken contains a space or a control character"
        );
    }
}
