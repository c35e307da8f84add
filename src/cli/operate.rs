//! `connect-relay pause`, `resume` and `drain`: one request each to the operators' API, and one line with the result.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::UNDELIVERED;
use super::client::{ControlSocket, command};
use super::out;
use crate::control::{DrainWish, Left, PauseWish, Status};

/// The relay answers a pause once it is on disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// The extra time beyond the grace: for the last commit and the last replies.
const LEAVING: Duration = Duration::from_secs(10);
/// A time longer than any grace.
const EVER: Duration = Duration::from_secs(8 * 24 * 3600);

/// Send nothing more to Connect until it is resumed; messages are still accepted.
///
/// Also after a restart. What is queued dies at the end of its lifetime as ever.
#[derive(Debug, clap::Args)]
pub struct Pause {
    #[command(flatten)]
    control: ControlSocket,
    /// Why: shown by status, and logged.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Send again, and try the tokens again that Connect refused.
#[derive(Debug, clap::Args)]
pub struct Resume {
    #[command(flatten)]
    control: ControlSocket,
}

/// Let the relay deliver what is queued and leave, as SIGTERM does, and wait for it.
///
/// Exits with 0 when nothing is left, and with 75 when messages are: they stay on disk.
#[derive(Debug, clap::Args)]
pub struct Drain {
    #[command(flatten)]
    control: ControlSocket,
    /// How long it may take [default: the relay's shutdown.grace].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// # Errors
/// If the relay is not running, or refuses.
pub async fn pause(args: Pause) -> anyhow::Result<ExitCode> {
    let wish = PauseWish { reason: args.reason };
    let status: Status = command(&args.control.path(), "/pause", &wish, PATIENCE).await?;
    say(&format!("sending is paused: {} queued, {} in flight", status.queued, status.in_flight))
}

/// # Errors
/// If the relay is not running, or refuses.
pub async fn resume(args: Resume) -> anyhow::Result<ExitCode> {
    let status: Status = command(&args.control.path(), "/resume", &(), PATIENCE).await?;
    say(&format!("sending goes on: {} queued, at {:.1} a second", status.queued, status.send_rate))
}

/// # Errors
/// If the relay is not running, or exits without an answer.
pub async fn drain(args: Drain) -> anyhow::Result<ExitCode> {
    // Whole seconds, rounded up.
    let timeout = args.timeout.map(|timeout| timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0));
    let within = timeout.map_or(EVER, |seconds| Duration::from_secs(seconds).saturating_add(LEAVING));
    let wish = DrainWish { timeout, wait: true };
    let left = command::<Left>(&args.control.path(), "/drain", &wish, within).await.context("drain")?;
    match left.queued {
        Some(0) => say("drained: nothing is queued"),
        Some(queued) => {
            say(&format!("left: {queued} queued, on disk, for the next start"))?;
            Ok(ExitCode::from(UNDELIVERED))
        }
        None => bail!("the relay left, and its store did not say how much is queued; it is on disk"),
    }
}

fn say(line: &str) -> anyhow::Result<ExitCode> {
    out::print(&format!("{line}\n"))?;
    Ok(ExitCode::SUCCESS)
}
