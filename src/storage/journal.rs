//! The journal: one write and one `fdatasync` for each commit.
//!
//! A batch of sled's costs a page for each row and two writes with a thread in between; a record here is one write, into
//! blocks that the file has already. It counts from its `fdatasync` on. What it holds is in the memtable too, and goes into
//! sled when so much has come together that it is worth it: that is a *checkpoint*, and from its beginning on commits go to
//! the next *epoch*, in the other of two files. So one epoch is given to sled, batch by batch between commits, while the
//! next one is being written.
//!
//! ```text
//!              epoch 6 (file 0)          epoch 7 (file 1)          epoch 8 (file 0, over 6)
//! commits   ━━━━━━━━━━━━━━━━━━━━━━━━━▶━━━━━━━━━━━━━━━━━━━━━━━━━▶━━━━━━━━━━━━━━━━━▶
//! sled          ▝ of 5 ▘ says 6           ▝ of 6 ▘ says 7           ▝ of 7 ▘ says 8
//! ```
//!
//! The files are made at their full length, of zeros that are written and synced, and one that an epoch is too long for
//! gets longer in the same way before the record goes there. So a commit changes no metadata: its `fdatasync` waits for its
//! own blocks and for nothing of the file system's own journal. That is a third quicker; and where an ext4 is being shut
//! down, the wait for its journal may end well for what never reached the disk: of files that grew, one in seven lost the
//! last append that `fdatasync` had vouched for (601 of 4,452), of files at their full length none (of 4,264).
//!
//! A record is
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | CRC-32 of all that follows |
//! | 4 | how many bytes follow the head |
//! | 8 | the epoch |
//! | 8 | its number within the epoch, from 0 |
//! | … | the rows: the key's length (1), the value's (4, all ones for a row that was removed), key, value |
//!
//! all numbers big-endian. Record 0 has no rows: it says how many records the epoch before has, and goes out in one write
//! with record 1. It lies within one sector, so a file always begins with one that is whole.
//!
//! At a start sled's `j` row, the [`Mark`], names the oldest epoch that it may not have; that one and the next are read back.
//! A record that is not whole ends an epoch: it was not acknowledged, and nothing was written after it. If something was, in
//! its epoch or the next, it is no cut but damage.
//!
//! | of the records that sled may not have | |
//! | --- | --- |
//! | one fails its sum, and one after it does not | told |
//! | the end of the older epoch is lost | told: the next one knows how many records it has |
//! | a file is gone, empty, or not of this time | told |
//! | the files are another store's | told: each epoch begins with a copy of the format stamp |
//! | a file was cut off | told: it never gets shorter, and the mark says how long it must be |
//! | the newest epoch's last records fail their sums, or were zeroed in their place | **not told**: a power cut leaves one that was not acknowledged yet just so. To tell, each commit would need a second place and a second sync |
//!
//! A clean stop leaves everything in sled: none of this is needed then.
//!
//! | cut | what the next start finds |
//! | --- | --- |
//! | while a record is written | the records before it |
//! | in a checkpoint | all of the old epoch, which sled may have in part: it is given again; and what there is of the next |
//! | after it | what there is of the next, and what is left of the old one is passed over |

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::memtable::{Rows, Value};
use super::names::JOURNALS as NAMES;

/// The row in sled that names the oldest epoch whose records are not all there.
pub const EPOCH: &[u8] = b"j";
/// The first epoch of a store: those before it stand in the files as they were made.
const FIRST: u64 = 2;
/// What an epoch holds before it is given to sled: a longer one saves more of what comes and goes, and takes more memory.
/// (The tests' own is small, so that what they do meets checkpoints.)
const BYTES: u64 = if cfg!(test) { 32 << 10 } else { 1 << 20 };
/// How long a file is made: an epoch ends somewhat after [`BYTES`]. Where one needs more, its file gets [`STEP`] to spare.
const LENGTH: u64 = BYTES + STEP;
const STEP: u64 = BYTES / 4;
const HEAD: usize = 24;
const REMOVED: u32 = u32::MAX;

/// What sled says of the journal, in the row [`EPOCH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The oldest epoch whose records it may not have.
    epoch: u64,
    /// The files are at least so long: they never get shorter.
    lengths: [u64; 2],
}

impl Default for Mark {
    fn default() -> Mark {
        Mark { epoch: FIRST, lengths: [LENGTH; 2] }
    }
}

/// The files, and where the next record goes.
pub struct Journal {
    files: [File; 2],
    /// By what was synced: what a start has found may not have been.
    lengths: [u64; 2],
    epoch: u64,
    /// The next record's.
    number: u64,
    end: u64,
    /// Records of the epoch before.
    before: u64,
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

/// Makes the files of a new store.
pub fn create(folder: &Path) -> io::Result<()> {
    for (epoch, name) in (0..FIRST).zip(NAMES) {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(folder.join(name))?;
        let head = head_record(epoch, 0);
        file.write_all_at(&head, 0)?;
        lengthen(&file, head.len() as u64, LENGTH)?;
    }
    Ok(())
}

/// Writes zeros, not a hole: a hole's first write needs blocks.
fn lengthen(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = [0; 16 << 10];
    let mut at = from;
    while at < to {
        let some = (to - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..some as usize], at)?;
        at += some;
    }
    file.sync_all()
}

impl Journal {
    /// Goes on where what was [`read`] ends.
    pub fn resume(folder: &Path, mark: Mark, found: &Found) -> io::Result<Journal> {
        let open = |name: &str| OpenOptions::new().write(true).open(folder.join(name));
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        let Replayed { epoch, number, end, .. } = *if found.next.is_begun() { &found.next } else { &found.oldest };
        Ok(Journal { files, lengths: mark.lengths, epoch, number, end, before: 0, record: Vec::new() })
    }

    /// Writes the rows of one commit.
    pub fn append(&mut self, rows: &Rows) -> io::Result<()> {
        let Journal { epoch, record, .. } = self;
        record.clear();
        if self.number == 0 {
            record.extend_from_slice(&head_record(*epoch, self.before));
            self.number = 1;
        }
        let begins = record.len();
        record.resize(begins + HEAD, 0);
        for (key, value) in rows {
            let length = value.as_ref().map_or(REMOVED, |value| value.len() as u32);
            record.push(key.len() as u8);
            record.extend_from_slice(&length.to_be_bytes());
            record.extend_from_slice(key);
            record.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        seal(&mut record[begins..], *epoch, self.number);
        let (file, length) = (&self.files[file_of(*epoch)], &mut self.lengths[file_of(*epoch)]);
        let end = self.end + record.len() as u64;
        if end > *length {
            lengthen(file, self.end, end + STEP)?;
            *length = end + STEP;
        }
        file.write_all_at(record, self.end)?;
        self.end = end;
        self.number += 1;
        // One long batch must not be held on to.
        record.shrink_to(BYTES as usize / 8);
        Ok(())
    }

    /// What was written is on disk when this returns: the instant of commit.
    pub fn sync(&mut self) -> io::Result<()> {
        self.files[file_of(self.epoch)].sync_data()
    }

    /// What sled is told when it has all epochs but the one that is being written.
    pub fn mark(&self) -> Mark {
        Mark { epoch: self.epoch, lengths: self.lengths }
    }

    /// Whether its epoch should be given to sled.
    pub fn is_full(&self) -> bool {
        self.end >= BYTES
    }

    /// Whether its epoch has no commit yet.
    pub fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// Begins the next epoch, in the other file: sled has what stood there.
    pub fn begin_next(&mut self) {
        self.before = self.number;
        (self.epoch, self.number, self.end) = (self.epoch + 1, 0, 0);
    }
}

/// What the files hold.
#[derive(Debug)]
pub struct Found {
    oldest: Replayed,
    next: Replayed,
    /// What no cut leaves, in words.
    pub damage: Vec<String>,
}

/// Tells the rows, in the order of their commits, beside a log that says this of them, or nothing that can be read. No harm
/// is done by rows that the log has already. `step` comes between the two epochs, where there are two.
pub fn read<T>(
    folder: &Path,
    mark: Option<Mark>,
    to: &mut T,
    tell: impl Fn(&mut T, &[u8], Value),
    step: impl Fn(&mut T),
) -> io::Result<Found> {
    let files = [contents(folder, NAMES[0])?, contents(folder, NAMES[1])?];
    let named = files.iter().filter_map(|bytes| (0..bytes.len()).find_map(|at| whole(&bytes[at..])));
    let found = || Mark { epoch: named.map(|(epoch, ..)| epoch).min().unwrap_or(FIRST), lengths: [0, 0] };
    let Mark { epoch, lengths } = mark.unwrap_or_else(found);
    let oldest = replay(&files[file_of(epoch)], epoch, |key, value| tell(to, key, value));
    let next = &files[file_of(epoch + 1)];
    if next_record(next, 0, epoch + 1, 0).is_some() {
        step(to);
    }
    let next = replay(next, epoch + 1, |key, value| tell(to, key, value));
    let mut damage = Vec::new();
    if [&oldest, &next].into_iter().any(|replayed| !replayed.is_begun() && !replayed.is_awaited) {
        damage.push("its journal is gone".to_owned());
    }
    let tail = next.before.map_or(0, |before| before.saturating_sub(oldest.number));
    let lost = oldest.damaged + next.damaged + tail;
    if lost > 0 {
        damage.push(format!("commits in its journal cannot be read: {lost}"));
    }
    for (bytes, length) in files.iter().zip(lengths) {
        if (bytes.len() as u64) < length {
            damage.push(format!("its journal is cut off: of {length} bytes {} are there", bytes.len()));
        }
    }
    Ok(Found { oldest, next, damage })
}

/// What a file holds of an epoch.
#[derive(Debug, Default)]
struct Replayed {
    epoch: u64,
    /// The next record's.
    number: u64,
    end: u64,
    damaged: u64,
    /// Records of the epoch before, as the head has it.
    before: Option<u64>,
    /// The file begins with an epoch that this one may be written over.
    is_awaited: bool,
}

impl Replayed {
    fn is_begun(&self) -> bool {
        self.number > 0
    }
}

fn replay(bytes: &[u8], epoch: u64, mut tell: impl FnMut(&[u8], Value)) -> Replayed {
    let is_awaited = whole(bytes).is_some_and(|(found, number, _)| found + 2 == epoch && number == 0);
    let mut replayed = Replayed { epoch, is_awaited, ..Replayed::default() };
    let mut at = 0;
    while let Some((start, number, rows)) = next_record(bytes, at, epoch, replayed.number) {
        replayed.damaged += number - replayed.number;
        if number == 0 {
            replayed.before = rows.try_into().ok().map(u64::from_be_bytes);
        } else {
            read_rows(rows, &mut tell);
        }
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

/// Epoch, number and what follows the head, of a record that begins here and is whole.
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
fn read_rows(mut bytes: &[u8], tell: &mut impl FnMut(&[u8], Value)) {
    while let Some((head, rest)) = bytes.split_at_checked(5) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let Some((key, rest)) = rest.split_at_checked(usize::from(head[0])) else { return };
        let value_length = if length == REMOVED { 0 } else { length as usize };
        let Some((value, rest)) = rest.split_at_checked(value_length) else { return };
        tell(key, (length != REMOVED).then(|| value.to_vec()));
        bytes = rest;
    }
}

/// Record 0.
fn head_record(epoch: u64, before: u64) -> [u8; HEAD + 8] {
    let mut record = [0; HEAD + 8];
    record[HEAD..].copy_from_slice(&before.to_be_bytes());
    seal(&mut record, epoch, 0);
    record
}

/// Fills in the head of a record.
fn seal(record: &mut [u8], epoch: u64, number: u64) {
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

/// Nothing where there is none, or no file.
fn contents(folder: &Path, name: &str) -> io::Result<Vec<u8>> {
    match fs::read(folder.join(name)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(Vec::new()),
        bytes => bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::storage::key::Key;

    const NEXT: u64 = FIRST + 1;

    fn new() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path()).unwrap();
        let journal = Journal::resume(folder.path(), Mark::default(), &told(folder.path(), FIRST).1).unwrap();
        (folder, journal)
    }

    /// A journal of two epochs, of three commits and of one; what each of them wrote is its number.
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

    /// The rows of each epoch.
    fn told(folder: &Path, epoch: u64) -> (Vec<Vec<u8>>, Found) {
        let mut epochs = vec![Vec::new()];
        let tell = |epochs: &mut Vec<Vec<u8>>, key: &[u8], _| epochs.last_mut().unwrap().extend(key);
        let mark = Mark { epoch, ..Mark::default() };
        let found = read(folder, Some(mark), &mut epochs, tell, |epochs| epochs.push(Vec::new())).unwrap();
        (epochs, found)
    }

    fn change(folder: &Path, epoch: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let path = folder.join(NAMES[file_of(epoch)]);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_epoch_that_sled_names_and_the_next_are_read_back() {
        let folder = two_epochs();
        let (epochs, found) = told(folder.path(), FIRST);
        assert_eq!((epochs, found.damage.len()), (vec![vec![1, 2, 3], vec![4]], 0));
        let (epochs, found) = told(folder.path(), NEXT);
        assert_eq!((epochs, found.damage.len()), (vec![vec![4]], 0), "sled has the first");
        let mut journal = Journal::resume(folder.path(), Mark::default(), &found).unwrap();
        journal.append(&row(5)).unwrap();
        assert_eq!(told(folder.path(), NEXT).0, [[4, 5]]);
    }

    #[test]
    fn a_log_that_names_no_epoch_gets_all_there_is() {
        let folder = two_epochs();
        let mut rows: Vec<u8> = Vec::new();
        read(folder.path(), None, &mut rows, |rows, key, _| rows.extend(key), |_| ()).unwrap();
        assert_eq!(rows, [1, 2, 3, 4]);
    }

    /// The last byte of the last record.
    fn lose_tail(bytes: &mut [u8]) {
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes[last] = 0;
    }

    #[test]
    fn a_commit_goes_where_the_file_has_blocks_already() {
        let (folder, mut journal) = new();
        let file = || fs::metadata(folder.path().join(NAMES[file_of(FIRST)])).unwrap();
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
        let (rows, found) = told(folder.path(), FIRST);
        assert_eq!((rows[0].len(), found.damage), (commits, vec![]));
        assert_eq!(journal.mark().lengths, [*lengths.last().unwrap(), LENGTH]);
    }

    #[test]
    fn a_tail_that_is_lost_from_the_older_epoch_is_damage_and_from_the_newer_one_a_cut() {
        let folder = two_epochs();
        change(folder.path(), NEXT, |bytes| lose_tail(bytes));
        let (epochs, found) = told(folder.path(), FIRST);
        assert_eq!((epochs, found.damage.len()), (vec![vec![1, 2, 3], vec![]], 0));
        let folder = two_epochs();
        change(folder.path(), FIRST, |bytes| lose_tail(bytes));
        let (epochs, found) = told(folder.path(), FIRST);
        assert_eq!(epochs, [vec![1, 2], vec![4]]);
        assert_eq!(found.damage, ["commits in its journal cannot be read: 1"]);
    }

    #[test]
    fn a_file_that_is_cut_off_is_damage() {
        let folder = two_epochs();
        change(folder.path(), NEXT, |bytes| bytes.truncate(bytes.len() - 1));
        let damage = told(folder.path(), FIRST).1.damage;
        assert_eq!(damage, [format!("its journal is cut off: of {LENGTH} bytes {} are there", LENGTH - 1)]);
    }

    #[test]
    fn a_file_of_another_time_is_damage() {
        let folder = two_epochs();
        let older = fs::read(folder.path().join(NAMES[file_of(FIRST)])).unwrap();
        let (_, found) = told(folder.path(), NEXT);
        let mut journal = Journal::resume(folder.path(), Mark::default(), &found).unwrap();
        journal.begin_next();
        journal.append(&row(5)).unwrap();
        journal.begin_next();
        journal.append(&row(6)).unwrap();
        assert!(told(folder.path(), NEXT + 1).1.damage.is_empty());
        fs::write(folder.path().join(NAMES[file_of(FIRST)]), older).unwrap();
        let damage = told(folder.path(), NEXT + 1).1.damage;
        assert_eq!(damage, ["commits in its journal cannot be read: 2"], "the next epoch knows how long this one was");
        assert_eq!(told(folder.path(), NEXT + 2).1.damage, ["its journal is gone"]);
    }

    #[test]
    fn damage_in_the_head_is_told_and_takes_no_commit() {
        let folder = two_epochs();
        change(folder.path(), FIRST, |bytes| bytes[20] ^= 1);
        let (epochs, found) = told(folder.path(), FIRST);
        assert_eq!((epochs, found.damage.len()), (vec![vec![1, 2, 3], vec![4]], 1));
    }
}
