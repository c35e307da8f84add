//! Restoring a queue from a stream, record by record, so that it need not fit into memory.
//!
//! Only the end of a stream shows which of its records make up the store (`ship::replay`). [`restore_all`] writes the rows
//! while it looks for that, and reads the stream again if they were the wrong ones. A thread writes rows while the next
//! ones are read.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tokio::task::{JoinHandle, spawn_blocking};

use super::stream::{Stream, StreamError};
use crate::ship::history::Copy;
use crate::ship::record::Codec;
use crate::ship::replay::{OnePass, Plan, Replay};
use crate::storage::{Restore, Volume};

/// About the bytes of rows that are written at once.
const CHUNK: usize = 256 << 10;

/// Finds the records up to `last` that make up the store.
///
/// # Errors
/// If the servers do not answer, or a record cannot be read.
pub async fn plan(stream: &Stream, codec: &Codec, last: u64) -> Result<Plan, StreamError> {
    let range = range(stream, last).await?;
    let mut records = stream.read(range.clone());
    let mut plan = Plan::default();
    while let Some((sequence, record)) = records.next().await? {
        plan.read(codec, sequence, &record)?;
    }
    check(&plan, &range).map(|()| plan)
}

/// Checks that a plan was made of everything in a range that may count.
fn check(plan: &Plan, range: &Range<u64>) -> Result<(), StreamError> {
    // The last record is never removed.
    let end = (!range.is_empty() && plan.last() + 1 < range.end).then_some(plan.last() + 1);
    plan.missing().or(end).map_or(Ok(()), |missing| Err(StreamError::failed(format!("record {missing} is missing"))))
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
    volume: Option<Volume>,
) -> Result<bool, StreamError> {
    let Some(range) = plan.range() else { return Ok(false) };
    let mut writer = Writer::begin(path).await?;
    let mut replay = Replay::default();
    let read = async {
        let mut next = range.start;
        let mut records = stream.read(range);
        while let Some((sequence, record)) = records.next().await? {
            if sequence != next {
                return Err(StreamError::failed(format!("record {next} is missing")));
            }
            next += 1;
            if let Some(rows) = replay.read(codec, sequence, &record)? {
                writer.write(rows).await?;
            }
        }
        Ok(())
    };
    match read.await {
        Ok(()) => {
            let stamp = replay.owner.map(|owner| owner.stamp).unwrap_or_default();
            writer.finish(stamp, volume).await.map(|()| true)
        }
        Err(error) => {
            writer.give_up().await;
            Err(error)
        }
    }
}

/// Makes a store of the records up to `last`, in a folder without one. `volume` gets the copy that they make up. Returns
/// false if they have no complete snapshot.
///
/// # Errors
/// As for [`restore`].
pub async fn restore_all(
    stream: &Stream,
    codec: &Codec,
    last: u64,
    path: &Path,
    volume: impl FnOnce(Copy<'_>) -> io::Result<Option<Volume>>,
) -> Result<bool, StreamError> {
    let mut writer = Writer::begin(path).await?;
    let mut pass = OnePass::default();
    let read = async {
        let range = range(stream, last).await?;
        let mut records = stream.read(range.clone());
        while let Some((sequence, record)) = records.next().await? {
            if let Some(rows) = pass.read(codec, sequence, &record)? {
                writer.write(rows).await?;
            }
        }
        check(&pass.plan, &range)?;
        let volume = pass.plan.copy().map(volume).transpose();
        volume.map_err(|error| writer.failed(&error))
    };
    match (read.await, pass.stamp()) {
        (Ok(Some(volume)), Some(stamp)) => writer.finish(stamp, volume).await.map(|()| true),
        (Ok(Some(volume)), None) => {
            writer.give_up().await;
            restore(stream, codec, &pass.plan, path, volume).await
        }
        (read, _) => {
            writer.give_up().await;
            read.map(|_| false)
        }
    }
}

/// The records up to `last`.
async fn range(stream: &Stream, last: u64) -> Result<Range<u64>, StreamError> {
    Ok(stream.info().await?.unwrap_or_default().first.max(1)..last + 1)
}

/// A restore whose rows another thread writes, a chunk at a time. It is finished or given up: the thread has the lock of
/// the folder.
struct Writer {
    path: PathBuf,
    /// The thread's work, which returns the restore.
    work: JoinHandle<io::Result<Restore>>,
    /// The rows of the next chunk.
    rows: Vec<Vec<u8>>,
    bytes: usize,
}

impl Writer {
    async fn begin(path: &Path) -> Result<Writer, StreamError> {
        let folder = path.to_owned();
        let begun = spawn_blocking(move || Restore::begin(&folder)).await;
        let restore =
            begun.map_err(StreamError::failed)?.map_err(|error| StreamError::Unreadable(error.to_string()))?;
        let work = spawn_blocking(|| Ok(restore));
        Ok(Writer { path: path.to_owned(), work, rows: Vec::new(), bytes: 0 })
    }

    /// Writes rows, after the ones before. Waits while two chunks are under way.
    async fn write(&mut self, rows: Vec<u8>) -> Result<(), StreamError> {
        self.bytes += rows.len();
        self.rows.push(rows);
        if self.bytes < CHUNK {
            return Ok(());
        }
        let (mut restore, rows) = (self.written().await?, std::mem::take(&mut self.rows));
        self.bytes = 0;
        self.work = spawn_blocking(move || {
            rows.iter().try_for_each(|rows| restore.apply(rows))?;
            Ok(restore)
        });
        Ok(())
    }

    /// Writes the last rows, and makes all of them the store of the folder.
    async fn finish(mut self, stamp: String, volume: Option<Volume>) -> Result<(), StreamError> {
        let (mut restore, rows) = (self.written().await?, std::mem::take(&mut self.rows));
        let finished = spawn_blocking(move || {
            rows.iter().try_for_each(|rows| restore.apply(rows))?;
            restore.finish(&stamp, volume.as_ref())
        });
        finished.await.map_err(StreamError::failed)?.map_err(|error| self.failed(&error))
    }

    /// Leaves the folder empty, and its lock free.
    async fn give_up(self) {
        // An error of it changes nothing any more.
        drop(self.work.await);
    }

    /// The restore, when the thread has written its chunk.
    async fn written(&mut self) -> Result<Restore, StreamError> {
        let written = (&mut self.work).await;
        written.map_err(StreamError::failed)?.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> StreamError {
        StreamError::Unreadable(format!("{}: {error}", self.path.display()))
    }
}
