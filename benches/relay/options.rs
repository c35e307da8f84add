//! The benchmark's command line, and how long and how often each part runs.
//!
//! The defaults give medians of three rounds within minutes; `--quick` gives one short round, enough to see that every
//! part runs. Nothing here is a fact of the relay: the code that starts it has its settings.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use crate::load::Bounds;

/// Measures the relay against what the same work costs without it; prints ratios, with this run's figures beside them.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo bench --")]
pub struct Options {
    /// The parts to measure; all if none is named
    pub only: Vec<Section>,
    /// Measure Redis Streams with appendfsync always too (redis-server and redis-benchmark on PATH)
    #[arg(long)]
    pub redis: bool,
    /// The NATS server of the section `fleet`, of which three are started; without it, the section is left out
    #[arg(long, value_name = "PATH")]
    pub nats_server: Option<PathBuf>,
    /// Fill the queue with 1,000,000 messages too (minutes, and 8 GiB of disk)
    #[arg(long)]
    pub million: bool,
    /// Measure memory after so many deliveries; a day at the default quota is 864000 [default: 50000]
    #[arg(long, value_name = "N")]
    deliveries: Option<u64>,
    /// Rounds per figure [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: Option<u32>,
    /// Measure only the ways of handing over whose name begins with this, such as "64"
    #[arg(long, value_name = "NAME")]
    pub shape: Option<String>,
    /// One short round of everything: does it run? Its figures are worth nothing
    #[arg(long)]
    pub quick: bool,
    /// A folder on the disk to be measured; a folder of the run's own is made in it and removed
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Measure this binary instead of the one just built
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_connect-relay"))]
    pub relay: PathBuf,
    /// Measure the section `fleet` against this binary without a fleet, such as an older build
    #[arg(long, value_name = "PATH")]
    pub than: Option<PathBuf>,
    /// Append the relays' log to this file; without it, it is written to /dev/null
    #[arg(long, value_name = "FILE")]
    pub relay_log: Option<PathBuf>,
    /// The relays' log level: `info` is production's, a line per message
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// Write every round's figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The argument that cargo passes to a benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Durable accepts
    Accept,
    /// Accept, deliver, record
    Deliver,
    /// One bot that waits for each outcome
    Wait,
    /// Resident memory, and start to first delivery
    Memory,
    /// Accepts whose commits are copied (--nats-server)
    Fleet,
}

impl Options {
    /// The process's own; a wrong one ends it with 2.
    pub fn read() -> Options {
        Options::parse()
    }

    /// The same for the rival of `fleet`.
    #[cfg(feature = "fleet")]
    pub fn of_rival(&self) -> Options {
        Options { relay: self.than.as_ref().unwrap_or(&self.relay).clone(), ..self.clone() }
    }

    /// The sections asked for, in their order.
    pub fn sections(&self) -> impl Iterator<Item = Section> {
        let all = [Section::Accept, Section::Deliver, Section::Wait, Section::Memory, Section::Fleet];
        all.into_iter().filter(|section| match section {
            Section::Fleet if self.only.is_empty() => self.nats_server.is_some(),
            section => self.only.is_empty() || self.only.contains(section),
        })
    }

    /// The number of measurements of each figure.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// The number of timed starts: a start is short and varies, so this is larger.
    pub fn starts(&self) -> u32 {
        self.rounds() * 2 - 1
    }

    /// The time limit of a warm-up.
    pub fn warm_up(&self) -> Bounds {
        Bounds { messages: 20_000, within: Duration::from_millis(if self.quick { 50 } else { 300 }) }
    }

    /// The time limit of a round of accepts.
    pub fn round(&self) -> Bounds {
        Bounds { messages: 200_000, within: Duration::from_millis(if self.quick { 250 } else { 1500 }) }
    }

    /// Messages of one round of accept, deliver, record.
    pub fn through(&self) -> u64 {
        if self.quick { 2_000 } else { 30_000 }
    }

    /// Sends of one round of the bot that waits.
    pub fn waits(&self) -> u32 {
        if self.quick { 20 } else { 500 }
    }

    /// Deliveries after which memory is looked at.
    pub fn deliveries(&self) -> u64 {
        self.deliveries.unwrap_or(if self.quick { 5_000 } else { 50_000 })
    }

    /// The numbers of queued messages at which memory is read.
    pub fn levels(&self) -> Vec<u64> {
        let mut levels = if self.quick { vec![1, 10_000] } else { vec![1, 10_000, 100_000] };
        if self.million {
            levels.push(1_000_000);
        }
        levels
    }

    /// The idle time of a process before its memory is read.
    pub fn rest(&self) -> Duration {
        Duration::from_millis(if self.quick { 200 } else { 1500 })
    }

    /// The idle time after which the relay has returned the memory that it can.
    pub fn long_rest(&self) -> Duration {
        Duration::from_secs(if self.quick { 0 } else { 70 })
    }

    /// A folder of this run's own; it goes with the value.
    pub fn folder(&self) -> anyhow::Result<TempDir> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        let dir = self.dir.canonicalize()?;
        let folder = tempfile::Builder::new().prefix("b").rand_bytes(4).tempdir_in(&dir)?;
        // A Unix socket's whole path must fit into 107 bytes.
        let longest = folder.path().join("queue-1000000/private/control.sock");
        anyhow::ensure!(
            longest.as_os_str().len() <= 107,
            "{} is too long a path for a Unix socket in it: choose a shorter folder on the same disk with --dir",
            dir.display()
        );
        Ok(folder)
    }
}
