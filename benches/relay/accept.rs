//! Durable accepts: how many messages a second bots hand over, and how long each waits for "on disk".
//!
//! The relay's upstream refuses every connection, so nothing is delivered and only accepting is measured. Each round
//! starts a relay on an empty folder, warms it up, measures it, and lets each rival take its turn; the rounds' ratios
//! are paired, which is what keeps a noisy neighbour out of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::appending;
use crate::bare::Bare;
use crate::load;
use crate::measure::{Figures, median};
use crate::options::Options;
use crate::redis::{self, Redis};
use crate::relay::{ClosedPort, Relay};
use crate::report::{Report, Table, Target, millis, ratio, seconds, tenths, whole};
use crate::traffic::{CONVERSATIONS, Traffic};

/// Measures and prints.
pub async fn run(options: &Options, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    if options.redis {
        redis::installed()?;
    }
    let field = Field { options, folder, closed: ClosedPort::take()?, bare: Bare::open(folder).await? };
    for contents in CONTENTS {
        let (mut rates, mut costs) = (rates_table(), costs_table());
        for shape in
            SHAPES.iter().filter(|shape| options.shape.as_ref().is_none_or(|name| shape.name.starts_with(name)))
        {
            let mut rounds = Vec::new();
            for nth in 0..options.rounds() {
                let round = field.round(shape, contents).await?;
                report.round("accept", &format!("{}, {contents} bytes", shape.name), nth, round.json());
                rounds.push(round);
            }
            rates.row(rates_row(shape, &rounds));
            costs.row(costs_row(shape, &rounds));
            if contents == CONTENTS[0] {
                targets(shape, &rounds, report);
            }
        }
        let title = format!("Durable accepts, texts of {contents} bytes, {CONVERSATIONS} conversations");
        rates.print(&title, RATES_NOTE);
        costs.print(&format!("Where an accept's time goes, texts of {contents} bytes"), COSTS_NOTE);
    }
    Ok(())
}

/// Bytes of a text: a usual one, and a short one. The first is the one the targets are about.
const CONTENTS: [usize; 2] = [600, 100];

const SHAPES: [Shape; 5] = [
    Shape { name: "1 connection", connections: 1, batch: None },
    Shape { name: "16 connections", connections: 16, batch: None },
    Shape { name: "64 connections", connections: 64, batch: None },
    Shape { name: "1, batches of 64", connections: 1, batch: Some(64) },
    Shape { name: "4, batches of 250", connections: 4, batch: Some(250) },
];

const RATES_NOTE: &str = "  (a) the same hyper server without a store; (b) append + fdatasync of the same bytes in the \
relay's own mean groups;\n  (c) Redis Streams, appendfsync always (--redis). p50 and p99 are of one request, which for a \
batch is the whole batch, in ms.";

const COSTS_NOTE: &str = "  Processor time per message, against (a)'s; a commit's mean time, against (b)'s median for \
a group of that size.";

/// The way in which bots call.
struct Shape {
    name: &'static str,
    connections: usize,
    batch: Option<usize>,
}

/// The place of the rounds.
struct Field<'a> {
    options: &'a Options,
    folder: &'a Path,
    closed: ClosedPort,
    bare: Bare,
}

/// One round: the relay and, after it, its rivals.
struct Round {
    relay: Figures,
    /// Messages per commit.
    group: Option<f64>,
    /// Seconds per commit.
    commit: Option<f64>,
    /// Processor seconds per message.
    relay_cost: f64,
    bare: Figures,
    bare_cost: f64,
    appending: Figures,
    redis: Option<Figures>,
}

impl Field<'_> {
    async fn round(&self, shape: &Shape, contents: usize) -> anyhow::Result<Round> {
        let traffic = Arc::new(Traffic::new(contents, shape.batch));
        let (warm_up, bounds) = (self.options.warm_up(), self.options.round());

        let dir = self.folder.join("accepting");
        let mut relay = Relay::open(self.options, &dir, self.closed.address).await?;
        load::run(&relay.address, shape.connections, &traffic, warm_up).await?;
        let (before, spent) = (relay.metrics().await, relay.process.processor()?);
        let accepted = load::run(&relay.address, shape.connections, &traffic, bounds).await?;
        let relay_cost = seconds(relay.process.processor()? - spent) / accepted.messages as f64;
        relay.check()?;
        let after = relay.metrics().await;
        let mean = |name| after.as_ref().ok()?.mean_since(before.as_ref().ok()?, name);
        let (group, commit) = (mean("commit_messages"), mean("commit_seconds"));
        drop(relay);
        std::fs::remove_dir_all(&dir)?;

        load::run(&self.bare.address, shape.connections, &traffic, warm_up).await?;
        let spent = self.bare.process.processor()?;
        let bare = load::run(&self.bare.address, shape.connections, &traffic, bounds).await?;
        let bare_cost = seconds(self.bare.process.processor()? - spent) / bare.messages as f64;

        // All callers wait for their reply, so no group can hold more than one request of each.
        let most = shape.connections * shape.batch.unwrap_or(1);
        let messages = group.map_or(most, |mean| (mean.round() as usize).clamp(1, most));
        let appending = appending::run(self.folder, traffic.record_bytes(), messages, Duration::ZERO, bounds)?;

        let redis = if self.options.redis { Some(self.redis(shape, &traffic).await?) } else { None };
        Ok(Round { relay: accepted, group, commit, relay_cost, bare, bare_cost, appending, redis })
    }

    async fn redis(&self, shape: &Shape, traffic: &Traffic) -> anyhow::Result<Figures> {
        let dir = self.folder.join("redis");
        let redis = Redis::open(&dir).await?;
        let pipeline = shape.batch.unwrap_or(1);
        let figures = redis.run(shape.connections, pipeline, traffic.record_bytes(), self.options.round())?;
        drop(redis);
        std::fs::remove_dir_all(&dir)?;
        Ok(figures)
    }
}

impl Round {
    fn json(&self) -> serde_json::Value {
        json!({
            "relay": self.relay.json(),
            "relay_commit_messages": self.group,
            "relay_commit_seconds": self.commit,
            "relay_processor_seconds_per_message": self.relay_cost,
            "without_store": self.bare.json(),
            "without_store_processor_seconds_per_message": self.bare_cost,
            "append_fdatasync": self.appending.json(),
            "redis": self.redis.map(|redis| redis.json()),
        })
    }

    fn of_bare(&self) -> Option<f64> {
        Some(self.relay.per_second / self.bare.per_second)
    }

    fn of_appending(&self) -> Option<f64> {
        Some(self.relay.per_second / self.appending.per_second)
    }

    fn of_redis(&self) -> Option<f64> {
        Some(self.relay.per_second / self.redis?.per_second)
    }
}

/// The median of what the rounds have of it.
fn middle(rounds: &[Round], figure: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
    median(rounds.iter().filter_map(figure))
}

fn rates_table() -> Table {
    Table::new(
        &["", "of (a)", "of (b)", "of (c)", "p50/(b)'s", "p99/p50"],
        &["accepts/s", "p50", "p99", "(a)/s", "p50", "p99", "(b)/s", "p50", "(c)/s", "p50", "p99"],
    )
}

fn rates_row(shape: &Shape, rounds: &[Round]) -> Vec<String> {
    let p50 = |figures: &Figures| Some(seconds(figures.p50));
    let p99 = |figures: &Figures| Some(seconds(figures.p99));
    vec![
        shape.name.to_owned(),
        ratio(middle(rounds, Round::of_bare)),
        ratio(middle(rounds, Round::of_appending)),
        ratio(middle(rounds, Round::of_redis)),
        ratio(middle(rounds, |round| Some(p50(&round.relay)? / p50(&round.appending)?))),
        ratio(middle(rounds, |round| Some(p99(&round.relay)? / p50(&round.relay)?))),
        whole(middle(rounds, |round| Some(round.relay.per_second))),
        millis(middle(rounds, |round| p50(&round.relay))),
        millis(middle(rounds, |round| p99(&round.relay))),
        whole(middle(rounds, |round| Some(round.bare.per_second))),
        millis(middle(rounds, |round| p50(&round.bare))),
        millis(middle(rounds, |round| p99(&round.bare))),
        whole(middle(rounds, |round| Some(round.appending.per_second))),
        millis(middle(rounds, |round| p50(&round.appending))),
        whole(middle(rounds, |round| Some(round.redis?.per_second))),
        millis(middle(rounds, |round| p50(&round.redis?))),
        millis(middle(rounds, |round| p99(&round.redis?))),
    ]
}

fn costs_table() -> Table {
    Table::new(
        &["", "processor/(a)'s", "commit/(b)'s"],
        &["processor us", "(a)'s us", "messages a commit", "commit ms", "(b)'s ms"],
    )
}

fn costs_row(shape: &Shape, rounds: &[Round]) -> Vec<String> {
    vec![
        shape.name.to_owned(),
        ratio(middle(rounds, |round| Some(round.relay_cost / round.bare_cost))),
        ratio(middle(rounds, |round| Some(round.commit? / seconds(round.appending.p50)))),
        tenths(middle(rounds, |round| Some(round.relay_cost * 1e6))),
        tenths(middle(rounds, |round| Some(round.bare_cost * 1e6))),
        tenths(middle(rounds, |round| round.group)),
        millis(middle(rounds, |round| round.commit)),
        millis(middle(rounds, |round| Some(seconds(round.appending.p50)))),
    ]
}

fn targets(shape: &Shape, rounds: &[Round], report: &mut Report) {
    match (shape.connections, shape.batch) {
        (64, None) => {
            let of_bare = middle(rounds, Round::of_bare);
            report.target(
                "accepts at 64 connections, of the server without a store",
                Target::AtLeast(0.25),
                "",
                of_bare,
            );
            let of_redis = middle(rounds, Round::of_redis);
            report.target("accepts at 64 connections, of Redis", Target::AtLeast(2.0), "", of_redis);
        }
        (1, None) => {
            let of_redis = middle(rounds, Round::of_redis);
            report.target("accepts at 1 connection, of Redis", Target::AtLeast(1.0), "", of_redis);
        }
        _ => {}
    }
}
