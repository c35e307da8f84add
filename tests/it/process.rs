//! The program as an operator meets it: exit codes, signals, what it says.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Far longer than anything here takes.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The program, with nothing of this machine's own settings.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_connect-relay"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CONNECT_RELAY") || name.starts_with("AWS_") {
            command.env_remove(&*name);
        }
    }
    command
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    program(arguments).envs(environment.iter().copied()).output().unwrap()
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A relay whose upstream is not there.
pub fn relay(dir: &Path) -> Command {
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = program(&["run", "--dir", dir.to_str().unwrap()]);
    command
        .env("CONNECT_RELAY__SENDER__ENDPOINT", format!("http://{nowhere}"))
        .env("CONNECT_RELAY__QUEUE__VOLATILE", "true")
        .env("CONNECT_RELAY__ADMIN__LISTEN", "127.0.0.1:0");
    command
}

/// A relay whose log is read line by line.
pub struct Relay {
    process: Child,
    /// Its first line: where it listens.
    started: serde_json::Value,
    lines: Receiver<serde_json::Value>,
}

impl Relay {
    fn start(dir: &Path, settings: &[(&str, &str)]) -> Relay {
        Relay::of(relay(dir).envs(settings.iter().copied()))
    }

    pub fn of(command: &mut Command) -> Relay {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let (line, lines) = channel();
        std::thread::spawn(move || {
            for text in stderr.lines().map_while(Result::ok) {
                let _ = line.send(serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)));
            }
        });
        let mut relay = Relay { process, lines, started: serde_json::Value::Null };
        relay.started = relay.until("started");
        relay
    }

    /// Waits for a line of this message.
    fn until(&self, message: &str) -> serde_json::Value {
        loop {
            let line = self.lines.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("no line begins with {message}"));
            if line["message"].as_str().is_some_and(|text| text.starts_with(message)) {
                return line;
            }
        }
    }

    /// A line of its metrics.
    fn metric(&self, name: &str) -> String {
        let mut stream = TcpStream::connect(self.started["admin"].as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page.lines().find(|line| line.starts_with(&format!("connect_relay_{name}"))).unwrap().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Its log ends when it does.
    pub fn wait(mut self) -> ExitStatus {
        while self.lines.recv_timeout(TIMEOUT).is_ok() {}
        self.process.wait().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

fn try_to_send(dir: &Path) -> Output {
    let socket = dir.join("relay.sock");
    run(&["send", "--socket", socket.to_str().unwrap(), "hello"], &[("CONNECTION_TOKEN", "token")])
}

pub fn send(dir: &Path) {
    let sent = try_to_send(dir);
    assert!(sent.status.success(), "{}", text(&sent.stderr));
}

#[test]
fn bad_configuration_is_78_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let relay = dir.path().join("relay");
    let settings = [("CONNECT_RELAY__SENDER__QUOTA_RATE", "fast"), ("CONNECT_RELAY__NO__SUCH_KEY", "1")];
    let done = run(&["run", "--dir", relay.to_str().unwrap()], &settings);
    assert_eq!(done.status.code(), Some(78));
    let said = text(&done.stderr);
    assert!(
        said.contains("CONNECT_RELAY__SENDER__QUOTA_RATE: sender.quota_rate = \"fast\": must be a number"),
        "{said}"
    );
    assert!(said.contains("CONNECT_RELAY__NO__SUCH_KEY") && said.contains("sender.region"), "{said}");
    assert!(!relay.exists());
}

#[test]
fn check_prints_a_configuration_that_it_accepts() {
    let first = run(&["check"], &[("AWS_REGION", "eu-west-2")]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.toml");
    std::fs::write(&path, &first.stdout).unwrap();
    let again = run(&["check", "--config", path.to_str().unwrap()], &[]);
    assert_eq!((again.status.code(), again.stdout), (Some(0), first.stdout));
}

#[test]
fn the_settings_of_a_pod_are_a_valid_configuration() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/sidecar/relay.env");
    let file = std::fs::read_to_string(path).unwrap();
    let mut settings: Vec<_> = file.lines().filter_map(|line| line.split_once('=')).collect();
    settings.retain(|(name, _)| !name.starts_with('#'));
    assert!(settings.len() >= 4, "{settings:?}");
    settings.push(("AWS_REGION", "eu-west-2"));
    let checked = run(&["check"], &settings);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    assert!(!text(&checked.stderr).contains("warning"), "{}", text(&checked.stderr));
}

#[test]
fn bad_usage_is_2_and_help_is_0() {
    for arguments in [&["nonsense"][..], &["run", "--nope"], &[]] {
        let done = run(arguments, &[]);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let done = run(arguments, &[]);
        assert_eq!(done.status.code(), Some(0), "{arguments:?}");
        assert!(done.stderr.is_empty() && !done.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn signal_drains_with_0_and_a_second_one_exits_at_once_with_75() {
    let dir = tempfile::tempdir().unwrap();
    let relay = Relay::start(dir.path(), &[]);
    relay.signal(Signal::TERM);
    assert_eq!(relay.until("draining")["queued"], 0);
    assert_eq!(relay.wait().code(), Some(0));

    let relay = Relay::start(dir.path(), &[("CONNECT_RELAY__SHUTDOWN__GRACE", "1h")]);
    send(dir.path());
    relay.signal(Signal::INT);
    let line = relay.until("draining");
    assert_eq!((&line["queued"], &line["expected_seconds"]), (&1.into(), &1.0.into()));
    relay.signal(Signal::TERM);
    assert_eq!(relay.until("stopped with messages queued")["queued"], 1);
    assert_eq!(relay.wait().code(), Some(75));
}

#[test]
fn reload_applies_live_keys_and_reports_those_that_need_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("relay.toml"), dir.path().join("relay"));
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let reloaded = |relay: &Relay, words: &str| {
        relay.signal(Signal::HUP);
        relay.until(words)
    };
    write("");
    let relay = Relay::of(relay(&folder).arg("--config").arg(&file));
    send(&folder);

    // All of it or nothing: a broken file changes nothing, not even what is right in it.
    write("[ingress]\nallow_uids = [4294967294]\n[log]\nlevel = 'loud'");
    let line = reloaded(&relay, "configuration not reloaded");
    assert!(line["faults"].as_str().unwrap().contains("log.level = \"loud\""), "{line}");
    assert_eq!(relay.metric("config_reload_ok"), "connect_relay_config_reload_ok 0");
    send(&folder);

    write(
        "[ingress]\nallow_uids = [4294967294]\nallow_gids = [4294967294]\nreply = 'delivered'\ntcp_reply = 'accepted'\n\
         wait = '1s'\nwait_max = '5s'\nbody_bytes_max = '64KiB'\nbatch_bytes_max = '128KiB'\ncontent_bytes_max = 9999\n\
         [ingress.content_chars_max]\nplain = 3\nmarkdown = 3\njson = 3\ninteractive = 3",
    );
    let line = reloaded(&relay, "configuration reloaded");
    assert_eq!((&line["keys"], &line["level"]), (&serde_json::Value::Null, &"INFO".into()));
    assert_eq!(relay.metric("config_reload_ok"), "connect_relay_config_reload_ok 1");
    let refused = try_to_send(&folder);
    assert!(text(&refused.stderr).contains("RelayForbiddenException"), "{refused:?}");

    write("[ingress]\ncontent_limits = 'by_size'\n[ingress.content_chars_max]\nplain = 3\n[sender]\nlifetime = '1h'");
    assert_eq!(reloaded(&relay, "configuration reloaded")["keys"], "sender.lifetime");
    send(&folder);

    write("[ingress.content_chars_max]\nplain = 3\n[sender]\nlifetime = '1h'");
    assert_eq!(reloaded(&relay, "configuration reloaded")["keys"], "sender.lifetime");
    let refused = try_to_send(&folder);
    assert!(text(&refused.stderr).contains("ingress.content_chars_max.plain"), "{refused:?}");

    // From here on nothing below a warning is said.
    write("[log]\nlevel = 'warn'\n[ingress]\nconnections_max = 8\nrequest_timeout = '1s'\nbodies_bytes_max = '4MiB'");
    let keys = "ingress.bodies_bytes_max, ingress.connections_max, ingress.request_timeout";
    assert_eq!(reloaded(&relay, "configuration reloaded")["keys"], keys);
    send(&folder);
    for signal in [Signal::TERM, Signal::INT] {
        relay.signal(signal);
    }
    while let Ok(line) = relay.lines.recv_timeout(TIMEOUT) {
        assert_eq!(line["level"], "WARN", "{line}");
    }
    assert_eq!(relay.wait().code(), Some(75));
}

#[test]
fn a_second_relay_on_the_folder_is_refused_with_1_and_its_failure_is_a_log_line() {
    let dir = tempfile::tempdir().unwrap();
    let first = Relay::start(dir.path(), &[]);
    let second = relay(dir.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_slice(&second.stderr).unwrap();
    assert!(line["error"].as_str().unwrap().ends_with("locked by another process"), "{line}");
    send(dir.path());
    drop(first);
}
