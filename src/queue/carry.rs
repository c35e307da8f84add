//! Rebuilds a damaged store: the valid rows of the quarantined one go into a new one, in which all rows agree with one
//! another. `storage::quarantine` has the files and the instant of change.
//!
//! Records keep their packs, sequence numbers, ClientTokens and attempts; outcomes, dead letters and tokens are copied
//! as they are. The rows that only order and count them are made anew. Every head counts as perhaps delivered, because
//! an attempt may have been under way.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::rows::{
    Dead, Entry, Fate, Hash, Key, Kind, Line, Meta, Place, Record, Slot, Table, USED_LINE, USED_PARTICIPANT,
    USED_TOKEN, keys, pack,
};
use super::salvage::Salvage;
use super::{Damaged, OpenError, Options, Queue, SealingKey, Writer};
use crate::metrics::Metrics;
use crate::storage::{self, Image};
use crate::time::{Anchor, Clock, Timestamp};

/// What was carried over, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Messages queued.
    pub queued: u64,
    /// Dead letters.
    pub dead: u64,
    /// Outcomes of delivered messages.
    pub outcomes: u64,
    /// Messages of which only the name was left, or not even that.
    pub lost: u64,
}

/// Refuses a store that none of the keys opens.
pub fn refuse_sealed(
    path: &Path,
    keys: &[SealingKey],
    failed: impl FnOnce(io::Error) -> OpenError,
) -> Result<(), OpenError> {
    let image = Image::read(path, |_, _| ()).map_err(failed)?;
    match image.identity(path, keys)? {
        (Some(known), _) if known.sealer.is_none() => {
            Err(OpenError::Sealed { path: path.to_owned(), keys: keys.len() })
        }
        _ => Ok(()),
    }
}

/// Links the damaged files into a folder beside them and puts a new store in their place; the folder must be locked.
pub fn set_aside(options: &Options, clock: &Clock) -> io::Result<(PathBuf, Carried)> {
    let path = &options.path;
    let aside = storage::quarantine(path, clock.wall())?;
    let image = Image::read(&aside, |_, _| ())?;
    let fresh = storage::replacement_folder(path)?;
    let carried = copy_over(&image, path, &fresh, options, clock)?;
    storage::replace_quarantined(path, &aside)?;
    Ok((aside, carried))
}

/// Makes a new store in `to` of what verifies in a log, with the format stamp of the folder `from`.
pub fn copy_over(log: &Image, from: &Path, to: &Path, options: &Options, clock: &Clock) -> io::Result<Carried> {
    storage::create_empty(to, from, log)?;
    let options = Options { path: to.to_owned(), damaged: Damaged::Refuse, volatile: true, ..options.clone() };
    let (queue, mut writer) = Queue::open(options, clock.clone(), &Metrics::default()).map_err(io::Error::other)?;
    drop(queue);
    writer.carry_over(&Salvage::of(log)?)
}

impl Writer {
    /// Takes over what verifies; this store is new.
    fn carry_over(&mut self, from: &Salvage) -> io::Result<Carried> {
        let log = from.log;
        if let Some(old) = log.get::<Meta>(&Table::Meta.key())? {
            let Meta { next_sequence, next_pack, next_turn, next_row, boot, implied_lifetime_ms, learned, .. } = old;
            self.meta = Meta {
                next_sequence,
                next_pack,
                next_turn,
                next_row,
                boot: boot.max(self.meta.boot),
                implied_lifetime_ms,
                learned,
                ..Meta::default()
            };
        }
        // Before anything is written with a time: the new store goes on on the line of the old one.
        self.resume_line(log.get::<Anchor>(&Table::Anchor.key())?, Timestamp::default());
        self.meta.unclean_boot = self.meta.boot;
        let mut carried = Carried::default();
        for (table, used) in [
            (Table::Token, Some(USED_TOKEN)),
            (Table::Participant, Some(USED_PARTICIPANT)),
            (Table::Sending, None),
            (Table::Quarantine, None),
        ] {
            for key in log.keys(table.letter()) {
                if from.holds(key)? {
                    self.take_row(log, key)?;
                    self.used.extend(used.map(|used| (used, keys::hash_in(key))));
                }
            }
        }
        for dead in from.dead() {
            let (key, Dead { record, died, .. }) = dead?;
            self.take_row(log, key)?;
            self.take_pieces(log, &record)?;
            self.store.put(keys::prune_dead(died, record.sequence), &());
            self.meta.dead += 1;
            self.meta.weight += record.weight() + record.dead_weight();
            carried.dead += 1;
        }
        self.take_outcomes(log, &mut carried)?;
        let slots = self.take_packs(from, &mut carried)?;
        self.make_lines(from, slots)?;
        let lost = from.queued()?;
        carried.lost = lost.lost.len() as u64 + lost.nameless;
        self.meta.clean = true;
        self.note_meta();
        self.commit().map_err(io::Error::other)?;
        // The log alone is put in the place of the old one.
        self.store.checkpoint().map_err(io::Error::other)?;
        Ok(carried)
    }

    /// A row as it stands; then the commit, where enough is written.
    fn take_row(&mut self, log: &Image, key: &[u8]) -> io::Result<()> {
        if let (Some(raw), Some(key)) = (log.raw(key)?, Key::of(key)) {
            self.store.put_raw(key, raw);
        }
        self.commit_if_long().map_err(io::Error::other)
    }

    fn take_pieces(&mut self, log: &Image, record: &Record) -> io::Result<()> {
        for number in record.piece_numbers() {
            self.take_row(log, &keys::piece(record.sequence, number))?;
        }
        Ok(())
    }

    fn take_outcomes(&mut self, log: &Image, carried: &mut Carried) -> io::Result<()> {
        for key in log.keys(Table::Entry.letter()) {
            let Some(Entry::Done(outcome)) = log.get(key)? else { continue };
            self.meta.next_sequence = self.meta.next_sequence.max(outcome.sequence + 1);
            match outcome.fate {
                Fate::Delivered(_) => {
                    self.outcomes.push((keys::hash_in(key), keys::entry_in(key)));
                    self.meta.outcomes += 1;
                    carried.outcomes += 1;
                }
                // It goes with its dead letter.
                Fate::Dead { .. } if log.get::<Dead>(&keys::dead(outcome.sequence))?.is_none() => {
                    continue;
                }
                Fate::Dead { .. } => {}
            }
            self.take_row(log, key)?;
        }
        Ok(())
    }

    fn take_packs(&mut self, from: &Salvage, carried: &mut Carried) -> io::Result<HashMap<Hash, Vec<(Slot, bool)>>> {
        let mut slots: HashMap<Hash, Vec<(Slot, bool)>> = HashMap::new();
        from.packs(|pack| {
            let super::salvage::Pack { key, raw, queued } = pack;
            let all = pack::all(pack::count(&raw));
            let gone = queued.iter().fold(all, |gone, (at, _)| gone & !at.bit());
            if let Some((at, _)) = queued.first().filter(|_| gone != 0) {
                self.store.put(keys::gone(at.pack), &gone);
            }
            self.meta.weight += raw.len() as u64;
            self.store.put_raw(key, raw);
            for (at, record) in queued {
                self.take_pieces(from.log, &record)?;
                self.meta.weight += record.weight();
                self.meta.next_sequence = self.meta.next_sequence.max(record.sequence + 1);
                if record.implied {
                    self.meta.implied += 1;
                    self.meta.implied_lifetime_ms = record.lifetime_ms;
                } else {
                    self.store.put(keys::expiry(record.deadline, record.sequence), &at);
                }
                let trial = from.slot(&record).map(|slot| slot.trial.clone()).unwrap_or_default();
                self.meta.unknown += u64::from(trial.unknown);
                self.count_queued(record.caller, 1).map_err(io::Error::other)?;
                carried.queued += 1;
                let Record { sequence, accepted, entry, conversation, kind, .. } = record;
                let slot = Slot { sequence, accepted, at, entry, trial };
                slots.entry(conversation).or_default().push((slot, kind == Kind::Disconnect));
            }
            self.commit_if_long().map_err(io::Error::other)
        })?;
        Ok(slots)
    }

    /// Lines and turns, the longest waiting first.
    fn make_lines(&mut self, from: &Salvage, mut slots: HashMap<Hash, Vec<(Slot, bool)>>) -> io::Result<()> {
        let now = self.now();
        let left: Vec<Hash> = from.lines.keys().filter(|hash| !slots.contains_key(*hash)).copied().collect();
        slots.extend(left.into_iter().map(|conversation| (conversation, Vec::new())));
        let mut conversations: Vec<_> = slots.into_iter().collect();
        conversations.sort_by_key(|(hash, slots)| (slots.iter().map(|(slot, _)| slot.sequence).min(), *hash));
        for (conversation, mut slots) in conversations {
            let old = from.lines.get(&conversation).cloned().unwrap_or_default();
            let head = old.head().map(|head| head.sequence);
            // What comes back goes before others of its conversation, but never before a head that may have been sent.
            slots.sort_by_key(|(slot, _)| (Some(slot.sequence) != head, slot.sequence));
            let disconnect = slots.iter().find(|(_, disconnect)| *disconnect).map(|(slot, _)| slot.sequence);
            let disconnect = old.disconnect.or(disconnect);
            let mut line = Line { disconnect, used: now, boot: self.meta.boot, ..Line::default() };
            let slots = slots.into_iter().map(|(slot, _)| slot).collect();
            self.refill(&conversation, &mut line, slots).map_err(io::Error::other)?;
            self.used.extend(disconnect.map(|_| (USED_LINE, conversation)));
            if line.count > 0 {
                self.meta.conversations += 1;
                match (old.hold, old.place) {
                    (hold, Place::Due(due)) => {
                        self.meta.held += u64::from(hold.is_some());
                        line.hold = hold;
                        self.move_to(&conversation, &mut line, Place::Due(due), now);
                    }
                    _ => self.take_turn(&conversation, &mut line, now),
                }
            }
            self.put_line(&conversation, &line);
            self.commit_if_long().map_err(io::Error::other)?;
        }
        Ok(())
    }
}
