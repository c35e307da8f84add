//! The records of messages, in packs.
//!
//! The records that one commit accepts are filed together: an accept by itself is a pack of its own, and under load a
//! pack contains as many records as fit. When a message leaves, its bit in the pack's `l` row is set; the last one to
//! leave removes both rows.

use std::ops::Bound;

use super::State;
use super::parts::OpenPack;
use crate::queue::api::Result;
use crate::queue::rows::{Record, RecordPos, Table, keys, pack};

/// The records of a pack whose messages have not left.
pub struct LivePack {
    pub pack: u64,
    pub records: Vec<(RecordPos, Record)>,
}

impl State {
    /// Files a record in the open pack, or begins a new one.
    pub fn file(&mut self, record: &Record) -> RecordPos {
        let open = self.open_pack.take().filter(|open| open.next.nth < pack::RECORDS_MAX);
        let mut open = open.unwrap_or_else(|| self.new_pack());
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        pack::encode_onto(&mut encoded, open.next, record);
        if open.next.nth > 0 && open.bytes + encoded.len() > pack::BYTES_MAX {
            open = self.new_pack();
            encoded.clear();
            pack::encode_onto(&mut encoded, open.next, record);
        }
        let at = open.next;
        self.store.append(at.key(), &encoded);
        self.meta.weight += encoded.len() as u64;
        self.open_pack =
            Some(OpenPack { next: RecordPos { nth: at.nth + 1, ..at }, bytes: open.bytes + encoded.len() });
        self.encoded = encoded;
        at
    }

    fn new_pack(&mut self) -> OpenPack {
        let pack = self.meta.next_pack;
        self.meta.next_pack += 1;
        OpenPack { next: RecordPos { pack, nth: 0 }, bytes: 0 }
    }

    /// Reads a record. `None` if it has left, or if it is damaged: then it is quarantined and counted.
    pub fn record(&mut self, at: RecordPos) -> Result<Option<Record>> {
        let found = self.store.read(&at.key(), |bytes| pack::decode(at, bytes))?;
        if let Some(None) = found {
            self.store.quarantine_row(&at.key())?;
            self.unfile(at)?;
        }
        Ok(found.flatten())
    }

    /// Marks a record as left, and removes its pack if it was the last one.
    pub fn unfile(&mut self, at: RecordPos) -> Result<()> {
        let Some((bytes, count)) = self.store.read(&at.key(), |pack| (pack.len(), pack::count(pack)))? else {
            return Ok(());
        };
        let gone = self.gone(at.pack)? | at.bit();
        let all = pack::all(count);
        if gone & all == all {
            self.store.remove(at.key());
            if count > 1 {
                self.store.remove(keys::gone(at.pack));
            }
            self.meta.weight = self.meta.weight.saturating_sub(bytes as u64);
            self.open_pack = self.open_pack.filter(|open| open.next.pack != at.pack);
        } else {
            self.store.put(keys::gone(at.pack), &gone);
        }
        Ok(())
    }

    fn gone(&mut self, pack: u64) -> Result<u64> {
        Ok(self.store.get(&keys::gone(pack))?.unwrap_or(0))
    }

    /// The first pack after `after`, with the records that have not left.
    pub fn next_pack(&mut self, after: u64) -> Result<Option<LivePack>> {
        let from = keys::pack(after);
        let Some(key) = self.store.next_key(Table::Pack.key(), Bound::Excluded(from))? else { return Ok(None) };
        let pack = keys::number_in(&key);
        let gone = self.gone(pack)?;
        let count = self.store.read(&key, pack::count)?.unwrap_or(0);
        let mut records = Vec::new();
        for at in (0..count).map(|nth| RecordPos { pack, nth }).filter(|at| gone & at.bit() == 0) {
            records.extend(self.record(at)?.map(|record| (at, record)));
        }
        Ok(Some(LivePack { pack, records }))
    }
}
