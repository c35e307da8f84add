//! Log lines about rejected messages: one line for each, bounded, and a warning when answering 429 begins and ends.
//!
//! | line | level | when |
//! | --- | --- | --- |
//! | `rejected` | info | for each rejected message, at most [`LINES_MAX`] in any second for each reason |
//! | a warning | WARN | the first 429 after [`QUIET`] without one |
//! | a warning | WARN | [`QUIET`] after the last 429, with the number of them |
//!
//! A line that is over the bound is counted. The next line of its reason carries the count as `left_out`; if no other
//! rejection follows, the last line that was left out is written when the bound allows it, so every rejection is in a line
//! or in a count. Lines contain the status, the code, the reason, the conversation's label and the ClientToken; the
//! warning contains the relay's own text. Contents, tokens and header values never appear.
//!
//! The decisions are in [`Rejections`], which takes the time as an argument. [`Reporter`] holds it for the handlers,
//! and writes what is still due.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{info, warn};

use super::error_reply::{ErrorReply, RejectReason, Subject};
use crate::time::{Clock, Timestamp, millis};

/// Lines of one reason in any second.
const LINES_MAX: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// The time without a 429 after which answering 429 has ended.
const QUIET: Duration = Duration::from_secs(10);

/// Logs the rejections of a relay.
#[derive(Debug)]
pub(super) struct Reporter {
    rejections: Mutex<Rejections>,
    /// Notified when something may become due later.
    wake: Notify,
    clock: Clock,
}

impl Reporter {
    pub(super) fn new(clock: Clock) -> Reporter {
        Reporter { rejections: Mutex::default(), wake: Notify::new(), clock }
    }

    /// Logs a rejection, or counts it.
    pub(super) fn rejected(&self, reason: RejectReason, error: &ErrorReply) {
        if self.report(|rejections, now, lines| rejections.rejected(reason, error, now, lines)) {
            self.wake.notify_one();
        }
    }

    /// Writes what becomes due without another rejection, until `stop` resolves; then the lines that were left out last.
    pub(super) async fn run(&self, stop: impl Future<Output = ()>) {
        let reports = async {
            loop {
                self.wake.notified().await;
                while self.report(Rejections::due) {
                    sleep(SECOND).await;
                }
            }
        };
        tokio::select! {
            () = stop => {}
            () = reports => {}
        }
        self.report(Rejections::finish);
    }

    /// Writes the lines that a step adds. True while more may become due.
    fn report(&self, step: impl FnOnce(&mut Rejections, Timestamp, &mut Vec<LogLine>)) -> bool {
        let mut lines = Vec::new();
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        step(&mut rejections, self.clock.now(), &mut lines);
        let pending = rejections.is_pending();
        drop(rejections);
        lines.iter().for_each(LogLine::log);
        pending
    }
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LogLine {
    Rejected { rejected: LoggedRejection, left_out: u64 },
    ThrottlingBegins { code: Box<str>, reason: RejectReason, why: Box<str> },
    ThrottlingEnds { answered: u64, lasted: Duration },
}

/// One rejection, as in its line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LoggedRejection {
    status: u16,
    code: Box<str>,
    reason: RejectReason,
    subject: Subject,
}

/// The recent rejections.
#[derive(Debug, Default)]
struct Rejections {
    /// Recent rejections by [`RejectReason`].
    recent: [Recent; RejectReason::ALL.len()],
    throttling: Option<Throttling>,
}

/// The rejections of one reason.
#[derive(Debug, Default)]
struct Recent {
    /// The times of the last lines, at most [`LINES_MAX`] of them.
    written: VecDeque<Timestamp>,
    /// The last rejection that was left out, and the number of those before it.
    left_out: Option<(LoggedRejection, u64)>,
}

/// The period of answering 429.
#[derive(Debug)]
struct Throttling {
    began: Timestamp,
    last: Timestamp,
    answered: u64,
}

impl Rejections {
    fn rejected(&mut self, reason: RejectReason, error: &ErrorReply, now: Timestamp, lines: &mut Vec<LogLine>) {
        if error.status == StatusCode::TOO_MANY_REQUESTS {
            self.end_throttling(now, lines);
            let throttling = self.throttling.get_or_insert_with(|| {
                let (code, why) = (Box::from(&*error.code), Box::from(&*error.text));
                lines.push(LogLine::ThrottlingBegins { code, reason, why });
                Throttling { began: now, last: now, answered: 0 }
            });
            (throttling.last, throttling.answered) = (now, throttling.answered + 1);
        }
        let rejected = LoggedRejection {
            status: error.status.as_u16(),
            code: Box::from(&*error.code),
            reason,
            subject: error.subject.as_deref().cloned().unwrap_or_default(),
        };
        let recent = &mut self.recent[reason as usize];
        if recent.may_write(now) {
            let left_out = recent.left_out.take().map_or(0, |(_, before)| before + 1);
            recent.written.push_back(now);
            lines.push(LogLine::Rejected { rejected, left_out });
        } else {
            let before = recent.left_out.take().map_or(0, |(_, before)| before + 1);
            recent.left_out = Some((rejected, before));
        }
    }

    /// Adds the lines that are due by time alone.
    fn due(&mut self, now: Timestamp, lines: &mut Vec<LogLine>) {
        self.end_throttling(now, lines);
        for recent in &mut self.recent {
            if recent.left_out.is_some() && recent.may_write(now) {
                recent.written.push_back(now);
                lines.extend(recent.last_left_out());
            }
        }
    }

    /// Adds the lines that were left out last: no other line follows them.
    fn finish(&mut self, now: Timestamp, lines: &mut Vec<LogLine>) {
        self.end_throttling(now, lines);
        lines.extend(self.recent.iter_mut().filter_map(Recent::last_left_out));
    }

    fn end_throttling(&mut self, now: Timestamp, lines: &mut Vec<LogLine>) {
        if let Some(Throttling { began, last, answered }) = self.throttling.take_if(|of| now.since(of.last) >= QUIET) {
            lines.push(LogLine::ThrottlingEnds { answered, lasted: last.since(began) });
        }
    }

    fn is_pending(&self) -> bool {
        self.throttling.is_some() || self.recent.iter().any(|recent| recent.left_out.is_some())
    }
}

impl Recent {
    fn may_write(&mut self, now: Timestamp) -> bool {
        while self.written.front().is_some_and(|written| now.since(*written) >= SECOND) {
            self.written.pop_front();
        }
        self.written.len() < LINES_MAX
    }

    fn last_left_out(&mut self) -> Option<LogLine> {
        self.left_out.take().map(|(rejected, left_out)| LogLine::Rejected { rejected, left_out })
    }
}

impl LogLine {
    fn log(&self) {
        match self {
            LogLine::Rejected { rejected: LoggedRejection { status, code, reason, subject }, left_out } => info!(
                status,
                code,
                reason = reason.as_str(),
                conversation = subject.conversation.as_deref(),
                client_token = subject.client_token.as_deref(),
                left_out,
                "rejected"
            ),
            LogLine::ThrottlingBegins { code, reason, why } => warn!(
                status = 429,
                code,
                reason = reason.as_str(),
                why,
                "messages are answered 429 from now on: nothing of them is kept"
            ),
            LogLine::ThrottlingEnds { answered, lasted } => warn!(
                status = 429,
                answered,
                lasted_ms = millis(*lasted),
                "messages are accepted again: none was answered 429 for {} s",
                QUIET.as_secs()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_reply(status: u16, client_token: &str) -> ErrorReply {
        let status = StatusCode::from_u16(status).unwrap();
        let subject = Subject { conversation: Some("4711/bot".into()), client_token: Some(client_token.into()) };
        ErrorReply::new(status, "SomeException", "connect-relay: why").about(subject)
    }

    /// `c-1` for a line, `c-1+3` for one with three left out before it.
    fn shown(lines: &mut Vec<LogLine>) -> Vec<String> {
        let shown = |line: LogLine| match line {
            LogLine::Rejected { rejected, left_out: 0 } => rejected.subject.client_token.unwrap_or_default().into(),
            LogLine::Rejected { rejected, left_out } => {
                format!("{}+{left_out}", rejected.subject.client_token.unwrap_or_default())
            }
            LogLine::ThrottlingBegins { .. } => "begins".to_owned(),
            LogLine::ThrottlingEnds { answered, lasted } => format!("ends {answered} {}", lasted.as_secs()),
        };
        lines.drain(..).map(shown).collect()
    }

    #[test]
    fn ten_lines_a_second_are_written_and_the_others_are_counted() {
        let (mut rejections, mut lines) = (Rejections::default(), Vec::new());
        let mut refuse = |at: u64, reason, name: &str, lines: &mut Vec<LogLine>| {
            rejections.rejected(reason, &error_reply(400, name), Timestamp(at), lines);
        };
        for number in 0..14 {
            refuse(100 * number, RejectReason::Invalid, &number.to_string(), &mut lines);
        }
        assert_eq!(shown(&mut lines), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13"]);
        for number in 0..25 {
            refuse(5000 + number, RejectReason::Invalid, &number.to_string(), &mut lines);
        }
        assert_eq!(shown(&mut lines), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        refuse(5024, RejectReason::Conflict, "another reason", &mut lines);
        refuse(5999, RejectReason::Invalid, "left out too", &mut lines);
        refuse(6000, RejectReason::Invalid, "next", &mut lines);
        assert_eq!(shown(&mut lines), ["another reason", "next+16"]);
    }

    #[test]
    fn last_rejection_of_a_flood_is_written_without_another_rejection() {
        let (mut rejections, mut lines) = (Rejections::default(), Vec::new());
        for number in 0..13 {
            rejections.rejected(RejectReason::Denied, &error_reply(403, &number.to_string()), Timestamp(1), &mut lines);
        }
        assert!(rejections.is_pending());
        rejections.due(Timestamp(1000), &mut lines);
        assert_eq!(shown(&mut lines).len(), 10);
        rejections.due(Timestamp(1001), &mut lines);
        assert_eq!((shown(&mut lines), rejections.is_pending()), (vec!["12+2".to_owned()], false));
        for number in 0..13 {
            rejections.rejected(
                RejectReason::Denied,
                &error_reply(403, &number.to_string()),
                Timestamp(9000),
                &mut lines,
            );
        }
        rejections.finish(Timestamp(9000), &mut lines);
        assert_eq!(shown(&mut lines).last().unwrap(), "12+2", "a stop does not wait for the bound");
    }

    #[test]
    fn answering_429_begins_and_ends_with_a_warning_each() {
        let (mut rejections, mut lines) = (Rejections::default(), Vec::new());
        for (at, status, expected) in [
            (0, 400, &["a"][..]),
            (1000, 429, &["begins", "a"]),
            (9000, 429, &["a"]),
            (18_999, 503, &["a"]),
            (18_999, 429, &["a"]),
        ] {
            rejections.rejected(RejectReason::QueueFull, &error_reply(status, "a"), Timestamp(at), &mut lines);
            assert_eq!(shown(&mut lines), expected, "{at}");
        }
        rejections.due(Timestamp(28_998), &mut lines);
        assert_eq!(shown(&mut lines), Vec::<String>::new());
        rejections.due(Timestamp(28_999), &mut lines);
        assert_eq!((shown(&mut lines), rejections.is_pending()), (vec!["ends 3 17".to_owned()], false));
        rejections.rejected(RejectReason::QueueFull, &error_reply(429, "b"), Timestamp(40_000), &mut lines);
        rejections.rejected(RejectReason::QueueFull, &error_reply(429, "c"), Timestamp(50_000), &mut lines);
        assert_eq!(shown(&mut lines), ["begins", "b", "ends 1 0", "begins", "c"], "also if no tick came between");
    }
}
