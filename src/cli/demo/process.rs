//! A program that the demo starts, and that never outlives it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// A running program. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    /// Starts a program whose output is appended to a file. It is in a process group of its own: Ctrl-C reaches the demo
    /// alone, which ends it.
    pub(super) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Process> {
        let open = || -> io::Result<(Stdio, Stdio)> {
            let file = OpenOptions::new().create(true).append(true).open(log)?;
            Ok((file.try_clone()?.into(), file.into()))
        };
        let (stdout, stderr) = open().with_context(|| format!("open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Process { child })
    }

    /// Its exit status, if it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end, if it runs: its number may be another process's afterwards.
    pub(super) fn terminate(&mut self) -> anyhow::Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("find the process")?;
        kill_process(id, Signal::TERM).context("send SIGTERM")
    }

    /// Kills it, and waits until it is gone.
    pub(super) fn kill(&mut self) {
        // The only error is that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
