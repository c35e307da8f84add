//! One bot that waits for each outcome: 50 sends a second over one connection, each answered when it is delivered.
//!
//! The rival is the same client calling the same upstream directly. Between the two lie the two commits that a delivery
//! needs, of the message and of its outcome, so a bare append and `fdatasync` of the same bytes is measured beside them.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::appending;
use crate::http::Address;
use crate::load::Bounds;
use crate::measure::{Figures, median, now};
use crate::options::Options;
use crate::relay::{Relay, Simulator};
use crate::report::{Report, Table, Target, millis, ratio, seconds};
use crate::traffic::{CONVERSATIONS, Traffic};

/// Measures and prints.
pub async fn run(options: &Options, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for nth in 0..options.rounds() {
        let round = round(options, folder).await?;
        report.round("wait", "50 a second", nth, round.json());
        rounds.push(round);
    }
    let middle = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
    let mut table = Table::new(
        &["", "p99 of p50", "direct p99 of p50"],
        &["p50 ms", "direct p50 ms", "fdatasync p50 ms", "p50 beyond direct and two fdatasyncs, ms"],
    );
    table.row(vec![
        format!("{PER_SECOND} a second"),
        ratio(middle(|round| spread(&round.relay))),
        ratio(middle(|round| spread(&round.direct))),
        millis(middle(|round| seconds(round.relay.p50))),
        millis(middle(|round| seconds(round.direct.p50))),
        millis(middle(|round| seconds(round.append.p50))),
        millis(middle(Round::beyond)),
    ]);
    let title = format!("One bot that waits, texts of {CONTENTS} bytes, {CONVERSATIONS} conversations");
    table.print(&title, "  One connection; each request has `Prefer: wait` and is answered by the delivery.");
    report.target("p99 of p50, one bot that waits", Target::AtMost(4.0), "", middle(|round| spread(&round.relay)));
    let beyond = middle(|round| round.beyond() * 1e3);
    report.target("its p50 beyond direct calls and two fdatasyncs", Target::AtMost(0.5), " ms", beyond);
    Ok(())
}

const CONTENTS: usize = 600;
const PER_SECOND: u32 = 50;

struct Round {
    relay: Figures,
    direct: Figures,
    /// An append of one message's bytes with its `fdatasync`.
    append: Figures,
}

impl Round {
    /// The seconds of the relay's median beyond the direct call's and two appends.
    fn beyond(&self) -> f64 {
        seconds(self.relay.p50) - seconds(self.direct.p50) - 2.0 * seconds(self.append.p50)
    }

    fn json(&self) -> serde_json::Value {
        json!({"relay": self.relay.json(), "direct": self.direct.json(), "append": self.append.json()})
    }
}

async fn round(options: &Options, folder: &Path) -> anyhow::Result<Round> {
    let simulator = Simulator::open(options)?;
    let traffic = Traffic::waiting(CONTENTS);
    let dir = folder.join("waiting");
    let relay = Relay::open(options, &dir, simulator.address).await?;
    let sends = options.waits();
    send(&relay.address, &traffic, sends / 10).await?;
    let through = send(&relay.address, &traffic, sends).await?;
    drop(relay);
    std::fs::remove_dir_all(&dir)?;
    let direct = send(&Address::Tcp(simulator.address), &traffic, sends).await?;
    // At the same pace: after a pause the disk and the processor take longer.
    let bounds = Bounds { messages: u64::from(sends / 5), within: Duration::from_secs(10) };
    let append = appending::run(folder, traffic.record_bytes(), 1, Duration::from_secs(1) / PER_SECOND, bounds)?;
    Ok(Round { relay: through, direct, append })
}

/// Sends so many messages at the pace, and waits for the outcome of each.
async fn send(address: &Address, traffic: &Traffic, sends: u32) -> anyhow::Result<Figures> {
    let mut connection = address.connect().await?;
    let mut request = traffic.request();
    let mut latencies = Vec::new();
    let begun = now();
    for nth in 0..sends {
        let due = begun + Duration::from_secs(1) / PER_SECOND * nth;
        tokio::time::sleep_until(due.into()).await;
        let sent = now();
        let reply = connection.call(request.numbered(traffic.take())).await?;
        latencies.push(sent.elapsed());
        anyhow::ensure!(reply.status == 200, "a message was not delivered: {reply}");
    }
    Ok(Figures::of(u64::from(sends), begun.elapsed(), latencies))
}

fn spread(figures: &Figures) -> f64 {
    seconds(figures.p99) / seconds(figures.p50)
}
