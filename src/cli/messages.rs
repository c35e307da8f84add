//! `connect-relay messages list|show|redrive|delete`: queued messages and dead letters, through the operators' API.
//!
//! The output is a table for people, or with `--json` the relay's own JSON, one reply per line. A bulk act is done a
//! page at a time, so that there is progress to show, and so that an interrupt ends it between two pages: completed
//! pages stay done. A token comes from a file, contents from a file or stdin: every user of the machine can see argv.

mod print;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use indicatif::{ProgressBar, ProgressStyle};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use self::print::{describe, table};
use super::client::{self, ControlSocket};
use super::out;
use crate::control::{Deleted, Message, Messages, RedriveRequest, Redriven, Status};
use crate::delivery::Reason;

/// The time-out for one page; the relay searches its queue for two seconds at most.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Messages in one page of a bulk act, and of a list.
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
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    reason: Option<String>,
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
#[derive(Debug, clap::Args)]
struct Redrive {
    #[command(flatten)]
    control: ControlSocket,
    /// The relay's ids of the messages, as in the log.
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// All dead letters that match the filters; deleted ones only with --reason deleted.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only those of this conversation, as the log names it: the key, or t: and the hash.
    #[arg(long, value_name = "KEY", conflicts_with = "ids")]
    conversation: Option<String>,
    /// With --all: only those with this reason.
    #[arg(long, value_name = "REASON", conflicts_with = "ids", value_parser = reasons())]
    reason: Option<String>,
    /// Send it with the ConnectionToken in this file, in that token's conversation.
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    connection_token_file: Option<PathBuf>,
    /// Replace its contents by this file, - for stdin, with a new ClientToken (control.edit).
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    content_file: Option<PathBuf>,
    /// Replace its content type (control.edit).
    #[arg(long, value_name = "TYPE", conflicts_with = "all")]
    content_type: Option<String>,
    /// Print the relay's own JSON.
    #[arg(long)]
    json: bool,
}

/// Make dead letters of messages: they are not sent.
#[derive(Debug, clap::Args)]
struct Delete {
    #[command(flatten)]
    control: ControlSocket,
    /// The relay's ids of the messages, as in the log.
    #[arg(value_name = "ID", required_unless_present = "conversation")]
    ids: Vec<String>,
    /// All queued messages of this conversation, as the log names it, except those in flight.
    #[arg(long, value_name = "KEY", conflicts_with = "ids")]
    conversation: Option<String>,
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
            let (json, message) = ControlClient::of(&args.control).request(Method::GET, &path).await?;
            show(&if args.json { json } else { describe(&message) })
        }
        Command::Redrive(args) if args.all => redrive_all(args).await,
        Command::Redrive(args) => redrive(args).await,
        Command::Delete(args) => delete(args).await,
    }
}

/// The operators' API.
struct ControlClient(PathBuf);

impl ControlClient {
    fn of(control: &ControlSocket) -> ControlClient {
        ControlClient(control.path())
    }

    /// The relay's own JSON in a line, and the parsed reply.
    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<(String, T)> {
        self.send(method, path, Bytes::new()).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(String, T)> {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        let reply = client::send(&self.0, request.body(Full::new(body))?, TIMEOUT).await?;
        let body = client::success_body(&self.0, reply)?;
        let read = client::parse(&self.0, &body)?;
        Ok((String::from_utf8_lossy(&body).trim_end().to_owned() + "\n", read))
    }

    /// Does a bulk act, a page at a time; `take` returns the total after each page, and the position of the next one.
    async fn run_pages<T: DeserializeOwned>(
        &self,
        (method, route): (Method, &str),
        which: &Which,
        bar: &ProgressBar,
        mut take: impl FnMut(T) -> (u64, Option<String>),
    ) -> anyhow::Result<()> {
        let (mut done, mut after, limit) = (0, None::<String>, PAGE.to_string());
        loop {
            let path = path(route, which, &[("after", after.as_deref()), ("limit", Some(&limit))]);
            let asked = self.request(method.clone(), &path).await;
            let (_, page) = asked.inspect_err(|_| bar.finish_and_clear()).map_err(|error| match done {
                0 => error,
                done => error.context(format!("after {done} messages")),
            })?;
            (done, after) = take(page);
            bar.set_position(done);
            if after.is_none() {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }
}

async fn list(args: List) -> anyhow::Result<ExitCode> {
    let api = ControlClient::of(&args.control);
    let (mut left, mut after, mut head) = (args.limit, args.after, true);
    loop {
        let limit = left.min(PAGE as u64).to_string();
        let state = args.state.as_deref().map(str::to_ascii_uppercase);
        let path = path(
            "/messages",
            &args.which,
            &[("state", state.as_deref()), ("after", after.as_deref()), ("limit", Some(&limit))],
        );
        let (json, page): (_, Messages) = api.request(Method::GET, &path).await?;
        left = left.saturating_sub(page.messages.len() as u64);
        show(&if args.json { json } else { table(&page.messages, std::mem::take(&mut head)) })?;
        after = page.next;
        match &after {
            Some(_) if left > 0 => {}
            Some(after) => {
                writeln!(std::io::stderr(), "there are more; continue with --after {after}")?;
                return Ok(ExitCode::SUCCESS);
            }
            None => return Ok(ExitCode::SUCCESS),
        }
    }
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
    let api = ControlClient::of(&args.control);
    for id in &args.ids {
        let path = format!("{}/redrive", path_of(id));
        let (json, message): (_, Message) = api.send(Method::POST, &path, body.clone()).await?;
        show(&if args.json {
            json
        } else {
            format!("{} is queued again, until {}\n", message.id, message.expiry_time)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn redrive_all(args: Redrive) -> anyhow::Result<ExitCode> {
    let api = ControlClient::of(&args.control);
    let (_, status): (_, Status) = api.request(Method::GET, "/status").await?;
    let which = Which { conversation: args.conversation, reason: args.reason };
    let filtered = which.reason.is_some() || which.conversation.is_some();
    let bar = bar("redriven", (!filtered).then_some(status.dead_letters));
    let mut all = Redriven::default();
    api.run_pages((Method::POST, "/redrive"), &which, &bar, |page: Redriven| {
        all = Redriven { redriven: all.redriven + page.redriven, ..page };
        (all.redriven, all.next.clone().filter(|_| all.full.is_none()))
    })
    .await?;
    let Redriven { redriven, full, .. } = &all;
    show(&if args.json { serde_json::to_string(&all)? + "\n" } else { format!("queued again: {redriven}\n") })?;
    match full {
        Some(full) => bail!("the queue has no space for the rest: {full}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

async fn delete(args: Delete) -> anyhow::Result<ExitCode> {
    let api = ControlClient::of(&args.control);
    let Some(conversation) = args.conversation else {
        for id in &args.ids {
            let (json, message): (_, Message) = api.request(Method::DELETE, &path_of(id)).await?;
            let maybe = if message.maybe_delivered { "; it may have been delivered before" } else { "" };
            show(&if args.json { json } else { format!("{} is deleted{maybe}\n", message.id) })?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let which = Which { conversation: Some(conversation), reason: None };
    let bar = bar("deleted", None);
    let mut all = Deleted::default();
    api.run_pages((Method::DELETE, "/messages"), &which, &bar, |page: Deleted| {
        all.deleted += page.deleted;
        all.in_flight += page.in_flight;
        (all.deleted, page.next)
    })
    .await?;
    let in_flight =
        if all.in_flight > 0 { format!("; {} in flight, not deleted", all.in_flight) } else { String::new() };
    show(&if args.json {
        serde_json::to_string(&all)? + "\n"
    } else {
        format!("deleted: {}{in_flight}\n", all.deleted)
    })
}

/// A bar if the end is known, else a count; nothing without a terminal.
fn bar(what: &str, most: Option<u64>) -> ProgressBar {
    let (bar, template) = match most {
        Some(most) => (ProgressBar::new(most), "{prefix} [{bar:40}] {pos} of {len}"),
        None => (ProgressBar::new_spinner(), "{prefix} {pos} {spinner}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_prefix(what.to_owned())
}

fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str))
}

fn path_of(id: &str) -> String {
    format!("/messages/{}", utf8_percent_encode(id, ENCODED))
}

fn path(route: &str, which: &Which, rest: &[(&str, Option<&str>)]) -> String {
    let which = [("conversation", which.conversation.as_deref()), ("reason", which.reason.as_deref())];
    let given = which.iter().chain(rest).filter_map(|(name, value)| value.map(|value| (name, value)));
    let pairs: Vec<String> =
        given.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ENCODED))).collect();
    format!("{route}?{}", pairs.join("&"))
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read stdin")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

fn show(text: &str) -> anyhow::Result<ExitCode> {
    out::print(text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn parts_of_a_path_are_encoded() {
        let which = Which { conversation: Some("C/a&b+ä".into()), reason: Some("expired".into()) };
        assert_eq!(
            path("/redrive", &which, &[("after", None), ("limit", Some("500"))]),
            "/redrive?conversation=C%2Fa%26b%2B%C3%A4&reason=expired&limit=500"
        );
        assert_eq!(path_of("../status"), "/messages/..%2Fstatus");
    }

    #[test]
    fn bulk_needs_an_explicit_request() {
        let parse = |args: &[&str]| Only::try_parse_from([&["messages"], args].concat());
        for right in [
            &["redrive", "a", "b"][..],
            &["redrive", "--all", "--reason", "expired", "--conversation", "C"],
            &["delete", "--conversation", "C"],
            &["list", "--state", "dead"],
        ] {
            assert!(parse(right).is_ok(), "{right:?}");
        }
        for wrong in [
            &["redrive"][..],
            &["redrive", "--reason", "expired"],
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
    }
}
