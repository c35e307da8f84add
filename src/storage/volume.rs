//! The file `volume`: the identity of this copy of a replicated store, and the runs of relays whose commits it has.
//!
//! ```text
//! connect-relay volume 6b1f0c8e55aa10d2
//! run 9f3c0000000000a1 after 2.0 sequence 1
//! run 17d50000000000b3 after 7.31 sequence 412 alone
//! ```
//!
//! Each run of a relay adds a line before its first commit. So every commit of the store belongs to one run: the last one
//! that began before the commit's position. Two copies of a store have a commit in common if both have its run, and have
//! that run for long enough. The lines of a store go with its rows when the store is restored elsewhere.
//!
//! `alone` marks a last run that has shipped nothing. No stream has its commits, so the next run takes its place: a relay
//! that starts often without its servers leaves one line.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::directory::{self, sync_directory, write_private};
use super::error::OpenError;
use super::journal::{self, CommitPos};
use super::{compaction, names};

/// The most runs that are kept, the newest ones.
pub const RUNS_MAX: usize = 256;
/// The sequence number of a run that did not give one yet.
const NONE_YET: u64 = u64::MAX;

/// A run of a relay on a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The process.
    pub instance: u64,
    /// The last commit before the run.
    pub after: CommitPos,
    /// A number of the caller: the lowest one that the run can give to anything in the store.
    pub sequence: u64,
}

/// The identity and the history of a copy of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// The random number that distinguishes this copy from others.
    pub number: u64,
    /// The runs, the newest one last.
    pub runs: Vec<Run>,
    /// True if the last run has shipped nothing yet.
    pub alone: bool,
}

impl Volume {
    /// A new copy, of a store that has the commits of these runs up to `at`. The run of this process continues it.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn new(mut runs: Vec<Run>, at: CommitPos, instance: u64) -> io::Result<Volume> {
        let mut random = [0; 8];
        SystemRandom::new().fill(&mut random).map_err(|_| io::Error::other("the system gave no random bytes"))?;
        runs.push(Run { instance, after: at, sequence: NONE_YET });
        let mut volume = Volume { number: u64::from_be_bytes(random), runs, alone: true };
        volume.forget();
        Ok(volume)
    }

    /// Reads the file in a folder, or in the restored store that waits there for its place. `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> io::Result<Option<Volume>> {
        match fs::read_to_string(file(path)) {
            Ok(text) => Ok(parse(&text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If that fails.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let file = file(path);
        let folder = file.parent().unwrap_or(path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let unnamed = folder.join(names::NEW_VOLUME);
        write_private(&unnamed, self.text().as_bytes())?;
        fs::rename(&unnamed, &file)?;
        sync_directory(folder)
    }

    /// Adds a run, before its first commit, and writes the file. The run takes the place of one that has shipped nothing.
    ///
    /// # Errors
    /// If another process uses the folder, the journal cannot be read, or the file cannot be written.
    pub fn begin_run(path: &Path, instance: u64) -> Result<Volume, OpenError> {
        directory::make(path)?;
        let _lock = directory::lock(path)?;
        Volume::add_run(path, instance).map_err(|cause| OpenError::failed(path, "record a run", cause))
    }

    fn add_run(path: &Path, instance: u64) -> io::Result<Volume> {
        let volume = match Volume::read(path)? {
            Some(mut volume) => {
                match volume.runs.last_mut() {
                    Some(last) if volume.alone => last.instance = instance,
                    _ => volume.runs.push(Run { instance, after: journal::last(path)?, sequence: NONE_YET }),
                }
                volume.alone = true;
                volume.forget();
                volume
            }
            None => {
                let mut volume = Volume::new(Vec::new(), journal::last(path)?, instance)?;
                // Anything in the store may be in no stream.
                volume.begin_at(0);
                volume
            }
        };
        volume.write(path)?;
        Ok(volume)
    }

    /// Notes the next number that the caller gives, if the last run has given none yet.
    pub fn begin_at(&mut self, sequence: u64) {
        if let Some(last) = self.runs.last_mut().filter(|run| run.sequence == NONE_YET) {
            last.sequence = sequence;
        }
    }

    /// The lowest of the caller's numbers that a stream may lack which has no run in common with this copy. `same` is true
    /// if both are of one store.
    #[must_use]
    pub fn unrelated_from(&self, same: bool) -> u64 {
        match self.runs.last() {
            // The stream has forgotten the runs of this copy, which are old: only a last one that shipped nothing is missing.
            Some(last) if same && self.alone => last.sequence,
            Some(_) if same => u64::MAX,
            _ => 0,
        }
    }

    fn forget(&mut self) {
        let extra = self.runs.len().saturating_sub(RUNS_MAX);
        self.runs.drain(..extra);
    }

    fn text(&self) -> String {
        let mut text = format!("connect-relay volume {:016x}\n", self.number);
        for (nth, Run { instance, after, sequence }) in self.runs.iter().enumerate() {
            let alone = if self.alone && nth + 1 == self.runs.len() { " alone" } else { "" };
            let CommitPos { epoch, number } = after;
            let _ = writeln!(text, "run {instance:016x} after {epoch}.{number} sequence {sequence}{alone}");
        }
        text
    }
}

/// Returns true if the folder has an identity as a copy of a replicated store.
#[must_use]
pub fn is_replicated(path: &Path) -> bool {
    file(path).exists()
}

/// The path of the file: beside the rows of the store.
fn file(path: &Path) -> PathBuf {
    let restored = path.join(names::COMPACTED).join(names::VOLUME);
    if compaction::is_restored(path) && restored.exists() { restored } else { path.join(names::VOLUME) }
}

/// Parses the file. `None` if it is not as a relay wrote it: the copy gets another identity then.
fn parse(text: &str) -> Option<Volume> {
    let mut lines = text.lines();
    let number = u64::from_str_radix(lines.next()?.strip_prefix("connect-relay volume ")?, 16).ok()?;
    let mut volume = Volume { number, ..Volume::default() };
    for line in lines {
        let (run, alone) = line.strip_suffix(" alone").map_or((line, false), |run| (run, true));
        let mut words = run.strip_prefix("run ")?.split(' ');
        let instance = u64::from_str_radix(words.next()?, 16).ok()?;
        let mut field = |name: &str| words.next().filter(|word| *word == name).and_then(|_| words.next());
        let (epoch, number) = field("after")?.split_once('.')?;
        let after = CommitPos { epoch: epoch.parse().ok()?, number: number.parse().ok()? };
        let sequence = field("sequence")?.parse().ok()?;
        volume.runs.push(Run { instance, after, sequence });
        volume.alone = alone;
    }
    Some(volume)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::Key;
    use crate::storage::testing::open;

    proptest! {
        #[test]
        fn file_is_read_back(
            number: u64,
            runs in prop::collection::vec(any::<(u64, u64, u64, u64)>(), 0..5),
            alone: bool,
        ) {
            let runs: Vec<Run> = runs
                .into_iter()
                .map(|(instance, epoch, number, sequence)| Run { instance, after: CommitPos { epoch, number }, sequence })
                .collect();
            let volume = Volume { number, alone: alone && !runs.is_empty(), runs };
            let folder = tempfile::tempdir().unwrap();
            volume.write(folder.path()).unwrap();
            prop_assert_eq!(Volume::read(folder.path()).unwrap(), Some(volume));
        }
    }

    #[test]
    fn each_run_begins_after_the_last_commit_and_replaces_one_that_shipped_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(Volume::read(path).unwrap(), None);
        let commit = || {
            let mut store = open(path).store;
            store.put(Key::new(b'a'), vec![1]);
            let mut at = CommitPos::default();
            store.commit_and_copy(|_, position| at = position).unwrap();
            at
        };
        let mut first = Volume::begin_run(path, 1).unwrap();
        assert_eq!((first.runs.len(), first.runs[0].after, first.alone), (1, CommitPos::default(), true));
        first.begin_at(1);
        let last = commit();
        assert_eq!(journal::last(path).unwrap(), last);
        let replaced = Volume::begin_run(path, 2).unwrap();
        assert_eq!(replaced.number, first.number);
        let instances = |volume: &Volume| volume.runs.iter().map(|run| run.instance).collect::<Vec<_>>();
        assert_eq!((instances(&replaced), replaced.runs[0].after), (vec![2], CommitPos::default()));
        Volume { alone: false, ..replaced }.write(path).unwrap();
        let next = Volume::begin_run(path, 3).unwrap();
        assert_eq!((instances(&next), next.runs[1].after, next.alone), (vec![2, 3], last, true));
        assert!(commit() > last);
        // A relay that runs on the folder keeps its run.
        let running = open(path);
        assert!(matches!(Volume::begin_run(path, 4), Err(OpenError::Locked { .. })));
        assert_eq!(Volume::read(path).unwrap(), Some(next));
        drop(running);
    }

    #[test]
    fn file_that_is_not_readable_and_many_runs_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(names::VOLUME), "connect-relay volume 12\nrun x").unwrap();
        assert_eq!(Volume::read(folder.path()).unwrap(), None);
        let runs = vec![Run { instance: 1, after: CommitPos::default(), sequence: 1 }; 2 * RUNS_MAX];
        let volume = Volume::new(runs, CommitPos::default(), 7).unwrap();
        assert_eq!((volume.runs.len(), volume.runs.last().unwrap().instance), (RUNS_MAX, 7));
    }
}
