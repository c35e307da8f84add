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

/// Look into the queue of a relay that is not running, or into a damaged one that a relay has set aside.
///
/// Nothing is changed in the folder. A running relay holds it: stop that first, or copy the folder.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Verify every record and the format stamp. Exits with 0 where the store is sound, with 1 where it is damaged, with
    /// 78 where a newer relay wrote it, or no key in the key file opens it.
    Check(Store),
    /// Write what is queued as NDJSON on stdout, for `connect-relay send --batch`. It holds contents and tokens: keep it
    /// from others. Of a sealed store without --key-file it is a listing without either.
    Export {
        #[command(flatten)]
        store: Store,
        /// Dead letters too.
        #[arg(long)]
        dead: bool,
    },
    /// Make a new store of what verifies; the damaged one stays as it is.
    Repair {
        #[command(flatten)]
        store: Store,
        /// The folder of the new store: not there yet, or empty.
        #[arg(long, value_name = "NEW")]
        into: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Store {
    /// The queue's folder (queue.path; DIR/private/queue where the relay was started with --dir).
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
            let rebuilt = doctor.repair(&into, &Clock::system()).map_err(|error| store.explained(error))?;
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

fn export(doctor: &Doctor, dead: bool) -> anyhow::Result<ExitCode> {
    if doctor.is_sealed() {
        eprintln!("connect-relay: the store is sealed: this is a listing; --key-file shows what can be sent again");
    } else {
        eprintln!("connect-relay: these lines hold contents and ConnectionTokens: keep them from others");
    }
    let mut out = BufWriter::new(out::stdout());
    let exported = doctor.export(dead, &mut out)?;
    out.flush()?;
    eprintln!("connect-relay: {} messages", exported.written);
    if exported.others > 0 {
        eprintln!("connect-relay: left out, because a batch takes none: {} events and disconnects", exported.others);
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
        Ok(opened.map_err(|error| self.explained(error))?)
    }

    /// Rewords an error for this command, which does not read queue.key_file.
    fn explained(&self, error: OpenError) -> Failure {
        match (error, &self.key_file) {
            (OpenError::Sealed { path, .. }, None) => {
                Failure::Config(format!("{}: it is sealed, --key-file names what opens it", path.display()))
            }
            (OpenError::Sealed { path, .. }, Some(keys)) => {
                Failure::Config(format!("{}: it is sealed, and no key in {} opens it", path.display(), keys.display()))
            }
            (error, _) => error.into(),
        }
    }
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
