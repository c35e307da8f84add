//! The output while the demo runs: bars in a terminal, a plain line about once a second elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::out;
use crate::simulator::Counts;
use crate::time::Timestamp;

/// The state at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// The moment.
    pub at: Timestamp,
    /// Messages that the bots will have submitted in the end.
    pub total: u64,
    /// Messages acknowledged by the relay.
    pub acknowledged: u64,
    /// Messages submitted again.
    pub repeats: u64,
    /// Bots still at work.
    pub bots: usize,
    /// The counts of the Participant Service.
    pub counts: Counts,
    /// The act of the demo's script that is under way, in a sentence.
    pub act: Option<&'static str>,
}

impl Sample {
    /// Messages acknowledged and not delivered yet.
    pub(super) fn waiting(&self) -> u64 {
        self.acknowledged.saturating_sub(self.counts.accepted)
    }
}

/// The view.
#[derive(Debug)]
pub(super) struct View {
    started: Timestamp,
    recent: VecDeque<Sample>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Bars(Box<Bars>),
    Lines { written: Option<Timestamp> },
}

#[derive(Debug)]
struct Bars {
    acknowledged: ProgressBar,
    delivered: ProgressBar,
    waiting: ProgressBar,
    faults: ProgressBar,
    now: ProgressBar,
}

/// The time over which the rate is measured.
const RATE_SPAN: Duration = Duration::from_secs(3);
/// The time for which a throttle or a fault is mentioned.
const NEWS_SPAN: Duration = Duration::from_millis(1200);
/// The time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(1);

impl View {
    /// Bars if standard output is a terminal that can draw them, else lines.
    pub(super) fn new(total: u64, now: Timestamp) -> View {
        let draws = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let form = if draws { Form::Bars(Box::new(Bars::new(total))) } else { Form::Lines { written: None } };
        View { started: now, recent: VecDeque::new(), form }
    }

    /// Shows the state.
    pub(super) fn show(&mut self, sample: Sample) {
        self.recent.push_back(sample);
        while self.recent.front().is_some_and(|oldest| sample.at.since(oldest.at) > RATE_SPAN) {
            self.recent.pop_front();
        }
        let rate = rate(&self.recent);
        let now = explain(&self.recent);
        match &mut self.form {
            Form::Bars(bars) => bars.show(&sample, rate, now),
            Form::Lines { written } => {
                if written.is_none_or(|written| sample.at.since(written) >= LINE_EVERY) {
                    *written = Some(sample.at);
                    print_line(&line(sample.at.since(self.started), &sample, rate, now));
                }
            }
        }
    }

    /// Shows the last state, and leaves it on the screen.
    pub(super) fn finish(mut self, sample: Sample) {
        if let Form::Lines { written } = &mut self.form {
            *written = None;
        }
        self.show(sample);
        if let Form::Bars(bars) = self.form {
            bars.now.finish_and_clear();
            for bar in [bars.acknowledged, bars.delivered, bars.waiting, bars.faults] {
                bar.abandon();
            }
            // The cursor is at the end of the last bar.
            print_line("");
        }
    }
}

impl Bars {
    fn new(total: u64) -> Bars {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let bar = |template: &str, name: &'static str| {
            let style = ProgressStyle::with_template(template).expect("the template is well-formed");
            all.add(ProgressBar::new(total).with_style(style.progress_chars("━╸─")).with_prefix(name))
        };
        Bars {
            acknowledged: bar("  {prefix:<12} {bar:30.blue/dim} {pos:>6} of {len}  {msg:.dim}", "acknowledged"),
            delivered: bar("  {prefix:<12} {bar:30.green/dim} {pos:>6} of {len}  {msg}", "delivered"),
            waiting: bar("  {prefix:<12} {bar:30.yellow/dim} {pos:>6} {msg:.dim}", "in the queue"),
            faults: bar("  {prefix:<12} {msg}", "faults"),
            now: bar("\n  {prefix:.bold} {wide_msg}", "▸"),
        }
    }

    fn show(&self, sample: &Sample, rate: f64, now: &'static str) {
        let Counts { accepted, throttled, errors, lost_replies, .. } = sample.counts;
        self.acknowledged.set_position(sample.acknowledged);
        self.acknowledged.set_message(format!("and {} repeats", sample.repeats));
        self.delivered.set_position(accepted);
        self.delivered.set_message(format!("{rate:.0}/s"));
        self.waiting.set_position(sample.waiting());
        self.waiting.set_message("waiting on disk");
        self.faults.set_message(format!("{throttled} throttles · {errors} errors · {lost_replies} lost replies"));
        self.now.set_message(now);
    }
}

/// One plain line.
fn line(elapsed: Duration, sample: &Sample, rate: f64, now: &str) -> String {
    let Counts { accepted, throttled, errors, lost_replies, .. } = sample.counts;
    format!(
        "{:>4}s  acknowledged {}/{}  delivered {accepted}  queued {}  rate {rate:.0}/s  throttles {throttled}  \
         errors {errors}  lost replies {lost_replies}  {now}",
        elapsed.as_secs(),
        sample.acknowledged,
        sample.total,
        sample.waiting(),
    )
}

/// Deliveries per second over the remembered samples.
fn rate(recent: &VecDeque<Sample>) -> f64 {
    let (Some(first), Some(last)) = (recent.front(), recent.back()) else { return 0.0 };
    let span = last.at.since(first.at);
    if span.is_zero() {
        return 0.0;
    }
    // Both are small: the deliveries of three seconds.
    let delivered = u32::try_from(last.counts.accepted.saturating_sub(first.counts.accepted)).unwrap_or(u32::MAX);
    f64::from(delivered) / span.as_secs_f64()
}

/// The present event in a sentence: the rarest one first.
fn explain(recent: &VecDeque<Sample>) -> &'static str {
    let Some(last) = recent.back() else { return "" };
    let before = recent.iter().find(|sample| last.at.since(sample.at) <= NEWS_SPAN).unwrap_or(last);
    let news = |count: fn(&Counts) -> u64| count(&last.counts) > count(&before.counts);
    if last.counts.accepted >= last.total {
        "everything is delivered"
    } else if let Some(act) = last.act {
        act
    } else if news(|counts| counts.lost_replies) {
        "a reply was lost: the relay sends the message again, and Connect knows the ClientToken"
    } else if news(|counts| counts.errors) {
        "Connect failed: the relay sends the message again, before any other of its chat"
    } else if news(|counts| counts.throttled) {
        "Connect throttles: the relay waits, probes, and continues more slowly"
    } else if last.bots > 0 && last.waiting() > 0 {
        "the bots write faster than Connect accepts: the rest waits on disk"
    } else if last.bots > 0 {
        "the bots are writing"
    } else {
        "the bots are done: the relay delivers the rest, in order"
    }
}

/// Writes a line to standard output and ignores errors.
pub(super) fn print_line(text: &str) {
    let _ = out::print(&format!("{text}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(millis: u64, acknowledged: u64, bots: usize, counts: Counts) -> Sample {
        Sample { at: Timestamp(millis), total: 400, acknowledged, repeats: 0, bots, counts, act: None }
    }

    fn accepted(accepted: u64) -> Counts {
        Counts { accepted, ..Counts::default() }
    }

    #[test]
    fn rate_is_the_deliveries_of_the_last_samples() {
        assert!(rate(&VecDeque::new()).abs() < 1e-9);
        let recent = VecDeque::from([sample(1000, 9, 1, accepted(10)), sample(3000, 90, 1, accepted(50))]);
        assert!((rate(&recent) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn sentence_describes_the_last_event() {
        let quiet = sample(0, 10, 3, accepted(5));
        let says = |counts: Counts, millis| explain(&VecDeque::from([quiet, sample(millis, 10, 3, counts)]));
        assert!(says(Counts { throttled: 1, ..accepted(5) }, 1000).starts_with("Connect throttles"));
        assert!(says(Counts { throttled: 1, errors: 1, ..accepted(5) }, 1000).starts_with("Connect failed"));
        let lost = Counts { throttled: 1, errors: 1, lost_replies: 1, ..accepted(5) };
        assert!(says(lost, 1000).starts_with("a reply was lost"));
        assert!(says(lost, 2000).starts_with("the bots write faster"), "an event is shown for a limited time");
        let killed = Sample { act: Some("the relay was killed"), ..sample(2000, 10, 3, accepted(5)) };
        assert_eq!(explain(&VecDeque::from([quiet, killed])), "the relay was killed");
        let states =
            [(10, 3, "the bots are writing"), (4, 0, "the bots are done"), (400, 0, "everything is delivered")];
        for (delivered, bots, expected) in states {
            let recent = VecDeque::from([sample(0, 10, bots, accepted(delivered))]);
            assert!(explain(&recent).starts_with(expected));
        }
    }

    #[test]
    fn plain_line_holds_every_figure_and_no_escape() {
        let counts = Counts { throttled: 7, errors: 2, lost_replies: 1, ..accepted(30) };
        let line = line(Duration::from_millis(5900), &sample(0, 90, 3, counts), 19.6, "so it goes");
        assert_eq!(
            line,
            "   5s  acknowledged 90/400  delivered 30  queued 60  rate 20/s  throttles 7  errors 2  lost replies 1  \
             so it goes"
        );
    }
}
