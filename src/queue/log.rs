//! sled's log, read without sled: what verifies in it, whatever else is damaged.
//!
//! sled cuts its log at the first fault and zeroes what comes after, or does not open at all; it panics and hangs on some
//! faults; and it cannot open without writing. So damage is looked for, and what it has left is read, here: nothing is
//! written, nothing but bytes is believed, and every loop ends with the file.
//!
//! ```text
//! file     segment, segment, …                          512 KiB each, in any order
//! segment  [header 20] frame, frame, … [cap, or zeroes]
//! frame    [crc u32][kind u8][length][segment's number][page][payload]     integers in sled's own varint
//! node     a page as it is: its range of keys, its rows
//! link     one row of a page set or removed
//! ```
//!
//! Each frame has a checksum and names its segment's number, so that number and place tell when it was written: frames
//! are put in that order, and the rows follow. A node says all that there is in its range; a link changes one row. What
//! lies about in freed segments is older than the nodes that replaced it, and is overruled by them.
//!
//! **Damage** is what no crash can leave. A crash leaves the last commit torn (one batch for each sync, which begins with
//! a manifest), and freed segments half overwritten or half zeroed. So a gap is damage where it lies before the last
//! manifest, in a segment of which something is still in use. Damage within the last commit cannot be told from a crash.
//!
//! The layout is that of sled 0.34.7, which `Cargo.toml` pins; a test compares the two row by row.

mod snapshot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::codec;

const SEGMENT: usize = 512 << 10;
const SEGMENT_HEADER: usize = 20;
/// No frame begins closer to the end of a segment.
const FRAME_HEADER_MAX: usize = 32;

/// sled's kinds of frames.
mod kind {
    pub const CANCELED: u8 = 1;
    pub const CAP: u8 = 2;
    pub const MANIFEST: u8 = 3;
    pub const FREE: u8 = 4;
    pub const COUNTER: u8 = 5;
    pub const NODE: u8 = 8;
    pub const BLOB_NODE: u8 = 9;
    pub const LINK: u8 = 10;
    pub const BLOB_LINK: u8 = 11;
}

/// A frame whose checksum holds.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: u8,
    /// The number of its segment.
    segment: u64,
    page: u64,
    /// Where it begins, where its payload does, and how long that is.
    begins: usize,
    at: usize,
    length: usize,
}

impl Frame {
    /// When it was written, beside others.
    fn lsn(&self) -> u64 {
        lsn(self.segment, self.begins)
    }
}

/// A page of rows, as its frames so far have left it.
struct Page {
    written: u64,
    merging: bool,
    /// Its range of keys; no high end is the end of all keys.
    low: Vec<u8>,
    high: Vec<u8>,
    /// How every key in it begins; the rows have the rest.
    prefix: Vec<u8>,
    rows: BTreeMap<Vec<u8>, Place>,
}

/// What a look through the whole log found.
#[derive(Debug, Default)]
struct Sweep {
    damage: Vec<String>,
    gaps: Vec<Gap>,
    /// Of the segments whose headers verify.
    numbers: HashSet<u64>,
    last_manifest: u64,
}

/// Where a row's value lies in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    length: usize,
}

/// Where reading a segment had to stop, or to begin again.
#[derive(Clone, Copy, Debug)]
struct Gap {
    number: u64,
    base: u64,
    at: usize,
}

/// A log, and the rows that verify.
#[derive(Debug)]
pub struct Log {
    file: File,
    rows: BTreeMap<Vec<u8>, Place>,
    /// What no crash leaves, in words.
    pub damage: Vec<String>,
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

impl Log {
    /// Reads a log; `step` hears of each segment, as (segments read, segments there are).
    pub fn read(folder: &Path, mut step: impl FnMut(u64, u64)) -> io::Result<Log> {
        let damage = sweep(folder)?;
        let file = File::open(folder.join("db"))?;
        let segments = file.metadata()?.len().div_ceil(SEGMENT as u64);
        let mut frames = Vec::new();
        scan(&file, |base, frame| {
            step(base / SEGMENT as u64 + 1, segments);
            frames.push((frame.lsn(), base, *frame));
        })?;
        frames.sort_by_key(|(lsn, ..)| *lsn);
        let mut log = Log { file, rows: BTreeMap::new(), damage };
        let mut pages = HashMap::new();
        for (lsn, base, frame) in frames {
            log.turn(lsn, base + frame.at as u64, &frame, &mut pages)?;
        }
        // Where two pages say something of one key, because what replaced one of them is lost, the newer one is right; and
        // a page that merges was given to its neighbour.
        let mut pages: Vec<Page> = pages.into_values().collect();
        pages.sort_by_key(|page| (!page.merging, page.written));
        for page in pages {
            log.lay_over(page);
        }
        Ok(log)
    }

    /// An empty one in the place of a log that is gone.
    pub fn empty(damage: String) -> io::Result<Log> {
        Ok(Log { file: File::open("/dev/null")?, rows: BTreeMap::new(), damage: vec![damage] })
    }

    fn turn(&mut self, lsn: u64, at: u64, frame: &Frame, pages: &mut HashMap<u64, Page>) -> io::Result<()> {
        match frame.kind {
            kind::NODE | kind::LINK => {}
            kind::FREE => {
                pages.remove(&frame.page);
                return Ok(());
            }
            kind::BLOB_NODE | kind::BLOB_LINK => {
                self.damage.push("a row was too long for the log and stands in blobs/".into());
                return Ok(());
            }
            _ => return Ok(()),
        }
        let mut payload = vec![0; frame.length];
        self.file.read_exact_at(&mut payload, at)?;
        let mut bytes = Bytes { payload: &payload, at: 0 };
        let understood = if frame.kind == kind::NODE {
            pages.remove(&frame.page);
            let page = Page::read(lsn, at, &mut bytes);
            let understood = page.is_some();
            pages.extend(page.flatten().map(|page| (frame.page, page)));
            understood
        } else {
            // A link whose page is lost cannot be read: the page knows how its keys begin.
            pages.get_mut(&frame.page).is_none_or(|page| page.change(at, &mut bytes).is_some())
        };
        if !understood {
            self.damage.push(format!("the frame at byte {at} of the log is not as sled writes one"));
        }
        Ok(())
    }

    fn lay_over(&mut self, page: Page) {
        let Page { low, high, prefix, rows, .. } = page;
        if high.is_empty() || low < high {
            let end = if high.is_empty() { Bound::Unbounded } else { Bound::Excluded(high) };
            let gone: Vec<_> = self.rows.range((Bound::Included(low), end)).map(|(key, _)| key.clone()).collect();
            for key in gone {
                self.rows.remove(&key);
            }
        }
        self.rows.extend(rows.into_iter().map(|(key, place)| ([&prefix[..], &key].concat(), place)));
    }

    /// The keys that begin with a letter, in order.
    pub fn keys(&self, prefix: u8) -> impl Iterator<Item = &[u8]> {
        let range = (Bound::Included(vec![prefix]), Bound::Excluded(vec![prefix + 1]));
        self.rows.range(range).map(|(key, _)| key.as_slice())
    }

    /// Whether there is any row at all.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Every letter that keys begin with, and how many do.
    pub fn counts(&self) -> BTreeMap<u8, u64> {
        let mut counts = BTreeMap::new();
        self.rows.keys().filter_map(|key| key.first()).for_each(|first| *counts.entry(*first).or_default() += 1);
        counts
    }

    /// The bytes under a key, as they stand there.
    pub fn raw(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Some(place) = self.rows.get(key) else { return Ok(None) };
        let mut value = vec![0; place.length];
        self.file.read_exact_at(&mut value, place.at)?;
        Ok(Some(value))
    }

    /// The row under a key: none where there is none, or its own sum does not hold.
    pub fn get<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        Ok(self.raw(key)?.and_then(|value| codec::decode(key, &value)))
    }
}

impl Page {
    /// A page from its node; none inside where it is one of the index.
    fn read(written: u64, at: u64, bytes: &mut Bytes) -> Option<Option<Page>> {
        let (_next, _merging_child) = (bytes.number()?, bytes.number()?);
        let (merging, prefix) = (bytes.byte()? != 0, usize::from(bytes.byte()?));
        let (low, high) = (bytes.run()?.to_vec(), bytes.run()?.to_vec());
        if bytes.byte()? != 0 {
            return Some(None);
        }
        let prefix = low.get(..prefix)?.to_vec();
        let keys: Option<Vec<&[u8]>> = (0..bytes.number()?).map(|_| bytes.run()).collect();
        let mut rows = BTreeMap::new();
        for key in keys? {
            rows.insert(key.to_vec(), bytes.place(at)?);
        }
        Some(Some(Page { written, merging, low, high, prefix, rows }))
    }

    /// Applies a link.
    fn change(&mut self, at: u64, bytes: &mut Bytes) -> Option<()> {
        match bytes.byte()? {
            0 => {
                let key = bytes.run()?.to_vec();
                self.rows.insert(key, bytes.place(at)?);
            }
            1 => {
                self.rows.remove(bytes.run()?);
            }
            4 => self.merging = true,
            // Of the index.
            2 | 3 => {}
            _ => return None,
        }
        Some(())
    }
}

/// When a frame was written, beside others.
fn lsn(segment: u64, at: usize) -> u64 {
    segment.saturating_mul(SEGMENT as u64).saturating_add(at as u64)
}

/// Tells every frame whose checksum holds, segment by segment, with the offset of its segment.
fn scan(file: &File, mut tell: impl FnMut(u64, &Frame)) -> io::Result<Sweep> {
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

/// The number of a segment, if its header's sum holds.
fn header(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.first_chunk::<SEGMENT_HEADER>()?;
    let sum = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) ^ u32::MAX;
    if crc32fast::hash(&bytes[4..]) != sum {
        return None;
    }
    let lsn = u64::from_le_bytes(*bytes[4..].first_chunk()?) ^ (u64::MAX >> 1);
    Some(lsn / SEGMENT as u64)
}

/// The next frame at or after an offset. After one that is damaged the next begins where its length
/// says; only where nothing does, every byte is tried.
fn next_frame(bytes: &[u8], at: usize) -> Option<Frame> {
    let last = SEGMENT - FRAME_HEADER_MAX;
    let mut hops = at;
    for _ in 0..2 {
        match frame_at(bytes, hops) {
            Ok(frame) => return Some(frame),
            Err(Some(next)) => hops = next,
            Err(None) => break,
        }
    }
    (at..=last.min(bytes.len())).find_map(|at| frame_at(bytes, at).ok())
}

/// The frame at an offset; where its sum does not hold, the offset at which it says to end.
fn frame_at(bytes: &[u8], at: usize) -> Result<Frame, Option<usize>> {
    let rest = bytes.get(at..).filter(|_| at + FRAME_HEADER_MAX <= SEGMENT).ok_or(None)?;
    let Some((sum, payload)) = rest.split_first_chunk::<4>() else { return Err(None) };
    let mut head = Bytes { payload, at: 0 };
    let begins = at;
    let frame = (|| {
        let kind = head.byte().filter(|kind| (kind::CANCELED..=kind::BLOB_LINK).contains(kind))?;
        let length = usize::try_from(head.number()?).ok()?;
        let (segment, page) = (head.number()?, head.number()?);
        let at = at + 4 + head.at;
        (length <= bytes.len().saturating_sub(at)).then_some(Frame { kind, segment, page, begins, at, length })
    })()
    .ok_or(None)?;
    let end = frame.at + frame.length;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[frame.at..end]);
    hasher.update(&payload[..head.at]);
    if hasher.finalize() ^ u32::MAX == u32::from_le_bytes(*sum) { Ok(frame) } else { Err(Some(end)) }
}

/// A cursor that never leaves its bytes.
struct Bytes<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.payload.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// sled's varint.
    fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        Some(match first {
            0..=240 => u64::from(first),
            241..=248 => 240 + 256 * (u64::from(first) - 241) + u64::from(self.byte()?),
            249 => 2288 + 256 * u64::from(self.byte()?) + u64::from(self.byte()?),
            250..=255 => {
                let length = usize::from(first) - 247;
                let mut number = [0; 8];
                number[..length].copy_from_slice(self.take(length)?);
                u64::from_le_bytes(number)
            }
        })
    }

    /// Where the next run of bytes lies in the file, if these begin at `at`.
    fn place(&mut self, at: u64) -> Option<Place> {
        let length = self.run()?.len();
        Some(Place { at: at + (self.at - length) as u64, length })
    }

    /// A number of eight bytes.
    fn fixed(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// A run of bytes with its length before it.
    fn run(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length)
    }
}
