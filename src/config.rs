//! Configuration: keys, defaults, validation and error messages.
//!
//! ```text
//! defaults ─▶ file ─▶ environment ─▶ flags      layers: merges the sources, and tries each entry by itself
//!                      │
//!                  Settings                     schema: the tables and keys; value: the syntax of one value
//!                      │  validate              conditions beyond a value's kind, for one value and for several
//!                      ▼
//!                    Config ─▶ each part's Options
//! ```
//!
//! Promises to an operator who edits a configuration:
//! * every error is reported, not only the first, with its source (the file's path or the variable's name), the key and
//!   the allowed values; nothing is ignored except other programs' variables;
//! * `config/relay.toml` has every key, with its default;
//! * [`Config::load`] touches nothing else, neither the store nor a socket.
//!
//! Below the command line only this module reads files: parts get bytes and numbers. No part below knows this module.

mod layers;
mod paths;
mod schema;
mod validate;
mod value;

use std::path::Path;

use bytesize::ByteSize;
use hyper::Uri;
use zeroize::Zeroizing;

use crate::delivery::Policy;
use crate::message::Limits;
use crate::retry::Backoff;
use crate::tls::Identity;
use crate::{fleet, ingress, pacer, participant, queue, sender, serve};

use layers::Layers;
pub use layers::{DEFAULT_FILE, Sources};
pub(crate) use schema::Settings;
use schema::keys;
use value::FleetServer;
pub use value::{ContentLimits, Format, WhenDown};

/// Every key with its default and a sentence.
pub const DOCUMENTED: &str = include_str!("../config/relay.toml");

/// The most bytes in a request's head: a token of 1,000 bytes, an SDK's signature and a trace fit easily.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// The most bytes in a bundle of certificates.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;

/// The keys that name a file which is read with the configuration.
const CA_FILE: &str = "sender.ca_file";
const KEY_FILE: &str = "queue.key_file";
const FLEET_SERVERS: &str = "fleet.servers";
const FLEET_CREDENTIALS_FILE: &str = "fleet.credentials_file";
const FLEET_CA_FILE: &str = "fleet.ca_file";
const FLEET_CERT_FILE: &str = "fleet.cert_file";
const FLEET_CERT_KEY_FILE: &str = "fleet.cert_key_file";

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Probable mistakes, one sentence each.
    pub warnings: Vec<String>,
    pub(crate) settings: Settings,
    origins: std::collections::BTreeMap<String, String>,
    endpoint: Uri,
    extra_roots: Vec<u8>,
    sealing_keys: Vec<queue::SealingKey>,
    fleet_files: FleetFiles,
}

/// The contents of the files that `fleet` names, and the relay's name there; empty without servers.
#[derive(Clone, Debug, Default, PartialEq)]
struct FleetFiles {
    /// The name of this relay in the fleet.
    id: String,
    credentials: Option<fleet::Credentials>,
    extra_roots: Vec<u8>,
    certificate: Vec<u8>,
    identity: Option<Identity>,
}

/// All errors of a configuration, one line each: the source, the key, the allowed values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Faults(pub Vec<String>);

impl Config {
    /// Reads the sources, merges and validates them.
    ///
    /// # Errors
    /// With all errors; warnings come after them, because they often explain them.
    pub fn load(sources: &Sources) -> Result<Config, Faults> {
        Config::of(Layers::of(sources), sources)
    }

    /// Reads and checks the configuration of a command that looks after a fleet. An operator's machine may have no relay:
    /// it needs the servers and the key file, and no region, instance or identity.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_for_fleet(sources: &Sources) -> Result<Config, Faults> {
        let mut layers = Layers::of(sources);
        let Settings { fleet, sender, .. } = &mut layers.settings;
        (fleet.share_quota, fleet.replicate) = (false, false);
        if sender.endpoint.is_none() && sender.region.is_empty() {
            sender.region = "none".into();
        }
        Config::of(layers, sources)
    }

    fn of(mut layers: Layers, sources: &Sources) -> Result<Config, Faults> {
        validate::check(&mut layers, &sources.environment);
        let extra_roots = certificates(&layers.settings.sender.ca_file);
        let extra_roots = layers.value_or_fault(CA_FILE, extra_roots);
        let sealing_keys = read_text(&layers.settings.queue.key_file, queue::SealingKey::parse_file);
        let sealing_keys = layers.value_or_fault(KEY_FILE, sealing_keys);
        let fleet_files = FleetFiles::read(&mut layers);
        let endpoint = endpoint(&layers.settings.sender);
        match endpoint {
            Some(endpoint) if layers.faults.is_empty() => Ok(Config {
                warnings: layers.warnings,
                settings: layers.settings,
                origins: layers.origins,
                endpoint,
                extra_roots,
                sealing_keys,
                fleet_files,
            }),
            _ => Err(Faults([layers.faults, layers.warnings].concat())),
        }
    }

    /// The effective configuration as TOML, in the order of `config/relay.toml`: as a file it gives the same
    /// configuration. A default is written as in that file, so that a `diff` of the two shows the settings. It contains
    /// no secrets: the login of a server of the fleet is written as `***`, and no other key has a secret as its value.
    #[must_use]
    pub fn effective(&self) -> String {
        let map = |settings| keys(settings).into_iter().collect::<std::collections::BTreeMap<String, String>>();
        let (values, defaults) = (map(&self.settings), map(&Settings::default()));
        let mut text = String::new();
        let mut table = "";
        for line in DOCUMENTED.lines() {
            if let Some(name) = line.strip_prefix('[') {
                table = name.trim_end_matches(']');
                text += &format!("{}{line}\n", if text.is_empty() { "" } else { "\n" });
            } else if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
                let key = format!("{table}.{name}");
                if values[&key] == defaults[&key] {
                    text += &format!("{line}\n");
                } else {
                    text += &format!("{name} = {}\n", values[&key]);
                }
            }
        }
        text
    }

    /// The keys that are set, each with its source.
    pub fn set(&self) -> impl Iterator<Item = (&str, &str)> {
        self.origins.iter().map(|(key, source)| (key.as_str(), source.as_str()))
    }

    /// The keys whose values differ.
    #[must_use]
    pub fn changes(&self, other: &Config) -> Vec<String> {
        let pairs = keys(&self.settings).into_iter().zip(keys(&other.settings));
        let mut changes: Vec<String> = pairs.filter(|(one, two)| one != two).map(|((key, _), _)| key).collect();
        let (own, its) = (&self.fleet_files, &other.fleet_files);
        let key = |files: &FleetFiles| files.identity.as_ref().map(|identity| identity.key.clone());
        let files = [
            (CA_FILE, self.extra_roots == other.extra_roots),
            (KEY_FILE, self.sealing_keys == other.sealing_keys),
            (FLEET_SERVERS, self.settings.fleet.servers == other.settings.fleet.servers),
            (FLEET_CREDENTIALS_FILE, own.credentials == its.credentials),
            (FLEET_CA_FILE, own.extra_roots == its.extra_roots),
            (FLEET_CERT_FILE, own.certificate == its.certificate),
            (FLEET_CERT_KEY_FILE, key(own) == key(its)),
        ];
        for (key, same) in files {
            if !same && !changes.iter().any(|changed| changed == key) {
                changes.push(key.into());
            }
        }
        changes
    }

    /// The Participant Service's base URL, as set or by the region.
    #[must_use]
    pub fn endpoint(&self) -> &Uri {
        &self.endpoint
    }

    /// The queue's settings.
    #[must_use]
    pub fn queue(&self) -> queue::Options {
        let Settings { queue, sender, .. } = &self.settings;
        queue::Options {
            path: queue.path.clone(),
            messages_max: queue.messages_max,
            bytes_max: queue.bytes_max.0,
            free_disk_min: queue.free_disk_min.0,
            outcomes_kept_for: queue.outcomes_kept_for,
            outcomes_max: queue.outcomes_max,
            dead_kept_for: queue.dead_kept_for,
            dead_max: queue.dead_max,
            volatile: queue.volatile,
            damaged: queue.damaged,
            keys: self.sealing_keys.clone(),
            lifetime: sender.lifetime,
            fresh: sender.fresh,
            token_wait: sender.token_wait,
            refused_for: sender.refused_for,
            probe_max: sender.probe_max,
            due_max: sender.retry_hint_max.max(sender.backoff.max.mul_f64(1.0 + sender.backoff.randomization)),
            destination: self.endpoint.to_string(),
        }
    }

    /// The pacer's settings.
    #[must_use]
    pub fn pacer(&self) -> pacer::Options {
        let sender = &self.settings.sender;
        pacer::Options {
            quota_rate: sender.quota_rate,
            quota_burst: sender.quota_burst,
            rate_max: sender.rate_max,
            rate_min: sender.rate_min,
            headroom: sender.headroom,
            backoff: self.backoff(),
            probe_max: sender.probe_max,
            hint_max: sender.retry_hint_max,
        }
    }

    /// The client's settings.
    #[must_use]
    pub fn participant(&self) -> participant::Options {
        let sender = &self.settings.sender;
        participant::Options {
            endpoint: self.endpoint.clone(),
            connect_timeout: sender.connect_timeout,
            attempt_timeout: sender.attempt_timeout,
            idle_max: sender.in_flight_max,
            proxy: sender.proxy.clone(),
            extra_roots: self.extra_roots.clone(),
        }
    }

    /// The sender's settings.
    #[must_use]
    pub fn sender(&self) -> sender::Options {
        let sender = &self.settings.sender;
        let policy =
            Policy { backoff: self.backoff(), hint_max: sender.retry_hint_max, attempts_max: sender.attempts_max };
        sender::Options { policy, in_flight_max: sender.in_flight_max, probe_max: sender.probe_max }
    }

    /// The settings of the fleet; `None` without servers.
    #[must_use]
    pub fn fleet(&self) -> Option<fleet::Options> {
        let Settings { fleet, sender, .. } = &self.settings;
        let servers: Vec<_> = fleet.servers.iter().map(server).collect();
        let quota = fleet::SharedQuota {
            connect_instance: sender.connect_instance.clone(),
            destination: destination(&self.endpoint),
        };
        (!servers.is_empty()).then(|| fleet::Options {
            servers,
            name: fleet.name.clone(),
            id: self.fleet_files.id.clone(),
            quota: fleet.share_quota.then_some(quota),
            credentials: self.fleet_files.credentials.clone(),
            extra_roots: self.fleet_files.extra_roots.clone(),
            identity: self.fleet_files.identity.clone(),
        })
    }

    /// The settings of the copy in the fleet; `None` without servers or `fleet.replicate`.
    #[must_use]
    pub fn copy(&self) -> Option<fleet::CopyOptions> {
        let fleet = &self.settings.fleet;
        let options = self.fleet().filter(|_| fleet.replicate)?;
        Some(fleet::CopyOptions {
            node: options.id.clone(),
            fleet: options,
            identity: fleet.identity.clone(),
            path: self.settings.queue.path.clone(),
            keys: self.sealing_keys.clone(),
            go_on: fleet.when_down == WhenDown::GoOn,
            ack_timeout: fleet.ack_timeout,
            lease: fleet.lease,
            shape: fleet::Shape { replicas: fleet.replicas, bytes_max: fleet.stream_bytes_max.0 },
        })
    }

    /// The settings of the bots' API.
    #[must_use]
    pub fn ingress(&self) -> ingress::Options {
        let ingress = &self.settings.ingress;
        ingress::Options {
            reply: ingress.reply,
            tcp_reply: ingress.tcp_reply,
            wait: ingress.wait,
            wait_max: ingress.wait_max,
            request_timeout: ingress.request_timeout,
            body_bytes_max: ingress.body_bytes_max.in_memory(),
            batch_bytes_max: ingress.batch_bytes_max.in_memory(),
            bodies_bytes_max: ingress.bodies_bytes_max.in_memory(),
            allow_uids: ingress.allow_uids.clone(),
            allow_gids: ingress.allow_gids.clone(),
            limits: self.limits(),
            fleet_only: self.copy().is_some_and(|copy| !copy.go_on),
        }
    }

    /// The limits of the bots' connections, per listener.
    #[must_use]
    pub fn connections(&self) -> serve::Limits {
        let ingress = &self.settings.ingress;
        serve::Limits {
            connections_max: ingress.connections_max,
            idle_timeout: ingress.idle_timeout,
            request_timeout: ingress.request_timeout,
            head_bytes_max: HEAD_BYTES_MAX,
        }
    }

    /// The limits of a message's Content.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let ingress = &self.settings.ingress;
        let chars = &ingress.content_chars_max;
        Limits {
            content_bytes: ingress.content_bytes_max.in_memory(),
            content_chars: match ingress.content_limits {
                ContentLimits::ByType => [chars.plain, chars.markdown, chars.json, chars.interactive],
                ContentLimits::BySize => [0; 4],
            },
        }
    }

    /// The sentence on limits that an operator should know; `None` if the relay has those that AWS documents today.
    #[must_use]
    pub fn note_on_limits(&self) -> Option<&'static str> {
        (self.settings.ingress.content_limits == ContentLimits::ByType).then_some(
            "AWS documents 16,384 bytes for every type of message since October 2026; this relay has the older, shorter \
             limits by type until ingress.content_limits is \"by_size\"",
        )
    }

    fn backoff(&self) -> Backoff {
        let backoff = &self.settings.sender.backoff;
        Backoff {
            initial: backoff.initial,
            multiplier: backoff.multiplier,
            randomization: backoff.randomization,
            max: backoff.max,
        }
    }
}

impl FleetFiles {
    fn read(layers: &mut Layers) -> FleetFiles {
        let schema::Fleet { servers, credentials_file, ca_file, cert_file, cert_key_file, .. } =
            layers.settings.fleet.clone();
        if servers.is_empty() {
            return FleetFiles::default();
        }
        let credentials = read_text(&credentials_file, |text| fleet::Credentials::parse(text).map(Some));
        let pem = |label: &'static str, holds: &'static str| {
            move |text: &str| match text.contains(label) {
                true => Ok(text.as_bytes().to_vec()),
                false => Err(format!("must hold {holds} in PEM")),
            }
        };
        let certificate = read_text(&cert_file, pem("-----BEGIN CERTIFICATE-----", "a certificate"));
        let certificate = layers.value_or_fault(FLEET_CERT_FILE, certificate);
        let key = read_text(&cert_key_file, pem("PRIVATE KEY-----", "a private key"));
        let key = Zeroizing::new(layers.value_or_fault(FLEET_CERT_KEY_FILE, key));
        let identity =
            (!certificate.is_empty() && !key.is_empty()).then(|| Identity { chain: certificate.clone(), key });
        FleetFiles {
            id: relay_id(&layers.settings.queue.path),
            credentials: layers.value_or_fault(FLEET_CREDENTIALS_FILE, credentials),
            extra_roots: layers.value_or_fault(FLEET_CA_FILE, certificates(&ca_file)),
            certificate,
            identity,
        }
    }
}

/// Parses a small file of text, which may be a secret; the default if no file is named.
fn read_text<T: Default>(path: &Path, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, String> {
    if path.as_os_str().is_empty() {
        return Ok(T::default());
    }
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    parse(&Zeroizing::new(text)).map_err(|fault| format!("{shown}: {fault}"))
}

/// The name of this host, which in Kubernetes is the pod's, and a number for the queue's folder: several relays may run on
/// one host.
fn relay_id(queue: &Path) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{:08x}", host.trim(), crc32fast::hash(queue.as_os_str().as_encoded_bytes()))
}

fn server(server: &FleetServer) -> fleet::Server {
    let login = server.login().map(|(user, password)| match password {
        Some(password) => fleet::Login::User(user, Zeroizing::new(password)),
        None => fleet::Login::Token(Zeroizing::new(user)),
    });
    fleet::Server { tls: server.is_tls(), host: server.host().into(), port: server.port(), login }
}

/// An endpoint as all relays write it that send there: without scheme, in lower case, its port only if it is unusual.
fn destination(endpoint: &Uri) -> String {
    let default = if endpoint.scheme_str() == Some("http") { 80 } else { 443 };
    let port = endpoint.port_u16().filter(|port| *port != default).map(|port| format!(":{port}"));
    let host = endpoint.host().unwrap_or_default().to_ascii_lowercase();
    format!("{host}{}{}", port.unwrap_or_default(), endpoint.path().trim_end_matches('/'))
}

/// The endpoint that is set, or the region's; `None` if neither gives one.
fn endpoint(sender: &schema::Sender) -> Option<Uri> {
    let region = &sender.region;
    let suffix = match region {
        region if region.starts_with("cn-") => "amazonaws.com.cn",
        region if region.starts_with("eusc-") => "amazonaws.eu",
        _ => "amazonaws.com",
    };
    let regional = || format!("https://participant.connect.{region}.{suffix}").parse().ok();
    sender.endpoint.clone().or_else(|| regional().filter(|_| !region.is_empty()))
}

/// The file's bytes; empty if no file is named.
fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    if path.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let shown = path.display();
    let length = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?.len();
    if length > CA_FILE_BYTES_MAX {
        let (has, most) = (ByteSize(length), ByteSize(CA_FILE_BYTES_MAX));
        return Err(format!("{shown}: has {has} ({length} bytes), at most {most} are read"));
    }
    let pem = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    let marker = b"-----BEGIN CERTIFICATE-----";
    if !pem.windows(marker.len()).any(|window| window == marker) {
        return Err(format!("{shown}: must hold certificates in PEM"));
    }
    Ok(pem)
}

#[cfg(test)]
mod tests;
