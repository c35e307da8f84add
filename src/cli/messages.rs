//! `connect-relay messages list|show|summary|redrive|delete`: queued messages and dead letters, through the operators' API.
//!
//! The output is a table for people, or with `--json` the relay's own JSON: a list is one document, however many pages it
//! takes. A bulk act counts first, and asks in a terminal. It is one request, so that it is one line in the relay's log; an
//! interrupt ends it between two pages of the relay, and completed pages stay done. A token comes from a file, contents from a file or stdin: every user of the machine can see argv.

mod print;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Subcommand};
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use indicatif::{ProgressBar, ProgressStyle};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use self::print::{describe, overview, separated, table};
use super::client::{self, ControlSocket};
use super::{out, question};
use crate::control::{Deleted, Message, Messages, RedriveRequest, Redriven, Status, Summary};
use crate::delivery::Reason;
use crate::status::counted;
use crate::time::Clock;

/// The time-out for one page of a list; the relay searches its queue for two seconds at most.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The time-out for a bulk act, which may change millions of messages. The relay reports a store that hangs after seconds.
const ACT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The interval at which progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Messages in one page of a list.
const PAGE: usize = 500;
/// All characters except those that need no encoding in a query or a path.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Show queued messages and dead letters; redrive dead letters, delete messages.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Show(Show),
    Summary(Summarize),
    Redrive(Redrive),
    Delete(Delete),
}

/// List queued messages in the order of acceptance, then dead letters.
#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    control: ControlSocket,
    /// Only queued messages, or only dead letters.
    #[arg(long, value_name = "STATE", ignore_case = true, value_parser = ["QUEUED", "DEAD"])]
    state: Option<String>,
    #[command(flatten)]
    which: Which,
    /// The most messages to list.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Continue after an earlier list.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Print the relay's own JSON.
    #[arg(long)]
    json: bool,
}

/// The filters.
#[derive(Debug, clap::Args)]
struct Which {
    /// Only messages of this conversation, as the log names it: the key, or t: and the hash.
    #[arg(long, value_name = "KEY")]
    conversation: Option<String>,
    /// Only dead letters with this reason.
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    reason: Option<String>,
    /// Only messages that were accepted less than this time ago, such as 10m.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Only messages that were accepted more than this time ago.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
}

/// The messages of a bulk act, instead of ids.
#[derive(Debug, clap::Args)]
struct Bulk {
    #[command(flatten)]
    which: Which,
    /// All of them; needed if there is no filter.
    #[arg(long)]
    all: bool,
    /// Count the messages, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// The options that select the messages of a bulk act, and all of its options.
const SELECTING: [&str; 5] = ["conversation", "reason", "newer_than", "older_than", "all"];
const BULK: [&str; 7] = ["conversation", "reason", "newer_than", "older_than", "all", "dry_run", "yes"];

/// The messages of an act: ids, or filters, or all. An error names the ways.
fn selection() -> ArgGroup {
    ArgGroup::new("selection").args(["ids"]).args(SELECTING).multiple(true).required(true)
}

/// Show what fills the queue: counts by age and reason, the conversations with most messages, the loss to come.
#[derive(Debug, clap::Args)]
struct Summarize {
    #[command(flatten)]
    control: ControlSocket,
    /// Print the relay's own JSON.
    #[arg(long)]
    json: bool,
}

/// Show one message.
#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    control: ControlSocket,
    /// The relay's id of the message, as in the log.
    #[arg(value_name = "ID")]
    id: String,
    /// Show its contents, too.
    #[arg(long)]
    contents: bool,
    /// Print the relay's own JSON.
    #[arg(long)]
    json: bool,
}

/// Queue dead letters again: same ClientToken, old place, a fresh lifetime.
///
/// Without ids: all dead letters that match the filters; deleted ones only with --reason deleted.
#[derive(Debug, clap::Args)]
#[command(group(selection()))]
struct Redrive {
    #[command(flatten)]
    control: ControlSocket,
    /// The relay's ids of the messages, as in the log.
    #[arg(value_name = "ID", conflicts_with_all = BULK)]
    ids: Vec<String>,
    #[command(flatten)]
    bulk: Bulk,
    /// Send it with the ConnectionToken in this file, in that token's conversation.
    #[arg(long, value_name = "FILE", conflicts_with_all = SELECTING)]
    connection_token_file: Option<PathBuf>,
    /// Replace its contents by this file, - for stdin, with a new ClientToken (control.edit).
    #[arg(long, value_name = "FILE", conflicts_with_all = SELECTING)]
    content_file: Option<PathBuf>,
    /// Replace its content type (control.edit).
    #[arg(long, value_name = "TYPE", conflicts_with_all = SELECTING)]
    content_type: Option<String>,
    /// Print the relay's own JSON.
    #[arg(long)]
    json: bool,
}

/// Make dead letters of messages: they are not sent.
///
/// Without ids: all queued messages that match the filters, except those in flight. With --reason: the dead letters with this
/// reason, which are then marked as deleted.
#[derive(Debug, clap::Args)]
#[command(group(selection()))]
struct Delete {
    #[command(flatten)]
    control: ControlSocket,
    /// The relay's ids of the messages, as in the log.
    #[arg(value_name = "ID", conflicts_with_all = BULK)]
    ids: Vec<String>,
    #[command(flatten)]
    bulk: Bulk,
    /// Print the relay's own JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// If the relay is not running, or refuses.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List(args) => list(args).await,
        Command::Show(args) => {
            let contents = if args.contents { "?contents=true" } else { "" };
            let path = format!("{}{contents}", path_of(&args.id));
            let (json, message) = ControlClient(args.control.path()).request(Method::GET, &path).await?;
            out::print(&if args.json { json } else { describe(&message) })
        }
        Command::Summary(args) => {
            let (json, summary): (_, Summary) =
                ControlClient(args.control.path()).request(Method::GET, "/summary").await?;
            out::print(&if args.json { json } else { overview(&summary) })
        }
        Command::Redrive(args) if args.ids.is_empty() => redrive_all(args).await,
        Command::Redrive(args) => redrive(args).await,
        Command::Delete(args) => delete(args).await,
    }
}

/// The operators' API.
struct ControlClient(PathBuf);

impl ControlClient {
    /// The relay's own JSON in a line, and the parsed reply.
    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<(String, T)> {
        self.send(method, path, Bytes::new(), TIMEOUT).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> anyhow::Result<(String, T)> {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        client::json_and_parsed(&self.0, client::send(&self.0, request.body(Full::new(body))?, within).await?)
    }

    /// Does a bulk act: shows the number of messages, asks in a terminal, and shows the progress.
    async fn bulk(&self, (method, route): (Method, &str), verb: &str, bulk: &Bulk) -> anyhow::Result<BulkReply> {
        let filters = bulk.which.parameters(&Clock::system());
        let all = bulk.all.then(|| ("all", "true".to_owned()));
        let act: Vec<_> = filters.into_iter().chain(all).collect();
        let count: Vec<_> = act.iter().cloned().chain([("dry_run", "true".to_owned())]).collect();
        let counted = self.act(method.clone(), &path(route, count), &bar("count", None)).await?;
        if bulk.dry_run {
            return Ok(counted);
        }
        confirm(verb, counted.done, bulk.yes)?;
        self.act(method, &path(route, act), &bar(verb, Some(counted.done))).await
    }

    /// Sends a bulk request, and shows the progress: by the number of messages that are still in their old state.
    async fn act(&self, method: Method, path: &str, bar: &ProgressBar) -> anyhow::Result<BulkReply> {
        let deletes = method == Method::DELETE;
        let before = if bar.is_hidden() { 0 } else { self.unchanged(deletes).await? };
        let mut reply = pin!(self.send(method, path, Bytes::new(), ACT_TIMEOUT));
        let reply = loop {
            tokio::select! {
                biased;
                reply = &mut reply => break reply,
                () = sleep(PROGRESS_EVERY), if !bar.is_hidden() => bar.tick(),
            }
            if let (Some(most), Ok(now)) = (bar.length(), self.unchanged(deletes).await) {
                bar.set_position(before.saturating_sub(now).min(most));
            }
        };
        bar.finish_and_clear();
        reply.map(|(_, reply)| reply)
    }

    /// The number of messages on which an act can be: queued ones to delete, or dead letters to redrive.
    async fn unchanged(&self, deletes: bool) -> anyhow::Result<u64> {
        let (_, status): (_, Status) = self.request(Method::GET, "/status").await?;
        Ok(if deletes { status.queued } else { status.dead_letters })
    }
}

/// The reply to a bulk act.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct BulkReply {
    #[serde(alias = "Redriven", alias = "Deleted")]
    done: u64,
    in_flight: u64,
    full: Option<String>,
    next: Option<String>,
}

/// Shows the number of messages of a bulk act, and asks if a person can answer.
fn confirm(verb: &str, messages: u64, yes: bool) -> anyhow::Result<()> {
    if yes || messages == 0 || !question::can_be_answered() {
        return writeln!(std::io::stderr(), "messages to {verb}: {messages}").context("write to standard error");
    }
    if !question::ask(&format!("{verb} {}?", counted(messages, "message")))? {
        bail!("nothing was changed");
    }
    Ok(())
}

impl Which {
    /// The parameters of a request. Ages become times here, once for all pages.
    fn parameters(&self, clock: &Clock) -> Vec<(&'static str, String)> {
        let ago = |age: Option<Duration>| age.map(|age| clock.wall().before(age).to_string());
        let parameters = [
            ("conversation", self.conversation.clone()),
            ("reason", self.reason.clone()),
            ("accepted_after", ago(self.newer_than)),
            ("accepted_before", ago(self.older_than)),
        ];
        parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

async fn list(args: List) -> anyhow::Result<ExitCode> {
    let api = ControlClient(args.control.path());
    let mut filters = args.which.parameters(&Clock::system());
    filters.extend(args.state.map(|state| ("state", state.to_ascii_uppercase())));
    let (mut left, mut after, mut head) = (args.limit, args.after, true);
    let (begin, mut separator) = ("{\"Messages\":[", "{\"Messages\":[");
    while left > 0 && (head || after.is_some()) {
        let limit = left.min(PAGE as u64).to_string();
        let page = after.map(|after| ("after", after)).into_iter().chain([("limit", limit)]);
        let path = path("/messages", filters.iter().cloned().chain(page));
        let (_, page): (_, Messages) = api.request(Method::GET, &path).await?;
        left = left.saturating_sub(page.messages.len() as u64);
        out::print(&if args.json { separated(&page.messages, &mut separator)? } else { table(&page.messages, head) })?;
        (after, head) = (page.next, false);
    }
    if args.json {
        let next = after.as_ref().map(|next| format!(",\"Next\":\"{next}\"")).unwrap_or_default();
        out::print(&format!("{}]{next}}}\n", if separator == "," { "" } else { begin }))?;
    }
    if let Some(after) = after {
        writeln!(std::io::stderr(), "there are more; continue with --after {after}")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn redrive(args: Redrive) -> anyhow::Result<ExitCode> {
    let body = RedriveRequest {
        connection_token: args.connection_token_file.as_deref().map(text_of).transpose()?.map(|token| {
            // Files end with a line break; a token never does.
            token.trim_end_matches(['\r', '\n']).to_owned()
        }),
        content: args.content_file.as_deref().map(text_of).transpose()?,
        content_type: args.content_type,
    };
    let body = Bytes::from(serde_json::to_vec(&body)?);
    let api = ControlClient(args.control.path());
    for id in &args.ids {
        let path = format!("{}/redrive", path_of(id));
        let (json, message): (_, Message) = api.send(Method::POST, &path, body.clone(), TIMEOUT).await?;
        out::print(&if args.json {
            json
        } else {
            format!("{} is queued again, until {}\n", message.id, message.expiry_time)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn redrive_all(args: Redrive) -> anyhow::Result<ExitCode> {
    let api = ControlClient(args.control.path());
    let BulkReply { done, full, next, .. } = api.bulk((Method::POST, "/redrive"), "redrive", &args.bulk).await?;
    let dry_run = args.bulk.dry_run;
    let redriven = Redriven { redriven: done, dry_run, full: full.clone(), next };
    let did = if dry_run { "to be queued again" } else { "queued again" };
    out::print(&if args.json { serde_json::to_string(&redriven)? + "\n" } else { format!("{did}: {done}\n") })?;
    match full {
        Some(full) => bail!("the queue has no space for the rest: {full}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

async fn delete(args: Delete) -> anyhow::Result<ExitCode> {
    let api = ControlClient(args.control.path());
    for id in &args.ids {
        let (json, message): (_, Message) = api.request(Method::DELETE, &path_of(id)).await?;
        let maybe = if message.maybe_delivered { "; it may have been delivered before" } else { "" };
        out::print(&if args.json { json } else { format!("{} is deleted{maybe}\n", message.id) })?;
    }
    if !args.ids.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let BulkReply { done, in_flight, .. } = api.bulk((Method::DELETE, "/messages"), "delete", &args.bulk).await?;
    let dry_run = args.bulk.dry_run;
    let did = if dry_run { "to be deleted" } else { "deleted" };
    let except = if in_flight > 0 { format!("; {in_flight} in flight, not deleted") } else { String::new() };
    out::print(&if args.json {
        serde_json::to_string(&Deleted { deleted: done, in_flight, dry_run, next: None })? + "\n"
    } else {
        format!("{did}: {done}{except}\n")
    })
}

/// A bar if the end is known, else a sign of life; nothing without a terminal.
fn bar(what: &str, most: Option<u64>) -> ProgressBar {
    let (bar, template) = match most {
        Some(most) => (ProgressBar::new(most), "{prefix} [{bar:40}] {pos} of {len}"),
        None => (ProgressBar::new_spinner(), "{prefix} {spinner}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_prefix(what.to_owned())
}

fn path_of(id: &str) -> String {
    format!("/messages/{}", utf8_percent_encode(id, ENCODED))
}

fn path<'a>(route: &str, parameters: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs = parameters.into_iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(&value, ENCODED)));
    format!("{route}?{}", pairs.collect::<Vec<_>>().join("&"))
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read stdin")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::time::{Machine, WallTime};

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn parts_of_a_path_are_encoded() {
        let clock = Clock::of(&Machine::simulated(WallTime(1_800_000_000_000)));
        let which = Which {
            conversation: Some("C/a&b+ä".into()),
            reason: Some("expired".into()),
            newer_than: Some(Duration::from_secs(3600)),
            older_than: Some(Duration::from_secs(60)),
        };
        assert_eq!(
            path("/redrive", which.parameters(&clock)),
            "/redrive?conversation=C%2Fa%26b%2B%C3%A4&reason=expired&accepted_after=2027-01-15T07%3A00%3A00.000Z\
             &accepted_before=2027-01-15T07%3A59%3A00.000Z"
        );
        assert_eq!(path_of("../status"), "/messages/..%2Fstatus");
    }

    #[test]
    fn bulk_needs_an_explicit_request() {
        let parse = |args: &[&str]| Only::try_parse_from([&["messages"], args].concat());
        for right in [
            &["redrive", "a", "b"][..],
            &["redrive", "--all", "--reason", "expired", "--conversation", "C"],
            &["redrive", "--reason", "expired", "--dry-run"],
            &["redrive", "--newer-than", "10m", "--older-than", "1m"],
            &["redrive", "a", "--content-file", "f"],
            &["delete", "--conversation", "C"],
            &["delete", "--all", "--yes"],
            &["list", "--state", "dead", "--older-than", "1h"],
            &["summary", "--json"],
        ] {
            assert!(parse(right).is_ok(), "{right:?}");
        }
        for wrong in [
            &["redrive"][..],
            &["redrive", "--dry-run"],
            &["redrive", "a", "--dry-run"],
            &["redrive", "--reason", "expired", "--content-type", "text/plain"],
            &["delete", "--yes"],
            &["delete", "--newer-than", "soon"],
            &["redrive", "a", "--reason", "expired"],
            &["redrive", "--all", "a"],
            &["redrive", "--all", "--content-file", "f"],
            &["redrive", "--all", "--connection-token-file", "f"],
            &["delete"],
            &["delete", "a", "--conversation", "C"],
            &["list", "--reason", "bored"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        for nothing in ["redrive", "delete"] {
            let error = parse(&[nothing, "--yes"]).unwrap_err().to_string();
            assert!(error.contains("<ID|") && error.contains("--older-than") && error.contains("|--all>"), "{error}");
        }
    }
}
