//! A thread that writes lines, so that other threads never wait for stderr.
//!
//! Threads append lines to one bounded buffer, and the writer thread takes its contents at once: no line needs an allocation
//! that another thread frees. If the buffer is full, because stderr does not take lines (a full pipe, a stuck log agent, a
//! full disk), a line is dropped and counted. Waking the thread costs as much as writing a line, so under load it sleeps
//! between batches, and no line has to wake it.

use std::io::{self, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use crate::time::{Clock, Timestamp};

/// The most waiting lines: a few seconds of a busy relay, a megabyte or two.
const LINES_MAX: usize = 4096;
/// The capacity that an empty buffer keeps: a batch of a busy relay.
const KEPT_BYTES: usize = 32 << 10;
/// The number of lines in a [`WINDOW`], or in the one before, from which the thread sleeps between batches.
const BUSY_LINES: usize = 200;
const WINDOW: Duration = Duration::from_millis(100);
/// The length of that sleep; a busy relay writes a hundred lines meanwhile.
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// The time until stderr is tried again after it took nothing.
const RETRY: Duration = Duration::from_millis(20);
/// The time between two lines with the number of dropped lines.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The longest wait at the end for the remaining lines.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The input of the writer: one call writes one line. Clones share the buffer.
#[derive(Clone, Debug)]
pub struct LogLines {
    buffer: Arc<Buffer>,
    dropped: Arc<AtomicU64>,
}

/// The writer thread; dropped, it writes the remaining lines.
#[derive(Debug)]
pub struct LineWriter {
    lines: LogLines,
    ended: Receiver<()>,
}

#[derive(Debug, Default)]
struct Buffer {
    waiting: Mutex<Waiting>,
    /// Wakes the thread.
    filled: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The lines in `bytes`, and those that the thread has taken and not written yet.
    lines: usize,
    /// True while the thread waits for a line.
    idle: bool,
    /// True once the [`LineWriter`] is dropped.
    ending: bool,
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line. Returns false if the buffer is full.
    fn push(&self, line: &[u8]) -> bool {
        let mut waiting = self.lock();
        if waiting.lines == LINES_MAX {
            return false;
        }
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        self.wake(waiting);
        true
    }

    fn end(&self) {
        let mut waiting = self.lock();
        waiting.ending = true;
        self.wake(waiting);
    }

    /// Wakes the thread if it waits: a call to the system.
    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if mem::take(&mut waiting.idle) {
            drop(waiting);
            self.filled.notify_one();
        }
    }

    /// Waits for lines or the end, and takes the lines. Returns their number, and true at the end.
    fn take(&self, bytes: &mut Vec<u8>) -> (usize, bool) {
        bytes.clear();
        bytes.shrink_to(KEPT_BYTES);
        let mut waiting = self.lock();
        while waiting.bytes.is_empty() && !waiting.ending {
            waiting.idle = true;
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut waiting.bytes, bytes);
        (waiting.lines, waiting.ending)
    }

    /// Makes room for as many lines as were written. Returns the number of those that wait.
    fn written(&self, lines: usize) -> usize {
        let mut waiting = self.lock();
        waiting.lines -= lines;
        waiting.lines
    }

    /// Writes all of `bytes`, and tries again while `to` takes nothing: no line is cut. At the end it waits only for a full
    /// pipe.
    fn write(&self, to: &mut impl Write, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(taken) if taken > 0 => bytes = &bytes[taken..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock && self.lock().ending => return,
                Ok(_) | Err(_) => thread::sleep(RETRY),
            }
        }
    }
}

impl LineWriter {
    /// Starts the thread. Lines that came together are written together: a write for each line costs as much as formatting it.
    pub fn start(mut to: impl Write + Send + 'static) -> io::Result<LineWriter> {
        let lines = LogLines { buffer: Arc::default(), dropped: Arc::default() };
        let LogLines { buffer, dropped } = lines.clone();
        let (end, ended) = sync_channel::<()>(0);
        let work = move || {
            let _end = end;
            let clock = Clock::system();
            let mut bytes = Vec::new();
            let (mut since, mut lines, mut before) = (clock.now(), 0, 0);
            let (mut reported, mut reported_at) = (0, Timestamp(0));
            loop {
                let (taken, last) = buffer.take(&mut bytes);
                buffer.write(&mut to, &bytes);
                let left = buffer.written(taken);
                lines += taken;
                let now = clock.now();
                // Not while the buffer is almost full: the line with the number of dropped lines needs room, too.
                if last || (left < LINES_MAX / 2 && now.since(reported_at) >= REPORT_EVERY) {
                    let dropped = dropped.load(Ordering::Relaxed);
                    if dropped > reported {
                        warn!(lines = dropped - reported, "log lines were dropped: stderr did not take them");
                        (reported, reported_at) = (dropped, now);
                    }
                }
                if last {
                    buffer.take(&mut bytes);
                    buffer.write(&mut to, &bytes);
                    break;
                }
                if now.since(since) >= WINDOW {
                    (since, before, lines) = (now, lines, 0);
                }
                if lines.max(before) >= BUSY_LINES {
                    thread::sleep(BATCH_DELAY);
                }
            }
        };
        thread::Builder::new().name("log".into()).spawn(work)?;
        Ok(LineWriter { lines, ended })
    }

    /// The input of the writer.
    pub fn lines(&self) -> LogLines {
        self.lines.clone()
    }

    /// The number of lines that found the buffer full.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lines.dropped)
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.lines.buffer.end();
        let _ = self.ended.recv_timeout(TIMEOUT);
    }
}

impl Write for &LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.buffer.push(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = &'a LogLines;

    fn make_writer(&'a self) -> &'a LogLines {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    /// Takes nothing until it is allowed to.
    struct Stuck {
        let_through: Receiver<()>,
        page: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.let_through.recv();
            self.page.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn stuck_log_blocks_no_thread_and_dropped_lines_are_counted() {
        let (free, let_through) = channel();
        let page = Arc::default();
        let writer = LineWriter::start(Stuck { let_through, page: Arc::clone(&page) }).unwrap();
        for number in 0..LINES_MAX + 100 {
            (&writer.lines()).write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        // Lines that the thread has taken and cannot write count as waiting.
        assert_eq!(writer.dropped().load(Ordering::Relaxed), 100);
        drop(free);
        drop(writer);
        let text = String::from_utf8(page.lock().unwrap().clone()).unwrap();
        let expected: Vec<_> = (0..LINES_MAX).map(|number| number.to_string()).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "what was kept is there at the end, in order");
    }

    /// Takes five bytes, and then fails once; it fails at every try once it is broken.
    struct Failing {
        page: Arc<Mutex<Vec<u8>>>,
        fails: bool,
        broken: bool,
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.fails = self.broken || !self.fails;
            if self.fails {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(5);
            self.page.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn failed_write_cuts_no_line_and_loses_none() {
        let page = Arc::<Mutex<Vec<u8>>>::default();
        let writer = LineWriter::start(Failing { page: Arc::clone(&page), fails: false, broken: false }).unwrap();
        for line in ["the first line\n", "the second line\n"] {
            (&writer.lines()).write_all(line.as_bytes()).unwrap();
        }
        let written = || String::from_utf8(page.lock().unwrap().clone()).unwrap();
        for _ in 0..6000 {
            if written() == "the first line\nthe second line\n" {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{:?}", written());
    }

    #[test]
    fn log_that_is_broken_does_not_delay_the_exit() {
        let writer = LineWriter::start(Failing { page: Arc::default(), fails: false, broken: true }).unwrap();
        (&writer.lines()).write_all(b"a line\n").unwrap();
        writer.lines.buffer.end();
        assert_eq!(
            writer.ended.recv_timeout(Duration::from_secs(30)),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
        );
    }

    #[test]
    fn log_that_stays_stuck_does_not_delay_the_exit() {
        let (_never, let_through) = channel();
        let writer = LineWriter::start(Stuck { let_through, page: Arc::default() }).unwrap();
        (&writer.lines()).write_all(b"a line\n").unwrap();
        drop(writer);
    }
}
