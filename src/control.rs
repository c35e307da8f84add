//! The operators' door: how is the relay, and what is to be done about it. JSON, on a socket that only its own user may
//! open (mode 0600), so nobody is asked for credentials.
//!
//! `GET /status` is for people and scripts alike. Its members are names to build on:
//!
//! | members | what |
//! | --- | --- |
//! | `version`, `region`, `connect_instance` | which relay |
//! | `state` | `starting`, `ready`, `draining`, `failed` |
//! | `queued`, `queued_max`, `oldest_seconds`, `oldest_due_seconds` | what waits, and for how long |
//! | `conversations`, `held`, `unknown` | of them: waiting for a renewed token; with a message that may have arrived |
//! | `dead_letters` | kept, not delivered |
//! | `queue_bytes`, `queue_bytes_max`, `disk_free`, `full` | room; `full` is null, or names what refuses new messages |
//! | `send_rate`, `quota_rate`, `gate`, `in_flight` | sending; `gate` is `open`, `throttled` or `down` |
//! | `problems` | sentences: what is wrong, and what to do about it; none means healthy |
//!
//! Nothing in it is contents, a token, or a conversation's name. Dead letters by themselves are no problem: they were
//! logged and counted when they died, and stay for a week.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::health::{Health, State};
use crate::metrics::Metrics;
use crate::pacer::{Budget, Closed};
use crate::queue::{Full, Overview, Queue};
use crate::serve::Reply;
use crate::time::{Clock, Timestamp};

/// How long the queue may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Something that could have been sent for longer is worth a word.
const DUE_MAX: Duration = Duration::from_secs(60);

/// Which relay this is, and what bounds it.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The build.
    pub version: &'static str,
    /// `sender.region`
    pub region: String,
    /// `sender.connect_instance`
    pub connect_instance: String,
    /// `sender.quota_rate`
    pub quota_rate: f64,
    /// `queue.messages_max`
    pub messages_max: u64,
    /// `queue.bytes_max`
    pub bytes_max: u64,
}

/// Answers at the control door; clones are cheap but for [`About`].
#[derive(Clone, Debug)]
pub struct Control {
    /// What waits.
    pub queue: Queue,
    /// How fast it goes.
    pub budget: Budget,
    /// How the relay is.
    pub health: Health,
    /// Where the number in flight is read.
    pub metrics: Metrics,
    /// Which relay it is.
    pub about: About,
    /// For ages.
    pub clock: Clock,
}

/// The reply to `GET /status`. A member that another version does not have is read as nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the module's head has the table")]
pub struct Status {
    pub version: String,
    pub state: String,
    pub queued: u64,
    pub queued_max: u64,
    pub oldest_seconds: f64,
    pub oldest_due_seconds: f64,
    pub conversations: u64,
    pub held: u64,
    pub unknown: u64,
    pub dead_letters: u64,
    pub queue_bytes: u64,
    pub queue_bytes_max: u64,
    pub disk_free: u64,
    pub full: Option<String>,
    pub send_rate: f64,
    pub quota_rate: f64,
    pub gate: String,
    pub in_flight: u64,
    pub region: String,
    pub connect_instance: String,
    pub problems: Vec<String>,
}

/// What else is answered: why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The reason.
    #[serde(rename = "Error")]
    pub error: String,
}

/// What everybody else says of the relay.
struct Facts {
    overview: Overview,
    state: State,
    stalled: Option<String>,
    rate: f64,
    closed: Option<Closed>,
    in_flight: u64,
    now: Timestamp,
}

impl Control {
    /// Answers one request.
    pub async fn answer<B>(&self, request: &Request<B>) -> Reply {
        let (method, path) = (request.method(), request.uri().path());
        if path != "/status" {
            return refuse(StatusCode::NOT_FOUND, &format!("no such operation: {method} {path}"));
        }
        if method != Method::GET && method != Method::HEAD {
            let mut reply = refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered at /status");
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        let overview = match tokio::time::timeout(ANSWER_MAX, self.queue.overview()).await {
            Ok(Ok(overview)) => overview,
            Ok(Err(failed)) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()),
            Err(_) => {
                let why = format!(
                    "the store has not answered for {} s: look at the disk under queue.path",
                    self.queue.stalled().max(ANSWER_MAX).as_secs()
                );
                return refuse(StatusCode::SERVICE_UNAVAILABLE, &why);
            }
        };
        let (rate, closed) = {
            let pacer = self.budget.pacer();
            (pacer.rate(), pacer.closed())
        };
        let now = self.clock.now();
        let facts = Facts {
            overview,
            state: self.health.state(),
            stalled: self.health.live(now, self.queue.stalled()).err(),
            rate,
            closed,
            in_flight: in_flight(&self.metrics),
            now,
        };
        json(StatusCode::OK, &status(&self.about, &facts))
    }
}

fn status(about: &About, facts: &Facts) -> Status {
    let Facts { overview, state, rate, closed, in_flight, now, .. } = facts;
    let age = |since: Option<Timestamp>| since.map_or(0.0, |since| now.since(since).as_secs_f64());
    Status {
        version: about.version.into(),
        state: state.as_str().into(),
        queued: overview.queued,
        queued_max: about.messages_max,
        oldest_seconds: age(overview.oldest),
        oldest_due_seconds: age(overview.oldest_due),
        conversations: overview.conversations,
        held: overview.held,
        unknown: overview.unknown,
        dead_letters: overview.dead,
        queue_bytes: overview.bytes,
        queue_bytes_max: about.bytes_max,
        disk_free: overview.disk_free,
        full: overview.full.map(full),
        send_rate: (rate * 1000.0).round() / 1000.0,
        quota_rate: about.quota_rate,
        gate: match closed {
            None => "open",
            Some(Closed::Throttled) => "throttled",
            Some(Closed::Down) => "down",
        }
        .into(),
        in_flight: *in_flight,
        region: about.region.clone(),
        connect_instance: about.connect_instance.clone(),
        problems: problems(about, facts),
    }
}

/// What is wrong and what to do about it, the worst first.
fn problems(about: &About, facts: &Facts) -> Vec<String> {
    let Facts { overview, state, stalled, rate, closed, now, .. } = facts;
    let mut problems = Vec::new();
    if let State::Failed(why) = state {
        problems.push(format!(
            "The relay has failed and leaves: {why}. What was acknowledged is on disk; mend the cause and start it again."
        ));
    }
    if let Some(stalled) = stalled {
        problems.push(format!("It hangs: {stalled}. Restart it; what was acknowledged is on disk."));
    }
    if let Some(full) = overview.full {
        problems.push(format!("New messages are refused with 429: {}. {}.", self::full(full), what_to_do(full)));
    } else if overview.queued.saturating_mul(5) > about.messages_max.saturating_mul(4) {
        problems.push(format!(
            "The queue is filling up: {} of {} messages (queue.messages_max); beyond that new ones are refused with 429.",
            overview.queued, about.messages_max
        ));
    }
    match closed {
        Some(Closed::Down) => problems.push(
            "The Participant Service cannot be reached, or what answers is not it: messages wait and are tried again. \
             Look at the log's last `deferred` line, at sender.region, sender.endpoint and sender.proxy, and at the network."
                .into(),
        ),
        Some(Closed::Throttled) => problems.push(format!(
            "Connect throttles: sending at {rate:.1}/s of a quota of {:.1}/s. Everything that talks to the instance \
             draws on that quota; if this lasts, ask AWS to raise it.",
            about.quota_rate
        )),
        None => {}
    }
    let due = overview.oldest_due.map_or(Duration::ZERO, |since| now.since(since));
    if closed.is_none() && due >= DUE_MAX {
        problems.push(format!(
            "A message has been due for {}: {} wait for {rate:.1}/s. Either more is handed over than the quota lets out \
             (sender.quota_rate, sender.rate_max), or the sender is stuck and the log says why.",
            humantime::format_duration(Duration::from_secs(due.as_secs())),
            overview.queued,
        ));
    }
    if overview.set_aside {
        problems.push(
            "The queue was found damaged and is set aside in a folder damaged-* under queue.path; what verified was \
             carried over. `connect-relay doctor check` on that folder says what is lost. Look at the disk; then remove \
             the folder."
                .into(),
        );
    }
    if overview.corrupt > 0 {
        problems.push(format!(
            "Failed their checksum since the start, and set aside: {}. The log names their kind; look at the disk.",
            count(overview.corrupt, "record")
        ));
    }
    if overview.held > 0 {
        problems.push(format!(
            "Held for a renewed ConnectionToken, because Connect refused theirs: {}. Let the bot create a new connection \
             through the relay, or send Relay-Replaces-Token; after sender.token_wait their messages are dead letters.",
            count(overview.held, "conversation")
        ));
    }
    problems
}

fn full(full: Full) -> String {
    match full {
        Full::Messages { queued, most } => format!("{queued} messages are queued, queue.messages_max is {most}"),
        Full::Bytes { bytes, most } => format!("the queue takes {bytes} bytes on disk, queue.bytes_max is {most}"),
        Full::Disk { free, least } => {
            format!("{free} bytes are free on the queue's volume, queue.free_disk_min is {least}")
        }
    }
}

fn what_to_do(full: Full) -> &'static str {
    match full {
        Full::Messages { .. } | Full::Bytes { .. } => "Find out why so little is delivered, or raise the limit",
        Full::Disk { .. } => "Free some space there: sending goes on meanwhile",
    }
}

fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The sender's own gauge: what is exported and what is shown cannot differ.
fn in_flight(metrics: &Metrics) -> u64 {
    let families = metrics.registry().gather();
    let family = families.iter().find(|family| family.name() == "connect_relay_in_flight");
    let value =
        family.and_then(|family| family.get_metric().first()).map_or(0.0, |metric| metric.get_gauge().get_value());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    {
        value.max(0.0) as u64
    }
}

fn refuse(status: StatusCode, why: &str) -> Reply {
    json(status, &Refused { error: format!("connect-relay: {why}") })
}

fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    // Plain structs of numbers and text: this cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut reply = Response::new(Bytes::from(body).into());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(10_000_000);

    fn about() -> About {
        About {
            version: "1.2.3",
            region: "eu-west-2".into(),
            connect_instance: "shop".into(),
            quota_rate: 10.0,
            messages_max: 100,
            bytes_max: 1 << 20,
        }
    }

    fn facts() -> Facts {
        Facts {
            overview: Overview::default(),
            state: State::Ready,
            stalled: None,
            rate: 9.000_499,
            closed: None,
            in_flight: 2,
            now: NOW,
        }
    }

    #[test]
    fn status_has_every_member_that_is_promised() {
        let mut facts = facts();
        facts.overview.queued = 3;
        facts.overview.oldest = Some(Timestamp(NOW.0 - 1500));
        let status = status(&about(), &facts);
        let shown = serde_json::to_value(&status).unwrap();
        let expected = serde_json::json!({
            "version": "1.2.3", "state": "ready", "queued": 3, "queued_max": 100, "oldest_seconds": 1.5,
            "oldest_due_seconds": 0.0, "conversations": 0, "held": 0, "unknown": 0, "dead_letters": 0,
            "queue_bytes": 0, "queue_bytes_max": 1 << 20, "disk_free": 0, "full": null, "send_rate": 9.0,
            "quota_rate": 10.0, "gate": "open", "in_flight": 2, "region": "eu-west-2", "connect_instance": "shop",
            "problems": [],
        });
        assert_eq!(shown, expected);
        assert_eq!(serde_json::from_value::<Status>(shown).unwrap(), status, "and whoever asks reads it so");
    }

    #[test]
    fn each_fault_is_a_problem_that_names_its_remedy() {
        let says = |change: fn(&mut Facts), words: &str| {
            let mut facts = facts();
            change(&mut facts);
            let problems = problems(&about(), &facts);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(words), "{problems:?}");
        };
        says(|facts| facts.state = State::Failed("no space".into()), "no space");
        says(|facts| facts.stalled = Some("a commit".into()), "Restart it");
        says(|facts| facts.overview.queued = 81, "81 of 100 messages (queue.messages_max)");
        says(
            |facts| {
                facts.overview.queued = 100;
                facts.overview.full = Some(Full::Messages { queued: 100, most: 100 });
            },
            "429: 100 messages are queued, queue.messages_max is 100",
        );
        says(|facts| facts.overview.full = Some(Full::Bytes { bytes: 9, most: 9 }), "queue.bytes_max");
        says(|facts| facts.overview.full = Some(Full::Disk { free: 1, least: 2 }), "queue.free_disk_min");
        says(|facts| facts.closed = Some(Closed::Down), "sender.endpoint");
        says(|facts| facts.closed = Some(Closed::Throttled), "9.0/s of a quota of 10.0/s");
        says(|facts| facts.overview.oldest_due = Some(Timestamp(NOW.0 - 61_000)), "due for 1m 1s");
        says(|facts| facts.overview.held = 1, "theirs: 1 conversation.");
        says(|facts| facts.overview.set_aside = true, "doctor check");
        says(|facts| facts.overview.corrupt = 2, "set aside: 2 records.");
    }

    #[test]
    fn what_passes_by_itself_is_no_problem() {
        let mut facts = facts();
        facts.state = State::Draining;
        facts.overview =
            Overview { queued: 80, dead: 7, unknown: 1, oldest_due: Some(Timestamp(NOW.0 - 59_000)), ..facts.overview };
        assert_eq!(problems(&about(), &facts), Vec::<String>::new());
    }

    #[test]
    fn in_flight_is_what_is_exported() {
        let metrics = Metrics::default();
        assert_eq!(in_flight(&metrics), 0);
        metrics.gauge("in_flight", "Attempts under way.").set(5);
        assert_eq!(in_flight(&metrics), 5);
    }
}
