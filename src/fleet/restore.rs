//! Restoring a queue from a stream, record by record, so that it need not fit into memory.
//!
//! Only the end of a stream shows which of its records make up the store (`ship::replay`). [`restore_all`] writes the rows
//! while it looks for that, and reads the stream again if they were the wrong ones. A thread writes rows while the next
//! ones are read.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};

use super::stream::{Stream, StreamError};
use crate::malloc;
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
    let end = (!range.is_empty() && plan.last + 1 < range.end).then_some(plan.last + 1);
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

/// The work for the thread that writes.
enum Work {
    Rows(Vec<Vec<u8>>),
    /// The rows are all, with this format stamp.
    Finish(String, Option<Volume>),
}

/// A restore whose rows another thread writes. It is finished or given up: the thread has the lock of the folder.
struct Writer {
    path: PathBuf,
    work: mpsc::Sender<Work>,
    /// One thread from the beginning to the end: each thread that allocates has memory of its own.
    thread: Option<JoinHandle<io::Result<()>>>,
    /// The rows of the next chunk.
    rows: Vec<Vec<u8>>,
    bytes: usize,
}

impl Writer {
    async fn begin(path: &Path) -> Result<Writer, StreamError> {
        let (work, mut works) = mpsc::channel(1);
        let (begun, has_begun) = oneshot::channel();
        let folder = path.to_owned();
        let thread = spawn_blocking(move || {
            let mut restore = match Restore::begin(&folder) {
                Ok(restore) => restore,
                Err(error) => {
                    // The receiver waits for it.
                    let _ = begun.send(error);
                    return Ok(());
                }
            };
            drop(begun);
            while let Some(work) = works.blocking_recv() {
                match work {
                    Work::Rows(rows) => rows.iter().try_for_each(|rows| restore.apply(rows))?,
                    Work::Finish(stamp, volume) => {
                        restore.finish(&stamp, volume.as_ref())?;
                        malloc::trim();
                        break;
                    }
                }
            }
            Ok(())
        });
        match has_begun.await {
            Ok(error) => Err(StreamError::Unreadable(error.to_string())),
            Err(_) => Ok(Writer { path: path.to_owned(), work, thread: Some(thread), rows: Vec::new(), bytes: 0 }),
        }
    }

    /// Writes rows, after the ones before. Waits while two chunks are under way.
    async fn write(&mut self, rows: Vec<u8>) -> Result<(), StreamError> {
        self.bytes += rows.len();
        self.rows.push(rows);
        if self.bytes < CHUNK {
            return Ok(());
        }
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        if self.work.send(Work::Rows(rows)).await.is_err() {
            return self.ended().await;
        }
        Ok(())
    }

    /// Writes the last rows, and makes all of them the store of the folder.
    async fn finish(mut self, stamp: String, volume: Option<Volume>) -> Result<(), StreamError> {
        let rows = std::mem::take(&mut self.rows);
        // If the thread has ended, it returns the error.
        let _ = self.work.send(Work::Rows(rows)).await;
        let _ = self.work.send(Work::Finish(stamp, volume)).await;
        self.ended().await
    }

    /// Leaves the folder empty, and its lock free.
    async fn give_up(self) {
        drop(self.work);
        if let Some(thread) = self.thread {
            // An error of it changes nothing any more.
            let _ = thread.await;
        }
    }

    /// The result of the thread.
    async fn ended(&mut self) -> Result<(), StreamError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let ended = thread.await.map_err(StreamError::failed)?;
        ended.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> StreamError {
        StreamError::Unreadable(format!("{}: {error}", self.path.display()))
    }
}
