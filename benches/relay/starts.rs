//! Measures how soon a killed relay delivers again, and its memory then, against sled alone.
//!
//! Each round takes fresh copies of the folder: a relay starts on one, and an upstream notes the first delivery and
//! answers no further one, so that memory is read with the queue as full as it was; sled alone opens the other. Copies,
//! because sled writes a new snapshot when it opens: a second start is an easier one. The files are in the page cache for
//! both, so neither time is that of a cold disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::memory::{LONGEST, Stage};
use crate::options::Options;
use crate::process::{Memory, copy_folder};
use crate::relay::{Relay, store_in};
use crate::reopen::Reopened;
use crate::report::{Report, seconds};
use crate::upstream::Upstream;

/// A start on a copy of a stage, and sled's own on another.
pub struct Start {
    /// The relay, until its first delivery.
    pub relay: Opened,
    /// Sled, until it is open.
    pub sled: Opened,
}

/// The duration of a start, and the memory after an idle time.
pub struct Opened {
    /// The duration.
    pub took: Duration,
    /// The memory.
    pub memory: Memory,
}

impl Start {
    fn json(&self, stage: &Stage) -> Value {
        json!({
            "start_to_first_delivery_seconds": seconds(self.relay.took),
            "restarted": self.relay.memory.json(),
            "sled_reopen_seconds": seconds(self.sled.took),
            "sled": self.sled.memory.json(),
            "filled": stage.memory.json(),
            "rested_resident_bytes": stage.rested,
            "disk_bytes": stage.disk,
        })
    }

    /// The relay's time, of sled's.
    pub fn of_reopen(&self) -> f64 {
        seconds(self.relay.took) / seconds(self.sled.took)
    }
}

/// Times starts on copies of a stage.
pub async fn run(options: &Options, folder: &Path, stage: &Stage, report: &mut Report) -> anyhow::Result<Vec<Start>> {
    let mut starts = Vec::new();
    for nth in 0..options.starts() {
        // The order alternates: the disk may still be busy with the first one's copy.
        let (relay, sled) = if nth % 2 == 0 {
            let relay = restart(options, folder, stage).await.with_context(|| stage.name.clone())?;
            (relay, sled_alone(options, folder, stage).await?)
        } else {
            let sled = sled_alone(options, folder, stage).await?;
            (restart(options, folder, stage).await.with_context(|| stage.name.clone())?, sled)
        };
        let start = Start { relay, sled };
        report.round("memory", &stage.name, nth, start.json(stage));
        starts.push(start);
    }
    Ok(starts)
}

/// The relay, from its start to its first delivery.
async fn restart(options: &Options, folder: &Path, stage: &Stage) -> anyhow::Result<Opened> {
    let dir = folder.join("copy");
    copy_folder(&stage.dir, &dir)?;
    let mut upstream = Upstream::open().await?;
    let mut relay = Relay::start(options, &dir, upstream.address)?;
    let first = tokio::time::timeout(LONGEST, async {
        loop {
            tokio::select! {
                first = &mut upstream.first => return first.context("the upstream is gone"),
                () = tokio::time::sleep(Duration::from_millis(200)) => relay.check()?,
            }
        }
    });
    let first = first.await.with_context(|| format!("no delivery within {LONGEST:?} of the start"))??;
    let took = first - relay.process.started;
    tokio::time::sleep(options.rest()).await;
    let memory = relay.process.memory()?;
    drop(relay);
    fs::remove_dir_all(&dir)?;
    Ok(Opened { took, memory })
}

/// The rival, from its start to the open store.
async fn sled_alone(options: &Options, folder: &Path, stage: &Stage) -> anyhow::Result<Opened> {
    let dir = folder.join("copy");
    copy_folder(&stage.dir, &dir)?;
    let sled = Reopened::open(&store_in(&dir)?)?;
    tokio::time::sleep(options.rest()).await;
    let opened = Opened { took: sled.took, memory: sled.process.memory()? };
    drop(sled);
    fs::remove_dir_all(&dir)?;
    Ok(opened)
}
