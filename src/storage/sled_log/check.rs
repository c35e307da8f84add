//! The check of a log for damage that a crash cannot explain.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;

use super::frame::{FRAME_HEADER_MAX, Frame, SEGMENT, SEGMENT_HEADER, header, kind, lsn, next_frame};
use super::snapshot::{self, Pointer};
use crate::storage::names;

/// The findings of a scan of the whole log.
#[derive(Debug, Default)]
pub struct Scan {
    damage: Vec<String>,
    gaps: Vec<Gap>,
    /// The numbers of the segments whose headers verify, with the offset of the first of each.
    numbers: HashMap<u64, u64>,
    last_manifest: u64,
}

/// A place in a segment where no frame verifies.
#[derive(Clone, Copy, Debug)]
struct Gap {
    number: u64,
    base: u64,
    at: usize,
}

/// The least length of a log that two threads check.
const LONG: u64 = if cfg!(test) { 4 } else { 16 } * SEGMENT as u64;

/// Returns the damage to the log in a folder, in words. It keeps two segments at a time in memory, and some numbers for
/// each page.
pub fn find_damage(folder: &Path) -> io::Result<Vec<String>> {
    check(folder, LONG)
}

/// The same, by two threads if the log has `long` bytes.
fn check(folder: &Path, long: u64) -> io::Result<Vec<String>> {
    let file = File::open(folder.join(names::LOG))?;
    let (mut damage, mut pointers) = match snapshot::pointers(folder)? {
        Ok(pointers) => (Vec::new(), pointers),
        Err(damage) => (vec![damage], Vec::new()),
    };
    let length = file.metadata()?.len();
    // Half of the time is the processor's, and a start has nothing else to do meanwhile.
    let middle = length.div_ceil(2).next_multiple_of(SEGMENT as u64);
    let middle = if length >= long && middle < length { middle } else { u64::MAX };
    let rest = pointers.split_off(pointers.partition_point(|pointer| pointer.at < middle));
    let (first, second) = thread::scope(|scope| {
        let second = || Part::read(&file, middle..length, rest);
        let second = (middle < length).then(|| thread::Builder::new().name("check".into()).spawn_scoped(scope, second));
        let first = Part::read(&file, 0..middle.min(length), pointers);
        let second = second.map(|second| second?.join().map_err(|_| io::Error::other("the check panicked"))?);
        (first, second.unwrap_or_else(|| Ok(Part::default())))
    });
    let Part { found, missing, newest } = first?.join(second?);
    let made = |page| newest.get(&page).copied().unwrap_or(0);
    let gone = missing.into_iter().filter(|pointer| made(pointer.page) <= pointer.lsn).count();
    if gone > 0 {
        damage.push(format!("{gone} pieces of pages are not where the snapshot says"));
    }
    // Pages are numbered from 0 without gaps: a freed page is written as such. If a page has no frame left, it was the
    // last use of its segment, so no gap shows it; sled would panic on it.
    let settled = newest.iter().filter(|(_, written)| **written < found.last_manifest);
    if let Some(last) = settled.map(|(page, _)| *page).max() {
        let there = newest.keys().filter(|page| **page <= last).count() as u64;
        if there <= last {
            damage.push(format!("pages missing from the log: {}", last + 1 - there));
        }
    }
    damage.extend(found.judge(&file, made)?);
    Ok(damage)
}

/// The findings of a scan of a part of the log.
#[derive(Default)]
struct Part {
    found: Scan,
    /// The frames that the snapshot points at and that are not there.
    missing: Vec<Pointer>,
    /// The time at which each page was last written as a whole.
    newest: HashMap<u64, u64>,
}

impl Part {
    /// Reads the segments that begin in a range. `pointers` are those of the snapshot into it, by their offsets.
    fn read(file: &File, range: Range<u64>, pointers: Vec<Pointer>) -> io::Result<Part> {
        let (mut expected, mut missing) = (pointers.into_iter().peekable(), Vec::new());
        let mut newest: HashMap<u64, u64> = HashMap::new();
        let found = scan_range(file, range, |base, frame| {
            let at = base + frame.begins as u64;
            while let Some(pointer) = expected.next_if(|pointer| pointer.at <= at) {
                missing.extend((pointer.at != at || pointer.lsn != frame.lsn()).then_some(pointer));
            }
            if (kind::FREE..=kind::BLOB_NODE).contains(&frame.kind) {
                let written = newest.entry(frame.page).or_default();
                *written = frame.lsn().max(*written);
            }
        })?;
        missing.extend(expected);
        Ok(Part { found, missing, newest })
    }

    /// Adds the findings of the part behind this one.
    fn join(mut self, behind: Part) -> Part {
        self.found.join(behind.found);
        self.missing.extend(behind.missing);
        for (page, written) in behind.newest {
            let newest = self.newest.entry(page).or_default();
            *newest = written.max(*newest);
        }
        self
    }
}

/// Visits every frame that verifies, segment by segment, with the offset of its segment.
pub fn scan(file: &File, visit: impl FnMut(u64, &Frame)) -> io::Result<Scan> {
    let length = file.metadata()?.len();
    scan_range(file, 0..length, visit)
}

/// The same for the segments that begin in a range.
fn scan_range(file: &File, range: Range<u64>, mut visit: impl FnMut(u64, &Frame)) -> io::Result<Scan> {
    let mut found = Scan::default();
    let mut buffer = vec![0; SEGMENT];
    for base in range.clone().step_by(SEGMENT) {
        let size = usize::try_from(range.end - base).unwrap_or(SEGMENT).min(SEGMENT);
        let segment = &mut buffer[..size];
        file.read_exact_at(segment, base)?;
        if segment.iter().any(|byte| *byte != 0) {
            found.segment(base, segment, |frame| visit(base, frame));
        }
    }
    Ok(found)
}

impl Scan {
    /// Adds a segment's number.
    fn add(&mut self, number: u64, base: u64) {
        match self.numbers.entry(number) {
            Entry::Occupied(_) => {
                self.damage.push(format!("the log has segment {number} twice, once at byte {base}"));
            }
            Entry::Vacant(new) => _ = new.insert(base),
        }
    }

    /// Adds the findings of the part of the log behind this one.
    fn join(&mut self, behind: Scan) {
        let mut numbers: Vec<_> = behind.numbers.into_iter().collect();
        numbers.sort_unstable_by_key(|(_, base)| *base);
        for (number, base) in numbers {
            self.add(number, base);
        }
        self.damage.extend(behind.damage);
        self.gaps.extend(behind.gaps);
        self.last_manifest = self.last_manifest.max(behind.last_manifest);
    }

    fn segment(&mut self, base: u64, bytes: &[u8], mut visit: impl FnMut(&Frame)) {
        let header = header(bytes);
        if let Some(number) = header {
            self.add(number, base);
        }
        let (mut own, mut at, mut whole) = (header, SEGMENT_HEADER, false);
        while let Some(frame) = next_frame(bytes, at) {
            // Frames with another number are left over from the segment's last use.
            let number = *own.get_or_insert(frame.segment);
            if number == frame.segment {
                if frame.begins > at || header.is_none() && at == SEGMENT_HEADER {
                    self.gaps.push(Gap { number, base, at });
                }
                // If a start finds no more space than for a header, it continues in the next segment and leaves no cap.
                whole = frame.kind == kind::CAP || frame.at + frame.length + FRAME_HEADER_MAX >= SEGMENT;
            }
            if frame.kind == kind::MANIFEST {
                self.last_manifest = self.last_manifest.max(frame.lsn());
            }
            visit(&frame);
            at = frame.at + frame.length;
            if whole {
                break;
            }
        }
        if let Some(number) = own.filter(|_| !whole) {
            self.gaps.push(Gap { number, base, at });
        }
    }

    /// Reports the gaps that are damage: those that are not a torn end, in a segment that is still in use, because a
    /// frame of it is part of a current page. sled frees the other segments, overwrites them from any offset, and
    /// zeroes them at its next start.
    fn judge(self, file: &File, made: impl Fn(u64) -> u64) -> io::Result<Vec<String>> {
        let Scan { mut damage, mut gaps, numbers, last_manifest } = self;
        if numbers.is_empty() {
            damage.push("the log holds nothing".into());
        }
        gaps.retain(|gap| lsn(gap.number, gap.at) < last_manifest);
        if gaps.is_empty() {
            return Ok(damage);
        }
        let mut used = HashSet::new();
        scan(file, |base, frame| {
            let in_use = match frame.kind {
                kind::COUNTER..=kind::BLOB_NODE => made(frame.page) == frame.lsn(),
                kind::LINK => made(frame.page) < frame.lsn(),
                _ => false,
            };
            used.extend(in_use.then_some((base, frame.segment)));
        })?;
        for Gap { number, base, at } in gaps.into_iter().filter(|gap| used.contains(&(gap.base, gap.number))) {
            damage.push(format!("the log cannot be read from byte {} on (segment {number})", base + at as u64));
        }
        Ok(damage)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::storage::sled_db::open_sled;

    /// A log of some segments, most of whose rows were written repeatedly.
    fn log() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let (db, _) = open_sled(folder.path()).unwrap();
        let mut dice = fastrand::Rng::with_seed(0);
        for round in 0..60u32 {
            let mut batch = sled::Batch::default();
            // Some pages are written in a few rounds only, as pages of old rows are.
            let from = if round % 3 == 0 { dice.u32(..2000) } else { round * 20 };
            for key in from..from + 120 {
                batch.insert(&key.to_be_bytes(), vec![round as u8; 700]);
            }
            db.apply_batch(batch).unwrap();
            db.flush().unwrap();
        }
        folder
    }

    /// Opens the log, writes a row, and closes it. Returns the end of its last frame.
    fn write_row(folder: &Path, number: u32, length: usize) -> usize {
        let (db, _) = open_sled(folder).unwrap();
        let mut batch = sled::Batch::default();
        batch.insert(&number.to_be_bytes(), vec![b'x'; length]);
        db.apply_batch(batch).unwrap();
        db.flush().unwrap();
        drop(db);
        let (mut newest, mut end) = (0, 0);
        let visit = |base: u64, frame: &Frame| {
            if frame.lsn() >= newest {
                (newest, end) = (frame.lsn(), base as usize + frame.at + frame.length);
            }
        };
        scan(&File::open(folder.join(names::LOG)).unwrap(), visit).unwrap();
        end
    }

    #[test]
    fn segment_that_ends_with_space_for_a_header_only_is_whole() {
        let last = SEGMENT - FRAME_HEADER_MAX;
        let first = tempfile::tempdir().unwrap();
        let mut rows = 0;
        while write_row(first.path(), rows, 4000) < last - 10_000 {
            rows += 1;
        }
        // The length of the row is found on copies, because sled writes frames of its own beside it.
        let mut length = 1000;
        let folder = (0..200).find_map(|_| {
            let copy = tempfile::tempdir().unwrap();
            for file in fs::read_dir(first.path()).unwrap().map(Result::unwrap) {
                if file.file_type().unwrap().is_file() {
                    fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
                }
            }
            let end = write_row(copy.path(), rows + 1, length);
            length = length + last - end;
            (end == last).then_some(copy)
        });
        let folder = folder.expect("a row that ends there");
        for more in 2..5 {
            write_row(folder.path(), rows + more, 4000);
        }
        assert_eq!(find_damage(folder.path()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn two_threads_find_what_one_finds() {
        let folder = log();
        write_row(folder.path(), 1, 700); // leaves a snapshot of all pages
        let path = folder.path().join(names::LOG);
        let whole = fs::read(&path).unwrap();
        let segments = whole.len() / SEGMENT;
        assert!(segments >= 8 && fs::read_dir(folder.path()).unwrap().count() > 3, "{segments} segments, no snapshot");
        let mut dice = fastrand::Rng::with_seed(0);
        let mut found = HashSet::new();
        for round in 0..60 {
            let mut bytes = whole.clone();
            let at = dice.usize(..bytes.len());
            match round % 4 {
                0 => bytes[at] ^= 1,
                1 => bytes.truncate(at),
                2 => bytes[at / SEGMENT * SEGMENT..][..SEGMENT.min(whole.len() - at / SEGMENT * SEGMENT)].fill(0),
                _ => {
                    let [from, to] = [dice.usize(..segments), dice.usize(..segments)];
                    bytes.copy_within(from * SEGMENT..(from + 1) * SEGMENT, to * SEGMENT);
                }
            }
            fs::write(&path, bytes).unwrap();
            let damage = check(folder.path(), u64::MAX).unwrap();
            assert_eq!(check(folder.path(), 0).unwrap(), damage, "round {round}");
            found.extend(damage.into_iter().map(|text| text.replace(|c: char| c.is_ascii_digit(), "")));
        }
        assert!(found.len() >= 3, "{found:?}");
    }

    /// The frames of each page that the last batch has not rewritten.
    fn pages(folder: &Path) -> BTreeMap<u64, Vec<(usize, Frame)>> {
        let mut pages: BTreeMap<u64, (u64, Vec<_>)> = BTreeMap::new();
        let found = scan(&File::open(folder.join(names::LOG)).unwrap(), |base, frame| {
            if (kind::FREE..=kind::LINK).contains(&frame.kind) {
                let (newest, frames) = pages.entry(frame.page).or_default();
                *newest = frame.lsn().max(*newest);
                frames.push((base as usize, *frame));
            }
        });
        let last_manifest = found.unwrap().last_manifest;
        pages.retain(|_, (newest, _)| *newest < last_manifest);
        pages.into_iter().map(|(page, (_, frames))| (page, frames)).collect()
    }

    /// Makes a frame a cancelled one, which verifies and changes nothing.
    fn cancel(bytes: &mut [u8], base: usize, frame: &Frame) {
        let (begins, at) = (base + frame.begins, base + frame.at);
        bytes[begins + 4] = kind::CANCELED;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes[at..at + frame.length]);
        sum.update(&bytes[begins + 4..at]);
        bytes[begins..begins + 4].copy_from_slice(&(sum.finalize() ^ u32::MAX).to_le_bytes());
    }

    #[test]
    fn missing_page_is_detected_without_a_gap() {
        let folder = log();
        assert_eq!(find_damage(folder.path()).unwrap(), Vec::<String>::new());
        let whole = fs::read(folder.path().join(names::LOG)).unwrap();
        let mut pages = pages(folder.path());
        // The loss of the page with the highest number cannot be detected.
        pages.pop_last();
        assert!(pages.len() > 20, "{}", pages.len());
        for (page, frames) in pages {
            let mut bytes = whole.clone();
            frames.iter().for_each(|(base, frame)| cancel(&mut bytes, *base, frame));
            fs::write(folder.path().join(names::LOG), bytes).unwrap();
            assert_eq!(find_damage(folder.path()).unwrap(), ["pages missing from the log: 1"], "page {page}");
        }
    }
}
