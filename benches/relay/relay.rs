//! The relay under test: the binary as a process, its folder, and what it says of itself.
//!
//! Its settings are production's, in a file of its own that hides whatever the machine has in `/etc`, but for what the
//! measurement needs: room for what is queued, connections for 64 callers of one user, a lifetime that outlasts the run,
//! and a quota that never binds. The log level is `info` as in production, a line per message, thrown away.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpSocket;

use crate::http::Address;
use crate::options::Options;
use crate::process::Process;

/// The time-out for a relay to open its listeners: first it opens a store of a million messages.
const OPENING: Duration = Duration::from_secs(120);

/// A relay that runs; dropping it kills it, as a node that dies would.
#[derive(Debug)]
pub struct Relay {
    /// The process.
    pub process: Process,
    /// The address of the bots' API.
    pub address: Address,
    admin: Address,
    log: Option<PathBuf>,
}

impl Relay {
    /// Starts one on a folder; it may still be opening.
    pub fn start(options: &Options, dir: &Path, upstream: SocketAddr) -> anyhow::Result<Relay> {
        Relay::start_with(options, dir, upstream, &[])
    }

    fn start_with(
        options: &Options,
        dir: &Path,
        upstream: SocketAddr,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Relay> {
        fs::create_dir_all(dir)?;
        let admin = free_address()?;
        let config = dir.join("relay.toml");
        fs::write(&config, settings(options, upstream, admin))?;
        let log = match &options.relay_log {
            Some(path) => OpenOptions::new().append(true).create(true).open(path)?,
            None => OpenOptions::new().write(true).open("/dev/null")?,
        };
        let mut command = relay_command(options);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.arg("run").arg("--config").arg(&config).arg("--dir").arg(dir);
        let process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))?;
        let address = Address::Unix(dir.join("relay.sock"));
        Ok(Relay { process, address, admin: Address::Tcp(admin), log: options.relay_log.clone() })
    }

    /// Starts one and waits until it listens.
    pub async fn open(options: &Options, dir: &Path, upstream: SocketAddr) -> anyhow::Result<Relay> {
        Relay::open_with(options, dir, upstream, &[]).await
    }

    /// The same, with more settings, by the names of their variables.
    pub async fn open_with(
        options: &Options,
        dir: &Path,
        upstream: SocketAddr,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Relay> {
        let mut relay = Relay::start_with(options, dir, upstream, environment)?;
        let until = relay.process.started + OPENING;
        while relay.address.connect().await.is_err() {
            relay.check()?;
            anyhow::ensure!(crate::measure::now() < until, "the relay did not listen within {OPENING:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(relay)
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.process.ended() else { return Ok(()) };
        match &self.log {
            Some(path) => anyhow::bail!("the relay ended by itself ({status}); its log is in {}", path.display()),
            None => anyhow::bail!("the relay ended by itself ({status}); --relay-log FILE keeps what it says"),
        }
    }

    /// Its metrics, read once.
    pub async fn metrics(&self) -> anyhow::Result<Samples> {
        Ok(Samples(self.admin.get("/metrics", "").await?))
    }

    /// Waits until this caller has nothing queued any more.
    pub async fn drained(&mut self, within: Duration) -> anyhow::Result<()> {
        let until = crate::measure::now() + within;
        loop {
            self.check()?;
            let backlog = self.address.get("/participant/queue", "Prefer: wait=10\r\n").await?;
            let backlog: serde_json::Value = serde_json::from_str(&backlog).context("read /participant/queue")?;
            match backlog["Queued"].as_u64() {
                Some(0) => return Ok(()),
                Some(queued) => {
                    anyhow::ensure!(crate::measure::now() < until, "{queued} are still queued after {within:?}");
                }
                None => anyhow::bail!("/participant/queue answered {backlog}"),
            }
        }
    }
}

/// One reading of `/metrics`.
#[derive(Debug)]
pub struct Samples(String);

impl Samples {
    /// A metric's value, all label sets together; `None` if it has no sample.
    pub fn value(&self, name: &str) -> Option<f64> {
        let name = format!("connect_relay_{name}");
        let samples = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(&name).filter(|rest| rest.starts_with([' ', '{']))?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        samples.fold(None, |sum: Option<f64>, sample| Some(sum.unwrap_or(0.0) + sample))
    }

    /// A histogram's mean since an earlier reading.
    pub fn mean_since(&self, earlier: &Samples, name: &str) -> Option<f64> {
        let grown = |part: &str| {
            let name = format!("{name}_{part}");
            Some(self.value(&name)? - earlier.value(&name).unwrap_or(0.0))
        };
        Some(grown("sum")? / grown("count").filter(|count| *count > 0.0)?)
    }
}

/// The project's own stand-in for the Participant Service, without a quota and without latency.
#[derive(Debug)]
pub struct Simulator {
    /// Its address.
    pub address: SocketAddr,
    _process: Process,
}

impl Simulator {
    /// Starts one and waits until it listens.
    pub fn open(options: &Options) -> anyhow::Result<Simulator> {
        let mut command = relay_command(options);
        command.args(["simulate", "--listen", "127.0.0.1:0", "--rate", "1000000000", "--burst", "1000000"]);
        command.args(["--latency", "0ms", "--jitter", "0ms"]);
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let mut said = BufReader::new(process.child.stderr.take().context("the simulator's stderr")?).lines();
        let address = said
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("listening on http://").map(|(_, address)| address.trim().to_owned()))
            .context("the simulator ended before it listened")?;
        // Whatever else it says is read, so that a full pipe never stops it.
        std::thread::spawn(move || said.for_each(drop));
        let address = address.trim_end_matches('/');
        let address = address.parse().with_context(|| format!("the simulator's {address}"))?;
        Ok(Simulator { address, _process: process })
    }
}

/// An address that refuses every connection for as long as this lives: bound, and never listened on.
#[derive(Debug)]
pub struct ClosedPort {
    /// The address.
    pub address: SocketAddr,
    _held: TcpSocket,
}

impl ClosedPort {
    /// Takes one.
    pub fn take() -> anyhow::Result<ClosedPort> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(ClosedPort { address: socket.local_addr()?, _held: socket })
    }
}

/// The folder below a relay's that sled calls its own.
pub fn store_in(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("db").is_file() && folder.join("conf").is_file() {
            return Ok(folder);
        }
        for entry in fs::read_dir(&folder)?.filter_map(Result::ok) {
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    anyhow::bail!("no store of sled's in {}", dir.display())
}

fn relay_command(options: &Options) -> Command {
    let mut command = Command::new(&options.relay);
    // The environment goes before the file, and this one's is arbitrary.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONNECT_RELAY_") {
            command.env_remove(name);
        }
    }
    command
}

fn settings(options: &Options, upstream: SocketAddr, admin: SocketAddr) -> String {
    format!(
        r#"[ingress]
connections_max = 1024
[queue]
messages_max = 3000000
bytes_max = "32GiB"
[sender]
endpoint = "http://{upstream}"
quota_rate = 100000.0
quota_burst = 1000000
lifetime = "24h"
[admin]
listen = "{admin}"
[log]
level = "{}"
"#,
        options.log_level
    )
}

/// A loopback address that was free a moment ago; the relay says so if it no longer is.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
