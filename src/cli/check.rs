//! `connect-relay check`: validates a configuration and prints the effective one.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::out;
use crate::config::{Config, Sources};

mod online;

/// Check a configuration without starting anything, and print the effective one.
///
/// Prints every key with its effective value as TOML on stdout (as a file, that is the same configuration), and the
/// source of each setting on stderr. Exits with 78 and a list of all faults if the configuration is not valid.
///
/// With --online it also checks what a start needs, and changes nothing: folders, sockets and ports, the way to the
/// Participant Service, by one request without a token, which sends no message, and the servers of the fleet. Prints one line for each on stderr: ok,
/// or the fault and the next step. Exits with 1 if a check fails, with 78 if a start would exit with 78.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file [default: /etc/connect-relay/relay.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check what `run --dir DIR` would use: sockets and queue under this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Also check what a start needs: folders, ports, and the way to the Participant Service
    #[arg(long)]
    online: bool,
}

/// Checks the configuration.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let with_dir = args.dir.is_some();
    let config = Config::load(&Sources::of_process(args.config, args.dir))?;
    let mut notes: String = config.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    for (key, source) in config.set() {
        notes += &format!("{key} is set by {source}\n");
    }
    notes += &format!("messages go to {}\n", config.endpoint());
    if let Some(note) = config.note_on_limits() {
        notes += &format!("{note}\n");
    }
    // The notes are an extra: the exit code and the configuration do not depend on them.
    let _ = std::io::stderr().write_all(notes.as_bytes());
    out::print(&config.effective())?;
    if !args.online {
        return Ok(ExitCode::SUCCESS);
    }
    let findings = online::run(&config, with_dir).await;
    std::io::stderr().write_all(findings.text.as_bytes())?;
    Ok(findings.code.into())
}
