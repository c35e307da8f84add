//! Restoring a queue from a stream. The stream is read twice, so that it need not fit into memory.

use std::io;
use std::path::Path;

use super::stream::{Stream, StreamError};
use crate::ship::record::Codec;
use crate::ship::replay::{Plan, Replay};
use crate::storage::{Restore, Volume};

/// Finds the records up to `last` that make up the store.
///
/// # Errors
/// If the servers do not answer, or a record cannot be read.
pub async fn plan(stream: &Stream, codec: &Codec, last: u64) -> Result<Plan, StreamError> {
    let first = stream.info().await?.unwrap_or_default().first.max(1);
    let mut plan = Plan::default();
    stream.read(first..last + 1, |sequence, record| Ok(plan.read(codec, sequence, record)?)).await?;
    Ok(plan)
}

/// Makes a store of these records in a folder, in the place of the one there. Returns false if they have no complete
/// snapshot.
///
/// # Errors
/// If the servers do not answer, a record cannot be read, or a file cannot be written.
pub async fn restore(
    stream: &Stream,
    codec: &Codec,
    plan: &Plan,
    path: &Path,
    volume: Option<&Volume>,
) -> Result<bool, StreamError> {
    let Some(range) = plan.range() else { return Ok(false) };
    let written = |error: io::Error| StreamError::Unreadable(format!("{}: {error}", path.display()));
    let mut restore = Restore::begin(path).map_err(|error| StreamError::Unreadable(error.to_string()))?;
    let mut replay = Replay::default();
    let each = |sequence: u64, record: &[u8]| match replay.read(codec, sequence, record)? {
        Some(rows) => restore.apply(&rows).map_err(written),
        None => Ok(()),
    };
    stream.read(range, each).await?;
    let stamp = replay.owner.map(|owner| owner.stamp).unwrap_or_default();
    restore.finish(&stamp, volume).map_err(written)?;
    Ok(true)
}
