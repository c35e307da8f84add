//! `connect-relay fleet` looks after the copies of queues in the fleet: lists them, exports one whose relay is gone, and
//! removes it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde::Serialize;

use super::{doctor, out, question};
use crate::config::{Config, Sources};
use crate::daemon::Failure;
use crate::fleet::operate::{Operator, Overview};
use crate::fleet::stream::StreamError;
use crate::queue::recovery::Doctor;

/// List the copies of queues in the fleet, and rescue those whose relay is gone.
///
/// A copy with queued messages whose relay gives no sign of life is an orphan: nothing sends its messages. Start a relay
/// with its fleet.identity, or export its messages to another relay and remove it:
///
/// connect-relay fleet export bots-3 | connect-relay send --batch - && connect-relay fleet remove bots-3
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    act: Act,
    /// The configuration file with the table fleet [default: /etc/connect-relay/relay.toml if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// List the copies: identity, last sign of life, queued messages, bytes, and which are orphans. Takes 4 seconds.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the queued messages of a copy as NDJSON to stdout, for `connect-relay send --batch`, with the same
    /// ClientTokens. The output has contents and tokens: protect it. Needs queue.key_file; fails while its relay lives.
    Export {
        /// The fleet.identity of the relay that is gone.
        identity: String,
    },
    /// Remove a copy. Fails while its relay lives.
    Remove {
        /// The fleet.identity of the relay that is gone.
        identity: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// A stream in JSON.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line<'a> {
    identity: &'a str,
    lives_on: Option<&'a str>,
    last_record: &'a str,
    queued: Option<u64>,
    bytes: u64,
    orphan: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// If no server answers, there is no such copy, its relay lives, or no key opens it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load_for_fleet(&Sources::of_process(args.config, None))?;
    let Some(options) = config.fleet() else {
        return Err(Failure::Config("fleet.servers is empty: there is no fleet".into()).into());
    };
    let keys = config.queue().keys;
    if matches!(args.act, Act::Export { .. }) && keys.is_empty() {
        return Err(Failure::Config("queue.key_file is not set: the copies are sealed by its keys".into()).into());
    }
    let mut operator = Operator::connect(options).await.map_err(failure)?;
    match args.act {
        Act::List { json } => {
            let all = operator.list().await.map_err(failure)?;
            out::print(&if json { as_json(&all)? } else { as_table(&all) })
        }
        Act::Export { identity } => {
            let folder = tempfile::tempdir().context("make a temporary folder")?;
            let into = folder.path().join("queue");
            if !operator.restore(&identity, keys.clone(), &into).await.map_err(failure)? {
                bail!("the stream of {identity} has no complete copy of its queue");
            }
            crate::storage::finish_restore(&into).context("restore the copy")?;
            let opened = Doctor::open(&into, keys, |_, _| ()).map_err(Failure::from)?;
            doctor::export(&opened, false)
        }
        Act::Remove { identity, yes } => {
            let queued = operator.list().await.map_err(failure)?;
            let queued = queued.iter().find(|one| one.identity == identity).and_then(|one| one.queued);
            confirm(&identity, queued, yes)?;
            operator.remove(&identity).await.map_err(failure)?;
            writeln!(std::io::stderr(), "connect-relay: the copy of {identity} is removed")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn failure(error: StreamError) -> Failure {
    match error {
        StreamError::Unsupported(text) => Failure::Config(text),
        StreamError::Unreadable(text) | StreamError::Failed(text) => Failure::Failed(text),
    }
}

/// Asks if a person can answer; without one it needs `--yes`.
fn confirm(identity: &str, queued: Option<u64>, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !question::can_be_answered() {
        bail!("nothing was removed: add --yes to remove the copy of {identity}");
    }
    let queued = queued.map_or_else(|| "an unknown number of".to_owned(), |queued| queued.to_string());
    if !question::ask(&format!("remove the copy of {identity} with {queued} queued messages?"))? {
        bail!("nothing was removed");
    }
    Ok(())
}

fn as_json(all: &[Overview]) -> anyhow::Result<String> {
    let lines = all.iter().map(|one| Line {
        identity: &one.identity,
        lives_on: one.lives_on.as_deref(),
        last_record: &one.last,
        queued: one.queued,
        bytes: one.bytes,
        orphan: one.is_orphan(),
    });
    Ok(serde_json::to_string(&lines.collect::<Vec<_>>())? + "\n")
}

fn as_table(all: &[Overview]) -> String {
    let mut text =
        format!("{:<30} {:<24} {:<24} {:>8} {:>12}\n", "IDENTITY", "LIVES ON", "LAST RECORD", "QUEUED", "BYTES");
    for one in all {
        let lives_on = one.lives_on.as_deref().unwrap_or(if one.is_orphan() { "ORPHAN" } else { "-" });
        let last = one.last.get(..19).unwrap_or(&one.last);
        let queued = one.queued.map_or_else(|| "?".to_owned(), |queued| queued.to_string());
        text += &format!("{:<30} {lives_on:<24} {last:<24} {queued:>8} {:>12}\n", one.identity, one.bytes);
    }
    text
}
