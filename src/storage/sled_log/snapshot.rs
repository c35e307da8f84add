//! sled's snapshot: the frames of each page at the time of the snapshot.
//!
//! sled trusts it: it does not verify those frames before it reads them, and panics if one is beyond the end of the
//! file. So the check looks for each of them.
//!
//! ```text
//! [end i64][segment it ends in][page 0][page 1]…[length u64][crc u32]
//! page: [0][lsn i64][place]                          freed
//!       [1 + links][lsn i64][place][size] for each   its node and its links
//! place: [0][offset], or [1][offset][blob i64]
//! ```

use std::fs;
use std::io;
use std::path::Path;

use super::varint::Bytes;
use crate::storage::names;

/// A frame of a page.
#[derive(Clone, Copy, Debug)]
pub struct Pointer {
    /// Its offset in the log.
    pub at: u64,
    pub lsn: u64,
    pub page: u64,
}

/// The frames that the newest snapshot in a folder points at, by their offsets; an error in words if it cannot be read.
pub fn pointers(folder: &Path) -> io::Result<Result<Vec<Pointer>, String>> {
    let names = fs::read_dir(folder)?.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
    let names: io::Result<Vec<String>> = names.collect();
    let names = names?.into_iter().filter(|name| names::is_snapshot(name) && !names::is_unfinished_snapshot(name));
    let Some(name) = names.max() else { return Ok(Ok(Vec::new())) };
    let bytes = fs::read(folder.join(&name))?;
    let found = verified(&bytes).and_then(parse);
    Ok(found.ok_or_else(|| format!("{name} cannot be read")).map(|mut pointers| {
        pointers.sort_unstable_by_key(|pointer| pointer.at);
        pointers
    }))
}

fn verified(bytes: &[u8]) -> Option<&[u8]> {
    let (rest, sum) = bytes.split_last_chunk::<4>()?;
    let (rest, _length) = rest.split_last_chunk::<8>()?;
    (crc32fast::hash(rest) == u32::from_le_bytes(*sum)).then_some(rest)
}

fn parse(bytes: &[u8]) -> Option<Vec<Pointer>> {
    let mut bytes = Bytes { payload: bytes, at: 0 };
    let mut pointers = Vec::new();
    let _end = bytes.fixed()?;
    // The segment in which the log ends.
    let _segment = bytes.number()?;
    for page in 0.. {
        let Some(kind) = bytes.byte() else { break };
        for _ in 0..kind.max(1) {
            let lsn = bytes.fixed()?;
            let blob = bytes.byte()? != 0;
            let at = bytes.number()?;
            if blob {
                bytes.fixed()?;
            }
            if kind > 0 {
                bytes.number()?;
            }
            pointers.push(Pointer { at, lsn, page });
        }
    }
    Some(pointers)
}
