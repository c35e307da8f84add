//! The syntax of one value: a duration, a size, a mode or an address in the file and, as text, in the environment.
//!
//! Stricter than the `config` crate's own conversions, which accept `true` for 1, round 1.5 to 2 and read 5 as the
//! region "5": a value has to be of its kind.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ::config::ValueKind;
use bytesize::ByteSize;
use hyper::Uri;
use percent_encoding::percent_decode_str;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use tracing::Level;

use crate::ingress::ReplyMode;
use crate::queue::Damaged;

/// A kind of value.
pub trait ConfigValue: Sized {
    /// Completes "must be …".
    const ALLOWED: &'static str;
    /// Reads a value of the file, or a text of the environment.
    fn read(value: &ValueKind) -> Option<Self>;
    /// Writes it as TOML, which for these kinds is the same as JSON.
    fn write(&self) -> Value;
}

/// For `#[serde(with = "value")]`.
pub fn deserialize<'de, T: ConfigValue, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let value = ::config::Value::deserialize(deserializer)?;
    T::read(&value.kind).ok_or_else(|| D::Error::custom(format_args!("must be {}", T::ALLOWED)))
}

/// For `#[serde(with = "value")]`.
pub fn serialize<T: ConfigValue, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.write().serialize(serializer)
}

/// A value in the usual notation, without quotes.
pub fn plain_text(value: &impl ConfigValue) -> String {
    let written = value.write();
    written.as_str().map_or_else(|| written.to_string(), str::to_owned)
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// The size as a `usize`, at most the largest one of this machine.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (unit, name) in [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl ConfigValue for Size {
    const ALLOWED: &'static str = "a size, such as \"256KiB\" or a number of bytes";
    fn read(value: &ValueKind) -> Option<Size> {
        match value {
            ValueKind::String(text) => text.trim().parse::<ByteSize>().ok().map(|size| Size(size.as_u64())),
            number => u64::read(number).map(Size),
        }
    }
    fn write(&self) -> Value {
        if self.0 >= 1024 && self.0.is_multiple_of(1024) { json!(self.to_string()) } else { json!(self.0) }
    }
}

/// The permissions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl ConfigValue for Mode {
    const ALLOWED: &'static str = "octal permissions in quotes, such as \"0660\": rw at least for the owner, and nothing \
        for others that the group lacks (YAML turns 0660 without quotes into 432)";
    /// Never a number: TOML's 660 is not octal, and its 0o660 arrives as 432. A decimal number in a text nearly always
    /// lacks the owner's bits, or has an 8 or a 9.
    fn read(value: &ValueKind) -> Option<Mode> {
        let ValueKind::String(text) = value else { return None };
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(text, 8).ok()?;
        let (owner, group, others) = (mode >> 6, mode >> 3 & 7, mode & 7);
        (octal && mode <= 0o777 && owner & 6 == 6 && others & !group == 0).then_some(Mode(mode))
    }
    fn write(&self) -> Value {
        json!(format!("{:04o}", self.0))
    }
}

/// The nanoseconds of each unit.
const DURATION_UNITS: [(u128, &str); 7] = [
    (86_400_000_000_000, "d"),
    (3_600_000_000_000, "h"),
    (60_000_000_000, "m"),
    (1_000_000_000, "s"),
    (1_000_000, "ms"),
    (1_000, "us"),
    (1, "ns"),
];

impl ConfigValue for Duration {
    const ALLOWED: &'static str = "a duration with its unit, such as \"250ms\", \"4s\" or \"15m\"";
    fn read(value: &ValueKind) -> Option<Duration> {
        let ValueKind::String(text) = value else { return None };
        humantime::parse_duration(text.trim()).ok()
    }
    /// In one unit, the largest that is exact: 75s, not 1m 15s.
    fn write(&self) -> Value {
        let nanos = self.as_nanos();
        let exact = DURATION_UNITS.iter().find(|(unit, _)| nanos >= *unit && nanos.is_multiple_of(*unit));
        json!(exact.map_or("0s".into(), |(unit, name)| format!("{}{name}", nanos / unit)))
    }
}

macro_rules! whole_numbers {
    ($($kind:ty),*) => {$(
        impl ConfigValue for $kind {
            const ALLOWED: &'static str = "a whole number, 0 or more";
            fn read(value: &ValueKind) -> Option<$kind> {
                match value {
                    ValueKind::I64(number) => (*number).try_into().ok(),
                    ValueKind::String(text) => text.trim().parse().ok(),
                    _ => None,
                }
            }
            fn write(&self) -> Value {
                json!(self)
            }
        }
    )*};
}
whole_numbers!(u32, u64, usize);

impl ConfigValue for f64 {
    const ALLOWED: &'static str = "a number";
    #[expect(clippy::cast_precision_loss, reason = "a setting beyond 2^53 is out of every range")]
    fn read(value: &ValueKind) -> Option<f64> {
        let number = match value {
            ValueKind::Float(number) => *number,
            ValueKind::I64(number) => *number as f64,
            ValueKind::String(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        number.is_finite().then_some(number)
    }
    fn write(&self) -> Value {
        json!(self)
    }
}

impl ConfigValue for bool {
    const ALLOWED: &'static str = "true or false";
    fn read(value: &ValueKind) -> Option<bool> {
        match value {
            ValueKind::Boolean(flag) => Some(*flag),
            ValueKind::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
    fn write(&self) -> Value {
        json!(self)
    }
}

impl ConfigValue for String {
    const ALLOWED: &'static str = "a text in quotes, without control characters";
    fn read(value: &ValueKind) -> Option<String> {
        match value {
            ValueKind::String(text) if !text.contains(char::is_control) => Some(text.clone()),
            _ => None,
        }
    }
    fn write(&self) -> Value {
        json!(self)
    }
}

impl ConfigValue for PathBuf {
    const ALLOWED: &'static str = "a path in quotes";
    fn read(value: &ValueKind) -> Option<PathBuf> {
        String::read(value).map(PathBuf::from)
    }
    fn write(&self) -> Value {
        json!(self.to_string_lossy())
    }
}

impl ConfigValue for SocketAddr {
    const ALLOWED: &'static str = "an IP address and a port, such as \"127.0.0.1:9581\"";
    fn read(value: &ValueKind) -> Option<SocketAddr> {
        String::read(value)?.parse().ok()
    }
    fn write(&self) -> Value {
        json!(self.to_string())
    }
}

impl ConfigValue for Option<SocketAddr> {
    const ALLOWED: &'static str = "an IP address and a port, such as \"127.0.0.1:8480\", or empty";
    fn read(value: &ValueKind) -> Option<Option<SocketAddr>> {
        optional(value)
    }
    fn write(&self) -> Value {
        self.as_ref().map_or(json!(""), ConfigValue::write)
    }
}

impl ConfigValue for Uri {
    const ALLOWED: &'static str =
        "a whole URL, http:// or https://, its port 1 to 65535, without user, query or fragment";
    fn read(value: &ValueKind) -> Option<Uri> {
        let text = String::read(value)?;
        let uri: Uri = text.parse().ok()?;
        let web = matches!(uri.scheme_str(), Some("http" | "https"));
        let host = uri.host().is_some_and(|host| !host.is_empty());
        // `Uri` treats a port that is no number, or too large, as no port.
        let port = uri.authority().is_some_and(|authority| {
            authority.as_str() == authority.host() || authority.port_u16().is_some_and(|port| port > 0)
        });
        (web && host && port && !text.contains(['@', '?', '#'])).then_some(uri)
    }
    fn write(&self) -> Value {
        json!(self.to_string())
    }
}

impl ConfigValue for Option<Uri> {
    const ALLOWED: &'static str =
        "a whole URL, http:// or https://, its port 1 to 65535, without user, query or fragment, or empty";
    fn read(value: &ValueKind) -> Option<Option<Uri>> {
        optional(value)
    }
    fn write(&self) -> Value {
        self.as_ref().map_or(json!(""), ConfigValue::write)
    }
}

/// The URL of a server of the fleet. The part before `@` is a secret: it is never written.
#[derive(Clone, PartialEq, Eq)]
pub struct FleetServer(Uri);

impl FleetServer {
    /// True for `tls://`.
    pub fn is_tls(&self) -> bool {
        self.0.scheme_str() == Some("tls")
    }

    /// The name or address, an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default()
    }

    /// The port; NATS' own if the URL has none.
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(4222)
    }

    /// The user and the password, or a token alone.
    pub fn login(&self) -> Option<(String, Option<String>)> {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (login, _) = self.0.authority()?.as_str().rsplit_once('@')?;
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        Some((decoded(user), password.map(decoded)))
    }
}

impl std::fmt::Debug for FleetServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for FleetServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let authority = self.0.authority().map_or("", |authority| authority.as_str());
        let (hidden, address) = authority.rsplit_once('@').map_or(("", authority), |(_, address)| ("***@", address));
        write!(f, "{}://{hidden}{address}", self.0.scheme_str().unwrap_or_default())
    }
}

impl ConfigValue for FleetServer {
    const ALLOWED: &'static str = "the URL of a server, nats:// or tls://, its port 1 to 65535, without path";
    fn read(value: &ValueKind) -> Option<FleetServer> {
        let text = String::read(value)?;
        let uri: Uri = text.trim().parse().ok()?;
        let scheme = matches!(uri.scheme_str(), Some("nats" | "tls"));
        let authority = uri.authority()?.as_str();
        let (login, address) = authority.rsplit_once('@').map_or((None, authority), |(login, of)| (Some(login), of));
        let host = uri.host().is_some_and(|host| !host.is_empty());
        let port = Some(address) == uri.host() || uri.port_u16().is_some_and(|port| port > 0);
        let login = login.is_none_or(|login| !login.is_empty() && !login.starts_with(':'));
        let bare = uri.path() == "/" || uri.path().is_empty();
        (scheme && host && port && login && bare && !text.contains(['?', '#'])).then_some(FleetServer(uri))
    }
    fn write(&self) -> Value {
        json!(self.to_string())
    }
}

impl ConfigValue for Vec<FleetServer> {
    const ALLOWED: &'static str = "a list of servers, such as [\"nats://nats.example:4222\"] or, in the environment, by \
        comma: each nats:// or tls://, its port 1 to 65535, without path";
    fn read(value: &ValueKind) -> Option<Vec<FleetServer>> {
        match value {
            ValueKind::Array(items) => items.iter().map(|item| FleetServer::read(&item.kind)).collect(),
            ValueKind::String(text) if text.trim().is_empty() => Some(Vec::new()),
            ValueKind::String(text) => {
                text.split(',').map(|item| FleetServer::read(&ValueKind::String(item.into()))).collect()
            }
            _ => None,
        }
    }
    fn write(&self) -> Value {
        json!(self.iter().map(ToString::to_string).collect::<Vec<_>>())
    }
}

/// An empty text means `None`.
fn optional<T: ConfigValue>(value: &ValueKind) -> Option<Option<T>> {
    match value {
        ValueKind::String(text) if text.is_empty() => Some(None),
        value => T::read(value).map(Some),
    }
}

impl ConfigValue for Vec<u32> {
    const ALLOWED: &'static str = "a list of whole numbers, such as [1000, 1001] or, in the environment, 1000,1001";
    fn read(value: &ValueKind) -> Option<Vec<u32>> {
        match value {
            ValueKind::Array(items) => items.iter().map(|item| u32::read(&item.kind)).collect(),
            ValueKind::String(text) if text.trim().is_empty() => Some(Vec::new()),
            ValueKind::String(text) => text.split(',').map(|item| item.trim().parse().ok()).collect(),
            _ => None,
        }
    }
    fn write(&self) -> Value {
        json!(self)
    }
}

/// A type whose values are a closed set of words.
macro_rules! words {
    ($kind:ty { $first:ident = $first_text:literal $(, $more:ident = $text:literal)* $(,)? }) => {
        impl ConfigValue for $kind {
            const ALLOWED: &'static str = concat!("\"", $first_text, "\"" $(, " or \"", $text, "\"")*);
            fn read(value: &ValueKind) -> Option<$kind> {
                let ValueKind::String(text) = value else { return None };
                match text.as_str() {
                    $first_text => Some(<$kind>::$first),
                    $($text => Some(<$kind>::$more),)*
                    _ => None,
                }
            }
            fn write(&self) -> Value {
                let words = [(<$kind>::$first, $first_text) $(, (<$kind>::$more, $text))*];
                json!(words.iter().find(|(value, _)| value == self).map(|(_, word)| word))
            }
        }
    };
}

words!(ReplyMode { Accepted = "accepted", Delivered = "delivered" });
words!(Damaged { SetAside = "set_aside", Refuse = "refuse" });
words!(WhenDown { GoOn = "go_on", Refuse = "refuse" });
words!(ContentLimits { ByType = "by_type", BySize = "by_size" });
words!(Format { Json = "json", Text = "text" });
words!(Level { ERROR = "error", WARN = "warn", INFO = "info", DEBUG = "debug", TRACE = "trace" });

/// The behaviour while the fleet does not take copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenDown {
    /// Messages are accepted on this volume alone.
    GoOn,
    /// Messages are refused.
    Refuse,
}

/// The limits of a message's Content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentLimits {
    /// Characters by type, and bytes.
    ByType,
    /// Bytes alone.
    BySize,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object a line.
    Json,
    /// Text for people.
    Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: ConfigValue>(text: &str) -> Option<T> {
        T::read(&ValueKind::String(text.into()))
    }

    #[test]
    fn durations_need_a_unit() {
        for (written, read) in [("4s", Some(4000)), ("250ms", Some(250)), ("7d", Some(604_800_000)), ("4", None)] {
            assert_eq!(text::<Duration>(written), read.map(Duration::from_millis), "{written}");
        }
        assert_eq!(Duration::read(&ValueKind::I64(4)), None);
    }

    #[test]
    fn durations_are_written_in_one_unit_and_come_back() {
        for (millis, written) in
            [(0, "0s"), (2001, "2001ms"), (75_000, "75s"), (90_000, "90s"), (900_000, "15m"), (604_800_000, "7d")]
        {
            let span = Duration::from_millis(millis);
            assert_eq!((span.write(), text::<Duration>(written)), (json!(written), Some(span)));
        }
        assert_eq!(Duration::from_nanos(1500).write(), json!("1500ns"));
    }

    #[test]
    fn sizes_are_binary_and_are_written_as_they_are_read() {
        for (written, read) in [("256KiB", 262_144), ("1MiB", 1 << 20), ("300", 300), ("64 MiB", 64 << 20)] {
            assert_eq!(text::<Size>(written), Some(Size(read)), "{written}");
        }
        assert_eq!(Size::read(&ValueKind::I64(4096)), Some(Size(4096)));
        assert_eq!(Size(262_144).write(), json!("256KiB"));
        assert_eq!(Size(1500).write(), json!(1500));
        assert_eq!(text::<Size>("-1"), None);
    }

    #[test]
    fn a_mode_is_octal_text_never_a_number() {
        assert_eq!(text::<Mode>("0660"), Some(Mode(0o660)));
        assert_eq!(text::<Mode>("660"), Some(Mode(0o660)));
        for right in ["0600", "0666", "0770", "0777", "0640", "622"] {
            assert!(text::<Mode>(right).is_some(), "{right}");
        }
        // The values that YAML makes of 0600 to 0777 without quotes, among others.
        for wrong in [
            "0888", "1777", "60", "+660", "", "384", "416", "432", "436", "438", "448", "504", "511", "0000", "0060",
            "0460", "0260", "0606", "0642", "0624", "0661", "0o660", "0x1b0", "0660 ", "660.0",
        ] {
            assert_eq!(text::<Mode>(wrong), None, "{wrong}");
        }
        assert_eq!(Mode::read(&ValueKind::I64(0o660)), None);
    }

    #[test]
    fn nothing_is_rounded_or_taken_for_another_kind() {
        assert_eq!(u64::read(&ValueKind::Float(1.5)), None);
        assert_eq!(u64::read(&ValueKind::Boolean(true)), None);
        assert_eq!(u64::read(&ValueKind::I64(-1)), None);
        assert_eq!(u32::read(&ValueKind::I64(1 << 40)), None);
        assert_eq!(String::read(&ValueKind::I64(5)), None);
        assert_eq!(bool::read(&ValueKind::I64(1)), None);
        assert_eq!(f64::read(&ValueKind::Float(f64::NAN)), None);
        assert_eq!(f64::read(&ValueKind::I64(10)), Some(10.0));
    }

    #[test]
    fn a_url_is_whole_and_carries_no_credentials() {
        assert!(text::<Uri>("https://vpce.example/prefix").is_some());
        assert!(text::<Uri>("http://[::1]:9580").is_some());
        let ports = ["http://host:70000", "http://host:80x80", "http://host:", "http://[::1]:0", "https://host:-1/a"];
        let wrong =
            ["vpce.example", "ftp://host", "https://", "http://me:secret@host:80", "https://host/?a=b", "/path"];
        for wrong in wrong.into_iter().chain(ports) {
            assert_eq!(text::<Uri>(wrong), None, "{wrong}");
        }
        assert_eq!(text::<Option<Uri>>(""), Some(None));
    }

    #[test]
    fn a_server_of_the_fleet_is_a_bare_url_and_its_login_is_never_written() {
        for right in
            ["nats://a.example", "tls://a:4222", "nats://[::1]:4222/", "nats://me:p%40ss@a:1", "tls://s3cret@a"]
        {
            assert!(text::<FleetServer>(right).is_some(), "{right}");
        }
        for wrong in [
            "a.example:4222",
            "http://a",
            "ws://a",
            "nats://",
            "nats://a:0",
            "nats://a:70000",
            "nats://a:",
            "nats://a/x",
            "nats://a?x=y",
            "nats://@a",
            "nats://:p@a",
            "nats:/a",
            "",
        ] {
            assert_eq!(text::<FleetServer>(wrong), None, "{wrong}");
        }
        let servers = text::<Vec<FleetServer>>("nats://me:p%40ss@a:1, tls://s3cret@[::1], nats://b").unwrap();
        let login = |user: &str, password: Option<&str>| Some((user.to_owned(), password.map(str::to_owned)));
        let logins: Vec<_> = servers.iter().map(FleetServer::login).collect();
        assert_eq!(logins, [login("me", Some("p@ss")), login("s3cret", None), None]);
        assert_eq!(servers.write(), json!(["nats://***@a:1", "tls://***@[::1]", "nats://b"]));
        assert_eq!(format!("{servers:?}"), "[nats://***@a:1, tls://***@[::1], nats://b]");
        let places: Vec<_> = servers.iter().map(|of| (of.is_tls(), of.host(), of.port())).collect();
        assert_eq!(places, [(false, "a", 1), (true, "[::1]", 4222), (false, "b", 4222)]);
    }

    #[test]
    fn a_list_comes_as_an_array_or_by_comma() {
        assert_eq!(text::<Vec<u32>>("1000, 1001"), Some(vec![1000, 1001]));
        assert_eq!(text::<Vec<u32>>(""), Some(vec![]));
        assert_eq!(text::<Vec<u32>>("1000,"), None);
        assert_eq!(Vec::<u32>::read(&ValueKind::from(vec![7i64])), Some(vec![7]));
    }
}
