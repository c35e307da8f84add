//! The journal: one write and one `fdatasync` of its file for each commit. (The store may have to sync sled's log before
//! that: `sync_read_splits` in `store`.)
//!
//! A batch costs sled a page for each row, and two writes with a thread in between. A record here is one write into
//! blocks that the file already has, and the commit counts from its `fdatasync` on. The rows are in the memtable too. A
//! *checkpoint* moves them into sled when the journal is full, when the queue rests, and at a clean stop. From its
//! beginning on, commits go to the next *epoch*, in the other of two files. So one epoch moves into sled, batch by batch
//! between commits, while the next one is written.
//!
//! ```text
//!              epoch 6 (file 0)          epoch 7 (file 1)          epoch 8 (file 0, over 6)
//! commits   ━━━━━━━━━━━━━━━━━━━━━━━━━▶━━━━━━━━━━━━━━━━━━━━━━━━━▶━━━━━━━━━━━━━━━━━▶
//! sled          ▝ of 5 ▘ j = 6            ▝ of 6 ▘ j = 7            ▝ of 7 ▘ j = 8
//! ```
//!
//! `▝ of 5 ▘` is the checkpoint of epoch 5, and its last batch stores row `j`, "the oldest epoch that is needed: 6".
//!
//! The files are made of zeros that are written and synced. If an epoch needs a longer file, zeros are appended and synced
//! in the same way before the record is written. So a commit changes no metadata, and its
//! `fdatasync` waits for its own blocks only, not for the file system's journal. That is a third faster. It is also
//! safer: on an ext4 that is being shut down, the wait for its journal can succeed although nothing reached the disk.
//! Of files that grew, one in seven lost the last append that `fdatasync` had confirmed (601 of 4,452), of files at
//! their full length none (of 4,264).
//!
//! A record is
//!
//! | bytes | content |
//! | --- | --- |
//! | 4 | CRC-32 of all that follows |
//! | 4 | the number of bytes after the head |
//! | 8 | the epoch |
//! | 8 | the record's number within the epoch, from 0 |
//! | … | the rows: the key's length (1), the value's (4, all ones for a removed row), key, value |
//!
//! All numbers are big-endian. Record 0 has no rows: it has the number of records of the epoch before, and is written
//! together with record 1. It fits into one sector of 512 bytes, so it is whole or absent.
//!
//! At a start sled's row `j`, the [`CheckpointPos`], names the oldest epoch that sled may not have. The start replays
//! that one and the next. A record that is not whole ends an epoch. If nothing valid follows it, in its epoch or the
//! next, its commit was not acknowledged; if something does, that is damage and not a power cut. (So the caller stores
//! no value that could contain the head of a record.)
//!
//! | damage to records that sled may not have | |
//! | --- | --- |
//! | one fails its checksum, and one after it does not | detected |
//! | the end of the older epoch is lost | detected: the next one has the number of its records |
//! | a file is gone, empty, or of another time | detected |
//! | the files are another store's | detected: each epoch begins with a copy of the format stamp |
//! | a file was cut off | detected: the position has its least length |
//! | the newest epoch's last records fail their checksums, or were zeroed in place | **not detected**: a power cut leaves a record that was not yet acknowledged in the same state. To detect it, each commit would need a second place and a second sync |
//!
//! After a clean stop everything is in sled, and the journal is needed only for the position of the last commit.
//!
//! | power cut | the next start finds |
//! | --- | --- |
//! | while a record is written or synced | the records before it; and that record, if it is whole on the disk |
//! | in a checkpoint | the whole old epoch, part of which sled may have: it moves into sled again; and the records of the next |
//! | after it | the records of the next; the rest of the old one is skipped |

mod window;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use memchr::memmem;
use serde::{Deserialize, Serialize};

use self::window::Window;
use super::memtable::{Extent, Rows};
use super::names::JOURNALS;

/// The key of the [`CheckpointPos`] in sled.
pub const EPOCH: &[u8] = b"j";
/// The first epoch of a store. New files contain the heads of the two epochs before it.
const FIRST: u64 = 2;
/// The length of an epoch in a new file. (Tests use short epochs, so that they meet checkpoints.)
pub const BYTES: u64 = if cfg!(test) { 32 << 10 } else { 1 << 20 };
/// The longest epoch for which a file is lengthened. A longer epoch keeps more short-lived rows out of sled, and a
/// checkpoint of it writes fewer pages for each row. It takes longer to replay.
pub const BYTES_MAX: u64 = if cfg!(test) { 2 * BYTES } else { 16 * BYTES };
/// The length of a new file: an epoch ends somewhat after [`BYTES`]. A file has [`STEP`] bytes to spare.
const LENGTH: u64 = BYTES + STEP;
const STEP: u64 = BYTES / 4;
const HEAD: usize = 24;
/// The offset of the epoch in a record.
const EPOCH_AT: u64 = 8;
/// The bytes of a row before its key.
const ROW_HEAD: usize = 5;
const REMOVED: u32 = u32::MAX;

/// The position of the last checkpoint in the journal; sled stores it under [`EPOCH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPos {
    /// The oldest epoch whose records sled may not have.
    epoch: u64,
    /// The least lengths of the files.
    lengths: [u64; 2],
}

impl Default for CheckpointPos {
    fn default() -> CheckpointPos {
        CheckpointPos::of_new(FIRST)
    }
}

impl CheckpointPos {
    /// The position in new files whose first epoch is this one.
    pub fn of_new(epoch: u64) -> CheckpointPos {
        CheckpointPos { epoch, lengths: [LENGTH; 2] }
    }
}

/// The position of a commit in the journal. A later commit of a store has a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommitPos {
    /// The epoch.
    pub epoch: u64,
    /// The record's number within the epoch.
    pub number: u64,
}

impl CommitPos {
    /// A position that no commit reaches.
    pub const MAX: CommitPos = CommitPos { epoch: u64::MAX, number: u64::MAX };

    /// The first epoch of a new journal whose positions are all higher.
    pub fn next_journal(self) -> u64 {
        (self.epoch + 1).max(FIRST)
    }
}

/// The files of the journal, and the place of the next record.
pub struct Journal {
    files: [File; 2],
    /// The lengths that were synced. After a cut a file may be longer than this; that growth may not be synced.
    lengths: [u64; 2],
    epoch: u64,
    /// The number and the offset of the next record.
    number: u64,
    end: u64,
    /// The number of records of the epoch before.
    before: u64,
    /// The record being encoded; kept for its capacity.
    record: Vec<u8>,
    /// The beginning of the rows in the last record.
    rows_at: usize,
}

/// Makes the files of a new store.
pub fn create(folder: &Path) -> io::Result<()> {
    create_from(folder, FIRST)
}

/// Makes the files of a store whose first epoch is this one; sled has to store its [`CheckpointPos`].
pub fn create_from(folder: &Path, first: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for epoch in first - FIRST..first {
        let mut options = OpenOptions::new();
        let name = JOURNALS[file_of(epoch)];
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(folder.join(name))?;
        let head = head_record(epoch, 0);
        file.write_all_at(&head, 0)?;
        write_zeros(&file, head.len() as u64, LENGTH)?;
        files.push(file);
    }
    files.iter().try_for_each(File::sync_all)
}

/// The position of the last commit in a folder, which is durable then; the lowest position if there is none.
pub fn last(folder: &Path) -> io::Result<CommitPos> {
    let mut last = CommitPos::default();
    for (file, name) in (0..).zip(JOURNALS) {
        let mut file = open_epoch(folder, file)?;
        let Some(epoch) = first_epoch(&mut file)? else { continue };
        let found = replay(&mut file, epoch, |_, _, _| ())?;
        last = last.max(CommitPos { epoch, number: found.number.saturating_sub(1) });
        File::open(folder.join(name))?.sync_all()?;
    }
    Ok(last)
}

/// Lengthens a file by zeros, durably.
fn lengthen(file: &File, from: u64, to: u64) -> io::Result<()> {
    write_zeros(file, from, to)?;
    file.sync_all()
}

/// Writes zeros: the first write into a hole would need new blocks.
fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; 128 << 10];
    let mut at = from;
    while at < to {
        let some = (to - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..some as usize], at)?;
        at += some;
    }
    Ok(())
}

impl Journal {
    /// Continues after the records that [`read`] found.
    pub fn resume(folder: &Path, position: CheckpointPos, replay: &Replay) -> io::Result<Journal> {
        let open = |name: &str| OpenOptions::new().read(true).write(true).open(folder.join(name));
        let files = [open(JOURNALS[0])?, open(JOURNALS[1])?];
        let EpochReplay { epoch, number, end, .. } =
            *if replay.next.is_begun() { &replay.next } else { &replay.oldest };
        Ok(Journal { files, lengths: position.lengths, epoch, number, end, before: 0, record: Vec::new(), rows_at: 0 })
    }

    /// Writes the rows of one commit; [`Journal::sync`] makes them durable.
    pub fn append(&mut self, rows: &Rows) -> io::Result<()> {
        let Journal { epoch, record, .. } = self;
        record.clear();
        if self.number == 0 {
            record.extend_from_slice(&head_record(*epoch, self.before));
            self.number = 1;
        }
        let begins = record.len();
        record.resize(begins + HEAD, 0);
        self.rows_at = record.len();
        for (key, value) in rows {
            put_row(record, key, value.as_deref());
        }
        put_head(&mut record[begins..], *epoch, self.number);
        let (file, length) = (&self.files[file_of(*epoch)], &mut self.lengths[file_of(*epoch)]);
        let end = self.end + record.len() as u64;
        if end > *length {
            lengthen(file, self.end, end + STEP)?;
            *length = end + STEP;
        }
        file.write_all_at(record, self.end)?;
        self.end = end;
        self.number += 1;
        // The capacity of one long record is not kept.
        record.shrink_to(BYTES as usize / 8);
        Ok(())
    }

    /// The rows of the last record, as they are in the file.
    pub fn appended(&self) -> &[u8] {
        &self.record[self.rows_at..]
    }

    /// The position of the last record.
    pub fn last(&self) -> CommitPos {
        match self.number {
            0 => CommitPos { epoch: self.epoch - 1, number: self.before.saturating_sub(1) },
            next => CommitPos { epoch: self.epoch, number: next - 1 },
        }
    }

    /// The places of the rows of the last record.
    pub fn places(&self) -> Places {
        Places { epoch: self.epoch, at: self.end - self.appended().len() as u64 }
    }

    /// Reads a value back.
    pub fn value(&self, extent: Extent) -> io::Result<Vec<u8>> {
        let mut value = vec![0; extent.length as usize];
        self.files[usize::from(extent.file)].read_exact_at(&mut value, u64::from(extent.at))?;
        Ok(value)
    }

    /// Makes the records durable. **Its return is the instant of commit.**
    pub fn sync(&mut self) -> io::Result<()> {
        self.files[file_of(self.epoch)].sync_data()
    }

    /// The position when sled has all epochs but the current one.
    pub fn position(&self) -> CheckpointPos {
        CheckpointPos { epoch: self.epoch, lengths: self.lengths }
    }

    /// The same, with the length of a new file for the file that the next epoch overwrites. Call
    /// [`Journal::shorten`] when sled has it.
    pub fn shorter_position(&mut self) -> CheckpointPos {
        self.lengths[file_of(self.epoch + 1)] = LENGTH;
        self.position()
    }

    /// Shortens the file that the next epoch overwrites. sled has its rows, and the current epoch has a commit: [`last`]
    /// reads the position of the last one from the files.
    pub fn shorten(&mut self) -> io::Result<()> {
        let file = &self.files[file_of(self.epoch + 1)];
        if file.metadata()?.len() > LENGTH {
            file.set_len(LENGTH)?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// The bytes of both files.
    pub fn bytes(&self) -> u64 {
        self.lengths.iter().sum()
    }

    /// The part of the current epoch that is over, if an epoch has so many bytes.
    pub fn part(&self, epoch_bytes: u64) -> f64 {
        self.end as f64 / epoch_bytes as f64
    }

    /// Returns true if the current epoch leaves no more than [`STEP`] bytes of its file.
    pub fn is_full(&self) -> bool {
        self.end >= BYTES && self.end + STEP >= self.lengths[file_of(self.epoch)]
    }

    /// Lengthens the file of the current epoch. Returns false if it is as long as it may be.
    pub fn grow(&mut self) -> io::Result<bool> {
        let file = file_of(self.epoch);
        // After a crash the records may reach beyond the length that is known to be synced.
        let from = self.lengths[file].max(self.end);
        if from >= BYTES_MAX + STEP {
            return Ok(false);
        }
        lengthen(&self.files[file], from, from + BYTES)?;
        self.lengths[file] = from + BYTES;
        Ok(true)
    }

    /// Returns true if the current epoch has no commit.
    pub fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// Begins the next epoch, in the other file: sled has all of the epoch that it overwrites.
    pub fn begin_next(&mut self) {
        self.before = self.number;
        (self.epoch, self.number, self.end) = (self.epoch + 1, 0, 0);
    }
}

/// The places of the rows of one record, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    epoch: u64,
    at: u64,
}

impl Places {
    /// The place of the next row's value.
    pub fn next(&mut self, key: &[u8], value: Option<&[u8]>) -> Extent {
        let at = self.at + (ROW_HEAD + key.len()) as u64;
        let length = value.map_or(0, <[u8]>::len) as u32;
        self.at = at + u64::from(length);
        Extent { file: file_of(self.epoch) as u8, at: at as u32, length }
    }
}

/// The result of reading the journal.
#[derive(Debug)]
pub struct Replay {
    oldest: EpochReplay,
    next: EpochReplay,
    /// Damage that a power cut cannot explain, in words.
    pub damage: Vec<String>,
}

/// Replays the rows in commit order, through `visit`. `position` is the one that sled stores, or `None` if it is
/// unreadable. Replaying rows that sled already has does no harm. `between` is called between the two epochs, if there
/// are two.
pub fn read<T>(
    folder: &Path,
    position: Option<CheckpointPos>,
    to: &mut T,
    visit: impl Fn(&mut T, &[u8], Option<&[u8]>, Extent),
    between: impl Fn(&mut T),
) -> io::Result<Replay> {
    let CheckpointPos { epoch, lengths } = match position {
        Some(position) => position,
        None => CheckpointPos { epoch: oldest_epoch(folder)?, lengths: [0, 0] },
    };
    let mut found = [0; 2];
    let mut file = open_epoch(folder, epoch)?;
    found[file_of(epoch)] = file.length();
    let oldest = replay(&mut file, epoch, |key, value, extent| visit(to, key, value, extent))?;
    file = open_epoch(folder, epoch + 1)?;
    found[file_of(epoch + 1)] = file.length();
    if next_record(&mut file, 0, epoch + 1, 0)?.is_some() {
        between(to);
    }
    let next = replay(&mut file, epoch + 1, |key, value, extent| visit(to, key, value, extent))?;
    let mut damage = Vec::new();
    if [&oldest, &next].into_iter().any(|epoch| !epoch.is_begun() && !epoch.may_begin) {
        damage.push("its journal is missing".to_owned());
    }
    let tail = next.before.map_or(0, |before| before.saturating_sub(oldest.number));
    let lost = oldest.damaged + next.damaged + tail;
    if lost > 0 {
        damage.push(format!("commits in its journal cannot be read: {lost}"));
    }
    for (found, length) in found.into_iter().zip(lengths) {
        if found < length {
            damage.push(format!("its journal is cut off: {found} of {length} bytes exist"));
        }
    }
    Ok(Replay { oldest, next, damage })
}

/// The records of one epoch.
#[derive(Debug, Default)]
struct EpochReplay {
    epoch: u64,
    /// The number and the offset of the next record.
    number: u64,
    end: u64,
    /// The number of records that cannot be read.
    damaged: u64,
    /// The number of records of the epoch before, from the head.
    before: Option<u64>,
    /// True if the file still contains the epoch that this one overwrites.
    may_begin: bool,
}

impl EpochReplay {
    fn is_begun(&self) -> bool {
        self.number > 0
    }
}

/// A record that is whole.
#[derive(Clone, Copy)]
struct Record {
    start: u64,
    epoch: u64,
    number: u64,
    /// The number of bytes after its head.
    length: usize,
}

impl Record {
    /// The offset of its rows.
    fn rows_at(&self) -> u64 {
        self.start + HEAD as u64
    }
}

fn replay(
    file: &mut Window,
    epoch: u64,
    mut visit: impl FnMut(&[u8], Option<&[u8]>, Extent),
) -> io::Result<EpochReplay> {
    let may_begin = record_at(file, 0)?.is_some_and(|found| found.epoch + 2 == epoch && found.number == 0);
    let mut replayed = EpochReplay { epoch, may_begin, ..EpochReplay::default() };
    while let Some(record) = next_record(file, replayed.end, epoch, replayed.number)? {
        replayed.damaged += record.number - replayed.number;
        let rows = file.bytes(record.rows_at(), record.length)?;
        if record.number == 0 {
            replayed.before = rows.try_into().ok().map(u64::from_be_bytes);
        } else {
            let mut places = Places { epoch, at: record.rows_at() };
            read_rows(rows, &mut |key, value| visit(key, value, places.next(key, value)));
        }
        (replayed.number, replayed.end) = (record.number + 1, record.rows_at() + record.length as u64);
    }
    Ok(replayed)
}

/// The record with this number at this offset, or the first one after it if that is damaged.
fn next_record(file: &mut Window, at: u64, epoch: u64, number: u64) -> io::Result<Option<Record>> {
    let epoch = epoch.to_be_bytes();
    let of_epoch = memmem::Finder::new(&epoch);
    let mut from = at;
    while let Some(found) = file.find(from + EPOCH_AT, &of_epoch)? {
        let start = found - EPOCH_AT;
        if let Some(record) = record_at(file, start)?
            && (record.number > number || record.number == number && start == at)
        {
            return Ok(Some(record));
        }
        from = start + 1;
    }
    Ok(None)
}

/// The record that begins here. `None` if it is not whole.
fn record_at(file: &mut Window, start: u64) -> io::Result<Option<Record>> {
    let Some(&head) = file.bytes(start, HEAD)?.first_chunk::<HEAD>() else { return Ok(None) };
    let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|nth| head[at + nth]));
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let record = Record { start, epoch: number(8), number: number(16), length };
    let end = record.rows_at() + length as u64;
    if end > file.length() {
        return Ok(None);
    }
    let mut sum = crc32fast::Hasher::new();
    sum.update(&head[4..]);
    // Bytes that only look like a head may claim any length: they are not held in memory.
    file.bytes(start, (HEAD + length).min(window::BYTES))?;
    let mut at = record.rows_at();
    while at < end {
        let rest = file.rest(at, 1)?;
        let rows = &rest[..rest.len().min((end - at) as usize)];
        sum.update(rows);
        at += rows.len() as u64;
    }
    Ok((sum.finalize().to_be_bytes() == head[..4]).then_some(record))
}

/// Appends a row; `None` is a removed one.
pub fn put_row(to: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    let length = value.map_or(REMOVED, |value| value.len() as u32);
    to.push(key.len() as u8);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(key);
    to.extend_from_slice(value.unwrap_or_default());
}

/// Visits the rows of a record whose checksum is right; it stops at bytes that are not a row.
pub fn read_rows(mut bytes: &[u8], visit: &mut impl FnMut(&[u8], Option<&[u8]>)) {
    while let Some((head, rest)) = bytes.split_at_checked(ROW_HEAD) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let Some((key, rest)) = rest.split_at_checked(usize::from(head[0])) else { return };
        let value_length = if length == REMOVED { 0 } else { length as usize };
        let Some((value, rest)) = rest.split_at_checked(value_length) else { return };
        visit(key, (length != REMOVED).then_some(value));
        bytes = rest;
    }
}

/// Record 0 of an epoch.
fn head_record(epoch: u64, before: u64) -> [u8; HEAD + 8] {
    let mut record = [0; HEAD + 8];
    record[HEAD..].copy_from_slice(&before.to_be_bytes());
    put_head(&mut record, epoch, 0);
    record
}

/// Fills in the head of a record.
fn put_head(record: &mut [u8], epoch: u64, number: u64) {
    let length = (record.len() - HEAD) as u32;
    record[4..8].copy_from_slice(&length.to_be_bytes());
    record[8..16].copy_from_slice(&epoch.to_be_bytes());
    record[16..24].copy_from_slice(&number.to_be_bytes());
    let sum = crc32fast::hash(&record[4..]);
    record[..4].copy_from_slice(&sum.to_be_bytes());
}

fn file_of(epoch: u64) -> usize {
    (epoch % 2) as usize
}

/// The oldest epoch that has a record.
fn oldest_epoch(folder: &Path) -> io::Result<u64> {
    let mut oldest = None;
    for epoch in 0..2 {
        oldest = oldest.into_iter().chain(first_epoch(&mut open_epoch(folder, epoch)?)?).min();
    }
    Ok(oldest.unwrap_or(FIRST))
}

/// The epoch of the first record in a file.
fn first_epoch(file: &mut Window) -> io::Result<Option<u64>> {
    for at in 0..file.length() {
        if let Some(record) = record_at(file, at)? {
            return Ok(Some(record.epoch));
        }
    }
    Ok(None)
}

/// Opens the file of an epoch.
fn open_epoch(folder: &Path, epoch: u64) -> io::Result<Window> {
    Window::open(&folder.join(JOURNALS[file_of(epoch)]))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::storage::key::Key;

    const NEXT: u64 = FIRST + 1;

    fn new() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path()).unwrap();
        let journal =
            Journal::resume(folder.path(), CheckpointPos::default(), &replayed(folder.path(), FIRST).1).unwrap();
        (folder, journal)
    }

    /// A journal of two epochs, of three commits and of one; the key that a commit wrote is its number.
    fn two_epochs() -> tempfile::TempDir {
        let (folder, mut journal) = new();
        for number in [1, 2, 3] {
            journal.append(&row(number)).unwrap();
        }
        journal.begin_next();
        journal.append(&row(4)).unwrap();
        folder
    }

    fn row(number: u8) -> Rows {
        Rows::from([(Key::new(number), Some(vec![number; 600]))])
    }

    /// The keys that are replayed, epoch by epoch.
    fn replayed(folder: &Path, epoch: u64) -> (Vec<Vec<u8>>, Replay) {
        let mut epochs = vec![Vec::new()];
        let visit = |epochs: &mut Vec<Vec<u8>>, key: &[u8], _: Option<&[u8]>, _| epochs.last_mut().unwrap().extend(key);
        let position = CheckpointPos { epoch, ..CheckpointPos::default() };
        let found = read(folder, Some(position), &mut epochs, visit, |epochs| epochs.push(Vec::new())).unwrap();
        (epochs, found)
    }

    fn change(folder: &Path, epoch: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let path = folder.join(JOURNALS[file_of(epoch)]);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_epoch_that_sled_names_and_the_next_are_replayed() {
        let folder = two_epochs();
        let (epochs, found) = replayed(folder.path(), FIRST);
        assert_eq!((epochs, found.damage.len()), (vec![vec![1, 2, 3], vec![4]], 0));
        let (epochs, found) = replayed(folder.path(), NEXT);
        assert_eq!((epochs, found.damage.len()), (vec![vec![4]], 0), "sled has the first");
        let mut journal = Journal::resume(folder.path(), CheckpointPos::default(), &found).unwrap();
        journal.append(&row(5)).unwrap();
        assert_eq!(replayed(folder.path(), NEXT).0, [[4, 5]]);
    }

    #[test]
    fn without_a_position_all_records_are_replayed() {
        let folder = two_epochs();
        let mut rows: Vec<u8> = Vec::new();
        read(folder.path(), None, &mut rows, |rows, key, _, _| rows.extend(key), |_| ()).unwrap();
        assert_eq!(rows, [1, 2, 3, 4]);
    }

    /// The last byte of the last record.
    fn lose_tail(bytes: &mut [u8]) {
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes[last] = 0;
    }

    #[test]
    fn a_commit_is_written_into_blocks_that_the_file_already_has() {
        let (folder, mut journal) = new();
        let file = || fs::metadata(folder.path().join(JOURNALS[file_of(FIRST)])).unwrap();
        let (mut lengths, mut blocks) = (vec![file().len()], vec![file().blocks() * 512]);
        let mut commits = 0;
        while journal.end < 3 * LENGTH {
            journal.append(&row(1)).unwrap();
            lengths.push(file().len());
            blocks.push(file().blocks() * 512);
            commits += 1;
        }
        assert!(lengths.iter().zip(&blocks).all(|(length, blocks)| blocks >= length), "no holes");
        lengths.dedup();
        assert_eq!(lengths[0], LENGTH);
        assert!(lengths.len() > 4 && lengths.len() < 16 && commits > 100, "{commits} commits, {lengths:?}");
        let (rows, found) = replayed(folder.path(), FIRST);
        assert_eq!((rows[0].len(), found.damage), (commits, vec![]));
        assert_eq!(journal.position().lengths, [*lengths.last().unwrap(), LENGTH]);
    }

    #[test]
    fn file_grows_until_an_epoch_has_its_greatest_length() {
        let (folder, mut journal) = new();
        let mut commits = 0;
        for grows in [true, false] {
            while !journal.is_full() {
                journal.append(&row(1)).unwrap();
                commits += 1;
            }
            assert_eq!(journal.grow().unwrap(), grows);
        }
        assert!(journal.end >= BYTES_MAX && journal.end < BYTES_MAX + STEP);
        assert_eq!(replayed(folder.path(), FIRST).0[0].len(), commits);
    }

    #[test]
    fn growth_after_a_crash_begins_behind_the_records() {
        let (folder, mut journal) = new();
        while !journal.is_full() {
            journal.append(&row(1)).unwrap();
        }
        assert!(journal.grow().unwrap());
        let mut commits = replayed(folder.path(), FIRST).0[0].len();
        while journal.end < LENGTH + 600 {
            journal.append(&row(1)).unwrap();
            commits += 1;
        }
        let found = replayed(folder.path(), FIRST).1;
        let mut journal = Journal::resume(folder.path(), CheckpointPos::default(), &found).unwrap();
        assert!(journal.is_full(), "the growth is not known to be synced");
        assert!(journal.grow().unwrap());
        journal.append(&row(2)).unwrap();
        let (epochs, found) = replayed(folder.path(), FIRST);
        assert_eq!((epochs[0].len(), epochs[0].last(), found.damage), (commits + 1, Some(&2), vec![]));
    }

    #[test]
    fn file_is_shortened_before_the_next_epoch_and_that_is_no_damage() {
        let (folder, mut journal) = new();
        while !journal.is_full() {
            journal.append(&row(1)).unwrap();
        }
        assert!(journal.grow().unwrap());
        journal.append(&row(2)).unwrap();
        journal.begin_next();
        journal.append(&row(3)).unwrap();
        let length = || fs::metadata(folder.path().join(JOURNALS[file_of(FIRST)])).unwrap().len();
        let position = journal.shorter_position();
        assert!(length() > LENGTH, "a crash here leaves a longer file");
        let read_at = |position| {
            let mut rows: Vec<u8> = Vec::new();
            let found =
                read(folder.path(), Some(position), &mut rows, |rows, key, _, _| rows.extend(key), |_| ()).unwrap();
            (rows, found.damage)
        };
        assert_eq!(read_at(position), (vec![3], vec![]));
        journal.shorten().unwrap();
        assert_eq!((length(), read_at(position)), (LENGTH, (vec![3], vec![])));
        journal.begin_next();
        journal.append(&row(4)).unwrap();
        assert_eq!(read_at(position), (vec![3, 4], vec![]));
    }

    #[test]
    fn value_is_read_back_from_its_place() {
        let (folder, mut journal) = new();
        let rows =
            Rows::from([(Key::new(1), Some(vec![1; 300])), (Key::new(2), None), (Key::new(3), Some(vec![3; 500]))]);
        journal.append(&row(9)).unwrap();
        journal.append(&rows).unwrap();
        let mut places = journal.places();
        for (key, value) in &rows {
            let extent = places.next(key, value.as_deref());
            assert_eq!(journal.value(extent).unwrap(), value.clone().unwrap_or_default());
        }
        let visit = |found: &mut Vec<Extent>, _: &[u8], _: Option<&[u8]>, extent| found.push(extent);
        let mut found = Vec::new();
        read(folder.path(), None, &mut found, visit, |_| ()).unwrap();
        assert_eq!(journal.value(found[1]).unwrap(), [1; 300], "a start finds the same places");
        assert_eq!(journal.value(found[3]).unwrap(), [3; 500]);
    }

    #[test]
    fn a_lost_tail_is_damage_in_the_older_epoch_and_a_power_cut_in_the_newer() {
        let folder = two_epochs();
        change(folder.path(), NEXT, |bytes| lose_tail(bytes));
        let (epochs, found) = replayed(folder.path(), FIRST);
        assert_eq!((epochs, found.damage.len()), (vec![vec![1, 2, 3], vec![]], 0));
        let folder = two_epochs();
        change(folder.path(), FIRST, |bytes| lose_tail(bytes));
        let (epochs, found) = replayed(folder.path(), FIRST);
        assert_eq!(epochs, [vec![1, 2], vec![4]]);
        assert_eq!(found.damage, ["commits in its journal cannot be read: 1"]);
    }

    #[test]
    fn a_file_that_is_cut_off_is_damage() {
        let folder = two_epochs();
        change(folder.path(), NEXT, |bytes| bytes.truncate(bytes.len() - 1));
        let damage = replayed(folder.path(), FIRST).1.damage;
        assert_eq!(damage, [format!("its journal is cut off: {} of {LENGTH} bytes exist", LENGTH - 1)]);
    }

    #[test]
    fn a_file_of_another_time_is_damage() {
        let folder = two_epochs();
        let older = fs::read(folder.path().join(JOURNALS[file_of(FIRST)])).unwrap();
        let (_, found) = replayed(folder.path(), NEXT);
        let mut journal = Journal::resume(folder.path(), CheckpointPos::default(), &found).unwrap();
        journal.begin_next();
        journal.append(&row(5)).unwrap();
        journal.begin_next();
        journal.append(&row(6)).unwrap();
        assert!(replayed(folder.path(), NEXT + 1).1.damage.is_empty());
        fs::write(folder.path().join(JOURNALS[file_of(FIRST)]), older).unwrap();
        let damage = replayed(folder.path(), NEXT + 1).1.damage;
        assert_eq!(
            damage,
            ["commits in its journal cannot be read: 2"],
            "the next epoch has the number of its records"
        );
        assert_eq!(replayed(folder.path(), NEXT + 2).1.damage, ["its journal is missing"]);
    }

    #[test]
    fn damage_in_the_head_is_detected_and_loses_no_commit() {
        let folder = two_epochs();
        change(folder.path(), FIRST, |bytes| bytes[20] ^= 1);
        let (epochs, found) = replayed(folder.path(), FIRST);
        assert_eq!((epochs, found.damage.len()), (vec![vec![1, 2, 3], vec![4]], 1));
    }
}
