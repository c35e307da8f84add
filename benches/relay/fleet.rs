//! The copy in a fleet: what an accept costs whose commit also goes to three NATS servers, and how many a second there are.
//!
//! Three `nats-server` with `sync_interval: always` run beside the relay, on the same processors and the same disk: a
//! harder case than three machines. The rivals of an accept over one connection are a bare publish of the same bytes to
//! a stream of the same servers, by the relay's own client library, and two bare fdatasyncs: its own and what the disk
//! takes longer while three servers sync too. The rival of 64 connections is the same relay without a fleet, or the
//! binary of `--than`. That of a relay that is behind, because its servers are gone, is the same relay without a fleet,
//! with the same settings and as many messages queued. The rounds' ratios are paired.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::{Client, HeaderMap, Request};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::appending;
use crate::load;
use crate::measure::{Figures, median, now};
use crate::options::Options;
use crate::process::Process;
use crate::relay::{ClosedPort, Relay};
use crate::report::{Report, Table, Target, millis, ratio, seconds, tenths, whole};
use crate::traffic::{CONVERSATIONS, Traffic};

const CONTENTS: usize = 600;
/// The time-out for servers and relays to be ready.
const READY: Duration = Duration::from_secs(60);

/// Measures and prints.
pub async fn run(options: &Options, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let closed = ClosedPort::take()?;
    let mut rounds = Vec::new();
    for nth in 0..options.rounds() {
        let round = round(options, folder, &closed).await?;
        report.round("fleet", &format!("{CONTENTS} bytes"), nth, round.json());
        rounds.push(round);
    }
    let middle = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
    let of_rivals =
        |round: &Round| seconds(round.one.p50) / (seconds(round.publish.p50) + 2.0 * seconds(round.sync.p50));
    let of_alone = |round: &Round| round.many.per_second / round.alone.per_second;
    let behind = |round: &Round| round.behind.per_second / round.filled.per_second;
    let mut table = Table::new(
        &["", "p50 of (a)", "rate of (b)", "behind, of (c)"],
        &[
            "p50",
            "publish",
            "fdatasync",
            "accepts/s",
            "messages a commit",
            "behind/s",
            "(b)/s",
            "(c)/s",
            "processor us",
            "(b)'s us",
        ],
    );
    table.row(vec![
        "1 and 64 connections".to_owned(),
        ratio(middle(of_rivals)),
        ratio(middle(of_alone)),
        ratio(middle(behind)),
        millis(middle(|round| seconds(round.one.p50))),
        millis(middle(|round| seconds(round.publish.p50))),
        millis(middle(|round| seconds(round.sync.p50))),
        whole(middle(|round| round.many.per_second)),
        tenths(middle(|round| round.group)),
        whole(middle(|round| round.behind.per_second)),
        whole(middle(|round| round.alone.per_second)),
        whole(middle(|round| round.filled.per_second)),
        tenths(middle(|round| round.cost * 1e6)),
        tenths(middle(|round| round.alone_cost * 1e6)),
    ]);
    let title = format!("A copy in a fleet, texts of {CONTENTS} bytes, {CONVERSATIONS} conversations");
    let rival = match &options.than {
        Some(than) => than.display().to_string(),
        None => "the same relay".to_owned(),
    };
    let note = format!(
        "  (a) a publish of the same bytes to the same servers and two fdatasyncs of them; (b) {rival} without a fleet;\n  \
         (c) the same relay without a fleet, with a key file and as many messages queued.\n  \
         p50 is of one connection, in ms; the rates are of 64."
    );
    table.print(&title, &note);
    let one = "an accept with a copy, of a publish and two fdatasyncs";
    report.target(one, Target::AtMost(1.0), "", middle(of_rivals));
    report.target("accepts at 64 connections with a copy, of without", Target::AtLeast(0.5), "", middle(of_alone));
    report.target("the same while behind", Target::AtLeast(0.95), "", middle(behind));
    Ok(())
}

struct Round {
    /// One connection, with a copy.
    one: Figures,
    /// A bare publish.
    publish: Figures,
    /// A bare append and its fdatasync.
    sync: Figures,
    /// 64 connections: with a copy, while behind, and their rivals without a fleet.
    many: Figures,
    behind: Figures,
    alone: Figures,
    filled: Figures,
    /// Messages per commit with a copy.
    group: f64,
    /// Processor seconds per message.
    cost: f64,
    alone_cost: f64,
}

impl Round {
    fn json(&self) -> Value {
        json!({
            "relay": self.one.json(),
            "publish": self.publish.json(),
            "append_fdatasync": self.sync.json(),
            "relay_64": self.many.json(),
            "relay_64_commit_messages": self.group,
            "relay_64_processor_seconds_per_message": self.cost,
            "relay_64_behind": self.behind.json(),
            "without_fleet_64": self.alone.json(),
            "without_fleet_64_processor_seconds_per_message": self.alone_cost,
            "without_fleet_64_filled": self.filled.json(),
        })
    }
}

async fn round(options: &Options, folder: &Path, closed: &ClosedPort) -> anyhow::Result<Round> {
    let (warm_up, bounds) = (options.warm_up(), options.round());
    let dir = folder.join("copied");
    let traffic = Arc::new(Traffic::new(CONTENTS, None));

    let mut alone = Relay::open(&options.of_rival(), &dir, closed.address).await?;
    load::run(&alone.address, 64, &traffic, warm_up).await?;
    let spent = alone.process.processor()?;
    let without = load::run(&alone.address, 64, &traffic, bounds).await?;
    let alone_cost = seconds(alone.process.processor()? - spent) / without.messages as f64;
    alone.check()?;
    drop(alone);
    std::fs::remove_dir_all(&dir)?;

    let servers = Servers::open(options, folder).await?;
    let own = own_settings(folder)?;
    let all: Vec<_> = own.iter().cloned().chain(servers.settings()).collect();
    let traffic = Arc::new(Traffic::new(CONTENTS, None));
    let mut relay = Relay::open_with(options, &dir, closed.address, &all).await?;
    until(&mut relay, |behind| behind == 0.0).await?;
    load::run(&relay.address, 1, &traffic, warm_up).await?;
    let one = load::run(&relay.address, 1, &traffic, bounds).await?;
    let bytes = servers.record_bytes().await?;
    let publish = servers.publish(bytes, bounds).await?;
    let sync = appending::run(folder, bytes, 1, Duration::ZERO, bounds)?;

    load::run(&relay.address, 64, &traffic, warm_up).await?;
    let (before, spent) = (relay.metrics().await?, relay.process.processor()?);
    let many = load::run(&relay.address, 64, &traffic, bounds).await?;
    let cost = seconds(relay.process.processor()? - spent) / many.messages as f64;
    let after = relay.metrics().await?;
    let group = after.mean_since(&before, "commit_messages").unwrap_or(f64::NAN);
    anyhow::ensure!(after.value("fleet_behind_commits") == Some(0.0), "the relay was behind");

    drop(servers);
    until(&mut relay, |behind| behind > 0.0).await?;
    load::run(&relay.address, 64, &traffic, warm_up).await?;
    let queued = relay.metrics().await?.value("messages_accepted_total").unwrap_or(0.0);
    let behind = load::run(&relay.address, 64, &traffic, bounds).await?;
    relay.check()?;
    drop(relay);
    std::fs::remove_dir_all(&dir)?;

    let traffic = Arc::new(Traffic::new(CONTENTS, None));
    let mut filled = Relay::open_with(options, &dir, closed.address, &own).await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
    let queued = load::Bounds { messages: queued as u64, within: READY };
    load::run(&filled.address, 64, &traffic, queued).await?;
    let as_full = load::run(&filled.address, 64, &traffic, bounds).await?;
    filled.check()?;
    drop(filled);
    std::fs::remove_dir_all(&dir)?;
    Ok(Round { one, publish, sync, many, behind, alone: without, filled: as_full, group, cost, alone_cost })
}

/// The settings of a relay with a copy that it could have without one, by the names of their variables.
fn own_settings(folder: &Path) -> anyhow::Result<[(&'static str, String); 2]> {
    let keys = folder.join("keys");
    std::fs::write(&keys, "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n")?;
    Ok([
        ("CONNECT_RELAY__QUEUE__KEY_FILE", keys.display().to_string()),
        // A stream of four times the bench's usual limit is more than a server would promise.
        ("CONNECT_RELAY__QUEUE__BYTES_MAX", "1GiB".to_owned()),
    ])
}

/// Waits until the relay's time behind is as wanted.
async fn until(relay: &mut Relay, wanted: impl Fn(f64) -> bool) -> anyhow::Result<()> {
    let end = now() + READY;
    loop {
        relay.check()?;
        let behind = relay.metrics().await?.value("fleet_behind_seconds");
        if behind.is_some_and(&wanted) {
            return Ok(());
        }
        anyhow::ensure!(now() < end, "the relay is behind for {behind:?} s");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Three servers that form a cluster.
struct Servers {
    addresses: Vec<SocketAddr>,
    folder: PathBuf,
    processes: Vec<Process>,
}

impl Servers {
    async fn open(options: &Options, folder: &Path) -> anyhow::Result<Servers> {
        let program = options.nats_server.as_ref().context("name a nats-server with --nats-server PATH")?;
        let folder = folder.join("nats");
        let free = || -> anyhow::Result<TcpListener> { Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?) };
        let held = (0..6).map(|_| free()).collect::<anyhow::Result<Vec<_>>>()?;
        let all = held.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
        drop(held);
        let (addresses, routes) = all.split_at(3);
        let listed: Vec<String> = routes.iter().map(|route| format!("\"nats://{route}\"")).collect();
        let mut processes = Vec::new();
        for (nth, (address, route)) in addresses.iter().zip(routes).enumerate() {
            let own = folder.join(nth.to_string());
            std::fs::create_dir_all(&own)?;
            let config = format!(
                "listen: \"{address}\"\nserver_name: \"n{nth}\"\n\
                 jetstream {{ store_dir: \"{}\", sync_interval: always }}\n\
                 cluster {{ name: \"c\", listen: \"{route}\", routes: [{}] }}\n",
                own.join("js").display(),
                listed.join(", "),
            );
            std::fs::write(own.join("conf"), config)?;
            let mut command = Command::new(program);
            command.arg("-c").arg(own.join("conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            processes.push(Process::start(&mut command)?);
        }
        Ok(Servers { addresses: addresses.to_vec(), folder, processes })
    }

    /// The settings of a relay whose queue is copied to them, besides its own.
    fn settings(&self) -> [(&'static str, String); 5] {
        let servers: Vec<String> = self.addresses.iter().map(|address| format!("nats://{address}")).collect();
        [
            ("CONNECT_RELAY__FLEET__SERVERS", servers.join(",")),
            ("CONNECT_RELAY__FLEET__SHARE_QUOTA", "false".to_owned()),
            ("CONNECT_RELAY__FLEET__REPLICATE", "true".to_owned()),
            ("CONNECT_RELAY__FLEET__IDENTITY", "bench-0".to_owned()),
            ("CONNECT_RELAY__FLEET__STREAM_BYTES_MAX", "4GiB".to_owned()),
        ]
    }

    /// The mean length of the relay's records so far.
    async fn record_bytes(&self) -> anyhow::Result<usize> {
        let client = async_nats::connect(self.addresses[0].to_string()).await?;
        let subject = "$JS.API.STREAM.INFO.CR_connect-relay=_bench-0";
        let state = call(&client, subject, HeaderMap::new(), Bytes::new()).await?["state"].take();
        let (bytes, messages) = (state["bytes"].as_u64(), state["messages"].as_u64());
        let mean = bytes.zip(messages).and_then(|(bytes, messages)| bytes.checked_div(messages));
        Ok(usize::try_from(mean.with_context(|| format!("the relay's stream: {state}"))?)?)
    }

    /// Publishes records of so many bytes to a stream with three copies, one after the other.
    async fn publish(&self, bytes: usize, bounds: load::Bounds) -> anyhow::Result<Figures> {
        let client = async_nats::connect(self.addresses[0].to_string()).await?;
        let stream = json!({
            "name": "bare", "subjects": ["bare"], "retention": "limits", "storage": "file", "discard": "new",
            "num_replicas": 3, "max_bytes": 512 << 20, "deny_delete": true,
        });
        call(&client, "$JS.API.STREAM.CREATE.bare", HeaderMap::new(), stream.to_string().into()).await?;
        let record = Bytes::from(vec![b'r'; bytes]);
        let (mut begun, mut latencies, mut sequence) = (now(), Vec::new(), 0u64);
        loop {
            let published = now();
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Expected-Last-Sequence", sequence.to_string().as_str());
            headers.insert("Nats-Expected-Stream", "bare");
            let answer = call(&client, "bare", headers, record.clone()).await?;
            sequence = answer["seq"].as_u64().with_context(|| format!("publish: {answer}"))?;
            latencies.push(published.elapsed());
            if sequence == 50 {
                // The first ones warmed up.
                (begun, latencies) = (now(), Vec::new());
            } else if begun.elapsed() >= bounds.within {
                return Ok(Figures::of(latencies.len() as u64, begun.elapsed(), latencies));
            }
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.processes.clear();
        // Whatever is left goes with the folder of the run.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn call(client: &Client, subject: &str, headers: HeaderMap, payload: Bytes) -> anyhow::Result<Value> {
    let request = Request::new().headers(headers).payload(payload).timeout(Some(Duration::from_secs(20)));
    Ok(serde_json::from_slice(&client.send_request(subject.to_owned(), request).await?.payload)?)
}
