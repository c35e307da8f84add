//! `connect-relay pause`, `resume`, `drain`, `reload` and `log-level`: one request each to the operators' API, and one
//! line with the result.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::StatusCode;
use serde_json::Value;

use super::client::{self, ControlSocket, command};
use super::exit_code::{CONFIG, UNDELIVERED};
use super::out;
use crate::control::{self, DrainRequest, Left, LogLevelRequest, PauseRequest, Reloaded, Status};

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
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
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

/// Change the log's level while the relay runs.
///
/// Without --for it stays until the next reload, log-level or restart. With --for, a reload does not end it.
#[derive(Debug, clap::Args)]
pub struct LogLevel {
    /// The least important level that is logged.
    #[arg(value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    level: String,
    /// The time after which the configured level (log.level) is in force again, such as 10m.
    #[arg(long = "for", value_name = "DURATION", value_parser = positive_duration)]
    lasts: Option<Duration>,
    #[command(flatten)]
    control: ControlSocket,
}

/// A duration that is not zero.
fn positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than 0".into()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// Pauses sending.
pub async fn pause(args: Pause) -> anyhow::Result<ExitCode> {
    let request = PauseRequest { reason: args.reason };
    let status: Status = command(&args.control.path(), "/pause", &request, TIMEOUT).await?;
    print_line(&format!("sending is paused: {} queued, {} in flight", status.queued, status.in_flight))
}

/// Resumes sending.
pub async fn resume(control: ControlSocket) -> anyhow::Result<ExitCode> {
    let status: Status = command(&control.path(), "/resume", &(), TIMEOUT).await?;
    print_line(&format!("sending resumed: {} queued, at {:.1} a second", status.queued, status.send_rate))
}

/// Drains the relay, and waits until it exits.
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

/// Reloads the configuration.
pub async fn reload(control: ControlSocket) -> anyhow::Result<ExitCode> {
    let socket = control.path();
    let reply = client::post(&socket, "/reload", &(), TIMEOUT).await?;
    if reply.status() == StatusCode::BAD_REQUEST {
        // The request has no body: only the configuration can be bad.
        eprintln!("connect-relay: {}", client::error_text(reply.body()));
        return Ok(ExitCode::from(CONFIG));
    }
    let Reloaded { changed, needs_restart } = client::parse(&socket, &client::success_body(&socket, reply)?)?;
    let mut text = match changed.as_slice() {
        [] => "reloaded: no key changed that a reload applies\n".to_owned(),
        keys => format!("reloaded: {} changed\n", keys.join(", ")),
    };
    if !needs_restart.is_empty() {
        let keys = needs_restart.join(", ");
        text +=
            &format!("restart the relay for: {keys} (they, or the files that they name, changed since the start)\n");
    }
    out::print(&text)
}

/// Changes the log's level.
pub async fn log_level(args: LogLevel) -> anyhow::Result<ExitCode> {
    let lasts = args.lasts.map_or(Value::Null, |lasts| humantime::format_duration(lasts).to_string().into());
    let request = LogLevelRequest { level: args.level.into(), lasts };
    let changed: control::LogLevel = command(&args.control.path(), "/log-level", &request, TIMEOUT).await?;
    let control::LogLevel { level, configured, until } = changed;
    print_line(&match until {
        Some(until) => format!("the log's level is {level} until {until}, then {configured} (log.level)"),
        None => format!("the log's level is {level}; log.level is {configured}"),
    })
}

fn print_line(line: &str) -> anyhow::Result<ExitCode> {
    out::print(&format!("{line}\n"))
}
