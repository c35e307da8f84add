//! The knowledge that this relay owns its stream, for the thread of attempts: an attempt of a relay that was stopped and
//! goes on after its successor began would be one too many.
//!
//! The task that ships confirms the ownership with each answer of the stream: a record that is stored, or a look that
//! finds no record of another relay. A successor waits for [`KEEP`] and longer before it begins, so a confirmation counts
//! for that time, by the clock that also counts while the process or the machine is stopped. If the last one is older,
//! the sender asks for another before it starts an attempt, and waits for it, at most `fleet.ack_timeout`.
//!
//! | the stream | the sender |
//! | --- | --- |
//! | takes commits | reads a number, and asks for nothing |
//! | is idle, or the relay was stopped | waits for one answer |
//! | does not answer | waits once. Then it goes on until the stream answers or the process was stopped again |
//! | has another owner | starts nothing |

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::timeout;

use crate::time::{Clock, Timestamp};

/// The time for which a confirmation counts: half of the shortest `fleet.lease`.
pub const KEEP: Duration = Duration::from_secs(5);

/// The ownership of a stream, as far as this relay knows.
#[derive(Debug, Default)]
pub struct Ownership {
    /// The time until which attempts may start.
    until: AtomicU64,
    /// The last sign of the task that the process runs.
    beat: AtomicU64,
    /// True if a wait for an answer was in vain, and none has come since.
    silent: AtomicBool,
    lost: AtomicBool,
    asked: Notify,
    answered: Notify,
}

impl Ownership {
    /// Returns true if an attempt may start now.
    #[must_use]
    pub fn is_confirmed(&self, now: Timestamp) -> bool {
        now.0 <= self.until.load(Ordering::Relaxed)
    }

    /// Returns true if another relay owns the stream.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The stream has answered a request that began then, and this relay owns it.
    pub fn confirmed(&self, began: Timestamp) {
        self.silent.store(false, Ordering::Relaxed);
        self.count_until(began + KEEP);
        self.answered.notify_waiters();
    }

    /// Another relay owns the stream.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
        self.answered.notify_waiters();
    }

    /// The process runs; to be called more often than every [`KEEP`].
    pub fn beat(&self, now: Timestamp) {
        let before = Timestamp(self.beat.swap(now.0, Ordering::Relaxed));
        let stopped = now.since(before) >= KEEP;
        if stopped {
            self.silent.store(false, Ordering::Relaxed);
        } else if self.silent.load(Ordering::Relaxed) {
            self.count_until(now + KEEP);
        }
    }

    /// Resolves when the sender asks for a confirmation.
    pub fn asked(&self) -> Notified<'_> {
        self.asked.notified()
    }

    /// Waits until the ownership is confirmed or lost, at most `within`.
    pub async fn confirm(&self, clock: &Clock, within: Duration) {
        loop {
            let began = clock.now();
            let mut answered = pin!(self.answered.notified());
            answered.as_mut().enable();
            if self.is_confirmed(began) || self.is_lost() {
                return;
            }
            self.asked.notify_one();
            if timeout(within, answered).await.is_err() {
                self.unanswered(began, clock.now(), within);
            }
        }
    }

    /// No answer has come within this time. If the process was stopped meanwhile, that says nothing.
    fn unanswered(&self, began: Timestamp, now: Timestamp, within: Duration) {
        if now.since(began) < within + KEEP / 2 && !self.is_lost() {
            self.silent.store(true, Ordering::Relaxed);
            self.count_until(now + KEEP);
        }
    }

    fn count_until(&self, until: Timestamp) {
        if !self.is_lost() {
            self.until.fetch_max(until.0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_millis(50);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    #[test]
    fn answer_counts_from_the_beginning_of_its_request() {
        let ownership = Ownership::default();
        assert!(!ownership.is_confirmed(at(1)), "the relay has not looked");
        ownership.confirmed(at(10));
        ownership.confirmed(at(8));
        assert!(ownership.is_confirmed(at(15)) && !ownership.is_confirmed(at(16)));
        ownership.lose();
        ownership.confirmed(at(20));
        assert!(ownership.is_lost() && !ownership.is_confirmed(at(12)) && !ownership.is_confirmed(at(21)));
    }

    #[test]
    fn silent_stream_stops_no_attempt_until_it_answers_or_the_process_was_stopped() {
        let ownership = Ownership::default();
        ownership.beat(at(9));
        ownership.unanswered(at(10), at(20), WITHIN);
        assert!(!ownership.is_confirmed(at(20)), "the process was stopped during the wait");
        ownership.unanswered(at(20), at(20) + WITHIN, WITHIN);
        for second in (12..100).step_by(2) {
            ownership.beat(at(second));
            assert!(second < 20 || ownership.is_confirmed(at(second + 3)), "{second}");
        }
        // Stopped for a minute.
        assert!(!ownership.is_confirmed(at(160)));
        ownership.beat(at(160));
        ownership.beat(at(161));
        assert!(!ownership.is_confirmed(at(161)), "it has to ask again");
        ownership.unanswered(at(161), at(161) + WITHIN, WITHIN);
        // The stream answers again: from now on a confirmation is needed.
        ownership.confirmed(at(163));
        for second in 164..170 {
            ownership.beat(at(second));
        }
        assert!(!ownership.is_confirmed(at(170)));
    }

    #[tokio::test]
    async fn wait_ends_with_an_answer_a_loss_or_the_timeout() {
        let clock = Clock::still();
        let hour = Duration::from_secs(3600);
        let ownership = Ownership::default();
        let answer = async {
            ownership.asked().await;
            ownership.confirmed(clock.now());
        };
        tokio::join!(ownership.confirm(&clock, hour), answer);
        assert!(ownership.is_confirmed(clock.now()));
        // A confirmation needs no request.
        ownership.confirm(&clock, hour).await;
        clock.skip(KEEP + Duration::from_millis(1));
        assert!(!ownership.is_confirmed(clock.now()));
        ownership.confirm(&clock, WITHIN).await;
        assert!(ownership.is_confirmed(clock.now()), "the stream does not answer");
        clock.skip(hour);
        let loss = async {
            ownership.asked().await;
            ownership.lose();
        };
        tokio::join!(ownership.confirm(&clock, hour), loss);
        assert!(ownership.is_lost() && !ownership.is_confirmed(clock.now()));
    }
}
