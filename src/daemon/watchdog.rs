//! Notifies the service manager while the relay runs: that it is alive, and a status line.
//!
//! It is a task of the relay's one event loop and checks the same conditions as `/livez`. An event loop that hangs, a
//! sender that makes no step and a commit that never ends all stop the notifications, and the service manager restarts
//! the relay. If Connect is down or throttling, the queue full or sending paused, the notifications go on: a restart
//! repairs none of these.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::health::{Health, State};
use crate::pacer::{Budget, Closed};
use crate::queue::{Overview, Queue};
use crate::service_manager::{Notification, ServiceManager};
use crate::time::Clock;

/// The time between two status lines.
const EVERY: Duration = Duration::from_secs(10);
/// The time-out for the queue's answer; a stuck queue must not delay the status that reports it.
const ANSWER_MAX: Duration = Duration::from_millis(200);

/// Notifies the service manager regularly, within its watchdog time-out.
#[derive(Clone, Debug)]
pub struct Watchdog {
    pub service_manager: ServiceManager,
    pub health: Health,
    pub queue: Queue,
    pub budget: Budget,
    pub clock: Clock,
}

impl Watchdog {
    /// Runs until `stop`. It notifies at least three times per watchdog time-out, so that one may get lost.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let every = self.service_manager.watchdog_timeout().map_or(EVERY, |timeout| EVERY.min(timeout / 3));
        let notifications = async {
            loop {
                self.notify().await;
                sleep(every).await;
            }
        };
        tokio::select! {
            () = stop => {}
            () = notifications => {}
        }
    }

    /// Sends one notification with the present state.
    pub async fn notify(&self) {
        let alive = self.health.live(self.clock.awake(), self.queue.stalled());
        let status = match &alive {
            Ok(()) => self.status().await,
            Err(why) => format!("hangs: {why}"),
        };
        let alive = alive.is_ok() && self.service_manager.watchdog_timeout().is_some();
        let notifications = [Notification::Status(&status), Notification::Alive];
        self.service_manager.notify(&notifications[..1 + usize::from(alive)]);
    }

    async fn status(&self) -> String {
        let state = self.health.state();
        let Ok(Ok(overview)) = timeout(ANSWER_MAX, self.queue.overview()).await else {
            return format!("{}; the queue does not answer", state.as_str());
        };
        line(&state, &overview, &self.budget)
    }
}

/// The status line: the state, the backlog, and how it is sent.
pub fn line(state: &State, overview: &Overview, budget: &Budget) -> String {
    let (rate, closed) = {
        let pacer = budget.pacer();
        (pacer.rate(), pacer.closed())
    };
    let upstream = match closed {
        _ if overview.paused.is_some() => "; sending is paused",
        _ if overview.all_refused.is_some() => "; Connect refuses every token",
        None => "",
        Some(Closed::Throttled) => ", throttled",
        Some(Closed::Down) => "; Connect accepts no messages",
    };
    format!("{}: {} queued, at {rate:.1} a second{upstream}", state.as_str(), overview.queued)
}
