//! Merges the sources: defaults, file, environment, flags.
//!
//! Every setting is first tried alone on top of the defaults. So every error is found, not only the first, and each has
//! the source of its setting. The valid entries can then be merged, because entries of different keys cannot
//! invalidate each other's settings.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use ::config::{ConfigError, File, FileFormat, Map, Source, Value, ValueKind};

use super::paths;
use super::schema::{Settings, keys};

/// The configuration file if none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/connect-relay/relay.toml";

/// The sources of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The TOML file; it must be readable.
    pub file: Option<PathBuf>,
    /// The environment, including other programs' variables.
    pub environment: Vec<(OsString, OsString)>,
    /// `--dir`: the folder for sockets and queue.
    pub dir: Option<PathBuf>,
}

impl Sources {
    /// The sources of this process: the named file, else the default one if it exists; and the environment.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, dir: Option<PathBuf>) -> Sources {
        let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists());
        Sources { file: file.or_else(default), environment: std::env::vars_os().collect(), dir }
    }
}

const PREFIX: &str = "CONNECT_RELAY__";
const NEAR_PREFIX: &str = "CONNECT_RELAY_";

/// The result of merging the sources.
#[derive(Debug, Default)]
pub struct Layers {
    /// The values; a setting with an error has its default here.
    pub settings: Settings,
    /// The source of each key that is set.
    pub origins: BTreeMap<String, String>,
    /// The errors.
    pub faults: Vec<String>,
    /// The probable mistakes.
    pub warnings: Vec<String>,
    /// True if the file could not be read: errors about keys that it may have set are left out.
    pub file_unknown: bool,
}

/// One key set by one source.
struct Entry {
    source: String,
    key: String,
    value: Value,
}

impl Layers {
    /// Reads the sources and merges them.
    pub fn of(sources: &Sources) -> Layers {
        let mut layers = Layers::default();
        let mut entries = Vec::new();
        if let Some(path) = &sources.file {
            match file(path) {
                Ok(found) => entries.extend(found),
                Err(fault) => {
                    layers.faults.push(fault);
                    layers.file_unknown = true;
                }
            }
        }
        entries.extend(sources.environment.iter().filter_map(|(name, value)| layers.variable(name, value)));
        if let Some(dir) = &sources.dir {
            match directory(dir, &sources.environment) {
                Ok(found) => entries.extend(found),
                Err(fault) => layers.faults.push(fault),
            }
        }
        layers.merge(entries);
        layers.take_region(&sources.environment);
        layers
    }

    /// Returns the contents of the file that a key names. If it could not be read, adds an error and returns the
    /// default.
    pub fn value_or_fault<T: Default>(&mut self, key: &str, read: Result<T, String>) -> T {
        read.unwrap_or_else(|fault| {
            if !self.is_faulty(key) {
                let source = self.origins.get(key).map_or("default", String::as_str);
                self.faults.push(format!("{source}: {key} = {fault}"));
            }
            T::default()
        })
    }

    /// True if the value of this key, or of a table that it is in, is wrong by itself.
    pub fn is_faulty(&self, key: &str) -> bool {
        let ends = key.match_indices('.').map(|(end, _)| end).chain([key.len()]);
        ends.map(|end| format!(": {} = ", &key[..end])).any(|of| self.faults.iter().any(|fault| fault.contains(&of)))
    }

    /// The setting of a variable of the environment, if it is one.
    fn variable(&mut self, name: &OsStr, value: &OsStr) -> Option<Entry> {
        let name = name.to_string_lossy();
        if let Some(rest) = name.strip_prefix(PREFIX) {
            let key = rest.to_ascii_lowercase().replace("__", ".");
            if let Some(text) = value.to_str() {
                return Some(Entry { source: name.into(), key, value: Value::from(text) });
            }
            self.faults.push(format!("{name}: {key}: must be UTF-8"));
        } else if let Some(rest) = name.strip_prefix(NEAR_PREFIX)
            && !is_of_a_service(rest, value)
        {
            self.warnings.push(format!("{name} is not read: {}", probable_name(rest)));
        }
        None
    }

    fn merge(&mut self, entries: Vec<Entry>) {
        let mut builder = ::config::Config::builder();
        for Entry { source, key, value } in entries {
            match parse_alone(&key, &value) {
                // An empty table sets no key, and must not replace the values in it.
                Ok(()) if matches!(value.kind, ValueKind::Table(_)) => {}
                Ok(()) => {
                    builder = builder.set_override(&key, value).expect("the key was taken a moment ago");
                    self.origins.insert(key, source);
                }
                Err(error) => {
                    self.faults.push(format!("{source}: {key} = {}: {}", shown(&value.kind), error_text(error)));
                }
            }
        }
        match builder.build().and_then(::config::Config::try_deserialize) {
            Ok(settings) => self.settings = settings,
            Err(error) => self.faults.push(error_text(error)),
        }
    }

    /// Sets the region from the variables that AWS's own tools read, if no key sets it.
    fn take_region(&mut self, environment: &[(OsString, OsString)]) {
        for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
            let found = environment.iter().find(|(key, value)| key == name && !value.is_empty());
            if let (Some((_, region)), "") = (found, self.settings.sender.region.as_str()) {
                self.settings.sender.region = region.to_string_lossy().into_owned();
                self.origins.insert("sender.region".into(), name.into());
            }
        }
    }
}

/// Tries one setting on top of the defaults.
fn parse_alone(key: &str, value: &Value) -> Result<(), ConfigError> {
    let nested = key.rsplit('.').fold(value.clone(), |inner, name| Map::from([(name.to_owned(), inner)]).into());
    nested.try_deserialize::<Settings>().map(drop)
}

fn file(path: &Path) -> Result<Vec<Entry>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let table = File::from_str(&text, FileFormat::Toml)
        .collect()
        .map_err(|error| format!("{}: {}", path.display(), error_text(error).trim_end()))?;
    let mut entries = Vec::new();
    flatten(&path.display().to_string(), "", table, &mut entries);
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(entries)
}

fn flatten(source: &str, prefix: &str, table: Map<String, Value>, entries: &mut Vec<Entry>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value.kind {
            ValueKind::Table(inner) if !inner.is_empty() => flatten(source, &format!("{key}."), inner, entries),
            _ => entries.push(Entry { source: source.into(), key, value }),
        }
    }
}

/// True for the variables that Kubernetes sets in each container for a Service called connect-relay, or
/// connect-relay-ANYTHING, in the format of Docker's links.
fn is_of_a_service(rest: &str, value: &OsStr) -> bool {
    // A bare port is not an address of a Service: it was meant as a setting.
    let number = value.to_str().is_some_and(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
    let rest = format!("_{rest}");
    let address = |tail: &str| {
        let mut parts = tail.split('_');
        let port = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
        let protocol = parts.next().is_some_and(|name| matches!(name, "TCP" | "UDP" | "SCTP"));
        let detail = parts.next().is_none_or(|detail| matches!(detail, "PROTO" | "PORT" | "ADDR"));
        port && protocol && detail && parts.next().is_none()
    };
    let shaped = rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || (rest.ends_with("_PORT") && !number)
        || rest.match_indices("_PORT_").any(|(at, found)| address(&rest[at + found.len()..]));
    shaped && similar_key(&rest[1..]).is_none()
}

/// Returns the key whose variable this would be with two underscores, in capitals.
fn similar_key(rest: &str) -> Option<String> {
    let keys = keys(&Settings::default()).into_iter().map(|(key, _)| key.to_ascii_uppercase());
    keys.into_iter().find(|key| key.replace('.', "_") == rest.replace("__", "_"))
}

/// Returns the name that was probably meant by one with single underscores.
fn probable_name(rest: &str) -> String {
    match similar_key(rest) {
        Some(key) => format!("it takes two underscores, {PREFIX}{}", key.replace('.', "__")),
        None => format!("settings begin with {PREFIX} and separate section and key by two underscores"),
    }
}

/// `--dir`: the bots' socket is in DIR itself, which may be mounted into their containers; the relay's own files are in
/// a folder inside it. A relative path starts at the working directory, as for any command.
fn directory(dir: &Path, environment: &[(OsString, OsString)]) -> Result<Vec<Entry>, String> {
    let shown = dir.display();
    if !paths::is_plain(dir) {
        let meant = paths::probable_path(dir, Path::new("/var/lib/connect-relay"), environment);
        return Err(format!("--dir = {shown}: no shell expands it here; probably {}", meant.display()));
    }
    let dir = std::path::absolute(dir).map_err(|error| format!("--dir = {shown}: {error}"))?;
    let dir = dir.to_str().ok_or_else(|| format!("--dir = {shown}: must be UTF-8"))?;
    let entries =
        [("ingress.socket", "relay.sock"), ("control.socket", "private/control.sock"), ("queue.path", "private/queue")]
            .map(|(key, place)| Entry {
                source: "--dir".into(),
                key: key.into(),
                value: Value::from(format!("{}/{place}", dir.trim_end_matches('/'))),
            });
    Ok(entries.into())
}

/// A value as it was written, without possible secrets.
fn shown(value: &ValueKind) -> String {
    match value {
        ValueKind::String(text) if text.contains('@') => "(not shown)".into(),
        ValueKind::String(text) if text.chars().count() > 80 => {
            format!("{:?}…", text.chars().take(80).collect::<String>())
        }
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            format!("[{}]", items.iter().map(|item| shown(&item.kind)).collect::<Vec<_>>().join(", "))
        }
        ValueKind::Table(_) => "a table".into(),
        number => number.to_string(),
    }
}

/// The error's own text, without the keys and origins that the `config` crate adds.
fn error_text(error: ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => error_text(*error),
        ConfigError::FileParse { cause, .. } => cause.to_string(),
        error => {
            let text = error.to_string();
            match text.split_once(", expected ") {
                Some((found, expected)) if found.starts_with("invalid type") => format!("must be {expected}"),
                _ => text.replacen("unknown field", "unknown key", 1),
            }
        }
    }
}
