//! A status as text: the same for `connect-relay status` and for the status page.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Fleet, FleetCopy, Status, counted};

/// The summary in one line.
#[must_use]
pub fn headline(status: &Status) -> String {
    let healthy = status.problems.is_empty();
    let mut line = match (status.state.as_str(), healthy) {
        ("ready", true) => "healthy: ".to_owned(),
        ("ready", false) => return "not healthy:".into(),
        (state, true) => format!("{state}: "),
        (state, false) => return format!("{state}, and not healthy:"),
    };
    if status.queued == 0 {
        line.push_str("nothing is queued");
    } else {
        let _ = write!(line, "{} queued, the oldest for {}", status.queued, seconds(status.oldest_seconds));
        if status.paused.is_none() && status.send_rate > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let left = status.queued as f64 / status.send_rate;
            let _ = write!(line, ", empty in about {}", seconds(left.ceil()));
        }
    }
    if status.dead_letters > 0 {
        let _ = write!(line, "; {}", counted(status.dead_letters, "dead letter"));
    }
    line
}

/// The figures: names and values. Shares are counted since `then`; `None` for the start of the relay.
#[must_use]
pub fn figures(status: &Status, then: Option<&Status>) -> Vec<(&'static str, String)> {
    let instance = [&*status.region, &*status.connect_instance].into_iter().filter(|part| !part.is_empty());
    let [throttled, quota_wait] = shares(status, then);
    let fleet = status.fleet.as_ref().map(|fleet| ("fleet", of_fleet(fleet)));
    let copy = status.fleet.as_ref().and_then(|fleet| fleet.copy.as_ref()).map(|copy| ("copy", of_copy(copy)));
    let mut figures = vec![
        ("queued", format!("{} of {}", status.queued, status.queued_max)),
        ("oldest", seconds(status.oldest_seconds)),
        ("due for", seconds(status.oldest_due_seconds)),
        ("in flight", status.in_flight.to_string()),
        (
            "conversations",
            format!("{} ({} held, {} answer lost)", status.conversations, status.held, status.answer_lost),
        ),
        ("dead letters", status.dead_letters.to_string()),
        ("rate", format!("{:.1}/s, quota {:.1}/s, gate {}", status.send_rate, status.quota_rate, status.gate)),
        throttled,
        quota_wait,
        (
            "on disk",
            format!(
                "{} of {}, {} free",
                bytes(status.queue_bytes),
                bytes(status.queue_bytes_max),
                bytes(status.disk_free)
            ),
        ),
    ];
    figures.extend(fleet);
    figures.extend(copy);
    let relay = format!("{} {}", status.version, instance.collect::<Vec<_>>().join(" "));
    figures.push(("relay", relay.trim_end().to_owned()));
    figures
}

fn of_fleet(fleet: &Fleet) -> String {
    let Fleet { name, up, members, quota_rate, .. } = fleet;
    match (up, members, quota_rate) {
        (false, ..) => format!("{name}, not reached"),
        (true, Some(1), _) => format!("{name}, no other relay"),
        (true, Some(members), Some(rate)) => format!("{name}, {members} relays at {rate:.1}/s together"),
        (true, ..) => name.clone(),
    }
}

fn of_copy(copy: &FleetCopy) -> String {
    let FleetCopy { identity, state, behind_since, behind_commits, behind_why, stream_bytes, orphans } = copy;
    let mut text = format!("{state} as {identity}");
    if let Some(since) = behind_since {
        let _ = write!(text, " since {since}, {behind_commits} commits on this volume alone");
    }
    if let Some(why) = behind_why {
        let _ = write!(text, " ({why})");
    }
    let _ = write!(text, ", {} in the stream", bytes(*stream_bytes));
    if *orphans > 0 {
        let _ = write!(text, "; orphans in the fleet: {orphans}");
    }
    text
}

/// The share of attempts that were throttled, and the share of the time that was spent waiting for the quota.
#[must_use]
pub fn shares(now: &Status, then: Option<&Status>) -> [(&'static str, String); 2] {
    let nothing = Status::default();
    let then = then.unwrap_or(&nothing);
    let span = now.uptime_seconds - then.uptime_seconds;
    let attempts = now.attempts.saturating_sub(then.attempts);
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let throttled = percent(now.throttled.saturating_sub(then.throttled) as f64, attempts as f64);
    let waited = percent(now.quota_wait_seconds - then.quota_wait_seconds, span);
    let span = seconds(span);
    [
        ("throttled", format!("{throttled} of {attempts} attempts in {span}")),
        ("quota wait", format!("{waited} of {span}")),
    ]
}

fn percent(part: f64, whole: f64) -> String {
    format!("{:.1}%", if whole > 0.0 { 100.0 * (part / whole).clamp(0.0, 1.0) } else { 0.0 })
}

fn seconds(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.trunc()).unwrap_or(Duration::MAX);
    humantime::format_duration(whole).to_string()
}

fn bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}
