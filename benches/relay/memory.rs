//! Resident memory, and how soon a relay that starts delivers again, with so many messages queued.
//!
//! A folder is filled once, in batches, by a relay whose upstream refuses every connection; memory is read there, after
//! a rest. Then that relay is killed, as a node that dies would kill it, and `starts` times starts on what it left.
//! One more folder is one from which many messages were delivered, handed over in slices that the default limits of a
//! queue would take, with one message left for a start to deliver.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::load::{self, Bounds};
use crate::measure::median;
use crate::options::Options;
use crate::process::{Memory, bytes_on_disk};
use crate::relay::{ClosedPort, Relay, Simulator, store_in};
use crate::report::{Report, Table, Target, mebibytes, millis, ratio, seconds, whole};
use crate::starts::{self, Start};
use crate::traffic::{CONVERSATIONS, Traffic};

/// Measures and prints.
pub async fn run(options: &Options, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let closed = ClosedPort::take()?;
    let idle = idle(options, folder, &closed, report).await?;
    let mut table = Table::new(
        &["", "start/reopen", "resident/sled's", "resident/idle", "disk/contents"],
        &["resident", "RssAnon", "Pss", "rested", "restarted", "sled alone", "start ms", "reopen ms", "disk"],
    );
    let mut first = vec!["idle".to_owned()];
    first.extend(["-", "-", "1.00", "-"].map(str::to_owned));
    first.extend([idle.resident, idle.anonymous, idle.proportional].map(mebibytes));
    first.extend(["-"; 6].map(str::to_owned));
    table.row(first);
    report.target("resident idle, MiB", Target::AtMost(12.0), "", idle.resident.map(to_mebibytes));

    for level in options.levels() {
        let stage = filled(options, folder, &closed, level).await?;
        let starts = starts::run(options, folder, &stage, report).await?;
        table.row(row(&stage, &starts, &idle));
        targets(level, &stage, &starts, report);
        fs::remove_dir_all(&stage.dir)?;
    }
    let stage = delivered(options, folder, &closed).await?;
    let starts = starts::run(options, folder, &stage, report).await?;
    table.row(row(&stage, &starts, &idle));
    fs::remove_dir_all(&stage.dir)?;

    let title = format!("Memory and start, texts of {CONTENTS} bytes, {CONVERSATIONS} conversations");
    table.print(&title, NOTE);
    Ok(())
}

const CONTENTS: usize = 600;
const BATCH: usize = 250;
const CONNECTIONS: usize = 4;
/// Handed over at a time on the way to so many deliveries: within the default of `queue.messages_max`.
const SLICE: u64 = 5_000;
/// The most that filling, draining or starting may take.
pub const LONGEST: Duration = Duration::from_secs(900);

const NOTE: &str = "  start: from the process's start to its first delivery; reopen: from a process's start until \
sled alone has opened a copy of the folder.\n  resident, RssAnon, Pss: after filling; rested: resident after a minute \
at rest; restarted: resident after a kill and a start, still so full. Memory and disk in MiB.";

/// A relay's folder in a known state, and what the relay held in memory when it got there.
pub struct Stage {
    /// The way to this state.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Memory a moment after the work.
    pub memory: Memory,
    /// Resident memory after [`Options::long_rest`].
    pub rested: u64,
    /// The store's bytes on disk.
    pub disk: u64,
    /// Bytes of the texts that are queued.
    contents: u64,
}

/// Medians of a relay without messages.
struct Idle {
    resident: Option<f64>,
    anonymous: Option<f64>,
    proportional: Option<f64>,
}

async fn idle(options: &Options, folder: &Path, closed: &ClosedPort, report: &mut Report) -> anyhow::Result<Idle> {
    let mut readings = Vec::new();
    for nth in 0..options.rounds() {
        let dir = folder.join("idle");
        let relay = Relay::open(options, &dir, closed.address).await?;
        tokio::time::sleep(options.rest()).await;
        let memory = relay.process.memory()?;
        report.round("memory", "idle", nth, memory.json());
        readings.push(memory);
        drop(relay);
        fs::remove_dir_all(&dir)?;
    }
    Ok(Idle {
        resident: median(readings.iter().map(|memory| memory.resident as f64)),
        anonymous: median(readings.iter().map(|memory| memory.anonymous as f64)),
        proportional: median(readings.iter().filter_map(|memory| memory.proportional).map(|bytes| bytes as f64)),
    })
}

/// So many queued.
async fn filled(options: &Options, folder: &Path, closed: &ClosedPort, level: u64) -> anyhow::Result<Stage> {
    let dir = folder.join(format!("queue-{level}"));
    let relay = Relay::open(options, &dir, closed.address).await?;
    let traffic = Traffic::new(CONTENTS, (level > 1).then_some(BATCH));
    hand_over(&relay, &Arc::new(traffic), level).await?;
    let name = format!("{} queued", whole(Some(level as f64)));
    Stage::of(options, relay, name, dir, level * CONTENTS as u64).await
}

/// So many delivered, and then one queued, for a start to deliver.
async fn delivered(options: &Options, folder: &Path, closed: &ClosedPort) -> anyhow::Result<Stage> {
    let dir = folder.join("delivered");
    let simulator = Simulator::open(options)?;
    let mut relay = Relay::open(options, &dir, simulator.address).await?;
    let traffic = Arc::new(Traffic::new(CONTENTS, Some(BATCH)));
    let mut handed = 0;
    while handed < options.deliveries() {
        let slice = SLICE.min(options.deliveries() - handed);
        handed += hand_over(&relay, &traffic, slice).await?;
        relay.drained(LONGEST).await?;
    }
    let delivered = relay.metrics().await?.value("messages_delivered_total").unwrap_or(0.0);
    anyhow::ensure!(delivered as u64 == handed, "{handed} accepted, {delivered} delivered");
    let name = format!("after {} deliveries", whole(Some(handed as f64)));
    let stage = Stage::of(options, relay, name, dir, 0).await?;

    let relay = Relay::open(options, &stage.dir, closed.address).await?;
    hand_over(&relay, &Arc::new(traffic.continued(None)), 1).await?;
    Ok(stage)
}

/// Hands so many over, as fast as they are taken.
async fn hand_over(relay: &Relay, traffic: &Arc<Traffic>, messages: u64) -> anyhow::Result<u64> {
    let connections = if messages == 1 { 1 } else { CONNECTIONS };
    let handed = load::run(&relay.address, connections, traffic, Bounds { messages, within: LONGEST }).await?;
    anyhow::ensure!(handed.messages >= messages, "only {} of {messages} were accepted in time", handed.messages);
    Ok(handed.messages)
}

impl Stage {
    /// Reads memory and disk when the relay has come to rest.
    async fn of(
        options: &Options,
        mut relay: Relay,
        name: String,
        dir: PathBuf,
        contents: u64,
    ) -> anyhow::Result<Stage> {
        tokio::time::sleep(options.rest()).await;
        relay.check()?;
        let memory = relay.process.memory()?;
        tokio::time::sleep(options.long_rest()).await;
        relay.check()?;
        let rested = relay.process.memory()?.resident;
        Ok(Stage { name, memory, rested, disk: bytes_on_disk(&store_in(&dir)?), dir, contents })
    }
}

fn row(stage: &Stage, starts: &[Start], idle: &Idle) -> Vec<String> {
    let middle = |figure: fn(&Start) -> f64| median(starts.iter().map(figure));
    let resident = stage.memory.resident as f64;
    let contents = (stage.contents > CONTENTS as u64).then_some(stage.contents as f64);
    vec![
        stage.name.clone(),
        ratio(middle(Start::of_reopen)),
        ratio(middle(|start| start.relay.memory.resident as f64 / start.sled.memory.resident as f64)),
        ratio(idle.resident.map(|idle| resident / idle)),
        ratio(contents.map(|contents| stage.disk as f64 / contents)),
        mebibytes(Some(resident)),
        mebibytes(Some(stage.memory.anonymous as f64)),
        mebibytes(stage.memory.proportional.map(|bytes| bytes as f64)),
        mebibytes(Some(stage.rested as f64)),
        mebibytes(middle(|start| start.relay.memory.resident as f64)),
        mebibytes(middle(|start| start.sled.memory.resident as f64)),
        millis(middle(|start| seconds(start.relay.took))),
        millis(middle(|start| seconds(start.sled.took))),
        mebibytes(Some(stage.disk as f64)),
    ]
}

fn targets(level: u64, stage: &Stage, starts: &[Start], report: &mut Report) {
    let restarted = median(starts.iter().map(|start| start.relay.memory.resident as f64)).unwrap_or(0.0);
    let most = Some(to_mebibytes(restarted.max(stage.memory.resident as f64)));
    match level {
        100_000 => report.target("resident with 100,000 queued, MiB", Target::AtMost(40.0), "", most),
        1_000_000 => {
            report.target("resident with 1,000,000 queued, MiB", Target::AtMost(128.0), "", most);
            let start = median(starts.iter().map(Start::of_reopen));
            report.target("start with 1,000,000 queued, of a bare reopen", Target::AtMost(1.3), "", start);
        }
        _ => {}
    }
}

fn to_mebibytes(bytes: f64) -> f64 {
    bytes / 1_048_576.0
}
