//! `connect-relay check --online`: checks what a start needs, and changes nothing.
//!
//! | line | check |
//! | --- | --- |
//! | `ingress.socket`, `control.socket` | the path is free, used by a relay or held by systemd; its folder is writable |
//! | `queue.path` | the folder is writable and its disk has space; a start accepts the store's format and key |
//! | `ingress.tcp`, `admin.listen` | the port is free, or used by a relay |
//! | `resolve`, `connect`, `certificate`, `answer` | the way to the Participant Service, by one request without a token |
//! | `fleet.servers` | each server accepts the relay, the quota's subject can be used, and a copy of the queue can be stored |

use std::fmt::Write as _;

use bytesize::ByteSize;

use crate::cli::availability::{self, Api, Availability};
use crate::cli::exit_code::{CONFIG, FAILED};
use crate::config::Config;
use crate::daemon::Options;
#[cfg(feature = "fleet")]
use crate::fleet::{self, stream::StreamError};
use crate::participant::online;
use crate::queue::OpenError;
use crate::storage::{check_folder, free};
use crate::time::Clock;

/// The results, and the exit code.
#[derive(Debug, Default)]
pub struct Findings {
    /// A line for each check.
    pub text: String,
    /// 0 if all is healthy; 78 if a start would leave with it; else 1.
    pub code: u8,
}

impl Findings {
    fn ok(&mut self, what: &str, remark: &str) {
        let remark = if remark.is_empty() { String::new() } else { format!(" ({remark})") };
        let _ = writeln!(self.text, "{what}: ok{remark}");
    }

    fn fault(&mut self, what: &str, fault: &str, code: u8) {
        let _ = writeln!(self.text, "{what}: {fault}");
        self.code = self.code.max(code);
    }

    /// Adds the result for a path or port; `instead` names the setting that chooses another one.
    fn availability(&mut self, what: &str, availability: Availability, instead: &str) {
        match availability {
            Availability::Free => self.ok(what, ""),
            Availability::UsedByRelay => self.ok(what, "a relay is running"),
            Availability::HeldBySystemd => self.ok(what, "held by systemd, which starts the relay when a bot connects"),
            Availability::Unavailable(fault) => self.fault(what, &format!("{fault}, or set {instead}"), FAILED),
        }
    }
}

/// Runs all checks. `with_dir` is true if `--dir` chooses the paths.
pub async fn run(config: &Config, with_dir: bool) -> Findings {
    let options = Options::from(config);
    let mut findings = Findings::default();
    let another =
        |key: &str| if with_dir { "another --dir".to_owned() } else { format!("{key} to another path, or --dir") };
    for (key, path, api) in [
        ("ingress.socket", &options.ingress_socket, Api::Ingress),
        ("control.socket", &options.control_socket, Api::Control),
    ] {
        let what = format!("{key} {}", path.display());
        findings.availability(&what, availability::socket(path, api).await, &another(key));
    }
    queue(&mut findings, &options, &another("queue.path"));
    let ports = [("ingress.tcp", options.tcp, Api::Ingress), ("admin.listen", Some(options.admin), Api::Admin)];
    for (key, address, api) in ports {
        let Some(address) = address else { continue };
        let availability = availability::port(address, api).await;
        findings.availability(&format!("{key} {address}"), availability, &format!("{key} to a free one"));
    }
    let setting = if config.set().any(|(key, _)| key == "sender.endpoint") || options.region.is_empty() {
        format!("sender.endpoint ({})", config.endpoint())
    } else {
        format!("sender.region ({})", options.region)
    };
    for online::Step { name, remark, fault } in
        online::try_connection(options.participant, &setting, Clock::system()).await
    {
        match fault {
            None => findings.ok(&name, &remark),
            Some(fault) => findings.fault(&name, &fault, FAILED),
        }
    }
    #[cfg(feature = "fleet")]
    if let Some(of_fleet) = &options.fleet {
        fleet(&mut findings, of_fleet, options.copy.is_some()).await;
    }
    findings
}

#[cfg(feature = "fleet")]
async fn fleet(findings: &mut Findings, options: &fleet::Options, copied: bool) {
    let connector = match fleet::connection::Connector::new(options) {
        Ok(connector) => connector,
        Err(fault) => {
            let text = format!("{fault}: correct fleet.cert_file, fleet.cert_key_file or fleet.ca_file");
            return findings.fault("fleet", &text, CONFIG);
        }
    };
    let subject = options
        .quota
        .as_ref()
        .map(|quota| fleet::subject::of_quota(&options.name, &quota.connect_instance, &quota.destination));
    for server in &options.servers {
        let what = format!("fleet.servers {server}");
        if let Err(fault) = connector.try_server(server, subject.as_deref()).await {
            findings.fault(&what, &fault, FAILED);
            continue;
        }
        let copies = if copied { fleet::stream::try_server(&connector, server, &options.name).await } else { Ok(()) };
        match copies {
            Ok(()) => findings.ok(&what, ""),
            // A start that meets this server exits with it.
            Err(fault @ StreamError::Unsupported(_)) => {
                let text = format!("{fault}: use such servers, or set fleet.replicate = false");
                findings.fault(&what, &text, CONFIG);
            }
            Err(fault) => findings.fault(&what, &format!("{fault}: check JetStream on this server"), FAILED),
        }
    }
}

fn queue(findings: &mut Findings, options: &Options, instead: &str) {
    let queue = &options.queue;
    let what = format!("queue.path {}", queue.path.display());
    let prefix = format!("open queue {}: ", queue.path.display());
    let text = |error: &OpenError| error.to_string().replacen(&prefix, "", 1);
    match (check_folder(&queue.path, &queue.keys, queue.volatile), availability::own(&queue.path)) {
        // A start has succeeded with this folder.
        (Err(OpenError::Locked { .. }), _) => findings.ok(&what, "a relay is running"),
        (Err(error @ (OpenError::Volatile { .. } | OpenError::OtherFormat { .. } | OpenError::Sealed { .. })), _) => {
            findings.fault(&what, &text(&error), CONFIG);
        }
        (Err(error @ OpenError::Damaged { .. }), _) => findings.fault(&what, &text(&error), FAILED),
        (_, Err(fault)) => findings.fault(&what, &format!("{fault}, or set {instead}"), FAILED),
        (Err(error @ OpenError::Failed { .. }), Ok(())) => {
            findings.fault(&what, &format!("{}: correct that, or set {instead}", text(&error)), FAILED);
        }
        (Ok(()), Ok(())) => match queue.path.ancestors().find(|folder| folder.exists()).and_then(free) {
            Some(free) if free < queue.free_disk_min => {
                let (free, least) = (ByteSize(free), ByteSize(queue.free_disk_min));
                let text = format!(
                    "its volume has {free} free, queue.free_disk_min is {least}: free some space; otherwise new messages \
                     are refused with 429"
                );
                findings.fault(&what, &text, FAILED);
            }
            Some(free) => findings.ok(&what, &format!("{} are free", ByteSize(free))),
            None => findings.ok(&what, ""),
        },
    }
}
