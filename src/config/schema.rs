//! The keys: one struct per table of the file, each key with its kind and its default, in the notation of the
//! environment. `config/relay.toml` explains each one; a test keeps the two equal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use serde::{Deserialize, Serialize};
use tracing::Level;

use super::value::{self, ConfigValue, ContentLimits, FleetServer, Format, Mode, Size, WhenDown};
use crate::ingress::ReplyMode;
use crate::queue::Damaged;

macro_rules! table {
    ($(#[$doc:meta])* $name:ident {
        $($key:ident: $kind:ty = $default:literal,)*
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
    };
}

fn written<T: ConfigValue>(default: &str) -> T {
    T::read(&::config::ValueKind::String(default.into())).expect("a default is well-formed")
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
        wait: Duration = "4s",
        wait_max: Duration = "50s",
        connections_max: usize = "256",
        idle_timeout: Duration = "75s",
        request_timeout: Duration = "10s",
        body_bytes_max: Size = "256KiB",
        batch_bytes_max: Size = "1MiB",
        bodies_bytes_max: Size = "8MiB",
        allow_uids: Vec<u32> = "",
        allow_gids: Vec<u32> = "",
        content_limits: ContentLimits = "by_type",
        content_bytes_max: Size = "16384",
        + content_chars_max: ContentChars,
    }
}

table! {
    /// The longest Content by its type.
    ContentChars {
        plain: usize = "1024",
        markdown: usize = "1024",
        json: usize = "12000",
        interactive: usize = "12288",
    }
}

table! {
    /// The store.
    Queue {
        path: PathBuf = "/var/lib/connect-relay/queue",
        messages_max: u64 = "10000",
        bytes_max: Size = "128MiB",
        free_disk_min: Size = "64MiB",
        outcomes_kept_for: Duration = "1h",
        outcomes_max: u64 = "100000",
        dead_kept_for: Duration = "7d",
        dead_max: u64 = "10000",
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
        quota_rate: f64 = "10",
        quota_burst: u32 = "15",
        rate_max: f64 = "0",
        rate_min: f64 = "0.2",
        headroom: f64 = "0.1",
        in_flight_max: usize = "32",
        connect_timeout: Duration = "3s",
        attempt_timeout: Duration = "10s",
        lifetime: Duration = "15m",
        fresh: Duration = "30s",
        attempts_max: u32 = "10",
        token_wait: Duration = "2m",
        refused_for: Duration = "60s",
        probe_max: Duration = "5s",
        retry_hint_max: Duration = "60s",
        proxy: Option<Uri> = "",
        ca_file: PathBuf = "",
        + backoff: Backoff,
    }
}

table! {
    /// The delays between attempts.
    Backoff {
        initial: Duration = "200ms",
        multiplier: f64 = "2",
        randomization: f64 = "0.5",
        max: Duration = "5s",
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
        ack_timeout: Duration = "2s",
        lease: Duration = "15s",
        replicas: usize = "3",
        stream_bytes_max: Size = "512MiB",
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
        grace: Duration = "25s",
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
