//! The state of the queue: typed rows over the store, and what the process keeps in memory beside them.
//!
//! [`State`] is pure: it knows no reply, no waiting caller, no metric and no clock. The operations in `ops` change it;
//! `thread` commits it. Effects of an operation outside of the rows are entries in [`State::events`] and two flags, which
//! `thread` applies after the commit. Rows are visible to the next operation at once, and to others after the commit.
//!
//! Each file adds the methods of one subject, and calls only methods of the files above it:
//!
//! | file | subject |
//! | --- | --- |
//! | `typed_store` | encoded rows; quarantines damaged ones |
//! | `packs`, `contents` | the records and contents of messages |
//! | `conversation` | the messages of a conversation in order, and its schedule |
//! | `tokens` | ConnectionTokens, their renewals and refusals |
//! | `lookup` | the state of one message, its outlook, and the pause of sending |

pub mod contents;
mod conversation;
pub mod event;
mod lookup;
mod packs;
pub mod parts;
pub mod tokens;
mod typed_store;

use std::collections::HashMap;

use self::event::Event;
use self::parts::{CallerSet, OpenPack, ReadAhead, Trust};
use self::typed_store::TypedStore;
use super::api::{Expiring, Full, MessageId, Options, Result};
use super::rows::{Hash, Hasher, Meta, PauseState, Table, keys};
use crate::fairness::{FreshTurns, RoundRobin};
use crate::storage::{Key, Sealer, Space, Store};
use crate::time::Timestamp;

/// Outcomes, or last uses, in one prune row.
const ROW_HASHES: u8 = 200;
/// The approximate number of bytes of rows that an outcome takes.
const OUTCOME_WEIGHT: u64 = 400;

/// The queue's rows, and the part of its state that is in memory only.
pub struct State {
    pub options: Options,
    pub store: TypedStore,
    pub hasher: Hasher,
    pub sealer: Sealer,
    pub meta: Meta,
    /// The pause, and the facts known of the destination.
    pub sending: PauseState,
    pub trust: Trust,
    /// Delayed conversations that are due already, and the time since which they could have been sent.
    pub throttled: HashMap<Hash, Timestamp>,
    /// Conversations with a message in flight, and its sequence number.
    pub leased: HashMap<Hash, u64>,
    pub turns: RoundRobin,
    pub ahead: ReadAhead,
    pub fresh: FreshTurns,
    /// Up to this pack no message with the default lifetime expires for now.
    pub expiry_cursor: u64,
    /// The position of the next record; `None` if no record was filed since the last commit.
    pub open_pack: Option<OpenPack>,
    /// The record being filed; kept for its capacity.
    pub encoded: Vec<u8>,
    /// Outcomes since the last commit (conversation and entry), and rows that were last used now: to be pruned later.
    pub outcomes: Vec<(Hash, Hash)>,
    pub used: Vec<(u8, Hash)>,
    /// The last row of the index of outcomes that was pruned since the start.
    pub pruned_outcomes: (Timestamp, u64),
    /// The space on disk at the last measurement.
    pub space: Space,
    /// The estimated loss, and the time of the estimate.
    pub expiring: Expiring,
    pub estimated_at: Timestamp,
    /// The events since they were last taken.
    pub events: Vec<Event>,
    /// True if a conversation has got a turn.
    pub turn_given: bool,
    /// True if a message may have become due otherwise.
    pub wake_sender: bool,
    /// True if messages have left the queue, or sending paused.
    pub messages_left: bool,
    /// True if another relay continues this queue: nothing more is sent.
    pub fenced: bool,
    /// The commits that the fleet did not have when they were answered, and the time since which.
    pub behind: (u64, Option<Timestamp>),
    /// The callers with new outcomes.
    pub settled: CallerSet,
}

impl State {
    /// The state of a store that was just opened. `damaged` is the row of the store's own that failed its checksum, `key`
    /// the store's own key.
    pub fn new(options: Options, store: Store, damaged: Option<(Key, Vec<u8>)>, key: &[u8], sealer: Sealer) -> State {
        State {
            options,
            store: TypedStore::new(store, damaged),
            hasher: Hasher::new(key),
            sealer,
            meta: Meta::default(),
            sending: PauseState::default(),
            trust: Trust::default(),
            throttled: HashMap::new(),
            leased: HashMap::new(),
            turns: RoundRobin::default(),
            ahead: ReadAhead::default(),
            fresh: FreshTurns::default(),
            expiry_cursor: 0,
            open_pack: None,
            encoded: Vec::new(),
            outcomes: Vec::new(),
            used: Vec::new(),
            pruned_outcomes: (Timestamp::default(), 0),
            space: Space::default(),
            expiring: Expiring::default(),
            estimated_at: Timestamp::default(),
            events: Vec::new(),
            turn_given: false,
            wake_sender: true,
            messages_left: false,
            fenced: false,
            behind: (0, None),
            settled: CallerSet::default(),
        }
    }

    /// Writes the rows that every commit has: the rows that name what this commit made prunable, and the counts.
    pub fn write_common_rows(&mut self, now: Timestamp) {
        self.open_pack = None;
        for hashes in std::mem::take(&mut self.outcomes).chunks(ROW_HASHES.into()) {
            let key = keys::prune_outcomes(now, self.next_row());
            self.store.put(key, &hashes);
        }
        for used in std::mem::take(&mut self.used).chunks(ROW_HASHES.into()) {
            let key = keys::prune_used(now, self.next_row());
            self.store.put(key, &used);
        }
        if self.store.pending_bytes() > 0 {
            self.write_meta();
        }
    }

    pub fn write_meta(&mut self) {
        self.store.put(Table::Meta.key(), &self.meta);
    }

    /// Adds an outcome to the index. Returns the number of the row in which the commit writes it, and the index there.
    pub fn index_outcome(&mut self, conversation: Hash, entry: Hash) -> (u64, u8) {
        let before = self.outcomes.len();
        self.outcomes.push((conversation, entry));
        let (rows, nth) = (before / usize::from(ROW_HASHES), before % usize::from(ROW_HASHES));
        // `write_common_rows` numbers these rows first.
        (self.meta.next_row + 1 + rows as u64, u8::try_from(nth).unwrap_or(ROW_HASHES))
    }

    fn next_row(&mut self) -> u64 {
        self.meta.next_row += 1;
        self.meta.next_row
    }

    /// The id of a message.
    pub fn id(&self, sequence: u64, conversation: Hash, entry: Hash) -> MessageId {
        MessageId { store: self.store.nonce, sequence, conversation, entry }
    }

    /// The limit that refuses new messages now, if there is one.
    pub fn full(&self) -> Option<Full> {
        let State { options, meta, space, .. } = self;
        if meta.queued >= options.messages_max {
            return Some(Full::Messages { queued: meta.queued, most: options.messages_max });
        }
        // The files do not shrink with their rows: if most of them is free, the next messages fit in.
        let mostly_free = 3 * self.live_bytes() < options.bytes_max;
        if space.bytes >= options.bytes_max && !mostly_free {
            return Some(Full::Bytes { bytes: space.bytes, most: options.bytes_max });
        }
        space
            .free
            .filter(|free| *free < options.free_disk_min)
            .map(|free| Full::Disk { free, least: options.free_disk_min })
    }

    /// The approximate number of bytes of rows in use.
    pub fn live_bytes(&self) -> u64 {
        self.meta.weight + OUTCOME_WEIGHT * self.meta.outcomes
    }

    /// Counts a message in or out.
    pub fn count_queued(&mut self, caller: u64, by: i64) -> Result<()> {
        self.meta.queued = self.meta.queued.saturating_add_signed(by);
        let key = keys::caller(caller);
        let count = self.store.get::<u64>(&key)?.unwrap_or(0).saturating_add_signed(by);
        self.store.put(key, &count);
        Ok(())
    }
}
