//! `connect-relay check --online`: tries what a start needs, and changes nothing.
//!
//! | line | tried |
//! | --- | --- |
//! | `ingress.socket`, `control.socket` | the path is free or a relay's, and its folder can be written |
//! | `queue.path` | the folder can be written, is on a disk with space, and its store has a format and a key that a start takes |
//! | `ingress.tcp`, `admin.listen` | the port is free, or a relay's |
//! | `resolve`, `connect`, `certificate`, `answer` | the way to the Participant Service, by one request without a token |

use std::fmt::Write as _;
use std::path::Path;

use bytesize::ByteSize;

use crate::cli::places::{self, Api, Place};
use crate::cli::{CONFIG, FAILED};
use crate::config::Config;
use crate::daemon::Options;
use crate::participant;
use crate::queue::OpenError;
use crate::storage::try_folder;
use crate::time::Clock;

/// The lines, and the exit code that they amount to.
#[derive(Debug, Default)]
pub struct Findings {
    /// A line for each finding.
    pub text: String,
    /// 0 if all is well; 78 if a start would leave with it; else 1.
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

    /// Notes a place; `instead` names what to set to choose another one.
    fn place(&mut self, what: &str, place: Place, instead: &str) {
        match place {
            Place::Free => self.ok(what, ""),
            Place::OfARelay => self.ok(what, "a relay is running"),
            Place::Taken(fault) => self.fault(what, &format!("{fault}, or set {instead}"), FAILED),
        }
    }
}

/// Tries it all. `with_dir` is true if `--dir` chooses the places.
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
        findings.place(&what, places::socket(path, api).await, &another(key));
    }
    queue(&mut findings, &options, &another("queue.path"));
    let ports = [("ingress.tcp", options.tcp, Api::Ingress), ("admin.listen", Some(options.admin), Api::Admin)];
    for (key, address, api) in ports {
        let Some(address) = address else { continue };
        let place = places::port(address, api).await;
        findings.place(&format!("{key} {address}"), place, &format!("{key} to a free one"));
    }
    let setting = if config.set().any(|(key, _)| key == "sender.endpoint") || options.region.is_empty() {
        format!("sender.endpoint ({})", config.endpoint())
    } else {
        format!("sender.region ({})", options.region)
    };
    for participant::Stage { name, remark, fault } in
        participant::try_out(options.participant, &setting, Clock::system()).await
    {
        match fault {
            None => findings.ok(&name, &remark),
            Some(fault) => findings.fault(&name, &fault, FAILED),
        }
    }
    findings
}

fn queue(findings: &mut Findings, options: &Options, instead: &str) {
    let queue = &options.queue;
    let what = format!("queue.path {}", queue.path.display());
    let tried = try_folder(&queue.path, &queue.keys, queue.volatile);
    let prefix = format!("open queue {}: ", queue.path.display());
    let said = |error: &OpenError| error.to_string().replacen(&prefix, "", 1);
    match tried {
        // A relay that runs on it has shown that it can be used.
        Err(OpenError::Locked { .. }) => findings.ok(&what, "a relay is running"),
        Err(error @ (OpenError::Volatile { .. } | OpenError::OtherFormat { .. } | OpenError::Sealed { .. })) => {
            findings.fault(&what, &said(&error), CONFIG);
        }
        Err(error @ OpenError::Damaged { .. }) => findings.fault(&what, &said(&error), FAILED),
        Err(error @ OpenError::Failed { .. }) => match places::own(&queue.path) {
            Err(fault) => findings.fault(&what, &format!("{fault}, or set {instead}"), FAILED),
            Ok(()) => findings.fault(&what, &format!("{}: correct that, or set {instead}", said(&error)), FAILED),
        },
        Ok(()) => match places::own(&queue.path) {
            Err(fault) => findings.fault(&what, &format!("{fault}, or set {instead}"), FAILED),
            Ok(()) => match free(&queue.path) {
                Some(free) if free < queue.free_disk_min => {
                    let (free, least) = (ByteSize(free), ByteSize(queue.free_disk_min));
                    let text = format!(
                        "{free} are free on its volume, queue.free_disk_min is {least}: free some space, or new messages \
                         are refused with 429"
                    );
                    findings.fault(&what, &text, FAILED);
                }
                Some(free) => findings.ok(&what, &format!("{} are free", ByteSize(free))),
                None => findings.ok(&what, ""),
            },
        },
    }
}

/// The free bytes on the volume of a folder, which may have to be made first.
fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let volume = rustix::fs::statvfs(there).ok()?;
    Some(volume.f_bavail.saturating_mul(volume.f_frsize))
}
