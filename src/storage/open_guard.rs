//! A guard against a start that hangs or dies in sled.
//!
//! sled opens a log with threads of its own. On a damaged log they may panic, which ends the process, or wait for one
//! another for ever. `preflight` finds such damage before, so this should never happen; the guard is the backstop:
//!
//! | event | effect |
//! | --- | --- |
//! | sled is about to open the log | the mark `opening` gets one byte more |
//! | the first rows were read and written | the mark is removed |
//! | sled panics, or the process is killed | the mark stays |
//! | sled does not return within the time-out | the start fails, the process exits with 1, and the mark stays |
//! | a start finds a mark of [`STARTS_MAX`] bytes | the store is damaged: it is quarantined or refused, without sled |
//!
//! So a service manager that restarts the relay each time gets it up, at the ninth start at the latest. The thread that
//! hangs is left behind, and keeps the folder's lock until the process ends.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::directory::private;
use super::error::OpenError;
use super::names;

/// The successive starts that count as damage. Kills seldom hit the milliseconds of an open. (Four starts were too few:
/// of a relay that was killed again and again on an overloaded machine, one in a few hundred kills reached four.)
const STARTS_MAX: u64 = 8;
/// The time-out for a short log: the time after which a commit counts as stuck.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The bytes of the log that add a second to the time-out: a tenth of what a slow disk reads in it.
const BYTES_A_SECOND: u64 = 8 << 20;

/// Marks that sled is about to open the log.
pub fn mark_started(path: &Path) {
    let mark = private(OpenOptions::new().create(true).append(true), &path.join(names::OPENING));
    // If the folder cannot be written, opening sled reports it.
    let _ = mark.and_then(|mut mark| mark.write_all(b"."));
}

/// Removes the mark: the store is open.
pub fn mark_finished(path: &Path) {
    let _ = fs::remove_file(path.join(names::OPENING));
}

/// The damage that the mark shows, in words.
pub fn damage(path: &Path) -> Option<String> {
    let started = fs::metadata(path.join(names::OPENING)).map_or(0, |mark| mark.len());
    (started >= STARTS_MAX).then(|| format!("{STARTS_MAX} starts in a row ended while it was being opened"))
}

/// Runs `open`, which may hang in sled, with a time-out that grows with the log.
///
/// # Errors
/// If `open` fails, panics, or does not return in time.
pub fn guarded<T: Send + 'static>(
    path: &Path,
    open: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    with_timeout(path, open_timeout(path), open)
}

/// The time-out for the log in a folder.
fn open_timeout(path: &Path) -> Duration {
    let bytes = fs::metadata(path.join(names::LOG)).map_or(0, |log| log.len());
    TIMEOUT + Duration::from_secs(bytes / BYTES_A_SECOND)
}

/// Runs `open` on a thread of its own, and leaves the thread behind after the time-out.
fn with_timeout<T: Send + 'static>(
    path: &Path,
    timeout: Duration,
    open: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    let failed = |cause| OpenError::Failed { path: path.to_owned(), step: "open sled", cause };
    let (result, results) = mpsc::channel();
    // After the time-out nothing receives the result.
    let work = move || drop(result.send(open()));
    let started = thread::Builder::new().name("opening".into()).spawn(work);
    started.map_err(|cause| failed(format!("start a thread for it: {cause}")))?;
    match results.recv_timeout(timeout) {
        Ok(opened) => opened,
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(failed("it panicked".into())),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(failed(format!(
            "no result within {} s; after {STARTS_MAX} such starts in a row the queue counts as damaged",
            timeout.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hang_and_panic_of_sled_are_errors() {
        let path = Path::new("/queue");
        let (_never, end) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = end.recv();
            Ok(())
        };
        let error = with_timeout(path, Duration::from_millis(20), hangs).unwrap_err().to_string();
        assert!(error.starts_with("open queue /queue: open sled: no result within 0 s"), "{error}");
        let panics = || -> Result<(), OpenError> { panic!("as sled would") };
        let error = with_timeout(path, TIMEOUT, panics).unwrap_err().to_string();
        assert_eq!(error, "open queue /queue: open sled: it panicked");
        assert_eq!(with_timeout(path, TIMEOUT, || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn timeout_grows_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(open_timeout(folder.path()), TIMEOUT);
        let log = fs::File::create(folder.path().join("db")).unwrap();
        log.set_len(2600 << 20).unwrap();
        assert_eq!(open_timeout(folder.path()), Duration::from_secs(60 + 325));
    }
}
