//! Log lines about refused messages: one line for each, bounded, and a warning when answering 429 begins and ends.
//!
//! | line | level | when |
//! | --- | --- | --- |
//! | `rejected` | info | for each refused message, at most [`LINES_MAX`] in any second for each reason |
//! | a warning | WARN | the first 429 after [`QUIET`] without one |
//! | a warning | WARN | [`QUIET`] after the last 429, with the number of them |
//!
//! A line that is over the bound is counted. The next line of its reason carries the count as `left_out`; if no other
//! refusal follows, the last line that was left out is written when the bound allows it, so every refusal is in a line
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

use super::refusal::{Refusal, Rejected, Subject};
use crate::time::{Clock, Timestamp, millis};

/// Lines of one reason in any second.
const LINES_MAX: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// The time without a 429 after which answering 429 has ended.
const QUIET: Duration = Duration::from_secs(10);

/// Logs the refusals of a relay.
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

    /// Logs a refusal, or counts it.
    pub(super) fn refused(&self, reason: Rejected, refusal: &Refusal) {
        let now = self.clock.now();
        let mut lines = Vec::new();
        let pending = {
            let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
            rejections.refused(reason, refusal, now, &mut lines);
            rejections.is_pending()
        };
        lines.iter().for_each(Line::log);
        if pending {
            self.wake.notify_one();
        }
    }

    /// Writes what becomes due without another refusal, until `stop` resolves; then the lines that were left out last.
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

    /// True while more may become due.
    fn report(&self, due: impl FnOnce(&mut Rejections, Timestamp, &mut Vec<Line>)) -> bool {
        let mut lines = Vec::new();
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        due(&mut rejections, self.clock.now(), &mut lines);
        let pending = rejections.is_pending();
        drop(rejections);
        lines.iter().for_each(Line::log);
        pending
    }
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Rejected { refused: Refused, left_out: u64 },
    ThrottlingBegins { code: Box<str>, reason: Rejected, why: Box<str> },
    ThrottlingEnds { answered: u64, lasted: Duration },
}

/// One refusal, as in its line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused {
    status: u16,
    code: Box<str>,
    reason: Rejected,
    subject: Subject,
}

/// The recent refusals.
#[derive(Debug, Default)]
struct Rejections {
    /// Recent refusals by [`Rejected`].
    recent: [Recent; Rejected::ALL.len()],
    throttling: Option<Throttling>,
}

/// The refusals of one reason.
#[derive(Debug, Default)]
struct Recent {
    /// The times of the last lines, at most [`LINES_MAX`] of them.
    written: VecDeque<Timestamp>,
    /// The last refusal that was left out, and the number of those before it.
    left_out: Option<(Refused, u64)>,
}

/// The period of answering 429.
#[derive(Debug)]
struct Throttling {
    began: Timestamp,
    last: Timestamp,
    answered: u64,
}

impl Rejections {
    fn refused(&mut self, reason: Rejected, refusal: &Refusal, now: Timestamp, lines: &mut Vec<Line>) {
        if refusal.status == StatusCode::TOO_MANY_REQUESTS {
            self.end_throttling(now, lines);
            let throttling = self.throttling.get_or_insert_with(|| {
                let (code, why) = (Box::from(&*refusal.code), Box::from(&*refusal.text));
                lines.push(Line::ThrottlingBegins { code, reason, why });
                Throttling { began: now, last: now, answered: 0 }
            });
            (throttling.last, throttling.answered) = (now, throttling.answered + 1);
        }
        let refused = Refused {
            status: refusal.status.as_u16(),
            code: Box::from(&*refusal.code),
            reason,
            subject: refusal.subject.as_deref().cloned().unwrap_or_default(),
        };
        let recent = &mut self.recent[reason as usize];
        if recent.has_room(now) {
            let left_out = recent.left_out.take().map_or(0, |(_, before)| before + 1);
            recent.written.push_back(now);
            lines.push(Line::Rejected { refused, left_out });
        } else {
            let before = recent.left_out.take().map_or(0, |(_, before)| before + 1);
            recent.left_out = Some((refused, before));
        }
    }

    /// Adds the lines that are due by time alone.
    fn due(&mut self, now: Timestamp, lines: &mut Vec<Line>) {
        self.end_throttling(now, lines);
        for recent in &mut self.recent {
            if recent.left_out.is_some() && recent.has_room(now) {
                recent.written.push_back(now);
                lines.extend(recent.last_left_out());
            }
        }
    }

    /// Adds the lines that were left out last: no other line follows them.
    fn finish(&mut self, now: Timestamp, lines: &mut Vec<Line>) {
        self.end_throttling(now, lines);
        lines.extend(self.recent.iter_mut().filter_map(Recent::last_left_out));
    }

    fn end_throttling(&mut self, now: Timestamp, lines: &mut Vec<Line>) {
        if let Some(Throttling { began, last, answered }) = self.throttling.take_if(|of| now.since(of.last) >= QUIET) {
            lines.push(Line::ThrottlingEnds { answered, lasted: last.since(began) });
        }
    }

    fn is_pending(&self) -> bool {
        self.throttling.is_some() || self.recent.iter().any(|recent| recent.left_out.is_some())
    }
}

impl Recent {
    fn has_room(&mut self, now: Timestamp) -> bool {
        while self.written.front().is_some_and(|written| now.since(*written) >= SECOND) {
            self.written.pop_front();
        }
        self.written.len() < LINES_MAX
    }

    fn last_left_out(&mut self) -> Option<Line> {
        self.left_out.take().map(|(refused, left_out)| Line::Rejected { refused, left_out })
    }
}

impl Line {
    fn log(&self) {
        match self {
            Line::Rejected { refused: Refused { status, code, reason, subject }, left_out } => info!(
                status,
                code,
                reason = reason.as_str(),
                conversation = subject.conversation.as_deref(),
                client_token = subject.client_token.as_deref(),
                left_out,
                "rejected"
            ),
            Line::ThrottlingBegins { code, reason, why } => warn!(
                status = 429,
                code,
                reason = reason.as_str(),
                why,
                "messages are answered 429 from now on: nothing of them is kept"
            ),
            Line::ThrottlingEnds { answered, lasted } => warn!(
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

    fn refusal(status: u16, client_token: &str) -> Refusal {
        let status = StatusCode::from_u16(status).unwrap();
        let subject = Subject { conversation: Some("4711/bot".into()), client_token: Some(client_token.into()) };
        Refusal::new(status, "SomeException", "connect-relay: why").about(subject)
    }

    /// `c-1` for a line, `c-1+3` for one with three left out before it.
    fn shown(lines: &mut Vec<Line>) -> Vec<String> {
        let shown = |line: Line| match line {
            Line::Rejected { refused, left_out: 0 } => refused.subject.client_token.unwrap_or_default().into(),
            Line::Rejected { refused, left_out } => {
                format!("{}+{left_out}", refused.subject.client_token.unwrap_or_default())
            }
            Line::ThrottlingBegins { .. } => "begins".to_owned(),
            Line::ThrottlingEnds { answered, lasted } => format!("ends {answered} {}", lasted.as_secs()),
        };
        lines.drain(..).map(shown).collect()
    }

    #[test]
    fn ten_lines_a_second_are_written_and_the_others_are_counted() {
        let (mut rejections, mut lines) = (Rejections::default(), Vec::new());
        let mut refuse = |at: u64, reason, name: &str, lines: &mut Vec<Line>| {
            rejections.refused(reason, &refusal(400, name), Timestamp(at), lines);
        };
        for number in 0..14 {
            refuse(100 * number, Rejected::Invalid, &number.to_string(), &mut lines);
        }
        assert_eq!(shown(&mut lines), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13"]);
        for number in 0..25 {
            refuse(5000 + number, Rejected::Invalid, &number.to_string(), &mut lines);
        }
        assert_eq!(shown(&mut lines), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        refuse(5024, Rejected::Conflict, "another reason", &mut lines);
        refuse(5999, Rejected::Invalid, "left out too", &mut lines);
        refuse(6000, Rejected::Invalid, "next", &mut lines);
        assert_eq!(shown(&mut lines), ["another reason", "next+16"]);
    }

    #[test]
    fn last_refusal_of_a_flood_is_written_without_another_one() {
        let (mut rejections, mut lines) = (Rejections::default(), Vec::new());
        for number in 0..13 {
            rejections.refused(Rejected::Denied, &refusal(403, &number.to_string()), Timestamp(1), &mut lines);
        }
        assert!(rejections.is_pending());
        rejections.due(Timestamp(1000), &mut lines);
        assert_eq!(shown(&mut lines).len(), 10);
        rejections.due(Timestamp(1001), &mut lines);
        assert_eq!((shown(&mut lines), rejections.is_pending()), (vec!["12+2".to_owned()], false));
        for number in 0..13 {
            rejections.refused(Rejected::Denied, &refusal(403, &number.to_string()), Timestamp(9000), &mut lines);
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
            rejections.refused(Rejected::QueueFull, &refusal(status, "a"), Timestamp(at), &mut lines);
            assert_eq!(shown(&mut lines), expected, "{at}");
        }
        rejections.due(Timestamp(28_998), &mut lines);
        assert_eq!(shown(&mut lines), Vec::<String>::new());
        rejections.due(Timestamp(28_999), &mut lines);
        assert_eq!((shown(&mut lines), rejections.is_pending()), (vec!["ends 3 17".to_owned()], false));
        rejections.refused(Rejected::QueueFull, &refusal(429, "b"), Timestamp(40_000), &mut lines);
        rejections.refused(Rejected::QueueFull, &refusal(429, "c"), Timestamp(50_000), &mut lines);
        assert_eq!(shown(&mut lines), ["begins", "b", "ends 1 0", "begins", "c"], "also if no tick came between");
    }
}
