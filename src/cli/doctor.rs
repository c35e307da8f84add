//! `connect-relay doctor` works on a store offline: it checks the store, exports its contents, and builds a new store
//! from the valid records.
//!
//! Reports and exported lines go to stdout, everything else to stderr, where a terminal shows a progress bar.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use zeroize::Zeroizing;

use super::out;
use crate::daemon::Failure;
use crate::queue::recovery::{Doctor, Rebuilt, named};
use crate::queue::{OpenError, SealingKey};
use crate::time::Clock;

/// The paths of the queue below the folder of `run --dir`, and below /var/lib/connect-relay.
const BELOW: [&str; 3] = ["private/queue", "queue", "connect-relay/queue"];

/// Examine the queue of a stopped relay, or a damaged one that a relay has set aside.
///
/// The folder is not changed. A running relay locks it: stop the relay first, or copy the folder.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Verify every record and the format stamp. Exits with 0 if the store is sound, with 1 if it is damaged, with 78 if
    /// a newer relay wrote it, or no key in the key file opens it.
    Check(Store),
    /// Write the queued messages as NDJSON to stdout, for `connect-relay send --batch`. The output has contents and
    /// tokens: protect it. Without --key-file, the output for a sealed store is a listing without either.
    Export {
        #[command(flatten)]
        store: Store,
        /// Export dead letters, too.
        #[arg(long)]
        dead: bool,
    },
    /// Build a new store from the valid records; the damaged one is not changed.
    Repair {
        #[command(flatten)]
        store: Store,
        /// The folder of the new store: missing or empty.
        #[arg(long, value_name = "NEW")]
        into: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Store {
    /// The queue's folder (queue.path; DIR/private/queue if the relay was started with --dir).
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The key file of a sealed store (queue.key_file).
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Runs the subcommand.
///
/// # Errors
/// If there is no store, a relay uses it, a newer relay wrote it, or a file cannot be read or written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.act {
        Act::Check(store) => {
            let doctor = store.open()?;
            let busy = busy("verifying");
            let report = doctor.check().context("verify the store")?;
            busy.finish_and_clear();
            out::print(&report.to_string())?;
            Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Act::Export { store, dead } => export(&store.open()?, dead),
        Act::Repair { store, into } => {
            let doctor = store.open()?;
            let busy = busy("writing the new store");
            let rebuilt = doctor.repair(&into, &Clock::system()).map_err(|error| store.reword(error))?;
            busy.finish_and_clear();
            let Rebuilt { queued, dead, outcomes, lost } = rebuilt;
            eprintln!(
                "connect-relay: {}: {queued} messages queued, {dead} dead letters, {outcomes} outcomes; lost: {lost}",
                into.display()
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes the messages to stdout, and everything else to stderr.
pub(super) fn export(doctor: &Doctor, dead: bool) -> anyhow::Result<ExitCode> {
    if doctor.is_sealed() {
        eprintln!("connect-relay: the store is sealed: this is a listing; with --key-file it can be sent again");
    } else {
        eprintln!("connect-relay: these lines have contents and ConnectionTokens: protect them");
    }
    let mut out = BufWriter::new(out::stdout());
    let exported = doctor.export(dead, &mut out)?;
    out.flush()?;
    eprintln!("connect-relay: {} messages", exported.written);
    if exported.others > 0 {
        eprintln!("connect-relay: not exported, because no batch has them: {} events and disconnects", exported.others);
    }
    if !exported.unreadable.is_empty() {
        eprintln!("connect-relay: cannot be read: {}", named(&exported.unreadable));
    }
    Ok(if exported.unreadable.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Store {
    fn open(&self) -> anyhow::Result<Doctor> {
        let keys = self.key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
        // indicatif hides it if stderr is no terminal.
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template("reading {bar:40} {percent}% {eta}").context("a progress bar")?);
        let opened = Doctor::open(&self.path, keys, |read, all| {
            bar.set_length(all);
            bar.set_position(read);
        });
        bar.finish_and_clear();
        Ok(opened.map_err(|error| self.reword(error))?)
    }

    /// The store in a folder below, if there is none at the path itself.
    fn store_below(&self) -> Option<PathBuf> {
        let below = BELOW.iter().map(|name| self.path.join(name)).find(|folder| is_store(folder));
        below.filter(|_| !is_store(&self.path))
    }

    /// Rewords an error for this command, which does not read queue.key_file.
    fn reword(&self, error: OpenError) -> Failure {
        let OpenError::Sealed { path, .. } = error else {
            return match self.store_below() {
                Some(found) => {
                    Failure::Failed(format!("{} is not a queue; the queue is {}", self.path.display(), found.display()))
                }
                None => error.into(),
            };
        };
        let text = match &self.key_file {
            Some(keys) => format!(", and no key in {} opens it", keys.display()),
            None => "; name its key file with --key-file".into(),
        };
        Failure::Config(format!("{}: the store is sealed{text}", path.display()))
    }
}

/// True if a store was made in this folder.
fn is_store(folder: &Path) -> bool {
    ["db", "format"].iter().any(|name| folder.join(name).exists())
}

/// Shows on a terminal that work of unknown length goes on.
fn busy(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn keys(path: &Path) -> anyhow::Result<Vec<SealingKey>> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).with_context(|| format!("read {}", path.display()))?;
    SealingKey::parse_file(&text).map_err(|fault| anyhow::anyhow!("{}: {fault}", path.display()))
}
