//! The journal: one write and one `fdatasync` for each commit.
//!
//! A batch of sled's costs a page for each row and two writes with a thread in between; a record here is one write. It
//! counts from its `fdatasync` on. What it holds is in the overlay too, and goes into sled when the journal is full, or
//! the relay leaves: that is a *checkpoint*, and the journal begins anew, in the same place, with the next epoch.
//!
//! A record is
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | CRC-32 of all that follows |
//! | 4 | how many bytes of rows follow the head |
//! | 8 | the epoch: checkpoints before it |
//! | 8 | its number within the epoch, from 0 |
//! | … | the rows: the key's length (1), the value's (4, all ones for a row that was removed), key, value |
//!
//! all numbers big-endian. At a start the records of the epoch that sled's `j` row names are read back; those of epochs before
//! are in sled. One that is not whole ends them: it was not acknowledged, and nothing was written after it. If something
//! was, it is no cut but damage.
//!
//! What can be told of damage, and what not. A clean stop leaves everything in sled: nothing here is needed then. After a
//! kill or a power cut it is what was committed since the last checkpoint, 1 MiB and one commit at most:
//!
//! | of the records since then | |
//! | --- | --- |
//! | one fails its sum, and one after it does not | told |
//! | the file is gone | told |
//! | the file is empty, or another store's | told, after the first checkpoint of a store |
//! | the file was cut off | told, where it was longer at an earlier checkpoint: the log says how long it must be |
//! | the last ones fail their sums, or were zeroed in their place | **not told**: a power cut leaves one that was not acknowledged yet just so. To tell, each commit would need a second place and a second sync |
//!
//! | cut | what the next start finds |
//! | --- | --- |
//! | while a record is written | the records before it |
//! | in a checkpoint | the old epoch in sled, and the whole of its records: rows that sled has already are written again |
//! | after it, before the next record is whole | the new epoch, and no record of it |

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::codec;
use super::overlay::{Rows, Value};

/// Its file, beside the log.
pub const NAME: &str = "journal";
/// The format since which every store has one: its name is durable before the stamp is.
pub const SINCE: u32 = 2;
/// The row in sled that names the epoch whose records are not there yet.
pub const EPOCH: &[u8] = b"j";
/// What it holds before a checkpoint is due: a longer one saves more of what comes and goes, and keeps the next commit waiting
/// for longer (2 MiB some 30 ms, at 25,000 messages a second).
const BYTES: u64 = 1 << 20;
const HEAD: usize = 24;
const REMOVED: u32 = u32::MAX;

/// What sled says of the journal, in the row [`EPOCH`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The epoch of the records that are not in sled.
    pub epoch: u64,
    /// The file is at least so long: it never gets shorter.
    pub length: u64,
}

impl Mark {
    /// From the row; a relay that did not look at lengths wrote the epoch alone.
    pub fn decode(row: &[u8]) -> Option<Mark> {
        let old = || codec::decode(EPOCH, row).map(|epoch| Mark { epoch, length: 0 });
        codec::decode(EPOCH, row).or_else(old)
    }
}

/// The file, and where the next record goes.
pub struct Journal {
    file: File,
    epoch: u64,
    number: u64,
    end: u64,
    /// How long the file is at least, by what was synced: what a start has read back may not have been.
    length: u64,
    /// The record being made; kept for its room.
    record: Vec<u8>,
}

/// Without the record, in which contents and tokens stand.
impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Journal { epoch, number, .. } = self;
        f.debug_struct("Journal").field("epoch", epoch).field("number", number).finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the file, or makes it; tells each row that was committed in this epoch, in the order of their commits. With
    /// it, how many commits are damaged: those that are not whole though one after them is.
    pub fn open(folder: &Path, mark: Mark, tell: impl FnMut(Vec<u8>, Value)) -> io::Result<(Journal, u64)> {
        let Mark { epoch, length } = mark;
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(folder.join(NAME))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Replayed { number, end, damaged } = replay(&bytes, epoch, tell);
        Ok((Journal { file, epoch, number, end, length, record: Vec::new() }, damaged))
    }

    /// Writes the rows of one commit.
    pub fn append(&mut self, rows: &Rows) -> io::Result<()> {
        let record = &mut self.record;
        record.clear();
        record.resize(HEAD, 0);
        for (key, value) in rows {
            let length = value.as_ref().map_or(REMOVED, |value| value.len() as u32);
            record.push(key.len() as u8);
            record.extend_from_slice(&length.to_be_bytes());
            record.extend_from_slice(key);
            record.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        let length = (record.len() - HEAD) as u32;
        record[4..8].copy_from_slice(&length.to_be_bytes());
        record[8..16].copy_from_slice(&self.epoch.to_be_bytes());
        record[16..24].copy_from_slice(&self.number.to_be_bytes());
        let sum = crc32fast::hash(&record[4..]);
        record[..4].copy_from_slice(&sum.to_be_bytes());
        self.file.write_all_at(record, self.end)?;
        self.end += record.len() as u64;
        self.number += 1;
        // One long batch must not be held on to.
        record.shrink_to(BYTES as usize / 4);
        Ok(())
    }

    /// What was written is on disk when this returns: the instant of commit.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.length = self.length.max(self.end);
        Ok(())
    }

    /// Whether it is time for a checkpoint.
    pub fn is_full(&self) -> bool {
        self.end >= BYTES
    }

    /// Whether it holds anything.
    pub fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// What the checkpoint under way leaves in sled.
    pub fn next(&self) -> Mark {
        Mark { epoch: self.epoch + 1, length: self.length }
    }

    /// Sled has all of it, durably.
    pub fn begin_anew(&mut self) {
        let Mark { epoch, length } = self.next();
        (self.epoch, self.length, self.number, self.end) = (epoch, length, 0, 0);
    }
}

/// What is wrong with a journal as a whole, beside a log that says this of it: that it is not there, or another's (there is
/// always something of this epoch, or what is left of the one before), or that its end was cut off. Before the first
/// checkpoint it may be empty, but a store that `had` one has it.
pub fn damage(folder: &Path, mark: Mark, had: bool) -> io::Result<Option<String>> {
    let Mark { epoch, length } = mark;
    if epoch == 0 {
        return Ok((had && !folder.join(NAME).is_file()).then(|| "its journal is gone".into()));
    }
    let bytes = contents(folder)?;
    let names = |at: usize| [epoch, epoch - 1].iter().any(|epoch| stands(&bytes, at + 8, *epoch));
    if !(0..bytes.len()).any(|at| names(at) && whole(&bytes[at..]).is_some()) {
        return Ok(Some("its journal is gone".into()));
    }
    let cut = (bytes.len() as u64) < length;
    Ok(cut.then(|| format!("its journal is cut off: of {length} bytes {} are there", bytes.len())))
}

/// An empty one where there is none, or no file.
fn contents(folder: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(folder.join(NAME)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(Vec::new()),
        bytes => bytes,
    }
}

/// Tells what a journal holds beside a log that names this epoch, or none that can be read; how many commits are damaged.
/// No harm is done by rows that the log has already.
pub fn read(folder: &Path, epoch: Option<u64>, tell: impl FnMut(Vec<u8>, Value)) -> io::Result<u64> {
    let bytes = contents(folder)?;
    let newest = || (0..bytes.len()).find_map(|at| whole(&bytes[at..])).map(|(epoch, ..)| epoch);
    Ok(epoch.or_else(newest).map_or(0, |epoch| replay(&bytes, epoch, tell).damaged))
}

struct Replayed {
    number: u64,
    end: u64,
    damaged: u64,
}

fn replay(bytes: &[u8], epoch: u64, mut tell: impl FnMut(Vec<u8>, Value)) -> Replayed {
    let mut replayed = Replayed { number: 0, end: 0, damaged: 0 };
    let mut at = 0;
    while let Some((start, number, rows)) = next_record(bytes, at, epoch, replayed.number) {
        replayed.damaged += number - replayed.number;
        read_rows(rows, &mut tell);
        at = start + HEAD + rows.len();
        (replayed.number, replayed.end) = (number + 1, at as u64);
    }
    replayed
}

/// The record with this number that stands here; where that is damaged, the first after it: where, its number, its rows.
fn next_record(bytes: &[u8], at: usize, epoch: u64, number: u64) -> Option<(usize, u64, &[u8])> {
    let of_epoch = |at: &usize| bytes.get(at + 8..at + 16) == Some(&epoch.to_be_bytes());
    let mut records =
        (at..bytes.len()).filter(of_epoch).filter_map(|at| whole(&bytes[at..]).map(|record| (at, record)));
    records
        .find(|(start, (_, found, _))| *found > number || (*found == number && *start == at))
        .map(|(start, (_, found, rows))| (start, found, rows))
}

/// Whether a number stands there.
fn stands(bytes: &[u8], at: usize, number: u64) -> bool {
    bytes.get(at..at + 8) == Some(&number.to_be_bytes())
}

/// Epoch, number and rows of a record that begins here and is whole.
fn whole(bytes: &[u8]) -> Option<(u64, u64, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let length = u32::from_be_bytes(head[4..8].try_into().ok()?) as usize;
    let rows = rest.get(..length)?;
    if crc32fast::hash(&bytes[4..HEAD + length]).to_be_bytes() != head[..4] {
        return None;
    }
    let number = |at: usize| Some(u64::from_be_bytes(head[at..at + 8].try_into().ok()?));
    Some((number(8)?, number(16)?, rows))
}

/// The sum holds, so these are rows as they were written; what is not is left out.
fn read_rows(mut bytes: &[u8], tell: &mut impl FnMut(Vec<u8>, Value)) {
    while let Some((head, rest)) = bytes.split_at_checked(5) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let Some((key, rest)) = rest.split_at_checked(usize::from(head[0])) else { return };
        let value_length = if length == REMOVED { 0 } else { length as usize };
        let Some((value, rest)) = rest.split_at_checked(value_length) else { return };
        tell(key.to_vec(), (length != REMOVED).then(|| value.to_vec()));
        bytes = rest;
    }
}
