//! The same for real: relay processes against `connect-relay simulate`, by the wall clock, on this machine.
//!
//! 1, 5 and 20 relays play at the same time, each group with a simulator of its own, so all of it takes twelve minutes and
//! some seconds. Every relay is the built binary with its queue in a folder of its own, filled before the first second
//! counts; the figures are each process's metrics, at 120 s and at 720 s. Every process is ended by its own id. With a
//! fleet, one `nats-server` on loopback serves all groups, each under a name of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use connect_relay::time::{Clock, Timestamp};

use crate::report::Played;
use crate::rows::ROWS;

/// Relays in a group, and the row of the table that it is compared with.
const GROUPS: [(usize, &str); 3] = [(1, "1 relay, configured with the true quota"), (5, "5 relays"), (20, "20 relays")];
/// The same for relays that share their quota.
const FLEETS: [(usize, &str); 3] =
    [(1, "1 relay, configured with the true quota"), (5, "fleet of 5"), (20, "fleet of 20")];
/// Seconds: the cold start, and the end.
const WARM: u64 = 120;
const END: u64 = 720;
/// Messages in all: what a quota of 10 per second takes in that time, and as much again, so that no queue runs dry.
const MESSAGES: usize = 14_400;
/// Chats of one relay: one message of each is under way at a time.
const CHATS: usize = 100;
/// The time-out for a process to open its listeners.
const OPENING: Duration = Duration::from_secs(60);

/// Plays all groups at once and prints each beside its row of the table. With `nats`, the binary of a NATS server, the
/// relays of a group are a fleet.
pub fn play(binary: &Path, folder: &Path, seeds: u64, nats: Option<&Path>) -> anyhow::Result<()> {
    let clock = Clock::system();
    let server = nats.map(|nats| Nats::start(nats, &clock)).transpose()?;
    let rows = if server.is_some() { FLEETS } else { GROUPS };
    println!("\nfor real, until {END} s{}:", if server.is_some() { ", as fleets" } else { "" });
    let groups: Vec<Group> = rows
        .iter()
        .map(|(count, _)| {
            let folder = folder.join(format!("of-{count}"));
            Group::start(binary, &folder, *count, server.as_ref(), &clock)
        })
        .collect::<anyhow::Result<_>>()?;
    let start = clock.now();
    let cold: Vec<_> = groups.iter().map(Group::counts).collect::<anyhow::Result<_>>()?;
    wait(&clock, start + Duration::from_secs(WARM));
    let warm: Vec<_> = groups.iter().map(Group::counts).collect::<anyhow::Result<_>>()?;
    wait(&clock, start + Duration::from_secs(END));
    let end: Vec<_> = groups.iter().map(Group::counts).collect::<anyhow::Result<_>>()?;

    println!("| relays | goodput real (simulated) | throttled | fairness | first 120 s: goodput | throttled |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (index, (count, name)) in rows.iter().enumerate() {
        let simulated = Played::new(ROWS.iter().find(|row| row.name == *name).context("its row")?, seeds);
        let mean_of = |figure: &str| {
            let found = simulated.means.iter().find(|mean| mean.name == figure);
            found.map_or(f64::NAN, |mean| mean.value)
        };
        let (early, late) = (between(&cold[index], &warm[index]), between(&warm[index], &end[index]));
        println!(
            "| {count} | {:.3} ({:.3}) | {:.2} % ({:.2} %) | {:.3} ({:.3}) | {:.3} ({:.3}) | {:.2} % ({:.2} %) |",
            late.accepted() / (10.0 * (END - WARM) as f64),
            mean_of("goodput"),
            100.0 * late.throttled_share(),
            100.0 * mean_of("throttled"),
            late.fairness(),
            if *count == 1 { 1.0 } else { mean_of("fairness") },
            early.accepted() / (10.0 * WARM as f64),
            mean_of("goodput, first 120 s"),
            100.0 * early.throttled_share(),
            100.0 * mean_of("throttled, first 120 s"),
        );
    }
    Ok(())
}

/// Relays, and the simulator that they share.
struct Group {
    admins: Vec<SocketAddr>,
    _processes: Vec<Process>,
}

impl Group {
    fn start(binary: &Path, folder: &Path, count: usize, nats: Option<&Nats>, clock: &Clock) -> anyhow::Result<Group> {
        fs::create_dir_all(folder)?;
        let mut simulator = Command::new(binary);
        simulator.args(["simulate", "--listen", "127.0.0.1:0", "--rate", "10", "--burst", "15"]).stderr(Stdio::piped());
        let mut simulator = Process::start(&mut simulator)?;
        let mut said = BufReader::new(simulator.0.stderr.take().context("the simulator's stderr")?).lines();
        let listening = said
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("listening on ")?.1.trim().to_owned()));
        let upstream = listening.context("the simulator ended before it listened")?;
        // Whatever else it says is read, so that a full pipe never stops it.
        std::thread::spawn(move || said.for_each(drop));
        let mut group = Group { admins: Vec::new(), _processes: vec![simulator] };
        let folders: Vec<PathBuf> = (0..count).map(|relay| folder.join(relay.to_string())).collect();
        for dir in &folders {
            fs::create_dir_all(dir)?;
            let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let fleet = nats.map(|nats| nats.settings(count)).unwrap_or_default();
            fs::write(dir.join("relay.toml"), settings(&upstream, admin) + &fleet)?;
            let mut relay = Command::new(binary);
            relay.args(["run", "--config"]).arg(dir.join("relay.toml")).arg("--dir").arg(dir);
            group._processes.push(Process::start(relay.stderr(fs::File::create(dir.join("log"))?))?);
            group.admins.push(admin);
        }
        let until = clock.now() + OPENING;
        for dir in &folders {
            while !dir.join("relay.sock").exists() {
                ensure!(clock.now() < until, "a relay did not open its door: {}", dir.join("log").display());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // All of them at once: they meet the bucket together.
        let mut senders = Vec::new();
        for dir in &folders {
            fs::write(dir.join("batch"), batch(MESSAGES / count))?;
            let mut send = Command::new(binary);
            send.arg("send").arg("--socket").arg(dir.join("relay.sock")).arg("--batch").arg(dir.join("batch"));
            senders.push(Process::start(send.stderr(Stdio::null()))?);
        }
        for mut sender in senders {
            ensure!(sender.0.wait()?.success(), "a batch was not accepted");
        }
        Ok(group)
    }

    fn counts(&self) -> anyhow::Result<Vec<Count>> {
        self.admins.iter().map(|admin| Count::read(*admin)).collect()
    }
}

/// The counts of one relay so far.
#[derive(Clone, Copy, Debug)]
struct Count {
    accepted: f64,
    throttled: f64,
}

impl Count {
    fn read(admin: SocketAddr) -> anyhow::Result<Count> {
        let mut stream = TcpStream::connect(admin).context("ask a relay for its metrics")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = |outcome: &str| {
            let name = format!("connect_relay_attempts_total{{outcome=\"{outcome}\"}} ");
            let sample = text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok());
            sample.with_context(|| format!("{admin} exports no attempts {outcome}"))
        };
        Ok(Count { accepted: value("delivered")?, throttled: value("throttled")? })
    }
}

/// The counts between two readings.
struct Done(Vec<Count>);

fn between(earlier: &[Count], later: &[Count]) -> Done {
    let pairs = earlier.iter().zip(later);
    Done(
        pairs.map(|(a, b)| Count { accepted: b.accepted - a.accepted, throttled: b.throttled - a.throttled }).collect(),
    )
}

impl Done {
    fn accepted(&self) -> f64 {
        self.0.iter().map(|count| count.accepted).sum()
    }

    fn throttled_share(&self) -> f64 {
        let throttled: f64 = self.0.iter().map(|count| count.throttled).sum();
        throttled / (throttled + self.accepted()).max(1.0)
    }

    fn fairness(&self) -> f64 {
        let squares: f64 = self.0.iter().map(|count| count.accepted.powi(2)).sum();
        self.accepted().powi(2) / (self.0.len() as f64 * squares.max(1.0))
    }
}

/// The NATS server of this run.
struct Nats {
    address: SocketAddr,
    _process: Process,
}

impl Nats {
    fn start(binary: &Path, clock: &Clock) -> anyhow::Result<Nats> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut server = Command::new(binary);
        server.args(["--addr", "127.0.0.1", "--port"]).arg(address.port().to_string()).stderr(Stdio::null());
        let process = Process::start(&mut server)?;
        let until = clock.now() + OPENING;
        while TcpStream::connect(address).is_err() {
            ensure!(clock.now() < until, "the NATS server did not open its port");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Nats { address, _process: process })
    }

    /// The settings of a group of this size.
    fn settings(&self, count: usize) -> String {
        format!("[fleet]\nservers = [\"nats://{}\"]\nname = \"of-{count}\"\n", self.address)
    }
}

/// A process of this run's; it is killed, and waited for, when it is dropped.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> anyhow::Result<Process> {
        // The environment goes before the file, and this one's is arbitrary.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CONNECT_RELAY_")) {
            command.env_remove(name);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Process(child.with_context(|| format!("start {}", command.get_program().display()))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn settings(upstream: &str, admin: SocketAddr) -> String {
    format!(
        "[queue]\nmessages_max = 1000000\nbytes_max = \"4GiB\"\n[sender]\nendpoint = \"{upstream}\"\nrate_min = 0.05\n\
         headroom = 0.0\nlifetime = \"1h\"\nconnect_instance = \"bench\"\n[admin]\nlisten = \"{admin}\"\n"
    )
}

fn batch(messages: usize) -> String {
    let line = |number: usize| {
        let chat = number % CHATS;
        format!(
            "{{\"ContentType\":\"text/plain\",\"Content\":\"line {number}\",\"ClientToken\":\"{number}\",\
             \"ConnectionToken\":\"chat-{chat}\"}}\n"
        )
    };
    (0..messages).map(line).collect()
}

fn wait(clock: &Clock, until: Timestamp) {
    // The wall clock is what this part is about.
    std::thread::sleep(until.since(clock.now()));
}
