//! The doctor: checks, exports and repairs a store on which no relay runs.
//!
//! It reads without sled, and writes nothing into the folder. Contents and tokens of a sealed store need its key; counts
//! and lists do not.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use zeroize::Zeroizing;

use super::rebuild::{Rebuilt, rebuild};
use super::survey::Survey;
use crate::message::Body;
use crate::queue::api::Options;
use crate::queue::rows::{Record, Table, keys};
use crate::queue::state::contents;
use crate::queue::state::tokens::current_token;
use crate::storage::{self, Aside, Image, Known, Left, OpenError, Sealer, SealingKey};
use crate::time::{Anchor, Clock, Timestamp, WallTime};

/// The most messages that are named one by one.
const NAMED_MAX: usize = 100;

/// A store under examination; it is locked if a relay could run on it.
#[derive(Debug)]
pub struct Doctor {
    path: PathBuf,
    _lock: Option<File>,
    keys: Vec<SealingKey>,
    format: u32,
    nonce: u32,
    /// `None` if it is sealed and no key was given.
    sealer: Option<Sealer>,
    log: Image,
}

/// The contents of a store and its damage. `Display` writes it for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The store.
    pub path: PathBuf,
    /// Its format.
    pub format: u32,
    /// True if contents and tokens cannot be read.
    pub sealed: bool,
    /// Queued messages with valid records.
    pub queued: u64,
    /// Outcomes of delivered messages.
    pub delivered: u64,
    /// Valid dead letters.
    pub dead: u64,
    /// All rows.
    pub rows: u64,
    /// Rows that a relay had set aside.
    pub set_aside: u64,
    /// The ids of lost messages: a row names them, and their record cannot be read.
    pub lost: Vec<String>,
    /// The ids of messages and dead letters whose contents or token cannot be read.
    pub incomplete: Vec<String>,
    /// Other damage, in words.
    pub damage: Vec<String>,
    /// True if a relay has copied the store into a fleet.
    pub replicated: bool,
    /// The stores beside it that were set aside because another relay has continued them.
    pub left: Vec<LeftStore>,
}

/// A store that was set aside because another relay has continued it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftStore {
    /// Its folder.
    pub path: PathBuf,
    /// The queued messages that no relay has accepted anew; the error if it cannot be read.
    pub waiting: Result<u64, String>,
}

/// The result of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Messages written, or listed if the store is sealed.
    pub written: u64,
    /// Queued events and disconnects: a batch takes only messages.
    pub others: u64,
    /// The ids of messages that cannot be read.
    pub unreadable: Vec<String>,
}

/// A line of a batch.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BatchLine<'a> {
    content_type: &'a str,
    content: &'a str,
    client_token: &'a str,
    connection_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lifetime: Option<u64>,
}

/// A line of a sealed store's listing.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed<'a> {
    id: String,
    state: &'a str,
    client_token: &'a str,
    conversation: &'a str,
    accepted_time: String,
}

impl Doctor {
    /// Reads a store, and calls `step` with the number of segments read and of all segments.
    ///
    /// # Errors
    /// If there is none, a relay runs on it, it has another format, no key opens it, or it cannot be read.
    pub fn open(path: &Path, keys: Vec<SealingKey>, step: impl FnMut(u64, u64)) -> Result<Doctor, OpenError> {
        let failed = |step| move |cause| OpenError::failed(path, step, cause);
        fs::read_dir(path).map_err(failed("look into the folder"))?;
        if !["db", "format"].iter().any(|name| path.join(name).exists()) {
            return Err(failed("find a store")(io::Error::other("neither its log nor its format stamp is there")));
        }
        let lock = storage::lock_if_there(path)?;
        let mut log = Image::read(path, step).map_err(failed("read its log"))?;
        let (known, damage) = log.identity(path, &keys)?;
        let lost = || Known { format: storage::FORMAT, nonce: 0, sealer: Some(Sealer::new(keys.clone(), 0)) };
        let Known { format, nonce, sealer } = known.unwrap_or_else(lost);
        // Without a key there is a listing; a wrong key is a mistake.
        if sealer.is_none() && !keys.is_empty() {
            return Err(OpenError::Sealed { path: path.to_owned(), keys: keys.len() });
        }
        let damage = damage.into_iter().chain(storage::odd_files(path));
        log.damage.splice(0..0, damage);
        Ok(Doctor { path: path.to_owned(), _lock: lock, keys, format, nonce, sealer, log })
    }

    /// True if contents and tokens cannot be read without a key.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealer.is_none()
    }

    /// Verifies every record.
    pub fn check(&self) -> io::Result<Report> {
        let survey = Survey::of(&self.log)?;
        let queued = survey.queued()?;
        let mut report = Report {
            path: self.path.clone(),
            format: self.format,
            sealed: self.is_sealed(),
            queued: queued.found.len() as u64,
            delivered: survey.delivered()?,
            rows: self.log.counts().values().sum(),
            set_aside: self.log.counts().get(&Table::Quarantine.letter()).copied().unwrap_or(0),
            lost: queued.lost.iter().map(|sequence| self.id(*sequence)).collect(),
            damage: self.log.damage.clone(),
            replicated: storage::is_replicated(&self.path),
            left: storage::asides(&self.path)?.into_iter().map(LeftStore::of).collect(),
            ..Report::default()
        };
        for (_, at) in &queued.found {
            if let Some(record) = survey.record(*at)?
                && !(self.is_readable(&record)? && self.secret(&record)?.is_some())
            {
                report.incomplete.push(self.id(record.sequence));
            }
        }
        for dead in survey.dead_letters() {
            let record = dead?.1.record;
            report.dead += 1;
            if !self.is_readable(&record)? {
                report.incomplete.push(self.id(record.sequence));
            }
        }
        if queued.nameless > 0 {
            report
                .damage
                .push(format!("{} records fail their sums, and nothing tells whose they were", queued.nameless));
        }
        for (letter, count) in &survey.corrupt {
            report.damage.push(format!("{count} rows of kind {letter:?} fail their sums"));
        }
        if survey.unknown > 0 {
            report.damage.push(format!("{} rows are of no kind that this build knows", survey.unknown));
        }
        Ok(report)
    }

    /// Writes the queued messages, and the dead letters if `dead` is true, as NDJSON for the batch route; of a sealed
    /// store only a listing.
    ///
    /// # Errors
    /// If the log cannot be read or the lines cannot be written.
    pub fn export(&self, dead: bool, out: &mut dyn io::Write) -> io::Result<Exported> {
        let survey = Survey::of(&self.log)?;
        let mut exported = Exported::default();
        for (_, at) in survey.queued()?.found {
            if let Some(record) = survey.record(at)? {
                self.export_one(&record, "QUEUED", &mut exported, out)?;
            }
        }
        if dead {
            for dead in survey.dead_letters() {
                self.export_one(&dead?.1.record, "DEAD", &mut exported, out)?;
            }
        }
        Ok(exported)
    }

    /// The wall clock at a time of the store, as far as the store knows it.
    fn shown(&self, inner: Timestamp) -> io::Result<WallTime> {
        let anchor = self.log.get::<Anchor>(&Table::Anchor.key())?;
        Ok(anchor.map_or(WallTime(inner.0), |anchor| anchor.shown(inner)))
    }

    fn export_one(&self, record: &Record, state: &str, to: &mut Exported, out: &mut dyn io::Write) -> io::Result<()> {
        let Record { label, client_token, accepted, default_lifetime, lifetime_ms, .. } = record;
        let Some(sealer) = &self.sealer else {
            let (id, accepted_time) = (self.id(record.sequence), self.shown(*accepted)?.to_string());
            to.written += 1;
            return line(out, &Listed { id, state, client_token, conversation: label, accepted_time });
        };
        let body = contents::body(record, sealer, |key| self.log.get(&key))?;
        let (content_type, content) = match &body {
            Some(Body::Message { content_type, content }) => (content_type.as_str(), content.expose()),
            Some(_) => {
                to.others += 1;
                return Ok(());
            }
            None => {
                to.unreadable.push(self.id(record.sequence));
                return Ok(());
            }
        };
        let secret = self.secret(record)?;
        let text = secret.as_ref().and_then(|(secret, keyed)| Some((std::str::from_utf8(secret).ok()?, *keyed)));
        let Some((connection_token, keyed)) = text else {
            to.unreadable.push(self.id(record.sequence));
            return Ok(());
        };
        let lifetime = (!default_lifetime).then_some(Duration::from_millis(*lifetime_ms).as_secs().max(1));
        let conversation = keyed.then_some(label.as_str());
        to.written += 1;
        line(out, &BatchLine { content_type, content, client_token, connection_token, conversation, lifetime })
    }

    /// Makes a new store of the valid rows in a folder that does not exist or is empty.
    ///
    /// # Errors
    /// If the folder is not empty, or a file cannot be read or written.
    pub fn repair(&self, into: &Path, clock: &Clock) -> Result<Rebuilt, OpenError> {
        let failed = |step, cause| OpenError::failed(into, step, cause);
        if fs::read_dir(into).is_ok_and(|mut files| files.next().is_some()) {
            return Err(failed("make a store", io::Error::other("the folder is not empty")));
        }
        if self.is_sealed() {
            return Err(OpenError::Sealed { path: self.path.clone(), keys: self.keys.len() });
        }
        // No message is accepted or pruned: the limits do not matter.
        let options = Options { path: into.into(), keys: self.keys.clone(), ..Options::default() };
        rebuild(&self.log, &self.path, into, &options, clock).map_err(|cause| failed("make a store", cause))
    }

    /// True if the contents are complete and, with a key, can be opened.
    fn is_readable(&self, record: &Record) -> io::Result<bool> {
        match &self.sealer {
            Some(sealer) => Ok(contents::body(record, sealer, |key| self.log.get(&key))?.is_some()),
            None => contents::has_all_pieces(record, |key| self.log.get(&key)),
        }
    }

    /// The ConnectionToken that a message would be sent with (sealed if there is no key), and true if the bot named its
    /// conversation by a key.
    fn secret(&self, record: &Record) -> io::Result<Option<(Zeroizing<Vec<u8>>, bool)>> {
        secret(&self.log, self.sealer.as_ref(), record)
    }

    fn id(&self, sequence: u64) -> String {
        format!("{:08x}-{sequence}", self.nonce)
    }
}

/// The ConnectionToken that a message would be sent with (sealed if there is no key), and true if the bot named its
/// conversation by a key.
pub fn secret(log: &Image, sealer: Option<&Sealer>, record: &Record) -> io::Result<Option<(Zeroizing<Vec<u8>>, bool)>> {
    let (hash, token) = current_token(&record.token, |key| log.get(key))?;
    if token.secret.bytes().is_empty() {
        return Ok(None);
    }
    let secret = match sealer {
        Some(sealer) => sealer.open(&keys::token(&hash), &token.secret),
        None => Some(Zeroizing::new(token.secret.bytes().to_vec())),
    };
    Ok(secret.map(|secret| (secret, token.keyed)))
}

impl LeftStore {
    fn of(aside: Aside) -> LeftStore {
        let Aside { left: Left { path, from }, complete, taken } = aside;
        let waiting = if taken {
            Ok(0)
        } else if complete {
            waiting(&path, from).map_err(|error| error.to_string())
        } else {
            Err("not all of its files are in it yet".into())
        };
        LeftStore { path, waiting }
    }
}

/// The number of queued messages from this sequence number on.
fn waiting(path: &Path, from: u64) -> io::Result<u64> {
    let log = Image::read(path, |_, _| ())?;
    let queued = Survey::of(&log)?.queued()?;
    Ok(queued.found.iter().filter(|(sequence, _)| *sequence >= from).count() as u64)
}

impl fmt::Display for LeftStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "{path}: set aside because another relay continued this queue; ")?;
        match &self.waiting {
            Ok(0) => write!(f, "a relay has accepted its messages anew: it can be removed"),
            Ok(1) => write!(f, "1 message in it waits; the relay that starts on this queue accepts it anew"),
            Ok(waiting) => {
                write!(f, "{waiting} messages in it wait; the relay that starts on this queue accepts them anew")
            }
            Err(why) => write!(
                f,
                "{why}; the relay that starts on this queue goes on with it, and `connect-relay doctor check {path}` shows \
                 what it has"
            ),
        }
    }
}

impl Report {
    /// True if nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lost.is_empty() && self.incomplete.is_empty() && self.damage.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { path, format, queued, delivered, dead, rows, .. } = self;
        let sealed = if self.sealed { ", sealed" } else { "" };
        writeln!(f, "{}: format {format}{sealed}, {rows} rows", path.display())?;
        writeln!(f, "queued: {queued}\nremembered as delivered: {delivered}\ndead letters: {dead}")?;
        if self.set_aside > 0 {
            writeln!(f, "rows set aside by a relay: {}", self.set_aside)?;
        }
        if self.replicated {
            writeln!(
                f,
                "copied into a fleet: another relay may have continued it; a relay that starts here finds out first"
            )?;
        }
        self.left.iter().try_for_each(|left| writeln!(f, "{left}"))?;
        for (what, ids) in [("lost", &self.lost), ("contents or token cannot be read", &self.incomplete)] {
            if !ids.is_empty() {
                writeln!(f, "{what}: {} messages: {}", ids.len(), named(ids))?;
            }
        }
        self.damage.iter().try_for_each(|damage| writeln!(f, "damaged: {damage}"))?;
        let verdict = match (self.is_sound(), self.sealed) {
            (true, false) => "sound",
            (true, true) => "sound, as far as can be told without its key",
            (false, _) => "DAMAGED",
        };
        writeln!(f, "{verdict}")
    }
}

/// The first ids of a list.
#[must_use]
pub fn named(ids: &[String]) -> String {
    let more = if ids.len() > NAMED_MAX { ", …" } else { "" };
    ids[..ids.len().min(NAMED_MAX)].join(", ") + more
}

fn line(out: &mut dyn io::Write, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    out.write_all(&text)
}
