//! Measures the costs of the relay against those of the same work without it: one command, one run, one machine.
//!
//! ```text
//! cargo bench --profile dist                 the figures as published: the binary of the image (a longer build)
//! cargo bench                                everything but the long parts, in about five minutes
//! cargo bench -- accept                      one section: accept, deliver, wait, memory, fleet
//! cargo bench -- --quick                     seconds per section: does it run at all? (no figure to quote)
//! cargo bench -- --redis                     Redis Streams, appendfsync always, as one more rival
//! cargo bench -- fleet --nats-server PATH    accepts whose commits go to three NATS servers too
//! cargo bench -- memory --million --deliveries 864000
//! ```
//!
//! A figure of one machine says little about another, and this kind of machine is noisy. So what is printed first,
//! and what may be quoted, are **ratios**: the relay and its rival take turns (A B A B), each round gives one ratio, and
//! the median of the rounds is shown. The absolute figures are beside it, marked as this run's.
//!
//! | section | the relay | its rivals |
//! | --- | --- | --- |
//! | accept | durable accepts at 1, 16 and 64 connections and in batches | the same hyper server without a store; append + fdatasync of the same bytes in the same groups; Redis |
//! | deliver | accept, deliver, record | the same client calling the same upstream directly |
//! | wait | one bot, 50 sends a second, each answered by its delivery | the same client calling the same upstream directly; append + fdatasync |
//! | memory | resident, and start to first delivery, with so many queued | sled reopening a copy of the same folder |
//! | fleet | durable accepts with a copy in three NATS servers | a bare publish and two fdatasyncs; the relay without a fleet |
//!
//! Every process measured is a process of its own: the relay is the binary of the same build profile, a rival is this program started
//! again with a hidden word. The load comes from this process, from one thread, so on two cores the relay and the
//! generator share them; the rivals are measured under the same burden. Each run is bounded in messages and in time.
//!
//! Everything stays in one folder, which must be on the disk to be measured (`--dir`; by default in the target folder,
//! never in `/tmp`, which is memory on many machines), and is removed at the end.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::options::{Options, Section};
use crate::report::Report;

#[path = "relay/accept.rs"]
mod accept;
#[path = "relay/appending.rs"]
mod appending;
#[path = "relay/bare.rs"]
mod bare;
#[path = "relay/deliver.rs"]
mod deliver;
#[cfg(feature = "fleet")]
#[path = "relay/fleet.rs"]
mod fleet;
#[path = "relay/http.rs"]
mod http;
#[path = "relay/load.rs"]
mod load;
#[path = "relay/measure.rs"]
mod measure;
#[path = "relay/memory.rs"]
mod memory;
#[path = "relay/options.rs"]
mod options;
#[path = "relay/process.rs"]
mod process;
#[path = "relay/redis.rs"]
mod redis;
#[path = "relay/relay.rs"]
mod relay;
#[path = "relay/reopen.rs"]
mod reopen;
#[path = "relay/report.rs"]
mod report;
#[path = "relay/starts.rs"]
mod starts;
#[path = "relay/traffic.rs"]
mod traffic;
#[path = "relay/upstream.rs"]
mod upstream;
#[path = "relay/wait.rs"]
mod wait;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, bare::WORD, socket] => bare::serve(Path::new(socket)),
        [_, reopen::WORD, folder] => reopen::hold(Path::new(folder)),
        _ => measure(&Options::read()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> anyhow::Result<()> {
    if !options.bench {
        // `cargo test --all-targets` runs benches too, unoptimized: such figures would only mislead.
        println!("nothing measured: run by `cargo bench`");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Dropping the sections' future ends the processes they started and removes their folder. A terminal interrupts
        // those processes too: the signal is looked at before what their end led to.
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("terminated"),
            outcome = sections(options) => outcome,
        }
    })
}

async fn sections(options: &Options) -> anyhow::Result<()> {
    let folder = options.folder()?;
    let mut report = Report::begin(options, folder.path())?;
    for section in options.sections() {
        match section {
            Section::Accept => accept::run(options, folder.path(), &mut report).await.context("accept")?,
            Section::Deliver => deliver::run(options, folder.path(), &mut report).await.context("deliver")?,
            Section::Wait => wait::run(options, folder.path(), &mut report).await.context("wait")?,
            Section::Memory => memory::run(options, folder.path(), &mut report).await.context("memory")?,
            #[cfg(feature = "fleet")]
            Section::Fleet => fleet::run(options, folder.path(), &mut report).await.context("fleet")?,
            #[cfg(not(feature = "fleet"))]
            Section::Fleet => anyhow::bail!("this build has no fleet: build it with the feature `fleet`"),
        }
    }
    report.finish(options.json.as_deref())
}
