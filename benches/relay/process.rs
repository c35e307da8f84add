//! Processes that the benchmark starts, ends by their own id, and looks at from outside.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::measure::now;

/// A process of this benchmark's; it is killed, and waited for, when it is dropped.
#[derive(Debug)]
pub struct Process {
    /// The process.
    pub child: Child,
    /// The time of its start.
    pub started: Instant,
}

impl Process {
    /// Starts it.
    pub fn start(command: &mut Command) -> anyhow::Result<Process> {
        let started = now();
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Process { child, started })
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Its present memory.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let status = self.read("status")?;
        // A kernel may be built without smaps_rollup.
        let rollup = self.read("smaps_rollup").unwrap_or_default();
        Ok(Memory {
            resident: kibibytes(&status, "VmRSS:").context("VmRSS")?,
            anonymous: kibibytes(&status, "RssAnon:").unwrap_or_default(),
            proportional: kibibytes(&rollup, "Pss:"),
        })
    }

    /// Processor time that all its threads have used so far.
    pub fn processor(&self) -> anyhow::Result<Duration> {
        let stat = self.read("stat")?;
        // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th after it.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace().collect::<Vec<_>>());
        let fields = fields.context("/proc/PID/stat")?;
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        // The unit of /proc is a hundredth of a second on every Linux that Rust runs on.
        Ok(Duration::from_millis(ticks * 10))
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// VmRSS: what a container's limit is compared with, the binary's own mapped pages included.
    pub resident: u64,
    /// RssAnon: of it, heap and stacks.
    pub anonymous: u64,
    /// Pss: resident, with shared pages counted in part.
    pub proportional: Option<u64>,
}

impl Memory {
    /// For the raw file.
    pub fn json(&self) -> Value {
        json!({
            "resident_bytes": self.resident,
            "anonymous_bytes": self.anonymous,
            "proportional_bytes": self.proportional,
        })
    }
}

/// Bytes that everything under a folder takes on disk.
pub fn bytes_on_disk(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_on_disk(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Copies a folder's files and folders (not its sockets), and has the volume write them out, so that the disk is quiet
/// when what is measured begins.
pub fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    copy_entries(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(rustix::fs::syncfs(fs::File::open(to)?)?)
}

fn copy_entries(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_entries(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    // The queue's folder is closed to others, and the relay may insist on it.
    fs::set_permissions(to, fs::metadata(from)?.permissions())
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}
