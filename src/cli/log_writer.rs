//! A thread that writes lines, so that other threads never wait for stderr.
//!
//! LogLines wait in a bounded buffer. If it is full, because stderr does not take them (a full pipe, a stuck log agent), a
//! line is dropped and counted. Waking the writer thread costs as much as writing a line, so under load it sleeps
//! between batches, and no line has to wake it.

use std::io::{self, Write};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use crate::time::{Clock, Timestamp};

/// The most waiting lines: a few seconds of a busy relay, a megabyte or two.
const LINES_MAX: usize = 4096;
/// The number of lines in a [`WINDOW`], or in the one before, from which the thread sleeps between batches.
const BUSY_LINES: usize = 200;
const WINDOW: Duration = Duration::from_millis(100);
/// The length of that sleep; a busy relay writes a hundred lines meanwhile.
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// The time between two lines with the number of dropped lines.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The longest wait at the end for the remaining lines.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The input of the writer: one call writes one line. Clones share the buffer.
#[derive(Clone, Debug)]
pub struct LogLines {
    buffer: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

/// The writer thread; dropped, it writes the remaining lines.
#[derive(Debug)]
pub struct LineWriter {
    lines: LogLines,
    ending: Arc<AtomicBool>,
    ended: Receiver<()>,
}

impl LineWriter {
    /// Starts the thread. LogLines that came together are flushed together.
    pub fn start(mut to: impl Write + Send + 'static) -> io::Result<LineWriter> {
        let (buffer, waiting) = sync_channel::<Vec<u8>>(LINES_MAX);
        let (end, ended) = sync_channel::<()>(0);
        let ending = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&ending);
        let dropped = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&dropped);
        let work = move || {
            let _end = end;
            let clock = Clock::system();
            let (mut since, mut lines, mut before) = (clock.now(), 0, 0);
            let (mut reported, mut reported_at) = (0, Timestamp(0));
            while let Ok(line) = waiting.recv() {
                // Read first: every line that was queued before the end was requested is then among those taken.
                let last = asked.load(Ordering::Acquire);
                // If stderr is closed or broken, the error cannot be reported anywhere.
                for line in iter::once(line).chain(waiting.try_iter()) {
                    let _ = to.write_all(&line);
                    lines += 1;
                }
                let _ = to.flush();
                let now = clock.now();
                // There is room again: the number of dropped lines is logged now, and not again for a while.
                if last || now.since(reported_at) >= REPORT_EVERY {
                    let dropped = counted.load(Ordering::Relaxed);
                    if dropped > reported {
                        warn!(lines = dropped - reported, "log lines were dropped: stderr did not take them");
                        (reported, reported_at) = (dropped, now);
                    }
                }
                if last {
                    waiting.try_iter().for_each(|line| drop(to.write_all(&line)));
                    let _ = to.flush();
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
        let lines = LogLines { buffer, dropped };
        Ok(LineWriter { lines, ending, ended })
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
        self.ending.store(true, Ordering::Release);
        // This wakes the thread. If the buffer is full the thread is awake, and sees the end by itself.
        let _ = self.lines.buffer.try_send(Vec::new());
        let _ = self.ended.recv_timeout(TIMEOUT);
    }
}

impl Write for &LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.buffer.try_send(line.to_vec()).is_err() {
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
        // The thread may have one line, and the buffer has the others.
        let dropped = writer.dropped().load(Ordering::Relaxed);
        assert!((99..=100).contains(&dropped), "{dropped}");
        drop(free);
        let dropped = dropped as usize;
        drop(writer);
        let text = String::from_utf8(page.lock().unwrap().clone()).unwrap();
        let expected: Vec<_> = (0..LINES_MAX + 100 - dropped).map(|number| number.to_string()).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "what was kept is there at the end, in order");
    }

    #[test]
    fn log_that_stays_stuck_does_not_delay_the_exit() {
        let (_never, let_through) = channel();
        let writer = LineWriter::start(Stuck { let_through, page: Arc::default() }).unwrap();
        (&writer.lines()).write_all(b"a line\n").unwrap();
        drop(writer);
    }
}
