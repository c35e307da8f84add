//! Changes to a running relay's configuration and log level: by SIGHUP, or by an operator through the control socket.
//!
//! | event | configuration | log level |
//! | --- | --- | --- |
//! | reload, the configuration is valid | the keys that can change are in force | that of the configuration, unless a level with `For` is in force |
//! | reload, it is not valid | unchanged | unchanged |
//! | a level with `For` | – | in force; after `For` that of the configuration |
//! | a level without `For` | – | in force until the next reload or level |

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Sleep, sleep};
use tracing::{Level, error, info, warn};

use super::logging::Log;
use crate::config::{Config, Faults, Sources};
use crate::control::{Reloaded, SettingsRequest, level_name};
use crate::daemon::Reload;

/// The keys that a reload applies, beside `ingress.content_chars_max`: those of the bots' API per request, and the
/// log's.
const LIVE: [&str; 11] = [
    "ingress.reply",
    "ingress.tcp_reply",
    "ingress.wait",
    "ingress.wait_max",
    "ingress.body_bytes_max",
    "ingress.batch_bytes_max",
    "ingress.allow_uids",
    "ingress.allow_gids",
    "ingress.content_limits",
    "ingress.content_bytes_max",
    "log.level",
];

/// The changeable settings of this process.
pub struct LiveSettings<'a> {
    /// The configuration of the start.
    started: &'a Config,
    /// The configuration that was read last and was valid.
    applied: Config,
    sources: Box<dyn Fn() -> Sources + 'a>,
    log: &'a Log,
    reload: Reload,
    /// The end of a level that was set for a time.
    restore: Option<Pin<Box<Sleep>>>,
    level: Level,
}

impl<'a> LiveSettings<'a> {
    /// Returns the settings as they are after the start; `sources` reads the environment again.
    pub fn new(
        started: &'a Config,
        sources: impl Fn() -> Sources + 'a,
        log: &'a Log,
        reload: Reload,
    ) -> LiveSettings<'a> {
        let (applied, level) = (started.clone(), started.settings.log.level);
        LiveSettings { started, applied, sources: Box::new(sources), log, reload, restore: None, level }
    }

    /// Carries out a request of an operator.
    pub fn carry_out(&mut self, request: SettingsRequest) {
        // An operator who hung up gets no reply.
        match request {
            SettingsRequest::Reload { uid, reply } => {
                let _ = reply.send(self.reload(uid, true).map_err(|Faults(faults)| faults.join("\n  ")));
            }
            SettingsRequest::LogLevel { level, lasts, uid, reply } => {
                self.log_level(level, lasts, uid);
                let _ = reply.send(self.configured());
            }
        }
    }

    /// Reads the configuration again and applies the keys that can change; if it is not valid, the old one stays.
    ///
    /// # Errors
    /// With the faults of the configuration, which are logged too.
    pub fn reload(&mut self, uid: Option<u32>, by_operator: bool) -> Result<Reloaded, Faults> {
        let act = by_operator.then_some("reload");
        let config = Config::load(&(self.sources)()).inspect_err(|faults| {
            self.reload.reject();
            error!(act, uid, faults = %faults, "configuration not reloaded: it is not valid, and the old one stays in force");
        })?;
        let changed = self.applied.changes(&config).into_iter().filter(|key| is_live(key)).collect();
        let needs_restart = self.started.changes(&config).into_iter().filter(|key| !is_live(key)).collect();
        self.applied = config;
        self.reload.apply(self.applied.ingress());
        if self.restore.is_none() {
            self.set(self.configured());
        }
        let reloaded = Reloaded { changed, needs_restart };
        match reloaded.needs_restart.as_slice() {
            [] => info!(act, uid, "configuration reloaded"),
            keys => warn!(
                act,
                uid,
                keys = keys.join(", "),
                "configuration reloaded in part: these keys, or the files that they name, changed and need a restart"
            ),
        }
        Ok(reloaded)
    }

    /// Changes the log's level, and logs the change at every level down to `info`.
    fn log_level(&mut self, level: Level, lasts: Option<Duration>, uid: Option<u32>) {
        let (before, for_seconds) = (self.level, lasts.map(|lasts| lasts.as_secs_f64()));
        self.set(level.max(before).max(Level::INFO));
        info!(
            act = "log_level",
            uid,
            log_level = level_name(level),
            for_seconds,
            "an operator changed the log's level"
        );
        self.set(level);
        self.restore = lasts.map(|lasts| Box::pin(sleep(lasts)));
    }

    /// Restores the configured level when the time of another one is over; never resolves otherwise.
    pub async fn restored(&mut self) {
        match &mut self.restore {
            Some(end) => end.await,
            None => std::future::pending().await,
        }
        self.restore = None;
        let (level, before) = (self.configured(), self.level);
        self.set(level.max(before).max(Level::INFO));
        info!(log_level = level_name(level), "the log's level is the configured one again");
        self.set(level);
    }

    fn configured(&self) -> Level {
        self.applied.settings.log.level
    }

    fn set(&mut self, level: Level) {
        self.log.set_level(level);
        self.level = level;
    }
}

/// True if a reload applies the key.
fn is_live(key: &str) -> bool {
    LIVE.contains(&key) || key.starts_with("ingress.content_chars_max.")
}
