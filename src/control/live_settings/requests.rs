//! The requests to change the running process, and their replies.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tracing::Level;

/// The levels by name, the least verbose first.
pub(super) const LEVELS: [(&str, Level); 5] = [
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

/// Passes requests to the holder of [`SettingsRequests`]; clones pass them to the same one.
#[derive(Clone, Debug)]
pub struct SettingsSender(mpsc::Sender<SettingsRequest>);

/// The requests, for the part that carries them out.
#[derive(Debug)]
pub struct SettingsRequests(mpsc::Receiver<SettingsRequest>);

/// A request of an operator.
#[derive(Debug)]
pub enum SettingsRequest {
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
    /// The keys that differ from those of the start, and need a restart.
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

impl SettingsSender {
    /// Returns both ends.
    #[must_use]
    pub fn new() -> (SettingsSender, SettingsRequests) {
        let (sender, receiver) = mpsc::channel(1);
        (SettingsSender(sender), SettingsRequests(receiver))
    }

    /// Passes a request and waits for its reply; `None` if no part carries it out.
    pub(in crate::control) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> SettingsRequest,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Default for SettingsSender {
    /// A handle whose requests no part carries out.
    fn default() -> SettingsSender {
        SettingsSender::new().0
    }
}

impl SettingsRequests {
    /// Returns the next request; never resolves once every [`SettingsSender`] is dropped.
    pub async fn next(&mut self) -> SettingsRequest {
        match self.0.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

/// The name of a level, as the configuration has it.
#[must_use]
pub fn level_name(level: Level) -> &'static str {
    LEVELS.iter().find(|(_, known)| *known == level).map_or("info", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn request_without_a_receiver_gets_no_reply() {
        assert_eq!(SettingsSender::default().ask(|reply| SettingsRequest::Reload { uid: None, reply }).await, None);
        let (sender, mut requests) = SettingsSender::new();
        let ask = sender.ask(|reply| SettingsRequest::Reload { uid: Some(7), reply });
        let carry_out = async {
            let SettingsRequest::Reload { uid: Some(7), reply } = requests.next().await else {
                panic!("another request")
            };
            reply.send(Err("no".into())).unwrap();
        };
        let (answer, ()) = tokio::join!(ask, carry_out);
        assert_eq!(answer, Some(Err("no".into())));
    }
}
