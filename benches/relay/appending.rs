//! Rival (b): a file to which the same bytes are appended in the same groups, each group followed by one fdatasync.
//!
//! The least that durability costs on this disk: no HTTP, no index, no order of conversations, no repeats recognized.
//! A group is as many messages as the relay put into one commit, on average, in the same round.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::load::Bounds;
use crate::measure::{Figures, now};

/// Appends groups of records until a bound is met, with a pause before each; the figures' latency is that of one group.
pub fn run(
    folder: &Path,
    record_bytes: usize,
    group: usize,
    pause: Duration,
    bounds: Bounds,
) -> anyhow::Result<Figures> {
    let path = folder.join("appended");
    let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
    let bytes = vec![b'r'; record_bytes * group];
    // The first write makes the file; that is not what is measured.
    file.write_all(&bytes)?;
    file.sync_all()?;

    let (begun, mut latencies, mut messages) = (now(), Vec::new(), 0);
    while messages < bounds.messages && begun.elapsed() < bounds.within {
        std::thread::sleep(pause);
        let group_begun = now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        latencies.push(group_begun.elapsed());
        messages += group as u64;
    }
    let took = begun.elapsed();
    fs::remove_file(&path)?;
    Ok(Figures::of(messages, took, latencies))
}
