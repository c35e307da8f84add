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
//!
//! With `--fleet` the relay is a process of its own whose queue is copied to three NATS servers, and it is killed with its
//! folder (`fleet`).

mod audit;
mod bots;
#[cfg(feature = "fleet")]
mod fleet;
#[cfg(feature = "fleet")]
mod process;
mod relay;
#[cfg(feature = "fleet")]
mod servers;
mod view;

use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::simulator::{Counts, Faults, Options, Simulator};
use crate::time::{Clock, Timestamp};
use audit::Audit;
use bots::{Plan, Record};
use relay::{Quota, Relay};
use view::{Sample, View, print_line};

/// Run bots, a relay and a simulated Amazon Connect for about half a minute, and audit the result.
///
/// With --fleet: also three NATS servers on 127.0.0.1, to which the relay copies its queue. The relay is killed and its
/// folder removed; the relay that starts in its place restores the queue from the servers. Then a server is killed. It needs
/// the program nats-server on the PATH, version 2.14 or newer, and takes about 40 seconds.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Messages to send, all conversations together.
    #[arg(long, value_name = "N", default_value = "400", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    messages: u32,
    /// Conversations to spread them over.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=1000))]
    conversations: u32,
    /// Copy the queue to three NATS servers, kill the relay with its folder, and then a server.
    #[arg(long)]
    fleet: bool,
}

/// The quota of the simulated Connect.
const GRANTED: Quota = Quota { rate: 20.0, burst: 15 };
/// The quota in the relay's configuration: too large, so that it is throttled and has to find the rate by itself.
const CONFIGURED: Quota = Quota { rate: 80.0, burst: 60 };
/// The relay's log, in the demo's folder.
const LOG: &str = "relay.log";
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
    if args.fleet {
        check_fleet()?;
    }
    let folder = tempfile::Builder::new().prefix("connect-relay-demo-").tempdir().context("create a folder")?;
    let log = folder.path().join(LOG);
    // The relay of a fleet is another process, which has the file for itself.
    let logs = args.fleet || log_to(&log)?;
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
        return super::out::print(
            "PASS  Every message that was acknowledged arrived: once, and in its conversation's order.\n",
        );
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

/// A row of the table at the end: a name, a number, and its meaning.
type Row = (&'static str, u64, String);

/// The data of the table at the end.
#[derive(Debug)]
struct Report {
    audit: Audit,
    counts: Counts,
    repeats: u64,
    /// Messages acknowledged with `Relay-Durable: fleet`.
    copied: u64,
    /// The rows of the fleet.
    rows: Vec<Row>,
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
    if args.fleet {
        print_line("The servers elect a leader, and the relay begins its copy …\n");
    }
    let mut part = tokio::select! {
        part = Part::start(args, folder, endpoint) => part?,
        () = &mut stop => bail!("stopped before it began"),
    };
    let record = Record::new(args.conversations as usize);
    let mut bots = start_bots(args, part.socket(), &record);
    let mut errors = Vec::new();

    let started = clock.now();
    let mut view = View::new(u64::from(args.messages), started);
    let mut moved = (started, 0);
    let mut act = None;
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                let now = Sample { act, ..sample(clock.now(), args, &record, bots.len(), &simulator) };
                view.show(now);
                act = match part.step(&now).await {
                    Ok(act) => act,
                    Err(error) => {
                        errors.push(format!("{error:#}"));
                        break End::Failed;
                    }
                };
                if now.counts.accepted > moved.1 {
                    moved = (now.at, now.counts.accepted);
                }
                let sent = now.waiting() == 0 && now.counts.disconnects >= record.lock().disconnects;
                if bots.is_empty() && sent && part.is_done() {
                    break End::Complete;
                }
                if now.at.since(moved.0) > STUCK_AFTER || now.at.since(started) > time_limit(args) {
                    break End::TimedOut;
                }
            }
        }
    };
    bots.shutdown().await;
    let grace = if ending == End::Complete { EXIT_TIMEOUT } else { EARLY_EXIT_TIMEOUT };
    let rows = part.rows();
    if let Err(error) = part.drain(grace).await {
        errors.push(format!("{error:#}"));
        ending = if ending == End::Complete { End::Failed } else { ending };
    }
    view.finish(sample(clock.now(), args, &record, 0, &simulator));

    let (notes, counts) = (record.lock(), simulator.counts());
    let audit = Audit::of(&notes.conversations, &simulator.accepted());
    let took = clock.now().since(started);
    Ok((ending, Report { audit, counts, repeats: notes.repeats, copied: notes.copied, rows, errors, took }))
}

/// The relay under the demo.
enum Part {
    Relay(Relay),
    #[cfg(feature = "fleet")]
    Fleet(Box<fleet::Fleet>),
}

impl Part {
    async fn start(args: Args, folder: &Path, endpoint: SocketAddr) -> anyhow::Result<Part> {
        #[cfg(feature = "fleet")]
        if args.fleet {
            let log = folder.join(LOG);
            return Ok(Part::Fleet(Box::new(fleet::Fleet::start(folder, endpoint, CONFIGURED, &log).await?)));
        }
        #[cfg(not(feature = "fleet"))]
        let _ = args;
        Ok(Part::Relay(relay::start(folder, endpoint, CONFIGURED).await?))
    }

    fn socket(&self) -> &Path {
        match self {
            Part::Relay(relay) => &relay.socket,
            #[cfg(feature = "fleet")]
            Part::Fleet(fleet) => &fleet.socket,
        }
    }

    /// Does what is next, if it is time. Returns a sentence about it.
    #[cfg_attr(not(feature = "fleet"), expect(clippy::unused_async, reason = "as in a build with a fleet"))]
    async fn step(&mut self, now: &Sample) -> anyhow::Result<Option<&'static str>> {
        match self {
            Part::Relay(relay) if relay.has_ended() => bail!("the relay ended by itself"),
            Part::Relay(_) => {
                #[cfg(not(feature = "fleet"))]
                let _ = now;
                Ok(None)
            }
            #[cfg(feature = "fleet")]
            Part::Fleet(fleet) => fleet.step(now).await,
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Part::Relay(_) => true,
            #[cfg(feature = "fleet")]
            Part::Fleet(fleet) => fleet.is_done(),
        }
    }

    async fn drain(self, most: Duration) -> anyhow::Result<()> {
        match self {
            Part::Relay(relay) => relay.drain(most).await,
            #[cfg(feature = "fleet")]
            Part::Fleet(fleet) => fleet.drain(most).await,
        }
    }

    /// Further rows of the table at the end.
    fn rows(&self) -> Vec<Row> {
        match self {
            Part::Relay(_) => Vec::new(),
            #[cfg(feature = "fleet")]
            Part::Fleet(fleet) => fleet.rows(),
        }
    }
}

/// Checks that this build and this machine can have a fleet.
fn check_fleet() -> anyhow::Result<()> {
    #[cfg(feature = "fleet")]
    return servers::check();
    #[cfg(not(feature = "fleet"))]
    return Err(crate::daemon::Failure::Config(
        "demo --fleet: this build has no fleet (build it with the cargo feature `fleet`)".into(),
    )
    .into());
}

/// Starts the simulated Connect, which serves as long as `serving` lives.
async fn simulate(clock: &Clock, serving: &mut JoinSet<()>) -> anyhow::Result<(Simulator, SocketAddr)> {
    let faults = Faults {
        rate: GRANTED.rate,
        burst: GRANTED.burst,
        latency: Duration::from_millis(30),
        jitter: Duration::from_millis(10),
        error_rate: ERROR_RATE,
        lost_reply_rate: LOST_REPLY_RATE,
        ..Faults::default()
    };
    let options = Options { faults, seed: SEED, keep_accepted: true, ..Options::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on 127.0.0.1")?;
    let endpoint = listener.local_addr().context("listen on 127.0.0.1")?;
    let simulator = Simulator::new(options, clock.clone());
    let served = simulator.clone();
    serving.spawn(async move { served.serve(listener, std::future::pending()).await });
    Ok((simulator, endpoint))
}

fn start_bots(args: Args, socket: &Path, record: &Arc<Record>) -> JoinSet<anyhow::Result<()>> {
    let (messages, conversations) = (args.messages as usize, args.conversations as usize);
    let mut bots = JoinSet::new();
    for number in 0..conversations {
        // The first ones take the remainder of the division.
        let messages = messages / conversations + usize::from(number < messages % conversations);
        let plan = Plan { socket: socket.to_owned(), number, messages, seed: SEED };
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
        act: None,
    }
}

/// The longest time that it may take: six times what the quota alone needs, and at least two minutes; for a fleet a minute
/// more.
fn time_limit(args: Args) -> Duration {
    let requests = f64::from(args.messages) + 2.0 * f64::from(args.conversations);
    let fleet = if args.fleet { 60.0 } else { 0.0 };
    Duration::from_secs_f64((6.0 * requests / GRANTED.rate).max(120.0) + fleet)
}

/// Sends the relay's log to a file: it must not disturb the view. Returns false if this process logs elsewhere already.
fn log_to(path: &Path) -> anyhow::Result<bool> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(file)).finish();
    Ok(tracing::subscriber::set_global_default(lines).is_ok())
}

fn introduction(args: Args) -> String {
    let fleet = if args.fleet {
        "Fleet    is three NATS servers, each with a copy of the queue. The relay is killed and its folder removed: the\n         \
         next one restores the queue from the servers. Then a server is killed.\n"
    } else {
        ""
    };
    format!(
        "{} bots in as many conversations send {} messages through a relay to a simulated Amazon Connect.\n\n\
         Connect  accepts {} requests a second ({} at once) and answers 429 to the rest;\n         \
         fails {} % of the requests, and loses {} % of its replies.\n\
         Relay    is configured with {} a second, so it has to learn the rate; it acknowledges a message once it is on disk.\n\
         {fleet}Bots     write faster than that, and sometimes send a message twice, as an SDK does.\n\n\
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
        let mut rows = vec![
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
        if !self.rows.is_empty() {
            let copied = ("copied", self.copied, "acknowledged when the servers had them too".to_owned());
            rows.splice(1..1, std::iter::once(copied).chain(self.rows.iter().cloned()));
        }
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
        let took = Duration::from_millis(20_400);
        Report { audit, counts, repeats: 2, copied: 0, rows: Vec::new(), errors: Vec::new(), took }
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
        assert!(!table.contains("forged") && !table.contains("copied"), "a row without a count");
        let rows = vec![("restored", 130, "queued messages".to_owned())];
        let of_a_fleet = Report { rows, copied: 390, ..report(audit.clone()) }.table(End::Complete);
        assert!(
            of_a_fleet.contains("copied           390") && of_a_fleet.contains("restored         130"),
            "{of_a_fleet}"
        );
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
        let args = |messages, conversations| Args { messages, conversations, fleet: false };
        assert_eq!(time_limit(args(400, 20)), Duration::from_secs(132));
        assert_eq!(time_limit(args(1, 1)), Duration::from_secs(120));
        assert_eq!(time_limit(args(4000, 20)), Duration::from_secs(1212));
        assert_eq!(time_limit(Args { fleet: true, ..args(1, 1) }), Duration::from_secs(180));
    }

    #[cfg(not(feature = "fleet"))]
    #[tokio::test]
    async fn build_without_the_feature_has_no_demo_of_a_fleet() {
        let args = Args { messages: 1, conversations: 1, fleet: true };
        let error = run(args, std::future::pending()).await.unwrap_err();
        assert_eq!(crate::cli::exit_code::code(&error), 78);
        assert!(error.to_string().contains("cargo feature `fleet`"), "{error:#}");
    }
}
