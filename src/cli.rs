//! The command line: one file per subcommand, and the exit codes.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | done, or drained |
//! | 1 | failed |
//! | 2 | bad usage |
//! | 75 | stopped with messages still queued: they are on disk |
//! | 78 | bad configuration, before the store or a socket is touched; or a store of a newer format |
//!
//! One thread runs all asynchronous code: every pod pays for its sidecar. The queue's writer and the log have a thread
//! each.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::Faults;
use crate::malloc;

mod availability;
mod check;
mod client;
mod control;
mod demo;
mod doctor;
mod exit_code;
#[cfg(feature = "fleet")]
mod fleet;
mod inherited;
mod live_settings;
mod log_writer;
mod logging;
mod messages;
mod out;
mod question;
mod reference;
mod run;
mod send;
mod signals;
mod simulate;
mod socket_holders;
mod status;

use exit_code::code;
use signals::Signals;

/// Accepts Amazon Connect chat messages from bots, keeps them on disk, and delivers them in order, through throttling.
///
/// A bot beside it sends messages to its Unix socket as it would to the Participant Service, with an AWS SDK or without; a
/// loopback port serves clients that accept only a URL. What the relay acknowledges survives a crash, and is delivered in
/// its conversation's order, at the rate that Connect grants.
#[derive(Debug, Parser)]
#[command(name = "connect-relay", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Try it without AWS:           connect-relay demo
Run it:                       AWS_REGION=eu-west-2 connect-relay run
See every setting:            AWS_REGION=eu-west-2 connect-relay check

Exit codes: 0 done or drained; 1 failed; 2 bad usage; 75 stopped with messages still queued, on disk; 78 bad configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Send(send::Args),
    Status(status::Args),
    Pause(control::Pause),
    /// Resume sending, and try refused tokens again.
    Resume(client::ControlSocket),
    Drain(control::Drain),
    /// Make the relay read its configuration again, as SIGHUP does: its file, and the environment of its start.
    ///
    /// Prints the keys that changed and those that need a restart. Exits with 78 and a list of all faults if the
    /// configuration is not valid; the old one then stays in force.
    Reload(client::ControlSocket),
    LogLevel(control::LogLevel),
    Messages(messages::Args),
    Doctor(doctor::Args),
    #[cfg(feature = "fleet")]
    Fleet(fleet::Args),
    Simulate(simulate::Args),
    Demo(demo::Args),
    Completion(reference::Completion),
    /// Print the manual page, as roff.
    ///
    /// To read it: connect-relay man | man -l -
    Man,
}

impl Command {
    async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Run(args) => run::run(args).await,
            Command::Check(args) => check::run(args).await,
            Command::Send(args) => send::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Pause(args) => control::pause(args).await,
            Command::Resume(control) => control::resume(control).await,
            Command::Drain(args) => control::drain(args).await,
            Command::Reload(control) => control::reload(control).await,
            Command::LogLevel(args) => control::log_level(args).await,
            Command::Messages(args) => messages::run(args).await,
            Command::Doctor(args) => doctor::run(args),
            #[cfg(feature = "fleet")]
            Command::Fleet(args) => fleet::run(args).await,
            Command::Simulate(args) => {
                let mut signals = Signals::new()?;
                simulate::run(args, signals.stop()).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Demo(args) => {
                let mut signals = Signals::new()?;
                demo::run(args, signals.stop()).await
            }
            Command::Completion(args) => reference::completion(&args, Cli::command()),
            Command::Man => reference::manual(Cli::command()),
        }
    }
}

/// Parses the arguments and runs the subcommand.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Help goes to stdout with exit code 0, a usage error to stderr with 2.
            let shown = usage.print().and_then(|()| std::io::stdout().flush());
            let is_lost = shown.is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe);
            return match u8::try_from(usage.exit_code()).unwrap_or(2) {
                0 if is_lost => ExitCode::FAILURE,
                code => code.into(),
            };
        }
    };
    execute(cli.command).unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "connect-relay: {}", error_text(&error));
        code(&error).into()
    })
}

fn execute(command: Command) -> anyhow::Result<ExitCode> {
    malloc::return_early();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let ended = runtime.block_on(command.run());
    // A name look-up that hangs in the resolver does not delay the exit.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

fn error_text(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Faults>() {
        Some(Faults(faults)) => format!("bad configuration:\n  {}", faults.join("\n  ")),
        None => format!("{error:#}"),
    }
}
