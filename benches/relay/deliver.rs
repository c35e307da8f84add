//! Accept, deliver, record: how many messages a second go the relay's whole way when no quota holds them.
//!
//! The upstream is the project's own simulator, without a quota, without latency. Bots hand over a fixed number of
//! messages as fast as they can, and the clock stops when nothing is queued any more, that is, when the last delivery is
//! recorded. The rival is the same client calling the same simulator directly: what a bot gets that trusts the network,
//! its own process and the quota. The processors are shared by four here: client, relay, simulator, disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::http::Address;
use crate::load::{self, Bounds};
use crate::measure::{median, now};
use crate::options::Options;
use crate::relay::{Relay, Simulator};
use crate::report::{Report, Table, ratio, seconds, tenths, whole};
use crate::traffic::{CONVERSATIONS, Traffic};

/// Measures and prints.
pub async fn run(options: &Options, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for nth in 0..options.rounds() {
        let round = round(options, folder).await?;
        report.round("deliver", "600 bytes", nth, round.json());
        rounds.push(round);
    }
    let middle = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
    let mut table = Table::new(
        &["", "of direct calls", "of accepts meanwhile"],
        &["delivered/s", "direct/s", "accepts/s meanwhile", "relay's processor us"],
    );
    table.row(vec![
        format!("{} messages", whole(Some(options.through() as f64))),
        ratio(middle(|round| round.delivered / round.direct)),
        ratio(middle(|round| round.delivered / round.accepted)),
        whole(middle(|round| round.delivered)),
        whole(middle(|round| round.direct)),
        whole(middle(|round| round.accepted)),
        tenths(middle(|round| round.cost * 1e6)),
    ]);
    let title = format!("Accept, deliver, record, texts of {CONTENTS} bytes, {CONVERSATIONS} conversations");
    let note = format!(
        "  {CONNECTIONS} connections hand over, the relay sends with its default of {IN_FLIGHT} in flight; direct calls \
         come over {IN_FLIGHT} connections."
    );
    table.print(&title, &note);
    Ok(())
}

const CONTENTS: usize = 600;
const CONNECTIONS: usize = 16;
/// The default of `sender.in_flight_max`, for calls that bypass the relay.
const IN_FLIGHT: usize = 32;
const LONGEST: Duration = Duration::from_secs(180);

struct Round {
    /// Messages per second, from the first request to the last record.
    delivered: f64,
    /// Accepts per second while deliveries were under way.
    accepted: f64,
    /// Calls per second without the relay.
    direct: f64,
    /// The relay's processor seconds per message.
    cost: f64,
}

impl Round {
    fn json(&self) -> serde_json::Value {
        json!({
            "delivered_per_second": self.delivered,
            "accepted_per_second": self.accepted,
            "direct_per_second": self.direct,
            "relay_processor_seconds_per_message": self.cost,
        })
    }
}

async fn round(options: &Options, folder: &Path) -> anyhow::Result<Round> {
    let simulator = Simulator::open(options)?;
    let traffic = Arc::new(Traffic::new(CONTENTS, None));
    let dir = folder.join("delivering");
    let mut relay = Relay::open(options, &dir, simulator.address).await?;
    load::run(&relay.address, CONNECTIONS, &traffic, options.warm_up()).await?;
    relay.drained(LONGEST).await?;

    let (already, spent) = (relay.metrics().await?.value("messages_delivered_total"), relay.process.processor()?);
    let bounds = Bounds { messages: options.through(), within: LONGEST };
    let begun = now();
    let handed = load::run(&relay.address, CONNECTIONS, &traffic, bounds).await?;
    relay.drained(LONGEST).await?;
    let took = begun.elapsed();
    let cost = seconds(relay.process.processor()? - spent) / handed.messages as f64;

    // An empty queue alone would also be one that buried what it was given.
    let delivered = relay.metrics().await?.value("messages_delivered_total").unwrap_or(0.0) - already.unwrap_or(0.0);
    anyhow::ensure!(delivered as u64 == handed.messages, "{} accepted, {delivered} delivered", handed.messages);
    drop(relay);
    std::fs::remove_dir_all(&dir)?;

    let direct = load::run(&Address::Tcp(simulator.address), IN_FLIGHT, &traffic, bounds).await?;
    Ok(Round {
        delivered: handed.messages as f64 / seconds(took),
        accepted: handed.per_second,
        direct: direct.per_second,
        cost,
    })
}
