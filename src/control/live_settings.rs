//! `POST /reload` and `POST /log-level`: changes to the running process, which the command line carries out.
//!
//! Configuration and log belong to the command line, on a higher floor. So these routes pass a [`SettingsRequest`] to the
//! holder of [`SettingsRequests`], and answer with its reply. A relay that is embedded in another program has no such
//! holder: the routes then answer 503.

pub mod requests;

use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tracing::Level;

use self::requests::{LEVELS, LogLevel, LogLevelRequest, SettingsRequest, level_name};
use super::Control;
use super::reply::{ErrorReply, invalid, json};
use crate::serve::Reply;

/// The longest time for which a level can be requested.
const FOR_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

impl Control {
    /// `POST /reload`
    pub(super) async fn reload(&self, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        match self.settings_sender.ask(|reply| SettingsRequest::Reload { uid, reply }).await {
            Some(Ok(reloaded)) => Ok(json(StatusCode::OK, &reloaded)),
            Some(Err(faults)) => {
                Err(invalid(format!("the configuration is not valid, and the old one stays in force: {faults}")))
            }
            None => Err(embedded()),
        }
    }

    /// `POST /log-level`
    pub(super) async fn log_level(&self, request: LogLevelRequest, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        let level = level_of(&request.level)?;
        let lasts = duration_of(&request.lasts)?;
        let configured = self.settings_sender.ask(|reply| SettingsRequest::LogLevel { level, lasts, uid, reply }).await;
        let configured = level_name(configured.ok_or_else(embedded)?).to_owned();
        let until = lasts.map(|lasts| self.clock.shown(self.clock.now() + lasts).to_string());
        Ok(json(StatusCode::OK, &LogLevel { level: level_name(level).into(), configured, until }))
    }
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
    ErrorReply(
        StatusCode::SERVICE_UNAVAILABLE,
        "this relay is embedded in another program, or exits: change the settings there".into(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn level_is_a_level_name_of_the_configuration() {
        for (name, level) in LEVELS {
            assert_eq!(level_of(&json!(name)).ok(), Some(level));
            assert_eq!(level_name(level), name);
        }
        for (level, given) in
            [(json!("loud"), "\"loud\""), (json!("DEBUG"), "\"DEBUG\""), (Value::Null, "missing"), (json!(3), "3")]
        {
            let Err(ErrorReply(status, why)) = level_of(&level) else { panic!("{level} is accepted") };
            let expected = format!("Level is {given}: must be error, warn, info, debug, trace");
            assert_eq!((status.as_u16(), why), (400, expected));
        }
    }

    #[test]
    fn time_is_a_duration_or_a_number_of_seconds_with_limits() {
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
            let Err(ErrorReply(status, why)) = duration_of(&given) else { panic!("{given} is accepted") };
            assert!(status == 400 && why.starts_with(&format!("For is {given}: must be ")), "{why}");
        }
    }
}
