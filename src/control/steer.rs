//! `POST /reload` and `POST /log-level`: changes to the running process, which the command line carries out.
//!
//! Configuration and log belong to the command line, on a higher floor. So these routes pass a [`Request`] to whatever
//! holds the [`Requests`], and answer with its reply. A relay that runs inside another program has no such holder: the
//! routes then answer 503.

use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tracing::Level;

use super::{Control, ErrorReply, Reply, invalid, json};

/// The longest time for which a level can be requested.
const FOR_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The levels by name, the least verbose first.
const LEVELS: [(&str, Level); 5] = [
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

/// Passes requests to the holder of [`Requests`]; clones pass them to the same one.
#[derive(Clone, Debug)]
pub struct Steer(mpsc::Sender<Request>);

/// The requests, for the part that carries them out.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Request>);

/// A request of an operator.
#[derive(Debug)]
pub enum Request {
    /// Read the configuration again. The reply is the result, or the faults of the configuration.
    Reload {
        /// The operator's uid.
        uid: Option<u32>,
        /// Receives the reply.
        reply: oneshot::Sender<Result<Reloaded, String>>,
    },
    /// Change the least important level that is logged. The reply is the configured level, which is restored later.
    LogLevel {
        /// The level.
        level: Level,
        /// The time after which the configured level is restored.
        lasts: Option<Duration>,
        /// The operator's uid.
        uid: Option<u32>,
        /// Receives the reply.
        reply: oneshot::Sender<Level>,
    },
}

/// The result of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Reloaded {
    /// The keys that changed since the last reload, and are in force now.
    pub changed: Vec<String>,
    /// The keys that differ from those of the start, and keep what they had until a restart.
    pub needs_restart: Vec<String>,
}

/// The body of `POST /log-level`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct LogLevelRequest {
    /// The level's name.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub level: Value,
    /// A duration such as `"10m"`, or a number of seconds.
    #[serde(rename = "For", skip_serializing_if = "Value::is_null")]
    pub lasts: Value,
}

/// The reply to `POST /log-level`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LogLevel {
    /// The level that is in force.
    pub level: String,
    /// `log.level`.
    pub configured: String,
    /// The time at which the configured level is restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl Steer {
    /// The two ends.
    #[must_use]
    pub fn new() -> (Steer, Requests) {
        let (sender, receiver) = mpsc::channel(1);
        (Steer(sender), Requests(receiver))
    }

    /// Passes a request and waits for its reply; `None` if no part carries it out.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Default for Steer {
    /// A handle whose requests no part carries out.
    fn default() -> Steer {
        Steer::new().0
    }
}

impl Requests {
    /// The next request; it never comes once every [`Steer`] is dropped.
    pub async fn next(&mut self) -> Request {
        match self.0.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

impl Control {
    /// `POST /reload`
    pub(super) async fn reload(&self, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        match self.steer.ask(|reply| Request::Reload { uid, reply }).await {
            Some(Ok(reloaded)) => Ok(json(StatusCode::OK, &reloaded)),
            Some(Err(faults)) => Err(invalid(format!("bad configuration, the one before stays: {faults}"))),
            None => Err(embedded()),
        }
    }

    /// `POST /log-level`
    pub(super) async fn log_level(&self, request: LogLevelRequest, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        let level = level_of(&request.level)?;
        let lasts = duration_of(&request.lasts)?;
        let configured = self.steer.ask(|reply| Request::LogLevel { level, lasts, uid, reply }).await;
        let configured = name_of(configured.ok_or_else(embedded)?).to_owned();
        let until = lasts.map(|lasts| self.clock.shown(self.clock.now() + lasts).to_string());
        Ok(json(StatusCode::OK, &LogLevel { level: name_of(level).into(), configured, until }))
    }
}

/// The name of a level, as the configuration has it.
#[must_use]
pub fn name_of(level: Level) -> &'static str {
    LEVELS.iter().find(|(_, known)| *known == level).map_or("info", |(name, _)| name)
}

fn level_of(given: &Value) -> Result<Level, ErrorReply> {
    let found = LEVELS.iter().find(|(name, _)| given == name);
    found.map(|(_, level)| *level).ok_or_else(|| {
        let given = if given.is_null() { "missing".to_owned() } else { given.to_string() };
        invalid(format!("Level is {given}: must be {}", LEVELS.map(|(name, _)| name).join(", ")))
    })
}

fn duration_of(lasts: &Value) -> Result<Option<Duration>, ErrorReply> {
    let read = match lasts {
        Value::Null => return Ok(None),
        Value::String(text) => humantime::parse_duration(text.trim()).ok(),
        number => number.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    };
    match read {
        Some(lasts) if lasts > Duration::ZERO && lasts <= FOR_MAX => Ok(Some(lasts)),
        _ => Err(invalid(format!(
            "For is {lasts}: must be a duration with its unit, such as \"10m\", or a number of seconds, more than 0 and at \
             most {} days",
            FOR_MAX.as_secs() / 86_400
        ))),
    }
}

fn embedded() -> ErrorReply {
    ErrorReply(StatusCode::SERVICE_UNAVAILABLE, "this relay runs inside another program, or leaves: ask that".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn level_is_one_of_the_configurations_words() {
        for (name, level) in LEVELS {
            assert_eq!(level_of(&json!(name)).ok(), Some(level));
            assert_eq!(name_of(level), name);
        }
        for (level, given) in
            [(json!("loud"), "\"loud\""), (json!("DEBUG"), "\"DEBUG\""), (Value::Null, "missing"), (json!(3), "3")]
        {
            let Err(ErrorReply(status, why)) = level_of(&level) else { panic!("{level} is taken") };
            let expected = format!("Level is {given}: must be error, warn, info, debug, trace");
            assert_eq!((status.as_u16(), why), (400, expected));
        }
    }

    #[test]
    fn time_is_a_duration_or_seconds_and_bounded() {
        for (given, seconds) in [
            (json!("10m"), 600.0),
            (json!("1h 30m"), 5400.0),
            (json!("250ms"), 0.25),
            (json!(90), 90.0),
            (json!(0.5), 0.5),
            (json!("7d"), 604_800.0),
        ] {
            let read = duration_of(&given).ok().flatten().map(|lasts| lasts.as_secs_f64());
            assert_eq!(read, Some(seconds), "{given}");
        }
        assert!(matches!(duration_of(&Value::Null), Ok(None)));
        for given in
            [json!("0s"), json!(0), json!(-1), json!("10"), json!("soon"), json!("8d"), json!(true), json!([1])]
        {
            let Err(ErrorReply(status, why)) = duration_of(&given) else { panic!("{given} is taken") };
            assert!(status == 400 && why.starts_with(&format!("For is {given}: must be ")), "{why}");
        }
    }

    #[tokio::test]
    async fn request_that_no_part_carries_out_is_not_waited_for() {
        assert_eq!(Steer::default().ask(|reply| Request::Reload { uid: None, reply }).await, None);
        let (steer, mut requests) = Steer::new();
        let ask = steer.ask(|reply| Request::Reload { uid: Some(7), reply });
        let carry_out = async {
            let Request::Reload { uid: Some(7), reply } = requests.next().await else { panic!("another request") };
            reply.send(Err("no".into())).unwrap();
        };
        let (answer, ()) = tokio::join!(ask, carry_out);
        assert_eq!(answer, Some(Err("no".into())));
    }
}
