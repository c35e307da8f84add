//! The demo of a fleet: three NATS servers, and a relay in a process of its own that is killed with its folder. The relay
//! that starts in its place, on an empty folder, restores the queue from the servers. Then the server that leads the
//! stream is killed.
//!
//! | act | begins | ends |
//! | --- | --- | --- |
//! | `Writing` | at the start | half of the messages are acknowledged, and the servers have all of them: the relay is killed, its folder removed, and it is started again |
//! | `Restoring` | with that | the new relay has the queue, its copy is up, and more messages are acknowledged: the leading server is killed |
//! | `Electing` | with that | the copy is up again |
//! | `Done` | with that | |

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::process::Process;
use super::relay::{Quota, settings};
use super::servers::Servers;
use super::view::Sample;
use crate::cli::client;
use crate::config::{Config, Sources};
use crate::control::Status;
use crate::fleet::Options;
use crate::fleet::operate::leader;
use crate::time::Timestamp;

/// The relay's `fleet.identity`.
const IDENTITY: &str = "demo-0";
/// The shortest `fleet.lease`.
const LEASE: &str = "10s";
/// The most bytes of the stream, which the servers reserve.
const STREAM: &str = "64MiB";
/// The limit of the queue, which belongs to that of the stream.
const QUEUE: &str = "16MiB";
/// The time for the servers to form a cluster, and the relay to join it.
const FORM: Duration = Duration::from_secs(40);
/// The time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The time for an answer of the relay.
const ANSWER: Duration = Duration::from_secs(5);
/// The time for an answer of the server that leads the stream.
const LEADER: Duration = Duration::from_secs(1);

/// The servers and the relay.
#[derive(Debug)]
pub(super) struct Fleet {
    /// The bots' socket.
    pub socket: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    environment: Vec<(String, String)>,
    options: Options,
    relay: Process,
    servers: Servers,
    act: Act,
    /// The messages that were queued when the relay was killed, and the time of that.
    lost: Option<(u64, Timestamp)>,
    /// The messages that were restored, and how long that took.
    restored: Option<(u64, Duration)>,
    /// The server that was killed.
    killed: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Writing,
    Restoring,
    Electing,
    Done,
}

impl Act {
    fn explain(self) -> Option<&'static str> {
        match self {
            Act::Writing | Act::Done => None,
            Act::Restoring => Some(
                "the relay was killed and its folder removed: the next one waits for the lease, and restores the queue",
            ),
            Act::Electing => {
                Some("a NATS server was killed: the relay accepts and sends while the others elect a leader")
            }
        }
    }
}

impl Fleet {
    /// Starts the servers and the relay, and waits until the relay's copy is up.
    pub(super) async fn start(folder: &Path, endpoint: SocketAddr, quota: Quota, log: &Path) -> anyhow::Result<Fleet> {
        let servers = Servers::start(&folder.join("servers"))?;
        let keys = folder.join("queue.keys");
        write_key(&keys).with_context(|| format!("write {}", keys.display()))?;
        let mut environment = settings(endpoint, quota);
        let more = [
            ("FLEET__SERVERS", servers.urls.as_str()),
            ("FLEET__SHARE_QUOTA", "false"),
            ("FLEET__REPLICATE", "true"),
            ("FLEET__IDENTITY", IDENTITY),
            ("FLEET__LEASE", LEASE),
            ("FLEET__STREAM_BYTES_MAX", STREAM),
            ("QUEUE__BYTES_MAX", QUEUE),
            ("QUEUE__KEY_FILE", keys.to_str().context("a temporary folder whose name is UTF-8")?),
        ];
        environment.extend(more.map(|(key, value)| (format!("CONNECT_RELAY__{key}"), value.to_owned())));
        let folder = folder.join("relay");
        let of_config = environment.iter().map(|(key, value)| (key.into(), value.into())).collect();
        let config = Config::load(&Sources { file: None, environment: of_config, dir: Some(folder.clone()) })?;
        let relay = run(&folder, &environment, log)?;
        let mut fleet = Fleet {
            socket: config.settings.ingress.socket.clone(),
            folder,
            log: log.to_owned(),
            environment,
            options: config.fleet().context("the settings of the fleet")?,
            relay,
            servers,
            act: Act::Writing,
            lost: None,
            restored: None,
            killed: None,
        };
        let formed = async {
            loop {
                fleet.check()?;
                if fleet.is_up().await.is_some() {
                    return anyhow::Ok(());
                }
                sleep(LOOK).await;
            }
        };
        timeout(FORM, formed).await.context("start the fleet: its servers were not ready in time")??;
        Ok(fleet)
    }

    /// Fails if a part has ended by itself.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(why) = self.servers.ended() {
            bail!("{why}");
        }
        if let Some(status) = self.relay.ended() {
            let why = self.log_lines("failed").last().map_or_else(String::new, |line| format!(": {}", line["error"]));
            bail!("the relay ended by itself, {status}{why}");
        }
        Ok(())
    }

    /// Does what is next, if it is time. Returns the sentence for the view.
    pub(super) async fn step(&mut self, now: &Sample) -> anyhow::Result<Option<&'static str>> {
        self.check()?;
        match self.act {
            Act::Writing if now.acknowledged * 2 >= now.total => {
                if let Some(status) = self.is_up().await {
                    self.relay.kill();
                    fs::remove_dir_all(&self.folder).with_context(|| format!("remove {}", self.folder.display()))?;
                    self.lost = Some((status.queued, now.at));
                    self.relay = run(&self.folder, &self.environment, &self.log)?;
                    self.act = Act::Restoring;
                }
            }
            Act::Restoring if self.is_up().await.is_some() => {
                if self.restored.is_none() {
                    let restored = self.log_lines("queue restored").last().and_then(|line| line["queued"].as_u64());
                    let took = self.lost.map_or(Duration::ZERO, |(_, since)| now.at.since(since));
                    self.restored = Some((restored.unwrap_or(0), took));
                }
                // The servers get some of the messages that are accepted after the restart, too.
                if now.acknowledged * 4 >= now.total * 3
                    && let Some(name) = self.leader().await
                {
                    self.servers.kill(&name)?;
                    self.killed = Some(name);
                    self.act = Act::Electing;
                }
            }
            Act::Electing if self.is_up_again().await => self.act = Act::Done,
            Act::Writing | Act::Restoring | Act::Electing | Act::Done => {}
        }
        Ok(self.act.explain())
    }

    /// True after the last act.
    pub(super) fn is_done(&self) -> bool {
        self.act == Act::Done
    }

    /// Lets the relay deliver the queued messages and exit; after `most` it has to exit at once.
    pub(super) async fn drain(mut self, most: Duration) -> anyhow::Result<()> {
        self.relay.terminate().context("stop the relay")?;
        let mut ended = timeout(most, self.ended()).await;
        if ended.is_err() {
            // A second signal.
            self.relay.terminate().context("stop the relay")?;
            ended = timeout(ANSWER, self.ended()).await;
        }
        let status = ended.context("stop the relay: it did not exit in time")?;
        match status.code() {
            Some(0) => Ok(()),
            Some(75) => bail!("stop the relay: messages are still queued"),
            _ => bail!("stop the relay: {status}"),
        }
    }

    /// The rows of the table at the end.
    pub(super) fn rows(&self) -> Vec<(&'static str, u64, String)> {
        let mut rows = Vec::new();
        if let Some((queued, _)) = self.lost {
            rows.push(("killed", 1, format!("relay, and its folder with {queued} queued messages removed")));
        }
        if let Some((restored, took)) = self.restored {
            let seconds = took.as_secs_f64();
            rows.push((
                "restored",
                restored,
                format!("queued messages from the servers' copies, {seconds:.0} s after that"),
            ));
        }
        if let Some(name) = &self.killed {
            rows.push(("killed", 1, format!("server, {name}, which led the stream of copies")));
        }
        rows
    }

    /// Resolves with the exit status of the relay.
    async fn ended(&mut self) -> ExitStatus {
        loop {
            match self.relay.ended() {
                Some(status) => return status,
                None => sleep(LOOK).await,
            }
        }
    }

    /// The relay's status, if it answers and its copy is up.
    async fn is_up(&self) -> Option<Status> {
        let socket = self.folder.join("private/control.sock");
        let (_, status) = client::get::<Status>(&socket, "/status", ANSWER).await.ok()?;
        let up = status.fleet.as_ref()?.copy.as_ref()?.state == "up";
        up.then_some(status)
    }

    /// True if another server leads the stream than the one that was killed, and the relay's copy is up.
    async fn is_up_again(&self) -> bool {
        let leader = self.leader().await;
        leader.is_some() && leader != self.killed && self.is_up().await.is_some()
    }

    /// The server that leads the stream. During an election the servers do not answer, and the view goes on.
    async fn leader(&self) -> Option<String> {
        timeout(LEADER, leader(&self.options, IDENTITY)).await.ok()?.ok().flatten()
    }

    /// The lines of the relay's log with this text.
    fn log_lines(&self, text: &str) -> Vec<Value> {
        let Ok(file) = fs::File::open(&self.log) else { return Vec::new() };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        let parsed = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        parsed.filter(|line| line["message"] == text).collect()
    }
}

/// Starts this program as a relay, with these settings and nothing else of the environment.
fn run(folder: &Path, environment: &[(String, String)], log: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("connect-relay").args(["run", "--dir"]).arg(folder);
    command.env_clear().envs(environment.iter().map(|(key, value)| (key, value)));
    Process::start(&mut command, log)
}

/// Writes a key of 32 random bytes.
fn write_key(path: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    let bytes = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    writeln!(file, "{}", BASE64_STANDARD.encode(bytes))
}
