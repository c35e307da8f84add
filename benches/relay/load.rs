//! The load: so many connections, each of which sends its next request when the last one is answered.
//!
//! A closed loop, as bots are that wait for their reply: what it measures at 64 connections is how well a server serves
//! 64 callers at once, not how long a queue before it may grow. A reply that is not an acceptance ends the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;

use crate::http::{Address, Connection, Reply};
use crate::measure::{Figures, now};
use crate::traffic::Traffic;

/// The limits of a run; the first one that is reached ends it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Messages.
    pub messages: u64,
    /// Time.
    pub within: Duration,
}

/// Sends messages over so many connections until a bound is met.
pub async fn run(
    address: &Address,
    connections: usize,
    traffic: &Arc<Traffic>,
    bounds: Bounds,
) -> anyhow::Result<Figures> {
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(address.connect().await.with_context(|| format!("connect to {address:?}"))?);
    }
    let begun = now();
    let left = Arc::new(AtomicU64::new(bounds.messages.div_ceil(traffic.per_request())));
    let mut callers = JoinSet::new();
    for connection in open {
        callers.spawn(call(connection, Arc::clone(traffic), Arc::clone(&left), begun + bounds.within));
    }
    let mut latencies = Vec::new();
    while let Some(done) = callers.join_next().await {
        latencies.extend(done??);
    }
    let took = begun.elapsed();
    Ok(Figures::of(latencies.len() as u64 * traffic.per_request(), took, latencies))
}

async fn call(
    mut connection: Connection,
    traffic: Arc<Traffic>,
    left: Arc<AtomicU64>,
    until: Instant,
) -> anyhow::Result<Vec<Duration>> {
    let mut request = traffic.request();
    let mut latencies = Vec::new();
    loop {
        let sent = now();
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if taken.is_err() || sent >= until {
            return Ok(latencies);
        }
        let reply = connection.call(request.numbered(traffic.take())).await?;
        latencies.push(sent.elapsed());
        accepted(&reply, &traffic)?;
    }
}

/// Accepted, or delivered already; of a batch, every line of it.
fn accepted(reply: &Reply, traffic: &Traffic) -> anyhow::Result<()> {
    anyhow::ensure!(matches!(reply.status, 200 | 202), "a message was not accepted: {reply}");
    if let Some(messages) = traffic.batch {
        let lines = reply.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect::<Vec<_>>();
        anyhow::ensure!(lines.len() == messages, "{messages} lines were sent, {} answered: {reply}", lines.len());
        let accepted = |line: &&[u8]| line.windows(7).any(|member| member == br#""State""#);
        if let Some(refused) = lines.iter().find(|line| !accepted(line)) {
            anyhow::bail!("a line was not accepted: {}", String::from_utf8_lossy(refused));
        }
    }
    Ok(())
}
