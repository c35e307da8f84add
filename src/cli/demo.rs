//! `connect-relay demo`: simulator, relay and bots in one process and a temporary folder.
//!
//! ```text
//! bots ──── Unix socket ────▶ relay ──── http on loopback ────▶ simulator ────▶ ledger
//!   └──────────── acknowledged messages ── audit ── arrived messages ───────────┘
//! ```
//!
//! The bots write faster than the simulator's quota allows, the relay is configured with a larger quota than the real
//! one, and the simulator sometimes fails and loses replies. At the end the ledger must contain every acknowledged
//! message once, in its conversation's order; anything else is exit code 1.

mod audit;
mod bots;
mod relay;
mod view;

use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::simulator::{Counts, Options, Simulator};
use crate::time::{Clock, Timestamp};
use audit::Audit;
use bots::{Plan, Record};
use relay::{Quota, Relay};
use view::{Sample, View, print_line};

/// Run bots, a relay and a simulated Amazon Connect for about half a minute, and audit the result.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Messages to send, all conversations together.
    #[arg(long, value_name = "N", default_value = "400", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    messages: u32,
    /// Conversations to spread them over.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=1000))]
    conversations: u32,
}

/// The quota of the simulated Connect.
const GRANTED: Quota = Quota { rate: 20.0, burst: 15 };
/// The quota in the relay's configuration: too large, so that it is throttled and has to find the rate by itself.
const CONFIGURED: Quota = Quota { rate: 80.0, burst: 60 };
const ERROR_RATE: f64 = 0.02;
const LOST_REPLY_RATE: f64 = 0.02;
/// The seed of all random generators.
const SEED: u64 = 7;
/// The time between two reads of the counts.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// The time-out for the relay's exit after everything is delivered.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same time-out, if the demo ends before that.
const EARLY_EXIT_TIMEOUT: Duration = Duration::from_secs(3);
/// The time without a delivery after which none is expected any more.
const STUCK_AFTER: Duration = Duration::from_secs(40);

/// Runs the demo, until its end or `stop`. The exit code is a success only if the audit found nothing.
pub async fn run(args: Args, stop: impl Future<Output = ()>) -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("connect-relay-demo-").tempdir().context("create a folder")?;
    let log = folder.path().join("relay.log");
    let logs = log_to(&log)?;
    print_line(&introduction(args));
    print_line(&format!("Folder   {}, kept only if the audit or a part fails.", folder.path().display()));
    if logs {
        print_line(&format!("Log      {}", log.display()));
    }
    print_line("");

    let (ending, report) = perform(args, folder.path(), pin!(stop)).await?;
    print_line(&report.table(ending));
    let passed = ending == End::Complete && report.audit.passed();
    if passed {
        // The audit is the purpose of the demo: if it cannot be written the demo has failed.
        super::out::print(
            "PASS  Every message that was acknowledged arrived: once, and in its conversation's order.\n",
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    print_line(&report.verdict(ending));
    let clean_so_far = Audit { lost: 0, ..report.audit }.passed();
    if ending != End::Stopped || !clean_so_far {
        print_line(&format!("      The folder is kept: {}", folder.keep().display()));
    }
    Ok(ExitCode::FAILURE)
}

/// The way in which it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything is done, and the relay has exited.
    Complete,
    /// It took too long.
    TimedOut,
    /// The user stopped it.
    Stopped,
    /// The relay, or a bot, failed.
    Failed,
}

/// The data of the table at the end.
#[derive(Debug)]
struct Report {
    audit: Audit,
    counts: Counts,
    repeats: u64,
    errors: Vec<String>,
    took: Duration,
}

async fn perform(
    args: Args,
    folder: &Path,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<(End, Report)> {
    let clock = Clock::system();
    let mut serving = JoinSet::new();
    let (simulator, endpoint) = simulate(&clock, &mut serving).await?;
    let relay = relay::start(folder, endpoint, CONFIGURED).await?;
    let record = Record::new(args.conversations as usize);
    let mut bots = start_bots(args, &relay, &record);
    let mut errors = Vec::new();

    let started = clock.now();
    let mut view = View::new(u64::from(args.messages), started);
    let mut moved = (started, 0);
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    let mut ending = loop {
        tokio::select! {
            () = &mut stop => break End::Stopped,
            Some(ended) = bots.join_next() => {
                if let Err(error) = ended.context("a bot ended").flatten() {
                    errors.push(format!("{error:#}"));
                    break End::Failed;
                }
            }
            _ = ticks.tick() => {
                let now = sample(clock.now(), args, &record, bots.len(), &simulator);
                view.show(now);
                if now.counts.accepted > moved.1 {
                    moved = (now.at, now.counts.accepted);
                }
                if bots.is_empty() && now.waiting() == 0 && now.counts.disconnects >= record.lock().disconnects {
                    break End::Complete;
                }
                if relay.has_ended() {
                    break End::Failed;
                }
                if now.at.since(moved.0) > STUCK_AFTER || now.at.since(started) > time_limit(args) {
                    break End::TimedOut;
                }
            }
        }
    };
    bots.shutdown().await;
    let grace = if ending == End::Complete { EXIT_TIMEOUT } else { EARLY_EXIT_TIMEOUT };
    if let Err(error) = relay.drain(grace).await {
        errors.push(format!("{error:#}"));
        ending = if ending == End::Complete { End::Failed } else { ending };
    }
    view.finish(sample(clock.now(), args, &record, 0, &simulator));

    let (notes, counts) = (record.lock(), simulator.counts());
    let audit = Audit::of(&notes.conversations, &simulator.accepted());
    let took = clock.now().since(started);
    Ok((ending, Report { audit, counts, repeats: notes.repeats, errors, took }))
}

/// Starts the simulated Connect, which serves as long as `serving` lives.
async fn simulate(clock: &Clock, serving: &mut JoinSet<()>) -> anyhow::Result<(Simulator, SocketAddr)> {
    let options = Options {
        rate: GRANTED.rate,
        burst: GRANTED.burst,
        latency: Duration::from_millis(30),
        jitter: Duration::from_millis(10),
        error_rate: ERROR_RATE,
        lost_reply_rate: LOST_REPLY_RATE,
        seed: SEED,
        keep_accepted: true,
        ..Options::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on 127.0.0.1")?;
    let endpoint = listener.local_addr().context("listen on 127.0.0.1")?;
    let simulator = Simulator::new(options, clock.clone());
    let served = simulator.clone();
    serving.spawn(async move { served.serve(listener, std::future::pending()).await });
    Ok((simulator, endpoint))
}

fn start_bots(args: Args, relay: &Relay, record: &Arc<Record>) -> JoinSet<anyhow::Result<()>> {
    let (messages, conversations) = (args.messages as usize, args.conversations as usize);
    let mut bots = JoinSet::new();
    for number in 0..conversations {
        // The first ones take the remainder of the division.
        let messages = messages / conversations + usize::from(number < messages % conversations);
        let plan = Plan { socket: relay.socket.clone(), number, messages, seed: SEED };
        bots.spawn(bots::run(plan, Arc::clone(record)));
    }
    bots
}

fn sample(at: Timestamp, args: Args, record: &Record, bots: usize, simulator: &Simulator) -> Sample {
    let notes = record.lock();
    Sample {
        at,
        total: u64::from(args.messages),
        acknowledged: notes.acknowledged,
        repeats: notes.repeats,
        bots,
        counts: simulator.counts(),
    }
}

/// The longest time that it may take: six times what the quota alone needs, and at least two minutes.
fn time_limit(args: Args) -> Duration {
    let requests = f64::from(args.messages) + 2.0 * f64::from(args.conversations);
    Duration::from_secs_f64((6.0 * requests / GRANTED.rate).max(120.0))
}

/// Sends the relay's log to a file: it must not disturb the view. Returns false if this process logs elsewhere already.
fn log_to(path: &Path) -> anyhow::Result<bool> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(file)).finish();
    Ok(tracing::subscriber::set_global_default(lines).is_ok())
}

fn introduction(args: Args) -> String {
    format!(
        "{} bots in as many conversations send {} messages through a relay to a simulated Amazon Connect.\n\n\
         Connect  accepts {} requests a second ({} at once) and answers 429 to the rest;\n         \
         fails {} % of the requests, and loses {} % of its replies.\n\
         Relay    is configured with {} a second, so it has to learn the rate; it acknowledges a message once it is on disk.\n\
         Bots     write faster than that, and sometimes send a message twice, as an SDK does.\n\n\
         At the end Connect's ledger is compared with what the relay acknowledged to the bots.",
        args.conversations,
        args.messages,
        GRANTED.rate,
        GRANTED.burst,
        ERROR_RATE * 100.0,
        LOST_REPLY_RATE * 100.0,
        CONFIGURED.rate,
    )
}

impl Report {
    fn table(&self, ending: End) -> String {
        let Audit { accepted, delivered, lost, duplicated, out_of_order, forged, .. } = &self.audit;
        let Counts { throttled, errors, lost_replies, duplicates, disconnects, .. } = &self.counts;
        // Missing messages are lost only if the relay was given its time.
        let missing = match ending {
            End::Complete | End::Failed => ("lost", *lost, "acknowledged, and not in the ledger".to_owned()),
            End::TimedOut | End::Stopped => ("missing", *lost, "acknowledged, and not in the ledger so far".to_owned()),
        };
        let rows: [(&str, u64, String); 8] = [
            (
                "accepted",
                *accepted,
                format!("acknowledged to the bots; {} repeats created no second message", self.repeats),
            ),
            ("delivered", *delivered, format!("in Connect's ledger, after {:.0} s", self.took.as_secs_f64())),
            ("throttled", *throttled, "429 answers; each of them was tried again later".to_owned()),
            (
                "failed",
                errors + lost_replies,
                format!("{errors} errors, {lost_replies} lost replies; {duplicates} sent again and recognised"),
            ),
            ("disconnected", *disconnects, "conversations disconnected at their end".to_owned()),
            missing,
            ("duplicated", *duplicated, "in the ledger more than once".to_owned()),
            ("out of order", *out_of_order, "in the ledger after a later one of the same conversation".to_owned()),
        ];
        let mut text = String::from("\nThe audit\n");
        for (name, count, meaning) in rows {
            text.push_str(&format!("  {name:<13}{count:>7}   {meaning}\n"));
        }
        if *forged > 0 {
            text.push_str(&format!("  {:<13}{forged:>7}   in the ledger, but not written by a bot\n", "forged"));
        }
        text
    }

    /// The reason why it did not pass.
    fn verdict(&self, ending: End) -> String {
        let mut text = String::from(match ending {
            End::Complete => "FAIL  The ledger differs from the acknowledged messages.",
            End::TimedOut => "FAIL  It took too long. Missing messages may still be in the queue.",
            End::Stopped => {
                "STOP  Stopped before the end, so nothing is proved. Missing messages were still in the queue."
            }
            End::Failed => "FAIL  A part of the demo failed.",
        });
        let examples = if ending == End::Stopped { &[][..] } else { &self.audit.examples };
        for line in self.errors.iter().chain(examples) {
            text.push_str("\n      ");
            text.push_str(line);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(audit: Audit) -> Report {
        let counts = Counts { throttled: 31, errors: 4, lost_replies: 3, ..Counts::default() };
        Report { audit, counts, repeats: 2, errors: Vec::new(), took: Duration::from_millis(20_400) }
    }

    #[test]
    fn table_has_a_row_for_every_figure() {
        let audit =
            Audit { accepted: 400, delivered: 397, lost: 3, duplicated: 5, out_of_order: 6, ..Audit::default() };
        let table = report(audit.clone()).table(End::Complete);
        for row in [
            "accepted         400",
            "delivered        397",
            "throttled         31",
            "failed             7",
            "lost               3",
            "duplicated         5",
            "out of order       6",
        ] {
            assert!(table.contains(row), "{row}\n{table}");
        }
        assert!(!table.contains("forged"), "a row without a count");
        assert!(report(Audit { forged: 1, ..audit.clone() }).table(End::Complete).contains("forged             1"));
        let stopped = report(audit).table(End::Stopped);
        assert!(stopped.contains("missing            3") && !stopped.contains("lost  "), "{stopped}");
    }

    #[test]
    fn verdict_names_what_is_wrong() {
        let audit =
            Audit { lost: 1, examples: vec!["message 2 of conversation 1 never arrived".into()], ..Audit::default() };
        let text = Report { errors: vec!["stop the relay: no".into()], ..report(audit) }.verdict(End::Complete);
        assert!(text.starts_with("FAIL  The ledger differs from the acknowledged messages."));
        assert!(text.contains("stop the relay: no") && text.contains("message 2 of conversation 1 never arrived"));
    }

    #[test]
    fn time_limit_grows_with_the_work() {
        let args = |messages, conversations| Args { messages, conversations };
        assert_eq!(time_limit(args(400, 20)), Duration::from_secs(132));
        assert_eq!(time_limit(args(1, 1)), Duration::from_secs(120));
        assert_eq!(time_limit(args(4000, 20)), Duration::from_secs(1212));
    }
}
