//! A writer's beginning: the store is opened, or set aside and made anew, and the numbers go on where the last run left them.

use std::collections::HashMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tracing::error;

use super::Writer;
use crate::metrics::Metrics;
use crate::queue::act::Act;
use crate::queue::expiring::Expiring;
use crate::queue::gauges::Gauges;
use crate::queue::pause::Trust;
use crate::queue::rows::{self, Hasher, Meta, Sending, Table, keys};
use crate::queue::schedule::Ahead;
use crate::queue::typed_store::TypedStore;
use crate::queue::waiters::Waiters;
use crate::queue::{Carried, Damaged, OpenError, Options, Shared, StoreFailed, carry};
use crate::storage::{self, Opened, Space, Store};
use crate::time::{Anchor, Clock, Timestamp};
use crate::turns::{FreshTurns, Kind, Turns};

impl Writer {
    pub(in crate::queue) fn open(
        options: Options,
        inbox: Receiver<Act>,
        shared: Arc<Shared>,
        metrics: &Metrics,
    ) -> Result<Writer, OpenError> {
        let path = options.path.clone();
        let now = shared.clock.wall();
        let of_store = storage::Options {
            volatile: options.volatile,
            keys: options.keys.clone(),
            write_once: rows::WRITE_ONCE,
            removal_weight: rows::removal_weight,
        };
        let open = || Store::open(&path, of_store.clone(), now);
        let Opened { store, key, sealer, damaged } = match open() {
            Err(OpenError::Damaged { damage, .. }) if options.damaged == Damaged::SetAside => {
                set_aside(&options, &shared.clock, &damage)?;
                open()?
            }
            opened => opened?,
        };
        let gauges = Gauges::new(metrics, &options);
        let mut writer = Writer {
            options,
            store: TypedStore::new(store, damaged),
            hasher: Hasher::new(&key),
            anchor: None,
            sealer,
            meta: Meta::default(),
            gauges,
            waiters: Waiters::default(),
            throttled: HashMap::new(),
            leased: HashMap::new(),
            turns: Turns::default(),
            ahead: Ahead::default(),
            fresh: FreshTurns::default(),
            expiry_cursor: 0,
            open_pack: None,
            encoded: Vec::new(),
            outcomes: Vec::new(),
            used: Vec::new(),
            sending: Sending::default(),
            trust: Trust::default(),
            poke: true,
            left: false,
            space: Space::default(),
            expiring: Expiring::default(),
            foreseen_at: Timestamp::default(),
            shared,
            inbox,
            answers: Vec::new(),
            answering: None,
            ticked: Timestamp(0),
            held_since: None,
        };
        storage::guarded(&path.clone(), move || {
            let failed = |cause: StoreFailed| OpenError::Failed { path, step: "begin", cause: cause.to_string() };
            writer.begin().map_err(failed)?;
            writer.store.finish_open();
            Ok(writer)
        })
    }

    /// Takes up the numbers where the last run left them, and records that this one has begun.
    fn begin(&mut self) -> Result<(), StoreFailed> {
        if let Some(meta) = self.store.get(&Table::Meta.key())? {
            self.meta = meta;
        }
        // The counts may be lost with a damaged row; the numbers must never be used twice.
        let last = |store: &Store, table: Table| -> Result<u64, StoreFailed> {
            let behind = table.key().end().map_or(Bound::Unbounded, Bound::Excluded);
            let key = store.last_key(table.key(), behind)?;
            Ok(key.map_or(0, |key| keys::number_in(&key)))
        };
        let pack = last(&self.store, Table::Pack)?;
        let records = self.next_pack(pack.saturating_sub(1))?.map(|live| live.records).unwrap_or_default();
        let sequence = records.iter().map(|(_, record)| record.sequence).max().unwrap_or(0);
        let sequence = sequence.max(last(&self.store, Table::Dead)?);
        let accepted = records.iter().map(|(_, record)| record.accepted).max();
        let noted = [
            last(&self.store, Table::PruneOutcomes)?,
            last(&self.store, Table::PruneUsed)?,
            last(&self.store, Table::PruneDead)?,
        ]
        .map(Timestamp);
        let learned = self.meta.learned.map(|kept| kept.at);
        let newest = noted.into_iter().chain(accepted).chain(learned).max().unwrap_or_default();
        let anchor = self.store.get(&Table::Anchor.key())?;
        self.resume_line(anchor, newest);
        let meta = &mut self.meta;
        meta.next_sequence = meta.next_sequence.max(sequence + 1);
        meta.next_pack = meta.next_pack.max(pack + 1);
        for kind in [Kind::Fresh, Kind::Late] {
            meta.next_turn = meta.next_turn.max(last(&self.store, Table::turns(kind))? + 1);
        }
        if !self.meta.clean && self.meta.boot > 0 {
            self.meta.unclean_boot = self.meta.boot;
        }
        self.meta.boot += 1;
        self.meta.clean = false;
        self.note_meta();
        self.begin_sending(self.now())?;
        self.commit()
    }

    /// Takes up the inner line of time of a store with this anchor, whose newest timestamp is `newest`.
    pub(in crate::queue) fn resume_line(&mut self, anchor: Option<Anchor>, newest: Timestamp) {
        self.shared.clock.resume(anchor, newest);
        // The present boot and reading go with the first commit.
        self.anchor = None;
    }
}

/// Sets a damaged store aside, and says so.
fn set_aside(options: &Options, clock: &Clock, damage: &str) -> Result<(), OpenError> {
    let path = &options.path;
    let _lock = storage::lock(path)?;
    let failed = |cause: io::Error| OpenError::Failed {
        path: path.clone(),
        step: "set the damaged store aside",
        cause: format!("{cause}; it was found damaged: {damage}"),
    };
    // Without its key the new store would be worth nothing; nothing is begun that only the key can end.
    carry::refuse_sealed(path, &options.keys, failed)?;
    let (aside, carried) = carry::set_aside(options, clock).map_err(failed)?;
    let Carried { queued, dead, outcomes, lost } = carried;
    error!(
        queue = %path.display(),
        damage,
        queued,
        dead,
        outcomes,
        lost,
        "the queue was damaged and is set aside; what verifies was carried over: connect-relay doctor check {}",
        aside.display()
    );
    Ok(())
}
