//! A reader of sled's log that does not need sled: it returns the rows that verify, whatever else is damaged.
//!
//! sled cuts its log off at the first fault and zeroes what comes after, or does not open at all; it panics and hangs
//! on some faults; and it cannot open without writing. This reader finds damage, and reads the rows that it has left.
//! It writes nothing, believes nothing but bytes, and every loop ends with the file.
//!
//! ```text
//! file     segment, segment, …                          512 KiB each, in any order
//! segment  [header 20] frame, frame, … [cap, or zeroes]
//! frame    [crc u32][kind u8][length][segment's number][page][payload]     integers in sled's own varint
//! node     a page as it is: its range of keys, its rows
//! link     one row of a page set or removed
//! ```
//!
//! Each frame has a checksum and names its segment's number, so number and offset give the order in which frames were
//! written. The reader applies them in that order. A node contains all rows in its range; a link changes one row.
//! Frames in freed segments are older than the nodes that replaced them, which overrule them.
//!
//! **Damage** is a state that no crash can leave. A crash leaves the last commit torn (one batch for each sync, which
//! begins with a manifest), and freed segments half overwritten or half zeroed. So a gap is damage if it is before the
//! last manifest, in a segment that is still partly in use. If the only live frames of a page are inside the gap, its
//! page number disappears, which is damage; but if an older frame of the page survives, the reader wrongly takes that
//! one for it. Damage within the last commit cannot be distinguished from a crash.
//!
//! The layout is that of sled 0.34.7, which `Cargo.toml` pins; a test compares the two row by row.

mod check;
mod frame;
mod snapshot;
mod varint;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use self::check::scan;
use self::frame::{Frame, SEGMENT, kind};
use self::varint::Bytes;
use super::names;

pub use self::check::find_damage;
pub use self::varint::Place;

/// A page of rows, after the frames so far.
struct Page {
    written: u64,
    merging: bool,
    /// Its range of keys; an empty `high` is the end of all keys.
    low: Vec<u8>,
    high: Vec<u8>,
    /// The prefix of all its keys; the rows have the rest of each.
    prefix: Vec<u8>,
    rows: BTreeMap<Vec<u8>, Place>,
}

/// A log, and its rows that verify.
pub struct Log {
    /// `None` if it is gone.
    file: Option<File>,
    pub rows: BTreeMap<Vec<u8>, Place>,
    /// Damage that a crash cannot explain, in words.
    pub damage: Vec<String>,
}

impl Log {
    /// Reads a log. `step` gets the progress: (segments read, all segments).
    pub fn read(folder: &Path, mut step: impl FnMut(u64, u64)) -> io::Result<Log> {
        let damage = find_damage(folder)?;
        let file = File::open(folder.join(names::LOG))?;
        let segments = file.metadata()?.len().div_ceil(SEGMENT as u64);
        let mut frames = Vec::new();
        scan(&file, |base, frame| {
            step(base / SEGMENT as u64 + 1, segments);
            frames.push((frame.lsn(), base, *frame));
        })?;
        frames.sort_by_key(|(lsn, ..)| *lsn);
        let mut log = Log { file: Some(file), rows: BTreeMap::new(), damage };
        let mut pages = HashMap::new();
        for (lsn, base, frame) in frames {
            log.apply(lsn, base + frame.at as u64, &frame, &mut pages)?;
        }
        // If two pages have one key, because the frame that replaced one of them is lost, the newer page is right; and
        // a page that merges has moved to its neighbour.
        let mut pages: Vec<Page> = pages.into_values().collect();
        pages.sort_by_key(|page| (!page.merging, page.written));
        for page in pages {
            log.overlay(page);
        }
        Ok(log)
    }

    /// The log of a folder that has none.
    pub fn empty(damage: String) -> Log {
        Log { file: None, rows: BTreeMap::new(), damage: vec![damage] }
    }

    fn apply(&mut self, lsn: u64, at: u64, frame: &Frame, pages: &mut HashMap<u64, Page>) -> io::Result<()> {
        match frame.kind {
            kind::NODE | kind::LINK => {}
            kind::FREE => {
                pages.remove(&frame.page);
                return Ok(());
            }
            kind::BLOB_NODE | kind::BLOB_LINK => {
                self.damage.push("a row was too long for the log and is in blobs/".into());
                return Ok(());
            }
            _ => return Ok(()),
        }
        let payload = self.bytes(Place { at, length: frame.length })?;
        let mut bytes = Bytes { payload: &payload, at: 0 };
        let parsed = if frame.kind == kind::NODE {
            pages.remove(&frame.page);
            let page = Page::read(lsn, at, &mut bytes);
            let parsed = page.is_some();
            pages.extend(page.flatten().map(|page| (frame.page, page)));
            parsed
        } else {
            // A link whose page is lost cannot be read: the page has the prefix of its keys.
            pages.get_mut(&frame.page).is_none_or(|page| page.change(at, &mut bytes).is_some())
        };
        if !parsed {
            self.damage.push(format!("the frame at byte {at} of the log is not as sled writes one"));
        }
        Ok(())
    }

    fn overlay(&mut self, page: Page) {
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

    /// The bytes of a row.
    pub fn bytes(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; place.length];
        if let Some(file) = &self.file {
            file.read_exact_at(&mut bytes, place.at)?;
        }
        Ok(bytes)
    }
}

impl Page {
    /// Parses a node. `Some(None)` if it is a node of the index, which has no rows.
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
