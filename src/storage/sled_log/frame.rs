//! Frames: the items of sled's log, recognised by their bytes alone.

use std::ops::RangeInclusive;

use super::varint::Bytes;

pub const SEGMENT: usize = 512 << 10;
pub const SEGMENT_HEADER: usize = 20;
/// The least distance between the beginning of a frame and the end of its segment.
pub const FRAME_HEADER_MAX: usize = 32;

/// sled's kinds of frames.
pub mod kind {
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

const KINDS: RangeInclusive<u8> = kind::CANCELED..=kind::BLOB_LINK;
/// The offset of the kind in a frame; its checksum is before it.
const KIND: usize = 4;

/// A frame whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub kind: u8,
    /// The number of its segment.
    pub segment: u64,
    pub page: u64,
    /// The offsets of its head and of its payload in the segment, and the payload's length.
    pub begins: usize,
    pub at: usize,
    pub length: usize,
}

impl Frame {
    /// Its place in the order of all frames.
    pub fn lsn(&self) -> u64 {
        lsn(self.segment, self.begins)
    }
}

/// The place of a frame in the order of all frames: they are written in this order.
pub fn lsn(segment: u64, at: usize) -> u64 {
    segment.saturating_mul(SEGMENT as u64).saturating_add(at as u64)
}

/// The number of a segment. `None` if its header's checksum fails.
pub fn header(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.first_chunk::<SEGMENT_HEADER>()?;
    let sum = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) ^ u32::MAX;
    if crc32fast::hash(&bytes[4..]) != sum {
        return None;
    }
    let lsn = u64::from_le_bytes(*bytes[4..].first_chunk()?) ^ (u64::MAX >> 1);
    Some(lsn / SEGMENT as u64)
}

/// The next frame at or after an offset. After a damaged frame it tries the offset that the frame's length gives, and
/// then every byte.
pub fn next_frame(bytes: &[u8], at: usize) -> Option<Frame> {
    let last = SEGMENT - FRAME_HEADER_MAX;
    let mut hops = at;
    for _ in 0..2 {
        match frame_at(bytes, hops) {
            Ok(frame) => return Some(frame),
            Err(Some(next)) => hops = next,
            Err(None) => break,
        }
    }
    // The kind comes first, because few bytes are one: most of those tried are the unused rest of a segment.
    let kinds = bytes.get(at + KIND..)?;
    let mut tried = (at..=last).zip(kinds).filter(|(_, kind)| KINDS.contains(kind));
    tried.find_map(|(at, _)| frame_at(bytes, at).ok())
}

/// The frame at an offset. `Err` has the end that a frame with a wrong checksum claims.
fn frame_at(bytes: &[u8], at: usize) -> Result<Frame, Option<usize>> {
    let rest = bytes.get(at..).filter(|_| at + FRAME_HEADER_MAX <= SEGMENT).ok_or(None)?;
    let Some((sum, payload)) = rest.split_first_chunk::<4>() else { return Err(None) };
    let mut head = Bytes { payload, at: 0 };
    let begins = at;
    let frame = (|| {
        let kind = head.byte().filter(|kind| KINDS.contains(kind))?;
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
