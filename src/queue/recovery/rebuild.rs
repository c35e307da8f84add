//! Rebuilds a damaged store: the valid rows of the quarantined one go into a new one, in which all rows agree with one
//! another. `storage::quarantine` has the files and the instant of change.
//!
//! Records keep their packs, sequence numbers, ClientTokens and attempts; outcomes, dead letters and tokens are copied
//! as they are. The rows that only order and count them are made again. Every first message of a conversation counts as
//! possibly delivered, because an attempt may have been under way.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};

use super::survey::{Pack, Survey};
use crate::metrics::Metrics;
use crate::queue::api::{Damaged, Options};
use crate::queue::rows::{
    ClientTokenRow, Conversation, Dead, FinalState, Hash, Key, Kind, Meta, QueuedRef, Record, Schedule, Table,
    USED_CONVERSATION, USED_PARTICIPANT, USED_TOKEN, keys, pack,
};
use crate::queue::thread::QueueThread;
use crate::queue::thread::request::Shared;
use crate::storage::{self, Image};
use crate::time::{Anchor, Clock, Timestamp};

/// The result of a rebuild.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Messages queued.
    pub queued: u64,
    /// Dead letters.
    pub dead: u64,
    /// Outcomes of delivered messages.
    pub outcomes: u64,
    /// Messages that could not be recovered.
    pub lost: u64,
}

/// Makes a new store in `to` of the valid rows of a log, with the format stamp of the folder `from`.
pub fn rebuild(log: &Image, from: &Path, to: &Path, options: &Options, clock: &Clock) -> io::Result<Rebuilt> {
    storage::create_empty(to, from, log)?;
    let options = Options { path: to.to_owned(), damaged: Damaged::Refuse, volatile: true, ..options.clone() };
    let (_, inbox) = mpsc::channel();
    let shared = Arc::new(Shared::new(clock.clone()));
    let thread = QueueThread::open(options, inbox, shared, &Metrics::default()).map_err(io::Error::other)?;
    Rebuild { thread, survey: &Survey::of(log)?, rebuilt: Rebuilt::default() }.run()
}

/// A rebuild under way.
struct Rebuild<'a> {
    /// The new store.
    thread: QueueThread,
    survey: &'a Survey<'a>,
    rebuilt: Rebuilt,
}

/// The references to the queued messages of each conversation; true for a disconnect.
type References = HashMap<Hash, Vec<(QueuedRef, bool)>>;

impl Rebuild<'_> {
    fn run(mut self) -> io::Result<Rebuilt> {
        let log = self.survey.log;
        let state = &mut self.thread.state;
        if let Some(old) = log.get::<Meta>(&Table::Meta.key())? {
            let Meta { next_sequence, next_pack, next_turn, next_row, boot, default_lifetime_ms, learned, .. } = old;
            state.meta = Meta {
                next_sequence,
                next_pack,
                next_turn,
                next_row,
                boot: boot.max(state.meta.boot),
                default_lifetime_ms,
                learned,
                ..Meta::default()
            };
        }
        state.meta.unclean_boot = state.meta.boot;
        // Before anything is written with a time: the new store continues the times of the old one.
        self.thread.resume_clock(log.get::<Anchor>(&Table::Anchor.key())?, Timestamp::default());
        for (table, used) in [
            (Table::Token, Some(USED_TOKEN)),
            (Table::Participant, Some(USED_PARTICIPANT)),
            (Table::PauseState, None),
            (Table::Quarantine, None),
        ] {
            for key in log.keys(table.letter()) {
                if self.survey.is_valid(key)? {
                    self.copy_row(key)?;
                    self.thread.state.used.extend(used.map(|used| (used, keys::hash_in(key))));
                }
            }
        }
        self.copy_dead_letters()?;
        self.copy_outcomes()?;
        let references = self.copy_packs()?;
        self.make_conversations(references)?;
        let queued = self.survey.queued()?;
        self.rebuilt.lost = queued.lost.len() as u64 + queued.nameless;
        self.thread.state.meta.clean = true;
        self.thread.state.write_meta();
        self.thread.commit().map_err(io::Error::other)?;
        // The log alone replaces the old one.
        self.thread.state.store.checkpoint().map_err(io::Error::other)?;
        Ok(self.rebuilt)
    }

    /// Copies a row as it is, then commits if the commit is long.
    fn copy_row(&mut self, key: &[u8]) -> io::Result<()> {
        if let (Some(raw), Some(key)) = (self.survey.log.raw(key)?, Key::of(key)) {
            self.thread.state.store.put_raw(key, raw);
        }
        self.thread.commit_if_long().map_err(io::Error::other)
    }

    fn copy_pieces(&mut self, record: &Record) -> io::Result<()> {
        for number in record.piece_numbers() {
            self.copy_row(&keys::piece(record.sequence, number))?;
        }
        Ok(())
    }

    fn copy_dead_letters(&mut self) -> io::Result<()> {
        for dead in self.survey.dead_letters() {
            let (key, Dead { record, died, .. }) = dead?;
            self.copy_row(key)?;
            self.copy_pieces(&record)?;
            let state = &mut self.thread.state;
            state.store.put(keys::prune_dead(died, record.sequence), &());
            state.meta.dead += 1;
            state.meta.weight += record.weight() + record.dead_weight();
            self.rebuilt.dead += 1;
        }
        Ok(())
    }

    fn copy_outcomes(&mut self) -> io::Result<()> {
        let log = self.survey.log;
        // The index keeps its keys: the cursors of streams name them.
        let mut indexed = HashSet::new();
        for key in log.keys(Table::PruneOutcomes.letter()) {
            if let Some(names) = log.get::<Vec<(Hash, Hash)>>(key)? {
                indexed.extend(names);
                self.copy_row(key)?;
            }
        }
        for key in log.keys(Table::ClientToken.letter()) {
            let Some(outcome) = log.get(key)?.and_then(ClientTokenRow::outcome) else { continue };
            let state = &mut self.thread.state;
            state.meta.next_sequence = state.meta.next_sequence.max(outcome.sequence + 1);
            let name = (keys::hash_in(key), keys::entry_in(key));
            let is_dead = matches!(outcome.fate, FinalState::Dead { .. });
            // The outcome of a dead letter is kept with it, and as long as the index names it.
            if !is_dead || log.get::<Dead>(&keys::dead(outcome.sequence))?.is_none() {
                match indexed.contains(&name) {
                    true => {}
                    false if is_dead => continue,
                    false => state.outcomes.push(name),
                }
                state.meta.outcomes += 1;
                self.rebuilt.outcomes += 1;
            }
            self.copy_row(key)?;
        }
        Ok(())
    }

    fn copy_packs(&mut self) -> io::Result<References> {
        let mut references = References::new();
        self.survey.packs(|pack| {
            let Pack { key, raw, queued } = pack;
            let all = pack::all(pack::count(&raw));
            let gone = queued.iter().fold(all, |gone, (at, _)| gone & !at.bit());
            let state = &mut self.thread.state;
            if let Some((at, _)) = queued.first().filter(|_| gone != 0) {
                state.store.put(keys::gone(at.pack), &gone);
            }
            state.meta.weight += raw.len() as u64;
            state.store.put_raw(key, raw);
            for (at, record) in queued {
                self.copy_pieces(&record)?;
                let state = &mut self.thread.state;
                state.meta.weight += record.weight();
                state.meta.next_sequence = state.meta.next_sequence.max(record.sequence + 1);
                if record.default_lifetime {
                    state.meta.default_lifetimes += 1;
                    state.meta.default_lifetime_ms = record.lifetime_ms;
                } else {
                    state.store.put(keys::expiry(record.deadline, record.sequence), &at);
                }
                let attempts =
                    self.survey.reference(&record).map(|reference| reference.attempts.clone()).unwrap_or_default();
                state.meta.unknown += u64::from(attempts.unknown);
                state.count_queued(record.caller, 1).map_err(io::Error::other)?;
                self.rebuilt.queued += 1;
                let Record { sequence, accepted, entry, conversation, kind, .. } = record;
                let reference = QueuedRef { sequence, accepted, at, entry, attempts };
                references.entry(conversation).or_default().push((reference, kind == Kind::Disconnect));
            }
            self.thread.commit_if_long().map_err(io::Error::other)
        })?;
        Ok(references)
    }

    /// Makes the rows and turns of conversations, the longest waiting first.
    fn make_conversations(&mut self, mut references: References) -> io::Result<()> {
        let (now, old_rows) = (self.thread.now(), &self.survey.conversations);
        let empty: Vec<Hash> = old_rows.keys().filter(|hash| !references.contains_key(*hash)).copied().collect();
        references.extend(empty.into_iter().map(|conversation| (conversation, Vec::new())));
        let mut conversations: Vec<_> = references.into_iter().collect();
        conversations.sort_by_key(|(hash, own)| (own.iter().map(|(reference, _)| reference.sequence).min(), *hash));
        for (conversation, mut own) in conversations {
            let state = &mut self.thread.state;
            let old = old_rows.get(&conversation).cloned().unwrap_or_default();
            let head = old.head().map(|head| head.sequence);
            // In the order of acceptance, but nothing goes before a first message that may have been sent.
            own.sort_by_key(|(reference, _)| (Some(reference.sequence) != head, reference.sequence));
            let disconnect = own.iter().find(|(_, disconnect)| *disconnect).map(|(reference, _)| reference.sequence);
            let disconnect = old.disconnect.or(disconnect);
            let mut row = Conversation { disconnect, used: now, boot: state.meta.boot, ..Conversation::default() };
            let own = own.into_iter().map(|(reference, _)| reference).collect();
            state.refill(&conversation, &mut row, own).map_err(io::Error::other)?;
            state.used.extend(disconnect.map(|_| (USED_CONVERSATION, conversation)));
            if row.count > 0 {
                state.meta.conversations += 1;
                match (old.hold, old.schedule) {
                    (hold, delayed @ Schedule::DelayedUntil(_)) => {
                        state.meta.held += u64::from(hold.is_some());
                        row.hold = hold;
                        state.reschedule(&conversation, &mut row, delayed, now);
                    }
                    _ => state.make_ready(&conversation, &mut row, now),
                }
            }
            state.save_conversation(&conversation, &row);
            self.thread.commit_if_long().map_err(io::Error::other)?;
        }
        Ok(())
    }
}
