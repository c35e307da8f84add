//! Conditions beyond a value's kind, for one value and for several. Each rule names the allowed values; [`Validator`] adds
//! the source of the value.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use hyper::Uri;

use super::layers::Layers;
use super::paths;
use super::schema::{Backoff, Control, Fleet, Ingress, OutOfRange, Queue, Sender, Settings};
use super::value::{ConfigValue, ContentLimits, Size, plain_text};
use crate::fleet;
use crate::serve::SOCKET_PATH_BYTES_MAX;

/// Checks every rule and adds the violations to the errors.
pub fn check(layers: &mut Layers, environment: &[(OsString, OsString)]) {
    let settings = layers.settings.clone();
    let mut validator = Validator(layers, environment);
    for OutOfRange { key, value, range } in settings.out_of_range() {
        validator.rule(&[&key], value, false, &range);
    }
    validator.ingress(&settings.ingress);
    validator.queue(&settings.queue);
    validator.sender(&settings.sender);
    validator.backoff(&settings.sender.backoff);
    validator.fleet(&settings.fleet, &settings.sender);
    validator.replicate(&settings.fleet, &settings.queue);
    validator.paths(&settings);
}

struct Validator<'a>(&'a mut Layers, &'a [(OsString, OsString)]);

impl Validator<'_> {
    fn ingress(&mut self, ingress: &Ingress) {
        let Ingress { tcp, body_bytes_max, batch_bytes_max, bodies_bytes_max, content_bytes_max, .. } = ingress;
        self.socket("ingress.socket", &ingress.socket, &Ingress::default().socket);
        if let Some(tcp) = tcp {
            let loopback = tcp.ip().to_canonical().is_loopback();
            self.rule(
                &["ingress.tcp"],
                tcp,
                loopback,
                "a loopback address, such as 127.0.0.1:8480: it has no credentials",
            );
            let open = ingress.allow_uids.is_empty() && ingress.allow_gids.is_empty();
            let keys = ["ingress.tcp", "ingress.allow_uids", "ingress.allow_gids"];
            self.rule(&keys, tcp, open, "empty while allow_uids or allow_gids is set: TCP has no peer credentials");
        }
        if self.0.faults.is_empty() && content_bytes_max > body_bytes_max {
            self.0.warnings.push(format!(
                "ingress.content_bytes_max = {} exceeds ingress.body_bytes_max, {}: longer bodies are \
                 answered 413",
                plain_text(content_bytes_max),
                plain_text(body_bytes_max)
            ));
        }
        let mut set = self.0.origins.keys().filter(|key| key.starts_with("ingress.content_chars_max."));
        if let (ContentLimits::BySize, Some(key)) = (ingress.content_limits, set.next()) {
            let warning = format!("{key} is not used: ingress.content_limits is \"by_size\"");
            self.0.warnings.push(warning);
        }
        self.within("ingress.body_bytes_max", *body_bytes_max, "ingress.bodies_bytes_max", *bodies_bytes_max);
        self.within("ingress.batch_bytes_max", *batch_bytes_max, "ingress.bodies_bytes_max", *bodies_bytes_max);
    }

    fn queue(&mut self, queue: &Queue) {
        let defaults = Queue::default();
        self.require_path("queue.path", &queue.path);
        self.absolute("queue.path", &queue.path, &defaults.path);
        self.absolute("queue.key_file", &queue.key_file, Path::new("/etc/connect-relay/queue.keys"));
    }

    fn sender(&mut self, sender: &Sender) {
        let Sender { region, quota_rate, rate_min, rate_max, .. } = sender;
        let (either, allowed) = (["sender.region", "sender.endpoint"], "set, or AWS_REGION, or sender.endpoint");
        self.rule(&either, "\"\"", sender.endpoint.is_some() || !region.is_empty(), allowed);
        let word = region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let named = word && region.len() <= 40 && !region.starts_with('-') && !region.ends_with('-');
        self.rule(&["sender.region"], region, named, "a region's name, such as eu-west-2");
        if let Some(endpoint) = &sender.endpoint {
            let safe = endpoint.scheme_str() == Some("https") || is_loopback(endpoint);
            self.rule(&["sender.endpoint"], endpoint, safe, "https, or http to a loopback address: it carries tokens");
        }
        if let Some(proxy) = &sender.proxy {
            let plain = proxy.scheme_str() == Some("http") && proxy.port().is_some() && proxy.path() == "/";
            self.rule(&["sender.proxy"], proxy, plain, "http://host:port");
        }
        self.absolute("sender.ca_file", &sender.ca_file, Path::new("/etc/connect-relay/ca.pem"));
        let label = sender.connect_instance.chars().count();
        self.rule(&["sender.connect_instance"], &sender.connect_instance, label <= 200, "at most 200 characters");
        self.within("sender.rate_min", *rate_min, "sender.quota_rate", *quota_rate);
        if *rate_max > 0.0 {
            self.within("sender.rate_min", *rate_min, "sender.rate_max", *rate_max);
        }
        let share = (0.0..1.0).contains(&sender.headroom);
        self.rule(&["sender.headroom"], sender.headroom, share, "0 to less than 1");
    }

    fn backoff(&mut self, backoff: &Backoff) {
        self.within("sender.backoff.initial", backoff.initial, "sender.backoff.max", backoff.max);
    }

    fn fleet(&mut self, fleet: &Fleet, sender: &Sender) {
        let servers = || fleet.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let allowed = "empty: this build has no fleet (build it with the cargo feature `fleet`)";
        self.rule(&["fleet.servers"], servers(), fleet.servers.is_empty() || fleet::AVAILABLE, allowed);
        let length = fleet.name.chars().count();
        self.rule(&["fleet.name"], format!("{:?}", fleet.name), (1..=200).contains(&length), "1 to 200 characters");
        for (key, path, example) in [
            ("fleet.credentials_file", &fleet.credentials_file, "/etc/connect-relay/fleet.creds"),
            ("fleet.ca_file", &fleet.ca_file, "/etc/connect-relay/fleet-ca.pem"),
            ("fleet.cert_file", &fleet.cert_file, "/etc/connect-relay/fleet.pem"),
            ("fleet.cert_key_file", &fleet.cert_key_file, "/etc/connect-relay/fleet-key.pem"),
        ] {
            self.absolute(key, path, Path::new(example));
        }
        if fleet.servers.is_empty() {
            return;
        }
        let named = !fleet.share_quota || !sender.connect_instance.trim().is_empty();
        let keys = ["sender.connect_instance", "fleet.servers", "fleet.share_quota"];
        let allowed = "set with fleet.share_quota: relays that name the same instance share its quota";
        self.rule(&keys, format!("{:?}", sender.connect_instance), named, allowed);
        let given = |path: &Path| !path.as_os_str().is_empty();
        let pair = [("fleet.cert_key_file", &fleet.cert_key_file), ("fleet.cert_file", &fleet.cert_file)];
        for ((key, path), (other, needs_it)) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            self.rule(&[key, other], "\"\"", given(path) || !given(needs_it), &format!("set with {other}"));
        }
        let (one, path) = ("fleet.credentials_file", fleet.credentials_file.display());
        let clash = given(&fleet.credentials_file) && fleet.servers.iter().any(|server| server.login().is_some());
        self.rule(&[one, "fleet.servers"], path, !clash, "empty while a URL of fleet.servers has a user or token");
    }

    fn replicate(&mut self, fleet: &Fleet, queue: &Queue) {
        let length = fleet.identity.chars().count();
        let shown = format!("{:?}", fleet.identity);
        self.rule(&["fleet.identity"], &shown, length <= 200, "at most 200 characters");
        if fleet.servers.is_empty() || !fleet.replicate {
            return;
        }
        let allowed = "set with fleet.replicate: a name that stays the same over restarts and nodes, such as a StatefulSet \
            pod's, and that no other relay of the fleet has";
        self.rule(&["fleet.identity", "fleet.replicate"], &shown, !fleet.identity.trim().is_empty(), allowed);
        let sealed = !queue.key_file.as_os_str().is_empty();
        let allowed = "set with fleet.replicate: the rows of the queue leave the machine, sealed by a key of this file";
        self.rule(&["queue.key_file", "fleet.replicate"], "\"\"", sealed, allowed);
        let least = Size(queue.bytes_max.0.saturating_mul(4));
        let allowed = format!("at least 4 x queue.bytes_max, which is {}", plain_text(&least));
        let keys = ["fleet.stream_bytes_max", "queue.bytes_max", "fleet.replicate"];
        self.rule(&keys, plain_text(&fleet.stream_bytes_max), fleet.stream_bytes_max >= least, &allowed);
    }

    /// Checks the places: the bots' folder contains nothing else, and the queue's folder only the queue.
    fn paths(&mut self, settings: &Settings) {
        let (bots, operators) = (resolved(&settings.ingress.socket), resolved(&settings.control.socket));
        let queue = resolved(&settings.queue.path);
        let apart = bots.parent() != operators.parent();
        let allowed = "in another folder than ingress.socket, which bots can reach";
        self.socket("control.socket", &settings.control.socket, &Control::default().socket);
        self.rule(&["control.socket", "ingress.socket"], settings.control.socket.display(), apart, allowed);
        let (ingress, control) = (&settings.ingress.socket, &settings.control.socket);
        for (key, written, socket) in [("ingress.socket", ingress, &bots), ("control.socket", control, &operators)] {
            self.rule(&[key, "queue.path"], written.display(), !socket.starts_with(&queue), "outside queue.path");
        }
        if let Some(tcp) = settings.ingress.tcp {
            let admin = settings.admin.listen;
            let clash = tcp.port() != 0 && tcp.port() == admin.port() && shares_address(tcp.ip(), admin.ip());
            self.rule(&["admin.listen", "ingress.tcp"], admin, !clash, "another port than ingress.tcp's");
        }
    }

    fn socket(&mut self, key: &str, path: &Path, default: &Path) {
        self.require_path(key, path);
        self.absolute(key, path, default);
        let fits = path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX;
        let allowed = format!("at most {SOCKET_PATH_BYTES_MAX} bytes, the limit of a Unix socket's path");
        self.rule(&[key], path.display(), fits, &allowed);
    }

    fn require_path(&mut self, key: &str, path: &Path) {
        self.rule(&[key], "\"\"", !path.as_os_str().is_empty(), "a path");
    }

    /// Checks that a path is absolute: no shell expands it, and the working directory of a service is arbitrary.
    fn absolute(&mut self, key: &str, path: &Path, default: &Path) {
        let whole = path.as_os_str().is_empty() || path.is_absolute();
        let meant = paths::probable_path(path, default, self.1);
        self.rule(&[key], path.display(), whole, &format!("an absolute path, probably {}", meant.display()));
    }

    fn within<T: ConfigValue + PartialOrd>(&mut self, key: &str, value: T, bound_key: &str, bound: T) {
        let allowed = format!("at most {bound_key}, which is {}", plain_text(&bound));
        self.rule(&[key, bound_key], plain_text(&value), value <= bound, &allowed);
    }

    /// Adds an error unless `kept`. It names the source of the first of the keys that is set.
    fn rule(&mut self, keys: &[&str], value: impl Display, kept: bool, allowed: &str) {
        // A key whose value is wrong by itself is not compared as well, nor is one that an unreadable file may have
        // set.
        let known = keys.iter().any(|key| self.0.is_faulty(key));
        let unknown = self.0.file_unknown && (keys.len() > 1 || !self.0.origins.contains_key(keys[0]));
        let Layers { origins, faults, .. } = &mut *self.0;
        if !kept && !known && !unknown {
            let source = keys.iter().find_map(|key| origins.get(*key)).map_or("default", String::as_str);
            faults.push(format!("{source}: {} = {value}: must be {allowed}", keys[0]));
        }
    }
}

fn is_loopback(endpoint: &Uri) -> bool {
    let host = endpoint.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// True if the addresses clash: the error is reported before a bind fails.
fn shares_address(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
}

/// The path with the links of its existing part resolved, and without `..`: /var/run is /run.
fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in std::path::absolute(path).unwrap_or_else(|_| path.into()).components() {
        match component {
            // The parent of a link's target, not of the link.
            Component::ParentDir => drop(resolved.pop()),
            component => {
                resolved.push(component);
                resolved = resolved.canonicalize().unwrap_or(resolved);
            }
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_as_far_as_the_path_exists() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("run")).unwrap();
        std::os::unix::fs::symlink(root.join("run"), root.join("var-run")).unwrap();
        for (path, expected) in [
            ("var-run/relay/relay.sock", "run/relay/relay.sock"),
            ("missing/../relay/./relay.sock", "relay/relay.sock"),
            ("missing/../var-run/relay.sock", "run/relay.sock"),
            ("var-run/../relay.sock", "relay.sock"),
            ("a/b/../../../../../../../../..//relay.sock", "/relay.sock"),
        ] {
            assert_eq!(resolved(&root.join(path)), root.join(expected), "{path}");
        }
    }

    #[test]
    fn loopback_is_an_address_or_localhost() {
        for (url, expected) in [
            ("http://127.0.0.1:9580", true),
            ("http://[::1]:9580", true),
            ("http://localhost", true),
            ("http://127.0.0.1.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
