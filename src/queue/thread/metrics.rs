//! The queue's metrics. Counters count committed events; gauges show the store at the last tick or overview.

use std::cell::Cell;
use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::delivery::Reason;
use crate::metrics::{DELIVERY_SECONDS, LOCAL_SECONDS, Metrics};
use crate::queue::api::{Options, Overview};
use crate::queue::state::event::Event;
use crate::time::{Clock, Timestamp};

/// The metrics of a queue.
#[derive(Debug)]
pub struct QueueMetrics {
    accepted: IntCounter,
    repeats: IntCounter,
    delivered: IntCounter,
    dead: IntCounterVec,
    pub corrupt: IntCounter,
    duplicates_possible: IntCounter,
    pub store_errors: IntCounterVec,
    pub commit_seconds: Histogram,
    pub commit_messages: Histogram,
    delivery_seconds: Histogram,
    last_delivery: Gauge,
    delivered_at: Cell<Option<Timestamp>>,
    messages: IntGauge,
    bytes: IntGauge,
    disk_free: IntGauge,
    oldest: Gauge,
    oldest_due: Gauge,
    dead_letters: IntGauge,
    conversations: IntGauge,
    damaged: IntGauge,
    held: IntGaugeVec,
    paused: IntGauge,
    expiring: IntGauge,
    pub copy: Option<CopyMetrics>,
}

/// The metrics of the copy in the fleet.
#[derive(Debug)]
pub struct CopyMetrics {
    behind_commits: IntGauge,
    behind_seconds: Gauge,
}

impl CopyMetrics {
    pub fn new(metrics: &Metrics) -> CopyMetrics {
        CopyMetrics {
            behind_commits: metrics.gauge(
                "fleet_behind_commits",
                "Commits that the stream did not have when they were answered; 0 when it has all.",
            ),
            behind_seconds: metrics
                .level("fleet_behind_seconds", "How long the stream has lacked commits; 0 when it has all."),
        }
    }

    pub fn show(&self, commits: u64, since: Option<Duration>) {
        self.behind_commits.set(whole(commits));
        self.behind_seconds.set(since.map_or(0.0, |since| since.as_secs_f64()));
    }
}

impl QueueMetrics {
    pub fn new(metrics: &Metrics, options: &Options) -> QueueMetrics {
        let queue = QueueMetrics {
            accepted: metrics
                .counter("messages_accepted_total", "Messages acknowledged: on disk, repeats not counted."),
            repeats: metrics.counter("repeats_total", "Submissions that had been accepted before."),
            delivered: metrics.counter("messages_delivered_total", "Messages that Connect has."),
            dead: metrics.counters(
                "messages_dead_total",
                "Messages that will not be delivered; told: a waiting caller got the error itself.",
                &["reason", "told"],
            ),
            corrupt: metrics.counter("records_corrupt_total", "Rows that failed their checksum and were set aside."),
            duplicates_possible: metrics.counter(
                "duplicates_possible_total",
                "Messages sent again with another token after an attempt whose answer was lost.",
            ),
            store_errors: metrics.counters("store_errors_total", "Failures of the store.", &["op"]),
            commit_seconds: metrics.histogram("commit_seconds", "Time of one durable commit.", LOCAL_SECONDS),
            commit_messages: metrics.histogram(
                "commit_messages",
                "Requests made durable by one commit.",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
            ),
            delivery_seconds: metrics.histogram("delivery_seconds", "From acceptance to delivery.", DELIVERY_SECONDS),
            last_delivery: metrics
                .level("last_delivery_timestamp_seconds", "When the last message was delivered; 0 before the first."),
            delivered_at: Cell::default(),
            messages: metrics.gauge("queue_messages", "Messages queued."),
            bytes: metrics.gauge("queue_bytes", "Bytes that the queue takes on disk."),
            disk_free: metrics.gauge("disk_free_bytes", "Bytes free on the queue's volume."),
            oldest: metrics.level("queue_oldest_seconds", "Age of the oldest message queued."),
            oldest_due: metrics.level(
                "oldest_due_seconds",
                "How long the longest waiting conversation could have been sent; 0 when nothing is due.",
            ),
            dead_letters: metrics.gauge("dead_letters", "Dead letters kept."),
            conversations: metrics.gauge("conversations", "Conversations with queued messages."),
            damaged: metrics.gauge("store_damaged", "1 while a damaged store is set aside."),
            held: metrics.gauges(
                "conversations_held",
                "Conversations that wait for a renewed token, or whose first message may have been delivered.",
                &["reason"],
            ),
            expiring: metrics.gauge(
                "expiring_messages",
                "Messages queued that will expire before they can be sent, at the learned rate: an estimate.",
            ),
            paused: metrics.gauge("paused", "1 while an operator has paused sending."),
            copy: None,
        };
        metrics.gauge("queue_messages_max", "queue.messages_max.").set(whole(options.messages_max));
        metrics.gauge("queue_bytes_max", "queue.bytes_max.").set(whole(options.bytes_max));
        for reason in Reason::ALL {
            for told in ["true", "false"] {
                queue.dead.with_label_values(&[reason.as_str(), told]);
            }
        }
        for op in ["commit", "read", "open"] {
            queue.store_errors.with_label_values(&[op]);
        }
        queue
    }

    /// Counts an event that was committed. `told` is true if a waiting caller gets the error of a dead letter.
    pub fn count(&self, event: &Event, told: bool, clock: &Clock) {
        match event {
            Event::Accepted { .. } => self.accepted.inc(),
            Event::Repeated => self.repeats.inc(),
            Event::Delivered { lease, at, .. } => {
                self.delivered.inc();
                self.delivery_seconds.observe(at.since(lease.accepted).as_secs_f64());
                self.delivered_at.set(Some(*at));
                self.last_delivery.set(clock.shown(*at).seconds());
            }
            Event::Dead(death) => {
                let told = if told { "true" } else { "false" };
                self.dead.with_label_values(&[death.reason.as_str(), told]).inc();
            }
            Event::DuplicatePossible => self.duplicates_possible.inc(),
            Event::Measured { overview, at } => self.show(overview, *at, clock),
            _ => {}
        }
    }

    /// Sets the gauges. The time of the last delivery is shown by the wall clock, also after a step of it.
    fn show(&self, overview: &Overview, now: Timestamp, clock: &Clock) {
        let age = |since: Option<Timestamp>| since.map_or(0.0, |since| now.since(since).as_secs_f64());
        if let Some(at) = self.delivered_at.get() {
            self.last_delivery.set(clock.shown(at).seconds());
        }
        self.messages.set(whole(overview.queued));
        self.bytes.set(whole(overview.bytes));
        self.disk_free.set(whole(overview.disk_free));
        self.oldest.set(age(overview.oldest));
        self.oldest_due.set(age(overview.oldest_due));
        self.dead_letters.set(whole(overview.dead));
        self.conversations.set(whole(overview.conversations));
        self.damaged.set(i64::from(overview.set_aside));
        self.held.with_label_values(&["token_refused"]).set(whole(overview.held));
        self.held.with_label_values(&["answer_lost"]).set(whole(overview.answer_lost));
        self.expiring.set(whole(overview.expiring.messages));
        self.paused.set(i64::from(overview.paused.is_some()));
    }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
