//! Surveys a log: the messages that are queued, and the rows that fail their checksums.
//!
//! The packs are the truth. A message is queued if its record is valid and no other row says that it has left: its bit, its
//! outcome, its dead letter. If rows of different age contradict one another, because the newer state of one is lost, its
//! conversation's row decides. If nothing decides, the message counts as queued: it is better to send it again, with the
//! same ClientToken, than not at all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use crate::queue::rows::{
    ClientTokenRow, Conversation, Dead, FinalState, Hash, Key, QueuedRef, Record, RecordPos, Table, decode, keys, pack,
};
use crate::storage::{self, Image};

/// The survey of a log.
#[derive(Debug)]
pub struct Survey<'a> {
    pub log: &'a Image,
    /// The valid rows of conversations, with the references of their chunks.
    pub conversations: HashMap<Hash, Conversation>,
    /// Sequence numbers of messages that have an outcome or a dead letter.
    left: HashSet<u64>,
    /// The number of rows that fail their checksums, by letter.
    pub corrupt: BTreeMap<char, u64>,
    /// The number of rows whose table this build does not know.
    pub unknown: u64,
}

/// A pack, with the records that are queued.
pub struct Pack {
    pub key: Key,
    pub raw: Vec<u8>,
    pub queued: Vec<(RecordPos, Record)>,
}

/// The queued messages, and those that cannot be read.
#[derive(Debug, Default)]
pub struct Queued {
    /// Sequence numbers and positions, in the order of acceptance.
    pub found: Vec<(u64, RecordPos)>,
    /// The sequence numbers of messages that a row names and whose record is gone.
    pub lost: Vec<u64>,
    /// The number of records that fail their checksums and that no row names.
    pub nameless: u64,
}

impl<'a> Survey<'a> {
    /// Reads every row once.
    pub fn of(log: &'a Image) -> io::Result<Survey<'a>> {
        let (conversations, left) = (HashMap::new(), HashSet::new());
        let mut survey = Survey { log, conversations, left, corrupt: BTreeMap::new(), unknown: 0 };
        let (mut chunks, mut corrupt) = (Vec::new(), BTreeMap::new());
        for letter in 0..u8::MAX {
            for key in log.keys(letter) {
                let value = log.raw(key)?.unwrap_or_default();
                match verifies(key, &value) {
                    Some(true) => {}
                    Some(false) => *corrupt.entry(char::from(letter)).or_default() += 1,
                    None => survey.unknown += 1,
                }
                match Table::of(key) {
                    Some(Table::Conversation) => {
                        survey.conversations.extend(decode(key, &value).map(|row| (keys::hash_in(key), row)))
                    }
                    Some(Table::Chunk) => {
                        chunks.extend(decode::<Vec<QueuedRef>>(key, &value).map(|slots| (keys::hash_in(key), slots)))
                    }
                    Some(Table::ClientToken) => {
                        let outcome = decode(key, &value).and_then(ClientTokenRow::outcome);
                        survey.left.extend(outcome.map(|outcome| outcome.sequence));
                    }
                    Some(Table::Dead) if decode::<Dead>(key, &value).is_some() => {
                        survey.left.insert(keys::number_in(key));
                    }
                    _ => {}
                }
            }
        }
        survey.corrupt = corrupt;
        for (conversation, slots) in chunks {
            if let Some(row) = survey.conversations.get_mut(&conversation) {
                row.first.extend(slots);
            }
        }
        Ok(survey)
    }

    /// Returns true if a row is valid.
    pub fn is_valid(&self, key: &[u8]) -> io::Result<bool> {
        Ok(self.log.raw(key)?.is_some_and(|value| verifies(key, &value) == Some(true)))
    }

    /// The reference to a message in its conversation's row.
    pub fn reference(&self, record: &Record) -> Option<&QueuedRef> {
        let row = self.conversations.get(&record.conversation)?;
        row.first.iter().find(|reference| reference.sequence == record.sequence)
    }

    /// Returns true if the message of a record is queued. Its bit is checked before.
    fn is_queued(&self, record: &Record) -> bool {
        !self.left.contains(&record.sequence) || self.reference(record).is_some()
    }

    /// Calls `each` with every pack that has queued messages. Returns the positions of records that fail their checksums and
    /// have not left.
    pub fn packs(&self, mut each: impl FnMut(Pack) -> io::Result<()>) -> io::Result<Vec<RecordPos>> {
        let mut unreadable = Vec::new();
        let mut seen = HashSet::new();
        for bytes in self.log.keys(Table::Pack.letter()) {
            let Some(key) = Key::of(bytes) else { continue };
            let raw = self.log.raw(bytes)?.unwrap_or_default();
            let number = keys::number_in(bytes);
            let gone: u64 = self.log.get(&keys::gone(number))?.unwrap_or(0);
            let mut queued = Vec::new();
            for at in
                (0..pack::count(&raw)).map(|nth| RecordPos { pack: number, nth }).filter(|at| gone & at.bit() == 0)
            {
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

    /// The queued messages in the order of acceptance, and the lost ones.
    pub fn queued(&self) -> io::Result<Queued> {
        let mut queued = Queued::default();
        let unreadable = self.packs(|pack| {
            queued.found.extend(pack.queued.iter().map(|(at, record)| (record.sequence, *at)));
            Ok(())
        })?;
        queued.found.sort_unstable_by_key(|(sequence, _)| *sequence);
        let there: HashSet<u64> = queued.found.iter().map(|(sequence, _)| *sequence).collect();
        let named: Vec<&QueuedRef> = self.conversations.values().flat_map(|row| &row.first).collect();
        let places: HashSet<(u64, u8)> = named.iter().map(|reference| (reference.at.pack, reference.at.nth)).collect();
        queued.lost =
            named.iter().map(|reference| reference.sequence).filter(|sequence| !there.contains(sequence)).collect();
        queued.lost.sort_unstable();
        queued.nameless = unreadable.iter().filter(|at| !places.contains(&(at.pack, at.nth))).count() as u64;
        Ok(queued)
    }

    /// The record at a position.
    pub fn record(&self, at: RecordPos) -> io::Result<Option<Record>> {
        Ok(self.log.raw(&at.key())?.and_then(|raw| pack::decode(at, &raw)))
    }

    /// The valid dead letters.
    pub fn dead_letters(&self) -> impl Iterator<Item = io::Result<(&'a [u8], Dead)>> {
        let log = self.log;
        log.keys(Table::Dead.letter())
            .filter_map(move |key| log.get(key).map(|dead| dead.map(|dead| (key, dead))).transpose())
    }

    /// The number of outcomes of delivered messages.
    pub fn delivered(&self) -> io::Result<u64> {
        let mut count = 0;
        for key in self.log.keys(Table::ClientToken.letter()) {
            let outcome = self.log.get(key)?.and_then(ClientTokenRow::outcome);
            count += u64::from(outcome.is_some_and(|outcome| matches!(outcome.fate, FinalState::Delivered(_))));
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
