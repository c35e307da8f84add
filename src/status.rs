//! The state of a relay, and its problems in sentences: for the operators' `GET /status`, and for the status page. Clients may
//! rely on the members:
//!
//! | members | meaning |
//! | --- | --- |
//! | `version`, `region`, `connect_instance` | the version, and the region and instance that it sends to |
//! | `state`, `uptime_seconds` | `starting`, `ready`, `draining`, `failed`; seconds since the start |
//! | `paused` | null, or the time since which sending is paused, and the operator's reason |
//! | `all_refused_since` | null, or the time since which Connect refuses every token and has never taken a message |
//! | `queued`, `queued_max`, `oldest_seconds`, `oldest_due_seconds` | the waiting messages, and the ages of the oldest |
//! | `conversations`, `held`, `answer_lost` | conversations with queued messages; of them, waiting for a renewed token; with a message that may have arrived |
//! | `dead_letters` | stored, not delivered |
//! | `queue_bytes`, `queue_bytes_max`, `disk_free`, `full` | space; `full` is null, or names the limit that refuses new messages |
//! | `send_rate`, `quota_rate`, `gate`, `in_flight` | sending; `gate` is `open`, `throttled` or `down` |
//! | `attempts`, `throttled`, `quota_wait_seconds` | since the start: attempts, the throttled ones of them, and the time in which something was due and only the quota held it |
//! | `fleet` | null without a fleet; else `name`, `up` (a server passes this relay's reports on), and if it shares its quota `members`, this relay included, and `quota_rate`, which they have learned together; `copy` |
//! | `fleet.copy` | null without `fleet.replicate`; else `identity`, `state` (`up`, `behind`, `fenced`), and while behind `behind_since`, `behind_commits` (commits that the stream did not have when they were answered) and `behind_why`; `stream_bytes`; `orphans` (copies of other relays that have messages and no living relay) |
//! | `expiring`, `first_expiry` | queued messages that will expire before they can be sent, and when the first does: an estimate; null if none |
//! | `problems` | sentences: each problem and its remedy; empty if healthy |
//!
//! The reply contains no contents, no token and no conversation's name. Dead letters by themselves are no problem: each
//! was logged and counted when it became one, and is stored for a week.

pub mod history;
pub mod reporter;
pub mod text;

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use prometheus::proto::{LabelPair, MetricFamily};
use serde::{Deserialize, Serialize};

use crate::health::{Seen, State, Trouble};
use crate::metrics::Metrics;
use crate::pacer::Closed;
use crate::queue::{Expiring, Full, Overview, Pause};
use crate::ship::link;
use crate::time::{Clock, Timestamp};

/// The time after which a due message that could have been sent is a problem.
const DUE_MAX: Duration = Duration::from_secs(60);

/// The time after the start in which a fleet that was not joined yet is no problem.
const JOINING_MAX: Duration = Duration::from_secs(3);

/// The time after which a copy that is behind is a problem.
const BEHIND_MAX: Duration = Duration::from_secs(60);

/// Sending is slow, not stuck, if the last attempt ended within this time. Slow sending ends attempts more often, also
/// at the lowest rate and with slow answers.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// The identity and the limits of this relay.
#[derive(Clone, Debug, Default)]
pub struct RelayInfo {
    /// The build.
    pub version: &'static str,
    /// `sender.region`
    pub region: String,
    /// The destination of messages: `sender.endpoint`, or the region's.
    pub upstream: String,
    /// `sender.connect_instance`
    pub connect_instance: String,
    /// `sender.quota_rate`
    pub quota_rate: f64,
    /// `queue.messages_max`
    pub messages_max: u64,
    /// `queue.bytes_max`
    pub bytes_max: u64,
    /// The fleet, if there is one.
    pub fleet: Option<FleetInfo>,
}

/// The settings of the fleet.
#[derive(Clone, Debug, Default)]
pub struct FleetInfo {
    /// `fleet.name`
    pub name: String,
    /// `fleet.share_quota`
    pub shares_quota: bool,
    /// The copy of the queue, with `fleet.replicate`.
    pub copy: Option<CopyInfo>,
}

/// The settings of the copy of the queue in the fleet.
#[derive(Clone, Debug, Default)]
pub struct CopyInfo {
    /// `fleet.identity`
    pub identity: String,
    /// True if messages are accepted while the copy is behind.
    pub goes_on: bool,
}

impl RelayInfo {
    /// The setting that decides the destination, and its value.
    fn destination(&self) -> String {
        if !self.region.is_empty() && self.upstream.contains(&self.region) {
            format!("sender.region ({})", self.region)
        } else {
            format!("sender.endpoint ({}, in place of sender.region)", self.upstream)
        }
    }
}

/// The reply to `GET /status`. A member that another version does not send is read as empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the module's head has the table")]
pub struct Status {
    pub version: String,
    pub state: String,
    pub uptime_seconds: f64,
    pub paused: Option<Paused>,
    pub all_refused_since: Option<String>,
    pub queued: u64,
    pub queued_max: u64,
    pub oldest_seconds: f64,
    pub oldest_due_seconds: f64,
    pub conversations: u64,
    pub held: u64,
    pub answer_lost: u64,
    pub dead_letters: u64,
    pub queue_bytes: u64,
    pub queue_bytes_max: u64,
    pub disk_free: u64,
    pub full: Option<String>,
    pub send_rate: f64,
    pub quota_rate: f64,
    pub gate: String,
    pub in_flight: u64,
    pub attempts: u64,
    pub throttled: u64,
    pub quota_wait_seconds: f64,
    pub region: String,
    pub connect_instance: String,
    pub fleet: Option<Fleet>,
    pub expiring: u64,
    pub first_expiry: Option<String>,
    pub problems: Vec<String>,
}

/// The start and the reason of a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the module's head has the table")]
pub struct Paused {
    pub since: String,
    pub reason: String,
}

/// The fleet, as this relay sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the module's head has the table")]
pub struct Fleet {
    pub name: String,
    pub up: bool,
    pub members: Option<u64>,
    pub quota_rate: Option<f64>,
    pub copy: Option<FleetCopy>,
}

/// The copy of the queue in the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the module's head has the table")]
pub struct FleetCopy {
    pub identity: String,
    pub state: String,
    pub behind_since: Option<String>,
    pub behind_commits: u64,
    pub behind_why: Option<String>,
    pub stream_bytes: u64,
    pub orphans: u64,
}

/// The facts from other parts of the relay.
struct Facts {
    overview: Overview,
    state: State,
    stalled: Option<String>,
    /// The path of the bots' socket, and a description of what is there instead of it.
    no_socket: Option<(PathBuf, String)>,
    rate: f64,
    closed: Option<Closed>,
    seen: Seen,
    /// The state of the copy in the fleet, and the reason why it is behind.
    copy: (link::State, Option<String>),
    counts: Counts,
    uptime: Duration,
    now: Timestamp,
    clock: Clock,
}

/// The sender's and the fleet's own metrics: the status and `/metrics` cannot differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    in_flight: u64,
    attempts: u64,
    throttled: u64,
    quota_wait: f64,
    fleet_up: bool,
    fleet_members: Option<u64>,
    fleet_quota_rate: Option<f64>,
    fleet_stream_bytes: u64,
    fleet_orphans: u64,
}

/// The exported metrics at one moment.
struct Exported(Vec<MetricFamily>);

impl Exported {
    fn of(metrics: &Metrics) -> Exported {
        Exported(metrics.registry().gather())
    }

    /// The value of a counter or a gauge: the sum of its series, or of those whose label has the given value. `None` if it
    /// is not exported.
    fn value(&self, name: &str, label: Option<&str>) -> Option<f64> {
        let family = self.0.iter().find(|family| family.name() == format!("connect_relay_{name}"))?;
        let of_label = |of: &LabelPair| label.is_none_or(|label| of.value() == label);
        let series = family.get_metric().iter().filter(|metric| metric.get_label().iter().all(of_label));
        // A metric is one of the two, and 0 as the other.
        Some(series.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum())
    }

    /// The same as a whole number.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, counted one by one")]
    fn count(&self, name: &str, label: Option<&str>) -> Option<u64> {
        self.value(name, label).map(|value| value.max(0.0) as u64)
    }
}

impl Counts {
    fn read(metrics: &Metrics) -> Counts {
        let exported = Exported::of(metrics);
        let count = |name: &str| exported.count(name, None);
        Counts {
            in_flight: count("in_flight").unwrap_or(0),
            attempts: count("attempts_total").unwrap_or(0),
            throttled: exported.count("attempts_total", Some("throttled")).unwrap_or(0),
            quota_wait: exported.value("quota_wait_seconds_total", None).unwrap_or(0.0),
            fleet_up: count("fleet_up").is_some_and(|up| up > 0),
            fleet_members: count("fleet_members"),
            fleet_quota_rate: exported.value("fleet_quota_rate", None),
            fleet_stream_bytes: count("fleet_stream_bytes").unwrap_or(0),
            fleet_orphans: count("fleet_orphans").unwrap_or(0),
        }
    }
}

impl Status {
    fn of(relay: &RelayInfo, facts: &Facts) -> Status {
        let Facts { overview, state, rate, closed, counts, now, .. } = facts;
        let age = |since: Option<Timestamp>| since.map_or(0.0, |since| now.since(since).as_secs_f64());
        Status {
            version: relay.version.into(),
            state: state.as_str().into(),
            uptime_seconds: facts.uptime.as_secs_f64(),
            paused: overview.paused.as_ref().map(|pause| Paused::of(pause, &facts.clock)),
            all_refused_since: overview.all_refused.map(|since| facts.clock.shown(since).to_string()),
            queued: overview.queued,
            queued_max: relay.messages_max,
            oldest_seconds: age(overview.oldest),
            oldest_due_seconds: age(overview.oldest_due),
            conversations: overview.conversations,
            held: overview.held,
            answer_lost: overview.answer_lost,
            dead_letters: overview.dead,
            queue_bytes: overview.bytes,
            queue_bytes_max: relay.bytes_max,
            disk_free: overview.disk_free,
            full: overview.full.map(describe_full),
            send_rate: millis_of(*rate),
            quota_rate: relay.quota_rate,
            gate: match closed {
                None => "open",
                Some(Closed::Throttled) => "throttled",
                Some(Closed::Down) => "down",
            }
            .into(),
            in_flight: counts.in_flight,
            attempts: counts.attempts,
            throttled: counts.throttled,
            quota_wait_seconds: millis_of(counts.quota_wait),
            region: relay.region.clone(),
            connect_instance: relay.connect_instance.clone(),
            fleet: relay.fleet.as_ref().map(|fleet| Fleet {
                name: fleet.name.clone(),
                up: counts.fleet_up,
                members: counts.fleet_members,
                quota_rate: counts.fleet_quota_rate.map(millis_of),
                copy: fleet.copy.as_ref().map(|copy| FleetCopy::of(copy, facts)),
            }),
            expiring: overview.expiring.messages,
            first_expiry: overview.expiring.first.map(|first| facts.clock.shown(first).to_string()),
            problems: problems(relay, facts),
        }
    }
}

impl Paused {
    fn of(pause: &Pause, clock: &Clock) -> Paused {
        Paused { since: clock.shown(pause.since).to_string(), reason: pause.why.clone() }
    }
}

impl FleetCopy {
    fn of(copy: &CopyInfo, facts: &Facts) -> FleetCopy {
        let Facts { overview, copy: (state, why), counts, clock, .. } = facts;
        let behind = *state == link::State::Behind;
        let (commits, since) = if behind { overview.behind } else { (0, None) };
        FleetCopy {
            identity: copy.identity.clone(),
            state: match state {
                link::State::Up => "up",
                link::State::Behind => "behind",
                link::State::Fenced => "fenced",
            }
            .into(),
            behind_since: since.map(|since| clock.shown(since).to_string()),
            behind_commits: commits,
            behind_why: why.clone().filter(|_| behind),
            stream_bytes: counts.fleet_stream_bytes,
            orphans: counts.fleet_orphans,
        }
    }
}

/// The problems and their remedies, the worst first.
fn problems(relay: &RelayInfo, facts: &Facts) -> Vec<String> {
    let Facts { overview, state, stalled, rate, closed, seen, now, .. } = facts;
    let due_for = overview.oldest_due.map_or(Duration::ZERO, |since| now.since(since));
    let due = match overview.oldest_due {
        Some(since) if due_for >= DUE_MAX => {
            format!(" A message has been due for {}, since {}.", span(due_for), facts.clock.shown(since))
        }
        _ => String::new(),
    };
    let mut problems = Vec::new();
    if let State::Failed(why) = state {
        problems.push(format!(
            "The relay has failed and exits: {why}. Acknowledged messages are on disk; remove the cause and start it again."
        ));
    }
    if let Some(stalled) = stalled {
        problems.push(format!("The relay hangs: {stalled}. Restart it; acknowledged messages are on disk."));
    }
    if let Some((path, why)) = &facts.no_socket {
        problems.push(format!("Bots cannot connect: the socket is not at its path, {}: {why}.", path.display()));
    }
    if let Some(Pause { since, why }) = &overview.paused {
        problems.push(format!(
            "Sending is paused since {}{}{why}. Messages wait on disk and expire when their lifetime ends; \
             `connect-relay resume` ends the pause.",
            facts.clock.shown(*since),
            if why.is_empty() { "" } else { ": " }
        ));
    }
    if let Some(since) = overview.all_refused {
        problems.push(format!(
            "Connect refuses every token since {} (all_refused) and has never taken a message. {} \
             or the bot's Connect instance may be wrong. One message each sender.probe_max is tried with a \
             token that was not refused yet; the first that Connect takes resumes sending. Correct the setting and restart \
             the relay, or run `connect-relay resume`. No message is given up before its lifetime ends.",
            facts.clock.shown(since),
            relay.destination()
        ));
    }
    if let Some(full) = overview.full {
        problems.push(format!("New messages are refused with 429: {}. {}.", describe_full(full), remedy(full)));
    } else if overview.queued.saturating_mul(5) > relay.messages_max.saturating_mul(4) {
        problems.push(format!(
            "The queue is filling up: {} of {} messages (queue.messages_max); beyond that new ones are refused with 429.",
            overview.queued, relay.messages_max
        ));
    }
    match closed {
        Some(Closed::Down) => problems.push(match &seen.trouble {
            Some(Trouble { since, what, advice }) => format!(
                "Sending is stuck since {}: the Participant Service {what}.{due} Messages wait on disk, and one at a \
                 time is tried. {advice}",
                facts.clock.shown(*since)
            ),
            None => format!(
                "Sending is stuck: the Participant Service is down.{due} Messages wait on disk, and one at a time is tried. \
                 The log's last warning says why; check sender.region, sender.endpoint and sender.proxy."
            ),
        }),
        Some(Closed::Throttled) => problems.push(format!(
            "Connect throttles: sending at {rate:.1}/s of a quota of {:.1}/s.{due} Everything that talks to the instance \
             draws on that quota; if this lasts, ask AWS to raise it.",
            relay.quota_rate
        )),
        None => {}
    }
    problems.extend(describe_expiring(facts));
    let held_back = overview.paused.is_some() || overview.all_refused.is_some();
    if closed.is_none() && !held_back && due_for >= DUE_MAX {
        problems.push(describe_delay(facts, &due));
    }
    if overview.set_aside {
        problems.push(
            "The queue was found damaged and is set aside in a folder damaged-* under queue.path; its valid \
             records are in the new queue. `connect-relay doctor check` on that folder lists what is lost. Check the \
             disk; then remove the folder."
                .into(),
        );
    }
    if overview.corrupt > 0 {
        problems.push(format!(
            "{} failed the checksum since the start and were set aside. The log names their kind; check the disk.",
            counted(overview.corrupt, "record")
        ));
    }
    if let Some(fleet) = &relay.fleet {
        problems.extend(problems_of_fleet(fleet, facts));
    }
    if overview.held > 0 && !held_back {
        problems.push(format!(
            "Held for a renewed ConnectionToken, because Connect refused theirs: {}. Let the bot create a new connection \
             through the relay, or send Relay-Replaces-Token; after sender.token_wait their messages are dead letters.",
            counted(overview.held, "conversation")
        ));
    }
    problems
}

/// The problems of the fleet.
fn problems_of_fleet(fleet: &FleetInfo, facts: &Facts) -> Vec<String> {
    let Facts { overview, copy: (state, why), counts, uptime, now, clock, .. } = facts;
    let mut problems = Vec::new();
    let name = &fleet.name;
    if fleet.shares_quota && !counts.fleet_up && *uptime >= JOINING_MAX {
        problems.push(format!(
            "The fleet {name} is not reached: this relay goes on alone from its last share of the quota, and tries again \
             until it is. The log's last warning says why; `connect-relay check --online` tries each of fleet.servers."
        ));
    }
    let Some(copy) = &fleet.copy else { return problems };
    if let (link::State::Behind, (commits, Some(since))) = (state, overview.behind)
        && now.since(since) >= BEHIND_MAX
    {
        let effect = if copy.goes_on {
            format!(
                "Messages are accepted and sent as before, but the last {} on this volume alone: if this volume is lost \
                 now, so are they. Do not remove this pod or its volume until the copy is up again.",
                if commits == 1 { "commit is".into() } else { format!("{} commits are", grouped(commits)) }
            )
        } else {
            "New messages are refused with 503 (fleet.when_down is \"refuse\"); what is queued is sent as before."
                .into()
        };
        let why = why.as_ref().map_or(String::new(), |why| format!(" The last error: {why}."));
        problems.push(format!(
            "The copy of the queue in the fleet {name} has been behind for {}, since {}. {effect}{why} Check that a majority \
             of the NATS servers runs, and that their disks have space; `connect-relay check --online` tries each of \
             fleet.servers. The relay catches up by itself.",
            span(now.since(since)),
            clock.shown(since)
        ));
    }
    if counts.fleet_orphans > 0 {
        let (one, them) = if counts.fleet_orphans == 1 { ("copy has", "it") } else { ("copies have", "them") };
        problems.push(format!(
            "In the fleet {name} {} {one} queued messages and no relay that sends them (an orphan): customers do not get \
             these messages. `connect-relay fleet list` names {them}. Start a relay with that fleet.identity, or hand its \
             messages to another relay: `connect-relay fleet export IDENTITY | connect-relay send --batch -`, and then \
             `connect-relay fleet remove IDENTITY`.",
            counts.fleet_orphans
        ));
    }
    problems
}

/// The problem of a message that is due for long without a known obstacle: if attempts end, sending is only slow.
fn describe_delay(facts: &Facts, due: &str) -> String {
    let Facts { overview, rate, seen, counts, now, uptime, .. } = facts;
    let quiet = seen.attempted.map_or(*uptime, |attempted| now.since(attempted));
    if quiet < QUIET_MAX {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let left = Duration::try_from_secs_f64(overview.queued as f64 / rate).unwrap_or(Duration::MAX);
        return format!(
            "Sending is slow, not stuck: the last attempt ended {} ago.{due} {} wait for {rate:.1}/s, which takes about {}. \
             Bots submit more than the learned rate delivers: check sender.quota_rate and sender.rate_max, and which other \
             clients use the quota.",
            span(quiet),
            overview.queued,
            span(left),
        );
    }
    let (what, next) = match counts.in_flight {
        0 => ("nothing is in flight", "keep the relay's log and restart it; acknowledged messages are on disk"),
        _ => (
            "the attempts in flight have no answer",
            "check the connection to the Participant Service (sender.endpoint, sender.proxy), and sender.attempt_timeout",
        ),
    };
    format!("Sending is stuck: no attempt has ended for {}, and {what}.{due} What to do: {next}.", span(quiet))
}

/// A duration to the second.
fn span(span: Duration) -> String {
    humantime::format_duration(Duration::from_secs(span.as_secs())).to_string()
}

/// The messages that will expire before they can be sent.
fn describe_expiring(facts: &Facts) -> Option<String> {
    let Facts { overview, rate, closed, clock, .. } = facts;
    let Expiring { messages, first: Some(first) } = overview.expiring else { return None };
    let first = clock.shown(first).time_of_day();
    let (queued, lost) = (grouped(overview.queued), approximate(messages));
    if overview.paused.is_some() || overview.all_refused.is_some() || *closed == Some(Closed::Down) {
        return Some(format!(
            "Of {queued} messages queued, about {lost} will expire, even if sending resumes in five minutes, the first at \
             {first} UTC. Expired messages are dead letters: `connect-relay messages redrive --reason expired` queues them \
             again."
        ));
    }
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let whole = Duration::try_from_secs_f64((overview.queued as f64 / rate).ceil()).unwrap_or(Duration::MAX);
    Some(format!(
        "Sending {queued} messages takes about {} at {rate:.1}/s: about {lost} of them will expire first, the first at \
         {first} UTC. Raise sender.rate_max or ask AWS for a higher quota, or raise sender.lifetime for messages to come; \
         `connect-relay messages redrive --reason expired` queues expired ones again.",
        humantime::format_duration(whole)
    ))
}

/// A number to two significant digits: an estimate is no better.
fn approximate(count: u64) -> String {
    let unit = 10u64.pow(count.max(1).ilog10().saturating_sub(1));
    grouped(count.saturating_add(unit / 2) / unit * unit)
}

/// `2100` as `2,100`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

pub(crate) fn describe_full(full: Full) -> String {
    match full {
        Full::Messages { queued, most } => format!("{queued} messages are queued, queue.messages_max is {most}"),
        Full::Bytes { bytes, most } => {
            format!("the queue takes {} on disk, queue.bytes_max is {}", ByteSize(bytes), ByteSize(most))
        }
        Full::Disk { free, least } => {
            format!("{} are free on the queue's volume, queue.free_disk_min is {}", ByteSize(free), ByteSize(least))
        }
    }
}

fn remedy(full: Full) -> &'static str {
    match full {
        Full::Messages { .. } | Full::Bytes { .. } => "Find out why so little is delivered, or raise the limit",
        Full::Disk { .. } => "Free some space there; sending continues meanwhile",
    }
}

/// A number with its noun: `1 record`, `2 records`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A number to three decimal places.
fn millis_of(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(10_000_000);

    fn relay_info() -> RelayInfo {
        RelayInfo {
            version: "1.2.3",
            region: "eu-west-2".into(),
            upstream: "https://participant.connect.eu-west-2.amazonaws.com/".into(),
            connect_instance: "shop".into(),
            quota_rate: 10.0,
            messages_max: 100,
            bytes_max: 1 << 20,
            fleet: None,
        }
    }

    fn facts() -> Facts {
        Facts {
            overview: Overview::default(),
            state: State::Ready,
            stalled: None,
            no_socket: None,
            rate: 9.000_499,
            closed: None,
            seen: Seen::default(),
            copy: (link::State::Up, None),
            counts: Counts { in_flight: 2, attempts: 40, throttled: 1, quota_wait: 1.5, ..Counts::default() },
            uptime: Duration::from_secs(90),
            now: NOW,
            clock: Clock::still(),
        }
    }

    fn pause(why: &str) -> Pause {
        Pause { since: Timestamp(1000), why: why.into() }
    }

    #[test]
    fn status_has_every_member_that_is_promised() {
        let mut facts = facts();
        facts.overview.queued = 3;
        facts.overview.oldest = Some(Timestamp(NOW.0 - 1500));
        let status = Status::of(&relay_info(), &facts);
        let shown = serde_json::to_value(&status).unwrap();
        let expected = serde_json::json!({
            "version": "1.2.3", "state": "ready", "uptime_seconds": 90.0, "paused": null, "all_refused_since": null, "queued": 3, "queued_max": 100, "oldest_seconds": 1.5,
            "oldest_due_seconds": 0.0, "conversations": 0, "held": 0, "answer_lost": 0, "dead_letters": 0,
            "queue_bytes": 0, "queue_bytes_max": 1 << 20, "disk_free": 0, "full": null, "send_rate": 9.0,
            "quota_rate": 10.0, "gate": "open", "in_flight": 2, "attempts": 40, "throttled": 1, "quota_wait_seconds": 1.5, "region": "eu-west-2", "connect_instance": "shop",
            "fleet": null, "expiring": 0, "first_expiry": null, "problems": [],
        });
        assert_eq!(shown, expected);
        assert_eq!(serde_json::from_value::<Status>(shown).unwrap(), status, "and clients can read it");
    }

    #[test]
    fn expiring_messages_are_a_problem_with_their_number_and_time() {
        let mut facts = facts();
        facts.rate = 1.0;
        facts.overview.queued = 3000;
        let first = facts.clock.now() + Duration::from_secs(900);
        facts.overview.expiring = Expiring { messages: 2097, first: Some(first) };
        let relay = RelayInfo { messages_max: 10_000, ..relay_info() };
        let time = facts.clock.shown(first).time_of_day();
        let [problem] = &problems(&relay, &facts)[..] else { panic!() };
        let expected = format!(
            "Sending 3,000 messages takes about 50m at 1.0/s: about 2,100 of them will expire first, the first at {time} UTC."
        );
        assert!(problem.starts_with(&expected), "{problem}");
        facts.overview.paused = Some(pause(""));
        let stopped = |facts: &Facts| {
            let text = problems(&relay, facts).join(" ");
            assert!(text.contains("about 2,100 will expire, even if sending resumes in five minutes"), "{text}");
            assert!(!text.contains("takes about"), "{text}");
        };
        stopped(&facts);
        (facts.overview.paused, facts.overview.all_refused) = (None, Some(Timestamp(1000)));
        stopped(&facts);
        assert_eq!([1, 99, 149, 2_950, 1_234_567].map(super::approximate).join(" "), "1 99 150 3,000 1,200,000");
    }

    #[test]
    fn each_fault_is_a_problem_that_names_its_remedy() {
        let says = |change: fn(&mut Facts), words: &str| {
            let mut facts = facts();
            change(&mut facts);
            let problems = problems(&relay_info(), &facts);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(words), "{problems:?}");
        };
        says(|facts| facts.state = State::Failed("no space".into()), "no space");
        says(|facts| facts.stalled = Some("a commit".into()), "Restart it");
        says(
            |facts| facts.no_socket = Some(("/run/relay.sock".into(), "nothing is there".into())),
            "not at its path, /run/relay.sock: nothing is there.",
        );
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
        says(|facts| facts.overview.oldest_due = Some(Timestamp(NOW.0 - 61_000)), "due for 1m 1s, since 1970-");
        says(|facts| facts.overview.held = 1, "theirs: 1 conversation.");
        says(|facts| facts.overview.set_aside = true, "doctor check");
        says(|facts| facts.overview.corrupt = 2, "2 records failed the checksum");
        says(|facts| facts.overview.paused = Some(pause("")), "paused since 1970-01-01T00:00:01.000Z. Messages wait");
        says(|facts| facts.overview.paused = Some(pause("it moves")), "01.000Z: it moves. Messages wait on disk");
        says(
            |facts| {
                facts.overview.all_refused = Some(Timestamp(1000));
                (facts.overview.held, facts.overview.oldest_due) = (3, Some(Timestamp(0)));
            },
            "sender.region (eu-west-2)",
        );
    }

    #[test]
    fn message_that_is_due_for_long_is_slow_or_stuck_and_status_says_which() {
        let says = |edit: &dyn Fn(&mut Facts), texts: &[&str]| {
            let mut facts = facts();
            facts.overview.queued = 60;
            facts.overview.oldest_due = Some(Timestamp(NOW.0 - 61_000));
            facts.seen.attempted = Some(Timestamp(NOW.0 - 3000));
            edit(&mut facts);
            let problems = problems(&relay_info(), &facts);
            let [problem] = &problems[..] else { panic!("one problem: {problems:?}") };
            for text in texts.iter().chain(&["due for 1m 1s, since 1970-01-01T02:45:39.000Z."]) {
                assert!(problem.contains(text), "{problem} lacks {text}");
            }
        };
        says(&|_| {}, &["slow, not stuck: the last attempt ended 3s ago", "60 wait for 9.0/s", "about 6s"]);
        says(
            &|facts| {
                facts.seen.attempted = None;
                facts.counts.in_flight = 0;
            },
            &["stuck: no attempt has ended for 1m 30s, and nothing is in flight", "restart it"],
        );
        says(&|facts| facts.seen.attempted = Some(Timestamp(0)), &["stuck: ", "the attempts in flight have no answer"]);
        says(&|facts| facts.closed = Some(Closed::Throttled), &["throttles: sending at 9.0/s of a quota of 10.0/s."]);
        says(&|facts| facts.closed = Some(Closed::Down), &["Sending is stuck: ", "down", "sender.endpoint"]);
        says(
            &|facts| {
                facts.closed = Some(Closed::Down);
                let (what, advice) = ("answered 503".to_owned(), "Look there.");
                facts.seen.trouble = Some(Trouble { since: Timestamp(1000), what, advice });
            },
            &["stuck since 1970-01-01T00:00:01.000Z: the Participant Service answered 503.", "tried. Look there."],
        );
    }

    #[test]
    fn setting_that_is_named_is_the_one_that_is_set() {
        let mut relay = relay_info();
        assert_eq!(relay.destination(), "sender.region (eu-west-2)");
        relay.upstream = "http://127.0.0.1:9580/".into();
        assert_eq!(relay.destination(), "sender.endpoint (http://127.0.0.1:9580/, in place of sender.region)");
        relay.region = String::new();
        assert_eq!(relay.destination(), "sender.endpoint (http://127.0.0.1:9580/, in place of sender.region)");
    }

    #[test]
    fn temporary_conditions_are_no_problem() {
        let mut facts = facts();
        facts.state = State::Draining;
        facts.overview = Overview {
            queued: 80,
            dead: 7,
            answer_lost: 1,
            oldest_due: Some(Timestamp(NOW.0 - 59_000)),
            ..facts.overview
        };
        assert_eq!(problems(&relay_info(), &facts), Vec::<String>::new());
    }

    #[test]
    fn fleet_is_shown_and_one_that_is_not_reached_is_a_problem() {
        let mut facts = facts();
        let fleet = FleetInfo { name: "shops".into(), shares_quota: true, copy: None };
        let relay = RelayInfo { fleet: Some(fleet.clone()), ..relay_info() };
        let status = Status::of(&relay, &facts);
        assert_eq!(status.fleet, Some(Fleet { name: "shops".into(), ..Fleet::default() }));
        let [problem] = &status.problems[..] else { panic!("{:?}", status.problems) };
        assert!(problem.starts_with("The fleet shops is not reached: "), "{problem}");
        facts.uptime = Duration::from_secs(2);
        assert_eq!(problems(&relay, &facts), Vec::<String>::new(), "it may still join");
        facts.uptime = Duration::from_secs(90);
        (facts.counts.fleet_up, facts.counts.fleet_members) = (true, Some(3));
        facts.counts.fleet_quota_rate = Some(29.500_1);
        let status = Status::of(&relay, &facts);
        let shown = serde_json::to_value(status.fleet).unwrap();
        let expected =
            serde_json::json!({ "name": "shops", "up": true, "members": 3, "quota_rate": 29.5, "copy": null });
        assert_eq!(shown, expected);
        assert_eq!(status.problems, Vec::<String>::new());
        facts.counts.fleet_up = false;
        let relay = RelayInfo { fleet: Some(FleetInfo { shares_quota: false, ..fleet }), ..relay_info() };
        assert_eq!(problems(&relay, &facts), Vec::<String>::new(), "it has no share of the quota to go on from");
    }

    fn relay_with_a_copy(goes_on: bool) -> RelayInfo {
        let copy = CopyInfo { identity: "bots-0".into(), goes_on };
        let fleet = FleetInfo { name: "shops".into(), shares_quota: false, copy: Some(copy) };
        RelayInfo { fleet: Some(fleet), ..relay_info() }
    }

    #[test]
    fn copy_is_shown_and_one_that_is_behind_for_a_minute_is_a_problem_with_its_reason() {
        let mut facts = facts();
        facts.counts.fleet_stream_bytes = 4096;
        let relay = relay_with_a_copy(true);
        let status = Status::of(&relay, &facts);
        let shown = serde_json::to_value(status.fleet.unwrap().copy).unwrap();
        let expected = serde_json::json!({
            "identity": "bots-0", "state": "up", "behind_since": null, "behind_commits": 0, "behind_why": null,
            "stream_bytes": 4096, "orphans": 0,
        });
        assert_eq!(shown, expected);
        assert_eq!(status.problems, Vec::<String>::new());

        facts.copy = (link::State::Behind, Some("no server answers".into()));
        facts.overview.behind = (1234, Some(Timestamp(NOW.0 - 59_000)));
        assert_eq!(problems(&relay, &facts), Vec::<String>::new(), "servers may be restarted");
        facts.overview.behind.1 = Some(Timestamp(NOW.0 - 190_000));
        let status = Status::of(&relay, &facts);
        let copy = status.fleet.unwrap().copy.unwrap();
        let since = "1970-01-01T02:43:30.000Z";
        assert_eq!((copy.state.as_str(), copy.behind_since.as_deref()), ("behind", Some(since)));
        assert_eq!((copy.behind_commits, copy.behind_why.as_deref()), (1234, Some("no server answers")));
        let [problem] = &status.problems[..] else { panic!("{:?}", status.problems) };
        for text in [
            "has been behind for 3m 10s, since 1970-01-01T02:43:30.000Z.",
            "the last 1,234 commits are on this volume alone",
            "The last error: no server answers.",
            "check --online",
        ] {
            assert!(problem.contains(text), "{problem} lacks {text}");
        }
        let [problem] = &problems(&relay_with_a_copy(false), &facts)[..] else { panic!() };
        assert!(problem.contains("refused with 503 (fleet.when_down") && !problem.contains("1,234"), "{problem}");
    }

    #[test]
    fn orphans_are_a_problem_that_names_the_commands() {
        let mut facts = facts();
        for (orphans, words) in [(1, "1 copy has queued messages"), (2, "2 copies have queued messages")] {
            facts.counts.fleet_orphans = orphans;
            let [problem] = &problems(&relay_with_a_copy(true), &facts)[..] else { panic!() };
            assert!(problem.contains(words) && problem.contains("connect-relay fleet list"), "{problem}");
        }
    }

    #[test]
    fn pause_is_shown_with_its_reason_and_refused_tokens_are_no_pause() {
        let mut facts = facts();
        facts.overview.paused = Some(pause("it moves"));
        let status = Status::of(&relay_info(), &facts);
        let expected = Paused { since: "1970-01-01T00:00:01.000Z".into(), reason: "it moves".into() };
        assert_eq!(status.paused, Some(expected));
        (facts.overview.paused, facts.overview.all_refused) = (None, Some(Timestamp(1000)));
        let status = Status::of(&relay_info(), &facts);
        assert_eq!((status.paused, status.all_refused_since), (None, Some("1970-01-01T00:00:01.000Z".into())));
    }

    #[test]
    fn counts_are_what_is_exported() {
        let metrics = Metrics::default();
        assert_eq!(Counts::read(&metrics), Counts::default());
        metrics.gauge("in_flight", "Attempts in progress.").set(5);
        let attempts = metrics.counters("attempts_total", "Attempts.", &["outcome"]);
        attempts.with_label_values(&["delivered"]).inc_by(7);
        attempts.with_label_values(&["throttled"]).inc_by(2);
        metrics.seconds("quota_wait_seconds_total", "Time.").inc_by(0.25);
        metrics.gauge("fleet_up", "Up.").set(1);
        metrics.gauge("fleet_members", "Members.").set(3);
        metrics.level("fleet_quota_rate", "Rate.").set(29.5);
        metrics.gauge("fleet_stream_bytes", "Bytes.").set(4096);
        metrics.gauge("fleet_orphans", "Orphans.").set(2);
        let expected = Counts {
            in_flight: 5,
            attempts: 9,
            throttled: 2,
            quota_wait: 0.25,
            fleet_up: true,
            fleet_members: Some(3),
            fleet_quota_rate: Some(29.5),
            fleet_stream_bytes: 4096,
            fleet_orphans: 2,
        };
        assert_eq!(Counts::read(&metrics), expected);
    }
}
