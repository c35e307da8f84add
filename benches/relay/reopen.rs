//! The rival of a start: sled alone, opening a copy of the same folder, as a process of its own.
//!
//! Its duration and memory are the lower bound for a queue in sled; the rest of a
//! relay's start is the relay's own. The settings are those of `storage/sled_db.rs`: the same cache, no flusher.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use crate::process::Process;

/// The hidden word that makes this program that process.
pub const WORD: &str = "reopen-a-store";

/// The queue's own.
const CACHE_BYTES: u64 = 6 << 20;

/// A process that has a store open, and how long it took from its start.
#[derive(Debug)]
pub struct Reopened {
    /// The process.
    pub process: Process,
    /// From its start to the open store.
    pub took: Duration,
}

impl Reopened {
    /// Starts one and waits until the store is open.
    pub fn open(store: &Path) -> anyhow::Result<Reopened> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = Process::start(command.arg(WORD).arg(store).stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let mut line = String::new();
        BufReader::new(process.child.stdout.take().context("its stdout")?).read_line(&mut line)?;
        let took = process.started.elapsed();
        anyhow::ensure!(line == "open\n", "sled did not open {}", store.display());
        Ok(Reopened { process, took })
    }
}

/// Opens the store, reports that, and holds it until the parent has exited.
pub fn hold(store: &Path) -> anyhow::Result<()> {
    let opened = sled::Config::new().path(store).cache_capacity(CACHE_BYTES).flush_every_ms(None).open();
    let _store = opened.with_context(|| format!("open {}", store.display()))?;
    println!("open");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
