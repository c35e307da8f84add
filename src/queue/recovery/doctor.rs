//! A store that no relay runs on: is it sound, what is in it, and a new one of what verifies.
//!
//! Everything is read without sled, and nothing is written into the folder looked at. A sealed store shows contents and
//! tokens only to its key; what is counted and listed needs none.

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
use crate::storage::{self, Image, Known, OpenError, Sealer, SealingKey};
use crate::time::{Anchor, Clock, Timestamp, WallTime};

/// Most messages that are named one by one.
const NAMED_MAX: usize = 100;

/// A store under examination: locked, where a relay could run on it.
#[derive(Debug)]
pub struct Doctor {
    path: PathBuf,
    _lock: Option<File>,
    keys: Vec<SealingKey>,
    format: u32,
    nonce: u32,
    /// None where it is sealed, and no key that opens it was given.
    sealer: Option<Sealer>,
    log: Image,
}

/// What a store holds, and what is wrong with it. Written out, it is for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The store.
    pub path: PathBuf,
    /// The format that it is written in.
    pub format: u32,
    /// Contents and tokens cannot be read.
    pub sealed: bool,
    /// Messages queued, whose records verify.
    pub queued: u64,
    /// Outcomes of delivered messages that are remembered.
    pub delivered: u64,
    /// Dead letters that verify.
    pub dead: u64,
    /// Rows, all in all.
    pub rows: u64,
    /// Rows that a relay had set aside.
    pub set_aside: u64,
    /// Ids of messages that are lost: something names them, and their record cannot be read.
    pub lost: Vec<String>,
    /// Ids of messages and dead letters whose contents or token cannot be read.
    pub incomplete: Vec<String>,
    /// What else is damaged, in words.
    pub damage: Vec<String>,
}

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Messages written, or listed where the store is sealed.
    pub written: u64,
    /// Queued events and disconnects: a batch takes messages alone.
    pub others: u64,
    /// Ids of messages that cannot be read.
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

/// A line of a listing: what a sealed store shows.
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
    /// Reads a store; `step` hears how far it has come, as (segments read, segments there are).
    ///
    /// # Errors
    /// When there is none, a relay runs on it, it is of another format, none of the keys opens it, or it cannot be read.
    pub fn open(path: &Path, keys: Vec<SealingKey>, step: impl FnMut(u64, u64)) -> Result<Doctor, OpenError> {
        let failed =
            |step| move |cause: io::Error| OpenError::Failed { path: path.to_owned(), step, cause: cause.to_string() };
        fs::read_dir(path).map_err(failed("look into the folder"))?;
        if !["db", "format"].iter().any(|name| path.join(name).exists()) {
            return Err(failed("find a store")(io::Error::other("neither its log nor its format stamp is there")));
        }
        let lock = storage::lock_if_there(path)?;
        let mut log = Image::read(path, step).map_err(failed("read its log"))?;
        let (known, damage) = log.identity(path, &keys)?;
        let lost = || Known { format: storage::FORMAT, nonce: 0, sealer: Some(Sealer::new(keys.clone(), 0)) };
        let Known { format, nonce, sealer } = known.unwrap_or_else(lost);
        // Without a key there is a listing; with a wrong one somebody is mistaken.
        if sealer.is_none() && !keys.is_empty() {
            return Err(OpenError::Sealed { path: path.to_owned(), keys: keys.len() });
        }
        let damage = damage.into_iter().chain(storage::odd_files(path));
        log.damage.splice(0..0, damage);
        Ok(Doctor { path: path.to_owned(), _lock: lock, keys, format, nonce, sealer, log })
    }

    /// Whether contents and tokens cannot be read for want of a key.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealer.is_none()
    }

    /// Verifies every record.
    ///
    /// # Errors
    /// When the log cannot be read.
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

    /// Writes what is queued, and if wanted the dead letters, as NDJSON that the batch route takes; of a sealed store
    /// only a listing.
    ///
    /// # Errors
    /// When the log cannot be read or the lines cannot be written.
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

    /// The wall clock at a point on the store's line, as far as the store knows.
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

    /// Makes a new store of what verifies in a folder that is not there yet or is empty.
    ///
    /// # Errors
    /// When that folder holds anything, or something cannot be read or written.
    pub fn repair(&self, into: &Path, clock: &Clock) -> Result<Rebuilt, OpenError> {
        let failed = |step, cause: io::Error| OpenError::Failed { path: into.into(), step, cause: cause.to_string() };
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

    /// Whether the contents verify, and are what was sealed, as far as there is a key to tell.
    fn is_readable(&self, record: &Record) -> io::Result<bool> {
        match &self.sealer {
            Some(sealer) => Ok(contents::body(record, sealer, |key| self.log.get(&key))?.is_some()),
            None => contents::has_all_pieces(record, |key| self.log.get(&key)),
        }
    }

    /// The ConnectionToken that a message would go with, as it is kept where there is no key, and whether it came under a
    /// key of its conversation's.
    fn secret(&self, record: &Record) -> io::Result<Option<(Zeroizing<Vec<u8>>, bool)>> {
        let (hash, token) = current_token(&record.token, |key| self.log.get(key))?;
        if token.secret.bytes().is_empty() {
            return Ok(None);
        }
        let secret = match &self.sealer {
            Some(sealer) => sealer.open(&keys::token(&hash), &token.secret),
            None => Some(Zeroizing::new(token.secret.bytes().to_vec())),
        };
        Ok(secret.map(|secret| (secret, token.keyed)))
    }

    fn id(&self, sequence: u64) -> String {
        format!("{:08x}-{sequence}", self.nonce)
    }
}

impl Report {
    /// Whether nothing is damaged.
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

/// The ids, as far as anybody reads them.
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
