//! Records in their packs: filed at the end, read where they stand, removed a pack at a time.
//!
//! What one commit accepts is filed together, so an accept by itself is a pack of its own, and under load a pack holds
//! what fits. A message that leaves has its bit set in the pack's `l` row; the last to leave takes both rows with it.

use std::ops::Bound;

use super::rows::{At, Record, Table, keys, pack};
use super::{StoreFailed, Writer};

/// The pack that this commit files records in.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    next: At,
    bytes: usize,
}

/// What of a pack has not left.
pub struct Live {
    pub pack: u64,
    pub records: Vec<(At, Record)>,
}

impl Writer {
    /// Files a record.
    pub(super) fn file(&mut self, record: &Record) -> At {
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
        self.open_pack = Some(Open { next: At { nth: at.nth + 1, ..at }, bytes: open.bytes + encoded.len() });
        self.encoded = encoded;
        at
    }

    fn new_pack(&mut self) -> Open {
        let pack = self.meta.next_pack;
        self.meta.next_pack += 1;
        Open { next: At { pack, nth: 0 }, bytes: 0 }
    }

    /// The record that stands there. One that is damaged is set aside, counted, and not there.
    pub(super) fn record(&mut self, at: At) -> Result<Option<Record>, StoreFailed> {
        let found = self.store.read(&at.key(), |bytes| pack::decode(at, bytes))?;
        if let Some(None) = found {
            self.store.quarantine_row(&at.key())?;
            self.unfile(at)?;
        }
        Ok(found.flatten())
    }

    /// A record has left.
    pub(super) fn unfile(&mut self, at: At) -> Result<(), StoreFailed> {
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

    fn gone(&mut self, pack: u64) -> Result<u64, StoreFailed> {
        Ok(self.store.get(&keys::gone(pack))?.unwrap_or(0))
    }

    /// The first pack after `after`.
    pub(super) fn next_pack(&mut self, after: u64) -> Result<Option<Live>, StoreFailed> {
        let from = keys::pack(after);
        let Some(key) = self.store.next_key(Table::Pack.key(), Bound::Excluded(from))? else { return Ok(None) };
        let pack = keys::number_in(&key);
        let gone = self.gone(pack)?;
        let count = self.store.read(&key, pack::count)?.unwrap_or(0);
        let mut records = Vec::new();
        for at in (0..count).map(|nth| At { pack, nth }).filter(|at| gone & at.bit() == 0) {
            records.extend(self.record(at)?.map(|record| (at, record)));
        }
        Ok(Some(Live { pack, records }))
    }
}
