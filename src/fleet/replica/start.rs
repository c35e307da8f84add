//! The start of a copy: the comparison of the volume with the stream, and what is restored of it.
//!
//! | the volume, compared with the stream (`ship::history`) | the start |
//! | --- | --- |
//! | is empty | restores the stream's queue |
//! | has everything | opens it; if another volume's relay has the stream, after its silence |
//! | lacks commits, and has none that the stream lacks | restores the stream's queue in its place |
//! | both lack commits, or another volume's relay has continued the queue | sets it aside, restores the stream's queue, and accepts the messages that only the volume has |
//!
//! A start that does not reach the servers opens the volume's queue. The comparison comes later then, and what only the
//! stream has is accepted behind what is queued.
//!
//! The run of this process is recorded before the queue is opened, and so before its first commit.

use std::path::Path;

use tokio::time::timeout;
use tracing::warn;

use super::super::restore::{plan, restore, restore_all};
use super::super::stream::StreamError;
use super::{Found, Replica, StartError};
use crate::ship::Ship;
use crate::ship::history::{Copy, Relation};
use crate::ship::replay::Plan;
use crate::ship::standing::Standing;
use crate::storage::{self, CommitPos, Volume};
use crate::time::Timestamp;

impl Replica {
    /// Makes the volume ready to be opened, and records the run of this process.
    ///
    /// # Errors
    /// As for [`Replica::prepare`].
    pub async fn make_ready(&mut self) -> Result<(), StartError> {
        let path = self.options.path.clone();
        let failed = |error: std::io::Error| StartError::Failed(format!("{}: {error}", path.display()));
        // Another relay may run on the folder.
        storage::lock_if_there(&path).map_err(|error| StartError::Failed(error.to_string()))?;
        let unused = storage::is_unused(&path).map_err(failed)?;
        (self.restored, self.unlooked, self.unrestored) = (false, false, false);
        self.take_over(unused).await?;
        self.patience = None;
        let volume = if unused && !self.restored {
            // What another store left behind is not about this one.
            let volume = Volume::new(Vec::new(), CommitPos::default(), self.own.instance).map_err(failed)?;
            volume.write(&path).map_err(failed)?;
            volume
        } else {
            let begun = Volume::begin_run(&path, self.own.instance);
            begun.map_err(|error| StartError::Failed(error.to_string()))?
        };
        self.own.volume = volume.number;
        self.ship.set_volume(volume.number, volume.runs.clone());
        self.volume = volume;
        Ok(())
    }

    /// Finds the owner of the stream, and makes the volume have everything that the stream has. `unused` is true if the
    /// volume has no queue.
    pub(super) async fn take_over(&mut self, unused: bool) -> Result<(), StartError> {
        let found = if unused && !self.options.go_on {
            self.find().await?
        } else {
            let patience = if unused { 2 * self.options.lease } else { self.options.ack_timeout };
            match timeout(patience, self.find()).await {
                Ok(found) => found?,
                Err(_) if unused => {
                    warn!(
                        waited_s = patience.as_secs(),
                        consequence = "the relay begins an empty queue; what the stream has is accepted later, behind what is queued",
                        "queue not restored"
                    );
                    (self.unlooked, self.unrestored) = (true, true);
                    return Ok(());
                }
                // The task goes on trying; what the volume has is accepted and sent meanwhile.
                Err(_) => {
                    self.unlooked = true;
                    return Ok(());
                }
            }
        };
        let standing = match (&found.standing.owner, unused) {
            (None, _) => found.standing,
            // An empty volume has lost what its own claim was about.
            (Some(_), true) => {
                let standing = self.wait_for_silence(found).await?;
                self.restored = self.restore_unused(standing.last).await?;
                standing
            }
            (Some(_), false) => match self.catch_up(found).await {
                Ok(standing) => standing,
                Err(StartError::Unanswered(why)) => {
                    warn!(
                        why,
                        consequence = "the relay opens the queue of its volume; what the stream has beyond it is accepted later, behind what is queued",
                        "queue not restored"
                    );
                    self.unlooked = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        if !self.unlooked {
            self.shape_stream().await;
        }
        self.ship = self.new_ship(Some(standing));
        Ok(())
    }

    /// Makes a volume with a queue have everything that the stream has. Returns the state of the stream.
    async fn catch_up(&mut self, found: Found) -> Result<Standing, StartError> {
        let path = self.options.path.clone();
        let failed = |error: &dyn std::fmt::Display| StartError::Failed(format!("{}: {error}", path.display()));
        let volume = Volume::read(&path).map_err(|error| failed(&error))?;
        let own = found.standing.owner.as_ref().map(|owner| owner.volume) == volume.as_ref().map(|own| own.number);
        let known = volume.is_some();
        let volume = volume.unwrap_or_default();
        let at = storage::last_commit(&path).map_err(|error| failed(&error))?;
        let store = Copy { runs: &volume.runs, at };
        let has = |stream: Option<Copy<'_>>| stream.is_none_or(|stream| store.relation(stream) == Relation::Complete);
        if own {
            if has(found.standing.copy()) {
                return Ok(found.standing);
            }
            // A volume with its own claim is never worse than one without a fleet.
            self.patience = self.options.go_on.then_some(2 * self.options.lease);
            // The last snapshot may be incomplete: then it counts for nothing.
            if has(self.plan(found.standing.last).await?.copy()) {
                return Ok(found.standing);
            }
        }
        if storage::is_damaged(&path).map_err(|error| failed(&error))? {
            // Its positions mean nothing. Its open sets it aside, and then the start begins again.
            self.unlooked = true;
            return Ok(found.standing);
        }
        let standing = self.wait_for_silence(found).await?;
        let plan = self.plan(standing.last).await?;
        let relation = plan.copy().map_or(Relation::Complete, |stream| store.relation(stream));
        let from = match relation {
            Relation::Complete => return Ok(standing),
            Relation::Contained => u64::MAX,
            Relation::Forked(sequence) => sequence,
            Relation::Unrelated => {
                let stamp = standing.owner.as_ref().map_or("", |owner| &owner.stamp);
                let same = storage::is_store(&path, stamp).map_err(|error| failed(&error))?;
                volume.unrelated_from(same)
            }
        };
        if known && !own {
            // The process that found itself fenced left before its metrics were read again.
            self.metrics.fenced.inc();
        }
        if own && relation == Relation::Contained {
            warn!(
                "the stream has commits that the volume lacks: the volume was put back from a backup, or a crash lost its last commit; the queue is restored from the stream"
            );
        } else {
            let left = storage::leave(&path, from, self.clock.wall());
            let left = left.map_err(|error| StartError::Failed(error.to_string()))?;
            let why = match (known, own) {
                (true, true) => "the stream has commits that the volume lacks, and the volume has others",
                (true, false) => "another relay has continued this queue",
                (false, _) => "the volume has a queue that is not the one in the stream",
            };
            warn!(
                folder = %left.path.display(),
                "{why}: the volume's own copy is set aside, and the newer one is restored"
            );
        }
        self.restored = self.restore_as_own(&plan).await?;
        Ok(standing)
    }

    /// Restores the queue of a plan in this volume, which continues it. Returns false if the plan has none.
    async fn restore_as_own(&mut self, plan: &Plan) -> Result<bool, StartError> {
        let Some(copy) = plan.copy() else { return Ok(false) };
        let volume = self.continued(copy).map_err(|error| StartError::Failed(error.to_string()))?;
        self.restore(plan, &self.options.path.clone(), Some(&volume)).await
    }

    /// Restores the queue that the stream has up to this sequence, in this volume, which has none. Returns false if the
    /// stream has none.
    async fn restore_unused(&mut self, last: u64) -> Result<bool, StartError> {
        let began = self.clock.now();
        loop {
            match self.read_all_back(last).await {
                Ok(restored) => return Ok(restored),
                Err(error) => self.try_again(began, error).await?,
            }
        }
    }

    async fn read_all_back(&self, last: u64) -> Result<bool, StreamError> {
        let Some(link) = &self.link else { return Err(StreamError::Failed("not connected".into())) };
        let volume = |copy: Copy<'_>| self.continued(copy).map(Some);
        restore_all(&self.stream(link), &self.codec, last, &self.options.path, volume).await
    }

    /// A volume of this process that continues a copy.
    fn continued(&self, Copy { runs, at }: Copy<'_>) -> std::io::Result<Volume> {
        Volume::new(runs.to_vec(), at, self.own.instance)
    }

    /// Takes the stream over after a start without it. What it has beyond this store becomes a store beside this one, whose
    /// messages are accepted behind what is queued.
    pub(super) async fn take_over_late(&mut self) -> Result<(), StartError> {
        let found = self.find().await?;
        // This store goes on meanwhile.
        let runs = self.volume.runs.clone();
        let store = Copy { runs: &runs, at: CommitPos::MAX };
        let has = |stream: Option<Copy<'_>>| stream.is_none_or(|stream| store.relation(stream) == Relation::Complete);
        let owner = found.standing.owner.as_ref().map(|owner| owner.volume);
        let standing = if has(found.standing.copy()) {
            Some(found.standing)
        } else if self.unrestored {
            let standing = self.wait_for_silence(found).await?;
            let plan = self.plan(standing.last).await?;
            self.restore_aside(&plan, 0).await?;
            Some(standing)
        } else if owner != Some(self.own.volume) {
            // The successor's claim fences this relay.
            None
        } else {
            let plan =
                self.read_plan(found.standing.last).await.map_err(|error| StartError::Failed(error.to_string()))?;
            match plan.copy().map_or(Relation::Complete, |stream| store.relation(stream)) {
                Relation::Complete => Some(found.standing),
                relation => match self.listen(&found).await {
                    Ok(None) => {
                        let from = if let Relation::Forked(sequence) = relation { sequence } else { 0 };
                        self.restore_aside(&plan, from).await?;
                        Some(found.standing)
                    }
                    // Another process runs on a copy of this volume: it is the successor.
                    Ok(Some(_)) => None,
                    Err(why) => return Err(StartError::Failed(why)),
                },
            }
        };
        if standing.is_some() {
            self.shape_stream().await;
            self.volume.alone = false;
            self.volume.write(&self.options.path).map_err(|error| StartError::Failed(error.to_string()))?;
        }
        self.ship = self.new_ship(standing);
        (self.unlooked, self.unrestored) = (false, false);
        Ok(())
    }

    /// Restores the queue of a plan beside the store; its messages from this sequence number on are accepted.
    async fn restore_aside(&mut self, plan: &Plan, from: u64) -> Result<(), StartError> {
        let left = storage::make_left(&self.options.path, from, self.clock.wall());
        let left = left.map_err(|error| StartError::Failed(error.to_string()))?;
        self.restore(plan, &left.path, None).await?;
        warn!(
            folder = %left.path.display(),
            "the stream has messages that this queue lacks: they are accepted behind what is queued"
        );
        self.late.notify_one();
        Ok(())
    }

    /// Finds the queue that the stream has up to this sequence.
    async fn plan(&mut self, last: u64) -> Result<Plan, StartError> {
        let began = self.clock.now();
        loop {
            match self.read_plan(last).await {
                Ok(plan) => return Ok(plan),
                Err(error) => self.try_again(began, error).await?,
            }
        }
    }

    /// Restores the queue of a plan, in a folder. Returns false if the plan has none.
    async fn restore(&mut self, plan: &Plan, path: &Path, volume: Option<&Volume>) -> Result<bool, StartError> {
        let began = self.clock.now();
        loop {
            match self.read_back(plan, path, volume).await {
                Ok(restored) => return Ok(restored),
                Err(error) => self.try_again(began, error).await?,
            }
        }
    }

    /// Waits for the servers after an error of a restore that began then, if it may pass.
    async fn try_again(&mut self, began: Timestamp, error: StreamError) -> Result<(), StartError> {
        let given_up = self.patience.is_some_and(|patience| self.clock.now().since(began) >= patience);
        match error {
            StreamError::Failed(why) if given_up => Err(StartError::Unanswered(why)),
            StreamError::Unreadable(why) if self.patience.is_some() => Err(StartError::Unanswered(why)),
            StreamError::Failed(why) => {
                warn!(why, "the queue is not restored yet");
                self.link = None;
                self.find().await.map(drop)
            }
            StreamError::Unreadable(why) => Err(StartError::Failed(format!("restore the queue: {why}"))),
            StreamError::Unsupported(why) => Err(StartError::Config(why)),
        }
    }

    async fn read_plan(&self, last: u64) -> Result<Plan, StreamError> {
        let Some(link) = &self.link else { return Err(StreamError::Failed("not connected".into())) };
        plan(&self.stream(link), &self.codec, last).await
    }

    async fn read_back(&self, plan: &Plan, path: &Path, volume: Option<&Volume>) -> Result<bool, StreamError> {
        let Some(link) = &self.link else { return Err(StreamError::Failed("not connected".into())) };
        restore(&self.stream(link), &self.codec, plan, path, volume.cloned()).await
    }

    /// The queue has begun, and this is the sequence number of its next message. Records the run; from now on commits may
    /// be shipped.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn begin(&mut self, sequence: u64) -> Result<(), StartError> {
        let path = &self.options.path;
        let failed = |error: std::io::Error| StartError::Failed(format!("{}: {error}", path.display()));
        self.volume.begin_at(sequence);
        self.volume.alone = self.unlooked;
        self.volume.write(path).map_err(failed)?;
        if self.unlooked {
            self.ship = self.new_ship(None);
        }
        self.ship.set_volume(self.volume.number, self.volume.runs.clone());
        Ok(())
    }

    fn new_ship(&mut self, standing: Option<Standing>) -> Ship {
        let mut ship = Ship::new(self.codec.clone(), self.own.clone(), standing, self.rng.u64(..));
        ship.set_volume(self.volume.number, self.volume.runs.clone());
        ship
    }
}
