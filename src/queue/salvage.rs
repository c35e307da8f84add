//! What of a log is alive: which messages are queued, and what fails its sum.
//!
//! The packs are the truth, as ever. A message is queued where its record verifies and nothing says that it has left: its
//! bit, its outcome, its dead letter. Where rows of different age contradict one another, because the newer state of one
//! is lost, its conversation's line decides; where nothing decides, the message is taken for queued: it is better sent
//! again, with the same ClientToken, than not at all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use super::rows::{At, Dead, Entry, Fate, Hash, Key, Line, Record, Slot, Table, decode, keys, pack};
use crate::storage::{self, Image};

/// A log, understood.
#[derive(Debug)]
pub struct Salvage<'a> {
    pub log: &'a Image,
    /// Conversations' lines that verify, with what their chunks hold.
    pub lines: HashMap<Hash, Line>,
    /// Sequence numbers of messages that have an outcome or a dead letter.
    left: HashSet<u64>,
    /// Rows that fail their sums, by letter.
    pub corrupt: BTreeMap<char, u64>,
    /// Rows of which this build knows nothing.
    pub unknown: u64,
}

/// A pack, with those of its messages that are queued.
pub struct Pack {
    pub key: Key,
    pub raw: Vec<u8>,
    pub queued: Vec<(At, Record)>,
}

/// All that was queued, and what of it cannot be read.
#[derive(Debug, Default)]
pub struct Queued {
    /// Sequence numbers and places, in the order of acceptance.
    pub found: Vec<(u64, At)>,
    /// Messages named somewhere whose record is gone, by sequence number.
    pub lost: Vec<u64>,
    /// Records that fail their sums, and nothing tells whose they were.
    pub nameless: u64,
}

impl<'a> Salvage<'a> {
    /// Looks at every row once.
    pub fn of(log: &'a Image) -> io::Result<Salvage<'a>> {
        let (lines, left) = (HashMap::new(), HashSet::new());
        let mut salvage = Salvage { log, lines, left, corrupt: BTreeMap::new(), unknown: 0 };
        let (mut chunks, mut corrupt) = (Vec::new(), BTreeMap::new());
        for letter in 0..u8::MAX {
            for key in log.keys(letter) {
                let value = log.raw(key)?.unwrap_or_default();
                match verifies(key, &value) {
                    Some(true) => {}
                    Some(false) => *corrupt.entry(char::from(letter)).or_default() += 1,
                    None => salvage.unknown += 1,
                }
                match Table::of(key) {
                    Some(Table::Line) => {
                        salvage.lines.extend(decode(key, &value).map(|line| (keys::hash_in(key), line)))
                    }
                    Some(Table::Chunk) => {
                        chunks.extend(decode::<Vec<Slot>>(key, &value).map(|slots| (keys::hash_in(key), slots)))
                    }
                    Some(Table::Entry) => {
                        if let Some(Entry::Done(outcome)) = decode(key, &value) {
                            salvage.left.insert(outcome.sequence);
                        }
                    }
                    Some(Table::Dead) if decode::<Dead>(key, &value).is_some() => {
                        salvage.left.insert(keys::number_in(key));
                    }
                    _ => {}
                }
            }
        }
        salvage.corrupt = corrupt;
        for (conversation, slots) in chunks {
            if let Some(line) = salvage.lines.get_mut(&conversation) {
                line.first.extend(slots);
            }
        }
        Ok(salvage)
    }

    /// Whether a row's sum holds.
    pub fn holds(&self, key: &[u8]) -> io::Result<bool> {
        Ok(self.log.raw(key)?.is_some_and(|value| verifies(key, &value) == Some(true)))
    }

    /// What its line says of a message.
    pub fn slot(&self, record: &Record) -> Option<&Slot> {
        let line = self.lines.get(&record.conversation)?;
        line.first.iter().find(|slot| slot.sequence == record.sequence)
    }

    /// Whether a record's message is queued, as far as its bit does not tell.
    fn is_queued(&self, record: &Record) -> bool {
        !self.left.contains(&record.sequence) || self.slot(record).is_some()
    }

    /// Every pack that holds something queued; with each record that fails its sum while nothing says that it left.
    pub fn packs(&self, mut each: impl FnMut(Pack) -> io::Result<()>) -> io::Result<Vec<At>> {
        let mut unreadable = Vec::new();
        let mut seen = HashSet::new();
        for bytes in self.log.keys(Table::Pack.letter()) {
            let Some(key) = Key::of(bytes) else { continue };
            let raw = self.log.raw(bytes)?.unwrap_or_default();
            let number = keys::number_in(bytes);
            let gone: u64 = self.log.get(&keys::gone(number))?.unwrap_or(0);
            let mut queued = Vec::new();
            for at in (0..pack::count(&raw)).map(|nth| At { pack: number, nth }).filter(|at| gone & at.bit() == 0) {
                match pack::decode(at, &raw) {
                    Some(record) if !self.is_queued(&record) || !seen.insert(record.sequence) => {}
                    Some(record) => queued.push((at, record)),
                    None => unreadable.push(at),
                }
            }
            if !queued.is_empty() {
                each(Pack { key, raw, queued })?;
            }
        }
        Ok(unreadable)
    }

    /// All that is queued, in the order of acceptance, and what is lost.
    pub fn queued(&self) -> io::Result<Queued> {
        let mut queued = Queued::default();
        let unreadable = self.packs(|pack| {
            queued.found.extend(pack.queued.iter().map(|(at, record)| (record.sequence, *at)));
            Ok(())
        })?;
        queued.found.sort_unstable_by_key(|(sequence, _)| *sequence);
        let there: HashSet<u64> = queued.found.iter().map(|(sequence, _)| *sequence).collect();
        let named: Vec<&Slot> = self.lines.values().flat_map(|line| &line.first).collect();
        let places: HashSet<(u64, u8)> = named.iter().map(|slot| (slot.at.pack, slot.at.nth)).collect();
        queued.lost = named.iter().map(|slot| slot.sequence).filter(|sequence| !there.contains(sequence)).collect();
        queued.lost.sort_unstable();
        queued.nameless = unreadable.iter().filter(|at| !places.contains(&(at.pack, at.nth))).count() as u64;
        Ok(queued)
    }

    /// The record that stands there.
    pub fn record(&self, at: At) -> io::Result<Option<Record>> {
        Ok(self.log.raw(&at.key())?.and_then(|raw| pack::decode(at, &raw)))
    }

    /// Dead letters that verify.
    pub fn dead(&self) -> impl Iterator<Item = io::Result<(&'a [u8], Dead)>> {
        let log = self.log;
        log.keys(Table::Dead.letter())
            .filter_map(move |key| log.get(key).map(|dead| dead.map(|dead| (key, dead))).transpose())
    }

    /// Outcomes of messages that were delivered.
    pub fn delivered(&self) -> io::Result<u64> {
        let mut count = 0;
        for key in self.log.keys(Table::Entry.letter()) {
            let entry: Option<Entry> = self.log.get(key)?;
            count +=
                u64::from(matches!(entry, Some(Entry::Done(outcome)) if matches!(outcome.fate, Fate::Delivered(_))));
        }
        Ok(count)
    }
}

/// Returns true if a row verifies. `None` if its table is unknown.
fn verifies(key: &[u8], value: &[u8]) -> Option<bool> {
    match Table::of(key) {
        Some(table) => Some(table.verify(key, value)),
        None => storage::verify_own_row(key, value),
    }
}
