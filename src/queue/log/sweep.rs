//! Looking for damage: what in a log no crash can have left.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::frame::{FRAME_HEADER_MAX, Frame, SEGMENT, SEGMENT_HEADER, header, kind, lsn, next_frame};
use super::snapshot;

/// What a look through the whole log found.
#[derive(Debug, Default)]
pub struct Sweep {
    damage: Vec<String>,
    gaps: Vec<Gap>,
    /// Of the segments whose headers verify.
    numbers: HashSet<u64>,
    last_manifest: u64,
}

/// Where reading a segment had to stop, or to begin again.
#[derive(Clone, Copy, Debug)]
struct Gap {
    number: u64,
    base: u64,
    at: usize,
}

/// Looks through the log in a folder for damage. In memory are one segment of it at a time and some numbers for each page.
pub fn sweep(folder: &Path) -> io::Result<Vec<String>> {
    let file = File::open(folder.join("db"))?;
    let (mut damage, pointers) = match snapshot::pointers(folder)? {
        Ok(pointers) => (Vec::new(), pointers),
        Err(damage) => (vec![damage], Vec::new()),
    };
    let (mut expected, mut missing) = (pointers.into_iter().peekable(), Vec::new());
    // When each page was last made anew.
    let mut newest: HashMap<u64, u64> = HashMap::new();
    let sweep = scan(&file, |base, frame| {
        let at = base + frame.begins as u64;
        while let Some(pointer) = expected.next_if(|pointer| pointer.at <= at) {
            missing.extend((pointer.at != at || pointer.lsn != frame.lsn()).then_some(pointer));
        }
        if (kind::FREE..=kind::BLOB_NODE).contains(&frame.kind) {
            let written = newest.entry(frame.page).or_default();
            *written = frame.lsn().max(*written);
        }
    })?;
    let made = |page| newest.get(&page).copied().unwrap_or(0);
    let missing = missing.into_iter().chain(expected);
    let gone = missing.filter(|pointer| made(pointer.page) <= pointer.lsn).count();
    if gone > 0 {
        damage.push(format!("{gone} pieces of pages are not where the snapshot says"));
    }
    damage.extend(sweep.judge(&file, made)?);
    Ok(damage)
}

/// Tells every frame whose checksum holds, segment by segment, with the offset of its segment.
pub fn scan(file: &File, mut tell: impl FnMut(u64, &Frame)) -> io::Result<Sweep> {
    let length = file.metadata()?.len();
    let mut sweep = Sweep::default();
    let mut buffer = vec![0; SEGMENT];
    for base in (0..length).step_by(SEGMENT) {
        let size = usize::try_from(length - base).unwrap_or(SEGMENT).min(SEGMENT);
        let segment = &mut buffer[..size];
        file.read_exact_at(segment, base)?;
        if segment.iter().any(|byte| *byte != 0) {
            sweep.segment(base, segment, |frame| tell(base, frame));
        }
    }
    Ok(sweep)
}

impl Sweep {
    fn segment(&mut self, base: u64, bytes: &[u8], mut tell: impl FnMut(&Frame)) {
        let header = header(bytes);
        if let Some(number) = header.filter(|number| !self.numbers.insert(*number)) {
            self.damage.push(format!("the log has segment {number} twice, once at byte {base}"));
        }
        let (mut own, mut at, mut whole) = (header, SEGMENT_HEADER, false);
        while let Some(frame) = next_frame(bytes, at) {
            // What another number stands on is not missing here.
            let number = *own.get_or_insert(frame.segment);
            if number == frame.segment {
                if frame.begins > at || header.is_none() && at == SEGMENT_HEADER {
                    self.gaps.push(Gap { number, base, at });
                }
                whole = frame.kind == kind::CAP || frame.at + frame.length + FRAME_HEADER_MAX > SEGMENT;
            }
            if frame.kind == kind::MANIFEST {
                self.last_manifest = self.last_manifest.max(frame.lsn());
            }
            tell(&frame);
            at = frame.at + frame.length;
            if whole {
                break;
            }
        }
        if let Some(number) = own.filter(|_| !whole) {
            self.gaps.push(Gap { number, base, at });
        }
    }

    /// A gap is damage where it is no torn end and something in its segment is still in use: a frame that tells how a page
    /// is now. sled frees the other segments, overwrites them from anywhere, and zeroes them at its next start.
    fn judge(self, file: &File, made: impl Fn(u64) -> u64) -> io::Result<Vec<String>> {
        let Sweep { mut damage, mut gaps, numbers, last_manifest } = self;
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
