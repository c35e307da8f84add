//! A start that sled does not come back from.
//!
//! sled opens a log in threads of its own. On a damaged one they may panic, which ends the process, or wait for one another
//! for ever. The folder is looked through before that, so this should never be met; what should never be is held to a
//! time all the same:
//!
//! | | |
//! | --- | --- |
//! | before sled sees the log | a byte more in the mark `opening` |
//! | the first rows were read and written | the mark is removed |
//! | sled panics, or the start is killed | the mark stays |
//! | nothing is heard of sled for long | the start is given up with an error, the process leaves with 1, and the mark stays |
//! | a start finds the mark of [`STARTS_MAX`] | the store is damaged: it is set aside, or refused, without sled |
//!
//! So whoever starts the relay again after each end gets it up, at the ninth start at the latest. What hangs is left
//! behind on its thread, and keeps the folder's lock until the process is gone.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::directory::private;
use super::error::OpenError;
use super::names;

/// So many of them are not chance: kills seldom meet those milliseconds. (With four, a relay that was killed again and again
/// on a machine with six times the work it could do met them once in a few hundred kills.)
const STARTS_MAX: u64 = 8;
/// What sled may take where its log is short: as long as a commit may, before the relay counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// And for each so many bytes of the log a second more: a tenth of what a slow disk reads.
const BYTES_A_SECOND: u64 = 8 << 20;

/// Marks that sled is about to open the log.
pub fn note(path: &Path) {
    let mark = private(OpenOptions::new().create(true).append(true), &path.join(names::OPENING));
    // Where nothing can be written, sled will say so.
    let _ = mark.and_then(|mut mark| mark.write_all(b"."));
}

/// sled has come back.
pub fn came_back(path: &Path) {
    let _ = fs::remove_file(path.join(names::OPENING));
}

/// What so many starts that did not come back say of the log.
pub fn damage(path: &Path) -> Option<String> {
    let started = fs::metadata(path.join(names::OPENING)).map_or(0, |mark| mark.len());
    (started >= STARTS_MAX).then(|| format!("{STARTS_MAX} starts in a row ended while it was being opened"))
}

/// Runs `open`, which may hang in sled, on a thread of its own; gives it up and leaves it there after the time that the
/// log's length allows.
pub fn guarded<T: Send + 'static>(
    path: &Path,
    open: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    within(path, patience(path), open)
}

/// How long sled may take with the log in a folder.
fn patience(path: &Path) -> Duration {
    let bytes = fs::metadata(path.join(names::LOG)).map_or(0, |log| log.len());
    PATIENCE + Duration::from_secs(bytes / BYTES_A_SECOND)
}

/// Does what may hang on a thread of its own, and leaves it there when its time is over.
fn within<T: Send + 'static>(
    path: &Path,
    patience: Duration,
    open: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    let failed = |cause| OpenError::Failed { path: path.to_owned(), step: "open sled", cause };
    let (tell, told) = mpsc::channel();
    // Nobody listens any more where the wait for it was given up.
    let work = move || drop(tell.send(open()));
    let started = thread::Builder::new().name("opening".into()).spawn(work);
    started.map_err(|cause| failed(format!("start a thread for it: {cause}")))?;
    match told.recv_timeout(patience) {
        Ok(opened) => opened,
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(failed("it panicked".into())),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(failed(format!(
            "nothing was heard of it for {} s; after {STARTS_MAX} such starts in a row the queue counts as damaged",
            patience.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_given_up_and_what_panics_is_told() {
        let path = Path::new("/queue");
        let (_never, end) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = end.recv();
            Ok(())
        };
        let error = within(path, Duration::from_millis(20), hangs).unwrap_err().to_string();
        assert!(error.starts_with("open queue /queue: open sled: nothing was heard of it for 0 s"), "{error}");
        let panics = || -> Result<(), OpenError> { panic!("as sled would") };
        let error = within(path, PATIENCE, panics).unwrap_err().to_string();
        assert_eq!(error, "open queue /queue: open sled: it panicked");
        assert_eq!(within(path, PATIENCE, || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn long_log_may_take_longer() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(patience(folder.path()), PATIENCE);
        let log = fs::File::create(folder.path().join("db")).unwrap();
        log.set_len(2600 << 20).unwrap();
        assert_eq!(patience(folder.path()), Duration::from_secs(60 + 325));
    }
}
