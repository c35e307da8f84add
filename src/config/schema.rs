//! The keys: one struct per table of the file, each key with its kind, its default and its range, in the notation of the
//! environment. `config/relay.toml` explains each one; a test keeps the two equal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use serde::{Deserialize, Serialize};
use tracing::Level;

use super::value::{self, ConfigValue, ContentLimits, FleetServer, Format, Mode, Size, WhenDown, plain_text};
use crate::ingress::ReplyMode;
use crate::queue::Damaged;

macro_rules! table {
    ($(#[$doc:meta])* $name:ident {
        $($key:ident: $kind:ty = $default:literal $(in $least:literal to $most:literal)?,)*
        $(+ $inner:ident: $table:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default, expecting = "a table")]
        pub(crate) struct $name {
            $(#[serde(with = "value")] pub(crate) $key: $kind,)*
            $(pub(crate) $inner: $table,)*
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $($key: written($default),)* $($inner: <$table>::default(),)* }
            }
        }

        impl $name {
            /// The values outside their ranges.
            pub(super) fn out_of_range(&self) -> Vec<OutOfRange> {
                let own: [Option<OutOfRange>; _] =
                    [$($(OutOfRange::find(stringify!($key), &self.$key, $least, $most),)?)*];
                let inner: [Vec<OutOfRange>; _] =
                    [$(OutOfRange::in_table(stringify!($inner), self.$inner.out_of_range())),*];
                own.into_iter().flatten().chain(inner.into_iter().flatten()).collect()
            }
        }
    };
}

/// A value outside its range.
pub(super) struct OutOfRange {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) range: String,
}

impl OutOfRange {
    fn find<T: ConfigValue + PartialOrd>(key: &str, value: &T, least: &str, most: &str) -> Option<OutOfRange> {
        let (least, most): (T, T) = (written(least), written(most));
        let range = format!("{} to {}", plain_text(&least), plain_text(&most));
        let is_within = least <= *value && *value <= most;
        (!is_within).then(|| OutOfRange { key: key.into(), value: plain_text(value), range })
    }

    fn in_table(table: &str, found: Vec<OutOfRange>) -> Vec<OutOfRange> {
        found.into_iter().map(|one| OutOfRange { key: format!("{table}.{}", one.key), ..one }).collect()
    }
}

fn written<T: ConfigValue>(text: &str) -> T {
    T::read(&::config::ValueKind::String(text.into())).expect("a default or a bound is well-formed")
}

table! {
    /// The whole file.
    Settings {
        + ingress: Ingress,
        + queue: Queue,
        + sender: Sender,
        + fleet: Fleet,
        + control: Control,
        + admin: Admin,
        + shutdown: Shutdown,
        + log: Log,
    }
}

table! {
    /// The bots' API.
    Ingress {
        socket: PathBuf = "/run/connect-relay/relay.sock",
        socket_mode: Mode = "0660",
        tcp: Option<SocketAddr> = "",
        reply: ReplyMode = "accepted",
        tcp_reply: ReplyMode = "delivered",
        wait: Duration = "4s" in "0s" to "1h",
        wait_max: Duration = "50s" in "0s" to "1h",
        connections_max: usize = "256" in "1" to "65536",
        idle_timeout: Duration = "75s" in "1s" to "1h",
        request_timeout: Duration = "10s" in "100ms" to "1h",
        body_bytes_max: Size = "256KiB" in "1KiB" to "16MiB",
        batch_bytes_max: Size = "1MiB" in "1KiB" to "64MiB",
        bodies_bytes_max: Size = "8MiB" in "1KiB" to "1GiB",
        allow_uids: Vec<u32> = "",
        allow_gids: Vec<u32> = "",
        content_limits: ContentLimits = "by_type",
        content_bytes_max: Size = "16384" in "1" to "256KiB",
        + content_chars_max: ContentChars,
    }
}

table! {
    /// The longest Content by its type.
    ContentChars {
        plain: usize = "1024" in "0" to "262144",
        markdown: usize = "1024" in "0" to "262144",
        json: usize = "12000" in "0" to "262144",
        interactive: usize = "12288" in "0" to "262144",
    }
}

table! {
    /// The store.
    Queue {
        path: PathBuf = "/var/lib/connect-relay/queue",
        messages_max: u64 = "10000" in "1" to "10000000",
        bytes_max: Size = "128MiB" in "16MiB" to "1TiB",
        free_disk_min: Size = "64MiB" in "1MiB" to "1024TiB",
        outcomes_kept_for: Duration = "1h" in "1s" to "30d",
        outcomes_max: u64 = "100000" in "1" to "10000000",
        dead_kept_for: Duration = "7d" in "1s" to "365d",
        dead_max: u64 = "10000" in "1" to "10000000",
        volatile: bool = "false",
        damaged: Damaged = "set_aside",
        key_file: PathBuf = "",
    }
}

table! {
    /// Sending and its rate.
    Sender {
        region: String = "",
        endpoint: Option<Uri> = "",
        connect_instance: String = "",
        quota_rate: f64 = "10" in "0.01" to "100000",
        quota_burst: u32 = "15" in "1" to "1000000",
        rate_max: f64 = "0" in "0" to "100000",
        rate_min: f64 = "0.2" in "0.001" to "100000",
        headroom: f64 = "0.1",
        in_flight_max: usize = "32" in "1" to "1024",
        connect_timeout: Duration = "3s" in "10ms" to "1h",
        attempt_timeout: Duration = "10s" in "10ms" to "1h",
        lifetime: Duration = "15m" in "1s" to "7d",
        fresh: Duration = "30s" in "0s" to "7d",
        attempts_max: u32 = "10" in "1" to "10000",
        token_wait: Duration = "2m" in "0s" to "7d",
        refused_for: Duration = "60s" in "0s" to "1d",
        probe_max: Duration = "5s" in "10ms" to "1h",
        retry_hint_max: Duration = "60s" in "0s" to "1h",
        proxy: Option<Uri> = "",
        ca_file: PathBuf = "",
        + backoff: Backoff,
    }
}

table! {
    /// The delays between attempts.
    Backoff {
        initial: Duration = "200ms" in "1ms" to "1h",
        multiplier: f64 = "2" in "1" to "10",
        randomization: f64 = "0.5" in "0" to "1",
        max: Duration = "5s" in "1ms" to "1h",
    }
}

table! {
    /// The servers that relays share.
    Fleet {
        servers: Vec<FleetServer> = "",
        name: String = "connect-relay",
        identity: String = "",
        share_quota: bool = "true",
        replicate: bool = "false",
        when_down: WhenDown = "go_on",
        ack_timeout: Duration = "2s" in "100ms" to "60s",
        lease: Duration = "15s" in "10s" to "1h",
        replicas: usize = "3" in "1" to "5",
        stream_bytes_max: Size = "512MiB" in "16MiB" to "4TiB",
        credentials_file: PathBuf = "",
        ca_file: PathBuf = "",
        cert_file: PathBuf = "",
        cert_key_file: PathBuf = "",
    }
}

table! {
    /// The operators' API.
    Control {
        socket: PathBuf = "/var/lib/connect-relay/control.sock",
        edit: bool = "false",
    }
}

table! {
    /// Metrics and probes.
    Admin {
        listen: SocketAddr = "127.0.0.1:9581",
    }
}

table! {
    /// The shutdown.
    Shutdown {
        grace: Duration = "25s" in "0s" to "1h",
    }
}

table! {
    /// Log lines.
    Log {
        format: Format = "json",
        level: Level = "info",
    }
}

/// Every key, dotted, with its value as TOML has it.
pub(super) fn keys(settings: &Settings) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &serde_json::Value, into: &mut Vec<(String, String)>) {
        match value {
            serde_json::Value::Object(members) => {
                for (name, member) in members {
                    let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    walk(&key, member, into);
                }
            }
            value => into.push((prefix.into(), value.to_string())),
        }
    }
    let mut all = Vec::new();
    walk("", &serde_json::to_value(settings).unwrap_or_default(), &mut all);
    all
}
