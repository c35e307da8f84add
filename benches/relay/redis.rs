//! Rival (c), by option: Redis Streams with `appendfsync always`, the usual answer to "why not just use Redis?".
//!
//! redis-server on a Unix socket on the same disk, a stream per conversation, loaded by its own redis-benchmark with the
//! same connections and the same bytes per message; a batch is a pipeline. It recognizes no repeats and expires
//! nothing, so it does less than the relay does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixStream;

use crate::load::Bounds;
use crate::measure::Figures;
use crate::process::Process;
use crate::traffic::CONVERSATIONS;

/// Fails, and says what to install, where Redis is missing.
pub fn installed() -> anyhow::Result<()> {
    let there = |program: &str| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    anyhow::ensure!(
        there("redis-server") && there("redis-benchmark"),
        "--redis needs redis-server and redis-benchmark on PATH: apt-get install redis-server redis-tools (Debian, \
         Ubuntu), dnf install redis (Fedora), apk add redis (Alpine); the service need not run"
    );
    Ok(())
}

/// A server with an empty store of its own.
#[derive(Debug)]
pub struct Redis {
    _process: Process,
    socket: PathBuf,
}

impl Redis {
    /// Starts it in a new folder and waits until it listens.
    pub async fn open(folder: &Path) -> anyhow::Result<Redis> {
        fs::create_dir_all(folder)?;
        let socket = folder.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        // A rewrite of its log would be work that the relay is not asked to do in its turn.
        command.args(["--auto-aof-rewrite-percentage", "0", "--daemonize", "no"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(folder);
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        while UnixStream::connect(&socket).await.is_err() {
            anyhow::ensure!(process.ended().is_none(), "redis-server ended by itself");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(Redis { _process: process, socket })
    }

    /// Adds messages over so many connections, `pipeline` at a time. The number of messages is set beforehand, from a
    /// short run, because redis-benchmark knows no time limit.
    pub fn run(&self, connections: usize, pipeline: usize, bytes: usize, bounds: Bounds) -> anyhow::Result<Figures> {
        let least = (connections * pipeline * 4).max(400) as u64;
        let tried = self.add(connections, pipeline, bytes, least)?;
        let fitting = (tried.per_second * bounds.within.as_secs_f64()) as u64;
        self.add(connections, pipeline, bytes, fitting.clamp(least, bounds.messages.max(least)))
    }

    fn add(&self, connections: usize, pipeline: usize, bytes: usize, messages: u64) -> anyhow::Result<Figures> {
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(&self.socket).arg("--csv");
        for (flag, value) in
            [("-c", connections as u64), ("-P", pipeline as u64), ("-n", messages), ("-r", CONVERSATIONS)]
        {
            command.arg(flag).arg(value.to_string());
        }
        command.args(["XADD", "conversation:__rand_int__", "*", "m", &"r".repeat(bytes)]);
        let output = command.stdin(Stdio::null()).output().context("run redis-benchmark")?;
        let said = String::from_utf8_lossy(&output.stdout);
        anyhow::ensure!(output.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&output.stderr));
        read(&said, messages).with_context(|| format!("read redis-benchmark's table: {said:.200}"))
    }
}

/// Its CSV: rate and latencies (mean, least, p50, p95, p99, most; ms) are at the end of the last line, after the
/// command in full.
fn read(csv: &str, messages: u64) -> Option<Figures> {
    let line = csv.lines().rfind(|line| !line.trim().is_empty())?;
    let figures: Vec<f64> =
        line.rsplit(',').take(7).map_while(|figure| figure.trim().trim_matches('"').parse().ok()).collect();
    let millis = |at: usize| Some(Duration::from_secs_f64(figures.get(at)? / 1000.0));
    Some(Figures { messages, per_second: *figures.get(6)?, p50: millis(3)?, p99: millis(1)? })
}
