//! `connect-relay status` reports if the relay is healthy, and if not, why; then the figures.
//!
//! It shows the reply of the operators' API and decides nothing itself: a relay is healthy if it is ready and reports
//! no problem. With `--json` it prints each reply unchanged, one line each, for scripts.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::client::{self, ControlSocket};
use super::exit_code::UNDELIVERED;
use super::out;
use crate::control::Status;
use crate::status::text::{figures, headline};

/// Longer than the relay's own time-out for its store; otherwise the relay answers from memory.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time between two requests.
const EVERY: Duration = Duration::from_secs(1);
/// The number of replies over which shares are shown: a minute.
const SAMPLES: usize = 60;

/// Show if the relay is healthy, and if not, why; then the queue and the rate.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    control: ControlSocket,
    /// Print the relay's own JSON.
    #[arg(long)]
    json: bool,
    /// Repeat every second, until interrupted.
    #[arg(long)]
    watch: bool,
    /// Exit with 0 if nothing is queued, with 75 if something is.
    #[arg(long, conflicts_with = "watch")]
    exit_code: bool,
}

/// Asks once, or repeatedly.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let socket = args.control.path();
    let fetch = || client::get::<Status>(&socket, "/status", TIMEOUT);
    let mut history = History::default();
    if !args.watch {
        let (json, status) = fetch().await?;
        let text = if args.json { json } else { render(&status, &history) };
        out::print(&text)?;
        let queued = args.exit_code && status.queued > 0;
        return Ok(if queued { ExitCode::from(UNDELIVERED) } else { ExitCode::SUCCESS });
    }
    let mut out = out::stdout();
    let clear = if std::io::stdout().is_terminal() && !args.json { "\x1b[H\x1b[2J" } else { "" };
    loop {
        // Watching continues while a relay restarts.
        let text = match fetch().await {
            Ok((json, _)) if args.json => json,
            Ok((_, status)) => {
                let text = render(&status, &history);
                history.push(status);
                text
            }
            Err(error) if args.json => {
                writeln!(std::io::stderr(), "{error:#}")?;
                String::new()
            }
            Err(error) => format!("{error:#}\n"),
        };
        write!(out, "{clear}{text}").and_then(|()| out.flush()).context("write to standard output")?;
        if out.has_no_reader() {
            // `status --watch | head`
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The replies of the last minute; without any, the figures since the relay's start count.
#[derive(Debug, Default)]
struct History(VecDeque<Status>);

impl History {
    fn push(&mut self, status: Status) {
        if self.0.back().is_some_and(|last| last.uptime_seconds > status.uptime_seconds) {
            // Another process counts from zero.
            self.0.clear();
        }
        if self.0.len() > SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(status);
    }

    /// The reply that the shares are counted from; `None` for the start of the relay.
    fn then(&self, now: &Status) -> Option<&Status> {
        self.0.front().filter(|then| then.uptime_seconds < now.uptime_seconds)
    }
}

fn render(status: &Status, history: &History) -> String {
    let mut text = headline(status);
    for problem in &status.problems {
        let _ = write!(text, "\n  - {problem}");
    }
    text.push('\n');
    for (name, value) in figures(status, history.then(status)) {
        let _ = writeln!(text, "{name:<14}{value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::Full;

    use super::*;
    use crate::serve::{ConnectionCount, Limits, Listener, Reply, bind_unix, serve};
    use crate::time::Clock;

    fn status() -> Status {
        Status {
            version: "1.2.3".into(),
            state: "ready".into(),
            queued_max: 10000,
            queue_bytes: 5 << 20,
            queue_bytes_max: 128 << 20,
            disk_free: 3 << 30,
            send_rate: 9.96,
            quota_rate: 10.0,
            gate: "open".into(),
            uptime_seconds: 600.0,
            attempts: 3000,
            throttled: 12,
            quota_wait_seconds: 150.0,
            region: "eu-west-2".into(),
            ..Status::default()
        }
    }

    #[test]
    fn healthy_relay_is_shown_in_one_line_with_its_figures() {
        let expected = "\
healthy: nothing is queued
queued        0 of 10000
oldest        0s
due for       0s
in flight     0
conversations 0 (0 held, 0 answer lost)
dead letters  0
rate          10.0/s, quota 10.0/s, gate open
throttled     0.4% of 3000 attempts in 10m
quota wait    25.0% of 10m
on disk       5.0 MiB of 128.0 MiB, 3.0 GiB free
relay         1.2.3 eu-west-2
";
        assert_eq!(render(&status(), &History::default()), expected);
    }

    #[test]
    fn first_lines_show_the_problems() {
        let mut status = status();
        status.queued = 300;
        status.oldest_seconds = 61.9;
        status.dead_letters = 1;
        assert_eq!(headline(&status), "healthy: 300 queued, the oldest for 1m 1s, empty in about 31s; 1 dead letter");
        status.problems = vec!["It hangs.".into(), "It is full.".into()];
        assert!(
            render(&status, &History::default()).starts_with("not healthy:\n  - It hangs.\n  - It is full.\nqueued ")
        );
        status.state = "draining".into();
        assert_eq!(headline(&status), "draining, and not healthy:");
        status.problems.clear();
        assert!(headline(&status).starts_with("draining: 300 queued"));
    }

    #[test]
    fn another_version_is_shown_as_far_as_it_goes() {
        let status: Status = serde_json::from_str(r#"{"state": "ready", "queued": 1, "novel": {}}"#).unwrap();
        assert_eq!(headline(&status), "healthy: 1 queued, the oldest for 0s");
    }

    #[tokio::test]
    async fn exit_code_shows_if_messages_are_queued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = bind_unix(&path, 0o600).unwrap();
        let limits =
            Limits { connections_max: 4, idle_timeout: TIMEOUT, request_timeout: TIMEOUT, head_bytes_max: 8192 };
        let looks = Arc::new(AtomicUsize::new(0));
        let service = move |_, _| {
            let queued = looks.fetch_add(1, Ordering::Relaxed);
            async move { Reply::new(Full::from(format!("{{\"state\": \"ready\", \"queued\": {queued}}}"))) }
        };
        let never = std::future::pending();
        let serving =
            serve(Listener::Unix(listener), limits, Clock::system(), ConnectionCount::default(), service, never);
        let asking = async {
            for (exit_code, expected) in [(true, 0), (true, UNDELIVERED), (false, 0)] {
                let control = ControlSocket { socket: Some(path.clone()), dir: None };
                let args = Args { control, json: true, watch: false, exit_code };
                assert_eq!(run(args).await.unwrap(), ExitCode::from(expected));
            }
        };
        tokio::select! {
            () = serving => panic!("it was not asked to stop"),
            () = asking => {}
        }
    }

    impl History {
        fn shares(&self, now: &Status) -> [(&'static str, String); 2] {
            crate::status::text::shares(now, self.then(now))
        }
    }

    #[test]
    fn shares_are_of_the_last_minute_of_looks_and_of_one_process() {
        let look = |uptime_seconds, attempts, throttled, quota_wait_seconds| Status {
            uptime_seconds,
            attempts,
            throttled,
            quota_wait_seconds,
            ..Status::default()
        };
        let mut history = History::default();
        assert_eq!(history.shares(&look(0.0, 0, 0, 0.0))[0].1, "0.0% of 0 attempts in 0s");
        for second in 0..100 {
            history.push(look(f64::from(second), 10, 9, 0.0));
        }
        let [throttled, waited] = history.shares(&look(100.0, 210, 13, 30.5)).map(|(_, share)| share);
        assert_eq!((throttled.as_str(), waited.as_str()), ("2.0% of 200 attempts in 1m 1s", "50.0% of 1m 1s"));
        history.push(look(1.0, 4, 1, 0.0));
        assert_eq!(history.shares(&look(2.0, 5, 2, 0.5))[0].1, "100.0% of 1 attempts in 1s");
        assert_eq!(history.0.len(), 1);
    }
}
