//! `connect-relay simulate`: a Participant Service for development, on loopback.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;

use crate::simulator::{Counts, Faults, Options, Simulator};
use crate::time::Clock;

/// Simulate the Participant Service on this machine, without AWS: to develop a bot, or to try the relay.
///
/// Its faults can be switched while it runs: `curl http://127.0.0.1:9580/faults -d '{"Outage": true}'`. GET returns them,
/// DELETE restores those of the start. The members: Outage, Throttle, RetryAfter, Latency, Jitter, ErrorRate,
/// LostReplyRate, Rate, Burst, Deny.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The address to listen on: loopback only. Port 0 selects a free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9580", value_parser = loopback)]
    listen: SocketAddr,
    /// Messages and events per second before requests are throttled.
    #[arg(long, value_name = "N", default_value = "10", value_parser = rate)]
    rate: f64,
    /// Messages and events at once before requests are throttled.
    #[arg(long, value_name = "N", default_value = "15")]
    burst: u32,
    /// The time that a reply takes.
    #[arg(long, value_name = "DURATION", default_value = "30ms", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// The largest random change of that time, up and down.
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = humantime::parse_duration)]
    jitter: Duration,
    /// Share of the requests that fail with a 500 or a 503 (0 to 1).
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    error_rate: f64,
    /// Share of the requests that are carried out, but whose reply is lost (0 to 1).
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    lost_reply_rate: f64,
    /// Start with an outage: every request is answered 503.
    #[arg(long)]
    outage: bool,
    /// Start with a throttle: every request is answered 429, whatever the quota.
    #[arg(long)]
    throttle: bool,
    /// The Retry-After of 429 and 503 replies, in seconds; without it they have none, as at AWS.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=3600))]
    retry_after: Option<u64>,
    /// A token to refuse with 403; repeatable.
    #[arg(long, value_name = "TOKEN")]
    deny: Vec<String>,
    /// The lifetime of a connection token, from its issue or first use; without it, unlimited.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    token_life: Option<Duration>,
    /// The seed of the random generator: the same seed causes the same faults.
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Append each accepted message to this file, as a line of JSON.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
}

/// Simulates the service until `stop`.
///
/// # Errors
/// If the address or the ledger cannot be used.
pub async fn run(args: Args, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let listener = bind(args.listen).await?;
    let address = listener.local_addr().context("read the address listened on")?;
    let ledger = args.ledger.as_deref().map(open_ledger).transpose()?;
    print_error(&introduction(&args, address));
    let Args { rate, burst, latency, jitter, error_rate, lost_reply_rate, outage, throttle, retry_after, .. } = args;
    let deny = args.deny;
    let faults =
        Faults { rate, burst, latency, jitter, error_rate, lost_reply_rate, outage, throttle, retry_after, deny };
    let options = Options { faults, token_life: args.token_life, seed: args.seed, ledger, keep_accepted: false };
    let simulator = Simulator::new(options, Clock::system());
    simulator.serve(listener, stop).await;
    print_error(&summary(&simulator.counts()));
    Ok(())
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "expected an address and a port, such as 127.0.0.1:9580")?;
    if !address.ip().is_loopback() {
        return Err("the simulator accepts any token, so it listens on loopback only, such as 127.0.0.1:9580".into());
    }
    Ok(address)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "listen on {address}: the port is in use; choose another with --listen 127.0.0.1:PORT, or a free one with port 0"
            )
        }
        bound => bound.with_context(|| format!("listen on {address}")),
    }
}

fn open_ledger(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    opened.with_context(|| format!("open ledger {}", path.display()))
}

/// The introduction for a new user. The first line is for scripts as well.
fn introduction(args: &Args, address: SocketAddr) -> String {
    let duration = humantime::format_duration;
    let mut lines = vec![
        format!("listening on http://{address}\n"),
        "This simulates Amazon Connect's Participant Service. Point a bot's AWS SDK at it:".into(),
        format!("    export AWS_ENDPOINT_URL_CONNECTPARTICIPANT=http://{address}"),
        "or try it by hand:".into(),
        format!(
            "    curl -i http://{address}/participant/message -H 'X-Amz-Bearer: any-token' \
             -d '{{\"ContentType\":\"text/plain\",\"Content\":\"hello\"}}'\n"
        ),
        format!(
            "quota    {} messages a second, {} at once; more is answered 429 ThrottlingException",
            args.rate, args.burst
        ),
        format!("replies  after {} ± {}", duration(args.latency), duration(args.jitter)),
    ];
    if args.error_rate > 0.0 || args.lost_reply_rate > 0.0 {
        lines.push(format!(
            "faults   {} % of the requests fail, {} % of the replies are lost (seed {})",
            percent(args.error_rate),
            percent(args.lost_reply_rate),
            args.seed
        ));
    }
    if args.outage {
        lines.push("starts   with an outage: every request is answered 503".into());
    }
    if args.throttle {
        lines.push("starts   with a throttle: every request is answered 429".into());
    }
    lines.extend(args.token_life.map(|life| format!("tokens   are valid for {}, then 403", duration(life))));
    lines.push(match &args.ledger {
        Some(path) => format!("ledger   {}: a line for each accepted message", path.display()),
        None => "ledger   none; --ledger FILE records each accepted message".into(),
    });
    lines.push(format!(
        "switch   curl http://{address}/faults -d '{{\"Outage\": true}}'; -X DELETE restores the faults of the start"
    ));
    lines.push(format!("counts   http://{address}/ledger, and here at the end (Ctrl-C)\n"));
    lines.join("\n")
}

fn summary(counts: &Counts) -> String {
    let Counts { accepted, duplicates, throttled, denied, rejected, errors, lost_replies, .. } = counts;
    let Counts { connections, events, disconnects, .. } = counts;
    format!(
        "\naccepted {accepted} messages (and answered {duplicates} repeats), {events} events, \
         {connections} connections, {disconnects} disconnects\n\
         refused  {throttled} throttled, {denied} denied, {rejected} malformed\n\
         faults   {errors} errors, {lost_replies} lost replies\n"
    )
}

/// Without the rounding errors of binary fractions: 0.07 is 7, not 7.000000000000001.
fn percent(share: f64) -> f64 {
    (share * 10_000.0).round() / 100.0
}

/// Writes to stderr and ignores errors: a closed stderr is no reason to stop.
fn print_error(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("expected a number of requests per second, 0 or more".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a share from 0 to 1, such as 0.05 for one in twenty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from(["simulate"].iter().chain(line)).map(|line| line.args)
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let args = args(&[]).unwrap();
        assert_eq!(args.listen, "127.0.0.1:9580".parse().unwrap());
        assert_eq!((args.rate, args.burst), (10.0, 15));
        assert_eq!((args.latency, args.jitter), (Duration::from_millis(30), Duration::from_millis(10)));
        assert_eq!((args.error_rate, args.lost_reply_rate), (0.0, 0.0));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for line in [["--rate", "nan"], ["--rate", "-1"], ["--error-rate", "2"], ["--lost-reply-rate", "-0.1"]] {
            assert!(args(&line).is_err(), "{line:?}");
        }
        assert!(args(&["--deny", "a", "--deny", "b", "--token-life", "90s", "--rate", "1e9"]).is_ok());
    }

    #[test]
    fn introduction_names_the_real_port_and_the_variable() {
        let text = introduction(&args(&["--listen", "127.0.0.1:0"]).unwrap(), "127.0.0.1:4711".parse().unwrap());
        assert!(text.starts_with("listening on http://127.0.0.1:4711\n"));
        assert!(text.contains("AWS_ENDPOINT_URL_CONNECTPARTICIPANT=http://127.0.0.1:4711"));
    }

    #[tokio::test]
    async fn foreign_address_and_taken_port_are_refused() {
        let error = loopback("0.0.0.0:0").unwrap_err();
        assert!(error.contains("loopback only"), "{error}");
        let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(taken.local_addr().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("the port is in use"), "{error}");
    }
}
