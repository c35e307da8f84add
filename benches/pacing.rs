//! Simulates relays that share a quota and cannot see one another: one command, in virtual time, repeatable everywhere.
//!
//! ```text
//! cargo bench --bench pacing                      the table and the plot, in a few minutes
//! cargo bench --bench pacing -- --seeds 200       more seeds
//! cargo bench --bench pacing -- --plot FILE.svg   the plot somewhere else
//! cargo bench --bench pacing -- --real            and 1, 5 and 20 relay processes against a simulated Connect, at the
//!                                                 true rate: 12 minutes in all
//! cargo bench --bench pacing -- --real --fleet    the same with relays that share their quota over a `nats-server`
//! ```
//!
//! The pacer and the turns are the relay's own code; upstream is one token bucket (`world.rs`), everybody else is
//! written from published constants (`others.rs`), and `rows.rs` has the scenarios. Two runs of one seed are the
//! same. `tests/pacing.rs` holds the figures as bounds.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::measure::SECOND;
use crate::plot::{Curve, Panel};
use crate::report::Played;
use crate::rows::{BASELINES, ROWS, Who};
use crate::world::{Fate, Millis, Upstream};

#[path = "pacing/measure.rs"]
mod measure;
#[path = "pacing/others.rs"]
mod others;
#[path = "pacing/plot.rs"]
mod plot;
#[path = "pacing/real.rs"]
mod real;
#[path = "pacing/relay.rs"]
mod relay;
#[path = "pacing/report.rs"]
mod report;
#[path = "pacing/rows.rs"]
mod rows;
#[path = "pacing/world.rs"]
mod world;

/// The most runs of a row with a fleet of a hundred.
const SEEDS_OF_HUNDRED: u64 = 8;

/// Plays relays that share a quota; prints the table and draws rate against time.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench pacing --")]
struct Arguments {
    /// Runs per row
    #[arg(long, value_name = "N", default_value = "48", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// The file for the plot
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/pacing.svg"))]
    plot: PathBuf,
    /// Play 1, 5 and 20 relay processes too: twelve minutes by the wall clock
    #[arg(long)]
    real: bool,
    /// Let those processes share their quota over a NATS server, started from this binary
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "nats-server", requires = "real")]
    fleet: Option<PathBuf>,
    /// The binary to play them with
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_connect-relay"))]
    relay: PathBuf,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.bench {
        // `cargo test --all-targets` runs benches too.
        println!("nothing played: run by `cargo bench --bench pacing`");
        return ExitCode::SUCCESS;
    }
    match play(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(missed) => {
            eprintln!("{missed} figures miss their bound");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(arguments: &Arguments) -> anyhow::Result<usize> {
    println!("| what is played | mean of the seeds (bound; worst seed) | floor |\n| --- | --- | --- |");
    let mut missed = 0;
    for row in ROWS.iter().chain(BASELINES) {
        // A hundred relays of a fleet hear ten thousand messages a second, and their figures vary little.
        let most = if row.name.starts_with("fleet of 100") { SEEDS_OF_HUNDRED } else { u64::MAX };
        let played = Played::new(row, arguments.seeds.min(most));
        missed += played.missed().count();
        println!("{}", report::line(&played));
    }
    std::fs::write(&arguments.plot, plot::svg(&panels()))
        .with_context(|| format!("write the plot {}", arguments.plot.display()))?;
    println!("\nrate against time: {}", arguments.plot.display());
    if arguments.real {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        real::play(&arguments.relay, folder.path(), arguments.seeds, arguments.fleet.as_deref())?;
    }
    Ok(missed)
}

/// The plot: five of each kind while the quota halves and doubles, and twenty relays through an outage.
fn panels() -> Vec<Panel> {
    let halving = rows::halving();
    let outage = Upstream { down: vec![(240 * SECOND, 540 * SECOND)], ..Upstream::plain() };
    vec![
        panel("5 relays, the quota halves and doubles", Who::Relays, 5, &halving),
        panel("the same: backoff with full jitter", Who::Backoff, 5, &halving),
        panel("the same: AWS adaptive", Who::Adaptive, 5, &halving),
        panel("20 relays, five minutes of outage", Who::Relays, 20, &outage),
    ]
}

fn panel(title: &'static str, who: Who, count: usize, upstream: &Upstream) -> Panel {
    const STEP: usize = 5;
    const END: usize = 720;
    let record = world::run(upstream, &mut rows::crowd(who, count, Millis::MAX, 0.0, 1), END as u64 * SECOND, 1);
    let per_second = |fate: Fate| {
        let mut counts = vec![0.0; END / STEP];
        for line in record.lines.iter().filter(|line| line.fate == fate) {
            counts[(line.at / SECOND) as usize / STEP] += 1.0 / STEP as f64;
        }
        counts
    };
    let there = |at: u64| !upstream.down.iter().any(|(from, to)| (*from..*to).contains(&at));
    let quota = |step: usize| (step * STEP) as u64 * SECOND;
    let quotas = (0..END / STEP).map(quota).map(|at| if there(at) { upstream.quota_at(at).0 } else { 0.0 }).collect();
    let curves = vec![
        Curve { name: "quota", colour: "#999999", values: quotas },
        Curve { name: "accepted", colour: "#1f77b4", values: per_second(Fate::Accepted) },
        Curve { name: "throttled", colour: "#d62728", values: per_second(Fate::Throttled) },
    ];
    Panel { title, step: STEP as f64, top: 20.0, curves }
}
