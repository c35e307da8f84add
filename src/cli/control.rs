//! `connect-relay pause`, `resume` and `drain`: one request each to the operators' API, and one line with the result.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::client::{ControlSocket, command};
use super::exit_code::UNDELIVERED;
use super::out;
use crate::control::{DrainRequest, Left, PauseRequest, Status};

/// The relay answers a pause once it is on disk.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The extra time beyond the grace: for the last commit and the last replies.
const EXIT_MARGIN: Duration = Duration::from_secs(10);
/// A time longer than any grace.
const NO_TIMEOUT: Duration = Duration::from_secs(8 * 24 * 3600);

/// Stop sending to Connect until `connect-relay resume`; the relay still accepts messages.
///
/// The pause survives restarts. Queued messages still expire at the end of their lifetime.
#[derive(Debug, clap::Args)]
pub struct Pause {
    #[command(flatten)]
    control: ControlSocket,
    /// The reason; status shows it, and the relay logs it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Resume sending, and try refused tokens again.
#[derive(Debug, clap::Args)]
pub struct Resume {
    #[command(flatten)]
    control: ControlSocket,
}

/// Make the relay deliver the queued messages and exit, as SIGTERM does, and wait for it.
///
/// Exits with 0 if no message remains, with 75 if messages remain on disk.
#[derive(Debug, clap::Args)]
pub struct Drain {
    #[command(flatten)]
    control: ControlSocket,
    /// The longest time for it [default: the relay's shutdown.grace].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// # Errors
/// If the relay is not running, or refuses.
pub async fn pause(args: Pause) -> anyhow::Result<ExitCode> {
    let request = PauseRequest { reason: args.reason };
    let status: Status = command(&args.control.path(), "/pause", &request, TIMEOUT).await?;
    print_line(&format!("sending is paused: {} queued, {} in flight", status.queued, status.in_flight))
}

/// # Errors
/// If the relay is not running, or refuses.
pub async fn resume(args: Resume) -> anyhow::Result<ExitCode> {
    let status: Status = command(&args.control.path(), "/resume", &(), TIMEOUT).await?;
    print_line(&format!("sending resumed: {} queued, at {:.1} a second", status.queued, status.send_rate))
}

/// # Errors
/// If the relay is not running, or exits without an answer.
pub async fn drain(args: Drain) -> anyhow::Result<ExitCode> {
    // Whole seconds, rounded up.
    let timeout = args.timeout.map(|timeout| timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0));
    let within = timeout.map_or(NO_TIMEOUT, |seconds| Duration::from_secs(seconds).saturating_add(EXIT_MARGIN));
    let request = DrainRequest { timeout, wait: true };
    let left = command::<Left>(&args.control.path(), "/drain", &request, within).await.context("drain")?;
    match left.queued {
        Some(0) => print_line("drained: nothing is queued"),
        Some(queued) => {
            print_line(&format!("stopped with {queued} queued; they stay on disk and are sent at the next start"))?;
            Ok(ExitCode::from(UNDELIVERED))
        }
        None => bail!("the relay exited, and its store did not report the number of queued messages; they are on disk"),
    }
}

fn print_line(line: &str) -> anyhow::Result<ExitCode> {
    out::print(&format!("{line}\n"))?;
    Ok(ExitCode::SUCCESS)
}
